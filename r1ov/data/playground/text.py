"""Text in the picture: small sums, signs with letters, and which of several numbers is the largest or smallest."""

import json
import random
from functools import partial

from r1ov.data.playground.scene import INK, PAPER, SIZE, Canvas, Level, Scene

LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"  # as on number plates: without I, O and Q, which look like 1 and 0
SIGN_LENGTH = {"normal": (2, 4), "hard": (5, 5), "beyond": (6, 6)}  # fewest and most letters
HOW_MANY_NUMBERS = {"normal": (3, 4), "hard": (5, 5), "beyond": (6, 6)}
SUM_SIZE = {"normal": (22, 26), "hard": (19, 22), "beyond": (17, 18)}  # of the type, in pixels
INKS = {"black": INK, "blue": (38, 84, 168), "red": (184, 44, 44), "green": (36, 116, 62)}
CHALKS = {"white": (250, 250, 246), "cream": (252, 238, 170), "pink": (252, 206, 214), "sky": (196, 228, 252)}
BOARDS = {"green": (40, 84, 66), "black": (48, 54, 60), "blue": (42, 72, 116)}
WOOD = (168, 122, 76)
SHADOW = (218, 218, 220)
QUESTIONS = {
    "sum": (
        "What is the result?",
        "Solve the sum in the picture.",
        "What number comes after the equals sign?",
        "Compute what is written here.",
    ),
    "sign": (
        "What does the sign say?",
        "Which letters are written here?",
        "Read the letters in the picture.",
        "What is written in the picture?",
    ),
    "largest": (
        "Which number is the largest?",
        "What is the highest number in the picture?",
        "Find the greatest of these numbers.",
        "Which of the numbers is the biggest?",
    ),
    "smallest": (
        "Which number is the smallest?",
        "What is the lowest number in the picture?",
        "Find the least of these numbers.",
        "Which of the numbers is the lowest?",
    ),
}


def make(rng: random.Random, level: Level) -> Scene:
    """One piece of writing with one question about it."""
    topic = rng.choice(("sum", "sign", rng.choice(("largest", "smallest"))))
    if topic == "sum":
        writing, reasoning, answer = _sum(rng, level)
    elif topic == "sign":
        writing, reasoning, answer = _sign(rng, level)
    else:
        writing, reasoning, answer = _numbers(rng, level, topic)
    board = rng.choice(("none", "board", "card"))
    look = {
        "on": board,
        "ink": rng.choice(list(CHALKS if board == "board" else INKS)),
        "colour": rng.choice(list(BOARDS if board == "board" else INKS)),  # of the board, or of the card's edge
        "paper": rng.randrange(len(PAPER)),
    }
    picture = writing | look
    return Scene(
        draw=partial(_draw, picture=picture),
        paper=PAPER[look["paper"]],
        question=rng.choice(QUESTIONS[topic]),
        description=json.dumps(picture),
        reasoning=reasoning,
        answer=answer,
        kind="text" if topic == "sign" else "number",
    )


def _sum(rng: random.Random, level: Level) -> tuple[dict, str, str]:
    sign = rng.choice("+-x")
    small = level != "hard"
    if sign == "+":
        a, b = (rng.randint(1, 9), rng.randint(1, 9)) if small else (rng.randint(10, 59), rng.randint(2, 39))
        result = a + b
    elif sign == "-":
        result, b = (rng.randint(1, 9), rng.randint(1, 9)) if small else (rng.randint(2, 59), rng.randint(10, 39))
        a = result + b
    else:
        a, b = (rng.randint(2, 9), rng.randint(2, 9)) if small else (rng.randint(10, 19), rng.randint(2, 9))
        result = a * b
    terms = f"{a} {sign} {b}"
    steps = f"{terms} = {result}."
    if level == "beyond":
        c = rng.randint(1, 9)
        terms = f"{terms} + {c}"
        steps = f"{steps} {result} + {c} = {result + c}."
        result += c
    size = rng.randint(*SUM_SIZE[level])
    item = {"text": f"{terms} =", "x": 56 + rng.randint(-4, 4), "y": 56 + rng.randint(-14, 14), "size": size}
    return {"picture": "sum", "items": [item]}, f"The picture says {terms}. {steps}", str(result)


def _sign(rng: random.Random, level: Level) -> tuple[dict, str, str]:
    letters = "".join(rng.choices(LETTERS, k=rng.randint(*SIGN_LENGTH[level])))
    pitch = min(24, 96 // len(letters))
    size = rng.randint(pitch - 2, pitch + 2) if level == "normal" else pitch
    x, y = 56 - pitch * (len(letters) - 1) / 2 + rng.randint(-3, 3), 56 + rng.randint(-14, 14)
    items = [{"text": letter, "x": x + pitch * place, "y": y, "size": size} for place, letter in enumerate(letters)]
    return {"picture": "sign", "items": items}, f"The letters are {', '.join(letters)}. Together: {letters}.", letters


def _numbers(rng: random.Random, level: Level, topic: str) -> tuple[dict, str, str]:
    numbers = rng.sample(range(1, 100), rng.randint(*HOW_MANY_NUMBERS[level]))
    rows = (34, 78) if len(numbers) <= 4 else (24, 56, 88)
    places = [(x, y) for y in rows for x in (33, 79)]
    kept = sorted(rng.sample(range(len(places)), len(numbers)))
    shift, size = (5, rng.randint(22, 25)) if len(rows) == 2 else (2, rng.randint(19, 21))
    items = []
    for number, place in zip(numbers, kept, strict=True):  # in reading order
        x, y = places[place]
        items.append({"text": str(number), "x": x + rng.randint(-5, 5), "y": y + rng.randint(-shift, shift), "size": size})
    answer = str(max(numbers) if topic == "largest" else min(numbers))
    reasoning = f"The numbers are {', '.join(map(str, numbers))}. The {topic} is {answer}."
    return {"picture": "numbers", "items": items}, reasoning, answer


def _draw(canvas: Canvas, picture: dict) -> None:
    items, on = picture["items"], picture["on"]
    if on == "board":
        top, bottom = _extent(items)
        canvas.rectangle((3, top, SIZE - 3, bottom), BOARDS[picture["colour"]], WOOD, 3.5, radius=3)
    elif on == "card":
        top, bottom = _extent(items)
        canvas.rectangle((5, top + 2, SIZE - 1.5, bottom + 2), SHADOW, radius=7)
        canvas.rectangle((3, top, SIZE - 3.5, bottom), (255, 255, 255), INKS[picture["colour"]], 2, radius=7)
    ink = (CHALKS if on == "board" else INKS)[picture["ink"]]
    for item in items:
        canvas.text(item["x"], item["y"], item["text"], item["size"], ink)


def _extent(items: list[dict]) -> tuple[float, float]:
    """Where the board or card that carries the items begins and ends, from top to bottom."""
    top, bottom = min(item["y"] - item["size"] for item in items), max(item["y"] + item["size"] for item in items)
    return max(3, top), min(SIZE - 4, bottom)  # with room for the card's shadow
