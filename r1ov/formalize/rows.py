"""Where rows come from: whatever r1ov.data reads, and the playground with its truths."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

from r1ov.data.formats.files import DataFile, find_files
from r1ov.data.formats.onevision import clean
from r1ov.data.formats.reader import Reader
from r1ov.data.formats.records import BadRow, Record
from r1ov.data.playground import invent
from r1ov.data.playground.source import Playground
from r1ov.errors import UserError
from r1ov.formalize.row import Row

MAX_PIXELS = 50_000_000  # of a picture; several are open at a time
TRAINABLE = ("rl", "train")  # splits of the playground


def read_rows(data: str, limit: int | None = None, seed: int = 0) -> Iterator[Row]:
    """The rows of `playground[:split]`, a file, a folder or a hub data set, in order, ids unique; bad ones
    with outcome "failed".

    Raises:  UserError, before the first row, for data that cannot be opened or an endless playground without a limit.
    """
    if data.partition(":")[0] == "playground":
        split = data.partition(":")[2] or "rl"
        if split not in TRAINABLE:
            raise UserError(
                f"--data {data[:60]!r}: expected playground:{' or playground:'.join(TRAINABLE)}; the other splits are held out"
            )
        if limit is None:
            raise UserError("--data playground has no end; give --limit N")
        rows = (_drawn(split, number, seed) for number in range(limit))
    else:
        readers = [(file, Reader([file], lazy=True)) for file in find_files(data)]
        rows = (
            _row(reader[number], file, number) for file, reader in readers for number in range(len(reader))
        )
    return _named_once(
        row for _, row in zip(range(limit) if limit is not None else count(), rows, strict=False)
    )


def count_rows(data: str, limit: int | None = None) -> int:
    """How many rows `read_rows` gives, for a progress bar.

    Raises:  UserError, as `read_rows`.
    """
    if data.partition(":")[0] == "playground":
        read_rows(data, limit)
        return limit
    total = sum(len(Reader([file])) for file in find_files(data))
    return total if limit is None else min(total, limit)


def _drawn(split: str, number: int, seed: int) -> Row:
    """A sample of the playground with what is true of it, its reasoning even in the split whose samples come
    without.
    """
    family, scene = invent(split, number, seed)
    record = Playground(split, seed)[number]
    return Row(
        id=f"playground-{split}-{number}",
        question=scene.question,
        image=record.images[0],
        gold=scene.answer,
        answer_kind=scene.kind,
        tag=family,
        truth={"description": scene.description, "reasoning": scene.reasoning, "family": family},
    )


def _row(item: Record | BadRow, file: DataFile, number: int) -> Row:
    """One question about one picture, or about none."""
    label, tag = f"{file.path.stem}-{number + 1}", _tag(file)
    if isinstance(item, BadRow):
        return _failed(label, tag, f"{item.reason}: {item.detail.replace(f': {item.reason}', '', 1)}")
    label = (item.id or label).encode("utf-8", "replace").decode()
    users = [message for message in item.prompt if message["role"] == "user"]
    if len(users) > 1:
        return _failed(label, tag, f"more than one question: {item.where}, {len(users)} of them")
    images = item.images
    if len(images) > 1:
        return _failed(label, tag, f"more than one picture: {item.where}, {len(images)} of them")
    content = users[0]["content"]
    question = (
        content
        if isinstance(content, str)
        else "\n".join(part["text"] for part in content if part["type"] == "text")
    )
    if not question.strip():
        return _failed(label, tag, f"the question is empty: {item.where}")
    if images and images[0].size[0] * images[0].size[1] > MAX_PIXELS:
        width, height = images[0].size
        return _failed(
            label,
            tag,
            f"the picture is too large: {item.where}, {width} x {height} pixels, the limit is {MAX_PIXELS:,}",
        )
    gold = item.solution or _concluded(item)
    if gold is None:
        return _failed(label, tag, f"no gold answer to check against: {item.where}")
    notes = ("its system text is left out",) if item.prompt[0]["role"] == "system" else ()
    image = images[0] if images else None
    return Row(
        id=label,
        question=question.strip(),
        image=image,
        gold=gold,
        answer_kind=item.kind,
        tag=tag,
        notes=notes,
    )


def _failed(label: str, tag: str | None, why: str) -> Row:
    return Row(id=label, question="", image=None, gold=None, tag=tag, outcome="failed", reason=f"read: {why}")


def _concluded(record: Record) -> str | None:
    """The answer that a reply of one of the published layouts ends in."""
    try:
        return clean(record).solution
    except BadRow:
        return None


def _tag(file: DataFile) -> str | None:
    """The source's name, as R1-Onevision's data has it: the folder, where the data lies in several; else the
    file's own name.
    """
    inside = Path(file.path).parent
    return inside.name if inside != Path(file.inside) else file.path.stem


def _named_once(rows: Iterator[Row]) -> Iterator[Row]:
    """An id that was there before gets a number."""
    seen: Counter[str] = Counter()
    for row in rows:
        name = row.id
        while seen[name]:
            seen[row.id] += 1
            name = f"{row.id}#{seen[row.id]}"
        seen[name] += 1
        yield replace(row, id=name) if name != row.id else row
