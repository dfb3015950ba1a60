"""The scores as tables, for people, spreadsheets and programs: never a number without what it takes to judge
it.
"""

import csv
import io
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1ov.evaluate.benchmarks import Benchmark
from r1ov.evaluate.item import Item, Prediction, Verdict
from r1ov.evaluate.metrics import guessing, values
from r1ov.evaluate.predictions import write_atomically
from r1ov.evaluate.scoring import squeezed
from r1ov.evaluate.statistics import interval, majority, pass_at_k
from r1ov.evaluate.tables import Table

UNREAD = ("unparsed", "truncated", "error")  # methods of answers that were not read
MAX_VALUES = 100  # of a tag that still gets a table
SHOWN_ERRORS = 20
FAMILY = "family"  # the playground's tag


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A question, one of its answers, and what that is worth."""

    item: Item
    prediction: Prediction
    verdict: Verdict

    @property
    def status(self) -> str:
        """right, wrong, or why there is no answer: unparsed, truncated, error."""
        if self.verdict.method in UNREAD:
            return self.verdict.method
        return "right" if self.verdict.score >= 1 else "wrong"


def tables_of(answered: Sequence[Answered], official: Sequence[Table]) -> tuple[list[Table], list[Table]]:
    """The tables to be printed, and those that stand in the report beside them.

    Args: official: the benchmark's own metrics; of those by a tag, ours takes the place, which has intervals.
    """
    samples = max(one.prediction.sample for one in answered) + 1
    tags = {name: None for one in answered for name in one.item.tags}
    by_tag = {table.title: table for name in tags if (table := by_tag_table(answered, name))}
    shown = [overall_table(answered), *([samples_table(answered, samples)] if samples > 1 else [])]
    shown += [by_tag.pop(table.title, table) for table in official]
    errors = errors_table(answered)
    return shown, [methods_table(answered), *by_tag.values(), *([errors] if errors else [])]


def score_cells(answered: Sequence[Answered]) -> tuple[float, float, float]:
    """Accuracy and its 95% interval, by groups where the benchmark has them; samples of one question are
    never independent.
    """
    scores = [one.verdict.score for one in answered]
    low, high = interval(scores, [one.item.group or one.item.id for one in answered])
    return sum(scores) / len(scores), low, high


def overall_table(answered: Sequence[Answered]) -> Table:
    """One line a measure."""
    count, tokens = len(answered), sorted(one.prediction.completion_tokens for one in answered)
    right, low, high = score_cells(answered)
    whole = [one.verdict.score for one in answered if one.prediction.finish_reason != "length"]
    rows: list[tuple[str, float | int | None]] = [
        ("questions", len({one.item.id for one in answered})),
        ("accuracy", right),
        ("95% interval, low", low),
        ("95% interval, high", high),
        ("answer could be read", share(one.verdict.method not in UNREAD for one in answered)),
        ("cut off at the token limit", share(one.prediction.finish_reason == "length" for one in answered)),
        ("accuracy where not cut off", sum(whole) / len(whole) if whole else None),
        ("well-formed (think and answer tags)", sum(one.verdict.well_formed for one in answered) / count),
        ("tokens, mean", round(sum(tokens) / count)),
        ("tokens, median", round(statistics.median(tokens))),
        ("tokens, 95th percentile", tokens[-(-95 * count // 100) - 1]),
        ("errors, counted as wrong", sum(one.verdict.method == "error" for one in answered)),
    ]
    judged = [one for one in answered if one.verdict.judged is not None]
    if judged:
        total = sum(
            one.verdict.score if one.verdict.judged is None else one.verdict.judged for one in answered
        )
        rows += [("asked of the judge", len(judged)), ("accuracy by rules and judge", total / count)]
    return Table("overall", ("measure", "value"), tuple(rows))


def by_tag_table(answered: Sequence[Answered], tag: str) -> Table | None:
    """A line for each value of the tag, in the order in which they come, then all; None for a tag with one
    value or too many.
    """
    chosen: dict[str, list[Answered]] = {}
    for one in answered:
        for value in dict.fromkeys(values(one.item, tag)):
            chosen.setdefault(value, []).append(one)
    if not 1 < len(chosen) <= MAX_VALUES and tag != FAMILY:
        return None
    if tag != FAMILY:  # the playground's stand in their own order
        chosen = {value: chosen[value] for value in sorted(chosen)}
    rows = []
    for value, part in [*chosen.items(), ("all", answered)]:
        formed, tokens = (
            sum(numbers) / len(part) for numbers in zip(*map(_form_and_tokens, part), strict=True)
        )
        rows.append((value, len({one.item.id for one in part}), *score_cells(part), formed, round(tokens)))
    return Table(
        f"by {tag.replace('_', ' ')}",
        (tag.replace("_", " "), "questions", "right", "low", "high", "well-formed", "tokens"),
        tuple(rows),
    )


def _form_and_tokens(one: Answered) -> tuple[float, int]:
    return one.verdict.well_formed, one.prediction.completion_tokens


def methods_table(answered: Sequence[Answered]) -> Table:
    """How the answers were found in the replies, and how often each way led to a right one."""
    counts = Counter(one.verdict.method for one in answered)
    scores = {
        method: sum(one.verdict.score for one in answered if one.verdict.method == method)
        for method in counts
    }
    rows = [
        (method, count, count / len(answered), scores[method] / count)
        for method, count in counts.most_common()
    ]
    return Table("how answers were read", ("method", "answers", "share", "right"), tuple(rows))


def samples_table(answered: Sequence[Answered], samples: int) -> Table:
    """mean@k, pass@j (unbiased) and maj@k. A question with fewer samples counts those it lacks as wrong."""
    of_item: dict[str, list[Answered]] = {}
    for one in answered:
        of_item.setdefault(one.item.id, []).append(one)
    right = [sum(one.verdict.score >= 1 for one in own) for own in of_item.values()]
    sizes = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if k < samples] + [samples]
    rows = [(f"mean@{samples}", sum(one.verdict.score for one in answered) / (samples * len(of_item)))]
    rows += [(f"pass@{k}", sum(pass_at_k(samples, c, k) for c in right) / len(right)) for k in sizes]
    votes = [
        majority([canonical(one) for one in own], [one.verdict.score for one in own])
        for own in of_item.values()
    ]
    return Table(
        f"{samples} samples a question",
        ("measure", "value"),
        (*rows, (f"maj@{samples}", sum(votes) / len(votes))),
    )


def canonical(one: Answered) -> str | None:
    """The answer that was read, so that those which only look different are spelled alike."""
    return squeezed(one.verdict.answer) if one.verdict.answer and one.verdict.method not in UNREAD else None


def floors_table(items: Sequence[Item], bench: Benchmark | None) -> Table:
    """What needs no model, by these questions' own golds and as published."""
    rows = [
        *guessing(items).items(),
        *((f"{name}, as published", score / 100) for name, score in (bench.floors if bench else {}).items()),
    ]
    return Table("without a model", ("floor", "accuracy"), tuple(rows))


