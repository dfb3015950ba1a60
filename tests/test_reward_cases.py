"""Hundreds of answers judged by a person, and what no answer, however written, may do."""

import random
import time
from pathlib import Path

import pytest

from r1ov.reward import KINDS, accuracy_reward, format_reward
from r1ov.reward.extract import extract_answer

HOLDS_TAGS = ("number", "5")  # of this kind and gold the table gives whole replies, of the others the answer's text


def cases() -> list[tuple[str, str, str, str]]:
    """(kind or "", gold, completion, score) of each line; "⏎" stands for a line's end."""
    lines = (Path(__file__).parent / "reward_cases.tsv").read_text(encoding="utf-8").split("\n")[1:-1]
    return [tuple(line.replace("⏎", "\n").split("\t")) for line in lines]


def whole(answer: str) -> str:
    return f"<think>so</think>\n<answer>{answer}</answer>"


def test_every_hand_judged_case_gets_its_score():
    wrong = []
    for kind, gold, completion, score in cases():
        text = completion if (kind, gold) == HOLDS_TAGS else whole(completion)
        found = accuracy_reward(text, gold, kind or None)
        if found != (None if score == "none" else float(score)):
            wrong.append(f"{kind} {gold!r}: {completion!r} is {score}, got {found}")
    assert not wrong, "\n".join(wrong)
    assert len(cases()) >= 300


def test_a_gold_answers_itself_in_every_kind_that_reads_it():
    for kind, gold in {(kind, gold) for kind, gold, *_ in cases()}:
        if accuracy_reward(whole("4"), gold, kind or None) is not None and "answer>" not in gold:
            assert accuracy_reward(whole(gold), gold, kind or None) == 1.0, (kind, gold)


HOSTILE = {
    "tower": whole("9^9^9"),
    "python tower": whole("9**9**9"),
    "boxed tower": whole(r"\boxed{9^{9^{9}}}"),
    "huge power": whole("7**77777777"),
    "long tower": whole("2^" * 90 + "2"),
    "power of a sum": whole("(a+b+c+d)^64"),
    "product of sums": whole("*".join(f"(1+x{c})" for c in "abcdefghijklmnopqrst")),
    "quotients": whole("/".join(f"(x+{c})" for c in "abcdefghijkmnop")),
    "factorials": whole("((20!)!)!"),
    "exponent": whole("1e999999999"),
    "box exponent": whole("[1e999999999, 0, 1, 1]"),
    "big logarithm": whole("ln(10^99+1)"),
    "digits": whole("9" * 3_900),
    "10 MB of brackets": "(" * 10_000_000,
    "10 MB of brackets in an answer": whole("(" * 10_000_000),
    "brackets": whole("(" * 3_900),
    "nested": whole("(" * 95 + "1" + ")" * 95),
    "nested JSON": whole("[" * 1_900 + "]" * 1_900),
    "roots": whole(r"\sqrt" * 39 + "2"),
    "open boxes": whole(r"\boxed{" * 500),
    "open text": whole(r"\text{" * 600),
    "tags": "<answer>" * 124_000,
    "tag pairs": "<think><answer>" * 66_000,
    "spaces": whole("5" + " " * 3_900 + "x"),
    "equals": whole("=" * 190),
    "letters that grow": whole("ﷺ" * 3_900),
    "zeros": whole("\0" * 3_900),
    "lone surrogates": whole("\ud800" * 100),
    "many boxes": whole(",".join(f"[{i}, 2, 90, 99]" for i in range(50))),
}
GOLDS = {"mcq": "B", "yes_no": "yes", "tuple": "(1, 2)", "set": "{1, 2}", "text": "blue", "bbox": "[1, 2, 3, 4]"}
GOLDS |= {"boxes": str([[i, 3, 91, 98] for i in range(50)])}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_costs_little_and_earns_nothing(name):
    """50 ms of this process's own time, of which the slowest takes about 20 on a slow core."""
    for kind in KINDS:
        start = time.process_time()
        score = accuracy_reward(HOSTILE[name], GOLDS.get(kind, "5"), kind)
        assert time.process_time() - start < 0.05, kind
        assert score == 0.0 or (kind == "boxes" and name == "many boxes")
    for mode in ("tag", "boxed", "auto"):
        start = time.process_time()
        extract_answer(HOSTILE[name], mode)
        assert time.process_time() - start < 0.05, mode


FUZZ = [
    *("<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "\\frac{", "\\sqrt", "\\text{", "{", "}", "(", ")", "[", "]", ",", ";"),
    *(
        "^",
        "**",
        "/",
        "*",
        "+",
        "-",
        "=",
        "%",
        "°",
        "!",
        "|",
        "\\",
        "$",
        ".",
        " ",
        "\n",
        "π",
        "½",
        "²",
        "√",
        "∞",
        "0",
        "1",
        "9",
        "12",
        "1e9",
    ),
    *(
        "x",
        "e",
        "i",
        "A",
        "B",
        "or",
        "and",
        "the",
        "cm",
        "sin",
        "log",
        "_",
        "yes",
        "no",
        "\\infty",
        "\\{",
        "\\}",
        "answer is",
        "\x00",
        "\ud800",
    ),
]
ODD_GOLDS = {"number": "37/53", "math": r"\sqrt{37}+\pi^3", "tuple": "(37, 41)", "set": r"\{37, 41\}", "text": "quince", "mcq": "Q"}


def fuzz(count: int, seed: int) -> None:
    """No reply of random pieces raises or takes long; golds that no such reply can hit by chance are never hit."""
    draw = random.Random(seed)
    for index in range(count):
        body = "".join(draw.choices(FUZZ, k=draw.randint(0, 40)))
        reply = whole(body) if index % 4 else body
        kind = KINDS[index % len(KINDS)]
        start = time.process_time()
        score = accuracy_reward(reply, ODD_GOLDS.get(kind, GOLDS.get(kind, "5")), kind)
        format_reward(reply)
        assert time.process_time() - start < 0.05, body
        assert score == 0.0 if kind in ODD_GOLDS else score is not None, (kind, body)


def test_random_replies_never_raise_take_long_or_earn_what_they_did_not_say():
    fuzz(4_000, seed=0)
