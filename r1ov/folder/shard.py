"""A parameter whole, or of which each process holds some rows: the four things that the rest asks of it
without knowing which.

Sharded parameters are torch's DTensors as `fully_shard` makes them: dealt by rows over the last dimension of
a mesh, copied over the others. They are told by their mesh, because importing the class takes a second.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn


def is_sharded(what: Tensor | nn.Module) -> bool:
    """Of a tensor, or of all of a model's."""
    tensor = next(what.parameters()) if isinstance(what, nn.Module) else what
    return hasattr(tensor, "device_mesh")


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """The rows that this process holds, in the same memory; of a whole tensor the tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor.detach()


def local_rows(tensor: Tensor) -> slice:
    """Which rows of the whole these are; may be none."""
    rows = tensor.shape[0]
    if not is_sharded(tensor):
        return slice(0, rows)
    assert tensor.placements[-1].is_shard(0), tensor.placements
    held = rows_of_each(tensor)
    begin = min(rows, held * tensor.device_mesh.get_local_rank(tensor.device_mesh.ndim - 1))
    return slice(begin, min(rows, begin + held))


def rows_of_each(tensor: Tensor) -> int:
    """How many rows a process holds at most: the first ones hold so many, one the remainder, the last perhaps
    none.
    """
    return -(-tensor.shape[0] // tensor.device_mesh.size(tensor.device_mesh.ndim - 1))


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All rows. Of a sharded tensor every process must ask at the same time, and each gets them in memory of
    its own.
    """
    return tensor.full_tensor() if is_sharded(tensor) else tensor.detach()


def in_first_process(sharded: bool, work: Callable[[], None]) -> None:
    """What only one process shall do for all of them; that it cannot write to its disk is then the failure of
    each.

    Args: sharded: whether all processes call this together; if not, this one does it.
    """
    if not sharded:
        work()
        return
    error: Exception | None = None
    if dist.get_rank() == 0:
        try:
            work()
        except (OSError, SafetensorError) as caught:
            error = caught
    told = [None if error is None else str(error)]
    dist.broadcast_object_list(told, src=0)
    if told[0] is not None:
        raise error or OSError(told[0])
