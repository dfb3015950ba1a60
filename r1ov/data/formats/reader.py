"""The rows of data files as records, by number, so that a loader can begin anywhere."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from r1ov.data.formats.files import DataFile
from r1ov.data.formats.layouts import read_row
from r1ov.data.formats.onevision import clean
from r1ov.data.formats.pictures import lazy_picture
from r1ov.data.formats.records import BadRow, Record
from r1ov.data.formats.rows import Rows, open_rows
from r1ov.reward.rules.boxes import Unit


class Reader:
    """All rows of some files: reader[i] is a Record with its images open, or a BadRow; the same whenever and
    wherever it is asked.
    """

    def __init__(
        self,
        files: Sequence[DataFile],
        need: Literal["reply", "solution"] | None = None,
        clean: bool = False,
        image_folder: str | Path | None = None,
        allow_outside: bool = False,
        lazy: bool = False,
        box_unit: Unit | None = None,
    ):
        """
        Args:
            need: what a record must have: a reply to learn from (SFT), or a solution to be scored against
                (GRPO).
            clean: replies are brought to `<think>...</think>` and `<answer>...</answer>`, see
                r1ov/data/formats/onevision.py.
            image_folder: where image paths begin and must lie; default: each data file's own folder.
            allow_outside: images may lie anywhere on this machine.
            lazy: a record's images are found and measured, but decoded only by their `load`, so that rows
                can be dealt out first; `load` raises a BadRow where that fails.
            box_unit: of the rows that do not say theirs.
        """
        self.files, self.need, self.clean, self.lazy = list(files), need, clean, lazy
        self.image_folder = None if image_folder is None else Path(image_folder)
        self.allow_outside, self.box_unit = allow_outside, box_unit
        self.rows = [open_rows(file.path) for file in self.files]
        self._begins = list(accumulate(map(len, self.rows), initial=0))
        self.group_sizes = [size for rows in self.rows for size in rows.group_sizes]

    def __len__(self) -> int:
        return self._begins[-1]

    def __getitem__(self, number: int) -> Record | BadRow:
        file, rows, number = self.place(number)
        where = f"{file.path}, row {number + 1}"
        try:
            return self._record(rows[number], file, where)
        except BadRow as error:
            return error.at(where)
        except RecursionError:
            return BadRow("the row is nested too deeply").at(where)

    def place(self, number: int) -> tuple[DataFile, Rows, int]:
        """The file, its rows, and which of them has this number."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        which = bisect_right(self._begins, number) - 1
        return self.files[which], self.rows[which], number - self._begins[which]

    def _record(self, row: Any, file: DataFile, where: str) -> Record:
        record = read_row(row, where)
        if self.clean:
            record = clean(record)
        trained = [message["role"] == "assistant" and message.get("weight", 1) for message in record.messages]
        if self.need == "reply" and (record.reply is None or not any(trained)):
            raise BadRow("there is no reply to learn from")
        if self.need == "solution" and record.solution is None:
            raise BadRow("there is no gold answer to score against")
        folder = self.image_folder or file.path.parent
        inside = None if self.allow_outside else self.image_folder or file.inside
        messages, count = [], 0
        for message in record.messages:
            content = message["content"]
            if isinstance(content, list):
                content = list(content)
                for at, part in enumerate(content):
                    if part["type"] == "image":
                        count += 1
                        image = lazy_picture(part["image"], folder, inside, f"picture {count}")
                        content[at] = part | {"image": image if self.lazy else image.load()}
            messages.append({**message, "content": content})
        return replace(record, messages=messages, box_unit=record.box_unit or self.box_unit)
