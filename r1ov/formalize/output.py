"""The files of a run: train.parquet, stages.jsonl with every row's way, report.md and report.html."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow.parquet import ParquetWriter

from r1ov.common.files import replacing, write_text
from r1ov.errors import UserError
from r1ov.formalize.report import Report
from r1ov.formalize.row import Row, row_to_dict

# The reader takes the one and leaves the other: r1ov.data.formats.files.NOT_DATA.
TRAIN, STAGES = "train.parquet", "stages.jsonl"
ROWS_IN_A_GROUP = 100


def write_outputs(folder: Path, rows: Iterable[Row], facts: Mapping[str, str]) -> None:
    """Writes train.parquet (done rows), stages.jsonl (all), report.md and report.html; each appears when it
    is whole.

    Args:
        rows: in the order in which they are kept; an outcome of None is a row that the run did not reach.
        facts: lines for the report, such as {"data": "playground:rl", "tokens": "12,345"}.
    Raises: UserError if the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {folder}: cannot be made ({error.strerror}); choose another folder"
        ) from error
    report = Report(facts)
    turn = pa.struct([("from", pa.string()), ("value", pa.string())])
    columns = pa.schema([("id", pa.string()), ("image", pa.string()), ("conversations", pa.list_(turn))])
    with (
        replacing(folder / TRAIN) as train,
        replacing(folder / STAGES) as stages,
        ParquetWriter(train, columns) as table,
        # What is not Unicode becomes \udXXX, which JSON reads back as it was.
        stages.open("w", encoding="utf-8", errors="backslashreplace") as lines,
    ):

        def done() -> Iterator[dict[str, Any]]:
            for row in rows:
                lines.write(json.dumps(row_to_dict(row), ensure_ascii=False) + "\n")
                report.add(row)
                if row.outcome == "done":
                    yield row.published()

        kept = done()
        while group := list(islice(kept, ROWS_IN_A_GROUP)):
            table.write_table(pa.Table.from_pylist(group, columns))
    write_text(folder / "report.md", report.markdown())
    write_text(folder / "report.html", report.html())
