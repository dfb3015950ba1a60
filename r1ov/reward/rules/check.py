"""Before training: can every gold answer be scored? Each is scored against itself, also respelt."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from r1ov.errors import UserError
from r1ov.reward.accuracy import DEFAULT, Verify, grade, is_beyond_rules, kind_of
from r1ov.reward.rules.boxes import NO_BOX, SEVERAL, Frame, corners, is_marked
from r1ov.reward.rules.numbers import Rules

MAX_UNSCORABLE = 0.05  # of the golds
SHOWN = 5
SPACED = r"\s*([<>=+])\s*"  # signs around which spaces mean nothing


class Gold(NamedTuple):
    """name: how the user finds the row, such as "train.jsonl, line 12". The rest: as `accuracy.grade`."""

    name: str
    answer: str
    kind: str | None = None
    rules: Rules = DEFAULT
    frame: Frame | None = None


def unscorable(golds: Iterable[Gold], verify: Verify | None = None) -> tuple[list[tuple[Gold, str]], int]:
    """Returns [(gold, why)] of those that do not score 1 against themselves, and the number of golds."""
    checked = [(gold, _fault(gold, verify)) for gold in golds]
    return [(gold, why) for gold, why in checked if why], len(checked)


def _fault(gold: Gold, verify: Verify | None) -> str:
    """Why the gold, or the same in another spelling, would not count as right; "" if it would."""
    answer = re.sub("</?answer>", "", gold.answer)
    kind = gold.kind or kind_of(answer)
    for text in (
        answer,
        f"${re.sub(SPACED, lambda sign: f' {sign[1]} ', answer)}$".replace(r"\frac", r"\dfrac"),
    ):
        if gold.rules.answer_from == "boxed" and "\\boxed" not in text:
            text = f"\\boxed{{{text}}}"
        reply = f"<think>.</think><answer>{text}</answer>"
        score = grade(reply, gold.answer, gold.kind, gold.rules, verify).score
        if score != 1.0:
            return "cannot be read" if score is None else f"scores {score:g}"
    if kind in ("bbox", "boxes") and gold.frame and not gold.frame.scale(corners(answer)):
        if not gold.frame.is_only:
            return SEVERAL
        return f"is not in pixels of its image of {' x '.join(map(str, gold.frame.original))}"
    if kind == "text" and is_marked(answer):
        return NO_BOX
    if is_beyond_rules(answer, kind) and not (verify and verify(answer, answer)):
        return "is beyond our rules, and beyond math-verify or without it"
    return ""


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
