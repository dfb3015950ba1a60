"""The expression parser and its exact algebra, against values worked out independently of them."""

import math
import random
import time
from fractions import Fraction

import pytest

from r1ov.reward import accuracy_reward
from r1ov.reward.rules.compare import same_math
from r1ov.reward.rules.expression import Group, Unreadable, read
from r1ov.reward.rules.numbers import Rules

RULES = Rules()


def rational(text: str) -> Fraction | None:
    return read(text).rational


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("2 - 3 - 4", -5),
        ("24 / 4 / 3", 2),
        ("-2^2", -4),
        ("(-2)^2", 4),
        ("2^3^2", 512),
        ("2^{-2}", Fraction(1, 4)),
        ("2 * -3", -6),
        (r"\frac{1}{2} + \frac13", Fraction(5, 6)),
        (r"2\frac{1}{3}", Fraction(7, 3)),
        ("2 1/3", Fraction(7, 3)),
        (r"-2\frac{1}{3}", Fraction(-7, 3)),
        (r"2 \cdot \frac{1}{3}", Fraction(2, 3)),
        ("2(3)(4)", 24),
        ("4!", 24),
        ("3.25", Fraction(13, 4)),
        ("1.5e3", 1500),
        (r"3 \times 10^{5}", 300_000),
        ("12.5%", Fraction(1, 8)),
        (r"\sqrt{49}", 7),
        (r"\sqrt[3]{-8}", -2),
        (r"\sqrt{\frac{9}{16}}", Fraction(3, 4)),
        ("8^{2/3}", 4),
        (r"\sqrt2 \cdot \sqrt8", 4),
        (r"(1+\sqrt{2})(1-\sqrt{2})", -1),
        (r"\log_2 32", 5),
        (r"\log 1000", 3),
        (r"\ln e^3", 3),
        ("|2 - 5|", 3),
        ("(x+1)^2 - x^2 - 2x", 1),
        (r"\frac{\pi}{2\pi}", Fraction(1, 2)),
        ("1,234,567", 1_234_567),
    ],
)
def test_values_are_those_of_arithmetic(text, value):
    assert rational(text) == value


def test_approximations_are_those_of_floating_point():
    for text, value in {
        r"2\sqrt{3}": 2 * math.sqrt(3),
        r"\pi^2/6": math.pi**2 / 6,
        "e^{-1}": 1 / math.e,
        r"\ln 12": math.log(12),
    }.items():
        assert float(read(text).value) == pytest.approx(value, rel=1e-15)
    assert read("x").value is None


NONE = (
    r"""1 2 |2 +|(1|1)|{1|(1]+1|1//2|1..2|x2|abcd|5 > 3|\int x|1/0|0^{-1}|0^0|\sqrt{-4}|\frac{1}|f:x|2 5/3"""
)
TOO_BIG = [
    "9^9^9",
    "(x+y)^{65}",
    "2^{2001}",
    "21!",
    "1e9999",
    "1" * 101,
    "1+" * 150 + "1",
]


@pytest.mark.parametrize("text", ["", *NONE.split("|"), *TOO_BIG])
def test_what_is_no_expression_or_too_big_is_refused(text):
    with pytest.raises(Unreadable):
        read(text)


def test_brackets_may_be_as_deep_as_the_text_is_long():
    assert rational("(" * 99 + "1" + ")" * 99) == 1


def test_groups_keep_their_brackets():
    found = {
        "(1,2)": "()",
        "[1,2]": "[]",
        "[1,2)": "[)",
        "(1,2]": "(]",
        "{1,2}": "{}",
        r"\{1,2\}": "{}",
        "1,2": "",
        "1;2": "",
        r"\{\}": "{}",
        "[5]": "[]",
    }
    for text, brackets in found.items():
        value = read(text)
        assert isinstance(value, Group), text
        assert value.brackets == brackets, text
    assert rational("(5)") == rational("{5}") == rational("[2+3]*1") == 5


