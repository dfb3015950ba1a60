"""GRPO's loss on a whole ragged batch: the padded definition, finite differences, the cuts that must not
matter, hostile input, presets.
"""

import inspect
import math

import pytest
import torch

from r1ov.errors import UserError
from r1ov.train.loss import EPS, group_advantages, grpo_loss
from r1ov.train.run.config import check_loss_options
from r1ov.train.run.observe import combine_metrics
from r1ov.train.run.presets import GRPO
from tests.grpo_batch import (
    COMPLETIONS,
    LOSS_TYPES,
    MAX_LENGTH,
    NAN,
    OPTIONS,
    Ragged,
    close,
    options_for,
    padded,
    tensor,
)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_gradient_and_metrics_equal_the_padded_definition(loss_type, level, dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    for seed, extra in enumerate(OPTIONS):
        options = options_for(loss_type, extra) | {"importance_sampling_level": level}
        batch = Ragged(dtype, seed=seed)
        expected, expected_metrics = padded(batch, **options)
        actual, metrics = batch.loss(**options)
        close(actual, expected, tolerance)
        gradient, expected_gradient = (
            torch.autograd.grad(loss, batch.logprobs)[0] for loss in (actual, expected)
        )
        close(gradient, expected_gradient, tolerance)
        assert (gradient[~batch.mask] == 0).all()
        metrics = combine_metrics([metrics])
        for name, value in expected_metrics.items():
            assert metrics[name] == pytest.approx(value.item(), abs=1e-5), (name, options)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_gradients_equal_finite_differences(loss_type, level):
    for seed, extra in enumerate(OPTIONS):
        batch = Ragged(seed=10 + seed)
        trained = batch.mask.nonzero().squeeze(1)

        def loss(values, batch=batch, trained=trained, extra=extra):
            batch.logprobs = batch.logprobs.detach().index_put((trained,), values)
            return batch.loss(loss_type=loss_type, importance_sampling_level=level, **extra)[0]

        # steps of 1e-6 cross none of the clip's corners, from which these draws stay further away
        assert torch.autograd.gradcheck(
            loss, (batch.logprobs.detach()[trained].requires_grad_(),), eps=1e-6, atol=1e-7
        )


@pytest.mark.parametrize(
    "parts", [[[0, 1, 2, 3], [4, 5, 6, 7]], [[5], [0], [7, 1], [2, 6, 4], [3]], [[row] for row in range(8)]]
)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "cispo"])
def test_the_cut_into_micro_batches_or_ranks_does_not_matter(loss_type, level, parts):
    """Nor does the order in which a part is packed; the tolerance is for sums in another order."""
    options = options_for(loss_type, {"beta": 0.1, "importance_sampling_level": level})
    batch = Ragged()
    whole, whole_metrics = batch.loss(**options)
    losses, metrics = zip(*(batch.loss(rows, **options) for rows in parts), strict=True)
    close(sum(losses), whole, 1e-12)
    gradients = [torch.autograd.grad(loss, batch.logprobs)[0] for loss in (sum(losses), whole)]
    close(*gradients, 1e-12)
    whole_metrics = combine_metrics([whole_metrics])
    assert combine_metrics(metrics) == pytest.approx(whole_metrics, abs=1e-12)
    ranks = [combine_metrics(metrics[:1]), combine_metrics(metrics[1:])]
    assert combine_metrics(ranks) == pytest.approx(whole_metrics, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_ratios_are_taken_in_float32(dtype):
    """In bfloat16, -10 and -10.0625 are neighbours, and e to their difference would be 1.0625."""
    logprobs = torch.tensor([-10.0], dtype=dtype, requires_grad=True)
    for old, expected in ((torch.tensor([-10.0625], dtype=dtype), -math.exp(0.0625)), (None, -1.0)):
        loss, metrics = grpo_loss(
            logprobs,
            torch.tensor([1.0]),
            torch.tensor([0, 1]),
            torch.tensor([True]),
            num_items_in_batch=1,
            num_sequences_in_batch=1,
            old_logprobs=old,
        )
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        assert all(not value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("gap", [-1e4, -200.0, 200.0, 1e4])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_policies_far_apart_leave_loss_and_gradient_finite(loss_type, level, gap):
    options = options_for(loss_type, {"beta": 0.1, "importance_sampling_level": level})
    for shifted in ("old_logprobs", "ref_logprobs"):
        for advantage in (-1.0, 1.0):
            batch = Ragged(torch.float32)
            batch.advantages = torch.full_like(batch.advantages, advantage)
            batch.tensors[shifted] = batch.tensors[shifted] + gap
            loss, metrics = batch.loss(**options)
            assert torch.isfinite(loss)
            assert torch.isfinite(torch.autograd.grad(loss, batch.logprobs)[0]).all()
            assert all(math.isfinite(value) for value in combine_metrics([metrics]).values())


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_batch_masked_whole_gives_zero_and_no_gradient(loss_type):
    batch = Ragged()
    batch.mask = torch.zeros_like(batch.mask)
    loss, metrics = grpo_loss(
        batch.logprobs,
        batch.advantages,
        batch.cu_seqlens,
        batch.mask,
        num_items_in_batch=0,
        num_sequences_in_batch=8,
        max_completion_length=MAX_LENGTH,
        **options_for(loss_type, {"beta": 0.1}),
        **batch.tensors,
    )
    assert loss == 0
    assert (torch.autograd.grad(loss, batch.logprobs)[0] == 0).all()
    metrics = combine_metrics([metrics])
    assert set(metrics.values()) == {0.0}
    assert "kl_max" not in metrics


def test_a_truncated_completion_still_counts_among_the_sequences():
    """Four trained tokens of the first completion alone: their mean, divided by all eight."""
    batch = Ragged()
    batch.mask = batch.mask & (torch.arange(len(batch.mask)) < batch.cu_seqlens[1])
    whole = batch.loss(loss_type="grpo")[0]
    close(whole, batch.loss([0], loss_type="dapo")[0] * sum(COMPLETIONS) / 4 / 8)


def test_the_samplers_weight_leaves_the_kl_term_alone():
    batch = Ragged()
    halves = torch.full_like(batch.logprobs, 0.5).detach()
    plain, kl = (batch.loss(beta=beta, importance_sampling_ratio=None)[0] for beta in (0.0, 0.3))
    weighted = batch.loss(beta=0.3, importance_sampling_ratio=halves)[0]
    close(weighted, 0.5 * plain + (kl - plain))


def test_without_beta_a_reference_is_reported_and_not_followed():
    batch = Ragged()
    without, metrics = batch.loss(ref_logprobs=None)
    assert "kl" not in metrics
    with_reference, metrics = batch.loss()
    assert with_reference == without
    assert metrics["kl"] > 0


def test_nothing_is_written_into_the_arguments():
    batch = Ragged()
    before = [
        value.clone()
        for value in (batch.logprobs, batch.advantages, batch.mask, batch.cu_seqlens, *batch.tensors.values())
    ]
    batch.loss(beta=0.1, delta=3.0)[0].backward()
    after = [batch.logprobs, batch.advantages, batch.mask, batch.cu_seqlens, *batch.tensors.values()]
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0, equal_nan=True)
    rewards = tensor(1, NAN, 0, 0)
    group_advantages(rewards, 4)
    assert rewards.isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_type": "ppo"}, "loss_type is 'ppo'"),
        ({"importance_sampling_level": "word"}, "importance_sampling_level is 'word'"),
        ({"epsilon": -0.1}, "epsilon is -0.1"),
        ({"epsilon_high": NAN}, "epsilon_high is nan"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"delta": 1.2}, "delta is 1.2"),
        ({"epsilon_high": 0.5, "delta": 1.4}, "above"),
        ({"loss_type": "cispo"}, "epsilon_high is None"),
        ({"loss_type": "cispo", "epsilon_high": 0.28}, "caps the ratio itself"),
        ({"loss_type": "cispo", "epsilon_high": 5.0, "delta": 7.0}, "no second clip"),
    ],
)
def test_options_without_a_meaning_are_refused_in_one_line(options, words):
    for refuse in (check_loss_options, Ragged().loss):
        with pytest.raises(UserError, match=words) as caught:
            refuse(**options)
        assert "\n" not in str(caught.value)


