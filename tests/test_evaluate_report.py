"""The report's numbers by hand, and its files as other programs read them."""

import json
from dataclasses import replace

import pytest

from r1ov.evaluate.item import Item, Prediction, Verdict
from r1ov.evaluate.metrics import wilson
from r1ov.evaluate.report import (
    Table,
    by_tag,
    dividing_tags,
    markdown,
    overall_table,
    samples_table,
    tables_of,
    write_report,
)


def one(
    id: str,
    score: float,
    answer: str | None = "1",
    method: str = "tag",
    sample: int = 0,
    tokens: int = 10,
    **item,
) -> Verdict:
    reason = {"error": "error", "truncated": "length"}.get(method, "stop")
    return Verdict(
        item=Item(bench="b", split="s", id=id, question="q", answer="1", **item),
        prediction=Prediction(
            id=id,
            text="t",
            sample=sample,
            finish_reason=reason,
            completion_tokens=tokens,
            error="gone" * (method == "error") or None,
        ),
        score=score,
        answer=answer,
        method=method,
        well_formed=score,
    )


def values(table: Table) -> dict:
    return {row[0]: row[1] for row in table.rows}


TEN = [
    *[
        one(str(number), 1.0, tokens=number + 1, tags={"level": "1", "skills": ("a", "b")})
        for number in range(5)
    ],
    *[
        one(str(number), 0.0, "2", tokens=number + 1, tags={"level": "2", "skills": ("b",)})
        for number in range(5, 7)
    ],
    one("7", 0.0, None, "unparsed", tokens=100, tags={"level": "2"}),
    one("8", 0.0, None, "truncated", tokens=200, tags={"level": "10"}),
    one("9", 0.0, None, "error", tokens=0, tags={"level": "10"}),
]


def test_the_overall_numbers_are_those_of_hand():
    table = values(overall_table(TEN))
    assert table == {
        "questions": 10,
        "accuracy": 0.5,  # errors stay in the denominator
        "95% interval": pytest.approx(wilson(5, 10)),
        "answer could be read": 0.7,
        "cut off at the token limit": 0.1,
        "accuracy where not cut off": pytest.approx(5 / 9),
        "well-formed (think and answer tags)": 0.5,
        "tokens, mean": 33,
        "errors, counted as wrong": 1,
    }


def test_a_tag_with_several_values_counts_for_each_and_all_is_all():
    (table,) = by_tag(TEN, "skills")
    assert [row[:3] for row in table.rows] == [("a", 5, 1.0), ("b", 7, 5 / 7), ("all", 10, 0.5)]
    assert dividing_tags([one("0", 1.0, tags={"x": "same"})] * 2) == []


def test_several_samples_give_their_mean_and_pass_at_k():
    answers = {"x": ["1", "2", "2", None], "y": ["1", "1 ", "3", "4"]}
    rows = [
        one(id, float((answer or "").strip() == "1"), answer, "tag" if answer else "unparsed", sample)
        for id, texts in answers.items()
        for sample, answer in enumerate(texts)
    ]
    table = values(*samples_table(rows))
    # x: one of four right; y: two of four, whose spelling differs by a space
    assert table == {
        "pass@1": pytest.approx(3 / 8),
        "pass@2": pytest.approx((1 / 2 + 5 / 6) / 2),
        "pass@4": 1.0,
    }
    overall = values(overall_table(rows))
    assert (overall["questions"], overall["accuracy"]) == (2, 3 / 8)


def test_the_judge_stands_in_rows_of_its_own():
    judged = [
        *TEN[:7],
        replace(TEN[7], judged=1.0),
        *TEN[8:],
    ]
    table = values(overall_table(judged))
    assert (table["accuracy"], table["asked of the judge"], table["accuracy by rules and judge"]) == (
        0.5,
        1,
        0.6,
    )


def test_a_benchmarks_own_tables_are_shown_and_other_tags_are_in_the_report():
    loose = Table("loose", ("metric", "score"), (("loose", 0.25),))
    shown, more = tables_of(("level", lambda verdicts: [loose]), TEN)
    assert [table.title for table in shown] == ["overall", "by level", "loose"]
    assert "95% interval" in shown[1].columns
    assert [table.title for table in more] == ["how answers were read", "by skills", "errors, 1 of 1"]


def test_both_files_say_the_same(tmp_path):
    hostile = Table(
        "by x|y",
        ("tag", "questions", "right", "95% interval"),
        (("a|b <b>\n", 3, 1 / 3, (0.1, 0.9)), ("none", 0, None, None)),
    )
    write_report(tmp_path, "b s: m", [hostile], {"seed": 0, "system": None, "run": {"device": "cpu"}})
    text = (tmp_path / "report.md").read_text()
    assert (
        "| tag | questions | right | 95% interval |\n|---|---:|---:|---:|\n"
        "| a\\|b &lt;b>  | 3 | 33.3% | 10.0% to 90.0% |" in text
    )
    assert "| device | cpu |" in text
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["tables"][0]["columns"] == ["tag", "questions", "right", "95% interval"]
    assert data["tables"][0]["rows"][0] == ["a|b <b>\n", 3, 1 / 3, [0.1, 0.9]]


def test_text_stands_left_and_numbers_right():
    assert markdown(Table("", ("a", "b", "c"), (("x", 1, "y"),))).splitlines()[1] == "|---|---:|---|"
