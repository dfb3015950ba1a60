"""What predictions are worth, against golds and replies judged by hand."""

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from r1ov.data.image import LazyImage
from r1ov.data.steps import recognised_unit
from r1ov.evaluate.__main__ import EvaluateConfig as Asking
from r1ov.evaluate.benchmarks import load_items
from r1ov.evaluate.item import Item, Prediction, Verdict
from r1ov.evaluate.runner import _encode, record_of
from r1ov.evaluate.scoring import score
from r1ov.folder.pretrained import read_processor, resolve

FOLDER = Path(__file__).parent


def item(kind: str, gold: str, **more) -> Item:
    """kind: int, float2, list, text, math, auto, mcq5 (this many letters) or mcq:one|two|three."""
    fields = {"kind": kind}
    if kind.startswith("mcq:"):
        fields = {"kind": "mcq", "choices": tuple(kind[4:].split("|"))}
    elif kind.startswith("mcq"):
        fields = {"kind": "mcq", "choices": tuple("ABCDEFGH"[: int(kind[3:])])}
    elif kind == "int":
        fields = {"kind": "number", "is_integer": True}
    elif kind.startswith("float"):
        fields = {"kind": "number", "precision": int(kind[5:])}
    elif kind in ("list", "auto"):
        fields = {"kind": {"list": "tuple", "auto": None}[kind]}
    return Item(bench="b", split="s", id="1", **{"question": "How many?", "answer": gold, **fields, **more})


def verdict(one: Item, text: str, finish_reason: str = "stop") -> Verdict:
    return score(one, Prediction(id="1", text=text, finish_reason=finish_reason))


def table(name: str) -> list[list[str]]:
    lines = (FOLDER / name).read_text(encoding="utf-8").split("\n")[1:-1]
    return [line.replace("⏎", "\n").replace("␌", "\f").split("\t") for line in lines]


@pytest.mark.parametrize(
    "style",
    [
        "<think>so</think><answer>{}</answer>",
        "I see a circle and two lines in it.\n\nAnswer: {}",
        "\\boxed{{{}}}",
    ],
)
def test_golds_answer_themselves_in_every_kind(style):
    golds = table("evaluate_golds.tsv")
    assert len(golds) >= 200
    count, right, wrong = Counter(), Counter(), []
    for kind, gold in golds:
        name = kind.rstrip("0123456789").partition(":")[0]
        found = verdict(item(kind, gold), style.format(gold))
        count[name] += 1
        right[name] += found.score == 1.0
        if found.score != 1.0:
            wrong.append((kind, gold, found.answer, found.method))
    assert all(right[name] >= 0.99 * count[name] for name in count), wrong


def test_every_hand_judged_reply_gets_its_score():
    cases, wrong = table("evaluate_cases.tsv"), []
    assert len(cases) >= 200
    for kind, gold, finish_reason, worth, method, reply in cases:
        found = verdict(item(kind, gold), reply, finish_reason)
        if (found.score, found.method) != (float(worth), method):
            wrong.append(f"{kind} {gold!r}: {reply!r} is {worth} by {method}, got {found}")
    assert not wrong, "\n".join(wrong)


EQUAL = [
    {"1:2", "$k=\\frac{1}{2}$"},
    {"$x=3$", "3 \\text{ units}^3", "\\log_2 8"},
    {"Length $=5$ units", "AB=5", "5 \\mathrm{mg}"},
]
EQUAL += [
    {"2^{10}", "1{,}024"},
    {"n(n+1)/2", "\\frac{n(n+1)}{2}"},
    {"Volume $=254.469$ units $^{3}$", "$254.469 units ^{3}$"},
]
EQUAL += [{"Area =113.1 cm^2", "Surface Area $=113.1 \\mathrm{cm}^{2}$"}]


def test_no_gold_answers_another_one():
    """A gold against some after it in the table: the next ones are like it. Those that are equal were judged
    by hand.
    """
    golds = [gold for kind, gold in table("evaluate_golds.tsv") if kind == "math" and "\f" not in gold]
    for place, gold in enumerate(golds):
        for other in golds[place + 1 : place + 4] + golds[place + 40 : place + 42]:
            same = any({gold, other} <= group for group in EQUAL)
            assert verdict(item("math", gold), f"<answer>{other}</answer>").score == float(same), (
                gold,
                other,
            )


