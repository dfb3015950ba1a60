"""Two evaluations side by side: hand-worked numbers, and what cannot be compared."""

import json
import sys

from r1ov.cli import run
from r1ov.evaluate.__main__ import main


def folder(path, scores: dict[str, list[float]], gold: str = "1", group=None):
    path.mkdir()
    rows = [
        {
            "id": id,
            "sample": sample,
            "score": score,
            "gold": gold,
            "answer": "1" if score else "2",
            "method": "tag",
            "group": group and group[id],
        }
        for id, own in scores.items()
        for sample, score in enumerate(own)
    ]
    (path / "verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def called(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["r1ov.evaluate", "compare", *words])
    try:
        status = run(main)
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def test_the_numbers_are_those_of_hand(tmp_path, monkeypatch, capsys):
    # 20 questions: 10 right in both, 6 only in the second, 1 only in the first, 3 in neither
    first = {str(number): [float(number < 11)] for number in range(20)}
    second = {str(number): [float(number != 10 and number < 17)] for number in range(20)}
    a, b = folder(tmp_path / "a", first), folder(tmp_path / "b", second)
    status, out, err = called(monkeypatch, capsys, a, b)
    assert (status, err) == (0, "")
    assert f"| {a} | 55.0% |" in out
    assert f"| {b} | 80.0% |" in out
    assert "| difference | +25.0 points |" in out
    assert "| only the second right, or righter | 6 |" in out
    assert "| only the first | 1 |" in out
    assert "| McNemar's exact p | 0.125 |" in out  # 2 * (1 + 7) / 128
    assert "7 questions changed" in out
    assert "| 10 | 1 | 1 | 2 | -1 |" in out
    assert "| 16 | 1 | 2 | 1 | +1 |" in out
    low, high = (
        float(word) for word in out.split("95% interval of it | ")[1].split(" points")[0].split(" to ")
    )
    assert 0 <= low < 25 < high <= 50


def test_other_questions_are_refused_unless_the_common_ones_are_asked_for(tmp_path, monkeypatch, capsys):
    a, b = (
        folder(tmp_path / "a", {"x": [1.0], "y": [0.0]}),
        folder(tmp_path / "b", {"x": [0.0], "z": [1.0], "w": [1.0]}),
    )
    status, out, err = called(monkeypatch, capsys, a, b)
    assert (status, out) == (2, "")
    assert "the questions differ: 1 are only in" in err
    assert "2 only in" in err
    status, out, _ = called(monkeypatch, capsys, a, b, "--common")
    assert status == 0
    assert "| questions | 1 |" in out
    assert "1 of the first's and 2 of the second's are left out" in out


def test_samples_of_a_question_are_averaged(tmp_path, monkeypatch, capsys):
    a, b = (
        folder(tmp_path / "a", {"x": [1.0, 0.0], "y": [0.0, 0.0]}),
        folder(tmp_path / "b", {"x": [1.0, 1.0], "y": [1.0, 0.0]}),
    )
    out = called(monkeypatch, capsys, a, b)[1]
    assert "| difference | +50.0 points |" in out


def mistakes(path) -> dict[str, list[str]]:
    a, b, c = (
        folder(path / "a", {"x": [1.0]}),
        folder(path / "b", {"x": [1.0]}, gold="2"),
        folder(path / "c", {"y": [1.0]}),
    )
    (path / "empty").mkdir()
    (path / "none.jsonl").touch()
    (path / "rows.jsonl").write_text('{"id": "x", "text": "y"}\n')
    return {
        "required": [a],
        "cannot be read": [a, str(path / "empty")],
        "it has no rows": [a, str(path / "none.jsonl")],
        "row 1: expected": [a, str(path / "rows.jsonl")],
        "has gold '1' in one and '2'": [a, b],
        "no question in common": [a, c, "--common"],
        "unrecognized": [a, a, "--bogus"],
    }


def test_a_mistake_gives_one_line_and_status_2(tmp_path, monkeypatch, capsys):
    for said, words in mistakes(tmp_path).items():
        status, out, err = called(monkeypatch, capsys, *words)
        assert (status, out) == (2, ""), words
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert said in err
