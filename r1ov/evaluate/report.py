"""What the report counts: never a number without what it takes to judge it."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from r1ov.evaluate.benchmarks import Benchmark
from r1ov.evaluate.item import UNREAD, Answered, Answers, Items, by_question
from r1ov.evaluate.metrics import guessing, values
from r1ov.evaluate.scoring import squeezed
from r1ov.evaluate.statistics import interval, majority, pass_at_k
from r1ov.evaluate.tables import Table

MAX_VALUES = 100  # a tag with more gets no table
SHOWN_ERRORS = 20
FAMILY = "family"  # the playground's tag


def tables_of(answered: Answers, official: Sequence[Table]) -> tuple[list[Table], list[Table]]:
    """Returns the tables to print, and those that only the report has.

    Args: official: the benchmark's own metrics; ours, with intervals, replace those by a tag.
    """
    samples = max(one.prediction.sample for one in answered) + 1
    tags = dict.fromkeys(name for one in answered for name in one.item.tags)
    by_tag = {table.title: table for name in tags if (table := by_tag_table(answered, name))}
    shown = [overall_table(answered), *([samples_table(answered, samples)] if samples > 1 else [])]
    shown += [by_tag.pop(table.title, table) for table in official]
    return shown, [methods_table(answered), *by_tag.values(), *errors_table(answered)]


def score_cells(answered: Answers) -> tuple[float, float, float]:
    """Returns accuracy and its 95% interval, clustered by the benchmark's groups; samples of one question are
    never independent.
    """
    scores = [one.verdict.score for one in answered]
    return fmean(scores), *interval(scores, [one.item.group or one.item.id for one in answered])


def overall_table(answered: Answers) -> Table:
    tokens = sorted(one.prediction.completion_tokens for one in answered)
    right, low, high = score_cells(answered)
    whole = [one.verdict.score for one in answered if one.prediction.finish_reason != "length"]
    rows: list[tuple[str, float | int | None]] = [
        ("questions", len({one.item.id for one in answered})),
        ("accuracy", right),
        ("95% interval, low", low),
        ("95% interval, high", high),
        ("answer could be read", fmean(one.verdict.method not in UNREAD for one in answered)),
        ("cut off at the token limit", fmean(one.prediction.finish_reason == "length" for one in answered)),
        ("accuracy where not cut off", fmean(whole) if whole else None),
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


def by_tag_table(answered: Answers, tag: str) -> Table | None:
    """Returns a line for each value of the tag, then one for all; None for one value, or too many."""
    parts: dict[str, list[Answered]] = defaultdict(list)
    for one in answered:
        for value in dict.fromkeys(values(one.item, tag)):
            parts[value].append(one)
    if tag != FAMILY:  # the playground's families keep their own order, and are shown if there is only one
        if not 1 < len(parts) <= MAX_VALUES:
            return None
        parts = dict(sorted(parts.items()))
    rows = [
        (
            value,
            len({one.item.id for one in part}),
            *score_cells(part),
            fmean(one.verdict.well_formed for one in part),
            round(fmean(one.prediction.completion_tokens for one in part)),
        )
        for value, part in [*parts.items(), ("all", answered)]
    ]
    name = tag.replace("_", " ")
    columns = (name, "questions", "right", "low", "high", "well-formed", "tokens")
    return Table(f"by {name}", columns, tuple(rows))


def methods_table(answered: Answers) -> Table:
    """Returns how the answers were found in the replies, and how often each way led to a right one."""
    scores: dict[str, list[float]] = defaultdict(list)
    for one in answered:
        scores[one.verdict.method].append(one.verdict.score)
    rows = [
        (method, count, count / len(answered), fmean(scores[method]))
        for method, count in Counter(one.verdict.method for one in answered).most_common()
    ]
    return Table("how answers were read", ("method", "answers", "share", "right"), tuple(rows))


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


def canonical(one: Answered) -> str | None:
    """Returns the answer as read, in one spelling, so that equal ones count together."""
    return squeezed(one.verdict.answer) if one.verdict.answer and one.verdict.method not in UNREAD else None


def floors_table(items: Items, floors: Mapping[str, float]) -> Table:
    """Returns the scores that need no model: by these questions' own golds, and as published (per cent)."""
    published = {f"{name}, as published": score / 100 for name, score in floors.items()}
    rows = {**guessing(items), **published}.items()
    return Table("without a model", ("floor", "accuracy"), tuple(rows))


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
    title = f"errors, {len(rows)} of {len(reasons)}"
    return [Table(title, ("question", "reason"), rows)] if rows else []
