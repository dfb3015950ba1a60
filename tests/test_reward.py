"""Answers and formats, each case judged by hand."""

import pytest

from r1ov.common.files import split_reply
from r1ov.reward import accuracy_reward, format_reward
from r1ov.reward.accuracy import kind_of
from r1ov.reward.rules.boxes import iou


def reply(answer, thinking="so"):
    return f"<think>{thinking}</think>\n<answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("answer", "gold", "kind", "score"),
    [
        ("4", "4", "number", 1.0),
        (" 4. ", "4", "number", 1.0),
        ("4.0", "4", "number", 1.0),
        ("8/2", "4", "number", 1.0),
        ("1,024", "1024", "number", 1.0),
        ("x = -3", "-3", "number", 1.0),
        ("150°", "150", "number", 1.0),
        ("5", "4", "number", 0.0),
        ("4 or 5", "4", "number", 0.0),
        ("four", "4", "number", 0.0),
        ("1/0", "4", "number", 0.0),
        ("", "4", "number", 0.0),
        ("Blue  Star.", "blue star", "text", 1.0),
        ("the blue star", "blue star", "text", 1.0),
        ("blue stars", "blue star", "text", 0.0),
        ("B", "B", "mcq", 1.0),
        ("(b)", "B", "mcq", 1.0),
        ("**B**", "B", "mcq", 1.0),
        ("B. blue star", "B", "mcq", 1.0),
        ("Option B", "B", "mcq", 1.0),
        ("A or B", "B", "mcq", 0.0),
        ("Because", "B", "mcq", 0.0),
        ("Yes.", "yes", "yes_no", 1.0),
        ("yes and no", "yes", "yes_no", 0.0),
        ("no", "yes", "yes_no", 0.0),
        ("[10, 10, 20, 20]", "[10, 10, 20, 20]", "bbox", 1.0),
        ("[10, 10, 20, 20]", "[10, 10, 20, 30]", "bbox", 1.0),  # IoU exactly one half
        ("[10, 10, 20, 19]", "[10, 10, 20, 30]", "bbox", 0.0),
        ("[20, 10, 10, 20]", "[10, 10, 20, 20]", "bbox", 0.0),  # not a box
        ("[10, 10, 20]", "[10, 10, 20, 20]", "bbox", 0.0),
    ],
)
def test_answers_are_judged_as_by_hand(answer, gold, kind, score):
    assert accuracy_reward(reply(answer), gold, kind) == score


@pytest.mark.parametrize(
    "text",
    [
        "4",
        "<answer>4</answer><answer>4</answer>",
        "<think><answer>4</answer></think>",
        "<answer>4",
        "</answer>4<answer>",
    ],
)
def test_only_one_answer_block_after_the_thought_counts(text):
    assert accuracy_reward(text, "4", "number") == 0.0


def test_an_answer_inside_the_thought_does_not_count():
    assert accuracy_reward("<think><answer>4</answer></think><answer>5</answer>", "4", "number") == 0.0


def test_an_unscorable_gold_gives_no_score_and_an_unknown_kind_is_refused():
    assert accuracy_reward(reply("4"), "four", "number") is None
    with pytest.raises(ValueError, match="kind is 'colour'"):
        accuracy_reward(reply("4"), "4", "colour")


def test_the_kind_comes_from_the_gold():
    golds = {"B": "mcq", "yes": "yes_no", "1,024": "number", "[1, 2, 30, 40]": "tuple", "blue star": "text"}
    golds |= {
        '{"bbox_2d": [1, 2, 30, 40]}': "bbox",
        "(1, 2)": "tuple",
        "[1, 2]": "math",
        "2 and 3": "set",
        "A, C": "mcq",
    }
    assert {gold: kind_of(gold) for gold in golds} == golds


def test_iou_worked_by_hand():
    assert iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0.0


def test_a_reply_is_split_into_thought_and_answer():
    assert split_reply("<think>2+2</think>\n<answer>4</answer>") == ("2+2", "4")
    assert split_reply("<think>2+2") == ("2+2", None)
    assert split_reply("just 4") == (None, None)


def test_the_format_does_not_care_whether_the_answer_is_right():
    assert format_reward(reply("nonsense")) == format_reward(reply("4")) == 1.0


def test_an_endless_reply_has_no_format():
    assert format_reward(reply("a" * 2_000_000)) == 0.0
    with pytest.raises(ValueError, match="mode is 'loose'"):
        format_reward("", mode="loose")
