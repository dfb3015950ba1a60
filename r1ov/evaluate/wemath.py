"""We-Math's four-dimensional score: does a model that solves a composite problem also solve the steps that it
is made of?

Source: We-Math (Qiao et al. 2024), section 2.3, and its `four_dimensional_metrics.py`.
"""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from r1ov.evaluate.item import Item, Verdict
from r1ov.evaluate.tables import Table

Group = tuple[bool, tuple[bool, ...]]  # composite problem right, each of its one-step problems right


def four_dimensions(items: Sequence[Item], verdicts: Sequence[Verdict]) -> list[Table]:
    """Two tables: the scores, strict and loose, and accuracy by the number of steps; [] without a whole group
    of problems.

    With several samples of an item, means over the samples. Groups of which an item is missing (a subset was
    run) are left out.
    """
    right = {(verdict.id, verdict.sample): verdict.score >= 0.5 for verdict in verdicts}
    runs = [
        _groups(items, right, sample) for sample in sorted({verdict.sample for verdict in verdicts}) or [0]
    ]
    count = len(runs[0])
    if not count:
        return []
    names = ("score", "IK", "IG", "CM", "RM")
    columns = (
        "",
        "groups",
        "score",
        "insufficient knowledge (IK)",
        "inadequate generalization (IG)",
        "complete mastery (CM)",
    )
    rows = []
    for name, strict in (("strict", True), ("loose", False)):
        found = [dimensions(groups, strict) for groups in runs]
        rows.append((name, count, *(_mean([one[key] for one in found]) for key in names)))
    steps = [accuracy_by_steps(groups) for groups in runs]
    by_steps = tuple((name, steps[0][name][0], _mean([one[name][1] for one in steps])) for name in steps[0])
    return [
        Table("four-dimensional score", (*columns, "rote memorization (RM)"), tuple(rows)),
        Table("by steps", ("problems", "items", "accuracy"), by_steps),
    ]


def dimensions(groups: Sequence[Group], strict: bool) -> dict[str, float | None]:
    """IK, IG and CM are shares of all groups; RM is a share of CM + RM, None where no composite problem is
    solved.
    """
    n = len(groups)
    ik = sum(not multi and not all(steps) for multi, steps in groups)
    ig = sum(not multi and all(steps) for multi, steps in groups)
    cm = sum(multi and (all(steps) if strict else any(steps)) for multi, steps in groups)
    rm = n - ik - ig - cm
    score = (n - 0.5 * ig - rm - ik) / n
    return {
        "score": score,
        "IK": ik / n,
        "IG": ig / n,
        "CM": cm / n,
        "RM": rm / (cm + rm) if cm + rm else None,
    }


def accuracy_by_steps(groups: Sequence[Group]) -> dict[str, tuple[int, float | None]]:
    """{name: (items, accuracy)} of the one-step problems and of the composite ones of two and three steps."""
    parts = {"one-step (S1)": [step for _, steps in groups for step in steps]}
    for name, length in (("two-step (S2)", 2), ("three-step (S3)", 3)):
        parts[name] = [multi for multi, steps in groups if len(steps) == length]
    return {name: (len(part), fmean(part) if part else None) for name, part in parts.items()}


def _groups(items: Sequence[Item], right: dict[tuple[str, int], bool], sample: int) -> list[Group]:
    """The whole groups: "2steps_multi" with "2steps_1" and "2steps_2", and so on. A verdict that is missing
    is a wrong answer.
    """
    found: dict[str, dict[str, bool]] = defaultdict(dict)
    lengths: dict[str, int] = {}
    for item in items:
        length, _, step = item.tags["key"].partition("steps_")
        found[item.group][step], lengths[item.group] = right.get((item.id, sample), False), int(length)
    groups = []
    for name, steps in found.items():
        numbers = [str(number) for number in range(1, lengths[name] + 1)]
        if set(steps) == {"multi", *numbers}:
            groups.append((steps["multi"], tuple(steps[number] for number in numbers)))
    return groups


def _mean(found: Sequence[float | None]) -> float | None:
    known = [one for one in found if one is not None]
    return fmean(known) if known else None
