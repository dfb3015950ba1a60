"""Counting and comparing coloured shapes on a 4 x 4 grid."""

import random
from collections import Counter
from collections.abc import Callable
from itertools import count

from r1ov.data.playground.grid import CELLS, Thing, describe, in_reading_order, listing, painter, plural, put
from r1ov.data.playground.scene import COLOURS, PAPER, SHAPES, Level, Scene, pairs

Pair = tuple[str, str]  # (colour, shape)

_TOTAL = {"normal": (2, 6), "hard": (4, 8), "beyond": (9, 11)}  # objects in a picture
_MOST = {"normal": 4, "hard": 5, "beyond": 6}  # largest count asked for
_HOW_MANY = (
    "How many {} are there?",
    "How many {} do you see?",
    "Count the {}.",
    "What is the number of {}?",
    "How many {} are in the picture?",
)
_MORE = (
    "How many more {} than {} are there?",
    "How many more {} than {} do you see?",
    "By how many do the {} outnumber the {}?",
    "What is the number of {} minus the number of {}?",
)
_COMMON = (
    "Which {} is the most common?",
    "What is the most common {}?",
    "Which {} do most objects have?",
    "Which {} occurs most often?",
)


def make(rng: random.Random, level: Level) -> Scene:
    ask = rng.choices((_count_pair, _count_alike, _count_all, _more, _most_common), (6, 5, 3, 3, 4))[0]
    return ask(rng, level)


def _count_pair(rng: random.Random, level: Level) -> Scene:
    pair = rng.choice(pairs(level))
    return _how_many(rng, level, f"{pair[0]} {plural(pair[1])}", lambda other: other == pair)


def _count_alike(rng: random.Random, level: Level) -> Scene:
    if rng.random() < 0.5:
        colour = rng.choice(list(COLOURS))
        return _how_many(rng, level, f"{colour} objects", lambda pair: pair[0] == colour)
    shape = rng.choice(SHAPES)
    return _how_many(rng, level, plural(shape), lambda pair: pair[1] == shape)


def _how_many(rng: random.Random, level: Level, name: str, fits: Callable[[Pair], bool]) -> Scene:
    gold = rng.randint(0, _MOST[level])
    low, high = _TOTAL[level]
    total = rng.randint(max(low, gold), high)
    fitting = [pair for pair in pairs(level) if fits(pair)]
    # Half of the others share a colour or a shape with what is counted, so that both must be looked at.
    others = [pair for pair in pairs(level) if not fits(pair)]
    near = [
        pair for pair in others if any(pair[0] == colour or pair[1] == shape for colour, shape in fitting)
    ]
    chosen = rng.choices(fitting, k=gold) + [
        rng.choice(near if rng.random() < 0.5 else others) for _ in range(total - gold)
    ]
    things = _scatter(rng, chosen)
    reasoning = f"{_counted(things, lambda thing: fits((thing.colour, thing.shape)))} That makes {gold}."
    return _scene(rng, things, rng.choice(_HOW_MANY).format(name), reasoning, str(gold), "number")


def _count_all(rng: random.Random, level: Level) -> Scene:
    total = rng.randint(*_TOTAL[level])
    things = _scatter(rng, rng.choices(pairs(level), k=total))
    reasoning = f"{_counted(things, lambda thing: True)} That makes {total}."
    return _scene(rng, things, rng.choice(_HOW_MANY).format("objects"), reasoning, str(total), "number")


def _more(rng: random.Random, level: Level) -> Scene:
    low, high = _TOTAL[level]
    gold = rng.randint(0, 3)
    fewer = rng.randint(0 if gold else 1, (high - gold) // 2)
    total = rng.randint(max(low, 2 * fewer + gold), high)
    which = rng.randrange(2)
    first, second = rng.sample((list(COLOURS), SHAPES)[which], 2)

    def choose(number: int, fits: Callable[[str], bool]) -> list[Pair]:
        return rng.choices([pair for pair in pairs(level) if fits(pair[which])], k=number)

    chosen = choose(fewer + gold, lambda value: value == first) + choose(fewer, lambda value: value == second)
    chosen += choose(total - len(chosen), lambda value: value not in (first, second))
    things = _scatter(rng, chosen)
    names = [(f"{value} objects", plural(value))[which] for value in (first, second)]
    seen = _counted_by_value(things, which, (first, second))
    reasoning = f"{seen} So {first} {fewer + gold}, {second} {fewer}. {fewer + gold} - {fewer} = {gold}."
    return _scene(rng, things, rng.choice(_MORE).format(*names), reasoning, str(gold), "number")


def _most_common(rng: random.Random, level: Level) -> Scene:
    low, high = _TOTAL[level]
    which = rng.randrange(2)
    values = (list(COLOURS), SHAPES)[which]
    winner = rng.choice(values)
    total = rng.randint(max(low, 3), high)
    most = rng.randint(
        2 if total < 8 else 3, min(5, total)
    )  # six values: eleven objects always leave room for a winner of three
    counts = Counter({winner: most})
    while counts.total() < total:
        counts[rng.choice([value for value in values if counts[value] < most - 1])] += 1
    chosen = [
        rng.choice([pair for pair in pairs(level) if pair[which] == value]) for value in counts.elements()
    ]
    things = _scatter(rng, chosen)
    reasoning = f"{_counted_by_value(things, which, tuple(values))} The most common is {winner}."
    return _scene(
        rng, things, rng.choice(_COMMON).format(("colour", "shape")[which]), reasoning, winner, "text"
    )


def _scatter(rng: random.Random, chosen: list[Pair]) -> list[Thing]:
    return in_reading_order(
        [put(rng, pair, place) for pair, place in zip(chosen, rng.sample(CELLS, len(chosen)), strict=True)]
    )


def _counted(things: list[Thing], fits: Callable[[Thing], bool]) -> str:
    """Row 1: a1 red circle (1), b1 blue star. Row 2: c2 red cross (2). ..."""
    number = count(1)
    return listing(things, lambda thing: f" ({next(number)})" if fits(thing) else "")


def _counted_by_value(things: list[Thing], which: int, values: tuple[str, ...]) -> str:
    """Row 1: a1 red circle (red 1), b1 blue star (blue 1). Row 2: c2 red cross (red 2). ...; `which`: 0
    colour, 1 shape.
    """
    counts: Counter[str] = Counter()

    def remark(thing: Thing) -> str:
        value = (thing.colour, thing.shape)[which]
        counts[value] += 1
        return f" ({value} {counts[value]})" if value in values else ""

    return listing(things, remark)


def _scene(
    rng: random.Random, things: list[Thing], question: str, reasoning: str, answer: str, kind: str
) -> Scene:
    paper = rng.choice(PAPER)
    return Scene(
        draw=painter(things),
        paper=paper,
        question=question,
        description=describe(paper, things),
        reasoning=reasoning,
        answer=answer,
        kind=kind,
    )
