"""A model's weights: whole, or of each parameter some rows in each process; drawn afresh, or read from the
safetensors files of a Hugging Face folder, one tensor at a time.

Sharded parameters are torch's DTensors as `fully_shard` makes them: dealt by rows over the last dimension of a
mesh, copied over the others. They are told by their mesh, because importing the class takes a second.

Our modules carry the names of the published files (`visual.*`, `model.*`, `lm_head.weight`), so most names map to
themselves; files in the newer in-memory layout (`model.visual.*`, `model.language_model.*`) differ by prefix.
Loading is strict: every parameter is there once, in its shape, and nothing else is. Pickled weights are never
opened, because opening a pickle runs the code in it.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from r1ov.common.files import read_json
from r1ov.common.text import one_line
from r1ov.errors import UserError
from r1ov.model.model import Qwen2_5_VL

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
READABLE = ("F32", "BF16", "F16")
AGAIN = "; download it again"


def is_sharded(what: Tensor | nn.Module) -> bool:
    """True for a DTensor, or a model whose parameters are DTensors."""
    tensor = next(what.parameters()) if isinstance(what, nn.Module) else what
    return hasattr(tensor, "device_mesh")


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """The rows that this process holds, in the same memory; all rows of a whole tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor.detach()


def local_rows(tensor: Tensor) -> slice:
    """Which rows of the whole tensor `local` gives; may be none."""
    rows = tensor.shape[0]
    if not is_sharded(tensor):
        return slice(0, rows)
    assert tensor.placements[-1].is_shard(0), tensor.placements
    held = rows_of_each(tensor)
    begin = min(rows, held * tensor.device_mesh.get_local_rank(tensor.device_mesh.ndim - 1))
    return slice(begin, min(rows, begin + held))


