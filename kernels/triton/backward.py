"""The backward of packed attention in Triton, deterministic: every sum has one owner, so no atomics.

With scores s = scale * q k^T, p = softmax(s), out = p v and delta = rowsum(grad * out):
    dv = p^T grad,   ds = p * (grad v^T - delta),   dq = scale * ds k,   dk = scale * ds^T q.
One kernel owns tiles of queries (delta, dq) and walks over the keys, the next owns tiles of keys (dk, dv) and
walks over the queries of all heads that share them. Both recompute p = exp2(s - lse). Seven products where a
fused kernel with atomics has five.
Source: Dao, FlashAttention-2, arXiv 2307.08691, algorithm 2, its loop taken apart in two.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.tiles import (
    CHANGING,
    LOG2_E,
    add_dot,
    dot_rows,
    find_span,
    find_tile,
    head_at,
    launch,
    load,
    load_rows,
    num_slots,
    row_heads,
    row_products,
    scaled,
    side_by_side,
    store_rows,
    visible_keys,
    zero_rows,
)


@triton.jit(do_not_specialize=CHANGING)
def dkdv_kernel(
    q, k, v, grad, lse, delta, dk, dv, cu_seqlens, cu_seqlens_k, k_heads, v_heads, tokens, sequences, scale,
    scale2, KEY_HEADS: tl.constexpr,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # Known to the compiler, a tile's addresses are one and constants beside it: every register counts.
    HEADS: tl.constexpr = GROUP * KEY_HEADS
    key_head = tl.program_id(0) % KEY_HEADS
    slot = tl.program_id(0) // KEY_HEADS
    sequence, first, begin_k, length_k = find_tile(cu_seqlens_k, sequences, slot, BLOCK_N)
    if first >= length_k:
        return
    begin, length = find_span(cu_seqlens, sequence)
    k = head_at(k, begin_k, k_heads, key_head, DIM)
    v = head_at(v, begin_k, v_heads, key_head, DIM)
    q = head_at(q, begin, HEADS, key_head * GROUP, DIM)
    grad = head_at(grad, begin, HEADS, key_head * GROUP, DIM)
    lse += key_head.to(tl.int64) * GROUP * tokens + begin
    delta += key_head.to(tl.int64) * GROUP * tokens + begin

    keys = load_rows(k, first, k_heads, length_k, BLOCK_N, DIM)
    values = load_rows(v, first, v_heads, length_k, BLOCK_N, DIM)
    dk_rows = zero_rows(BLOCK_N, DIM)
    dv_rows = zero_rows(BLOCK_N, DIM)

    start = 0
    if CAUSAL:
        start = tl.maximum(first + length - length_k, 0) // BLOCK_M * BLOCK_M
    first_seeing = (
        first + tl.arange(0, BLOCK_N) + length - length_k
    )  # the first query that sees each key, if causal
    tiles = tl.cdiv(tl.maximum(length - start, 0), BLOCK_M)
    # One loop over the query tiles of all heads: its copies run ahead across heads, and a second loop for the
    # tiles that need no mask costs more registers than the mask. Queries behind the end come as zeros with
    # lse = delta = 0, so that they add nothing. Keys behind the end need no mask: what they gather stays in
    # their own rows, which are not written.
    for step in range(GROUP * tiles):
        place = start + step % tiles * BLOCK_M
        head = step // tiles
        rows = place + tl.arange(0, BLOCK_M)
        queries = load_rows(q + head * DIM, place, HEADS, length, BLOCK_M, DIM)
        scores = dot_rows(keys, queries)  # (BLOCK_N, BLOCK_M)
        scores = scores * scale2 - load(lse + head * tokens + rows, rows < length)[None, :]
        if CAUSAL:
            scores = tl.where(rows[None, :] >= first_seeing[:, None], scores, -1e30)
        p = tl.math.exp2(scores)
        grads = load_rows(grad + head * DIM, place, HEADS, length, BLOCK_M, DIM)
        dv_rows = add_dot(dv_rows, p.to(grads[0].dtype), grads)
        dp = dot_rows(values, grads)
        row_delta = load(delta + head * tokens + rows, rows < length)
        ds = (p * (dp - row_delta[None, :])).to(queries[0].dtype)
        dk_rows = add_dot(dk_rows, ds, queries)

    # Found again, as they are not worth registers within the loop.
    begin_k, length_k = find_span(cu_seqlens_k, sequence)
    dk = head_at(dk, begin_k, KEY_HEADS, key_head, DIM)
    dv = head_at(dv, begin_k, KEY_HEADS, key_head, DIM)
    store_rows(dk, scaled(dk_rows, scale), first, KEY_HEADS, length_k, BLOCK_N, DIM)
    store_rows(dv, dv_rows, first, KEY_HEADS, length_k, BLOCK_N, DIM)


@triton.jit(do_not_specialize=CHANGING)
def dq_kernel(
    q, k, v, out, grad, lse, delta, dq, cu_seqlens, cu_seqlens_k, k_heads, v_heads, heads, tokens, sequences,
    scale, scale2,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    slot = (tl.num_programs(0) - 1 - tl.program_id(0)) // heads
    sequence, first, begin, length = find_tile(cu_seqlens, sequences, slot, BLOCK_M)
    if first >= length:
        return
    begin_k, length_k = find_span(cu_seqlens_k, sequence)
    q = head_at(q, begin, heads, head, DIM)
    grad = head_at(grad, begin, heads, head, DIM)
    out = head_at(out, begin, heads, head, DIM)
    dq = head_at(dq, begin, heads, head, DIM)
    k = head_at(k, begin_k, k_heads, head // GROUP, DIM)
    v = head_at(v, begin_k, v_heads, head // GROUP, DIM)

    rows = first + tl.arange(0, BLOCK_M)
    at = head.to(tl.int64) * tokens + begin
    row_lse = load(lse + at + rows, rows < length)
    grads = load_rows(grad, first, heads, length, BLOCK_M, DIM)
    row_delta = row_products(grads, load_rows(out, first, heads, length, BLOCK_M, DIM))
    tl.store(delta + at + rows, row_delta, mask=rows < length)
    last_seen, full, end = visible_keys(first, length, length_k, CAUSAL, BLOCK_M, BLOCK_N)
    queries = load_rows(q, first, heads, length, BLOCK_M, DIM)
    dq_rows = zero_rows(BLOCK_M, DIM)
    for start in range(0, tl.maximum(end, 1), BLOCK_N):  # one loop, as in the forward
        keys = load_rows(k, start, k_heads, length_k, BLOCK_N, DIM)
        values = load_rows(v, start, v_heads, length_k, BLOCK_N, DIM)
        scores = dot_rows(queries, keys) * scale2 - row_lse[:, None]  # (BLOCK_M, BLOCK_N)
        dp = dot_rows(grads, values)
        if start >= full:
            seen = (start + tl.arange(0, BLOCK_N))[None, :] <= last_seen[:, None]
            scores = tl.where(seen, scores, -1e30)
        ds = (tl.math.exp2(scores) * (dp - row_delta[:, None])).to(keys[0].dtype)
        dq_rows = add_dot(dq_rows, ds, keys)
    store_rows(dq, scaled(dq_rows, scale), first, heads, length, BLOCK_M, DIM)


def packed_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    cu_seqlens_k: Tensor,
    causal: bool,
    short: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq (T, H, D), dk and dv (S, K, D), contiguous, in their dtypes. Bitwise the same in every run: no sum
    is by atomics. Args: lse: as `packed_forward` gave it.
    """
    grad, q, k, v = grad.contiguous(), q.contiguous(), side_by_side(k), side_by_side(v)
    tokens, heads, dim = q.shape
    tokens_k, key_heads = k.shape[:2]
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    strides = row_heads(k), row_heads(v)
    numbers = tokens, cu_seqlens.shape[0] - 1, dim**-0.5, dim**-0.5 * LOG2_E
    shared = {"GROUP": heads // key_heads, "CAUSAL": causal, "DIM": dim}
    if tokens:
        tile = launch("dq", q, cu_seqlens, causal, short)
        dq_kernel[(num_slots(tokens, cu_seqlens, tile["BLOCK_M"]) * heads,)](
            *(q, k, v, out, grad, lse, delta, dq, cu_seqlens, cu_seqlens_k, *strides, heads, *numbers),
            **shared, **tile,
        )  # fmt: skip
    if tokens_k:
        tile = launch("dkdv", q, cu_seqlens, causal, short)
        dkdv_kernel[(num_slots(tokens_k, cu_seqlens_k, tile["BLOCK_N"]) * key_heads,)](
            *(q, k, v, grad, lse, delta, dk, dv, cu_seqlens, cu_seqlens_k, *strides, *numbers),
            KEY_HEADS=key_heads, **shared, **tile,
        )  # fmt: skip
    return dq, dk, dv
