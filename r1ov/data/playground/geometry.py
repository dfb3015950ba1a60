"""Plane geometry: measures of rectangles, areas on a unit grid, sides of polygons, angles between rays and in
triangles.
"""

import json
import math
import random
from collections.abc import Callable
from functools import cache, partial
from itertools import combinations

from r1ov.data.playground.grid import CELL, CELLS, cell_name
from r1ov.data.playground.scene import COLOURS, GRID, INK, PAPER, SIZE, Canvas, Level, Scene

SIDES = {"normal": range(2, 10), "hard": range(2, 13), "beyond": range(11, 16)}  # of a rectangle
GRID_SIDE = {"normal": 4, "hard": 6, "beyond": 7}  # longest side of a shape on the grid
UNIT = 14  # pixels; the grid has SIZE / UNIT squares a side
CORNERS = {"normal": range(3, 9), "hard": range(3, 9), "beyond": range(9, 11)}
ANGLES = {
    "normal": (30, 45, 60, 90, 120, 135, 150),
    "hard": (30, 45, 60, 90, 120, 135, 150),
    "beyond": (15, 75, 105, 165),
}
TRIANGLE_ANGLES = {
    "normal": range(30, 101, 10),
    "hard": range(25, 116, 5),
    "beyond": [angle for angle in range(25, 116) if angle % 5],
}
Figure = tuple[dict, Callable[..., None]]  # what is drawn, and how
DRAWABLE = tuple(colour for colour in COLOURS if colour != "yellow")  # thin yellow lines are hard to see
QUESTIONS = {
    "area": (
        "What is the area of the rectangle?",
        "Find the area of this rectangle.",
        "How large is the area of the rectangle?",
        "Compute the rectangle's area.",
    ),
    "perimeter": (
        "What is the perimeter of the rectangle?",
        "Find the perimeter of this rectangle.",
        "How long is the way around the rectangle?",
        "Compute the rectangle's perimeter.",
    ),
    "grid": (
        "How many squares does the {colour} shape cover?",
        "What is the area of the {colour} shape, in squares?",
        "How many squares of the grid are {colour}?",
        "Find the area of the shape on the grid.",
    ),
    "polygon": (
        "How many sides does the polygon have?",
        "How many corners does this shape have?",
        "Count the sides of the polygon.",
        "What is the number of sides of this polygon?",
    ),
    "rays": (
        "What is the angle between the two rays, in degrees?",
        "How many degrees is the marked angle?",
        "How large is the angle between the lines, in degrees?",
        "Find the marked angle, in degrees.",
    ),
    "triangle": (
        "What is the third angle of the triangle, in degrees?",
        "How many degrees is the angle marked with a question mark?",
        "Find the missing angle of the triangle.",
        "How large is the unknown angle, in degrees?",
    ),
}


