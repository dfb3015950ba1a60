"""Log-probs of targets against torch's own cross entropy and entropy, forward and gradients."""

import torch
import torch.nn.functional as F

from kernels import token_logprobs


def inputs():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 24, generator=generator, requires_grad=True)
    weight = torch.randn(101, 24, generator=generator, requires_grad=True)
    targets = torch.randint(0, 101, (37,), generator=generator)
    return hidden, weight, targets.masked_fill(torch.rand(37, generator=generator) < 0.4, -100)


def test_logprobs_and_gradients_equal_cross_entropy():
    hidden, weight, targets = inputs()
    expected = -F.cross_entropy(hidden @ weight.T / 0.7, targets, ignore_index=-100, reduction="none")
    actual = token_logprobs(hidden, weight, targets, temperature=0.7)
    torch.testing.assert_close(actual, expected)
    assert actual.dtype == torch.float32
    mix = torch.linspace(-1, 1, 37)
    grads, expected_grads = (torch.autograd.grad((x * mix).sum(), (hidden, weight)) for x in (actual, expected))
    for ours, theirs in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_entropy_equals_torch_distributions():
    hidden, weight, targets = inputs()
    _, entropy = token_logprobs(hidden, weight, targets, temperature=2.0, return_entropy=True)
    expected = torch.distributions.Categorical(logits=hidden @ weight.T / 2.0).entropy()
    torch.testing.assert_close(entropy, expected.masked_fill(targets == -100, 0.0))


def test_rows_without_a_target_give_zero_and_no_gradient():
    hidden, weight, targets = inputs()
    logprobs = token_logprobs(hidden, weight, targets)
    (grad,) = torch.autograd.grad(logprobs.sum(), hidden)
    assert (logprobs[targets == -100] == 0).all()
    assert (grad[targets == -100] == 0).all()
    assert token_logprobs(hidden, weight, torch.full((37,), -100)).abs().sum() == 0
