"""Boxes: read, brought into one frame, matched one to one; worked by hand."""

from fractions import Fraction

import pytest

from r1ov.reward import Rules, score_answer
from r1ov.reward.rules.boxes import Labelled, box_scale, iou, match_score, read_box, read_boxes


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


def test_a_models_frame_is_brought_to_the_golds():
    """A picture of 1000 x 500, seen by the model as 504 x 252."""
    gold = "[100, 100, 200, 300]"
    answers = {
        "original": gold,
        "resized": "[50.4, 50.4, 100.8, 151.2]",
        "unit": "[0.1, 0.2, 0.2, 0.6]",
        "per-mille": "[100, 200, 200, 600]",
    }
    for frame, answer in answers.items():
        rules = Rules(box_scale=box_scale(frame, original=(1000, 500), resized=(504, 252)), iou_mode="soft")
        assert score_answer(answer, gold, "bbox", rules) == 1.0, frame
    with pytest.raises(ValueError, match="frame is 'pixels'"):
        box_scale("pixels", (1, 1), (1, 1))


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
