"""Text for people and the two parts of a reply; files that are replaced whole, folders for one process at a
time, runs that keep their options.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from r1ov.errors import UserError


def say(text: str) -> None:
    """Tells people on stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """The text, safe on a terminal: control characters escaped, newlines too."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def one_line(text: str) -> str:
    """The text on one line, safe on a terminal, at most 2,000 characters."""
    text = printable(" ".join(text[:10_000].split()))
    return text if len(text) <= 2000 else text[:1997] + "..."


def shown(address: str) -> str:
    """A URL or path as errors show it: on one line, not too long, without a password."""
    address = printable(re.sub(r"(?<=://)[^/@]*@", "", address))
    return address if len(address) <= 200 else address[:197] + "..."


def digest(text: str, size: int = 8) -> str:
    """What tells a text from others: so many bytes of its hash, in hexadecimal."""
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


def split_reply(text: str) -> tuple[str | None, str | None]:
    """(thinking, answer) of a reply, stripped; None for a thought or an answer that is not there.

    The thinking runs from the first `<think>`, or from the start where the prompt opened it, to the last
    `</think>`, or to the end where it was cut off. The answer counts only after the last `</think>`, and only
    if there is exactly one `<answer>` block there: nothing inside the thought is taken for it.

    Example: "<think>2+2</think>\\n<answer>4</answer>" -> ("2+2", "4")
    """
    thinking = None
    if "<think>" in text or "</think>" in text:
        thinking = text.split("<think>", 1)[-1].rsplit("</think>", 1)[0].strip()
    tail = text.rsplit("</think>", 1)[-1]
    parts = re.split("(</?answer>|<think>)", tail)  # texts, and between them the tags
    return thinking, parts[2].strip() if parts[1::2] == ["<answer>", "</answer>"] else None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path to write to; on leaving, one rename puts that file in the place of `path`.

    A reader of `path` finds the old content or the new one, whole. After an exception the old one stays and
    the new one is removed.
    """
    new = path.with_name(f"{path.name}.tmp")
    try:
        yield new
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def can_be_written(path: str) -> bool:
    """Whether a file of this name can be made or replaced."""
    return not os.path.isdir(path) and os.access(os.path.dirname(path) or ".", os.W_OK)


def write_text(path: Path, text: str) -> None:
    """Replaces the file as a whole. A lone surrogate becomes its escape."""
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_lines(path: Path, rows: Iterable) -> None:
    """Replaces the file as a whole: a line of JSON for each row."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_json(path: Path, value: Any) -> None:
    """Replaces the file as a whole, indented for people."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path, missing: str = "") -> dict:
    """The object in a JSON file.

    Args: missing: what to do if there is no such file, for the message.
    Raises: UserError if there is no such file, or anything else in it.
    """
    path = Path(path)
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{missing and '; ' + missing}") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, too long a number
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a JSON {type(raw).__name__}, expected an object")
    return raw


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and those above it, and keeps other processes out; on leaving, those that are new and
    still empty go again. Raises: UserError if a process is there, or it cannot be written to.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{folder}: another process is at work in this folder; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise UserError(
            f"--out {folder}: cannot be used ({error.strerror}); choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):  # ends at the first that is not empty
            if os.listdir(folder) == [".lock"]:  # else it stays: who waits for it must find the same file
                (folder / ".lock").unlink()
            for path in new:
                path.rmdir()


def earlier_options(path: Path) -> dict | None:
    """The options file of an earlier run; None if there is none. Raises: UserError if it is damaged."""
    if not path.exists():
        return None
    try:
        return read_json(path)
    except UserError as error:
        raise UserError(f"{error}; choose another --out, or remove the folder") from None


def is_finished(out: Path) -> bool:
    """Whether a run has left its model in its folder."""
    return (out / "final" / "config.json").exists()


def check_same_options(
    before: Mapping,
    now: Mapping,
    may_differ: Collection[str],
    where: str,
    remedy: str = "give the same ones to go on",
) -> None:
    """Raises UserError if a run that was begun with the options `before` cannot go on with `now`.

    The message names each option that differs, with both values.

    Args: before, now: JSON data; None is the same as absent. where: the run, for the message.
    """
    now = json.loads(json.dumps(now))  # as it would come back from the file: tuples are lists
    changed = [
        f"--{name.replace('_', '-')} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in {**before, **now}
        if name not in may_differ and before.get(name) != now.get(name)
    ]
    if changed:
        raise UserError(
            f"{where} was begun with other options: {', '.join(changed[:5])}{', ...' * (len(changed) > 5)}; "
            f"{remedy}, or choose another --out"
        )
