"""What replaces the question mark: repeating shapes, growing dots, turning arrows, and 3 x 3 matrices."""

import json
import math
from collections.abc import Sequence
from itertools import accumulate, pairwise, product
from random import Random
from typing import NamedTuple

from r1ov.data.playground.grid import CELL, Box, plural
from r1ov.data.playground.scene import COLOURS, GRID, PAPER, SHAPES, Canvas, Level, Scene, ask, pairs

# An eighth of a turn each.
_DIRECTIONS = ("up", "up right", "right", "down right", "down", "down left", "left", "up left")
_TURNS = {1: "an eighth of a turn", 2: "a quarter turn", 3: "three eighths of a turn"}
_ARROW = ((0, -0.5), (0.36, -0.08), (0.13, -0.08), (0.13, 0.5), (-0.13, 0.5), (-0.13, -0.08), (-0.36, -0.08))
# Number -> where its dots are on a 3 x 3 raster, as on dice.
_DOTS = ("", "4", "26", "246", "0268", "02468", "023568", "0234568", "01235678", "012345678")


class Tile(NamedTuple):
    """What one cell holds."""

    kind: str  # shape | dots | points (an arrow)
    colour: str
    form: str | int  # one of SHAPES, a number of dots, or one of _DIRECTIONS

    @property
    def name(self) -> str:
        return f"{self.colour} {self.form}" if self.kind == "shape" else str(self.form)

    def facts(self, box: Box) -> dict:
        kind = "arrow" if self.kind == "points" else self.kind
        return {"kind": kind, "colour": self.colour, self.kind: self.form, "box": box}

    def paint(self, canvas: Canvas, box: Box) -> None:
        left, top, right, bottom = box
        side, fill = right - left, COLOURS[self.colour]
        if self.kind == "shape":
            canvas.shape(self.form, self.colour, box)
        elif self.kind == "dots":
            radius = 0.14 * side
            places = [low + radius + (side - 2 * radius) * at / 2 for low in (left, top) for at in range(3)]
            for down, across in (divmod(int(dot), 3) for dot in _DOTS[self.form]):
                canvas.dot(places[across], places[3 + down], radius, fill)
        else:
            angle = math.pi / 4 * _DIRECTIONS.index(self.form)
            sin, cos, x, y = math.sin(angle), math.cos(angle), (left + right) / 2, (top + bottom) / 2
            turned = [(x + side * (u * cos - v * sin), y + side * (u * sin + v * cos)) for u, v in _ARROW]
            canvas.polygon(turned, fill)


def make(rng: Random, level: Level) -> Scene:
    return rng.choices((_repeating, _growing, _turning, _matrix), (4, 2, 2, 2))[0](rng, level)


def _repeating(rng: Random, level: Level) -> Scene:
    known, rules = pairs(level), ""
    if level == "normal" or rng.random() < 0.5:
        period = rng.choice({"normal": (2, 3), "hard": (3, 4), "beyond": (4, 5)}[level])
        unit = rng.sample(known, period)
        length = rng.randint(period + 2, {"normal": 6, "hard": 7, "beyond": 8}[level])
        cells = [unit[at % period] for at in range(length)]
    else:  # colours and shapes each have a period of their own
        periods = rng.sample((2, 3) if level == "hard" else (3, 4), 2)
        length = rng.randint(max(periods) + 2, 8)
        while True:
            units = [
                rng.sample(values, n) for values, n in zip((tuple(COLOURS), SHAPES), periods, strict=True)
            ]
            cells = [tuple(unit[at % len(unit)] for unit in units) for at in range(length)]
            if set(cells) <= set(known):
                break
        each = zip(("Colours", "Shapes"), periods, cells[-1], strict=True)
        rules = "".join(f" {what} repeat every {period}: {value}." for what, period, value in each)
    gold = cells[-1]
    others = [pair for pair in known if pair != gold]
    if level != "normal":
        others = [pair for pair in others if pair in cells or pair[0] == gold[0] or pair[1] == gold[1]]
    tiles, others = ([Tile("shape", *pair) for pair in some] for some in (cells, others))
    steps = f"{_names(tiles[:-1])}.{rules} Next: {tiles[-1].name}."
    return _sequence(rng, level, tiles, others, steps, "shape", "text")


def _growing(rng: Random, level: Level) -> Scene:
    if level == "normal":
        kinds = [[step] * 3 for step in (-2, -1, 1, 2)]
    elif level == "hard":
        steps = (-3, -2, -1, 1, 2, 3)
        kinds = [[a, b, a, b] for a, b in product(steps, steps) if a != b]
    else:
        choices = product((-1, 1), (1, 2), (3, 4))
        kinds = [[sign * (first + more) for more in range(count)] for sign, first, count in choices]
    rows = [list(accumulate(kind, initial=start)) for kind in kinds for start in range(1, 10)]
    rows = [row for row in rows if min(row) >= 1 and max(row) <= 9]
    gold = rng.choice(sorted({row[-1] for row in rows}))
    row = rng.choice([row for row in rows if row[-1] == gold])
    colour = rng.choice(list(COLOURS))
    changes = [after - before for before, after in pairwise(row)]
    said = [f"{abs(change)} {'more' if change > 0 else 'fewer'}" for change in changes]
    if len(set(said)) == 1:
        rule = f"Each time {said[0]}"
    else:
        rule = f"The changes: {', '.join(said[:-1])}, then {said[-1]}"
    tiles = [Tile("dots", colour, number) for number in row]
    sum_up = f"{row[-2]} {'+' if changes[-1] > 0 else '-'} {abs(changes[-1])} = {gold}"
    steps = f"Dots: {_names(tiles[:-1])}. {rule}. {sum_up}."
    near = range(max(1, gold - 3), min(9, gold + 3) + 1)
    others = [Tile("dots", colour, number) for number in near if number != gold]
    return _sequence(rng, level, tiles, others, steps, "dots", "number")


