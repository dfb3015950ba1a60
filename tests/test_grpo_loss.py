"""GRPO's loss, token by token: against numbers worked by hand and exact expectations."""

import itertools
import math

import pytest
import torch

from r1ov.train.loss import group_advantages, grpo_loss, kl_estimate
from r1ov.train.run.observe import combine_metrics
from tests.grpo_batch import close, tensor


def single_tokens(ratios, advantages, **options):
    """Completions of one token each, with the given ratios; loss terms can be read off one by one. Returns
    loss, gradient, metrics.
    """
    logprobs = tensor(*ratios).log().requires_grad_()
    count = len(ratios)
    loss, metrics = grpo_loss(
        logprobs,
        tensor(*advantages),
        torch.arange(count + 1),
        torch.ones(count, dtype=torch.bool),
        num_items_in_batch=count,
        num_sequences_in_batch=count,
        old_logprobs=torch.zeros(count, dtype=torch.float64),
        **options,
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.item() * count, gradient * count, combine_metrics([metrics])


@pytest.mark.parametrize(
    ("ratio", "advantage", "options", "value", "gradient"),
    [  # the gradient is by log p: ratio * A where the clip does not hold, 0 where it does
        (1.1, 2.0, {}, -2.2, -2.2),
        (1.5, 1.0, {}, -1.2, 0.0),
        (1.5, -1.0, {}, 1.5, 1.5),
        (0.5, 1.0, {}, -0.5, -0.5),
        (0.5, -1.0, {}, 0.8, 0.0),
        (1.25, 1.0, {"epsilon_high": 0.28}, -1.25, -1.25),
        (1.5, 1.0, {"epsilon_high": 0.28}, -1.28, 0.0),
        (0.75, -1.0, {"epsilon_high": 0.28}, 0.8, 0.0),
        (5.0, -1.0, {}, 5.0, 5.0),
        (5.0, -1.0, {"delta": 3.0}, 3.0, 0.0),
        (2.0, -1.0, {"delta": 3.0}, 2.0, 2.0),
        (5.0, 1.0, {"delta": 3.0}, -1.2, 0.0),
        (0.1, 1.0, {"epsilon": 10.0}, -0.1, -0.1),
        (2.0, 1.0, {"loss_type": "cispo", "epsilon_high": 5.0}, -2 * math.log(2), -2.0),
        (8.0, 1.0, {"loss_type": "cispo", "epsilon_high": 5.0}, -5 * math.log(8), -5.0),
        (0.1, -1.0, {"loss_type": "cispo", "epsilon_high": 5.0}, 0.1 * math.log(0.1), 0.1),
    ],
)
def test_one_token_gives_the_clipped_objective_worked_by_hand(ratio, advantage, options, value, gradient):
    loss, grad, _ = single_tokens([ratio], [advantage], **options)
    assert loss == pytest.approx(value)
    assert grad.item() == pytest.approx(gradient)


def test_clip_metrics_count_the_tokens_whose_gradient_is_clipped_away():
    ratios, advantages = (1.5, 1.5, 0.5, 0.5, 0.7, 1.0), (1, -1, 1, -1, -1, 1)
    _, grad, metrics = single_tokens(ratios, advantages)
    assert (grad == 0).sum() == 3
    assert metrics["clip_ratio/low_mean"] == pytest.approx(2 / 6)
    assert metrics["clip_ratio/high_mean"] == pytest.approx(1 / 6)
    assert metrics["clip_ratio/region_mean"] == pytest.approx(3 / 6)
    assert metrics["clip_ratio/low_min"] == 0
    assert metrics["clip_ratio/high_max"] == 1
    assert metrics["log_ratio/abs_max"] == pytest.approx(math.log(2))
    _, _, metrics = single_tokens((6.0, 6.0, 1.0), (1, -1, 1), loss_type="cispo", epsilon_high=5.0)
    assert metrics["cispo_clip_ratio"] == pytest.approx(1 / 3)


def test_a_completion_without_trained_tokens_is_not_the_least_clipped():
    _, metrics = grpo_loss(
        tensor(0.5, 0.5).log(),
        tensor(-1.0, -1.0),
        torch.tensor([0, 1, 2]),
        torch.tensor([True, False]),
        num_items_in_batch=1,
        num_sequences_in_batch=2,
        old_logprobs=tensor(0, 0),
    )
    assert combine_metrics([metrics])["clip_ratio/low_min"] == 1


def on_policy(loss_type, lengths, advantages, **options):
    count = sum(lengths)
    logprobs = torch.linspace(-3, -1, count, dtype=torch.float64).requires_grad_()
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    loss, metrics = grpo_loss(
        logprobs,
        tensor(*advantages),
        cu_seqlens,
        torch.ones(count, dtype=torch.bool),
        num_items_in_batch=count,
        num_sequences_in_batch=len(lengths),
        loss_type=loss_type,
        max_completion_length=4,
        **options,
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.item(), gradient, combine_metrics([metrics])


@pytest.mark.parametrize(
    ("loss_type", "value", "gradient"),
    [  # lengths 1 and 3, advantages 1 and -1
        ("grpo", 0.0, (-1 / 2, 1 / 6, 1 / 6, 1 / 6)),
        ("dapo", 0.5, (-1 / 4, 1 / 4, 1 / 4, 1 / 4)),
        ("dr_grpo", 0.25, (-1 / 8, 1 / 8, 1 / 8, 1 / 8)),
    ],
)
def test_on_policy_the_value_is_trivial_and_the_gradient_is_not(loss_type, value, gradient):
    loss, grad, metrics = on_policy(loss_type, (1, 3), (1, -1))
    assert loss == pytest.approx(value, abs=1e-12)
    close(grad, tensor(*gradient))
    assert metrics["clip_ratio/region_mean"] == 0
    assert metrics["log_ratio/abs_max"] == 0


def test_on_policy_the_printed_loss_is_beta_times_kl():
    """Why GRPO's loss curve sits near zero: with completions of equal length the policy term is 0 in every
    aggregation.
    """
    advantages = group_advantages(tensor(1, 0, 0, 0), 4).tolist()
    ref = torch.linspace(-2, -2.5, 12, dtype=torch.float64)
    for loss_type in ("grpo", "dapo"):
        loss, _, metrics = on_policy(loss_type, (3, 3, 3, 3), advantages, beta=0.04, ref_logprobs=ref)
        assert metrics["kl"] > 0.01
        assert loss == pytest.approx(0.04 * metrics["kl"])


def test_sequence_level_takes_the_geometric_mean_of_the_ratios():
    """Ratios 2 and 1/2 multiply to 1: nothing is clipped. Ratios 2 and 2 give 2: clipped at 1.2, token by
    token.
    """
    for ratios, value, clipped in (((2.0, 0.5), -1.0, 0), ((2.0, 2.0), -1.2, 1)):
        logprobs = tensor(*ratios).log().requires_grad_()
        loss, metrics = grpo_loss(
            logprobs,
            tensor(1.0),
            torch.tensor([0, 2]),
            torch.ones(2, dtype=torch.bool),
            num_items_in_batch=2,
            num_sequences_in_batch=1,
            old_logprobs=torch.zeros(2, dtype=torch.float64),
            loss_type="grpo",
            importance_sampling_level="sequence",
        )
        assert loss.item() == pytest.approx(value)
        assert combine_metrics([metrics])["clip_ratio/high_mean"] == clipped
        close(
            torch.autograd.grad(loss, logprobs)[0], torch.zeros(2).double() if clipped else tensor(-0.5, -0.5)
        )


# -- KL


def test_kl_estimates_average_to_the_exact_divergence_and_its_gradients():
    """Over a softmax of four, the expectation on the policy's own samples is a sum, and torch's kl_div is the
    judge.
    """
    logits = tensor(0.3, -1.0, 0.8, 0.1).requires_grad_()
    ref = tensor(-0.5, 0.4, 0.2, 0.9).log_softmax(0)
    logprobs = logits.log_softmax(0)
    sampled = logprobs.detach().exp()
    reverse = torch.nn.functional.kl_div(ref, logprobs, log_target=True, reduction="sum")
    forward = torch.nn.functional.kl_div(logprobs, ref, log_target=True, reduction="sum")
    reverse_grad, forward_grad = (
        torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (reverse, forward)
    )

    def expected(estimates):
        total = (sampled * estimates).sum()
        return total.detach(), torch.autograd.grad(total, logits, retain_graph=True)[0]

    k3 = kl_estimate(logprobs, ref)
    ratio = (logprobs - logprobs.detach()).exp()
    close(expected(k3)[0], reverse.detach())
    close(expected(k3)[1], forward_grad)
    close(expected(ratio * k3)[1], reverse_grad)
    assert (k3 >= 0).all()


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_at_ratio_one_k3_times_the_ratio_has_the_gradient_of_k2_token_by_token(level):
    """k2 is half the square of log r, whose slope by log p is -log r; here every token weighs 1/4."""
    ref = torch.linspace(-4, -1, 4, dtype=torch.float64)
    common = {
        "lengths": (1, 3),
        "advantages": (0, 0),
        "beta": 1.0,
        "ref_logprobs": ref,
        "importance_sampling_level": level,
    }
    corrected = on_policy("dapo", **common)[1]
    close(corrected, (torch.linspace(-3, -1, 4, dtype=torch.float64) - ref) / 4)
    assert not torch.allclose(corrected, on_policy("dapo", **common, use_bias_correction_kl=False)[1])


def test_kl_compares_policy_with_reference_and_the_ratio_with_the_sampler():
    """At log p -1, sampler -1.1, reference -2: rho = e^0.1, k3 = e^-1 - 1 + 1 = e^-1."""
    loss, _, metrics = single_tokens([math.exp(0.1)], [2.0], beta=0.5, ref_logprobs=tensor(-0.9))
    assert metrics["kl"] == pytest.approx(math.exp(0.1) * math.exp(-1))
    assert loss == pytest.approx(-2 * math.exp(0.1) + 0.5 * metrics["kl"])
