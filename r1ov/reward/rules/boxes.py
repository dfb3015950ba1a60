"""Boxes (x1, y1, x2, y2) in text, the frame they are measured in, and how well they overlap."""

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import cycle
from operator import mul
from typing import Literal, NamedTuple, get_args

from r1ov.errors import UserError
from r1ov.reward.rules.reading import plain

Box = tuple[Fraction, Fraction, Fraction, Fraction]
Corner = Sequence[Fraction | float]  # (x, y), the far one of a box, or a point
Unit = Literal["original", "resized", "unit", "per-mille"]
BOX_UNITS = get_args(Unit)
MAX_BOXES = 50
OUTSIDE = 1.05  # times its image's side: a box that ends beyond is not measured in it
NEAR_END = 0.8  # of a frame's side: some of many boxes end beyond
NO_BOX = "is a point, or a box that cannot be read"
SEVERAL = "boxes beside images of several sizes: in which of them they lie is not known"
SURE = 14.0  # natural logarithm of odds of a million to one
_NUMBER = r"[-+]?\d{1,9}(?:\.\d{0,20})?"
_PAIR = rf"[\[(]\s*{_NUMBER}\s*,\s*{_NUMBER}\s*[\])]"
_PAIRS = re.compile(rf"{_PAIR}(?:(?:\s*,\s*|\s+){_PAIR})+")  # "(1,2),(3,4)(5,6),(7,8)" are two boxes
_FOUR = re.compile(rf"[\[(]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[\])]")
_BARE = re.compile(rf"\A{_NUMBER}(?:[\s,]\s*{_NUMBER}){{3}}\Z")
_POINT = rf"(?:(?<=<\|box_start\|>)|(?<=<box>)|(?<=point_2d[\"']:))\s*{_PAIR}"
_PLACES = re.compile(f"{_PAIRS.pattern}|{_FOUR.pattern}|{_BARE.pattern}|{_POINT}")
TOKENS = re.compile(r"<\|box_(?:start|end)\|>|</?b?box>")
_LABEL = re.compile(r"""["']label["']\s*:\s*["']([^"']*)["']""")


class Labelled(NamedTuple):
    box: Box
    label: str | None


class Frame(NamedTuple):
    """The (width, height) of an image as the data has it and as the model sees it, and how the data counts.

    Qwen2.5-VL answers in pixels of the resized image. unit: what the data's boxes are measured in: pixels of
    either image, 0 to 1, or 0 to 1000; None: 0 to 1 if nothing in it is above 1, else the original's pixels.
    is_only: there is no image of another size beside it, in which the boxes may lie.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    unit: Unit | None = None
    is_only: bool = True

    @classmethod
    def beside(cls, images: Sequence, resized: Sequence[int], unit: Unit | None) -> "Frame":
        """Of the boxes in a text with these images. Args: resized: the first one's size to the model."""
        return cls(images[0].size, resized, unit, len({image.size for image in images}) == 1)

    def size(self, unit: Unit) -> tuple[int, int]:
        """What a box that ends where its image does has as its corner."""
        return {"original": self.original, "resized": self.resized, "unit": (1, 1)}.get(unit, (1000, 1000))

    def scale(self, corners: Sequence[Corner]) -> tuple[Fraction, Fraction] | None:
        """What takes x and y of the data's boxes to the resized image; None if a corner lies outside it, or
        nobody knows in which image.
        """
        is_unit = not self.unit and max(map(max, corners)) <= 1
        size = self.size(self.unit or ("unit" if is_unit else "original"))
        if not self.is_only or not all(is_inside(corner, size) for corner in corners):
            return None
        return tuple(map(Fraction, self.resized, size))


def is_inside(corner: Corner, size: tuple[int, int]) -> bool:
    return all(end <= OUTSIDE * side for end, side in zip(corner, size, strict=True))


def recognised(found: Sequence[tuple[Corner, Frame]]) -> Unit | None:
    """The unit of a data set whose rows do not say theirs, by their boxes' far corners; None: see `Frame`.

    It is another than the original's pixels where all corners lie in that frame, some of them near its ends,
    and the original's are out of the question: an eighth of the corners lies outside it, or it is so much
    larger that so many corners would lie where they do once in a million times.
    Raises: UserError if more than one would do.
    """
    outside = sum(not is_inside(corner, frame.original) for corner, frame in found)
    units = []
    for unit in ("resized", "per-mille") if found else ():
        shares, odds = [], 0.0
        for corner, frame in found:
            width, height = frame.size(unit)
            shares.append((corner[0] / width, corner[1] / height))
            odds += math.log(math.prod(frame.original) / width / height)
        ends = [max(axis) for axis in zip(*shares, strict=True)]
        if max(ends) <= 1 and min(ends) >= NEAR_END and (odds > SURE or 8 * outside >= len(found)):
            units.append(unit)
    if len(units) > 1:
        raise UserError(f"the boxes of the data may be measured in {' or '.join(units)}; give their box_unit")
    return units[0] if units else None


def is_marked(text: str) -> bool:
    """Whether the text says that its numbers are a box or point: by a key of JSON, or Qwen's tokens."""
    return bool(re.search(r"""["'](?:bbox(?:_2d)?|point_2d)["']""", text) or TOKENS.search(text))


def read_boxes(text: str) -> list[Labelled] | None:
    """Returns all boxes in the text, equal ones once; None if there is none, one that is no box (x1 < x2,
    y1 < y2), another list of numbers, or over MAX_BOXES.

    Examples: "[1, 2, 30, 40]"; "(1, 2), (30, 40)"; "[[1, 2], [30, 40]]"; "1, 2, 30, 40" and nothing else;
        '[{"bbox_2d": [1, 2, 30, 40], "label": "cat"}]'; "<|box_start|>(1,2),(30,40)<|box_end|>"
    """
    text = TOKENS.sub(";", plain(text))
    for pattern in (_BARE, _PAIRS):
        text = pattern.sub(lambda match: f"[{', '.join(re.findall(_NUMBER, match[0]))}]", text)
    found = []
    for part in re.split("[{}]", text):
        label = _LABEL.search(part)
        for numbers in _FOUR.findall(part):
            x1, y1, x2, y2 = map(Fraction, numbers)
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
        scale = frame.scale([one.box[2:] for one in right])
        right = scale and [one._replace(box=tuple(map(mul, one.box, scale * 2))) for one in right]
    if not right or not found:
        return 0.0 if right else None
    return match_score(found, right, threshold)


def corners(text: str) -> list[Corner]:
    """The far corners of the boxes, and the points, that `resized` moves."""
    found = [tuple(map(float, re.findall(_NUMBER, match[0]))) for match in _PLACES.finditer(text)]
    return [numbers[-2:] for numbers in found if len(numbers) in (2, 4)]


def resized(text: str, frame: Frame) -> str:
    """Returns a text with its boxes, and marked points, in whole pixels of the image that the model sees.

    Raises: UserError if one lies outside its image, or may lie in another.
    """
    found = corners(text)
    scale = frame.scale(found) if found else (1, 1)
    if not scale:
        size = " x ".join(map(str, frame.original))
        fault = f"a box lies outside its image of {size}; give its box_unit, one of {', '.join(BOX_UNITS)}"
        raise UserError(fault if frame.is_only else SEVERAL)
    factors = cycle(scale)

    def moved(match: re.Match) -> str:
        if len(re.findall(_NUMBER, match[0])) not in (2, 4):
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
