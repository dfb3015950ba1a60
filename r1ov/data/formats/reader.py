"""Data sets as records: a map from a number to a record, so that a loader can begin anywhere, and an account
of the rows that are bad.
"""

import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np

from r1ov.data.formats.files import DataFile, find_files
from r1ov.data.formats.onevision import clean
from r1ov.data.formats.pictures import lazy_picture
from r1ov.data.formats.records import BadRow, Record, read_row
from r1ov.data.formats.rows import GROUPS_AT_HAND, open_rows
from r1ov.errors import UserError

FEWEST_ROWS = 200  # before so many rows are seen, a share says little
_SLOTS = 1000  # of one round of a mixture: its shares are right to a thousandth


class Reader:
    """All rows of some files: reader[i] is a Record with its pictures open, or a BadRow; the same whenever and
    wherever it is asked.
    """

    def __init__(
        self,
        files: Sequence[DataFile],
        need: Literal["reply", "solution"] | None = None,
        clean: bool = False,
        image_folder: str | Path | None = None,
        allow_outside: bool = False,
        lazy: bool = False,
    ):
        """
        Args:
            need: what a record must have: a reply to learn from (SFT), or a solution to be scored against
                (GRPO).
            clean: replies are brought to `<think>...</think>` and `<answer>...</answer>`, see
                r1ov/data/formats/onevision.py.
            image_folder: where the pictures' paths begin and must lie; default: each data file's own folder.
            allow_outside: pictures may lie anywhere on this machine.
            lazy: a record's pictures are found and measured, but decoded only by their `load`, so that rows
                can be dealt out first; `load` raises a BadRow where that fails.
        """
        self.files, self.need, self.clean = list(files), need, clean
        self.image_folder, self.allow_outside, self.lazy = (
            image_folder and Path(image_folder),
            allow_outside,
            lazy,
        )
        self._rows = [open_rows(file.path) for file in self.files]
        self._begins = list(accumulate(map(len, self._rows), initial=0))

    @property
    def group_sizes(self) -> list[int]:
        return [size for rows in self._rows for size in rows.group_sizes]

    def __len__(self) -> int:
        return self._begins[-1]

    def __getitem__(self, number: int) -> Record | BadRow:
        if not 0 <= number < len(self):
            raise IndexError(number)
        which = bisect_right(self._begins, number) - 1
        where = f"{self.files[which].path}, row {number - self._begins[which] + 1}"
        try:
            return self._record(self._rows[which][number - self._begins[which]], self.files[which], where)
        except BadRow as error:
            return error.at(where)

    def _record(self, row: Any, file: DataFile, where: str) -> Record:
        record = read_row(row, where)
        if self.clean:
            record = clean(record)
        if self.need == "reply" and record.reply is None:
            raise BadRow("there is no reply to learn from")
        if self.need == "solution" and record.solution is None:
            raise BadRow("there is no gold answer to score against")
        folder = self.image_folder or file.path.parent
        inside = None if self.allow_outside else self.image_folder or file.inside
        messages, count = [], 0
        for message in record.messages:
            content = message["content"]
            if isinstance(content, list):
                parts = []
                for part in content:
                    if part["type"] == "image":
                        count += 1
                        found = lazy_picture(part["image"], folder, inside, f"picture {count}")
                        part = {
                            "type": "image",
                            "image": found if self.lazy else found.load(),
                        }
                    parts.append(part)
                content = parts
            messages.append({"role": message["role"], "content": content})
        return replace(record, messages=messages)


def shuffled(group_sizes: Sequence[int], seed: Sequence[int]) -> np.ndarray:
    """(rows,) a permutation that keeps near what is read together: it goes through the groups, shuffled, a
    few at a time.

    With groups of one row it is a uniform permutation; otherwise each group is read once, and the rows of
    GROUPS_AT_HAND groups mix.
    """
    rng = np.random.Generator(np.random.PCG64(list(seed)))
    window = rng.permutation(len(group_sizes)) // GROUPS_AT_HAND  # in which a group's rows have their turn
    return np.lexsort((rng.random(sum(group_sizes)), np.repeat(window, group_sizes)))


