"""When a number or an expression counts as equal to the gold one."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from r1ov.reward.rules.expression import Equation, Group, Unreadable, Value, read
from r1ov.reward.rules.extract import AnswerFrom
from r1ov.reward.rules.form import Algebra, Form, TooLarge, approximate, negative
from r1ov.reward.rules.number import Number, read_number, split_unit
from r1ov.reward.rules.spelling import plain

UNORDERED = ("{}", "")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How answers are found and compared. The last four belong to a row; the rest to a run.

    rel_tol: where a side is a decimal number, the relative difference below which two numbers are equal.
    round_to_gold: the gold's decimal places are enough ("0.33" is a right third, if the gold says 0.33).
    bare_percent: where the gold says 12%, 12 is right too.
    iou_mode: a box scores 1 from iou_threshold on ("threshold"), or its overlap ("soft").
    precision: decimal places that count; 0: the number must be the gold's own.
    box_scale: from the answer's coordinates to the gold's, `boxes.box_scale`.
    """

    answer_from: AnswerFrom = "tag"
    rel_tol: float = 1e-6
    round_to_gold: bool = False
    bare_percent: bool = True
    iou_mode: Literal["threshold", "soft"] = "threshold"
    iou_threshold: float = 0.5
    choices: tuple[str, ...] = ()
    num_choices: int | None = None
    precision: int | None = None
    box_scale: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))

    def without_box_scale(self) -> "Rules":
        return replace(self, box_scale=(Fraction(1), Fraction(1)))


def same_number(found: Number, gold: Number, rules: Rules) -> bool:
    """Exactly equal; within `rules` where one is inexact. Different units never; a missing one is no
    difference.
    """
    if found.unit and gold.unit and found.unit != gold.unit:
        return False
    decimals = gold.decimals if gold.decimals is not None else None if found.decimals is None else 1_000
    if _close(found.value, gold.value, decimals, rules):
        return True
    is_bare = rules.bare_percent and gold.percent and not found.percent
    return is_bare and _close(
        found.value, gold.value * 100, None if decimals is None else max(decimals - 2, 0), rules
    )


def same_math(found: str, gold: str, rules: Rules, kind: str = "math") -> bool | None:
    """Whether two texts are the same mathematics; None where our rules leave it open.

    kind: "tuple" takes the gold's items in order and "set" without order, whatever its brackets; else the
        gold's brackets say.
    Raises: Unreadable, if the gold is not read here.
    """
    numbers = read_number(found), read_number(gold)
    if kind == "math" and None not in numbers and "=" not in found + gold:
        return same_number(*numbers, rules)
    algebra = Algebra()
    right, right_unit = _read(gold, kind == "set", algebra)
    if isinstance(right, Group) and right.brackets in UNORDERED:
        kind = kind if kind == "tuple" else "set"
    try:
        left, left_unit = _read(found, kind == "set", algebra)
        if left_unit and right_unit and left_unit != right_unit:
            return False
        if kind in ("tuple", "set"):
            left, right = _bracketed(left, right, kind)
        return _equal(left, right, algebra, lambda a, b: _same_form(a, b, algebra, rules))
    except (Unreadable, TooLarge, ZeroDivisionError):
        return None


def _read(text: str, is_set: bool, algebra: Algebra) -> tuple[Value, str]:
    if len(text) > 1_000:
        raise Unreadable("too long")
    body, unit = split_unit(plain(text))
    return read(re.sub(r"\s*,?\s+(?:and|or)\s+", ", ", body) if is_set else body, algebra), unit


def _bracketed(left: Value, right: Value, kind: str) -> tuple[Value, Value]:
    """Both as tuples or both as sets, where the found one's brackets allow it: those of the kind, or the
    gold's own.
    """
    brackets, allowed = ("{}", UNORDERED) if kind == "set" else ("()", ("()", "[]"))
    own = right.brackets if isinstance(right, Group) else "{}"
    if isinstance(left, Group) and left.brackets in (*allowed, own):
        left = Group(brackets, left.items)
    elif kind == "set" and not isinstance(left, Group):
        left = Group(brackets, (left,))
    return left, Group(brackets, right.items if isinstance(right, Group) else (right,))


def _same_form(found: Form, gold: Form, algebra: Algebra, rules: Rules) -> bool | None:
    verdict = algebra.equal(found, gold)
    if verdict is True or (found.decimals is None and gold.decimals is None):
        return verdict
    values = [form.rational if form.rational is not None else approximate(form) for form in (found, gold)]
    if None in values:
        return verdict
    return _close(
        Fraction(values[0]), Fraction(values[1]), 1_000 if gold.decimals is None else gold.decimals, rules
    )


def _close(found: Fraction, gold: Fraction, decimals: int | None, rules: Rules) -> bool:
    """decimals: the gold's decimal places; None if both sides are exact."""
    if found == gold:
        return True
    if rules.precision is not None:
        return rules.precision > 0 and abs(found - gold) * 2 * 10**rules.precision <= 1
    if decimals is None:
        return False
    rounds = rules.round_to_gold and decimals <= 100 and abs(found - gold) * 2 * 10**decimals <= 1
    return rounds or abs(found - gold) < Fraction(rules.rel_tol) * abs(gold)


def _equal(a: Value, b: Value, algebra: Algebra, same: Callable[[Form, Form], bool | None]) -> bool | None:
    """A variable alone on the left ("x = 3") may be missing on one side. Groups need the same brackets; sets
    are matched one to one.
    """
    if isinstance(a, Equation) and isinstance(b, Equation):
        if a.name and a.name == b.name:
            return same(a.right, b.right)
        left, right = (algebra.add(one.left, negative(one.right)) for one in (a, b))
        if not left.num or not right.num:
            return same(left, right)
        return algebra.equal(algebra.multiply(left, _leading(right)), algebra.multiply(right, _leading(left)))
    if isinstance(a, Equation) or isinstance(b, Equation):
        equation, other = (a, b) if isinstance(a, Equation) else (b, a)
        if not equation.name or not isinstance(other, Form):
            return False
        return same(equation.right, other) if equation is a else same(other, equation.right)
    if isinstance(a, Form) and isinstance(b, Form):
        return same(a, b)
    if isinstance(a, Form) or isinstance(b, Form) or a.brackets != b.brackets or len(a.items) != len(b.items):
        return False
    if a.brackets not in UNORDERED:
        verdicts = [_equal(x, y, algebra, same) for x, y in zip(a.items, b.items, strict=True)]
        return False if False in verdicts else None if None in verdicts else True
    left, is_open = list(b.items), False
    for x in a.items:
        verdicts = [_equal(x, y, algebra, same) for y in left]
        if True in verdicts:
            del left[verdicts.index(True)]
        elif None in verdicts:
            is_open = True
        else:
            return False
    return None if is_open else True


def _leading(form: Form) -> Form:
    """A coefficient of the form that is not zero, always of the same term: two equations may differ by a
    factor.
    """
    monomial = min(form.num, key=lambda one: sorted(map(repr, one)))
    return Form({frozenset(): form.num[monomial]}, {frozenset(): Fraction(1)})
