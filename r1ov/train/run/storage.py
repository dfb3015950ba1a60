"""The files of one checkpoint, of the folder `step-40` say: how they are written, checked and read.

    __0_0.distcp     tensors of rank 0, one such file a rank, and
    .metadata        which tensor lies where, both as torch.distributed.checkpoint writes them
    checkpoint.json  whatever else is to be remembered; size and SHA-256 of each file above, and its own SHA-256

The checksums find files that are cut short, missing or damaged. They do not find malice, for whoever can
write the files can write checksums too; but nothing of a checkpoint is run: it is JSON, a pickle read by an
unpickler that knows a few harmless names, and tensors read by `torch.load(weights_only=True)`.
"""

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from r1ov.common.text import one_line

RECORD = "checkpoint.json"
HARMLESS = {
    "torch": {"Size"},  # and the dtypes
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}


def write_tensors(folder: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup | None) -> None:
    """Writes and syncs each rank's share of CPU tensors; all ranks of the group together. Raises: OSError, on
    all ranks alike.
    """
    _together(
        lambda: dcp.save(
            tensors, storage_writer=_Writer(folder, per_thread_copy_ahead=0), process_group=group
        )
    )


def read_tensors(
    folder: Path, metadata: Metadata, tensors: dict[str, Tensor], group: dist.ProcessGroup | None
) -> None:
    """Fills the tensors, each rank its own share of them, all ranks of the group together. Raises: OSError,
    on all ranks alike.
    """
    _together(lambda: dcp.load(tensors, storage_reader=_Reader(folder, metadata), process_group=group))


def describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": os.fstat(file.fileno()).st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def verify(folder: Path, files: Mapping[str, dict[str, Any]]) -> None:
    """Raises OSError at the first file that is not what `describe` found when it was written."""
    for name, expected in files.items():
        found = describe(folder / name)
        if found["bytes"] != expected["bytes"]:
            raise OSError(f"{name} has {found['bytes']:,} bytes instead of {expected['bytes']:,}")
        if found != expected:
            raise OSError(f"{name} is damaged: its checksum is another")


def write_record(folder: Path, record: dict[str, Any]) -> None:
    text = json.dumps(record | {"sha256": _digest(record)}, indent=1)
    with (folder / RECORD).open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_record(folder: Path) -> dict[str, Any]:
    """What `write_record` was given. Raises: OSError if it is missing or damaged."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except ValueError as error:  # also of an encoding that is none
        raise OSError(f"{RECORD} is damaged: {error}") from error
    if not isinstance(record, dict) or record.pop("sha256", None) != _digest(record):
        raise OSError(f"{RECORD} is damaged: its checksum is another")
    return record


def read_metadata(folder: Path) -> Metadata:
    """Which tensor lies where. Raises: OSError if it holds anything but tensors, whatever it would do."""
    with (folder / ".metadata").open("rb") as file:
        try:
            metadata = _Unpickler(file).load()
        except pickle.UnpicklingError as error:
            raise OSError(f".metadata: {error}") from error
    entries = metadata.state_dict_metadata.values() if isinstance(metadata, Metadata) else [None]
    if not all(isinstance(entry, TensorStorageMetadata) for entry in entries):
        raise OSError(
            ".metadata: there is something beside tensors"
        )  # torch would unpickle it without a look
    return metadata


def publish(temporary: Path, final: Path) -> None:
    """Makes a complete folder visible under its name, in one step; what had the name before is moved out of
    the way.
    """
    sync_folder(temporary)
    if final.exists():
        hide(final)
    os.rename(temporary, final)
    sync_folder(final.parent)


def hide(path: Path) -> None:
    """Out of sight in one step, so that half a checkpoint never has a checkpoint's name: `step-40` becomes
    `.step-40.old`.
    """
    os.rename(path, path.with_name(f".{path.name}.old"))


def sync_folder(path: Path) -> None:
    """Until then a file's name may be lost in a power cut, though its bytes are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Writer(FileSystemWriter):
    def storage_meta(self) -> None:
        """Nothing: it would name the temporary folder."""


class _Reader(FileSystemReader):
    def __init__(self, folder: Path, metadata: Metadata):
        super().__init__(folder)
        self.metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What `read_metadata` has read with care; torch would take any pickle."""
        return self.metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in HARMLESS.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs")
        return super().find_class(module, name)


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _together(work: Callable[[], Any]) -> None:
    """Runs what DCP does on all ranks; what storage did to any of them is an OSError."""
    try:
        work()
    except CheckpointException as error:
        causes = {rank: cause for rank, (cause, _) in error.failures.items()}
        # torch's zip writer and reader tell of the disk by RuntimeError
        if not all(isinstance(cause, (OSError, RuntimeError)) for cause in causes.values()):
            raise
        told = [
            (f"rank {rank}: " if dist.is_initialized() else "") + _told(cause)
            for rank, cause in causes.items()
        ]
        raise OSError("; ".join(told)) from error


def _told(cause: BaseException) -> str:
    return one_line(getattr(cause, "strerror", None) or str(cause))
