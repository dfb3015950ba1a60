"""The options of a multiple-choice question, in the forms in which data sets keep them."""

import re
from collections.abc import Mapping, Sequence
from itertools import product, takewhile
from typing import Any

from r1ov.data.formats.columns import NAMES, Columns, is_image, written
from r1ov.data.formats.records import BadRow
from r1ov.reward.rules.reading import read_choice, read_text

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
COUNTED = (*NAMES["answer"].split(), "label")  # what may be a gold answer's number
SERIES = ("", "option_", "option", "choice_", "choice", "op", "opt", "opt_", "ending")


def listed(cell: Any) -> tuple[str, ...]:
    """The options' texts, from a list, an object by letter, or a text of either; () if there are none."""
    if isinstance(cell, str):
        cell = lettered(cell) if (found := written(cell)) is None else found
    match cell:
        case {"text": list(texts), "label": list(labels)} if len(texts) == len(labels):
            pairs = [*zip(labels, texts, strict=True)]
        case Mapping():
            pairs = [pair for pair in cell.items() if pair[1] not in (None, "")]
        case [Mapping(), *_] if all(isinstance(one, Mapping) for one in cell):
            pairs = [*map(_pair, cell)]
        case [*texts]:
            pairs = []
        case _:
            return ()
    if pairs:
        named = {str(label).upper(): text for label, text in pairs}
        letters = LETTERS[: len(pairs)] if {*named} <= {*LETTERS} else named
        texts = [named.get(letter) for letter in letters] if len(named) == len(pairs) else ()
    if not all(isinstance(text, str | int | float) for text in texts):
        return ()
    texts = tuple(map(str, texts))
    bare = lettered("\n".join(texts))  # of ["A) red", "B) blue"]
    return bare if len(bare) == len(texts) else texts


def _pair(option: Mapping[str, Any]) -> tuple[Any, Any]:
    """(letter, text) of an option such as {"label": "A", "text": "red"}. Raises BadRow if it shows more."""
    keys = Columns(option)
    label, text = (
        keys.one_of("label", "key", "id", "letter"),
        keys.one_of("text", "value", "content", "option"),
    )
    keys.rest()
    return label, text


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
    """The texts of a row's options, in one column or in columns such as A, B, C or option_1, option_2."""
    if value := columns.take("choices"):
        texts = listed(value)
        if not texts or is_image(value):
            raise BadRow("the choices are in no form that is known", repr(value)[:100])
        return texts
    for prefix, marks in product(SERIES, (LETTERS.lower(), range(26), range(1, 27))):
        names = list(takewhile(columns.__contains__, (f"{prefix}{mark}" for mark in marks)))
        if len(names) > 1:
            if marks[0] == 1 and any(type(columns.get(name)) is int for name in COUNTED):
                raise BadRow("the gold answer may count the choices from 0 or from 1", ", ".join(names))
            return tuple(str(columns.pop(name)).strip() for name in names)
    return ()


def gold_letter(answer: Any, options: Sequence[str]) -> str:
    """The letter of the gold option, which rows give as a letter, as a number counted from 0, or as its text.

    Raises:  BadRow for an answer that names none of the options, or may name two.
    """
    text = str(answer)
    letters = {LETTERS[at] for at, option in enumerate(options) if read_text(option) == read_text(text)}
    if type(answer) is int and 0 <= answer < len(options):
        letters.add(LETTERS[answer])
    letters.add(read_choice(text, options) or "")
    letters -= {""}
    if len(letters) != 1:
        raise BadRow(
            "the gold answer is not one of the choices", f"{text[:60]!r} of {', '.join(options)[:120]}"
        )
    return letters.pop()
