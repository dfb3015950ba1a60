"""Finding one object among several of different sizes and giving its box in pixels."""

from random import Random

from r1ov.data.playground.grid import Box, Thing, scene
from r1ov.data.playground.scene import PAPER, SIZE, Level, Scene, by_level, pairs, wordings

_TOTAL = by_level((1, 3), (4, 4), (5, 5))  # objects in an image
_SIDES = by_level((21, 42), (20, 44), (16, 50))  # pixels
_STEP = by_level(7, 1, 1)  # sides and corners are multiples of it (7: half a patch)
_GAP = 3  # pixels between two boxes, at least


def make(rng: Random, level: Level) -> Scene:
    chosen = rng.sample(pairs(level), rng.randint(*_TOTAL[level]))
    boxes = _boxes(rng, len(chosen), _SIDES[level], _STEP[level])
    things = [Thing(pair, box) for pair, box in zip(chosen, boxes, strict=True)]
    (colour, shape), (x1, y1, x2, y2) = things[0]
    names = [things[0].name]
    for which, short in enumerate((f"{colour} object", shape)):
        if all(other[which] != chosen[0][which] for other in chosen[1:]):
            names.append(short)
    reasoning = f"The {names[0]} at {things[0].cell} spans x {x1} to {x2} and y {y1} to {y2}."
    paper = rng.choice(PAPER)
    question = rng.choice(wordings("locate")["where"]).format(name=rng.choice(names))
    return scene(rng, things, (question, "bbox"), reasoning, f"[{x1}, {y1}, {x2}, {y2}]", paper)


def _boxes(rng: Random, count: int, sides: tuple[int, int], step: int) -> list[Box]:
    """Returns square boxes that keep their distance, in no order; the large ones are placed first, or they
    would rarely find room.
    """
    while True:
        boxes: list[Box] = []
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


def _apart(a: Box, b: Box) -> bool:
    return a[2] + _GAP <= b[0] or b[2] + _GAP <= a[0] or a[3] + _GAP <= b[1] or b[3] + _GAP <= a[1]
