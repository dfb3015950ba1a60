"""Hundreds of answers judged by a person, and what no answer, however written, may do."""

import os
import re
import time
from pathlib import Path

import pytest

from r1ov.reward import KINDS, accuracy_reward, format_reward
from r1ov.reward.accuracy import kind_of
from r1ov.reward.rules.reading import extract_answer
from tests.fuzz_rewards import findings, right_answers
from tests.plain_reading import may_be_right, unboxed

HOLDS_TAGS = (
    "number",
    "5",
)  # of this kind and gold the table gives whole replies, of the others the answer's text


def cases() -> list[tuple[str, str, str, str]]:
    """(kind or "", gold, completion, score) of each line; "⏎" is a line's end. Of kind "format", the gold is
    strict or soft. reward_pairs.tsv holds the pairs of real inputs.
    """
    files = [Path(__file__).parent / name for name in ("reward_cases.tsv", "reward_pairs.tsv")]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").split("\n")[1:-1]]
    return [tuple(line.replace("⏎", "\n").split("\t")) for line in lines]


def whole(answer: str) -> str:
    return f"<think>so</think>\n<answer>{answer}</answer>"


def test_every_hand_judged_case_gets_its_score():
    wrong = []
    for kind, gold, completion, score in cases():
        text = completion if (kind, gold) == HOLDS_TAGS else whole(completion)
        found = (
            format_reward(completion, mode=gold)
            if kind == "format"
            else accuracy_reward(text, gold, kind or None)
        )
        if found != (None if score == "none" else float(score)):
            wrong.append(f"{kind} {gold!r}: {completion!r} is {score}, got {found}")
    assert not wrong, "\n".join(wrong)
    assert len(cases()) >= 300


def test_a_gold_answers_itself_in_every_kind_that_reads_it():
    for kind, gold in {(kind, gold) for kind, gold, *_ in cases() if kind != "format"}:
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
GOLDS = {
    "mcq": "B",
    "yes_no": "yes",
    "tuple": "(1, 2)",
    "set": "{1, 2}",
    "text": "blue",
    "bbox": "[1, 2, 3, 4]",
}
GOLDS |= {"boxes": str([[i, 3, 91, 98] for i in range(50)])}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_costs_little_and_earns_nothing(name):
    """50 ms of this process's own time, of which the slowest takes about 25 on a slow core; the very first
    text of a process another 35, so that the better of two is taken.
    """
    for kind in KINDS:
        costs = []
        for _ in range(2):
            start = time.process_time()
            score = accuracy_reward(HOSTILE[name], GOLDS.get(kind, "5"), kind)
            costs.append(time.process_time() - start)
        assert min(costs) < 0.05, kind
        assert score == 0.0 or (kind == "boxes" and name == "many boxes")
    for mode in ("tag", "boxed", "auto"):
        start = time.process_time()
        extract_answer(HOSTILE[name], mode)
        assert time.process_time() - start < 0.05, mode


def test_answers_changed_at_random_never_raise_take_long_or_score_what_they_do_not_say():
    """tests/fuzz_rewards.py has the rest, and R1OV_FUZZ_CASES how many; the whole is 100,000."""
    found, scores, slowest = findings(
        right_answers(cases()), int(os.environ.get("R1OV_FUZZ_CASES", "3000")), seed=0
    )
    assert not found, "\n".join(found)
    assert scores["right"] > 0.05 * scores.total()
    assert slowest < 0.05


def test_the_plain_reading_calls_nothing_wrong_that_a_person_judged_right():
    """It may be generous, but then it must still refuse most of what is wrong, or it could find nothing."""
    refused = []
    for kind, gold, completion, score in cases():
        if score in ("0", "1") and kind != "format":
            text = completion if (kind, gold) == HOLDS_TAGS else whole(completion)
            is_right = may_be_right(text, gold, kind or kind_of(unboxed(re.sub("</?answer>", "", gold))))
            assert is_right or score == "0", (kind, gold, completion)
            refused.append(is_right == (score == "1"))
    assert sum(refused) > 0.95 * len(refused)
