"""All that one short visit to a GPU should bring home, in two runs.

    python -m tests.gpu_session A [--out FILE]      # at most nine minutes
    python -m tests.gpu_session B                   # two and a half more
    python -m tests.gpu_session A B --rehearse      # every step here, at toy size
    python -m tests.gpu_session table               # README's rows from the results

Each step is a process of its own with a time limit; this one never touches CUDA, so that nothing a step does
to the GPU reaches the next. A step's outcome is a JSON line, written before the next begins: {step, status,
seconds, results}. What fails, or takes too long, says so in its line and stops nothing; after a family of
kernels whose first launch fails, what builds on it runs in the torch form.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FAMILIES = ("attention", "windows", "decode", "logprobs", "pointwise")
RESULTS = ROOT / "kernels/results/session.jsonl"


@dataclass(frozen=True)
class Step:
    """A command and its limit.

    Attributes:
        words: what follows `python`. OUT stands for a JSON file that the command writes.
        rehearsed: what is run in its place where there is no GPU; None: there is nothing to rehearse.
        family: of kernels, whose smoke must have been clear; else `--kernels torch` is added.
        beside: it is started with the step before, and not after it.
    """

    run: str
    name: str
    limit: int
    words: str
    rehearsed: str | None
    family: str | None = None
    beside: bool = False
    environment: dict[str, str] = field(default_factory=dict)


KERNEL_TESTS = " ".join(
    f"tests/test_kernels_{name}.py"
    for name in ("triton_attention", "triton_decode", "triton_logprobs", "triton_pointwise", "model")
)
OURS = "-m tests.gpu_session "
KERNELS = "-m tests.bench_kernels --quick --out OUT --only "
SFT, GRPO = "-m tests.bench_train_gpu --out OUT ", "-m tests.bench_grpo_gpu --repeats 1 --out OUT "
SFT_3B, SFT_TINY = "--release 3B --tokens 8192", "--release tiny --tokens 512 --repeats 1 --device cpu"
GRPO_TINY = "--release tiny --prompts 2 --generations 2 --tokens 8 --device cpu"
STEPS = [
    Step("A", "facts", 40, OURS + "facts", OURS + "facts"),
    *(
        Step("A", f"smoke {family}", 70, OURS + f"smoke {family}", OURS + f"smoke {family}", beside=index > 0)
        for index, family in enumerate(FAMILIES)
    ),
    Step("A", "tests", 100, f"-m pytest -q -x -n 12 {KERNEL_TESTS}",
         "-m pytest -q -x tests/test_kernels_triton_decode.py -k refused"),
    Step("A", "tune", 80, "-m tests.tune_kernels --out OUT",
         "-m tests.tune_kernels --rehearse --only windows"),
    Step("A", "attention", 90, KERNELS + "attention --without flex", None),
    Step("A", "logprobs", 50, KERNELS + "logprobs", None),
    Step("A", "small", 30, KERNELS + "small", None),
    Step("A", "decode", 30, KERNELS + "decode", None),
    *(
        Step("A", f"engine {rows}", 45, OURS + f"engine 3B {rows} 64",
             OURS + "engine tiny 2 8" if rows == 16 else None, family="decode")
        for rows in (1, 16, 128)
    ),
    *(
        Step("A", f"engine 7B {rows}", 50, OURS + f"engine 7B {rows} 64", None, family="decode")
        for rows in (1, 16, 128)
    ),
    Step("A", "sft", 75, SFT + SFT_3B + " --only selective", SFT + SFT_TINY + " --only selective",
         family="attention"),
    Step("A", "grpo", 75, GRPO + "--tokens 128 --only r1ov", GRPO + GRPO_TINY + " --only r1ov",
         family="attention"),
    Step("B", "sft, transformers", 60, SFT + SFT_3B + " --only transformers",
         SFT + SFT_TINY + " --only transformers"),
    Step("B", "generate, transformers", 50, GRPO + "--tokens 64 --only transformers",
         GRPO + GRPO_TINY + " --only transformers"),
    *(
        Step("B", f"decode {release}, transformers", 60, OURS + f"peer {release} 64",
             OURS + "peer tiny 8" if release == "3B" else None)
        for release in ("3B", "7B")
    ),
    Step("B", "out of bounds", 60, OURS + "sanitize attention", None),
]  # fmt: skip


# What the steps of this file do, each in a process of its own


def facts() -> dict[str, Any]:
    """The machine: names, versions, and what its copy, its products and its launches reach."""
    import torch

    found = {"torch": torch.__version__, "python": sys.version.split()[0], "cores": os.cpu_count()}
    small = torch.zeros(1)
    if torch.cuda.is_available():
        from tests.bench_kernels import Gpu, measure_limits, surroundings

        small = small.cuda()
        found |= surroundings() | {"limits": measure_limits(Gpu())}
    begun = time.perf_counter()
    for _ in range(1000):
        small.add_(1)
    return found | {"microseconds a launch on the host": 1000 * (time.perf_counter() - begun)}


def smoke(family: str) -> dict[str, float]:
    """Each kernel of a family once, ragged, forward and backward, beside its torch form in float64: the
    largest error of each result relative to its largest value.
    """
    import torch

    import kernels
    from kernels import pointwise

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = (
        torch.bfloat16 if device == "cuda" else torch.float32
    )  # the interpreter's bfloat16 is not to be trusted
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    lengths = [1, 63, 130] if device == "cuda" else [1, 9, 34]
    cu = torch.tensor([0, *lengths]).cumsum(0).int().to(device)
    tokens = sum(lengths)
    if family in ("attention", "windows"):
        heads, dim, causal = (4, 128, True) if family == "attention" else (2, 80, False)
        inputs = draw(tokens, heads, dim), draw(tokens, 2, dim), draw(tokens, 2, dim)
        longest = None if causal else 64
        if longest:
            cu = torch.arange(0, tokens + 64, 64, device=device).clamp(max=tokens).int()

        def call(q, k, v, impl):
            return kernels.attention(q, k, v, cu, causal, max_seqlen=longest, impl=impl)
    elif family == "decode":
        inputs = draw(3, 4, 128), draw(3, 2, 40, 128), draw(3, 2, 40, 128)
        seen = torch.tensor([1, 40, 17], device=device)

        def call(q, k, v, impl):
            return kernels.decode_attention(q, k, v, seen, impl=impl)
    elif family == "pointwise":
        inputs = draw(tokens, 256), draw(tokens, 256), draw(256)
        angle = draw(tokens, 64).repeat(1, 2)

        def call(x, residual, weight, impl):
            total, normed = pointwise.add_rms_norm(x, residual, weight, 1e-6, impl=impl)
            turned = pointwise.rotate(normed.unflatten(1, (2, 128)), angle.cos(), angle.sin(), impl=impl)
            return pointwise.silu_mul(turned.flatten(1), total, impl=impl)
    else:
        inputs = draw(tokens, 64), draw(500, 64)
        targets = torch.arange(tokens, device=device) % 500

        def call(hidden, weight, impl):
            return torch.stack(kernels.token_logprobs(hidden, weight, targets, 0.7, True, impl))

    def results(inputs: tuple, impl: str) -> list:
        leaves = [x.detach().clone().requires_grad_(family != "decode") for x in inputs]
        out = call(*leaves, impl)
        if family == "decode":
            return [out]
        return [out, *torch.autograd.grad(out.double().square().sum(), leaves)]

    exact = results(tuple(x.double() for x in inputs), "torch")
    ours = results(inputs, "triton")
    errors = [(a.double() - b).abs().max() / b.abs().max() for a, b in zip(ours, exact, strict=True)]
    worst = torch.stack(errors).max().item()
    assert worst <= (2e-2 if dtype == torch.bfloat16 else 1e-4), f"off by {worst:.1e}"
    return {"largest error": worst}


def shape(release: str) -> dict[str, Any]:
    """config.json of a published release, or of r1ov-tiny."""
    from r1ov.folder.pretrained import resolve
    from tests.test_published_shapes import published_config

    if release == "tiny":
        return json.loads((resolve("r1ov-tiny") / "config.json").read_text())
    return published_config(release)


def engine(release: str, rows: int, tokens: int) -> dict[str, float]:
    """Milliseconds of a decoding step of `rows` rows as the engine runs it; on a GPU, where it is recorded,
    also as it is without; the time that its kernels take on the device, how often something was launched, and
    the peak memory.
    """
    import torch

    from r1ov.common.processes import choose_kernels
    from r1ov.engine import decode, graph, prepare
    from r1ov.folder.pretrained import config_from_dict, read_processor, resolve
    from r1ov.folder.weights import init_weights
    from r1ov.model.model import Qwen2_5_VL
    from tests.bench_grpo_gpu import never_ending, prompts_of

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_tiny = release == "tiny"
    config = config_from_dict(shape(release))
    choose_kernels(None, device)
    with torch.device("meta"):
        model = Qwen2_5_VL(config).to(torch.float32 if is_tiny else torch.bfloat16)
    model = model.to_empty(device=device).eval()
    init_weights(model, torch.Generator(device=device).manual_seed(0))
    processor = never_ending(read_processor(resolve("r1ov-tiny")), config)
    prompts = prompts_of(config, rows, *((48, 8) if is_tiny else (320, 32)), torch.Generator().manual_seed(0))

    def answer(seed: int, tokens: int = tokens):
        plan = prepare(processor, prompts, max_new_tokens=tokens, num_samples=1, seed=seed, temperature=1.0)
        return decode(model, processor, plan)

    def measured() -> tuple[float, float]:
        times = [answer(repeat)[1] for repeat in range(3)]
        return times[-1].prefill_seconds, min(1000 * time.decode_seconds / (tokens - 1) for time in times[1:])

    found = dict(zip(("prefill s", "ms a step"), measured(), strict=True))
    if device.type == "cuda":
        from torch.profiler import ProfilerActivity, profile

        found["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
        made = [row.token_ids for row in answer(0)[0]]
        graph.RECORDED = "nothing"
        found["ms a step, not recorded"] = measured()[1]
        found["equal rows"] = sum(mine == row.token_ids for mine, row in zip(made, answer(0)[0], strict=True))
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as report:
            answer(0, 8)
        averages = report.key_averages()
        found["ms on the device, 8 tokens and prefill"] = (
            sum(a.self_device_time_total for a in averages) / 1000
        )
        found["launches"] = sum(a.count for a in averages if a.key == "cudaLaunchKernel")
    return found


def peer(release: str, tokens: int) -> dict[str, float]:
    """Milliseconds a token of transformers' `generate`, the prefill taken off, at each number of rows."""
    import torch

    from r1ov.folder.pretrained import config_from_dict
    from tests.bench_grpo_gpu import prompts_of, theirs

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found, raw = {}, shape(release)
    for rows in (2,) if release == "tiny" else (1, 16, 128):
        sizes = (48, 8) if release == "tiny" else (320, 32)
        prompts = prompts_of(config_from_dict(raw), rows, *sizes, torch.Generator().manual_seed(0))
        one, all_ = (
            theirs(raw, prompts, argparse.Namespace(tokens=most, generations=1, repeats=1), device)
            for most in (1, tokens)
        )
        found[f"ms a step, {rows} rows"] = 1000 * (all_ - one) / (tokens - 1)
    return found


