"""Counting and comparing coloured shapes on a 4 x 4 grid."""

from collections import Counter
from collections.abc import Callable
from itertools import count
from random import Random

from r1ov.data.playground.grid import Thing, listing, plural, scatter, scene
from r1ov.data.playground.scene import COLOURS, SHAPES, Level, Pair, Scene, ask, pairs

_TOTAL = {"normal": (2, 6), "hard": (4, 8), "beyond": (9, 11)}  # objects in an image
_MOST = {"normal": 4, "hard": 5, "beyond": 6}  # largest count asked for
_ATTRIBUTES = ("colour", "shape")


def make(rng: Random, level: Level) -> Scene:
    topic = rng.choices((_count_pair, _count_alike, _count_all, _more, _most_common), (6, 5, 3, 3, 4))[0]
    return topic(rng, level)


def _count_pair(rng: Random, level: Level) -> Scene:
    pair = rng.choice(pairs(level))
    return _count_some(rng, level, f"{pair[0]} {plural(pair[1])}", lambda other: other == pair)


def _count_alike(rng: Random, level: Level) -> Scene:
    if rng.random() < 0.5:
        colour = rng.choice(list(COLOURS))
        return _count_some(rng, level, f"{colour} objects", lambda pair: pair[0] == colour)
    shape = rng.choice(SHAPES)
    return _count_some(rng, level, plural(shape), lambda pair: pair[1] == shape)


def _count_some(rng: Random, level: Level, name: str, fits: Callable[[Pair], bool]) -> Scene:
    gold = rng.randint(0, _MOST[level])
    low, high = _TOTAL[level]
    total = rng.randint(max(low, gold), high)
    fitting = [pair for pair in pairs(level) if fits(pair)]
    # Half of the others share a colour or a shape with what is counted, so that both must be looked at.
    others = [pair for pair in pairs(level) if not fits(pair)]
    near = [pair for pair in others if any(pair[0] == fit[0] or pair[1] == fit[1] for fit in fitting)]
    chosen = rng.choices(fitting, k=gold)
    chosen += [rng.choice(near if rng.random() < 0.5 else others) for _ in range(total - gold)]
    return _how_many(rng, chosen, name, fits)


def _count_all(rng: Random, level: Level) -> Scene:
    chosen = rng.choices(pairs(level), k=rng.randint(*_TOTAL[level]))
    return _how_many(rng, chosen, "objects", lambda pair: True)


def _how_many(rng: Random, chosen: list[Pair], name: str, fits: Callable[[Pair], bool]) -> Scene:
    """Reasoning: Row 1: a1 red circle (1), b1 blue star. Row 2: c2 red cross (2). ... That makes 2."""
    things, number = scatter(rng, chosen), count(1)
    seen = listing(things, lambda thing: f" ({next(number)})" if fits((thing.colour, thing.shape)) else "")
    answer = str(sum(map(fits, chosen)))
    question = ask(rng, "counting", "how many", name=name)
    return scene(rng, things, question, f"{seen} That makes {answer}.", answer, "number")


def _more(rng: Random, level: Level) -> Scene:
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
    things = scatter(rng, chosen)
    names = [(f"{value} objects", plural(value))[which] for value in (first, second)]
    seen = _counted_by_value(things, which, (first, second))
    reasoning = f"{seen} So {first} {fewer + gold}, {second} {fewer}. {fewer + gold} - {fewer} = {gold}."
    question = ask(rng, "counting", "more", first=names[0], second=names[1])
    return scene(rng, things, question, reasoning, str(gold), "number")


def _most_common(rng: Random, level: Level) -> Scene:
    low, high = _TOTAL[level]
    which = rng.randrange(2)
    values = (tuple(COLOURS), SHAPES)[which]
    winner = rng.choice(values)
    total = rng.randint(max(low, 3), high)
    # Six values: eleven objects always leave room for a winner of three.
    counts = Counter({winner: rng.randint(2 if total < 8 else 3, min(5, total))})
    while counts.total() < total:
        counts[rng.choice([value for value in values if counts[value] < counts[winner] - 1])] += 1
    chosen = [
        rng.choice([pair for pair in pairs(level) if pair[which] == value]) for value in counts.elements()
    ]
    things = scatter(rng, chosen)
    reasoning = f"{_counted_by_value(things, which, values)} The most common is {winner}."
    question = ask(rng, "counting", "most common", attribute=_ATTRIBUTES[which])
    return scene(rng, things, question, reasoning, winner, "text")


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