def _turning(rng: Random, level: Level) -> Scene:
    turn = rng.choice({"normal": (1, 2), "hard": (1, 2, 3), "beyond": (3,)}[level])
    way = rng.choice((1, -1))
    start = rng.randrange(8)
    length = 4 if level == "normal" else rng.randint(5, 6)
    colours = rng.sample(list(COLOURS), {"normal": 1, "hard": 2, "beyond": 3}[level])
    tiles = [
        Tile("points", colours[at % len(colours)], _DIRECTIONS[(start + way * turn * at) % 8])
        for at in range(length)
    ]
    gold = tiles[-1]
    clock = "clockwise" if way > 0 else "counterclockwise"
    steps = f"Arrows: {_names(tiles[:-1])}. Each time {_TURNS[turn]} {clock}. Next: {gold.name}."
    others = [Tile("points", gold.colour, direction) for direction in _DIRECTIONS if direction != gold.form]
    return _sequence(rng, level, tiles, others, steps, "arrow", "text")


def _names(tiles: Sequence[Tile]) -> str:
    return ", ".join(tile.name for tile in tiles)


def _sequence(
    rng: Random, level: Level, tiles: list[Tile], others: list[Tile], steps: str, topic: str, kind: str
) -> Scene:
    """Returns cells in rows of four, the last one hidden; half of the time with four options below, the true
    one among `others`.
    """
    gold, options = tiles[-1], []
    answer = gold.name
    if rng.random() < 0.5:
        topic, answer, kind = "option", rng.choice("ABCD"), "mcq"
        if level == "normal":
            # One word is enough to tell the right one: small models find one token more easily than two.
            others = [tile for tile in others if not set(tile.name.split()) & set(gold.name.split())]
        options = rng.sample(others, 3)
        options.insert("ABCD".index(answer), gold)
        listed = ", ".join(f"{letter} {tile.name}" for letter, tile in zip("ABCD", options, strict=True))
        steps += f" Options: {listed}. The next is {gold.name}, that is {answer}."
    return _scene(rng, 4, tiles, len(tiles) - 1, options, topic, steps, answer, kind)


def _matrix(rng: Random, level: Level) -> Scene:
    """Each attribute is fixed by the row, fixed by the column, or (hard: one, beyond: both) once in each row
    and column.
    """
    rules = {
        "row": lambda row, column: row,
        "column": lambda row, column: column,
        "each": lambda row, column: (row + column) % 3,
        "each too": lambda row, column: (row - column) % 3,
    }
    straight = rng.choice(("row", "column"))
    kinds = {"normal": ("row", "column"), "hard": ("each", straight), "beyond": ("each", "each too")}[level]
    kinds = rng.sample(kinds, 2)
    places = list(product(range(3), range(3)))
    while True:
        values = rng.sample(list(COLOURS), 3), rng.sample(SHAPES, 3)
        cells = [
            tuple(three[rules[kind](*place)] for kind, three in zip(kinds, values, strict=True))
            for place in places
        ]
        if set(cells) <= set(pairs(level)):
            break
    missing = rng.randrange(9)
    row, column = places[missing]
    tiles = [Tile("shape", *pair) for pair in cells]
    gold = tiles[missing]
    in_row = [tiles[3 * row + at] for at in range(3) if at != column]
    in_column = [tiles[3 * at + column] for at in range(3) if at != row]
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
    return _scene(rng, 3, tiles, missing, [], "matrix", steps, gold.name, "text")


def _scene(
    rng: Random,
    columns: int,
    tiles: list[Tile],
    missing: int,
    options: list[Tile],
    topic: str,
    steps: str,
    answer: str,
    kind: str,
) -> Scene:
    """Returns the tiles in rows of `columns` cells, one of them missing; the options below, in a row of their
    own.
    """
    question = ask(rng, "pattern", topic)
    paper, side = rng.choice(PAPER), rng.choice((20, 22))
    first_row = 1 if columns == 4 and not options else 0  # in the middle, where there is room
    corners = [(at % columns * CELL, (first_row + at // columns) * CELL) for at in range(len(tiles))]
    boxes = [_middle(*corner, side) for corner in corners]
    labelled = [
        (letter, tile, _middle(CELL * at, 2 * CELL + 1, side))
        for at, (letter, tile) in enumerate(zip("ABCD", options, strict=False))
    ]

    def draw(canvas: Canvas) -> None:
        for at, (x, y) in enumerate(corners):
            canvas.rectangle((x + 1.5, y + 1.5, x + CELL - 1.5, y + CELL - 1.5), None, GRID, 1, radius=3)
            if at == missing:
                canvas.text(x + CELL / 2, y + CELL / 2, "?", 0.65 * CELL)
            else:
                tiles[at].paint(canvas, boxes[at])
        for letter, tile, box in labelled:
            tile.paint(canvas, box)
            canvas.text((box[0] + box[2]) / 2, box[3] + 10, letter, 13)

    cells = [tile.facts(box) for tile, box in zip(tiles, boxes, strict=True)]
    cells[missing] = {"kind": "?", "box": boxes[missing]}
    shown = {letter: tile.facts(box) for letter, tile, box in labelled}
    description = json.dumps({"paper": paper, "cells": cells, "options": shown}, separators=(",", ":"))
    return Scene(draw, paper, question, description, steps, answer, kind)


def _middle(x: int, y: int, side: int) -> Box:
    left, top = x + (CELL - side) // 2, y + (CELL - side) // 2
    return left, top, left + side, top + side
