"""Choices by letter and by text, judged by hand; the number's own reader."""

from fractions import Fraction

import pytest

from r1ov.reward import Rules, accuracy_reward, score_answer
from r1ov.reward.rules.numbers import Number, read_number, read_unit, split_unit
from r1ov.reward.rules.reading import read_choice

COLOURS = ("red", "blue", "green", "blue")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"),
        ("D", "B"),  # the same text as B
        ("blue", "B"),
        ("The blue.", "B"),
        ("C. green", "C"),
        ("C. red", None),  # two choices in one answer
        ("E", None),
        ("red or blue", None),
        ("greenish", None),
        ("", None),
    ],
)
def test_choices_with_known_texts(answer, letter):
    assert read_choice(answer, COLOURS) == letter


def test_a_choice_may_speak_of_other_letters_if_its_text_is_known():
    assert read_choice("C. Both A. and B. hold", ("x", "y", "Both A. and B. hold")) == "C"
    assert read_choice("C. Both A. and B. hold") is None


def test_the_number_of_choices_bounds_the_letters():
    assert read_choice("E", "ABCD") is None
    assert read_choice("D", "ABCD") == "D"


def test_a_value_picks_the_choice_that_it_equals():
    rules = Rules(choices=("0.5", "30°", r"$\sqrt{2}$", "12 cm"))
    for answer, gold in {"1/2": "A", "30": "B", "2^{1/2}": "C", "12": "D", r"\frac{\sqrt8}{2}": "C"}.items():
        assert score_answer(answer, gold, "mcq", rules) == 1.0, answer
    for answer, gold in {"0.51": "A", "12 m": "D", "1.41421": "C"}.items():
        assert score_answer(answer, gold, "mcq", rules) == 0.0, answer
    assert score_answer("30°", "30°", "mcq", rules) == 1.0  # a gold given as text


def test_a_gold_outside_the_choices_cannot_be_scored():
    assert score_answer("A", "E", "mcq", Rules(choices=COLOURS)) is None
    assert accuracy_reward("<answer>A</answer>", "apple", "mcq") is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234.50", Number(Fraction(2469, 2), 2)),
        ("-1 1/2", Number(Fraction(-3, 2))),
        ("12.5%", Number(Fraction(1, 8), 3, True)),
        (r"3 \times 10^{-2}", Number(Fraction(3, 100))),
        ("1.50e1 km", Number(Fraction(15), 1, False, "km")),
        ("$5", Number(Fraction(5))),
        ("5 square metres", Number(Fraction(5), None, False, "m^2")),
        ("5 apples", Number(Fraction(5), None, False, "apple")),
        ("5 million", None),
        ("5x", None),
        ("1 2", None),
        ("1,23", None),
        ("1e301", None),
        ("", None),
    ],
)
def test_numbers_are_read_exactly(text, number):
    assert read_number(text) == number


def test_units_have_one_spelling():
    spellings = {
        "centimetres": "cm",
        "cm": "cm",
        "sq. feet": "ft^2",
        "cubic meters": "m^3",
        "kilograms": "kg",
        "meters/second": "m/s",
        "degrees": "",
    }
    assert {text: read_unit(text) for text in spellings} == spellings
    assert read_unit("or") is read_unit("x") is read_unit("thousands") is None
    assert split_unit(r"9\pi \mathrm{cm}^{2}") == (r"9\pi", "cm^2")
    assert split_unit("2x") == ("2x", "")  # a letter may be a variable


def test_a_sine_of_degrees_or_a_variable_states_no_unit():
    scores = {
        ("3m", r"(3m)^\circ"): 1.0,
        (r"\sin 30°", "50%"): 1.0,
        (r"\sin 30^\circ", "0.5 radians"): 1.0,
        ("30°", "30 radians"): 0.0,
    }
    assert {pair: score_answer(*pair, "math") for pair in scores} == scores


def test_a_choice_is_not_picked_by_the_value_of_another_unit():
    rules = Rules(choices=("60°", "$6", "12 cm"))
    for answer, gold in {"60 degrees": "A", "6 dollars": "B", "6": "B"}.items():
        assert score_answer(answer, gold, "mcq", rules) == 1.0, answer
    for answer, gold in {"60 radians": "A", "6 cents": "B"}.items():
        assert score_answer(answer, gold, "mcq", rules) == 0.0, answer


def test_percent_is_a_hundredth_and_bare_only_where_the_gold_says_percent():
    scores = {("12%", "0.12"): 1.0, ("0.12", "12%"): 1.0, ("12", "12%"): 1.0, ("12%", "12"): 0.0}
    assert {pair: score_answer(*pair, "number") for pair in scores} == scores
