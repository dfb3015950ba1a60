"""What the answers are worth, as tables: in whole, by tag, by the benchmarks' own rules; printed, and kept as
report.md and report.json.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from r1ov.common.files import write_json, write_text
from r1ov.common.page import markdown_table
from r1ov.evaluate.item import UNREAD, Item, Verdict, Verdicts, by_question
from r1ov.evaluate.metrics import interval, pass_at_k

MAX_VALUES = 100  # a tag with more gets no table
SHOWN_ERRORS = 20
VERSIONS = (  # of MathVerse; Text Only is an ablation
    "Text Dominant",
    "Text Lite",
    "Vision Intensive",
    "Vision Dominant",
    "Vision Only",
)
# A float is a share in [0, 1], a pair of them an interval, None an empty cell.
Cell = str | float | int | tuple[float, float] | None


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


Metric = str | Callable[[Verdicts], list[Table]]  # a tag to group by, or a function


def accuracy(verdicts: Verdicts) -> float:
    return fmean(one.score for one in verdicts)


def interval_of(verdicts: Verdicts) -> tuple[float, float]:
    """Returns the accuracy's 95% interval, clustered by the benchmark's groups; samples of one question are
    never independent.
    """
    groups = [one.item.group or one.item.id for one in verdicts]
    return interval([one.score for one in verdicts], groups)


def count(verdicts: Verdicts) -> int:
    """Returns the number of questions."""
    return len(by_question(verdicts))


def values(item: Item, tag: str) -> tuple[str, ...]:
    found = item.tags.get(tag, ())
    return (found,) if isinstance(found, str) else tuple(dict.fromkeys(found))


def by_value(verdicts: Verdicts, tag: str) -> dict[str, list[Verdict]]:
    """Returns {a value of the tag: the answers to its questions}. A question may have several values."""
    parts = defaultdict(list)
    for one in verdicts:
        for value in values(one.item, tag):
            parts[value].append(one)
    # Numbers by size; the playground's families in their own order.
    in_order = sorted(parts, key=lambda value: value.rjust(20) if value.isdecimal() else value)
    return parts if tag == "family" else {value: parts[value] for value in in_order}


def by_tag(verdicts: Verdicts, tag: str) -> list[Table]:
    """Returns [a table with a line for each value of the tag, then one for all], or [] without a value."""
    parts = by_value(verdicts, tag)
    rows = [
        (
            value,
            count(part),
            accuracy(part),
            interval_of(part),
            fmean(one.well_formed for one in part),
            round(fmean(one.prediction.completion_tokens for one in part)),
        )
        for value, part in [*parts.items(), ("all", verdicts)]
    ]
    name = tag.replace("_", " ")
    columns = (name, "questions", "right", "95% interval", "well-formed", "tokens")
    return [Table(f"by {name}", columns, rows)] if parts else []


def dividing_tags(verdicts: Verdicts, most: int = MAX_VALUES) -> list[str]:
    """Returns the tags that have two values or more, but not more than `most`."""
    names = dict.fromkeys(name for one in verdicts for name in one.item.tags)
    return [name for name in names if 1 < len(by_value(verdicts, name)) <= most]


def by_every_tag(verdicts: Verdicts) -> list[Table]:
    """Returns a table for each tag that divides the questions into a few parts."""
    tags = dividing_tags(verdicts, min(40, count(verdicts) // 2))
    return [table for tag in tags for table in by_tag(verdicts, tag)]


def mathverse(verdicts: Verdicts) -> list[Table]:
    """Returns a row for each version, then the mean of the five in the overall score, Text Only apart; then
    tables of the five by subject.
    """
    parts = by_value(verdicts, "problem_version")
    apart, parts = parts.get("Text Only"), {name: parts[name] for name in VERSIONS if name in parts}
    five = [one for part in parts.values() for one in part]
    rows = [(name, count(part), accuracy(part)) for name, part in parts.items()]
    if rows:
        rows.append((f"mean of {len(rows)} versions", count(five), fmean(row[2] for row in rows)))
    if apart:
        rows.append(("Text Only (apart)", count(apart), accuracy(apart)))
    table = Table("by version", ("version", "items", "accuracy"), rows)
    return [table, *by_tag(five, "subject"), *by_tag(five, "subfield")]


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


def wemath(verdicts: Verdicts) -> list[Table]:
    """Returns the score, strict and loose. The groups of all samples count together; those that lack an item
    (a subset was run) are left out.
    """
    if not (groups := whole_groups(verdicts)):
        return []
    rows = [(name, len(groups), *dimensions(groups, name == "strict")) for name in ("strict", "loose")]
    return [Table("four-dimensional score", ("", "groups", *DIMENSIONS), rows)]


def whole_groups(verdicts: Verdicts) -> list[Group]:
    """Returns the groups that lack nothing: "2steps_multi" with "2steps_1" and "2steps_2", and so on."""
    found: dict[tuple[str, int], dict[str, bool]] = defaultdict(dict)
    for one in verdicts:
        found[one.item.group, one.prediction.sample][one.item.tags["key"]] = one.score >= 0.5
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


# The report.


def tables_of(metrics: Sequence[Metric], verdicts: Verdicts) -> tuple[list[Table], list[Table]]:
    """Returns the tables to print, and those that only the report has."""
    shown = [overall_table(verdicts), *samples_table(verdicts)]
    for metric in metrics:
        shown += by_tag(verdicts, metric) if isinstance(metric, str) else metric(verdicts)
    titles = {table.title for table in shown}
    more = [table for tag in dividing_tags(verdicts) for table in by_tag(verdicts, tag)]
    more = [table for table in more if table.title not in titles]
    return shown, [methods_table(verdicts), *more, *errors_table(verdicts)]


def overall_table(verdicts: Verdicts) -> Table:
    tokens = sorted(one.prediction.completion_tokens for one in verdicts)
    whole = [one for one in verdicts if one.prediction.finish_reason != "length"]
    rows: list[tuple[str, Cell]] = [
        ("questions", count(verdicts)),
        ("accuracy", accuracy(verdicts)),
        ("95% interval", interval_of(verdicts)),
        ("answer could be read", fmean(one.method not in UNREAD for one in verdicts)),
        ("cut off at the token limit", (len(verdicts) - len(whole)) / len(verdicts)),
        ("accuracy where not cut off", accuracy(whole) if whole else None),
        ("well-formed (think and answer tags)", fmean(one.well_formed for one in verdicts)),
        ("tokens, mean", round(fmean(tokens))),
        ("tokens, median", round(statistics.median(tokens))),
        ("tokens, 95th percentile", tokens[-(-95 * len(tokens) // 100) - 1]),
        ("errors, counted as wrong", sum(one.method == "error" for one in verdicts)),
    ]
    if asked := sum(one.judged is not None for one in verdicts):
        both = fmean(one.score if one.judged is None else one.judged for one in verdicts)
        rows += [("asked of the judge", asked), ("accuracy by rules and judge", both)]
    return Table("overall", ("measure", "value"), rows)


def methods_table(verdicts: Verdicts) -> Table:
    """Returns how the answers were found in the replies, and how often each way led to a right one."""
    ways = defaultdict(list)
    for one in verdicts:
        ways[one.method].append(one)
    often = sorted(ways.items(), key=lambda way: -len(way[1]))
    rows = [(name, len(own), len(own) / len(verdicts), accuracy(own)) for name, own in often]
    return Table("how answers were read", ("method", "answers", "share", "right"), rows)


def samples_table(verdicts: Verdicts) -> list[Table]:
    """Returns [mean@k and pass@j (unbiased)] for k samples a question; [] for one."""
    samples = max(one.prediction.sample for one in verdicts) + 1
    right = [sum(one.score >= 1 for one in own) for own in by_question(verdicts).values()]
    sizes = [*(2**power for power in range(10) if 2**power < samples), samples]
    rows = [(f"mean@{samples}", accuracy(verdicts))]
    rows += [(f"pass@{k}", fmean(pass_at_k(samples, each, k) for each in right)) for k in sizes]
    return [Table(f"{samples} samples a question", ("measure", "value"), rows)] if samples > 1 else []


def errors_table(verdicts: Verdicts) -> list[Table]:
    """Returns [the first questions that could not be asked, with the reason], or []."""
    reasons = {
        one.item.id: " ".join((one.prediction.error or one.item.error or "").split())
        for one in verdicts
        if one.method == "error"
    }
    rows = [*reasons.items()][:SHOWN_ERRORS]
    return [Table(f"errors, {len(rows)} of {len(reasons)}", ("question", "reason"), rows)] if rows else []


def markdown(table: Table) -> str:
    """Returns the table in GitHub's Markdown, text to the left and numbers to the right."""
    columns = zip(*table.rows, strict=True)
    aligned = ["---" if any(isinstance(cell, str) for cell in column) else "---:" for column in columns]
    return markdown_table([table.columns, *([_shown(cell) for cell in row] for row in table.rows)], aligned)


