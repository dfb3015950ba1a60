"""An account of the rows that a run has read."""

from collections import Counter
from collections.abc import Callable

from r1ov.data.formats.records import BadRow, Record
from r1ov.errors import UserError

FEWEST_ROWS = 200  # before this many rows are seen, a share says little
FORGIVING_ROWS = 10  # of which one may be bad


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
