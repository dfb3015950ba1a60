"""Scores of attribution: what counts as an object's words and cells, and a short table."""

from types import SimpleNamespace

import pytest
import torch

import r1ov
from r1ov.look.score import blanked, covered_cells, gradients, mentions, scenes, table
from r1ov.look.trace import resumed


def test_the_words_of_an_object_are_found_and_ambiguous_ones_are_not():
    objects = [("blue", "triangle", "b1", 28), ("red", "star", "a1", 0), ("red", "star", "d1", 84)]
    items = ",".join(
        f'{{"colour": "{colour}", "shape": "{shape}", "cell": "{cell}", "box": [{x}, 0, {x + 28}, 28]}}'
        for colour, shape, cell, x in objects
    )
    item = SimpleNamespace(description=f'{{"objects": [{items}]}}')
    words = [
        "b1",
        " blue",
        " tri",
        "angle",
        ",",
        " red",
        " star",
        ", d1",
        " red",
        " star",
        ", green",
        " star",
    ]
    traced = SimpleNamespace(tokens=["?", *words], prompt_length=1, cells=[torch.zeros(4, 4)])
    found = mentions(traced, item)
    assert [(one.tokens, one.cells) for one in found] == [([1, 2, 3], [1]), ([8, 9], [3])]


def test_an_object_lies_on_the_cells_that_it_mostly_covers():
    assert covered_cells([28, 0, 56, 28], 4, 4) == [1]
    assert covered_cells([14, 0, 42, 28], 4, 4) == [0, 1]
    assert covered_cells([20, 0, 48, 28], 4, 4) == [1]  # 8 of 28 pixels on its left


def test_a_table_of_a_few_scenes_and_gradients_against_small_changes():
    tiny = r1ov.load("r1ov-tiny")
    rows = table(*tiny, 3)
    assert [row["method"].split(" (")[0] for row in rows] == [
        "attention, mean of all heads",
        "attention, best head",
        "attention rollout",
        "gradient x input",
        "blanking",
    ]
    for row in rows:
        assert row["words"] == rows[0]["words"] > 3
        low, high = row["95% interval"]
        assert 0 <= low <= row["peak on the object"] <= high <= 1
    # the other image of a swapped trace is the former scene's, and the words are the same
    (_, first, _, none), (_, second, found, swapped) = scenes(*tiny, 2, "test", 0)
    assert none is None
    assert torch.equal(swapped.token_ids, second.token_ids)
    cells = first.cells[0].flatten()
    point = "model.layers.0.residual"
    torch.testing.assert_close(swapped[point][second.cells[0].flatten()], first[point][cells])
    # gradient x input is the slope along the cell itself
    (slopes, *_) = gradients(second, found)
    cells = second.cells[0].flatten()
    assert slopes.shape == blanked(second, list(cells.split(1))).shape[:1] == (16,)
    with torch.no_grad():
        states = second[point].expand(2, -1, -1).clone()
        states[0, cells[5]] *= 1.01
        states[1, cells[5]] *= 0.99
        more, less = resumed(second, states)[:, found[0].tokens].sum(1)
    assert float(slopes[5]) == pytest.approx(float(more - less) / 0.02, rel=0.05, abs=1e-3)
