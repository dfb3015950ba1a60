"""What replaces the question mark: repeating shapes, growing dots, turning arrows, and 3 x 3 matrices."""

import json
import math
from itertools import accumulate, permutations, product
from random import Random
from typing import NamedTuple

from r1ov.data.playground.grid import CELL, Box, plural
from r1ov.data.playground.scene import (
    COLOURS,
    GRID,
    PAPER,
    SHAPES,
    Canvas,
    Level,
    Scene,
    ask,
    by_level,
    outline,
    pairs,
)

# An eighth of a turn each.
_DIRECTIONS = ("up", "up right", "right", "down right", "down", "down left", "left", "up left")
_TURNS = {1: "an eighth of a turn", 2: "a quarter turn", 3: "three eighths of a turn"}
_ARROW = outline("0,-0.5 0.36,-0.08 0.13,-0.08 0.13,0.5 -0.13,0.5 -0.13,-0.08 -0.36,-0.08")
# Number -> where its dots are on a 3 x 3 raster, as on dice.
_DOTS = ("", "4", "26", "246", "0268", "02468", "023568", "0234568", "01235678", "012345678")
# How an attribute of a matrix goes on, of three values: by how many a step down, and a step to the right.
_RULES = {"row": (1, 0), "column": (0, 1), "each": (1, 1), "each too": (1, -1)}


class Tile(NamedTuple):
    """What one cell holds."""

    kind: str  # shape | dots | points (an arrow) | ?
    colour: str = ""
    form: str | int = ""  # one of SHAPES, a number of dots, or one of _DIRECTIONS

    @property
    def name(self) -> str:
        return f"{self.colour} {self.form}" if self.kind == "shape" else str(self.form)

    def facts(self, box: Box) -> dict:
        if self.kind == "?":
            return {"kind": "?", "box": box}
        kind = "arrow" if self.kind == "points" else self.kind
        return {"kind": kind, "colour": self.colour, self.kind: self.form, "box": box}

    def paint(self, canvas: Canvas, box: Box) -> None:
        left, top, right, bottom = box
        side, x, y = right - left, (left + right) / 2, (top + bottom) / 2
        match self.kind:
            case "shape":
                canvas.shape(self.form, self.colour, box)
            case "dots":
                radius = 0.14 * side
                step = side / 2 - radius
                for down, across in (divmod(int(dot), 3) for dot in _DOTS[self.form]):
                    centre = left + radius + step * across, top + radius + step * down
                    canvas.dot(*centre, radius, COLOURS[self.colour])
            case "points":
                angle = math.pi / 4 * _DIRECTIONS.index(self.form)
                sin, cos = math.sin(angle), math.cos(angle)
                turned = [(x + side * (u * cos - v * sin), y + side * (u * sin + v * cos)) for u, v in _ARROW]
                canvas.polygon(turned, COLOURS[self.colour])
            case "?":
                canvas.text(x, y, "?", 0.65 * CELL)


_GAP = Tile("?")


def make(rng: Random, level: Level) -> Scene:
    return rng.choices((_repeating, _growing, _turning, _matrix), (4, 2, 2, 2))[0](rng, level)


def _repeating(rng: Random, level: Level) -> Scene:
    known, rules = pairs(level), ""
    if level == "normal" or rng.random() < 0.5:
        period = rng.choice(by_level((2, 3), (3, 4), (4, 5))[level])
        unit = rng.sample(known, period)
        length = rng.randint(period + 2, by_level(6, 7, 8)[level])
        cells = [unit[at % period] for at in range(length)]
    else:  # colours and shapes each have a period of their own
        a, b = rng.sample((2, 3) if level == "hard" else (3, 4), 2)
        length = rng.randint(max(a, b) + 2, 8)
        cells = [("", "")]  # again until all are known at this level
        while not set(cells) <= set(known):
            colours, shapes = rng.sample(list(COLOURS), a), rng.sample(SHAPES, b)
            cells = [(colours[at % a], shapes[at % b]) for at in range(length)]
        colour, shape = cells[-1]
        rules = f" Colours repeat every {a}: {colour}. Shapes repeat every {b}: {shape}."
    gold = cells[-1]
    others = [pair for pair in known if pair != gold]
    if level != "normal":
        others = [pair for pair in others if pair in cells or {*pair} & {*gold}]
    tiles, others = ([Tile("shape", *pair) for pair in some] for some in (cells, others))
    steps = f"{_names(tiles[:-1])}.{rules} Next: {tiles[-1].name}."
    return _sequence(rng, level, tiles, others, steps, "shape")


