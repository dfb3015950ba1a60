"""What the report says and its files: never a number without what it takes to judge it."""

import csv
import io
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from r1ov.common.files import write_json, write_text
from r1ov.common.page import markdown_table
from r1ov.evaluate.benchmarks import Benchmark
from r1ov.evaluate.item import UNREAD, Answered, Answers, Items, by_question
from r1ov.evaluate.metrics import Table, accuracy, by_tag, dividing_tags, guessing, with_interval
from r1ov.evaluate.scoring import squeezed

SHOWN_ERRORS = 20


def tables_of(bench: Benchmark, answered: Answers) -> tuple[list[Table], list[Table]]:
    """Returns the tables to print, and those that only the report has."""
    samples = max(one.prediction.sample for one in answered) + 1
    shown = [overall_table(answered), *([samples_table(answered, samples)] if samples > 1 else [])]
    for metric in bench.metrics:
        shown += by_tag(answered, metric) if isinstance(metric, str) else metric(answered)
    titles = {table.title for table in shown}
    more = [table for tag in dividing_tags(answered) for table in by_tag(answered, tag)]
    more = [table for table in more if table.title not in titles]
    return shown, [methods_table(answered), *more, *errors_table(answered)]


def overall_table(answered: Answers) -> Table:
    tokens = sorted(one.prediction.completion_tokens for one in answered)
    right, low, high = with_interval(answered)
    whole = [one for one in answered if one.prediction.finish_reason != "length"]
    rows: list[tuple[str, float | int | None]] = [
        ("questions", len(by_question(answered))),
        ("accuracy", right),
        ("95% interval, low", low),
        ("95% interval, high", high),
        ("answer could be read", fmean(one.verdict.method not in UNREAD for one in answered)),
        ("cut off at the token limit", (len(answered) - len(whole)) / len(answered)),
        ("accuracy where not cut off", accuracy(whole) if whole else None),
        ("well-formed (think and answer tags)", fmean(one.verdict.well_formed for one in answered)),
        ("tokens, mean", round(fmean(tokens))),
        ("tokens, median", round(statistics.median(tokens))),
        ("tokens, 95th percentile", tokens[-(-95 * len(tokens) // 100) - 1]),
        ("errors, counted as wrong", sum(one.verdict.method == "error" for one in answered)),
    ]
    judged = [one.verdict.score if one.verdict.judged is None else one.verdict.judged for one in answered]
    if asked := sum(one.verdict.judged is not None for one in answered):
        rows += [("asked of the judge", asked), ("accuracy by rules and judge", fmean(judged))]
    return Table("overall", ("measure", "value"), tuple(rows))


def methods_table(answered: Answers) -> Table:
    """Returns how the answers were found in the replies, and how often each way led to a right one."""
    right = defaultdict(list)
    for one in answered:
        right[one.verdict.method].append(one.verdict.score)
    ways = sorted(right.items(), key=lambda way: -len(way[1]))
    rows = tuple((name, len(own), len(own) / len(answered), fmean(own)) for name, own in ways)
    return Table("how answers were read", ("method", "answers", "share", "right"), rows)


def samples_table(answered: Answers, samples: int) -> Table:
    """Returns mean@k, pass@j (unbiased) and maj@k. A missing sample counts as wrong."""
    questions = by_question(answered).values()
    right = [sum(one.verdict.score >= 1 for one in own) for own in questions]
    votes = [majority(list(map(canonical, own)), [one.verdict.score for one in own]) for own in questions]
    sizes = [*(2**power for power in range(10) if 2**power < samples), samples]
    rows = (
        (f"mean@{samples}", sum(one.verdict.score for one in answered) / (samples * len(questions))),
        *((f"pass@{k}", fmean(pass_at_k(samples, count, k) for count in right)) for k in sizes),
        (f"maj@{samples}", fmean(votes)),
    )
    return Table(f"{samples} samples a question", ("measure", "value"), rows)


def pass_at_k(count: int, right: int, k: int) -> float:
    """Returns the chance that one of k samples is right, drawn without replacement from `count` of which
    `right` are.

    Source: Chen et al. 2021 (arXiv 2107.03374) equation 1.
    """
    return 1.0 - math.comb(count - right, k) / math.comb(count, k)


def majority(answers: Sequence[str | None], scores: Sequence[float]) -> float:
    """Returns the score of the most frequent answer, the earlier of equals; None does not vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    return scores[list(answers).index(votes.most_common(1)[0][0])] if votes else 0.0


def canonical(one: Answered) -> str | None:
    """Returns the answer as read, in one spelling, so that equal ones count together."""
    return squeezed(one.verdict.answer) if one.verdict.answer and one.verdict.method not in UNREAD else None


def floors_table(items: Items, floors: Mapping[str, float]) -> Table:
    """Returns the scores that need no model: by these questions' own golds, and as published (per cent)."""
    published = {f"{name}, as published": score / 100 for name, score in floors.items()}
    return Table("without a model", ("floor", "accuracy"), tuple({**guessing(items), **published}.items()))


def published_table(bench: Benchmark, model: str, split: str, accuracy: float) -> Table:
    """Returns ours, then what others report; those come from other prompts, budgets and judges."""
    ours = (model, f"accuracy, {split}", accuracy, "this evaluation, settings below")
    rows = ((one.model, one.metric, one.score / 100, one.source) for one in bench.published)
    return Table("beside published scores", ("model", "metric", "score", "source"), (ours, *rows))


def errors_table(answered: Answers) -> list[Table]:
    """Returns [the first questions that could not be asked, with the reason], or []."""
    reasons = {
        one.item.id: " ".join((one.prediction.error or one.item.error or "").split())
        for one in answered
        if one.verdict.method == "error"
    }
    rows = tuple(reasons.items())[:SHOWN_ERRORS]
    return [Table(f"errors, {len(rows)} of {len(reasons)}", ("question", "reason"), rows)] if rows else []


def markdown(table: Table) -> str:
    """Returns the table in GitHub's Markdown, numbers to the right; `low` and `high` become one column."""
    rows = [list(table.columns), *([_shown(value) for value in row] for row in table.rows)]
    is_text = [any(isinstance(row[at], str) for row in table.rows) for at in range(len(table.columns))]
    aligned = ["---" if text else "---:" for text in is_text]
    if "low" in table.columns:
        at = table.columns.index("low")
        del aligned[at]
        for row in rows:
            row[at : at + 2] = [f"{row[at]} to {row[at + 1]}"]
        rows[0][at] = "95% interval"
    return markdown_table(rows, aligned)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1%}"
    return "" if value is None else str(value)


def write_report(folder: Path, title: str, tables: Sequence[Table], settings: Mapping[str, Any]) -> None:
    """Writes report.md, report.json and report.csv: the same tables, in the last two with all digits."""
    flat = {**settings, **settings.get("run", {}), "run": None}
    rows = tuple((name, str(value)) for name, value in flat.items() if value is not None)
    tables = [*tables, Table("settings", ("setting", "value"), rows)]
    parts = [f"# {title}", *(f"## {table.title}\n\n{markdown(table)}" for table in tables)]
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    plain = [
        {"title": table.title, "rows": [dict(zip(table.columns, row, strict=True)) for row in table.rows]}
        for table in tables
    ]
    write_json(folder / "report.json", {"title": title, "settings": dict(settings), "tables": plain})
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("table", "row", "column", "value"))
    for table in tables:
        for first, *rest in table.rows:
            cells = zip(table.columns[1:], rest, strict=True)
            writer.writerows((table.title, first, column, value) for column, value in cells)
    write_text(folder / "report.csv", file.getvalue())


def write_verdicts(path: Path, answered: Answers) -> None:
    """Writes a line for each answer: as it was read, how, and its score."""
    rows = ({**asdict(one.verdict), "gold": one.item.answer, "group": one.item.group} for one in answered)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