@cache
def _convex(number: int) -> list[list[tuple[int, int]]]:
    """All polygons of so many corners, in order around them, whose corners are cells of the 4 x 4 grid; no
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


def make(rng: random.Random, level: Level) -> Scene:
    """One figure with one question about it."""
    topic = rng.choice(list(QUESTIONS))
    figures = {
        "area": _rectangle,
        "perimeter": _rectangle,
        "grid": _grid,
        "polygon": _polygon,
        "rays": _rays,
        "triangle": _triangle,
    }
    figure, draw = figures[topic](rng, level)
    figure |= {"colour": rng.choice(DRAWABLE), "paper": rng.randrange(len(PAPER))}
    reasoning, answer = _solve(topic, figure)
    return Scene(
        draw=partial(draw, figure=figure),
        paper=PAPER[figure["paper"]],
        question=rng.choice(QUESTIONS[topic]).format(**figure),
        description=json.dumps(figure),
        reasoning=reasoning,
        answer=str(answer),
        kind="number",
    )


def _solve(topic: str, figure: dict) -> tuple[str, int]:
    """The thought, and the answer it comes to."""
    if topic in ("area", "perimeter"):
        w, h = figure["sides"]
        seen = f"The sides are {w} and {h}."
        if topic == "area":
            return f"{seen} Area = {w} x {h} = {w * h}.", w * h
        return f"{seen} Perimeter = 2 x ({w} + {h}) = 2 x {w + h} = {2 * (w + h)}.", 2 * (w + h)
    if topic == "grid":
        if len(figure["parts"]) == 1:
            [(w, h)] = figure["parts"]
            return f"The shape is {w} wide and {h} high. Area = {w} x {h} = {w * h}.", w * h
        (w, h), (v, k) = figure["parts"]
        seen = f"The upper part is {w} wide and {h} high, the lower part {v} wide and {k} high."
        return f"{seen} Area = {w} x {h} + {v} x {k} = {w * h} + {v * k} = {w * h + v * k}.", w * h + v * k
    if topic == "polygon":
        places = sorted((min(y // CELL, 3), min(x // CELL, 3)) for x, y in figure["corners"])
        counted = [
            (row, f"{cell_name(column, row)} ({number})") for number, (row, column) in enumerate(places, 1)
        ]
        rows = [", ".join(corner for at, corner in counted if at == row) or "none" for row in range(4)]
        return (
            f"Row 1: {rows[0]}. Row 2: {rows[1]}. Row 3: {rows[2]}. Row 4: {rows[3]}. That makes {len(places)}.",
            len(places),
        )
    if topic == "rays":
        first, second = figure["directions"]
        return (
            f"The rays point to {second} and {first} degrees. {second} - {first} = {second - first}.",
            second - first,
        )
    a, b = (angle for angle in figure["angles"] if angle is not None)
    return f"The angles are {a} and {b}. {a} + {b} = {a + b}. 180 - {a + b} = {180 - a - b}.", 180 - a - b


def _rectangle(rng: random.Random, level: Level) -> Figure:
    w, h = rng.choice(SIDES[level]), rng.choice(SIDES[level])
    longest = rng.randint(60, 76)
    width, height = (max(28, round(longest * side / max(w, h))) for side in (w, h))
    over, beside = rng.choice(("above", "below")), rng.choice(("left", "right"))
    x = 31 if beside == "left" else 81 - width  # a column and a row of cells are left to the numbers
    y = 31 if over == "above" else 81 - height
    box = [x, y, x + width, y + height]
    return {"figure": "rectangle", "sides": [w, h], "box": box, "labels": [over, beside]}, _draw_rectangle


def _draw_rectangle(canvas: Canvas, figure: dict) -> None:
    x1, y1, x2, y2 = figure["box"]
    canvas.rectangle(figure["box"], _tint(figure["colour"]), COLOURS[figure["colour"]], 2)
    (w, h), (over, beside) = figure["sides"], figure["labels"]
    canvas.text(*_centre((x1 + x2) // 2, 0 if over == "above" else SIZE - 1), str(w), 18)
    canvas.text(*_centre(0 if beside == "left" else SIZE - 1, (y1 + y2) // 2), str(h), 18)


def _grid(rng: random.Random, level: Level) -> Figure:
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
    figure = {
        "figure": "shape on a grid",
        "parts": parts,  # from top to bottom: [width, height]
        "flush": rng.choice(("left", "right")),
        "place": [rng.randrange(0, SIZE // UNIT - side + 1, 2) for side in (width, height)],
    }
    return figure, _draw_grid


def _draw_grid(canvas: Canvas, figure: dict) -> None:
    column, row = figure["place"]
    widest = max(w for w, _ in figure["parts"])
    colour = COLOURS[figure["colour"]]
    for w, h in figure["parts"]:
        start = column if figure["flush"] == "left" else column + widest - w
        canvas.rectangle((start * UNIT, row * UNIT, (start + w) * UNIT, (row + h) * UNIT), colour)
        row += h
    for line in range(UNIT, SIZE, UNIT):
        canvas.line([(line, 0), (line, SIZE)], GRID, 1)
        canvas.line([(0, line), (SIZE, line)], GRID, 1)


def _polygon(rng: random.Random, level: Level) -> Figure:
    number = rng.choice(CORNERS[level])
    if number <= 8:  # one corner to a cell
        places = rng.choice(_convex(number))
        corners = [
            [CELL * column + 14 + rng.randint(-2, 2), CELL * row + 14 + rng.randint(-2, 2)]
            for column, row in places
        ]
        return {"figure": "polygon", "corners": corners}, _draw_polygon
    x, y, radius, turn = (
        56 + rng.randint(-5, 5),
        56 + rng.randint(-5, 5),
        rng.randint(36, 43),
        rng.randrange(360),
    )
    corners = []
    for corner in range(number):
        angle = math.radians(turn + (corner + rng.uniform(-0.1, 0.1)) * 360 / number)
        corners.append([round(x + radius * math.sin(angle)), round(y - radius * math.cos(angle))])
    return {"figure": "polygon", "corners": corners}, _draw_polygon


def _draw_polygon(canvas: Canvas, figure: dict) -> None:
    colour = COLOURS[figure["colour"]]
    canvas.polygon(figure["corners"], _tint(figure["colour"]))
    canvas.line([*figure["corners"], figure["corners"][0]], colour, 2)
    for x, y in figure["corners"]:
        canvas.ellipse((x - 3.5, y - 3.5, x + 3.5, y + 3.5), colour)


def _rays(rng: random.Random, level: Level) -> Figure:
    angle = rng.choice(ANGLES[level])
    start = rng.choice(range(0, 181 - angle, 15) if level == "hard" else (0, 180 - angle))
    directions, lengths = [start, start + angle], [rng.randint(42, 50), rng.randint(42, 50)]
    tips = [_step((0, 0), *ray) for ray in zip(directions, lengths, strict=True)]
    offsets = zip((0, 0), *tips, strict=True)
    vertex = [
        round((SIZE - min(each) - max(each)) / 2) + rng.randint(-4, 4) for each in offsets
    ]  # near where it is centred
    # degrees, anticlockwise from the right
    return {"figure": "two rays", "directions": directions, "lengths": lengths, "vertex": vertex}, _draw_rays


def _draw_rays(canvas: Canvas, figure: dict) -> None:
    (x, y), (first, second), colour = figure["vertex"], figure["directions"], COLOURS[figure["colour"]]
    if second - first == 90:  # the usual mark of a right angle
        corner = _step((x, y), (first + second) / 2, 12 * math.sqrt(2))
        canvas.line([_step((x, y), first, 12), corner, _step((x, y), second, 12)], colour, 2)
    else:
        canvas.arc((x - 16, y - 16, x + 16, y + 16), 360 - second, 360 - first, colour, 2)
    for direction, length in zip(figure["directions"], figure["lengths"], strict=True):
        canvas.line([(x, y), _step((x, y), direction, length)], INK, 2.25)
    canvas.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), INK)


def _triangle(rng: random.Random, level: Level) -> Figure:
    allowed = TRIANGLE_ANGLES[level]
    third = rng.choice(allowed)
    first = rng.choice([angle for angle in allowed if 180 - third - angle in allowed])
    angles = [first, 180 - third - first]
    unknown = rng.randrange(3)
    angles.insert(unknown, third)  # lower left, lower right, top
    left, right, top = angles
    reach = math.sin(math.radians(right)) / math.sin(
        math.radians(top)
    )  # lower left corner to the top, where the base is 1
    x, y = _step((0, 0), left, reach)
    width, start = max(1, x) - min(0, x), min(0, x)
    scale = min(88 / width, 54 / -y)
    x0 = round((SIZE - width * scale) / 2 - start * scale) + rng.randint(-3, 3)
    y0 = 83 + rng.randint(-1, 1)  # the numbers below it fill the lowest row of cells
    corners = [[x0, y0], [round(x0 + scale), y0], [round(x0 + x * scale), round(y0 + y * scale)]]
    angles[unknown] = None
    return {"figure": "triangle", "angles": angles, "corners": corners}, _draw_triangle


def _draw_triangle(canvas: Canvas, figure: dict) -> None:
    canvas.polygon(figure["corners"], _tint(figure["colour"]))
    canvas.line([*figure["corners"], *figure["corners"][:2]], COLOURS[figure["colour"]], 2)
    (left, _), (right, _), (top, height) = figure["corners"]
    right = max(right, left // CELL * CELL + CELL)  # never in the left one's cell
    for place, angle in zip(
        ((left, SIZE - 1), (right, SIZE - 1), (top, height - 24)), figure["angles"], strict=True
    ):
        canvas.text(*_centre(*place), "?" if angle is None else f"{angle}°", 14)


def _centre(x: int, y: int) -> tuple[int, int]:
    """The middle of the cell that holds a pixel, where a number is read best: a cell is what one vision token
    sees.
    """
    return x // CELL * CELL + CELL // 2, y // CELL * CELL + CELL // 2


def _step(start: tuple[float, float], direction: float, length: float) -> tuple[float, float]:
    """Where one comes from `start`; degrees run anticlockwise from the right."""
    angle = math.radians(direction)
    return start[0] + length * math.cos(angle), start[1] - length * math.sin(angle)


def _tint(colour: str) -> tuple[int, int, int]:
    red, green, blue = ((3 * 255 + channel) // 4 for channel in COLOURS[colour])
    return red, green, blue
