"""GRPO's advantages and loss: against numbers worked by hand, TRL's published definition derived anew in padded form, exact expectations,
finite differences, and the cuts and orders that must not matter."""

import inspect
import itertools
import math

import pytest
import torch

from r1ov.errors import UserError
from r1ov.train.grpo_loss import check_loss_options, combine_metrics, group_advantages, grpo_loss, kl_estimate, reward_metrics
from r1ov.train.presets import PRESETS

NAN = math.nan
LOSS_TYPES = ("grpo", "dapo", "dr_grpo", "bnpo", "cispo")
PROMPTS = (3, 3, 1, 1, 5, 5, 2, 2)  # tokens
COMPLETIONS = (4, 1, 7, 2, 3, 0, 5, 6)  # trained tokens; one completion is masked whole
MAX_LENGTH = 7


def tensor(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# -- advantages


def test_one_success_in_a_group_is_worth_what_the_sample_deviation_says():
    """(7/8) / sqrt(1/8) = 2.475 with ddof 1; ddof 0 would give 2.645. TRL's eps of 1e-4 moves it to 2.4742."""
    close(group_advantages(tensor(1, 0, 0, 0, 0, 0, 0, 0), 8)[:2], tensor(0.875, -0.125) / (math.sqrt(1 / 8) + 1e-4))
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


def test_interleaved_prompts_are_noticed():
    rewards = tensor(1, 0, 0, 1)
    group_advantages(rewards, 2, group_ids=torch.tensor([7, 7, 3, 3]))
    with pytest.raises(AssertionError, match="side by side"):
        group_advantages(rewards, 2, group_ids=torch.tensor([7, 3, 7, 3]))


def test_reward_metrics_are_those_worked_by_hand():
    metrics = reward_metrics(tensor(1, 0, 1, 1, NAN, 0), 2)
    assert metrics == pytest.approx(
        {"reward": 0.6, "reward_std": math.sqrt(0.3), "group_std_mean": math.sqrt(0.5) / 3, "frac_reward_zero_std": 2 / 3}
    )


# -- the loss, by hand


def single_tokens(ratios, advantages, **options):
    """Completions of one token each, with the given ratios; loss terms can be read off one by one. Returns loss, gradient, metrics."""
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
        num_micro_batches=1,
        **options,
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.item(), gradient, combine_metrics([metrics])


@pytest.mark.parametrize(
    ("loss_type", "value", "gradient"),
    [  # lengths 1 and 3, advantages 1 and -1
        ("grpo", 0.0, (-1 / 2, 1 / 6, 1 / 6, 1 / 6)),
        ("dapo", 0.5, (-1 / 4, 1 / 4, 1 / 4, 1 / 4)),
        ("bnpo", 0.5, (-1 / 4, 1 / 4, 1 / 4, 1 / 4)),
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
    """Why GRPO's loss curve sits near zero: with completions of equal length the policy term is 0 in every aggregation."""
    advantages = group_advantages(tensor(1, 0, 0, 0), 4).tolist()
    ref = torch.linspace(-2, -2.5, 12, dtype=torch.float64)
    for loss_type in ("grpo", "dapo", "bnpo"):
        loss, _, metrics = on_policy(loss_type, (3, 3, 3, 3), advantages, beta=0.04, ref_logprobs=ref)
        assert metrics["kl"] > 0.01
        assert loss == pytest.approx(0.04 * metrics["kl"])


def test_sequence_level_takes_the_geometric_mean_of_the_ratios():
    """Ratios 2 and 1/2 multiply to 1: nothing is clipped. Ratios 2 and 2 give 2: clipped at 1.2, token by token."""
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
        close(torch.autograd.grad(loss, logprobs)[0], torch.zeros(2).double() if clipped else tensor(-0.5, -0.5))


# -- KL


def test_kl_estimates_average_to_the_exact_divergence_and_its_gradients():
    """Over a softmax of four, the expectation on the policy's own samples is a sum, and torch's kl_div is the judge."""
    logits = tensor(0.3, -1.0, 0.8, 0.1).requires_grad_()
    ref = tensor(-0.5, 0.4, 0.2, 0.9).log_softmax(0)
    logprobs = logits.log_softmax(0)
    sampled = logprobs.detach().exp()
    reverse = torch.nn.functional.kl_div(ref, logprobs, log_target=True, reduction="sum")
    forward = torch.nn.functional.kl_div(logprobs, ref, log_target=True, reduction="sum")
    reverse_grad, forward_grad = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (reverse, forward))

    def expected(estimates):
        total = (sampled * estimates).sum()
        return total.detach(), torch.autograd.grad(total, logits, retain_graph=True)[0]

    k1, k2, k3 = (kl_estimate(logprobs, ref, kind) for kind in ("k1", "k2", "k3"))
    ratio = (logprobs - logprobs.detach()).exp()
    close(expected(k1)[0], reverse.detach())
    close(expected(k3)[0], reverse.detach())
    assert abs(expected(k2)[0] - reverse.detach()) > 0.005
    close(expected(k1)[1], torch.zeros(4).double())
    close(expected(k2)[1], reverse_grad)
    close(expected(k3)[1], forward_grad)
    close(expected(ratio * k3)[1], reverse_grad)
    close(expected(ratio * k1)[1], reverse_grad)
    assert (k3 >= 0).all()
    with pytest.raises(UserError, match="kl_estimator is 'k4'"):
        kl_estimate(logprobs, ref, "k4")


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_at_ratio_one_k3_times_the_ratio_has_the_gradient_of_k2_token_by_token(level):
    ref = torch.linspace(-4, -1, 4, dtype=torch.float64)
    common = {"lengths": (1, 3), "advantages": (0, 0), "beta": 1.0, "ref_logprobs": ref, "importance_sampling_level": level}
    corrected = on_policy("dapo", **common, kl_estimator="k3")[1]
    close(corrected, on_policy("dapo", **common, kl_estimator="k2", use_bias_correction_kl=False)[1])
    assert not torch.allclose(corrected, on_policy("dapo", **common, kl_estimator="k3", use_bias_correction_kl=False)[1])


def test_kl_compares_policy_with_reference_and_the_ratio_with_the_sampler():
    """At log p -1, sampler -1.1, reference -2: rho = e^0.1, k3 = e^-1 - 1 + 1 = e^-1."""
    loss, _, metrics = single_tokens([math.exp(0.1)], [2.0], beta=0.5, ref_logprobs=tensor(-0.9))
    assert metrics["kl"] == pytest.approx(math.exp(0.1) * math.exp(-1))
    assert loss == pytest.approx(-2 * math.exp(0.1) + 0.5 * metrics["kl"])


# -- a whole ragged batch


class Ragged:
    """Prompts and completions laid end to end, with old and reference policies that differ, and rubbish where nothing is trained."""

    def __init__(self, dtype=torch.float64, spread=0.25, seed=0):
        generator = torch.Generator().manual_seed(seed)
        lengths = [prompt + completion for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
        self.cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        self.mask = torch.cat(
            [torch.arange(prompt + completion) >= prompt for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
        )
        total = sum(lengths)

        def noise(scale):
            return scale * torch.randn(total, generator=generator, dtype=torch.float64)

        logprobs = -1.5 + noise(0.5)
        draws = {
            "logprobs": logprobs,
            "old_logprobs": logprobs + noise(spread),
            "ref_logprobs": logprobs + noise(0.5),
            "entropies": 2 + noise(0.3),
            "importance_sampling_ratio": noise(0.1).exp(),
        }
        self.tensors = {name: value.to(dtype).masked_fill(~self.mask, NAN) for name, value in draws.items()}
        self.advantages = group_advantages(tensor(1, 0, 0, 0, 1, 0, 1, 1), 4).to(dtype)
        self.logprobs = self.tensors.pop("logprobs").requires_grad_()

    def loss(self, rows=None, num_micro_batches=1, **options):
        """Of the given rows, packed in that order, as a part of the whole."""
        rows = range(len(PROMPTS)) if rows is None else rows
        pieces = [torch.arange(self.cu_seqlens[row], self.cu_seqlens[row + 1]) for row in rows]
        index = torch.cat(pieces)
        return grpo_loss(
            self.logprobs[index],
            self.advantages[list(rows)],
            torch.tensor([0, *itertools.accumulate(len(piece) for piece in pieces)], dtype=torch.int32),
            self.mask[index],
            num_items_in_batch=sum(COMPLETIONS),
            num_sequences_in_batch=len(COMPLETIONS),
            num_micro_batches=num_micro_batches,
            **{name: value[index] for name, value in self.tensors.items() if name not in options},
            **{"max_completion_length": MAX_LENGTH} | options,
        )


def padded(batch, **options):
    """TRL's definition on a (B, L) rectangle with right padding, piece by piece: loss and metrics of one batch that is the whole step.

    The clip is written as its two cases, A >= 0 and A < 0. At "sequence", the ratio of the KL term stays the token's own.
    """
    rows, width = len(COMPLETIONS), max(COMPLETIONS)

    def rectangle(packed):
        table = torch.full((rows, width), -0.7, dtype=packed.dtype)
        for row in range(rows):
            start = batch.cu_seqlens[row] + PROMPTS[row]
            table[row, : COMPLETIONS[row]] = packed[start : start + COMPLETIONS[row]]
        return table

    logp, old, ref, entropy, weight = (rectangle(t) for t in (batch.logprobs, *batch.tensors.values()))
    mask = torch.arange(width) < torch.tensor(COMPLETIONS)[:, None]
    length = mask.sum(1)
    advantage = batch.advantages[:, None].expand(rows, width)
    token_ratio = torch.exp(logp - old)
    ratio = token_ratio
    if options.get("importance_sampling_level") == "sequence":
        mean = torch.where(mask, logp - old, 0).sum(1) / torch.where(length > 0, length, 1)
        ratio = torch.exp(mean)[:, None].expand(rows, width)

    low, loss_type = options.get("epsilon", 0.2), options.get("loss_type", "dapo")
    high = options.get("epsilon_high", low)
    gain = torch.where(
        advantage >= 0,
        torch.where(ratio > 1 + high, 1 + high, ratio) * advantage,
        torch.where(ratio < 1 - low, 1 - low, torch.where(ratio > options.get("delta", math.inf), options.get("delta", 0), ratio))
        * advantage,
    )
    if loss_type == "cispo":
        gain = torch.where(ratio > high, high, ratio).detach() * advantage * logp
    term = -gain * (weight if options.get("weighted", True) else 1)
    d = ref - logp
    kl = {"k1": -d, "k2": d**2 / 2, "k3": torch.exp(d) - d - 1}[options.get("kl_estimator", "k3")]
    kl = kl * (token_ratio if options.get("use_bias_correction_kl", True) else 1)
    term = torch.where(mask, term + options.get("beta", 0.0) * kl, 0)

    if loss_type == "grpo":
        loss = (term.sum(1) / torch.where(length > 0, length, 1)).mean()
    elif loss_type == "dr_grpo":
        loss = term.sum() / (rows * MAX_LENGTH)
    else:
        loss = term.sum() / mask.sum()

    def share(flags):
        return flags[:, 0].double().mean() if options.get("importance_sampling_level") == "sequence" else flags[mask].double().mean()

    metrics = {"entropy": entropy[mask].mean(), "kl": kl[mask].mean()}
    if loss_type == "cispo":
        metrics["cispo_clip_ratio"] = share((ratio > high) & (advantage > 0))
    else:
        is_low, is_high = (ratio < 1 - low) & (advantage < 0), (ratio > 1 + high) & (advantage > 0)
        by_row = [torch.stack([flags[row][mask[row]].double().mean() for row in range(rows) if length[row]]) for flags in (is_low, is_high)]
        metrics |= {
            "clip_ratio/low_mean": share(is_low),
            "clip_ratio/low_min": by_row[0].min(),
            "clip_ratio/high_mean": share(is_high),
            "clip_ratio/high_max": by_row[1].max(),
            "clip_ratio/region_mean": share(is_low | is_high),
        }
    return loss, metrics


OPTIONS = (
    {},
    {"epsilon": 0.1, "epsilon_high": 0.28},
    {"epsilon_high": 0.3, "delta": 1.35},
    {"beta": 0.1},
    {"beta": 0.1, "use_bias_correction_kl": False},
    {"beta": 0.1, "kl_estimator": "k1"},
    {"beta": 0.1, "kl_estimator": "k2", "epsilon": 0.05},
)


def options_for(loss_type, extra):
    """CISPO's cap is a ratio, and it has no second clip."""
    if loss_type == "cispo":
        extra = {name: value for name, value in extra.items() if name != "delta"} | {"epsilon_high": 1.1}
    return {"loss_type": loss_type, **extra}


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
        gradient, expected_gradient = (torch.autograd.grad(loss, batch.logprobs)[0] for loss in (actual, expected))
        close(gradient, expected_gradient, tolerance)
        assert (gradient[~batch.mask] == 0).all()
        metrics = combine_metrics([metrics])
        for name, value in expected_metrics.items():
            assert metrics[name] == pytest.approx(value.item(), abs=1e-5), (name, options)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "bnpo"])
def test_gradients_equal_finite_differences(loss_type, level):
    for seed, extra in enumerate(OPTIONS):
        batch = Ragged(seed=10 + seed)
        trained = batch.mask.nonzero().squeeze(1)

        def loss(values, batch=batch, trained=trained, extra=extra):
            batch.logprobs = batch.logprobs.detach().index_put((trained,), values)
            return batch.loss(loss_type=loss_type, importance_sampling_level=level, **extra)[0]

        # steps of 1e-6 cross none of the clip's corners, from which these draws stay further away
        assert torch.autograd.gradcheck(loss, (batch.logprobs.detach()[trained].requires_grad_(),), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3], [4, 5, 6, 7]], [[5], [0], [7, 1], [2, 6, 4], [3]], [[row] for row in range(8)]])
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


