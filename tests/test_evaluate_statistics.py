"""Intervals and tests against published tables, hand-worked numbers and brute force."""

from itertools import combinations, product

import numpy as np
import pytest

from r1ov.evaluate.metrics import interval, mcnemar, paired, pass_at_k, wilson


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(right, count, low, high):
    assert wilson(right, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("right", [0, 3, 10])
def test_without_clusters_the_interval_is_wilsons(right):
    scores = [1.0] * right + [0.0] * (10 - right)
    assert interval(scores, range(10)) == pytest.approx(wilson(right, 10), abs=1e-12)


def test_copies_of_a_question_add_no_knowledge():
    scores = [1.0, 1.0, 0.0, 1.0, 0.0]
    for copies in (2, 7):
        assert interval(scores * copies, [*range(5)] * copies) == pytest.approx(wilson(3, 5), abs=1e-12)
        assert interval([1.0] * 5 * copies, [*range(5)] * copies) == pytest.approx(wilson(5, 5), abs=1e-12)


def test_a_clustered_interval_covers_the_truth_about_as_often_as_it_says():
    rng, hits, naive = np.random.default_rng(0), 0, 0
    for _ in range(400):
        chances = rng.beta(1, 1, 60)  # of 60 problems, five versions each; the true mean is a half
        scores = (rng.random((5, 60)) < chances).astype(float).ravel().tolist()
        low, high = interval(scores, [*range(60)] * 5)
        hits += low <= 0.5 <= high
        low, high = wilson(sum(scores), 300)
        naive += low <= 0.5 <= high
    assert 0.91 <= hits / 400 <= 0.98
    assert naive / 400 < 0.85


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [(5, 1, 14 / 64), (0, 6, 2 / 64), (1, 5, 14 / 64), (3, 3, 1.0), (0, 0, 1.0), (10, 2, 158 / 4096)],
)
def test_mcnemars_p_is_that_of_tossing_coins(better, worse, p):
    assert mcnemar(better, worse) == pytest.approx(p)


def test_mcnemars_p_is_exact_for_thousands():
    assert mcnemar(1500, 1500) == 1.0
    assert 0 < mcnemar(1800, 1200) < 1e-25


def test_a_paired_difference_by_hand():
    first, second = [1, 1, 0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 1]
    result = paired(first, second, range(8))
    assert (result.difference, result.better, result.worse) == (0.25, 3, 1)
    assert result.p_value == pytest.approx(0.625)
    same = paired(first, first, range(8))
    assert (same.difference, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_the_interval_of_a_difference_is_clustered_by_group():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 2, (2, 200)).astype(float)
    alone = paired(first.tolist(), second.tolist(), range(200))
    # of independent questions it is the normal interval
    error = 1.96 * np.std(second - first) / np.sqrt(200)
    assert alone.high - alone.low == pytest.approx(2 * error)
    copies = paired(first.tolist() * 4, second.tolist() * 4, [*range(200)] * 4)
    assert (copies.low, copies.high) == pytest.approx(
        (alone.low, alone.high)
    )  # four times as many, no more known


def test_groups_that_agree_by_chance_make_no_difference_surer():
    """Three pictures of three questions: 2, 1 and 2 more are right. The groups' means hardly differ."""
    second = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    few, alone = (paired([0.0] * 9, second, groups) for groups in ([0, 0, 0, 1, 1, 1, 2, 2, 2], range(9)))
    assert few == alone
    assert alone.low == pytest.approx(5 / 9 - 1.96 * (5 / 9 * 4 / 9 / 9) ** 0.5)


def test_pass_at_k_is_the_share_of_all_subsets_with_a_right_one():
    for count in (1, 4, 6):
        for right, k in product(range(count + 1), range(1, count + 1)):
            subsets = list(combinations([1] * right + [0] * (count - right), k))
            assert pass_at_k(count, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
