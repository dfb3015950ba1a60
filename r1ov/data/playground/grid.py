"""Coloured shapes and where they are: the common ground of counting, spatial and locate.

Places are named as on a chessboard, but from the top: columns a-d, rows 1-4, "b3" is the second column of the
third row. A cell is 28 x 28 pixels, the area of one merged vision token.
"""

import json
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from r1ov.data.playground.scene import Colour, Pair, Scene

CELL = 28
CELLS = [(column, row) for row in range(4) for column in range(4)]  # in reading order
Box = tuple[int, int, int, int]  # (x1, y1, x2, y2) in pixels


class Thing(NamedTuple):
    pair: Pair
    box: Box

    @property
    def name(self) -> str:
        return " ".join(self.pair)

    @property
    def place(self) -> tuple[int, int]:
        """(row, column) of the cell that holds the centre, from 0."""
        x1, y1, x2, y2 = self.box
        return (y1 + y2) // 2 // CELL, (x1 + x2) // 2 // CELL

    @property
    def cell(self) -> str:
        row, column = self.place
        return cell_name(column, row)


def cell_name(column: int, row: int) -> str:
    return "abcd"[column] + str(row + 1)


def plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def scatter(rng: Random, chosen: list[Pair], places: Sequence[tuple[int, int]] = ()) -> list[Thing]:
    """Returns things of 18 to 24 pixels, each a little off the middle of its cell: the first ones in the
    given (column, row), the others anywhere else.
    """
    free = [cell for cell in CELLS if cell not in places]
    things = []
    for pair, place in zip(chosen, [*places, *rng.sample(free, len(chosen) - len(places))], strict=True):
        size = rng.choice((18, 20, 22, 24))
        margin = (CELL - size) // 2
        slack = min(2, margin - 1)
        x, y = (at * CELL + margin + rng.randint(-slack, slack) for at in place)
        things.append(Thing(pair, (x, y, x + size, y + size)))
    return things


def by_row(seen: Sequence[tuple[int, str]]) -> str:
    """Joins the texts of each row, counted from 0; every row is named, also an empty one."""
    rows = [", ".join(text for row, text in seen if row == at) for at in range(4)]
    return " ".join(f"Row {number}: {row or 'none'}." for number, row in enumerate(rows, 1))


def in_reading_order(things: list[Thing]) -> list[Thing]:
    return sorted(things, key=lambda thing: (thing.place, thing.box))


def listing(things: list[Thing], words: dict[Pair, str]) -> str:
    """Tells the image row by row, counting on the way: "Row 1: a1 red circle (1), c1 blue star. Row 2: none.
    Row 3: none. Row 4: d4 red cross (2)."

    Every row is named. Without that, the next object had to be searched for in all that is left of the image,
    and in that search a small model was still guessing after 30 thousand samples. `words` says what is
    counted, and what is said before the number ("" above; "red " gives "(red 2)"). The number follows the
    thing at once: a count kept while looking is a small step, one made afterwards from the list is a search.
    """
    seen, numbers = [], Counter()
    for thing in in_reading_order(things):
        text = f"{thing.cell} {thing.name}"
        if thing.pair in words:
            word = words[thing.pair]
            numbers[word] += 1
            text += f" ({word}{numbers[word]})"
        seen.append((thing.place[0], text))
    return by_row(seen)


def scene(paper: Colour, things: list[Thing], asked: tuple[str, str], reasoning: str, answer: str) -> Scene:
    """Returns the things on a faint 4 x 4 grid, with one question (and the kind of its answer) about them."""
    things = in_reading_order(things)
    objects = [{"colour": t.pair[0], "shape": t.pair[1], "cell": t.cell, "box": t.box} for t in things]
    description = json.dumps({"paper": paper, "objects": objects}, separators=(",", ":"))

    def draw(canvas):
        canvas.grid(CELL)
        for (colour, shape), box in things:
            canvas.shape(shape, colour, box)

    return Scene(draw, paper, *asked, description, reasoning, answer)
