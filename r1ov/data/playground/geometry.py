"""Plane geometry: measures of rectangles, areas on a unit grid, sides of polygons, angles between rays and in
triangles. Each figure is invented, then drawn and solved from the same measures, which are its description.
"""

import json
import math
from functools import cache, partial
from itertools import combinations
from random import Random
from typing import Any

from r1ov.data.playground.grid import CELL, CELLS, by_row, cell_name
from r1ov.data.playground.scene import COLOURS, INK, PAPER, SIZE, Canvas, Level, Scene, ask, wordings

SIDES = {"normal": range(2, 10), "hard": range(2, 13), "beyond": range(11, 16)}  # of a rectangle
GRID_SIDE = {"normal": 4, "hard": 6, "beyond": 7}  # longest side of a shape on the grid
UNIT = 14  # pixels; the grid has SIZE / UNIT squares a side
CORNERS = {"normal": range(3, 9), "hard": range(3, 9), "beyond": range(9, 11)}
ANGLES = dict.fromkeys(("normal", "hard"), (30, 45, 60, 90, 120, 135, 150)) | {"beyond": (15, 75, 105, 165)}
TRIANGLE_ANGLES = {
    "normal": range(30, 101, 10),
    "hard": range(25, 116, 5),
    "beyond": [angle for angle in range(25, 116) if angle % 5],
}
DRAWABLE = tuple(colour for colour in COLOURS if colour != "yellow")  # thin yellow lines are hard to see
Point = tuple[float, float]
Measures = dict[str, Any]


def make(rng: Random, level: Level) -> Scene:
    """One figure with one question about it."""
    topic = rng.choice(list(wordings("geometry")))
    invent, draw, solve = FIGURES[topic]
    figure = invent(rng, level)
    figure |= {"colour": rng.choice(DRAWABLE), "paper": rng.randrange(len(PAPER))}
    reasoning, answer = solve(**figure)
    return Scene(
        draw=partial(draw, **figure),
        paper=PAPER[figure["paper"]],
        question=ask(rng, "geometry", topic, **figure),
        description=json.dumps(figure),
        reasoning=reasoning,
        answer=str(answer),
        kind="number",
    )


# A rectangle with its sides written beside it.


def _rectangle(rng: Random, level: Level) -> Measures:
    w, h = rng.choice(SIDES[level]), rng.choice(SIDES[level])
    longest = rng.randint(60, 76)
    width, height = (max(28, round(longest * side / max(w, h))) for side in (w, h))
    over, beside = rng.choice(("above", "below")), rng.choice(("left", "right"))
    x = 31 if beside == "left" else 81 - width  # a column and a row of cells are left to the numbers
    y = 31 if over == "above" else 81 - height
    box = [x, y, x + width, y + height]
    return {"figure": "rectangle", "sides": [w, h], "box": box, "labels": [over, beside]}


