"""The plan for a step of training on a GPU, counted without one."""

import pytest
import torch

from tests.count_step import Counting, Living, Pass, count, plan


def test_the_ruler():
    """Worked by hand: a sum of 24 bytes and 24 into 24, a product of 24 and 24 into 16; views are free."""
    x = torch.empty(2, 3, device="meta")
    with Counting() as counting:
        counting.into = Pass()
        (x + x) @ x.T
    assert counting.into.kernels == {"add": 1, "mm": 1}
    assert counting.into.moved == {"add": 72, "mm": 64}
    assert counting.into.elementwise() == (1, 72)


def test_what_lives_at_the_same_time():
    """Worked by hand: 24 bytes, then 24 more, of which only the second are left when 16 come."""
    x = torch.empty(2, 3, device="meta")
    with Living() as living:
        y = x + x
        y = y + x
        y = y @ x.T
    assert living.most == 48
    assert living.living == 16


def test_a_gpu_of_80_gb_has_15_percent_to_spare_for_7b_on_8_of_them():
    """The published preset: packs of 8,192 tokens with pictures; in GRPO beside a reference, and a copy that
    answers, which 4 processes hold together (--tensor-parallel 4).
    """
    parts = plan("7B", 8)
    assert sum(parts.values()) <= 0.85 * 80e9
    total = parts["own rows of weights, gradients and moments"] / 16 * 8
    assert total == pytest.approx(8.29e9, rel=1e-3)
    assert sum(parts.values()) + 4 * total / 8 + 2 * total / 4 <= 0.85 * 80e9
    assert sum(plan("7B", 8, activation_checkpointing="off").values()) > 0.85 * 80e9


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
