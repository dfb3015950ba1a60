"""A row, what it looks like as JSON and as training data, and where rows come from: whatever r1ov.data reads,
and the playground with its truths.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from r1ov.data.formats.files import find_files
from r1ov.data.formats.onevision import clean
from r1ov.data.formats.reader import Reader
from r1ov.data.formats.records import BadRow, text_of
from r1ov.data.image import LazyImage
from r1ov.data.playground import invent, paint
from r1ov.data.playground.scene import SIZE
from r1ov.errors import UserError

MAX_PIXELS = 50_000_000  # of an image; several are open at a time
OUTCOMES = ("done", "rejected", "failed")
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
    draft: str | None = None  # the thought over the description
    thought: str | None = None  # the draft rewritten as if its writer saw the image
    answer: str | None = None
    verdict: Mapping = field(default_factory=dict)
    notes: Sequence[str] = field(default_factory=list)  # such as: no detector installed, so no boxes
    outcome: str | None = None  # one of OUTCOMES
    reason: str | None = None

    @property
    def conversations(self) -> list[dict[str, str]]:
        """The two turns as R1-Onevision's data has them, except that the answer is in `<answer>` tags."""
        question = f"<image>\n{self.question}" if self.image else self.question
        reply = f"<think>{self.thought.strip()}</think>\n<answer>{self.answer.strip()}</answer>"
        return [{"from": "human", "value": question}, {"from": "assistant", "value": reply}]


def row_to_dict(row: Row) -> dict:
    """Returns all of a row but its image, for JSON; `Row(**values, image=image)` is the inverse."""
    return {name: value for name, value in vars(row).items() if name != "image"}


class Rows:
    """The rows of `playground[:split]`, a file, a folder or a hub data set, in order and with unique ids; a
    bad row has the outcome "failed".

    Raises: UserError for data that cannot be opened, or an endless playground without a limit.
    """

    def __init__(self, data: str, limit: int | None = None):
        name, _, split = data.partition(":")
        if name == "playground":
            split = split or "rl"
            if split not in TRAINABLE:
                raise UserError(
                    f"--data {data[:60]!r}: expected playground:{' or playground:'.join(TRAINABLE)}; the "
                    "other splits are held out"
                )
            if limit is None:
                raise UserError("--data playground has no end; give --limit N")
            self._total, self._row = limit, partial(_drawn, split)
        else:
            reader = Reader(find_files(data))
            self._total, self._row = min(len(reader), limit or len(reader)), partial(_read, reader)

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[Row]:
        seen = Counter()
        for number in range(self._total):
            row = self._row(number)
            name = row.id
            while seen[name]:
                seen[row.id] += 1
                name = f"{row.id}#{seen[row.id]}"
            seen[name] += 1
            yield replace(row, id=name)


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


def _read(reader: Reader, number: int) -> Row:
    """Returns one question about one image, or about none."""
    item, (which, place) = reader[number], reader.place(number)
    file = reader.files[which]
    # The source's name, as in R1-Onevision's data: the folder if there are several, else the file.
    folder = file.path.parent
    tag = folder.name if folder != file.inside else file.path.stem
    name = f"{file.path.stem}-{place + 1}"
    if isinstance(item, BadRow):
        why = f"read: {item.reason}: {item.detail.replace(f': {item.reason}', '', 1)}"
        return Row(id=name, question="", tag=tag, outcome="failed", reason=why)
    users = [message["content"] for message in item.prompt if message["role"] == "user"]
    question, images = text_of(users[0]).strip(), item.images
    try:
        gold = item.solution or clean(item).solution  # in which a reply of one of the published layouts ends
    except BadRow:
        gold = None
    faults = {
        "more than one question": len(users) > 1,
        "more than one picture": len(images) > 1,
        "the question is empty": not question,
        "the picture is too large": any(math.prod(image.size) > MAX_PIXELS for image in images),
        "no gold answer to check against": gold is None,
    }
    why = next((f"read: {fault}: {item.where}" for fault, is_so in faults.items() if is_so), None)
    return Row(
        id=(item.id or name).encode("utf-8", "replace").decode(),
        question=question,
        image=images[0] if images else None,
        gold=gold,
        answer_kind=item.kind,
        tag=tag,
        notes=["its system text is left out"] * (item.prompt[0]["role"] == "system"),
        outcome="failed" if why else None,
        reason=why,
    )
