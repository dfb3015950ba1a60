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
    things = list(map(Thing, chosen, _boxes(rng, level, len(chosen))))
    (colour, shape), (x1, y1, x2, y2) = things[0]
    names = [things[0].name]
    for which, short in enumerate((f"{colour} object", shape)):
        if all(other[which] != chosen[0][which] for other in chosen[1:]):
            names.append(short)
    reasoning = f"The {names[0]} at {things[0].cell} spans x {x1} to {x2} and y {y1} to {y2}."
    paper = rng.choice(PAPER)
    question = rng.choice(wordings("locate")["where"]).format(name=rng.choice(names))
    return scene(paper, things, (question, "bbox"), reasoning, f"[{x1}, {y1}, {x2}, {y2}]")


def _boxes(rng: Random, level: Level, count: int) -> list[Box]:
    """Returns square boxes that keep their distance, in no order; the large ones are placed first, or they
    would rarely find room.
    """
    (least, most), step = _SIDES[level], _STEP[level]
    while True:
        boxes = []
        for side in sorted((rng.randrange(least, most + 1, step) for _ in range(count)), reverse=True):
            for _ in range(10):
                x, y = (rng.randrange(step, SIZE - side, step) for _ in range(2))
                # The largest is the gap between the two, on the side where they are furthest apart.
                if all(max(x1 - x - side, x - x2, y1 - y - side, y - y2) >= _GAP for x1, y1, x2, y2 in boxes):
                    boxes.append((x, y, x + side, y + side))
                    break
        if len(boxes) == count:
            rng.shuffle(boxes)
            return boxes
