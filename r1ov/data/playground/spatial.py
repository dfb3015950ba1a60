"""Where things are: next to, seen from, in a corner, above or below; on a 4 x 4 grid of different objects."""

from random import Random

from r1ov.data.playground.grid import CELLS, cell_name, scatter, scene
from r1ov.data.playground.scene import PAPER, Level, Pair, Scene, ask, by_level, pairs

_TOTAL = by_level((3, 5), (6, 7), (8, 9))  # objects in an image
# (column, row) to the cell next to it
_STEPS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_CORNERS = {"top left": (0, 0), "top right": (3, 0), "bottom left": (0, 3), "bottom right": (3, 3)}
# The things (the question may name the first two), the side or corner it asks for, the thought, the answer.
Task = tuple


def make(rng: Random, level: Level) -> Scene:
    topic = rng.choices(list(_TASKS), (6, 6, 4, 4))[0]
    chosen = rng.sample(pairs(level), rng.randint(*_TOTAL[level]))
    things, side, reasoning, answer = _TASKS[topic](rng, chosen)
    first, second = things[0].name, things[1].name
    asked = ask(rng, "spatial", topic, first=first, second=second, side=side)
    return scene(rng.choice(PAPER), things, asked, reasoning, answer)


def _next_to(rng: Random, chosen: list[Pair]) -> Task:
    side, (right, down) = rng.choice(list(_STEPS.items()))
    steps = [((c, r), (c + right, r + down)) for c, r in CELLS]
    things = scatter(rng, chosen, rng.choice([step for step in steps if step[1] in CELLS]))
    here, there = things[:2]
    reasoning = (
        f"The {here.name} is at {here.cell}. {side.capitalize()} {here.cell} is {there.cell}. "
        f"At {there.cell} is the {there.name}."
    )
    return things, side, reasoning, there.name


def _seen_from(rng: Random, chosen: list[Pair]) -> Task:
    side = rng.choice(list(_STEPS))
    things, where, seen = _compare(rng, chosen, side, aligned=True)
    line = "row" if seen.startswith("column") else "column"
    return things, side, f"{where} Same {line}: {seen}.", side.removesuffix(" of")


def _in_corner(rng: Random, chosen: list[Pair]) -> Task:
    corner, place = rng.choice(list(_CORNERS.items()))
    other_corners = [other for other in _CORNERS.values() if other != place]
    things = scatter(rng, chosen, [place, *rng.sample(other_corners, rng.randint(0, 2))])
    name, cell = things[0].name, cell_name(*place)
    return things, corner, f"The {corner} corner is {cell}. At {cell} is the {name}.", name


def _is_it(rng: Random, chosen: list[Pair]) -> Task:
    asked, answer = rng.choice(list(_STEPS)), rng.choice(("yes", "no"))
    side = asked if answer == "yes" else _OPPOSITE[asked]
    things, where, seen = _compare(rng, chosen, side, aligned=False)
    reasoning = (
        f"{where} {seen.capitalize()}. "
        f"Asked: {asked.removesuffix(' of')}. Seen: {side.removesuffix(' of')}. So {answer}."
    )
    return things, asked, reasoning, answer


_TASKS = {"next to": _next_to, "seen from": _seen_from, "in a corner": _in_corner, "is it": _is_it}


def _compare(rng: Random, chosen: list[Pair], side: str, aligned: bool) -> Task:
    """Returns things of which the first is on this side of the second (aligned: in the same row or column),
    where the two are, and the step from there: "column a is left of column c", "row 3 is below row 1".
    """
    axis = side in ("above", "below")
    ends = sorted(rng.sample(range(4), 2), reverse=side in ("right of", "below"))
    across = [rng.randrange(4)] * 2 if aligned else [rng.randrange(4), rng.randrange(4)]
    columns, rows = (across, ends) if axis else (ends, across)
    things = scatter(rng, chosen, list(zip(columns, rows, strict=True)))
    first, second = things[:2]
    word = ("column", "row")[axis]
    return (
        things,
        f"The {first.name} is at {first.cell}, the {second.name} at {second.cell}.",
        f"{word} {first.cell[axis]} is {side} {word} {second.cell[axis]}",
    )
