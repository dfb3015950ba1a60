"""The items as a page to look at: images, question, thought, answer, gold and verdict, in one file."""

import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from r1ov.common.files import split_reply, write_text
from r1ov.common.page import data_url
from r1ov.data.image import LazyImage
from r1ov.errors import UserError
from r1ov.evaluate.item import Verdict, Verdicts, by_question
from r1ov.evaluate.prompts import Style, question_of
from r1ov.evaluate.report import dividing_tags, values

ROOM = 30 << 20  # image budget of the page, in base64 characters
MAX_TAGS = 8  # that get a filter


def write_page(path: Path, title: str, verdicts: Verdicts, style: Style = "none") -> None:
    """Writes one HTML file that needs no other and no network. If images would make it too large, wrong
    answers keep theirs first.

    Args: style: how the questions were put.
    """
    questions = by_question(verdicts)
    album: dict[str, dict[str, Any]] = {}  # the page's images by their data: URL, each once
    pictures = {}
    for id, own in sorted(questions.items(), key=lambda pair: all(one.status == "right" for one in pair[1])):
        pictures[id] = [_added(album, image) for image in own[0].item.images]
    items = [_item(own, pictures[id], style) for id, own in questions.items()]
    tags = dividing_tags(verdicts)[:MAX_TAGS]
    data = {"items": items, "pictures": list(album.values()), "tags": tags}
    # Inside <script> nothing is markup but "<!--" and "</script": JSON has another spelling of their first
    # letter.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    write_text(path, page.replace("<!--title-->", html.escape(title)).replace("<!--data-->", text))


def _added(album: dict[str, dict[str, Any]], image: LazyImage) -> int | None:
    """Returns the image's number in the page; None if there is no room for it, or it cannot be decoded."""
    if sum(map(len, album)) >= ROOM:
        return None
    try:
        url = data_url(image.load())
    except UserError:  # its question has an error row that says so
        return None
    return album.setdefault(url, {"number": len(album), "url": url, "width": image.size[0]})["number"]


def _item(own: Verdicts, pictures: Sequence[int | None], style: Style) -> dict[str, Any]:
    item = own[0].item
    return {
        "id": item.id,
        "question": question_of(item, style),
        "gold": item.answer,
        "pictures": [number for number in pictures if number is not None],
        "left": pictures.count(None),
        "tags": {name: values(item, name) for name in item.tags},
        "samples": [_sample(one) for one in own],
    }


def _sample(one: Verdict) -> dict[str, Any]:
    text = one.prediction.text
    thinking, after = split_reply(text)[0], text.rpartition("</think>")[2].strip()
    reply = text if thinking is None else after if "</think>" in text else ""
    said = {"text": "", "thinking": thinking, "reply": reply}
    names = ("status", "answer", "method", "judged")
    return {**asdict(one.prediction), **said, **{name: getattr(one, name) for name in names}}
