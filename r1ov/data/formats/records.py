"""A record, which is what the rows of all data files become; the error of a row that cannot be one; and an
account of both.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from r1ov.common.files import one_line
from r1ov.data.messages import Messages
from r1ov.errors import UserError

FEWEST_ROWS = 200  # before this many rows are seen, a share says little
FORGIVING_ROWS = 10  # of which one may be bad


class BadRow(UserError):
    """A row that cannot be used: raised while it is read, and given by a reader in the record's place.

    reason: the same text for every row with this fault, so that rows can be counted by it.
    dropped: the row was read, and then left out (by the cleaner, or as too long).
    """

    def __init__(self, reason: str, detail: str = "", dropped: bool = False):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail, self.dropped = reason, detail, dropped

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BadRow) and vars(self) == vars(other)

    __hash__ = UserError.__hash__

    def at(self, where: str) -> "BadRow":
        """The same, its detail one line that names file, row and fault."""
        return BadRow(self.reason, one_line(f"{where}: {self}")[:500], self.dropped)


def text_of(content: Any) -> str:
    """The text of a message's content, without its images."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if "text" in part)


def refused(where: str, error: UserError) -> BadRow:
    """The row as bad, whatever was wrong with it: its own fault, or that the processor refuses it."""
    if isinstance(error, BadRow):
        return error if where in error.detail else error.at(where)
    return BadRow("the processor refuses it", one_line(f"{where}: {error}")[:500])


@dataclass(frozen=True, kw_only=True)
class Record:
    messages: Messages  # as the processor takes them; the assistant's reply, where there is one, is the last
    solution: str | None = None  # the gold answer alone, without tags
    kind: str | None = None  # how the answer is compared, where the row says so
    box_unit: str | None = None  # what its boxes are measured in, where the row says so: `boxes.Frame`
    id: str | None = None
    format: str
    where: str = ""  # file and row, for people
    repairs: tuple[str, ...] = ()  # by the cleaner
    unread: tuple[str, ...] = ()  # columns that were not read

    @property
    def prompt(self) -> Messages:
        return self.messages[:-1] if self.reply is not None else self.messages

    @property
    def reply(self) -> str | None:
        return self.messages[-1]["content"] if self.messages[-1]["role"] == "assistant" else None

    @property
    def images(self) -> list:
        return [
            part["image"]
            for message in self.messages
            for part in message["content"]
            if isinstance(part, dict) and "image" in part
        ]


def counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())


class Tally:
    """Counts records and bad rows, shows the first bad row of each reason, and stops a run that would lose
    too many.
    """

    def __init__(self, max_bad_share: float = 0.05, say: Callable[[str], None] | None = None):
        self.max_bad_share, self.say = max_bad_share, say
        self.formats = Counter()
        self.unread = Counter()  # columns that nobody reads
        self.repairs = Counter()  # by the cleaner; a row can have several
        self.dropped = Counter()  # read, but left out
        self.bad = Counter()
        self.first = {}  # reason -> the first row with it
        self.seen = set()  # rows that were bad or dropped

    @property
    def rows(self) -> int:
        return self.formats.total() + self.dropped.total() + self.bad.total()

    def add(self, item: Record | BadRow) -> None:
        """Counts a bad row once, however often it comes, and a record each time.

        Raises: UserError when bad rows are more than `max_bad_share` of those seen so far, taken as
            FEWEST_ROWS at least.
        """
        if isinstance(item, Record):
            self.formats[item.format] += 1
            self.unread.update(item.unread)
            self.repairs.update(item.repairs)
        elif item.detail not in self.seen:
            self._add_bad(item)

    def _add_bad(self, item: BadRow) -> None:
        self.seen.add(item.detail)
        (self.dropped if item.dropped else self.bad)[item.reason] += 1
        if item.reason not in self.first:
            self.first[item.reason] = item.detail
            if self.say:
                self.say(f"{'dropped' if item.dropped else 'bad row'}  {item.detail}")
        self._check(max(self.rows, FEWEST_ROWS))

    def finish(self) -> None:
        """At the end of the data: the same check of all rows; no record at all is also too little. A single
        bad row of FORGIVING_ROWS or more is forgiven, unless `max_bad_share` is 0.
        """
        if not (self.bad.total() == 1 and self.rows >= FORGIVING_ROWS and self.max_bad_share):
            self._check(self.rows)
        if not self.formats:
            raise UserError(f"none of {self.rows} rows can be used; {self.summary()}")

    def summary(self) -> str:
        """The reasons why rows cannot be used: counts, and the first row of each."""
        counts = (self.dropped + self.bad).most_common(5)
        told = (f"{count:,}: {self.first[why][:250]}" for why, count in counts)
        return "; ".join(told) or "there were none"

    def _check(self, rows: int) -> None:
        if self.bad.total() > self.max_bad_share * rows:
            raise UserError(
                f"{self.bad.total():,} of {self.rows:,} rows cannot be read, more than "
                f"{self.max_bad_share:.1%}; {self.summary()}; mend the data or raise --max-bad-share"
            )
