"""Data files as rows that can be read in any order: JSON, JSON lines, parquet by row groups."""

import json
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from r1ov.common.files import one_line
from r1ov.data.formats.records import BadRow
from r1ov.errors import UserError

MAX_LINE_BYTES = 256 * 1024 * 1024
GB18030_MARK = "\ufeff".encode("gb18030")
GROUPS_AT_HAND = 4  # parquet row groups kept in memory; a shuffled order mixes this many at a time


def open_rows(path: Path) -> Sequence:
    """The file's rows; its first bytes tell what it is, and how its text is encoded. What is not a row raises
    BadRow.

    Raises:  UserError if it is none of the three, or has no rows.
    """
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            head = file.read(4096)
        # By its mark, or by the zero bytes beside the first letters.
        encoding = "gb18030" if head.startswith(GB18030_MARK) else json.detect_encoding(head)
        text = head.decode(encoding, "ignore").lstrip("\ufeff \t\r\n")
        first_line = text.partition("\n")[0].strip()
        if text.startswith("version https://git-lfs"):
            raise UserError(f"{path}: a pointer of Git LFS, not the data; run `git lfs pull` in its folder")
        if head.startswith(b"PAR1") or suffix == ".parquet":
            rows = Parquet(path)
        elif text.startswith("[") and suffix != ".jsonl":  # a list as the first of many lines is one bad row
            rows = _parse_json(path.read_bytes().decode(encoding))
        elif first_line in ("{", "["):
            command = f"jq -c '{'.[]' if first_line == '[' else '.'}' {path.name}"
            raise UserError(f"{path}: not a row a line; `{command}` writes it so")
        else:
            rows = JsonLines(path, encoding)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid {encoding} ({error}); save it as UTF-8") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({one_line(str(error))})") from error
    if not len(rows):
        raise UserError(f"{path}: it has no rows")
    return rows


def _parse_json(text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text.removeprefix("\ufeff"), parse_constant=refuse, object_pairs_hook=named)


def named(cells: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A row of its cells. Raises ValueError for a name that is there twice: one of the two would be lost."""
    row = dict(cells)
    if len(row) < len(cells):
        raise ValueError(f"a name is there twice among {', '.join(name for name, _ in cells)}; rename one")
    return row


class JsonLines:
    """A line a row. Kept in memory: where each line begins, and a text in UTF-16, UTF-32 or GB18030."""

    def __init__(self, path: Path, encoding: str):
        self.path, self._begins, begin = path, array("q"), 0
        self._text = None if encoding.startswith("utf-8") else path.read_bytes().decode(encoding).encode()
        with self._open() as file:
            # What is longer than the limit falls apart into rows that are not JSON: counted, not lost.
            while line := file.readline(MAX_LINE_BYTES):
                if not line.isspace():
                    self._begins.append(begin)
                begin += len(line)

    def __len__(self) -> int:
        return len(self._begins)

    def __getitem__(self, number: int) -> Any:
        try:
            with self._open() as file:
                file.seek(self._begins[number])
                line = file.readline(MAX_LINE_BYTES)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read any more ({error.strerror or error})") from error
        try:
            return _parse_json(line.decode())
        except UnicodeDecodeError as error:
            raise BadRow("the line is not UTF-8", f"{error.reason}; save the file as UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise BadRow("the line is not JSON", one_line(str(error))) from error

    def _open(self) -> BinaryIO:
        return self.path.open("rb") if self._text is None else BytesIO(self._text)


class Parquet:
    """A few row groups at a time are in memory, never the file.

    group_sizes: numbers of rows, one group after the other, that are best read together.
    """

    def __init__(self, path: Path):
        from pyarrow.parquet import ParquetFile

        self.path, self._groups = path, OrderedDict()
        try:
            # Parsed once and handed over at each opening: a handle of one's own would not survive a fork.
            self._metadata = ParquetFile(path).metadata
        except (OSError, ValueError) as error:  # pyarrow's own are one or the other
            short = one_line(str(error))
            raise UserError(f"{path}: not a complete parquet file ({short}); download it again") from error
        names = self._metadata.schema.to_arrow_schema().names
        if len({*names}) < len(names):
            raise UserError(f"{path}: two of its columns have one name: {', '.join(names)}; rename one")
        groups = map(self._metadata.row_group, range(self._metadata.num_row_groups))
        self.group_sizes = [group.num_rows for group in groups]
        self._begins = list(accumulate(self.group_sizes, initial=0))

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_groups": OrderedDict()}

    def __len__(self) -> int:
        return self._begins[-1]

    def __getitem__(self, number: int) -> Any:
        import pyarrow as pa

        group = bisect_right(self._begins, number) - 1
        try:
            return self._group(group).slice(number - self._begins[group], 1).to_pylist()[0]
        except (pa.ArrowException, OSError, ValueError, IndexError) as error:
            raise BadRow("a parquet row cannot be read", one_line(str(error))) from error

    def _group(self, group: int) -> Any:
        from pyarrow.parquet import ParquetFile

        if group not in self._groups:
            while len(self._groups) >= GROUPS_AT_HAND:
                self._groups.popitem(last=False)
            with ParquetFile(self.path, metadata=self._metadata) as file:
                self._groups[group] = file.read_row_group(group, use_threads=False)
        self._groups.move_to_end(group)
        return self._groups[group]
