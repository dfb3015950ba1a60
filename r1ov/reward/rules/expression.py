"""Mathematical answers: text or LaTeX read into exact forms, tuples, sets, lists and equations, within fixed
bounds.

A parser of our own, since general ones evaluate what they read. Beyond MAX_LENGTH, MAX_DEPTH or form.py's
bounds it raises Unreadable.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from r1ov.reward.rules.form import Algebra, Form, TooLarge, constant, negative, symbol
from r1ov.reward.rules.reading import plain, unwrap

MAX_LENGTH = 200  # characters
MAX_DEPTH = 32  # of brackets, fractions, exponents
MAX_ITEMS = 32  # of a set or tuple
MAX_DIGITS = 100  # of a number
TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")
FUNCTIONS = (
    "sqrt",
    "ln",
    "log",
    "lg",
    "exp",
    *TRIGONOMETRIC,
    *("arc" + name for name in TRIGONOMETRIC),
    "sinh",
    "cosh",
    "tanh",
)
WORDS = ("or", "and", "not", "yes", "no")  # and no products of letters
GREEK = ("alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "rho", "sigma", "omega", "tau")

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|\\(?P<command>[A-Za-z]+|[{}|])|(?P<word>[A-Za-z]+)"
    r"|(?P<sign>\*\*|[-+*/^!|(){}\[\],;=_%°]))"
)
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_MIXED = re.compile(
    r"(?<![\w.^}/])(\d{1,9})(?:\s*\\frac\s*\{\s*(\d{1,9})\s*\}\s*\{\s*(\d{1,9})\s*\}|\s+(\d{1,9})\s*/\s*(\d{1,9})(?![\d.]))"
)
_NAMED = re.compile(r"^(?!(?:sin|cos|tan)[xy]\b)(?:[A-Za-z]{4,}\s*){1,3}=\s*")  # "Area = "
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_END = ("end", "")


class Unreadable(Exception):
    """Not an expression that is read here."""


@dataclass(frozen=True)
class Group:
    """Several values. brackets: "()" a tuple, "[]" a list or closed interval, "(]" "[)" intervals, "{}" a
    set, "" only commas.
    """

    brackets: str
    items: tuple["Value", ...]


@dataclass(frozen=True)
class Equation:
    left: Form
    right: Form
    name: str | None  # of the variable, if it stands alone on the left


Value = Form | Group | Equation


def read(text: str, algebra: Algebra | None = None) -> Value:
    """The value that the text writes.

    Raises: Unreadable, where it is none or beyond the bounds.
    Examples: "\\\\frac{1}{2}" "2\\\\sqrt{3}" "(1, -2)" "{1, 2}" "1, 2" "y = 2x + 1" "[0, 1)" "1 1/2" "3
        \\\\times 10^{5}" "12%"
    """
    if len(text) > 5 * MAX_LENGTH:
        raise Unreadable("too long")
    text = _NAMED.sub("", unwrap(plain(text)))
    if not re.search(r"[(\[{]\s*\d", text):
        text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = _MIXED.sub(_mixed, text)
    if len(text) > MAX_LENGTH:
        raise Unreadable("too long")
    try:
        return _Parser(_tokens(text), algebra or Algebra()).statement()
    except (TooLarge, ZeroDivisionError) as error:
        raise Unreadable(type(error).__name__) from None


def _mixed(match: re.Match) -> str:
    """ "2 1/3" is two and a third; an improper "2 5/3" is left to be refused."""
    whole, top, bottom = match[1], match[2] or match[4], match[3] or match[5]
    return f"({whole}+{top}/{bottom})" if int(top) < int(bottom) else match[0]


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if not match:
            raise Unreadable(f"{text[at : at + 10]!r}")
        at = match.end()
        kind = match.lastgroup
        if kind == "command" and match[kind] in "{}":
            tokens.append(("set", match[kind]))
        elif kind == "word" and match[kind] not in (*FUNCTIONS, *GREEK, "pi"):
            if len(match[kind]) > 3 or match[kind] in WORDS:
                raise Unreadable(match[kind])
            tokens += [("letter", letter) for letter in match[kind]]
        else:
            tokens.append(("command" if kind == "word" else kind, match[kind]))
    return tokens


def _groups(tokens: list[tuple[str, str]]) -> set[int]:
    """Where brackets open that hold several values: `\\{`, a comma inside, or square ones around all that
    stands there.
    """
    groups, opened = set(), []
    for at, (kind, text) in enumerate(tokens):
        if kind in ("sign", "set") and text in _CLOSING:
            opened.append(at)
            if kind == "set":
                groups.add(at)
        elif kind in ("sign", "set") and text in _CLOSING.values() and opened:
            start = opened.pop()
            before, after = tokens[start - 1 : start], tokens[at + 1 : at + 2]
            is_whole = all(token[1] in (",", ";", "=") for token in before + after)
            if tokens[start] == ("sign", "[") and text == "]" and is_whole:
                groups.add(start)
        elif kind == "sign" and text in ",;" and opened:
            groups.add(opened[-1])
    return groups


def _number(text: str) -> Form:
    digits, _, exponent = text.lower().partition("e")
    if len(digits) > MAX_DIGITS or len(exponent) > 4:
        raise Unreadable("too many digits")
    decimals = max(len(digits.partition(".")[2]) - int(exponent or 0), 0) if "." in digits else None
    return constant(Fraction(digits.rstrip(".")) * Fraction(10) ** int(exponent or 0), decimals)


class _Parser:
    """Recursive descent: statement > relation > sum > product > power > atom."""

    def __init__(self, tokens: list[tuple[str, str]], algebra: Algebra):
        self.tokens, self.algebra, self.at, self.depth = tokens, algebra, 0, 0
        self.groups = _groups(tokens)

    def statement(self) -> Value:
        items = self._items()
        if self._peek() != _END or not items:
            raise Unreadable("not an expression")
        return items[0] if len(items) == 1 else Group("", tuple(items))

    def _items(self) -> list[Value]:
        """What stands between commas, or between semicolons."""
        items = [self._relation()]
        while self._take("sign", ",") or self._take("sign", ";"):
            items.append(self._relation())
            if len(items) > MAX_ITEMS:
                raise Unreadable("too many items")
        return items

    def _relation(self) -> Value:
        start = self.at
        left = self._group() or self._sum()
        if not self._take("sign", "="):
            return left
        if isinstance(left, Group):
            raise Unreadable("an equation of groups")
        kind, name = self.tokens[start]
        alone = name if kind in ("letter", "command") and self.at == start + 2 else None
        right = self._group() or self._sum()
        if isinstance(right, Group):
            if not alone:
                raise Unreadable("an equation of groups")
            return right
        return Equation(left, right, alone)

    def _group(self) -> Group | None:
        """A tuple, set, list or interval, if one stands here; None, nothing taken, for anything else."""
        kind, opening = self._peek()
        if self.at not in self.groups:
            return None
        self._deeper()
        self.at += 1
        closing = "}" if kind == "set" and self._take("set", "}") else ""
        items = () if closing else tuple(self._items())
        if not closing:
            closing_kind, closing = self._next()
            if (
                (closing_kind == "set") != (kind == "set")
                or (closing == "}") != (opening == "{")
                or closing not in _CLOSING.values()
            ):
                raise Unreadable("brackets")
        self.depth -= 1
        return Group(opening + closing, items)

    def _sum(self) -> Form:
        self._deeper()
        total = self._signed(self._product)
        while (sign := self._peek()) in (("sign", "+"), ("sign", "-")):
            self.at += 1
            term = self._product()
            total = self.algebra.add(total, term if sign[1] == "+" else negative(term))
        self.depth -= 1
        return total

    def _product(self) -> Form:
        total, last_is_number = self._power(), self.tokens[self.at - 1][0] == "number"
        while True:
            if self._take("sign", "*") or self._take("command", "times") or self._take("command", "cdot"):
                total = self.algebra.multiply(total, self._signed(self._power))
            elif self._take("sign", "/") or self._take("command", "div"):
                total = self.algebra.divide(total, self._signed(self._power))
            elif self._starts_factor(after_number=last_is_number):
                total = self.algebra.multiply(total, self._power())
            else:
                return total
            last_is_number = self.tokens[self.at - 1][0] == "number"

    def _starts_factor(self, after_number: bool) -> bool:
        """Whether a factor follows without a sign; a number never does, since "2 3" is no product."""
        kind, text = self._peek()
        if kind == "number" and (after_number or self.tokens[self.at - 1][0] == "letter"):
            raise Unreadable("a number after a number or a letter")
        return (
            kind == "letter"
            or (kind == "sign" and text in "({")
            or (kind == "command" and text not in ("times", "cdot", "div", "|"))
        )

    def _power(self) -> Form:
        base = self._atom()
        while self._peek() in (("sign", "!"), ("sign", "%"), ("sign", "°")):
            sign = self._next()[1]
            if sign != "°":
                base = self._factorial(base) if sign == "!" else self.algebra.divide(base, constant(100))
        if self._take("sign", "^") or self._take("sign", "**"):
            self._deeper()
            base = self.algebra.power(base, self._signed(self._power))
            self.depth -= 1
        return base

    def _atom(self) -> Form:
        kind, text = self._next()
        if kind == "number":
            return _number(text)
        if kind == "letter":
            if self._take("sign", "_"):
                braced = self._take("sign", "{")
                text += "_" + self._next()[1]
                if braced:
                    self._expect("}")
            return symbol("e" if text == "e" else ("variable", text))
        if kind == "sign" and text in _CLOSING:
            inside = self._sum()
            self._expect(_CLOSING[text])
            return inside
        if (kind, text) in (("sign", "|"), ("command", "|")):
            inside = self._sum()
            if not self._take(kind, "|"):
                raise Unreadable("|")
            value = inside.rational
            return (
                symbol(("function", "abs", inside.key))
                if value is None
                else constant(abs(value), inside.decimals)
            )
        if kind == "command":
            return self._command(text)
        raise Unreadable(text or "the end")

    def _command(self, name: str) -> Form:
        if name == "frac":
            top = self._braced()
            return self.algebra.divide(top, self._braced())
        if name == "sqrt":
            index = constant(2)
            if self._take("sign", "["):
                index = self._sum()
                self._expect("]")
            return self.algebra.power(self._argument(), self.algebra.divide(constant(1), index))
        if name in ("pi", "infty"):
            return symbol(name)
        if name in GREEK:
            return symbol(("variable", name))
        if name not in FUNCTIONS:
            raise Unreadable(name)
        return self._function(name)

    def _function(self, name: str) -> Form:
        base = constant(10)
        if name == "log" and self._take("sign", "_"):
            base = self._atom()
        exponent = self._signed(self._power) if self._take("sign", "^") else None
        if exponent is not None and (exponent.rational is None or exponent.rational < 0):
            raise Unreadable("an inverse, or a power?")
        argument = self._argument()
        if name in ("log", "lg"):
            value = self.algebra.divide(self.algebra.logarithm(argument), self.algebra.logarithm(base))
        elif name == "ln":
            value = self.algebra.logarithm(argument)
        elif name == "exp":
            value = self.algebra.power(symbol("e"), argument)
        else:
            value = symbol(("function", name, argument.key))
        return value if exponent is None else self.algebra.power(value, exponent)

    def _argument(self) -> Form:
        """A bracket's inside, or numbers and letters up to the next sign: sin 2x is sin(2x)."""
        self._deeper()
        is_bracket = self._peek()[0] == "sign"
        value = self._power() if is_bracket and self._peek()[1] in _CLOSING else self._signed(self._power)
        while not is_bracket and self._peek()[0] == "letter":
            value = self.algebra.multiply(value, self._power())
        self.depth -= 1
        return value

    def _braced(self) -> Form:
        self._expect("{")
        inside = self._sum()
        self._expect("}")
        return inside

    def _signed(self, part: Callable[[], Form]) -> Form:
        if self._take("sign", "-"):
            return negative(part())
        self._take("sign", "+")
        return part()

    def _factorial(self, value: Form) -> Form:
        n = value.rational
        if n is None or n.denominator != 1 or not 0 <= n <= 20:
            raise Unreadable("a factorial")
        product = 1
        for k in range(2, int(n) + 1):
            product *= k
        return constant(product)

    def _deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")

    def _peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else _END

    def _next(self) -> tuple[str, str]:
        token = self._peek()
        self.at += token != _END
        return token

    def _take(self, kind: str, text: str) -> bool:
        if self._peek() == (kind, text):
            self.at += 1
            return True
        return False

    def _expect(self, sign: str) -> None:
        if not self._take("sign", sign):
            raise Unreadable(f"no {sign}")
