"""GRPO's advantages: against numbers worked by hand, and the orders that must not matter."""

import math

import pytest
import torch

from r1ov.errors import UserError
from r1ov.train.loss import group_advantages
from r1ov.train.run.observe import reward_metrics
from tests.grpo_batch import NAN, close, tensor


def test_one_success_in_a_group_is_worth_what_the_sample_deviation_says():
    """(7/8) / sqrt(1/8) = 2.475 with ddof 1; ddof 0 would give 2.645. TRL's eps of 1e-4 makes it 2.4742."""
    close(
        group_advantages(tensor(1, 0, 0, 0, 0, 0, 0, 0), 8)[:2],
        tensor(0.875, -0.125) / (math.sqrt(1 / 8) + 1e-4),
    )
    close(group_advantages(tensor(0, 0, 1, 0), 4), tensor(-0.5, -0.5, 1.5, -0.5), 1e-3)
    rare, even = tensor(*[1] + [0] * 15), tensor(*[1] * 8 + [0] * 8)
    close(group_advantages(rare, 16)[:2], tensor(3.75, -0.25), 1e-3)
    close(group_advantages(even, 16)[[0, -1]], tensor(0.968, -0.968), 1e-3)
    close(group_advantages(rare, 16, "none")[:2], tensor(0.9375, -0.0625))
    close(group_advantages(even, 16, "none")[[0, -1]], tensor(0.5, -0.5))


def test_a_little_for_the_format_alone_is_as_loud_as_a_right_answer():
    close(group_advantages(tensor(0.1, 0, 0, 0, 0, 0, 0, 0), 8)[0].item(), 2.47, 0.01)


def test_batch_scaling_divides_by_the_deviation_of_all_rewards():
    close(group_advantages(tensor(1, 0, 1, 1), 2, "batch"), tensor(0.5, -0.5, 0, 0) / (0.5 + 1e-4))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_completion_without_a_reward_leaves_the_baseline(scale):
    with_nan, without = tensor(1, 0, NAN, 0, 1, 1, 0, 0), tensor(1, 0, 0)
    advantages = group_advantages(with_nan, 4, scale)
    assert advantages[2] == 0
    scored = advantages[[0, 1, 3]]
    if scale == "group":
        close(scored, group_advantages(without, 3))
        close(scored, tensor(2 / 3, -1 / 3, -1 / 3) / (math.sqrt(1 / 3) + 1e-4))
    else:
        close(scored / scored[0], tensor(1, -0.5, -0.5))
    assert group_advantages(tensor(1, NAN, NAN, NAN), 4, scale).tolist() == [0, 0, 0, 0]
    assert group_advantages(tensor(NAN, NAN), 2, scale).tolist() == [0, 0]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("same", [0.1, 1 / 3, 1000.1, -7.7, 0.0])
def test_a_group_without_spread_gives_exactly_zero(scale, dtype, same):
    rewards = tensor(*[same] * 7, 1, 0, 0, 0, 0, 0, 0, dtype=dtype)
    advantages = group_advantages(rewards, 7, scale)
    assert advantages.dtype == dtype
    assert advantages[:7].tolist() == [0] * 7
    assert advantages[7] > 0
    rounding = tensor(0.9 + 0.1, 0.7 + 0.2 + 0.1, 0.9 + 0.1)
    assert len(set(rounding.tolist())) == 2
    assert group_advantages(rounding, 3, scale).tolist() == [0, 0, 0]


def test_permuting_groups_and_members_permutes_the_advantages():
    rewards = torch.rand(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rewards[2, 3] = NAN
    groups, members = torch.randperm(6), torch.randperm(5)
    for scale in ("group", "batch", "none"):
        expected = group_advantages(rewards.flatten(), 5, scale).view(6, 5)[groups][:, members]
        close(group_advantages(rewards[groups][:, members].flatten(), 5, scale).view(6, 5), expected)


def test_under_group_scaling_a_penalty_for_wrong_answers_changes_nothing():
    rewards = tensor(1, 0, 0, 1, 0, 0)
    close(group_advantages(rewards, 6), group_advantages(2 * rewards - 1, 6), 1e-3)


@pytest.mark.parametrize(
    ("rewards", "generations", "scale", "words"),
    [
        (tensor(1.0, 0.0), 1, "group", "num_generations is 1"),
        (tensor(1.0, 0.0, 1.0), 2, "group", "multiple of num_generations"),
        (tensor(1.0, 0.0).view(1, 2), 2, "group", "one dimension"),
        (tensor(1.0, math.inf), 2, "group", "1 of 2 rewards are infinite"),
        (tensor(1.0, 0.0), 2, "std", "scale_rewards is 'std'"),
    ],
)
def test_rewards_that_cannot_be_compared_are_refused(rewards, generations, scale, words):
    with pytest.raises(UserError, match=words):
        group_advantages(rewards, generations, scale)


def test_reward_metrics_are_those_worked_by_hand():
    metrics = reward_metrics(tensor(1, 0, 1, 1, NAN, 0).view(3, 2))
    assert metrics == pytest.approx(
        {
            "reward": 0.6,
            "reward_std": math.sqrt(0.3),
            "group_std_mean": math.sqrt(0.5) / 3,
            "frac_reward_zero_std": 2 / 3,
        }
    )
