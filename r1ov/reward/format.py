"""The shape of a reply: `<think>...</think>` then `<answer>...</answer>`, each once, nothing outside."""

from typing import Literal

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
MAX_REPLY = 1_000_000  # characters; longer than any model's budget, short enough to search in a millisecond


def format_reward(completion: str, mode: Literal["strict", "soft"] = "strict") -> float:
    """1.0 if all four tags stand exactly once, in order, around bodies that are not blank, with nothing
    outside; else 0.0.

    "soft" gives a quarter for each tag that stands exactly once and after the ones before it; blank bodies
    still give 0. It never depends on whether the answer is right.
    """
    if mode not in ("strict", "soft"):
        raise ValueError(f"mode is {mode!r}, must be 'strict' or 'soft'")
    if len(completion) > MAX_REPLY:
        return 0.0
    text = completion.strip()
    places = [text.find(tag) if text.count(tag) == 1 else -1 for tag in TAGS]
    in_order, last = [], -1
    for place in places:
        in_order.append(place > last)
        last = max(last, place)
    complete = all(in_order)
    if complete:
        thinking, between, answer = (text[places[i] + len(TAGS[i]) : places[i + 1]] for i in range(3))
        if not thinking.strip() or not answer.strip():
            return 0.0
        outside = text[: places[0]] + between + text[places[3] + len(TAGS[3]) :]
        if not outside.strip():
            return 1.0
    return 0.25 * sum(in_order) if mode == "soft" else 0.0
