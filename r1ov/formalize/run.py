"""Many rows at once: each ends exactly once, is on the disk as it ends, and need not be done again."""

import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from r1ov.common.files import one_line, say
from r1ov.common.journal import Journal
from r1ov.common.remote import NoUse
from r1ov.errors import UserError
from r1ov.formalize.ask import BudgetSpent
from r1ov.formalize.rows import Row, row_to_dict


def process(
    rows: Iterable[Row],
    work: Callable[[Row], Row],
    finished: Journal,
    concurrency: int,
    stop: threading.Event,
    retry_failed: bool,
    tell: Callable[[Row], None],
) -> None:
    """Puts every row that `finished` does not hold through `work`, `concurrency` at a time, and appends what
    comes out there.

    Args:
        work: returns a row with an outcome; BudgetSpent leaves the row for another start, NoUse ends the run,
            any other exception fails the row.
        finished: keyed by "row", the place in `rows`.
        stop: once set, no row is begun.
        tell: called with each row that has ended, one at a time, those of earlier starts included.
    Raises: NoUse; UserError if `finished` holds a row that is not the one in its place; what reading or
        writing raises.
    """
    numbered, lock, problems = enumerate(rows), threading.Lock(), []

    def run() -> None:
        try:
            while not stop.is_set():
                with lock:
                    number, row = next(numbered, (None, None))
                if row is None:
                    return
                ended = _earlier(finished, number, row)
                if ended is None or (retry_failed and ended.outcome == "failed"):
                    ended = row if row.outcome else _worked(work, row)
                    finished.append({"row": number, "values": row_to_dict(ended)})
                with lock:
                    tell(ended)
        except BudgetSpent:
            return
        except Exception as error:  # raised in the calling thread: the disk is full, say
            problems.append(error)
            stop.set()

    # Daemons: after a second Ctrl-C nothing waits for them.
    threads = [threading.Thread(target=run, daemon=True) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


def _worked(work: Callable[[Row], Row], row: Row) -> Row:
    try:
        return work(row)
    except (BudgetSpent, NoUse):
        raise
    except Exception as error:  # a defect of ours that one row in 100,000 meets must not cost the others
        say(traceback.format_exc())
        return replace(row, outcome="failed", reason=f"crashed: {one_line(repr(error))[:300]}")


def in_order(rows: Iterable[Row], finished: Journal) -> Iterator[Row]:
    """Yields the rows as they ended, in the order of the input; those that have not ended have no outcome."""
    for number, row in enumerate(rows):
        yield _earlier(finished, number, row) or row


def _earlier(finished: Journal, number: int, row: Row) -> Row | None:
    """Returns the row as it ended before. Raises: UserError if it is another one."""
    record = finished.get(number)
    if record is None:
        return None
    before = Row(**record["values"], image=row.image)
    if (before.id, before.question, before.gold) != (row.id, row.question, row.gold):
        raise UserError(
            f"row {number + 1} ({row.id[:60]}) is not the one that this folder began with; "
            "choose another --out for other data"
        )
    return before
