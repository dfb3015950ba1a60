"""Two evaluations of the same questions side by side: is one better, or is it chance?"""

from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from r1ov.common.files import one_line
from r1ov.common.page import markdown_table
from r1ov.errors import UserError
from r1ov.evaluate.item import read_lines
from r1ov.evaluate.metrics import paired


class Scored(NamedTuple):
    """A question: the mean score of its samples, its cluster, its gold, and its first answer."""

    score: float
    group: str
    gold: str
    answer: str


def read_verdicts(name: str) -> dict[str, Scored]:
    """Returns the questions by id. Raises UserError that names the line."""
    path = Path(name) / "verdicts.jsonl" if Path(name).is_dir() else Path(name)
    expected = "an object with id, score and gold, as `python -m r1ov.evaluate` writes it into --out"
    found = defaultdict(list)  # id -> its samples
    for id, one in read_lines(path, _scored, expected):
        found[id].append(one)
    return {id: own[0]._replace(score=fmean(one.score for one in own)) for id, own in found.items()}


def _scored(row: Any) -> tuple[str, Scored]:
    answer, group = str(row.get("answer") or row.get("method")), row.get("group") or row["id"]
    return row["id"], Scored(float(row["score"]), group, str(row["gold"]), answer)


def compare(config: Any) -> str:
    """Returns the comparison as Markdown. Raises UserError if the questions are not the same.

    Args: config: the fields of `__main__`'s CompareConfig.
    """
    first, second = read_verdicts(config.first), read_verdicts(config.second)
    pairs = {id: (one, second[id]) for id, one in first.items() if id in second}
    missing, added = len(first) - len(pairs), len(second) - len(pairs)
    if (missing or added) and not config.common:
        raise UserError(
            f"the questions differ: {missing} are only in {config.first}, {added} only in {config.second}, "
            f"{len(pairs)} in both; --common compares those"
        )
    if not pairs:
        raise UserError(f"{config.first} and {config.second} have no question in common")
    for id, (a, b) in pairs.items():
        if a.gold != b.gold:
            raise UserError(f"question {id} has gold {a.gold!r} in one and {b.gold!r} in the other")
    one, two = ([side.score for side in sides] for sides in zip(*pairs.values(), strict=True))
    result = paired(one, two, [a.group for a, _ in pairs.values()])
    rows = [
        ("measure", "value"),
        ("questions", len(pairs)),
        (config.first, fmean(one)),
        (config.second, fmean(two)),
        ("difference", f"{100 * result.difference:+.1f} points"),
        ("95% interval of it", f"{100 * result.low:+.1f} to {100 * result.high:+.1f} points"),
        ("only the second right, or righter", result.better),
        ("only the first", result.worse),
        ("McNemar's exact p", f"{result.p_value:.3g}"),
    ]
    parts = [markdown_table(rows)]
    if missing or added:
        parts.append(
            f"Only the questions that both have: {missing} of the first's and {added} of the second's are "
            "left out."
        )
    changed = [
        (*(one_line(text)[:60] for text in (id, a.gold, a.answer, b.answer)), f"{b.score - a.score:+.2g}")
        for id, (a, b) in pairs.items()
        if a.score != b.score
    ]
    if changed:
        columns, shown = ("question", "gold", "first", "second", "score"), changed[: config.limit]
        parts += [f"{len(changed)} questions changed:", markdown_table([columns, *shown])]
        parts += [f"... and {len(changed) - len(shown)} more"] * (len(changed) > len(shown))
    return "\n\n".join(parts)
