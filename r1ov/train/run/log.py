"""What a run reports: one aligned line per step on stderr, the same numbers in log.jsonl, and curves.png."""

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from r1ov.common.files import write_text
from r1ov.errors import UserError

COLUMNS = {  # metric -> how its step shows it
    "reward": "reward {:6.3f}",
    "rewards/accuracy/mean": "right {:.3f}",
    "rewards/format/mean": "formed {:.3f}",
    "loss": "loss {:7.4f}",
    "mean_token_accuracy": "acc {:.3f}",
    "kl": "kl {:.4f}",
    "entropy": "entropy {:.3f}",
    "completions/mean_length": "length {:4.0f}",
    "learning_rate": "lr {:.1e}",
    "grad_norm": "gnorm {:6.2f}",
    "step_ms": "{:5.0f} ms",
    "tokens_per_second": "{:6,.0f} tok/s",
    "rollout_tokens_per_second": "gen {:6,.0f} tok/s",
    "samples_per_second": "{:4.0f} samples/s",
    "mfu": "mfu {:.1%}",
    "memory_gb": "{:5.1f} GB",
}
PANELS = {  # metric -> title and scale of its curve
    "loss": ("loss (nats per token)", "log"),
    "eval_loss": ("held-out loss", "log"),
    "mean_token_accuracy": ("token accuracy", "share"),
    "reward": ("reward", ""),
    "rewards/accuracy/mean": ("completions right", ""),
    "eval_accuracy": ("held-out answers right", "share"),
    "kl": ("KL (nats per token)", ""),
    "entropy": ("entropy (nats per token)", ""),
    "completions/mean_length": ("tokens of a completion", ""),
    "grad_norm": ("gradient norm", "log"),
}
PANELS_A_ROW = 4
FEW = 30  # points that are shown one by one; more get a smoothed line over them


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each value and its neighbours, a tenth of all values; near the ends fewer, as many on
    either side.

    Example: 20 values 0, 1, .. 19 -> the same, for a line stays a line
    """
    last, reach = len(values) - 1, len(values) // 20
    near = (min(reach, index, last - index) for index in range(len(values)))
    return [fmean(values[index - n : index + n + 1]) for index, n in enumerate(near)]


def duration(seconds: float) -> str:
    """Example: 4000 -> "1h07m", 75 -> "1m15s"."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{seconds:02d}s"


def say(text: str = "") -> None:
    print(text, file=sys.stderr, flush=True)


class Log:
    """Writes a run's steps. `rows` holds everything logged so far, also before the run was resumed."""

    def __init__(self, folder: Path, max_steps: int, step: int = 0, report_to: str = "none"):
        """Args: step: where the run goes on; rows after this step are dropped: those steps are repeated."""
        self.folder, self.max_steps = folder, max_steps
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        earlier = path.read_text(encoding="utf-8").splitlines() if step and path.exists() else []
        self.rows = [row for line in earlier if (row := _row(line)) and row["step"] <= step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._file = path.open("a", encoding="utf-8")
        self._report = _reporter(report_to, folder)

    def step(self, metrics: dict[str, float], seconds_left: float) -> None:
        """`metrics` holds `step` and any of TRL's names; those of COLUMNS are shown."""
        self.event(metrics)
        cells = [f"step {metrics['step']:>{len(str(self.max_steps))}}/{self.max_steps}"]
        for name, shape in COLUMNS.items():
            if name in metrics:
                cells.append(shape.format(metrics[name]))
        say(" | ".join([*cells, f"eta {duration(seconds_left)}"]))

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
        self._report(metrics)

    def close(self) -> None:
        self._file.close()

    def draw(self) -> None:
        """Draws curves.png: those of PANELS that were logged, each point and the trend."""
        import matplotlib  # slow to import, and only needed here

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        curves = {
            name: [(row["step"], row[name]) for row in self.rows if row.get(name) is not None]
            for name in PANELS
        }
        curves = {name: points for name, points in curves.items() if points}
        wide = min(len(curves), PANELS_A_ROW)
        high = math.ceil(len(curves) / wide)
        size = (4 * wide, 3 * high)
        figure, axes = plt.subplots(high, wide, figsize=size, squeeze=False, layout="constrained")
        for axis in axes.flat[len(curves) :]:
            axis.set_visible(False)
        for axis, (name, points) in zip(axes.flat, curves.items(), strict=False):
            title, scale = PANELS[name]
            steps, values = zip(*points, strict=True)
            if len(values) < FEW:
                axis.plot(steps, values, linewidth=1.2, marker="o", markersize=3)
            else:
                axis.plot(steps, values, linewidth=0.7, alpha=0.35)
                axis.plot(steps, smoothed(values), linewidth=1.6, color="C0")
            axis.set(title=title, xlabel="step")
            axis.grid(alpha=0.3)
            if scale == "log" and min(values) > 0:  # the loss of GRPO changes its sign
                axis.set_yscale("log")
            elif scale == "share":
                axis.set_ylim(0, 1.02)
        figure.savefig(self.folder / "curves.png", dpi=120)
        plt.close(figure)


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
