"""Group relative policy optimisation as pure functions: rewards to advantages, log-probs and advantages to a
loss.

Three policies meet here. `logprobs` are of the policy that learns, `old_logprobs` of the policy that sampled,
`ref_logprobs` of the frozen reference. The ratio of the clipped objective is learning over sampling policy;
the reference appears in the KL term alone.

Option names, metric names and defaults are TRL's. Notation: G completions o_i of one prompt, |o_i| trained
tokens each, stop token included; B completions and N trained tokens in the whole optimiser step, over all its
micro-batches and ranks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from r1ov.errors import UserError

LossType = Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo"]
ScaleRewards = Literal["group", "batch", "none"]
KLEstimator = Literal["k1", "k2", "k3"]
ImportanceSamplingLevel = Literal["token", "sequence"]

MAX_LOG_RATIO = 20.0  # e^20 = 5e8; verl's bound
MIN_STD = 1e-6  # a smaller spread is rounding, which division by the standard deviation would blow up


def mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (ddof 1) over the last dimension of what is not NaN; 0 where that is too
    little.

    Args: values: (..., n) float. Returns: two of (..., 1).
    """
    count = (~values.isnan()).sum(-1, keepdim=True)
    mean = values.nansum(-1, keepdim=True) / count.clamp(min=1)
    return mean, ((values - mean).square().nansum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()


def grouped_rewards(rewards: Tensor, num_generations: int) -> Tensor:
    """(B,) to (B / G, G) in float64, in which the mean of equal float32 rewards is exact."""
    if num_generations < 2:
        raise UserError(
            f"num_generations is {num_generations}; a group needs 2 or more completions to compare"
        )
    if rewards.dim() != 1 or len(rewards) % num_generations:
        raise UserError(
            f"rewards have the shape {tuple(rewards.shape)}; expected one dimension, a multiple of num_generations {num_generations}"
        )
    if rewards.isinf().any():
        raise UserError(
            f"{int(rewards.isinf().sum())} of {len(rewards)} rewards are infinite; a reward is a finite number, or None"
        )
    return rewards.double().view(-1, num_generations)


def group_advantages(
    rewards: Tensor,
    num_generations: int,
    scale_rewards: ScaleRewards = "group",
    eps: float = 1e-4,
    group_ids: Tensor | None = None,
) -> Tensor:
    """How much better each completion did than its siblings: A_i = (r_i - mean of its group) / (std + eps).

    A completion without a reward (NaN: the gold cannot be scored) leaves its group's mean and std, and gets
    0. A group without spread gets exactly 0, also one with a single reward; its tokens still count in the
    normaliser of the loss and still feel the KL term.

    Args:
        rewards: (B,) of the whole step, all ranks, the G completions of a prompt side by side.
        num_generations: G.
        scale_rewards: "group": the std of the group, ddof 1; "batch": of all B rewards; "none": no division,
            eps neither.
        group_ids: (B,) int, optional: which prompt each completion answers. Checked only.
    Returns: (B,) float32, or float64 if the rewards are.
    Source: DeepSeekMath (arXiv 2402.03300) section 4.1.2; "batch": Lite PPO (2508.08221); "none": Dr. GRPO
        (2503.20783); eps, ddof and
        the treatment of NaN: TRL's `GRPOTrainer`. There the rounding of a group without spread may leave a
            trace; here it does not.
    """
    if scale_rewards not in get_args(ScaleRewards):
        raise UserError(
            f"scale_rewards is {scale_rewards!r}; it must be one of {', '.join(get_args(ScaleRewards))}"
        )
    grouped = grouped_rewards(rewards, num_generations)
    if group_ids is not None:
        ids = group_ids.view_as(grouped)
        assert (ids == ids[:, :1]).all(), "the completions of one prompt do not stand side by side"
    mean, std = mean_and_std(grouped)
    advantages = grouped - mean
    if scale_rewards == "group":
        advantages = advantages / (std + eps)
    elif scale_rewards == "batch":
        advantages = advantages / (mean_and_std(grouped.flatten())[1] + eps)
    advantages = advantages.masked_fill((std < MIN_STD) | grouped.isnan(), 0.0)
    return advantages.flatten().to(torch.promote_types(rewards.dtype, torch.float32))


def reward_metrics(rewards: Tensor, num_generations: int) -> dict[str, float]:
    """What to log of the rewards of the step, (B,), NaN left out: mean, std, mean std of a group, share of
    groups without spread.

    With p the chance of a right answer, p^G + (1 - p)^G of the groups have no spread, and teach nothing.
    Source: TRL's names; `group_std_mean` is what its older versions called reward_std.
    """
    grouped = grouped_rewards(rewards, num_generations)
    stds = mean_and_std(grouped)[1]
    mean, std = mean_and_std(grouped.flatten())
    return {
        "reward": mean.item(),
        "reward_std": std.item(),
        "group_std_mean": stds.mean().item(),
        "frac_reward_zero_std": (stds < MIN_STD).double().mean().item(),
    }


def at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def clamped(log_ratio: Tensor) -> Tensor:
    """Bounded before exp, where clamping afterwards would give 0 * inf = NaN in the backward; no gradient
    beyond the bounds.
    """
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator = "k3") -> Tensor:
    """(T,) estimates of KL(policy, reference) in nats, one a sampled token. With r = reference / policy at
    that token:

        k1 = -log r          unbiased, noisy, can be negative
        k2 = (log r)^2 / 2   biased, little noise
        k3 = r - 1 - log r   unbiased, never negative

    As a term of the loss they differ more than in value: on samples of the policy itself the expected
    gradient of k1 is 0, of k2 that of KL(policy, reference), of k3 that of KL(reference, policy). Times the
    ratio, k3 has at ratio 1 exactly the gradient of k2.

    Args: logprobs, ref_logprobs: (T,), any float dtype. log r is computed in float32 and clamped to +-20
        before exp.
    Source: Schulman, "Approximating KL divergence" (2020); k3 is equation 4 of DeepSeekMath (arXiv
        2402.03300).
    """
    log_r = clamped(at_least_float32(ref_logprobs) - at_least_float32(logprobs))
    if estimator == "k1":
        return -log_r
    if estimator == "k2":
        return log_r.square() / 2
    if estimator == "k3":
        return torch.expm1(log_r) - log_r
    raise UserError(f"kl_estimator is {estimator!r}; it must be one of {', '.join(get_args(KLEstimator))}")


