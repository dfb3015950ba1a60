"""The records that `--data` names: by number, so that a loader can begin anywhere, and without end, in a
shuffled order.
"""

import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np

from r1ov.cli import option
from r1ov.data.formats.files import DataFile, find_files, fingerprint
from r1ov.data.formats.layouts import read_row
from r1ov.data.formats.onevision import clean
from r1ov.data.formats.pictures import lazy_picture
from r1ov.data.formats.records import BadRow, Record, refused
from r1ov.data.formats.rows import GROUPS_AT_HAND, open_rows
from r1ov.errors import UserError
from r1ov.reward.rules.boxes import Unit


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """Of the commands that read data."""

    clean: bool = option(
        False, "rewrite replies as <think>, <answer>: for R1-Onevision's own data, which mixes four layouts"
    )
    image_folder: str | None = option(None, "where image paths begin and must be; default: the file's folder")
    box_unit: Unit | None = option(None, "boxes' frame; default: what rows say, else the one that they fill")
    max_bad_share: float = option(
        0.05, "stop when a larger share of the rows is unusable", least=0, most=1, resumable=True
    )

    @property
    def reading(self) -> dict:
        """Arguments of `open_data`."""
        return {name: getattr(self, name) for name in ("clean", "image_folder", "box_unit")}


@dataclass(eq=False)
class Reader:
    """All rows of some files: reader[i] is a Record, or a BadRow; the same whenever and wherever it is asked.

    A record's images are found and measured, and decoded by their `load`, which raises a BadRow where that
    fails.

    Args:
        need: what a record must have: a reply to learn from (SFT), or a solution to be scored against (GRPO).
        clean: replies are brought to `<think>...</think>` and `<answer>...</answer>`, see
            r1ov/data/formats/onevision.py.
        image_folder: where image paths begin and must lie; default: each data file's own folder.
        box_unit: of the rows that do not say theirs.
    """

    files: Sequence[DataFile]
    need: Literal["reply", "solution"] | None = None
    clean: bool = False
    image_folder: str | Path | None = None
    box_unit: Unit | None = None

    def __post_init__(self):
        self.rows = [open_rows(file.path) for file in self.files]
        self._begins = list(accumulate(map(len, self.rows), initial=0))

    def __len__(self) -> int:
        return self._begins[-1]

    def __getitem__(self, number: int) -> Record | BadRow:
        which, row = self.place(number)
        where = f"{self.files[which].path}, row {row + 1}"
        try:
            return self._record(self.rows[which][row], self.files[which], where)
        except BadRow as error:
            return error.at(where)
        except RecursionError:
            return BadRow("the row is nested too deeply").at(where)

    def place(self, number: int) -> tuple[int, int]:
        """(which of the files, which of its rows) has this number."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        which = bisect_right(self._begins, number) - 1
        return which, number - self._begins[which]

    def _record(self, row: Any, file: DataFile, where: str) -> Record:
        record = read_row(row, where)
        if self.clean:
            record = clean(record)
        trained = [message["role"] == "assistant" and message.get("weight", 1) for message in record.messages]
        if self.need == "reply" and (record.reply is None or not any(trained)):
            raise BadRow("there is no reply to learn from")
        if self.need == "solution" and record.solution is None:
            unread = f"not read: {', '.join(record.unread) or 'none'}"
            raise BadRow("there is no gold answer to score against", unread)
        own = self.image_folder and Path(self.image_folder)
        folder, inside = own or file.path.parent, own or file.inside
        messages, count = [], 0
        for message in record.messages:
            content = message["content"]
            if isinstance(content, list):
                content = list(content)
                for at, part in enumerate(content):
                    if part["type"] == "image":
                        count += 1
                        image = lazy_picture(part["image"], folder, inside, f"picture {count}")
                        content[at] = part | {"image": image}
            messages.append({**message, "content": content})
        return replace(record, messages=messages, box_unit=record.box_unit or self.box_unit)


def shuffled(group_sizes: Sequence[int], seed: Sequence[int]) -> np.ndarray:
    """(rows,) a permutation that keeps near what is read together: it goes through the groups, shuffled, a
    few at a time.

    With groups of one row it is a uniform permutation; otherwise each group is read once, and the rows of
    GROUPS_AT_HAND groups mix.
    """
    rng = np.random.Generator(np.random.PCG64(list(seed)))
    window = rng.permutation(len(group_sizes)) // GROUPS_AT_HAND  # in which a group's rows have their turn
    return np.lexsort((rng.random(sum(group_sizes)), np.repeat(window, group_sizes)))


@dataclass(eq=False)
class Endless:
    """A reader's records without end, each once an epoch: endless[i] is a function of (files, seed, i)."""

    reader: Reader
    seed: int = 0

    def __post_init__(self):
        self.group_sizes = []  # in rows
        for rows in self.reader.rows:
            self.group_sizes += getattr(rows, "group_sizes", [1] * len(rows))
        self._order = -1, ()  # (an epoch, the order of its rows)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, number: int) -> Record | BadRow:
        epoch, place = divmod(number, len(self))
        if self._order[0] != epoch:
            self._order = epoch, shuffled(self.group_sizes, (self.seed % 2**63, epoch))
        return self.reader[int(self._order[1][place])]

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """A line for each file, which changes with it."""
        return tuple(fingerprint(file.path) for file in self.reader.files)

    def survey(
        self, encode: Callable[[Record], Any] | None, limit: int
    ) -> Iterator[tuple[Record | BadRow, Any]]:
        """Up to `limit` rows, evenly spread, 0: all; and what `encode` makes of each, None of a BadRow, which
        is also what `encode` refuses with a UserError.
        """
        for number in range(0, len(self), max(1, len(self) // limit) if limit else 1):
            item, encoded = self.reader[number], None
            if encode and isinstance(item, Record):
                try:
                    encoded = encode(item)
                except UserError as error:
                    item = refused(item.where, error)
            yield item, encoded


def open_data(text: str, *, split: str = "train", seed: int = 0, **options: Any) -> Endless:
    """The files, folders and hub data sets that `--data` names, joined.

    Args:    text: names separated by commas; those inside parentheses belong to a name. split: see
             find_files. options: Reader's.
    Raises:  UserError.
    """
    names = [text] if os.path.exists(text) else [name.strip() for name in re.split(r",(?![^()]*\))", text)]
    if not all(names):
        raise UserError(f"--data {text[:200]!r}: a name is empty; expected names separated by commas")
    files = [file for name in names for file in find_files(name, split)]
    return Endless(Reader(files, **options), seed)
