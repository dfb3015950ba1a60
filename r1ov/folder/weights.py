"""A model's weights, whole or sharded: drawn afresh, or read from the safetensors files of a Hugging Face
folder, one tensor at a time.

Sharded parameters are torch's DTensors as `fully_shard` makes them: dealt by rows over the last dimension of
a mesh, copied over the others. They are recognised by their mesh, because importing the class takes a second.

Our modules carry the names of the published files (`visual.*`, `model.*`, `lm_head.weight`), so most names
map to themselves; files in the newer in-memory layout (`model.visual.*`, `model.language_model.*`) differ by
prefix. Loading is strict: every parameter is there once, in its shape, and nothing else is. Pickled weights
are never opened, because opening a pickle runs the code in it.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from r1ov.common.device import dtype_name
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
    """The most rows that a process holds; the last ones may hold fewer, or none."""
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
    dtype: str

    @property
    def parameter(self) -> str:
        """The name in the published layout, which is the model's."""
        return self.name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def load_weights(
    model: Qwen2_5_VL, folder: str | Path, device: torch.device | str, dtype: torch.dtype
) -> None:
    """Gives a model made on the meta device its weights from a folder, each straight to its device and dtype.

    Peak memory is the model and the one file that is mapped at the time. Of a sharded model each process
    reads its own rows only.

    Raises: UserError, in one line, if the files are damaged or do not hold exactly the model's tensors; then
        nothing was read.
    """
    stored = _contents(Path(folder), model)
    try:
        if is_sharded(model):
            model.to(dtype).to_empty(device=device)
        for file in dict.fromkeys(tensor.file for tensor in stored.values()):
            with _opened(file) as reader:
                for name, tensor in stored.items():
                    if tensor.file != file:
                        continue
                    if is_sharded(parameter := model.get_parameter(name)):
                        rows = local_rows(parameter)
                        local(parameter).copy_(reader.get_slice(tensor.name)[rows])
                        continue
                    # Copied even where nothing changes: the model must not hang on the mapped file. (`.to` is
                    # half as fast, and `to_empty` imports for half a second.)
                    value = torch.empty(tensor.shape, dtype=dtype, device=device)
                    value.copy_(reader.get_tensor(tensor.name))
                    owner, _, leaf = name.rpartition(".")
                    setattr(model.get_submodule(owner), leaf, nn.Parameter(value, parameter.requires_grad))
    except torch.OutOfMemoryError:
        raise _too_large(model, folder, device, dtype) from None


def _contents(folder: Path, model: Qwen2_5_VL) -> dict[str, Stored]:
    """Parameter -> where its tensor lies, from the files' headers alone."""
    weight_map = None if (folder / SINGLE).is_file() else _weight_map(folder)
    tensors = []
    for file in [SINGLE] if weight_map is None else dict.fromkeys(weight_map.values()):
        with _opened(folder / file) as reader:
            for name in sorted(reader.keys()):
                header = reader.get_slice(name)
                shape, dtype = tuple(header.get_shape()), str(header.get_dtype())
                tensors.append(Stored(name, folder / file, shape, dtype))
    if weight_map not in (None, {tensor.name: tensor.file.name for tensor in tensors}):
        raise _misplaced(folder, tensors, weight_map)
    stored = {tensor.parameter: tensor for tensor in tensors}
    is_readable = len(stored) == len(tensors) and all(tensor.dtype in READABLE for tensor in tensors)
    if model.config.tie_word_embeddings and HEAD in stored:
        _refuse_another_head(stored.pop(HEAD), stored.get(EMBEDDING))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if not is_readable or {name: tensor.shape for name, tensor in stored.items()} != shapes:
        raise _mismatch(folder, tensors, stored, shapes)
    return stored


