"""How a question is put to the model: the images before it, and the words around it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from r1ov.common.files import say
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


def messages_of(item: Item, style: Style, system: str | None) -> list[dict]:
    """Returns the conversation that asks the question: as the data has it, else the images, then the text."""
    if item.messages and style != "official":
        *before, last = item.messages
        content = last["content"]
        if style in AFTER:
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            content = [*parts, {"type": "text", "text": f"\n{AFTER[style]}"}]
        asked = [*before, {**last, "content": content}]
    else:
        text = {"type": "text", "text": question_of(item, style)}
        asked = [{"role": "user", "content": [*({"type": "image"} for _ in item.images), text]}]
    if system is not None:
        asked = [{"role": "system", "content": system}, *(one for one in asked if one["role"] != "system")]
    images, filled = iter(item.images), []
    for message in asked:
        content = message["content"]
        if not isinstance(content, str):
            content = [part if "text" in part else {**part, "image": next(images)} for part in content]
        filled.append({**message, "content": content})
    return filled


def swap_pictures(items: Items) -> list[Item]:
    """Returns every question with other images, that look different: those of the next question with as many,
    of the playground's next of the same family.

    A control that must fall to guessing: a model that still scores has not looked. Says on stderr how many
    questions have nothing to exchange.
    """
    kinds = [(len(item.images), item.tags.get("family")) for item in items]
    looks = [_look(item.images) for item in items]
    swapped, left = [], 0
    for at, item in enumerate(items):
        fits = (
            other
            for other in (*range(at + 1, len(items)), *range(at))
            if looks[at] and looks[other] and kinds[at] == kinds[other] and looks[at] != looks[other]
        )
        other = next(fits, at)
        left += other == at
        swapped.append(replace(item, images=items[other].images))
    if left == len(items):
        raise UserError("--swap-pictures: no two of these questions have pictures that look different")
    if left:
        say(f"--swap-pictures: {left} of {len(items)} questions have no picture to exchange")
    return swapped


def _look(images: Sequence[LazyImage]) -> tuple:
    """Returns what tells images from others; () if there is none, or one that cannot be decoded."""
    try:
        return tuple((image.size, hash(image.load().tobytes())) for image in images)
    except UserError:
        return ()