def _growing(rng: Random, level: Level) -> Scene:
    if level == "normal":
        kinds = [[step] * 3 for step in (-2, -1, 1, 2)]
    elif level == "hard":
        kinds = [[a, b, a, b] for a, b in permutations((-3, -2, -1, 1, 2, 3), 2)]
    else:
        choices = product((-1, 1), (1, 2), (3, 4))
        kinds = [[sign * step for step in range(first, first + count)] for sign, first, count in choices]
    rows = [(kind, list(accumulate(kind, initial=start))) for kind in kinds for start in range(1, 10)]
    rows = [(kind, row) for kind, row in rows if 1 <= min(row) <= max(row) <= 9]
    gold = rng.choice(sorted({row[-1] for _, row in rows}))
    changes, row = rng.choice([each for each in rows if each[1][-1] == gold])
    colour = rng.choice(list(COLOURS))
    said = [f"{abs(change)} {'more' if change > 0 else 'fewer'}" for change in changes]
    rule = f"The changes: {', '.join(said[:-1])}, then {said[-1]}"
    if level == "normal":
        rule = f"Each time {said[0]}"
    near = [number for number in range(max(1, gold - 3), min(9, gold + 3) + 1) if number != gold]
    tiles, others = ([Tile("dots", colour, number) for number in some] for some in (row, near))
    sign = "+" if changes[-1] > 0 else "-"
    steps = f"Dots: {_names(tiles[:-1])}. {rule}. {row[-2]} {sign} {abs(changes[-1])} = {gold}."
    return _sequence(rng, level, tiles, others, steps, "dots")


def _turning(rng: Random, level: Level) -> Scene:
    turn = rng.choice(by_level((1, 2), (1, 2, 3), (3,))[level])
    way = rng.choice((1, -1))
    start = rng.randrange(8)
    length = 4 if level == "normal" else rng.randint(5, 6)
    colours = rng.sample(list(COLOURS), by_level(1, 2, 3)[level])
    tiles = [
        Tile("points", colours[at % len(colours)], _DIRECTIONS[(start + way * turn * at) % 8])
        for at in range(length)
    ]
    gold = tiles[-1]
    clock = "clockwise" if way > 0 else "counterclockwise"
    steps = f"Arrows: {_names(tiles[:-1])}. Each time {_TURNS[turn]} {clock}. Next: {gold.name}."
    others = [Tile("points", gold.colour, direction) for direction in _DIRECTIONS if direction != gold.form]
    return _sequence(rng, level, tiles, others, steps, "arrow")


def _names(tiles: list[Tile]) -> str:
    return ", ".join(tile.name for tile in tiles)


def _sequence(
    rng: Random, level: Level, tiles: list[Tile], others: list[Tile], steps: str, topic: str
) -> Scene:
    """Returns cells in rows of four, the last one hidden; half of the time with four options below, the true
    one among `others`.
    """
    *shown, gold = tiles
    answer, options = gold.name, []
    if rng.random() < 0.5:
        topic, answer = "option", rng.choice("ABCD")
        if level == "normal":
            # One word is enough to tell the right one: small models find one token more easily than two.
            others = [tile for tile in others if not {*tile.name.split()} & {*gold.name.split()}]
        options = rng.sample(others, 3)
        options.insert("ABCD".index(answer), gold)
        listed = ", ".join(map("{} {.name}".format, "ABCD", options))
        steps += f" Options: {listed}. The next is {gold.name}, that is {answer}."
    return _scene(rng, 4, [*shown, _GAP], options, topic, steps, answer)


