"""What a Hugging Face folder says beside its weights: config.json as `Config`, the files of tokenizer and image
processor as `Processor`.

config.json comes in two published forms. Flat: text fields at top level (the released 3B to 72B, and fine-tunes
saved by older transformers). Nested: text fields in `text_config`, rotary settings in `rope_parameters` (saved by
newer transformers). Fields left out take the class defaults of transformers, as they would there. What r1ov does
not compute is refused by name rather than ignored.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from r1ov.common.files import read_json
from r1ov.common.text import one_line
from r1ov.data.image import ImageProcessor
from r1ov.data.processor import Processor
from r1ov.data.template import compile_template
from r1ov.errors import UserError
from r1ov.folder.allowed import CHOICES, EXPECTED, FITS, TESTS
from r1ov.folder.weights import adapter_of
from r1ov.model.config import Config, TextConfig, VisionConfig

PARSED = ("tokenizer_config.json", "processor_config.json", "chat_template.json", "generation_config.json")
# What may lie in a folder beside its config and weights, kept as it was read, so that it can be written back.
FILES = (
    *PARSED,
    "preprocessor_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
# Where a template may be, in the order in which the processors of transformers look.
TEMPLATES = ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json")


def read_config(path: str | Path) -> Config:
    """Reads a config.json in either form. Raises UserError that names the file and the field."""
    if adapter := adapter_of(Path(path).parent):
        raise UserError(adapter)
    raw = read_json(path, missing="a model is a Hugging Face folder with config.json, weights and tokenizer")
    with _naming(path):
        return config_from_dict(raw)


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """What goes wrong inside begins with the file's name."""
    try:
        yield
    except (UserError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None


def config_from_dict(raw: Mapping[str, Any]) -> Config:
    """The sizes in a config.json's object, flat or nested. Raises UserError that names the field."""
    if raw.get("model_type") != "qwen2_5_vl":
        raise UserError(f"model_type is {raw.get('model_type')!r}; r1ov computes qwen2_5_vl only")
    text = _object("text_config", raw.get("text_config", raw))
    vision = _object("vision_config", raw.get("vision_config", {}))
    rope = _object("rope_scaling", text.get("rope_parameters") or text.get("rope_scaling") or {})
    for settings, prefix in ((raw, ""), (text, ""), (rope, "rope_scaling."), (vision, "vision_config.")):
        _refuse_other_choices(settings, prefix)
    dtypes = (owner.get(name) for owner in (raw, text) for name in ("dtype", "torch_dtype"))
    top = {
        **text,
        **raw,
        "tie_word_embeddings": raw.get("tie_word_embeddings") or text.get("tie_word_embeddings") or False,
        "torch_dtype": next(filter(None, dtypes), "bfloat16"),
    }
    eyes = {"in_channels": vision.get("in_chans", 3), **vision}
    config = Config(
        text=TextConfig(**_checked(TextConfig, {**text, **rope})),
        vision=VisionConfig(**_checked(VisionConfig, eyes, "vision_config.")),
        **_checked(Config, top),
    )
    full = ["full_attention"] * config.text.num_hidden_layers
    if (text.get("layer_types") or full) != full:
        raise UserError(f"layer_types is {text['layer_types']!r}; r1ov computes full_attention only")
    for fits, fault in FITS:
        if not fits(config):
            raise UserError(fault.format(config))
    return config


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{name} is {value!r}, expected an object")
    return value


def _refuse_other_choices(settings: Mapping[str, Any], prefix: str = "") -> None:
    for name, (computed, words) in CHOICES.items():
        if settings.get(name) is not None and settings[name] not in computed:
            raise UserError(f"{prefix}{name} is {settings[name]!r}; r1ov computes {words} only")


def _checked(cls: type, settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields that the settings have of a dataclass."""
    values = {field.name: settings[field.name] for field in fields(cls) if field.name in settings}
    for name, value in values.items():
        expected = EXPECTED.get(name, "a positive integer")
        if not TESTS[expected](value):
            raise UserError(f"{prefix}{name} is {value!r}, expected {expected}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def read_processor(folder: str | Path) -> Processor:
    """The processor of a folder in Hugging Face's layout, of any transformers from 4.49 to 5.

    Raises:  UserError that names the file at fault.
    """
    folder = Path(folder)
    if not folder.is_dir():
        fault = "is not a folder" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {fault}; expected a Hugging Face checkpoint")
    config = read_config(folder / "config.json")
    with _naming(folder):
        files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}
    parsed = {name: read_json(folder / name) for name in PARSED if name in files}
    special = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = parsed.get("tokenizer_config.json", {}).get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            special[name] = token
    return Processor(
        tokenizer=_tokenizer(folder / "tokenizer.json", config),
        image_processor=_image_processor(folder, parsed, config.vision),
        chat_template=_chat_template(folder, files, parsed),
        generation_config=parsed.get("generation_config.json", {}),
        config=config,
        special_tokens=special,
        files=files,
    )


def _tokenizer(path: Path, config: Config) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        fault = "not a tokenizer" if path.exists() else "no such file"
        raise UserError(f"{path}: {fault} ({one_line(str(error))[:200]})") from error
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


def _image_processor(folder: Path, parsed: Mapping[str, Any], vision: VisionConfig) -> ImageProcessor:
    # transformers 5 nests it in processor_config.json, and that one wins; older files of this name have no
    # such part.
    path = folder / "processor_config.json"
    settings = parsed.get(path.name, {}).get("image_processor")
    if settings is None:
        path = folder / "preprocessor_config.json"
        settings = read_json(path, missing="expected beside config.json")
    with _naming(path):
        images = image_processor_from_dict(_object("image_processor", settings))
        ours = (images.patch_size, images.temporal_patch_size, images.merge_size)
        if ours != (theirs := (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)):
            raise UserError(
                f"patch_size, temporal_patch_size and merge_size are {ours}, but those of config.json are {theirs}"
            )
    return images


def image_processor_from_dict(settings: Mapping[str, Any]) -> ImageProcessor:
    """From a `preprocessor_config.json`, or the `image_processor` part of transformers 5's
    `processor_config.json`.

    Raises: UserError that names the field; a setting under which other images would come out is refused, not
        ignored.
    """
    _refuse_other_choices(settings)
    size = _object("size", settings.get("size") or {})
    if unknown := size.keys() - {"shortest_edge", "longest_edge", "min_pixels", "max_pixels"}:
        raise UserError(f"size has {', '.join(unknown)}, expected shortest_edge and longest_edge")
    # Areas in pixels, whatever the names say; min_pixels and max_pixels win where both are given.
    edges = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
    owners = (edges, size, settings)
    given = {name: value for owner in owners for name, value in owner.items() if value is not None}
    return ImageProcessor(**_checked(ImageProcessor, given))


def _chat_template(folder: Path, files: Mapping[str, bytes], parsed: Mapping[str, Any]) -> str:
    for name in TEMPLATES:
        with _naming(folder / name):
            value = parsed.get(name, {}).get("chat_template")
            if name.endswith(".jinja") and name in files:
                value = files[name].decode()
            if value is not None:
                template = value if isinstance(value, str) else _default_template(value)
                compile_template(template)
                return template
    raise UserError(f"{folder}: no chat template; expected one in {', '.join(TEMPLATES)}")


def _default_template(value: Any) -> str:
    """The default of several templates: {name: template}, or a list of {"name", "template"}."""
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {item.get("name"): item.get("template") for item in value}
    if isinstance(value, dict) and isinstance(value.get("default"), str):
        return value["default"]
    raise UserError('chat_template is neither a text nor a list with one that is named "default"')
