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
from r1ov.train.grpo_loss import clamped, grpo_loss

GAP = "sampling/sampling_logp_difference"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A prompt with one of its completions: labels are the tokens to be trained, `logprobs` the sampler's, of every completion token."""

    sequence: Encoded
    logprobs: Sequence[float]
    advantage: float

    @property
    def num_trained(self) -> int:
        return num_trained(self.sequence.labels)

    @property
    def teaches(self) -> bool:
        """Whether a gradient comes from it, where there is no KL term."""
        return bool(self.advantage and self.num_trained)


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Rows end to end, T tokens; what is known of a token stands at the token's own place."""

    batch: Batch  # with labels (T,)
    num_items: int  # trained tokens, those of the rows left out included
    num_sequences: int  # as well; without the blank one
    advantages: Tensor  # (B,)
    sampler_logprobs: Tensor  # (T,)
    old_logprobs: Tensor | None = None  # (T,) of the policy before the first update; None: it is the policy that learns
    ref_logprobs: Tensor | None = None  # (T,)

    @property
    def num_read(self) -> int:
        """Trained tokens that are here."""
        return num_trained(self.batch["labels"])


def num_trained(labels: Tensor) -> int:
    return int((labels != IGNORED).sum())


def make_packs(rows: Sequence[Row], processor: Processor, max_length: int, world: World, skip_idle: bool = False) -> list[Pack]:
    """The rows in packs of at most `max_length` tokens; every process gets as many, because a sharded model is called by all together.

    Args: skip_idle: leave out rows that teach nothing; the first pack counts them, so that what is a mean over all stays one. Where
        no process has any other, all are kept, and the step is as ever.
    """
    left_out: list[Row] = []
    if skip_idle and any(world.gather(any(row.teaches for row in rows))):
        rows, left_out = [row for row in rows if row.teaches], [row for row in rows if not row.teaches]
    lengths = [len(row.sequence) for row in rows]
    costs = [_cost(row.sequence, processor) for row in rows]
    bins = pack(lengths, costs, max_length)
    count = max(world.gather(len(bins)))
    if world.size > 1:
        bins = pack(lengths, costs, max_length, count) or [[] for _ in range(count)]
    return [
        _pack([rows[index] for index in members], [] if number else left_out, processor, needs_picture=world.size > 1)
        for number, members in enumerate(bins)
    ]


def _cost(encoded: Encoded, processor: Processor) -> int:
    grids = [] if encoded.image_grid_thw is None else encoded.image_grid_thw.tolist()
    return sequence_cost(processor.config, len(encoded), num_trained(encoded.labels), grids)


def _pack(rows: Sequence[Row], left_out: Sequence[Row], processor: Processor, needs_picture: bool) -> Pack:
    sequences = [row.sequence for row in rows]
    logprobs = [F.pad(torch.tensor(row.logprobs), (len(row.sequence) - len(row.logprobs), 0)) for row in rows]
    advantages = [row.advantage for row in rows]
    if needs_picture and all(one.pixel_values is None for one in sequences):
        blank = blank_sequence(processor)
        sequences, logprobs, advantages = [*sequences, blank], [*logprobs, torch.zeros(len(blank))], [*advantages, 0.0]
    return Pack(
        batch=processor.pack(sequences),
        num_items=sum(row.num_trained for row in (*rows, *left_out)),
        num_sequences=len(rows) + len(left_out),
        advantages=torch.tensor(advantages),
        sampler_logprobs=torch.cat(logprobs),
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
    hidden: Tensor, weight: Tensor, pack: Pack, config: GRPOConfig, num_items: float, num_read: float, num_sequences: float, num_packs: int
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
        num_read_in_batch=num_read,
        num_sequences_in_batch=num_sequences,
        old_logprobs=old,
        ref_logprobs=ref,
        entropies=entropies.detach(),
        importance_sampling_ratio=correction,
        num_micro_batches=num_packs,
        **config.loss_options,
    )
    gap = (before - sampler).abs()[mask]
    metrics[f"{GAP}/mean"] = gap.sum() / max(num_read, 1)
    metrics[f"{GAP}/max"] = gap.max() if len(gap) else gap.new_tensor(float("nan"))
    return loss, metrics
