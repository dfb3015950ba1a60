"""A record, which is what the rows of all data files become, and the error of a row that cannot be one."""

from dataclasses import dataclass
from typing import Any

from r1ov.common.files import one_line
from r1ov.data.messages import Messages
from r1ov.errors import UserError


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
