"""Boxes (x1, y1, x2, y2) in text, the frame they are measured in, and how well they overlap."""

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import cycle
from typing import Literal, NamedTuple, get_args

from r1ov.errors import UserError
from r1ov.reward.rules.reading import plain

Box = tuple[Fraction, Fraction, Fraction, Fraction]
Unit = Literal["original", "resized", "unit", "per-mille"]
BOX_UNITS = get_args(Unit)
MAX_BOXES = 50
OUTSIDE = 1.05  # times its image's side: a box that ends beyond is not measured in it
_NUMBER = r"[-+]?\d{1,9}(?:\.\d{0,20})?"
_PAIR = rf"[\[(]\s*{_NUMBER}\s*,\s*{_NUMBER}\s*[\])]"
_PAIRS = re.compile(rf"{_PAIR}(?:\s*,?\s*{_PAIR})+")
_FOUR = re.compile(rf"[\[(]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[\])]")
_PLACES = re.compile(f"{_PAIRS.pattern}|{_FOUR.pattern}")
_BARE = re.compile(rf"\A{_NUMBER}(?:[\s,]\s*{_NUMBER}){{3}}\Z")
_TOKENS = re.compile(r"<\|box_(?:start|end)\|>|</?box>")
_LABEL = re.compile(r"""["']label["']\s*:\s*["']([^"']*)["']""")


class Labelled(NamedTuple):
    box: Box
    label: str | None


class Frame(NamedTuple):
    """The (width, height) of an image as the data has it and as the model sees it, and how the data counts.

    Qwen2.5-VL answers in pixels of the resized image. unit: what the data's boxes are measured in: pixels of
    either image, 0 to 1, or 0 to 1000; None: 0 to 1 if nothing in it is above 1, else the original's pixels.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    unit: Unit | None = None

    def scale(self, boxes: Sequence[Labelled]) -> tuple[Fraction, Fraction] | None:
        """What takes x and y of the data's boxes to the resized image; None if one lies outside its image."""
        corner = [max(one.box[2 + axis] for one in boxes) for axis in (0, 1)]
        sizes = {
            "original": self.original,
            "resized": self.resized,
            "unit": (1, 1),
            "per-mille": (1000, 1000),
        }
        size = sizes[self.unit or ("unit" if max(corner) <= 1 else "original")]
        if any(most > OUTSIDE * side for most, side in zip(corner, size, strict=True)):
            return None
        return tuple(Fraction(new, side) for new, side in zip(self.resized, size, strict=True))


def is_marked(text: str) -> bool:
    """Whether the text says itself that its numbers are a box: by a key of JSON, or Qwen's tokens."""
    return bool(re.search(r"""["']bbox(?:_2d)?["']""", text) or _TOKENS.search(text))


def read_boxes(text: str) -> list[Labelled] | None:
    """Returns all boxes in the text, equal ones once; None if there is none, one that is no box (x1 < x2,
    y1 < y2), another list of numbers, or over MAX_BOXES.

    Examples: "[1, 2, 30, 40]"; "(1, 2), (30, 40)"; "[[1, 2], [30, 40]]"; "1, 2, 30, 40" and nothing else;
        '[{"bbox_2d": [1, 2, 30, 40], "label": "cat"}]'; "<|box_start|>(1,2),(30,40)<|box_end|>"
    """
    text = _TOKENS.sub(";", plain(text))
    for pattern in (_BARE, _PAIRS):
        text = pattern.sub(lambda match: f"[{', '.join(re.findall(_NUMBER, match[0]))}]", text)
    found = []
    for part in re.split("[{}]", text):
        label = _LABEL.search(part)
        for numbers in _FOUR.findall(part):
            x1, y1, x2, y2 = (Fraction(number.rstrip(".")) for number in numbers)
            if x1 >= x2 or y1 >= y2:
                return None
            found.append(Labelled((x1, y1, x2, y2), " ".join(label[1].casefold().split()) if label else None))
    if not 0 < len(found) <= MAX_BOXES or re.search(r"\d\s*,\s*[-+.\d]", _FOUR.sub("", text)):
        return None
    return list(dict.fromkeys(found))


def read_box(text: str) -> Box | None:
    """Returns the only box in the text."""
    boxes = {one.box for one in read_boxes(text) or ()}
    return boxes.pop() if len(boxes) == 1 else None


def score_boxes(
    answer: str, gold: str, kind: str, threshold: float | None = None, frame: Frame | None = None
) -> float | None:
    """Returns how well the answer's boxes overlap the gold's, in [0, 1]; None if the gold's cannot be read.

    Args: kind: "bbox", one box whatever its label; or "boxes". threshold: as `match_score`. frame: without
        it, both are measured alike.
    """
    read = read_boxes if kind == "boxes" else lambda text: (box := read_box(text)) and [Labelled(box, None)]
    right, found = read(gold), read(answer)
    if right and frame:
        scale = frame.scale(right)
        right = scale and [Labelled(scaled(one.box, scale), one.label) for one in right]
    if not right or not found:
        return 0.0 if right else None
    return match_score(found, right, threshold)


def scaled(box: Box, scale: tuple[Fraction, Fraction]) -> Box:
    return tuple(number * factor for number, factor in zip(box, scale * 2, strict=True))


def resized(text: str, frame: Frame) -> str:
    """Returns a target's text with its boxes in whole pixels of the image that the model sees.

    Raises: UserError if one lies outside its image.
    """
    found = [tuple(map(float, re.findall(_NUMBER, match[0]))) for match in _PLACES.finditer(text)]
    boxes = [Labelled(numbers, None) for numbers in found if len(numbers) == 4]
    scale = frame.scale(boxes) if boxes else (1, 1)
    if not scale:
        size = " x ".join(map(str, frame.original))
        raise UserError(
            f"a box lies outside its image of {size}; give its box_unit, one of {', '.join(BOX_UNITS)}"
        )
    factors = cycle(scale)

    def moved(match: re.Match) -> str:
        if len(re.findall(_NUMBER, match[0])) != 4:
            return match[0]
        return re.sub(_NUMBER, lambda number: str(round(float(number[0]) * next(factors))), match[0])

    return _PLACES.sub(moved, text)


def iou(a: Sequence[Fraction | float], b: Sequence[Fraction | float]) -> float:
    """Returns the overlap of two boxes, intersection over union of their areas, in [0, 1]; exact but for its
    rounding if they are fractions.
    """
    shared = math.prod(max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), 0) for i in (0, 1))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return float(shared / (areas - shared))


def match_score(found: list[Labelled], gold: list[Labelled], threshold: float | None = None) -> float:
    """Sums the overlaps of boxes matched one to one, best overlaps first, over the longer list's length: in
    [0, 1].

    A gold box with a label is matched only by the same label. threshold: count overlaps of at least this much
    as 1, others as 0.
    """
    exact = Fraction if len(found) * len(gold) < 100 else float  # for many pairs fractions would take long
    mine, theirs = ([tuple(map(exact, one.box)) for one in side] for side in (found, gold))
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
