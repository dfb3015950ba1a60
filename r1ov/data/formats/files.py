"""Data files as rows that can be read in any order (JSON, JSON lines, parquet by row groups), and where to
find them.
"""

import json
import os
import re
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn, Protocol

from r1ov.common.fetch import shown
from r1ov.data.formats.records import BadRow
from r1ov.errors import UserError

SUFFIXES = (".parquet", ".jsonl", ".json")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
NOT_DATA = (
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
    "stages.jsonl",
)
MAX_LINE_BYTES = 256 * 1024 * 1024
GROUPS_AT_HAND = 4  # parquet row groups kept in memory; a shuffled order mixes so many at a time
HUB_NAME = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?P<inner>(?:/[^/@]+)*)(?:@(?P<revision>[\w./-]+))?", re.ASCII
)
_SPLIT = re.compile(r"(?:^|[/_.-])(train|test|validation|valid|val|dev|eval)(?=[/_.-]|$)", re.IGNORECASE)


class Rows(Protocol):
    group_sizes: Sequence[int]  # how many rows, one group after the other, are best read together

    def __len__(self) -> int: ...
    def __getitem__(self, number: int) -> Any: ...  # BadRow if there is something, but not a row


def _parse_json(text: bytes) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


class JsonLines:
    """A line a row. Only where each line begins is kept in memory."""

    def __init__(self, path: Path):
        self.path, self._begins, begin = path, array("q"), 0
        with path.open("rb") as file:
            # What is longer than the limit falls apart into rows that are not JSON: counted, not lost.
            while line := file.readline(MAX_LINE_BYTES):
                if not line.isspace():
                    self._begins.append(begin)
                begin += len(line)
        self.group_sizes = [1] * len(self._begins)

    def __len__(self) -> int:
        return len(self._begins)

    def __getitem__(self, number: int) -> Any:
        try:
            with self.path.open("rb") as file:
                file.seek(self._begins[number])
                line = file.readline(MAX_LINE_BYTES)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read any more ({error.strerror or error})") from error
        try:
            return _parse_json(line)
        except (ValueError, RecursionError) as error:
            raise BadRow("the line is not JSON", " ".join(str(error).split())[:200]) from error


