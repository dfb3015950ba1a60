"""The items as a page for people who would rather look: pictures, question, thought, answer, gold and
verdict, in one file.
"""

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from r1ov.common.text import split_reply
from r1ov.data.image import LazyImage
from r1ov.errors import UserError
from r1ov.evaluate.predictions import write_atomically
from r1ov.evaluate.report import Answered

SIDE = 360  # pixels of a picture, at most
ROOM = 30 << 20  # letters of pictures in the page: browsers open it at once
MAX_VALUES, MAX_TAGS = 100, 8  # what is worth a filter


def write_page(path: Path, title: str, answered: Sequence[Answered]) -> None:
    """One HTML file that needs no other and no network. Where pictures would make it too large, wrong answers
    keep theirs first.
    """
    grouped: dict[str, list[Answered]] = {}
    for one in answered:
        grouped.setdefault(one.item.id, []).append(one)
    album = _Album()
    chosen = {}
    for own in sorted(grouped.values(), key=lambda own: all(one.status == "right" for one in own)):
        chosen[own[0].item.id] = [album.add(image) for image in own[0].item.images]
    items = [
        _item(own, [number for number in chosen[name] if number is not None], chosen[name].count(None))
        for name, own in grouped.items()
    ]
    names = dict.fromkeys(name for item in items for name in item["tags"])
    values = {name: {value for item in items for value in item["tags"].get(name, ())} for name in names}
    tags = [name for name in names if 1 < len(values[name]) <= MAX_VALUES][:MAX_TAGS]
    data = json.dumps({"items": items, "pictures": album.pictures, "tags": tags}, ensure_ascii=False)
    # Inside <script> nothing is markup but "<!--" and "</script": JSON has another spelling of their first
    # letter.
    data = data.replace("<", "\\u003c")
    page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    write_atomically(path, page.replace("<!--title-->", html.escape(title)).replace("<!--data-->", data))


class _Album:
    """The page's pictures, each once."""

    def __init__(self):
        self.pictures: list[dict[str, Any]] = []
        self.numbers: dict[str, int] = {}
        self.room = ROOM

    def add(self, image: LazyImage) -> int | None:
        """The picture's number; None where there is no room for it, or it cannot be decoded."""
        if self.room <= 0:
            return None
        try:
            url = _thumbnail(image.load())
        except UserError:  # its question has an error row that says so
            return None
        if url not in self.numbers:
            self.numbers[url] = len(self.pictures)
            self.pictures.append({"url": url, "width": image.size[0]})
            self.room -= len(url)
        return self.numbers[url]


def _thumbnail(image: Image.Image) -> str:
    """A data: URL of the picture, shrunk if it is large; a small one is exact."""
    file, is_small = io.BytesIO(), max(image.size) <= 200
    image = image.copy()
    image.thumbnail((SIDE, SIDE))
    image.save(file, "PNG") if is_small else image.save(file, "WEBP", quality=75, method=1)
    return f"data:image/{'png' if is_small else 'webp'};base64,{base64.b64encode(file.getvalue()).decode()}"


def _item(own: Sequence[Answered], pictures: list[int], left: int) -> dict[str, Any]:
    item = own[0].item
    return {
        "id": item.id,
        "question": item.question,
        "gold": item.answer,
        "pictures": pictures,
        "left": left,
        "tags": {
            name: [value] if isinstance(value, str) else list(value) for name, value in item.tags.items()
        },
        "samples": [_sample(one) for one in own],
    }


def _sample(one: Answered) -> dict[str, Any]:
    text, verdict = one.prediction.text, one.verdict
    thinking = split_reply(text)[0]
    reply = text if thinking is None else text.rpartition("</think>")[2].strip() if "</think>" in text else ""
    return {
        "status": one.status,
        "thinking": thinking,
        "reply": reply,
        "answer": verdict.answer,
        "method": verdict.method,
        "judged": None if verdict.judged is None else "right" if verdict.judged >= 1 else "wrong",
        "tokens": one.prediction.completion_tokens,
        "finish": {"length": "at the token limit"}.get(one.prediction.finish_reason, ""),
        "error": one.prediction.error,
    }
