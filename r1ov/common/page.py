"""For people to look at: questions, images and replies as one HTML file; a table in Markdown."""

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from r1ov.common.files import write_text
from r1ov.errors import UserError

SIDE = 360  # pixels of an image, wide or high: a page of hundreds of images must still open
EXACT_SIDE = 200  # images up to this size are kept as they are
ROOM = 30 << 20  # image budget of the page, in base64 characters
# A float is a share in [0, 1], a pair of them an interval, None an empty cell.
Cell = str | float | int | tuple[float, float] | None
RIGHT = ("right", "done")  # statuses of a sample that nobody needs to look at


def write_page(
    path: Path, title: str, items: Iterable[Mapping], tags: Sequence[str] = (), head: str = ""
) -> None:
    """Writes one HTML file that needs no other and no network. If images would make it too large, those that
    are not right keep theirs first.

    Args:
        items: each with id, question, gold, images (LazyImages), tags (name -> values) and samples: each a
            status, thinking, reply and facts (name -> text) of one answer.
        tags: those that get a filter.
        head: HTML above the items.
    """
    album = {}  # the page's images by their data: URL, each once
    items = [dict(item) for item in items]
    for item in sorted(items, key=lambda item: all(one["status"] in RIGHT for one in item["samples"])):
        numbers = [_added(album, image) for image in item.pop("images")]
        item["pictures"] = [number for number in numbers if number is not None]
        item["left"] = numbers.count(None)
    data = {"items": items, "pictures": list(album.values()), "tags": tags}
    # Inside <script> nothing is markup but "<!--" and "</script": JSON has another spelling of their first
    # letter.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    page = Path(__file__).with_suffix(".html").read_text("utf-8")
    page = page.replace("<!--title-->", html.escape(title)).replace("<!--head-->", head)
    write_text(path, page.replace("<!--data-->", text))


def _added(album: dict, image: Any) -> int | None:
    """Returns the image's number in the page; None if there is no room for it, or it cannot be decoded."""
    if sum(map(len, album)) >= ROOM:
        return None
    try:
        small = image.load().copy()
    except UserError:  # its question has an error row that says so
        return None
    kind = "png" if max(small.size) <= EXACT_SIDE else "webp"
    small.thumbnail((SIDE, SIDE))
    url = f"data:image/{kind};base64,{base64_image(small, kind)}"
    return album.setdefault(url, {"number": len(album), "url": url, "width": image.size[0]})["number"]


def base64_image(image: Image.Image, kind: str = "png") -> str:
    """Returns the encoded file as base64 text."""
    file = io.BytesIO()
    image.save(file, kind, quality=75, method=1)
    return base64.b64encode(file.getvalue()).decode()


def html_table(rows: Iterable[Iterable[Cell]]) -> str:
    """Returns a table; its first row is the head."""
    lines = ("".join(f"<td>{html.escape(_shown(cell))}" for cell in row) for row in rows)
    return f"<table><tr>{'<tr>'.join(lines)}</table>"


def markdown_table(rows: Sequence[Sequence[Cell]]) -> str:
    """Returns a table in GitHub's Markdown; its cells are one line each, with nothing that would break it,
    text to the left and numbers to the right.

    Args: rows: the head first.
    """
    head, *lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    columns = zip(*(rows[1:] or rows), strict=True)
    aligned = ["---" if any(isinstance(cell, str) for cell in column) else "---:" for column in columns]
    return "\n".join([head, f"|{'|'.join(aligned)}|", *lines])


def _shown(cell: Cell) -> str:
    match cell:
        case low, high:
            return f"{low:.1%} to {high:.1%}"
        case float():
            return f"{cell:.1%}"
        case int():
            return f"{cell:,}"
    return cell or ""


def _cell(cell: Cell) -> str:
    return _shown(cell).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
