"""Where rows come from: whatever r1ov.data reads, and the playground with its truths."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from r1ov.data.formats.files import DataFile, find_files
from r1ov.data.formats.onevision import clean
from r1ov.data.formats.reader import Reader
from r1ov.data.formats.records import BadRow, Record
from r1ov.data.image import LazyImage
from r1ov.data.playground import invent, paint
from r1ov.data.playground.scene import SIZE
from r1ov.errors import UserError
from r1ov.formalize.row import Row

MAX_PIXELS = 50_000_000  # of an image; several are open at a time
TRAINABLE = ("rl", "train")  # splits of the playground


def read_rows(data: str, limit: int | None = None, seed: int = 0) -> Iterator[Row]:
    """Returns the rows of `playground[:split]`, a file, a folder or a hub data set, with unique ids; a bad
    row has the outcome "failed".

    Raises: UserError, before the first row, for data that cannot be opened or an endless playground without a
        limit.
    """
    name, _, split = data.partition(":")
    if name == "playground":
        if (split or "rl") not in TRAINABLE:
            raise UserError(
                f"--data {data[:60]!r}: expected playground:{' or playground:'.join(TRAINABLE)}; the other "
                "splits are held out"
            )
        if limit is None:
            raise UserError("--data playground has no end; give --limit N")
        rows = (_drawn(split or "rl", number, seed) for number in range(limit))
    else:
        readers = [(file, Reader([file], lazy=True)) for file in find_files(data)]
        rows = (
            _row(reader[number], file, number) for file, reader in readers for number in range(len(reader))
        )
    return _named_once(islice(rows, limit))


def count_rows(data: str, limit: int | None = None) -> int:
    """How many rows `read_rows` gives. Raises: UserError, as `read_rows`."""
    if data.partition(":")[0] == "playground":
        read_rows(data, limit)
        return limit
    total = sum(len(Reader([file])) for file in find_files(data))
    return total if limit is None else min(total, limit)


def _drawn(split: str, number: int, seed: int) -> Row:
    """A sample with what is true of it: its reasoning too, though samples of "rl" come without."""
    family, scene = invent(split, number, seed)
    return Row(
        id=f"playground-{split}-{number}",
        question=scene.question,
        image=LazyImage((SIZE, SIZE), partial(paint, scene)),
        gold=scene.answer,
        answer_kind=scene.kind,
        tag=family,
        truth={"description": scene.description, "reasoning": scene.reasoning, "family": family},
    )


def _row(item: Record | BadRow, file: DataFile, number: int) -> Row:
    """One question about one image, or about none."""
    # The source's name, as in R1-Onevision's data: the folder if there are several, else the file.
    inside = Path(file.path).parent
    tag = inside.name if inside != Path(file.inside) else file.path.stem
    name = f"{file.path.stem}-{number + 1}"
    if isinstance(item, BadRow):
        why = f"{item.reason}: {item.detail.replace(f': {item.reason}', '', 1)}"
        return Row(id=name, question="", tag=tag, outcome="failed", reason=f"read: {why}")
    users = [message["content"] for message in item.prompt if message["role"] == "user"]
    question = users[0]
    if not isinstance(question, str):
        question = "\n".join(part["text"] for part in question if part["type"] == "text")
    images = item.images
    width, height = images[0].size if images else (0, 0)
    size = f"{width} x {height} pixels, the limit is {MAX_PIXELS:,}"
    try:
        gold = item.solution or clean(item).solution  # in which a reply of one of the published layouts ends
    except BadRow:
        gold = None
    faults = {
        f"more than one question: {item.where}, {len(users)} of them": len(users) > 1,
        f"more than one picture: {item.where}, {len(images)} of them": len(images) > 1,
        f"the question is empty: {item.where}": not question.strip(),
        f"the picture is too large: {item.where}, {size}": width * height > MAX_PIXELS,
        f"no gold answer to check against: {item.where}": gold is None,
    }
    why = next((f"read: {fault}" for fault, is_so in faults.items() if is_so), None)
    return Row(
        id=(item.id or name).encode("utf-8", "replace").decode(),
        question=question.strip(),
        image=images[0] if images else None,
        gold=gold,
        answer_kind=item.kind,
        tag=tag,
        notes=("its system text is left out",) if item.prompt[0]["role"] == "system" else (),
        outcome="failed" if why else None,
        reason=why,
    )


def _named_once(rows: Iterator[Row]) -> Iterator[Row]:
    """An id that was there before gets a number."""
    seen: Counter[str] = Counter()
    for row in rows:
        name = row.id
        while seen[name]:
            seen[row.id] += 1
            name = f"{row.id}#{seen[row.id]}"
        seen[name] += 1
        yield replace(row, id=name)
