"""The records that `--data` names, without end: data sets joined or mixed by weight, in a shuffled order."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from r1ov.data.formats.files import find_files, fingerprint
from r1ov.data.formats.reader import Reader
from r1ov.data.formats.records import BadRow, Record, refused
from r1ov.data.formats.rows import GROUPS_AT_HAND
from r1ov.errors import UserError

_SLOTS = 1000  # of one round of a mixture: its shares are right to a thousandth


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
        # (readers,) slots in a round
        self._counts = np.maximum(np.rint(shares / shares.sum() * _SLOTS), 1).astype(np.int64)
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

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """A line for each file, which changes with it."""
        return tuple(fingerprint(file.path) for reader in self.readers for file in reader.files)

    def check_some(self, count: int, name: str) -> None:
        """Raises UserError if none of the first rows can be used. Args: name: for the message."""
        first = [self[number] for number in range(min(len(self), count))]
        if all(isinstance(row, BadRow) for row in first):
            raise UserError(f"{name}: none of its rows can be used; {first[0]}")

    def survey(self, encode: Callable[[Record], Any], limit: int) -> Iterator[tuple[Record | BadRow, Any]]:
        """Of each reader up to `limit` rows, evenly spread, 0: all; and what `encode` makes of each, None of
        a BadRow, which is also what `encode` refuses with a UserError.
        """
        for reader in self.readers:
            for number in range(0, len(reader), max(1, len(reader) // limit) if limit else 1):
                item, encoded = reader[number], None
                if isinstance(item, Record):
                    try:
                        encoded = encode(item)
                    except UserError as error:
                        item = refused(item.where, error)
                yield item, encoded

    def place(self, number: int) -> tuple[int, int]:
        """(which reader, which of its rows) is at this number."""
        turn, slot = divmod(number, len(self._sources))
        which = int(self._sources[slot])
        reader, passed = self.readers[which], turn * int(self._counts[which]) + int(self._ranks[slot])
        epoch, place = divmod(passed, len(reader))
        if not self.shuffle:
            return which, place
        if self._orders.get(which, (None,))[0] != epoch:
            self._orders[which] = epoch, shuffled(reader.group_sizes, (self.seed % 2**63, which, epoch))
        return which, int(self._orders[which][1][place])


def open_data(
    text: str, *, split: str = "train", seed: int = 0, shuffle: bool = True, **options: Any
) -> Mixture:
    """The files, folders, hub data sets, or the mixture of them with weights, that `--data` names.

    Args:    split: see find_files. options: Reader's.
    Raises:  UserError.
    """
    names, weights = parse_mixture(text)
    files = [find_files(name, split) for name in names]
    groups = files if weights else [[file for found in files for file in found]]
    return Mixture([Reader(group, **options) for group in groups], weights, seed, shuffle)


def parse_mixture(text: str) -> tuple[list[str], list[float] | None]:
    """The names and weights of `a.parquet:0.7,b.jsonl:0.3`; None without weights. Commas inside parentheses
    belong to a name.

    Raises:  UserError.
    """
    names: list[str] = []
    weights: list[float] = []
    for item in [text] if os.path.exists(text) else re.split(r",(?![^()]*\))", text):
        item = item.strip()
        match = re.fullmatch(r"(.+):(\d*\.?\d+|\d+\.)", item, re.ASCII)
        if match and not os.path.exists(item):
            item, weight = match[1], float(match[2])
            weights.append(weight)
        names.append(item)
    if not all(names):
        raise UserError(
            f"--data {text[:200]!r}: a name is empty; "
            "expected names separated by commas, such as a.parquet:0.7,b.jsonl:0.3"
        )
    if weights and (len(weights) != len(names) or min(weights) <= 0):
        raise UserError(f"--data {text[:200]!r}: give each name a weight above 0, or none at all")
    return names, weights or None
