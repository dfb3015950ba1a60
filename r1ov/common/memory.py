"""What a command will need of a device's memory, said before it starts, and refused where it cannot fit."""

import ctypes
import mmap
import re
from collections.abc import Mapping
from contextlib import suppress
from math import inf
from pathlib import Path

import torch

from r1ov.errors import UserError

REMEDIES = "quantize int4, fewer new tokens or samples, or smaller pictures (max_pixels) take less"

MMAP_THRESHOLD = -3  # glibc's number of the option


def free_memory(device: torch.device) -> float:
    """Bytes that a program may still take: of a GPU, or of this machine and its container."""
    if device.type != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    free = inf
    with suppress(OSError, ValueError):  # macOS has no such files, a machine without limits "max"
        free = 1024 * int(re.search(r"MemAvailable: *(\d+)", Path("/proc/meminfo").read_text())[1])
        limit, taken = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - taken)
    return free


def resident() -> float:
    """Bytes of memory that this process holds; what torch and its libraries take where nobody counts."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    return 3e8


def return_freed() -> None:
    """Has glibc give each freed piece of 1 MB or more back to the system at once.

    By itself it comes to keep pieces of up to 32 MB, and the hole that an aligned piece leaves is too small
    for the next one as large (glibc before 2.38): SFT of 0.5B with LoRA took 12.3 GB, now 6.5. Not for a
    small model, whose steps would be 1.4 times slower, for the pages that the system clears.
    """
    with suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**20)


def plan(
    parts: Mapping[str, float], device: torch.device, remedies: str = REMEDIES, present: float = 0
) -> str:
    """Says what is needed and how much of that is free.

    Args: parts: bytes, by what they are for. present: bytes of them that are taken already.
    Raises: UserError if it is more; `remedies` says what to do.
    """
    on_cpu = device.type == "cpu"
    taken = resident() if on_cpu else present
    # Of weights that are mapped little may be read yet. On a GPU: CUDA, and its libraries.
    program = taken - present * (present < taken) if on_cpu else 6e8
    held = {"program": program, **parts}
    free, need = free_memory(device) + taken, sum(held.values())
    shown = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in held.items())
    line = f"{need / 1e9:.2f} GB of {free / 1e9:.1f} free ({shown})"
    if need > free:
        raise UserError(f"needs {line}; {remedies}")
    return line
