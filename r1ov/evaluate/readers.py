"""Rows to items: MathVista, MathVision, MathVerse, We-Math, R1-Onevision-Bench, and files of one's own.

Sources: the columns on the data sets' cards.
"""

import ast
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from r1ov.errors import UserError
from r1ov.evaluate.files import Pictures, Row, require
from r1ov.evaluate.item import Item
from r1ov.reward import KINDS
from r1ov.reward.rules.reading import read_choice

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CONCEPTS = "knowledge_structure_nodes.json"
MAX_TAG = 200  # characters
_DRAWN = re.compile(r"<image\s*\d+>")  # an option that is an image, or the place of one in a question

# Takes (rows, the file's folder, the benchmark's name) and yields an Item's fields for each row, and besides
# them `options`, the texts of the choices, and `sources`, its images.
Reader = Callable[[Sequence[Row], Path, str], Iterator[dict[str, Any]]]


def read(reader: Reader, rows: Sequence[Row], pictures: Pictures, bench: str, split: str) -> list[Item]:
    items = []
    for fields in reader(rows, pictures.folder, bench):
        options, sources = fields.pop("options", ()), fields.pop("sources", None)
        if fields["kind"] == "mcq":
            fields |= choice_fields(options, fields["answer"].strip())
        if sources is not None:
            fields |= pictures.of(sources)
        items.append(Item(bench=bench, split=split, **fields))
    return items


def mathvista(rows: Sequence[Row], folder: Path, bench: str) -> Iterator[dict[str, Any]]:
    """A gold option is given by its text: it becomes the letter. The test split has no golds."""
    require(rows, "pid question image choices answer question_type answer_type metadata".split(), bench)
    for row in rows:
        options, answer, kind = tuple(row["choices"] or ()), text(row["answer"]), row["answer_type"]
        precision, unit = int(row.get("precision") or 0), row.get("unit") or None
        wanted = {
            "integer": "a whole number",
            "float": f"a number with {precision} decimal places",
            "list": "a list such as [1, 2, 3]",
        }
        question = row["question"] + (f" (unit: {unit})" if unit else "")
        if row["question_type"] == "multi_choice":
            kind, answer = "mcq", LETTERS[options.index(answer)] if answer in options else answer
        elif kind in wanted:
            question += f"\nAnswer with {wanted[kind]}."
        yield {
            "id": text(row["pid"]),
            "question": with_options(question, options),
            "answer": answer,
            "kind": {"integer": "number", "float": "number", "list": "tuple"}.get(kind, kind),
            "options": options,
            "is_integer": kind == "integer",
            "precision": precision if kind == "float" else None,
            "unit": unit,
            "raw_query": row.get("query") or None,
            "tags": tags(row["metadata"], "task skills source category context grade language".split()),
            **_one_picture(row),
        }


def mathvision(rows: Sequence[Row], folder: Path, bench: str) -> Iterator[dict[str, Any]]:
    """`<image1>` marks a place in the only image there is."""
    require(rows, "id question options image answer level subject".split(), bench)
    for row in rows:
        options, question = tuple(map(str, row["options"] or ())), row["question"]
        several = len(set(_DRAWN.findall(question))) > 1
        question = re.sub(r"\s*<image\s*(\d+)>", r" (picture \1)" if several else "", question).strip()
        yield {
            "id": text(row["id"]),
            "question": with_options(question, options),
            "answer": text(row["answer"]),
            "kind": "mcq" if options else "math",
            "options": options,
            "tags": tags(row, "level subject".split()),
            **_one_picture(row),
        }


