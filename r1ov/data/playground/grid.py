"""Coloured shapes and where they are: the common ground of counting, spatial, locate and pattern.

Places are named as on a chessboard, but from the top: columns a-d, rows 1-4, "b3" is the second column of the
third row. A cell is 28 x 28 pixels, the area of one merged vision token.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from r1ov.data.playground.scene import GRID, SIZE, Canvas

CELL = 28
CELLS = [(column, row) for row in range(4) for column in range(4)]  # in reading order


@dataclass(frozen=True, kw_only=True)
class Thing:
    colour: str
    shape: str
    box: tuple[int, int, int, int]  # (x1, y1, x2, y2) in pixels

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> tuple[int, int]:
        """(column, row) of the cell that holds the centre, from 0."""
        x1, y1, x2, y2 = self.box
        return (x1 + x2) // 2 // CELL, (y1 + y2) // 2 // CELL

    @property
    def cell(self) -> str:
        return cell_name(*self.place)


def cell_name(column: int, row: int) -> str:
    return "abcd"[column] + str(row + 1)


def plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def put(rng: random.Random, pair: tuple[str, str], place: tuple[int, int]) -> Thing:
    """A thing of 18 to 24 pixels in the given (column, row), a little off its middle."""
    size = rng.choice((18, 20, 22, 24))
    slack = min(2, (CELL - size) // 2 - 1)
    x = place[0] * CELL + (CELL - size) // 2 + rng.randint(-slack, slack)
    y = place[1] * CELL + (CELL - size) // 2 + rng.randint(-slack, slack)
    return Thing(colour=pair[0], shape=pair[1], box=(x, y, x + size, y + size))


def in_reading_order(things: list[Thing]) -> list[Thing]:
    return sorted(things, key=lambda thing: (thing.place[1], thing.place[0], thing.box))


def listing(things: list[Thing], remark: Callable[[Thing], str] = lambda thing: "") -> str:
    """What is seen, row by row: "Row 1: a1 red circle, c1 blue star. Row 2: none. Row 3: none. Row 4: d4 red
    cross."

    Every row is named, also an empty one. Without, the next object had to be searched for in all that is left
    of the picture, and in that search a small model was still guessing after 30 thousand samples. `remark` is
    asked in reading order, and what it
    says follows the thing at once: a count kept while looking is a small step, one made afterwards from the
        list is a search.
    """
    ordered = [
        (thing.place[1], f"{thing.cell} {thing.name}{remark(thing)}") for thing in in_reading_order(things)
    ]
    rows = [[seen for at, seen in ordered if at == row] for row in range(4)]
    return " ".join(f"Row {number}: {', '.join(seen) or 'none'}." for number, seen in enumerate(rows, 1))


def describe(paper: tuple[int, int, int], things: list[Thing]) -> str:
    objects = [
        {"colour": t.colour, "shape": t.shape, "cell": t.cell, "box": t.box} for t in in_reading_order(things)
    ]
    return json.dumps({"paper": paper, "objects": objects}, separators=(",", ":"))


def painter(things: list[Thing]) -> Callable[[Canvas], None]:
    """Draws the things on a faint 4 x 4 grid."""

    def draw(canvas: Canvas) -> None:
        for at in range(CELL, SIZE, CELL):
            canvas.line([(at, 0), (at, SIZE)], GRID)
            canvas.line([(0, at), (SIZE, at)], GRID)
        for thing in things:
            canvas.shape(thing.shape, thing.colour, thing.box)

    return draw
