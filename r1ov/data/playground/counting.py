"""Counting and comparing coloured shapes on a 4 x 4 grid."""

from collections import Counter
from random import Random

from r1ov.data.playground.grid import listing, plural, scatter, scene
from r1ov.data.playground.scene import COLOURS, PAPER, SHAPES, Level, Pair, Scene, ask, by_level, pairs

_TOTAL = by_level((2, 6), (4, 8), (9, 11))  # objects in an image
_MOST = by_level(4, 5, 6)  # largest count asked for
_VALUES = (tuple(COLOURS), SHAPES)  # what a pair is made of: 0 its colour, 1 its shape


# What is drawn, the words under which `listing` counts, the question's topic, what fills its blanks, the end
# of the thought, and the answer.
Task = tuple


def make(rng: Random, level: Level) -> Scene:
    tasks = (_count_pair, _count_alike, _count_all, _more, _most_common)
    chosen, words, topic, slots, conclusion, answer = rng.choices(tasks, (6, 5, 3, 3, 4))[0](rng, level)
    things = scatter(rng, chosen)
    asked = ask(rng, "counting", topic, **slots)
    return scene(rng.choice(PAPER), things, asked, f"{listing(things, words)} {conclusion}", answer)


def _several(which: int, value: str) -> str:
    return plural(value) if which else f"{value} objects"


def _count_pair(rng: Random, level: Level) -> Task:
    colour, shape = rng.choice(pairs(level))
    return _count_some(rng, level, f"{colour} {plural(shape)}", [(colour, shape)])


def _count_alike(rng: Random, level: Level) -> Task:
    which = 0 if rng.random() < 0.5 else 1
    value = rng.choice(_VALUES[which])
    return _count_some(rng, level, _several(which, value), [p for p in pairs(level) if p[which] == value])


def _count_some(rng: Random, level: Level, name: str, fitting: list[Pair]) -> Task:
    gold = rng.randint(0, _MOST[level])
    low, high = _TOTAL[level]
    total = rng.randint(max(low, gold), high)
    # Half of the others share a colour or a shape with what is counted, so that both must be looked at.
    others = [pair for pair in pairs(level) if pair not in fitting]
    near = [pair for pair in others if any({*pair} & {*fit} for fit in fitting)]
    chosen = rng.choices(fitting, k=gold)
    chosen += [rng.choice(near if rng.random() < 0.5 else others) for _ in range(total - gold)]
    return chosen, dict.fromkeys(fitting, ""), "how many", {"name": name}, f"That makes {gold}.", str(gold)


def _count_all(rng: Random, level: Level) -> Task:
    total = rng.randint(*_TOTAL[level])
    chosen = rng.choices(pairs(level), k=total)
    words, slots = dict.fromkeys(chosen, ""), {"name": "objects"}
    return chosen, words, "how many", slots, f"That makes {total}.", str(total)


def _more(rng: Random, level: Level) -> Task:
    low, high = _TOTAL[level]
    gold = rng.randint(0, 3)
    fewer = rng.randint(0 if gold else 1, (high - gold) // 2)
    more = fewer + gold
    total = rng.randint(max(low, more + fewer), high)
    which = rng.randrange(2)
    first, second = rng.sample(_VALUES[which], 2)
    rest = [value for value in _VALUES[which] if value not in (first, second)]
    chosen = []
    for values, number in (([first], more), ([second], fewer), (rest, total - more - fewer)):
        chosen += rng.choices([pair for pair in pairs(level) if pair[which] in values], k=number)
    slots = {"first": _several(which, first), "second": _several(which, second)}
    conclusion = f"So {first} {more}, {second} {fewer}. {more} - {fewer} = {gold}."
    words = {pair: f"{pair[which]} " for pair in chosen if pair[which] in (first, second)}
    return chosen, words, "more", slots, conclusion, str(gold)


def _most_common(rng: Random, level: Level) -> Task:
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
    words, slots = {pair: f"{pair[which]} " for pair in chosen}, {"attribute": ("colour", "shape")[which]}
    return chosen, words, "most common", slots, f"The most common is {winner}.", winner
