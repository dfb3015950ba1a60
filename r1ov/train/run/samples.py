"""What the model writes while it learns, for people to look at: one JSON object a line, and the same as a
page with the pictures.
"""

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from r1ov.common.page import page, picture


@dataclass(frozen=True, kw_only=True)
class Written:
    """One completion. `scores`: each reward by name; reward and advantage only in training."""

    text: str
    scores: dict[str, float | None]
    reward: float | None = None
    advantage: float | None = None


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A question, its gold answer, and the model's completions."""

    question: str
    gold: str | None
    completions: Sequence[Written]
    images: Sequence[Image.Image] = ()


def write_samples(folder: Path, step: int, title: str, samples: Sequence[Shown]) -> None:
    """folder/step-N.jsonl, without the pictures, and folder/step-N.html, which needs no other file."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{step:06d}"
    lines = [json.dumps({**_plain(sample), "step": step}, ensure_ascii=False) for sample in samples]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    body = "\n".join(_section(sample) for sample in samples)
    (folder / f"{name}.html").write_text(page(title, body), encoding="utf-8")


def _plain(sample: Shown) -> dict:
    return {
        "question": sample.question,
        "gold": sample.gold,
        "completions": [
            {name: value for name, value in asdict(one).items() if value is not None}
            for one in sample.completions
        ],
    }


def _section(sample: Shown) -> str:
    pictures = "".join(map(picture, sample.images))
    gold = "" if sample.gold is None else f'<p class="numbers">gold answer: {html.escape(sample.gold)}</p>'
    written = "".join(_completion(one) for one in sample.completions)
    return f"<section>{pictures}<div><p>{html.escape(sample.question)}</p>{gold}{written}</div></section>"


def _completion(one: Written) -> str:
    numbers = [*one.scores.items(), ("reward", one.reward), ("advantage", one.advantage)]
    shown = " &middot; ".join(
        f"{html.escape(name)} {value:.3g}" for name, value in numbers if value is not None
    )
    kind = "right" if one.scores.get("accuracy") == 1 else "wrong"
    return f'<pre class="{kind}">{html.escape(one.text)}</pre><p class="numbers">{shown}</p>'
