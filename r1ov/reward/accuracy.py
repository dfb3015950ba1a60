"""Whether a reply's answer is right. The kind of answer comes from the row or the gold, never from the reply.

Kinds: mcq (a choice letter), yes_no, number, math (any expression), tuple (ordered), set (unordered), text,
    bbox, boxes.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from r1ov.reward.rules.boxes import iou, match_score, read_box, read_boxes, scaled
from r1ov.reward.rules.compare import UNORDERED, same_math
from r1ov.reward.rules.expression import FUNCTIONS, Group, Unreadable, read
from r1ov.reward.rules.numbers import Rules, read_number, same_number
from r1ov.reward.rules.reading import boxed, extract_answer, plain, read_choice, read_text, read_yes_no

KINDS = ("mcq", "yes_no", "number", "math", "tuple", "set", "text", "bbox", "boxes")
DEFAULT, EXACT = Rules(), Rules(rel_tol=0.0)
# (gold, answer) -> same mathematics? A judge for what our rules leave open; None: it cannot say.
Verify = Callable[[str, str], bool | None]


class Grade(NamedTuple):
    """score: as `accuracy_reward`. answer: what was read from the reply. method: how, see `reading.Extraction`."""

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
) -> Grade:
    """Returns the reply's answer and its score by these rules.

    Args: finished: the reply ended by itself, not at the length limit.
    """
    answer, method = extract_answer(completion, rules.answer_from, finished)
    return Grade(score_answer(answer, gold, kind, rules, verify), answer, method)


def score_answer(
    answer: str | None,
    gold: str,
    kind: str | None = None,
    rules: Rules = DEFAULT,
    verify: Verify | None = None,
) -> float | None:
    """Returns the score, in [0, 1], of an answer taken out of its reply; None if the gold cannot be read.

    An answer with several different `\\boxed{}` is none: it does not commit itself.
    """
    gold = _unboxed(re.sub(r"</?answer>", " ", gold))
    kind = kind or kind_of(gold)
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, must be one of {', '.join(KINDS)}")
    answer = _unboxed(answer or "")
    if kind in ("math", "tuple", "set"):
        return _score_math(answer, gold, kind, rules, verify)
    readers = {"yes_no": read_yes_no, "number": read_number, "bbox": read_box, "boxes": read_boxes}
    read_one = readers.get(kind, read_text) if kind != "mcq" else lambda text: choice_of(text, rules)
    right, found = read_one(gold), read_one(answer)
    if right is None or found is None:
        return None if right is None else 0.0
    if kind == "number":
        return float(same_number(found, right, rules))
    threshold = rules.iou_threshold if rules.iou_mode == "threshold" else None
    if kind == "boxes":
        found = [one._replace(box=scaled(one.box, rules.box_scale)) for one in found]
        return match_score(found, right, threshold)
    if kind == "bbox":
        overlap = iou(scaled(found, rules.box_scale), right)
        return overlap if threshold is None else float(overlap >= threshold)
    return float(found == right)


def kind_of(gold: str) -> str:
    """Returns the kind of a gold answer whose row does not say.

    Examples: "B" -> mcq; "Yes" -> yes_no; "1,024" -> number; "[1, 2, 30, 40]" -> bbox; "(1, 2)" -> tuple;
        "1, 2" -> set; "2\\sqrt{3}" -> math; "blue star" -> text
    """
    if read_yes_no(gold) is not None and len(gold) <= 5:
        return "yes_no"
    if re.fullmatch(r"[*\s(\[]*[A-Za-z][*\s)\].:]*", gold):
        return "mcq"
    if gold.strip()[:1] in ("[", "{", "`") and (found := read_boxes(gold)):
        return "bbox" if len(found) == 1 else "boxes"
    if read_number(gold) is not None:
        return "number"
    if not re.search(r"[\d\\√π]", gold):
        return "text"
    try:
        value = read(gold)
    except Unreadable:
        return "text"
    brackets = value.brackets if isinstance(value, Group) else None
    return "set" if brackets in UNORDERED else "tuple" if brackets == "()" else "math"


def choice_of(text: str, rules: Rules) -> str | None:
    """The letter of the choice that the text picks, also by its text or its exact value."""

    def same(found: str, choice: str) -> bool:
        return _score_math(found, choice, "math", EXACT, None) == 1.0

    return read_choice(text, rules.choices, rules.num_choices, same)


def _score_math(answer: str, gold: str, kind: str, rules: Rules, verify: Verify | None) -> float | None:
    """By our rules, else letter by letter, else by the judge. A gold that our parser cannot read needs the
    judge, or has no score.
    """
    try:
        verdict = same_math(answer or "0", gold, rules, kind)
    except Unreadable:
        if verify is None:
            return None
        verdict = None
    if not answer:
        return 0.0
    if verdict is None and _bare(answer) == _bare(gold):
        return 1.0
    if verdict is None and verify and _is_one_formula(answer, gold):
        verdict = verify(gold, answer)
    return float(verdict is True)


def _unboxed(text: str) -> str:
    """The body of the text's only `\\boxed{}`, the text without one, nothing with several different ones."""
    bodies = set(boxed(text)) or {text.strip()}
    return bodies.pop() if len(bodies) == 1 else ""


def _is_one_formula(answer: str, gold: str) -> bool:
    """Whether the answer is a single formula, fit for a judge that would pick one out of "5 or maybe 7"."""
    text = plain(answer)
    words = set(re.findall(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", " ", text)))
    if words - {*FUNCTIONS, "pi"} or re.search(r"\d\s+\d|\\\\|\?|[.!]\s", text):
        return False
    return all(text.count(sign) == plain(gold).count(sign) for sign in ",;=")


def _bare(text: str) -> str:
    return re.sub(r"(?<!\d)\s|\s(?!\d)", "", plain(text))
