"""From sequences to packs: what is trained at once lies end to end in one batch, for both stages alike.

A sequence of SFT is a whole conversation. One of GRPO is a prompt with one of its completions; completions of
the same prompt make a bundle, in which the prompt is there once and each completion goes on from it. A pack
of two bundles, with two completions and with one (p, q: prompt tokens; c, d, e: completion tokens):

    token      p p p   p c c c   p d d   q q q q e e
    sequence   0       1         2       3
    prefix     -1      0         0       -1
    trained              ^ ^ ^     ^ ^           ^ ^

A prompt's last token is every completion's own, because it predicts the completion's first token.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

import torch
from PIL import Image
from torch import Tensor

from r1ov.common.processes import World
from r1ov.data.image import LazyImage
from r1ov.data.processor import IGNORED, Batch, Encoded, Processor
from r1ov.model.config import Config
from r1ov.model.rope import mrope_positions


def sequence_cost(
    config: Config, num_tokens: int, num_trained: int, grids: Iterable[Sequence[int]] = ()
) -> int:
    """Floating-point operations of one sequence's forward and backward pass; a multiply-add is two.

    Counted are the matrix products: per token or patch two for each weight it meets, and attention, which
    grows with the square of the text's length (halved, as it is causal) and of each picture's patches, or
    with patches x window in the windowed blocks. The backward pass costs twice the forward one. Left out:
    norms, rotations, activations, and what checkpointing computes a second time.

    Args:
        num_tokens: the pictures' merged tokens among them. num_trained: only these meet the output head.
        grids: of its pictures, each (time, height, width) in patches.
    Source: Kaplan et al. 2020 (arXiv:2001.08361), table 1; here with grouped keys, gated MLPs, a vision
        encoder and its windows.
    """
    text, vision = config.text, config.vision
    width, heads = text.hidden_size, text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    layer = width * (2 * heads + 2 * keys + 3 * text.intermediate_size)  # weights
    products = text.num_hidden_layers * num_tokens * (layer + num_tokens * heads)
    products += num_trained * width * text.vocab_size

    width, merge = vision.hidden_size, vision.spatial_merge_size**2
    block = width * (4 * width + 3 * vision.intermediate_size)  # weights
    merger = merge * width * (merge * width + vision.out_hidden_size)
    num_full = sum(index < vision.depth for index in vision.fullatt_block_indexes)
    for t, h, w in grids:
        patches, frame = t * h * w, h * w
        window = min(frame, (vision.window_size // vision.patch_size) ** 2)  # at an edge they are smaller
        seen = num_full * frame + (vision.depth - num_full) * window
        products += patches * (vision.patch_dim * width + vision.depth * block + 2 * width * seen)
        products += patches // merge * merger
    return 6 * products  # two operations each, three times


def pack(
    lengths: Sequence[int], costs: Sequence[float], max_length: int, num_bins_multiple: int = 1
) -> list[list[int]]:
    """Each sequence's index in exactly one pack; the packs costliest first, so that packs trained side by
    side are next to each other.

    There are k * num_bins_multiple packs, k as small as the two ways below find it; some may be empty. The
    first way hands the costliest sequence left to the cheapest pack that has room (longest processing time
    first): where the token budget does not bind, the costliest of m packs costs at most 4/3 - 1/(3m) times
    what the best packing's would (Graham 1969), and for many short sequences nearly the same. Where that way
    finds no room, the second hands the longest one left to the fullest pack that has room (best fit
    decreasing), which needs at most 11/9 of the fewest packs possible and one more, but does not look at the
    costs.

    Args:
        lengths: tokens of each sequence. costs: of each, in any unit. max_length: tokens that a pack may
            hold.
        num_bins_multiple: how many packs are trained at the same time, one on each rank.
    Returns: lists of ascending indices; none at all for no sequences. A pure function of the arguments, the
        same on every machine.
    Raises:  ValueError for a sequence longer than max_length.
    """
    for index, length in enumerate(lengths):
        if length > max_length:
            raise ValueError(f"sequence {index} has {length} tokens, but a pack holds {max_length}")
    if not lengths:
        return []
    for k in count(-(-sum(lengths) // (max_length * num_bins_multiple)) or 1):
        num_bins = k * num_bins_multiple
        if bins := _deal(lengths, costs, max_length, num_bins) or _deal(lengths, None, max_length, num_bins):
            return sorted(
                map(sorted, bins), key=lambda members: (-sum(costs[index] for index in members), members)
            )


def _deal(
    lengths: Sequence[int], costs: Sequence[float] | None, max_length: int, num_bins: int
) -> list[list[int]] | None:
    """The costliest sequence left to the cheapest pack that has room, or without costs the longest to the
    fullest; None if one finds no room.
    """
    bins = [[] for _ in range(num_bins)]
    room = [max_length] * num_bins
    rank = [0] * num_bins if costs else room  # the lowest is chosen
    for index in sorted(range(len(lengths)), key=lambda index: -(costs or lengths)[index]):  # ties: the first
        fitting = [number for number in range(num_bins) if lengths[index] <= room[number]]
        if not fitting:
            return None
        chosen = min(fitting, key=rank.__getitem__)  # ties: the first
        bins[chosen].append(index)
        room[chosen] -= lengths[index]
        if costs:
            rank[chosen] += costs[index]
    return bins


def num_trained(labels: Tensor) -> int:
    return int((labels != IGNORED).sum())


def blank_sequence(processor: Processor) -> Encoded:
    """A frame of one white merged patch, of which nothing is trained.

    It makes the vision encoder run where a rank has no image: sharded, all ranks must gather its weights
    together. It adds exactly nothing to the loss and to any gradient, since no token of it has a label and no
    other sequence attends to it.
    """
    config, merge_size = processor.config, processor.image_processor.merge_size
    side = merge_size * processor.image_processor.patch_size
    ids = torch.tensor([config.vision_start_token_id, config.image_token_id, config.vision_end_token_id])
    grid = torch.tensor([[1, merge_size, merge_size]])
    return processor.with_pixels(
        Encoded(
            input_ids=ids,
            labels=torch.full_like(ids, IGNORED),
            position_ids=mrope_positions(ids, grid, config.image_token_id, merge_size),
            image_grid_thw=grid,
            pictures=(LazyImage((side, side), partial(Image.new, "RGB", (side, side), "white")),),
        )
    )


def needed_blank(sequences: Sequence[Encoded], processor: Processor) -> list[Encoded]:
    """The blank sequence, if these need one, which several ranks do where there is no image here."""
    is_bare = all(sequence.pixel_values is None for sequence in sequences)
    return [blank_sequence(processor)] if is_bare else []


# -- prompts with their completions


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A completion to learn from: n tokens, the stop token included."""

    input_ids: Tensor  # (n,) int64
    labels: Tensor  # (n,) the same, or all -100 if none of it is trained
    logprobs: Tensor  # (n,) the sampler's
    advantage: Tensor  # ()

    @property
    def teaches(self) -> bool:
        """Whether a gradient comes from it, where there is no KL term."""
        return bool(self.advantage) and num_trained(self.labels) > 0


