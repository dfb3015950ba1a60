"""Rotary positions: two-dimensional for patches, three streams (time, height, width) for the language model.

Mirrors transformers' `Qwen2_5_VisionRotaryEmbedding`, `apply_multimodal_rotary_pos_emb` and `get_rope_index`.
Angles are always float32 and made on the fly: a table kept as a buffer would be rounded by
`model.to(bfloat16)`, an error of a radian at position 1000.
"""

from math import prod

import torch
from torch import Tensor


def frequencies(count: int, theta: float, device: torch.device | None) -> Tensor:
    """(count,) float32: theta^(-k/count), radians per position."""
    return theta ** -(torch.arange(count, dtype=torch.float32, device=device) / count)


def vision_angles(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (P, D) float32, for patches at (row, column) = positions (P, 2).

    The first quarter of the head turns with the row, the second with the column; the other half repeats them.
    """
    f = frequencies(head_dim // 4, 10000.0, positions.device)
    angles = (positions[:, :, None] * f).flatten(1)  # (P, D/2)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def text_angles(
    position_ids: Tensor, head_dim: int, theta: float, mrope_section: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """cos and sin, each (T, D) float32, for tokens at (time, height, width) = position_ids (3, T).

    The D/2 frequencies are dealt out in three contiguous runs of `mrope_section`: the fastest turn with time,
    the next with height, the slowest with width. Three equal streams make ordinary rotary positions.
    """
    f = frequencies(head_dim // 2, theta, position_ids.device)
    angles = position_ids[:, :, None] * f  # (3, T, D/2)
    runs = [run[axis] for axis, run in enumerate(angles.split(mrope_section, dim=-1))]
    angles = torch.cat(runs, dim=-1)  # (T, D/2)
    angles = torch.cat((angles, angles), dim=-1)  # (T, D)
    return angles.cos(), angles.sin()


def mrope_positions(
    input_ids: Tensor, image_grid_thw: Tensor | None, image_token_id: int, spatial_merge_size: int
) -> Tensor:
    """(3, T) int64 positions of one sequence's tokens in time, height and width.

    Text runs count up alike on all three streams. An image of a x b merged tokens that starts at p sits at
    time p, height p + row, width p + column, and the text after it goes on at p + max(a, b).

    Args:
        input_ids: (T,). image_grid_thw: (N, 3) patch grids of this sequence's images in order, or None.
            The placeholders of an image lie in one run.
    Raises: RuntimeError if there are more placeholders than the images need, or fewer; of a user's messages
        `Processor.encode` tells that in better words.
    """
    grids = [] if image_grid_thw is None else image_grid_thw.tolist()
    sizes = [(t, h // spatial_merge_size, w // spatial_merge_size) for t, h, w in grids]
    placeholders = (input_ids == image_token_id).nonzero().squeeze(1)
    steps = torch.ones_like(input_ids)  # (T,) from each token's start to the next one's
    places = input_ids.new_zeros(3, len(input_ids))  # within an image, which has one start
    for size, run in zip(sizes, placeholders.split([*map(prod, sizes)]), strict=True):
        steps[run] = 0
        steps[run[-1]] = max(size)
        places[:, run] = torch.cartesian_prod(*map(torch.arange, size)).T
    return steps.cumsum(0) - steps + places
