"""The published rows of MathVista, MathVision, MathVerse and We-Math as items. Sources: the columns on the
data sets' cards.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1ov.errors import UserError
from r1ov.evaluate.files import Pictures, Row, require
from r1ov.evaluate.item import Item
from r1ov.evaluate.options import LETTERS, choice_fields, lettered, with_options
from r1ov.reward.rules.reading import read_letter

CONCEPTS = "knowledge_structure_nodes.json"


def read_mathvista(rows: Sequence[Row], pictures: Pictures, split: str) -> list[Item]:
    """A gold option is given by its text: it becomes the letter. The test split has no golds."""
    require(
        rows,
        ("pid", "question", "image", "choices", "answer", "question_type", "answer_type", "metadata"),
        "mathvista",
    )
    return [_mathvista(row, pictures, split) for row in rows]


def _mathvista(row: Row, pictures: Pictures, split: str) -> Item:
    choices, answer, kind = tuple(row["choices"] or ()), text(row["answer"]), row["answer_type"]
    question = row["question"] + (f" (unit: {row['unit']})" if row.get("unit") else "")
    precision = int(row.get("precision") or 0)
    if row["question_type"] == "multi_choice":
        kind, answer = "mcq", LETTERS[choices.index(answer)] if answer in choices else answer
    elif kind in ("integer", "float", "list"):
        wanted = {
            "integer": "a whole number",
            "float": f"a number with {precision} decimal places",
            "list": "a list such as [1, 2, 3]",
        }
        question += f"\nAnswer with {wanted[kind]}."
    return Item(
        bench="mathvista",
        split=split,
        id=text(row["pid"]),
        question=with_options(question, choices),
        answer=answer,
        kind={"integer": "number", "float": "number", "list": "tuple"}.get(kind, kind),
        is_integer=kind == "integer",
        precision=precision if kind == "float" else None,
        unit=row.get("unit") or None,
        group=row["image"] if isinstance(row["image"], str) else None,
        tags=tags(row["metadata"], ("task", "skills", "source", "category", "context", "grade", "language")),
        raw_query=row.get("query") or None,
        **(choice_fields(choices) if kind == "mcq" else {}),
        **pictures.of([row.get("decoded_image") or row["image"]]),
    )


def read_mathvision(rows: Sequence[Row], pictures: Pictures, split: str) -> list[Item]:
    """`<image1>` marks a place in the only picture there is."""
    require(rows, ("id", "question", "options", "image", "answer", "level", "subject"), "mathvision")
    items = []
    for row in rows:
        options, answer = tuple(map(str, row["options"] or ())), text(row["answer"])
        marks = set(re.findall(r"<image\s*(\d+)>", row["question"]))
        question = re.sub(
            r"\s*<image\s*(\d+)>", r" (picture \1)" if len(marks) > 1 else "", row["question"]
        ).strip()
        items.append(
            Item(
                bench="mathvision",
                split=split,
                id=text(row["id"]),
                question=with_options(question, options),
                answer=answer,
                kind="mcq" if options else "math",
                group=row["image"] if isinstance(row["image"], str) else None,
                tags=tags(row, ("level", "subject")),
                **(choice_fields(options, answer.strip()) if options else {}),
                **pictures.of([row.get("decoded_image") or row["image"]]),
            )
        )
    return items


def read_mathverse(rows: Sequence[Row], pictures: Pictures, split: str) -> list[Item]:
    """Options stand in the question's text; of Vision Only, question and options are in the picture. Text
    Only has no picture.
    """
    require(
        rows,
        ("sample_index", "problem_index", "problem_version", "question", "image", "answer", "question_type"),
        "mathverse",
    )
    return [_mathverse(row, pictures, split) for row in rows]


def _mathverse(row: Row, pictures: Pictures, split: str) -> Item:
    answer, version = text(row["answer"]), row["problem_version"]
    kind, found = "math", {}
    if row["question_type"] == "multi-choice":
        texts = lettered(text(row["question"])) or lettered(text(row.get("question_for_eval")))
        letter = read_letter(answer)
        if letter is None and answer.strip() and answer.strip() in texts:
            letter = LETTERS[texts.index(answer.strip())]
        kind, answer = ("mcq", letter) if letter else ("text", answer)
        found = choice_fields(texts, answer) if letter else {}
    metadata = row.get("metadata") or {}
    return Item(
        bench="mathverse",
        split=split,
        id=text(row["sample_index"]),
        question=text(row["question"]).strip() or "Answer the question in the picture.",
        answer=answer,
        kind=kind,
        group=text(row["problem_index"]),
        tags={
            "problem_version": version,
            **tags(metadata, ("subject", "subfield", "source")),
            "question_type": row["question_type"],
        },
        raw_query=row.get("query_cot") or None,
        **found,
        **(pictures.of([row["image"]]) if row["image"] or version != "Text Only" else {}),
    )


def read_wemath(rows: Sequence[Row], pictures: Pictures, split: str) -> list[Item]:
    """A composite problem and its one-step ones share the `ID`; `key` says which is which."""
    require(rows, ("ID", "key", "question", "option", "answer", "image_path", "knowledge concept"), "wemath")
    parents = _parents(pictures.folder / CONCEPTS)
    items = []
    for row in rows:
        concept, option = row["knowledge concept"], text(row["option"])
        items.append(
            Item(
                bench="wemath",
                split=split,
                id=f"{row['ID']}@{row['key']}",
                question=f"{row['question']}\n{option}",
                answer=text(row["answer"]).strip(),
                kind="mcq",
                group=text(row["ID"]),
                tags={"key": row["key"], "concept": concept}
                | ({"domain": parents[concept]} if concept in parents else {}),
                **choice_fields(lettered(option), text(row["answer"]).strip()),
                **pictures.of([row["image_path"]]),
            )
        )
    return items


def _parents(path: Path) -> dict[str, str]:
    """{concept: the one of twelve domains that it belongs to}, from the file beside the data; {} without it."""
    for place in (path, path.parent.parent / path.name):
        if place.is_file():
            try:
                nodes = json.loads(place.read_text(encoding="utf-8"))
                return {node["full node"].rpartition("_")[2]: node["root2"] for node in nodes}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{place}: expected a list of objects with `full node` and `root2` ({error})"
                ) from error
    return {}


def text(cell: Any) -> str:
    return "" if cell is None else str(cell)


def tags(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, str | tuple[str, ...]]:
    """Those cells that are not empty, as text or as several texts."""
    cells = {name: row.get(name) for name in names}
    return {
        name: tuple(map(str, cell)) if isinstance(cell, list | tuple) else str(cell)
        for name, cell in cells.items()
        if cell not in (None, "", [])
    }
