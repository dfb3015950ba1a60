"""What a run reports: one aligned line per step on stderr, the same numbers in log.jsonl, and curves.png."""

import json
import math
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from operator import mul, sub
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from r1ov.common.files import one_line, say, write_lines
from r1ov.common.memory import plan
from r1ov.common.processes import dtype_name
from r1ov.common.shares import wilson
from r1ov.errors import UserError

WIDTH = 120  # columns of the console
COLUMNS = {  # metric -> how its step shows it; where a line is full, the last are left out
    "reward": "reward {:6.3f}",
    "rewards/accuracy/mean": "right {:.3f}",
    "rewards/format/mean": "formed {:.3f}",
    "loss": "loss {:7.4f}",
    "mean_token_accuracy": "acc {:.3f}",
    "kl": "kl {:.4f}",
    "entropy": "entropy {:.3f}",
    "completions/mean_length": "length {:4.0f}",
    "rollout_tokens_per_second": "gen {:6,.0f} tok/s",
    "learning_rate": "lr {:.1e}",
    "grad_norm": "gnorm {:6.2f}",
    "tokens_per_second": "{:6,.0f} tok/s",
    "mfu": "mfu {:.1%}",
    "memory_gb": "{:5.1f} GB",
    "step_ms": "{:5.0f} ms",
}
LOSS, ANSWERS = "loss (nats per token)", "held-out answers"
TOKENS, FLAT, CUT = "tokens predicted right", "groups that teach nothing", "completions cut off"
SHARES = (TOKENS, ANSWERS, FLAT, CUT)
CURVES = {  # metric -> its panel, and its name where a panel has several curves; the rewards come first
    "loss": (LOSS, "trained"),  # not GRPO's, which is about minus the mean advantage and says nothing
    "eval_loss": (LOSS, "held out"),
    "mean_token_accuracy": (TOKENS, "trained"),
    "eval_mean_token_accuracy": (TOKENS, "held out"),
    "eval_accuracy": (ANSWERS, "right"),
    "eval_format": (ANSWERS, "well-formed"),
    "frac_reward_zero_std": (FLAT, ""),
    "kl": ("KL to the reference (nats per token)", ""),
    "entropy": ("entropy (nats per token)", ""),
    "completions/mean_length": ("tokens of a completion", ""),
    "completions/clipped_ratio": (CUT, ""),
    "grad_norm": ("gradient norm", ""),
}
FEW = 30  # points that are shown one by one; more get a smoothed line over them
PEAK_FLOPS = {  # dense bfloat16 operations a second, by name
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "B200": 2250e12,
}


