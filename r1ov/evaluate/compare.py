"""Two evaluations of the same questions side by side: is one better, or is it chance?"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1ov.errors import UserError
from r1ov.evaluate.report import Answered, markdown
from r1ov.evaluate.statistics import paired
from r1ov.evaluate.tables import Table

VERDICTS = "verdicts.jsonl"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a comparison needs of a question: the mean score of its samples, its cluster, and what was
    answered.
    """

    score: float
    group: str
    gold: str
    answer: str


def write_verdicts(path: Path, answered: Sequence[Answered]) -> None:
    """A line for each answer: what was read, how, and what it is worth."""
    rows = (
        {
            "id": one.item.id,
            "sample": one.prediction.sample,
            "score": one.verdict.score,
            "judged": one.verdict.judged,
            "method": one.verdict.method,
            "answer": one.verdict.answer,
            "gold": one.item.answer,
            "group": one.item.group,
        }
        for one in answered
    )
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        encoding="utf-8",
        errors="backslashreplace",
    )


def read_verdicts(name: str) -> dict[str, Scored]:
    """By id. Raises UserError that names the line."""
    path = Path(name) / VERDICTS if Path(name).is_dir() else Path(name)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path}: cannot be read ({reason}); `python -m r1ov.evaluate` writes it into --out, also with --predictions"
        ) from None
    found: dict[str, list[dict]] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
                found.setdefault(row["id"], []).append(
                    {**row, "score": float(row["score"]), "gold": str(row["gold"])}
                )
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{path}, line {number}: expected an object with id, score and gold, as `python -m r1ov.evaluate` writes it"
                ) from None
    if not found:
        raise UserError(f"{path}: there are no verdicts in it")
    return {
        id: Scored(
            score=sum(row["score"] for row in rows) / len(rows),
            group=rows[0].get("group") or id,
            gold=rows[0]["gold"],
            answer=Counter(str(row.get("answer") or row.get("method")) for row in rows).most_common(1)[0][0],
        )
        for id, rows in found.items()
    }


def compare(config: Any) -> str:
    """The comparison as Markdown. Raises UserError where the questions are not the same.

    Args: config: the fields of `__main__`'s CompareConfig.
    """
    first, second = read_verdicts(config.first), read_verdicts(config.second)
    both = [id for id in first if id in second]
    missing, added = len(first) - len(both), len(second) - len(both)
    if (missing or added) and not config.common:
        raise UserError(
            f"the questions differ: {missing} are only in {config.first}, {added} only in {config.second}, {len(both)} in both; "
            "--common compares those"
        )
    if not both:
        raise UserError(f"{config.first} and {config.second} have no question in common")
    if other := [id for id in both if first[id].gold != second[id].gold]:
        raise UserError(
            f"question {other[0]} has gold {first[other[0]].gold!r} in one and {second[other[0]].gold!r} in the other"
        )
    one, two = ([scored[id] for id in both] for scored in (first, second))
    result = paired([each.score for each in one], [each.score for each in two], [each.group for each in one])
    means = [sum(each.score for each in side) / len(both) for side in (one, two)]
    rows = (
        ("questions", result.count),
        (config.first, means[0]),
        (config.second, means[1]),
        ("difference", f"{100 * result.difference:+.1f} points"),
        (
            "95% interval of it, bootstrap over groups",
            f"{100 * result.low:+.1f} to {100 * result.high:+.1f} points",
        ),
        ("only the second right, or righter", result.better),
        ("only the first", result.worse),
        ("McNemar's exact p", f"{result.p_value:.3g}"),
    )
    text = markdown(Table("", ("measure", "value"), rows))
    if missing or added:
        text += f"\n\nOnly the questions that both have: {missing} of the first's and {added} of the second's are left out."
    changed = [
        (id, a.gold, a.answer, b.answer, b.score - a.score)
        for id, a, b in zip(both, one, two, strict=True)
        if a.score != b.score
    ]
    if changed:
        shown = tuple((*map(_short, row[:-1]), f"{row[-1]:+.2g}") for row in changed[: config.limit])
        text += f"\n\n{len(changed)} questions changed:\n\n"
        text += markdown(Table("", ("question", "gold", "first", "second", "score"), shown))
        text += f"\n\n... and {len(changed) - len(shown)} more" * (len(changed) > len(shown))
    return text


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."
