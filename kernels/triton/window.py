"""Attention within short sequences in Triton, such as the vision encoder's windows of 8x8 patches: one tile,
no loop over keys.

A window's queries, keys and values of one head fit one tile each, so its whole softmax is at hand at once,
and one backward kernel owns all three gradients. Both kernels are bound by memory: every input is read once
and every output written once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.tiles import (
    LOG2_E,
    UPCAST,
    add_dot,
    columns,
    dot_rows,
    head_at,
    load_pair,
    row_heads,
    scale_pair,
    store_pair,
    zero_pair,
)

WINDOW = 64  # longest sequence
FORWARD_WARPS = {32: 8, 64: 4, 80: 4, 128: 4}  # by head size; float32 takes 8
BACKWARD_WARPS = {32: 4, 64: 8, 80: 4, 128: 8}


@triton.jit
def window_forward_kernel(
    q, k, v, out, lse, cu_seqlens, q_heads, k_heads, v_heads, heads, tokens, scale2,
    GROUP: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, TILE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    sequence = tl.program_id(0) // heads
    begin = tl.load(cu_seqlens + sequence)
    length = tl.load(cu_seqlens + sequence + 1) - begin
    q = head_at(q, begin, q_heads, head, MAIN + REST)
    k = head_at(k, begin, k_heads, head // GROUP, MAIN + REST)
    v = head_at(v, begin, v_heads, head // GROUP, MAIN + REST)
    out = head_at(out, begin, heads, head, MAIN + REST)

    q_main, q_rest = load_pair(q, 0, q_heads, length, TILE, MAIN, REST, UPCAST)  # (TILE, ...)
    k_main, k_rest = load_pair(k, 0, k_heads, length, TILE, MAIN, REST, UPCAST)
    v_main, v_rest = load_pair(v, 0, v_heads, length, TILE, MAIN, REST, UPCAST)
    scores = dot_rows(q_main, q_rest, k_main, k_rest, REST)  # (TILE, TILE)
    rows = tl.arange(0, TILE)
    scores = tl.where((rows < length)[None, :], scores, -1e30)
    m = tl.max(scores, 1) * scale2
    p = tl.math.exp2(scores * scale2 - m[:, None])
    total = tl.sum(p, 1)
    tl.store(lse + head.to(tl.int64) * tokens + begin + rows, m + tl.math.log2(total), mask=rows < length)
    zero, zero_rest = zero_pair(TILE, MAIN, REST)
    main, rest = add_dot(zero, zero_rest, (p / total[:, None]).to(v_main.dtype), v_main, v_rest, REST)
    store_pair(out, main, rest, 0, heads, length, TILE, MAIN, REST)


@triton.jit
def window_backward_kernel(
    q, k, v, grad, out, lse, dq, dk, dv, cu_seqlens, q_heads, k_heads, v_heads, grad_heads, key_heads, tokens,
    scale, scale2,
    GROUP: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, TILE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One window and one key head, with all its query heads."""
    DIM: tl.constexpr = MAIN + REST
    key_head = tl.program_id(0) % key_heads
    sequence = tl.program_id(0) // key_heads
    begin = tl.load(cu_seqlens + sequence)
    length = tl.load(cu_seqlens + sequence + 1) - begin
    heads = key_heads * GROUP
    q = head_at(q, begin, q_heads, key_head * GROUP, DIM)
    grad = head_at(grad, begin, grad_heads, key_head * GROUP, DIM)
    out = head_at(out, begin, heads, key_head * GROUP, DIM)
    dq = head_at(dq, begin, heads, key_head * GROUP, DIM)
    k = head_at(k, begin, k_heads, key_head, DIM)
    v = head_at(v, begin, v_heads, key_head, DIM)
    dk = head_at(dk, begin, key_heads, key_head, DIM)
    dv = head_at(dv, begin, key_heads, key_head, DIM)
    lse += key_head.to(tl.int64) * GROUP * tokens + begin

    rows = tl.arange(0, TILE)
    k_main, k_rest = load_pair(k, 0, k_heads, length, TILE, MAIN, REST, UPCAST)  # (TILE, ...)
    v_main, v_rest = load_pair(v, 0, v_heads, length, TILE, MAIN, REST, UPCAST)
    zero, zero_rest = zero_pair(TILE, MAIN, REST)
    dk_main, dk_rest = zero, zero_rest
    dv_main, dv_rest = zero, zero_rest
    for _ in range(GROUP):
        q_main, q_rest = load_pair(q, 0, q_heads, length, TILE, MAIN, REST, UPCAST)
        grad_main, grad_rest = load_pair(grad, 0, grad_heads, length, TILE, MAIN, REST, UPCAST)
        out_main, out_rest = load_pair(out, 0, heads, length, TILE, MAIN, REST, UPCAST)
        delta = tl.sum(grad_main.to(tl.float32) * out_main.to(tl.float32), 1)
        if REST:
            delta += tl.sum(grad_rest.to(tl.float32) * out_rest.to(tl.float32), 1)
        scores = dot_rows(q_main, q_rest, k_main, k_rest, REST)  # (TILE, TILE)
        dp = dot_rows(grad_main, grad_rest, v_main, v_rest, REST)
        p = tl.math.exp2(scores * scale2 - tl.load(lse + rows, mask=rows < length, other=0.0)[:, None])
        p = tl.where((rows < length)[None, :], p, 0.0)
        ds = (p * (dp - delta[:, None])).to(q_main.dtype)
        p = tl.trans(p.to(grad_main.dtype))
        dv_main, dv_rest = add_dot(dv_main, dv_rest, p, grad_main, grad_rest, REST)
        dk_main, dk_rest = add_dot(dk_main, dk_rest, tl.trans(ds), q_main, q_rest, REST)
        dq_main, dq_rest = add_dot(zero, zero_rest, ds, k_main, k_rest, REST)
        dq_main, dq_rest = scale_pair(dq_main, dq_rest, scale, REST)
        store_pair(dq, dq_main, dq_rest, 0, heads, length, TILE, MAIN, REST)
        q += DIM
        grad += DIM
        out += DIM
        dq += DIM
        lse += tokens

    dk_main, dk_rest = scale_pair(dk_main, dk_rest, scale, REST)
    store_pair(dk, dk_main, dk_rest, 0, key_heads, length, TILE, MAIN, REST)
    store_pair(dv, dv_main, dv_rest, 0, key_heads, length, TILE, MAIN, REST)


