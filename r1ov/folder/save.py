"""Writes a Hugging Face folder: weights, config.json and the files of the processor."""

import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file

from r1ov.common.files import write_json
from r1ov.common.processes import World
from r1ov.data.processor import Processor
from r1ov.folder.settings import image_processor_from_dict
from r1ov.folder.weights import INDEX, SINGLE, is_sharded, whole
from r1ov.model.config import Config
from r1ov.model.model import Qwen2_5_VL

_OURS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?(\.tmp)?")


def world_of(model: Qwen2_5_VL) -> World:
    """The ranks that save a model together: all if it is sharded, else this process alone."""
    return World(dist.get_rank(), dist.get_world_size()) if is_sharded(model) else World()


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes a safetensors file of contiguous CPU tensors. Raises: OSError."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error).rpartition("error: ")[2]) from error
    # safetensors writes for the owner's eyes only; a checkpoint is as readable as its folder.
    os.chmod(path, path.parent.stat().st_mode & 0o666)


def save_weights(model: Qwen2_5_VL, folder: str | Path, dtype: torch.dtype, max_shard_size: int) -> None:
    """Writes a model's weights under their published names, in files of at most `max_shard_size` bytes (or
    one tensor).

    The files are written under temporary names and put in place together, replacing those of an earlier save.
    From that moment there is no config.json, so that the folder cannot be taken for complete: the caller
    writes it when all else is in place.

    Collective if the model is sharded: all ranks call this. The tensors are gathered one at a time, and
    rank 0 keeps and writes those of one file. If it cannot, all ranks raise.
    """
    folder, state, world = Path(folder), model.state_dict(), world_of(model)
    sizes = {name: tensor.numel() * dtype.itemsize for name, tensor in state.items()}
    shards = _shards(sizes, max_shard_size)
    count = len(shards)
    files = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    files = files if count > 1 else [SINGLE]
    for file, names in zip(files, shards, strict=True):
        tensors = {}
        for name in names:
            value = whole(state[name])
            if world.is_main:
                tensors[name] = value.to("cpu", dtype).contiguous()

        def write(file: str = file, tensors: dict[str, torch.Tensor] = tensors) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            write_tensors(folder / f"{file}.tmp", tensors)

        world.on_main(write)

    def put_in_place() -> None:
        (folder / "config.json").unlink(missing_ok=True)
        for path in list(folder.iterdir()):
            if _OURS.fullmatch(path.name) and path.name.removesuffix(".tmp") not in files:
                path.unlink()
        for file in files:
            os.replace(folder / f"{file}.tmp", folder / file)
        if count > 1:
            weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
            metadata = {"total_size": sum(sizes.values())}
            write_json(folder / INDEX, {"metadata": metadata, "weight_map": weight_map})

    world.on_main(put_in_place)


def _shards(sizes: dict[str, int], largest: int) -> list[list[str]]:
    """Deals the names out, in order, to as few runs of at most `largest` bytes as possible."""
    shards, room = [], 0
    for name, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = largest
        shards[-1].append(name)
        room -= size
    return shards


def config_to_dict(config: Config) -> dict[str, Any]:
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


def write_processor(processor: Processor, folder: str | Path) -> None:
    """Writes the files that were read, with the processor's own pixel limits in them."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    least, most = processor.image_processor.min_pixels, processor.image_processor.max_pixels
    for name, data in processor.files.items():
        raw = json.loads(data) if name in ("preprocessor_config.json", "processor_config.json") else {}
        settings = raw.get("image_processor", {}) if name == "processor_config.json" else raw
        if settings:
            before = image_processor_from_dict(settings)
            if (before.min_pixels, before.max_pixels) != (least, most):
                size = (
                    {"size": {"shortest_edge": least, "longest_edge": most}} if settings.get("size") else {}
                )
                settings |= {"min_pixels": least, "max_pixels": most} | size
                data = json.dumps(raw, indent=2).encode()
        (Path(folder) / name).write_bytes(data)
