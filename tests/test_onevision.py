"""r1ov.data.formats.onevision: replies in the layouts that users of the published data describe, cleaned by
hand beside what comes out.
"""

import contextlib
import re
import time

import pytest

from r1ov.data.formats.layouts import read_row
from r1ov.data.formats.onevision import clean, clean_reply
from r1ov.data.formats.records import BadRow

CHOICE = "Hint: Please answer with the option letter.\nQuestion: What is the angle?\nChoices:\n(A) 30\n(B) 45"
PLAIN = "What is the angle?"
CHART = "Please summarize the chart."
# VLM-R1's format reward asks for this (grpo_jsonl.py, `format_reward`).
FORMAT = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)


@pytest.mark.parametrize(
    ("question", "reply", "thought", "answer", "repairs"),
    [
        # as it should be
        (PLAIN, "<think>T.</think>\n<answer>45</answer>", "T.", "45", []),
        (PLAIN, "  <think>\nT.\n</think><answer> 45 degrees </answer>\n", "T.", "45 degrees", []),
        # (a) the answer inside the thought
        (
            PLAIN,
            "<think>T. The answer is 45.</think>",
            "T. The answer is 45.",
            "45",
            ["answer taken from the thought's end"],
        ),
        (
            PLAIN,
            "<think>T.\n\n**Final Answer:** 45 degrees</think>",
            "T.",
            "45 degrees",
            ["answer taken from the thought's end"],
        ),
        (
            CHOICE,
            "<think>T, so the correct option is (B).</think>",
            "T, so the correct option is (B).",
            "B",
            ["answer taken from the"],
        ),
        (
            CHOICE,
            "<think>T, thus B is the correct answer.</think>",
            "T, thus B is the correct answer.",
            "B",
            ["answer taken from the"],
        ),
        (
            PLAIN,
            r"<think>T: \(\boxed{\frac{1}{2}}\).</think>",
            r"T: \(\boxed{\frac{1}{2}}\).",
            r"\frac{1}{2}",
            ["answer taken from the"],
        ),
        (PLAIN, "<think>T.<answer>45</answer></think>", "T.", "45", ["answer moved out of the thought"]),
        # (b) a thought, then a short answer
        (CHOICE, "<think>T.</think>\n\nAnswer: B", "T.", "B", ["answer tags added"]),
        (CHOICE, "<think>T.</think> B. 45", "T.", "B", ["answer tags added"]),
        (CHOICE, "<think>T.</think> The correct answer is option B.", "T.", "B", ["answer tags added"]),
        (PLAIN, "<think>T.</think> **45°**", "T.", "45°", ["answer tags added"]),
        (PLAIN, "<think>T.</think> The final answer is: $3.5$ cm.", "T.", "3.5$ cm", ["answer tags added"]),
        (PLAIN, "<think>T.</think> **Answer:**\n\nyes", "T.", "yes", ["answer tags added"]),
        (
            CHART,
            "<think>T.</think> Sales rise. Then they fall.\nSo it goes.",
            "T.",
            "Sales rise. Then they fall.\nSo it goes.",
            ["answer tags"],
        ),
        # (d) a thought, then an answer that reasons again
        (
            CHOICE,
            "<think>T.</think> Let us look again. "
            + "The lines cross at a right angle, halved by the ray. " * 3
            + "So the answer is B.",
            "T.",
            "B",
            ["reasoning after the thought left out"],
        ),
        (
            PLAIN,
            "<think>T.</think> First A. <answer>45</answer> Done.",
            "T.",
            "45",
            ["reasoning after the thought left out"],
        ),
        # tags that went astray
        (
            PLAIN,
            "T. The answer is 45.</think>",
            "T. The answer is 45.",
            "45",
            ["<think> added", "answer taken from"],
        ),
        (
            PLAIN,
            "<think>T.</think> Answer: 45 </think>",
            "T.",
            "45",
            ["stray </think> at the end", "answer tags added"],
        ),
        (
            PLAIN,
            "<think>T. The answer is 45.",
            "T. The answer is 45.",
            "45",
            ["</think> added", "answer taken from"],
        ),
        (
            PLAIN,
            "T. The answer is 45.",
            "T. The answer is 45.",
            "45",
            ["think tags added", "answer taken from"],
        ),
        (PLAIN, "T.\n<answer>45</answer>", "T.", "45", ["think tags added"]),
        # remarks of the rewriting model
        (
            PLAIN,
            "<think>**Revised CoT:**\nT.</think> Answer: 45",
            "T.",
            "45",
            ["remarks of", "answer tags added"],
        ),
        (
            PLAIN,
            "<think>T.\n(No further visualization needed.)</think> 45",
            "T.",
            "45",
            ["remarks of", "answer tags added"],
        ),
    ],
)
def test_each_layout_becomes_thought_and_answer(question, reply, thought, answer, repairs):
    cleaned = clean_reply(question, reply)
    assert (cleaned.thought, cleaned.answer) == (thought, answer)
    assert len(cleaned.repairs) == len(repairs)
    assert all(found.startswith(expected) for found, expected in zip(cleaned.repairs, repairs, strict=True))
    assert FORMAT.fullmatch(cleaned.text)
    again = clean_reply(question, cleaned.text)  # what is clean stays as it is
    assert (again.text, again.repairs) == (cleaned.text, ())


