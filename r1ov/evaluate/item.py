"""A question, an answer, the verdict on it: the records that every benchmark shares, and files of them."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from r1ov.data.formats.records import BadRow
from r1ov.data.formats.rows import open_rows
from r1ov.data.image import LazyImage
from r1ov.data.messages import Messages
from r1ov.errors import UserError

UNREAD = ("unparsed", "truncated", "error")  # methods without an answer; they score 0


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question of a benchmark.

    `error` says why it cannot be asked (a missing image, say): such an item is never shown to the model,
    scores 0 and stays in the denominator.
    """

    bench: str
    split: str
    id: str  # unique within the split
    question: str  # as it is sent, without our prompt around it
    messages: Messages | None = None  # the conversation it ends, with places for the images; None: it alone
    images: Sequence[LazyImage] = ()
    answer: str  # the gold, as stored
    kind: str | None = None  # of r1ov.reward.accuracy.KINDS, from the data's type columns; None: by the gold
    choices: Sequence[str] = ()  # texts of the options, or their letters, if only these are known
    is_integer: bool = False  # a number that must be whole
    precision: int | None = None  # decimals that count, for numbers
    box_unit: str | None = None  # what the gold's boxes are measured in: `boxes.Frame`
    group: str | None = None  # items of one group are not independent: intervals are clustered by it
    tags: Mapping[str, str | Sequence[str]] = field(default_factory=dict)  # what the report groups by
    raw_query: str | None = None  # the official prompt, where the data has one
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One answer to an item: a line of predictions.jsonl. Other people's files need only `id` and `text`."""

    id: str
    text: str
    sample: int = 0  # 0 .. k-1 with --num-samples k
    finish_reason: str = "stop"  # stop | length | error
    completion_tokens: int = 0
    prompt_hash: str = ""
    resized: Sequence[int] | None = None  # (width, height) of the first image to the model: boxes' frame
    box_unit: str | None = None  # in which the data's boxes were recognised to be
    error: str | None = None


@dataclass(frozen=True)
class Verdict:
    """A question, one of its answers, and what that is worth by rule."""

    item: Item
    prediction: Prediction
    score: float  # in [0, 1]
    answer: str | None  # as read from the text
    method: str  # how it was read: see r1ov.reward.rules.reading
    well_formed: float
    judged: float | None = None  # the judge's score, if it was asked

    @property
    def status(self) -> str:
        """right, wrong, or why there is no answer: unparsed, truncated, error."""
        return self.method if self.method in UNREAD else "right" if self.score >= 1 else "wrong"


Items, Verdicts = Sequence[Item], Sequence[Verdict]


def by_question(verdicts: Verdicts) -> dict[str, list[Verdict]]:
    """Returns the answers to each question, by its id."""
    found = defaultdict(list)
    for one in verdicts:
        found[one.item.id].append(one)
    return found


def read_predictions(path: Path, may_be_torn: bool = False) -> list[Prediction]:
    """Returns the rows of a file of predictions. Other people's rows need only `id` and `text`."""
    example = '{"id": "test/0", "text": "<think>..."}'
    return read_lines(path, _prediction, f"an object such as {example}", may_be_torn)


def _prediction(row: Mapping) -> Prediction:
    if not isinstance(row["text"], str):
        raise TypeError
    kinds = {**Prediction.__annotations__, "resized": list, "box_unit": str, "error": str}
    values = {name: kind(row[name]) for name, kind in kinds.items() if row.get(name) is not None}
    if values.get("finish_reason") not in ("length", "error"):
        values["finish_reason"] = "stop"
    return Prediction(**values)


def read_lines(path: Path, parse: Callable, expected: str = "", may_be_torn: bool = False) -> list:
    """Returns what `parse` makes of each row of a JSON, JSON lines or parquet file.

    Args:    may_be_torn: drops a last line that was cut off, as when the writer was killed.
    Raises:  UserError that names the file and the row, and says what is expected there, else what is wrong.
    """
    if may_be_torn and not path.stat().st_size:
        return []
    rows, found = open_rows(path), []
    for number in range(len(rows)):
        try:
            found.append(parse(rows[number]))
        except (BadRow, ValueError, TypeError, AttributeError, KeyError) as error:
            if not may_be_torn or number + 1 < len(rows):
                fault = f"expected {expected}" if expected else error
                raise UserError(f"{path}, row {number + 1}: {fault}") from None
    return found
