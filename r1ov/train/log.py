"""What a run shows and keeps: one aligned line a step on stderr, the same numbers in log.jsonl, and curves.png."""

import json
import sys
from pathlib import Path

COLUMNS = {  # metric -> (label, format)
    "loss": ("loss", "{:.4f}"),
    "mean_token_accuracy": ("acc", "{:.3f}"),
    "learning_rate": ("lr", "{:.1e}"),
    "grad_norm": ("gnorm", "{:6.2f}"),
    "step_ms": ("", "{:5.0f} ms"),
    "tokens_per_second": ("", "{:6,.0f} tok/s"),
    "samples_per_second": ("", "{:4.0f} samples/s"),
}


def duration(seconds: float) -> str:
    """Example: 4000 -> "1h07m", 75 -> "1m15s"."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{seconds:02d}s"


def say(text: str = "") -> None:
    print(text, file=sys.stderr, flush=True)


class Log:
    """Writes a run's steps. `rows` holds everything logged so far."""

    def __init__(self, folder: Path, max_steps: int):
        self.folder, self.max_steps, self.rows = folder, max_steps, []
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "log.jsonl").open("w", encoding="utf-8")

    def step(self, metrics: dict[str, float], seconds_left: float) -> None:
        """`metrics` holds `step` and any of TRL's names; those of COLUMNS are shown."""
        self.rows.append(metrics)
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        cells = [f"step {metrics['step']:>{len(str(self.max_steps))}}/{self.max_steps}"]
        for name, (label, shape) in COLUMNS.items():
            if name in metrics:
                cells.append(f"{label} {shape.format(metrics[name])}".strip() if label else shape.format(metrics[name]))
        say(" | ".join([*cells, f"eta {duration(seconds_left)}"]))

    def event(self, metrics: dict) -> None:
        """A row that is not a training step, such as an evaluation; kept in log.jsonl only."""
        self.rows.append(metrics)
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def draw(self) -> Path:
        """Draws curves.png: loss, token accuracy, gradient norm, and held-out accuracy where it was measured."""
        import matplotlib  # slow to import, and only needed here

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        panels = {
            "loss": "loss (nats per token)",
            "mean_token_accuracy": "token accuracy",
            "eval_accuracy": "answers right",
            "grad_norm": "gradient norm",
        }
        panels = {name: title for name, title in panels.items() if any(name in row for row in self.rows)}
        figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3), squeeze=False, layout="constrained")
        for axis, (name, title) in zip(axes[0], panels.items(), strict=True):
            points = [(row["step"], row[name]) for row in self.rows if name in row]
            axis.plot(*zip(*points, strict=True), linewidth=1.2, marker="o" if len(points) < 30 else None, markersize=3)
            axis.set(title=title, xlabel="step")
            axis.grid(alpha=0.3)
            if name in ("loss", "grad_norm"):
                axis.set_yscale("log")
            else:
                axis.set_ylim(0, 1.02)
        path = self.folder / "curves.png"
        figure.savefig(path, dpi=120)
        plt.close(figure)
        return path
