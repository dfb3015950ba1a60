"""The options of a multiple-choice question, in the forms in which benchmarks keep them."""

import ast
import re
from collections.abc import Sequence
from typing import Any

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DRAWN = re.compile(r"<image\s*\d+>")


def lettered(text: str) -> tuple[str, ...]:
    """The texts after the letters A, B, C ... in one string; () if it has fewer than two.

    Examples: "A. 3 cm;B．4; 5 cm; C: none" -> ("3 cm", "4; 5 cm", "none"); "(A) 1 (B) 2" -> ("1", "2")
    """
    marks, at = [], 0
    for letter in LETTERS:
        mark = re.compile(rf"(?:^|(?<=[\s;；,，]))[(（]?{letter}\s*[.．:：、)）]\s*").search(text, at)
        if not mark:
            break
        marks.append(mark)
        at = mark.end()
    if len(marks) < 2:
        return ()
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return tuple(
        text[mark.end() : end].strip().strip(";；").strip() for mark, end in zip(marks, ends, strict=True)
    )


def listed(cell: Any) -> tuple[str, ...]:
    """A list of options, also written as JSON, as Python or with letters in one string."""
    if isinstance(cell, str):
        text = cell.strip()
        if not text.startswith("["):
            return lettered(text)
        try:
            cell = ast.literal_eval(text)  # reads JSON's lists of strings too, and runs nothing
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return ()
    return tuple(map(str, cell)) if isinstance(cell, Sequence) else ()


def choice_fields(texts: Sequence[str], gold: str = "") -> dict[str, Any]:
    """`choices` of an Item, or `num_choices` where the options are drawn in the picture or fewer than the
    gold's letter says.
    """
    beyond = LETTERS.find(gold) + 1 if len(gold) == 1 else 0
    is_known = all(text.strip() and not _DRAWN.fullmatch(text.strip()) for text in texts) and list(
        texts
    ) != list(LETTERS[: len(texts)])
    if texts and is_known and beyond <= len(texts):
        return {"choices": tuple(texts)}
    return {"num_choices": max(len(texts), beyond) if texts else None}


def with_options(question: str, texts: Sequence[str]) -> str:
    """The question and a line for each option; where these are drawn in the picture, which letters there are."""
    if not texts:
        return question
    if "choices" not in choice_fields(texts):
        return f"{question}\nThe options {', '.join(LETTERS[: len(texts)])} are in the picture."
    return "\n".join(
        [question, *(f"({letter}) {text}" for letter, text in zip(LETTERS, texts, strict=False))]
    )
