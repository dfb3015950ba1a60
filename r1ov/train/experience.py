"""Scored completions as packed batches, and their loss: the part of GRPO between the rollout and the update."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import token_logprobs
from r1ov.data.packing import pack, sequence_cost
from r1ov.data.processor import IGNORED, Batch, Encoded, Processor
from r1ov.data.steps import blank_sequence
from r1ov.model.model import Qwen2_5_VL
from r1ov.train.config import GRPOConfig
from r1ov.train.distributed import World
from r1ov.train.grpo_loss import clamped, grpo_loss, largest

GAP, WEIGHT = "sampling/sampling_logp_difference", "sampling/importance_sampling_ratio"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A prompt with one of its completions: labels are the tokens to be trained, `logprobs` the sampler's, of every completion token."""

    sequence: Encoded
    logprobs: Sequence[float]
    advantage: float


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Rows end to end, T tokens; what is known of a token stands at the token's own place."""

    batch: Batch  # with labels (T,)
    num_sequences: int  # without the blank one
    advantages: Tensor  # (B,)
    sampler_logprobs: Tensor  # (T,)
    old_logprobs: Tensor | None = None  # (T,) of the policy before the first update; None: it is the policy that learns
    ref_logprobs: Tensor | None = None  # (T,)

    @property
    def num_items(self) -> int:
        return int((self.batch["labels"] != IGNORED).sum())


def make_packs(rows: Sequence[Row], processor: Processor, max_length: int, world: World) -> list[Pack]:
    """The rows in packs of at most `max_length` tokens; every process gets as many, because a sharded model is called by all together."""
    lengths = [len(row.sequence) for row in rows]
    costs = [_cost(row.sequence, processor) for row in rows]
    bins = pack(lengths, costs, max_length)
    count = max(world.gather(len(bins)))
    if world.size > 1:
        bins = pack(lengths, costs, max_length, count) or [[] for _ in range(count)]
    return [_pack([rows[index] for index in members], processor, needs_picture=world.size > 1) for members in bins]


def _cost(encoded: Encoded, processor: Processor) -> int:
    grids = [] if encoded.image_grid_thw is None else encoded.image_grid_thw.tolist()
    return sequence_cost(processor.config, len(encoded), int((encoded.labels != IGNORED).sum()), grids)


def _pack(rows: Sequence[Row], processor: Processor, needs_picture: bool) -> Pack:
    sequences = [row.sequence for row in rows]
    logprobs = [F.pad(torch.tensor(row.logprobs), (len(row.sequence) - len(row.logprobs), 0)) for row in rows]
    advantages = [row.advantage for row in rows]
    if needs_picture and all(one.pixel_values is None for one in sequences):
        blank = blank_sequence(processor)
        sequences, logprobs, advantages = [*sequences, blank], [*logprobs, torch.zeros(len(blank))], [*advantages, 0.0]
    return Pack(
        batch=processor.pack(sequences), num_sequences=len(rows), advantages=torch.tensor(advantages), sampler_logprobs=torch.cat(logprobs)
    )


def completion_logprobs(hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy, each (T,), of every token that has a label, at its own place; 0 elsewhere."""
    logprobs, entropies = token_logprobs(hidden[:-1], weight, labels[1:], temperature, return_entropy=True)
    return F.pad(logprobs, (1, 0)), F.pad(entropies, (1, 0))


@torch.no_grad()
def with_logprobs(
    packs: Sequence[Pack], model: Qwen2_5_VL | None, reference: Qwen2_5_VL | None, temperature: float, device: torch.device
) -> list[Pack]:
    """The packs with the log-probs of the policy as it is now, and of the reference; None: not needed."""

    def scored(pack: Pack, judge: Qwen2_5_VL | None) -> Tensor | None:
        if judge is None:
            return None
        batch = pack.batch.to(device)
        labels = batch.pop("labels")
        return judge(**batch, then=lambda hidden, weight: completion_logprobs(hidden, weight, labels, temperature)[0]).cpu()

    return [replace(pack, old_logprobs=scored(pack, model), ref_logprobs=scored(pack, reference)) for pack in packs]


def objective(
    hidden: Tensor, weight: Tensor, pack: Pack, config: GRPOConfig, num_items: float, num_sequences: float, num_packs: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """This pack's share of the step's loss and metrics. The numbers are of the whole step, over all processes."""
    device = hidden.device
    labels, sampler = pack.batch["labels"].to(device), pack.sampler_logprobs.to(device)
    old, ref = (None if known is None else known.to(device) for known in (pack.old_logprobs, pack.ref_logprobs))
    logprobs, entropies = completion_logprobs(hidden, weight, labels, config.temperature)
    before = logprobs.detach() if old is None else old
    correction = None
    if config.importance_sampling_correction:
        correction = clamped(before - sampler).exp().clamp(max=config.importance_sampling_cap)
    mask = labels != IGNORED
    loss, metrics = grpo_loss(
        logprobs,
        pack.advantages.to(device),
        pack.batch["cu_seqlens"].to(device),
        mask,
        num_items_in_batch=num_items,
        num_sequences_in_batch=num_sequences,
        old_logprobs=old,
        ref_logprobs=ref,
        entropies=entropies.detach(),
        importance_sampling_ratio=correction,
        num_micro_batches=num_packs,
        **config.loss_options,
    )
    gap = (before - sampler).abs()[mask]
    metrics[f"{GAP}/mean"] = gap.sum() / max(num_items, 1)
    metrics[f"{GAP}/max"] = largest(gap)
    if correction is not None:
        used = correction[mask]
        metrics |= {f"{WEIGHT}/min": -largest(-used), f"{WEIGHT}/mean": used.sum() / max(num_items, 1), f"{WEIGHT}/max": largest(used)}
    return loss, metrics