def _matrix(rng: Random, level: Level) -> Scene:
    """Each attribute is fixed by the row, fixed by the column, or (hard: one, beyond: both) once in each row
    and column.
    """
    straight = rng.choice(("row", "column"))
    kinds = rng.sample(by_level(("row", "column"), ("each", straight), ("each", "each too"))[level], 2)
    (a, b), (c, d) = (_RULES[kind] for kind in kinds)
    cells = [("", "")]  # again until all are known at this level
    while not set(cells) <= set(pairs(level)):
        colours, shapes = rng.sample(list(COLOURS), 3), rng.sample(SHAPES, 3)
        cells = [
            (colours[(a * row + b * column) % 3], shapes[(c * row + d * column) % 3])
            for row, column in product(range(3), repeat=2)
        ]
    missing = rng.randrange(9)
    row, column = divmod(missing, 3)
    tiles = [Tile("shape", *pair) for pair in cells]
    gold, tiles[missing] = tiles[missing], _GAP
    in_row = [tile for tile in tiles[3 * row : 3 * row + 3] if tile != _GAP]
    in_column = [tile for tile in tiles[column::3] if tile != _GAP]
    across, down = f" Row {row + 1}: {_names(in_row)}", f" Column {column + 1}: {_names(in_column)}"
    steps = f"The gap is in row {row + 1}, column {column + 1}."
    if level == "normal":  # one rule each: said where it is seen
        by_kind = dict(zip(kinds, (gold.colour, plural(gold.form)), strict=True))
        steps += f"{across}: all {by_kind['row']}.{down}: all {by_kind['column']}. So {gold.name}."
    else:
        seen = [(tile.colour, plural(tile.form)) for tile in (*in_row, gold)]
        reasons = [
            f"the {kind} is all {third}"
            if kind in ("row", "column")
            else f"the row has {first} and {second}, not yet {third}"
            for kind, (first, second, third) in zip(kinds, zip(*seen, strict=True), strict=True)
        ]
        steps += f"{across}.{down}. {reasons[0].capitalize()}, {reasons[1]}: {gold.name}."
    return _scene(rng, 3, tiles, [], "matrix", steps, gold.name)


def _scene(
    rng: Random,
    columns: int,
    tiles: list[Tile],
    options: list[Tile],
    topic: str,
    steps: str,
    answer: str,
) -> Scene:
    """Returns the tiles in rows of `columns` cells, one of them a gap; the options below, in a row of their
    own.
    """
    asked = ask(rng, "pattern", topic)
    paper, side = rng.choice(PAPER), rng.choice((20, 22))
    margin = (CELL - side) // 2
    first_row = 1 if columns == 4 and not options else 0  # in the middle, where there is room

    def placed(tile: Tile, column: int, row: int, lower: int = 0) -> tuple[Tile, Box]:
        left, top = column * CELL + margin, row * CELL + margin + lower
        return tile, (left, top, left + side, top + side)

    cells = [placed(tile, at % columns, first_row + at // columns) for at, tile in enumerate(tiles)]
    below = [placed(tile, at, 2, lower=1) for at, tile in enumerate(options)]
    lettered = dict(zip("ABCD", below, strict=False))

    def draw(canvas):
        edge = margin - 1.5
        for _, (left, top, right, bottom) in cells:
            canvas.rectangle((left - edge, top - edge, right + edge, bottom + edge), None, GRID, radius=3)
        for tile, box in cells + below:
            tile.paint(canvas, box)
        for letter, (_, box) in lettered.items():
            canvas.text((box[0] + box[2]) / 2, box[3] + 10, letter, 13)

    facts = {
        "paper": paper,
        "cells": [tile.facts(box) for tile, box in cells],
        "options": {letter: tile.facts(box) for letter, (tile, box) in lettered.items()},
    }
    return Scene(draw, paper, *asked, json.dumps(facts, separators=(",", ":")), steps, answer)