def _shown(cell: Cell) -> str:
    match cell:
        case (low, high):
            return f"{low:.1%} to {high:.1%}"
        case float():
            return f"{cell:.1%}"
    return "" if cell is None else str(cell)


def write_report(folder: Path, title: str, tables: Sequence[Table], settings: Mapping[str, Any]) -> None:
    """Writes report.md and report.json: the same tables, in the second with all digits."""
    flat = {**settings, **settings.get("run", {}), "run": None}
    rows = [(name, str(value)) for name, value in flat.items() if value is not None]
    tables = [*tables, Table("settings", ("setting", "value"), rows)]
    parts = [f"# {title}", *(f"## {table.title}\n\n{markdown(table)}" for table in tables)]
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    plain = [
        {"title": table.title, "rows": [dict(zip(table.columns, row, strict=True)) for row in table.rows]}
        for table in tables
    ]
    write_json(folder / "report.json", {"title": title, "settings": dict(settings), "tables": plain})


def write_verdicts(path: Path, verdicts: Verdicts) -> None:
    """Writes a line for each answer: as it was read, how, and its score."""
    names = ("score", "answer", "method", "well_formed", "judged")
    lines = []
    for one in verdicts:
        row = {"id": one.item.id, "sample": one.prediction.sample}
        row |= {name: getattr(one, name) for name in names}
        lines.append(
            json.dumps({**row, "gold": one.item.answer, "group": one.item.group}, ensure_ascii=False)
        )
    write_text(path, "".join(line + "\n" for line in lines))
