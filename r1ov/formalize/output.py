"""What a run leaves: train.parquet to train on, stages.jsonl with every row's way, report.md and report.html."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

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
    with ExitStack() as stack:
        train = stack.enter_context(_parquet(stack.enter_context(replacing(folder / TRAIN))))
        stages = stack.enter_context(replacing(folder / STAGES))
        # What is not Unicode becomes \udXXX, which JSON reads back as it was.
        lines = stack.enter_context(stages.open("w", encoding="utf-8", errors="backslashreplace"))
        for row in rows:
            lines.write(json.dumps(row_to_dict(row), ensure_ascii=False) + "\n")
            report.add(row)
            if row.outcome == "done":
                train(row.published())
    write_text(folder / "report.md", report.markdown())
    write_text(folder / "report.html", report.html())


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """Yields a function that writes one row."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    turn = pa.struct([("from", pa.string()), ("value", pa.string())])
    columns = [("id", pa.string()), ("image", pa.string()), ("conversations", pa.list_(turn))]
    group: list[dict[str, Any]] = []
    with ParquetWriter(path, pa.schema(columns)) as table:

        def flush() -> None:
            if group:
                table.write_table(pa.Table.from_pylist(group, schema=table.schema))
                group.clear()

        def write(row: dict[str, Any]) -> None:
            group.append(row)
            if len(group) == ROWS_IN_A_GROUP:
                flush()

        yield write
        flush()
