"""The files that benchmarks come in: where they lie, their rows, and their images, which are in the row, in a
folder or in a zip.
"""

import csv
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from r1ov.common.files import shown
from r1ov.data.formats.files import HUB_NAME
from r1ov.data.formats.open_image import lazy_image
from r1ov.data.formats.records import BadRow
from r1ov.data.formats.rows import open_rows
from r1ov.data.image import LazyImage
from r1ov.errors import UserError
from r1ov.folder.hub import download

Row = Mapping[str, Any]
MAX_CELL = 2**30  # characters of a TSV's cell: base64 images
MAX_MEMBER = 2**27  # bytes of an image in a zip


class Found(NamedTuple):
    files: Sequence[Path]
    inside: Path  # where their images must lie


def find(name: str, patterns: Sequence[str], extras: Sequence[str] = ()) -> Found:
    """Returns the data files of a file, a folder, or a hub data set `owner/name[@revision]`.

    Args: patterns: of file names, best first; all files that match the first one that matches any are taken.
        extras: patterns of other files to download.
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
        wanted = [f"*{pattern}" for pattern in (*patterns, *extras)]
        path = download(name, match["repo"], match["revision"], "dataset", allow_patterns=wanted)
        inside = path.parent.parent  # the cache's links lead to blobs/
    for pattern in patterns:
        if files := sorted(file for file in path.rglob(pattern) if file.is_file()):
            return Found(files, inside)
    raise UserError(
        f"{shown(name)}: none of its files is called {' or '.join(patterns)}; name the file that is meant"
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns all rows of a parquet, JSON (a list, or an object of rows), JSON lines, TSV or CSV file.

    Raises: UserError, also for a single row that cannot be read: a benchmark is read whole or not at all.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in (".tsv", ".csv"):
            rows = _read_table(path, "\t" if suffix == ".tsv" else ",")
        elif suffix == ".json":
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
            rows = list(rows.values()) if isinstance(rows, dict) else rows
        else:
            opened = open_rows(path)
            rows = [opened[number] for number in range(len(opened))]
    except BadRow as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        found = "none" if rows == [] else "something else"
        raise UserError(f"{path}: expected rows with named columns, found {found}")
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
            which = "more" if None in row else "fewer"
            raise UserError(f"{path}: row {number} has {which} cells than the head line")
    return rows


class Pictures:
    """The images that the rows of one file name.

    Args: folder: the file's. inside: images lie in here or in the row.
    """

    def __init__(self, folder: Path, inside: Path):
        self.folder, self.inside = folder, inside.resolve()

    def of(self, sources: Iterable[Any]) -> dict[str, Any]:
        """Returns `images` or `error` of an Item: a missing or broken image is an error, never left out."""
        try:
            return {"images": tuple(map(self._image, sources))}
        except UserError as error:
            return {"error": str(error)}

    def _image(self, source: Any) -> LazyImage:
        if isinstance(source, Mapping):
            source = source.get("bytes") or source.get("path")
        if not source:
            raise UserError("the row has no picture")
        found = lazy_image(source, locate=self._locate)
        # Opened anew when it is needed: what comes from a zip does not stay in memory.
        return LazyImage(found.size, lambda: lazy_image(source, locate=self._locate).load(), found.name)

    def _locate(self, place: str) -> Path | bytes:
        """Returns the file of this path, or its bytes from a zip."""
        if "://" in place:
            raise UserError(f"{shown(place)}: a URL, and nothing is fetched; download it and give its path")
        try:
            paths = [folder / place for folder in (self.folder, self.folder / "images", self.folder.parent)]
            found = [path for path in paths if path.is_file()]
            for path in found:
                if path.resolve().is_relative_to(self.inside):
                    return path
            for key in (Path(place).as_posix(), "/".join(Path(place).parts[1:])):
                if key in self._members:
                    archive, member = self._members[key]
                    if archive.getinfo(member).file_size > MAX_MEMBER:
                        raise ValueError(f"larger than {MAX_MEMBER:,} bytes in its zip")
                    return archive.read(member)
        except (zipfile.BadZipFile, zlib.error, OSError, ValueError, RuntimeError, EOFError) as error:
            # RuntimeError: encrypted, or links in a ring
            raise UserError(f"{shown(place)}: cannot be read, as a file or from a zip ({error})") from error
        fault = "lies outside the data's folder" if found else f"is missing in {self.folder} and in its zips"
        raise UserError(f"{shown(place)}: {fault}")

    @cached_property
    def _members(self) -> dict[str, tuple[zipfile.ZipFile, str]]:
        """{path: its zip and member}, also by the path without the first folder."""
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
