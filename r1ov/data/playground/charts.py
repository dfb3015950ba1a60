"""Charts: vertical bars, horizontal bars, or a line with dots, over the categories A, B, C, ..."""

from itertools import count
from random import Random
from typing import Any

from r1ov.data.playground.scene import COLOURS, GRID, INK, PAPER, SIZE, Canvas, Level, Scene, ask, wordings

CATEGORIES = {"normal": (3, 5), "hard": (5, 6), "beyond": (7, 8)}  # fewest and most
TOP = 8  # values are whole numbers from 1 to TOP
UNIT = 11  # pixels that one unit of value takes


def make(rng: Random, level: Level) -> Scene:
    """Returns one chart with one question about it."""
    names = "ABCDEFGH"[: rng.randint(*CATEGORIES[level])]
    topic = rng.choice(list(wordings("charts")))
    values, slots, conclusion, answer = _task(rng, topic, names)
    style = rng.choice(("vertical bars", "horizontal bars", "line"))
    # A thin yellow line is hard to see.
    palette = [name for name in COLOURS if style != "line" or name != "yellow"]
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
    table = [f"{name},{value}" for name, value in zip(names, values, strict=True)]
    return Scene(
        lambda canvas: _draw(canvas, names, values, look),
        PAPER[look["paper"]],
        ask(rng, "charts", topic, **slots),
        "\n".join([f"# {header}", "category,value", *table]),
        f"{_read_off(names, values, slots.get('limit', TOP))} {conclusion}",
        answer,
        "text" if topic in ("highest", "lowest") else "number",
    )


def _task(rng: Random, topic: str, names: str) -> tuple[list[int], dict[str, Any], str, str]:
    """Returns the values, what fills the question's blanks, the last step of the thought, and the answer; the
    answer is drawn first.
    """
    values = [rng.randint(1, TOP) for _ in names]
    i, j = rng.sample(range(len(names)), 2)
    x, y = names[i], names[j]
    match topic:
        case "value":
            return values, {"x": x}, f"{x} is {values[i]}.", str(values[i])
        case "highest" | "lowest":
            extreme = max if topic == "highest" else min
            while values.count(extreme(values)) > 1:
                values = [rng.randint(1, TOP) for _ in names]
            best = extreme(values)
            k = values.index(best)
            values[i], values[k] = best, values[i]
            return values, {}, f"The {topic} is {best}, that is {x}.", x
        case "difference":
            answer, sign = rng.randint(1, TOP - 1), "-"
            values[j] = rng.randint(1, TOP - answer)
            values[i] = values[j] + answer
        case "sum":
            answer, sign = rng.randint(3, 2 * TOP - 1), "+"
            values[i] = rng.randint(max(1, answer - TOP), min(TOP, answer - 1))
            values[j] = answer - values[i]
        case "above":
            limit = rng.randint(2, TOP - 2)
            above = set(rng.sample(range(len(names)), rng.randint(0, len(names))))
            values = [
                rng.randint(*((limit + 1, TOP) if k in above else (1, limit))) for k in range(len(names))
            ]
            return values, {"limit": limit}, f"That makes {len(above)}.", str(len(above))
    conclusion = f"{x} {sign} {y} = {values[i]} {sign} {values[j]} = {answer}."
    return values, {"x": x, "y": y}, conclusion, str(answer)


def _read_off(names: str, values: list[int], limit: int) -> str:
    """A 4, B 7 (1), C 2.: those above the limit are counted on the way."""
    number = count(1)
    read = [
        f"{name} {value}" + (f" ({next(number)})" if value > limit else "")
        for name, value in zip(names, values, strict=True)
    ]
    return f"{', '.join(read)}."


def _draw(canvas: Canvas, names: str, values: list[int], look: dict[str, Any]) -> None:
    palette = [COLOURS[name] for name in look["colours"].split()]
    left, bottom, sideways = look["left"], look["bottom"], look["chart"] == "horizontal bars"
    top = 5 if sideways else bottom - UNIT * TOP
    right = left + UNIT * TOP if sideways else SIZE - 5
    for tick in range(TOP + 1):
        if sideways:
            x, y = left + UNIT * tick, bottom + 8
            canvas.line([(x, top), (x, bottom)], GRID)
        else:
            x, y = left - 7, bottom - UNIT * tick
            canvas.line([(left, y), (right, y)], GRID)
        if tick % look["tick_step"] == 0:
            canvas.text(x, y, str(tick), 10)
    share = (bottom - top if sideways else right - left) / len(names)
    half = share * look["thickness"] / 200
    dots = []
    for k, (name, value) in enumerate(zip(names, values, strict=True)):
        middle, fill = (top if sideways else left) + share * (k + 0.5), palette[k % len(palette)]
        if sideways:
            canvas.rectangle((left, middle - half, left + UNIT * value, middle + half), fill)
            canvas.text(left - 8, middle, name, 12)
            continue
        dots.append((middle, bottom - UNIT * value))
        if look["chart"] == "vertical bars":
            canvas.rectangle((middle - half, dots[-1][1], middle + half, bottom), fill)
        canvas.text(middle, bottom + 8, name, 12)
    canvas.line([(left, top), (left, bottom), (right, bottom)], INK, 1.25)
    if look["chart"] == "line":
        canvas.line(dots, palette[0], 1.75)
        for x, y in dots:
            canvas.dot(x, y, 3.5, palette[0])
