"""The benchmarks: where their data is, how it is read, and what their authors report."""

from collections.abc import Sequence

from r1ov.evaluate.item import Item, Verdict
from r1ov.evaluate.tables import Table


def load_items(bench: str, data: str | None = None, split: str | None = None) -> list[Item]:
    """The items of a benchmark by its name, or of a file of questions by its path. data: file or folder; None: from the hub."""
    raise NotImplementedError


def metrics_of(bench: str, items: Sequence[Item], verdicts: Sequence[Verdict]) -> list[Table]:
    """The benchmark's own metrics beside plain accuracy, one verdict for each item. No table for a benchmark without any."""
    raise NotImplementedError