class JsonArray:
    """One list of rows, which is read whole."""

    def __init__(self, path: Path):
        try:
            self._rows = _parse_json(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not valid JSON ({' '.join(str(error).split())[:200]})") from error
        self.group_sizes = [1] * len(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Any:
        return self._rows[number]


class Parquet:
    """A few row groups at a time are in memory, never the file."""

    def __init__(self, path: Path):
        pq = _pyarrow_parquet(path)
        self.path, self._groups = path, OrderedDict()
        try:
            # Parsed once and handed over at each opening: a handle of one's own would not survive a fork.
            self._metadata = pq.ParquetFile(path).metadata
        except (OSError, ValueError) as error:  # pyarrow's own are one or the other
            raise UserError(
                f"{path}: not a complete parquet file ({_short(error)}); download it again"
            ) from error
        self.group_sizes = [
            self._metadata.row_group(group).num_rows for group in range(self._metadata.num_row_groups)
        ]
        self._begins = list(accumulate(self.group_sizes, initial=0))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_groups": OrderedDict()}

    def __len__(self) -> int:
        return self._begins[-1]

    def __getitem__(self, number: int) -> Any:
        import pyarrow as pa

        group = bisect_right(self._begins, number) - 1
        try:
            return self._group(group).slice(number - self._begins[group], 1).to_pylist()[0]
        except (pa.ArrowException, OSError, ValueError, IndexError) as error:
            raise BadRow("a parquet row cannot be read", _short(error)) from error

    def _group(self, group: int) -> Any:
        if group not in self._groups:
            while len(self._groups) >= GROUPS_AT_HAND:
                self._groups.popitem(last=False)
            with _pyarrow_parquet(self.path).ParquetFile(self.path, metadata=self._metadata) as file:
                self._groups[group] = file.read_row_group(group, use_threads=False)
        self._groups.move_to_end(group)
        return self._groups[group]


def _pyarrow_parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: parquet files need pyarrow; `pip install pyarrow`") from error
    return pyarrow.parquet


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def open_rows(path: Path) -> Rows:
    """The file's rows; its first bytes tell what it is.

    Raises:  UserError if it is none of the three, or has no rows.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if head.startswith(b"version https://git-lfs"):
            raise UserError(f"{path}: a pointer of Git LFS, not the data; run `git lfs pull` in its folder")
        is_parquet = head.startswith(b"PAR1") or path.suffix.lower() == ".parquet"
        is_array = (
            head.startswith(b"[") and path.suffix.lower() != ".jsonl"
        )  # a list as the first of many lines is one bad row
        rows: Rows = Parquet(path) if is_parquet else JsonArray(path) if is_array else JsonLines(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not len(rows):
        raise UserError(f"{path}: it has no rows")
    return rows


@dataclass(frozen=True, kw_only=True)
class DataFile:
    path: Path
    inside: Path  # where its pictures must lie


def find_files(name: str, split: str = "train") -> list[DataFile]:
    """The data files of a file, a folder, or a hub data set `owner/name[/file or folder][@revision]`, in a
    fixed order.

    Where files or folders are named after splits (train-00000-of-00002.parquet, test.jsonl), only those of
    `split` are taken.
    Raises:  UserError.
    """
    path = Path(name).expanduser()
    inside = path
    if not os.path.exists(path):
        match = HUB_NAME.fullmatch(name)
        is_local = name.startswith(("/", ".", "~")) or (name.endswith(SUFFIXES) and name.count("/") < 2)
        if not match or is_local:
            raise UserError(f"{shown(name)}: no such file or folder")
        path, inside = _download(name, match["repo"], match["inner"].strip("/"), match["revision"])
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{shown(name)}: expected a file that ends in {', '.join(SUFFIXES)}")
        return [DataFile(path=path, inside=path.parent if inside == path else inside)]
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES and file.name not in NOT_DATA and file.is_file()
    )
    if len(kinds := sorted({file.suffix.lower() for file in found})) > 1:
        raise UserError(
            f"{shown(name)}: it holds {' and '.join(kinds)} files; name the file or folder that is meant"
        )
    splits = {
        file: {part.lower() for part in _SPLIT.findall(file.relative_to(path).as_posix())} for file in found
    }
    if named := set().union(*splits.values()):
        found = [file for file in found if split in splits[file]]
        if not found:
            raise UserError(
                f"{shown(name)}: it has no split {split!r}, only {', '.join(sorted(named))}; name the file that is meant"
            )
    if not found:
        raise UserError(f"{shown(name)}: no {', '.join(SUFFIXES)} file in this folder")
    return [DataFile(path=file, inside=inside) for file in found]


def _download(name: str, repo: str, inner: str, revision: str | None) -> tuple[Path, Path]:
    """(the file or folder, the folder in which everything of this data set lies) in huggingface_hub's cache."""
    kinds = (
        [f"{escape(inner)}*{suffix}" for suffix in (*SUFFIXES, *PICTURES)]
        if inner
        else [f"*{suffix}" for suffix in SUFFIXES + PICTURES]
    )
    if inner.endswith(SUFFIXES):
        kinds = [escape(inner), *(f"{escape(inner.rpartition('/')[0])}*{suffix}" for suffix in PICTURES)]
    folder = snapshot(name, repo, revision, kinds)
    if not (folder / inner).exists():
        raise UserError(f"{name}: the data set has no {inner}")
    # The cache keeps the bytes in blobs/ and links to them, so that links may lead out of the snapshot, but
    # not out of the data set.
    return folder / inner, folder.parent.parent


def snapshot(name: str, repo: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder, in huggingface_hub's cache, with the files of a hub data set that match the patterns. name:
    what the user wrote.
    """
    from huggingface_hub import constants, errors, snapshot_download

    try:
        return Path(
            snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=list(patterns))
        )
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name}: gated; ask for access at {constants.ENDPOINT}/datasets/{repo}, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{name}: no such file here, and no such data set on the hub; check the name, or `hf auth login`"
        ) from error
    except (errors.HFValidationError, errors.RevisionNotFoundError) as error:
        raise UserError(
            f"{name}: no such file here, and not to be had from the hub ({_short(error)})"
        ) from error
    except (errors.HTTPError, OSError, RuntimeError) as error:
        why = f"and the hub is out of reach or broke off ({_short(error)}); check the name and the network"
        raise UserError(f"{name}: no such file here, {why}") from error
