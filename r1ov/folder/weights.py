"""A model's weights, whole or sharded: drawn afresh, or read from the safetensors files of a Hugging Face
folder and written to them, one tensor at a time.

Sharded parameters are torch's DTensors as `fully_shard` makes them: dealt by rows over the last dimension of
a mesh, copied over the others. They are recognised by their mesh, because importing the class takes a second.

Our modules carry the names of the published files (`visual.*`, `model.*`, `lm_head.weight`), so most names
map to themselves; files in the newer in-memory layout (`model.visual.*`, `model.language_model.*`) differ by
prefix. Loading is strict: every parameter is there once, in its shape, and nothing else is. Pickled weights
are never opened, because opening a pickle runs the code in it.
"""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.types import Device

from r1ov.common.files import read_json, write_json
from r1ov.common.memory import roomy
from r1ov.common.processes import World
from r1ov.errors import UserError
from r1ov.folder import faults
from r1ov.folder.faults import AGAIN, EMBEDDING, HEAD, INDEX, READABLE, SINGLE, Stored
from r1ov.folder.quantized import QuantizedLinear, awq_shapes, load_quantized
from r1ov.model.model import Qwen2_5_VL

MOST_OPEN = 2**26  # bytes that are read of a file before it is opened anew
_OURS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?(\.tmp)?")


def is_sharded(what: Tensor | nn.Module) -> bool:
    """True for a DTensor, or a model of FSDP's."""
    # Between a forward pass without gradients and the next one FSDP's parameters may be plain and whole.
    return hasattr(what, "reshard" if isinstance(what, nn.Module) else "device_mesh")


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


def load_weights(
    model: Qwen2_5_VL,
    folder: str | Path,
    device: Device,
    dtype: torch.dtype,
    quantize: str | None = None,
    quantizes_head: bool = True,
) -> None:
    """Gives a model made on the meta device its weights from a folder, each straight to its device and dtype;
    a sharded model has its dtypes already.

    On a CPU a tensor that has the dtype already is the mapped file itself, until decoding copies it (the
    engine's `step`); all else, and of a quantised model all but the embedding, is copied, tensor by tensor,
    and what is quantised some rows at a time, so that peak memory is the model and 64 MB of a file, or its
    largest tensor of those that are not quantised. Of a sharded model each process reads its own rows only.

    Args: quantize: "int4" or "int8": the language model's linear layers, and the head, unless
        quantizes_head is False.
    Raises: UserError, in one line, if the files are damaged or do not hold exactly the model's tensors; then
        nothing was read.
    """
    stored = _contents(Path(folder), model)
    if is_sharded(model):
        return _load_rows(model, stored, device)
    values, packs = {}, quantize or ".qweight" in " ".join(stored)  # AWQ's
    maps = str(device) == "cpu" and not (packs or model.split)
    model.mapped = []
    with _Reader() as read:
        if packs:
            stored = load_quantized(model, stored, read, _Reader(), device, dtype, quantize, quantizes_head)
        for name, tensor in stored.items():
            value = read(tensor, model.split and model.split.own(name))
            if maps and value.dtype == dtype:
                model.mapped.append(name)
            else:
                value = roomy(value.shape, dtype, device).copy_(value)
            values[name] = value
    model.load_state_dict(values, strict=False, assign=True)


def _load_rows(model: Qwen2_5_VL, stored: dict[str, Stored], device: Device) -> None:
    """Of a sharded model each process reads its own rows."""
    model.to_empty(device=device)
    with _Reader() as read:
        for name, tensor in stored.items():
            parameter = model.get_parameter(name)
            local(parameter).copy_(read(tensor, local_rows(parameter)))


class _Reader(ExitStack):
    """Reads tensors from one open file at a time. What was read of it counts as this program's memory until
    it is closed, so it is opened anew every so often.
    """

    file, left = None, 0

    def __call__(self, tensor: Stored, part: slice | tuple[slice, ...] | None = None) -> Tensor:
        if tensor.file != self.file or self.left < 0:
            self.close()
            self.reader = self.enter_context(_opened(tensor.file))
            self.file, self.left = tensor.file, MOST_OPEN
        value = self.reader.get_slice(tensor.name)[part or slice(None)]
        self.left -= value.nbytes
        return value


