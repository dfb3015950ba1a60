"""Scores a model: `python -m r1ov.evaluate --bench playground --split test --limit 1000`."""

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from r1ov.cli import option, parse_cli, run
from r1ov.data.playground import SPLITS
from r1ov.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    bench: Literal["playground"] = option("playground", "which benchmark")
    model: str = option("r1ov-tiny", "model folder, hub name or r1ov-tiny")
    split: str = option("test", f"of the playground: {', '.join(SPLITS)}")
    limit: int = option(1000, "questions, the first ones of the split")
    out: str | None = option(None, "folder for predictions.jsonl and table.md")
    predictions: str | None = option(None, "score this file of `id` and `text`, and run no model")
    swap_pictures: bool = option(False, "control: every question with another question's picture")
    batch_size: int = option(64, "questions answered together")
    max_new_tokens: int = option(256, "longest answer")
    device: str | None = option(None, "default: cuda if there is one, else cpu")
    num_threads: int | None = option(None, "CPU threads; default: torch's own choice")

    def __post_init__(self):
        if self.split not in SPLITS:
            raise UserError(f"--split is {self.split!r}; the playground has {', '.join(SPLITS)}")
        for name in ("limit", "batch_size", "max_new_tokens", "num_threads"):
            if (getattr(self, name) or 1) < 1 or getattr(self, name) == 0:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be 1 or more")
        if self.predictions and not Path(self.predictions).is_file():
            raise UserError(f"--predictions {self.predictions}: no such file")


def evaluate(config: EvaluateConfig) -> None:
    """Prints the table on stdout; with `out`, keeps it there, beside a line for each answer."""
    # torch takes seconds to import: not before the command line is known to be right.
    import torch
    from tqdm import tqdm

    from r1ov import pretrained
    from r1ov.evaluate.playground import answer, rescore, table, write_row

    folder = Path(config.out) if config.out else None
    if folder:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {folder}: cannot be made ({error.strerror}); choose another folder") from error
    if config.predictions:
        rows = rescore(Path(config.predictions))[: config.limit]
    else:
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        model, processor = pretrained.load(config.model, device=config.device)
        questions = answer(model, processor, config.split, config.limit, config.batch_size, config.max_new_tokens, config.swap_pictures)
        rows, right = [], 0.0
        with (folder / "predictions.jsonl").open("w", encoding="utf-8") if folder else nullcontext() as file:
            for row in (progress := tqdm(questions, total=config.limit, unit=" questions", desc=config.split)):
                if file:
                    write_row(file, row)
                rows.append(row)
                right += row.right
                progress.set_postfix_str(f"right {right / len(rows):.1%}")
    text = table(rows)
    if folder:
        (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def main() -> None:
    evaluate(parse_cli(EvaluateConfig, prog="python -m r1ov.evaluate", description=__doc__))


if __name__ == "__main__":
    sys.exit(run(main))
