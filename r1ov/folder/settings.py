"""What a Hugging Face folder says beside its weights: config.json as `Config`, the files of tokenizer and image
processor as `Processor`.

config.json comes in two published forms. Flat: text fields at top level (the released 3B to 72B, and fine-tunes
saved by older transformers). Nested: text fields in `text_config`, rotary settings in `rope_parameters` (saved by
newer transformers). Fields left out take the class defaults of transformers, as they would there. What r1ov does
not compute is refused by name rather than ignored.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from r1ov.common.files import read_json
from r1ov.data.image import ImageProcessor
from r1ov.data.processor import Processor
from r1ov.data.template import compile_template
from r1ov.errors import UserError
from r1ov.model.config import Config, TextConfig, VisionConfig

# Settings with a choice: what r1ov computes where a file gives one, and what that is called.
COMPUTED = {
    "use_sliding_window": ((False,), "full attention"),
    "hidden_act": (("silu",), "silu"),
    "attention_dropout": ((0,), "no dropout"),
    "quantization_config": ((), "unquantised weights"),
    "type": (("default", "mrope"), "plain multimodal rope"),
    "rope_type": (("default", "mrope"), "plain multimodal rope"),
}
# Far above any real size, and low enough that no tensor's size overflows; of all other integers the largest
# is 2^24.
LARGEST = {
    "depth": 1024,
    "num_hidden_layers": 1024,
    "patch_size": 1024,
    "spatial_merge_size": 16,
    "temporal_patch_size": 16,
    "in_channels": 16,
    "min_pixels": 2**31,
    "max_pixels": 2**31,
}
TOKEN_IDS = {field.name: field.default for field in fields(Config) if field.name.endswith("_token_id")}
MAY_BE_NONE = ("bos_token_id", "eos_token_id", "pad_token_id")
A_MODEL = "a model is a Hugging Face folder with config.json, weights and tokenizer"

# What may lie in a folder beside its config and weights, kept as it was read, so that it can be written back.
PARSED = (
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "generation_config.json",
)
FILES = (
    *PARSED,
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
SIZE_KEYS = {"shortest_edge", "longest_edge", "min_pixels", "max_pixels"}
# Steps of an image's preprocessing that cannot be left out or changed.
STEPS = dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), True) | {"resample": 3}
SIZES = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "merge_size": "spatial_merge_size",
}


def read_config(path: str | Path) -> Config:
    """Reads a config.json in either form. Raises UserError that names the file and the field."""
    raw = read_json(path, missing=A_MODEL)
    try:
        return config_from_dict(raw)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def config_from_dict(raw: Mapping[str, Any]) -> Config:
    """The sizes in a config.json's object, flat or nested. Raises UserError that names the field it cannot take."""
    if raw.get("model_type") != "qwen2_5_vl":
        raise UserError(f"model_type is {raw.get('model_type')!r}; r1ov computes qwen2_5_vl only")
    text, vision = raw.get("text_config", raw), raw.get("vision_config", {})
    for name, value in (("text_config", text), ("vision_config", vision)):
        if not isinstance(value, dict):
            raise UserError(f"{name} is {value!r}, expected an object")
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"rope_scaling is {rope!r}, expected an object")
    for owner, prefix in ((raw, ""), (text, ""), (rope, "rope_scaling."), (vision, "vision_config.")):
        for name, (allowed, words) in COMPUTED.items():
            if owner.get(name) and owner[name] not in allowed:
                raise UserError(f"{prefix}{name} is {owner[name]!r}; r1ov computes {words} only")
    both = (raw, text)
    ids = {name: raw.get(name, text.get(name, default)) for name, default in TOKEN_IDS.items()}
    for name, value in ids.items():
        is_list = name == "eos_token_id" and isinstance(value, list | tuple)
        for item in value if is_list else [value]:
            if (type(item) is not int or item < 0) and not (item is None and name in MAY_BE_NONE):
                raise UserError(f"{name} is {item!r}, expected an integer")
        ids[name] = tuple(value) if is_list else value
    tied = [owner.get("tie_word_embeddings") or False for owner in both]
    for value in tied:
        if not isinstance(value, bool):
            raise UserError(f"tie_word_embeddings is {value!r}, expected true or false")
    dtypes = [owner.get(name) for owner in both for name in ("dtype", "torch_dtype")]
    dtype = next(filter(None, dtypes), "bfloat16")
    if not isinstance(dtype, str):
        raise UserError(f"torch_dtype is {dtype!r}, expected a name such as 'bfloat16'")
    rotary = {name: rope[name] for name in ("rope_theta", "mrope_section") if name in rope}
    config = Config(
        text=_checked(TextConfig, {**text, **rotary}),
        vision=_checked(VisionConfig, {"in_channels": vision.get("in_chans", 3), **vision}, "vision_config."),
        **ids,
        tie_word_embeddings=any(tied),
        torch_dtype=dtype,
    )
    _check_fit(config, text.get("layer_types") or [])
    return config