def _draw_rectangle(canvas: Canvas, sides, box, labels, colour, **_) -> None:
    (x1, y1, x2, y2), (w, h), (over, beside) = box, sides, labels
    canvas.rectangle(box, _tint(colour), COLOURS[colour], 2)
    canvas.text(*_centre((x1 + x2) // 2, 0 if over == "above" else SIZE - 1), str(w), 18)
    canvas.text(*_centre(0 if beside == "left" else SIZE - 1, (y1 + y2) // 2), str(h), 18)


def _area(sides, **_) -> tuple[str, int]:
    w, h = sides
    return f"The sides are {w} and {h}. Area = {w} x {h} = {w * h}.", w * h


def _perimeter(sides, **_) -> tuple[str, int]:
    w, h = sides
    steps = f"Perimeter = 2 x ({w} + {h}) = 2 x {w + h} = {2 * (w + h)}."
    return f"The sides are {w} and {h}. {steps}", 2 * (w + h)


# A rectangle, or two on top of each other, on a grid of unit squares.


def _squares(rng: Random, level: Level) -> Measures:
    most = GRID_SIDE[level]
    least = most if level == "beyond" else 2  # beyond: every shape is as wide as no shape before
    if rng.random() < 0.5:
        parts = [[rng.randint(least, most), rng.randint(2, most)]]
    else:
        wide = rng.randint(least, most)
        widths = [wide, rng.randint(1, wide - 1)]
        rng.shuffle(widths)
        height = rng.randint(2, most)
        upper = rng.randint(1, height - 1)
        parts = [[widths[0], upper], [widths[1], height - upper]]
    width, height = max(w for w, _ in parts), sum(h for _, h in parts)
    return {
        "figure": "shape on a grid",
        "parts": parts,  # from top to bottom: [width, height]
        "flush": rng.choice(("left", "right")),
        "place": [rng.randrange(0, SIZE // UNIT - side + 1, 2) for side in (width, height)],
    }


def _draw_squares(canvas: Canvas, parts, flush, place, colour, **_) -> None:
    column, row = place
    widest = max(w for w, _ in parts)
    for w, h in parts:
        start = column if flush == "left" else column + widest - w
        canvas.rectangle((start * UNIT, row * UNIT, (start + w) * UNIT, (row + h) * UNIT), COLOURS[colour])
        row += h
    canvas.grid(UNIT)


def _covered(parts, **_) -> tuple[str, int]:
    (w, h), *lower = parts
    if not lower:
        return f"The shape is {w} wide and {h} high. Area = {w} x {h} = {w * h}.", w * h
    [(v, k)] = lower
    seen = f"The upper part is {w} wide and {h} high, the lower part {v} wide and {k} high."
    return f"{seen} Area = {w} x {h} + {v} x {k} = {w * h} + {v * k} = {w * h + v * k}.", w * h + v * k


# A convex polygon.


@cache
def _convex(number: int) -> list[list[tuple[int, int]]]:
    """All polygons of this many corners, in order around them, whose corners are cells of the 4 x 4 grid; no
    corner is flat.
    """
    found = []
    for corners in combinations(CELLS, number):
        x, y = (sum(corner[axis] for corner in corners) / number for axis in (0, 1))
        ring = sorted(corners, key=lambda corner: math.atan2(corner[1] - y, corner[0] - x))
        turns = [
            (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0])
            for a, b, c in zip(ring, ring[1:] + ring[:1], ring[2:] + ring[:2], strict=True)
        ]
        if min(turns) > 0:
            found.append(ring)
    return found


def _polygon(rng: Random, level: Level) -> Measures:
    number = rng.choice(CORNERS[level])
    if number <= 8:  # one corner to a cell
        places = rng.choice(_convex(number))
        corners = [[CELL * at + CELL // 2 + rng.randint(-2, 2) for at in place] for place in places]
        return {"figure": "polygon", "corners": corners}
    corners = []
    x, y = (SIZE // 2 + rng.randint(-5, 5) for _ in range(2))
    radius, turn = rng.randint(36, 43), rng.randrange(360)
    for corner in range(number):
        angle = math.radians(turn + (corner + rng.uniform(-0.1, 0.1)) * 360 / number)
        corners.append([round(x + radius * math.sin(angle)), round(y - radius * math.cos(angle))])
    return {"figure": "polygon", "corners": corners}


def _draw_polygon(canvas: Canvas, corners, colour, **_) -> None:
    canvas.polygon(corners, _tint(colour))
    canvas.line([*corners, corners[0]], COLOURS[colour], 2)
    for x, y in corners:
        canvas.dot(x, y, 3.5, COLOURS[colour])


def _count_corners(corners, **_) -> tuple[str, int]:
    places = sorted((min(y // CELL, 3), min(x // CELL, 3)) for x, y in corners)
    counted = enumerate(places, 1)
    seen = by_row((row, f"{cell_name(column, row)} ({number})") for number, (row, column) in counted)
    return f"{seen} That makes {len(places)}.", len(places)


# Two rays with the angle between them; degrees run anticlockwise from the right.


def _rays(rng: Random, level: Level) -> Measures:
    angle = rng.choice(ANGLES[level])
    start = rng.choice(range(0, 181 - angle, 15) if level == "hard" else (0, 180 - angle))
    directions, lengths = [start, start + angle], [rng.randint(42, 50), rng.randint(42, 50)]
    tips = [_step((0, 0), *ray) for ray in zip(directions, lengths, strict=True)]
    # Near where the figure is centred.
    vertex = [
        round((SIZE - min(each) - max(each)) / 2) + rng.randint(-4, 4)
        for each in zip((0, 0), *tips, strict=True)
    ]
    return {"figure": "two rays", "directions": directions, "lengths": lengths, "vertex": vertex}


def _draw_rays(canvas: Canvas, directions, lengths, vertex, colour, **_) -> None:
    (x, y), (first, second) = vertex, directions
    if second - first == 90:  # the usual mark of a right angle
        corner = _step(vertex, (first + second) / 2, 12 * math.sqrt(2))
        canvas.line([_step(vertex, first, 12), corner, _step(vertex, second, 12)], COLOURS[colour], 2)
    else:
        canvas.arc(x, y, 16, 360 - second, 360 - first, COLOURS[colour], 2)
    for direction, length in zip(directions, lengths, strict=True):
        canvas.line([vertex, _step(vertex, direction, length)], INK, 2.25)
    canvas.dot(x, y, 2.5, INK)


def _between(directions, **_) -> tuple[str, int]:
    first, second = directions
    angle = second - first
    return f"The rays point to {second} and {first} degrees. {second} - {first} = {angle}.", angle


# A triangle with two of its angles written in it.


def _triangle(rng: Random, level: Level) -> Measures:
    allowed = TRIANGLE_ANGLES[level]
    third = rng.choice(allowed)
    first = rng.choice([angle for angle in allowed if 180 - third - angle in allowed])
    angles = [first, 180 - third - first]
    unknown = rng.randrange(3)
    angles.insert(unknown, third)  # lower left, lower right, top
    _, right, top = map(math.radians, angles)
    # From the lower left corner to the top, where the base is 1.
    x, y = _step((0, 0), angles[0], math.sin(right) / math.sin(top))
    width, start = max(1, x) - min(0, x), min(0, x)
    scale = min(88 / width, 54 / -y)
    x0 = round((SIZE - width * scale) / 2 - start * scale) + rng.randint(-3, 3)
    y0 = 83 + rng.randint(-1, 1)  # the numbers below it fill the lowest row of cells
    corners = [[x0, y0], [round(x0 + scale), y0], [round(x0 + x * scale), round(y0 + y * scale)]]
    angles[unknown] = None
    return {"figure": "triangle", "angles": angles, "corners": corners}


def _draw_triangle(canvas: Canvas, angles, corners, colour, **_) -> None:
    canvas.polygon(corners, _tint(colour))
    canvas.line([*corners, *corners[:2]], COLOURS[colour], 2)
    (left, _), (right, _), (top, height) = corners
    right = max(right, left // CELL * CELL + CELL)  # never in the left one's cell
    places = ((left, SIZE - 1), (right, SIZE - 1), (top, height - 24))
    for place, angle in zip(places, angles, strict=True):
        canvas.text(*_centre(*place), "?" if angle is None else f"{angle}°", 14)


def _third(angles, **_) -> tuple[str, int]:
    a, b = (angle for angle in angles if angle is not None)
    return f"The angles are {a} and {b}. {a} + {b} = {a + b}. 180 - {a + b} = {180 - a - b}.", 180 - a - b


# Topic -> measures, drawing, and (thought, answer) of its figure.
FIGURES = {
    "area": (_rectangle, _draw_rectangle, _area),
    "perimeter": (_rectangle, _draw_rectangle, _perimeter),
    "grid": (_squares, _draw_squares, _covered),
    "polygon": (_polygon, _draw_polygon, _count_corners),
    "rays": (_rays, _draw_rays, _between),
    "triangle": (_triangle, _draw_triangle, _third),
}


def _centre(x: int, y: int) -> tuple[int, int]:
    """The middle of the cell that holds a pixel, where a number is read best: a cell is what one vision token
    sees.
    """
    return x // CELL * CELL + CELL // 2, y // CELL * CELL + CELL // 2


def _step(start: Point, direction: float, length: float) -> Point:
    """Where a step from `start` leads; degrees run anticlockwise from the right."""
    angle = math.radians(direction)
    return start[0] + length * math.cos(angle), start[1] - length * math.sin(angle)


def _tint(colour: str) -> tuple[int, int, int]:
    red, green, blue = ((3 * 255 + channel) // 4 for channel in COLOURS[colour])
    return red, green, blue
