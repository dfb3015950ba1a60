"""Before training: can every gold answer be scored? Each is scored against itself."""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from r1ov.errors import UserError
from r1ov.reward.accuracy import DEFAULT, Verify, grade
from r1ov.reward.rules.numbers import Rules

MAX_UNSCORABLE = 0.05  # of the golds
SHOWN = 5


class Gold(NamedTuple):
    """name: how the user finds the row, such as "train.jsonl, line 12". kind, rules: as `accuracy.grade`."""

    name: str
    answer: str
    kind: str | None = None
    rules: Rules = DEFAULT


def unscorable(golds: Iterable[Gold], verify: Verify | None = None) -> tuple[list[tuple[Gold, str]], int]:
    """Returns [(gold, why)] of those that do not score 1 against themselves, and how many golds there were."""
    checked = [(gold, _fault(gold, verify)) for gold in golds]
    return [(gold, why) for gold, why in checked if why], len(checked)


def _fault(gold: Gold, verify: Verify | None) -> str:
    answer = re.sub("</?answer>", "", gold.answer)
    if gold.rules.answer_from == "boxed" and "\\boxed" not in answer:
        answer = f"\\boxed{{{answer}}}"
    rules = replace(gold.rules, box_scale=DEFAULT.box_scale)  # the gold is in its own coordinates already
    score = grade(f"<think>.</think><answer>{answer}</answer>", gold.answer, gold.kind, rules, verify).score
    return "" if score == 1.0 else "cannot be read" if score is None else f"scores {score:g}"


def check_golds(golds: Iterable[Gold], verify: Verify | None = None) -> list[tuple[Gold, str]]:
    """Returns those that do not score 1 against themselves, and why, for a warning.

    Raises: UserError if that leaves less than 95%, with the first few of them.
    """
    failed, count = unscorable(golds, verify)
    if not count or len(failed) > MAX_UNSCORABLE * count:
        shown = "; ".join(
            f"{gold.name}: {gold.answer!r:.60} as {gold.kind or 'any kind'} {why}"
            for gold, why in failed[:SHOWN]
        )
        raise UserError(
            f"{len(failed)} of {count} gold answers do not score 1 against themselves, at most 5% may: "
            f"{shown or 'there are none'}; mend or drop these rows, or say their kind"
        )
    return failed
