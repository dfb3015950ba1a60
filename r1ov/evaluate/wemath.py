"""We-Math's four-dimensional score: does a model that solves a composite problem also solve its steps?

Source: We-Math (Qiao et al. 2024), section 2.3, and its `four_dimensional_metrics.py`.
"""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from r1ov.evaluate.item import Items, Verdicts
from r1ov.evaluate.tables import Table

Group = tuple[bool, tuple[bool, ...]]  # composite problem right, each of its one-step problems right
COLUMNS = (
    "score",
    "insufficient knowledge (IK)",
    "inadequate generalization (IG)",
    "complete mastery (CM)",
    "rote memorization (RM)",
)


def four_dimensions(items: Items, verdicts: Verdicts) -> list[Table]:
    """Returns two tables: the scores, strict and loose, and accuracy by the number of steps; [] without a
    whole group of problems.

    The groups of all samples count together. Groups that lack an item (a subset was run) are left out.
    """
    right = {(verdict.id, verdict.sample): verdict.score >= 0.5 for verdict in verdicts}
    samples = {verdict.sample for verdict in verdicts} or {0}
    groups = [group for sample in samples for group in whole_groups(items, right, sample)]
    if not groups:
        return []
    parts = {
        "one-step (S1)": [step for _, steps in groups for step in steps],
        "two-step (S2)": [multi for multi, steps in groups if len(steps) == 2],
        "three-step (S3)": [multi for multi, steps in groups if len(steps) == 3],
    }
    by_steps = [
        (name, len(part) // len(samples), fmean(part) if part else None) for name, part in parts.items()
    ]
    scores = [
        (name, len(groups) // len(samples), *dimensions(groups, name == "strict").values())
        for name in ("strict", "loose")
    ]
    return [
        Table("four-dimensional score", ("", "groups", *COLUMNS), tuple(scores)),
        Table("by steps", ("problems", "items", "accuracy"), tuple(by_steps)),
    ]


def dimensions(groups: Sequence[Group], strict: bool) -> dict[str, float | None]:
    """Returns the shares in the order of COLUMNS. IK, IG and CM are shares of all groups; RM is a share of
    CM + RM, None if no composite problem is solved.
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


def whole_groups(items: Items, right: dict[tuple[str, int], bool], sample: int) -> list[Group]:
    """Returns the groups that lack nothing: "2steps_multi" with "2steps_1" and "2steps_2", and so on. A
    missing verdict is a wrong answer.
    """
    found: dict[str, dict[str, bool]] = defaultdict(dict)
    for item in items:
        found[item.group][item.tags["key"]] = right.get((item.id, sample), False)
    groups = []
    for steps in found.values():
        for length in (2, 3):
            names = [f"{length}steps_{step}" for step in ("multi", *range(1, length + 1))]
            if set(steps) == set(names):
                multi, *rest = (steps[name] for name in names)
                groups.append((multi, tuple(rest)))
    return groups
