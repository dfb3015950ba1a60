"""A model and its processor from a Hugging Face folder, and back into one that transformers and vLLM load.

config.json comes in two published forms. Flat: text fields at top level (the released 3B to 72B, and
fine-tunes saved by older transformers). Nested: text fields in `text_config`, rotary settings in
`rope_parameters` (saved by newer transformers). Missing fields take the class defaults of transformers, as
they do there. Settings that r1ov does not compute are refused by name, not ignored.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from r1ov.common.files import one_line, read_json, write_json
from r1ov.common.hub import folder_of
from r1ov.common.memory import plan
from r1ov.common.processes import choose_device, choose_dtype, dtype_name, known_dtype
from r1ov.data.image import ImageProcessor
from r1ov.data.messages import compile_template, default_template
from r1ov.data.processor import Processor
from r1ov.errors import UserError
from r1ov.folder.adapter import Folders, is_adapter, read_adapter, read_settings, save_adapter
from r1ov.folder.allowed import FITS, RULES
from r1ov.folder.faults import no_config
from r1ov.folder.quantized import BITS, weight_bytes
from r1ov.folder.weights import load_weights, save_weights, world_of
from r1ov.model.config import Config, TextConfig, VisionConfig
from r1ov.model.lora import attach
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.parallel import split

SHIPPED = ("r1ov-tiny", "r1ov-tiny-sft")  # with reinforcement learning, and as it was before
PARSED = ("tokenizer_config.json", "processor_config.json", "chat_template.json", "generation_config.json")
# The files of a processor, kept as they were read, to be written back.
FILES = (
    *PARSED,
    *("preprocessor_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"),
    "chat_template.jinja",
)
# Where a template may be, in the order in which transformers' processors look.
TEMPLATES = ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json")


def find(model: str | Path, adapter: str | Path | None = None) -> Folders:
    """The folders of a model and of the LoRA adapter on it, if any: one given as the model names its base.

    Args: one of SHIPPED, which come with r1ov; else a folder, of a model or of a finished run; else a hub
        name `owner/name` or `owner/name@revision`, downloaded once into the hub's own cache.
    Raises: UserError that says what to do: no such folder, no such model, no access, no network.
    """
    if not adapter and str(model) in SHIPPED:
        return Folders(*[Path(__file__).parents[1] / "model" / str(model)] * 2)
    folder = folder_of(adapter or model)
    return _on_base(folder, model, adapter) if adapter or is_adapter(folder) else Folders(folder, folder)


def resolve(name: str | Path) -> Path:
    """The folder of a model's config and processor. Args and errors: as of `find`."""
    return find(name).settings


def _on_base(folder: Path, model: str | Path, adapter: str | Path | None) -> Folders:
    """An adapter's, on the model if that is another, else on the base it names; its own settings, if any."""
    with _naming(f"the base of the LoRA adapter {folder}"):
        base = find(model if adapter not in (None, model) else read_settings(folder).base).weights
    return Folders(folder if (folder / "config.json").is_file() else base, base, folder)


def read_config(path: str | Path) -> Config:
    """Reads a config.json in either form. Raises UserError that names the file and the field."""
    if not Path(path).exists():
        raise no_config(Path(path))
    raw = read_json(path)
    with _naming(path):
        return config_from_dict(raw)


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Puts the file's name before the errors raised inside."""
    try:
        yield
    except (UserError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None


def config_from_dict(raw: Mapping) -> Config:
    """Reads the object in a config.json, flat or nested. Raises UserError that names the field."""
    if raw.get("model_type") != "qwen2_5_vl":
        raise UserError(f"model_type is {raw.get('model_type')!r}; r1ov computes qwen2_5_vl only")
    _check(raw)
    text, vision = raw.get("text_config", raw), raw.get("vision_config", {})
    _check(text)
    _check(vision, "vision_config.")
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    _check(rope, "rope_scaling.")
    dtypes = [owner.get(name) for owner in (raw, text) for name in ("dtype", "torch_dtype")]
    config = _made(
        Config,
        text
        | raw
        | {
            "text": _made(TextConfig, text | rope),
            "vision": _made(VisionConfig, {"in_channels": vision.get("in_chans", 3)} | vision),
            "tie_word_embeddings": raw.get("tie_word_embeddings") or text.get("tie_word_embeddings") or False,
            "torch_dtype": next(filter(None, dtypes), "bfloat16"),
        },
    )
    for fits, fault in FITS:
        if not fits(config, config.text, config.vision):
            raise UserError(fault.format(config))
    return config


def _check(settings: Mapping, prefix: str = "") -> None:
    for name, value in settings.items():
        if name in RULES and not RULES[name][0](value):
            raise UserError(f"{prefix}{name} is {value!r}; {RULES[name][1]}")


def _made(cls: type, settings: Mapping) -> Any:
    """Makes a dataclass from the settings that are its fields."""
    given = [(field.name, settings[field.name]) for field in fields(cls) if field.name in settings]
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given})