@contextmanager
def _opened(file: Path) -> Iterator[safe_open]:
    try:
        with safe_open(file, framework="pt") as reader:
            yield reader
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from None


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


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor -> file, from the index. Only plain names of files beside it: a hub cache's own links lead
    elsewhere, rightly.
    """
    index = folder / INDEX
    if not index.is_file():
        raise _no_weights(folder)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _fault(index, f"no weight_map, which says in which file each tensor is{AGAIN}")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or set(file) & set("/\\:\0"):
            expected = "expected a .safetensors file beside the index"
            raise _fault(index, f"{_few([name])} is said to be in {file!r:.200}; {expected}")
    return weight_map


# One line for each way in which the files do not hold the model.


def _fault(file: str | Path, what: str) -> UserError:
    return UserError(f"{file}: {what}")


def _too_large(
    model: nn.Module, folder: str | Path, device: torch.device | str, dtype: torch.dtype
) -> UserError:
    size = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize / 1e9
    taken = f"its weights take {size:.1f} GB in {dtype_name(dtype)}"
    return _fault(folder, f"{taken}, more than is free on {device}")


def adapter_of(folder: Path) -> str | None:
    """Says what a folder is that holds a LoRA adapter and no model; None if it holds none."""
    settings = folder / "adapter_config.json"
    if not settings.is_file():
        return None
    base = read_json(settings).get("base_model_name_or_path")
    return f"{folder}: a LoRA adapter of {base}, not a model; load {base}, or merge the adapter into it first"


def _no_weights(folder: Path) -> UserError:
    files = folder.iterdir() if folder.is_dir() else ()
    pickles = [path.name for path in files if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
    if adapter := adapter_of(folder):
        return UserError(adapter)
    if not pickles:
        return _fault(folder, f"no {SINGLE} and no {INDEX}")
    never = "which can run any code and are never opened; convert them to safetensors"
    return _fault(folder, f"only pickled weights ({_few(pickles)}), {never}")


def _unreadable(file: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return _fault(file, f"no such file, although {INDEX} names it{AGAIN}")
    hint = AGAIN
    if isinstance(error, SafetensorError):
        with file.open("rb") as raw:
            if raw.read(23) == b"version https://git-lfs":
                hint = "; it is a Git LFS pointer: run `git lfs pull`"
    return _fault(file, f"truncated or not a safetensors file ({one_line(str(error))[:200]}){hint}")


def _misplaced(folder: Path, tensors: list[Stored], weight_map: Mapping[str, str]) -> UserError:
    """The first file whose tensors are not those that the index says are in it."""
    for file in dict.fromkeys(weight_map.values()):
        names = {tensor.name for tensor in tensors if tensor.file.name == file}
        listed = {name for name, home in weight_map.items() if home == file}
        if names != listed:
            break
    absent, extra = _few(listed - names), _few(names - listed)
    return _fault(folder / file, f"not what {INDEX} says: without {absent}, with unlisted {extra}{AGAIN}")


def _mismatch(
    folder: Path,
    tensors: list[Stored],
    stored: Mapping[str, Stored],
    shapes: Mapping[str, tuple[int, ...]],
) -> UserError:
    """A tensor that cannot be read or is there twice, or else how the tensors differ from the model's."""
    seen: dict[str, Stored] = {}
    for tensor in tensors:
        name = _few([tensor.name])
        if tensor.dtype not in READABLE:
            readable = "r1ov reads float32, bfloat16 and float16 weights"
            return _fault(tensor.file, f"{name} is {tensor.dtype}; {readable}")
        if (twin := seen.setdefault(tensor.parameter, tensor)) is not tensor:
            same = f"the same parameter as {_few([twin.name])} in {twin.file.name}"
            return _fault(tensor.file, f"{name} is {same}")
    kinds = {
        "missing": [name for name in shapes if name not in stored],
        "unexpected": [tensor.name for name, tensor in stored.items() if name not in shapes],
        "of another shape": [
            f"{name} {list(stored[name].shape)} for {list(shape)}"
            for name, shape in shapes.items()
            if name in stored and stored[name].shape != shape
        ],
    }
    found = [f"{len(names)} {kind} ({_few(names)})" for kind, names in kinds.items() if names]
    tie = "; if the head is the embedding, set tie_word_embeddings to true in config.json"
    hint = tie if kinds["missing"] == [HEAD] else ""
    return _fault(folder, f"its weights are not those of its config.json: {', '.join(found)}{hint}")


def _few(names: Iterable[str]) -> str:
    """The first five, in one line whatever is in them."""
    names = list(names)
    shown = [repr(name[:200])[1:-1] for name in names[:5]] + ["..."] * (len(names) > 5)
    return ", ".join(shown) or "none"
