"""Several processes, one training step: each computes its share of the micro-batches, gradients are summed over all.

Started by torchrun, which sets RANK, WORLD_SIZE and LOCAL_RANK; without it there is one process and nothing to do. Every process holds
the whole model.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from r1ov.errors import UserError
from r1ov.pretrained import choose_device


@dataclass(frozen=True)
class World:
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """The one process that prints and writes."""
        return self.rank == 0

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Each parameter's gradient becomes the sum over all processes, in float32, in place."""
        if self.size == 1:
            return
        gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters]
        flat = torch.cat([gradient.flatten().float() for gradient in gradients])
        dist.all_reduce(flat)
        for parameter, gradient, total in zip(parameters, gradients, flat.split([g.numel() for g in gradients]), strict=True):
            parameter.grad = total.view_as(gradient).to(gradient.dtype)

    def sum(self, *values: float) -> list[float]:
        """Each number summed over all processes."""
        if self.size == 1:
            return list(values)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return total.tolist()


@contextmanager
def joined(device: str | None) -> Iterator[tuple[World, torch.device]]:
    """The processes that torchrun started, or this one alone, and the device of this one; gloo on CPUs, NCCL on GPUs.

    Args: device: cpu, cuda, or with one process cuda:N; None is cuda where there is one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(), choose_device(device)
        return
    if device not in (None, "cpu", "cuda"):
        raise UserError(f"--device is {device!r}; torchrun gives each process its own, so it must be cpu or cuda")
    on_gpu = device == "cuda" or (device is None and torch.cuda.is_available())
    if on_gpu:
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UserError(f"process {local} of this node has no GPU: there are {torch.cuda.device_count()}; lower --nproc-per-node")
        torch.cuda.set_device(local)
    # The main process evaluates and saves while the others wait.
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(hours=2))
    try:
        yield World(dist.get_rank(), dist.get_world_size()), torch.device("cuda" if on_gpu else "cpu")
        dist.barrier()  # a process that left early would cut off the others' last exchange
    finally:
        dist.destroy_process_group()
