"""Before training: can every gold answer be scored? Each is scored against itself."""

from collections.abc import Iterable
from typing import NamedTuple

from r1ov.errors import UserError
from r1ov.reward.accuracy import DEFAULT, Verify, grade
from r1ov.reward.rules.numbers import Rules

MIN_SHARE = 0.95
SHOWN = 5


class Gold(NamedTuple):
    """name: how the user finds the row, such as "train.jsonl, line 12". kind, rules: as `accuracy.grade`."""

    name: str
    answer: str
    kind: str | None = None
    rules: Rules = DEFAULT


def unscorable(golds: Iterable[Gold], verify: Verify | None = None) -> tuple[list[tuple[Gold, str]], int]:
    """([(gold, why)] of those that do not score 1 against themselves, how many golds there were)."""
    failed, count = [], 0
    for gold in golds:
        count += 1
        answer = gold.answer.replace("<answer>", "").replace("</answer>", "")
        if gold.rules.answer_from == "boxed" and "\\boxed" not in answer:
            answer = f"\\boxed{{{answer}}}"
        # the gold is in its own coordinates already
        score = grade(
            f"<think>.</think><answer>{answer}</answer>",
            gold.answer,
            gold.kind,
            gold.rules.without_box_scale(),
            verify,
        ).score
        if score != 1.0:
            failed.append((gold, "cannot be read" if score is None else f"scores {score:g}"))
    return failed, count


def check_golds(golds: Iterable[Gold], verify: Verify | None = None) -> list[tuple[Gold, str]]:
    """Those that do not score 1 against themselves and the reason, for a warning.

    Raises: UserError if that leaves less than 95%, with the first few of them.
    """
    failed, count = unscorable(golds, verify)
    if count - len(failed) < MIN_SHARE * count or not count:
        shown = "; ".join(
            f"{gold.name}: {gold.answer!r:.60} as {gold.kind or 'any kind'} {why}"
            for gold, why in failed[:SHOWN]
        )
        raise UserError(
            f"{len(failed)} of {count} gold answers do not score 1 against themselves, at most 5% may: {shown or 'there are none'}; "
            "mend or drop these rows, or say their kind"
        )
    return failed
