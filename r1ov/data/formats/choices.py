"""The options of a multiple-choice question, in the forms in which data sets keep them."""

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from r1ov.data.formats.columns import Columns, media, unwritten
from r1ov.data.formats.records import BadRow
from r1ov.reward.rules.reading import read_choice, read_letters, read_text

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def listed(cell: Any) -> tuple[str, ...]:
    """The options' texts, from a list, an object by letter, or a text of either; () if there are none."""
    cell, labels = unwritten(cell), ""
    if isinstance(cell, str):
        cell = lettered(cell)
    if isinstance(cell, Mapping):  # by letter, or {"label": ["A", "B"], "text": ["red", "blue"]}
        cell = {name: text for name, text in cell.items() if text not in (None, "")}
        labels, cell = cell.get("label", [*cell]), cell.get("text", [*cell.values()])
        labels = "".join(map(str, labels)).upper()
    if not isinstance(cell, list | tuple) or not all(isinstance(text, str | int | float) for text in cell):
        return ()
    if {*labels} <= {*LETTERS} and labels not in ("", LETTERS[: len(cell)]):
        return ()  # in another order
    texts = tuple(map(str, cell))
    bare = lettered("\n".join(texts))  # of ["A) red", "B) blue"]
    return bare if len(bare) == len(texts) else texts


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


def with_options(question: str, options: Sequence[str]) -> str:
    """The question with a line for each option, such as "(A) red"."""
    return "\n".join(
        [question, *(f"({letter}) {text}" for letter, text in zip(LETTERS, options, strict=False))]
    )


def take_options(columns: Columns) -> tuple[str, ...]:
    """The texts of a row's options, in one column or in columns such as A, B, C or option_a, option_b."""
    if value := columns.take("choices"):
        texts = listed(value)
        if not texts or media(value):
            raise BadRow("the choices are in no form that is known", repr(value)[:100])
        return texts
    for prefix in ("", "option_", "option", "choice_", "choice", "op"):
        names = list(takewhile(columns.__contains__, (prefix + letter.lower() for letter in LETTERS)))
        if len(names) > 1:
            return tuple(str(columns.pop(name)).strip() for name in names)
    return ()


def gold_letter(answer: Any, options: Sequence[str]) -> str:
    """The letter of the gold option, which rows give as a letter, as a number counted from 0, or as its text;
    of several their letters.

    Raises:  BadRow for an answer that names none of the options, or may name two.
    """
    text = str(answer)
    letters = {LETTERS[at] for at, option in enumerate(options) if read_text(option) == read_text(text)}
    if type(answer) is int and 0 <= answer < len(options):
        letters.add(LETTERS[answer])
    letters |= {read_choice(text, options) or "", read_letters(text, len(options)) or ""}
    letters -= {""}
    if len(letters) != 1:
        raise BadRow(
            "the gold answer is not one of the choices", f"{text[:60]!r} of {', '.join(options)[:120]}"
        )
    return letters.pop()
