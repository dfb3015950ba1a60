"""Where things are: next to, seen from, in a corner, above or below; on a 4 x 4 grid of different objects."""

import random

from r1ov.data.playground.grid import CELLS, Thing, cell_name, describe, in_reading_order, painter, put
from r1ov.data.playground.scene import PAPER, Level, Scene, pairs

_TOTAL = {"normal": (3, 5), "hard": (6, 7), "beyond": (8, 9)}  # objects in a picture
_STEPS = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}  # (column, row) to the cell next to it
_CORNERS = {"top left": (0, 0), "top right": (3, 0), "bottom left": (0, 3), "bottom right": (3, 3)}
_NEXT_TO = (
    "Which object is directly {side} the {name}?",
    "What is directly {side} the {name}?",
    "Name the object directly {side} the {name}.",
    "What do you see in the cell directly {side} the {name}?",
)
_SEEN_FROM = (
    "Where is the {first}, seen from the {second}: left, right, above or below?",
    "Seen from the {second}, where is the {first}: left, right, above or below?",
    "Is the {first} left, right, above or below, seen from the {second}?",
    "In which direction is the {first} from the {second}: left, right, above or below?",
)
_IN_CORNER = (
    "Which object is in the {corner} corner?",
    "What is in the {corner} corner?",
    "Name the object in the {corner} corner.",
    "What do you see in the {corner} corner?",
)
_IS_IT = (
    "Is the {first} {side} the {second}?",
    "Is it true that the {first} is {side} the {second}?",
    "Does the {first} lie {side} the {second}?",
)


def make(rng: random.Random, level: Level) -> Scene:
    ask = rng.choices((_next_to, _seen_from, _in_corner, _is_it), (6, 6, 4, 4))[0]
    names = rng.sample(pairs(level), rng.randint(*_TOTAL[level]))
    return ask(rng, names)


def _next_to(rng: random.Random, names: list[tuple[str, str]]) -> Scene:
    side, (right, down) = rng.choice(list(_STEPS.items()))
    column, row = rng.choice([(c, r) for c, r in CELLS if 0 <= c + right < 4 and 0 <= r + down < 4])
    things = _scatter(rng, names, [(column, row), (column + right, row + down)])
    here, there = things[:2]
    steps = f"The {here.name} is at {here.cell}. {side.capitalize()} {here.cell} is {there.cell}. At {there.cell} is the {there.name}."
    return _scene(
        rng, things, rng.choice(_NEXT_TO).format(side=side, name=here.name), steps, there.name, "text"
    )


def _seen_from(rng: random.Random, names: list[tuple[str, str]]) -> Scene:
    side, (right, down) = rng.choice(list(_STEPS.items()))
    low, high = sorted(rng.sample(range(4), 2))
    first_along, second_along = (low, high) if right + down < 0 else (high, low)
    across = rng.randrange(4)
    places = [(along, across) if right else (across, along) for along in (first_along, second_along)]
    things = _scatter(rng, names, places)
    first, second = things[:2]
    line = "row" if right else "column"
    steps = f"The {first.name} is at {first.cell}, the {second.name} at {second.cell}. Same {line}: {_compare(first, second, side)}."
    question = rng.choice(_SEEN_FROM).format(first=first.name, second=second.name)
    return _scene(rng, things, question, steps, side.removesuffix(" of"), "text")


def _in_corner(rng: random.Random, names: list[tuple[str, str]]) -> Scene:
    corner, place = rng.choice(list(_CORNERS.items()))
    other_corners = [other for other in _CORNERS.values() if other != place]
    things = _scatter(rng, names, [place, *rng.sample(other_corners, rng.randint(0, 2))])
    steps = f"The {corner} corner is {cell_name(*place)}. At {cell_name(*place)} is the {things[0].name}."
    return _scene(rng, things, rng.choice(_IN_CORNER).format(corner=corner), steps, things[0].name, "text")


def _is_it(rng: random.Random, names: list[tuple[str, str]]) -> Scene:
    asked, (right, _) = rng.choice(list(_STEPS.items()))
    answer = rng.choice(("yes", "no"))
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[asked]
    true_side = asked if answer == "yes" else opposite
    low, high = sorted(rng.sample(range(4), 2))
    first_along, second_along = (low, high) if sum(_STEPS[true_side]) < 0 else (high, low)
    places = [
        (along, rng.randrange(4)) if right else (rng.randrange(4), along)
        for along in (first_along, second_along)
    ]
    things = _scatter(rng, names, places)
    first, second = things[:2]
    where = f"The {first.name} is at {first.cell}, the {second.name} at {second.cell}."
    comparison = _compare(first, second, true_side).capitalize()
    steps = f"{where} {comparison}. Asked: {asked.removesuffix(' of')}. Seen: {true_side.removesuffix(' of')}. So {answer}."
    question = rng.choice(_IS_IT).format(first=first.name, side=asked, second=second.name)
    return _scene(rng, things, question, steps, answer, "yes_no")


def _compare(first: Thing, second: Thing, side: str) -> str:
    """For instance "column a is left of column c" or "row 3 is below row 1"."""
    axis = 1 if side in ("above", "below") else 0
    word = ("column", "row")[axis]
    return f"{word} {first.cell[axis]} is {side} {word} {second.cell[axis]}"


def _scatter(rng: random.Random, names: list[tuple[str, str]], places: list[tuple[int, int]]) -> list[Thing]:
    """The first things stand at the given places, the others anywhere else."""
    places = places[: len(names)]
    free = [place for place in CELLS if place not in places]
    return [
        put(rng, pair, place)
        for pair, place in zip(names, places + rng.sample(free, len(names) - len(places)), strict=True)
    ]


def _scene(
    rng: random.Random, things: list[Thing], question: str, steps: str, answer: str, kind: str
) -> Scene:
    paper = rng.choice(PAPER)
    return Scene(
        draw=painter(in_reading_order(things)),
        paper=paper,
        question=question,
        description=describe(paper, things),
        reasoning=steps,
        answer=answer,
        kind=kind,
    )
