"""The value of an expression: exact if it is a fraction, else its values in 250 digits at three points.

At a point each variable has a random number of its own, so two expressions that agree at all points are the
same, and two that differ at all are not. The points lie apart, one of them below zero, so that those where
signs matter, such as |x| and x, agree at some and not at others: that leaves it open.
"""

import hashlib
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow
from fractions import Fraction

from r1ov.reward.rules.numbers import NO_PLACE

MAX_BITS = 2_000  # of an exact value's numerator or denominator
MAX_EXPONENT = 64  # of what is no fraction; of a fraction it is MAX_BITS that counts
MAX_SIZE = 100  # the places before or after the point of a value that is not exact
TINY = Decimal("1e-140")  # a difference that is none: all that rounding leaves
SIMPLE = 10**12  # the largest denominator by which a value in digits is taken for a fraction
# What works with forms does so `with localcontext(ARITHMETIC)`.
ARITHMETIC = Context(prec=250, traps=[Overflow, DivisionByZero, InvalidOperation])
NAN = Decimal("NaN")  # an even root of a negative number, where a variable makes it one


class TooLarge(Exception):
    """The expression is beyond what is worked out here; says nothing about its value."""


@dataclass(frozen=True)
class Form:
    """exact: the value as a fraction, if it was computed as one. points: its values.

    decimals: how many places a decimal number has, None where all is exact. is_open: some function in it is
    known by its name and argument alone, see `closed`.
    """

    exact: Fraction | None
    points: tuple[Decimal, ...]
    decimals: int | None = None
    is_open: bool = False

    @property
    def value(self) -> Fraction | None:
        """The value of what has no variables, exact or in digits."""
        if self.exact is not None:
            return self.exact
        varies = any(one.is_nan() or abs(one - self.points[0]) > TINY for one in self.points)
        return None if varies or self.is_open else Fraction(self.points[0])

    @property
    def rational(self) -> Fraction | None:
        """The value, if it is a fraction."""
        if self.exact is not None or (value := self.value) is None:
            return self.exact
        simple = value.limit_denominator(SIMPLE)
        return simple if abs(value - simple) < TINY else None

    def __neg__(self) -> "Form":
        return self._of(operator.neg)

    def __abs__(self) -> "Form":
        return self._of(abs)

    def __add__(self, other: "Form") -> "Form":
        places = [one.decimals for one in (self, other) if one.decimals is not None]
        return self._with(other, operator.add, max(places, default=None))

    def __sub__(self, other: "Form") -> "Form":
        return self + -other

    def __mul__(self, other: "Form") -> "Form":
        return self._with(other, operator.mul, _inexact(self, other))

    def __truediv__(self, other: "Form") -> "Form":
        """Raises: ZeroDivisionError."""
        return self._with(other, operator.truediv, _inexact(self, other))

    def __pow__(self, exponent: "Form") -> "Form":
        """Raises: ZeroDivisionError for 0 to a negative power; TooLarge for 0^0 and even roots of negative
        numbers.
        """
        n = exponent.rational
        if n is None:
            return closed("power", self, exponent)
        if not any(self.points) and n <= 0:
            raise ZeroDivisionError if n else TooLarge
        if self.exact is not None and n.denominator == 1:
            if (_bits(self.exact) - 1) * abs(n) > MAX_BITS:
                raise TooLarge
            return constant(self.exact ** int(n), self.decimals)
        if n.denominator > 12 or abs(n) > MAX_EXPONENT:
            raise TooLarge
        roots = {one: _root(one, n.denominator) for one in self.points}  # of a constant only one
        points = tuple(roots[one] ** n.numerator for one in self.points)
        return _checked(points, _inexact(self, exponent), self.is_open)

    def _of(self, operation: Callable) -> "Form":
        exact = None if self.exact is None else operation(self.exact)
        return replace(self, exact=exact, points=tuple(map(operation, self.points)))

    def _with(self, other: "Form", operation: Callable, decimals: int | None) -> "Form":
        if None not in (self.exact, other.exact):
            return constant(operation(self.exact, other.exact), decimals)
        points = tuple(map(operation, self.points, other.points))
        if operation is operator.add:
            points = tuple(one if one.is_nan() or abs(one) > TINY else Decimal(0) for one in points)
        return _checked(points, decimals, self.is_open or other.is_open)