def sanitize(family: str) -> dict[str, Any]:
    """The smoke of a family under NVIDIA's memory checker."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"compute-sanitizer": "absent"}
    command = [tool, "--tool", "memcheck", sys.executable, "-m", "tests.gpu_session", "smoke", family]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {"status": done.returncode, "told": done.stdout[-400:]}


PARTS: dict[str, Callable] = {
    "facts": facts,
    "smoke": smoke,
    "engine": engine,
    "peer": peer,
    "sanitize": sanitize,
}


def table() -> str:
    """README's rows, from the newest line of each step in the results."""
    if not RESULTS.exists():
        return "Not measured yet."
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    newest = {line["step"]: line["results"] for line in lines if line["status"] == "ok" and line["results"]}
    where = newest.get("facts", {})
    told = [
        f"{where.get('hardware', '?')}, torch {where.get('torch', '?')}, {where.get('date', '?')[:10]}",
        "",
    ]
    told += ["| what | measured |", "|---|---:|"]
    for step, found in newest.items():
        for case in found.get("cases", ()):
            ours = case["rows"][0]
            if "milliseconds" in ours:
                peers = [
                    row for row in case["rows"] if "ratio" in row and not row["contender"].startswith("r1ov")
                ]
                best = min(peers, key=lambda row: row["milliseconds"], default=None)
                versus = f", {best['ratio']:.2f} x {best['contender']}" if best else ""
                told.append(f"| {case['row']} {case['name']} | {ours['rate']:.3g} {case['unit']}{versus} |")
        for name, value in (found | found.get("tokens_per_second", {})).items():
            if isinstance(value, int | float) and step != "facts":
                told.append(f"| {step}: {name} | {value:,.4g} |")
        for name, case in found.get("results", {}).items():
            told.append(f"| {step}: {name} | {case['seconds']:.3f} s a step, {case['peak_gb']:.1f} GB |")
    return "\n".join(told)


