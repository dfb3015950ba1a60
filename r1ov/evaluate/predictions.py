"""A run's folder: a line for each answer, appended as it is finished, by as many processes as there are;
merged, each answer once.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from r1ov.errors import UserError
from r1ov.evaluate.item import Prediction

MERGED = "predictions.jsonl"
EXAMPLE = '{"id": "test/0", "text": "<think>..."}'


def read_predictions(path: Path, may_be_torn: bool = False) -> list[Prediction]:
    """The rows of a file of predictions. Of other people's, `id` and `text` are enough.

    Args:    may_be_torn: a last line that was cut off, as when the writer was killed, is dropped.
    Raises:  UserError that names the file and the line.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace" if may_be_torn else "strict").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if may_be_torn and not _is_json(lines[-1]):
        lines.pop()
    return [
        _prediction(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
    ]


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _prediction(line: str, where: str) -> Prediction:
    try:
        row = json.loads(line)
        reason = row.get("finish_reason")
        return Prediction(
            id=str(row["id"]),
            text=str(row["text"]),
            sample=int(row.get("sample") or 0),
            finish_reason=reason if reason in ("length", "error") else "stop",
            completion_tokens=int(row.get("completion_tokens") or 0),
            seconds=float(row.get("seconds") or 0),
            prompt_hash=str(row.get("prompt_hash") or ""),
            seed=int(row.get("seed") or 0),
            error=None if row.get("error") is None else str(row["error"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{where}: expected an object such as {EXAMPLE}") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes sure that no other evaluation writes to the folder meanwhile. Raises UserError if one does."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{folder}: another evaluation is writing to it; wait for it, or choose another --out"
            ) from None
        yield


@contextmanager
def appending(folder: Path, rank: int) -> Iterator[Callable[[Prediction], None]]:
    """What appends a row to this process's file of the folder; whoever reads the file finds it at once."""
    # backslashreplace is how JSON spells a lone surrogate
    with (folder / f"predictions.rank{rank}.jsonl").open(
        "a", encoding="utf-8", errors="backslashreplace"
    ) as file:

        def write(row: Prediction) -> None:
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
            file.flush()

        yield write


def merge(folder: Path, order: Mapping[str, int]) -> list[Prediction]:
    """Makes one file of what all processes wrote, now and earlier, in the benchmark's order, and returns its
    rows.

    The first row of an answer counts, but a failed one gives way to any later. It may be killed at any
    moment: the others' files go only when theirs is complete.

    Args: order: of the ids; what is not among them comes last.
    """
    merged, parts = folder / MERGED, sorted(folder.glob("predictions.rank*.jsonl"))
    kept: dict[tuple[str, int], Prediction] = {}
    for path in [merged, *parts] if merged.exists() else parts:
        for row in read_predictions(path, may_be_torn=True):
            earlier = kept.get((row.id, row.sample))
            if earlier is None or earlier.finish_reason == "error":
                kept[row.id, row.sample] = row
    rows = sorted(kept.values(), key=lambda row: (order.get(row.id, len(order)), row.id, row.sample))
    write_atomically(merged, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))
    for path in parts:
        path.unlink()
    return rows


def settle(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes down how the folder's answers are made, or makes sure that they are made as they were.

    Args:    settings: JSON data; what stands under "run" may differ.
    Raises:  UserError where anything else does.
    """
    path = folder / "settings.json"
    if path.exists():
        try:
            former = json.loads(path.read_text(encoding="utf-8"))
            former.items()
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}: cannot be read ({error}); remove it if the predictions beside it are of no use"
            ) from None
        for name in {**former, **settings}:
            if name != "run" and former.get(name) != settings.get(name):
                raise UserError(
                    f"{folder}: its answers were made with {name} {former.get(name)!r}, now it is {settings.get(name)!r}; "
                    "choose another --out, or remove that folder"
                )
    write_atomically(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Whoever opens the file finds the old text or the new one, whole."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(new, path)
