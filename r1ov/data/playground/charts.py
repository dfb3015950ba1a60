"""Charts: vertical bars, horizontal bars, or a line with dots, over the categories A, B, C, ..."""

import random
from functools import partial
from itertools import count
from typing import Any

from r1ov.data.playground.scene import COLOURS, GRID, INK, PAPER, SIZE, Canvas, Level, Scene

CATEGORIES = {"normal": (3, 5), "hard": (5, 6), "beyond": (7, 8)}  # fewest and most
TOP = 8  # values are whole numbers from 1 to TOP
UNIT = 11  # pixels that one unit of value takes
QUESTIONS = {
    "value": (
        "What is the value of {x}?",
        "Which value does {x} have?",
        "Read off the value of {x}.",
        "What number does the chart show for {x}?",
    ),
    "highest": (
        "Which category has the highest value?",
        "Which letter has the largest value?",
        "Where is the value highest?",
        "Which category is the greatest?",
    ),
    "lowest": (
        "Which category has the lowest value?",
        "Which letter has the smallest value?",
        "Where is the value lowest?",
        "Where is the smallest value?",
    ),
    "difference": (
        "What is the difference between {x} and {y}?",
        "How much more is {x} than {y}?",
        "By how much is {x} above {y}?",
        "What is {x} minus {y}?",
    ),
    "sum": (
        "What is the sum of {x} and {y}?",
        "How much are {x} and {y} together?",
        "Add the values of {x} and {y}.",
        "What is {x} plus {y}?",
    ),
    "above": (
        "How many categories are above {limit}?",
        "How many values are greater than {limit}?",
        "How many letters have a value of more than {limit}?",
        "Count the categories with a value above {limit}.",
    ),
}


def make(rng: random.Random, level: Level) -> Scene:
    """One chart with one question about it."""
    names = "ABCDEFGH"[: rng.randint(*CATEGORIES[level])]
    topic = rng.choice(list(QUESTIONS))
    values, slots, conclusion, answer = _task(rng, topic, names)
    style = rng.choice(("vertical bars", "horizontal bars", "line"))
    palette = (
        list(COLOURS) if style != "line" else [name for name in COLOURS if name != "yellow"]
    )  # thin yellow is hard to see
    rng.shuffle(palette)
    if style == "line" or rng.random() < 0.5:
        palette = palette[:1]
    chart = {
        "chart": style,
        "colours": " ".join(palette),
        "paper": rng.randrange(len(PAPER)),
        "tick_step": rng.choice((1, 2)),
        "left": rng.randint(15, 18),
        "bottom": rng.randint(94, 97),
        "thickness": rng.randint(50, 75),  # of a bar, in percent of its share of the axis
    }
    header = ", ".join(f"{key}: {value}" for key, value in chart.items())
    return Scene(
        draw=partial(_draw, chart=chart, names=names, values=values),
        paper=PAPER[chart["paper"]],
        question=rng.choice(QUESTIONS[topic]).format(**slots),
        description="\n".join(
            [
                f"# {header}",
                "category,value",
                *(f"{name},{value}" for name, value in zip(names, values, strict=True)),
            ]
        ),
        reasoning=f"{_read_off(names, values, slots.get('limit'))} {conclusion}",
        answer=answer,
        kind="text" if topic in ("highest", "lowest") else "number",
    )


def _task(rng: random.Random, topic: str, names: str) -> tuple[list[int], dict[str, Any], str, str]:
    """The values, what fills the question's blanks, the last step of the thought, and the answer; the answer
    is drawn first.
    """
    values = [rng.randint(1, TOP) for _ in names]
    i, j = rng.sample(range(len(names)), 2)
    x, y = names[i], names[j]
    if topic == "value":
        return values, {"x": x}, f"{x} is {values[i]}.", str(values[i])
    if topic in ("highest", "lowest"):
        extreme = max if topic == "highest" else min
        while values.count(extreme(values)) > 1:
            values = [rng.randint(1, TOP) for _ in names]
        best = extreme(values)
        k = values.index(best)
        values[i], values[k] = values[k], values[i]
        return values, {}, f"The {topic} is {best}, that is {x}.", x
    if topic == "difference":
        gap = rng.randint(1, TOP - 1)
        values[j] = rng.randint(1, TOP - gap)
        values[i] = values[j] + gap
        return values, {"x": x, "y": y}, f"{x} - {y} = {values[i]} - {values[j]} = {gap}.", str(gap)
    if topic == "sum":
        total = rng.randint(3, 2 * TOP - 1)
        values[i] = rng.randint(max(1, total - TOP), min(TOP, total - 1))
        values[j] = total - values[i]
        return values, {"x": x, "y": y}, f"{x} + {y} = {values[i]} + {values[j]} = {total}.", str(total)
    limit = rng.randint(2, TOP - 2)
    above = set(rng.sample(range(len(names)), rng.randint(0, len(names))))
    values = [rng.randint(limit + 1, TOP) if k in above else rng.randint(1, limit) for k in range(len(names))]
    return values, {"limit": limit}, f"That makes {len(above)}.", str(len(above))


def _read_off(names: str, values: list[int], limit: int | None) -> str:
    """A 4, B 7, C 2.; with a limit, those above it are counted on the way: A 4, B 7 (1), C 2."""
    number = count(1)
    counted = [f" ({next(number)})" if limit is not None and value > limit else "" for value in values]
    return (
        ", ".join(
            f"{name} {value}{remark}" for name, value, remark in zip(names, values, counted, strict=True)
        )
        + "."
    )


def _draw(canvas: Canvas, chart: dict, names: str, values: list[int]) -> None:
    left, bottom, palette = chart["left"], chart["bottom"], chart["colours"].split()
    sideways = chart["chart"] == "horizontal bars"
    end = left + UNIT * TOP  # of the value axis, if it runs sideways
    top = 5 if sideways else bottom - UNIT * TOP
    right = end if sideways else SIZE - 5
    for tick in range(TOP + 1):
        along = left + UNIT * tick if sideways else bottom - UNIT * tick
        canvas.line([(along, top), (along, bottom)] if sideways else [(left, along), (right, along)], GRID, 1)
        if tick % chart["tick_step"] == 0:
            canvas.text(*((along, bottom + 8) if sideways else (left - 7, along)), str(tick), 10)
    share = (bottom - top if sideways else right - left) / len(names)
    half = share * chart["thickness"] / 200
    dots = []
    for k, (name, value) in enumerate(zip(names, values, strict=True)):
        middle = (top if sideways else left) + share * (k + 0.5)
        fill = COLOURS[palette[k % len(palette)]]
        if sideways:
            canvas.rectangle((left, middle - half, left + UNIT * value, middle + half), fill)
            canvas.text(left - 8, middle, name, 12)
        else:
            if chart["chart"] == "vertical bars":
                canvas.rectangle((middle - half, bottom - UNIT * value, middle + half, bottom), fill)
            dots.append((middle, bottom - UNIT * value))
            canvas.text(middle, bottom + 8, name, 12)
    canvas.line([(left, top), (left, bottom), (right, bottom)], INK, 1.25)
    if chart["chart"] == "line":
        canvas.line(dots, COLOURS[palette[0]], 1.75)
        for x, y in dots:
            canvas.ellipse((x - 3.5, y - 3.5, x + 3.5, y + 3.5), COLOURS[palette[0]])