def smoothed(steps: Sequence[int], values: Sequence[float]) -> tuple[Sequence[int], list[float]]:
    """Each mean of a tenth of all values beside each other, at the step in the middle; none near the ends.

    Example: 20 values 0, 1, .. 19 at these steps -> 1, .. 18 at 1, .. 18
    """
    reach = max(1, len(values) // 20)
    middles = range(reach, len(values) - reach)
    return steps[reach:-reach], [fmean(values[at - reach : at + reach + 1]) for at in middles]


def duration(seconds: float) -> str:
    """Example: 4000 -> "1h07m", 75 -> "1m15s"."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{seconds:02d}s"


def tell(text: str) -> None:
    """Says what may be long, in lines of at most WIDTH; words that are longer, such as paths, stay whole."""
    lines = textwrap.wrap(
        text, WIDTH, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False
    )
    say("\n".join(lines))


def rollout_lines(run: Any) -> list[str]:
    """What GRPO adds to `introduction`."""
    config = run.config
    count = config.train_batch_size * config.steps_per_generation // config.num_generations
    rewards = ", ".join([*config.reward_funcs, *filter(None, [config.reward])])
    kl = f"KL {config.beta:g}" if config.beta else "no KL term"
    lines = [
        f"rollout {count} prompts x {config.num_generations} completions of up to "
        f"{config.max_completion_length} tokens",
        f"grpo    {config.loss_type} loss, {kl}, temperature {config.temperature:g}, rewards {rewards}",
    ]
    if run.processor.encode([{"role": "user", "content": ""}]).opened:
        lines.append(
            "note    the chat template opens <think> in the prompt: it counts as part of every reply"
        )
    if not find_spec("math_verify"):
        lines.append("note    math-verify is not installed: what the exact rules leave open counts as wrong")
    return lines


def introduction(run: Any, rows: str) -> list[str]:
    """What a run is about to do. Args: run: open.py's `Run`. rows: how many the data has, for people."""
    config, size, copies = run.config, run.world.size, run.config.replicate
    total, trained = (sum(map(torch.numel, some)) for some in (run.model.parameters(), run.parameters))
    taken = plan(run.held, run.device, is_training=True)
    learn = "" if trained == total else f", {trained / 1e6:,.2f} M of them learn"
    name = config.model or f"from scratch, as {config.config_name}"
    sharding = "whole in each" if size == 1 else f"sharded over {size // copies}"
    sharding += f", {copies} times" if copies > 1 else ""
    is_grpo = config.stage == "grpo"
    unit = "completions" if is_grpo else "conversations"
    lines = [
        f"{config.stage:<8}{name}, {total / 1e6:,.2f} M parameters{learn}, on {config.data}{rows} "
        f"-> {run.out}/",
        f"run     {run.device}, {dtype_name(run.dtype)}, {run.kernels} kernels, processes: {size}, "
        f"threads of each: {torch.get_num_threads()}, model {sharding}, seed {config.seed}",
        f"memory  {sum(run.held.values()) / 1e9:.2f} GB a process for {', '.join(run.held)}; "
        f"in all, before a step's activations: {taken}",
        f"step    {config.train_batch_size} {unit} in packs of up to {config.max_length:,} tokens, "
        f"{config.optim}, peak learning rate {config.learning_rate:g}, steps: {config.max_steps:,}",
    ]
    if is_grpo:
        lines += rollout_lines(run)
    if run.num_rows and config.train_batch_size * config.steps_per_row >= run.num_rows:
        lines.append(
            f"note    a step takes all {unit} of an epoch; for more steps: --max-steps, --num-train-epochs "
            "or a smaller --train-batch-size"
        )
    if run.changed:
        lines.append(f"note    goes on with other options: {', '.join(run.changed)}")
    if run.step:
        lines.append(f"resume  after step {run.step}, from {run.out}/checkpoints")
    return lines


def gpu_metrics(device: torch.device, dtype: torch.dtype, flops: float) -> dict[str, float]:
    """Peak memory, and the share of the GPU's peak speed where that is known. Args: flops: a second."""
    metrics = {"memory_gb": torch.cuda.max_memory_allocated() / 1e9}
    name = torch.cuda.get_device_name(device)
    peak = next((peak for known, peak in PEAK_FLOPS.items() if known in name), None)
    if peak and flops and dtype == torch.bfloat16:
        metrics["mfu"] = flops / peak
    return metrics


class Log:
    """Writes a run's steps. `rows` holds everything logged so far, also before the run was resumed."""

    def __init__(self, folder: Path, title: str, max_steps: int, step: int = 0, report_to: str = "none"):
        """Args: step: where the run goes on; rows after this step are dropped: those steps are repeated."""
        self.folder, self.title, self.max_steps = folder, title, max_steps
        self._report = _reporter(report_to, folder) if report_to != "none" else None
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        self.rows = _kept(path, step) if step and path.exists() else []
        self._file = path.open("a" if self.rows else "w", encoding="utf-8")

    def step(self, metrics: dict[str, float], seconds_left: float) -> None:
        """`metrics` holds `step` and any of TRL's names; those of COLUMNS are shown."""
        self.event(metrics)
        line = f"step {metrics['step']:>{len(str(self.max_steps))}}/{self.max_steps}"
        end = f" | eta {duration(seconds_left):>6}"
        for name, shape in COLUMNS.items():
            if name in metrics and not (name == "loss" and "reward" in metrics):
                cell = " | " + shape.format(metrics[name])
                line += cell if len(line + cell + end) <= WIDTH else ""
        say(line + end)

    def event(self, metrics: dict) -> None:
        """Writes a row that is not shown, such as an evaluation's."""
        # JSON has neither NaN nor infinity.
        metrics = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in metrics.items()
        }
        self.rows.append(metrics)
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        if self._report:
            self._report(metrics)

    def close(self) -> None:
        self._file.close()
        if len(self.rows) > 1:  # a point makes no curve
            self.draw()

    def draw(self) -> None:
        """Draws curves.png: what was logged of CURVES and of each reward, every point and the trend."""
        import matplotlib  # slow to import, and only needed here

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
        from matplotlib.ticker import LogLocator, MaxNLocator

        panels = self.panels()
        if not panels:
            return
        wide = math.ceil(math.sqrt(len(panels)))
        high = math.ceil(len(panels) / wide)
        size = (4.2 * wide, 2.9 * high + 0.5)
        figure, axes = plt.subplots(high, wide, figsize=size, squeeze=False, layout="constrained")
        figure.suptitle(self.title, fontsize=11)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
            for number, (name, (steps, values, counts)) in enumerate(curves.items()):
                style = {"color": f"C{number}", "label": name}
                if all(counts):
                    steps = [step + number * self.max_steps / 80 for step in steps]  # beside each other
                    right = map(mul, values, counts)
                    lows, highs = zip(*map(wilson, right, counts), strict=True)
                    bars = [list(map(sub, values, lows)), list(map(sub, highs, values))]
                    axis.errorbar(steps, values, bars, marker="o", ms=4, lw=1.4, capsize=3, **style)
                elif len(values) < FEW:
                    axis.plot(steps, values, marker="o", ms=3, lw=1.4, **style)
                else:
                    axis.plot(steps, values, lw=0.7, alpha=0.3, color=style["color"])
                    axis.plot(*smoothed(steps, values), lw=1.8, **style)
            axis.set_title(title, fontsize=10)
            axis.set_xlim(-0.02 * self.max_steps, 1.02 * self.max_steps)
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            if any(curves):
                axis.legend(frameon=False, fontsize=8)
            everything = [value for _, values, _ in curves.values() for value in values]
            if title == LOSS and max(everything) > 5 * min(everything) > 0:
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_minor_formatter("")
            elif title in SHARES:
                axis.set_ylim(-0.03, 1.03)
        figure.supxlabel("step", fontsize=10)
        figure.savefig(self.folder / "curves.png", dpi=120)
        plt.close(figure)

    def panels(self) -> dict[str, dict[str, tuple]]:
        """Panel -> curve -> (steps, values, how many questions each is a share of, or None), where there are
        any.
        """
        names = dict.fromkeys(name for row in self.rows for name in row)
        rewards = {
            name: (f"reward: {name[len('rewards/') : -len('/mean')]}", "")
            for name in names
            if name.startswith("rewards/") and name.endswith("/mean")
        }
        shown = {"reward": ("reward", ""), **rewards, **CURVES}
        panels = {}  # title -> name of a curve -> its points
        for metric, (title, curve) in shown.items():
            counted = "eval_samples" if title == ANSWERS else ""
            points = [
                (row["step"], row[metric], row.get(counted))
                for row in self.rows
                if row.get(metric) is not None
            ]
            found = tuple(zip(*points, strict=True))
            # A reward that is the only one, of weight 1, repeats their sum.
            is_repeated = metric in rewards and panels.get("reward") == {"": found}
            if found and not is_repeated and not (metric == "loss" and "reward" in names):
                panels.setdefault(title, {})[curve] = found
        return panels


def _kept(path: Path, step: int) -> list[dict]:
    """The rows of log.jsonl up to a step, which stay in it: no later one, and no line that a killed process
    left half written.
    """
    rows = []
    for line in path.read_text("utf-8").splitlines():
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= step:
                rows.append(row)
    write_lines(path, rows)
    return rows


def _reporter(report_to: str, folder: Path) -> Callable[[dict], None]:
    """Hands numbers on to TensorBoard or Weights & Biases. Raises: UserError if that cannot be started."""
    try:
        if report_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder / "tensorboard"))
            return lambda metrics: [
                writer.add_scalar(name, value, metrics["step"])
                for name, value in metrics.items()
                if name != "step"
            ]
        import wandb

        run = wandb.init(project="r1ov", name=folder.name, dir=str(folder), resume="allow")
    except Exception as error:  # what cannot be started fails in any way, at import too
        raise UserError(
            f"--report-to {report_to}: {one_line(str(error))}; pip install {report_to}, or leave it out"
        ) from error
    return lambda metrics: run.log(metrics, step=metrics["step"])
