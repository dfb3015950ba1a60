"""The sizes of a Qwen2.5-VL model, read from a checkpoint's config.json in either of its two published forms.

Flat: text fields at top level (the released 3B to 72B, and fine-tunes saved by older transformers).
Nested: text fields in `text_config`, rotary settings in `rope_parameters` (saved by newer transformers).
Fields left out of a file take the class defaults of `transformers`' Qwen2_5_VLConfig, as they would there.
What r1ov does not compute (sliding windows, scaled rotary positions, other activations) is refused by name
rather than ignored.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from r1ov.errors import UserError


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    depth: int = 32
    hidden_size: int = 3584
    intermediate_size: int = 3420
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112  # pixels
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    out_hidden_size: int = 3584
    tokens_per_second: float = 4

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one row of `pixel_values`."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    vocab_size: int = 152064
    hidden_size: int = 8192
    intermediate_size: int = 29568
    num_hidden_layers: int = 80
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6
    mrope_section: tuple[int, int, int] = (16, 24, 24)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, kw_only=True)
class Config:
    text: TextConfig
    vision: VisionConfig
    bos_token_id: int | None = 151643
    eos_token_id: int | tuple[int, ...] | None = 151645
    pad_token_id: int | None = None
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    vision_token_id: int = 151654
    image_token_id: int = 151655
    video_token_id: int = 151656
    tie_word_embeddings: bool = False
    torch_dtype: str = "bfloat16"

    @classmethod
    def from_file(cls, path: str | Path) -> "Config":
        """Reads a config.json."""
        raw = read_json(path)
        try:
            return cls.from_dict(raw)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Config":
        """From the object in a config.json, flat or nested; raises UserError naming the field it cannot take."""
        if raw.get("model_type") != "qwen2_5_vl":
            raise UserError(f"model_type is {raw.get('model_type')!r}; r1ov computes qwen2_5_vl only")
        for field in ("text_config", "vision_config"):
            if not isinstance(raw.get(field, {}), dict):
                raise UserError(f"{field} is {raw[field]!r}, expected an object")
        text, vision = raw.get("text_config", raw), raw.get("vision_config", {})
        for owner in (raw, text):
            if not isinstance(owner.get("tie_word_embeddings") or False, bool):
                raise UserError(
                    f"tie_word_embeddings is {owner['tie_word_embeddings']!r}, expected true or false"
                )
        dtype = (
            raw.get("dtype")
            or raw.get("torch_dtype")
            or text.get("dtype")
            or text.get("torch_dtype")
            or "bfloat16"
        )
        if not isinstance(dtype, str):
            raise UserError(f"torch_dtype is {dtype!r}, expected a name such as 'bfloat16'")
        config = cls(
            text=_section(TextConfig, {**text, **_rope(text)}, ""),
            vision=_section(
                VisionConfig, {"in_channels": vision.get("in_chans", 3), **vision}, "vision_config."
            ),
            **{
                name: _token_id(raw.get(name, text.get(name, default)), name)
                for name, default in _TOKEN_IDS.items()
            },
            tie_word_embeddings=bool(raw.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
            torch_dtype=dtype,
        )
        _refuse_unsupported(config, raw, text, vision)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The flat, published form with every field spelled out: the one that transformers 4.51 to 5 and vLLM
        all read.
        """
        text = asdict(self.text)
        rope = {
            "rope_theta": text.pop("rope_theta"),
            "rope_scaling": {"type": "mrope", "mrope_section": list(text.pop("mrope_section"))},
        }
        vision = asdict(self.vision) | {
            "model_type": "qwen2_5_vl",
            "hidden_act": "silu",
            "in_chans": self.vision.in_channels,
        }
        vision["fullatt_block_indexes"] = list(self.vision.fullatt_block_indexes)
        ids = {name: getattr(self, name) for name in _TOKEN_IDS}
        return {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            **text,
            **rope,
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "sliding_window": self.text.max_position_embeddings,
            "max_window_layers": self.text.num_hidden_layers,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": self.torch_dtype,
            "use_cache": True,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in ids.items()},
            "vision_config": vision,
        }


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file; raises UserError if there is no such file, or anything else in it."""
    path = Path(path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; a model is a Hugging Face folder with config.json, weights and tokenizer"
        ) from None
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: not UTF-8, not JSON, or a number too long
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a JSON {type(raw).__name__}, expected an object")
    return raw


# Far above any real size, and low enough that no tensor's size overflows; of all other integers the largest
# is 2^24.
_LARGEST = {
    "depth": 1024,
    "num_hidden_layers": 1024,
    "patch_size": 1024,
    "spatial_merge_size": 16,
    "temporal_patch_size": 16,
    "in_channels": 16,
}
_TOKEN_IDS = {field.name: field.default for field in fields(Config) if field.name.endswith("_token_id")}


def _section(cls, raw: dict[str, Any], prefix: str):
    """One dataclass from the fields of `raw` that it knows, each checked for its type."""
    values = {}
    for field in fields(cls):
        value = raw.get(field.name, field.default)
        if isinstance(field.default, tuple):
            if not isinstance(value, list | tuple) or not all(type(item) is int for item in value):
                raise UserError(f"{prefix}{field.name} is {value!r}, expected a list of integers")
            value = tuple(value)
        elif (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or (field.type is int and type(value) is not int)
        ):
            raise UserError(
                f"{prefix}{field.name} is {value!r}, expected {'an integer' if field.type is int else 'a number'}"
            )
        elif not 0 < value < 1e30:  # neither NaN nor infinity, which Python's JSON reader lets through
            raise UserError(f"{prefix}{field.name} is {value}, expected a positive number")
        if field.type is int and value > (limit := _LARGEST.get(field.name, 2**24)):
            raise UserError(f"{prefix}{field.name} is {value}, expected at most {limit}")
        values[field.name] = value
    return cls(**values)


def _rope(text: dict[str, Any]) -> dict[str, Any]:
    """rope_theta and mrope_section from any of their spellings."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"rope_scaling is {rope!r}, expected an object")
    kinds = {str(rope.get("type", "default")), str(rope.get("rope_type", "default"))}
    if not kinds <= {"default", "mrope"}:
        raise UserError(
            f"rope_scaling asks for {', '.join(sorted(kinds - {'default', 'mrope'}))}; r1ov computes plain multimodal rope only"
        )
    found = {"rope_theta": rope.get("rope_theta", text.get("rope_theta", 1e6))}
    if "mrope_section" in rope:
        found["mrope_section"] = rope["mrope_section"]
    return found


