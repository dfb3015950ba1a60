"""Exact algebra for comparing answers: a quotient of sums of c * a^p * b^q ..., c a fraction, p and q
fractions, a, b symbols.

Symbols are variables, pi, e, primes under roots, logarithms of primes, and whatever else cannot be taken
apart (sin of something, a root of a sum), which stays closed. Powers of different primes between 0 and 1 are
linearly independent over the fractions, so two forms that look alike are equal, and two that differ without
closed symbols are not.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from fractions import Fraction

from r1ov.reward.rules.numbers import NO_PLACE

Monomial = frozenset[tuple[Hashable, Fraction]]  # of (symbol, exponent), no exponent 0
Sum = dict[Monomial, Fraction]  # no coefficient 0; {} is zero

ONE: Monomial = frozenset()
UNIT: Sum = {ONE: Fraction(1)}
MAX_BITS = 2_000  # of a coefficient's numerator or denominator
MAX_EXPONENT = 64  # of a sum; of a number it is MAX_BITS that counts
MAX_WORK = 1_000  # products of two terms, for one comparison
PRIMES = [p for p in range(2, 1000) if all(p % q for q in range(2, math.isqrt(p) + 1))]


class TooLarge(Exception):
    """The expression is beyond what is worked out here; says nothing about its value."""


@dataclass(frozen=True)
class Form:
    """num / den, where den is 1 or has several terms.

    decimals: how many places a decimal number has, None where all is exact.
    """

    num: Sum
    den: Sum
    decimals: int | None = None

    @property
    def rational(self) -> Fraction | None:
        """Its value, if there is no symbol in it."""
        return self.num.get(ONE, Fraction(0)) if self.num.keys() <= {ONE} and self.den == UNIT else None

    @property
    def term(self) -> tuple[Monomial, Fraction] | None:
        """Its only (monomial, coefficient)."""
        return next(iter(self.num.items())) if len(self.num) == 1 and self.den == UNIT else None

    @property
    def key(self) -> Hashable:
        return (frozenset(self.num.items()), frozenset(self.den.items()))


def constant(value: Fraction | int, decimals: int | None = None) -> Form:
    return Form(_checked({ONE: Fraction(value)}), UNIT, decimals)


def symbol(name: Hashable, exponent: Fraction | int = 1) -> Form:
    monomial, factor = _join(frozenset([(name, Fraction(exponent))]), ONE)
    return Form({monomial: factor}, UNIT)


def negative(a: Form) -> Form:
    return Form({monomial: -c for monomial, c in a.num.items()}, a.den, a.decimals)


class Algebra:
    """The operations. One object serves one comparison and gives up (TooLarge) when it has done MAX_WORK."""

    def __init__(self):
        self.work = 0

    def add(self, a: Form, b: Form) -> Form:
        decimals = max((d for d in (a.decimals, b.decimals) if d is not None), default=None)
        if a.den == b.den:
            return Form(self._plus(a.num, b.num), a.den, decimals)
        num = self._plus(self._times(a.num, b.den), self._times(b.num, a.den))
        return self._quotient(num, self._times(a.den, b.den), decimals)

    def multiply(self, a: Form, b: Form) -> Form:
        return self._quotient(self._times(a.num, b.num), self._times(a.den, b.den), _inexact(a, b))

    def divide(self, a: Form, b: Form) -> Form:
        """Raises: ZeroDivisionError."""
        if not b.num:
            raise ZeroDivisionError
        return self._quotient(self._times(a.num, b.den), self._times(a.den, b.num), _inexact(a, b))

    def power(self, base: Form, exponent: Form) -> Form:
        """Raises: ZeroDivisionError for 0 to a negative power; TooLarge for 0^0 and even roots of negative
        numbers.
        """
        n = exponent.rational
        if n is None:
            return symbol(("power", base.key, exponent.key))
        if not base.num and n <= 0:
            raise ZeroDivisionError if n else TooLarge
        if n.denominator == 1:
            return self._integer_power(base, int(n))
        if n.denominator > 12 or abs(n) > MAX_EXPONENT:
            raise TooLarge
        return self._root(base, n)

    def logarithm(self, a: Form) -> Form:
        """The natural one; of a positive fraction, the sum over its primes."""
        value = a.rational
        if value is not None:
            if value <= 0:
                raise ZeroDivisionError("no logarithm")
            total = constant(0, a.decimals)
            for prime, count in factors(value):
                total = self.add(total, self.multiply(constant(count), symbol(("ln", prime))))
            return total
        monomial, coefficient = a.term or (ONE, 0)
        if coefficient == 1 and {name for name, _ in monomial} == {"e"}:
            return constant(next(iter(monomial))[1])
        return symbol(("function", "ln", a.key))

    def equal(self, a: Form, b: Form) -> bool | None:
        """None where closed symbols leave it open."""
        left, right = self._times(a.num, b.den), self._times(b.num, a.den)
        if left == right:
            return True
        names = {name for side in (left, right) for monomial in side for name, _ in monomial}
        is_open = any(isinstance(name, tuple) and name[0] in ("function", "power", "root") for name in names)
        return None if is_open else False

    def _plus(self, a: Sum, b: Sum) -> Sum:
        self._count(len(b))
        total = dict(a)
        for monomial, coefficient in b.items():
            total[monomial] = total.get(monomial, 0) + coefficient
        return _checked(total)

    def _times(self, a: Sum, b: Sum) -> Sum:
        self._count(len(a) * len(b))
        total: Sum = {}
        for left, c in a.items():
            for right, d in b.items():
                monomial, factor = _join(left, right)
                total[monomial] = total.get(monomial, 0) + c * d * factor
        return _checked(total)

    def _quotient(self, num: Sum, den: Sum, decimals: int | None) -> Form:
        """A denominator of one term goes into the numerator; one that divides the numerator becomes 1."""
        if len(den) == 1:
            (monomial, coefficient), *_ = den.items()
            inverse, factor = _join(frozenset((name, -k) for name, k in monomial), ONE)
            return Form(self._times(num, {inverse: factor / coefficient}), UNIT, decimals)
        ratios = {num[monomial] / den[monomial] for monomial in den} if num.keys() == den.keys() else ()
        return constant(*ratios, decimals) if len(ratios) == 1 else Form(num, den, decimals)

    def _integer_power(self, base: Form, n: int) -> Form:
        if base.rational is not None:
            if (_bits(base.rational) - 1) * abs(n) > MAX_BITS:
                raise TooLarge
            return constant(base.rational**n, base.decimals)
        if abs(n) > MAX_EXPONENT:
            raise TooLarge
        power = constant(1)
        for _ in range(abs(n)):
            power = self.multiply(power, base)
        return self.divide(constant(1), power) if n < 0 else power

    def _root(self, base: Form, n: Fraction) -> Form:
        """base^n for a fraction n: taken apart for positive numbers, pi, e, lone variables, else closed."""
        if not base.term:
            return symbol(("root", base.key), n)
        monomial, coefficient = base.term
        if coefficient < 0 and n.denominator % 2 == 0:
            raise TooLarge
        for name, k in monomial:  # (x^2)^(1/2) is not x for every x; x^1 and x^(1/3) are safe
            if name not in ("pi", "e") and not _is_prime(name) and k != 1 and k.denominator == 1:
                return symbol(("root", base.key), n)
        result = constant(-1 if coefficient < 0 and n.numerator % 2 else 1, base.decimals)
        primes = [(("prime", p), k) for p, k in factors(abs(coefficient))]
        for name, k in [*primes, *monomial]:
            result = self.multiply(result, symbol(name, k * n))
        return result

    def _count(self, products: int) -> None:
        self.work += products
        if self.work > MAX_WORK:
            raise TooLarge


def factors(n: Fraction | int) -> list[tuple[int, int]]:
    """Returns [(prime, count)] of n > 0; those of its denominator count below zero.

    Raises: TooLarge where what is left without its primes below 1,000 is not a prime or its square.
    """
    if n.denominator > 1:
        return [*factors(n.numerator), *((p, -count) for p, count in factors(n.denominator))]
    n, found = int(n), []
    for p in PRIMES:
        count = 0
        while n % p == 0:
            n, count = n // p, count + 1
        if count:
            found.append((p, count))
        if n == 1:
            return found
    root = math.isqrt(n)
    prime, count = (root, 2) if root * root == n else (n, 1)
    if prime >= 1_009**2:  # the next prime's
        raise TooLarge
    return [*found, (prime, count)]


def approximate(form: Form) -> float | None:
    """Its value in floating point; None with variables, closed symbols, or out of range."""
    try:
        num, den = (
            math.fsum(
                float(c) * math.prod(_value(name) ** float(k) for name, k in monomial)
                for monomial, c in side.items()
            )
            for side in (form.num, form.den)
        )
        value = num / den
    except (KeyError, OverflowError, ZeroDivisionError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _value(name: Hashable) -> float:
    if isinstance(name, tuple) and name[0] in ("prime", "ln"):
        return float(name[1]) if name[0] == "prime" else math.log(name[1])
    return {"pi": math.pi, "e": math.e}[name]


def _inexact(a: Form, b: Form) -> int | None:
    """Decimal places of a product or quotient: none to round to, but inexact if a part is."""
    return None if a.decimals is None and b.decimals is None else NO_PLACE


def _is_prime(name: Hashable) -> bool:
    return isinstance(name, tuple) and name[0] == "prime"


def _join(a: Monomial, b: Monomial) -> tuple[Monomial, Fraction]:
    """The product of two monomials, primes' exponents in [0, 1), and the fraction that this sets free."""
    exponents = dict(a)
    for name, k in b:
        exponents[name] = exponents.get(name, 0) + k
    factor = Fraction(1)
    for name, k in exponents.items():
        if _is_prime(name) and not 0 <= k < 1:
            whole = math.floor(k)
            if name[1].bit_length() * abs(whole) > MAX_BITS:
                raise TooLarge
            factor *= Fraction(name[1]) ** whole
            exponents[name] = k - whole
    return frozenset((name, k) for name, k in exponents.items() if k), factor


def _bits(c: Fraction) -> int:
    return max(c.numerator.bit_length(), c.denominator.bit_length())


def _checked(total: Sum) -> Sum:
    if any(_bits(c) > MAX_BITS for c in total.values()):
        raise TooLarge
    return {monomial: c for monomial, c in total.items() if c}
