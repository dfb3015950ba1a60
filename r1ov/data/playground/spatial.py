"""Where things are: next to, seen from, in a corner, above or below; on a 4 x 4 grid of different objects."""

from random import Random

from r1ov.data.playground.grid import CELLS, Thing, cell_name, scatter, scene
from r1ov.data.playground.scene import Level, Pair, Scene, ask, pairs

_TOTAL = {"normal": (3, 5), "hard": (6, 7), "beyond": (8, 9)}  # objects in an image
# (column, row) to the cell next to it
_STEPS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_CORNERS = {"top left": (0, 0), "top right": (3, 0), "bottom left": (0, 3), "bottom right": (3, 3)}


def make(rng: Random, level: Level) -> Scene:
    topic = rng.choices((_next_to, _seen_from, _in_corner, _is_it), (6, 6, 4, 4))[0]
    return topic(rng, rng.sample(pairs(level), rng.randint(*_TOTAL[level])))


def _next_to(rng: Random, chosen: list[Pair]) -> Scene:
    side, (right, down) = rng.choice(list(_STEPS.items()))
    steps = [((c, r), (c + right, r + down)) for c, r in CELLS]
    things = scatter(rng, chosen, rng.choice([step for step in steps if step[1] in CELLS]))
    here, there = things[:2]
    reasoning = (
        f"The {here.name} is at {here.cell}. {side.capitalize()} {here.cell} is {there.cell}. "
        f"At {there.cell} is the {there.name}."
    )
    question = ask(rng, "spatial", "next to", side=side, name=here.name)
    return scene(rng, things, question, reasoning, there.name, "text")


def _seen_from(rng: Random, chosen: list[Pair]) -> Scene:
    side, (right, _) = rng.choice(list(_STEPS.items()))
    ends, across = _ends(rng, side), rng.randrange(4)
    things = scatter(rng, chosen, [(at, across) if right else (across, at) for at in ends])
    first, second = things[:2]
    line = "row" if right else "column"
    reasoning = f"{_where(first, second)} Same {line}: {_compare(first, second, side)}."
    question = ask(rng, "spatial", "seen from", first=first.name, second=second.name)
    return scene(rng, things, question, reasoning, side.removesuffix(" of"), "text")


def _in_corner(rng: Random, chosen: list[Pair]) -> Scene:
    corner, place = rng.choice(list(_CORNERS.items()))
    other_corners = [other for other in _CORNERS.values() if other != place]
    things = scatter(rng, chosen, [place, *rng.sample(other_corners, rng.randint(0, 2))])
    name, cell = things[0].name, cell_name(*place)
    reasoning = f"The {corner} corner is {cell}. At {cell} is the {name}."
    return scene(rng, things, ask(rng, "spatial", "in a corner", corner=corner), reasoning, name, "text")


def _is_it(rng: Random, chosen: list[Pair]) -> Scene:
    asked, (right, _) = rng.choice(list(_STEPS.items()))
    answer = rng.choice(("yes", "no"))
    side = asked if answer == "yes" else _OPPOSITE[asked]
    ends = _ends(rng, side)
    things = scatter(
        rng, chosen, [(at, rng.randrange(4)) if right else (rng.randrange(4), at) for at in ends]
    )
    first, second = things[:2]
    reasoning = (
        f"{_where(first, second)} {_compare(first, second, side).capitalize()}. "
        f"Asked: {asked.removesuffix(' of')}. Seen: {side.removesuffix(' of')}. So {answer}."
    )
    question = ask(rng, "spatial", "is it", first=first.name, side=asked, second=second.name)
    return scene(rng, things, question, reasoning, answer, "yes_no")


def _ends(rng: Random, side: str) -> list[int]:
    """Returns two columns or rows, of which the first is on this side of the second."""
    return sorted(rng.sample(range(4), 2), reverse=sum(_STEPS[side]) > 0)


def _where(first: Thing, second: Thing) -> str:
    return f"The {first.name} is at {first.cell}, the {second.name} at {second.cell}."


def _compare(first: Thing, second: Thing, side: str) -> str:
    """Example: "column a is left of column c", "row 3 is below row 1"."""
    axis = side in ("above", "below")
    word = ("column", "row")[axis]
    return f"{word} {first.cell[axis]} is {side} {word} {second.cell[axis]}"
