"""Writing on tiles: small sums, signs with letters, and which of several numbers is the largest or smallest.

A tile fills a cell, and a cell is what one vision token sees: half as many images teach a small model to read
as with lines of type.
"""

import json
from random import Random

from r1ov.data.playground.grid import CELL, cell_name
from r1ov.data.playground.scene import PAPER, Level, Scene, ask, by_level, colours

LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"  # as on number plates: without I, O and Q, which look like 1 and 0
SIGN_LENGTH = by_level((2, 4), (5, 5), (6, 6))  # fewest and most letters
HOW_MANY_NUMBERS = by_level((3, 4), (5, 5), (6, 6))
# From what to what the two terms (of a difference: the result and the second term) go; the others are digits.
HARD_TERMS = {"+": ((10, 59), (2, 39)), "-": ((2, 59), (10, 39)), "x": ((10, 19), (2, 9))}
STYLES = {  # a tile's face, its edge, and the ink on it
    "wood": colours("#f6e2b4 #ceac70 #543618"),
    "paper": colours("#ffffff #b0b6c0 #343a46"),
    "sky": colours("#daecfc #78acde #184a94"),
    "mint": colours("#daf4e0 #70ba88 #145e38"),
    "rose": colours("#fee2e4 #e28892 #9c2030"),
    "slate": colours("#3e4654 #282e38 #fafaf6"),
}
[SHADOW] = colours("#d6d6d8")
# What is written on the tiles, the (column, row) of the first one, the thought, and the answer.
Writing = tuple


def make(rng: Random, level: Level) -> Scene:
    """Returns tiles with one question about what is written on them."""
    topic = rng.choice(("sum", "sign", rng.choice(("largest", "smallest"))))
    write = {"sum": _sum, "sign": _sign}.get(topic, _numbers)
    texts, (column, row), reasoning, answer = write(rng, level, topic)
    style = rng.choice(list(STYLES))
    tiles = []
    for at, text in enumerate(texts):
        # Four in a line: across, but numbers to be compared stand below each other.
        right, down = (at // 4, at % 4) if write == _numbers else (at % 4, at // 4)
        place = column + right, row + down
        x, y = (CELL * along + CELL // 2 + rng.randint(-1, 1) for along in place)
        tiles.append({"text": text, "cell": cell_name(*place), "x": x, "y": y})
    size, paper = rng.randint(18, 20), rng.randrange(len(PAPER))

    def draw(canvas):
        face, edge, ink = STYLES[style]
        for tile in tiles:
            text, _, x, y = tile.values()
            canvas.rectangle((x - 11.5, y - 10.5, x + 12.5, y + 13), SHADOW, radius=4)
            canvas.rectangle((x - 12.5, y - 12.5, x + 12.5, y + 12), face, edge, 1.25, radius=4)
            canvas.text(x, y, text, size if len(text) == 1 else size - 2, ink)

    description = json.dumps({"style": style, "size": size, "paper": paper, "tiles": tiles})
    return Scene(draw, PAPER[paper], *ask(rng, "text", topic), description, reasoning, answer)


def _sum(rng: Random, level: Level, _topic: str) -> Writing:
    sign = rng.choice("+-x")
    first, second = HARD_TERMS[sign] if level == "hard" else [(2 if sign == "x" else 1, 9)] * 2
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
    place = 0, rng.randrange(4 - len(terms) // 4)
    return [*terms, "="], place, f"The picture says {' '.join(terms)}. {steps}", str(result)


def _sign(rng: Random, level: Level, _topic: str) -> Writing:
    length = rng.randint(*SIGN_LENGTH[level])
    letters = "".join(rng.choices(LETTERS, k=length))
    place = rng.randrange(max(1, 5 - length)), rng.randrange(4 - length // 5)
    return letters, place, f"The letters are {', '.join(letters)}. Together: {letters}.", letters


def _numbers(rng: Random, level: Level, topic: str) -> Writing:
    """Writes one number a row, the first rows of two columns for more than four; normal: no two begin with
    the same digit.
    """
    amount = rng.randint(*HOW_MANY_NUMBERS[level])
    if level == "normal":
        numbers = [10 * tens + rng.randint(0, 9) for tens in rng.sample(range(1, 10), amount)]
    else:
        numbers = rng.sample(range(1, 100), amount)
    row, column = rng.randrange(max(1, 5 - amount)), rng.randrange(4 - amount // 5)
    answer = (max if topic == "largest" else min)(numbers)
    texts = [str(number) for number in numbers]
    return texts, (column, row), f"The numbers are {', '.join(texts)}. The {topic} is {answer}.", str(answer)
