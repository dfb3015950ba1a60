"""The kernels beside their peers, on one GPU and in one process: proven first, then timed in turn.

    python -m tests.bench_kernels [--out kernels/results/NAME.json] [--only attention,decode,logprobs,small]
    [--quick]

Measures what this machine's copy and matrix product reach, then the scorecard's rows. Each contender's result
is held against float64 before it is timed; one that is wrong, or refuses, says so in its row. Contenders take
turns, over several sets of inputs that together exceed the GPU's cache; times are medians with their
interquartile range. Peak memory is what a call needs beyond inputs and results.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from tests.bench_kernels_cases import PEERS, TOLERANCE, Case, Inputs, attention_case, decode_case, random
from tests.bench_kernels_logprobs import logprobs_case, small_cases

GROUPS = ("attention", "decode", "logprobs", "small")
ROTATED_BYTES = 200e6  # three times an H200's L2 cache
COLUMNS = ("", "ms", "±", "rate", "of limit", "peak MB", "error", "r1ov is")

Step = tuple[
    Callable[[], Any], Callable[[Any], tuple[Tensor, ...]]
]  # what precedes the timed part; the timed part, given its result


def all_cases() -> list[Case]:
    """The scorecard's rows G1-G9."""
    documents = [8192] * 2
    mixed = [4096, 512, 3072, 1024, 2048, 640, 1536, 3456]  # 16,384 in all
    text = (28, 4, 128, True)
    cases = []
    for lengths in (documents, mixed):
        cases += [
            attention_case("G1", lengths, *text, "forward", "flex_attention x 1.0, varlen_attn x 1.2"),
            attention_case("G2", lengths, *text, "backward", "varlen_attn x 1.2"),
        ]
    for patches in (4096, 16384):
        for mode in ("forward", "backward"):
            picture, windows = [patches], [64] * (patches // 64)
            cases += [
                attention_case("G3", picture, 16, 16, 80, False, mode, "best peer x 1.1"),
                attention_case("G4", windows, 16, 16, 80, False, mode, "60% of copy", unit="TB/s"),
            ]
    cases += [decode_case("G5", 64, context, "75% of copy") for context in (1024, 8192)]
    cases += [logprobs_case("G7", 8192, 3584, 152_064, False, "600 TFLOP/s, below 300 MB")]
    cases += [logprobs_case("G8", 8192, 3584, 152_064, True, "80% of the product's limit, below 300 MB")]
    return cases + small_cases(8192, 3584, 18_944, 28, 128)


class Gpu:
    """Times and weighs calls on the current CUDA device."""

    device = "cuda"

    def milliseconds(self, steps: list[Step]) -> float:
        """The mean over the steps of what their timed parts take on the device."""
        spans = []
        for before, run in steps:
            state = before()
            torch.cuda._sleep(
                1_000_000
            )  # half a millisecond in which the host runs ahead: launches are not timed if they can keep up
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run(state)
            end.record()
            spans.append((begin, end))
        torch.cuda.synchronize()
        return statistics.fmean(begin.elapsed_time(end) for begin, end in spans)

    def replayed(self, steps: list[Step]) -> tuple[list[Step], int]:
        """All timed parts as one CUDA graph, and how many they are."""
        states = [before() for before, _ in steps]
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            for state, (_, run) in zip(states, steps, strict=True):
                run(state)
        return [(lambda: None, lambda _: graph.replay())], len(steps)

    def peak_megabytes(self, step: Step) -> float:
        """What a call (with what precedes it) allocates at most beyond its results. It has run before."""
        before, run = step
        self.clean()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        outputs = run(before())
        return (torch.cuda.max_memory_allocated() - held - sum(x.nbytes for x in outputs)) / 1e6

    def clean(self) -> None:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def step(case: Case, call: Callable[[], Tensor | tuple[Tensor, ...]], inputs: Inputs) -> Step:
    """One call of a contender, split into what is not timed and what is."""
    leaves = [x for x in inputs.values() if x.requires_grad]
    if case.mode == "backward":
        return call, lambda out: torch.autograd.grad(out, leaves, inputs["grad"].view(out.shape))
    if case.mode == "both":
        return lambda: None, lambda _: torch.autograd.grad(call(), leaves)

    def forward(_: None) -> tuple[Tensor, ...]:
        out = call()
        return out if isinstance(out, tuple) else (out,)

    return lambda: None, forward


def package_of(contender: str) -> str | None:
    """The package of PEERS that a contender needs."""
    return next((name for name in PEERS if contender.startswith(name)), None)


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(PEERS[package][0]) is not None


def run_case(case: Case, gpu: Gpu, rounds: tuple[int, float]) -> list[dict[str, Any]]:
    """A row for each contender. rounds: at least how many, and for how many milliseconds of device time more
    are added (50 at most).
    """
    first = case.make(0, gpu.device)
    size = sum(x.nbytes for x in first.values())
    sets = [
        first,
        *(case.make(seed, gpu.device) for seed in range(1, min(16, max(2, -int(-ROTATED_BYTES // size))))),
    ]
    rows, timed = [], {}
    for name, bind in case.contenders.items():
        package = package_of(name)
        if package and not is_installed(package):
            rows.append({"contender": name, "status": "absent"})
            continue
        row = {"contender": name, "status": "ok"}
        rows.append(row)
        gpu.clean()
        try:
            steps = [step(case, bind(inputs), inputs) for inputs in sets]
            for before, run in reversed(steps):  # all of them: the first call of each may compile or allocate
                outputs = run(before())
            row["error"] = case.proof(first, outputs)
            del outputs
            if not row["error"] <= TOLERANCE:  # NaN is not
                row["status"] = "WRONG"
                continue
            row["peak_megabytes"] = gpu.peak_megabytes(steps[0])
            timed[name] = gpu.replayed(steps) if case.is_short and name not in case.host_bound else (steps, 1)
        except Exception as error:  # whatever a peer raises is its result; r1ov's own makes the bench fail
            row["status"] = (
                f"refused: {type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:120]}"
            )
    times: dict[str, list[float]] = {name: [] for name in timed}
    least, budget = rounds
    count, spent = 0, 0.0
    while timed and (count < least or (count < 50 and spent < budget)):
        for name, (steps, parts) in timed.items():
            total = gpu.milliseconds(steps)
            times[name].append(total / parts)
            spent += total * len(steps)
        count += 1
    for row in rows:
        if row["contender"] in times:
            quarters = statistics.quantiles(times[row["contender"]], n=4)
            row |= {
                "milliseconds": statistics.median(times[row["contender"]]),
                "spread": quarters[2] - quarters[0],
            }
    return rows


def compare(rows: list[dict[str, Any]], case: Case, limits: dict[str, float]) -> None:
    """Adds rate, share of the limit, and against r1ov's first row the ratio, with "ahead" or "behind" where
    it exceeds both spreads.
    """
    ours = rows[0]
    for row in rows:
        if "milliseconds" not in row:
            continue
        row["rate"] = case.work / row["milliseconds"] / 1e9  # work/ms to tera/s
        row["share"] = row["rate"] / limits[case.unit]
        if row is not ours and "milliseconds" in ours:
            row["ratio"] = row["milliseconds"] / ours["milliseconds"]
            gap = row["milliseconds"] - ours["milliseconds"]
            clear = abs(gap) > max(row["spread"], ours["spread"])
            row["verdict"] = ("ahead" if gap > 0 else "behind") if clear else "level"


def best_peer(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    peers = [row for row in rows if "milliseconds" in row and not row["contender"].startswith("r1ov")]
    return min(peers, key=lambda row: row["milliseconds"], default=None)


def table(case: Case, rows: list[dict[str, Any]]) -> str:
    """A case as a Markdown table, its columns aligned; what was not measured is empty, and why is said in the
    first column.
    """
    lines = [COLUMNS]
    best = best_peer(rows)
    for row in rows:
        name = (
            row["contender"]
            + (" (best peer)" if row is best else "")
            + ("" if row["status"] == "ok" else f": {row['status']}")
        )
        error = f"{row['error']:.1e}" if "error" in row else ""
        if "milliseconds" not in row:
            lines.append((name, "", "", "", "", "", error, ""))
            continue
        versus = f"{row['ratio']:.2f}x, {row['verdict']}" if "ratio" in row else ""
        measured = (
            f"{row['milliseconds']:.4f}",
            f"{row['spread']:.4f}",
            f"{row['rate']:.3g} {case.unit}",
            f"{row['share']:.0%}",
        )
        lines.append((name, *measured, f"{row['peak_megabytes']:,.0f}", error, versus))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "| "
        + " | ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    ]
    texts.insert(
        1, "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
    )
    return "\n".join([f"### {case.row} {case.name}", f"Goal: {case.goal}.", "", *texts, ""])


def measure_limits(gpu: Gpu) -> dict[str, float]:
    """What this machine reaches on random data: a copy of 1 GB (read and written), an 8192^3 product in
    bfloat16.
    """
    source = random(0, gpu.device, 2**29)
    target = torch.empty_like(source)
    left, right = (random(seed, gpu.device, 8192, 8192) for seed in (1, 2))
    copy = [(lambda: None, lambda _: (target.copy_(source),))]
    product = [(lambda: None, lambda _: (left @ right,))]
    milliseconds = [
        statistics.median([gpu.milliseconds(steps) for _ in range(20)][5:]) for steps in (copy, product)
    ]
    return {"TB/s": 2 * source.nbytes / milliseconds[0] / 1e9, "TFLOP/s": 2 * 8192**3 / milliseconds[1] / 1e9}


def surroundings() -> dict[str, Any]:
    """Hardware and versions."""
    properties = torch.cuda.get_device_properties(0)
    settings = "unknown: no nvidia-smi"
    if shutil.which("nvidia-smi"):
        query = [
            "nvidia-smi",
            f"--id=GPU-{properties.uuid}",
            "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit",
            "--format=csv,noheader",
        ]
        settings = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": f"{properties.name}, {properties.multi_processor_count} multiprocessors, "
        f"{properties.total_memory / 1e9:.0f} GB",
        "driver, clock, highest clock, power limit": settings,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": importlib.metadata.version("triton"),
        "peers": {
            name: importlib.metadata.version(PEERS[name][1]) if is_installed(name) else "absent"
            for name in PEERS
        },
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m tests.bench_kernels", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    parser.add_argument(
        "--only", default=",".join(GROUPS), help=f"what to measure, of {','.join(GROUPS)} (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="a fifth of the time, with wider spreads")
    parser.add_argument(
        "--without", default="", help="leave out contenders that begin so (flex: slow to compile)"
    )
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    for name in options.only:
        if name not in GROUPS:
            parser.error(f"--only has {name!r}, must be of {', '.join(GROUPS)}")
    if options.out and not options.out.parent.is_dir():
        parser.error(f"--out: there is no folder {options.out.parent}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if not torch.cuda.is_available():
        print("error: the bench needs an NVIDIA GPU, and torch sees none", file=sys.stderr)
        return 2
    gpu = Gpu()
    report = surroundings() | {"limits": measure_limits(gpu), "cases": []}
    print("\n".join(f"{name}: {value}" for name, value in report.items() if name != "cases"), "", sep="\n")
    failed = False
    for case in all_cases():
        if case.group not in options.only:
            continue
        torch.compiler.reset()
        gpu.clean()
        if options.without:
            kept = {
                name: bind for name, bind in case.contenders.items() if not name.startswith(options.without)
            }
            case = replace(case, contenders=kept)
        rows = run_case(case, gpu, rounds=(5, 500.0) if options.quick else (10, 2500.0))
        compare(rows, case, report["limits"])
        print(table(case, rows), flush=True)
        failed |= any(row["status"] != "ok" for row in rows if row["contender"].startswith("r1ov"))
        report["cases"].append(
            {
                "row": case.row,
                "name": case.name,
                "goal": case.goal,
                "work": case.work,
                "unit": case.unit,
                "rows": rows,
            }
        )
        if options.out:  # after every case: what was measured is kept if a later one breaks the GPU's context
            options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
