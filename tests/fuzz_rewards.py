"""Completions by the thousand, mutated from the hand-judged ones: none may raise, take long, or be right
where a plain reading is not.

    python -m tests.fuzz_rewards --cases 100000 [--seed 0]

Prints what it tried, and every finding; exits with 1 if there is one. pytest runs a few thousand
(test_reward_cases.py).
"""

import argparse
import random
import re
import sys
import time
from collections import Counter

from r1ov.reward import KINDS, accuracy_reward, format_reward
from r1ov.reward.accuracy import kind_of
from tests.plain_reading import may_be_right, unboxed

SLOWEST = 0.05  # seconds of this process's own time
PIECES = [
    *"{}()[],;^/*+-=%°!|\\$.π½²√∞01259xeiABC_\x00\ud800\n −４",
    *(
        "**",
        "12",
        "1e9",
        "or",
        "and",
        "not",
        "the",
        "cm",
        "m",
        "sin",
        "log",
        "yes",
        "no",
        "answer is",
        "maybe ",
    ),
    *("\\boxed{", "\\frac{", "\\sqrt", "\\text{", "\\infty", "\\{", "\\}", "\\cdot ", "{,}"),
    *(
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        " or ",
        ", ",
        " million",
        " squared",
        "(A)",
        "B.",
        "A. ",
    ),
]


def mutated(body: str, others: list[str], draw: random.Random) -> str:
    """The text after one to three small changes."""
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3))):
        at, way = draw.randint(0, len(body)), draw.randrange(7)
        if way < 2:
            body = body[:at] + draw.choice(PIECES) + body[at:]
        elif way == 2:
            body = body[:at] + body[at + draw.randint(1, 3) :]
        elif way == 3:
            end = min(len(body), at + draw.randint(1, 4))
            body = body[:end] + body[at:end] + body[end:]
        elif way == 4 and len(body) > 1:
            at = draw.randrange(len(body) - 1)
            body = body[:at] + body[at + 1] + body[at] + body[at + 2 :]
        elif way == 5:
            body = draw.choice(("{0}{2}{1}", "{1}{2}{0}")).format(
                body, draw.choice(others), draw.choice((" or ", ", ", " and ", " ", "\n", "; "))
            )
        else:
            body = body[:at] + draw.choice("0123456789") + body[at + 1 :]
    return body


def completions(cases: list[tuple[str, str, str]], count: int, seed: int):
    """(kind, gold, completion), `cases` being (kind, gold, right answer)."""
    draw = random.Random(seed)
    answers = {}
    for kind, gold, answer in cases:
        answers.setdefault((kind, gold), []).append(answer)
    golds = list(answers)
    for index in range(count):
        kind, gold = draw.choice(golds)
        others = answers[draw.choice(golds)] if draw.random() < 0.5 else answers[kind, gold]
        if index % 5 == 0:
            body = "".join(draw.choices([*PIECES, gold, draw.choice(others)], k=draw.randint(0, 40)))
        else:
            body = mutated(draw.choice(answers[kind, gold]), others, draw)
        reply = f"<think>so</think>\n<answer>{body}</answer>"
        if index % 7 == 0:
            reply = mutated(reply, PIECES, draw)
        yield kind, gold, reply


def findings(cases: list[tuple[str, str, str]], count: int, seed: int) -> tuple[list[str], Counter, float]:
    """(what went wrong, how often each score was given, the slowest call's seconds)."""
    found, scores, slowest = [], Counter(), 0.0
    for kind, gold, reply in completions(cases, count, seed):
        start = time.process_time()
        try:
            score = accuracy_reward(reply, gold, kind or None)
            form = format_reward(reply) + format_reward(reply, mode="soft")
        except Exception as error:  # whatever it is, it would have ended a training run
            found.append(f"{kind} {gold!r}: {reply!r} raises {type(error).__name__}: {error}")
            continue
        seconds = time.process_time() - start
        slowest = max(slowest, seconds)
        if seconds > SLOWEST:
            found.append(f"{kind} {gold!r}: {reply!r} takes {1000 * seconds:.0f} ms")
        if score is None or not 0 <= score <= 1 or not 0 <= form <= 2:
            found.append(f"{kind} {gold!r}: {reply!r} scores {score}, format {form}")
        elif score == 1 and not may_be_right(
            reply, gold, kind or kind_of(unboxed(re.sub("</?answer>", "", gold)))
        ):
            found.append(f"{kind} {gold!r}: {reply!r} scores 1, and is not plainly right")
        scores["right" if score == 1 else "wrong" if score == 0 else "between"] += 1
    return found, scores, slowest


def right_answers(cases) -> list[tuple[str, str, str]]:
    """(kind, gold, answer) of the hand-judged answers that are right."""
    return [
        (kind, gold, answer)
        for kind, gold, answer, score in cases
        if score == "1" and "answer>" not in answer and kind in ("", *KINDS)
    ]


def main() -> None:
    from tests.test_reward_cases import cases  # pytest is needed to import it

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found, scores, slowest = findings(right_answers(cases()), options.cases, options.seed)
    for one in found:
        print(one)
    print(
        f"{options.cases:,} completions: {dict(scores)}, slowest {1000 * slowest:.1f} ms, {len(found)} "
        f"findings"
    )
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
