"""The options of a multiple-choice question, in the forms in which data sets keep them."""

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from r1ov.data.formats.columns import Columns, media, unwritten
from r1ov.data.formats.records import BadRow
from r1ov.reward.rules.reading import read_choice, read_letters, read_text

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PAIR = {"label", "text"}
SERIES = (LETTERS, "123456789", "0123456789")  # of labels


def labelled(cell: Any) -> dict[str, str]:
    """The options' texts by their labels, from a list, an object by label, a list of objects, or a text of
    these; {} if there are none, or they are in another order.
    """
    cell, labels = unwritten(cell), ""
    if isinstance(cell, str):
        return lettered(cell)
    if isinstance(cell, list) and all(isinstance(one, Mapping) and one.keys() == PAIR for one in cell):
        cell = {key: [one[key] for one in cell] for key in PAIR}
    if isinstance(cell, Mapping):  # by label, or {"label": ["A", "B"], "text": ["red", "blue"]}
        cell = {name: text for name, text in cell.items() if text not in (None, "")}
        labels, cell = (cell["label"], cell["text"]) if cell.keys() == PAIR else (cell, [*cell.values()])
        labels = "".join(str(label)[-1:] for label in labels).upper()
    if not isinstance(cell, list | tuple) or not all(isinstance(text, str | int | float) for text in cell):
        return {}
    found = lettered("\n".join(map(str, cell)))  # ["A) red", "B) blue"]
    if len(found) != len(cell):
        found = dict(zip(labels or LETTERS, map(str, cell), strict=False))
    is_known = labels in ("", *(series[: len(cell)] for series in SERIES))
    return found if is_known and len(found) == len(cell) else {}


def lettered(text: str) -> dict[str, str]:
    """The texts after labels in one string, by these; {} if it has fewer than two.

    Examples: "A. 3 cm;B．4; 5 cm; C: none" -> 3 cm, "4; 5 cm" and none by A, B, C; "(1) red (2) blue" by 1, 2
    """
    for series in SERIES:
        marks, at = [], 0
        for label in series:
            mark = rf"(?:^|(?<=[\s;；,，]))[(（]?{label}\s*[.．:：、)）](?!(?<=\d.)\d)\s*"
            if not (mark := re.compile(mark).search(text, at)):
                break
            marks.append(mark)
            at = mark.end()
        if len(marks) > 1:
            ends = [mark.start() for mark in marks[1:]] + [len(text)]
            texts = (text[mark.end() : end] for mark, end in zip(marks, ends, strict=True))
            return dict(zip(series, (one.strip().strip(";；").strip() for one in texts), strict=False))
    return {}


def with_options(question: str, options: Sequence[str]) -> str:
    """The question with a line for each option, such as "(A) red"."""
    return "\n".join([question, *map("({}) {}".format, LETTERS, options)])


def take_options(columns: Columns) -> dict[str, str]:
    """The texts of a row's options by label, in one column or in columns such as A, B, C or option_1,
    option_2.
    """
    if value := columns.take("choices"):
        options = labelled(value)
        if len(options) < 2 or media(value):
            raise BadRow("the choices are in no form that is known", repr(value)[:100])
        return options
    for prefix in ("", "option_", "option", "choice_", "choice", "op", "ending"):
        for series in SERIES if prefix else (LETTERS,):
            labels = {prefix + label.lower(): label for label in series}
            names = [*takewhile(columns.__contains__, labels)]
            if len(names) > 1:
                return {labels[name]: str(columns.pop(name)).strip() for name in names}
    return {}


def gold_letter(answer: Any, options: Mapping[str, str]) -> str:
    """The letter of the gold option, which rows give by its label, as a number counted from 0 where labels
    are letters, or as its text; of several their letters.

    Raises:  BadRow for an answer that names none of the options, or may name two.
    """
    text, texts = str(answer), [*options.values()]
    letters = {
        LETTERS[at]
        for at, (label, option) in enumerate(options.items())
        if read_text(option) == read_text(text) or label == text.strip("(). ")
    }
    if type(answer) is int and "A" in options and 0 <= answer < len(texts):
        letters.add(LETTERS[answer])
    letters |= {read_choice(text, texts), read_letters(text, len(texts))} - {None}
    if len(letters) != 1:
        raise BadRow(
            "the gold answer is not one of the choices", f"{text[:60]!r} of {', '.join(texts)[:120]}"
        )
    return letters.pop()
