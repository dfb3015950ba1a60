"""The report's tables and files: Markdown for people, JSON and CSV for programs."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1ov.common.files import replacing, write_json, write_text
from r1ov.common.page import markdown_table

Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]  # shares are floats in [0, 1], counts are ints, None is an empty cell


def markdown(table: Table) -> str:
    """Returns the table in GitHub's Markdown, numbers to the right; `low` and `high` become one column."""
    rows = [list(table.columns), *([_shown(value) for value in row] for row in table.rows)]
    is_text = [any(isinstance(row[at], str) for row in table.rows) for at in range(len(table.columns))]
    aligned = ["---" if text else "---:" for text in is_text]
    if "low" in table.columns:
        at = table.columns.index("low")
        del aligned[at]
        for row in rows:
            row[at : at + 2] = [f"{row[at]} to {row[at + 1]}"]
        rows[0][at] = "95% interval"
    return markdown_table(rows, aligned)


def _shown(value: Cell) -> str:
    if isinstance(value, float):
        return f"{value:.1%}"
    return "" if value is None else str(value)


def write_report(folder: Path, title: str, tables: Sequence[Table], settings: Mapping[str, Any]) -> None:
    """Writes report.md, report.json and report.csv: the same tables, in the last two with all digits."""
    flat = {**settings, **settings.get("run", {}), "run": None}
    rows = tuple((name, str(value)) for name, value in flat.items() if value is not None)
    tables = [*tables, Table("settings", ("setting", "value"), rows)]
    parts = [f"# {title}", *(f"## {table.title}\n\n{markdown(table)}" for table in tables)]
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    plain = [
        {"title": table.title, "rows": [dict(zip(table.columns, row, strict=True)) for row in table.rows]}
        for table in tables
    ]
    write_json(folder / "report.json", {"title": title, "settings": dict(settings), "tables": plain})
    with (
        replacing(folder / "report.csv") as path,
        path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("table", "row", "column", "value"))
        for table in tables:
            for row in table.rows:
                cells = zip(table.columns[1:], row[1:], strict=True)
                writer.writerows((table.title, row[0], column, value) for column, value in cells)
