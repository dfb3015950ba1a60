"""A table of the report: named columns, plain cells, ready to be printed as Markdown, CSV or JSON."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[
        tuple[str | float | int | None, ...], ...
    ]  # shares are in [0, 1], counts are ints, None is an empty cell
