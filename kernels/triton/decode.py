"""Decode attention in Triton, split over the keys so that few rows still fill the GPU.

A first kernel goes over one stretch of one row's keys for all queries that share them, and leaves the
softmax's running maximum, sum and weighted values in float32; a second one merges the stretches.

Bound by the reading of keys and values: a tile of 16 queries (what a tensor core takes) costs no more than
one of 7.

Source: "Flash-Decoding for long-context inference" (Dao, Haziza, Massa, Sizov 2023). Definition and shape
letters: kernels/attention.py.
"""

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.tiles import (
    CHANGING,
    DTYPES,
    HEAD_DIMS,
    add_dot,
    dot_rows,
    load,
    load_rows,
    scaled,
    store_rows,
    zero_rows,
)

MIN_QUERIES = 16  # in a tile
# Whether the keys are float32 -> keys a step, warps, stages. float32 uses no tensor cores, and a larger tile
# of it would spill.
CONFIGS = {False: (64, 4, 3), True: (16, 4, 2)}
COMBINE_WARPS = 4

PROGRAMS_PER_SM = 4  # two or three fit at a time; more even out rows of different lengths
MIN_KEYS_PER_SPLIT = 128  # below this the partial results, H/K * D floats each, weigh against the keys
MAX_SPLITS = 64


@triton.jit
def _keys_per_split(length, splits, BLOCK_N: tl.constexpr):
    """Whole tiles, as equal as can be: how far the splits go depends on the row's length, not on the cache's
    size.
    """
    return tl.maximum(tl.cdiv(tl.cdiv(length, splits), BLOCK_N), 1) * BLOCK_N