def _checked(cls: type, raw: Mapping[str, Any], prefix: str = "") -> Any:
    """A dataclass from the fields of `raw` that it knows, each of its default's kind and neither absurd nor
    infinite, which Python's JSON reader lets through.
    """
    values = {}
    for field in fields(cls):
        value = raw.get(field.name, field.default)
        if isinstance(field.default, tuple):
            kinds = (int, type(field.default[0]))
            is_list = isinstance(value, list | tuple)
            fits = is_list and all(type(item) in kinds and abs(item) < 1e30 for item in value)
            expected, value = "a list of numbers", tuple(value) if fits else value
        elif field.type is int:
            most = LARGEST.get(field.name, 2**24)
            fits, expected = type(value) is int and 0 < value <= most, f"an integer from 1 to {most}"
        else:
            fits, expected = type(value) in (int, float) and 0 < value < 1e30, "a positive number"
        if not fits:
            raise UserError(f"{prefix}{field.name} is {value!r}, expected {expected}")
        values[field.name] = value
    return cls(**values)


def _check_fit(config: Config, layer_types: list[str]) -> None:
    """Raises UserError where sizes contradict one another."""
    t, v = config.text, config.vision
    heads, head_dim, merged = t.num_attention_heads, t.head_dim, v.patch_size * v.spatial_merge_size
    is_halved = len(t.mrope_section) == 3 and 2 * sum(t.mrope_section) == head_dim
    faults = {
        f"layer_types is {layer_types!r}; r1ov computes full_attention only": any(
            kind != "full_attention" for kind in layer_types
        ),
        f"image_token_id {config.image_token_id} must be below vocab_size {t.vocab_size}": (
            config.image_token_id >= t.vocab_size
        ),
        f"num_attention_heads {heads} does not divide hidden_size {t.hidden_size}": t.hidden_size % heads,
        f"num_key_value_heads {t.num_key_value_heads} does not divide num_attention_heads {heads}": (
            heads % t.num_key_value_heads
        ),
        f"mrope_section {list(t.mrope_section)} must be three numbers that sum to half the head size {head_dim}": (
            not is_halved or min(t.mrope_section) < 0
        ),
        f"vision_config: head size {v.hidden_size}/{v.num_heads} must be a multiple of 4": (
            v.hidden_size % (4 * v.num_heads)
        ),
        f"vision_config.out_hidden_size {v.out_hidden_size} must equal hidden_size {t.hidden_size}": (
            v.out_hidden_size != t.hidden_size
        ),
        f"vision_config.window_size {v.window_size} is smaller than one merged patch": v.window_size < merged,
    }
    for fault, is_wrong in faults.items():
        if is_wrong:
            raise UserError(fault)


