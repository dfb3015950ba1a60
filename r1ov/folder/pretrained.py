"""A model and its processor from a Hugging Face folder, and back into one that transformers and vLLM load."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from r1ov.common.device import choose_device, choose_dtype, dtype_name
from r1ov.data.processor import Processor
from r1ov.errors import UserError
from r1ov.folder.hub import resolve
from r1ov.folder.shard import in_first_process, is_sharded
from r1ov.folder.weights import load_weights, save_weights, write_json
from r1ov.model.config import Config
from r1ov.model.model import Qwen2_5_VL


def load(
    name: str | Path = "r1ov-tiny",
    device: str | torch.device | None = "cpu",
    dtype: str | torch.dtype | None = None,
) -> tuple[Qwen2_5_VL, Processor]:
    """A model in evaluation mode, and the processor that feeds it.

    Args:
        name: `r1ov-tiny`, a folder, or a hub name `owner/name[@revision]`, downloaded once.
        device: where the model shall be; None: a GPU if there is one.
        dtype: of the weights and the arithmetic, whatever the files hold; None: float32 on a CPU, bfloat16
            elsewhere.
    Raises: UserError, in one line, for whatever is wrong with any of these.
    """
    return load_prepared(name, device, dtype, lambda model: None)


def load_prepared(
    name: str | Path,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    prepare: Callable[[Qwen2_5_VL], None],
) -> tuple[Qwen2_5_VL, Processor]:
    """`load`, with something done to the model while it has no weights yet: sharded there, each process reads
    its own rows alone.
    """
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    folder = resolve(name)
    config = Config.from_file(folder / "config.json")
    processor = Processor.from_folder(folder)
    with torch.device("meta"):
        model = Qwen2_5_VL(config)
    prepare(model)
    try:
        load_weights(model, folder, device, dtype)
    except torch.OutOfMemoryError:
        gigabytes = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize / 1e9
        raise UserError(
            f"{name}: its weights take {gigabytes:.1f} GB in {dtype_name(dtype)}, more than is free on {device}"
        ) from None
    return model.eval(), processor


def save(
    model: Qwen2_5_VL,
    processor: Processor,
    folder: str | Path,
    dtype: str | torch.dtype = torch.bfloat16,
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Writes the published layout: weights, config, tokenizer, image processor and chat template.

    Files of these names are replaced, others stay. config.json comes last: a folder without it was not
    finished. Of a sharded model all processes call this, and the first writes.

    Args:
        max_shard_size: bytes; larger weights are split over several files with an index.
    """
    folder, dtype = Path(folder), choose_dtype(dtype, torch.device("cpu"))
    if type(max_shard_size) is not int or max_shard_size <= 0:
        raise UserError(f"max_shard_size is {max_shard_size!r}, expected a number of bytes")

    def write_rest() -> None:
        processor.save(folder)
        write_json(folder / "config.json.tmp", replace(model.config, torch_dtype=dtype_name(dtype)).to_dict())
        os.replace(folder / "config.json.tmp", folder / "config.json")

    try:
        save_weights(model, folder, dtype, max_shard_size)
        in_first_process(is_sharded(model), write_rest)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: the model cannot be saved there ({' '.join(str(error).split())})"
        ) from error