@triton.jit(do_not_specialize=CHANGING)
def partial_kernel(
    q_ptr,  # (B, H, D)
    k_ptr,  # (B, K, S, D)
    v_ptr,
    lengths_ptr,  # (B,)
    out_ptr,  # (slots, B, H, D) float32, weighted values, not yet divided by the sum
    max_ptr,  # (slots, B, H) float32, of the scores in base 2
    sum_ptr,  # (slots, B, H) float32
    stride_qb, stride_kb, stride_kh, stride_vb, stride_vh, scale_log2, rows, heads, ratio, splits,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One stretch of the keys of one row and key head, for all queries that share them, at most BLOCK_M."""
    row = tl.program_id(0).to(tl.int64)
    key_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(lengths_ptr + row).to(tl.int32)
    keys_per_split = _keys_per_split(length, splits, BLOCK_N)
    begin = split * keys_per_split
    if begin >= length:  # the merging kernel does not read this slot
        return
    end = tl.minimum(begin + keys_per_split, length)

    # Within a row, a head's keys follow each other as if there were no other head; its queries do as well.
    queries = load_rows(q_ptr + row * stride_qb + key_head * ratio * DIM, 0, 1, ratio, BLOCK_M, DIM)
    acc = zero_rows(BLOCK_M, DIM)
    m_i = tl.full([BLOCK_M], -1e30, tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)

    k_row = k_ptr + row * stride_kb + key_head.to(tl.int64) * stride_kh
    v_row = v_ptr + row * stride_vb + key_head.to(tl.int64) * stride_vh
    for start in range(begin, end, BLOCK_N):
        keys = load_rows(k_row, start, 1, end, BLOCK_N, DIM)
        scores = dot_rows(queries, keys)  # (BLOCK_M, BLOCK_N)
        # Only a row's last tile needs it, but where the memory is the limit a comparison costs nothing.
        is_key = start + tl.arange(0, BLOCK_N) < end
        scores = tl.where(is_key[None, :], scores * scale_log2, -1e30)
        m_new = tl.maximum(m_i, tl.max(scores, 1))
        weights = tl.exp2(scores - m_new[:, None])
        rescale = tl.exp2(m_i - m_new)
        l_i = l_i * rescale + tl.sum(weights, 1)
        m_i = m_new
        values = load_rows(v_row, start, 1, end, BLOCK_N, DIM)
        acc = add_dot(scaled(acc, rescale[:, None]), weights.to(values[0].dtype), values)

    slot = (split * rows + row) * heads + key_head * ratio  # of the first query
    query = tl.arange(0, BLOCK_M)
    tl.store(max_ptr + slot + query, m_i, mask=query < ratio)
    tl.store(sum_ptr + slot + query, l_i, mask=query < ratio)
    store_rows(out_ptr + slot * DIM, acc, 0, 1, ratio, BLOCK_M, DIM)


@triton.jit(do_not_specialize=CHANGING)
def combine_kernel(
    out_ptr,  # (slots, B, H, D) float32
    max_ptr,  # (slots, B, H) float32
    sum_ptr,  # (slots, B, H) float32
    lengths_ptr,  # (B,)
    result_ptr,  # (B, H, D)
    rows, heads, splits,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, SLOTS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The softmax over all slots of one row and head. A slot is filled if its stretch begins before the row's
    end.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    slot = tl.arange(0, SLOTS)
    length = tl.load(lengths_ptr + row).to(tl.int32)
    is_filled = slot * _keys_per_split(length, splits, BLOCK_N) < length
    at = (slot.to(tl.int64) * rows + row) * heads + head  # (SLOTS,)
    maxima = tl.load(max_ptr + at, mask=is_filled, other=-1e30)
    weights = tl.where(is_filled, tl.exp2(maxima - tl.max(maxima, 0)), 0.0)
    total = tl.sum(weights * load(sum_ptr + at, is_filled), 0)
    offs_d = tl.arange(0, BLOCK_D)
    is_dim = offs_d < DIM
    parts = load(out_ptr + at[:, None] * DIM + offs_d[None, :], is_filled[:, None] & is_dim[None, :])
    result = tl.sum(parts * weights[:, None], 0) / total
    result_at = result_ptr + (row.to(tl.int64) * heads + head) * DIM + offs_d
    tl.store(result_at, result.to(result_ptr.dtype.element_ty), mask=is_dim)


@torch.library.custom_op("r1ov::decode_attention", mutates_args=())
def decode_attention_op(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor) -> Tensor:
    """`kernels.decode_attention` in Triton: the first kernel, then the merge."""
    rows, heads, dim = q.shape
    if dim not in HEAD_DIMS or q.dtype not in DTYPES:
        raise ValueError(
            f"q {tuple(q.shape)} {q.dtype}: the kernels take {', '.join(map(str, DTYPES))} "
            f"and head sizes {', '.join(map(str, HEAD_DIMS))}; use impl='torch'"
        )
    if any(x.stride()[-2:] != (dim, 1) or x.dtype != q.dtype for x in (q, k_cache, v_cache)):
        raise ValueError(
            "queries, keys and values must be of one dtype and contiguous in their last two dimensions"
        )
    result = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not rows:
        return result

    key_heads, cached = k_cache.shape[1:3]
    ratio, splits = heads // key_heads, _splits(rows * key_heads, cached, MAX_SPLITS, q.device)
    out = torch.empty(splits, rows, heads, dim, dtype=torch.float32, device=q.device)
    maxima, sums = torch.empty(2, splits, rows, heads, dtype=torch.float32, device=q.device)
    block_n, warps, stages = CONFIGS[q.dtype == torch.float32]
    partial_kernel[rows, key_heads, splits](
        *(q, k_cache, v_cache, lengths, out, maxima, sums),
        *(q.stride(0), *k_cache.stride()[:2], *v_cache.stride()[:2]),
        *(dim**-0.5 * math.log2(math.e), rows, heads, ratio, splits),
        DIM=dim,
        BLOCK_M=max(MIN_QUERIES, triton.next_power_of_2(ratio)),
        BLOCK_N=block_n,
        num_warps=warps,
        num_stages=stages,
    )
    combine_kernel[rows, heads](
        *(out, maxima, sums, lengths, result, rows, heads, splits),
        DIM=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        SLOTS=MAX_SPLITS,
        BLOCK_N=block_n,
        num_warps=COMBINE_WARPS,
    )
    return result


@decode_attention_op.register_fake
def _(q: Tensor, *_: Tensor) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _splits(programs: int, keys: int, most: int, device: torch.device) -> int:
    """Into how many stretches `keys` cached positions are cut, `programs` being launched for each stretch."""
    wanted = triton.cdiv(PROGRAMS_PER_SM * _multiprocessors(device), programs)
    return max(1, min(wanted, triton.cdiv(keys, MIN_KEYS_PER_SPLIT), most))


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    return (
        torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    )  # 1: interpreted
