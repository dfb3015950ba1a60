"""Many rows at once: each ends exactly once, is on the disk as it ends, and need not be done again."""

import hashlib
import json
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from r1ov.common.files import one_line
from r1ov.common.journal import Journal
from r1ov.errors import UserError
from r1ov.formalize.ask import BudgetSpent
from r1ov.formalize.rows import Row, row_from_dict, row_to_dict


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
    """Puts every row that `finished` does not hold through `work`, `concurrency` at a time, and appends what
    comes out there.

    Args:
        work: returns a row with an outcome; BudgetSpent leaves the row for another start, any other exception
            fails it.
        finished: keyed by "row", the place in `rows`.
        stop: once set, no row is begun.
        tell: called with each row that has ended, one at a time, those of earlier starts included.
    Raises: UserError if `finished` holds a row that is not the one in its place; what reading or writing
        raises.
    """
    slots, lock = threading.Semaphore(concurrency), threading.Lock()
    problems: list[Exception] = []

    def do(number: int, row: Row) -> None:
        try:
            after = row if row.outcome else _worked(work, row)
            if after is not None:
                finished.append({"row": number, "print": fingerprint(row), "values": row_to_dict(after)})
                with lock:
                    tell(after)
        except Exception as error:  # raised in the calling thread: the disk is full, say
            problems.append(error)
            stop.set()
        finally:
            slots.release()

    try:
        for number, row in enumerate(rows):
            before = _earlier(finished, number, row)
            if before is not None and not (retry_failed and before.outcome == "failed"):
                with lock:
                    tell(before)
                continue
            slots.acquire()
            if stop.is_set():
                slots.release()
                break
            # Daemons: after a second Ctrl-C nothing waits for them.
            threading.Thread(target=do, args=(number, row), daemon=True).start()
    except Exception as error:
        problems.append(error)
        stop.set()
    for _ in range(concurrency):  # until all rows under way have ended
        slots.acquire()
    if problems:
        raise problems[0]


def _worked(work: Callable[[Row], Row], row: Row) -> Row | None:
    try:
        return work(row)
    except BudgetSpent:
        return None
    except UserError as error:
        return replace(row, outcome="failed", reason=one_line(str(error)))
    except Exception as error:  # a defect of ours that one row in 100,000 meets must not cost the others
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        return replace(row, outcome="failed", reason=f"crashed: {one_line(repr(error))[:300]}")


def in_order(rows: Iterable[Row], finished: Journal) -> Iterator[Row]:
    """Yields the rows as they ended, in the order of the input; those that have not ended have no outcome."""
    for number, row in enumerate(rows):
        yield _earlier(finished, number, row) or row


def fingerprint(row: Row) -> str:
    parts = [row.id, row.question, row.gold, row.image and row.image.size]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _earlier(finished: Journal, number: int, row: Row) -> Row | None:
    """Returns the row as it ended before. Raises: UserError if it is another one."""
    record = finished.get(number)
    if record is None:
        return None
    if record["print"] != fingerprint(row):
        raise UserError(
            f"row {number + 1} ({row.id[:60]}) is not the one that this folder began with; "
            "choose another --out for other data"
        )
    return row_from_dict(record["values"], row.image)


class Tally:
    """Counts rows by outcome, and those that did not come through by the stage that stopped them."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.stages: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        self.outcomes[row.outcome] += 1
        if row.reason:
            self.stages[row.reason.partition(":")[0]] += 1

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {count}" for stage, count in sorted(self.stages.items()))
        outcomes = (f"{self.outcomes[name]} {name}" for name in ("done", "rejected", "failed"))
        return ", ".join(outcomes) + (f" ({stages})" if stages else "")
