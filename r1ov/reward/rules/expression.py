"""Mathematical answers: text or LaTeX read into exact forms, tuples, sets, lists and equations, within fixed
bounds.

A parser of our own, since general ones evaluate what they read. Beyond MAX_LENGTH or form.py's bounds
it raises Unreadable.
"""

import math
import re
from collections.abc import Callable
from decimal import localcontext
from typing import NamedTuple

from r1ov.reward.rules import form
from r1ov.reward.rules.form import ARITHMETIC, Form, TooLarge, constant
from r1ov.reward.rules.numbers import MAX_DIGITS, decimal
from r1ov.reward.rules.reading import plain, unwrap

MAX_LENGTH = 200  # characters
MAX_ITEMS = 32  # of a set or tuple
MAX_SLOW = 8
SLOW = (r"\ln", r"\log", r"\lg", r"\sin", r"\cos", r"\tan")  # up to some milliseconds each
TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")
FUNCTIONS = ("sqrt", "ln", "log", "lg", "exp", *TRIGONOMETRIC, "sinh", "cosh", "tanh")
FUNCTIONS += tuple("arc" + name for name in TRIGONOMETRIC)
GREEK = "alpha beta gamma delta theta lambda mu phi pi rho sigma omega tau"
WORDS = ("not", "yes", "no")  # and no products of letters

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|\\(?P<command>[A-Za-z]+|[{}|])|(?P<word>[A-Za-z]+)"
    r"|(?P<sign>\*\*|[-+*/^!|(){}\[\],;=_%°]))"
)
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_MIXED = re.compile(
    r"(?<![\w.^}/])(\d{1,9})(?:\s*\\frac\s*\{\s*(\d{1,9})\s*\}\s*\{\s*(\d{1,9})\s*\}|\s+(\d{1,9})\s*/\s*(\d{1,9})(?![\d.]))"
)
_NAMED = re.compile(r"^(?!(?:sin|cos|tan)[xy]\b)(?:[A-Za-z]{4,}\s*){1,3}=\s*")  # "Area = "
_CLOSING = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}
_END = ""


class Unreadable(Exception):
    """Not an expression that is read here."""


class Group(NamedTuple):
    """Several values. brackets: "()" a tuple, "[]" a list or closed interval, "(]" "[)" intervals, "{}" a
    set, "" only commas.
    """

    brackets: str
    items: tuple["Value", ...]


class Equation(NamedTuple):
    left: Form
    right: Form
    name: str | None  # of the variable, if it stands alone on the left


Value = Form | Group | Equation


def read(text: str) -> Value:
    """The value that the text writes.

    Raises: Unreadable, where it is none or beyond the bounds.
    Examples: "\\\\frac{1}{2}" "2\\\\sqrt{3}" "(1, -2)" "{1, 2}" "1, 2" "y = 2x + 1" "[0, 1)" "1 1/2" "3
        \\\\times 10^{5}" "12%"
    """
    text = _NAMED.sub("", unwrap(plain(text)))
    if not re.search(r"[(\[{]\s*\d", text):
        text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = _MIXED.sub(_mixed, text)
    if len(text) > MAX_LENGTH:
        raise Unreadable("too long")
    tokens = _tokens(text)
    if sum(map(SLOW.count, tokens)) > MAX_SLOW:
        raise Unreadable("too many logarithms or sines")
    variants = [tokens]
    if r"\pm" in tokens:
        variants = [[sign if token == r"\pm" else token for token in tokens] for sign in "+-"]
    try:
        with localcontext(ARITHMETIC):
            values = [_Parser(variant).statement() for variant in variants]
    except (TooLarge, ArithmeticError, RecursionError) as error:
        raise Unreadable(type(error).__name__) from None
    return values[0] if len(values) == 1 else Group("{}", tuple(values))


def _mixed(match: re.Match) -> str:
    """ "2 1/3" is two and a third; an improper "2 5/3" is left to be refused."""
    whole, top, bottom = match[1], match[2] or match[4], match[3] or match[5]
    return f"({whole}+{top}/{bottom})" if int(top) < int(bottom) else match[0]