def published_table(bench: Benchmark, model: str, split: str, accuracy: float) -> Table:
    """Ours, then what others report; those come from other prompts, budgets and judges."""
    ours = (model, f"accuracy, {split}", accuracy, "this evaluation, settings below")
    rows = [(one.model, one.metric, one.score / 100, one.source) for one in bench.published]
    return Table("beside published scores", ("model", "metric", "score", "source"), (ours, *rows))


def share(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def errors_table(answered: Sequence[Answered]) -> Table | None:
    reasons = {
        one.item.id: one.prediction.error or one.item.error or ""
        for one in answered
        if one.verdict.method == "error"
    }
    rows = tuple((id, " ".join(reason.split())) for id, reason in list(reasons.items())[:SHOWN_ERRORS])
    return Table(f"errors, {len(rows)} of {len(reasons)}", ("question", "reason"), rows) if rows else None


def settings_table(settings: Mapping[str, Any]) -> Table:
    flat = {**settings, **settings.get("run", {})}
    rows = [
        (name, value if isinstance(value, str | int) else str(value))
        for name, value in flat.items()
        if name != "run" and value is not None
    ]
    return Table("settings", ("setting", "value"), tuple(rows))


def cell(value: str | float | int | None) -> str:
    """Shares as percentages, counts with separators, nothing that would break a table."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.1%}"
    if isinstance(value, int):
        return str(value)
    return value.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown; columns `low` and `high` become one."""
    columns, rows = list(table.columns), [[cell(value) for value in row] for row in table.rows]
    aligned = [
        "---" if any(isinstance(row[at], str) for row in table.rows) else "---:" for at in range(len(columns))
    ]
    if "low" in columns:
        at = columns.index("low")
        columns[at : at + 2], aligned[at : at + 2] = ["95% interval"], ["---:"]
        rows = [[*row[:at], f"{row[at]} to {row[at + 1]}", *row[at + 2 :]] for row in rows]
    head, *lines = ["| " + " | ".join(line) + " |" for line in (columns, *rows)]
    return "\n".join([head, f"|{'|'.join(aligned)}|", *lines])


def write_report(folder: Path, title: str, tables: Sequence[Table], settings: Mapping[str, Any]) -> None:
    """report.md, report.json and report.csv: the same tables, in the last two with all digits."""
    tables = [*tables, settings_table(settings)]
    text = f"# {title}\n\n" + "\n\n".join(f"## {table.title}\n\n{markdown(table)}" for table in tables) + "\n"
    data = {"title": title, "settings": dict(settings), "tables": [_plain(table) for table in tables]}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("table", "row", "column", "value"))
    for table in tables:
        for row in table.rows:
            writer.writerows(
                (table.title, row[0], column, value)
                for column, value in zip(table.columns[1:], row[1:], strict=True)
            )
    write_atomically(folder / "report.md", text)
    write_atomically(folder / "report.json", json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    write_atomically(folder / "report.csv", file.getvalue())


def _plain(table: Table) -> dict[str, Any]:
    return {"title": table.title, "rows": [dict(zip(table.columns, row, strict=True)) for row in table.rows]}