def test_what_a_loss_type_cannot_do_without_is_asked_for():
    batch = Ragged()
    common = {"num_items_in_batch": sum(COMPLETIONS), "num_sequences_in_batch": len(COMPLETIONS)}
    arguments = (batch.logprobs, batch.advantages, batch.cu_seqlens, batch.mask)
    for options, words in (
        ({"beta": 0.1}, "ref_logprobs"),
        ({"loss_type": "dr_grpo"}, "max_completion_length"),
    ):
        with pytest.raises(ValueError, match=words):
            grpo_loss(*arguments, **common, **options)
    with pytest.raises(AssertionError, match="28 trained tokens here, 27 in the whole step"):
        grpo_loss(*arguments, **common | {"num_items_in_batch": 27})


def test_defaults_are_those_of_trl():
    """TRL 1.16's `GRPOConfig`."""
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(grpo_loss).parameters.items()
    }
    expected = {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": None, "delta": None, "beta": 0.0}
    expected |= {"use_bias_correction_kl": True, "importance_sampling_level": "token"}
    assert expected.items() <= defaults.items()
    assert inspect.signature(group_advantages).parameters["scale_rewards"].default == "group"
    assert EPS == 1e-4


# -- presets


def loss_options(preset):
    return {
        name: value for name, value in GRPO[preset].items() if name in inspect.signature(grpo_loss).parameters
    }


def test_the_r1_onevision_preset_is_the_loss_of_its_trainer():
    """Mean over completions of the token mean of -(A - beta k3), as the authors' code has it: neither clip
    nor ratio before the KL.
    """
    preset = GRPO["r1-onevision"]
    assert (preset["num_generations"], preset["beta"], preset["epsilon"], preset["temperature"]) == (
        8,
        0.04,
        0.2,
        1.0,
    )
    assert dict(zip(preset["reward_funcs"], preset["reward_weights"], strict=True)) == {
        "accuracy": 1.0,
        "format": 1.0,
    }
    batch = Ragged()
    options = loss_options("r1-onevision") | {"max_completion_length": MAX_LENGTH}
    loss, _ = batch.loss(**options, old_logprobs=None, importance_sampling_ratio=None)
    expected = 0
    for row, count in enumerate(COMPLETIONS):
        for token in range(batch.cu_seqlens[row + 1] - count, batch.cu_seqlens[row + 1]):
            logp, ref = batch.logprobs[token], batch.tensors["ref_logprobs"][token]
            k3 = torch.exp(ref - logp) - (ref - logp) - 1
            expected = (
                expected - (torch.exp(logp - logp.detach()) * batch.advantages[row] - 0.04 * k3) / count / 8
            )
    close(loss, expected)
    close(*(torch.autograd.grad(value, batch.logprobs)[0] for value in (loss, expected)))


def test_the_dapo_preset_is_dapo():
    options = loss_options("dapo")
    assert options == {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0}
    assert GRPO["dapo"]["dynamic_sampling"]
    check_loss_options(**options)