class Tree:
    """A random expression that knows its value in floating point and can write itself in two ways."""

    def __init__(self, draw: random.Random, depth: int, x: float):
        kind = draw.choice(
            ["int", "pi", "root", "x"]
            if depth == 0
            else ["sum", "product", "quotient", "square", "difference"]
        )
        self.kind, self.parts = kind, []
        if kind in ("sum", "product", "quotient", "difference"):
            self.parts = [Tree(draw, depth - 1, x), Tree(draw, depth - 1, x)]
        elif kind == "square":
            self.parts = [Tree(draw, depth - 1, x)]
        self.n = draw.randint(2, 9)
        values = [part.value for part in self.parts]
        self.value = {
            "int": lambda: float(self.n),
            "pi": lambda: math.pi,
            "root": lambda: math.sqrt(self.n),
            "x": lambda: x,
            "sum": lambda: values[0] + values[1],
            "difference": lambda: values[0] - values[1],
            "product": lambda: values[0] * values[1],
            "quotient": lambda: values[0] / values[1] if values[1] else math.nan,
            "square": lambda: values[0] ** 2,
        }[kind]()

    def text(self) -> str:
        a, b = ([part.text() for part in self.parts] + ["", ""])[:2]
        forms = {
            "sum": f"({a})+({b})",
            "difference": f"({a})-({b})",
            "product": f"({a})*({b})",
            "quotient": f"({a})/({b})",
            "square": f"({a})^2",
        }
        return (forms | {"int": str(self.n), "pi": "pi", "root": f"sqrt({self.n})", "x": "x"})[self.kind]

    def latex(self) -> str:
        """Turned round where that changes nothing: b + a, -(b - a), b a, and a / b as a b^{-1}."""
        a, b = ([part.latex() for part in self.parts] + ["", ""])[:2]
        forms = {
            "sum": rf"\left({b}\right) + \left({a}\right)",
            "difference": rf"-\left(({b}) - ({a})\right)",
            "product": rf"({b}) \cdot ({a})",
            "quotient": rf"\dfrac{{{a}}}{{{b}}}",
            "square": rf"({a}) \times ({a})",
        }
        return (forms | {"int": f"{self.n}.0", "pi": r"\pi", "root": rf"\sqrt{{{self.n}}}", "x": "x"})[
            self.kind
        ]


def test_forms_of_the_same_value_are_equal_and_of_others_are_not():
    draw, known = random.Random(0), 0
    trees = [Tree(draw, draw.randint(0, 2), x=0.7310585) for _ in range(150)]
    for tree in trees:
        if math.isfinite(tree.value):
            assert same_math(tree.latex(), tree.text(), RULES) is True, (tree.text(), tree.latex())
    for a, b in zip(trees, draw.sample(trees, len(trees)), strict=True):
        if math.isfinite(a.value) and math.isfinite(b.value):
            verdict = same_math(a.text(), b.text(), RULES)
            assert verdict is math.isclose(a.value, b.value, rel_tol=1e-9), (a.text(), b.text())
            known += 1
    assert known > 100


def test_equality_holds_in_both_directions_and_under_one_more_operation():
    pairs = [
        ("2(x+1)", "2x+2"),
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
        (r"\sqrt{18}", r"3\sqrt{2}"),
        (r"\log_2 8", "3"),
        (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}"),
        (r"|\sqrt{2} - 2|", r"2 - \sqrt{2}"),
        (r"x \cdot x^{1/3}", r"x^{4/3}"),
    ]
    for a, b in pairs:
        assert same_math(a, b, RULES)
        assert same_math(b, a, RULES)
        assert same_math(f"({a})^2+1", f"1+({b})({b})", RULES)
        assert same_math(f"({a})+1", b, RULES) is False


def test_what_cannot_be_taken_apart_stays_open_and_is_never_called_equal():
    for a, b in [
        (r"\sin^2 x + \cos^2 x", "1"),
        (r"\arcsin 0.5", "30"),
        (r"\sin \pi/6", "0.5"),  # sin(pi/6), or sin(pi)/6?
        ("|x|", "x"),
        ("|x - 20|", "20 - x"),
        (r"\sqrt{(x - y)^2}", "x - y"),
        (r"\ln x^2", r"2 \ln x"),
        (r"\int x", "2"),
    ]:
        assert same_math(a, b, RULES) is None
    assert same_math(r"\sin 2x", r"\sin(2x)", RULES) is True
    assert same_math(r"\sqrt{x^2}", "x", RULES) is None  # it is |x|


