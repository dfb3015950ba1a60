"""Scored completions as packed batches, and their loss: the part of GRPO between the rollout and the update."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from r1ov.common.processes import World
from r1ov.data.pack import blank_sequence, pack, sequence_cost
from r1ov.data.processor import IGNORED, Batch, Encoded, Processor
from r1ov.model.model import Qwen2_5_VL
from r1ov.train.loss import clamped, completion_logprobs, grpo_loss, largest
from r1ov.train.run.config import GRPOConfig

GAP, WEIGHT = "sampling/sampling_logp_difference", "sampling/importance_sampling_ratio"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A prompt with one of its completions: labels are the tokens to be trained, `logprobs` the sampler's, of
    every completion token.
    """

    sequence: Encoded
    logprobs: Sequence[float]
    advantage: float
    group: int | None = None  # rows of the same number have the same prompt

    @property
    def num_trained(self) -> int:
        return num_trained(self.sequence.labels)

    @property
    def teaches(self) -> bool:
        """Whether a gradient comes from it, where there is no KL term."""
        return bool(self.advantage and self.num_trained)


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Rows end to end, T tokens; what is known of a token stands at the token's own place.

    A prompt that several rows have stands there once, as a sequence of its own without its last token, and
    they go on from it.
    """

    batch: Batch  # with labels (T,)
    num_items: int  # trained tokens, those of the rows left out included
    num_sequences: int  # as well; without the blank one
    advantages: Tensor  # (B,)
    sampler_logprobs: Tensor  # (T,)
    old_logprobs: Tensor | None = (
        None  # (T,) of the policy before the first update; None: it is the policy that learns
    )
    ref_logprobs: Tensor | None = None  # (T,)

    @property
    def num_read(self) -> int:
        """Trained tokens that are here."""
        return num_trained(self.batch["labels"])


def num_trained(labels: Tensor) -> int:
    return int((labels != IGNORED).sum())


def make_packs(
    rows: Sequence[Row], processor: Processor, max_length: int, world: World, skip_idle: bool = False
) -> list[Pack]:
    """The rows in packs of at most `max_length` tokens; every process gets as many, because a sharded model
    is called by all together.

    Args: skip_idle: leave out rows that teach nothing; the first pack counts them, so that what is a mean
        over all stays one. Where no process has any other, all are kept, and the step is as ever.
    """
    left_out: list[Row] = []
    if skip_idle and any(world.gather(any(row.teaches for row in rows))):
        rows, left_out = [row for row in rows if row.teaches], [row for row in rows if not row.teaches]
    units = _units(rows, max_length, processor.config.image_token_id)
    lengths = [_num_tokens(unit) for unit in units]
    costs = [_cost(unit, processor) for unit in units]
    bins = pack(lengths, costs, max_length)
    count = max(world.gather(len(bins)))
    if world.size > 1:
        bins = pack(lengths, costs, max_length, count) or [[] for _ in range(count)]
    return [
        _pack(
            [units[index] for index in members],
            [] if number else left_out,
            processor,
            needs_picture=world.size > 1,
        )
        for number, members in enumerate(bins)
    ]


def _units(rows: Sequence[Row], max_length: int, image_token_id: int) -> list[list[Row]]:
    """The rows by prompt, as many of one prompt together as a pack holds; each for itself where a prompt ends
    with its picture.
    """
    units: list[list[Row]] = []
    last: dict[int, list[Row]] = {}  # of each group the unit that is being filled
    for row in rows:
        unit = None if row.group is None else last.get(row.group)
        if unit and _num_tokens([*unit, row]) <= max_length:
            unit.append(row)
            continue
        units.append([row])
        if row.group is not None and row.sequence.input_ids[-len(row.logprobs) - 1] != image_token_id:
            last[row.group] = units[-1]
    return units


def _num_shared(unit: Sequence[Row]) -> int:
    """How many tokens of the prompt stand in the pack once; its last one, which predicts each completion's
    first, is every row's own.
    """
    return len(unit[0].sequence) - len(unit[0].logprobs) - 1 if len(unit) > 1 else 0


def _num_tokens(unit: Sequence[Row]) -> int:
    return sum(len(row.sequence) for row in unit) - (len(unit) - 1) * _num_shared(unit)


def _cost(unit: Sequence[Row], processor: Processor) -> int:
    """Floating-point operations; what is shared counts once."""
    encoded, shared = unit[0].sequence, _num_shared(unit)
    grids = [] if encoded.image_grid_thw is None else encoded.image_grid_thw.tolist()
    whole = sum(sequence_cost(processor.config, len(row.sequence), row.num_trained) for row in unit)
    once = sequence_cost(processor.config, shared, 0)
    return whole - (len(unit) - 1) * once + sequence_cost(processor.config, 0, 0, grids)


def _pack(
    units: Sequence[Sequence[Row]], left_out: Sequence[Row], processor: Processor, needs_picture: bool
) -> Pack:
    parts: list[
        tuple[Encoded, Sequence[float], float, int]
    ] = []  # sequence, log-probs of its end, advantage, prefix
    for unit in units:
        prefix, shared = -1, _num_shared(unit)
        if shared:
            prefix = len(parts)
            parts.append((_cut(unit[0].sequence, slice(shared)), [], 0.0, -1))
        for row in unit:
            own = replace(_cut(row.sequence, slice(shared, None)), **NO_PICTURES) if shared else row.sequence
            parts.append((own, row.logprobs, row.advantage, prefix))
    if needs_picture and all(sequence.pixel_values is None for sequence, *_ in parts):
        parts.append((blank_sequence(processor), [], 0.0, -1))
    sequences, logprobs, advantages, prefixes = zip(*parts, strict=True)
    batch = processor.pack(sequences)
    if max(prefixes) >= 0:
        batch["prefixes"] = torch.tensor(prefixes)
    rows = [row for unit in (*units, left_out) for row in unit]
    return Pack(
        batch=batch,
        num_items=sum(row.num_trained for row in rows),
        num_sequences=len(rows),
        advantages=torch.tensor(advantages),
        sampler_logprobs=torch.cat(
            [
                F.pad(torch.tensor(own), (len(sequence) - len(own), 0))
                for sequence, own in zip(sequences, logprobs, strict=True)
            ]
        ),
    )


NO_PICTURES: dict[str, Any] = {"image_grid_thw": None, "pictures": (), "pixel_values": None}


def _cut(encoded: Encoded, part: slice) -> Encoded:
    return replace(
        encoded,
        input_ids=encoded.input_ids[part],
        labels=encoded.labels[part],
        position_ids=encoded.position_ids[:, part],
    )


@torch.no_grad()
def with_logprobs(
    packs: Sequence[Pack],
    model: Qwen2_5_VL | None,
    reference: Qwen2_5_VL | None,
    temperature: float,
    device: torch.device,
) -> list[Pack]:
    """The packs with the log-probs of the policy as it is now, and of the reference; None: not needed."""

    def scored(pack: Pack, judge: Qwen2_5_VL | None) -> Tensor | None:
        if judge is None:
            return None
        batch = pack.batch.to(device)
        labels = batch.pop("labels")
        return judge(
            **batch, then=lambda hidden, weight: completion_logprobs(hidden, weight, labels, temperature)[0]
        ).cpu()

    return [
        replace(pack, old_logprobs=scored(pack, model), ref_logprobs=scored(pack, reference))
        for pack in packs
    ]


def objective(
    hidden: Tensor,
    weight: Tensor,
    pack: Pack,
    config: GRPOConfig,
    num_items: float,
    num_read: float,
    num_sequences: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """This pack's share of the step's loss and metrics. The numbers are of the whole step, over all
    processes.
    """
    device = hidden.device
    labels, sampler = pack.batch["labels"].to(device), pack.sampler_logprobs.to(device)
    old, ref = (
        None if known is None else known.to(device) for known in (pack.old_logprobs, pack.ref_logprobs)
    )
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
        **config.loss_options,
    )
    gap = (before - sampler).abs()[mask]
    metrics[f"{GAP}/mean"] = gap.sum() / max(num_read, 1)
    metrics[f"{GAP}/max"] = largest(gap)
    if correction is not None:
        used = correction[mask]
        metrics |= {
            f"{WEIGHT}/min": -largest(-used),
            f"{WEIGHT}/mean": used.sum() / max(num_read, 1),
            f"{WEIGHT}/max": largest(used),
        }
    return loss, metrics
