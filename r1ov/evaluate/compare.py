"""Two evaluations of the same questions side by side: is one better, or is it chance?"""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from r1ov.common.files import write_text
from r1ov.errors import UserError
from r1ov.evaluate.item import Answers
from r1ov.evaluate.predictions import read_lines
from r1ov.evaluate.statistics import paired
from r1ov.evaluate.tables import Table, markdown

VERDICTS = "verdicts.jsonl"


class Scored(NamedTuple):
    """A question: the mean score of its samples, its cluster, and its most frequent answer."""

    score: float
    group: str
    gold: str
    answer: str


def write_verdicts(path: Path, answered: Answers) -> None:
    """Writes a line for each answer: as it was read, how, and its score."""
    rows = ({**asdict(one.verdict), "gold": one.item.answer, "group": one.item.group} for one in answered)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_verdicts(name: str) -> dict[str, Scored]:
    """Returns the questions by id. Raises UserError that names the line."""
    path = Path(name) / VERDICTS if Path(name).is_dir() else Path(name)
    expected = "an object with id, score and gold, as `python -m r1ov.evaluate` writes it into --out"
    found: dict[str, list[Scored]] = {}
    for id, one in read_lines(path, _scored, expected):
        found.setdefault(id, []).append(one)
    if not found:
        raise UserError(f"{path}: there are no verdicts in it")
    return {
        id: own[0]._replace(
            score=sum(one.score for one in own) / len(own),
            answer=Counter(one.answer for one in own).most_common(1)[0][0],
        )
        for id, own in found.items()
    }


def _scored(row: Any) -> tuple[str, Scored]:
    answer = str(row.get("answer") or row.get("method"))
    group = row.get("group") or row["id"]
    return row["id"], Scored(float(row["score"]), group, str(row["gold"]), answer)


def compare(config: Any) -> str:
    """Returns the comparison as Markdown. Raises UserError if the questions are not the same.

    Args: config: the fields of `__main__`'s CompareConfig.
    """
    first, second = read_verdicts(config.first), read_verdicts(config.second)
    both = [id for id in first if id in second]
    missing, added = len(first) - len(both), len(second) - len(both)
    if (missing or added) and not config.common:
        raise UserError(
            f"the questions differ: {missing} are only in {config.first}, {added} only in {config.second}, "
            f"{len(both)} in both; --common compares those"
        )
    if not both:
        raise UserError(f"{config.first} and {config.second} have no question in common")
    pairs = {id: (first[id], second[id]) for id in both}
    for id, (a, b) in pairs.items():
        if a.gold != b.gold:
            raise UserError(f"question {id} has gold {a.gold!r} in one and {b.gold!r} in the other")
    one, two = ([side.score for side in sides] for sides in zip(*pairs.values(), strict=True))
    result = paired(one, two, [a.group for a, _ in pairs.values()])
    low, high = f"{100 * result.low:+.1f}", f"{100 * result.high:+.1f}"
    rows = (
        ("questions", result.count),
        (config.first, sum(one) / len(one)),
        (config.second, sum(two) / len(two)),
        ("difference", f"{100 * result.difference:+.1f} points"),
        ("95% interval of it, bootstrap over groups", f"{low} to {high} points"),
        ("only the second right, or righter", result.better),
        ("only the first", result.worse),
        ("McNemar's exact p", f"{result.p_value:.3g}"),
    )
    parts = [markdown(Table("", ("measure", "value"), rows))]
    if missing or added:
        parts.append(
            "Only the questions that both have: "
            f"{missing} of the first's and {added} of the second's are left out."
        )
    changed = [
        (*map(_short, (id, a.gold, a.answer, b.answer)), f"{b.score - a.score:+.2g}")
        for id, (a, b) in pairs.items()
        if a.score != b.score
    ]
    if changed:
        shown = tuple(changed[: config.limit])
        columns = ("question", "gold", "first", "second", "score")
        parts += [f"{len(changed)} questions changed:", markdown(Table("", columns, shown))]
        parts += [f"... and {len(changed) - len(shown)} more"] * (len(changed) > len(shown))
    return "\n\n".join(parts)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."
