"""The files of a run: train.parquet, stages.jsonl with every row's way, and for people report.md and
report.html: counts by stage and kind, reasons, and rows to look at.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
from pyarrow.parquet import ParquetWriter

from r1ov.common.files import replacing, write_text
from r1ov.common.page import Cell, base64_image, html_table, markdown_table, write_page
from r1ov.formalize.rows import OUTCOMES, Row, row_to_dict
from r1ov.formalize.stages import STAGES

# The reader takes the one and leaves the other: r1ov.data.formats.files.NOT_DATA.
TRAIN, STAGES_FILE = "train.parquet", "stages.jsonl"
ROWS_IN_A_GROUP = 100
LOST = OUTCOMES[1:]
SHOWN_OF_EACH = 20  # rows on the page with the same kind, outcome and reason
SHOWN = 300  # rows on the page


def write_outputs(folder: Path, rows: Iterable[Row], facts: Mapping[str, str]) -> None:
    """Writes train.parquet (done rows), stages.jsonl (all), report.md and report.html; each appears when it
    is whole.

    Args:
        rows: in the order in which they are kept; an outcome of None is a row that the run did not reach.
        facts: lines for the report, such as {"data": "playground:rl", "tokens": "12,345"}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts, shown = Counter(), []  # of ("stage", its name, outcome), ...; rows
    turn = pa.struct([("from", pa.string()), ("value", pa.string())])
    columns = pa.schema([("id", pa.string()), ("image", pa.string()), ("conversations", pa.list_(turn))])
    with (
        replacing(folder / TRAIN) as train,
        replacing(folder / STAGES_FILE) as stages,
        ParquetWriter(train, columns) as table,
        # What is not Unicode becomes \udXXX, which JSON reads back as it was.
        stages.open("w", encoding="utf-8", errors="backslashreplace") as lines,
    ):

        def done() -> Iterator[dict]:
            for row in rows:
                lines.write(json.dumps(row_to_dict(row), ensure_ascii=False) + "\n")
                stage, *fault = (row.reason or "").split(": ")
                why = ": ".join([stage, *fault[:1]])[:80]  # "filter: wrong answer"
                if row.outcome and counts["why", why, row.outcome] < SHOWN_OF_EACH and len(shown) < SHOWN:
                    shown.append(row)
                for key in (("row", ""), ("kind", row.kind or "not known"), ("stage", stage), ("why", why)):
                    counts[*key, row.outcome] += 1
                if row.outcome == "done":
                    # The image as base64 of a PNG: every pixel as the stages saw it.
                    image = base64_image(row.image.load()) if row.image else None
                    yield {"id": row.id, "image": image, "conversations": row.conversations}

        kept = done()
        while group := list(islice(kept, ROWS_IN_A_GROUP)):
            table.write_table(pa.Table.from_pylist(group, columns))
    tables = _tables(counts, facts)
    parts = [f"## {title}\n\n{markdown_table(table)}" for title, table in tables.items()]
    write_text(folder / "report.md", "\n\n".join(["# Formalization", *parts]) + "\n")
    head = "".join(f"<h2>{title}</h2>{html_table(table)}" for title, table in tables.items())
    shown.sort(key=lambda row: row.outcome == "done")  # what was rejected comes first
    # Each row counts as four.
    title = f"Formalization: {len(shown)} of {counts.total() // 4} rows, the rejected first"
    write_page(folder / "report.html", title, map(_item, shown), ["kind"], head)


def _tables(counts: Counter, facts: Mapping[str, str]) -> dict[str, list[Sequence[Cell]]]:
    """Returns title -> rows of cells, the head first."""
    done, *lost, missed = (counts["row", "", outcome] for outcome in (*OUTCOMES, None))
    reached = done + sum(lost)
    total, stages = reached + missed, []
    for stage in ("read", *STAGES):
        lost = [counts["stage", stage, outcome] for outcome in LOST]
        stages.append((stage, reached, reached - sum(lost), *lost))
        reached -= sum(lost)
    kinds = sorted({name for what, name, _ in counts if what == "kind"})
    reasons = [(*key[1:], count) for key, count in counts.most_common() if key[0] == "why" and key[1]]
    return {
        "Run": [
            ("fact", "value"),
            ("rows in", total),
            ("rows out", f"{done:,} ({done / max(total, 1):.1%})"),
            ("not reached", missed),
            *facts.items(),
        ],
        "Stages": [("stage", "in", "out", *LOST), *stages],
        "Kinds": [
            ("kind", *OUTCOMES),
            *((kind, *(counts["kind", kind, one] for one in OUTCOMES)) for kind in kinds),
        ],
        "Reasons": [("why", "outcome", "rows"), *reasons],
    }


def _item(row: Row) -> dict:
    """The row as an item of a page."""
    facts = {
        "why": row.reason,
        "description": row.description,
        "thought before role-play": row.thought and row.draft,
        "verdict": ", ".join(f"{name}: {value}" for name, value in row.verdict.items()),
        "notes": "; ".join(row.notes),
    }
    return {
        "id": row.id,
        "question": row.question,
        "gold": row.gold,
        "images": [row.image] if row.image else [],
        "tags": {"kind": [row.kind or "not known"]},
        "samples": [
            {
                "status": row.outcome,
                "thinking": row.thought or row.draft,
                "reply": row.answer,
                "facts": {name: text for name, text in facts.items() if text},
            }
        ],
    }
