"""Rows to items: MathVista, MathVision, MathVerse, We-Math, R1-Onevision-Bench, and files of one's own.

Sources: the columns on the data sets' cards.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from r1ov.data.formats.choices import LETTERS, lettered, listed, take_options, with_options, written
from r1ov.data.formats.columns import MEANING, Columns
from r1ov.data.formats.layouts import read_row
from r1ov.errors import UserError
from r1ov.evaluate.files import Pictures, Row
from r1ov.evaluate.item import Item
from r1ov.reward import KINDS
from r1ov.reward.rules.reading import read_choice

CONCEPTS = "knowledge_structure_nodes.json"
MAX_TAG = 200  # characters
_DRAWN = re.compile(r"<image\s*\d+>")  # an option that is an image, or the place of one in a question

# An Item's fields, and besides them `options`, the texts of the choices, and `sources`, the images.
Fields = dict[str, Any]
Reader = Callable[[Row], Fields]


def read(reader: Reader, rows: Sequence[Row], pictures: Pictures, bench: str, split: str) -> list[Item]:
    """Returns the items of a file's rows. Raises UserError that names the row."""
    cells = {text(row.get("index", row.get("id"))): row.get("image") for row in rows}
    domains = _domains(pictures.folder)
    items = []
    for number, row in enumerate(rows, 1):
        try:
            fields = reader({**row, "domain": domains.get(row.get("knowledge concept"))} if domains else row)
        except KeyError as error:
            raise UserError(
                f"{bench}: row {number}: there is no column {error.args[0]}, only {', '.join(row)}; "
                "is this the right file?"
            ) from None
        except UserError as error:
            raise UserError(f"{bench}: row {number}: {error}") from None
        options, sources = fields.pop("options"), fields.pop("sources")
        for at, source in enumerate(sources):  # an image may be the index of the row that has it
            if isinstance(source, str | int):
                sources[at] = cells.get(str(source)) or source
        if fields["kind"] == "mcq":
            fields |= choice_fields(options, fields["answer"].strip())
        if sources and not fields.get("group"):
            fields["group"] = hashlib.sha256(repr(sources).encode()).hexdigest()[:16]
        fields["id"] = fields["id"] or str(number - 1)
        items.append(Item(bench=bench, split=split, **fields, **pictures.of(sources)))
    return items


def mathvista(row: Row) -> Fields:
    """A gold option is given by its text: it becomes the letter. The test split has no golds."""
    id, options, answer = text(row["pid"]), tuple(row["choices"] or ()), text(row["answer"])
    kind, precision, unit = row["answer_type"], int(row.get("precision") or 0), row.get("unit") or None
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
    return {
        "id": id,
        "question": asked(question, options),
        "answer": answer,
        "kind": {"integer": "number", "float": "number", "list": "tuple"}.get(kind, kind),
        "options": options,
        "is_integer": kind == "integer",
        "precision": precision if kind == "float" else None,
        "unit": unit,
        "raw_query": row.get("query") or None,
        "tags": tags(
            row["metadata"], ("task", "skills", "source", "category", "context", "grade", "language")
        ),
        **_one_picture(row),
    }


def mathvision(row: Row) -> Fields:
    """`<image1>` marks a place in the only image there is."""
    options, question = tuple(map(str, row["options"] or ())), row["question"]
    several = len(set(_DRAWN.findall(question))) > 1
    question = re.sub(r"\s*<image\s*(\d+)>", r" (picture \1)" if several else "", question).strip()
    return {
        "id": text(row["id"]),
        "question": asked(question, options),
        "answer": text(row["answer"]),
        "kind": "mcq" if options else "math",
        "options": options,
        "tags": tags(row, ("level", "subject")),
        **_one_picture(row),
    }


def _one_picture(row: Row) -> Fields:
    """Questions about the same image are one group."""
    path = row["image"]
    return {
        "group": path if isinstance(path, str) else None,
        "sources": [row.get("decoded_image") or path],
    }