def test_what_could_not_be_asked_or_answered_scores_0_and_is_called_an_error():
    broken = item("int", "7", error="a picture's file is missing")
    assert (verdict(broken, "<answer>7</answer>").score, verdict(broken, "<answer>7</answer>").method) == (
        0.0,
        "error",
    )
    assert verdict(item("int", "7"), "<answer>7</answer>", "error").method == "error"
    found = score(
        item("int", "7"), Prediction(id="1", text="<answer>7</answer>", sample=3, error="out of memory")
    )
    assert (found.score, found.method, found.prediction.sample) == (0.0, "error", 3)


def test_boxes_are_compared_in_the_images_own_pixels():
    """The model answers in those of the image as it saw it, as Qwen2.5-VL's are trained to."""
    large = [LazyImage((448, 224), lambda: None)]
    for kind, gold, right in (
        ("bbox", "[40, 40, 200, 120]", "[10, 20, 50, 60]"),
        ("boxes", '[{"bbox_2d": [40, 40, 200, 120]}]', '[{"bbox_2d": [10, 20, 50, 60]}]'),
    ):
        for text, resized, worth in (
            (right, [112, 112], 1.0),
            (gold, [112, 112], 0.0),
            (gold, [448, 224], 1.0),
            (gold, None, 1.0),  # other people's predictions, which do not say
        ):
            row = Prediction(id="1", text=f"<answer>{text}</answer>", resized=resized)
            assert score(item(kind, gold, images=large), row).score == worth, (text, resized)


def test_boxes_of_own_rows_are_asked_and_judged_in_the_unit_that_they_fill(tmp_path):
    Image.new("RGB", (448, 224)).save(tmp_path / "a.png")
    Image.new("RGB", (56, 56)).save(tmp_path / "b.png")
    asked = "What is at <|box_start|>(250,500),(500,750)<|box_end|>?"
    golds = [f"[0, 0, {50 * (at + 1)}, {1000 - 40 * at}]" for at in range(20)]
    rows = [
        {"id": at, "question": asked, "answer": gold, "kind": "bbox", "image": "a.png"}
        for at, gold in enumerate(golds)
    ]
    rows[0]["image"] = ["a.png", "b.png"]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    items = load_items(str(path))
    assert "of several sizes" in items[0].error
    processor, asking = read_processor(resolve("r1ov-tiny")), Asking()
    assert recognised_unit([record_of(one, asking) for one in items], processor) == "per-mille"
    one = replace(items[1], box_unit="per-mille")
    assert "(35,28),(70,42)" in processor.decode(_encode(processor, one, asking).input_ids)
    row = Prediction(id="1", text="<answer>[0, 0, 14, 53]</answer>", resized=(140, 56))
    known = replace(row, box_unit="per-mille")
    assert [score(*pair).score for pair in ((items[1], row), (one, row), (items[1], known))] == [0, 1, 1]


def test_a_percent_sign_is_no_mistake_where_the_question_asks_for_per_cent():
    for more in ({"question": "What percent is blue?"}, {"question": "How many? (unit: %)"}):
        assert verdict(item("int", "12", **more), "<answer>12%</answer>").score == 1.0
    assert verdict(item("int", "12", question="How many?"), "<answer>12%</answer>").score == 0.0


def test_letters_are_kept_as_answers_so_that_samples_can_vote():
    for reply in ("<answer>(B) 15</answer>", "<answer>15</answer>", "So it is. Answer: B", "\\boxed{B}"):
        assert verdict(item("mcq:12|15|20", "B"), reply).answer == "B"


def test_the_format_is_judged_apart_from_the_answer():
    assert verdict(item("int", "7"), "<think>so</think><answer>8</answer>").well_formed == 1.0
    assert verdict(item("int", "7"), "Answer: 7").well_formed == 0.0


@pytest.mark.parametrize(
    "text",
    ["(" * 10_000, "=" * 4_000, "is " * 5_000, "≈" * 4_000, "A, " * 1_300, "\\boxed{" * 500, "7 or " * 900],
)
def test_hostile_replies_cost_little_and_earn_nothing(text):
    for kind, gold in (
        ("int", "7"),
        ("math", "7"),
        ("mcq:12|15|20", "B"),
        ("text", "blue"),
        ("list", "[3, 4]"),
    ):
        for reply in (text, f"<answer>{text}</answer>", f"Answer: {text}"):
            start = time.process_time()
            assert verdict(item(kind, gold), reply).score == 0.0
            assert time.process_time() - start < 0.1
