"""Which sequences share a pack: sequences of unequal length dealt into packs of at most so many tokens,
equally costly to train.
"""

from collections.abc import Iterable, Sequence
from itertools import count

from r1ov.model.config import Config


def sequence_cost(
    config: Config, num_tokens: int, num_trained: int, grids: Iterable[Sequence[int]] = ()
) -> int:
    """Floating-point operations of one sequence's forward and backward pass; a multiply-add is two.

    Counted are the matrix products: per token or patch two for each weight it meets, and attention, which
    grows with the square of the text's length (halved, as it is causal) and of each picture's patches, or
    with patches x window in the windowed blocks. The backward
    pass costs twice the forward one. Left out: norms, rotations, activations, and what checkpointing computes
        a second time.

    Args:
        num_tokens: the pictures' merged tokens among them. num_trained: only these meet the output head.
        grids: of its pictures, each (time, height, width) in patches.
    Source: Kaplan et al. 2020 (arXiv:2001.08361), table 1; here with grouped keys, gated MLPs, a vision
        encoder and its windows.
    """
    text, vision = config.text, config.vision
    width, heads = text.hidden_size, text.num_attention_heads * text.head_dim
    layer = width * (
        2 * heads + 2 * text.num_key_value_heads * text.head_dim + 3 * text.intermediate_size
    )  # weights
    forward = 2 * (num_tokens * text.num_hidden_layers * layer + num_trained * width * text.vocab_size)
    forward += 2 * num_tokens * num_tokens * heads * text.num_hidden_layers

    width = vision.hidden_size
    block = width * (4 * width + 3 * vision.intermediate_size)  # weights
    merged_width = vision.spatial_merge_size**2 * width
    num_full = sum(index < vision.depth for index in vision.fullatt_block_indexes)
    for t, h, w in grids:
        patches, frame = t * h * w, h * w
        window = min(
            frame, (vision.window_size // vision.patch_size) ** 2
        )  # at a picture's edge they are smaller
        forward += 2 * patches * (vision.patch_dim * width + vision.depth * block)
        forward += (
            2
            * (patches // vision.spatial_merge_size**2)
            * merged_width
            * (merged_width + vision.out_hidden_size)
        )
        forward += 4 * patches * width * (num_full * frame + (vision.depth - num_full) * window)
    return 3 * forward


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
    costliest = sorted(range(len(lengths)), key=lambda index: -costs[index])  # stable: ties by index
    longest = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for k in count(-(-sum(lengths) // (max_length * num_bins_multiple)) or 1):
        num_bins = k * num_bins_multiple
        bins = _deal(costliest, lengths, max_length, costs, num_bins) or _deal(
            longest, lengths, max_length, None, num_bins
        )
        if bins is not None:
            return sorted(
                map(sorted, bins), key=lambda members: (-sum(costs[index] for index in members), members)
            )


def _deal(
    order: Sequence[int],
    lengths: Sequence[int],
    max_length: int,
    costs: Sequence[float] | None,
    num_bins: int,
) -> list[list[int]] | None:
    """Each sequence in turn to the cheapest pack that has room, or without costs to the fullest; None if one
    finds no room.
    """
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    room = [max_length] * num_bins
    rank: list[float] = [0] * num_bins if costs else room  # the lowest is chosen
    for index in order:
        fitting = [number for number in range(num_bins) if lengths[index] <= room[number]]
        if not fitting:
            return None
        chosen = min(fitting, key=rank.__getitem__)  # ties: the first
        bins[chosen].append(index)
        room[chosen] -= lengths[index]
        if costs:
            rank[chosen] += costs[index]
    return bins
