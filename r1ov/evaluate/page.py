"""The items as a page to look at: images, question, thought, answer, gold and verdict, in one file."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from r1ov.common import page
from r1ov.common.files import split_reply
from r1ov.evaluate.item import Verdict, Verdicts, by_question
from r1ov.evaluate.prompts import Style, question_of
from r1ov.evaluate.report import dividing_tags, values

MAX_TAGS = 8  # that get a filter


def write_page(path: Path, title: str, verdicts: Verdicts, style: Style = "none") -> None:
    """Writes one HTML file that needs no other and no network. If images would make it too large, wrong
    answers keep theirs first.

    Args: style: how the questions were put.
    """
    items = (_item(own, style) for own in by_question(verdicts).values())
    page.write_page(path, title, items, dividing_tags(verdicts)[:MAX_TAGS])


def _item(own: Verdicts, style: Style) -> dict[str, Any]:
    item = own[0].item
    return {
        "id": item.id,
        "question": question_of(item, style),
        "gold": item.answer,
        "images": item.images,
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
