"""What the attention kernels share: finding a program's tile among packed sequences, moving tiles of rows,
multiplying them.

Packed tensors are (tokens, heads, D) with the heads of a token side by side, so a row stride is a whole
number of heads; it is passed as that number, from which the compiler sees by itself that every row begins at
a multiple of D elements.

A tile's width must be a power of two, and padding head size 80 to 128 would waste 1.6x. So a tile of rows is
a tuple: of two tiles, with 64 and 16 columns, for head size 80, and of one where that is a power of two.
"""

import json
from functools import lru_cache
from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

HEAD_DIMS = (32, 64, 80, 128)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# The interpreter computes on the raw bits of bfloat16 (triton#11585).
UPCAST = tl.constexpr(triton.knobs.runtime.interpret)
LOG2_E = 1.4426950408889634
SHORT = 64  # tokens, such as the vision encoder's windows of 8x8 patches
LONG = 2048  # tokens of a sequence, on average
# What changes from call to call; the compiler looks at none of it, so that no call waits for it again.
CHANGING = ("tokens", "sequences", "rows", "splits")


def launch(kernel: str, q: Tensor, cu_seqlens: Tensor, causal: bool, short: bool) -> dict[str, int]:
    """A kernel's tiles and how it is launched, from tiles.json (`python -m kernels.tune` fills it): rows of
    queries, rows of keys, warps, stages, by head size, and where they differ by causality and length.

    Args: short: sequences have at most SHORT tokens, and more queries in a tile would be padding.
    """
    table, name = _tables()[architecture(q.device)], f"{kernel} {q.shape[2]}"
    length = "windows" if short else "long" if len(q) >= LONG * (len(cu_seqlens) - 1) else "short"
    names = f"{name} {'causal' if causal else 'full'} {length}", f"{name} {length}", name
    block_m, block_n, warps, stages = next(table[name] for name in names if name in table)
    if q.dtype == torch.float32:  # for comparing, not for speed
        block_m, block_n, stages = max(32, block_m // 2), max(32, block_n // 2), 2
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "num_warps": warps, "num_stages": stages}


@lru_cache
def _tables() -> dict[str, dict[str, list[int]]]:
    return json.loads(Path(__file__).with_name("tiles.json").read_text())


@lru_cache
def architecture(device: torch.device) -> str:
    """Whose tiles are taken: without a GPU, interpreted, the newest's."""
    newest = device.type != "cuda" or torch.cuda.get_device_capability(device)[0] >= 9
    return "sm_90" if newest else "sm_80"


def side_by_side(x: Tensor) -> Tensor:
    """Copies (T, H, D) unless a token's heads are side by side, as in a slice of a fused projection."""
    dim = x.shape[2]
    return x if x.stride(2) == 1 and x.stride(1) == dim and x.stride(0) % dim == 0 else x.contiguous()


def row_heads(x: Tensor) -> int:
    """The row stride of (T, H, D), in heads."""
    return x.stride(0) // x.shape[2]


def num_slots(tokens: int, cu_seqlens: Tensor, block: int) -> int:
    """Bounds the number of tiles of `block` rows, whatever the lengths: without asking the GPU for them."""
    return tokens // block + cu_seqlens.shape[0] - 1


@triton.constexpr_function
def power_of_two(dim):
    """The largest that a head's columns hold."""
    return 1 << (dim.bit_length() - 1)


