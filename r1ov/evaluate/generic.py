"""Questions in VLMEvalKit's TSV, or in JSON lines, CSV or parquet with its column names; R1-Onevision-Bench
is such a file.

Columns: index or id, question, answer; optional: hint, A ... Z or choices, kind, precision, unit, group;
image (base64, a path, a list of them, or the index of the row that has it), images or image_path. Every other
column becomes a tag.
"""

import ast
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from r1ov.errors import UserError
from r1ov.evaluate.files import Pictures, Row, require
from r1ov.evaluate.item import Item
from r1ov.evaluate.options import LETTERS, choice_fields, listed, with_options
from r1ov.evaluate.readers import text
from r1ov.reward import KINDS

MAX_TAG = 200
_KNOWN = {
    "index",
    "id",
    "question",
    "answer",
    "hint",
    "choices",
    "kind",
    "precision",
    "unit",
    "group",
    "image",
    "images",
    "image_path",
}


def read_generic(rows: Sequence[Row], pictures: Pictures, split: str, bench: str = "generic") -> list[Item]:
    require(rows, ("question", "answer"), bench)
    cells = {text(row.get("index", row.get("id"))): row.get("image") for row in rows}
    return [_item(number, row, cells, pictures, split, bench) for number, row in enumerate(rows)]


def read_onevision_bench(rows: Sequence[Row], pictures: Pictures, split: str) -> list[Item]:
    """Hint and options are in the question already. Without options, the gold says what kind of answer it is."""
    require(rows, ("question", "answer", "level", "category"), "r1-onevision-bench")
    items = read_generic(rows, pictures, split, "r1-onevision-bench")
    return [replace(item, question=text(row["question"])) for item, row in zip(items, rows, strict=True)]


def _item(
    number: int, row: Row, cells: Mapping[str, Any], pictures: Pictures, split: str, bench: str
) -> Item:
    answer, kind = text(row["answer"]), row.get("kind") or None
    if kind not in (None, *KINDS):
        raise UserError(f"{bench}: row {number + 1}: kind is {kind!r}, must be one of {', '.join(KINDS)}")
    letters = []
    for letter in LETTERS:
        if not text(row.get(letter)).strip():
            break
        letters.append(text(row[letter]).strip())
    choices = letters or listed(row.get("choices") or ())
    index = next((text(row[name]) for name in ("index", "id") if text(row.get(name))), str(number))
    question = with_options(text(row["question"]), choices)
    precision, sources = text(row.get("precision")).strip(), _sources(row, cells)
    if precision and not precision.removesuffix(".0").isdecimal():
        raise UserError(
            f"{bench}: row {number + 1}: precision is {precision!r}, must be a number of decimals"
        )
    is_mcq = kind == "mcq" or (kind is None and bool(choices or text(row.get("choices")).strip("[] ")))
    return Item(
        bench=bench,
        split=split,
        id=index,
        question=f"{row['hint']}\n{question}" if row.get("hint") else question,
        answer=answer,
        kind="mcq" if is_mcq else kind,
        precision=int(float(precision)) if precision else None,
        unit=row.get("unit") or None,
        group=text(row.get("group")) or _shared(sources),
        tags={name: _tag(cell) for name, cell in row.items() if _is_tag(name, cell)},
        **(choice_fields(choices, answer.strip()) if is_mcq else {}),
        **pictures.of(sources),
    )


def _is_tag(name: str, cell: Any) -> bool:
    return (
        name not in _KNOWN
        and name not in LETTERS
        and isinstance(cell, str | int | float | list)
        and 0 < len(_flat(cell)) <= MAX_TAG
    )


def _tag(cell: Any) -> str | tuple[str, ...]:
    return tuple(map(str, cell)) if isinstance(cell, list) else str(cell)


def _flat(cell: Any) -> str:
    return "".join(map(str, cell)) if isinstance(cell, list) else str(cell)


def _shared(sources: Sequence[Any]) -> str | None:
    """The same for questions about the same picture."""
    return hashlib.sha256(repr(sources).encode()).hexdigest()[:16] if sources else None


def _sources(row: Row, cells: Mapping[str, Any]) -> list[Any]:
    given = [row[name] for name in ("images", "image", "image_path") if name in row]
    if not given or given[0] == []:
        return []
    cell = next((cell for cell in given if cell), None)
    # a row that shares another's picture gives that row's index instead
    for _ in range(2):
        if isinstance(cell, str | int) and cells.get(str(cell)):
            cell = cells[str(cell)]
    if isinstance(cell, str) and cell.startswith("["):
        try:
            cell = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [cell]
    return list(cell) if isinstance(cell, list | tuple) else [cell]
