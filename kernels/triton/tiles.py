"""What the attention kernels share: finding a program's tile among packed sequences, and moving tiles of
rows.

Packed tensors are (tokens, heads, D) with the heads of a token side by side, so a row stride is a whole
number of heads; it is passed as that number, from which the compiler sees by itself that every row begins at
a multiple of D elements.

Head size 80 is worked on as 64 + 16 columns ("main" and "rest"): a tile's width must be a power of two, and
128 would waste 1.6x.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

HEAD_DIMS = (32, 64, 80, 128)
TRITON_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
UPCAST = bool(
    triton.knobs.runtime.interpret
)  # the interpreter computes on the raw bits of bfloat16 (triton#11585)
LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Config:
    """Rows of queries and of keys in a tile, and how the kernel is launched."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def main_columns(head_dim: int) -> int:
    """How many of a head's columns the main part has: the largest power of two."""
    return 1 << (head_dim.bit_length() - 1)


def side_by_side(x: Tensor) -> Tensor:
    """(T, H, D) itself if its rows are as the kernels read them, else a contiguous copy. A slice of a fused
    projection needs no copy.
    """
    dim = x.shape[2]
    return x if x.stride(2) == 1 and x.stride(1) == dim and x.stride(0) % dim == 0 else x.contiguous()


def row_heads(x: Tensor) -> int:
    """The row stride of (T, H, D), in heads."""
    return x.stride(0) // x.shape[2]


def num_slots(tokens: int, cu_seqlens: Tensor, block: int) -> int:
    """How many tiles of `block` rows can be needed at most, whatever the lengths are; known without asking
    the GPU for them.
    """
    return tokens // block + cu_seqlens.shape[0] - 1


@triton.jit
def find_tile(cu_seqlens, sequences, slot, BLOCK: tl.constexpr):
    """Which tile a slot stands for: sequence, the tile's first row in it, where the sequence begins, its
    length.

    Sequence b owns the slots from cu_seqlens[b] // BLOCK + b on, which always suffices: rounding its length
    up adds at most one tile. A slot too many comes out with a first row behind the end. Costs one load and a
    sum for every 128 sequences, and no table.
    """
    sequence = -1
    for start in range(0, sequences, 128):
        index = start + tl.arange(0, 128)
        begin = tl.load(cu_seqlens + index, mask=index < sequences, other=2147483647)
        sequence += tl.sum((begin // BLOCK + index <= slot).to(tl.int32))
    begin = tl.load(cu_seqlens + sequence)
    length = tl.load(cu_seqlens + sequence + 1) - begin
    return sequence, (slot - begin // BLOCK - sequence) * BLOCK, begin, length


@triton.jit
def visible_keys(first, length, length_k, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """For the queries first .. first + BLOCK_M of a sequence: the last key that each sees (below 0: none); up
    to where all of them see all keys, in whole tiles; and where the last of them stops seeing."""
    rows = first + tl.arange(0, BLOCK_M)
    if CAUSAL:
        shift = length_k - length
        last_seen = tl.minimum(rows + shift, length_k - 1)
        full = tl.minimum(tl.maximum(first + 1 + shift, 0), length_k)
        end = tl.minimum(tl.maximum(first + BLOCK_M + shift, 0), length_k)
    else:
        last_seen = rows * 0 + (length_k - 1)
        full = length_k
        end = length_k
    return last_seen, full // BLOCK_N * BLOCK_N, end


@triton.jit
def load_tile(
    x, first, stride, length,
    ROWS: tl.constexpr, COLUMN: tl.constexpr, COLUMNS: tl.constexpr, MASKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Rows first .. first + ROWS of a sequence that begins at x; if MASKED, zeros from `length` on. (ROWS,
    COLUMNS)
    """
    rows = tl.arange(0, ROWS)
    places = (
        x
        + first * tl.cast(stride, tl.int64)
        + (rows[:, None] * stride + COLUMN + tl.arange(0, COLUMNS)[None, :])
    )
    tile = tl.load(places, mask=(first + rows < length)[:, None], other=0.0) if MASKED else tl.load(places)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def store_tile(
    x, tile, first, stride, length, ROWS: tl.constexpr, COLUMN: tl.constexpr, COLUMNS: tl.constexpr
):
    """Writes those rows of (ROWS, COLUMNS) that lie before `length`; the next sequence begins right behind
    them.
    """
    rows = tl.arange(0, ROWS)
    places = (
        x
        + first * tl.cast(stride, tl.int64)
        + (rows[:, None] * stride + COLUMN + tl.arange(0, COLUMNS)[None, :])
    )
    tl.store(places, tile.to(x.dtype.element_ty), mask=(first + rows < length)[:, None])
