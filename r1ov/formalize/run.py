"""Many rows at once: each ends exactly once, is on the disk as it ends, and need not be done again."""

import hashlib
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from r1ov.common.journal import Journal
from r1ov.common.text import one_line
from r1ov.errors import UserError
from r1ov.formalize.layout import row_from_dict, row_to_dict
from r1ov.formalize.row import BudgetSpent, Row


def process(
    rows: Iterable[Row],
    work: Callable[[Row], Row],
    finished: Journal,
    *,
    concurrency: int,
    stop: threading.Event,
    retry_failed: bool = False,
    tell: Callable[[Row], None] = lambda row: None,
) -> None:
    """Every row that `finished` does not hold through `work`, in `concurrency` threads; what comes out is
    appended there.

    Args:
        work: gives a row with an outcome; BudgetSpent leaves the row for another time, any other exception
            fails it.
        finished: keyed by "row", the place in `rows`.
        stop: once set, no row is begun.
        tell: called with each row that has ended, in the calling thread; earlier starts' rows included.
    Raises: UserError where `finished` holds a row that is not the one in its place; what reading or writing
        raises.
    """
    numbered, turn = enumerate(rows), threading.Lock()
    ended: queue.SimpleQueue[Row | BaseException | None] = queue.SimpleQueue()  # None: a thread has ended

    def take() -> tuple[int, Row] | None:
        with turn:
            while not stop.is_set() and (item := next(numbered, None)) is not None:
                record = finished.get(item[0])
                if record is None:
                    return item
                _check(record, *item)
                before = row_from_dict(record["values"], item[1].image)
                if before.outcome == "failed" and retry_failed:
                    return item
                ended.put(before)
        return None

    def run() -> None:
        try:
            while (item := take()) is not None:
                number, row = item
                try:
                    after = row if row.outcome else work(row)
                except BudgetSpent:
                    continue
                except UserError as error:
                    after = replace(row, outcome="failed", reason=one_line(str(error)))
                except (
                    Exception
                ) as error:  # a defect of ours that one row in 100,000 meets must not cost the others
                    print(traceback.format_exc(), file=sys.stderr, flush=True)
                    after = replace(row, outcome="failed", reason=f"crashed: {one_line(repr(error))[:300]}")
                finished.append({"row": number, "print": fingerprint(row), "values": row_to_dict(after)})
                ended.put(after)
        except BaseException as error:  # handed to the calling thread
            stop.set()
            ended.put(error)
        finally:
            ended.put(None)

    for _ in range(concurrency):
        # Daemons: after a second Ctrl-C nothing waits for them.
        threading.Thread(target=run, daemon=True).start()
    running, problem = concurrency, None
    while running:
        match ended.get():
            case None:
                running -= 1
            case BaseException() as error:
                problem = problem or error
            case row:
                tell(row)
    if problem:
        raise problem


def in_order(rows: Iterable[Row], finished: Journal) -> Iterator[Row]:
    """The rows as they ended, in the order of the input; those that have not ended have no outcome."""
    for number, row in enumerate(rows):
        record = finished.get(number)
        if record is not None:
            _check(record, number, row)
        yield row_from_dict(record["values"], row.image) if record else row


def fingerprint(row: Row) -> str:
    parts = [row.id, row.question, row.gold, row.image and row.image.size]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _check(record: dict, number: int, row: Row) -> None:
    if record["print"] != fingerprint(row):
        raise UserError(
            f"row {number + 1} ({row.id[:60]}) is not the one that this folder began with; choose another --out for other data"
        )


class Tally:
    """Counts of rows by outcome, and of those that did not come through by the stage that stopped them."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.stages: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        self.outcomes[row.outcome] += 1
        if row.outcome != "done":
            self.stages[(row.reason or "").partition(":")[0] or "?"] += 1

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {count}" for stage, count in sorted(self.stages.items()))
        parts = [f"{self.outcomes[name]} {name}" for name in ("done", "rejected", "failed")]
        return ", ".join(parts) + (f" ({stages})" if stages else "")


@contextmanager
def stopping(stop: threading.Event) -> Iterator[None]:
    """Within it the first SIGTERM or SIGINT (Ctrl-C) only sets `stop`; a SIGINT after that raises
    KeyboardInterrupt.
    """

    def ask(number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        stop.set()
        os.write(2, b"\nnote    stopping when what is under way has been answered; Ctrl-C again: at once\n")

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
