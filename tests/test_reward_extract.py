"""Where the answer stands, each reply judged by hand."""

import pytest

from r1ov.reward.rules.reading import MAX_ANSWER, boxed, extract_answer, plain, unwrap

LONG = "The picture shows a triangle whose sides are given, so I look at them one by one. "


@pytest.mark.parametrize(
    ("reply", "answer", "method"),
    [
        # the ladder, first rung to last
        ("<think>a</think><answer>B</answer>", "B", "tag"),
        ("<answer>A</answer> wait, <answer>B</answer>", "B", "tag"),
        ("<answer>B</answer><answer> </answer>", "B", "tag"),
        (LONG + "Answer: C <answer>B</answer>", "B", "tag"),
        ("<think>a</think><answer>B", "B", "tag"),
        ("<think><answer>A</answer></think>" + LONG + r"So \boxed{B}", "B", "boxed"),
        (LONG + r"Answer: A. But then \boxed{B}.", "B", "boxed"),
        (LONG + r"\boxed{A} is tempting. Answer: B", "B", "phrase"),
        (LONG + r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}", "boxed"),
        (LONG + "**Answer:** B", "B", "phrase"),
        (LONG + "Answer: (B)", "(B)", "phrase"),
        (LONG + "The Answer is B", "B", "phrase"),
        (LONG + "The answer is B. Because the sides are equal.", "B. Because the sides are equal", "phrase"),
        (LONG + "The final answer is 12 cm. That is all.", "12 cm", "phrase"),
        (LONG + "The correct option is: D", "D", "phrase"),
        (LONG + "Answer:\nD", "D", "phrase"),
        (LONG + "答案是：B。", "B", "phrase"),
        ("B", "B", "short"),
        ("It is 12.", "It is 12.", "short"),
        (LONG, None, "unparsed"),
        ("As the figure shows, nothing can be said about the four sides of it.", None, "unparsed"),
        ("", None, "unparsed"),
        # a thought that never ended is never read
        ("<think>the answer is B", None, "truncated"),
        ("<think>a</think>b<think>Answer: B", None, "truncated"),
    ],
)
def test_the_ladder_finds_what_a_reader_would(reply, answer, method):
    assert extract_answer(reply, "auto") == (answer, method)


def test_a_reply_cut_off_inside_its_answer_gives_none():
    assert extract_answer("<think>a</think><answer>1", "auto", finished=False) == (None, "truncated")


def test_training_takes_the_only_answer_block_and_nothing_else():
    assert extract_answer("<think>a</think><answer> 4 </answer>") == ("4", "tag")
    for reply in ("<answer>4</answer><answer>4</answer>", "<answer>4", r"\boxed{4}", "Answer: 4", "4"):
        assert extract_answer(reply).answer is None, reply


def test_boxed_takes_the_last_box_of_the_answers_region():
    assert extract_answer(r"<think>\boxed{1}</think>\boxed{2} \boxed{3}", "boxed") == ("3", "boxed")
    assert extract_answer(r"<think>a</think>\boxed{1}<answer>\boxed{2}</answer>", "boxed") == ("2", "boxed")
    assert extract_answer(r"<think>\boxed{1}</think>2", "boxed").answer is None
    assert extract_answer(r"<think>a</think>\boxed{1}<answer>2</answer>", "boxed").answer is None
    with pytest.raises(ValueError, match="answer_from is 'box'"):
        extract_answer("4", "box")


def test_an_answer_too_long_is_none():
    assert extract_answer(f"<answer>{'1' * MAX_ANSWER}</answer>").answer is not None
    assert extract_answer(f"<answer>{'1' * (MAX_ANSWER + 1)}</answer>").answer is None


def test_boxes_are_matched_by_their_braces():
    assert boxed(r"\boxed{\{1, 2\}}") == [r"\{1, 2\}"]
    assert boxed(r"\boxed {a{b}c} and \fbox{d}") == ["a{b}c", "d"]
    assert boxed(r"\boxed{open") == []
    assert boxed("}{") == []


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        (r"$5\dfrac12\,\text{cm}²$", r"5\frac{1}{2} \text{cm}^{2}"),
        ("3½", "3 1/2"),
        ("x₁ − ２", "x1 - 2"),
        (r"\left( 1 , 2 \right]", "( 1 , 2 ]"),
        (r"69^\circ 69^{\circ} 69{degrees} 69掳 69Â° 69º", "69° 69° 69° 69° 69° 69°"),
        ("1{,}234 50\\%", "1,234 50%"),
        ("\frac{13}{36}", r"\frac{13}{36}"),
    ],
)
def test_spellings_of_the_same_become_one(text, spelling):
    assert plain(text) == spelling


def test_wrappers_fall_off():
    assert unwrap(r"**\text{blue star}.**") == "blue star"
