"""Whether a reply's answer is right. The kind of answer comes from the row or the gold, never from the prediction.

Kinds here: mcq (a choice letter), yes_no, number (compared exactly, as fractions), text, bbox (overlap of at least a half).
"""

import re
from fractions import Fraction

from r1ov.reward.format import split_reply

KINDS = ("mcq", "yes_no", "number", "text", "bbox")
_NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?"


def accuracy_reward(completion: str, gold: str, kind: str | None = None) -> float | None:
    """1.0 if the answer in the completion's `<answer>` block is right, 0.0 if not, None if the gold itself cannot be read.

    Args:
        completion: the whole reply, thought included. gold: the right answer.
        kind: one of KINDS; None takes it from the gold.
    """
    kind = kind or kind_of(gold)
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, must be one of {', '.join(KINDS)}")
    right = _READERS[kind](gold)
    if right is None:
        return None
    _, answer = split_reply(completion)
    found = None if answer is None else _READERS[kind](answer)
    if found is None:
        return 0.0
    if kind == "bbox":
        return float(iou(found, right) >= 0.5)
    return float(found == right)


def kind_of(gold: str) -> str:
    """The kind of a gold answer whose row does not say.

    Examples: "B" -> mcq; "Yes" -> yes_no; "1,024" -> number; "[1, 2, 30, 40]" -> bbox; "blue star" -> text
    """
    for kind in ("yes_no", "mcq", "bbox", "number"):
        if _READERS[kind](gold) is not None:
            return kind
    return "text"


def iou(a: tuple[Fraction, ...], b: tuple[Fraction, ...]) -> float:
    """Overlap of two boxes (x1, y1, x2, y2): intersection over union, in [0, 1]."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))


def read_letter(text: str) -> str | None:
    """The one choice letter in forms such as `B`, `(b)`, `B.`, `**B**`, `B. blue star`; None if there is none or several."""
    match = re.fullmatch(r"[*\s(\[]*(?:option\s+)?([A-Za-z])[*\s)\].:]*(?:(?<=[.):])\s*\S.*)?", text.strip(), re.IGNORECASE | re.DOTALL)
    return match[1].upper() if match else None


def read_yes_no(text: str) -> str | None:
    words = set(re.findall(r"[a-z]+", text.lower())) & {"yes", "no"}
    return words.pop() if len(words) == 1 else None


def read_number(text: str) -> Fraction | None:
    """An integer, decimal, or fraction, exactly; thousands commas and a leading `x =` are allowed."""
    match = re.fullmatch(rf"(?:[A-Za-z]\s*=\s*)?({_NUMBER})\s*°?\.?", text.strip())
    if not match or len(match[1]) > 1000:  # Python refuses to read more than 4,300 digits
        return None
    whole, _, below = match[1].replace(",", "").replace(" ", "").partition("/")
    return None if below and int(below) == 0 else Fraction(whole) / (int(below) if below else 1)


def read_text(text: str) -> str | None:
    """Lower case, single spaces, no articles, no final punctuation."""
    words = re.sub(r"\b(?:the|a|an)\s+", "", " ".join(text.lower().split())).strip(" .!\"'")
    return words or None


def read_box(text: str) -> tuple[Fraction, ...] | None:
    """Four numbers in brackets, x1 < x2 and y1 < y2."""
    match = re.search(r"\[([^\[\]]*)\]", text)
    numbers = [read_number(part) for part in match[1].split(",")] if match else []
    if len(numbers) != 4 or None in numbers or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
        return None
    return tuple(numbers)


_READERS = {"mcq": read_letter, "yes_no": read_yes_no, "number": read_number, "text": read_text, "bbox": read_box}
