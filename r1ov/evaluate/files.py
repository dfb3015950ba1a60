"""The files that benchmarks come in: where they lie, their rows, and their pictures, which are in the row, in
a folder or in a zip.
"""

import csv
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from r1ov.common.fetch import shown
from r1ov.data.formats.files import HUB_NAME, open_rows, snapshot
from r1ov.data.formats.pictures import lazy_picture
from r1ov.data.formats.records import BadRow
from r1ov.data.image import LazyImage
from r1ov.errors import UserError

Row = Mapping[str, Any]
MAX_CELL = 2**30  # characters of a TSV's cell: base64 pictures
MAX_MEMBER = 2**27  # bytes of a picture in a zip
MISSING = "a picture's file is missing"


class Found(NamedTuple):
    files: Sequence[Path]
    inside: Path  # where their pictures must lie


def find(name: str, patterns: Sequence[str], extras: Sequence[str] = ()) -> Found:
    """The data files of a file, a folder, or a hub data set `owner/name[@revision]`.

    Args: patterns: of file names, best first; those that match the first one that matches anything are taken.
        extras: patterns of what is to be downloaded with them.
    Raises: UserError.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return Found([path], path.parent)
    inside = path
    if not path.exists():
        match = None if name.startswith(("/", ".", "~")) else HUB_NAME.fullmatch(name)
        if not match or match["inner"]:
            raise UserError(
                f"{shown(name)}: no such file or folder, and not a hub data set's name (owner/name)"
            )
        path = snapshot(
            name, match["repo"], match["revision"], [f"*{pattern}" for pattern in (*patterns, *extras)]
        )
        inside = path.parent.parent  # the cache's links lead to blobs/
    for pattern in patterns:
        if files := sorted(file for file in path.rglob(pattern) if file.is_file()):
            return Found(files, inside)
    raise UserError(
        f"{shown(name)}: none of its files is called {' or '.join(patterns)}; name the file that is meant"
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a parquet, JSON (a list, or an object of rows), JSON lines, TSV or CSV file.

    Raises: UserError, also for a single row that cannot be read: a benchmark is read whole or not at all.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in (".tsv", ".csv"):
            rows = _read_table(path, "\t" if suffix == ".tsv" else ",")
        elif suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            rows = list(content.values()) if isinstance(content, dict) else content
        else:
            opened = open_rows(path)
            rows = [opened[number] for number in range(len(opened))]
    except BadRow as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(
            f"{path}: expected rows with named columns, found {'none' if rows == [] else 'something else'}"
        )
    return rows


def _read_table(path: Path, delimiter: str) -> list[dict[str, Any]]:
    limit = csv.field_size_limit(MAX_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter=delimiter))
    finally:
        csv.field_size_limit(limit)
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise UserError(
                f"{path}: row {number} has {'more' if None in row else 'fewer'} cells than the head line"
            )
    return rows


def require(rows: Sequence[Row], columns: Iterable[str], bench: str) -> None:
    """Raises: UserError if the rows lack one of the columns."""
    missing = [name for name in columns if name not in rows[0]]
    if missing:
        raise UserError(
            f"{bench}: there is no column {', '.join(missing)}, only {', '.join(rows[0])}; is this the right file?"
        )


class Pictures:
    """The pictures that the rows of one file name.

    Args: folder: the file's. inside: pictures lie in here or in the row.
    """

    def __init__(self, folder: Path, inside: Path):
        self.folder, self.inside = folder, inside
        self._members: dict[str, tuple[zipfile.ZipFile, str]] | None = None

    def of(self, sources: Sequence[Any]) -> dict[str, Any]:
        """`images` and `error` of an Item: a picture that is missing or broken is an error, never left out."""
        try:
            return {"images": tuple(map(self._find, sources))}
        except BadRow as error:
            return {"error": str(error)}

    def _find(self, source: Any) -> LazyImage:
        if isinstance(source, Mapping):
            source = source.get("bytes") or source.get("path")
        if not source:
            raise BadRow("the row has no picture")
        if not isinstance(source, str):
            return lazy_picture(source, self.folder, self.inside)
        for folder in (self.folder, self.folder / "images", self.folder.parent):
            try:
                return lazy_picture(source, folder, self.inside)
            except BadRow as error:
                if error.reason != MISSING and (
                    folder != self.folder.parent or "outside" not in error.reason
                ):
                    raise
        return self._from_zip(source)

    def _from_zip(self, path: str) -> LazyImage:
        if self._members is None:
            self._members = self._index()
        parts = Path(path).parts
        found = next(
            (self._members[key] for start in range(2) if (key := "/".join(parts[start:])) in self._members),
            None,
        )
        if found is None:
            raise BadRow(MISSING, f"{shown(path)} is neither in {self.folder} nor in a zip there")
        archive, member = found

        def read() -> LazyImage:
            try:
                if archive.getinfo(member).file_size > MAX_MEMBER:
                    raise BadRow(
                        "a picture in a zip is too large", f"{member}: the limit is {MAX_MEMBER:,} bytes"
                    )
                return lazy_picture(archive.read(member), self.folder, self.inside, shown(member))
            except (
                zipfile.BadZipFile,
                zlib.error,
                OSError,
                RuntimeError,
                EOFError,
            ) as error:  # RuntimeError: encrypted
                raise BadRow("a picture in a zip cannot be read", f"{member} ({error})") from error

        return LazyImage(read().size, lambda: read().load())

    def _index(self) -> dict[str, tuple[zipfile.ZipFile, str]]:
        """Each member by its path, and by its path without the first folder."""
        members: dict[str, tuple[zipfile.ZipFile, str]] = {}
        for path in sorted(self.folder.glob("*.zip")):
            try:
                archive = zipfile.ZipFile(path)
            except (OSError, zipfile.BadZipFile) as error:
                raise UserError(f"{path}: not a complete zip file ({error}); download it again") from error
            for member in archive.namelist():
                for key in (member, member.partition("/")[2]):
                    members.setdefault(key, (archive, member))
        return members