def same(a: tuple[Decimal, ...], b: tuple[Decimal, ...]) -> bool | None:
    """Whether the values agree wherever both have one; None: at some points and not at others."""
    verdicts = {abs(x - y) < TINY for x, y in zip(a, b, strict=True) if not (x.is_nan() or y.is_nan())}
    return verdicts.pop() if len(verdicts) == 1 else None


def equal(a: Form, b: Form) -> bool | None:
    if None not in (a.exact, b.exact):
        return a.exact == b.exact
    verdict = same(a.points, b.points)
    return None if verdict is False and (a.is_open or b.is_open) else verdict


def constant(value: Fraction | int, decimals: int | None = None) -> Form:
    value = Fraction(value)
    if _bits(value) > MAX_BITS:
        raise TooLarge
    return Form(value, (Decimal(value.numerator) / value.denominator,) * 3, decimals)


def symbol(name: str) -> Form:
    """A variable."""
    near, far = _drawn(f"near {name}"), 64 * _drawn(f"far {name}")
    return Form(None, (near, far, -near))


PI = Form(
    None,
    (
        Decimal(
            "3.141592653589793238462643383279502884197169399375105820974944592307816406286208998628034825342117"
            "06798214808651328230664709384460955058223172535940812848111745028410270193852110555964462294895493"
            "03819644288109756659334461284756482337867831652712019091456485669234603"
        ),
    )
    * 3,
)


E = Form(None, (ARITHMETIC.exp(1),) * 3)


def closed(name: str, *arguments: Form) -> Form:
    """A function of which no more is known than that equal arguments give equal values: random ones."""
    points = tuple(
        _drawn(" ".join([name, *(f"{value:.60e}" for value in values)]))
        for values in zip(*(one.points for one in arguments), strict=True)
    )
    return Form(None, points, is_open=True)


def logarithm(a: Form) -> Form:
    """The natural one."""
    if a.value is None:
        return closed("ln", a)
    if a.value <= 0:
        raise ZeroDivisionError("no logarithm")
    return Form(None, (a.points[0].ln(),) * 3, a.decimals)


def sine(a: Form) -> Form:
    """By its series, where the argument has a value."""
    if a.value is None:
        return closed("sin", a)
    total = term = x = a.points[0] % (2 * PI.points[0])
    for n in range(2, 160, 2):  # to 1e-150
        term *= -x * x / (n * (n + 1))
        total += term
    return constant(0) + Form(None, (total,) * 3, _inexact(a, a))  # to 0 of what rounding leaves of it


def _checked(points: tuple[Decimal, ...], decimals: int | None, is_open: bool) -> Form:
    is_large = any(one and abs(one.adjusted()) > MAX_SIZE for one in points)
    if is_large or all(one.is_nan() for one in points):
        raise TooLarge
    return Form(None, points, decimals, is_open)


def _root(x: Decimal, k: int) -> Decimal:
    """The real one, by Newton's method."""
    if k == 1 or not x:
        return x
    if x.is_nan() or (x < 0 and k % 2 == 0):
        return NAN
    if x < 0:
        return -_root(-x, k)
    root = Decimal(float(x) ** (1 / k))
    for _ in range(4):  # each doubles the digits
        root = ((k - 1) * root + x / root ** (k - 1)) / k
    return root


def _drawn(text: str) -> Decimal:
    """A number in 1..2 of 150 digits that the text alone decides."""
    return 1 + Decimal(int.from_bytes(hashlib.sha512(text.encode()).digest())) / 2**512


def _inexact(a: Form, b: Form) -> int | None:
    """Decimal places of a product or quotient: none to round to, but inexact if a part is."""
    return None if a.decimals is None and b.decimals is None else NO_PLACE


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())