@pytest.mark.parametrize(
    ("question", "reply", "reason"),
    [
        (PLAIN, "<think>T, and so on.</think>", "a thought without an answer"),  # (c)
        (
            PLAIN,
            "<think>The answer is 3? No." + " More thought follows." * 30 + "</think>",
            "a thought without an answer",
        ),
        (PLAIN, "<think>T.</think> First we add. Then we halve what we have.", "names no answer"),
        (PLAIN, "<think>T.</think> One line.\nAnother line.", "names no answer"),
        (PLAIN, "<think>So the answer is 40.</think> Answer: 45", "ends in another answer"),
        (CHOICE, "<think>So the answer is (A).</think> <answer>B</answer>", "ends in another answer"),
        (PLAIN, "<think> </think> 45", "the thought is empty"),
        (PLAIN, "<think>a</think><think>b</think> 45", "think tags do not pair"),
        (PLAIN, "</think>a<think> 45", "wrong way round"),
        (PLAIN, "Before. <think>a</think> 45", "text before the thought"),
        (PLAIN, "<think>a</think><answer>4</answer><answer>5</answer>", "answer tags do not pair"),
        (PLAIN, "<think>a</think><answer>4", "answer tags do not pair"),
        (PLAIN, "<think>a <answer>4</answer></think> Answer: 4", "inside and after"),
        (
            PLAIN,
            "<think>In the revised CoT" + " we look at the angle" * 9 + ".</think> 45",
            "remark of the rewriting model",
        ),
    ],
)
def test_what_cannot_be_brought_into_order_is_dropped_for_a_reason(question, reply, reason):
    with pytest.raises(BadRow, match=reason):
        clean_reply(question, reply)


def test_agreement_is_judged_by_value_and_only_where_both_are_of_a_kind():
    assert clean_reply(PLAIN, "<think>The answer is 0.50.</think> Answer: 1/2").answer == "1/2"
    assert clean_reply(CHOICE, "<think>The answer is 45.</think> Answer: B").answer == "B"


def test_a_record_gets_its_reply_and_its_solution_and_keeps_the_rest():
    turns = [
        {"from": "human", "value": f"<image>{CHOICE}"},
        {"from": "assistant", "value": "<think>T.</think> Answer: B"},
    ]
    record = read_row({"id": "a", "image": "x.png", "conversations": turns})
    cleaned = clean(record)
    assert cleaned.reply == "<think>T.</think>\n<answer>B</answer>"
    assert (cleaned.solution, cleaned.repairs) == ("B", ("answer tags added",))
    assert cleaned.prompt == record.prompt
    assert record.reply == "<think>T.</think> Answer: B"
    bare = read_row({"problem": "x", "answer": "1"})
    assert clean(bare) is bare


def test_a_very_long_reply_is_cleaned_in_reasonable_time():
    begin = time.process_time()
    for filling in (
        "the answer is ",
        "\\boxed{",
        "* ",
        "no x visualization ",
        "a is the correct ",
        "\n",
        " ",
        "a",
    ):
        with contextlib.suppress(BadRow):
            clean_reply(CHOICE, "<think>" + filling * 20_000 + "</think> " + filling * 20_000)
    assert (
        time.process_time() - begin < 5
    )  # of the processor: each is linear, tens of milliseconds; a quadratic one would take minutes