def mathverse(rows: Sequence[Row], folder: Path, bench: str) -> Iterator[dict[str, Any]]:
    """Options are in the question's text; in Vision Only, question and options are in the image. Text Only has
    no image.
    """
    require(
        rows, "sample_index problem_index problem_version question image answer question_type".split(), bench
    )
    for row in rows:
        answer, kind, options = text(row["answer"]), "math", ()
        if row["question_type"] == "multi-choice":
            options = lettered(text(row["question"])) or lettered(text(row.get("question_for_eval")))
            letter = read_choice(answer)
            if letter is None and answer.strip() and answer.strip() in options:
                letter = LETTERS[options.index(answer.strip())]
            kind, answer = ("mcq", letter) if letter else ("text", answer)
        yield {
            "id": text(row["sample_index"]),
            "question": text(row["question"]).strip() or "Answer the question in the picture.",
            "answer": answer,
            "kind": kind,
            "options": options,
            "group": text(row["problem_index"]),
            "raw_query": row.get("query_cot") or None,
            "tags": tags(
                {**row, **(row.get("metadata") or {})},
                "problem_version subject subfield source question_type".split(),
            ),
            "sources": [row["image"]] if row["image"] or row["problem_version"] != "Text Only" else None,
        }


def wemath(rows: Sequence[Row], folder: Path, bench: str) -> Iterator[dict[str, Any]]:
    """A composite problem and its one-step ones share the `ID`; `key` says which is which."""
    require(rows, [*"ID key question option answer image_path".split(), "knowledge concept"], bench)
    domains = _domains(folder)
    for row in rows:
        concept, option = row["knowledge concept"], text(row["option"])
        known = {"key": row["key"], "concept": concept, "domain": domains.get(concept)}
        yield {
            "id": f"{row['ID']}@{row['key']}",
            "question": f"{row['question']}\n{option}",
            "answer": text(row["answer"]).strip(),
            "kind": "mcq",
            "options": lettered(option),
            "group": text(row["ID"]),
            "tags": tags(known, known),
            "sources": [row["image_path"]],
        }


def _domains(folder: Path) -> dict[str, str]:
    """Returns {concept: its domain, one of twelve}, from the file beside the data; {} without it."""
    for place in (folder / CONCEPTS, folder.parent / CONCEPTS):
        if place.is_file():
            try:
                nodes = json.loads(place.read_text(encoding="utf-8"))
                return {node["full node"].rpartition("_")[2]: node["root2"] for node in nodes}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{place}: expected a list of objects with `full node` and `root2` ({error})"
                ) from error
    return {}


def onevision_bench(rows: Sequence[Row], folder: Path, bench: str) -> Iterator[dict[str, Any]]:
    """Hint and options are in the question already. Without options, the gold says what kind of answer it is."""
    require(rows, "question answer level category".split(), bench)
    for row, fields in zip(rows, generic(rows, folder, bench), strict=True):
        yield {**fields, "question": text(row["question"])}


_KNOWN = {*LETTERS, *"index id question answer hint choices kind precision unit group".split()}
_PICTURES = ("images", "image", "image_path")


def generic(rows: Sequence[Row], folder: Path, bench: str) -> Iterator[dict[str, Any]]:
    """VLMEvalKit's TSV, or JSON lines, CSV or parquet with its column names.

    Columns: index or id, question, answer; optional: hint, A ... Z or choices, kind, precision, unit, group;
    image (base64, a path, a list of them, or the index of the row that has it), images or image_path. Every
    other column becomes a tag.
    """
    require(rows, "question answer".split(), bench)
    cells = {text(row.get("index", row.get("id"))): row.get("image") for row in rows}
    for number, row in enumerate(rows, 1):
        kind, precision = row.get("kind") or None, text(row.get("precision")).strip().removesuffix(".0")
        if kind not in (None, *KINDS):
            raise UserError(f"{bench}: row {number}: kind is {kind!r}, must be one of {', '.join(KINDS)}")
        if precision and not precision.isdecimal():
            raise UserError(
                f"{bench}: row {number}: precision is {precision!r}, must be a number of decimals"
            )
        letters = [text(row.get(letter)).strip() for letter in LETTERS]
        options = letters[: letters.index("")] if "" in letters else letters
        options = options or listed(row.get("choices"))
        if kind is None and (options or text(row.get("choices")).strip("[] ")):
            kind = "mcq"
        sources = _sources(row, cells)
        shared = hashlib.sha256(repr(sources).encode()).hexdigest()[:16] if sources else None
        question = with_options(text(row["question"]), options)
        yield {
            "id": text(row.get("index")) or text(row.get("id")) or str(number - 1),
            "question": f"{row['hint']}\n{question}" if row.get("hint") else question,
            "answer": text(row["answer"]),
            "kind": kind,
            "options": options,
            "precision": int(precision) if precision else None,
            "unit": row.get("unit") or None,
            "group": text(row.get("group")) or shared,
            "tags": tags(row, [name for name in row if name not in _KNOWN and name not in _PICTURES]),
            "sources": sources,
        }


