"""Whether a reply's answer is right. The kind of answer comes from the row or the gold, never from the reply.

Kinds: mcq (a choice letter), yes_no, number, math (any expression), tuple (ordered), set (unordered), text,
    bbox, boxes.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from r1ov.reward.rules.boxes import Frame, is_marked, read_boxes, score_boxes
from r1ov.reward.rules.compare import UNORDERED, same_math
from r1ov.reward.rules.expression import FUNCTIONS, Group, Unreadable, read
from r1ov.reward.rules.numbers import Rules, is_other_unit, read_number, same_number
from r1ov.reward.rules.reading import (
    boxed,
    extract_answer,
    plain,
    read_choice,
    read_letters,
    read_text,
    read_yes_no,
)

KINDS = ("mcq", "yes_no", "number", "math", "tuple", "set", "text", "bbox", "boxes")
DEFAULT, EXACT = Rules(), Rules(rel_tol=0.0)
# (gold, answer) -> same mathematics? A judge for what our rules leave open; None: it cannot say.
Verify = Callable[[str, str], bool | None]


class Grade(NamedTuple):
    """score: as `accuracy_reward`. answer: as read from the reply. method: how, see `reading.Extraction`."""

    score: float | None
    answer: str | None
    method: str


def accuracy_reward(completion: str, gold: str, kind: str | None = None) -> float | None:
    """1.0 if the answer in the completion's `<answer>` block is right, 0.0 if not, None if the gold itself
    cannot be read.

    Boxes are right from an overlap of a half; lists of boxes score in between. `grade` has all the options.

    Args:
        completion: the whole reply, thought included. gold: the right answer.
        kind: one of KINDS; None takes it from the gold.
    """
    return grade(completion, gold, kind).score


def grade(
    completion: str,
    gold: str,
    kind: str | None = None,
    rules: Rules = DEFAULT,
    verify: Verify | None = None,
    finished: bool = True,
    frame: Frame | None = None,
) -> Grade:
    """Returns the reply's answer and its score by these rules.

    Args:
        finished: the reply ended by itself, not at the length limit.
        frame: where boxes are measured; without it the reply's and the gold's are measured alike.
    """
    answer, method = extract_answer(completion, rules.answer_from, finished)
    return Grade(score_answer(answer, gold, kind, rules, verify, frame), answer, method)


def score_answer(
    answer: str | None,
    gold: str,
    kind: str | None = None,
    rules: Rules = DEFAULT,
    verify: Verify | None = None,
    frame: Frame | None = None,
) -> float | None:
    """Returns the score, in [0, 1], of an answer taken out of its reply; None if the gold cannot be read.

    An answer with several different `\\boxed{}` is none: it does not commit itself.
    """
    gold, answer = _unboxed(re.sub(r"</?answer>", " ", gold)), _unboxed(answer or "")
    is_declared, kind = bool(kind), kind or kind_of(gold)
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, must be one of {', '.join(KINDS)}")
    if kind in ("math", "tuple", "set"):
        if kind == "tuple" and not is_declared and not re.search("[,;].*[,;]", gold):
            kind = "math"  # (1, 2) may be an interval, which [1, 2] is not
        return _score_math(answer, gold, kind, rules, verify)
    if kind in ("bbox", "boxes"):
        threshold = rules.iou_threshold if rules.iou_mode == "threshold" else None
        return score_boxes(answer, gold, kind, threshold, frame)
    readers = {"yes_no": read_yes_no, "number": read_number, "mcq": partial(choice_of, rules=rules)}
    right, found = (readers.get(kind, read_text)(text) for text in (gold, answer))
    if right is None:
        return None
    if found is None:
        return 0.0
    if kind == "number":
        is_same = same_number(found, right, rules)
        return float(is_same and (answer == gold or not is_other_unit(answer, gold)))
    if kind == "mcq" and is_declared:
        right, found = sorted(right), sorted(found)
    if kind == "text" and is_formula(gold):
        return _score_formula(answer, gold, verify)
    return float(found == right)


def kind_of(gold: str) -> str:
    """Returns the kind of a gold answer whose row does not say: never one that would take more for right than
    the gold's plain reading. Four numbers are a box only if they are marked as one.

    Examples: "B" -> mcq; "Yes" -> yes_no; "1,024" -> number; '{"bbox_2d": [1, 2, 30, 40]}' -> bbox;
        "(1, 2)" and "[1, 3, 5]" -> tuple; "1, 2" -> set; "2\\sqrt{3}" -> math; "blue star" -> text
    """
    if re.fullmatch(r"(?i)\W*(?:yes|no)\W*", gold):
        return "yes_no"
    if re.fullmatch(r"0\d+|\d[\d.]*(?:\s*-\s*\d[\d.]*)+|\d+(?:/\d+){2,}|(?:19|20)\d0s", plain(gold)):
        return "text"  # a code, a range, a date or a decade: no number, and no difference
    letters = read_letters(gold) or ""
    if re.fullmatch(r"[*\s(\[]*[A-Za-z][*\s)\].:]*", gold) or (
        letters == "".join(sorted(letters)) and "" < letters < "I"
    ):
        return "mcq"
    if is_marked(gold) and (found := read_boxes(gold)):
        return "bbox" if len(found) == 1 else "boxes"
    if read_number(gold) is not None:
        return "number"
    if not re.search(r"[\d\\√π±]", gold):
        return "text"
    try:
        value = read(gold)
    except Unreadable:
        return "text"
    if not isinstance(value, Group):
        return "math"
    is_tuple = value.brackets == "()" or (value.brackets == "[]" and len(value.items) > 2)
    return "set" if value.brackets in UNORDERED else "tuple" if is_tuple else "math"


def is_formula(gold: str) -> bool:
    """Whether a text that our parser cannot read looks like mathematics: a judge's business."""
    text = plain(gold)
    return bool(re.search(r"\\[A-Za-z]|[<>=^]", text)) and not _words(text)


