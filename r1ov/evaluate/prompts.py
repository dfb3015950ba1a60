"""How a question is put to the model: the words around it, and the pictures before it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from r1ov.errors import UserError
from r1ov.evaluate.item import Item

Style = Literal["r1ov", "official", "direct", "none"]
AFTER = {  # what stands after the question
    "r1ov": "First think about it step by step inside <think> </think>, then give your final answer inside <answer> </answer>.",
    "direct": "Reply with the final answer alone: the letter of the right option if there are options, else the number or the words.",
}


def messages_of(item: Item, style: Style, system: str | None) -> list[dict[str, Any]]:
    """The conversation that asks the question: pictures, then text, after the system prompt if one is given."""
    text = item.raw_query if style == "official" else item.question
    if style in AFTER:
        text = f"{text}\n{AFTER[style]}"
    first = [] if system is None else [{"role": "system", "content": system}]
    content = [{"type": "image", "image": image} for image in item.images]
    return [*first, {"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def check_style(items: Sequence[Item], style: Style) -> None:
    """Raises UserError where the official prompt is asked for and the data has none."""
    lacking = [item.id for item in items if item.raw_query is None]
    if style == "official" and lacking:
        raise UserError(
            f"--prompt official: {len(lacking)} of {len(items)} questions have no official prompt, {lacking[0]} first; leave it out"
        )


def prompt_hash(messages: Sequence[dict[str, Any]]) -> str:
    """Tells one prompt from another by its text and by the sizes of its pictures, none of which is decoded
    for this.
    """
    digest = hashlib.blake2b(digest_size=8)
    for message in messages:
        parts = (
            message["content"]
            if isinstance(message["content"], list)
            else [{"type": "text", "text": message["content"]}]
        )
        plain = [part["text"] if part["type"] == "text" else part["image"].size for part in parts]
        digest.update(json.dumps([message["role"], *plain]).encode())
    return digest.hexdigest()


def swap_pictures(items: Sequence[Item]) -> list[Item]:
    """Every question with the pictures of the next one, the last with the first's.

    A control that must fall to guessing: a model that still scores then has not looked.
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
