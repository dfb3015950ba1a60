"""Several scores to one reward, and the check of all golds before training."""

import pytest

from r1ov.errors import UserError
from r1ov.reward import Rules
from r1ov.reward.rules.boxes import Frame
from r1ov.reward.rules.check import Gold, check_golds, unscorable
from r1ov.train.rollout import soft_overlong, total_reward


def test_scores_are_summed_by_their_weights():
    assert total_reward({"accuracy": 1.0, "format": 1.0}, {}) == 2.0
    assert total_reward({"accuracy": 1.0, "format": 0.5}, {"accuracy": 0.9, "format": 0.1}) == pytest.approx(
        0.95
    )
    assert total_reward({"accuracy": 0.0, "format": 1.0}, {"accuracy": 2.0}, wrong_reward=-1.0) == -1.0
    assert total_reward({"accuracy": 0.5}, {}, wrong_reward=-1.0) == 0.5


def test_an_unscorable_gold_leaves_the_baseline_and_another_reward_without_a_say_is_left_out():
    assert total_reward({"accuracy": None, "format": 1.0}, {}) is None
    assert total_reward({"accuracy": 1.0, "mine": None}, {}) == 1.0
    assert total_reward({"mine": None}, {}) is None
    assert total_reward({}, {}) is None


def test_the_overlong_penalty_is_daponian():
    """DAPO's own numbers: maximum 20,480 with a cache of 4,096."""
    lengths = {0: 0.0, 16_384: 0.0, 18_432: -0.5, 20_480: -1.0, 30_000: -1.0}
    assert {length: soft_overlong(length, 20_480, 4_096) for length in lengths} == lengths
    with pytest.raises(ValueError, match="cache is 0"):
        soft_overlong(1, 10, 0)


def test_golds_that_answer_themselves_pass():
    golds = [
        Gold("row 1", "4", "number"),
        Gold("row 2", "<answer> B </answer>"),
        Gold("row 3", r"2\sqrt{3}"),
        Gold("row 4", "[1, 2, 3, 4]"),
        Gold("row 5", "[1, 2, 3, 4]", "bbox"),
    ]
    assert check_golds(golds) == []
    assert check_golds([gold._replace(rules=Rules(answer_from="boxed")) for gold in golds]) == []


def test_a_few_bad_golds_are_told_and_many_stop_the_run():
    good, bad = (
        [Gold(f"row {i}", str(i), "number") for i in range(95)],
        [Gold(f"bad {i}", "four", "number") for i in range(6)],
    )
    assert [gold.name for gold, _ in check_golds(good + bad[:5])] == [f"bad {i}" for i in range(5)]
    with pytest.raises(
        UserError, match=r"6 of 101 gold .* bad 0: 'four' as number cannot be read; bad 1"
    ) as caught:
        check_golds(good + bad)
    assert "bad 4" in str(caught.value)
    assert "bad 5" not in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="0 of 0"):
        check_golds([])


def test_a_gold_that_reads_yet_does_not_answer_itself_is_found():
    assert unscorable([Gold("row", "B", "mcq", Rules(choices=("B", "C")))])[0] == []
    failed, count = unscorable([Gold("row", "2", "number"), Gold("row", "a <think> tag", "text")])
    assert (len(failed), count) == (1, 2)
    assert failed[0][1] == "scores 0"


def test_a_gold_that_only_its_letters_could_judge_is_found_before_training():
    """`x = 3` and its respelling `$x = 3$` are one to our rules; of the union they know nothing."""
    golds = [
        Gold("row 1", "x=3"),
        Gold("row 2", r"\frac{1}{2}"),
        Gold("row 3", "red, blue"),
        Gold("row 4", "3 cats"),
    ]
    assert unscorable(golds) == ([], 4)
    union = Gold("row", r"(-\infty, 2) \cup (3, \infty)")
    assert unscorable([union])[0] == [(union, "is beyond our rules, and beyond math-verify or without it")]
    assert unscorable([union], verify=lambda gold, answer: None)[0]
    assert unscorable([union], verify=lambda gold, answer: True) == ([], 1)
    assert unscorable([union._replace(kind="text")])[0]


def test_a_point_which_no_answer_in_another_frame_can_equal_is_found_before_training():
    for answer in ('{"point_2d": [100, 200]}', '[{"bbox_2d": [1, 2, 3]}]'):
        assert unscorable([Gold("row", answer)])[0] == [
            (Gold("row", answer), "is a point, or a box that cannot be read")
        ]


def test_a_box_outside_its_image_is_found_before_training():
    frame = Frame((640, 480), (644, 476))
    golds = [
        Gold("row", box, "bbox", frame=frame)
        for box in ("[1, 2, 30, 40]", "[0.1, 0.2, 0.3, 0.4]", "[600, 700, 900, 990]")
    ]
    failed, _ = unscorable(golds)
    assert failed == [(golds[2], "is not in pixels of its image of 640 x 480")]
    assert unscorable([golds[2]._replace(frame=Frame((640, 480), (644, 476), "per-mille"))]) == ([], 1)
