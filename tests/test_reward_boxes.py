"""Boxes: read, brought into one frame, matched one to one; worked by hand."""

from fractions import Fraction

import pytest

from r1ov.errors import UserError
from r1ov.reward import Rules, score_answer
from r1ov.reward.rules.boxes import Frame, Labelled, iou, match_score, read_box, read_boxes, resized


def test_overlaps_worked_by_hand():
    assert iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0.0
    assert iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0.0  # they touch
    unit = tuple(map(Fraction, ("0.1", "0.1", "0.5", "0.5")))
    assert (
        iou(unit, unit) == 1.0
    )  # in pixels counted as width x2 - x1 + 1, boxes of a unit frame would come out wrong
    assert iou((0, 0, 4, 4), (1, 1, 2, 2)) == 1 / 16


def test_soft_gives_the_overlap_and_threshold_a_whole_point_from_there_on():
    gold, found = "[0, 0, 10, 10]", "[0, 0, 10, 8]"
    assert score_answer(found, gold, "bbox", Rules(iou_mode="soft")) == 0.8
    assert score_answer(found, gold, "bbox", Rules(iou_threshold=0.8)) == 1.0
    assert score_answer(found, gold, "bbox", Rules(iou_threshold=0.9)) == 0.0


ANSWER = "[50.4, 50.4, 100.8, 151.2]"  # in an image of 1000 x 500 that the model sees as 504 x 252
GOLDS = {
    None: "[100, 100, 200, 300]",
    "original": "[100, 100, 200, 300]",
    "resized": "[50.4, 50.4, 100.8, 151.2]",
    "unit": "[0.1, 0.2, 0.2, 0.6]",
    "per-mille": "[100, 200, 200, 600]",
}


@pytest.mark.parametrize("unit", GOLDS)
def test_a_gold_is_brought_to_the_frame_that_the_model_answers_in(unit):
    frame = Frame((1000, 500), (504, 252), unit)
    assert score_answer(ANSWER, GOLDS[unit], "bbox", Rules(iou_mode="soft"), frame=frame) == 1.0
    boxes = f"[{GOLDS[unit]}]"
    assert score_answer(ANSWER, boxes, "boxes", Rules(iou_mode="soft"), frame=frame) == 1.0
    if unit != "resized":
        assert score_answer(GOLDS[unit], GOLDS[unit], "bbox", frame=frame) == 0.0


def test_a_gold_from_0_to_1_says_so_itself_and_one_outside_its_image_cannot_be_scored():
    frame = Frame((1000, 500), (504, 252))
    assert score_answer(ANSWER, GOLDS["unit"], "bbox", frame=frame) == 1.0
    assert score_answer(ANSWER, GOLDS["per-mille"], "bbox", frame=frame) is None
    assert score_answer(ANSWER, "[100, 100, 200, 501]", "bbox", frame=frame) == 0.0  # an annotator's pixel
    assert score_answer("[1, 2, 3, 4]", "[1, 2, 3, 4]", "bbox", frame=Frame((2, 2), (28, 28))) is None


def test_a_targets_boxes_are_written_in_whole_pixels_of_the_image_that_the_model_sees():
    frame = Frame((1000, 500), (504, 252))
    texts = {
        "It is [100, 100, 200, 300].": "It is [50, 50, 101, 151].",
        '[{"bbox_2d": [100, 100, 200, 300], "label": "2 cats"}]': (
            '[{"bbox_2d": [50, 50, 101, 151], "label": "2 cats"}]'
        ),
        "<|box_start|>(100,100),(200,300)<|box_end|>": "<|box_start|>(50,50),(101,151)<|box_end|>",
        "(0.1, 0.2, 0.2, 0.6)": "(50, 50, 101, 151)",
        "100 cats and [1, 2, 3]": "100 cats and [1, 2, 3]",
    }
    assert {text: resized(text, frame) for text in texts} == texts
    with pytest.raises(UserError, match="outside its image of 1000 x 500; give its box_unit"):
        resized("[100, 200, 200, 600]", frame)


def test_only_one_proper_box_is_an_answer():
    assert read_box("[1, 2, 3, 4]") == (1, 2, 3, 4)
    assert read_box("[1, 2, 3, 4] and again [1, 2, 3, 4]") == (1, 2, 3, 4)
    for text in (
        "[3, 2, 1, 4]",
        "[1, 4, 3, 2]",
        "[1, 1, 1, 1]",
        "[1, 2, 3]",
        "[1, 2, 3, 4] [5, 6, 7, 8]",
        "",
        "[1e9999, 0, 1, 1]",
    ):
        assert read_box(text) is None, text


@pytest.mark.parametrize(
    "text",
    [
        "(1, 2), (3, 4)",
        "(1,2),(3,4)",
        "[[1, 2], [3, 4]]",
        "[(1, 2), (3, 4)]",
        "<|box_start|>(1,2),(3,4)<|box_end|>",
        "<box>(1,2),(3,4)</box>",
        "1, 2, 3, 4",
        "1 2 3 4",
        "{'bbox_2d': [1, 2, 3, 4], 'label': 'cat'}",
        '{"label": "cat", "bbox_2d": [[1, 2], [3, 4]]}',
        "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>",
        '```json\n[\n\t{"bbox_2d": [1, 2, 3, 4], "label": "cat"}\n]\n```',
        "[1.0000000000000000, 2, 3, 4]",
    ],
)
def test_a_box_is_read_in_every_spelling(text):
    assert read_box(text) == (1, 2, 3, 4)


@pytest.mark.parametrize(
    "text",
    ["[[1, 2], [3, 4], [5, 6], [7, 8]]", "(1,2),(3,4),(5,6)", "1, 2, 3, 4, 5", "12, 3, 4", "1,2 3,4 5,6"],
)
def test_points_and_other_lists_are_no_boxes(text):
    assert read_boxes(text) is None


def test_lists_are_read_from_json_and_from_prose():
    cat = Labelled((1, 2, 3, 4), "black cat")
    assert read_boxes('```json\n[{"bbox_2d": [1, 2, 3, 4], "label": " Black  cat"}]\n```') == [cat]
    assert read_boxes('{"bbox": [1, 2, 3, 4]}') == [Labelled((1, 2, 3, 4), None)]
    assert len(read_boxes("first [1, 2, 3, 4], then (5, 6, 7, 8)")) == 2
    assert read_boxes(str([[0, 0, 1, 1 + i] for i in range(51)])) is None
    assert read_boxes("[" * 1000) is None


def test_matching_is_one_to_one_best_first_and_extra_boxes_cost():
    a, b, far = (Labelled(box, None) for box in ((0, 0, 2, 2), (4, 4, 6, 6), (8, 8, 9, 9)))
    half = Labelled((0, 0, 2, 1), None)
    assert match_score([a, b], [b, a]) == 1.0
    assert match_score([a], [a, b]) == 0.5
    assert match_score([a, b, far, far], [a, b]) == 0.5
    assert match_score([half, a], [a]) == 0.5  # the whole one takes the gold, the half one has none left
    assert match_score([half], [a]) == 0.5
    assert match_score([half], [a], threshold=0.6) == 0.0
    assert match_score([far], [a]) == 0.0


def test_a_labelled_gold_needs_its_label():
    cat, dog = (Labelled((0, 0, 1, 1), name) for name in ("cat", "dog"))
    assert match_score([dog], [cat]) == 0.0
    assert match_score([Labelled((0, 0, 1, 1), None)], [cat]) == 0.0
    assert match_score([cat], [Labelled((0, 0, 1, 1), None)]) == 1.0
