"""Where data files are: a file, a folder, or a data set on the Hugging Face hub."""

import hashlib
import os
import re
from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import NamedTuple

from r1ov.common.files import shown
from r1ov.common.hub import download
from r1ov.errors import UserError

SUFFIXES = (".parquet", ".jsonl", ".json")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
NOT_DATA = "dataset_info.json dataset_infos.json dataset_dict.json state.json config.json stages.jsonl"
HUB_NAME = r"(?a)(?P<repo>[\w.-]+/[\w.-]+)(?P<inner>(?:/[^/@]+)*)(?:@(?P<revision>[\w./-]+))?"
BLOCKS, BLOCK_BYTES = 256, 1 << 16  # of a large file, for its fingerprint
_SPLIT = r"(?i)(?:^|[/_.-])(train|test|validation|valid|val|dev|eval)(?=[/_.-]|$)"


class DataFile(NamedTuple):
    path: Path
    inside: Path  # where its images must lie


def located(name: str, ends: Sequence[str] = SUFFIXES + IMAGES) -> tuple[Path, Path]:
    """The file or folder that a name means, here or in huggingface_hub's cache, and the folder in which its
    images must lie. Raises UserError.

    Args: ends: of the names of the files that are downloaded from a hub data set; may hold wildcards.
    """
    path = Path(name).expanduser()
    if os.path.exists(path):
        return path, path.parent if path.is_file() else path
    match = re.fullmatch(HUB_NAME, name)
    if not match or name.startswith(("/", ".", "~")) or (name.endswith(SUFFIXES) and name.count("/") < 2):
        raise UserError(f"{shown(name)}: no such file or folder, and not a hub data set's name (owner/name)")
    inner = match["inner"].strip("/")
    patterns = [f"{escape(inner)}*{end}" for end in ends]
    if inner.endswith(SUFFIXES):
        folder = escape(inner.rpartition("/")[0])
        patterns = [escape(inner), *(f"{folder}*{suffix}" for suffix in IMAGES)]
    folder = download(name, match["repo"], match["revision"], "dataset", allow_patterns=patterns)
    if not (folder / inner).exists():
        raise UserError(f"{name}: the data set has no {inner}")
    # The cache keeps the bytes in blobs/ and links to them, so that links may lead out of the snapshot, but
    # not out of the data set.
    return folder / inner, folder.parent.parent


def find_files(name: str, split: str = "train") -> list[DataFile]:
    """The data files of a file, a folder, or a hub data set `owner/name[/file or folder][@revision]`, in a
    fixed order.

    Where files or folders are named after splits (train-00000-of-00002.parquet, test.jsonl), only those of
    `split` are taken.
    Raises:  UserError.
    """
    path, inside = located(name)
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{shown(name)}: expected a file that ends in {', '.join(SUFFIXES)}")
        return [DataFile(path, inside)]
    # file -> the splits that it or its folders are named after
    found = {
        file: {part.lower() for part in re.findall(_SPLIT, file.relative_to(path).as_posix())}
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in SUFFIXES and file.name not in NOT_DATA.split() and file.is_file()
    }
    if not found:
        raise UserError(f"{shown(name)}: no {', '.join(SUFFIXES)} file in this folder")
    if len(kinds := sorted({file.suffix.lower() for file in found})) > 1:
        raise UserError(
            f"{shown(name)}: it holds {' and '.join(kinds)} files; name the file or folder that is meant"
        )
    named = set().union(*found.values())
    if named and split not in named:
        raise UserError(
            f"{shown(name)}: it has no split {split!r}, only {', '.join(sorted(named))}; "
            "name the file that is meant"
        )
    if named and (strays := [file.name for file, splits in found.items() if not splits]):
        raise UserError(
            f"{shown(name)}: beside files named after splits it holds {', '.join(strays)[:200]}; "
            "name the files that are meant, parted by commas"
        )
    return [DataFile(file, inside) for file, splits in found.items() if not named or split in splits]


def fingerprint(path: Path) -> str:
    """A file's name, its size and a digest of its bytes; of a large file's blocks, evenly spread, not of all.

    Example: "rows.jsonl, 2,560 bytes, sha256 5f3a09c1d2e4b687"
    """
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for begin in range(0, size, max(BLOCK_BYTES, size // BLOCKS)):
            file.seek(begin)
            digest.update(file.read(BLOCK_BYTES))
    return f"{path.name}, {size:,} bytes, sha256 {digest.hexdigest()[:16]}"