class Mixture:
    """Records without end: mixture[i] is a function of (files, weights, seed, i) alone.

    Without weights all readers are one, and every row comes once in each len(mixture). With weights each
    reader is drawn from in that share, evenly spread, and goes through its own rows again and again, in a new
    order each time.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ):
        self.readers, self.seed, self.shuffle = list(readers), seed, shuffle
        shares = np.asarray(weights or [1.0], dtype=np.float64)
        assert len(shares) == len(self.readers), f"{len(shares)} weights for {len(self.readers)} readers"
        self._counts = np.maximum(np.rint(shares / shares.sum() * _SLOTS), 1).astype(
            np.int64
        )  # (readers,) slots in a round
        ranks = np.concatenate([np.arange(count) for count in self._counts])
        sources = np.repeat(np.arange(len(shares)), self._counts)
        order = np.argsort((ranks + 0.5) / self._counts[sources], kind="stable")
        self._sources, self._ranks = sources[order], ranks[order]
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # reader -> (epoch, its rows' order)

    def __len__(self) -> int:
        return sum(map(len, self.readers))

    def __getitem__(self, number: int) -> Record | BadRow:
        which, row = self.place(number)
        return self.readers[which][row]

    def place(self, number: int) -> tuple[int, int]:
        """(which reader, which of its rows) stands at this number."""
        turn, slot = divmod(number, len(self._sources))
        which = int(self._sources[slot])
        epoch, place = divmod(
            turn * int(self._counts[which]) + int(self._ranks[slot]), len(self.readers[which])
        )
        if not self.shuffle:
            return which, place
        if self._orders.get(which, (None,))[0] != epoch:
            self._orders[which] = (
                epoch,
                shuffled(self.readers[which].group_sizes, (self.seed % 2**63, which, epoch)),
            )
        return which, int(self._orders[which][1][place])


def parse_mixture(text: str) -> tuple[list[str], list[float] | None]:
    """The names and weights of `a.parquet:0.7,b.jsonl:0.3`; None without weights. Commas inside parentheses
    belong to a name.

    Raises:  UserError.
    """
    names: list[str] = []
    weights: list[float] = []
    for item in [text] if os.path.exists(text) else re.split(r",(?![^()]*\))", text):
        match = (
            None if os.path.exists(item) else re.fullmatch(r"(.+):(\d*\.?\d+|\d+\.)", item.strip(), re.ASCII)
        )
        names.append(match[1] if match else item.strip())
        weights += [float(match[2])] if match else []
    if not all(names):
        raise UserError(
            f"--data {text[:200]!r}: a name is empty; expected names separated by commas, such as a.parquet:0.7,b.jsonl:0.3"
        )
    if weights and (len(weights) != len(names) or min(weights) <= 0):
        raise UserError(f"--data {text[:200]!r}: give each name a weight above 0, or none at all")
    return names, weights or None


def open_data(
    text: str, *, split: str = "train", seed: int = 0, shuffle: bool = True, **options: Any
) -> Mixture:
    """What `--data` names: files, folders, hub data sets, or a mixture of them with weights.

    Args:    split: see find_files. options: Reader's.
    Raises:  UserError.
    """
    names, weights = parse_mixture(text)
    files = [find_files(name, split) for name in names]
    groups = files if weights else [[file for found in files for file in found]]
    return Mixture([Reader(group, **options) for group in groups], weights, seed, shuffle)


class Tally:
    """Counts what a reader gave, shows the first bad row of each reason, and stops a run that would lose too
    many.
    """

    def __init__(self, max_bad_share: float = 0.05, say: Callable[[str], None] | None = None):
        self.max_bad_share, self.say = max_bad_share, say
        self.formats: Counter[str] = Counter()
        self.repairs: Counter[str] = Counter()  # by the cleaner; a row can have several
        self.kept = self.repaired = 0  # rows that the cleaner found in order, and brought into order
        self.dropped: Counter[str] = Counter()  # by the cleaner
        self.bad: Counter[str] = Counter()
        self.first: dict[str, str] = {}  # reason -> the first row with it

    @property
    def rows(self) -> int:
        return self.formats.total() + self.dropped.total() + self.bad.total()

    def add(self, item: Record | BadRow) -> None:
        """Raises UserError when bad rows are more than `max_bad_share` of those seen so far, taken as
        FEWEST_ROWS at least.
        """
        if isinstance(item, Record):
            self.formats[item.format] += 1
            self.repairs.update(item.repairs or ())
            self.kept += item.repairs == ()
            self.repaired += bool(item.repairs)
            return
        (self.dropped if item.dropped else self.bad)[item.reason] += 1
        if item.reason not in self.first:
            self.first[item.reason] = item.detail
            if self.say:
                self.say(f"{'dropped' if item.dropped else 'bad row'}  {item.detail}")
        self._check(max(self.rows, FEWEST_ROWS))

    def finish(self) -> None:
        """At the end of the data: the same check, of the rows there were; nothing at all is also too little."""
        self._check(self.rows)
        if not self.formats:
            raise UserError(f"none of {self.rows} rows can be used; {self._reasons(self.dropped)}")

    def summary(self) -> str:
        """What became of the rows that cannot be used: counts, and the first of each reason."""
        return self._reasons(self.dropped + self.bad) or "there were none"

    def _check(self, rows: int) -> None:
        if self.bad.total() > self.max_bad_share * rows:
            share = f"{self.bad.total():,} of {self.rows:,} rows cannot be read, more than {self.max_bad_share:.1%}"
            raise UserError(f"{share}; {self._reasons(self.bad)}; mend the data or raise the limit")

    def _reasons(self, counts: Counter[str]) -> str:
        return "; ".join(f"{count:,}: {self.first[reason][:250]}" for reason, count in counts.most_common(5))
