"""The shape of a reply: `<think>...</think>` then `<answer>...</answer>`, each once, nothing outside."""

import re
from typing import Literal

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
MAX_REPLY = 1_000_000  # characters; longer than any model's budget, short enough to search in a millisecond


def format_reward(completion: str, mode: Literal["strict", "soft"] = "strict") -> float:
    """1.0 if the reply has this shape, else 0.0; "soft": quarters, as `shape_reward`.

    A reply that ends a thought which it did not begin continues its prompt's `<think>`, as templates of R1's
    kind open it. It never depends on whether the answer is right.
    """
    is_continued = "</think>" in completion and "<think>" not in completion
    return shape_reward("<think>" + completion if is_continued else completion, mode)


def shape_reward(reply: str, mode: Literal["strict", "soft"] = "strict", opened: str = "") -> float:
    """The same of a whole reply, with what its prompt opened: 1.0 if all four tags are in it exactly once, in
    order, around bodies that are not blank, with nothing outside; else 0.0.

    "soft" gives a quarter for each tag that is there exactly once and after the ones before it; blank bodies
    still give 0.

    Args: opened: what of the reply its prompt wrote; a thought that it also closed may be blank.
    """
    if mode not in ("strict", "soft"):
        raise ValueError(f"mode is {mode!r}, must be 'strict' or 'soft'")
    if len(reply) > MAX_REPLY:
        return 0.0
    places = [reply.find(tag) if reply.count(tag) == 1 else -1 for tag in TAGS]
    in_order = [place > max(places[:at], default=-1) for at, place in enumerate(places)]
    if all(in_order):
        before, thinking, between, answer, after = re.split("|".join(TAGS), reply)
        if not (thinking.strip() or "</think>" in opened) or not answer.strip():
            return 0.0
        if not (before + between + after).strip():
            return 1.0
    return 0.25 * sum(in_order) if mode == "soft" else 0.0
