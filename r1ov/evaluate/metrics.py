"""What the answers are worth: shares with their intervals, by tag, and the benchmarks' own metrics."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean

from r1ov.evaluate.item import Answers, Item, Items, by_question

MAX_VALUES = 100  # a tag with more gets no table
Z = 1.96  # of 95%
VERSIONS = (  # of MathVerse; Text Only is an ablation
    "Text Dominant",
    "Text Lite",
    "Vision Intensive",
    "Vision Dominant",
    "Vision Only",
)
Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]  # shares are floats in [0, 1], counts are ints, None is an empty cell


Metric = Callable[[Answers], list[Table]]


def wilson(right: float, count: float) -> tuple[float, float]:
    """Returns the 95% confidence interval of a share, by Wilson's score (1927).

    Example: (90, 100) -> (0.826, 0.945)
    """
    share, z2 = right / count, Z * Z
    middle = share + z2 / (2 * count)
    spread = Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    low, high = ((middle + side) / (1 + z2 / count) for side in (-spread, spread))
    return max(0.0, low), min(1.0, high)


def interval(scores: Sequence[float], groups: Sequence[Hashable]) -> tuple[float, float]:
    """Returns the 95% interval of the mean of scores in [0, 1] that depend on each other within a group.

    It is Wilson's, at the number of independent scores that would spread as much: n p (1 - p) / (n v), v the
    cluster-robust variance of the mean. With every score in a group of its own this is Wilson's interval
    itself; it is never narrower.

    Source: Miller 2024 (arXiv 2411.00640) section 2.2 for v, without a small-sample factor.
    """
    count, mean = len(scores), sum(scores) / len(scores)
    sums: dict[Hashable, float] = defaultdict(float)
    for score, group in zip(scores, groups, strict=True):
        sums[group] += score - mean
    variance = sum(total * total for total in sums.values()) / count**2
    spread = mean * (1 - mean)
    effective = min(count, spread / variance) if variance > 1e-12 and spread > 1e-12 else len(sums)
    return wilson(mean * effective, effective)


def accuracy(answered: Answers) -> float:
    return fmean(one.verdict.score for one in answered)


def with_interval(answered: Answers) -> tuple[float, float, float]:
    """Returns accuracy and its 95% interval, clustered by the benchmark's groups; samples of one question are
    never independent.
    """
    groups = [one.item.group or one.item.id for one in answered]
    return accuracy(answered), *interval([one.verdict.score for one in answered], groups)


def count(answered: Answers) -> int:
    """Returns the number of questions."""
    return len(by_question(answered))


def by_value(answered: Answers, tag: str) -> dict[str, Answers]:
    """Returns {a value of the tag: the answers to its questions}. A question may have several values."""
    parts = defaultdict(list)
    for one in answered:
        for value in values(one.item, tag):
            parts[value].append(one)
    # The playground's families keep their own order.
    return parts if tag == "family" else {value: parts[value] for value in sorted(parts, key=_numbers_first)}


def by_tag(answered: Answers, tag: str) -> list[Table]:
    """Returns [a table with a line for each value of the tag, then one for all], or [] without a value."""
    parts = by_value(answered, tag)
    rows = [
        (
            value,
            count(part),
            *with_interval(part),
            fmean(one.verdict.well_formed for one in part),
            round(fmean(one.prediction.completion_tokens for one in part)),
        )
        for value, part in [*parts.items(), ("all", answered)]
    ]
    name = tag.replace("_", " ")
    columns = (name, "questions", "right", "low", "high", "well-formed", "tokens")
    return [Table(f"by {name}", columns, tuple(rows))] if parts else []


def dividing_tags(answered: Answers, most: int = MAX_VALUES) -> list[str]:
    """Returns the tags that have two values or more, but not more than `most`."""
    names = dict.fromkeys(name for one in answered for name in one.item.tags)
    return [name for name in names if 1 < len(by_value(answered, name)) <= most]


def by_every_tag(answered: Answers) -> list[Table]:
    """Returns a table for each tag that divides the questions into a few parts."""
    tags = dividing_tags(answered, min(40, count(answered) // 2))
    return [table for tag in tags for table in by_tag(answered, tag)]


def mathvision(answered: Answers) -> list[Table]:
    """Returns accuracy by subject and level."""
    levels, rows = list(by_value(answered, "level")), []
    for subject, part in by_value(answered, "subject").items():
        cells = by_value(part, "level")
        rows.append((subject, *(accuracy(cells[level]) if level in cells else None for level in levels)))
    columns = ("subject", *(f"level {level}" for level in levels))
    return [Table("accuracy by subject and level", columns, tuple(rows))] if rows else []


def mathverse(answered: Answers) -> list[Table]:
    """Returns a row for each version, then the mean of the five in the overall score, Text Only apart; then
    tables of the five by subject.
    """
    found = by_value(answered, "problem_version")
    rows = [(name, count(found[name]), accuracy(found[name])) for name in VERSIONS if name in found]
    if rows:
        which = "the five" if len(rows) == len(VERSIONS) else f"these {len(rows)}"
        rows.append((f"mean of {which} versions", sum(row[1] for row in rows), fmean(row[2] for row in rows)))
    if apart := found.get("Text Only"):
        rows.append(("Text Only (apart)", count(apart), accuracy(apart)))
    five = [one for one in answered if one.item.tags.get("problem_version") in VERSIONS]
    tables = [Table("by version", ("version", "items", "accuracy"), tuple(rows))] if rows else []
    return tables + by_tag(five, "subject") + by_tag(five, "subfield")


# We-Math: does a model that solves a composite problem also solve its steps?
# Source: We-Math (Qiao et al. 2024), section 2.3, and its `four_dimensional_metrics.py`.

Group = tuple[bool, tuple[bool, ...]]  # composite problem right, each of its one-step problems right
DIMENSIONS = (
    "score",
    "insufficient knowledge (IK)",
    "inadequate generalization (IG)",
    "complete mastery (CM)",
    "rote memorization (RM)",
)


def wemath(answered: Answers) -> list[Table]:
    """Returns the scores, strict and loose; accuracy by the number of steps; and each domain's accuracy: the
    mean over its concepts of the accuracy on their one-step problems.

    The groups of all samples count together. Groups that lack an item (a subset was run) are left out.
    """
    tables, rows = [], []
    if groups := whole_groups(answered):
        samples = len({one.prediction.sample for one in answered})
        parts = {
            "one-step (S1)": [step for _, steps in groups for step in steps],
            "two-step (S2)": [multi for multi, steps in groups if len(steps) == 2],
            "three-step (S3)": [multi for multi, steps in groups if len(steps) == 3],
        }
        by_steps = [
            (name, len(part) // samples, fmean(part) if part else None) for name, part in parts.items()
        ]
        scores = [
            (name, len(groups) // samples, *dimensions(groups, name == "strict"))
            for name in ("strict", "loose")
        ]
        tables = [
            Table("four-dimensional score", ("", "groups", *DIMENSIONS), tuple(scores)),
            Table("by steps", ("problems", "items", "accuracy"), tuple(by_steps)),
        ]
    steps = [one for one in answered if not one.item.tags["key"].endswith("multi")]
    for domain, part in by_value(steps, "domain").items():
        concepts = by_value(part, "concept")
        rows.append((domain, len(concepts), count(part), fmean(map(accuracy, concepts.values()))))
    columns = ("domain", "concepts", "items", "mean over concepts")
    return tables + [Table("by domain", columns, tuple(rows))] * bool(rows)


def whole_groups(answered: Answers) -> list[Group]:
    """Returns the groups that lack nothing: "2steps_multi" with "2steps_1" and "2steps_2", and so on."""
    found: dict[tuple[str, int], dict[str, bool]] = defaultdict(dict)
    for one in answered:
        found[one.item.group, one.prediction.sample][one.item.tags["key"]] = one.verdict.score >= 0.5
    groups = []
    for steps in found.values():
        length = len(steps) - 1
        names = [f"{length}steps_{step}" for step in ("multi", *range(1, length + 1))]
        if length > 1 and set(steps) == set(names):
            multi, *rest = map(steps.get, names)
            groups.append((multi, tuple(rest)))
    return groups


def dimensions(groups: Sequence[Group], strict: bool) -> tuple[float | None, ...]:
    """Returns the shares in the order of DIMENSIONS. IK, IG and CM are shares of all groups; RM is a share of
    CM + RM, None if no composite problem is solved.
    """
    n = len(groups)
    ik = sum(not multi and not all(steps) for multi, steps in groups)
    ig = sum(not multi and all(steps) for multi, steps in groups)
    cm = sum(multi and (all(steps) if strict else any(steps)) for multi, steps in groups)
    rm = n - ik - ig - cm
    return (n - 0.5 * ig - rm - ik) / n, ik / n, ig / n, cm / n, rm / (cm + rm) if cm + rm else None


def guessing(items: Items) -> dict[str, float]:
    """Returns the score of a guesser who does not look: a random letter; always the most frequent gold
    answer.

    A question without options counts 0 for a random letter.
    """
    sizes = [len(item.choices or ()) or item.num_choices for item in items if item.kind == "mcq"]
    frequent = Counter((item.kind == "mcq", item.answer.strip()) for item in items).most_common(1)[0][1]
    return {
        "random option": sum(1 / size for size in sizes if size) / len(items),
        "most frequent answer": frequent / len(items),
    }


def values(item: Item, tag: str) -> tuple[str, ...]:
    found = item.tags.get(tag, ())
    return (found,) if isinstance(found, str) else tuple(dict.fromkeys(found))


def _numbers_first(value: str) -> tuple[bool, int, str]:
    return not value.isdecimal(), int(value) if value.isdecimal() else 0, value
