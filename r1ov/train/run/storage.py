"""The files of one checkpoint, of the folder `step-40` say: how they are written, checked and read.

    rank-00000.safetensors  that rank's rows of sharded tensors; the first file also holds all whole tensors
    checkpoint.json         whatever else must be remembered, the SHA-256 of each file above, and its own

The rows of a tensor follow each other in the order of the files, so that any number of ranks can read theirs.
Checksums find files that are cut short, missing or damaged. They do not find malice, for whoever can write
the files can write checksums too; but nothing in a checkpoint is run: it is JSON and safetensors.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from r1ov.folder.weights import local_rows, write_tensors

RECORD = "checkpoint.json"


def write_synced(path: Path, tensors: dict[str, Tensor]) -> str:
    """Writes a file of contiguous CPU tensors to the disk; returns its digest. Raises: OSError."""
    write_tensors(path, tensors)
    sync(path)
    return digest_of(path)


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path, digests: Mapping[str, str]) -> None:
    """Raises OSError at the first file whose digest is not that of `write_synced`."""
    for name, digest in digests.items():
        if digest_of(folder / name) != digest:
            raise OSError(f"{name} is damaged: its checksum is another")


class Stored:
    """A tensor in a checkpoint. Args: parts: safetensors' slices of the files, one below the other."""

    def __init__(self, parts: list):
        self.parts, (first, *others) = parts, [part.get_shape() for part in parts]
        self.shape = torch.Size([first[0] + sum(rows for rows, *_ in others), *first[1:]] if first else ())

    def read(self, like: Tensor) -> Tensor:
        """The rows that this rank holds of `like`; all if that has another shape."""
        if not self.shape:
            return self.parts[0][...].clone()
        rows = local_rows(like) if like.shape == self.shape else slice(0, self.shape[0])
        found, first = [], 0
        for part in self.parts:
            found.append(part[max(0, rows.start - first) : max(0, rows.stop - first)])
            first += part.get_shape()[0]
        return torch.cat(found)


def open_tensors(folder: Path, files: Iterable[str]) -> dict[str, Stored]:
    """The tensors of sound files by name, not yet read. Raises: OSError."""
    parts = {}  # name -> its slices
    for file in files:
        try:
            reader = safe_open(folder / file, framework="pt")
        except SafetensorError as error:
            raise OSError(f"{file}: {error}") from error
        for name in reader.keys():  # noqa: SIM118 no mapping
            parts.setdefault(name, []).append(reader.get_slice(name))
    return {name: Stored(slices) for name, slices in parts.items()}


def write_record(folder: Path, record: dict) -> None:
    text = json.dumps(record | {"sha256": _digest(record)}, indent=1)
    (folder / RECORD).write_text(text + "\n", "utf-8")
    sync(folder / RECORD)


def read_record(folder: Path) -> dict:
    """What `write_record` was given. Raises: OSError if it is missing or damaged."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
    except ValueError as error:  # also of an encoding that is none
        raise OSError(f"{RECORD} is damaged: {error}") from error
    if not isinstance(record, dict) or record.pop("sha256", None) != _digest(record):
        raise OSError(f"{RECORD} is damaged: its checksum is another")
    return record


def publish(temporary: Path, final: Path) -> None:
    """Makes a complete folder visible under its name, in one step; another of that name is hidden first."""
    sync(temporary)
    if final.exists():
        hide(final)
    os.rename(temporary, final)
    sync(final.parent)


def hide(path: Path) -> None:
    """Renames `step-40` to `.step-40.old`, in one step: half a checkpoint never has a checkpoint's name."""
    os.rename(path, path.with_name(f".{path.name}.old"))


def sync(path: Path) -> None:
    """Takes a file's bytes, or the names in a folder, to the disk: a power cut loses what is not there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
