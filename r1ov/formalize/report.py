"""The files of a run: train.parquet, stages.jsonl with every row's way, and for people report.md and
report.html: counts by stage and kind, reasons, and rows to look at.
"""

import html
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow.parquet import ParquetWriter

from r1ov.common.files import replacing, write_text
from r1ov.common.page import markdown_table, page, picture
from r1ov.errors import UserError
from r1ov.formalize.rows import Row, row_to_dict
from r1ov.formalize.stages import STAGES

# The reader takes the one and leaves the other: r1ov.data.formats.files.NOT_DATA.
TRAIN, STAGES_FILE = "train.parquet", "stages.jsonl"
ROWS_IN_A_GROUP = 100
LOST = ("rejected", "failed")
OUTCOMES = ("done", *LOST)
SHOWN_OF_EACH = 4  # rows on the page with the same kind, outcome and reason
SHOWN = 60  # rows on the page
Tables = dict[str, list[list[str]]]  # title -> rows of cells, the head first


_STYLE = """
:root{color-scheme:light dark;--ink:#1f2430;--quiet:#5c6573;--line:#dde1e7;--box:#f4f6f8;--paper:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7ec;--quiet:#9aa4b1;--line:#343b46;--box:#1e232b;--paper:#14171c}}
body{max-width:72em;color:var(--ink);background:var(--paper);overflow-wrap:anywhere}
h2{font-size:1.1em;margin:2em 0 .4em}h3{font-size:1em;margin:0;display:flex;flex-wrap:wrap;gap:.3em .7em}
h3 span{color:var(--quiet);font-weight:400}h3 .badge{color:#fff;font-size:12px;font-weight:600;border-radius:3px}
.badge{padding:.05em .6em;align-self:center}
.done{background:#23803f}.rejected{background:#b93c31}.failed{background:#8a6100}
.tables{display:flex;flex-wrap:wrap;gap:0 3em}
table{border-collapse:collapse;font-size:14px}td{padding:.3em .9em .3em 0;border-bottom:1px solid var(--line)}
td{vertical-align:top;text-align:right;font-variant-numeric:tabular-nums;overflow-wrap:normal}td+td{padding-left:.9em}
td:first-child,.facts td{text-align:left;overflow-wrap:anywhere}.facts td:first-child,thead{color:var(--quiet)}
.facts td:first-child{white-space:nowrap}
section{border-color:var(--line);padding:1.4em 0}section>div{flex:1;min-width:0}section p{margin:.4em 0}
section>img{border:1px solid var(--line);border-radius:4px}
.numbers,summary{color:var(--quiet);font-size:13px}summary{cursor:pointer}
pre{background:var(--box);overflow-wrap:anywhere;font-size:13.5px}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(22em,100%),1fr));gap:0 1em}
@media(max-width:45em){section{display:block}section>img{margin-bottom:.8em}}
"""


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
    counts: Counter[tuple[str, str, str]] = Counter()  # (kind, outcome, stage and fault)
    notes: Counter[str] = Counter()
    shown: list[Row] = []
    turn = pa.struct([("from", pa.string()), ("value", pa.string())])
    columns = pa.schema([("id", pa.string()), ("image", pa.string()), ("conversations", pa.list_(turn))])
    with (
        replacing(folder / TRAIN) as train,
        replacing(folder / STAGES_FILE) as stages,
        ParquetWriter(train, columns) as table,
        # What is not Unicode becomes \udXXX, which JSON reads back as it was.
        stages.open("w", encoding="utf-8", errors="backslashreplace") as lines,
    ):

        def done() -> Iterator[dict[str, Any]]:
            for row in rows:
                lines.write(json.dumps(row_to_dict(row), ensure_ascii=False) + "\n")
                why = ": ".join((row.reason or "").split(": ")[:2])[:80]  # "filter: wrong answer"
                alike = row.kind or "not known", row.outcome or "not reached", why
                if row.outcome and counts[alike] < SHOWN_OF_EACH and len(shown) < SHOWN:
                    shown.append(row)
                counts[alike] += 1
                notes.update({note.split(":")[0] for note in row.notes})
                if row.outcome == "done":
                    yield row.published()

        kept = done()
        while group := list(islice(kept, ROWS_IN_A_GROUP)):
            table.write_table(pa.Table.from_pylist(group, columns))
    facts, tables = _facts(counts, facts), _tables(counts, notes)
    write_text(folder / "report.md", _markdown(facts, tables))
    shown.sort(key=lambda row: row.outcome == "done")  # what was rejected comes first
    write_text(folder / "report.html", _page(facts, tables, shown))