def test_bnpo_is_the_mean_of_the_micro_batches_token_means():
    batch = Ragged()
    (first, _), (second, _) = (batch.loss(rows, num_micro_batches=2, loss_type="bnpo") for rows in (range(2), range(2, 8)))
    dapo = [batch.loss(rows, loss_type="dapo")[0] * sum(COMPLETIONS) for rows in (range(2), range(2, 8))]
    close(first + second, (dapo[0] / 5 + dapo[1] / 23) / 2)


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
        num_micro_batches=1,
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
    before = [value.clone() for value in (batch.logprobs, batch.advantages, batch.mask, batch.cu_seqlens, *batch.tensors.values())]
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
        ({"kl_estimator": "k4"}, "kl_estimator is 'k4'"),
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
        ({"loss_type": "bnpo"}, "num_micro_batches"),
    ):
        with pytest.raises(ValueError, match=words):
            grpo_loss(*arguments, **common, **options)
    with pytest.raises(AssertionError, match="28 trained tokens here, 27 in the whole step"):
        grpo_loss(*arguments, **common | {"num_items_in_batch": 27})


def test_defaults_are_those_of_trl():
    """TRL 1.16's `GRPOConfig`; kl_estimator has no counterpart there, where it is always k3."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(grpo_loss).parameters.items()}
    expected = {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": None, "delta": None, "beta": 0.0}
    expected |= {"use_bias_correction_kl": True, "importance_sampling_level": "token", "kl_estimator": "k3"}
    assert expected.items() <= defaults.items()
    assert inspect.signature(group_advantages).parameters["scale_rewards"].default == "group"
    assert inspect.signature(group_advantages).parameters["eps"].default == 1e-4


# -- presets


def loss_options(preset):
    return {name: value for name, value in PRESETS[preset].items() if name in inspect.signature(grpo_loss).parameters}


def test_the_r1_onevision_preset_is_the_loss_of_its_trainer():
    """Mean over completions of the token mean of -(A - beta k3), as the authors' code has it: neither clip nor ratio before the KL."""
    preset = PRESETS["r1-onevision"]
    assert (preset["num_generations"], preset["beta"], preset["epsilon"], preset["temperature"]) == (8, 0.04, 0.2, 1.0)
    assert dict(zip(preset["reward_funcs"], preset["reward_weights"], strict=True)) == {"accuracy": 1.0, "format": 1.0}
    batch = Ragged()
    options = loss_options("r1-onevision") | {"max_completion_length": MAX_LENGTH}
    loss, _ = batch.loss(**options, old_logprobs=None, importance_sampling_ratio=None)
    expected = 0
    for row, count in enumerate(COMPLETIONS):
        for token in range(batch.cu_seqlens[row + 1] - count, batch.cu_seqlens[row + 1]):
            logp, ref = batch.logprobs[token], batch.tensors["ref_logprobs"][token]
            k3 = torch.exp(ref - logp) - (ref - logp) - 1
            expected = expected - (torch.exp(logp - logp.detach()) * batch.advantages[row] - 0.04 * k3) / count / 8
    close(loss, expected)
    close(*(torch.autograd.grad(value, batch.logprobs)[0] for value in (loss, expected)))


def test_the_dapo_preset_is_dapo():
    options = loss_options("dapo")
    assert options == {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0}
    assert PRESETS["dapo"]["dynamic_sampling"]
    check_loss_options(**options)