def config_to_dict(config: Config) -> dict:
    """Writes every field in the flat, published form, which transformers 4.51 to 5 and vLLM all read."""
    top = asdict(config)
    text, vision = top.pop("text"), top.pop("vision")
    vision |= {"model_type": "qwen2_5_vl", "hidden_act": "silu", "in_chans": vision["in_channels"]}
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "rope_scaling": {"type": "mrope", "mrope_section": text.pop("mrope_section")},
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": config.text.max_position_embeddings,
        "max_window_layers": config.text.num_hidden_layers,
        "use_cache": True,
        **text,
        **top,
        "vision_config": vision,
    }


def read_processor(folder: str | Path) -> Processor:
    """Reads the processor of a folder in Hugging Face's layout, of any transformers from 4.49 to 5. Raises:
    UserError that names the file at fault.
    """
    folder = Path(folder)
    config = read_config(folder / "config.json")
    with _naming(folder):
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name in FILES}
    parsed = {name: read_json(folder / name) for name in PARSED if name in files}
    # transformers 5 nests the image processor's in processor_config.json, and those win; older files of this
    # name have no such part.
    path = folder / "processor_config.json"
    settings = parsed.get(path.name, {}).get("image_processor")
    if settings is None:
        path = folder / "preprocessor_config.json"
        settings = read_json(path, missing="expected beside config.json")
    with _naming(path):
        images, vision = image_processor_from_dict(settings), config.vision
        ours = (images.patch_size, images.temporal_patch_size, images.merge_size)
        if ours != (theirs := (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)):
            sizes = "patch_size, temporal_patch_size and merge_size"
            raise UserError(f"{sizes} are {ours}, but those of config.json are {theirs}")
    generation = parsed.get("generation_config.json", {})
    _check(generation, f"{folder}/generation_config.json: ")
    special = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = parsed.get("tokenizer_config.json", {}).get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            special[name] = token
    return Processor(
        tokenizer=_tokenizer(folder / "tokenizer.json", config),
        image_processor=images,
        chat_template=_chat_template(folder, files, parsed),
        generation_config=generation,
        config=config,
        special_tokens=special,
        files=files,
    )


def _tokenizer(path: Path, config: Config) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        fault = "not a tokenizer" if path.exists() else "no such file; save_pretrained writes it"
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


def image_processor_from_dict(settings: Mapping) -> ImageProcessor:
    """Reads the object in a preprocessor_config.json, or `image_processor` in a processor_config.json of
    transformers 5. Raises: UserError that names the field; settings that would give other images are refused.
    """
    _check({"image_processor": settings})
    size = settings.get("size") or {}
    _check({"size": size})
    # Areas in pixels, whatever the names say; min_pixels and max_pixels win where both are given.
    edges = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
    owners = (edges, size, settings)
    given = {name: value for owner in owners for name, value in owner.items() if value is not None}
    _check(given)
    return _made(ImageProcessor, given)


def _chat_template(folder: Path, files: Mapping[str, bytes], parsed: Mapping) -> str:
    for name in TEMPLATES:
        with _naming(folder / name):
            value = parsed.get(name, {}).get("chat_template")
            if name.endswith(".jinja") and name in files:
                value = files[name].decode()
            if value is not None:
                template = value if isinstance(value, str) else default_template(value)
                compile_template(template)
                return template
    raise UserError(f"{folder}: no chat template; expected one in {', '.join(TEMPLATES)}")


