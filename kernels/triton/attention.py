"""Packed attention in Triton: the forward kernel, and the op that joins it to its backward.

One program computes a tile of queries of one head. It walks over the keys with a running maximum m and a
running sum l of the exponentials, so that no score is ever written out; out = acc / l, and the log-sum-exp of
each row is kept for the backward.
Source: Dao, FlashAttention-2, arXiv 2307.08691, algorithm 1; here with packed sequences, grouped queries and
    split head columns.

Exponentials are taken to base 2, with log2(e) folded into the scale. Sums are float32; products of float32
tiles are exact ones, not TF32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.backward import packed_backward
from kernels.triton.tiles import (
    CHANGING,
    DTYPES,
    HEAD_DIMS,
    LOG2_E,
    SHORT,
    add_dot,
    dot_rows,
    find_span,
    find_tile,
    head_at,
    launch,
    load_rows,
    num_slots,
    row_heads,
    scaled,
    side_by_side,
    store_rows,
    visible_keys,
    zero_rows,
)


@triton.jit(do_not_specialize=CHANGING)
def forward_kernel(
    q, k, v, out, lse, cu_seqlens, cu_seqlens_k, q_heads, k_heads, v_heads, heads, tokens, sequences, scale2,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # The heads of a tile run side by side, which reads their common keys together; a sequence's late tiles,
    # the long ones, come first.
    head = tl.program_id(0) % heads
    slot = (tl.num_programs(0) - 1 - tl.program_id(0)) // heads
    sequence, first, begin, length = find_tile(cu_seqlens, sequences, slot, BLOCK_M)
    if first >= length:
        return
    begin_k, length_k = find_span(cu_seqlens_k, sequence)
    q = head_at(q, begin, q_heads, head, DIM)
    k = head_at(k, begin_k, k_heads, head // GROUP, DIM)
    v = head_at(v, begin_k, v_heads, head // GROUP, DIM)
    out = head_at(out, begin, heads, head, DIM)
    lse += head.to(tl.int64) * tokens + begin

    last_seen, full, end = visible_keys(first, length, length_k, CAUSAL, BLOCK_M, BLOCK_N)
    queries = load_rows(q, first, q_heads, length, BLOCK_M, DIM)  # (BLOCK_M, ...)
    acc = zero_rows(BLOCK_M, DIM)
    m_i = tl.full((BLOCK_M,), -1e30, tl.float32)
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    # One loop that always runs, masked where it must be: two loops over one accumulator, or one that may not
    # run at all, and Triton waits for each tensor-core product before it starts the next.
    for start in range(0, tl.maximum(end, 1), BLOCK_N):
        keys = load_rows(k, start, k_heads, length_k, BLOCK_N, DIM)
        scores = dot_rows(queries, keys)  # (BLOCK_M, BLOCK_N)
        if start >= full:
            seen = (start + tl.arange(0, BLOCK_N))[None, :] <= last_seen[:, None]
            scores = tl.where(seen, scores, -1e30)
        m_new = tl.maximum(m_i, tl.max(scores, 1) * scale2)
        p = tl.math.exp2(scores * scale2 - m_new[:, None])
        alpha = tl.math.exp2(m_i - m_new)
        l_i = l_i * alpha + tl.sum(p, 1)
        m_i = m_new
        values = load_rows(v, start, v_heads, length_k, BLOCK_N, DIM)
        acc = add_dot(scaled(acc, alpha[:, None]), p.to(values[0].dtype), values)

    alive = last_seen >= 0  # a query that sees no key gets 0
    l_i = tl.where(alive, l_i, 1.0)
    rows = first + tl.arange(0, BLOCK_M)
    tl.store(lse + rows, tl.where(alive, m_i + tl.math.log2(l_i), 0.0), mask=rows < length)
    acc = scaled(acc, tl.where(alive, 1.0 / l_i, 0.0)[:, None])
    store_rows(out, acc, first, heads, length, BLOCK_M, DIM)


def packed_forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, cu_seqlens_k: Tensor, causal: bool, short: bool
) -> tuple[Tensor, Tensor]:
    """out (T, H, D) in q's dtype, and the log-sum-exp of each row's scaled scores to base 2, (H, T) float32.

    The grid is T // block_m + B tiles for each head, an upper bound that needs no look at the lengths: at
    most B of a head's programs find their slot empty and leave.
    """
    q, k, v = side_by_side(q), side_by_side(k), side_by_side(v)
    tokens, heads, dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    if tokens:
        tile = launch("forward", q, cu_seqlens, causal, short)
        forward_kernel[(num_slots(tokens, cu_seqlens, tile["BLOCK_M"]) * heads,)](
            *(q, k, v, out, lse, cu_seqlens, cu_seqlens_k, row_heads(q), row_heads(k), row_heads(v)),
            *(heads, tokens, cu_seqlens.shape[0] - 1, dim**-0.5 * LOG2_E),
            GROUP=heads // k.shape[1], CAUSAL=causal, DIM=dim, **tile,
        )  # fmt: skip
    return out, lse


attention_op = torch.library.custom_op("r1ov::attention", packed_forward, mutates_args=())
backward_op = torch.library.custom_op("r1ov::attention_backward", packed_backward, mutates_args=())


@attention_op.register_fake
def _(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@backward_op.register_fake
def _(_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, cu_seqlens, cu_seqlens_k, ctx.causal, ctx.short = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens, cu_seqlens_k)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad: Tensor, _grad_lse: Tensor):
    return *backward_op(grad, *ctx.saved_tensors, ctx.causal, ctx.short), None, None, None, None


attention_op.register_autograd(_backward, setup_context=_setup_context)


def attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    causal: bool,
    cu_seqlens_k: Tensor | None,
    max_seqlen: int | None,
) -> Tensor:
    """`attention` by the kernels; arguments as there. No value is read back from the GPU."""
    if q.shape[2] not in HEAD_DIMS or q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"q {tuple(q.shape)} {q.dtype}, k {k.dtype}, v {v.dtype}: the kernels take one dtype of "
            f"{', '.join(map(str, DTYPES))} and head sizes {', '.join(map(str, HEAD_DIMS))}; use impl='torch'"
        )
    short = max_seqlen is not None and max_seqlen <= SHORT
    cu_seqlens = cu_seqlens.to(torch.int32)
    cu_seqlens_k = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k.to(torch.int32)
    return attention_op(q, k, v, cu_seqlens, cu_seqlens_k, causal, short)[0]
