"""Steps of decoding with one launch each: recorded once for each number of rows, and replayed.

A step launches a thousand kernels, which takes the host longer than a GPU needs to run them. A CUDA graph
launches them all at once; it reads and writes the same memory each time, which is why a step's tensors stay
in their places. And the host need not wait for a token before it launches what makes the next.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from r1ov.engine.cache import KVCache
from r1ov.model.lora import Lora
from r1ov.model.model import Qwen2_5_VL

RECORDED = "cuda"  # the type of device whose steps are recorded
AHEAD = 8  # steps that are launched before the host reads the first one's tokens


class Copied:
    """A tensor on its way to the host; only who reads it waits."""

    def __init__(self, tensor: Tensor):
        self.tensor, self.arrival = tensor.to("cpu", non_blocking=True), torch.cuda.Event()  # pinned
        self.arrival.record()

    def tolist(self) -> list:
        self.arrival.synchronize()
        return self.tensor.tolist()


def record(work: Callable, pool: Any) -> tuple[Callable, Any]:
    """What launches the same again, and its memory, which graphs that are replayed in turn can share."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        made = work()
    return lambda: (graph.replay(), *map(Copied, made))[1:], graph.pool()


def width(rows: int) -> int:
    """How many rows a recorded step has for so many: 1, 2, 4, 8, 16, 32, 64, 96, 128, 160, ..."""
    return 1 << (rows - 1).bit_length() if rows <= 64 else -(-rows // 32) * 32


def can_record(model: Qwen2_5_VL) -> bool:
    """Whether a step is the same kernels each time: not where hooks look inside; an adapter's are kernels."""
    return all(
        isinstance(hook, Lora)
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )


@dataclass
class Recorded:
    """Several steps at a time: as they are the first time, which warms up what they need, then recorded."""

    advance: Callable  # of `Slots`
    by_row: list[Tensor]  # its tensors
    cache: KVCache
    pool = None

    def __post_init__(self):
        self.works = {}

    def __call__(self, rows: int, steps: int) -> list[tuple[Any, Any]]:
        """At most so many steps. Args: steps: after which a row may need the host."""
        cache, steps = self.cache, min(steps, AHEAD)
        wide = min(width(rows), len(cache.lengths))
        cache.reserve(wide, steps)
        # The rows that fill it up begin anew each time, so that they stay within bounds.
        for kept in (*self.by_row[:3], cache.lengths):
            kept[rows:wide] = 0
        key = wide, cache.columns, len(cache.ramp)
        work = self.works.get(key)
        if work is None:
            work = partial(self.advance, slice(wide))
        elif isinstance(work, partial):
            work, self.pool = record(work, self.pool)
        self.works[key], end = work, cache.longest + steps
        made = [work() for _ in range(steps)]
        cache.longest = end
        return made
