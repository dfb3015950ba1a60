"""What a run leaves: train.parquet to train on, stages.jsonl with every row's way, report.md and report.html."""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from r1ov.errors import UserError
from r1ov.formalize.layout import published_row, row_to_dict
from r1ov.formalize.report import Report
from r1ov.formalize.row import Row

# The reader takes the one and leaves the other: r1ov.data.formats.files.NOT_DATA.
TRAIN, STAGES = "train.parquet", "stages.jsonl"
ROWS_IN_A_GROUP = 100


def write_outputs(folder: Path, rows: Iterable[Row], facts: Mapping[str, str]) -> None:
    """Writes train.parquet (done rows), stages.jsonl (all), report.md and report.html; each appears when it
    is whole.

    Args:
        rows: one at a time, in the order they are to be kept; an outcome of None is a row that the run did
            not reach.
        facts: lines for the report, such as {"data": "playground:rl", "tokens": "12,345", "cost": "$1.20"}.
    Raises:  UserError where the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {folder}: cannot be made ({error.strerror}); choose another folder"
        ) from error
    report, group = Report(facts), []
    with ExitStack() as stack:
        table = stack.enter_context(_parquet(_part(folder / TRAIN)))
        # What is not Unicode becomes \udXXX, which JSON reads back as it was.
        lines = stack.enter_context(
            _part(folder / STAGES).open("w", encoding="utf-8", errors="backslashreplace")
        )
        for row in rows:
            lines.write(json.dumps(row_to_dict(row), ensure_ascii=False) + "\n")
            report.add(row)
            group += [published_row(row)] if row.outcome == "done" else []
            if len(group) == ROWS_IN_A_GROUP:
                _write(table, group)
                group = []
        if group:
            _write(table, group)
    _part(folder / "report.md").write_text(report.markdown(), encoding="utf-8", errors="backslashreplace")
    _part(folder / "report.html").write_text(report.html(), encoding="utf-8", errors="backslashreplace")
    for name in (TRAIN, STAGES, "report.md", "report.html"):
        os.replace(_part(folder / name), folder / name)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _schema() -> Any:
    import pyarrow as pa

    turn = pa.struct([("from", pa.string()), ("value", pa.string())])
    return pa.schema([("id", pa.string()), ("image", pa.string()), ("conversations", pa.list_(turn))])


def _parquet(path: Path) -> Any:
    from pyarrow.parquet import ParquetWriter

    return ParquetWriter(path, _schema())


def _write(table: Any, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    table.write_table(pa.Table.from_pylist(rows, schema=_schema()))
