"""Rows to items: the published formats of the benchmarks, and files of one's own.

Sources: the columns on the data sets' cards.
"""

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from r1ov.common.files import shown
from r1ov.data.formats.choices import LETTERS, listed, take_options, with_options, written
from r1ov.data.formats.columns import MEANING, Columns
from r1ov.data.formats.layouts import read_row
from r1ov.data.formats.open_image import lazy_image
from r1ov.data.image import LazyImage
from r1ov.errors import UserError
from r1ov.evaluate.item import Item
from r1ov.reward import KINDS
from r1ov.reward.rules.reading import read_choice

CONCEPTS = "knowledge_structure_nodes.json"
MAX_MEMBER = 2**27  # bytes of an image in a zip
MAX_TAG = 200  # characters
_DRAWN = re.compile(r"<image\s*\d+>")  # an option that is an image, or the place of one in a question

Row = Mapping[str, Any]
# A row -> an Item's fields, and besides them `options`, the texts of the choices, and `sources`, the images.
Reader = Callable[[Row], dict[str, Any]]


def read(reader: Reader, rows: Sequence[Row], pictures: "Pictures", bench: str, split: str) -> list[Item]:
    """Returns the items of a file's rows. Raises UserError that names the row."""
    cells = {text(row.get("index", row.get("id"))): row.get("image") for row in rows}
    domains, items = _domains(pictures.folder), []
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
        # An image may be the index of the row that has it.
        sources = [(isinstance(one, str | int) and cells.get(str(one))) or one for one in sources]
        if fields["kind"] == "mcq":
            fields |= choice_fields(options, fields["answer"].strip())
        if sources and not fields["group"]:  # questions about the same image
            fields["group"] = hashlib.sha256(repr(sources).encode()).hexdigest()[:16]
        fields["id"] = fields["id"] or str(number - 1)
        items.append(Item(bench=bench, split=split, **fields, **pictures.of(sources)))
    return items


def published(
    own: Reader,
    id: str,
    images: Sequence[str] = ("image",),
    options: Sequence[str] = (),
    group: str = "",
    official: str = "",
    tags: Sequence[str] = (),
) -> Reader:
    """Returns the reader of a published benchmark.

    Args: own: what only this benchmark has, from a row to which `options`, the texts, are added. id: a format
        string. images, options: columns; the last image and the first options that are not empty are read.
        official: the prompt's column. tags: columns of the row or of its `metadata`.
    """

    def reader(row: Row) -> dict[str, Any]:
        found = next(filter(None, (listed(row.get(name)) for name in options)), ())
        parts = row.get(group)
        return {
            "id": id.format_map(row),
            "question": text(row["question"]),
            "answer": text(row["answer"]),
            "options": found,
            "sources": [next(filter(None, map(row.get, images[::-1])), row[images[0]])],
            "group": str(parts) if isinstance(parts, str | int) else None,
            "raw_query": row.get(official) or None,
            "tags": tags_of({**row, **(row.get("metadata") or {})}, tags),
            **own({**row, "options": found}),
        }

    return reader


def mathvista(row: Row) -> dict[str, Any]:
    """A gold option is given by its text: it becomes the letter. The test split has no golds."""
    options, answer, kind = row["options"], text(row["answer"]), row["answer_type"]
    precision, unit = int(row.get("precision") or 0), row.get("unit") or None
    number = {"is_integer": kind == "integer", "precision": precision if kind == "float" else None}
    question = row["question"] + (f" (unit: {unit})" if unit else "")
    wanted = {
        "integer": ("number", "a whole number"),
        "float": ("number", f"a number with {precision} decimal places"),
        "list": ("tuple", "a list such as [1, 2, 3]"),
    }
    if row["question_type"] == "multi_choice":
        kind, answer = "mcq", LETTERS[options.index(answer)] if answer in options else answer
    elif kind in wanted:
        kind, form = wanted[kind]
        question += f"\nAnswer with {form}."
    return {
        "question": with_letters(question, options),
        "answer": answer,
        "kind": kind,
        "unit": unit,
        **number,
    }


def mathvision(row: Row) -> dict[str, Any]:
    """`<image1>` marks a place in the only image there is."""
    question = row["question"]
    several = len(set(_DRAWN.findall(question))) > 1
    question = re.sub(r"\s*<image\s*(\d+)>", r" (picture \1)" if several else "", question).strip()
    kind = "mcq" if row["options"] else "math"
    return {"question": with_letters(question, row["options"]), "kind": kind}


def mathverse(row: Row) -> dict[str, Any]:
    """Options are in the question's text; in Vision Only, question and options are in the image; Text Only
    has no image.
    """
    answer, kind, options = text(row["answer"]).strip(), "math", row["options"]
    if row["question_type"] == "multi-choice":
        letter = read_choice(answer) or (LETTERS[options.index(answer)] if answer in options else None)
        kind, answer = ("mcq", letter) if letter else ("text", answer)
    question = text(row["question"]).strip() or "Answer the question in the picture."
    has_none = not row["image"] and row["problem_version"] == "Text Only"
    return {"question": question, "answer": answer, "kind": kind} | ({"sources": []} if has_none else {})


