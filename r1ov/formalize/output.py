"""What a run leaves: train.parquet to train on, stages.jsonl with every row's way, report.md and report.html."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from r1ov.data.image import LazyImage
from r1ov.formalize.row import Row


def row_to_dict(row: Row) -> dict[str, Any]:
    """All of a row but its picture, of which only the size is kept, as JSON can hold it."""
    raise NotImplementedError


def row_from_dict(values: Mapping[str, Any], image: LazyImage | None = None) -> Row:
    """The inverse, given the picture."""
    raise NotImplementedError


def write_outputs(folder: Path, rows: Iterable[Row], facts: Mapping[str, str]) -> None:
    """Writes train.parquet (done rows), stages.jsonl (all), report.md and report.html; each whole or not at all.

    Args:
        rows: one at a time, in the order they are to be kept; an outcome of None is a row that the run did not reach.
        facts: lines for the report, such as {"data": "playground:rl", "describer": "gpt-x at https://...", "tokens": "12,345", "cost": "$1.20"}.
    """
    raise NotImplementedError