def sequence_sums(values: Tensor, sequence_ids: Tensor, num_sequences: int) -> Tensor:
    """(N,) summed by sequence: (num_sequences,)."""
    return values.new_zeros(num_sequences).index_add(0, sequence_ids, values)


def check_loss_options(
    loss_type: str = "dapo",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    kl_estimator: str = "k3",
    importance_sampling_level: str = "token",
) -> None:
    """Raises UserError for what `grpo_loss` cannot mean, so that a run can refuse before it has loaded
    anything.
    """
    for name, value, choices in (
        ("loss_type", loss_type, LossType),
        ("kl_estimator", kl_estimator, KLEstimator),
        ("importance_sampling_level", importance_sampling_level, ImportanceSamplingLevel),
    ):
        if value not in get_args(choices):
            raise UserError(f"{name} is {value!r}; it must be one of {', '.join(get_args(choices))}")
    for name, number in (("epsilon", epsilon), ("epsilon_high", epsilon_high), ("beta", beta)):
        if number is not None and not 0 <= number < math.inf:
            raise UserError(f"{name} is {number}; it must be 0 or more")
    if loss_type == "cispo" and (epsilon_high is None or epsilon_high < 1):
        raise UserError(
            f"epsilon_high is {epsilon_high}; with loss_type cispo it caps the ratio itself and must be 1 or more (ScaleRL: 5.0)"
        )
    if delta is not None and loss_type == "cispo":
        raise UserError(f"delta is {delta}; loss_type cispo has no second clip, leave delta out")
    high = epsilon if epsilon_high is None else epsilon_high
    if delta is not None and not 1 + high < delta < math.inf:
        raise UserError(
            f"delta is {delta}; it caps the ratio where the clip at {1 + high:g} does not, and must be above that"
        )


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
    kl_estimator: KLEstimator = "k3",
    use_bias_correction_kl: bool = True,
    importance_sampling_level: ImportanceSamplingLevel = "token",
    max_completion_length: int | None = None,
    num_micro_batches: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One micro-batch's share of the step's loss, and of its metrics. Shares are summed, over micro-batches
    and over ranks.

    With the ratio rho = policy / sampling policy of a token, the loss of a token is

        l = -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A) + beta rho KL

    and every loss_type but bnpo weighs each token by numbers of the whole step, so neither how the step is
    cut up nor how it is packed changes anything (a trainer that averages gradients over ranks multiplies by
    their number first):

        grpo      sum_i 1/(B |o_i|) sum_t l    mean over completions of their token means     DeepSeekMath (arXiv 2402.03300) eq. 3
        dapo      sum_it l / N                 mean over tokens, of the batch, as in the      DAPO (2503.14476)
                                               paper's code; its formula says of the group
        dr_grpo   sum_it l / (B L)             L = max_completion_length                      Dr. GRPO (2503.20783)
        bnpo      sum_it l / (n M)             n tokens here, M micro-batches in the step: depends on the cut      TRL's `bnpo`
        cispo     as dapo, with l = -stop_gradient(min(rho, epsilon_high)) A log p + beta rho KL: no token loses its gradient;
                  the value means nothing      MiniMax-M1 (2506.13585), capped as in ScaleRL (2510.13786)

    importance_sampling_level "sequence" (GSPO, 2507.18071, with loss_type grpo) takes for the policy term one
    rho a completion, exp(mean_t log rho). `delta` caps rho also where A < 0, where the loss is otherwise
    unbounded: dual clip (1912.09729) as in INTELLECT-2 (2505.07291). `use_bias_correction_kl` is the rho
    before KL, always the token's own (DeepSeek-V3.2, 2512.02556); TRL takes the completion's at "sequence".
    Log-ratios are clamped to +-20 before exp, in float32; TRL does not clamp.

    Args:
        logprobs: (T,) of the packed tokens, any float dtype, at the sampling temperature, aligned as you
            like.
        advantages: (B,) of the sequences here. cu_seqlens: (B + 1,) int.
        completion_mask: (T,) bool, aligned with logprobs: what is trained, of each completion up to and
            including its stop token. Elsewhere nothing is read. A row of it may be empty (a truncated
            completion): it still counts among the sequences.
        num_items_in_batch: N. num_sequences_in_batch: B of the whole step.
        num_read_in_batch: how many of the N tokens any micro-batch gets to see; default: all. Without a KL
            term, completions whose
            advantage is 0 may stay away: loss, gradients and clip ratios are the same, the other means are
                over the tokens seen.
        old_logprobs: (T,); None: the sample is the policy's own and rho is 1, though its gradient is not 0.
        ref_logprobs: (T,), needed if beta is not 0. entropies: (T,) in nats, for the metrics.
        importance_sampling_ratio: (T,), optional: weights of the policy term that mend a sampler that differs
            from the trainer.
        num_micro_batches: M, needed by bnpo. max_completion_length: L, needed by dr_grpo.
    Returns: the loss, and 0-dim metrics for `combine_metrics`, TRL's names: clip_ratio/{low,high,region}_mean
        (share of the tokens, at "sequence" of the completions, whose gradient is clipped away),
        clip_ratio/low_min and high_max (over completions) or cispo_clip_ratio, kl, entropy; and kl_max,
        log_ratio/abs_mean, log_ratio/abs_max.
    """
    check_loss_options(loss_type, epsilon, epsilon_high, delta, beta, kl_estimator, importance_sampling_level)
    if beta != 0 and ref_logprobs is None:
        raise ValueError(f"beta is {beta}, which needs ref_logprobs")
    rows = len(advantages)
    assert cu_seqlens.shape == (rows + 1,), (
        f"{rows} advantages, but cu_seqlens has the shape {tuple(cu_seqlens.shape)}"
    )
    assert int(cu_seqlens[-1]) == len(logprobs), (
        f"cu_seqlens ends at {int(cu_seqlens[-1])}, there are {len(logprobs)} logprobs"
    )
    for tensor in (completion_mask, old_logprobs, ref_logprobs, entropies, importance_sampling_ratio):
        assert tensor is None or tensor.shape == logprobs.shape, (tensor.shape, logprobs.shape)

    trained = completion_mask.nonzero().squeeze(1)  # (N here,)
    assert len(trained) <= num_items_in_batch, (
        f"{len(trained)} trained tokens here, {num_items_in_batch} in the whole step"
    )
    sequence = torch.repeat_interleave(
        torch.arange(rows, device=logprobs.device), cu_seqlens.diff(), output_size=len(logprobs)
    )[trained]
    logprobs = at_least_float32(logprobs)[trained]
    old_logprobs = logprobs.detach() if old_logprobs is None else at_least_float32(old_logprobs)[trained]
    lengths = sequence_sums(torch.ones_like(old_logprobs), sequence, rows)  # (B,)
    assert (lengths > 0).sum() <= num_sequences_in_batch, (
        f"{rows} sequences here, {num_sequences_in_batch} in the whole step"
    )
    advantage = advantages.to(logprobs.dtype)[sequence]
    num_items, num_sequences = max(num_items_in_batch, 1), max(num_sequences_in_batch, 1)  # all may be masked
    num_read = num_items if num_read_in_batch is None else max(num_read_in_batch, 1)

    log_ratio = logprobs - old_logprobs
    token_ratio = ratio = clamped(log_ratio).exp()
    if importance_sampling_level == "sequence":
        means = sequence_sums(log_ratio, sequence, rows) / lengths.clamp(min=1)
        ratio = clamped(means).exp()[sequence]

    high = epsilon if epsilon_high is None else epsilon_high
    if loss_type == "cispo":
        loss = -ratio.clamp(max=high).detach() * advantage * logprobs
    else:
        capped = ratio if delta is None else ratio.clamp(max=delta)
        loss = -torch.minimum(capped * advantage, ratio.clamp(1 - epsilon, 1 + high) * advantage)
    if importance_sampling_ratio is not None:
        loss = loss * importance_sampling_ratio[trained]
    kl = None
    if ref_logprobs is not None:
        kl = kl_estimate(logprobs, ref_logprobs[trained], kl_estimator)
        kl = kl * token_ratio if use_bias_correction_kl else kl
    if beta != 0:
        loss = loss + beta * kl

    if loss_type == "grpo":
        total = (loss / lengths[sequence]).sum() / num_sequences
    elif loss_type == "dr_grpo":
        if max_completion_length is None:
            raise ValueError("loss_type dr_grpo needs max_completion_length")
        total = loss.sum() / (num_sequences * max_completion_length)
    elif loss_type == "bnpo":
        if num_micro_batches is None:
            raise ValueError("loss_type bnpo needs num_micro_batches")
        total = loss.sum() / (max(len(trained), 1) * num_micro_batches)
    else:
        total = loss.sum() / num_items

    with torch.no_grad():
        metrics = {
            "log_ratio/abs_mean": log_ratio.abs().sum() / num_read,
            "log_ratio/abs_max": largest(log_ratio.abs()),
        }
        if kl is not None:
            metrics |= {"kl": kl.sum() / num_read, "kl_max": largest(kl)}
        if entropies is not None:
            metrics["entropy"] = at_least_float32(entropies)[trained].sum() / num_read

        def by_sequence(flags: Tensor) -> Tensor:
            return sequence_sums(flags.to(ratio.dtype), sequence, rows) / lengths.clamp(min=1)

        def share(flags: Tensor) -> Tensor:
            if importance_sampling_level == "sequence":
                return by_sequence(flags).sum() / num_sequences
            return flags.to(ratio.dtype).sum() / num_items

        if loss_type == "cispo":
            metrics["cispo_clip_ratio"] = share((ratio > high) & (advantage > 0))
        else:
            is_low, is_high = (ratio < 1 - epsilon) & (advantage < 0), (ratio > 1 + high) & (advantage > 0)
            low_min = -largest(-by_sequence(is_low)[lengths > 0])
            metrics |= {
                "clip_ratio/low_mean": share(is_low),
                "clip_ratio/low_min": low_min
                if num_read >= num_items
                else torch.zeros_like(low_min),  # nothing is clipped at advantage 0
                "clip_ratio/high_mean": share(is_high),
                "clip_ratio/high_max": largest(by_sequence(is_high)[lengths > 0]),
                "clip_ratio/region_mean": share(is_low | is_high),
            }
    return total, metrics


def largest(values: Tensor) -> Tensor:
    """The maximum; NaN of nothing."""
    return values.max() if len(values) else values.new_tensor(math.nan)


def combine_metrics(parts: Sequence[Mapping[str, Tensor | float]]) -> dict[str, float]:
    """The metrics of the step from those of its micro-batches, or of its ranks: a sum, or by their last
    letters a minimum or maximum.

    A minimum or maximum over no token at all is left out.
    """
    combined = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [float(part[name]) for part in parts if name in part]
        if name.endswith(("min", "max")):
            values = [value for value in values if not math.isnan(value)]
            if values:
                combined[name] = (min if name.endswith("min") else max)(values)
        else:
            combined[name] = math.fsum(values)
    return combined