def _token_id(value: Any, name: str) -> Any:
    if isinstance(value, list) and name == "eos_token_id":
        value = tuple(value)
    if value is None and name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        return None
    for item in value if isinstance(value, tuple) else (value,):
        if type(item) is not int or item < 0:
            raise UserError(f"{name} is {item!r}, expected an integer")
    return value


def _listed(value: Any) -> list:
    """The value's items as text, whatever JSON it is."""
    return [] if value is None else [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _refuse_unsupported(
    config: Config, raw: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]
) -> None:
    t, v = config.text, config.vision
    quantised = raw.get("quantization_config") or text.get("quantization_config")
    checks = [
        (
            not text.get("use_sliding_window"),
            f"use_sliding_window is {text.get('use_sliding_window')!r}; r1ov computes full attention only",
        ),
        (
            text.get("hidden_act", "silu") == "silu",
            f"hidden_act is {text.get('hidden_act')!r}; r1ov computes silu only",
        ),
        (
            vision.get("hidden_act", "silu") == "silu",
            f"vision_config.hidden_act is {vision.get('hidden_act')!r}; r1ov computes silu only",
        ),
        (
            not text.get("attention_dropout"),
            f"attention_dropout is {text.get('attention_dropout')!r}; r1ov has no dropout",
        ),
        (
            set(_listed(text.get("layer_types"))) <= {"full_attention"},
            f"layer_types is {text.get('layer_types')!r}; r1ov computes full_attention only",
        ),
        (
            config.image_token_id < t.vocab_size,
            f"image_token_id {config.image_token_id} must be below vocab_size {t.vocab_size}",
        ),
        (not quantised, "quantization_config is set; r1ov loads unquantised weights only"),
        (
            t.hidden_size % t.num_attention_heads == 0,
            f"num_attention_heads {t.num_attention_heads} does not divide hidden_size {t.hidden_size}",
        ),
        (
            t.num_attention_heads % t.num_key_value_heads == 0,
            f"num_key_value_heads {t.num_key_value_heads} does not divide num_attention_heads",
        ),
        (
            len(t.mrope_section) == 3
            and min(t.mrope_section) >= 0
            and 2 * sum(t.mrope_section) == t.head_dim,
            f"mrope_section {list(t.mrope_section)} must be three numbers that sum to half the head size {t.head_dim}",
        ),
        (
            v.hidden_size % v.num_heads == 0 and v.head_dim % 4 == 0,
            f"vision_config: head size {v.hidden_size}/{v.num_heads} must be a multiple of 4",
        ),
        (
            v.out_hidden_size == t.hidden_size,
            f"vision_config.out_hidden_size {v.out_hidden_size} must equal hidden_size {t.hidden_size}",
        ),
        (
            v.window_size >= v.patch_size * v.spatial_merge_size,
            f"vision_config.window_size {v.window_size} is smaller than one merged patch",
        ),
    ]
    for supported, message in checks:
        if not supported:
            raise UserError(message)
