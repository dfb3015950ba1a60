"""Text for people, and the two parts of a reply."""

import re


def one_line(text: str) -> str:
    """The text on one line, safe on a terminal: control characters escaped, at most 2,000 characters."""
    text = " ".join(text[:10_000].split())
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return text if len(text) <= 2000 else text[:1997] + "..."


def shown(address: str) -> str:
    """A URL or path as errors show it: on one line, not too long, without a password."""
    address = re.sub(r"(?<=://)[^/@]*@", "", address)
    address = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in address)
    return address if len(address) <= 200 else address[:197] + "..."


def split_reply(text: str) -> tuple[str | None, str | None]:
    """(thinking, answer) of a reply, stripped; None for a thought or an answer that is not there.

    The thinking runs from the first `<think>`, or from the start where the prompt opened it, to the last
    `</think>`, or to the end where it was cut off. The answer counts only after the last `</think>`, and only
    if there is exactly one `<answer>` block there: nothing inside the thought is taken for it.

    Example: "<think>2+2</think>\\n<answer>4</answer>" -> ("2+2", "4")
    """
    thinking = None
    if "<think>" in text or "</think>" in text:
        thinking = text.split("<think>", 1)[-1].rsplit("</think>", 1)[0].strip()
    tail = text.rsplit("</think>", 1)[-1]
    if "<think>" in tail or tail.count("<answer>") != 1 or tail.count("</answer>") != 1:
        return thinking, None
    before, _, after = tail.partition("<answer>")
    if "</answer>" in before:
        return thinking, None
    return thinking, after.split("</answer>")[0].strip()
