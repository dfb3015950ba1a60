"""Plane geometry: measures of rectangles, areas on a unit grid, sides of polygons, angles between rays and in
triangles. Each figure is drawn and solved from its measures, which are its description.
"""

import json
import math
from functools import cache, partial
from itertools import combinations
from random import Random

from r1ov.data.playground.grid import CELL, CELLS, by_row, cell_name
from r1ov.data.playground.scene import (
    COLOURS,
    DARK,
    INK,
    PAPER,
    SIZE,
    Colour,
    Level,
    Point,
    Scene,
    ask,
    by_level,
    wordings,
)

# Of a rectangle; beyond, one of them is longer than any before.
SIDES = by_level([range(2, 10)] * 2, [range(2, 13)] * 2, [range(11, 16), range(2, 10)])
GRID_SIDE = by_level(4, 6, 7)  # longest side of a shape on the grid
UNIT = 14  # pixels; the grid has SIZE / UNIT squares a side
CORNERS = by_level(range(3, 9), range(3, 9), range(9, 11))
ANGLES = (30, 45, 60, 90, 120, 135, 150)
TURNED = (45, 90, 120)  # directions of the lower ray, beyond; there neither ray lies flat
# What a figure is: its measures, how it is drawn in a colour, the thought about it, and the answer.
Figure = tuple


def make(rng: Random, level: Level) -> Scene:
    """Returns one figure with one question about it."""
    topic = rng.choice(list(wordings("geometry")))
    measures, draw, reasoning, answer = FIGURES[topic](rng, level)
    colour, paper = rng.choice(DARK), rng.randrange(len(PAPER))
    return Scene(
        partial(draw, fill=COLOURS[colour]),
        PAPER[paper],
        *ask(rng, "geometry", topic, colour=colour),
        json.dumps(measures | {"colour": colour, "paper": paper}),
        reasoning,
        str(answer),
    )