def _contents(folder: Path, model: Qwen2_5_VL) -> dict[str, Stored]:
    """Parameter -> where its tensor lies, from the files' headers alone."""
    single = folder / SINGLE
    tensors = _headers(single) if single.is_file() else _indexed(folder)
    stored = {tensor.parameter: tensor for tensor in tensors}
    are_sound = len(stored) == len(tensors) and all(one.dtype in READABLE or one.is_packed for one in tensors)
    parameters = (model.split or model).named_parameters()
    shapes = {name: tuple(one.shape) for name, one in parameters if "lora_" not in name}
    if ".qweight" in " ".join(stored):  # config.json says that it is AWQ's
        shapes = awq_shapes(shapes, stored, bool(model.split))
    if model.config.tie_word_embeddings and HEAD in stored:
        _refuse_another_head(stored.pop(HEAD), stored.get(EMBEDDING))
    if not are_sound or {name: tensor.shape for name, tensor in stored.items()} != shapes:
        raise faults.mismatch(folder, tensors, stored, shapes)
    return stored


def _headers(file: Path) -> list[Stored]:
    """The tensors of a file, in the order of their names."""
    tensors = []
    with _opened(file) as reader:
        for name in sorted(reader.keys()):
            header = reader.get_slice(name)
            ours = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
            tensors.append(Stored(name, ours, file, tuple(header.get_shape()), str(header.get_dtype())))
    return tensors


@contextmanager
def _opened(file: Path) -> Iterator[safe_open]:
    try:
        with safe_open(file, framework="pt") as reader:
            yield reader
    except (SafetensorError, OSError) as error:
        raise faults.unreadable(file, error) from None


def _refuse_another_head(head: Stored, embedding: Stored | None) -> None:
    """A tied model's file may repeat the embedding as its head, but a head of its own would be lost."""
    if embedding is None:
        return
    with _opened(head.file) as one, _opened(embedding.file) as other:
        a, b = one.get_tensor(head.name), other.get_tensor(embedding.name)
    wide = torch.promote_types(a.dtype, b.dtype)
    if not torch.equal(a.to(wide), b.to(wide)):
        remedy = "set it to false in config.json to use this head, or remove the tensor"
        fault = "is not the embedding, although tie_word_embeddings is true"
        raise UserError(f"{head.file}: {HEAD} {fault}; {remedy}")


def _indexed(folder: Path) -> list[Stored]:
    """The tensors of all files that the index names. Only plain names of files beside it: a hub cache's own
    links lead elsewhere, rightly.
    """
    index = folder / INDEX
    if not index.is_file():
        raise faults.no_weights(folder)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: no weight_map, which says in which file each tensor is{AGAIN}")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or set(file) & set("/\\:\0"):
            expected = "expected a .safetensors file beside the index"
            raise UserError(f"{index}: {faults.few([name])} is said to be in {file!r:.200}; {expected}")
    files = dict.fromkeys(weight_map.values())
    tensors = [tensor for file in files for tensor in _headers(folder / file)]
    if weight_map != {tensor.name: tensor.file.name for tensor in tensors}:
        raise faults.misplaced(folder, tensors, weight_map)
    return tensors


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
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise UserError(f"{folder}: a quantised model is not saved; load it again without quantize")
    folder, state, world = Path(folder), model.state_dict(), world_of(model)
    shards = split_state_dict_into_shards_factory(
        {name: tensor.numel() * dtype.itemsize for name, tensor in state.items()},
        get_storage_size=int,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    files = shards.filename_to_tensors
    world.on_main(partial(folder.mkdir, parents=True, exist_ok=True))
    for file, names in files.items():
        tensors = {}
        for name in names:
            value = whole(state[name])
            if world.is_main:
                tensors[name] = value.to("cpu", dtype).contiguous()
        world.on_main(partial(write_tensors, folder / f"{file}.tmp", tensors))

    def put_in_place() -> None:
        (folder / "config.json").unlink(missing_ok=True)
        for path in list(folder.iterdir()):
            if _OURS.fullmatch(path.name) and path.name.removesuffix(".tmp") not in files:
                path.unlink()
        for file in files:
            os.replace(folder / f"{file}.tmp", folder / file)
        if shards.is_sharded:
            index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
            write_json(folder / INDEX, index)

    world.on_main(put_in_place)
