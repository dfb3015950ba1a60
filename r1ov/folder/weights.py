"""A model's weights in and out of the safetensors files of a Hugging Face folder, one tensor at a time.

Our modules carry the names of the published files (`visual.*`, `model.*`, `lm_head.weight`), so most names
map to themselves; files in the newer in-memory layout (`model.visual.*`, `model.language_model.*`) differ by
prefix. Loading is strict: every parameter is there once, in its shape, and nothing else is. Pickled weights
    are never opened, because opening a pickle runs the code in it.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from r1ov.errors import UserError
from r1ov.folder.shard import in_first_process, is_sharded, local, local_rows, whole
from r1ov.model.config import read_json
from r1ov.model.model import Qwen2_5_VL

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
READABLE = ("F32", "BF16", "F16")
PREFIXES = {"model.visual.": "visual.", "model.language_model.": "model."}  # in-memory layout -> published
_OURS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?(\.tmp)?")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, its data not yet read."""

    name: str  # in the file
    file: Path
    shape: tuple[int, ...]
    dtype: str


def load_weights(
    model: Qwen2_5_VL, folder: str | Path, device: torch.device | str, dtype: torch.dtype
) -> None:
    """Gives a model made on the meta device its weights from a folder, each straight to its device and dtype.

    Peak memory is the model and the one file that is mapped at the time. Of a sharded model each process
    reads its own rows only.

    Raises: UserError, in one line, if the files are damaged or do not hold exactly the model's tensors; then
        nothing was read.
    """
    folder = Path(folder)
    stored = _contents(folder)
    head = stored.pop(HEAD, None) if model.config.tie_word_embeddings else None
    _refuse_mismatch(
        folder, stored, {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    )
    if head is not None:
        _refuse_other_head(head, stored[EMBEDDING])
    if is_sharded(model):
        model.to(dtype).to_empty(device=device)
    for file in dict.fromkeys(tensor.file for tensor in stored.values()):
        with _opened(file) as reader:
            for name, tensor in stored.items():
                if tensor.file != file:
                    continue
                if is_sharded(parameter := model.get_parameter(name)):
                    rows = local_rows(parameter)
                    if rows.start < rows.stop:
                        local(parameter).copy_(reader.get_slice(tensor.name)[rows])
                else:
                    # Copied even where nothing changes: the model must not hang on the mapped file. (`.to` is
                    # half as fast.)
                    value = torch.empty(tensor.shape, dtype=dtype, device=device).copy_(
                        reader.get_tensor(tensor.name)
                    )
                    _assign(model, name, nn.Parameter(value, requires_grad=parameter.requires_grad))


def save_weights(model: Qwen2_5_VL, folder: str | Path, dtype: torch.dtype, max_shard_size: int) -> None:
    """Writes a model's weights under their published names, in files of at most `max_shard_size` bytes (or
    one tensor).

    The files are written under temporary names and put in place together, replacing those of an earlier save.
    From that moment there is no config.json, so that the folder cannot be taken for complete: the caller
    writes it when all else is in place.

    Of a sharded model all processes call this; the tensors are gathered one at a time, and the first process
    keeps those of one file and writes it. Where it cannot, all of them raise.
    """
    folder, state, sharded = Path(folder), model.state_dict(), is_sharded(model)
    shards = _shards(
        {name: tensor.numel() * dtype.itemsize for name, tensor in state.items()}, max_shard_size
    )
    files = (
        [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
        if len(shards) > 1
        else [SINGLE]
    )
    for file, names in zip(files, shards, strict=True):
        in_first_process(
            sharded,
            partial(_write_shard, folder, file, gathered_state({name: state[name] for name in names}, dtype)),
        )

    def put_in_place() -> None:
        if len(shards) > 1:
            weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
            total_size = sum(tensor.numel() for tensor in state.values()) * dtype.itemsize
            write_json(
                folder / f"{INDEX}.tmp", {"metadata": {"total_size": total_size}, "weight_map": weight_map}
            )
            files.append(INDEX)
        (folder / "config.json").unlink(missing_ok=True)
        for path in list(folder.iterdir()):
            if _OURS.fullmatch(path.name) and path.name.removesuffix(".tmp") not in files:
                path.unlink()
        for file in files:
            os.replace(folder / f"{file}.tmp", folder / file)

    in_first_process(sharded, put_in_place)


def gathered_state(state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """These tensors whole, on the CPU, in this dtype. Of sharded ones all processes call this, and all but
    the first get none.
    """
    gathered = {}
    for name, tensor in state.items():
        value = whole(tensor)
        if not is_sharded(tensor) or dist.get_rank() == 0:
            gathered[name] = value.to("cpu", dtype).contiguous()
    return gathered


def _write_shard(folder: Path, file: str, tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / f"{file}.tmp", metadata={"format": "pt"})
    # safetensors writes for the owner's eyes only; a checkpoint is as readable as its folder.
    os.chmod(folder / f"{file}.tmp", folder.stat().st_mode & 0o666)


def write_json(path: Path, value: dict) -> None:
    """Writes a JSON object as people read it."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _shards(sizes: dict[str, int], largest: int) -> list[list[str]]:
    """The names dealt out in order to as few runs of at most `largest` bytes as that takes."""
    shards, room = [], 0
    for name, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = largest
        shards[-1].append(name)
        room -= size
    return shards


def _assign(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, parameter)


def _published(name: str) -> str:
    for prefix, published in PREFIXES.items():
        if name.startswith(prefix):
            return published + name.removeprefix(prefix)
    return name


def _contents(folder: Path) -> dict[str, Stored]:
    """Published name -> where the tensor lies, of all a folder's weights, from the files' headers alone."""
    if (folder / SINGLE).is_file():
        weight_map, files = None, [SINGLE]
    elif (folder / INDEX).is_file():
        weight_map = _weight_map(folder / INDEX)
        files = list(dict.fromkeys(weight_map.values()))
    else:
        raise UserError(_no_weights(folder))

    stored: dict[str, Stored] = {}
    for file in files:
        with _opened(folder / file) as reader:
            names = set(reader.keys())
            listed = (
                names if weight_map is None else {name for name, home in weight_map.items() if home == file}
            )
            if names != listed:
                absent, extra = _few(listed - names), _few(names - listed)
                raise UserError(
                    f"{folder / file}: not what {INDEX} says: without {absent}, with unlisted {extra}; download it again"
                )
            for name in sorted(names):
                header = reader.get_slice(name)
                tensor = Stored(name, folder / file, tuple(header.get_shape()), str(header.get_dtype()))
                if tensor.dtype not in READABLE:
                    raise UserError(
                        f"{folder / file}: {_few([name])} is {tensor.dtype}; r1ov reads float32, bfloat16 and float16 weights"
                    )
                if (twin := stored.setdefault(_published(name), tensor)) is not tensor:
                    raise UserError(
                        f"{folder / file}: {_few([name])} is the same parameter as {_few([twin.name])} in {twin.file.name}"
                    )
    return stored


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name from an index. Only plain names of files beside it: a hub cache's own links
    lead elsewhere, rightly.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: no weight_map, which says in which file each tensor is; download it again")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or set(file) & set("/\\:\0"):
            raise UserError(
                f"{index}: {_few([name])} is said to be in {file!r:.200}; expected a .safetensors file beside the index"
            )
    return weight_map


def _no_weights(folder: Path) -> str:
    pickles = (
        [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
        if folder.is_dir()
        else []
    )
    if pickles:
        return f"{folder}: only pickled weights ({_few(pickles)}), which can run any code and are never opened; convert them to safetensors"
    return f"{folder}: no {SINGLE} and no {INDEX}"


@contextmanager
def _opened(file: Path) -> Iterator[safe_open]:
    try:
        with safe_open(file, framework="pt") as reader:
            yield reader
    except FileNotFoundError:
        raise UserError(f"{file}: no such file, although {INDEX} names it; download it again") from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: truncated or not a safetensors file ({_one_line(error)}){_pointer_hint(file)}"
        ) from None


def _pointer_hint(file: Path) -> str:
    try:
        with open(file, "rb") as raw:
            is_pointer = raw.read(23) == b"version https://git-lfs"
    except OSError:
        is_pointer = False
    return "; it is a Git LFS pointer: run `git lfs pull`" if is_pointer else "; download it again"


def _refuse_mismatch(folder: Path, stored: dict[str, Stored], expected: dict[str, tuple[int, ...]]) -> None:
    shapes = [
        f"{name} {list(stored[name].shape)} for {list(shape)}"
        for name, shape in expected.items()
        if name in stored and stored[name].shape != shape
    ]
    faults = {
        "missing": [name for name in expected if name not in stored],
        "unexpected": [tensor.name for name, tensor in stored.items() if name not in expected],
        "of another shape": shapes,
    }
    found = [f"{len(names)} {fault} ({_few(names)})" for fault, names in faults.items() if names]
    if found:
        hint = (
            "; if the head is the embedding, set tie_word_embeddings to true in config.json"
            if faults["missing"] == [HEAD]
            else ""
        )
        raise UserError(f"{folder}: its weights are not those of its config.json: {', '.join(found)}{hint}")


def _refuse_other_head(head: Stored, embedding: Stored) -> None:
    """A tied model's file may repeat the embedding as its head, but a head of its own would be lost."""
    with _opened(head.file) as one, _opened(embedding.file) as other:
        a, b = one.get_tensor(head.name), other.get_tensor(embedding.name)
        wide = torch.promote_types(a.dtype, b.dtype)
        if not torch.equal(a.to(wide), b.to(wide)):
            raise UserError(
                f"{head.file}: {HEAD} is not the embedding, although tie_word_embeddings is true; "
                "set it to false in config.json to use this head, or remove the tensor"
            )


def _few(names: Iterable[str]) -> str:
    """The first five, in one line whatever is in them."""
    names = list(names)
    return (
        ", ".join([repr(name[:200])[1:-1] for name in names[:5]] + (["..."] if len(names) > 5 else []))
        or "none"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