def _tokens(text: str) -> list[str]:
    """Numbers, single letters, signs, and commands with their backslash, which known words get as well."""
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if not match:
            raise Unreadable(f"{text[at : at + 10]!r}")
        at = match.end()
        word = match["word"]
        if not word:
            tokens.append(match[0].strip())
        elif word in (*FUNCTIONS, *GREEK.split()):
            tokens.append("\\" + word)
        elif word in ("or", "and"):
            tokens.append(word + ";")
        elif len(word) > 3 or word in WORDS:
            raise Unreadable(word)
        else:
            tokens += word
    return tokens


def _groups(tokens: list[str]) -> set[int]:
    """Where brackets open that hold several values: `\\{`, a comma inside, or square ones around it all."""
    groups, opened = set(), []
    for at, token in enumerate(tokens):
        if token in _CLOSING:
            opened.append(at)
            if token == r"\{":
                groups.add(at)
        elif token in _CLOSING.values() and opened:
            start = opened.pop()
            around = tokens[start - 1 : start] + tokens[at + 1 : at + 2]
            if tokens[start] + token == "[]" and {*around} <= {",", ";", "="}:
                groups.add(start)
        elif token in (",", ";") and opened:
            groups.add(opened[-1])
    return groups


class _Parser:
    """Recursive descent: statement > relation > sum > product > power > atom."""

    def __init__(self, tokens: list[str]):
        self.tokens, self.at = [*tokens, _END], 0
        self.degrees = constant(1)  # by which "°" divides: in an angle alone 30° is a number of its own
        self.groups = _groups(tokens)

    def statement(self) -> Value:
        items = self._items(",", ";", "or;", "and;")
        if self.ahead != _END:
            raise Unreadable("not an expression")
        return items[0] if len(items) == 1 else Group("", tuple(items))

    def _items(self, *separators: str) -> list[Value]:
        items = [self._relation()]
        while separator := self._take(*separators):
            if separator == ",":  # 1, 2, and 3
                self._take(*separators[2:])
            items.append(self._relation())
            if len(items) > MAX_ITEMS:
                raise Unreadable("too many items")
        return items

    def _relation(self) -> Value:
        start = self.at
        left = self._group() or self._sum()
        if not self._take("="):
            return left
        # One token each: x, x _ 1, x _ { 1 }
        name = re.fullmatch(r"\\?[A-Za-z]+( _ (\w+|\{ \w+ \}))?", " ".join(self.tokens[start : self.at - 1]))
        name = name and name[0]
        right = self._group() or self._sum()
        if isinstance(left, Group) or (isinstance(right, Group) and not name):
            raise Unreadable("an equation of groups")
        return right if isinstance(right, Group) else Equation(left, right, name)

    def _group(self) -> Group | None:
        """A tuple, set, list or interval, if one begins here; None, nothing taken, for anything else."""
        if self.at not in self.groups:
            return None
        opening = self._next()
        items = () if opening + self.ahead == r"\{\}" else tuple(self._items(",", ";"))
        closing = self._next()
        if closing != _CLOSING[opening] and opening + closing not in ("(]", "[)"):
            raise Unreadable("brackets")
        return Group((opening + closing).replace("\\", ""), items)

    def _sum(self) -> Form:
        total = self._signed(self._product)
        while sign := self._take("+", "-"):
            term = self._product()
            total += term if sign == "+" else -term
        return total

    def _product(self) -> Form:
        total = self._power()
        while True:
            if self._take("*", r"\times", r"\cdot"):
                total *= self._signed(self._power)
            elif self._take("/", r"\div"):
                total /= self._signed(self._power)
            elif self._starts_factor():
                total *= self._power()
            else:
                return total

    def _starts_factor(self) -> bool:
        """Whether a factor follows without a sign; a number never does, since "2 3" is no product."""
        token = self.ahead
        if token[:1] == "\\":
            return token not in (r"\times", r"\cdot", r"\div", r"\|", r"\{", r"\}")
        return token.isalpha() or token in ("(", "{")

    def _power(self) -> Form:
        base = self._atom()
        while sign := self._take("!", "%", "°"):
            if sign == "!":
                base = self._factorial(base)
            else:
                base /= constant(100) if sign == "%" else self.degrees
        if self._take("^", "**"):
            base **= self._signed(self._power)
        return base

    def _atom(self) -> Form:
        token = self._next()
        if token[:1].isdigit() or token[:1] == ".":
            digits, _, exponent = token.lower().partition("e")
            if len(digits) > MAX_DIGITS or len(exponent) > 4:
                raise Unreadable("too many digits")
            return constant(*decimal(digits, int(exponent or 0)))
        if token.isalpha():
            if self._take("_"):
                braced = self._take("{")
                token += "_" + self._next()
                if braced:
                    self._expect("}")
            return form.E if token == "e" else form.symbol(token)
        if token in ("(", "[", "{", "|", r"\|"):
            inside = self._sum()
            self._expect(_CLOSING.get(token, token))
            return abs(inside) if "|" in token else inside
        return self._command(token.removeprefix("\\"))

    def _command(self, name: str) -> Form:
        if name == "frac":
            return self._tex_argument() / self._tex_argument()
        if name == "sqrt":
            index = constant(2)
            if self._take("["):
                index = self._sum()
                self._expect("]")
            return self._argument() ** (constant(1) / index)
        if name == "pi":
            return form.PI
        if name in ("infty", *GREEK.split()):
            return form.symbol(name)
        if name not in FUNCTIONS:
            raise Unreadable(name or "the end")
        return self._function(name)

    def _function(self, name: str) -> Form:
        base = self._atom() if name == "log" and self._take("_") else constant(10)
        exponent = self._signed(self._power) if self._take("^") else constant(1)
        if exponent.rational is None or exponent.rational < 0:
            raise Unreadable("an inverse, or a power?")
        outside, self.degrees = self.degrees, constant(180) / form.PI
        argument, self.degrees = self._argument(), outside
        if name in ("log", "lg"):
            value = form.logarithm(argument) / form.logarithm(base)
        elif name == "ln":
            value = form.logarithm(argument)
        elif name == "exp":
            value = form.E**argument
        elif name not in ("sin", "cos", "tan") or self.ahead == "/":  # what sin pi/6 means is open
            value = form.closed(name, argument)
        else:
            if argument.exact in range(7, 361):
                argument *= form.PI / constant(180)  # nobody means 30 radians
            shifted = argument + form.PI / constant(2)
            value = form.sine(shifted if name == "cos" else argument)
            if name == "tan":
                value /= form.sine(shifted)
        return value**exponent

    def _argument(self) -> Form:
        """A bracket's inside, or numbers and letters up to the next sign: sin 2x is sin(2x)."""
        is_bare = re.match(r"[\w.\\]", self.ahead)
        value = -self._power() if self._take("-") else self._power()
        while is_bare and (self.ahead.isalpha() or self.ahead[1:] in GREEK.split()):
            value *= self._power()
        return value

    def _tex_argument(self) -> Form:
        """Braces, or as TeX reads it the next digit, letter or command alone: \\frac12, \\frac{\\pi}6."""
        token = self.ahead
        if token[:1] in "([|":
            raise Unreadable("no {")
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at] = token[1:]
            return constant(int(token[0]))
        return self._atom()

    def _signed(self, part: Callable[[], Form]) -> Form:
        return -part() if self._take("+", "-") == "-" else part()

    def _factorial(self, value: Form) -> Form:
        n = value.rational
        if n is None or n.denominator != 1 or not 0 <= n <= 20:
            raise Unreadable("a factorial")
        return constant(math.factorial(int(n)))

    @property
    def ahead(self) -> str:
        """The next token; _END after the last."""
        return self.tokens[self.at]

    def _next(self) -> str:
        token = self.ahead
        self.at += token != _END
        return token

    def _take(self, *wanted: str) -> str:
        """The next token, if it is one of these; else "", nothing taken."""
        return self._next() if self.ahead in wanted else ""

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise Unreadable(f"no {sign}")