@triton.jit
def load(places, inside):
    """Numbers in float32, 0 for those outside."""
    return tl.load(places, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def find_span(cu_seqlens, sequence):
    """Finds where a sequence begins, and its length."""
    begin = tl.load(cu_seqlens + sequence)
    return begin, tl.load(cu_seqlens + sequence + 1) - begin


@triton.jit
def find_tile(cu_seqlens, sequences, slot, BLOCK: tl.constexpr):
    """Finds a slot's tile: its sequence, its first row in that, where the sequence begins, and its length.

    Sequence b owns the slots from cu_seqlens[b] // BLOCK + b on, which always suffices: rounding its length
    up adds at most one tile. A slot too many comes out with a first row behind the end. Costs one load and a
    sum for every 128 sequences, and no table.
    """
    sequence = -1
    for start in range(0, sequences, 128):
        index = start + tl.arange(0, 128)
        begin = tl.load(cu_seqlens + index, mask=index < sequences, other=2147483647)
        sequence += tl.sum((begin // BLOCK + index <= slot).to(tl.int32))
    begin, length = find_span(cu_seqlens, sequence)
    return sequence, (slot - begin // BLOCK - sequence) * BLOCK, begin, length


@triton.jit
def visible_keys(first, length, length_k, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Finds what the queries first .. first + BLOCK_M of a sequence see.

    Returns the last key that each sees (below 0: none); up to where all of them see all keys, in whole tiles;
    and where the last of them stops seeing.
    """
    rows = first + tl.arange(0, BLOCK_M)
    shift = length_k - length if CAUSAL else length_k
    last_seen = tl.minimum(rows + shift, length_k - 1)
    full = tl.minimum(tl.maximum(first + 1 + shift, 0), length_k)
    end = tl.minimum(tl.maximum(first + BLOCK_M + shift, 0), length_k)
    return last_seen, full // BLOCK_N * BLOCK_N, end


@triton.jit
def head_at(x, begin, heads, head, DIM: tl.constexpr):
    """Where the row `begin` of one head begins in (tokens, heads, DIM)."""
    return x + begin.to(tl.int64) * (heads * DIM) + head * DIM


@triton.jit
def places(x, first, stride, ROWS: tl.constexpr, COLUMN: tl.constexpr, COLUMNS: tl.constexpr):
    """Where rows first .. first + ROWS of what begins at x lie, (ROWS, COLUMNS)."""
    offsets = tl.arange(0, ROWS)[:, None] * stride + COLUMN + tl.arange(0, COLUMNS)[None, :]
    return x + first * tl.cast(stride, tl.int64) + offsets


@triton.jit
def load_tile(
    x, first, stride, length, ROWS: tl.constexpr, COLUMN: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Rows first .. first + ROWS of a sequence that begins at x, zeros from `length` on; (ROWS, COLUMNS)."""
    at = places(x, first, stride, ROWS, COLUMN, COLUMNS)
    tile = tl.load(at, mask=(first + tl.arange(0, ROWS) < length)[:, None], other=0.0)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def load_rows(x, first, heads, length, ROWS: tl.constexpr, DIM: tl.constexpr):
    """Rows first .. first + ROWS of a head, zeros from `length` on."""
    MAIN: tl.constexpr = power_of_two(DIM)
    main = load_tile(x, first, heads * DIM, length, ROWS, 0, MAIN)
    if MAIN < DIM:
        return main, load_tile(x, first, heads * DIM, length, ROWS, MAIN, DIM - MAIN)
    else:
        return (main,)


@triton.jit
def zero_rows(ROWS: tl.constexpr, DIM: tl.constexpr):
    MAIN: tl.constexpr = power_of_two(DIM)
    main = tl.zeros((ROWS, MAIN), tl.float32)
    if MAIN < DIM:
        return main, tl.zeros((ROWS, DIM - MAIN), tl.float32)
    else:
        return (main,)


@triton.jit
def scaled(rows, factor):
    """Each row times its factor (ROWS, 1), or all times one number."""
    main = rows[0] * factor
    if len(rows) > 1:
        return main, rows[1] * factor
    else:
        return (main,)


@triton.jit
def dot_rows(a, b):
    """The product of each row of one with each row of the other, (ROWS of a, ROWS of b)."""
    product = tl.dot(a[0], tl.trans(b[0]), input_precision="ieee")
    if len(a) > 1:
        product = tl.dot(a[1], tl.trans(b[1]), product, input_precision="ieee")
    return product


@triton.jit
def row_products(a, b):
    """The product of each row of one with the same row of the other, in float32, (ROWS,)."""
    product = tl.sum(a[0].to(tl.float32) * b[0].to(tl.float32), 1)
    if len(a) > 1:
        product += tl.sum(a[1].to(tl.float32) * b[1].to(tl.float32), 1)
    return product


@triton.jit
def add_dot(acc, weights, b):
    """acc + weights b, for rows acc and b."""
    main = tl.dot(weights, b[0], acc[0], input_precision="ieee")
    if len(b) > 1:
        return main, tl.dot(weights, b[1], acc[1], input_precision="ieee")
    else:
        return (main,)


@triton.jit
def store_tile(
    x, tile, first, stride, length, ROWS: tl.constexpr, COLUMN: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Writes the rows of (ROWS, COLUMNS) before `length`; the next sequence begins right behind them."""
    at = places(x, first, stride, ROWS, COLUMN, COLUMNS)
    tl.store(at, tile.to(x.dtype.element_ty), mask=(first + tl.arange(0, ROWS) < length)[:, None])


@triton.jit
def store_rows(x, rows, first, heads, length, ROWS: tl.constexpr, DIM: tl.constexpr):
    """Writes rows first .. first + ROWS of a head, those before `length`."""
    MAIN: tl.constexpr = power_of_two(DIM)
    store_tile(x, rows[0], first, heads * DIM, length, ROWS, 0, MAIN)
    if MAIN < DIM:
        store_tile(x, rows[1], first, heads * DIM, length, ROWS, MAIN, DIM - MAIN)
