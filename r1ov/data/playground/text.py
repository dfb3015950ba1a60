"""Writing on tiles: small sums, signs with letters, and which of several numbers is the largest or smallest.

A tile fills a cell, and a cell is what one vision token sees: half as many images teach a small model to read
as with lines of type.
"""

import json
from random import Random

from r1ov.data.playground.grid import CELL, cell_name
from r1ov.data.playground.scene import INK, PAPER, Canvas, Level, Scene, ask

LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"  # as on number plates: without I, O and Q, which look like 1 and 0
SIGN_LENGTH = {"normal": (2, 4), "hard": (5, 5), "beyond": (6, 6)}  # fewest and most letters
HOW_MANY_NUMBERS = {"normal": (3, 4), "hard": (5, 5), "beyond": (6, 6)}
# What each term (of a difference: the result and the second term) is drawn from.
TERMS = {"+": ((1, 9), (1, 9)), "-": ((1, 9), (1, 9)), "x": ((2, 9), (2, 9))}
HARD_TERMS = {"+": ((10, 59), (2, 39)), "-": ((2, 59), (10, 39)), "x": ((10, 19), (2, 9))}
STYLES = {  # a tile's face, its edge, and the ink on it
    "wood": ((246, 226, 180), (206, 172, 112), (84, 54, 24)),
    "paper": ((255, 255, 255), (176, 182, 192), INK),
    "sky": ((218, 236, 252), (120, 172, 222), (24, 74, 148)),
    "mint": ((218, 244, 224), (112, 186, 136), (20, 94, 56)),
    "rose": ((254, 226, 228), (226, 136, 146), (156, 32, 48)),
    "slate": ((62, 70, 84), (40, 46, 56), (250, 250, 246)),
}
SHADOW = (214, 214, 216)
# What is written on each tile and the (column, row) it lies in, the thought, and the answer.
Writing = tuple[list[tuple[str, tuple[int, int]]], str, str]


def make(rng: Random, level: Level) -> Scene:
    """Returns tiles with one question about what is written on them."""
    topic = rng.choice(("sum", "sign", rng.choice(("largest", "smallest"))))
    write = {"sum": _sum, "sign": _sign}.get(topic, _numbers)
    written, reasoning, answer = write(rng, level, topic)
    style = rng.choice(list(STYLES))
    tiles = []
    for text, place in written:
        x, y = (CELL * at + CELL // 2 + rng.randint(-1, 1) for at in place)
        tiles.append({"text": text, "cell": cell_name(*place), "x": x, "y": y})
    size, paper = rng.randint(18, 20), rng.randrange(len(PAPER))

    def draw(canvas: Canvas) -> None:
        face, edge, ink = STYLES[style]
        for tile in tiles:
            text, _, x, y = tile.values()
            canvas.rectangle((x - 11.5, y - 10.5, x + 12.5, y + 13), SHADOW, radius=4)
            canvas.rectangle((x - 12.5, y - 12.5, x + 12.5, y + 12), face, edge, 1.25, radius=4)
            canvas.text(x, y, text, size if len(text) == 1 else size - 2, ink)

    question = ask(rng, "text", topic)
    description = json.dumps({"style": style, "size": size, "paper": paper, "tiles": tiles})
    kind = "text" if topic == "sign" else "number"
    return Scene(draw, PAPER[paper], question, description, reasoning, answer, kind)


def _sum(rng: Random, level: Level, _topic: str) -> Writing:
    sign = rng.choice("+-x")
    first, second = (HARD_TERMS if level == "hard" else TERMS)[sign]
    a, b = rng.randint(*first), rng.randint(*second)
    if sign == "-":
        a += b
    result = {"+": a + b, "-": a - b, "x": a * b}[sign]
    terms, steps = [str(a), sign, str(b)], f"{a} {sign} {b} = {result}."
    if level == "beyond":
        c = rng.randint(1, 9)
        terms += ["+", str(c)]
        steps = f"{steps} {result} + {c} = {result + c}."
        result += c
    row = rng.randrange(4 - len(terms) // 4)
    written = [(term, (at % 4, row + at // 4)) for at, term in enumerate([*terms, "="])]
    return written, f"The picture says {' '.join(terms)}. {steps}", str(result)


def _sign(rng: Random, level: Level, _topic: str) -> Writing:
    length = rng.randint(*SIGN_LENGTH[level])
    letters = "".join(rng.choices(LETTERS, k=length))
    column, row = rng.randrange(max(1, 5 - length)), rng.randrange(4 - length // 5)
    written = [(letter, (column + at % 4, row + at // 4)) for at, letter in enumerate(letters)]
    return written, f"The letters are {', '.join(letters)}. Together: {letters}.", letters


def _numbers(rng: Random, level: Level, topic: str) -> Writing:
    """Writes one number a row, the first rows of two columns for more than four; normal: no two begin with
    the same digit.
    """
    amount = rng.randint(*HOW_MANY_NUMBERS[level])
    if level == "normal":
        numbers = [10 * tens + rng.randint(0, 9) for tens in rng.sample(range(1, 10), amount)]
    else:
        numbers = rng.sample(range(1, 100), amount)
    first, column = rng.randrange(max(1, 5 - amount)), rng.randrange(4 if amount <= 4 else 3)
    written = [(str(number), (column + at // 4, first + at % 4)) for at, number in enumerate(numbers)]
    answer = (max if topic == "largest" else min)(numbers)
    return written, f"The numbers are {', '.join(map(str, numbers))}. The {topic} is {answer}.", str(answer)