def read_processor(folder: str | Path) -> Processor:
    """The processor of a folder in Hugging Face's layout, of any transformers from 4.49 to 5.

    Raises:  UserError that names the file at fault.
    """
    folder = Path(folder)
    if not folder.is_dir():
        fault = "is not a folder" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {fault}; expected a Hugging Face checkpoint")
    config = read_config(folder / "config.json")
    files = {name: _bytes(folder / name) for name in FILES if (folder / name).exists()}
    parsed = {name: read_json(folder / name) for name in PARSED if name in files}
    named = parsed.get("tokenizer_config.json", {}).items()
    special = {name: value.get("content") if isinstance(value, dict) else value for name, value in named}
    return Processor(
        tokenizer=_tokenizer(folder / "tokenizer.json", files, config),
        image_processor=_image_processor(folder, parsed, config.vision),
        chat_template=_chat_template(folder, files, parsed),
        generation_config=parsed.get("generation_config.json", {}),
        config=config,
        special_tokens={
            name: special[name]
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
            if isinstance(special.get(name), str)
        },
        files=files,
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _tokenizer(path: Path, files: Mapping[str, bytes], config: Config) -> Tokenizer:
    if path.name not in files:
        raise UserError(f"{path}: no such file; expected beside config.json")
    try:
        tokenizer = Tokenizer.from_buffer(files[path.name])
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(f"{path}: not a tokenizer ({' '.join(str(error).split())[:200]})") from error
    # Files saved during a training can ask for both.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if (size := tokenizer.get_vocab_size()) > config.text.vocab_size:
        raise UserError(f"{path}: {size} tokens, but config.json has vocab_size {config.text.vocab_size}")
    added = tokenizer.get_added_tokens_decoder()
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        if (token_id := getattr(config, name)) not in added:
            raise UserError(f"{path}: no added token has the id {token_id}, which config.json calls {name}")
    return tokenizer


def _image_processor(
    folder: Path, parsed: Mapping[str, dict[str, Any]], vision: VisionConfig
) -> ImageProcessor:
    # transformers 5 nests it in processor_config.json, and that one wins; older files of this name have no
    # such part.
    name = "processor_config.json"
    settings = parsed.get(name, {}).get("image_processor")
    if settings is None:
        name = "preprocessor_config.json"
        settings = parsed.get(name)
    path = folder / name
    if settings is None:
        raise UserError(f"{path}: no such file; expected beside config.json")
    if not isinstance(settings, dict):
        raise UserError(f"{path}: image_processor is {settings!r:.60}, expected an object")
    try:
        processor = image_processor_from_dict(settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for mine, theirs in SIZES.items():
        if (size := getattr(processor, mine)) != (wanted := getattr(vision, theirs)):
            raise UserError(f"{path}: {mine} is {size}, but config.json has {theirs} {wanted}")
    return processor


def pixel_limits(settings: Mapping[str, Any]) -> dict[str, Any]:
    """min_pixels and max_pixels from any of their spellings; areas in pixels, whatever the names say."""
    size = settings.get("size") or {}
    if not isinstance(size, Mapping) or not size.keys() <= SIZE_KEYS:
        raise UserError(f"size is {size!r}, expected shortest_edge and longest_edge")
    given = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
    for owner in (size, settings):
        given |= {name: owner[name] for name in given if owner.get(name) is not None}
    return {name: value for name, value in given.items() if value is not None}


def image_processor_from_dict(settings: Mapping[str, Any]) -> ImageProcessor:
    """From a `preprocessor_config.json`, or the `image_processor` part of transformers 5's
    `processor_config.json`.

    Raises: UserError that names the field; a setting under which other images would come out is refused, not
        ignored.
    """
    for name, value in STEPS.items():
        if settings.get(name, value) not in (value, None):
            raise UserError(f"{name} is {settings[name]!r}, only {value!r} is supported")
    given = {name: value for name, value in settings.items() if value is not None}
    processor = _checked(ImageProcessor, given | pixel_limits(settings))
    for name, least in (("image_mean", 0.0), ("image_std", 1e-30)):
        values = getattr(processor, name)
        if len(values) != 3 or min(values) < least:
            raise UserError(f"{name} is {values!r}, expected three numbers, each at least {least}")
    return processor


def _chat_template(folder: Path, files: Mapping[str, bytes], parsed: Mapping[str, dict[str, Any]]) -> str:
    """The template, from the first place that has one, in the order in which transformers' processors look."""
    for name in ("chat_template.json", "chat_template.jinja", "tokenizer_config.json"):
        try:
            raw = files.get(name)
            is_text = raw is not None and name.endswith(".jinja")
            value = raw.decode() if is_text else parsed.get(name, {}).get("chat_template")
            if value is not None:
                template = _default_template(value)
                compile_template(template)
                return template
        except (UserError, UnicodeDecodeError) as error:
            raise UserError(f"{folder / name}: {error}") from error
    raise UserError(
        f"{folder}: no chat template; expected chat_template.json, chat_template.jinja or one in tokenizer_config.json"
    )


def _default_template(value: Any) -> str:
    """The text of a `chat_template`: a string, or a list of {"name", "template"} with one named default."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {item.get("name"): item.get("template") for item in value}
    if isinstance(value, dict) and isinstance(value.get("default"), str):
        return value["default"]
    raise UserError('chat_template is neither a text nor a list with one that is named "default"')
