"""Charts: vertical bars, horizontal bars, or a line with dots, over the categories A, B, C, ..."""

from itertools import count
from random import Random

from r1ov.data.playground.scene import (
    COLOURS,
    DARK,
    GRID,
    INK,
    PAPER,
    SIZE,
    Canvas,
    Level,
    Scene,
    ask,
    by_level,
    wordings,
)

CATEGORIES = by_level((3, 5), (5, 6), (7, 8))  # fewest and most
TOP = 8  # values are whole numbers from 1 to TOP
UNIT = 11  # pixels that one unit of value takes
Values = dict[str, int]  # category -> value


def make(rng: Random, level: Level) -> Scene:
    """Returns one chart with one question about it."""
    names = "ABCDEFGH"[: rng.randint(*CATEGORIES[level])]
    topic = rng.choice(list(wordings("charts")))
    values, slots, conclusion, answer = _task(rng, topic, names)
    style = rng.choice(("vertical bars", "horizontal bars", "line"))
    palette = list(DARK if style == "line" else COLOURS)
    rng.shuffle(palette)
    if style == "line" or rng.random() < 0.5:
        palette = palette[:1]
    look = {
        "chart": style,
        "colours": " ".join(palette),
        "paper": rng.randrange(len(PAPER)),
        "tick_step": rng.choice((1, 2)),
        "left": rng.randint(15, 18),
        "bottom": rng.randint(94, 97),
        "thickness": rng.randint(50, 75),  # of a bar, in percent of its share of the axis
    }
    header = ", ".join(f"{key}: {value}" for key, value in look.items())
    table = [f"{name},{value}" for name, value in values.items()]
    above, limit = count(1), slots["limit"]  # those above the limit are counted on the way: A 4, B 7 (1), C 2
    read = [f"{x} {value}" + (f" ({next(above)})" if value > limit else "") for x, value in values.items()]
    return Scene(
        lambda canvas: _draw(canvas, values, look),
        PAPER[look["paper"]],
        *ask(rng, "charts", topic, **slots),
        "\n".join([f"# {header}", "category,value", *table]),
        f"{', '.join(read)}. {conclusion}",
        answer,
    )


def _task(rng: Random, topic: str, names: str) -> tuple:
    """Returns the values, what fills the question's blanks, the last step of the thought, and the answer; the
    answer is drawn first.
    """
    values = {name: rng.randint(1, TOP) for name in names}
    (x, y), limit = rng.sample(names, 2), TOP
    match topic:
        case "value":
            answer = values[x]
            conclusion = f"{x} is {answer}."
        case "highest" | "lowest":
            extreme = max if topic == "highest" else min
            while [*values.values()].count(best := extreme(values.values())) > 1:
                values = {name: rng.randint(1, TOP) for name in names}
            values[extreme(values, key=values.get)] = values[x]
            values[x] = best
            answer, conclusion = x, f"The {topic} is {best}, that is {x}."
        case "difference":
            answer = rng.randint(1, TOP - 1)
            values[y] = rng.randint(1, TOP - answer)
            values[x] = values[y] + answer
            conclusion = f"{x} - {y} = {values[x]} - {values[y]} = {answer}."
        case "sum":
            answer = rng.randint(3, 2 * TOP - 1)
            values[x] = rng.randint(max(1, answer - TOP), min(TOP, answer - 1))
            values[y] = answer - values[x]
            conclusion = f"{x} + {y} = {values[x]} + {values[y]} = {answer}."
        case "above":
            limit = rng.randint(2, TOP - 2)
            answer = rng.randint(0, len(names))
            above = rng.sample(names, answer)
            values = {
                name: rng.randint(*((limit + 1, TOP) if name in above else (1, limit))) for name in names
            }
            conclusion = f"That makes {answer}."
    return values, {"x": x, "y": y, "limit": limit}, conclusion, str(answer)


def _draw(canvas: Canvas, values: Values, look: dict) -> None:
    palette = [COLOURS[name] for name in look["colours"].split()]
    left, bottom, sideways = look["left"], look["bottom"], look["chart"] == "horizontal bars"
    start, end = (5, bottom) if sideways else (left, SIZE - 5)  # of the axis of the categories

    def at(along: float, value: int) -> tuple[float, float]:
        """Where a value ends, at a place along the axis of the categories."""
        return (left + UNIT * value, along) if sideways else (along, bottom - UNIT * value)

    for tick in range(TOP + 1):
        canvas.line([at(start, tick), at(end, tick)], GRID)
        if tick % look["tick_step"] == 0:
            canvas.text(*at(bottom + 8 if sideways else left - 7, tick), str(tick), 10)
    share = (end - start) / len(values)
    half = share * look["thickness"] / 200
    dots = []
    for k, (name, value) in enumerate(values.items()):
        middle, fill = start + share * (k + 0.5), palette[k % len(palette)]
        dots.append(at(middle, value))
        if look["chart"] != "line":
            corners = at(middle - half, 0), at(middle + half, value)
            canvas.rectangle((*map(min, *corners), *map(max, *corners)), fill)
        canvas.text(*((left - 8, middle) if sideways else (middle, bottom + 8)), name, 12)
    top, right = (0, TOP) if sideways else (TOP, 0)
    canvas.line([at(start, top), (left, bottom), at(end, right)], INK, 1.25)
    if look["chart"] == "line":
        canvas.line(dots, palette[0], 1.75)
        for x, y in dots:
            canvas.dot(x, y, 3.5, palette[0])
