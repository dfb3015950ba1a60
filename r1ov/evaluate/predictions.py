"""A run's folder: a line for each answer, appended as it is finished, by any number of processes; merged,
each answer once.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from r1ov.common.files import check_same_options, earlier_options, write_json, write_text
from r1ov.common.journal import Journal
from r1ov.errors import UserError
from r1ov.evaluate.item import Prediction

MERGED = "predictions.jsonl"
T = TypeVar("T")
EXAMPLE = '{"id": "test/0", "text": "<think>..."}'
_KINDS = {**Prediction.__annotations__, "resized": list, "error": str}


def read_predictions(path: Path, may_be_torn: bool = False) -> list[Prediction]:
    """Returns the rows of a file of predictions. Other people's rows need only `id` and `text`."""
    return read_lines(path, _prediction, f"an object such as {EXAMPLE}", may_be_torn)


def read_lines(path: Path, parse: Callable[[Any], T], expected: str, may_be_torn: bool = False) -> list[T]:
    """Returns what `parse` makes of the JSON in each line.

    Args:    may_be_torn: drops a last line that was cut off, as when the writer was killed.
    Raises:  UserError that names the file and the line, and says what is expected there.
    """
    try:
        errors = "replace" if may_be_torn else "strict"
        lines = path.read_text(encoding="utf-8-sig", errors=errors).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); expected lines with {expected}") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                found.append(parse(json.loads(line)))
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            if may_be_torn and number == len(lines):
                break
            raise UserError(f"{path}, line {number}: expected {expected}") from None
    return found


def _prediction(row: Mapping[str, Any]) -> Prediction:
    values = {name: kind(row[name]) for name, kind in _KINDS.items() if row.get(name) is not None}
    if values.get("finish_reason") not in ("length", "error"):
        values["finish_reason"] = "stop"
    return Prediction(**values)


@contextmanager
def appending(folder: Path, rank: int) -> Iterator[Callable[[Prediction], None]]:
    """Yields a function that appends a row to this process's file in the folder; readers find it at once."""
    with Journal(folder / f"predictions.rank{rank}.jsonl", "id", sync=False) as journal:
        yield lambda row: journal.append(asdict(row))


def merge(folder: Path, order: Mapping[str, int]) -> list[Prediction]:
    """Makes one file of the answers of all processes, now and earlier, in the benchmark's order. Returns its
    rows.

    The first row of an answer counts, but a failed one gives way to any later. It may be killed at any
    moment: the other files go only when this one is complete.

    Args: order: of the ids; unknown ones come last.
    """
    merged, parts = folder / MERGED, sorted(folder.glob("predictions.rank*.jsonl"))
    kept: dict[tuple[str, int], Prediction] = {}
    for path in [merged, *parts] if merged.exists() else parts:
        for row in read_predictions(path, may_be_torn=True):
            earlier = kept.get((row.id, row.sample))
            if earlier is None or earlier.finish_reason == "error":
                kept[row.id, row.sample] = row
    rows = sorted(kept.values(), key=lambda row: (order.get(row.id, len(order)), row.id, row.sample))
    write_text(merged, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))
    for path in parts:
        path.unlink()
    return rows


def settle(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes down how the folder's answers are made, or checks that they are made as before.

    Args:    settings: JSON data; what is under "run" may differ.
    Raises:  UserError if anything else does.
    """
    path = folder / "settings.json"
    if (before := earlier_options(path)) is not None:
        check_same_options(before, settings, ("run",), str(folder))
    write_json(path, settings)
