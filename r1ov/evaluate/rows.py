"""Rows to items: the published formats of the benchmarks, and files of one's own.

Sources: the columns on the data sets' cards.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from r1ov.common.files import digest, say
from r1ov.data.formats.choices import LETTERS, labelled, take_options, with_options
from r1ov.data.formats.columns import MEANING, Columns, is_place
from r1ov.data.formats.layouts import read_row
from r1ov.data.formats.pictures import lazy_picture
from r1ov.data.formats.records import counted, text_of
from r1ov.errors import UserError
from r1ov.evaluate.item import Item
from r1ov.evaluate.report import Metric
from r1ov.reward import KINDS
from r1ov.reward.accuracy import kind_of
from r1ov.reward.rules.boxes import NO_BOX, SEVERAL, is_marked, score_boxes
from r1ov.reward.rules.reading import read_choice

FILES = ("{split}-*.parquet", "{split}.parquet", "{split}.jsonl", "{split}.json", "{split}.tsv")
IMAGES = ("decoded_image", "image", "image_path")  # the first that is not empty is read
MAX_TAG = 200  # characters
_DRAWN = r"<image\s*\d+>"  # an option that is an image, or the place of one in a question

Row = Mapping


class Benchmark(NamedTuple):
    """One benchmark: where it is, what its columns mean, and what is reported of it.

    counts: items of each known split, the default one first. files: patterns of their names, best first. id:
    a format string. options: columns of the choices' texts, of which the first that is not empty is read;
    every row with some is multiple choice. official: the prompt's column. tags: columns of the row or of its
    `metadata`. own: what only this benchmark has, from a row and its options to fields of an Item.
    """

    name: str
    counts: Mapping[str, int | None]
    metrics: Sequence[Metric]
    hub: str | None = None
    files: Sequence[str] = FILES
    id: str = "{index}"
    options: str = ""
    group: str = ""
    official: str = ""
    tags: str = ""
    own: Callable[[Row, Sequence[str]], dict] = lambda row, options: {}

    def read(self, row: Row) -> dict:
        """Returns an Item's fields, and besides them `options`, and `sources`, the images."""
        if self.hub is None:
            return own_row(row)
        found = (labelled(row.get(name)) for name in self.options.split())
        options = tuple(next(filter(None, found), {}).values())
        return {
            "id": self.id.format_map(row),
            "question": text(row["question"]),
            "answer": text(row["answer"]),
            "kind": "mcq" if options else None,
            "options": options,
            "sources": [next(filter(None, map(row.get, IMAGES)), None)],
            "group": text(row.get(self.group)),
            "raw_query": row.get(self.official) or None,
            "tags": tags_of({**row, **(row.get("metadata") or {})}, self.tags.split()),
            **self.own(row, options),
        }


def mathvista(row: Row, options: Sequence[str]) -> dict:
    """A gold option is given by its text: it becomes the letter. The test split has no golds."""
    answer, kind, question = text(row["answer"]), row["answer_type"], row["question"]
    if unit := row.get("unit"):
        question += f" (unit: {unit})"
    if row["question_type"] == "multi_choice":
        letter = LETTERS[options.index(answer)] if answer in options else answer
        return {"question": with_letters(question, options), "answer": letter}
    precision = int(row.get("precision") or 0)
    forms = {
        "integer": ("number", "a whole number"),
        "float": ("number", f"a number with {precision} decimal places"),
        "list": ("tuple", "a list such as [1, 2, 3]"),
    }
    how = {"is_integer": kind == "integer", "precision": precision if kind == "float" else None}
    if kind in forms:
        kind, form = forms[kind]
        question += f"\nAnswer with {form}."
    return {"question": question, "kind": kind, **how}


def mathvision(row: Row, options: Sequence[str]) -> dict:
    """`<image1>` marks a place in the only image there is."""
    question = row["question"]
    several = len(set(re.findall(_DRAWN, question))) > 1
    question = re.sub(r"\s*<image\s*(\d+)>", r" (picture \1)" if several else "", question).strip()
    return {"question": with_letters(question, options), "kind": "mcq" if options else "math"}


def mathverse(row: Row, options: Sequence[str]) -> dict:
    """Options are in the question's text; in Vision Only, question and options are in the image; Text Only
    has no image.
    """
    answer, kind = text(row["answer"]).strip(), "math"
    if row["question_type"] == "multi-choice":
        letter = read_choice(answer) or (LETTERS[options.index(answer)] if answer in options else None)
        kind, answer = ("mcq", letter) if letter else ("text", answer)
    question = text(row["question"]).strip() or "Answer the question in the picture."
    has_none = not row["image"] and row["problem_version"] == "Text Only"
    return {"question": question, "answer": answer, "kind": kind} | ({"sources": []} if has_none else {})


def wemath(row: Row, options: Sequence[str]) -> dict:
    """A composite problem and its one-step ones share the `ID`; `key` says which is which."""
    key = row["key"]
    steps = {"2steps_multi": "two-step (S2)", "3steps_multi": "three-step (S3)"}.get(key, "one-step (S1)")
    return {
        "question": f"{row['question']}\n{text(row['option'])}",
        "answer": text(row["answer"]).strip(),
        "kind": "mcq",
        "tags": {"key": key, "steps": steps, "concept": row["knowledge concept"]},
    }