def wemath(row: Row) -> dict[str, Any]:
    """A composite problem and its one-step ones share the `ID`; `key` says which is which."""
    return {
        "question": f"{row['question']}\n{text(row['option'])}",
        "answer": text(row["answer"]).strip(),
        "kind": "mcq",
        "tags": tags_of({**row, "concept": row["knowledge concept"]}, ("key", "concept", "domain")),
    }


def onevision_bench(row: Row) -> dict[str, Any]:
    """Hint and options are in the question already. Without options, the gold tells the kind of answer."""
    return {"kind": "mcq" if row["options"] else None}


def generic(row: Row) -> dict[str, Any]:
    """A row of any layout that training reads (see r1ov/data/formats/layouts.py), or of VLMEvalKit's.

    Besides these columns: precision, unit, group; an image may be the index of the row that has it. Every
    column that is not read becomes a tag.
    """
    kind, precision = row.get("kind") or None, text(row.get("precision")).strip().removesuffix(".0")
    if kind not in (None, *KINDS):
        raise UserError(f"kind is {kind!r}, must be one of {', '.join(KINDS)}")
    if precision and not precision.isdecimal():
        raise UserError(f"precision is {precision!r}, must be a number of decimals")
    # A TSV has a list of images as text.
    lists = {
        name: written(cell)
        for name, cell in row.items()
        if "image" in name and isinstance(cell, str) and cell.startswith("[")
    }
    record = read_row({**row, **lists})
    if record.solution is None:
        raise UserError(f"there is no gold answer, only {', '.join(row)}")
    content = record.prompt[-1]["content"]
    parts = [{"text": content}] if isinstance(content, str) else content
    options = take_options(Columns(row))
    read = {"precision", "unit", "group", *MEANING}
    return {
        "id": record.id,
        "messages": record.prompt,
        "question": "".join(part.get("text", "") for part in parts),
        "answer": record.solution,
        "kind": record.kind or ("mcq" if options else None),
        "options": options,
        "precision": int(precision) if precision else None,
        "unit": row.get("unit") or None,
        "box_unit": record.box_unit,
        "group": text(row.get("group")) or None,
        "tags": tags_of(row, [name for name in row if name.lower() in {*record.unread} - read]),
        "sources": record.images,
    }


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


def with_letters(question: str, texts: Sequence[str]) -> str:
    """Returns the question with a line for each option, or with their letters if the image shows them."""
    if "num_choices" in choice_fields(texts):
        return f"{question}\nThe options {', '.join(LETTERS[: len(texts)])} are in the picture."
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


class Pictures:
    """The images that the rows of one file name: in the row, in a folder or in a zip.

    Args: folder: the file's. inside: images lie in here or in the row.
    """

    def __init__(self, folder: Path, inside: Path):
        self.folder, self.inside = folder, inside.resolve()

    def of(self, sources: Iterable[Any]) -> dict[str, Any]:
        """Returns `images` or `error` of an Item: a missing or broken image is an error, never left out."""
        try:
            return {"images": tuple(map(self._image, sources))}
        except UserError as error:
            return {"error": str(error)}

    def _image(self, source: Any) -> LazyImage:
        if isinstance(source, Mapping):
            source = source.get("bytes") or source.get("path")
        if not source:
            raise UserError("the row has no picture")
        found = lazy_image(source, locate=self._locate)
        # Opened anew when it is needed: what comes from a zip does not stay in memory.
        return LazyImage(found.size, lambda: lazy_image(source, locate=self._locate).load(), found.name)

    def _locate(self, place: str) -> Path | bytes:
        """Returns the file of this path, or its bytes from a zip."""
        if "://" in place:
            raise UserError(f"{shown(place)}: a URL, and nothing is fetched; download it and give its path")
        fault = f"is missing in {self.folder} and in its zips"
        try:
            for folder in (self.folder, self.folder / "images", self.folder.parent):
                if (path := folder / place).is_file():
                    if path.resolve().is_relative_to(self.inside):
                        return path
                    fault = "lies outside the data's folder"
            for archive, member in filter(None, map(self._members.get, _names(Path(place).as_posix()))):
                if archive.getinfo(member).file_size > MAX_MEMBER:
                    raise ValueError(f"larger than {MAX_MEMBER:,} bytes in its zip")
                return archive.read(member)
        except (zipfile.BadZipFile, zlib.error, OSError, ValueError, RuntimeError, EOFError) as error:
            # RuntimeError: encrypted, or links in a ring
            raise UserError(f"{shown(place)}: cannot be read, as a file or from a zip ({error})") from error
        raise UserError(f"{shown(place)}: {fault}")

    @cached_property
    def _members(self) -> dict[str, tuple[zipfile.ZipFile, str]]:
        """{path: its zip and member}"""
        members: dict[str, tuple[zipfile.ZipFile, str]] = {}
        for path in sorted(self.folder.glob("*.zip")):
            try:
                archive = zipfile.ZipFile(path)
            except (OSError, zipfile.BadZipFile) as error:
                raise UserError(f"{path}: not a complete zip file ({error}); download it again") from error
            for member in archive.namelist():
                for name in _names(member):
                    members.setdefault(name, (archive, member))
        return members


def _names(path: str) -> tuple[str, str]:
    """Returns the path, also without its first folder."""
    return path, path.partition("/")[2]