def mathverse(row: Row) -> Fields:
    """Options are in the question's text; in Vision Only, question and options are in the image; Text Only
    has no image.
    """
    answer, kind, options = text(row["answer"]), "math", ()
    if row["question_type"] == "multi-choice":
        options = lettered(text(row["question"])) or lettered(text(row.get("question_for_eval")))
        letter = read_choice(answer)
        if letter is None and answer.strip() and answer.strip() in options:
            letter = LETTERS[options.index(answer.strip())]
        kind, answer = ("mcq", letter) if letter else ("text", answer)
    names = ("problem_version", "subject", "subfield", "source", "question_type")
    return {
        "id": text(row["sample_index"]),
        "question": text(row["question"]).strip() or "Answer the question in the picture.",
        "answer": answer,
        "kind": kind,
        "options": options,
        "group": text(row["problem_index"]),
        "raw_query": row.get("query_cot") or None,
        "tags": tags({**row, **(row.get("metadata") or {})}, names),
        "sources": [row["image"]] if row["image"] or row["problem_version"] != "Text Only" else [],
    }


def wemath(row: Row) -> Fields:
    """A composite problem and its one-step ones share the `ID`; `key` says which is which."""
    option = text(row["option"])
    return {
        "id": f"{row['ID']}@{row['key']}",
        "question": f"{row['question']}\n{option}",
        "answer": text(row["answer"]).strip(),
        "kind": "mcq",
        "options": lettered(option),
        "group": text(row["ID"]),
        "tags": tags({**row, "concept": row["knowledge concept"]}, ("key", "concept", "domain")),
        "sources": [row["image_path"]],
    }


def _domains(folder: Path) -> Mapping[str, str | None]:
    """Returns We-Math's {concept: one of twelve domains}, from the file beside the data; {} without it."""
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


def onevision_bench(row: Row) -> Fields:
    """Hint and options are in the question already. Without options, the gold tells the kind of answer."""
    options = listed(row.get("choices"))
    return {
        "id": text(row["index"]),
        "question": text(row["question"]),
        "answer": text(row["answer"]),
        "kind": "mcq" if options else None,
        "options": options,
        "tags": tags(row, ("level", "category")),
        "sources": [row["image"]],
    }


def _listed_images(name: str, cell: Any) -> Any:
    """Returns a list of images that is written as text, as in a TSV."""
    is_list = "image" in name and isinstance(cell, str) and cell.startswith("[")
    return written(cell) if is_list else cell


def generic(row: Row) -> Fields:
    """A row of any layout that training reads (see r1ov/data/formats/layouts.py), or of VLMEvalKit's.

    Besides these columns: precision, unit, group; an image may be the index of the row that has it. Every
    column that is not read becomes a tag.
    """
    kind, precision = row.get("kind") or None, text(row.get("precision")).strip().removesuffix(".0")
    if kind not in (None, *KINDS):
        raise UserError(f"kind is {kind!r}, must be one of {', '.join(KINDS)}")
    if precision and not precision.isdecimal():
        raise UserError(f"precision is {precision!r}, must be a number of decimals")
    record = read_row({name: _listed_images(name, cell) for name, cell in row.items()})
    if record.solution is None:
        raise UserError(f"there is no gold answer, only {', '.join(row)}")
    content = record.prompt[-1]["content"]
    parts = [{"text": content}] if isinstance(content, str) else content
    options = take_options(Columns(row))
    names = [name for name in row if name.lower() in record.unread and name.lower() not in MEANING]
    return {
        "id": record.id,
        "messages": record.prompt,
        "question": "".join(part.get("text", "") for part in parts),
        "answer": record.solution,
        "kind": record.kind or ("mcq" if options else None),
        "options": options,
        "precision": int(precision) if precision else None,
        "unit": row.get("unit") or None,
        "group": text(row.get("group")) or None,
        "tags": tags(row, [name for name in names if name not in ("precision", "unit", "group")]),
        "sources": record.images,
    }


# The options of a multiple-choice question, in the forms in which benchmarks keep them.


def choice_fields(texts: Sequence[str], gold: str = "") -> dict[str, Any]:
    """Returns an Item's `choices`; or `num_choices`, if the options are drawn in the image or the gold's
    letter lies beyond them.
    """
    if not texts:
        return {}
    beyond = LETTERS.find(gold) + 1 if len(gold) == 1 else 0
    are_drawn = [not text.strip() or _DRAWN.fullmatch(text.strip()) for text in texts]
    if any(are_drawn) or beyond > len(texts) or tuple(texts) == tuple(LETTERS[: len(texts)]):
        return {"num_choices": max(len(texts), beyond)}
    return {"choices": tuple(texts)}


def asked(question: str, texts: Sequence[str]) -> str:
    """Returns the question with a line for each option, or with their letters if the image shows them."""
    if "num_choices" in choice_fields(texts):
        return f"{question}\nThe options {', '.join(LETTERS[: len(texts)])} are in the picture."
    return with_options(question, texts)


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