# The session


def start(words: str, out: Path, environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *(str(out) if word == "OUT" else word for word in words.split())],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def outcome(process: subprocess.Popen, step: Step, out: Path, begun: float) -> dict[str, Any]:
    """A step's line: what it wrote to its file, or else the JSON that it printed last."""
    try:
        told, complaints = process.communicate(timeout=max(1, step.limit - (time.monotonic() - begun)))
        status = "ok" if process.returncode == 0 else f"exit {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        told, complaints = process.communicate()
        status = f"over its {step.limit} s"
    results: Any = None
    if out.exists():
        results = json.loads(out.read_text())
    elif told.strip().splitlines()[-1:] and told.strip().splitlines()[-1].startswith("{"):
        results = json.loads(told.strip().splitlines()[-1])
    line = {
        "step": step.name,
        "status": status,
        "seconds": round(time.monotonic() - begun, 1),
        "results": results,
    }
    if status != "ok":
        line["told"] = (told[-300:] + complaints[-1200:]).strip()
    return line


def play(runs: list[str], rehearse: bool, results: Path) -> list[dict[str, Any]]:
    """Every step of these runs in order; their lines, which are in the file by then."""
    lines, failed = [], set()
    with tempfile.TemporaryDirectory() as folder, results.open("a", encoding="utf-8") as file:
        steps = [step for step in STEPS if step.run in runs and not (rehearse and step.rehearsed is None)]
        while steps:
            batch = [steps.pop(0)]
            while steps and steps[0].beside:
                batch.append(steps.pop(0))
            begun, processes = time.monotonic(), []
            for index, step in enumerate(batch):
                words = step.rehearsed if rehearse else step.words
                if step.family in failed and "--kernels" not in words and "tests.bench" in words:
                    words += " --kernels torch"
                out = Path(folder) / f"{len(lines)}-{index}.json"
                processes.append((start(words, out, step.environment), step, out))
            for process, step, out in processes:
                line = outcome(process, step, out, begun)
                if line["status"] != "ok" and step.name.startswith("smoke"):
                    failed.add(step.name.removeprefix("smoke "))
                lines.append(line)
                file.write(json.dumps(line) + "\n")
                file.flush()
                print(f"{line['step']:24}{line['status']:16}{line['seconds']:8.1f} s", flush=True)
    return lines


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["table"]:
        print(table())
        return 0
    if arguments and arguments[0] in PARTS:
        name, *values = arguments
        print(json.dumps(PARTS[name](*(int(value) if value.isdigit() else value for value in values))))
        return 0
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_session", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", choices=["A", "B"])
    parser.add_argument("--rehearse", action="store_true", help="at toy size, on a CPU")
    parser.add_argument("--out", type=Path, default=RESULTS, help="lines are added to this file")
    options = parser.parse_args(arguments)
    if not options.rehearse and shutil.which("nvidia-smi") is None:
        print("error: no NVIDIA GPU here; --rehearse plays every step at toy size", file=sys.stderr)
        return 2
    lines = play(options.runs, options.rehearse, options.out)
    return 1 if options.rehearse and any(line["status"] != "ok" for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
