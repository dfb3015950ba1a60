"""What a run shows and keeps: one aligned line a step on stderr, the same numbers in log.jsonl, and
curves.png.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from r1ov.errors import UserError

COLUMNS = {  # metric -> (label, format)
    "reward": ("reward", "{:6.3f}"),
    "rewards/accuracy/mean": ("right", "{:.3f}"),
    "rewards/format/mean": ("formed", "{:.3f}"),
    "loss": ("loss", "{:7.4f}"),
    "mean_token_accuracy": ("acc", "{:.3f}"),
    "kl": ("kl", "{:.4f}"),
    "entropy": ("entropy", "{:.3f}"),
    "completions/mean_length": ("length", "{:4.0f}"),
    "learning_rate": ("lr", "{:.1e}"),
    "grad_norm": ("gnorm", "{:6.2f}"),
    "step_ms": ("", "{:5.0f} ms"),
    "tokens_per_second": ("", "{:6,.0f} tok/s"),
    "rollout_tokens_per_second": ("gen", "{:6,.0f} tok/s"),
    "samples_per_second": ("", "{:4.0f} samples/s"),
    "mfu": ("mfu", "{:.1%}"),
    "memory_gb": ("", "{:5.1f} GB"),
}
PANELS = {  # metric -> title of its curve, for those that were logged
    "loss": "loss (nats per token)",
    "eval_loss": "held-out loss",
    "mean_token_accuracy": "token accuracy",
    "reward": "reward",
    "rewards/accuracy/mean": "completions right",
    "eval_accuracy": "held-out answers right",
    "kl": "KL (nats per token)",
    "entropy": "entropy (nats per token)",
    "completions/mean_length": "tokens of a completion",
    "grad_norm": "gradient norm",
}
ON_LOG_SCALE = ("eval_loss", "grad_norm")
PANELS_A_ROW = 4
FEW = 30  # points that are shown one by one; more get a smoothed line over them


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each value and its neighbours, a tenth of all of them together; fewer at the ends, as many
    on either side.

    Example: 20 values 0, 1, .. 19 -> the same, for a line stays a line
    """
    reach = len(values) // 20
    windows = (
        values[index - near : index + near + 1]
        for index in range(len(values))
        for near in [min(reach, index, len(values) - 1 - index)]
    )
    return [sum(window) / len(window) for window in windows]


def duration(seconds: float) -> str:
    """Example: 4000 -> "1h07m", 75 -> "1m15s"."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{seconds:02d}s"


def say(text: str = "") -> None:
    print(text, file=sys.stderr, flush=True)


class Log:
    """Writes a run's steps. `rows` holds everything logged so far, of an earlier part of the run too."""

    def __init__(self, folder: Path, max_steps: int, step: int = 0, report_to: str = "none"):
        """Args: step: where the run goes on; what an earlier process logged beyond it is forgotten, for it is
        done again.
        """
        self.folder, self.max_steps = folder, max_steps
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        earlier = path.read_text(encoding="utf-8").splitlines() if step and path.exists() else []
        self.rows = [row for line in earlier if (row := _row(line)) and row["step"] <= step]
        rest = path.with_suffix(".tmp")  # a kill in the midst of this must not cost the earlier lines
        rest.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        os.replace(rest, path)
        self._file = path.open("a", encoding="utf-8")
        self._report = _reporter(report_to, folder)

    def step(self, metrics: dict[str, float], seconds_left: float) -> None:
        """`metrics` holds `step` and any of TRL's names; those of COLUMNS are shown."""
        self.event(metrics)
        cells = [f"step {metrics['step']:>{len(str(self.max_steps))}}/{self.max_steps}"]
        for name, (label, shape) in COLUMNS.items():
            if name in metrics:
                cells.append(
                    f"{label} {shape.format(metrics[name])}".strip() if label else shape.format(metrics[name])
                )
        say(" | ".join([*cells, f"eta {duration(seconds_left)}"]))

    def event(self, metrics: dict) -> None:
        """A row that is not a training step, such as an evaluation; not shown."""
        # JSON has neither NaN nor infinity.
        metrics = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in metrics.items()
        }
        self.rows.append(metrics)
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        self._report(metrics)

    def close(self) -> None:
        self._file.close()

    def draw(self) -> Path:
        """Draws curves.png: those of PANELS that were logged, each point and the trend."""
        import matplotlib  # slow to import, and only needed here

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        panels = {
            name: title
            for name, title in PANELS.items()
            if any(row.get(name) is not None for row in self.rows)
        }
        on_log_scale = (
            ON_LOG_SCALE if "reward" in panels else ("loss", *ON_LOG_SCALE)
        )  # GRPO's loss changes its sign
        wide = min(len(panels), PANELS_A_ROW)
        high = math.ceil(len(panels) / wide)
        figure, axes = plt.subplots(
            high, wide, figsize=(4 * wide, 3 * high), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis, (name, title) in zip(axes.flat, panels.items(), strict=False):
            steps, values = zip(
                *((row["step"], row[name]) for row in self.rows if row.get(name) is not None), strict=True
            )
            if len(values) < FEW:
                axis.plot(steps, values, linewidth=1.2, marker="o", markersize=3)
            else:
                axis.plot(steps, values, linewidth=0.7, alpha=0.35)
                axis.plot(steps, smoothed(values), linewidth=1.6, color="C0")
            axis.set(title=title, xlabel="step")
            axis.grid(alpha=0.3)
            if name in on_log_scale and any(value > 0 for value in values):
                axis.set_yscale("log")
            elif "accuracy" in name and name != "rewards/accuracy/mean":
                axis.set_ylim(0, 1.02)
        path = self.folder / "curves.png"
        figure.savefig(path, dpi=120)
        plt.close(figure)
        return path


def _row(line: str) -> dict | None:
    """A line of log.jsonl; None for one that a killed process left half written."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _reporter(report_to: str, folder: Path) -> Callable[[dict], None]:
    """Hands numbers on to TensorBoard or Weights & Biases. Raises: UserError if that is not installed."""
    if report_to == "none":
        return lambda metrics: None
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
    except ImportError as error:
        raise UserError(
            f"--report-to {report_to}: {error}; pip install {report_to}, or leave it out"
        ) from error
    run = wandb.init(project="r1ov", name=folder.name, dir=str(folder), resume="allow")
    return lambda metrics: run.log(metrics, step=metrics["step"])