def _sources(row: Row, cells: Mapping[str, Any]) -> list[Any]:
    """Returns the row's images: a list, one, or those of the row whose index is given instead."""
    given = [row[name] for name in _PICTURES if name in row]
    if not given or given[0] == []:
        return []
    cell = next((cell for cell in given if cell), None)
    for _ in range(2):
        if isinstance(cell, str | int) and cells.get(str(cell)):
            cell = cells[str(cell)]
    if isinstance(cell, str) and cell.startswith("["):
        cell = _written_list(cell) or cell
    return list(cell) if isinstance(cell, list | tuple) else [cell]


def _one_picture(row: Row) -> dict[str, Any]:
    """Questions about the same image are one group."""
    path = row["image"]
    return {
        "group": path if isinstance(path, str) else None,
        "sources": [row.get("decoded_image") or path],
    }


# The options of a multiple-choice question, in the forms in which benchmarks keep them.


def lettered(text: str) -> tuple[str, ...]:
    """Returns the texts after the letters A, B, C ... in one string; () if it has fewer than two.

    Examples: "A. 3 cm;B．4; 5 cm; C: none" -> ("3 cm", "4; 5 cm", "none"); "(A) 1 (B) 2" -> ("1", "2")
    """
    marks, at = [], 0
    for letter in LETTERS:
        mark = re.compile(rf"(?:^|(?<=[\s;；,，]))[(（]?{letter}\s*[.．:：、)）]\s*").search(text, at)
        if not mark:
            break
        marks.append(mark)
        at = mark.end()
    if len(marks) < 2:
        return ()
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return tuple(
        text[mark.end() : end].strip().strip(";；").strip() for mark, end in zip(marks, ends, strict=True)
    )


def listed(cell: Any) -> tuple[str, ...]:
    """Returns the texts of a list of options, also one written as JSON, as Python or with letters."""
    if isinstance(cell, str):
        cell = _written_list(cell) if cell.strip().startswith("[") else lettered(cell)
    return tuple(map(str, cell)) if isinstance(cell, list | tuple) else ()


def _written_list(text: str) -> list[Any] | None:
    """Returns the list written in the text; None if there is none."""
    try:
        found = ast.literal_eval(text.strip())  # reads JSON's lists of strings too, and runs nothing
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def choice_fields(texts: Sequence[str], gold: str = "") -> dict[str, Any]:
    """Returns an Item's `choices`, or `num_choices` if the options are drawn in the image or the gold's letter
    lies beyond them.
    """
    if not texts:
        return {}
    beyond = LETTERS.find(gold) + 1 if len(gold) == 1 else 0
    are_drawn = [not text.strip() or _DRAWN.fullmatch(text.strip()) for text in texts]
    if any(are_drawn) or beyond > len(texts) or tuple(texts) == tuple(LETTERS[: len(texts)]):
        return {"num_choices": max(len(texts), beyond)}
    return {"choices": tuple(texts)}


def with_options(question: str, texts: Sequence[str]) -> str:
    """Returns the question with a line for each option; if they are drawn in the image, with their letters."""
    if "num_choices" in choice_fields(texts):
        return f"{question}\nThe options {', '.join(LETTERS[: len(texts)])} are in the picture."
    return "\n".join(
        [question, *(f"({letter}) {text}" for letter, text in zip(LETTERS, texts, strict=False))]
    )


def text(cell: Any) -> str:
    return "" if cell is None else str(cell)


def tags(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, str | tuple[str, ...]]:
    """Returns the cells that are neither empty nor long, as text or as several texts."""
    found = {}
    for name in names:
        cell = row.get(name)
        if isinstance(cell, str | int | float | list | tuple):
            value = tuple(map(str, cell)) if isinstance(cell, list | tuple) else str(cell)
            if 0 < len("".join(value)) <= MAX_TAG:
                found[name] = value
    return found
