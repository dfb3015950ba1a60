"""Counting and comparing coloured shapes on a 4 x 4 grid."""

from collections import Counter
from collections.abc import Sequence
from itertools import count
from random import Random

from r1ov.data.playground.grid import Thing, listing, plural, scatter, scene
from r1ov.data.playground.scene import COLOURS, SHAPES, Level, Pair, Scene, ask, pairs

_TOTAL = {"normal": (2, 6), "hard": (4, 8), "beyond": (9, 11)}  # objects in an image
_MOST = {"normal": 4, "hard": 5, "beyond": 6}  # largest count asked for
# What a pair is made of: 0 its colour, 1 its shape.
_ATTRIBUTES, _VALUES = ("colour", "shape"), (tuple(COLOURS), SHAPES)


def make(rng: Random, level: Level) -> Scene:
    topic = rng.choices((_count_pair, _count_alike, _count_all, _more, _most_common), (6, 5, 3, 3, 4))[0]
    return topic(rng, level)


def _several(which: int, value: str) -> str:
    return (f"{value} objects", plural(value))[which]


def _count_pair(rng: Random, level: Level) -> Scene:
    colour, shape = rng.choice(pairs(level))
    return _count_some(rng, level, f"{colour} {plural(shape)}", [(colour, shape)])


def _count_alike(rng: Random, level: Level) -> Scene:
    which = 0 if rng.random() < 0.5 else 1
    value = rng.choice(_VALUES[which])
    return _count_some(rng, level, _several(which, value), [p for p in pairs(level) if p[which] == value])


def _count_some(rng: Random, level: Level, name: str, fitting: list[Pair]) -> Scene:
    gold = rng.randint(0, _MOST[level])
    low, high = _TOTAL[level]
    total = rng.randint(max(low, gold), high)
    # Half of the others share a colour or a shape with what is counted, so that both must be looked at.
    others = [pair for pair in pairs(level) if pair not in fitting]
    near = [pair for pair in others if any(pair[0] == fit[0] or pair[1] == fit[1] for fit in fitting)]
    chosen = rng.choices(fitting, k=gold)
    chosen += [rng.choice(near if rng.random() < 0.5 else others) for _ in range(total - gold)]
    return _how_many(rng, chosen, name, fitting)


def _count_all(rng: Random, level: Level) -> Scene:
    chosen = rng.choices(pairs(level), k=rng.randint(*_TOTAL[level]))
    return _how_many(rng, chosen, "objects", chosen)


def _how_many(rng: Random, chosen: list[Pair], name: str, fitting: list[Pair]) -> Scene:
    """Reasons: Row 1: a1 red circle (1), b1 blue star. Row 2: c2 red cross (2). ... That makes 2."""
    things, number = scatter(rng, chosen), count(1)
    seen = listing(things, lambda thing: f" ({next(number)})" if thing.pair in fitting else "")
    answer = str(sum(pair in fitting for pair in chosen))
    question = ask(rng, "counting", "how many", name=name)
    return scene(rng, things, question, f"{seen} That makes {answer}.", answer, "number")


def _more(rng: Random, level: Level) -> Scene:
    low, high = _TOTAL[level]
    gold = rng.randint(0, 3)
    fewer = rng.randint(0 if gold else 1, (high - gold) // 2)
    total = rng.randint(max(low, 2 * fewer + gold), high)
    which = rng.randrange(2)
    first, second = rng.sample(_VALUES[which], 2)
    rest = [value for value in _VALUES[which] if value not in (first, second)]
    chosen: list[Pair] = []
    for values, number in (([first], fewer + gold), ([second], fewer), (rest, total - 2 * fewer - gold)):
        chosen += rng.choices([pair for pair in pairs(level) if pair[which] in values], k=number)
    things = scatter(rng, chosen)
    seen = _counted_by_value(things, which, (first, second))
    reasoning = f"{seen} So {first} {fewer + gold}, {second} {fewer}. {fewer + gold} - {fewer} = {gold}."
    question = ask(rng, "counting", "more", first=_several(which, first), second=_several(which, second))
    return scene(rng, things, question, reasoning, str(gold), "number")


def _most_common(rng: Random, level: Level) -> Scene:
    low, high = _TOTAL[level]
    which = rng.randrange(2)
    values = _VALUES[which]
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


def _counted_by_value(things: list[Thing], which: int, values: Sequence[str]) -> str:
    """Row 1: a1 red circle (red 1), b1 blue star (blue 1). Row 2: c2 red cross (red 2). ..."""
    counts: Counter[str] = Counter()

    def remark(thing: Thing) -> str:
        value = thing.pair[which]
        counts[value] += 1
        return f" ({value} {counts[value]})" if value in values else ""

    return listing(things, remark)
