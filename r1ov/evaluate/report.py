"""What the answers are worth, as tables: in whole, by tag, by the benchmarks' own rules; printed, and kept as
report.md and report.json, with the items as a page to look at.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from r1ov.common import page
from r1ov.common.files import split_reply, write_json, write_lines, write_text
from r1ov.common.page import Cell, markdown_table
from r1ov.evaluate.item import UNREAD, Item, Verdict, Verdicts, by_question
from r1ov.evaluate.metrics import interval, pass_at_k
from r1ov.evaluate.prompts import Style, question_of

MAX_VALUES = 40  # a tag with more gets no table
SHOWN_ERRORS = 20
MAX_TAGS = 8  # that get a filter
VERSIONS = (  # of MathVerse; Text Only is an ablation
    "Text Dominant",
    "Text Lite",
    "Vision Intensive",
    "Vision Dominant",
    "Vision Only",
)


class Table(NamedTuple):
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


Metric = str | Callable[[Verdicts], list[Table]]  # a tag to group by, or a function


def accuracy(verdicts: Verdicts) -> float:
    return fmean(one.score for one in verdicts)


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


def measures(verdicts: Verdicts) -> list[Cell]:
    """Returns the number of questions, the share of right answers, its interval, the share of well-formed
    answers, and their tokens.

    The interval is clustered by the benchmark's groups; samples of one question are never independent.
    """
    groups = [one.item.group or one.item.id for one in verdicts]
    sure = interval([one.score for one in verdicts], groups)
    tokens = round(fmean(one.prediction.completion_tokens for one in verdicts))
    formed = fmean(one.well_formed for one in verdicts)
    return [len(by_question(verdicts)), accuracy(verdicts), sure, formed, tokens]


def grouped(title: str, name: str, parts: Mapping[str, Verdicts]) -> Table:
    """Returns a table with a line for each part. Args: name: of its first column."""
    rows = [(value, *measures(part)) for value, part in parts.items()]
    return Table(title, (name, "questions", "right", "95% interval", "well-formed", "tokens"), rows)


def by_tag(verdicts: Verdicts, tag: str) -> list[Table]:
    """Returns [a table with a line for each value of the tag, then one for all], or [] without a value."""
    parts, name = by_value(verdicts, tag), tag.replace("_", " ")
    return [grouped(f"by {name}", name, {**parts, "all": verdicts})] if parts else []


def dividing_tags(verdicts: Verdicts) -> list[str]:
    """Returns the tags that divide the questions into a few parts."""
    names = dict.fromkeys(name for one in verdicts for name in one.item.tags)
    most = max(2, min(MAX_VALUES, len(by_question(verdicts)) // 2))
    return [name for name in names if 1 < len(by_value(verdicts, name)) <= most]


def by_every_tag(verdicts: Verdicts) -> list[Table]:
    return [table for tag in dividing_tags(verdicts) for table in by_tag(verdicts, tag)]


def mathverse(verdicts: Verdicts) -> list[Table]:
    """Returns the overall score, which is the mean of five versions; a table of the versions, Text Only
    apart; tables of the five by subject.
    """
    found = by_value(verdicts, "problem_version")
    five = {name: found[name] for name in VERSIONS if name in found}
    apart = {f"{name} (apart)": part for name, part in found.items() if name not in five}
    tables = [grouped("by version", "version", {**five, **apart})]
    if five:
        mean = fmean(map(accuracy, five.values()))
        tables.insert(0, Table("overall score", ("mean of the versions", "score"), [(str(len(five)), mean)]))
    together = [one for part in five.values() for one in part]
    return [*tables, *by_tag(together, "subject"), *by_tag(together, "subfield")]


# We-Math: does a model that solves a composite problem also solve its steps?
# Source: We-Math (Qiao et al. 2024), section 2.3, and its `four_dimensional_metrics.py`.

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


def whole_groups(verdicts: Verdicts) -> list[tuple]:
    """Returns the groups that lack nothing ("2steps_multi" with "2steps_1" and "2steps_2", and so on), each
    as whether the composite problem is right, and whether each of its one-step problems is.
    """
    found = defaultdict(dict)  # (ID, sample) -> key -> right
    for one in verdicts:
        found[one.item.group, one.prediction.sample][one.item.tags["key"]] = one.score >= 0.5
    groups = []
    for steps in found.values():
        multi = next((key for key in steps if key.endswith("_multi")), "")
        if multi and len(steps) == 1 + int(multi[0]):
            groups.append((steps.pop(multi), tuple(steps.values())))
    return groups


def dimensions(groups: Sequence[tuple], strict: bool) -> tuple[float | None, ...]:
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
    more = [table for table in by_every_tag(verdicts) if table.title not in titles]
    often = Counter(one.method for one in verdicts).most_common()
    ways = {way: [one for one in verdicts if one.method == way] for way, _ in often}
    return shown, [grouped("how answers were read", "method", ways), *more, *errors_table(verdicts)]


def overall_table(verdicts: Verdicts) -> Table:
    questions, right, interval, formed, tokens = measures(verdicts)
    whole = [one for one in verdicts if one.prediction.finish_reason != "length"]
    rows = [
        ("questions", questions),
        ("accuracy", right),
        ("95% interval", interval),
        ("answer could be read", fmean(one.method not in UNREAD for one in verdicts)),
        ("cut off at the token limit", (len(verdicts) - len(whole)) / len(verdicts)),
        ("accuracy where not cut off", accuracy(whole) if whole else None),
        ("well-formed (think and answer tags)", formed),
        ("tokens, mean", tokens),
        ("errors, counted as wrong", sum(one.method == "error" for one in verdicts)),
    ]
    if asked := sum(one.judged is not None for one in verdicts):
        both = fmean(one.score if one.judged is None else one.judged for one in verdicts)
        rows += [("asked of the judge", asked), ("accuracy by rules and judge", both)]
    return Table("overall", ("measure", "value"), rows)


def samples_table(verdicts: Verdicts) -> list[Table]:
    """Returns [pass@k (unbiased) for some k], of several samples a question; [] of one."""
    samples = max(one.prediction.sample for one in verdicts) + 1
    right = [sum(one.score >= 1 for one in own) for own in by_question(verdicts).values()]
    sizes = [*(2**power for power in range(10) if 2**power < samples), samples]
    rows = [(f"pass@{k}", fmean(pass_at_k(samples, each, k) for each in right)) for k in sizes]
    return [Table(f"{samples} samples a question", ("measure", "value"), rows)] if samples > 1 else []


def errors_table(verdicts: Verdicts) -> list[Table]:
    """Returns [the first questions that could not be asked, with the reason], or []."""
    reasons = {
        one.item.id: one.prediction.error or one.item.error or "" for one in verdicts if one.method == "error"
    }
    rows = [*reasons.items()][:SHOWN_ERRORS]
    return [Table(f"errors, {len(rows)} of {len(reasons)}", ("question", "reason"), rows)] if rows else []


def markdown(table: Table) -> str:
    return markdown_table([table.columns, *table.rows])


def write_report(folder: Path, title: str, tables: Sequence[Table], settings: Mapping) -> None:
    """Writes report.md and report.json: the same tables, in the second with all digits."""
    flat = {**settings, **settings.get("run", {}), "run": None}
    rows = [(name, str(value)) for name, value in flat.items() if value is not None]
    tables = [*tables, Table("settings", ("setting", "value"), rows)]
    parts = [f"# {title}", *(f"## {table.title}\n\n{markdown(table)}" for table in tables)]
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    plain = [table._asdict() for table in tables]
    write_json(folder / "report.json", {"title": title, "settings": settings, "tables": plain})


def write_verdicts(path: Path, verdicts: Verdicts) -> None:
    """Writes a line for each answer: as it was read, how, and its score."""
    names = ("score", "answer", "method", "well_formed", "judged")
    rows = (
        {"id": one.item.id, "sample": one.prediction.sample, "gold": one.item.answer, "group": one.item.group}
        | {name: getattr(one, name) for name in names}
        for one in verdicts
    )
    write_lines(path, rows)


# The page: images, question, thought, answer, gold and verdict of each item.


def write_page(path: Path, title: str, verdicts: Verdicts, style: Style = "none") -> None:
    """Writes one HTML file that needs no other and no network. If images would make it too large, wrong
    answers keep theirs first.

    Args: style: how the questions were put.
    """
    items = (_item(own, style) for own in by_question(verdicts).values())
    page.write_page(path, title, items, dividing_tags(verdicts)[:MAX_TAGS])


def _item(own: Verdicts, style: Style) -> dict:
    item = own[0].item
    return {
        "id": item.id,
        "question": question_of(item, style),
        "gold": item.answer,
        "images": item.images,
        "tags": {name: values(item, name) for name in item.tags},
        "samples": [_sample(one) for one in own],
    }


def _sample(one: Verdict) -> dict:
    text = one.prediction.text
    thinking, after = split_reply(text)[0], text.rpartition("</think>")[2].strip()
    reply = text if thinking is None else after if "</think>" in text else ""
    return {
        **asdict(one.prediction),
        "text": "",
        "thinking": thinking,
        "reply": reply,
        "status": one.status,
        "answer": one.answer,
        "method": one.method,
        "judged": one.judged,
    }