def window_forward(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """out (T, H, D) and the log-sum-exp (H, T) to base 2, as `packed_forward` gives them.

    No sequence is longer than WINDOW.
    """
    tokens, heads, dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    if tokens:
        window_forward_kernel[((cu_seqlens.shape[0] - 1) * heads,)](
            *(q, k, v, out, lse, cu_seqlens, row_heads(q), row_heads(k), row_heads(v), heads, tokens),
            dim**-0.5 * LOG2_E, **_constants(q, k), num_warps=_warps(FORWARD_WARPS, q),
        )  # fmt: skip
    return out, lse


def window_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dq (T, H, D), dk and dv (T, K, D), contiguous, in their tensors' dtypes."""
    tokens, key_heads, dim = k.shape
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if tokens:
        window_backward_kernel[((cu_seqlens.shape[0] - 1) * key_heads,)](
            *(q, k, v, grad, out, lse, dq, dk, dv, cu_seqlens),
            *(row_heads(q), row_heads(k), row_heads(v), row_heads(grad), key_heads, tokens),
            *(dim**-0.5, dim**-0.5 * LOG2_E), **_constants(q, k), num_warps=_warps(BACKWARD_WARPS, q),
        )  # fmt: skip
    return dq, dk, dv


def _constants(q: Tensor, k: Tensor) -> dict[str, int]:
    return {"GROUP": q.shape[1] // k.shape[1], "TILE": WINDOW, "UPCAST": UPCAST, **columns(q.shape[2])}


def _warps(table: dict[int, int], q: Tensor) -> int:
    return 8 if q.dtype == torch.float32 else table[q.shape[2]]
