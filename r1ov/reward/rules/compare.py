"""When a number or an expression counts as equal to the gold one."""

import re
from collections.abc import Callable
from fractions import Fraction

from r1ov.reward.rules.expression import Equation, Group, Unreadable, Value, read
from r1ov.reward.rules.form import Algebra, Form, TooLarge, approximate, negative
from r1ov.reward.rules.numbers import Rules, close, read_number, same_number, split_unit
from r1ov.reward.rules.reading import plain

UNORDERED = ("{}", "")


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
    return close(
        Fraction(values[0]), Fraction(values[1]), 1_000 if gold.decimals is None else gold.decimals, rules
    )


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
