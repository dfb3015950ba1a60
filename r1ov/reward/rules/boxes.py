"""Boxes (x1, y1, x2, y2) in text, and how well they overlap."""

import json
import math
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
    """Returns the overlap of two boxes, intersection over union of their areas, in [0, 1]; exact but for its
    rounding if they are fractions.
    """
    shared = math.prod(max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), 0) for i in (0, 1))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return float(shared / (areas - shared))


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
    """Returns the only box in the text."""
    boxes = {one.box for one in read_boxes(text) or ()}
    return boxes.pop() if len(boxes) == 1 else None


def box_scale(frame: Frame, original: tuple[int, int], resized: tuple[int, int]) -> tuple[Fraction, Fraction]:
    """Returns what to multiply x and y by, from the frame a model answers in to the original image's pixels.

    Args: original, resized: (width, height) of the image as given, and as the vision encoder sees it (its
        grid times 14: Qwen2.5-VL answers in these pixels).
    """
    sizes = {"original": original, "resized": resized, "unit": (1, 1), "per-mille": (1000, 1000)}
    if frame not in sizes:
        raise ValueError(f"frame is {frame!r}, must be one of {', '.join(sizes)}")
    return Fraction(original[0], sizes[frame][0]), Fraction(original[1], sizes[frame][1])


def scaled(box: Box, scale: tuple[Fraction, Fraction]) -> Box:
    return tuple(number * factor for number, factor in zip(box, scale * 2, strict=True))


def match_score(found: list[Labelled], gold: list[Labelled], threshold: float | None = None) -> float:
    """Sums the overlaps of boxes matched one to one, best overlaps first, over the longer list's length: in
    [0, 1].

    A gold box with a label is matched only by the same label. threshold: count overlaps of at least this much
    as 1, others as 0.
    """
    # floats: for many pairs fractions would take long
    mine, theirs = ([tuple(map(float, one.box)) for one in side] for side in (found, gold))
    pairs = [
        (iou(mine[i], theirs[k]), i, k)
        for i, one in enumerate(found)
        for k, right in enumerate(gold)
        if right.label in (None, one.label)
    ]
    total, used, taken = 0.0, set(), set()
    for overlap, i, k in sorted(pairs, key=lambda pair: -pair[0]):
        if i not in used and k not in taken:
            used.add(i)
            taken.add(k)
            total += overlap if threshold is None else float(overlap >= threshold)
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
