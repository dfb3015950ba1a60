"""Files of predictions: torn lines, several processes' parts, other people's rows."""

import json
from dataclasses import asdict

import pytest

from r1ov.common.files import locked
from r1ov.common.journal import Journal
from r1ov.errors import UserError
from r1ov.evaluate.item import Prediction, read_predictions
from r1ov.evaluate.runner import merge, settle

ORDER = {f"q{number}": number for number in range(5)}


def write(path, *rows: Prediction, tail: str = "") -> None:
    path.write_text(
        "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows) + tail, encoding="utf-8"
    )


def test_a_last_line_torn_at_any_byte_is_dropped_and_nothing_else(tmp_path):
    whole = (json.dumps(asdict(Prediction(id="q1", text="答案 é")), ensure_ascii=False) + "\n").encode()
    part = tmp_path / "predictions.rank0.jsonl"
    for cut in range(len(whole) + 1):
        write(part, Prediction(id="q0", text="a\u2028b"))
        part.write_bytes(part.read_bytes() + whole[:cut])
        rows = read_predictions(part, may_be_torn=True)
        assert [row.text for row in rows] == ["a\u2028b", "答案 é"][: 1 + (cut >= len(whole) - 1)]


def test_parts_are_merged_in_order_each_answer_once_and_then_removed(tmp_path):
    write(
        tmp_path / "predictions.jsonl",
        Prediction(id="q3", text="old"),
        Prediction(id="q1", text="", finish_reason="error", error="x"),
    )
    write(
        tmp_path / "predictions.rank0.jsonl",
        Prediction(id="q2", text="b", sample=1),
        Prediction(id="q2", text="a"),
        tail='{"id": "q4", "te',
    )
    write(
        tmp_path / "predictions.rank11.jsonl",
        Prediction(id="q3", text="new"),
        Prediction(id="q1", text="mended"),
        Prediction(id="q0", text="z"),
    )
    expected = [("q0", 0, "z"), ("q1", 0, "mended"), ("q2", 0, "a"), ("q2", 1, "b"), ("q3", 0, "old")]
    for _ in range(2):
        assert [(row.id, row.sample, row.text) for row in merge(tmp_path, ORDER)] == expected
        assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_killed_between_merging_and_removing_the_parts_nothing_is_there_twice(tmp_path):
    rows = [Prediction(id="q0", text="a"), Prediction(id="q1", text="b")]
    write(tmp_path / "predictions.jsonl", *rows)
    write(tmp_path / "predictions.rank0.jsonl", *rows[:1])
    write(tmp_path / "predictions.jsonl.new", tail="{")
    assert merge(tmp_path, ORDER) == rows


def test_of_other_peoples_rows_id_and_text_are_enough(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"id": 7, "text": "x", "model": "y", "finish_reason": "eos", "completion_tokens": null}\n\n'
        '{"id": "8", "text": ""}'
    )
    assert read_predictions(path) == [Prediction(id="7", text="x"), Prediction(id="8", text="")]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "7", "text": "x"}\n', encoding="utf-8-sig")
    assert read_predictions(path) == [Prediction(id="7", text="x")]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '"x"',
        '{"id": "a"}',
        '{"text": "a"}',
        '{"id": "a", "text": "b", "sample": "one"}',
        '{"id": "a", "text": ["one reply", "and another"]}',
        "[" * 50_000,
    ],
)
def test_a_row_that_is_none_is_named_by_its_line(tmp_path, line):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a", "text": "b"}\n' + line + "\n")
    with pytest.raises(UserError, match=r"p\.jsonl, row 2: expected an object such as"):
        read_predictions(path)


def test_any_text_comes_back_as_it_was(tmp_path):
    row = Prediction(
        id="q0",
        text='lone \udc80, quotes " \\ and\nlines\u2029 <answer>',
        finish_reason="length",
        error="bad \ud800 name",
    )
    with Journal(tmp_path / "predictions.rank0.jsonl", "id", sync=False) as journal:
        journal.append(asdict(row))
        assert read_predictions(tmp_path / "predictions.rank0.jsonl") == [row]
    assert merge(tmp_path, ORDER) == merge(tmp_path, ORDER) == [row]


def test_two_evaluations_cannot_write_to_one_folder(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(UserError, match="another process is at work in this folder"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def test_settings_may_differ_only_in_how_they_are_run(tmp_path):
    settle(tmp_path, {"seed": 1, "run": {"device": "cpu"}})
    settle(tmp_path, {"seed": 1, "run": {"device": "cuda"}})
    for other in ({"seed": 2, "run": {}}, {"run": {}}, {"seed": 1, "top_k": 5, "run": {}}):
        with pytest.raises(UserError, match="choose another --out"):
            settle(tmp_path, other)
    (tmp_path / "settings.json").write_text("[1]")
    with pytest.raises(UserError, match=r"settings\.json: a JSON list, expected an object"):
        settle(tmp_path, {"seed": 1})
