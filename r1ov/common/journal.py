"""A journal: records as JSON lines that survive a kill at any instant."""

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from r1ov.errors import UserError


@dataclass
class Journal:
    """A file that only grows. The last record of a key counts; only the keys are in memory. Any thread may
    read and append.

    Args: key: the field that names a record. sync: each record is on the disk before `append` returns;
        False: it is with the system, which survives a kill but no loss of power.
    Raises: UserError if the file cannot be opened, or another process has it.
    """

    path: Path
    key: str
    sync: bool = True

    def __post_init__(self):
        self._places = {}  # key -> length and offset in bytes of its record
        self._lock = threading.Lock()
        self.unreadable = 0  # whole lines without a record, damaged by the disk: their work is done again
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._file)
            remedy = "wait for it, or choose another --out"
            raise UserError(f"{self.path}: another process is at work in this folder; {remedy}") from error
        except OSError as error:
            remedy = "choose another --out"
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); {remedy}") from error
        self._end = self._read_all()
        os.ftruncate(self._file, self._end)  # drops the line that a kill cut off

    def _read_all(self) -> int:
        """Finds the records. Returns the number of bytes in whole lines."""
        end = 0
        with open(self.path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    self._places[json.loads(line)[self.key]] = (len(line), end)
                except (ValueError, TypeError, KeyError):
                    self.unreadable += 1
                end += len(line)
        return end

    def append(self, record: dict) -> None:
        """Returns when the record is kept. Raises OSError, and leaves no half line, if it cannot be."""
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        with self._lock:
            try:
                rest = line
                while rest:
                    rest = rest[os.write(self._file, rest) :]
                if self.sync:
                    os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, self._end)
                raise
            self._places[record[self.key]] = (len(line), self._end)
            self._end += len(line)

    def get(self, key: Any) -> dict | None:
        place = self._places.get(key)
        return json.loads(os.pread(self._file, *place)) if place else None

    def __contains__(self, key: Any) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[dict]:
        """Yields one record a key, in the order in which the keys first came."""
        yield from map(self.get, list(self._places))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:  # a later thread gets an error instead of another file that took the number
            os.close(self._file)
            self._file = -1
