"""What replaces the question mark: repeating shapes, growing dots, turning arrows, and 3 x 3 matrices."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from r1ov.data.playground.grid import CELL, plural
from r1ov.data.playground.scene import COLOURS, GRID, INK, PAPER, SHAPES, UNSEEN, Canvas, Level, Scene, pairs

_DIRECTIONS = (
    "up",
    "up right",
    "right",
    "down right",
    "down",
    "down left",
    "left",
    "up left",
)  # an eighth of a turn each
_TURNS = {1: "an eighth of a turn", 2: "a quarter turn", 3: "three eighths of a turn"}
_DOTS = {  # on a 3 x 3 raster, as on dice
    1: (4,),
    2: (2, 6),
    3: (2, 4, 6),
    4: (0, 2, 6, 8),
    5: (0, 2, 4, 6, 8),
    6: (0, 2, 3, 5, 6, 8),
    7: (0, 2, 3, 4, 5, 6, 8),
    8: (0, 1, 2, 3, 5, 6, 7, 8),
    9: tuple(range(9)),
}
_WHICH_OPTION = (
    "Which of A, B, C and D replaces the question mark?",
    "Which option comes next: A, B, C or D?",
    "A, B, C or D: which one continues the pattern?",
    "Choose what belongs in place of the question mark: A, B, C or D.",
)
_WHICH = {
    "shape": (
        "Which object replaces the question mark?",
        "Which object comes next?",
        "What belongs in place of the question mark?",
        "Which object continues the pattern?",
    ),
    "dots": (
        "How many dots replace the question mark?",
        "How many dots come next?",
        "How many dots belong in place of the question mark?",
        "How many dots continue the pattern?",
    ),
    "arrow": (
        "Where does the next arrow point?",
        "In which direction does the missing arrow point?",
        "Where does the arrow in place of the question mark point?",
        "Which way does the next arrow point?",
    ),
    "matrix": (
        "Which object is missing in the grid?",
        "Which object replaces the question mark in the grid?",
        "What belongs in the empty cell of the grid?",
        "Which object completes the grid?",
    ),
}


@dataclass(frozen=True)
class Tile:
    """What one cell holds."""

    kind: str  # shape | dots | arrow
    colour: str
    form: str | int  # one of SHAPES, a number of dots, or one of _DIRECTIONS

    @property
    def name(self) -> str:
        return f"{self.colour} {self.form}" if self.kind == "shape" else str(self.form)

    def paint(self, canvas: Canvas, box: tuple[float, float, float, float]) -> None:
        x1, y1, x2, y2 = box
        side = x2 - x1
        if self.kind == "shape":
            canvas.shape(self.form, self.colour, box)
        elif self.kind == "dots":
            radius = 0.14 * side
            for dot in _DOTS[self.form]:
                x, y = (
                    low + radius + (side - 2 * radius) * step / 2
                    for low, step in ((x1, dot % 3), (y1, dot // 3))
                )
                canvas.ellipse((x - radius, y - radius, x + radius, y + radius), COLOURS[self.colour])
        else:
            angle = math.pi / 4 * _DIRECTIONS.index(self.form)
            outline = [
                (0, -0.5),
                (0.36, -0.08),
                (0.13, -0.08),
                (0.13, 0.5),
                (-0.13, 0.5),
                (-0.13, -0.08),
                (-0.36, -0.08),
            ]
            turned = [
                (u * math.cos(angle) - v * math.sin(angle), u * math.sin(angle) + v * math.cos(angle))
                for u, v in outline
            ]
            canvas.polygon(
                [((x1 + x2) / 2 + side * u, (y1 + y2) / 2 + side * v) for u, v in turned],
                COLOURS[self.colour],
            )


def make(rng: random.Random, level: Level) -> Scene:
    return rng.choices((_repeating, _growing, _turning, _matrix), (4, 2, 2, 2))[0](rng, level)


def _repeating(rng: random.Random, level: Level) -> Scene:
    if level == "normal" or rng.random() < 0.5:
        period = rng.choice({"normal": (2, 3), "hard": (3, 4), "beyond": (4, 5)}[level])
        unit = rng.sample(pairs(level), period)
        length = rng.randint(period + 2, {"normal": 6, "hard": 7, "beyond": 8}[level])
        cells = [unit[at % period] for at in range(length)]
        steps = ""
    else:  # colours and shapes each have a period of their own
        periods = rng.sample((2, 3) if level == "hard" else (3, 4), 2)
        length = rng.randint(max(periods) + 2, 8)
        while True:
            colours, shapes = rng.sample(list(COLOURS), periods[0]), rng.sample(SHAPES, periods[1])
            cells = [(colours[at % periods[0]], shapes[at % periods[1]]) for at in range(length)]
            if set(cells) <= set(pairs(level)):
                break
        each = zip(("Colours", "Shapes"), periods, cells[-1], strict=True)
        steps = "".join(f" {what} repeat every {period}: {value}." for what, period, value in each)
    tiles = [Tile("shape", *pair) for pair in cells]
    seen = ", ".join(tile.name for tile in tiles[:-1])
    gold, others = cells[-1], [pair for pair in pairs(level) if pair != cells[-1]]
    if level != "normal":
        others = [pair for pair in others if pair in cells or pair[0] == gold[0] or pair[1] == gold[1]]
    return _sequence(
        rng,
        level,
        tiles,
        [Tile("shape", *pair) for pair in others],
        f"{seen}.{steps} Next: {tiles[-1].name}.",
        "text",
    )


def _growing(rng: random.Random, level: Level) -> Scene:
    kinds = {
        "normal": [[step] * 3 for step in (-2, -1, 1, 2)],
        "hard": [[a, b, a, b] for a in (-3, -2, -1, 1, 2, 3) for b in (-3, -2, -1, 1, 2, 3) if a != b],
        "beyond": [
            [sign * (start + more) for more in range(count)]
            for sign in (-1, 1)
            for start in (1, 2)
            for count in (3, 4)
        ],
    }[level]
    rows = [
        [start + sum(steps[:at]) for at in range(len(steps) + 1)] for steps in kinds for start in range(1, 10)
    ]
    rows = [row for row in rows if all(1 <= number <= 9 for number in row)]
    gold = rng.choice(sorted({row[-1] for row in rows}))
    row = rng.choice([row for row in rows if row[-1] == gold])
    colour = rng.choice(list(COLOURS))
    tiles = [Tile("dots", colour, number) for number in row]
    changes = [after - before for before, after in pairwise(row)]
    said = [f"{abs(change)} {'more' if change > 0 else 'fewer'}" for change in changes]
    each = (
        f"Each time {said[0]}"
        if len(set(said)) == 1
        else f"The changes: {', '.join(said[:-1])}, then {said[-1]}"
    )
    steps = f"Dots: {', '.join(map(str, row[:-1]))}. {each}. {row[-2]} {'+' if changes[-1] > 0 else '-'} {abs(changes[-1])} = {gold}."
    others = [
        Tile("dots", colour, number)
        for number in range(max(1, gold - 3), min(9, gold + 3) + 1)
        if number != gold
    ]
    return _sequence(rng, level, tiles, others, steps, "number")


def _turning(rng: random.Random, level: Level) -> Scene:
    turn = rng.choice({"normal": (1, 2), "hard": (1, 2, 3), "beyond": (3,)}[level])
    way = rng.choice((1, -1))
    start = rng.randrange(8)
    length = 4 if level == "normal" else rng.randint(5, 6)
    colours = rng.sample(list(COLOURS), 1 if level == "normal" else 2 if level == "hard" else 3)
    row = [(colours[at % len(colours)], _DIRECTIONS[(start + way * turn * at) % 8]) for at in range(length)]
    tiles = [Tile("arrow", *pair) for pair in row]
    seen = ", ".join(tile.name for tile in tiles[:-1])
    clock = "clockwise" if way > 0 else "counterclockwise"
    steps = f"Arrows: {seen}. Each time {_TURNS[turn]} {clock}. Next: {tiles[-1].name}."
    others = [Tile("arrow", row[-1][0], direction) for direction in _DIRECTIONS if direction != row[-1][1]]
    return _sequence(rng, level, tiles, others, steps, "text")


def _sequence(
    rng: random.Random, level: Level, tiles: list[Tile], others: list[Tile], steps: str, kind: str
) -> Scene:
    """Cells in rows of four, the last one hidden; half of the time with four options below, the true one
    among `others`.
    """
    gold = tiles[-1]
    if rng.random() < 0.5:
        first_row = 0
        letter = rng.choice("ABCD")
        if (
            level == "normal"
        ):  # one word is enough to tell the right one: small models find one token more easily than two
            others = [tile for tile in others if not set(tile.name.split()) & set(gold.name.split())]
        shown = rng.sample(others, 3)
        shown.insert("ABCD".index(letter), gold)
        options = dict(zip("ABCD", shown, strict=True))
        listed = ", ".join(f"{each} {tile.name}" for each, tile in options.items())
        steps += f" Options: {listed}. The next is {gold.name}, that is {letter}."
        question, answer, kind = rng.choice(_WHICH_OPTION), letter, "mcq"
    else:
        first_row, options = 1, {}
        question, answer = rng.choice(_WHICH[gold.kind]), gold.name
    corners = [(at % 4 * CELL, (first_row + at // 4) * CELL) for at in range(len(tiles))]
    return _scene(rng, corners, tiles, len(tiles) - 1, options, question, steps, answer, kind)


def _matrix(rng: random.Random, level: Level) -> Scene:
    """Each attribute is fixed by the row, fixed by the column, or (hard: one, beyond: both) once in each row
    and column.
    """
    rules: dict[str, Callable[[int, int], int]] = {
        "row": lambda row, column: row,
        "column": lambda row, column: column,
        "each": lambda row, column: (row + column) % 3,
        "each too": lambda row, column: (row - column) % 3,
    }
    kinds = {
        "normal": ("row", "column"),
        "hard": ("each", rng.choice(("row", "column"))),
        "beyond": ("each", "each too"),
    }[level]
    kinds = rng.sample(kinds, 2)
    while True:
        colours, shapes = rng.sample(list(COLOURS), 3), rng.sample(SHAPES, 3)
        cells = [
            (colours[rules[kinds[0]](*divmod(at, 3))], shapes[rules[kinds[1]](*divmod(at, 3))])
            for at in range(9)
        ]
        if level == "beyond" or not UNSEEN & set(cells):
            break
    missing = rng.randrange(9)
    row, column = divmod(missing, 3)
    tiles = [Tile("shape", *pair) for pair in cells]
    gold = tiles[missing]
    in_row = [tiles[3 * row + at] for at in range(3) if at != column]
    in_column = [tiles[3 * at + column] for at in range(3) if at != row]
    reasons = []
    for kind, is_colour in zip(kinds, (True, False), strict=True):
        values = [tile.colour if is_colour else plural(tile.form) for tile in (*in_row, gold)]
        if kind in ("row", "column"):
            reasons.append(f"the {kind} is all {values[-1]}")
        else:
            reasons.append(f"the row has {values[0]} and {values[1]}, not yet {values[2]}")
    seen = [", ".join(tile.name for tile in line) for line in (in_row, in_column)]
    steps = f"The gap is in row {row + 1}, column {column + 1}."
    if level == "normal":  # one rule each: said where it is seen
        by_kind = dict(zip(kinds, (gold.colour, plural(str(gold.form))), strict=True))
        steps += f" Row {row + 1}: {seen[0]}: all {by_kind['row']}. Column {column + 1}: {seen[1]}: all {by_kind['column']}."
        steps += f" So {gold.name}."
    else:
        steps += f" Row {row + 1}: {seen[0]}. Column {column + 1}: {seen[1]}. {reasons[0].capitalize()}, {reasons[1]}: {gold.name}."
    corners = [(at % 3 * CELL, at // 3 * CELL) for at in range(9)]
    return _scene(rng, corners, tiles, missing, {}, rng.choice(_WHICH["matrix"]), steps, gold.name, "text")


def _scene(
    rng: random.Random,
    corners: list[tuple[int, int]],
    tiles: list[Tile],
    missing: int,
    options: dict[str, Tile],
    question: str,
    steps: str,
    answer: str,
    kind: str,
) -> Scene:
    """`corners`: top left of each cell in pixels; options stand below, in a row of their own."""
    paper = rng.choice(PAPER)
    side = rng.choice((20, 22))
    boxes = [_middle(x, y, side) for x, y in corners]
    option_boxes = {letter: _middle(CELL * at, 2 * CELL + 1, side) for at, letter in enumerate(options)}

    def draw(canvas: Canvas) -> None:
        for at, (x, y) in enumerate(corners):
            canvas.rectangle((x + 1.5, y + 1.5, x + CELL - 1.5, y + CELL - 1.5), None, GRID, 1, radius=3)
            if at == missing:
                canvas.text(x + CELL / 2, y + CELL / 2, "?", 0.65 * CELL, INK)
            else:
                tiles[at].paint(canvas, boxes[at])
        for letter, tile in options.items():
            x1, _, x2, y2 = option_boxes[letter]
            tile.paint(canvas, option_boxes[letter])
            canvas.text((x1 + x2) / 2, y2 + 10, letter, 13, INK)

    cells = [
        _facts(tile, box) if at != missing else {"kind": "?", "box": box}
        for at, (tile, box) in enumerate(zip(tiles, boxes, strict=True))
    ]
    facts = {
        "paper": paper,
        "cells": cells,
        "options": {letter: _facts(tile, option_boxes[letter]) for letter, tile in options.items()},
    }
    return Scene(
        draw=draw,
        paper=paper,
        question=question,
        description=json.dumps(facts, separators=(",", ":")),
        reasoning=steps,
        answer=answer,
        kind=kind,
    )


def _middle(x: int, y: int, side: int) -> tuple[int, int, int, int]:
    left, top = x + (CELL - side) // 2, y + (CELL - side) // 2
    return left, top, left + side, top + side


def _facts(tile: Tile, box: tuple[int, int, int, int]) -> dict:
    return {
        "kind": tile.kind,
        "colour": tile.colour,
        {"shape": "shape", "dots": "dots", "arrow": "points"}[tile.kind]: tile.form,
        "box": box,
    }
