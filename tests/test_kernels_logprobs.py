"""Log-probs of targets against torch's own cross entropy and entropy, forward and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import logprobs, token_logprobs


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
    grads, expected_grads = (
        torch.autograd.grad((x * mix).sum(), (hidden, weight)) for x in (actual, expected)
    )
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


def test_chunks_change_nothing_and_keep_the_logits_small(monkeypatch):
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            self.numel = max(self.numel, out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    hidden, weight, targets = inputs()
    hidden, weight = (x.detach()[:, :8].clone().requires_grad_() for x in (hidden, weight))

    def scored():
        values, entropy = token_logprobs(hidden, weight, targets, 0.7, return_entropy=True)
        mix = torch.linspace(-1, 1, 37)
        return [
            values,
            entropy,
            *torch.autograd.grad((values * mix).sum() + (entropy * mix).sum(), (hidden, weight)),
        ]

    expected = scored()
    monkeypatch.setattr(logprobs, "CHUNK", 5 * 101)
    with Largest() as seen:
        actual = scored()
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert seen.numel == 101 * 8  # the weight's gradient; all logits at once would be about 2,000


def test_impossible_tokens_add_nothing_to_the_entropy():
    logits = torch.tensor([[0.0, 0.0, float("-inf")]], requires_grad=True)
    values, entropy = logprobs.definition(logits, torch.tensor([1]), 1.0, return_entropy=True)
    torch.testing.assert_close(values.exp(), torch.tensor([0.5]))
    torch.testing.assert_close(entropy.exp(), torch.tensor([2.0]))
    (grad,) = torch.autograd.grad((values + entropy).sum(), logits)
    torch.testing.assert_close(grad, torch.tensor([[-0.5, 0.5, 0.0]]))


def test_wrong_arguments_are_refused():
    hidden, weight, targets = inputs()
    with pytest.raises(ValueError, match="37 rows of hidden states, but 36 targets"):
        token_logprobs(hidden, weight, targets[1:])
    with pytest.raises(ValueError, match="temperature is 0, must be above 0"):
        token_logprobs(hidden, weight, targets, temperature=0)
    with pytest.raises(ValueError, match="impl is 'magic'"):
        token_logprobs(hidden, weight, targets, impl="magic")
