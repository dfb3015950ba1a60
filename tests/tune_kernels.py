"""Which tiles of attention are fastest, measured on this GPU.

    python -m kernels.tune [--only TEXT] [--rehearse] [--out FILE]

For each kernel, head size, causality and length the candidates run in turn, and the fastest becomes the entry
of this GPU's generation in the table: kernels/triton/tiles.json, or FILE. What asks for more shared memory
than there is drops out; the rest is the gate's to judge, so run `python -m kernels.gate` and the tests next.
The kernels are compiled beforehand, in as many processes as there are cores.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import kernels
from kernels.triton import tiles
from tests.bench_kernels import Gpu

# Rows of queries, rows of keys, warps, stages. What needs more registers than there are spills, and is slow.
CANDIDATES = {
    "forward": [(128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3), (64, 128, 4, 2), (128, 64, 8, 2)],
    "dq": [(128, 64, 8, 2), (64, 64, 4, 2), (128, 64, 8, 3), (64, 128, 4, 2)],
    "dkdv": [(64, 128, 8, 2), (64, 64, 8, 2), (32, 128, 8, 2), (32, 64, 4, 2), (64, 64, 4, 2)],
}


@dataclass(frozen=True)
class Work:
    """Sequences that one entry of the table is for."""

    dim: int
    how: str  # causal or full, and the length's class; or windows
    heads: int
    key_heads: int
    lengths: tuple[int, ...]

    def entry(self, kernel: str) -> str:
        return f"{kernel} {self.dim} {self.how}"

    def step(self, kernel: str, device: str) -> tuple[Callable, Callable]:
        """What is not timed and what is, as the bench has them: a forward or a backward pass."""
        generator = torch.Generator(device).manual_seed(0)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        tokens, is_backward = sum(self.lengths), kernel != "forward"

        def draw(heads: int) -> Tensor:
            return torch.randn(tokens, heads, self.dim, generator=generator, device=device).to(dtype)

        q, k, v = (draw(n).requires_grad_(is_backward) for n in (self.heads, self.key_heads, self.key_heads))
        starts = kernels.starts(torch.tensor(self.lengths)).to(device)
        longest = tiles.SHORT if self.how == "windows" else None

        def forward(_: None = None) -> Tensor:
            causal = self.how.startswith("causal")
            return kernels.attention(q, k, v, starts, causal, max_seqlen=longest, impl="triton")

        if not is_backward:
            return lambda: None, forward
        grad = draw(self.heads)
        return forward, lambda out: torch.autograd.grad(out, (q, k, v), grad)


# As the models run them: the language model's heads in 7B, the vision encoder's.
WORKS = [
    Work(128, "causal long", 28, 4, (8192, 8192)),
    Work(128, "causal short", 28, 4, (512, 1024, 1536) * 5),
    Work(80, "full long", 16, 16, (4096,) * 4),
    Work(80, "full short", 16, 16, (1024,) * 16),
    Work(80, "windows", 16, 16, (64,) * 256),
]
TOY = [Work(32, "causal short", 2, 1, (20, 9)), Work(32, "windows", 1, 1, (33,))]


def milliseconds(step: tuple[Callable, Callable], device: str) -> float:
    """The least of three means of ten calls, on the device."""
    if device == "cuda":
        return min(Gpu().milliseconds([step] * 10) for _ in range(3))
    before, run = step
    state, begun = before(), time.perf_counter()
    run(state)
    return 1000 * (time.perf_counter() - begun)


def measured(kernel: str, work: Work, tile: tuple[int, ...], device: str, again: bool = True) -> float | str:
    """What a pass with this tile takes, or why it does not run. again: False: it is only compiled."""
    table = tiles._tables()[tiles.architecture(torch.device(device))]
    with patch.dict(table, {work.entry(kernel): list(tile)}):
        try:
            step = work.step(kernel, device)
            before, run = step
            run(before())
            return milliseconds(step, device) if again else 0.0
        except Exception as error:  # whatever the compiler or the driver raises is the candidate's result
            return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:80]}"


def compiled(job: tuple[str, Work, tuple[int, ...]]) -> None:
    measured(*job, "cuda", again=False)


def tune(works: list[Work], only: str, device: str) -> dict[str, list[int]]:
    """The fastest candidate of each entry; a row is printed for each that is measured."""
    jobs = [
        (kernel, work, tile)
        for work in works
        for kernel, all_tiles in CANDIDATES.items()
        for tile in all_tiles
        if only in work.entry(kernel)
    ]
    if device == "cuda":
        workers = min(12, os.cpu_count() or 1)
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(compiled, jobs))
    found: dict[str, tuple[float, tuple[int, ...]]] = {}
    for kernel, work, tile in jobs:
        name, took = work.entry(kernel), measured(kernel, work, tile, device)
        print(f"{name:28}{tile!s:22}{took if isinstance(took, str) else f'{took:.4f} ms'}", flush=True)
        if not isinstance(took, str):
            found[name] = min(found.get(name, (took, tile)), (took, tile))
    return {name: list(tile) for name, (_, tile) in found.items()}


def written(tables: dict[str, dict[str, list[int]]]) -> str:
    """The table as it lies in its file: an entry a line."""
    parts = [
        f' "{arch}": {{\n' + ",\n".join(f'  "{name}": {tile}' for name, tile in table.items()) + "\n }"
        for arch, table in tables.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="only the entries with this in their name")
    parser.add_argument("--rehearse", action="store_true", help="at toy size, on a CPU, interpreted")
    path = Path(tiles.__file__).with_name("tiles.json")
    parser.add_argument(
        "--out", type=Path, help=f"where the table is written; default {path.name}, if measured"
    )
    options = parser.parse_args(arguments)
    device = "cpu" if options.rehearse else "cuda"
    if reason := kernels.unavailable(device):
        print(f"error: {reason}", file=sys.stderr)
        return 2
    if device == "cuda" and not torch.cuda.is_available():
        print("error: no GPU here; --rehearse measures at toy size", file=sys.stderr)
        return 2
    found = tune(TOY if options.rehearse else WORKS, options.only, device)
    tables: dict[str, Any] = json.loads(path.read_text())
    tables[tiles.architecture(torch.device(device))] |= found
    out = options.out or (None if options.rehearse else path)
    if out:
        out.write_text(written(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
