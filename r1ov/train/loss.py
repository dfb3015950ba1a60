"""The losses as pure functions: supervised fine-tuning's, and the way from rewards to GRPO's.

Three policies meet in GRPO. `logprobs` are those of the policy that learns, `old_logprobs` those of the
policy that sampled, as the trainer computes them before its first update, `ref_logprobs` those of the frozen
reference. The ratio of the clipped objective is learning over sampling policy; the reference is in the KL
term alone.

Names of options and metrics, and defaults, are TRL's. Notation: G completions o_i of one prompt, |o_i|
trained tokens each, stop token included; B completions and N trained tokens in the whole optimiser step, over
all its packs and ranks.
"""

import math
from typing import get_args

import torch
from torch import Tensor

from kernels import token_logprobs
from r1ov.errors import UserError
from r1ov.train.run.config import ImportanceSamplingLevel, LossType, ScaleRewards, check_loss_options

EPS = 1e-4  # added to the standard deviation, as in TRL
MIN_STD = 1e-6  # a smaller spread is rounding, which division by the standard deviation would blow up
MAX_LOG_RATIO = 20.0  # e^20 = 5e8; verl's bound


def sft_loss(hidden: Tensor, weight: Tensor, labels: Tensor, num_items_in_batch: float) -> Tensor:
    """Mean negative log-likelihood of the trained tokens, in nats: -1/N sum_t log p(labels[t+1] | tokens to
    t).

    N counts the trained tokens of the whole optimiser step, over all its packs and ranks, so the loss and its
    gradients do not depend on how the step is cut up.

    Args:
        hidden: (T, C) states of packed sequences. weight: (V, C), the output head.
        labels: (T,) int64, aligned with the input tokens (Hugging Face's convention), -100 where nothing is
            trained. The first token of a sequence is never trained, so no target crosses into the next
            sequence.
        num_items_in_batch: N.
    Source: transformers' `ForCausalLMLoss` with `num_items_in_batch`; here over a packed batch.
    """
    return sft_loss_and_correct(hidden, weight, labels, num_items_in_batch)[0]


def sft_loss_and_correct(
    hidden: Tensor, weight: Tensor, labels: Tensor, num_items_in_batch: float
) -> tuple[Tensor, Tensor]:
    """`sft_loss`, and how many trained tokens are a first choice of the model's own."""
    logprobs, hits = token_logprobs(hidden[:-1], weight, labels[1:], return_hits=True)
    return -logprobs.sum() / num_items_in_batch, hits.sum()


# -- from rewards to advantages


def mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    """(..., n) -> (..., 1) mean and standard deviation (ddof 1) of what is not NaN; 0 for too few."""
    count = (~values.isnan()).sum(-1, keepdim=True)
    mean = values.nansum(-1, keepdim=True) / count.clamp(min=1)
    return mean, ((values - mean).square().nansum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()


def group_advantages(rewards: Tensor, num_generations: int, scale_rewards: ScaleRewards = "group") -> Tensor:
    """How much better each completion did than its siblings: A_i = (r_i - mean of its group) / (std + 1e-4).

    A completion without a reward (NaN: the gold cannot be scored) is left out of its group's mean and std,
    and gets 0. A group without spread gets exactly 0, and so does a group with a single reward; its tokens
    still count in the normaliser of the loss and still feel the KL term.

    Args:
        rewards: (B,) of the whole step, all ranks, the G completions of a prompt side by side.
        num_generations: G.
        scale_rewards: "group": the std of the group, ddof 1; "batch": of all B rewards; "none": no division.
    Returns: (B,) float32, or float64 if the rewards are.
    Source: DeepSeekMath (arXiv 2402.03300) section 4.1.2; "batch": Lite PPO (2508.08221); "none": Dr. GRPO
        (2503.20783); eps, ddof and the treatment of NaN: TRL's `GRPOTrainer`. There the rounding of a group
        without spread may leave a trace; here it does not.
    """
    if scale_rewards not in get_args(ScaleRewards):
        raise UserError(
            f"scale_rewards is {scale_rewards!r}; it must be one of {', '.join(get_args(ScaleRewards))}"
        )
    if num_generations < 2:
        raise UserError(
            f"num_generations is {num_generations}; a group needs 2 or more completions to compare"
        )
    if rewards.dim() != 1 or len(rewards) % num_generations:
        raise UserError(
            f"rewards have the shape {tuple(rewards.shape)}; expected one dimension, a multiple of "
            f"num_generations {num_generations}"
        )
    if rewards.isinf().any():
        raise UserError(
            f"{int(rewards.isinf().sum())} of {len(rewards)} rewards are infinite; a reward is finite, "
            "or None"
        )
    groups = rewards.double().view(
        -1, num_generations
    )  # in float64 the mean of equal float32 rewards is exact
    mean, std = mean_and_std(groups)
    advantages = groups - mean
    if scale_rewards != "none":
        scale = std if scale_rewards == "group" else mean_and_std(groups.flatten())[1]
        advantages = advantages / (scale + EPS)
    advantages = advantages.masked_fill((std < MIN_STD) | groups.isnan(), 0.0)
    return advantages.flatten().to(torch.promote_types(rewards.dtype, torch.float32))


# -- from log-probs and advantages to the loss


def largest(values: Tensor) -> Tensor:
    """The maximum; NaN of nothing."""
    return values.max() if len(values) else values.new_tensor(math.nan)


def clamped(log_ratio: Tensor) -> Tensor:
    """Bounded before exp: later would give 0 * inf = NaN in the backward. No gradient beyond the bounds."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(N,) estimates of KL(policy, reference) in nats: r - 1 - log r at each token, r = reference / policy.

    Known as k3: unbiased, never negative. On samples of the policy itself its expected gradient is that of
    KL(reference, policy); times the ratio of learning to sampling policy, it is that of KL(policy,
    reference).

    Source: equation 4 of DeepSeekMath; Schulman, "Approximating KL divergence" (2020).
    """
    log_r = clamped(ref_logprobs - logprobs)
    return torch.expm1(log_r) - log_r


def grpo_loss(
    logprobs: Tensor,
    advantages: Tensor,
    cu_seqlens: Tensor,
    completion_mask: Tensor,
    *,
    num_items_in_batch: float,
    num_sequences_in_batch: float,
    num_read_in_batch: float | None = None,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    entropies: Tensor | None = None,
    importance_sampling_ratio: Tensor | None = None,
    loss_type: LossType = "dapo",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    use_bias_correction_kl: bool = True,
    importance_sampling_level: ImportanceSamplingLevel = "token",
    max_completion_length: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One pack's share of the step's loss and metrics; shares add up over packs and ranks.

    With the ratio rho = policy / sampling policy of a token, the loss of a token is

        l = -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A) + beta rho KL

    and loss_type weighs tokens by numbers of the whole step, so that neither how the step is cut up nor how
    it is packed changes anything:

        grpo     sum_i 1/(B |o_i|) sum_t l   mean over completions of their token means: DeepSeekMath, eq. 3
        dapo     sum_it l / N                mean over the batch's tokens, as in the code of DAPO (2503.14476)
        dr_grpo  sum_it l / (B L)            L = max_completion_length: Dr. GRPO (2503.20783)
        cispo    as dapo, with l = -stop_gradient(min(rho, epsilon_high)) A log p + beta rho KL: no token
                 loses its gradient, the value means nothing. MiniMax-M1 (2506.13585), ScaleRL (2510.13786)

    Log-ratios are taken in float32 and clamped to +-20 before exp; TRL does not clamp.

    Args:
        logprobs: (T,) of the packed tokens, any float dtype, at the sampling temperature, aligned as
            completion_mask is.
        advantages: (b,) of the sequences here. cu_seqlens: (b + 1,) int.
        completion_mask: (T,) bool, aligned with logprobs: what is trained, of each completion up to and
            including its stop token. Elsewhere nothing is read. A sequence without any (a truncated
            completion) still counts.
        num_items_in_batch: N. num_sequences_in_batch: B of the whole step.
        num_read_in_batch: how many of the N tokens any pack sees; default: all. Without a KL term,
            completions of advantage 0 may stay away: loss, gradients and clip ratios are the same, the other
            means are over the tokens seen.
        old_logprobs: (T,); None: the sample is the policy's own and rho is 1, though its gradient is not 0.
        ref_logprobs: (T,), needed if beta is not 0. entropies: (T,) in nats, for the metrics.
        importance_sampling_ratio: (T,) weights of the policy term, for a sampler that differs from the
            trainer.
        delta: caps rho also where A < 0, where the loss is otherwise unbounded: dual clip (1912.09729) as in
            INTELLECT-2 (2505.07291).
        use_bias_correction_kl: the rho before KL, always the token's own (DeepSeek-V3.2, 2512.02556); TRL
            takes the completion's at "sequence".
        importance_sampling_level: "sequence" (GSPO, 2507.18071, with loss_type grpo) takes one rho a
            completion for the policy term, exp(mean_t log rho).
    """
    check_loss_options(loss_type, epsilon, epsilon_high, delta, beta, importance_sampling_level)
    if beta and ref_logprobs is None:
        raise ValueError(f"beta is {beta}, which needs ref_logprobs")
    if loss_type == "dr_grpo" and max_completion_length is None:
        raise ValueError("loss_type dr_grpo needs max_completion_length")
    index = completion_mask.nonzero().squeeze(1)  # (N,) the trained tokens' places
    assert len(index) <= num_items_in_batch, (
        f"{len(index)} trained tokens here, {num_items_in_batch} in the whole step"
    )
    sequence = torch.repeat_interleave(cu_seqlens.diff())[index]  # (N,) whose each token is
    lengths = sequence.bincount(minlength=len(cu_seqlens) - 1)  # (B,)
    num_items, num_sequences = max(num_items_in_batch, 1), max(num_sequences_in_batch, 1)
    index, sequence, lengths, trained = (
        one.to(logprobs.device, non_blocking=True)
        for one in (index, sequence, lengths, lengths.nonzero().squeeze(1))
    )

    logprobs, old, ref, entropy, weight = (  # (N,) each from here on, in float32 or more
        None if one is None else one[index].to(torch.promote_types(one.dtype, torch.float32))
        for one in (logprobs, old_logprobs, ref_logprobs, entropies, importance_sampling_ratio)
    )
    advantage = advantages[sequence]

    def means(values: Tensor) -> Tensor:
        """(N,) -> (B,) by sequence; 0 for a sequence of which nothing is trained."""
        sums = values.new_zeros(len(lengths)).index_add(0, sequence, values)
        return sums / lengths.clamp(min=1)

    log_ratio = logprobs - (logprobs.detach() if old is None else old)
    token_ratio = ratio = clamped(log_ratio).exp()
    if importance_sampling_level == "sequence":
        ratio = clamped(means(log_ratio)).exp()[sequence]
    low, high = 1 - epsilon, 1 + (epsilon if epsilon_high is None else epsilon_high)
    if loss_type == "cispo":
        high = epsilon_high
        loss = -ratio.clamp(max=high).detach() * advantage * logprobs
    else:
        capped = ratio if delta is None else ratio.clamp(max=delta)
        loss = -torch.minimum(capped * advantage, ratio.clamp(low, high) * advantage)
    if weight is not None:
        loss = loss * weight
    kl = None if ref is None else kl_estimate(logprobs, ref) * (token_ratio if use_bias_correction_kl else 1)
    if beta:
        loss = loss + beta * kl
    if loss_type == "grpo":
        total = (loss / lengths[sequence]).sum() / num_sequences
    elif loss_type == "dr_grpo":
        total = loss.sum() / (num_sequences * max_completion_length)
    else:
        total = loss.sum() / num_items

    with torch.no_grad():  # what is logged of it, under TRL's names
        num_read = num_items if num_read_in_batch is None else max(num_read_in_batch, 1)
        logged = {"log_ratio/abs_mean": log_ratio.abs(), "kl": kl, "entropy": entropy}
        metrics = {name: values.sum() / num_read for name, values in logged.items() if values is not None}
        metrics["log_ratio/abs_max"] = largest(log_ratio.abs())
        if kl is not None:
            metrics["kl_max"] = largest(kl)
        # where the clip takes the gradient away: shares of tokens, or at level "sequence" of completions
        is_low = ((ratio < low) & (advantage < 0)).to(ratio.dtype)
        is_high = ((ratio > high) & (advantage > 0)).to(ratio.dtype)
        size, count = (1, num_items) if ratio is token_ratio else (lengths[sequence], num_sequences)
        low_mean, high_mean = ((flags / size).sum() / count for flags in (is_low, is_high))
        if loss_type == "cispo":
            return total, metrics | {"cispo_clip_ratio": high_mean}
        lows, highs = (means(flags)[trained] for flags in (is_low, is_high))  # of each completion
        is_all_read = num_read >= num_items  # what is not read has advantage 0, and is not clipped
        return total, metrics | {
            "clip_ratio/low_mean": low_mean,
            "clip_ratio/low_min": -largest(-lows) * is_all_read,
            "clip_ratio/high_mean": high_mean,
            "clip_ratio/high_max": largest(highs),
            "clip_ratio/region_mean": low_mean + high_mean,
        }
