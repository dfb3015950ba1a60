"""What the model writes while it learns, for people to look at: JSON lines, and a page with the images."""

import html
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from r1ov.common.page import page, picture
from r1ov.data.messages import Messages


def question_of(prompt: Messages) -> str:
    """The texts of a prompt, one below the other."""
    contents = [message["content"] for message in prompt]
    parts = chain(*([{"text": one}] if isinstance(one, str) else one for one in contents))
    return "\n".join(part["text"] for part in parts if "text" in part)


def write_samples(
    folder: Path, kind: str, step: int, title: str, samples: Sequence[Mapping[str, Any]]
) -> None:
    """Writes folder/KIND-N.jsonl, without the images, and folder/KIND-N.html, which needs no other file.

    Args: kind: step or eval. samples: question, gold, images, and completions: each its text, its scores by
        name, and in training its reward (None if it has none) and advantage.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{kind}-{step:06d}"
    rows = [{**sample, "step": step} for sample in samples]
    lines = [
        json.dumps({key: value for key, value in row.items() if key != "images"}, ensure_ascii=False)
        for row in rows
    ]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    body = "\n".join(_section(sample) for sample in samples)
    (folder / f"{name}.html").write_text(page(title, body), encoding="utf-8")


def _section(sample: Mapping[str, Any]) -> str:
    images = "".join(map(picture, sample["images"]))
    gold = (
        "" if sample["gold"] is None else f'<p class="numbers">gold answer: {html.escape(sample["gold"])}</p>'
    )
    written = "".join(map(_completion, sample["completions"]))
    return f"<section>{images}<div><p>{html.escape(sample['question'])}</p>{gold}{written}</div></section>"


def _completion(completion: Mapping[str, Any]) -> str:
    numbers = completion["scores"] | {name: completion.get(name) for name in ("reward", "advantage")}
    shown = [f"{html.escape(name)} {value:.3g}" for name, value in numbers.items() if value is not None]
    kind = "right" if completion["scores"].get("accuracy") == 1 else "wrong"
    text = html.escape(completion["text"])
    return f'<pre class="{kind}">{text}</pre><p class="numbers">{" &middot; ".join(shown)}</p>'
