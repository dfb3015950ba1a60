"""Questions from the playground's held-out splits, answered greedily and scored by rule, family by family."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path

from r1ov.data.playground import FAMILIES, Sample, messages, sample
from r1ov.data.processor import Processor
from r1ov.engine.generate import generate
from r1ov.errors import UserError
from r1ov.model.model import Qwen2_5_VL
from r1ov.reward import accuracy_reward, format_reward


@dataclass(frozen=True, kw_only=True)
class Row:
    """One answered question; a line of the predictions file begins with `id` and `text`."""

    id: str
    text: str
    family: str
    question: str
    gold: str
    kind: str
    right: float
    well_formed: float
    completion_tokens: int


def answer(
    model: Qwen2_5_VL, processor: Processor, split: str, limit: int, batch_size: int, max_new_tokens: int, swap: bool
) -> Iterator[Row]:
    """Rows 0 .. limit-1 of the split, in order.

    `swap` shows each question with the picture of the family's next question: a control that must fall to guessing, because
    a model that still scores then has not looked.
    """
    families = len(FAMILIES)
    for begin in range(0, limit, batch_size):
        samples = [sample(split, index) for index in range(begin, min(begin + batch_size, limit))]
        pictures = [sample(split, index + families).image if swap else one.image for index, one in enumerate(samples, begin)]
        prompts = [with_picture(one, picture) for one, picture in zip(samples, pictures, strict=True)]
        done = generate(model, processor, prompts, max_new_tokens=max_new_tokens, temperature=0.0, repetition_penalty=1.0)
        for index, (one, completion) in enumerate(zip(samples, done, strict=True), begin):
            yield Row(
                id=f"{split}/{index}",
                text=completion.text,
                family=one.family,
                question=one.question,
                gold=one.answer,
                kind=one.kind,
                right=accuracy_reward(completion.text, one.answer, one.kind),
                well_formed=format_reward(completion.text),
                completion_tokens=completion.completion_tokens,
            )


def rescore(path: Path) -> list[Row]:
    """Rows scored anew from a file of `id` ("test/12") and `text`; no model is run."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not lines:
        raise UserError(f"{path}: there are no predictions in it")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            written = json.loads(line)
            split, _, index = written["id"].partition("/")
            one, text, tokens = sample(split, int(index)), str(written["text"]), int(written.get("completion_tokens", 0))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f'{path}, line {number}: expected an object such as {{"id": "test/0", "text": "<think>..."}}') from None
        rows.append(
            Row(
                id=written["id"],
                text=text,
                family=one.family,
                question=one.question,
                gold=one.answer,
                kind=one.kind,
                right=accuracy_reward(text, one.answer, one.kind),
                well_formed=format_reward(text),
                completion_tokens=tokens,
            )
        )
    return rows


def with_picture(one: Sample, picture) -> list[dict]:
    """The user's turn of a sample, with this picture."""
    user = messages(one)[0]
    return [{**user, "content": [{"type": "image", "image": picture}, *user["content"][1:]]}]


def wilson(right: float, count: int) -> tuple[float, float]:
    """The 95% confidence interval of a share, by Wilson's score.

    Example: (90, 100) -> (0.826, 0.945)
    """
    z, share = 1.96, right / count
    middle, spread = share + z * z / (2 * count), z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - spread) / (1 + z * z / count), (middle + spread) / (1 + z * z / count)


def table(rows: list[Row]) -> str:
    """The scores as a Markdown table: a line a family, then all of them."""
    lines = ["| family | questions | right | 95% interval | well-formed | tokens |", "|---|---:|---:|---:|---:|---:|"]
    for family in [*FAMILIES, "all"]:
        chosen = [row for row in rows if family in (row.family, "all")]
        if not chosen:
            continue
        right, count = sum(row.right for row in chosen), len(chosen)
        low, high = wilson(right, count)
        formed, tokens = (sum(getattr(row, name) for row in chosen) / count for name in ("well_formed", "completion_tokens"))
        lines.append(f"| {family} | {count} | {right / count:.1%} | {low:.1%} to {high:.1%} | {formed:.1%} | {tokens:.0f} |")
    return "\n".join(lines)


def write_row(file, row: Row) -> None:
    file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
    file.flush()
