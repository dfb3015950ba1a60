"""A row, what it looks like as JSON and as training data, and where rows come from: whatever r1ov.data reads,
and the playground with its truths.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from r1ov.common.page import base64_image
from r1ov.data.formats.files import DataFile, find_files
from r1ov.data.formats.onevision import clean
from r1ov.data.formats.reader import Reader
from r1ov.data.formats.records import BadRow, Record
from r1ov.data.image import LazyImage
from r1ov.data.playground import invent, paint
from r1ov.data.playground.scene import SIZE
from r1ov.errors import UserError

MAX_PIXELS = 50_000_000  # of an image; several are open at a time
TRAINABLE = ("rl", "train")  # splits of the playground


@dataclass(frozen=True, kw_only=True)
class Row:
    """An image and a question on their way to a training conversation; each stage returns a new row that
    knows more.

    `outcome`: None on the way; "done", "rejected" (by a rule or the judge) or "failed" (a model gave no
    usable answer), with `reason` saying why.
    """

    id: str
    question: str
    image: LazyImage | None = None  # None: text only
    gold: str | None = None
    answer_kind: str | None = None  # how the gold is compared: r1ov.reward.accuracy.KINDS
    tag: str | None = None  # what the data says of its kind or source
    truth: Mapping[str, str] = field(default_factory=dict)  # known without a model: description, reasoning
    kind: str | None = None  # by route: chart | scene | text | mixed | math | text_only
    description: str | None = None
    description_format: str | None = None  # CSV, JSON, Mermaid, ...
    draft: str | None = None  # the thought over the description
    thought: str | None = None  # the draft rewritten as if its writer saw the image
    answer: str | None = None
    verdict: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()  # such as: no detector installed, so no boxes
    outcome: Literal["done", "rejected", "failed"] | None = None
    reason: str | None = None

    @property
    def conversations(self) -> list[dict[str, str]]:
        """The two turns as R1-Onevision's data has them, except that the answer is in `<answer>` tags."""
        thought, answer = ((text or "").strip() for text in (self.thought, self.answer))
        question = ("<image>\n" if self.image else "") + self.question
        reply = f"<think>{thought}</think>\n<answer>{answer}</answer>"
        return [{"from": "human", "value": question}, {"from": "assistant", "value": reply}]

    def published(self) -> dict[str, Any]:
        """Returns the row in R1-Onevision's columns. The image is base64 of a PNG: upright, RGB, every pixel
        as the stages saw it.
        """
        image = base64_image(self.image.load()) if self.image else None
        return {"id": self.id, "image": image, "conversations": self.conversations}


def row_to_dict(row: Row) -> dict[str, Any]:
    """Returns all that JSON can hold of a row; of its image that is the size."""
    values = dict(vars(row))
    image = values.pop("image")
    return values | {"image_size": image and list(image.size)}


def row_from_dict(values: Mapping[str, Any], image: LazyImage | None = None) -> Row:
    """The inverse, given the image. Raises: TypeError for a key that a row does not have."""
    values = {**values, "image": image, "notes": tuple(values.get("notes", ()))}
    values.pop("image_size", None)
    return Row(**values)


def read_rows(data: str, limit: int | None = None) -> Iterator[Row]:
    """Returns the rows of `playground[:split]`, a file, a folder or a hub data set, with unique ids; a bad
    row has the outcome "failed".

    Raises: UserError, before the first row, for data that cannot be opened or an endless playground without a
        limit.
    """
    name, _, split = data.partition(":")
    if name != "playground":
        readers = [(file, Reader([file], lazy=True)) for file in find_files(data)]
        rows = (
            _row(reader[number], file, number) for file, reader in readers for number in range(len(reader))
        )
        return _named_once(islice(rows, limit))
    split = split or "rl"
    if split not in TRAINABLE:
        raise UserError(
            f"--data {data[:60]!r}: expected playground:{' or playground:'.join(TRAINABLE)}; the other "
            "splits are held out"
        )
    if limit is None:
        raise UserError("--data playground has no end; give --limit N")
    return (_drawn(split, number) for number in range(limit))


def count_rows(data: str, limit: int | None = None) -> int:
    """Returns how many rows `read_rows` gives. Raises: UserError, as `read_rows`."""
    if data.partition(":")[0] == "playground":
        read_rows(data, limit)
        return limit
    total = sum(len(Reader([file])) for file in find_files(data))
    return total if limit is None else min(total, limit)


def _drawn(split: str, number: int) -> Row:
    """Returns a sample with what is true of it: its reasoning too, though samples of "rl" come without."""
    family, scene = invent(split, number, seed=0)
    return Row(
        id=f"playground-{split}-{number}",
        question=scene.question,
        image=LazyImage((SIZE, SIZE), partial(paint, scene)),
        gold=scene.answer,
        answer_kind=scene.kind,
        tag=family,
        truth={"description": scene.description, "reasoning": scene.reasoning},
    )


def _row(item: Record | BadRow, file: DataFile, number: int) -> Row:
    """Returns one question about one image, or about none."""
    # The source's name, as in R1-Onevision's data: the folder if there are several, else the file.
    inside = Path(file.path).parent
    tag = inside.name if inside != Path(file.inside) else file.path.stem
    name = f"{file.path.stem}-{number + 1}"
    if isinstance(item, BadRow):
        why = f"read: {item.reason}: {item.detail.replace(f': {item.reason}', '', 1)}"
        return Row(id=name, question="", tag=tag, outcome="failed", reason=why)
    users = [message["content"] for message in item.prompt if message["role"] == "user"]
    question, images = users[0], item.images
    if not isinstance(question, str):
        question = "\n".join(part["text"] for part in question if part["type"] == "text")
    width, height = images[0].size if images else (0, 0)
    try:
        gold = item.solution or clean(item).solution  # in which a reply of one of the published layouts ends
    except BadRow:
        gold = None
    why, found = None, ""
    if len(users) > 1:
        why, found = "more than one question", f", {len(users)} of them"
    elif len(images) > 1:
        why, found = "more than one picture", f", {len(images)} of them"
    elif not question.strip():
        why = "the question is empty"
    elif width * height > MAX_PIXELS:
        why, found = "the picture is too large", f", {width} x {height} pixels, the limit is {MAX_PIXELS:,}"
    elif gold is None:
        why = "no gold answer to check against"
    return Row(
        id=(item.id or name).encode("utf-8", "replace").decode(),
        question=question.strip(),
        image=images[0] if images else None,
        gold=gold,
        answer_kind=item.kind,
        tag=tag,
        notes=("its system text is left out",) if item.prompt[0]["role"] == "system" else (),
        outcome="failed" if why else None,
        reason=why and f"read: {why}: {item.where}{found}",
    )


def _named_once(rows: Iterator[Row]) -> Iterator[Row]:
    """Gives a number to an id that was there before."""
    seen: Counter[str] = Counter()
    for row in rows:
        name = row.id
        while seen[name]:
            seen[row.id] += 1
            name = f"{row.id}#{seen[row.id]}"
        seen[name] += 1
        yield replace(row, id=name)
