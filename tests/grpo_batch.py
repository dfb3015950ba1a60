"""A whole ragged GRPO batch, and TRL's published definition of its loss, derived anew in padded form: the
judge of `grpo_loss`.
"""

import itertools
import math

import torch

from r1ov.train.loss import group_advantages, grpo_loss

NAN = math.nan
LOSS_TYPES = ("grpo", "dapo", "dr_grpo", "cispo")
PROMPTS = (3, 3, 1, 1, 5, 5, 2, 2)  # tokens
COMPLETIONS = (4, 1, 7, 2, 3, 0, 5, 6)  # trained tokens; one completion is masked whole
MAX_LENGTH = 7


def tensor(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


class Ragged:
    """Prompts and completions laid end to end, with old and reference policies that differ, and rubbish where
    nothing is trained.
    """

    def __init__(self, dtype=torch.float64, spread=0.25, seed=0):
        generator = torch.Generator().manual_seed(seed)
        lengths = [prompt + completion for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
        self.cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        self.mask = torch.cat(
            [
                torch.arange(prompt + completion) >= prompt
                for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
            ]
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

    def loss(self, rows=None, **options):
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
            **{name: value[index] for name, value in self.tensors.items() if name not in options},
            **{"max_completion_length": MAX_LENGTH} | options,
        )


def padded(batch, **options):
    """TRL's definition on a (B, L) rectangle with right padding, piece by piece: loss and metrics of one
    batch that is the whole step.

    The clip is written as its two cases, A >= 0 and A < 0. At "sequence", the ratio of the KL term stays the
    token's own.
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
        torch.where(
            ratio < 1 - low,
            1 - low,
            torch.where(ratio > options.get("delta", math.inf), options.get("delta", 0), ratio),
        )
        * advantage,
    )
    if loss_type == "cispo":
        gain = torch.where(ratio > high, high, ratio).detach() * advantage * logp
    term = -gain * (weight if options.get("weighted", True) else 1)
    d = ref - logp
    kl = torch.exp(d) - d - 1
    kl = kl * (token_ratio if options.get("use_bias_correction_kl", True) else 1)
    term = torch.where(mask, term + options.get("beta", 0.0) * kl, 0)

    if loss_type == "grpo":
        loss = (term.sum(1) / torch.where(length > 0, length, 1)).mean()
    elif loss_type == "dr_grpo":
        loss = term.sum() / (rows * MAX_LENGTH)
    else:
        loss = term.sum() / mask.sum()

    def share(flags):
        return (
            flags[:, 0].double().mean()
            if options.get("importance_sampling_level") == "sequence"
            else flags[mask].double().mean()
        )

    metrics = {"entropy": entropy[mask].mean(), "kl": kl[mask].mean()}
    if loss_type == "cispo":
        metrics["cispo_clip_ratio"] = share((ratio > high) & (advantage > 0))
    else:
        is_low, is_high = (ratio < 1 - low) & (advantage < 0), (ratio > 1 + high) & (advantage > 0)
        by_row = [
            torch.stack([flags[row][mask[row]].double().mean() for row in range(rows) if length[row]])
            for flags in (is_low, is_high)
        ]
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
    {"beta": 0.1, "epsilon": 0.05},
)


def options_for(loss_type, extra):
    """CISPO's cap is a ratio, and it has no second clip."""
    if loss_type == "cispo":
        extra = {name: value for name, value in extra.items() if name != "delta"} | {"epsilon_high": 1.1}
    return {"loss_type": loss_type, **extra}
