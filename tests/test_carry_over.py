"""The measure of what carries over: scores beside those of `r1ov.evaluate`, faults of thoughts by hand."""

import sys

import pytest

import r1ov
from r1ov import cli
from r1ov.data.playground import FAMILIES, invent
from r1ov.evaluate.__main__ import EvaluateConfig as Asking
from r1ov.evaluate.benchmarks import playground_items
from r1ov.evaluate.runner import answer
from r1ov.evaluate.scoring import score
from tests import carry_over

COUNTED = (
    "Row 1: a1 red star (1), b1 blue circle. Row 2: none. Row 3: c3 red star (2). Row 4: none. That makes 2."
)


def scene(reasoning: str, kind: str = "number"):
    return invent("test", 0, 0)[1]._replace(reasoning=reasoning, kind=kind)


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (COUNTED, None),
        (COUNTED.replace("a1 red star", "a1 red circle"), "pair never seen"),
        (COUNTED.replace("blue circle", "blue square"), "word"),
        (COUNTED.replace("(2)", "(3)"), "number"),
        (COUNTED.replace(", b1 blue circle", ""), "stops early"),
        (COUNTED.replace("makes 2", "makes 3"), "conclusion"),
    ],
)
def test_what_first_goes_wrong_is_named(said, fault):
    assert carry_over.first_fault(scene(COUNTED), f"<think>{said}</think>\n<answer>2</answer>") == fault


def test_sums_and_boxes():
    summed = scene("The picture says 7 + 8. 7 + 8 = 15.")
    assert carry_over.first_fault(summed, "<think>The picture says 7 + 8. 7 + 8 = 16.</think>") == "sum"
    assert carry_over.first_fault(summed, "<think>The picture says 7 + 9. 7 + 9 = 16.</think>") == "number"
    box = scene("The red cross at a2 spans x 3 to 22 and y 30 to 49.", "bbox")
    assert (
        carry_over.first_fault(box, "<think>The red cross at a2 spans x 4 to 20 and y 1 to 9.</think>")
        is None
    )
    assert carry_over.first_fault(box, "<think>The red cross at b2 spans x 3 to 22 and y 30 to 49.</think>")


def test_scores_are_those_of_evaluation():
    model, processor = r1ov.load("r1ov-tiny")
    verdicts = {}
    items = playground_items("generalisation", 28)
    asking = Asking(prompt="none", max_new_tokens=256)
    answer(
        model, processor, items, asking, lambda item, row: verdicts.update({item.id: score(item, row)}), 28
    )
    ours = carry_over.ask("r1ov-tiny", "generalisation", [0], 28, 1, False)
    assert [one.scores[0] for one in ours] == [verdicts[item.id].score for item in items]
    assert 0 < sum(one.scores[0] for one in ours) < 28


def test_the_command_prints_each_family_and_what_changed(monkeypatch, capsys, tmp_path):
    words = [
        "--model",
        "r1ov-tiny-sft",
        "--model",
        "r1ov-tiny",
        "--limit",
        "7",
        "--out",
        str(tmp_path / "a.md"),
    ]
    monkeypatch.setattr(sys, "argv", ["carry_over", *words])
    assert cli.run(carry_over.main) == 0
    shown = capsys.readouterr().out
    assert (tmp_path / "a.md").read_text() == shown
    assert all(f"| {family} | 2 |" in shown for family in FAMILIES)
    assert "question seeds 31 and 32, 7 each" in shown
    monkeypatch.setattr(sys, "argv", ["carry_over", *words[:2], "--limit", "2", "--samples", "8"])
    assert cli.run(carry_over.main) == 0
    assert "| pass@1 | pass@8 |" in capsys.readouterr().out
