"""Boxes (x1, y1, x2, y2) in text, and how well they overlap."""

import json
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

from r1ov.reward.rules.reading import plain

Box = tuple[Fraction, Fraction, Fraction, Fraction]
Frame = Literal["original", "resized", "unit", "per-mille"]
MAX_BOXES = 50
_NUMBER = r"[-+]?\d{1,9}(?:\.\d{0,12})?"
_FOUR = re.compile(rf"[\[(]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[\])]")


class Labelled(NamedTuple):
    box: Box
    label: str | None


def iou(a: Sequence[Fraction | float], b: Sequence[Fraction | float]) -> float:
    """Overlap of two boxes, as areas of the plane: intersection over union, in [0, 1]. Of fractions, exact
    but for its rounding.
    """
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))


def read_boxes(text: str) -> list[Labelled] | None:
    """All boxes in the text, equal ones once; None if there is none, one that is no box (x1 < x2, y1 < y2),
    or over MAX_BOXES.

    Examples: "[1, 2, 30, 40]"; '[{"bbox_2d": [1, 2, 30, 40], "label": "cat"}]', also inside Markdown's code
        fence
    """
    body = re.sub(r"^\s*```(?:json)?|```\s*$", "", text).strip()
    found = _from_json(body) if body.startswith(("{", "[")) else None
    if found is None:
        found = [Labelled(_box(match.groups()), None) for match in _FOUR.finditer(plain(body))]
        if re.search(
            r"\d\s*,\s*[-+.\d]", _FOUR.sub("", plain(body))
        ):  # another list of numbers, which is no box
            return None
    if (
        not found
        or len(found) > MAX_BOXES
        or any(box is None or box[0] >= box[2] or box[1] >= box[3] for box, _ in found)
    ):
        return None
    return list(dict.fromkeys(found))


def read_box(text: str) -> Box | None:
    """The only box in the text."""
    found = read_boxes(text)
    return found[0].box if found and len({one.box for one in found}) == 1 else None


def box_scale(frame: Frame, original: tuple[int, int], resized: tuple[int, int]) -> tuple[Fraction, Fraction]:
    """What to multiply x and y by, from the frame a model answers in to the original picture's pixels.

    Args: original, resized: (width, height) of the picture as given, and as the vision encoder sees it (its
        grid times 14: Qwen2.5-VL answers in these pixels).
    """
    by = {"original": original, "resized": resized, "unit": (1, 1), "per-mille": (1000, 1000)}
    if frame not in by:
        raise ValueError(f"frame is {frame!r}, must be one of {', '.join(by)}")
    return Fraction(original[0], by[frame][0]), Fraction(original[1], by[frame][1])


def scaled(box: Box, scale: tuple[Fraction, Fraction]) -> Box:
    return (box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1])


def match_score(found: list[Labelled], gold: list[Labelled], threshold: float | None = None) -> float:
    """Sum of the overlaps of boxes matched one to one, best overlaps first, over the longer list's length: in
    [0, 1].

    A gold box with a label is matched only by the same label. threshold: count overlaps of at least so much
    as 1, others as 0.
    """
    sides = [
        [[float(x) for x in one.box] for one in boxes] for boxes in (found, gold)
    ]  # many pairs: fractions would take long
    pairs = sorted(
        (-iou(sides[0][i], sides[1][k]), i, k)
        for i, one in enumerate(found)
        for k, right in enumerate(gold)
        if right.label is None or right.label == one.label
    )
    total, used, taken = 0.0, set(), set()
    for minus, i, k in pairs:
        if i not in used and k not in taken:
            used.add(i)
            taken.add(k)
            total += -minus if threshold is None else float(-minus >= threshold)
    return total / max(len(found), len(gold))


def _from_json(body: str) -> list[Labelled] | None:
    """Boxes of a JSON list or object; None if it is not JSON of that shape."""
    try:
        value = json.loads(body, parse_float=str, parse_int=str, parse_constant=str)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list) and len(value) == 4 and not any(isinstance(one, list | dict) for one in value):
        value = [value]
    entries = [value] if isinstance(value, dict) else value
    found = []
    for entry in entries[: MAX_BOXES + 1]:
        label = None
        if isinstance(entry, dict):
            label = entry.get("label")
            entry = entry.get("bbox_2d", entry.get("bbox"))
        if not isinstance(entry, list) or len(entry) != 4:
            return None
        found.append(
            Labelled(_box(entry), " ".join(label.casefold().split()) if isinstance(label, str) else None)
        )
    return found


def _box(numbers) -> Box | None:
    if all(isinstance(one, str) and re.fullmatch(_NUMBER, one) for one in numbers):
        return tuple(Fraction(one.rstrip(".")) for one in numbers)
    return None
