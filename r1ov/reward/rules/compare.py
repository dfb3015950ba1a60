"""When an answer counts as equal to the gold one: `same_math` is the door to the algebra."""

from decimal import localcontext

from r1ov.reward.rules.expression import Equation, Group, Unreadable, Value, read
from r1ov.reward.rules.form import ARITHMETIC, Form, TooLarge, equal, same
from r1ov.reward.rules.numbers import Rules, close, read_number, same_number, split_unit
from r1ov.reward.rules.reading import plain

UNORDERED = ("{}", "")


def same_math(found: str, gold: str, rules: Rules, kind: str = "math") -> bool | None:
    """Whether two texts are the same mathematics; None where our rules leave it open.

    Args: kind: "tuple" takes the gold's items in order and "set" without order, whatever its brackets; else
        the gold's brackets say.
    Raises: Unreadable, if the gold is not read here.
    """
    numbers = read_number(found), read_number(gold)
    if kind == "math" and None not in numbers and "=" not in found + gold:
        return same_number(*numbers, rules)
    right, right_unit = _read(gold)
    if kind == "math" and isinstance(right, Group) and right.brackets in UNORDERED:
        kind = "set"
    try:
        left, left_unit = _read(found)
        if left_unit and right_unit and left_unit != right_unit:
            return False
        if kind != "math":
            left, right = _bracketed(left, right, kind)
        with localcontext(ARITHMETIC):
            return _equal(left, right, rules)
    except (Unreadable, TooLarge, ArithmeticError):
        return None


def _read(text: str) -> tuple[Value, str]:
    """The value and its unit."""
    body, unit = split_unit(plain(text))
    return read(body), unit


def _bracketed(left: Value, right: Value, kind: str) -> tuple[Value, Group]:
    """Both as tuples or both as sets, where the found one's brackets are the kind's or the gold's own."""
    if not isinstance(right, Group):
        right = Group("{}", (right,))
    brackets, allowed = ("{}", UNORDERED) if kind == "set" else ("()", ("()", "[]"))
    if right.brackets == "[]" and len(right.items) > 2:  # a list, and no interval
        allowed = (*allowed, "")
    if isinstance(left, Group) and left.brackets in (*allowed, right.brackets):
        left = Group(brackets, left.items)
    elif kind == "set" and not isinstance(left, Group):
        left = Group(brackets, (left,))
    return left, Group(brackets, right.items)


def _equal(a: Value, b: Value, rules: Rules) -> bool | None:
    """A variable alone on the left ("x = 3") may be missing on one side. Groups need the same brackets; sets
    are matched one to one.
    """
    match a, b:
        case Form(), Form():
            return _same_form(a, b, rules)
        case Equation(), Equation():
            return _same_equation(a, b, rules)
        case Equation(name=str()), Form():
            return _same_form(a.right, b, rules)
        case Form(), Equation(name=str()):
            return _same_form(a, b.right, rules)
        case Group(), Group() if a.brackets == b.brackets and len(a.items) == len(b.items):
            names = {one.name for one in b.items if isinstance(one, Equation)}
            is_bare = Equation not in map(type, a.items)
            is_ordered = a.brackets not in UNORDERED or (is_bare and len(names) > 1)
        case _:
            return False
    rest, is_open = list(b.items), False
    for x in a.items:
        verdicts = [_equal(x, y, rules) for y in rest[: 1 if is_ordered else None]]
        if not {True, None} & {*verdicts}:
            return False
        is_open |= True not in verdicts
        if is_ordered or True in verdicts:
            del rest[0 if is_ordered else verdicts.index(True)]
    return None if is_open else True


def _same_form(found: Form, gold: Form, rules: Rules) -> bool | None:
    verdict = equal(found, gold)
    if verdict is True or None in (found.value, gold.value) or found.decimals is gold.decimals is None:
        return verdict
    return close(found.value, gold.value, found.decimals, gold.decimals, rules)


def _same_equation(found: Equation, gold: Equation, rules: Rules) -> bool | None:
    """Two equations may differ by a factor: the quotient of what they set to zero is the same everywhere."""
    if found.name and found.name == gold.name:
        return _same_form(found.right, gold.right, rules)
    left, right = (one.left - one.right for one in (found, gold))
    if not any(left.points) or not any(right.points):
        return _same_form(left, right, rules)
    quotient = (left / right).points
    return same(quotient, (*quotient[1:], quotient[0]))
