"""The plan for a step of training on a GPU, counted without one."""

import pytest
import torch

from tests.count_step import Counting, Pass, count


def test_the_ruler():
    """Worked by hand: a sum of 24 bytes and 24 into 24, a product of 24 and 24 into 16; views are free."""
    x = torch.empty(2, 3, device="meta")
    with Counting() as counting:
        counting.into = Pass()
        (x + x) @ x.T
    assert counting.into.kernels == {"add": 1, "mm": 1}
    assert counting.into.moved == {"add": 72, "mm": 64}
    assert counting.into.elementwise() == (1, 72)


def test_a_step_of_3b_launches_moves_and_keeps_what_it_may():
    """8,192 tokens with 8 pictures of 1,024 patches. In plain torch, everything kept, this count gives 7,621
    kernels, of them 508 GB elementwise, and 55 GB held.
    """
    found = count("3B")
    passes = found["forward"], found["backward"]
    assert sum(one.kernels.total() for one in passes) <= 7500 / 2
    assert sum(one.elementwise()[1] for one in passes) <= 0.45 * 500e9
    # Kept: all products but the last of each block and those of the encoder's MLPs, which would be 3.6 GB.
    # Held: the blocks' inputs, the last states, and the loss's logits, 2.5 GB of it.
    assert found["kept"] + found["held"] <= 26e9
    layers = 36 * (2048 + 2 * 256 + 2048 + 2048 + 2 * 11008) + 32 * (3 * 1280 + 1280 + 1280)  # columns
    lse = 4 * (36 * 16 + 32 * 16)  # bytes a row, of each head's float32
    assert found["kept"] == pytest.approx(8192 * (2 * layers + lse), rel=1e-3)