def rows_of_each(tensor: Tensor) -> int:
    """The most rows that a process holds: the first ones hold this many, one the remainder, the last perhaps none."""
    return -(-tensor.shape[0] // tensor.device_mesh.size(tensor.device_mesh.ndim - 1))


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All rows; those of a sharded tensor in memory of their own. Collective: all ranks call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor.detach()


@torch.no_grad()
def init_weights(model: Qwen2_5_VL, generator: torch.Generator) -> None:
    """Fills a model in place for training from scratch: matrices N(0, 1/fan_in), embeddings N(0, 1/hidden),
    norms 1, biases 0.

    The usual constant 0.02 leaves a small model blind for tens of thousands of samples: too little of the
    image survives the narrow layers for the language model to notice it.

    Each matrix is drawn whole, on the generator's device, and a process that holds some of its rows keeps
    those: the numbers are the same however many processes there are.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            local(parameter).fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            drawn = torch.empty(parameter.shape, device=generator.device)
            drawn.normal_(0.0, drawn[0].numel() ** -0.5, generator=generator)
            local(parameter).copy_(drawn[local_rows(parameter)])


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, its data not yet read."""

    name: str  # in the file
    file: Path
    shape: tuple[int, ...]


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
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if model.config.tie_word_embeddings and HEAD in stored:
        _refuse_another_head(stored.pop(HEAD), stored.get(EMBEDDING))
    if {name: tensor.shape for name, tensor in stored.items()} != expected:
        raise _fault(folder, _differences(stored, expected))
    try:
        if is_sharded(model):
            model.to(dtype).to_empty(device=device)
        for file in dict.fromkeys(tensor.file for tensor in stored.values()):
            with _opened(file) as reader:
                for name in [name for name, tensor in stored.items() if tensor.file == file]:
                    _fill(model, name, reader, stored[name].name, device, dtype)
    except torch.OutOfMemoryError:
        size = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize / 1e9
        weights = f"its weights take {size:.1f} GB in {str(dtype).removeprefix('torch.')}"
        raise _fault(folder, f"{weights}, more than is free on {device}") from None


def _fill(
    model: nn.Module,
    name: str,
    reader: safe_open,
    stored_name: str,
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    """Reads one parameter, or this process's rows of it."""
    parameter = model.get_parameter(name)
    if is_sharded(parameter):
        rows = local_rows(parameter)
        if rows.start < rows.stop:
            local(parameter).copy_(reader.get_slice(stored_name)[rows])
        return
    # Copied even where nothing changes: the model must not hang on the mapped file. (`.to` is half as fast, and
    # `to_empty` imports for half a second.)
    value = torch.empty(parameter.shape, dtype=dtype, device=device).copy_(reader.get_tensor(stored_name))
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(value, parameter.requires_grad))


def _contents(folder: Path) -> dict[str, Stored]:
    """Published name -> where the tensor lies, of all a folder's weights, from the files' headers alone."""
    if (folder / SINGLE).is_file():
        listed = {SINGLE: None}
    elif (folder / INDEX).is_file():
        listed = _listed(folder / INDEX)
    else:
        raise _fault(folder, _no_weights(folder))
    stored: dict[str, Stored] = {}
    for file, expected in listed.items():
        path = folder / file
        with _opened(path) as reader:
            names = set(reader.keys())
            if expected is not None and names != expected:
                absent, extra = _few(expected - names), _few(names - expected)
                raise _fault(path, f"not what {INDEX} says: without {absent}, with unlisted {extra}{AGAIN}")
            for name in sorted(names):
                header = reader.get_slice(name)
                if (dtype := str(header.get_dtype())) not in READABLE:
                    readable = "r1ov reads float32, bfloat16 and float16 weights"
                    raise _fault(path, f"{_few([name])} is {dtype}; {readable}")
                published = name.replace("model.visual.", "visual.").replace(
                    "model.language_model.", "model."
                )
                if twin := stored.get(published):
                    raise _fault(
                        path,
                        f"{_few([name])} is the same parameter as {_few([twin.name])} in {twin.file.name}",
                    )
                stored[published] = Stored(name, path, tuple(header.get_shape()))
    return stored


@contextmanager
def _opened(file: Path) -> Iterator[safe_open]:
    try:
        with safe_open(file, framework="pt") as reader:
            yield reader
    except FileNotFoundError:
        raise _fault(file, f"no such file, although {INDEX} names it{AGAIN}") from None
    except (SafetensorError, OSError) as error:
        is_pointer = file.is_file() and file.open("rb").read(23) == b"version https://git-lfs"
        hint = "; it is a Git LFS pointer: run `git lfs pull`" if is_pointer else AGAIN
        reason = one_line(str(error))[:200]
        raise _fault(file, f"truncated or not a safetensors file ({reason}){hint}") from None


def _fault(file: Path, what: str) -> UserError:
    return UserError(f"{file}: {what}")


def _listed(index: Path) -> dict[str, set[str]]:
    """File -> the tensors that an index says are in it. Only plain names of files beside it: a hub cache's own
    links lead elsewhere, rightly.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _fault(index, f"no weight_map, which says in which file each tensor is{AGAIN}")
    listed: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or set(file) & set("/\\:\0"):
            expected = "expected a .safetensors file beside the index"
            raise _fault(index, f"{_few([name])} is said to be in {file!r:.200}; {expected}")
        listed.setdefault(file, set()).add(name)
    return listed


def _no_weights(folder: Path) -> str:
    """What is wrong with a folder that has no safetensors file."""
    files = folder.iterdir() if folder.is_dir() else ()
    pickles = [path.name for path in files if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
    if not pickles:
        return f"no {SINGLE} and no {INDEX}"
    never = "which can run any code and are never opened; convert them to safetensors"
    return f"only pickled weights ({_few(pickles)}), {never}"


def _differences(stored: Mapping[str, Stored], expected: Mapping[str, tuple[int, ...]]) -> str:
    """How the tensors in the files differ from those of the model."""
    kinds = {
        "missing": [name for name in expected if name not in stored],
        "unexpected": [tensor.name for name, tensor in stored.items() if name not in expected],
        "of another shape": [
            f"{name} {list(stored[name].shape)} for {list(shape)}"
            for name, shape in expected.items()
            if name in stored and stored[name].shape != shape
        ],
    }
    found = [f"{len(names)} {kind} ({_few(names)})" for kind, names in kinds.items() if names]
    tie = "; if the head is the embedding, set tie_word_embeddings to true in config.json"
    hint = tie if kinds["missing"] == [HEAD] else ""
    return f"its weights are not those of its config.json: {', '.join(found)}{hint}"


def _refuse_another_head(head: Stored, embedding: Stored | None) -> None:
    """A tied model's file may repeat the embedding as its head, but a head of its own would be lost."""
    if embedding is None:
        return
    with _opened(head.file) as one, _opened(embedding.file) as other:
        a, b = one.get_tensor(head.name), other.get_tensor(embedding.name)
    wide = torch.promote_types(a.dtype, b.dtype)
    if not torch.equal(a.to(wide), b.to(wide)):
        remedy = "set it to false in config.json to use this head, or remove the tensor"
        raise _fault(
            head.file, f"{HEAD} is not the embedding, although tie_word_embeddings is true; {remedy}"
        )


def _few(names: Iterable[str]) -> str:
    """The first five, in one line whatever is in them."""
    names = list(names)
    shown = [repr(name[:200])[1:-1] for name in names[:5]] + ["..."] * (len(names) > 5)
    return ", ".join(shown) or "none"