def is_beyond_rules(gold: str, kind: str) -> bool:
    """Whether only its letters, or a judge, can say what equals this gold."""
    if kind not in ("math", "tuple", "set"):
        return kind == "text" and is_formula(gold)
    try:
        return same_math(gold, gold, DEFAULT, kind) is None
    except Unreadable:
        return True


def choice_of(text: str, rules: Rules) -> str | None:
    """The letter, or letters, of the choice that the text picks, also by its text or exact value."""
    same = partial(_score_math, kind="math", rules=EXACT, verify=None)
    return read_choice(text, rules.choices, same) or read_letters(text, len(rules.choices) or 26)


def _score_math(answer: str, gold: str, kind: str, rules: Rules, verify: Verify | None) -> float | None:
    """By our rules; a gold that our parser cannot read needs the judge, or has no score."""
    if is_other_unit(answer, gold):
        answer = ""
    try:
        verdict = same_math(answer or "0", gold, rules, kind)
    except Unreadable:
        if verify is None:
            return None
        verdict = None
    if verdict is None and answer:
        return _score_formula(answer, gold, verify)
    return float(bool(answer) and verdict is True)


def _score_formula(answer: str, gold: str, verify: Verify | None) -> float:
    """What our rules leave open: by letter, else by the judge."""
    if bare(answer) == bare(gold):
        return 1.0
    return float(bool(verify) and _is_one_formula(answer, gold) and verify(gold, answer) is True)


def _unboxed(text: str) -> str:
    """The body of the text's only `\\boxed{}`, the text without one, nothing with several different ones."""
    if "box" not in text:
        return text.strip()
    bodies = set(boxed(text)) or {text.strip()}
    return bodies.pop() if len(bodies) == 1 else ""


def _is_one_formula(answer: str, gold: str) -> bool:
    """Whether the answer is a single formula, fit for a judge that would pick one out of "5 or maybe 7"."""
    text = plain(answer)
    if _words(text) or re.search(r"\d\s+\d|\?|[.!]\s", text):
        return False
    return "dots" not in text and all(text.count(sign) == plain(gold).count(sign) for sign in ",;=:")


def _words(text: str) -> set[str]:
    """Those of a plain text that belong to no formula."""
    text = re.sub(r"\\[A-Za-z]+(?:\{[a-z]*matrix\})?|\bd[a-z]\b", " ", text)
    return {*re.findall("[A-Za-z]{2,}", text)} - {*FUNCTIONS, "pi"}


def bare(text: str) -> str:
    """Without spaces, but for those between digits."""
    return re.sub(r"(?<!\d)\s|\s(?!\d)", "", plain(text)).removesuffix(".")