def _facts(counts: Counter, facts: Mapping[str, str]) -> dict[str, str]:
    outcomes: Counter[str] = Counter()
    for (_, outcome, _), count in counts.items():
        outcomes[outcome] += count
    share = outcomes["done"] / max(outcomes.total(), 1)
    numbers = {"rows in": f"{outcomes.total():,}", "rows out": f"{outcomes['done']:,} ({share:.1%})"}
    if missed := outcomes["not reached"]:
        numbers["not reached"] = f"{missed:,}"
    return numbers | {name: " ".join(text.split()) for name, text in facts.items()}


def _tables(counts: Counter, notes: Counter[str]) -> Tables:
    kinds, lost, reasons = Counter(), Counter(), Counter()
    for (kind, outcome, why), count in counts.items():
        kinds[kind, "in"] += count
        kinds[kind, outcome] += count
        if outcome in LOST:
            lost[why.split(":")[0], outcome] += count
            reasons[why, outcome] += count
    stages = []
    entered = sum(count for (_, outcome), count in kinds.items() if outcome in OUTCOMES)
    for stage in ("read", *STAGES):
        numbers = [lost[stage, outcome] for outcome in LOST]
        left = entered - sum(numbers)
        stages.append((stage, entered, left, *numbers))
        entered = left
    columns = ("in", *OUTCOMES)
    names = sorted({kind for kind, _ in kinds})
    tables = {
        "Stages": [("stage", "in", "out", *LOST), *stages],
        "Kinds": [("kind", *columns), *((name, *(kinds[name, one] for one in columns)) for name in names)],
        "Reasons": [("why", "outcome", "rows"), *((*key, count) for key, count in reasons.most_common())],
        "Notes": [("note", "rows"), *notes.most_common(12)],
    }
    return {
        title: [[cell if isinstance(cell, str) else f"{cell:,}" for cell in row] for row in table]
        for title, table in tables.items()
        if len(table) > 1
    }


def _markdown(facts: Mapping[str, str], tables: Tables) -> str:
    lines = [
        f"- {name}: {html.escape(text, quote=False)}".replace("|", "\\|") for name, text in facts.items()
    ]
    parts = [f"## {title}\n\n{markdown_table(rows)}" for title, rows in tables.items()]
    return "\n\n".join(["# Formalization", "\n".join(lines), *parts]) + "\n"


def _page(facts: Mapping[str, str], tables: Tables, rows: Iterable[Row]) -> str:
    parts = [f"<div><h2>{title}</h2>{_table(head, lines)}</div>" for title, (head, *lines) in tables.items()]
    parts = ['<div class="facts">', _table([], facts.items()), '</div><div class="tables">', *parts, "</div>"]
    return page("Formalization", "\n".join([*parts, "<h2>Rows</h2>", *map(_section, rows)]), _STYLE)


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head, *lines = (
        "<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells) for cells in (head, *lines)
    )
    return f"<table><thead>{head}<tbody>{''.join(lines)}</table>"


def _section(row: Row) -> str:
    image = picture(row.image.load()) if row.image and row.outcome != "failed" else ""
    rewritten = row.thought if row.thought != row.draft else None
    words = {True: "yes", False: "no"}
    verdict = " · ".join(f"{key}: {words.get(value, value)}" for key, value in row.verdict.items())
    small = [f"gold answer: {row.gold or 'none'}", *row.notes, *[f"verdict {verdict}"] * bool(verdict)]
    name, question = html.escape(row.id), html.escape(row.question)
    return (
        f"<section>{image}<div><h3>{name} <span>{html.escape(row.kind or 'kind not known')}</span>"
        f'<span class="badge {row.outcome}">{row.outcome}</span></h3><p>{question}</p>'
        + _block("why", row.reason, "wrong")
        + _block(f"description, {row.description_format}", row.description)
        + '<div class="two">'
        + _block("thought before role-play" if rewritten else "thought", row.draft)
        + _block("thought after role-play", rewritten)
        + "</div>"
        + _block("answer", row.answer, "right" if row.outcome == "done" else "")
        + "".join(f'<p class="numbers">{html.escape(line)}</p>' for line in small)
        + "</div></section>"
    )


def _block(label: str, text: str | None, style: str = "") -> str:
    """Returns a text under its label; a long description is folded."""
    if not text:
        return ""
    state = "" if label.startswith("description") and len(text) > 600 else "open"
    return (
        f"<details {state}><summary>{html.escape(label)}</summary>"
        f'<pre class="{style}">{html.escape(text)}</pre></details>'
    )
