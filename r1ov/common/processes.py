"""Where a program runs: its device, number type and kernels, and the processes that torchrun starts and tells
RANK, WORLD_SIZE and LOCAL_RANK.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kernels import check_impl, unavailable, use
from r1ov.common.files import one_line
from r1ov.common.memory import SMALL, free_memory
from r1ov.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# How long a rank waits for the others. One may save or decode for hours while the rest wait; a rank that dies
# is not waited for, because torchrun ends the others.
PATIENCE = timedelta(days=1)


def choose_device(device: str | torch.device | None) -> torch.device:
    """A device that holds tensors here; None: the GPU if there is one. One of several GPUs becomes that on
    which streams, graphs and kernels run that name none. Raises UserError.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    reason = "torch knows or finds none"
    try:
        # Warnings are about devices that torch no longer knows, before its error.
        with warnings.catch_warnings(action="ignore"):
            chosen = torch.device(device)
            tried = torch.empty(1, device=chosen)
        if tried.is_cuda:
            torch.cuda.set_device(tried.device)
        if chosen.type in ("cpu", "cuda"):
            return chosen
        reason = "r1ov runs on cpu and cuda"
    except (RuntimeError, AssertionError, TypeError, ImportError):
        pass
    raise _no_device(device, reason)


def _no_device(device: str | torch.device, reason: str) -> UserError:
    here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return UserError(f"device {str(device)!r} cannot be used here: {reason}; try {', '.join(here)}")


def known_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The one that is meant, by its name or itself. Raises UserError unless it is float32 or bfloat16."""
    name = dtype_name(dtype)
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is not one of float32, bfloat16; float16 overflows in the model")
    return DTYPES[name]


def choose_dtype(
    dtype: str | torch.dtype | None, device: torch.device, stored: str = "float32", size: float = 0
) -> tuple[torch.dtype, str]:
    """The type of weights and arithmetic, float32 or bfloat16, and why. Raises UserError.

    Args:
        dtype: None: the checkpoint's, where the device computes it well.
        stored: the checkpoint's, by name; float16, which overflows, becomes bfloat16. size: how many numbers.
    """
    if dtype is not None:
        return known_dtype(dtype), "as asked"
    is_small = size < SMALL and device.type == "cpu"
    if stored == "float32" or (computes_bfloat16(device) and not is_small):
        return DTYPES.get(stored, torch.bfloat16), "as the checkpoint"
    if 4 * size < free_memory(device):
        return torch.float32, "a small model" if is_small else "this CPU has no bfloat16 instructions"
    return torch.bfloat16, "float32 is more than is free"


def computes_bfloat16(device: torch.device) -> bool:
    """True where bfloat16 is at least as fast as float32: on GPUs, and CPUs with instructions for it."""
    known = torch.cpu.get_capabilities().get
    return device.type != "cpu" or any(map(known, ("avx512_bf16", "amx_bf16", "bf16")))


def choose_kernels(impl: str | None, device: torch.device) -> str:
    """Switches attention and log-probs to this implementation, or to the device's default; returns its name.

    Raises: UserError if it cannot run there.
    """
    chosen = check_impl(impl, device)
    if chosen == "triton" and (reason := unavailable(device)):
        raise UserError(f"--kernels {chosen}: {reason}")
    use(impl)
    return chosen


def dtype_name(dtype: str | torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class World:
    """The processes that torchrun started. All methods are collective: all ranks call them together."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None  # for exchanges that must not mix with others; None: everybody's

    @property
    def is_main(self) -> bool:
        """True for the one process that prints and writes."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each number summed over all ranks."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)  # on the CPU: gloo sums it without a GPU sync
        dist.all_reduce(total, group=self.group)
        return total.tolist()

    def gather(self, value: Any) -> list:
        """The value of each rank, in their order; anything that can be pickled, so no tensors on a GPU."""
        values = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value, group=self.group)
        return values

    def on_all(self, work: Callable[[], Any]) -> list:
        """What `work` returns on each rank, in their order. Raises: OSError on all ranks if on any."""
        result = trouble = None
        try:
            result = work()
        except OSError as error:
            trouble = f"rank {self.rank}: " * (self.size > 1) + _in_short(error)
        results, troubles = zip(*self.gather((result, trouble)), strict=True)
        if any(troubles):
            raise OSError("; ".join(filter(None, troubles)))
        return list(results)

    def on_main(self, work: Callable[[], Any]) -> Any:
        """What `work` returns on rank 0, which alone runs it. Raises: OSError on all ranks if there."""
        if self.size > 1:
            return self.on_all(lambda: work() if self.is_main else None)[0]
        try:
            return work()
        except OSError as error:
            raise OSError(_in_short(error)) from error

    def first(self, value: Any) -> Any:
        """Rank 0's value."""
        return self.gather(value)[0]

    def wait(self) -> None:
        """Returns when all ranks have come here."""
        self.gather(None)


def _in_short(error: OSError) -> str:
    reason = error.strerror or str(error)
    return one_line(f"{reason}: {Path(error.filename).name}" if error.filename else reason)


def share_cores() -> None:
    """Deals this machine's cores to its processes, where torchrun has left a single thread to each."""
    if os.environ.get("OMP_NUM_THREADS") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"])))


def launch(count: int) -> None:
    """Runs this command as `count` processes on this machine, by torchrun, and ends as they end.

    Torchrun by itself ends with a traceback and status 1 where its processes were stopped and have ended
    well, or have refused the command.
    """
    import logging

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable()  # of torchrun's own lines about its processes
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        run.run(run.parse_args(["--standalone", f"--nproc-per-node={count}", *sys.argv]))
    except SignalException:
        return  # it was passed on, and waited for
    except ChildFailedError as error:
        raise SystemExit(max(1, error.get_first_failure()[1].exitcode)) from None


@contextmanager
def joined(device: str | None) -> Iterator[tuple[World, torch.device]]:
    """The processes that torchrun started, or this one alone, and the device of this one; gloo on CPUs, NCCL
    on GPUs.

    Args: device: cpu, cuda, or with one process cuda:N; None: cuda if there is one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(), choose_device(device)
    else:
        with _group(device) as several:
            yield several


@contextmanager
def _group(device: str | None) -> Iterator[tuple[World, torch.device]]:
    chosen = _join(device)
    try:
        yield World(dist.get_rank(), dist.get_world_size()), chosen
        dist.barrier()  # a process that left early would cut off the others' last exchange
    except RuntimeError as error:
        if "gloo" not in str(error):
            raise  # torchrun sees to NCCL
        raise SystemExit(f"error: another process has ended: {one_line(str(error))[:200]}") from None
    finally:
        dist.destroy_process_group()


def _join(device: str | None) -> torch.device:
    if device not in (None, "cpu", "cuda"):
        raise UserError(
            f"--device is {device!r}; torchrun gives each process its own, so it must be cpu or cuda"
        )
    on_gpu = device == "cuda" or (device is None and torch.cuda.is_available())
    if on_gpu:
        local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= gpus:
            raise UserError(
                f"process {local_rank} of this node has no GPU: there are {gpus}; lower --nproc-per-node"
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    return torch.device("cuda" if on_gpu else "cpu")
