"""How a question is put to the model: the images before it, and the words around it."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from r1ov.data.image import LazyImage
from r1ov.errors import UserError
from r1ov.evaluate.item import Item, Items

Style = Literal["r1ov", "official", "direct", "none"]
AFTER = {  # words after the question
    "r1ov": "First think about it step by step inside <think> </think>, "
    "then give your final answer inside <answer> </answer>.",
    "direct": "Reply with the final answer alone: "
    "the letter of the right option if there are options, else the number or the words.",
}


def question_of(item: Item, style: Style) -> str:
    """Returns the text of the question as it is put."""
    text = item.raw_query if style == "official" else item.question
    return f"{text}\n{AFTER[style]}" if style in AFTER else text


def messages_of(item: Item, style: Style, system: str | None) -> list[dict[str, Any]]:
    """Returns the conversation that asks the question: as the data has it, else the images, then the text."""
    if item.messages and style != "official":
        given = item.messages
        if style in AFTER:
            *before, last = given
            content, after = last["content"], {"type": "text", "text": f"\n{AFTER[style]}"}
            content = [{"type": "text", "text": content}] if isinstance(content, str) else content
            given = [*before, {**last, "content": [*content, after]}]
    else:
        text = {"type": "text", "text": question_of(item, style)}
        given = [{"role": "user", "content": [*({"type": "image"} for _ in item.images), text]}]
    if system is not None:
        given = [{"role": "system", "content": system}, *(one for one in given if one["role"] != "system")]
    images = iter(item.images)

    def filled(content: Any) -> Any:
        if isinstance(content, str):
            return content
        return [part if "text" in part else {**part, "image": next(images)} for part in content]

    return [{**message, "content": filled(message["content"])} for message in given]


def prompt_hash(messages: Sequence[dict[str, Any]]) -> str:
    """Tells one prompt from another by its text and the sizes of its images, without decoding them."""
    digest = hashlib.blake2b(digest_size=8)
    for message in messages:
        content = message["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        plain = [part["text"] if "text" in part else part["image"].size for part in parts]
        digest.update(json.dumps([message["role"], *plain]).encode())
    return digest.hexdigest()


def swap_pictures(items: Items) -> list[Item]:
    """Returns every question with other images, that look different: the next ones of the same number.

    A control that must fall to guessing: a model that still scores has not looked. Says on stderr how many
    questions have nothing to exchange.
    """
    looks = [_look(item.images) for item in items]
    by_count: dict[int, dict[bytes, Sequence[LazyImage]]] = {}
    for look, item in zip(looks, items, strict=True):
        if look:
            by_count.setdefault(len(item.images), {})[look] = item.images
    others: dict[bytes | None, Sequence[LazyImage]] = {}
    for different in by_count.values():
        first, *rest = different.values()
        others |= zip(different, [*rest, first], strict=True) if rest else {}
    if not others:
        raise UserError(
            f"--swap-pictures: {len(looks) - looks.count(None)} of these questions have pictures, "
            f"{len({*looks} - {None})} of them different; it takes two"
        )
    if left := sum(look not in others for look in looks):
        print(
            f"--swap-pictures: {left} of {len(items)} questions have no picture to exchange", file=sys.stderr
        )
    return [
        replace(item, images=others.get(look, item.images)) for look, item in zip(looks, items, strict=True)
    ]


def _look(images: Sequence[LazyImage]) -> bytes | None:
    """Returns a digest of the decoded images; None if there is none, or one that cannot be decoded."""
    digest = hashlib.blake2b()
    try:
        for image in images:
            digest.update(str(image.size).encode() + image.load().tobytes())
    except UserError:
        return None
    return digest.digest() if images else None
