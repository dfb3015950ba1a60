"""A model and its processor from a Hugging Face folder, and back into one that transformers and vLLM load."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from r1ov.common.device import choose_device, choose_dtype, dtype_name
from r1ov.common.files import write_json
from r1ov.data.processor import Processor
from r1ov.errors import UserError
from r1ov.folder.hub import from_hub
from r1ov.folder.save import config_to_dict, save_weights, world_of, write_processor
from r1ov.folder.settings import read_processor
from r1ov.folder.weights import load_weights
from r1ov.model.config import Config
from r1ov.model.model import Qwen2_5_VL

SHIPPED = ("r1ov-tiny", "r1ov-tiny-sft")  # with reinforcement learning, and as it was before


def resolve(name: str | Path) -> Path:
    """The folder of a model.

    Args:
        name: one of SHIPPED, which come with r1ov; else a folder; else a hub name `owner/name` or
            `owner/name@revision`, downloaded once into the hub's own cache.
    Raises: UserError that says what to do: no such folder, no such model, no access, no network.
    """
    text = str(name)
    if text in SHIPPED:
        return Path(__file__).parents[1] / "model" / text
    path = os.path.expanduser(text)
    if text and isinstance(name, str | Path) and os.path.isdir(path):
        return Path(path)
    return from_hub(name)


def build(config: Config) -> Qwen2_5_VL:
    """A model without weights, on the meta device: what is sharded is sharded here, before `load_weights`."""
    with torch.device("meta"):
        return Qwen2_5_VL(config)


def read_model(folder: Path, config: Config, device: torch.device, dtype: torch.dtype) -> Qwen2_5_VL:
    """The model of a folder whose config is known already, in evaluation mode."""
    model = build(config)
    load_weights(model, folder, device, dtype)
    return model.eval()


def load(
    name: str | Path = "r1ov-tiny",
    device: str | torch.device | None = "cpu",
    dtype: str | torch.dtype | None = None,
) -> tuple[Qwen2_5_VL, Processor]:
    """A model in evaluation mode, and the processor that feeds it.

    Args:
        name: `r1ov-tiny`, a folder, or a hub name `owner/name[@revision]`, downloaded once.
        device: where the model is put; None: a GPU if there is one.
        dtype: of the weights and the arithmetic, whatever the files hold; None: float32 on a CPU, bfloat16
            elsewhere.
    Raises: UserError, in one line, for whatever is wrong with any of these.
    """
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    folder = resolve(name)
    processor = read_processor(folder)
    return read_model(folder, processor.config, device, dtype), processor


def save(
    model: Qwen2_5_VL,
    processor: Processor,
    folder: str | Path,
    dtype: str | torch.dtype = torch.bfloat16,
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Writes the published layout: weights, config, tokenizer, image processor and chat template.

    Files of these names are replaced, others stay. config.json comes last: a folder without it was not
    finished. Collective if the model is sharded: all ranks call this.

    Args:
        max_shard_size: bytes; larger weights are split over several files with an index.
    """
    folder, dtype = Path(folder), choose_dtype(dtype, torch.device("cpu"))
    if type(max_shard_size) is not int or max_shard_size <= 0:
        raise UserError(f"max_shard_size is {max_shard_size!r}, expected a number of bytes")

    def write_rest() -> None:
        write_processor(processor, folder)
        config = replace(model.config, torch_dtype=dtype_name(dtype))
        write_json(folder / "config.json", config_to_dict(config))

    try:
        save_weights(model, folder, dtype, max_shard_size)
        world_of(model).on_main(write_rest)
    except OSError as error:
        raise UserError(f"{folder}: the model cannot be saved there ({error})") from error