Part = Sequence[tuple[Encoded, Sequence[Continuation]]]  # prompts, each with completions


def continued(start: Encoded, input_ids: Tensor, labels: Tensor) -> Encoded:
    """`start`, of which nothing is trained, and the tokens (n,) that follow it as one sequence."""
    first = int(start.position_ids.max()) + 1
    positions = torch.arange(first, first + len(input_ids)).expand(3, -1)
    return replace(
        start,
        input_ids=torch.cat((start.input_ids, input_ids)),
        labels=torch.cat((torch.full_like(start.input_ids, IGNORED), labels)),
        position_ids=torch.cat((start.position_ids, positions), dim=1),
    )


def bundle(prompt: Encoded, completions: Sequence[Continuation]) -> list[Encoded]:
    """The prompt and what goes on from it, as drawn above; a single completion whole, with its prompt."""
    if len(completions) == 1:
        return [continued(prompt, one.input_ids, one.labels) for one in completions]
    ids, positions = prompt.input_ids, prompt.position_ids
    labels = torch.full_like(ids[:-1], IGNORED)
    shared = replace(prompt, input_ids=ids[:-1], labels=labels, position_ids=positions[:, :-1])
    last = Encoded(input_ids=ids[-1:], position_ids=positions[:, -1:])
    return [shared, *(continued(last, one.input_ids, one.labels) for one in completions)]


def make_packs(part: Part, processor: Processor, max_length: int, world: World) -> list[Batch]:
    """This rank's completions in packs of at most `max_length` tokens. Collective: all ranks call this.

    Every rank gets as many packs, because a sharded model is called by all together. Completions share their
    prompt in as few bundles as the length allows; where it ends in an image, whose tokens cannot be parted,
    each has its own.

    Returns: batches with labels, and what is known of the completions: advantages (B,), and sampler_logprobs
        (T,), each aligned with the token it describes.
    """
    bundles = []  # a prompt, and a list of its continuations
    lengths = []  # in tokens, and so much does each cost, about
    for prompt, completions in part:
        is_shared = False  # whether the last bundle is this prompt's, and more may join it
        for one in completions:
            more = 1 + len(one.input_ids)  # with the prompt's last token
            if is_shared and lengths[-1] + more <= max_length:
                bundles[-1][1].append(one)
                lengths[-1] += more
            else:
                bundles.append((prompt, [one]))
                lengths.append(len(prompt) - 1 + more)
            is_shared = prompt.input_ids[-1] != processor.config.image_token_id
    packs = pack(lengths, lengths, max_length)
    num_packs = max(world.gather(len(packs)))
    if len(packs) < num_packs:
        packs = pack(lengths, lengths, max_length, num_packs) or [[]] * num_packs

    batches = []
    for members in packs:
        sequences = []
        prefixes = []
        known = []  # of each sequence
        for prompt, completions in (bundles[index] for index in members):
            own = bundle(prompt, completions)
            prefixes += [-1] + [len(sequences)] * (len(own) - 1)
            known += [None] * (len(own) - len(completions)) + completions
            sequences += own
        blank = needed_blank(sequences, processor) if world.size > 1 else []
        batch = processor.pack(sequences + blank)
        if max(prefixes, default=-1) >= 0:
            batch["prefixes"] = torch.tensor(prefixes + [-1] * len(blank))
        known += [None] * len(blank)
        batch["advantages"] = torch.stack([one.advantage if one else torch.tensor(0.0) for one in known])
        batch["sampler_logprobs"] = logprobs = torch.zeros(len(batch["input_ids"]))
        for end, one in zip(batch["cu_seqlens"][1:].tolist(), known, strict=True):
            if one:  # the last tokens of its sequence
                logprobs[end - len(one.logprobs) : end] = one.logprobs
        batches.append(batch)
    return batches
