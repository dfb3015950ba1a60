"""Finding one object among several of different sizes and giving its box in pixels."""

import random

from r1ov.data.playground.grid import Thing, describe, painter
from r1ov.data.playground.scene import PAPER, SIZE, Level, Scene, pairs

_TOTAL = {"normal": (1, 3), "hard": (4, 4), "beyond": (5, 5)}  # objects in a picture
_SIDES = {"normal": (21, 42), "hard": (20, 44), "beyond": (16, 50)}  # pixels
_STEP = {
    "normal": 7,
    "hard": 1,
    "beyond": 1,
}  # sides and corners are multiples of so many pixels (7: half a patch)
_GAP = 3  # pixels between two boxes, at least
_WHERE = (
    "Where is the {}? Answer with its box [x1, y1, x2, y2].",
    "Find the {} and give its box [x1, y1, x2, y2].",
    "Give the box [x1, y1, x2, y2] of the {}.",
    "Locate the {}: what is its box [x1, y1, x2, y2] in pixels?",
    "Which box [x1, y1, x2, y2] holds the {}?",
)


def make(rng: random.Random, level: Level) -> Scene:
    names = rng.sample(pairs(level), rng.randint(*_TOTAL[level]))
    boxes = _boxes(rng, len(names), _SIDES[level], _STEP[level])
    things = [
        Thing(colour=colour, shape=shape, box=box) for (colour, shape), box in zip(names, boxes, strict=True)
    ]
    target = things[0]
    asked = [target.name]
    if all(other.colour != target.colour for other in things[1:]):
        asked.append(f"{target.colour} object")
    if all(other.shape != target.shape for other in things[1:]):
        asked.append(target.shape)
    x1, y1, x2, y2 = target.box
    paper = rng.choice(PAPER)
    return Scene(
        draw=painter(things),
        paper=paper,
        question=rng.choice(_WHERE).format(rng.choice(asked)),
        description=describe(paper, things),
        reasoning=f"The {target.name} at {target.cell} spans x {x1} to {x2} and y {y1} to {y2}.",
        answer=f"[{x1}, {y1}, {x2}, {y2}]",
        kind="bbox",
    )


def _boxes(
    rng: random.Random, count: int, sides: tuple[int, int], step: int
) -> list[tuple[int, int, int, int]]:
    """Square boxes that keep their distance, in no order; the large ones are placed first, or they would
    rarely find room.
    """
    while True:
        boxes: list[tuple[int, int, int, int]] = []
        for side in sorted((rng.randrange(sides[0], sides[1] + 1, step) for _ in range(count)), reverse=True):
            for _ in range(10):
                x, y = (rng.randrange(step, SIZE - side, step) for _ in range(2))
                box = (x, y, x + side, y + side)
                if all(_apart(box, other) for other in boxes):
                    boxes.append(box)
                    break
        if len(boxes) == count:
            rng.shuffle(boxes)
            return boxes


def _apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[2] + _GAP <= b[0] or b[2] + _GAP <= a[0] or a[3] + _GAP <= b[1] or b[3] + _GAP <= a[1]
