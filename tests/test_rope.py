"""Positions against goldens worked by hand, and vision windows against the published order."""

import pytest
import torch

from r1ov.model.config import VisionConfig
from r1ov.model.rope import mrope_positions
from r1ov.model.vision import layout

X, VS, VE, IMG = 1, 7, 8, 9


def test_positions_of_one_picture_worked_by_hand():
    ids = torch.tensor([X, VS, *[IMG] * 6, VE, X, X])
    expected = [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7],
    ]
    assert mrope_positions(ids, torch.tensor([[1, 4, 6]]), IMG, 2).tolist() == expected


def test_positions_of_two_pictures_worked_by_hand():
    ids = torch.tensor([X, VS, *[IMG] * 6, VE, X, VS, *[IMG] * 4, VE, X])
    positions = mrope_positions(ids, torch.tensor([[1, 4, 6], [1, 4, 4]]), IMG, 2)
    assert positions[:, 8:].tolist() == [
        [5, 6, 7, 8, 8, 8, 8, 10, 11],
        [5, 6, 7, 8, 8, 9, 9, 10, 11],
        [5, 6, 7, 8, 9, 8, 9, 10, 11],
    ]


def test_text_alone_counts_up_alike_on_all_streams():
    assert mrope_positions(torch.tensor([X] * 5), None, IMG, 2).tolist() == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize("count", [0, 3, 5])
def test_placeholders_that_do_not_match_are_refused(count):
    with pytest.raises(RuntimeError, match="sum exactly to"):  # the words for users: test_processor.py
        mrope_positions(torch.tensor([X, *[IMG] * count, X]), torch.tensor([[1, 4, 4]]), IMG, 2)


def test_windows_of_a_picture_that_does_not_divide():
    _, order, cu_window, cu_full = layout(((1, 10, 12),), VisionConfig())
    assert order.tolist() == [
        0,
        1,
        2,
        3,
        6,
        7,
        8,
        9,
        12,
        13,
        14,
        15,
        18,
        19,
        20,
        21,
        4,
        5,
        10,
        11,
        16,
        17,
        22,
        23,
        24,
        25,
        26,
        27,
        28,
        29,
    ]
    assert cu_window.tolist() == [0, 64, 96, 112, 120]
    assert cu_full.tolist() == [0, 120]


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ((1, 4, 6), [0, 24]),
        ((1, 16, 16), [0, 64, 128, 192, 256]),
        ((3, 12, 18), [0, 64, 128, 144, 176, 208, 216, 280]),
    ],
)
def test_windows_of_other_pictures(grid, expected):
    assert layout((grid,), VisionConfig())[2].tolist()[: len(expected)] == expected
