"""What the model writes while it learns, for people to look at: JSON lines, and a page with the images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from r1ov.common.files import write_lines
from r1ov.common.page import write_page
from r1ov.data.formats.records import Record, text_of
from r1ov.data.messages import Messages


def question_of(prompt: Messages) -> str:
    """The texts of a prompt, one below the other."""
    return "\n".join(text_of(message["content"]) for message in prompt)


def write_samples(
    folder: Path, kind: str, step: int, title: str, samples: Sequence[tuple[Record, Mapping]]
) -> None:
    """Writes folder/KIND-N.jsonl, without the images, and folder/KIND-N.html, which needs no other file.

    Args: kind: step or eval. samples: a record, and of its completions the text of each, its scores by name,
        and in training its reward (None if it has none) and advantage.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name, rows, items = f"{kind}-{step:06d}", [], []
    for record, sample in samples:
        asked = {"question": question_of(record.prompt), "gold": record.solution}
        rows.append({**asked, **sample, "step": step})
        replies = [_sample(one) for one in sample["completions"]]
        items.append({"id": "", "tags": {}, **asked, "images": record.images, "samples": replies})
    write_lines(folder / f"{name}.jsonl", rows)
    write_page(folder / f"{name}.html", title, items)


def _sample(completion: Mapping) -> dict:
    numbers = completion["scores"] | {name: completion.get(name) for name in ("reward", "advantage")}
    facts = {name: f"{value:.3g}" for name, value in numbers.items() if value is not None}
    status = "right" if completion["scores"].get("accuracy") == 1 else "wrong"
    return {"status": status, "thinking": None, "reply": completion["text"], "facts": facts}