def write_processor(processor: Processor, folder: str | Path) -> None:
    """Writes a processor's files."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, data in processor.files.items():
        (Path(folder) / name).write_bytes(data)


def build(config: Config) -> Qwen2_5_VL:
    """A model without weights, on the meta device: what is sharded is sharded here, before `load_weights`."""
    with torch.device("meta"):
        return Qwen2_5_VL(config)


def read_model(
    folders: Folders,
    config: Config,
    device: torch.device,
    dtype: str | torch.dtype | None,
    quantize: str | None = None,
    needs: Callable[[TextConfig, int], dict[str, float]] = lambda text, itemsize: {},
    tensor_parallel: int = 1,
) -> tuple[Qwen2_5_VL, str]:
    """The model in folders whose config is known already, and what there is to say of its dtype and memory.
    Args: needs: bytes beside the weights, of numbers of so many bytes. tensor_parallel: how many processes.
    """
    if quantize not in (None, *BITS):
        raise UserError(f"quantize is {quantize!r}; there are {', '.join(BITS)}")
    model = build(config)
    adapter = read_adapter(folders.adapter, model, device) if folders.adapter else None
    if tensor_parallel > 1:
        split(model, tensor_parallel, quantize)
    sizes = [parameter.numel() for parameter in model.parameters()]
    stored = sum(file.stat().st_size for file in folders.weights.glob("*.safetensors"))
    size = weight_bytes(model, 1, quantize) if quantize else min(sum(sizes), stored / 2)  # AWQ's are smaller
    dtype, reason = choose_dtype(dtype, device, config.torch_dtype, size)
    is_mapped = device.type == "cpu" and dtype == torch.bfloat16
    size += is_mapped * (size == sum(sizes)) * max(sizes)  # there twice when decoding takes it from its file
    weights = weight_bytes(model, dtype.itemsize, quantize, is_mapped) if quantize else size * dtype.itemsize
    line = plan({"weights": weights, **needs(model.model.config, dtype.itemsize)}, device)
    load_weights(model, folders.weights, device, dtype, quantize)
    if adapter:
        attach(model, *adapter)
    return model.eval(), f"{f'{quantize}, ' * bool(quantize)}{dtype_name(dtype)} ({reason}) | {line}"


def load(
    name: str | Path = "r1ov-tiny",
    device: str | torch.device | None = "cpu",
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
) -> tuple[Qwen2_5_VL, Processor]:
    """A model in evaluation mode, and the processor that feeds it.

    Args:
        name: `r1ov-tiny`, a folder, or a hub name `owner/name[@revision]`, downloaded once; of a model, or of
            a LoRA adapter, which is loaded onto its base.
        device: where the model is put; None: a GPU if there is one.
        dtype: of weights and arithmetic; None: as the files, but as `choose_dtype` says on CPUs.
        quantize: "int4" or "int8": the weights of the language model's linear layers, and the head's.
    Raises: UserError, in one line, for whatever is wrong with any of these.
    """
    device = choose_device(device)
    choose_dtype(dtype, device)
    folders = find(name)
    processor = read_processor(folders.settings)
    return read_model(folders, processor.config, device, dtype, quantize)[0], processor


def save(
    model: Qwen2_5_VL,
    processor: Processor,
    folder: str | Path,
    dtype: str | torch.dtype = torch.bfloat16,
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Writes the published layout: weights, config, tokenizer, image processor and chat template.

    Files of these names are replaced, others stay; config.json comes last. Of a model with an adapter the
    weights are the adapter's alone, in PEFT's files and in float32. Collective: all ranks call this.

    Args:
        max_shard_size: bytes; larger weights are split over several files with an index.
    """
    folder, dtype = Path(folder), known_dtype(dtype)
    if type(max_shard_size) is not int or max_shard_size <= 0:
        raise UserError(f"max_shard_size is {max_shard_size!r}, expected a number of bytes")
    written = {} if model.lora else {"torch_dtype": dtype_name(dtype)}  # an adapter is used in its base's
    config, world = replace(model.config, **written), world_of(model)
    try:
        if model.lora:
            save_adapter(model, folder)
        else:
            save_weights(model, folder, dtype, max_shard_size)
        world.on_main(partial(write_processor, processor, folder))
        world.on_main(partial(write_json, folder / "config.json", config_to_dict(config)))
    except OSError as error:
        raise UserError(f"{folder}: the model cannot be saved there ({error})") from error


def write_asked(folder: Path, stage: str, processor: Processor) -> None:
    """For whoever asks the model later: its training put each question as the data had it."""
    images = processor.image_processor
    limits = {"min_pixels": images.min_pixels, "max_pixels": images.max_pixels}
    write_json(folder / "r1ov.json", {"stage": stage, "prompt": "none", **limits})