def _rectangle(rng: Random, level: Level, topic: str) -> Figure:
    """A rectangle with its sides written beside it."""
    w, h = map(rng.choice, SIDES[level])
    if level == "beyond":
        w, h = rng.sample((w, h), 2)
    longest = rng.randint(60, 76)
    width, height = (max(28, round(longest * side / max(w, h))) for side in (w, h))
    over, beside = rng.choice(("above", "below")), rng.choice(("left", "right"))
    x = 31 if beside == "left" else 81 - width  # a column and a row of cells are left to the numbers
    y = 31 if over == "above" else 81 - height
    box = [x, y, x + width, y + height]

    def draw(canvas, fill):
        canvas.rectangle(box, _tint(fill), fill, 2)
        canvas.text(*_centre(x + width // 2, 0 if over == "above" else SIZE - 1), str(w), 18)
        canvas.text(*_centre(0 if beside == "left" else SIZE - 1, y + height // 2), str(h), 18)

    if topic == "area":
        answer, steps = w * h, f"Area = {w} x {h} = {w * h}."
    else:
        answer = 2 * (w + h)
        steps = f"Perimeter = 2 x ({w} + {h}) = 2 x {w + h} = {answer}."
    measures = {"figure": "rectangle", "sides": [w, h], "box": box, "labels": [over, beside]}
    return measures, draw, f"The sides are {w} and {h}. {steps}", answer


def _squares(rng: Random, level: Level) -> Figure:
    """A rectangle, or two on top of each other, on a grid of unit squares."""
    most = GRID_SIDE[level]
    least = most if level == "beyond" else 2  # beyond: every shape is as wide as no shape before
    if rng.random() < 0.5:
        w, h = rng.randint(least, most), rng.randint(2, most)
        parts = [[w, h]]
        reasoning = f"The shape is {w} wide and {h} high. Area = {w} x {h} = {w * h}."
    else:
        wide = rng.randint(least, most)
        widths = [wide, rng.randint(1, wide - 1)]
        rng.shuffle(widths)
        total = rng.randint(2, most)
        h = rng.randint(1, total - 1)
        (w, v), k = widths, total - h
        parts = [[w, h], [v, k]]
        reasoning = (
            f"The upper part is {w} wide and {h} high, the lower part {v} wide and {k} high. "
            f"Area = {w} x {h} + {v} x {k} = {w * h} + {v * k} = {w * h + v * k}."
        )
    width, height = max(w for w, _ in parts), sum(h for _, h in parts)
    flush = rng.choice(("left", "right"))
    place = [rng.randrange(0, SIZE // UNIT - side + 1, 2) for side in (width, height)]

    def draw(canvas, fill):
        column, row = place
        for w, h in parts:
            start = column if flush == "left" else column + width - w
            box = (start, row, start + w, row + h)
            canvas.rectangle([at * UNIT for at in box], fill)
            row += h
        canvas.grid(UNIT)

    # The parts from top to bottom: [width, height].
    measures = {"figure": "shape on a grid", "parts": parts, "flush": flush, "place": place}
    return measures, draw, reasoning, sum(w * h for w, h in parts)


@cache
def _rings(number: int) -> list[list[tuple[int, int]]]:
    """Returns all polygons of this many corners, in order around their middle, whose corners are cells of the
    4 x 4 grid and none is flat; the convex ones, if there are any.
    """
    found = {True: [], False: []}
    for corners in combinations(CELLS, number):
        x, y = (sum(axis) / number for axis in zip(*corners, strict=True))
        ring = sorted(corners, key=lambda corner: math.atan2(corner[1] - y, corner[0] - x))
        triples = zip(ring, ring[1:] + ring, ring[2:] + ring, strict=False)
        turns = [(x2 - x1) * (y3 - y2) - (y2 - y1) * (x3 - x2) for (x1, y1), (x2, y2), (x3, y3) in triples]
        if all(turns):
            found[min(turns) > 0].append(ring)
    return found[True] or found[False]


def _polygon(rng: Random, level: Level) -> Figure:
    """A polygon with one corner to a cell, convex where there is room for that."""
    number = rng.choice(CORNERS[level])
    places = rng.choice(_rings(number))
    corners = [[CELL * at + CELL // 2 + rng.randint(-2, 2) for at in place] for place in places]

    def draw(canvas, fill):
        canvas.polygon(corners, _tint(fill))
        canvas.line([*corners, corners[0]], fill, 2)
        for x, y in corners:
            canvas.dot(x, y, 3.5, fill)

    cells = enumerate(sorted((row, column) for column, row in places), 1)
    seen = by_row([(row, f"{cell_name(column, row)} ({at})") for at, (row, column) in cells])
    return {"figure": "polygon", "corners": corners}, draw, f"{seen} That makes {number}.", number


def _rays(rng: Random, level: Level) -> Figure:
    """Two rays with the angle between them."""
    if level == "beyond":
        start, angle = rng.choice([(at, by) for at in TURNED for by in ANGLES if at + by in ANGLES])
    else:
        angle = rng.choice(ANGLES)
        turned = [at for at in range(0, 181 - angle, 15) if at not in TURNED]
        start = rng.choice(turned if level == "hard" else (0, 180 - angle))
    rays = [(direction, rng.randint(42, 50)) for direction in (start, start + angle)]
    # Near where the figure is centred.
    vertex = [
        round((SIZE - min(ends) - max(ends)) / 2) + rng.randint(-4, 4)
        for ends in zip((0, 0), *(_step((0, 0), *ray) for ray in rays), strict=True)
    ]

    def draw(canvas, fill):
        if angle == 90:  # the usual mark of a right angle
            mark = [(start, 12), (start + 45, 12 * math.sqrt(2)), (start + 90, 12)]
            canvas.line([_step(vertex, *at) for at in mark], fill, 2)
        else:
            canvas.arc(*vertex, 16, 360 - start - angle, 360 - start, fill, 2)
        for ray in rays:
            canvas.line([vertex, _step(vertex, *ray)], INK, 2.25)
        canvas.dot(*vertex, 2.5, INK)

    reasoning = f"The rays point to {start + angle} and {start} degrees. {start + angle} - {start} = {angle}."
    directions, lengths = zip(*rays, strict=True)
    measures = {"figure": "two rays", "directions": directions, "lengths": lengths, "vertex": vertex}
    return measures, draw, reasoning, angle


def _triangle(rng: Random, level: Level) -> Figure:
    """A triangle with two of its angles written in it."""
    allowed = range(30, 101, 10) if level == "normal" else range(25, 116, 5)
    third = rng.choice([angle for angle in allowed if (angle % 10 > 0) == (level == "beyond")])
    a = rng.choice([angle for angle in allowed if 180 - third - angle in allowed])
    b = 180 - third - a
    angles = [a, b]
    unknown = rng.randrange(3)
    angles.insert(unknown, third)  # lower left, lower right, top
    _, right, top = map(math.radians, angles)
    # From the lower left corner to the top, where the base is 1.
    x, y = _step((0, 0), angles[0], math.sin(right) / math.sin(top))
    start = min(0, x)
    width = max(1, x) - start
    scale = min(88 / width, 54 / -y)
    x0 = round((SIZE - width * scale) / 2 - start * scale) + rng.randint(-3, 3)
    y0 = 83 + rng.randint(-1, 1)  # the numbers below it fill the lowest row of cells
    x1, (x2, y2) = round(x0 + scale), (round(x0 + x * scale), round(y0 + y * scale))
    corners = [[x0, y0], [x1, y0], [x2, y2]]
    angles[unknown] = None

    def draw(canvas, fill):
        canvas.polygon(corners, _tint(fill))
        canvas.line([*corners, *corners[:2]], fill, 2)
        beside = max(x1, x0 // CELL * CELL + CELL)  # never in the left one's cell
        places = ((x0, SIZE - 1), (beside, SIZE - 1), (x2, y2 - 24))
        for place, angle in zip(places, angles, strict=True):
            canvas.text(*_centre(*place), "?" if angle is None else f"{angle}°", 14)

    reasoning = f"The angles are {a} and {b}. {a} + {b} = {a + b}. 180 - {a + b} = {third}."
    return {"figure": "triangle", "angles": angles, "corners": corners}, draw, reasoning, third


FIGURES = {
    "area": partial(_rectangle, topic="area"),
    "perimeter": partial(_rectangle, topic="perimeter"),
    "grid": _squares,
    "polygon": _polygon,
    "rays": _rays,
    "triangle": _triangle,
}


def _centre(x: int, y: int) -> tuple[int, int]:
    """Returns the middle of the cell that holds a pixel, where a number is read best: a cell is what one
    vision token sees.
    """
    return x // CELL * CELL + CELL // 2, y // CELL * CELL + CELL // 2


def _step(start: Point, direction: float, length: float) -> Point:
    """Returns where a step from `start` leads; degrees run anticlockwise from the right."""
    angle = math.radians(direction)
    return start[0] + length * math.cos(angle), start[1] - length * math.sin(angle)


def _tint(colour: Colour) -> Colour:
    return tuple((3 * 255 + channel) // 4 for channel in colour)