@pytest.mark.parametrize(
    ("a", "b", "is_same"),
    [
        (r"\sin 30^\circ", r"\frac12", True),
        (r"\sin 30^{\circ}", r"\sin\frac{\pi}{6}", True),
        (r"\sin 30°", r"\sin(30\degree)", True),
        (r"\sin 30", r"\sin 30°", True),  # nobody means 30 radians
        (r"\sin 2", r"\sin 2°", False),
        (r"\sin 1°", r"\sin\frac{\pi}{180}", True),
        (r"\tan 45°", "1", True),
        (r"\tan 90°", "1", None),  # it has no value
        (r"\cos 90°", "0", True),
        (r"\cos 60°", "-1/2", False),
        (r"\cos 120°", "-1/2", True),
        (r"2\sin 60°", r"\sqrt{3}", True),
        (r"\sin^2 20° + \cos^2 20°", "1", True),
        (r"\sin(30° + 15°)", r"\frac{\sqrt{2}}{2}", True),
        (r"10\sin 35°", "5.7357644", True),
        (r"10\sin 35°", "5.76", False),
        (r"AB\sin 30°", r"\frac{AB}{2}", True),
        (r"\sin 2\pi", "0", True),
        (r"\sin x", r"\cos x", None),
        (r"\tan x", r"\frac{\sin x}{\cos x}", True),
        (r"30° + 60°", "90", True),
        (r"\sin+ 30", r"\sin 30", None),  # no sum, no sign
        (r"\sqrt+{3}", r"\sqrt{3}", None),
    ],
)
def test_sines_are_computed_and_their_angles_may_be_in_degrees(a, b, is_same):
    assert same_math(a, b, RULES) is is_same


def test_noise_after_a_value_or_letter_is_no_part_of_it():
    for kind, gold, right, wrong in [
        (
            "number",
            "12",
            ["12 个", "12 apples", "12 square tiles", "12 tanks"],
            ["12 个²", "12 apples^2", "12ish", "12 odd"],
        ),
        ("number", "2 1/2", [r"2\frac1{2}", "2 1/2 cups"], [r"2\frac1{2}sinn", "2 1/2 logn"]),
        ("mcq", "B", ["【B】", "【B】红色", "(B) 9", "B.9", "[B] 9"], ["【B】9", "[B]3"]),
    ]:
        for answer in (*right, *wrong):
            found = accuracy_reward(f"<think>.</think><answer>{answer}</answer>", gold, kind)
            assert found == (answer in right), answer


def test_decimals_are_compared_as_closely_as_the_rules_say():
    assert same_math("0.333333", "1/3", RULES) is False
    assert same_math("0.33333333", "1/3", RULES) is True
    assert same_math("1/3", "0.33", RULES) is False
    assert same_math("1/3", "0.33", Rules(round_to_gold=True)) is True
    assert same_math(r"2\sqrt{3}", "3.46", Rules(round_to_gold=True)) is True
    assert same_math("3.46", r"2\sqrt{3}", Rules(round_to_gold=True)) is False
    assert same_math("2.96", "3", Rules(precision=1)) is True
    assert same_math("2.9", "3", Rules(precision=0)) is False
    assert same_math("3.0", "3", Rules(precision=0)) is True
    assert same_math("0.13", "12.5%", Rules(round_to_gold=True)) is False


def test_equations_may_be_turned_round_and_multiplied():
    for found in ("2y = 4x + 2", "4x - 2y + 2 = 0", "2x+1 = y"):
        assert same_math(found, "y = 2x + 1", RULES) is True, found
    for found in ("y = 2x", "x = 2y + 1", "0 = 0"):
        assert same_math(found, "y = 2x + 1", RULES) is False, found


def test_whatever_is_short_enough_to_be_read_is_worked_out_in_no_time():
    for text in (
        "(a+b+c+d)^{32}",
        "+".join(f"{n}^{{1/11}}" for n in range(11, 29)),
        "+".join(f"{letter}^{{1/7}}" for letter in "abcdfghijklmnopqrst"),
        "+".join(f"\\sqrt[9]{{{letter}}}" for letter in "abcdfghijklmno"),
        "+".join(f"\\ln {n}" for n in range(2, 10)),
    ):
        start = time.process_time()
        assert same_math(text, text, RULES) is True, text
        assert time.process_time() - start < 0.05, text