def own_row(row: Row) -> dict:
    """Reads a row of any layout that training reads (see r1ov/data/formats/layouts.py), or of VLMEvalKit's.

    A column `group` says which questions depend on each other; short columns that are not read become tags,
    `unread` names the others.
    """
    if (kind := row.get("kind") or None) not in (None, *KINDS):
        raise UserError(f"kind is {kind!r}, must be one of {', '.join(KINDS)}")
    record = read_row(row)
    if record.solution is None:
        raise UserError(f"there is no gold answer, only {', '.join(row)}")
    options = tuple(take_options(Columns(row)).values())
    tags = tags_of(row, [name for name in row if name.lower() in {*record.unread} - {"group", *MEANING}])
    return {
        "id": record.id,
        "messages": record.prompt,
        "question": text_of(record.prompt[-1]["content"]),
        "answer": record.solution,
        "kind": record.kind or ("mcq" if options else None),
        "options": options,
        "box_unit": record.box_unit,
        "group": text(row.get("group")),
        "tags": tags,
        "unread": {*record.unread} - {"group", *map(str.lower, tags)},
        "sources": record.images,
    }


def items_of(bench: Benchmark, split: str, rows: Sequence[Row], folder: Path, inside: Path) -> list[Item]:
    """Returns the items of a file's rows. Raises UserError that names the row.

    Args: folder: the file's; its images lie in `inside`, or in the rows.
    """
    cells = {text(row.get("index", row.get("id"))): row.get("image") for row in rows}
    folders, items, unread = (folder, folder / "images", folder / split), [], Counter()
    for number, row in enumerate(rows, 1):
        try:
            fields = bench.read(row)
        except KeyError as error:
            raise UserError(
                f"{bench.name}: row {number}: there is no column {error.args[0]}, only {', '.join(row)}; "
                "is this the right file?"
            ) from None
        except UserError as error:
            raise UserError(f"{bench.name}: row {number}: {error}") from None
        options, sources = fields.pop("options"), fields.pop("sources")
        unread.update(fields.pop("unread", ()))
        # An image may be the index of the row that has it.
        sources = [(isinstance(one, str | int) and cells.get(str(one))) or one for one in sources]
        if fields["kind"] == "mcq":
            fields["choices"] = choices_of(options, fields["answer"].strip())
        if sources and not fields["group"]:  # questions about the same image
            fields["group"] = digest(repr(sources))
        fields["id"] = fields["id"] or str(number - 1)
        try:  # a missing or broken image is an error, never left out
            images = []
            for one in sources:  # in its row, or in the first of the folders that has it
                has_it = (it for it in folders if is_place(one) and os.path.exists(it / one))
                images.append(lazy_picture(one, next(has_it, folder), inside))
            fields["images"] = tuple(images)
        except UserError as error:
            fields["error"] = str(error)
        gold, sizes = fields["answer"], {one.size for one in fields.get("images", ())}
        if (kind := fields["kind"] or kind_of(gold)) in ("bbox", "boxes") or is_marked(gold):
            if score_boxes(gold, gold, kind) is None:
                fields["error"] = f"the gold answer {NO_BOX}"
            elif len(sizes) > 1:
                fields["error"] = SEVERAL
        items.append(Item(bench=bench.name, split=split, **fields))
    if unread:
        say(f"{bench.name}: not read: {counted(unread)}")
    return items


def choices_of(texts: Sequence[str], gold: str = "") -> tuple[str, ...]:
    """Returns the options' texts; their letters, if they are drawn in the image or the gold's letter lies
    beyond them.
    """
    beyond = LETTERS.find(gold) + 1 if len(gold) == 1 else 0
    are_drawn = any(not text.strip() or re.fullmatch(_DRAWN, text.strip()) for text in texts)
    if texts and (are_drawn or beyond > len(texts)):
        return tuple(LETTERS[: max(len(texts), beyond)])
    return tuple(texts)


def with_letters(question: str, texts: Sequence[str]) -> str:
    """Returns the question with a line for each option, or with their letters if the image shows them."""
    letters = tuple(LETTERS[: len(texts)])
    if texts and choices_of(texts) == letters:
        return f"{question}\nThe options {', '.join(letters)} are in the picture."
    return with_options(question, texts)


def text(cell: Any) -> str:
    return "" if cell is None else str(cell)


def tags_of(row: Row, names: Iterable[str]) -> dict[str, str | tuple[str, ...]]:
    """Returns the cells that are neither empty nor long, as text or as several texts."""
    found = {}
    for name in names:
        cell = row.get(name)
        if isinstance(cell, str | int | float | list | tuple):
            value = tuple(map(str, cell)) if isinstance(cell, list | tuple) else str(cell)
            if 0 < len("".join(value)) <= MAX_TAG:
                found[name] = value
    return found
