"""The scores as tables, for people, spreadsheets and programs: never a number without what it takes to judge it."""

import csv
import io
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1ov.evaluate.item import Item, Prediction, Verdict
from r1ov.evaluate.predictions import write_atomically
from r1ov.evaluate.statistics import interval, majority, pass_at_k
from r1ov.evaluate.tables import Table
from r1ov.reward.accuracy import kind_of
from r1ov.reward.choice import read_choice, read_text

UNREAD = ("unparsed", "truncated", "error")  # methods of answers that were not read
MAX_VALUES = 100  # of a tag that still gets a table
SHOWN_ERRORS = 20


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


def tables_of(answered: Sequence[Answered]) -> list[Table]:
    """Everything that holds for any benchmark: the score, how answers were read, how long they are, floors, and a table for each tag."""
    samples = max(one.prediction.sample for one in answered) + 1
    tags = {name: None for one in answered for name in one.item.tags}
    by_tag = [by_tag_table(answered, name) for name in tags]
    several = [samples_table(answered, samples)] if samples > 1 else []
    return [overall_table(answered), *several, methods_table(answered), floors_table(answered), *[table for table in by_tag if table]]


def score_cells(answered: Sequence[Answered]) -> tuple[float, float, float]:
    """Accuracy and its 95% interval, by groups where the benchmark has them; samples of one question are never independent."""
    scores = [one.verdict.score for one in answered]
    low, high = interval(scores, [one.item.group or one.item.id for one in answered])
    return sum(scores) / len(scores), low, high


def overall_table(answered: Sequence[Answered]) -> Table:
    """One line a measure."""
    count, tokens = len(answered), sorted(one.prediction.completion_tokens for one in answered)
    right, low, high = score_cells(answered)
    whole = [one.verdict.score for one in answered if one.prediction.finish_reason == "stop"]
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
        total = sum(one.verdict.score if one.verdict.judged is None else one.verdict.judged for one in answered)
        rows += [("asked of the judge", len(judged)), ("accuracy by rules and judge", total / count)]
    return Table("Overall", ("measure", "value"), tuple(rows))


def by_tag_table(answered: Sequence[Answered], tag: str) -> Table | None:
    """A line for each value of the tag, in the order in which they come, then all; None for a tag with too many values."""
    chosen: dict[str, list[Answered]] = {}
    for one in answered:
        values = one.item.tags.get(tag, ())
        for value in dict.fromkeys([values] if isinstance(values, str) else values):
            chosen.setdefault(value, []).append(one)
    if not chosen or len(chosen) > MAX_VALUES:
        return None
    if tag != "family":  # the playground's stand in their own order
        chosen = {value: chosen[value] for value in sorted(chosen)}
    rows = []
    for value, part in [*chosen.items(), ("all", answered)]:
        formed, tokens = (sum(numbers) / len(part) for numbers in zip(*map(_form_and_tokens, part), strict=True))
        rows.append((value, len(part), *score_cells(part), formed, round(tokens)))
    return Table(f"By {tag}", (tag, "questions", "right", "low", "high", "well-formed", "tokens"), tuple(rows))


def _form_and_tokens(one: Answered) -> tuple[float, int]:
    return one.verdict.well_formed, one.prediction.completion_tokens


def methods_table(answered: Sequence[Answered]) -> Table:
    """How the answers were found in the replies, and how often each way led to a right one."""
    counts = Counter(one.verdict.method for one in answered)
    scores = {method: sum(one.verdict.score for one in answered if one.verdict.method == method) for method in counts}
    rows = [(method, count, count / len(answered), scores[method] / count) for method, count in counts.most_common()]
    return Table("How answers were read", ("method", "answers", "share", "right"), tuple(rows))


def samples_table(answered: Sequence[Answered], samples: int) -> Table:
    """mean@k, pass@j (unbiased) and maj@k. A question with fewer samples counts those it lacks as wrong."""
    of_item: dict[str, list[Answered]] = {}
    for one in answered:
        of_item.setdefault(one.item.id, []).append(one)
    right = [sum(one.verdict.score >= 1 for one in own) for own in of_item.values()]
    sizes = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if k < samples] + [samples]
    rows = [(f"mean@{samples}", sum(one.verdict.score for one in answered) / (samples * len(of_item)))]
    rows += [(f"pass@{k}", sum(pass_at_k(samples, c, k) for c in right) / len(right)) for k in sizes]
    votes = [majority([canonical(one) for one in own], [one.verdict.score for one in own]) for own in of_item.values()]
    return Table(f"{samples} samples a question", ("measure", "value"), (*rows, (f"maj@{samples}", sum(votes) / len(votes))))


def canonical(one: Answered) -> str | None:
    """The answer that was read, so that equal ones are spelled alike: the letter of a choice, else the text without case and spaces."""
    item, answer = one.item, one.verdict.answer
    if answer is None or one.verdict.method in UNREAD:
        return None
    if (item.kind or kind_of(item.answer)) == "mcq":
        return read_choice(answer, item.choices or (), item.num_choices, lambda a, b: a == b) or answer
    return "".join((read_text(answer) or answer).split())


def floors_table(answered: Sequence[Answered]) -> Table:
    """What needs no model: a guess among the options, and for each kind of question the gold that is most common."""
    items = list({one.item.id: one.item for one in answered}.values())
    guess, golds = 0.0, {}
    for item in items:
        kind = item.kind or kind_of(item.answer)
        options = len(item.choices or ()) or item.num_choices or 0
        guess += 1 / options if kind == "mcq" and options else 0.5 if kind == "yes_no" else 0.0
        gold = item.answer.strip()
        if item.choices and gold in item.choices:
            gold = chr(ord("A") + list(item.choices).index(gold))
        golds.setdefault((kind, options), Counter())[gold] += 1
    common = sum(counter.most_common(1)[0][1] for counter in golds.values())
    rows = (("guess among the options", guess / len(items)), ("the most common answer of each kind", common / len(items)))
    return Table("Without a model", ("floor", "accuracy"), rows)


def share(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def errors_table(answered: Sequence[Answered]) -> Table | None:
    bad = [one for one in answered if one.verdict.method == "error"]
    rows = [(one.item.id, " ".join((one.prediction.error or one.item.error or "").split())) for one in bad[:SHOWN_ERRORS]]
    return Table(f"Errors, {len(rows)} of {len(bad)}", ("question", "reason"), tuple(rows)) if bad else None


def settings_table(settings: Mapping[str, Any]) -> Table:
    flat = {**settings, **settings.get("run", {})}
    rows = [
        (name, value if isinstance(value, str | int) else str(value)) for name, value in flat.items() if name != "run" and value is not None
    ]
    return Table("Settings", ("setting", "value"), tuple(rows))


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
    if "low" in columns:
        at = columns.index("low")
        columns[at : at + 2] = ["95% interval"]
        rows = [[*row[:at], f"{row[at]} to {row[at + 1]}", *row[at + 2 :]] for row in rows]
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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
            writer.writerows((table.title, row[0], column, value) for column, value in zip(table.columns[1:], row[1:], strict=True))
    write_atomically(folder / "report.md", text)
    write_atomically(folder / "report.json", json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    write_atomically(folder / "report.csv", file.getvalue())


def _plain(table: Table) -> dict[str, Any]:
    return {"title": table.title, "rows": [dict(zip(table.columns, row, strict=True)) for row in table.rows]}
