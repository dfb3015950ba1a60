"""How a question is put to the model: the images before it, and the words around it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from r1ov.errors import UserError
from r1ov.evaluate.item import Item

Style = Literal["r1ov", "official", "direct", "none"]
AFTER = {  # words after the question
    "r1ov": "First think about it step by step inside <think> </think>, "
    "then give your final answer inside <answer> </answer>.",
    "direct": "Reply with the final answer alone: "
    "the letter of the right option if there are options, else the number or the words.",
}


def messages_of(item: Item, style: Style, system: str | None) -> list[dict[str, Any]]:
    """Returns the conversation that asks the question: images, then text, after the system prompt if any."""
    text = item.raw_query if style == "official" else item.question
    if style in AFTER:
        text = f"{text}\n{AFTER[style]}"
    content = [{"type": "image", "image": image} for image in item.images]
    user = {"role": "user", "content": [*content, {"type": "text", "text": text}]}
    return [user] if system is None else [{"role": "system", "content": system}, user]


def check_style(items: Sequence[Item], style: Style) -> None:
    """Raises UserError if the official prompt is asked for and the data has none."""
    lacking = [item.id for item in items if item.raw_query is None]
    if style == "official" and lacking:
        raise UserError(
            f"--prompt official: {len(lacking)} of {len(items)} questions have no official prompt, "
            f"{lacking[0]} first; leave it out"
        )


def prompt_hash(messages: Sequence[dict[str, Any]]) -> str:
    """Tells one prompt from another by its text and the sizes of its images, without decoding them."""
    digest = hashlib.blake2b(digest_size=8)
    for message in messages:
        content = message["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        plain = [part["text"] if "text" in part else part["image"].size for part in parts]
        digest.update(json.dumps([message["role"], *plain]).encode())
    return digest.hexdigest()


def swap_pictures(items: Sequence[Item]) -> list[Item]:
    """Returns every question with the images of the next one, the last with the first's.

    A control that must fall to guessing: a model that still scores has not looked.
    """
    pictured = [number for number, item in enumerate(items) if item.images]
    if len(pictured) < 2:
        raise UserError(
            f"--swap-pictures: {len(pictured)} of these questions have pictures, and none to swap them with"
        )
    swapped = list(items)
    for number, other in zip(pictured, pictured[1:] + pictured[:1], strict=True):
        swapped[number] = replace(items[number], images=items[other].images)
    return swapped
