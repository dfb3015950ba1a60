"""Packed attention in Triton: the forward kernel, and the op that joins it to its backward.

One program computes a tile of queries of one head. It walks over the keys with a running maximum m and a
running sum l of the exponentials, so that no score is ever written out; out = acc / l, and the log-sum-exp of
each row is kept for the backward.
Source: Dao, FlashAttention-2, arXiv 2307.08691, algorithm 1; here with packed sequences, grouped queries and
    split head columns.

Exponentials are taken to base 2, with log2(e) folded into the scale. Sums are float32; products of float32
tiles are exact ones, not TF32.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.backward import packed_backward
from kernels.triton.tiles import (
    HEAD_DIMS,
    LOG2_E,
    TRITON_TYPES,
    UPCAST,
    Config,
    find_tile,
    load_tile,
    main_columns,
    num_slots,
    row_heads,
    side_by_side,
    store_tile,
    visible_keys,
)
from kernels.triton.window import WINDOW, window_backward, window_forward

if TYPE_CHECKING:
    from kernels.triton.gate import CompileCase

# (head size, element bytes) -> tiles
CONFIGS = {
    (32, 2): Config(128, 64, 4, 3),
    (64, 2): Config(128, 64, 8, 3),
    (80, 2): Config(128, 64, 8, 3),
    (128, 2): Config(128, 64, 8, 3),
    (32, 4): Config(64, 32, 4, 2),
    (64, 4): Config(64, 32, 8, 2),
    (80, 4): Config(64, 32, 8, 2),
    (128, 4): Config(64, 32, 8, 2),
}


@triton.jit
def attend(
    acc, acc_rest, m_i, l_i, q_main, q_rest, k, v, k_stride, v_stride, start, end, length_k, last_seen, scale2,
    MASKED: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, BLOCK_N: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Takes the keys start .. end into the running softmax of a tile of queries."""
    for first in range(start, end, BLOCK_N):
        k_main = load_tile(k, first, k_stride, length_k, BLOCK_N, 0, MAIN, MASKED, UPCAST)  # (BLOCK_N, MAIN)
        scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")  # (BLOCK_M, BLOCK_N)
        if REST:
            k_rest = load_tile(k, first, k_stride, length_k, BLOCK_N, MAIN, REST, MASKED, UPCAST)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
        if MASKED:
            offs_n = first + tl.arange(0, BLOCK_N)
            scores = tl.where(offs_n[None, :] <= last_seen[:, None], scores, -1e30)
        m_new = tl.maximum(m_i, tl.max(scores, 1) * scale2)
        p = tl.math.exp2(scores * scale2 - m_new[:, None])
        alpha = tl.math.exp2(m_i - m_new)
        l_i = l_i * alpha + tl.sum(p, 1)
        v_main = load_tile(v, first, v_stride, length_k, BLOCK_N, 0, MAIN, MASKED, UPCAST)
        p = p.to(v_main.dtype)
        acc = tl.dot(p, v_main, acc * alpha[:, None], input_precision="ieee")
        if REST:
            v_rest = load_tile(v, first, v_stride, length_k, BLOCK_N, MAIN, REST, MASKED, UPCAST)
            acc_rest = tl.dot(p, v_rest, acc_rest * alpha[:, None], input_precision="ieee")
        m_i = m_new
    return acc, acc_rest, m_i, l_i


@triton.jit
def forward_kernel(
    q, k, v, out, lse, cu_seqlens, cu_seqlens_k, q_heads, k_heads, v_heads, heads, tokens, sequences, scale2,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    REST: tl.constexpr = HEAD_DIM - MAIN
    # The heads of a tile run side by side, which reads their common keys together; a sequence's late tiles,
    # the long ones, come first.
    head = tl.program_id(0) % heads
    slot = (tl.num_programs(0) - 1 - tl.program_id(0)) // heads
    sequence, first, begin, length = find_tile(cu_seqlens, sequences, slot, BLOCK_M)
    if first >= length:
        return
    begin_k = tl.load(cu_seqlens_k + sequence)
    length_k = tl.load(cu_seqlens_k + sequence + 1) - begin_k
    q_stride = q_heads * HEAD_DIM
    k_stride = k_heads * HEAD_DIM
    v_stride = v_heads * HEAD_DIM
    out_stride = heads * HEAD_DIM
    q += begin.to(tl.int64) * q_stride + head * HEAD_DIM
    k += begin_k.to(tl.int64) * k_stride + head // GROUP * HEAD_DIM
    v += begin_k.to(tl.int64) * v_stride + head // GROUP * HEAD_DIM
    out += begin.to(tl.int64) * out_stride + head * HEAD_DIM
    lse += head.to(tl.int64) * tokens + begin

    offs_m = first + tl.arange(0, BLOCK_M)
    last_seen, full, end = visible_keys(first, length, length_k, CAUSAL, BLOCK_M, BLOCK_N)

    q_main = load_tile(q, first, q_stride, length, BLOCK_M, 0, MAIN, True, UPCAST)
    q_rest = q_main
    acc = tl.zeros((BLOCK_M, MAIN), tl.float32)
    acc_rest = acc
    if REST:
        q_rest = load_tile(q, first, q_stride, length, BLOCK_M, MAIN, REST, True, UPCAST)
        acc_rest = tl.zeros((BLOCK_M, REST), tl.float32)
    m_i = tl.full((BLOCK_M,), -1e30, tl.float32)
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    # Keys that every query of the tile sees, then those at the diagonal or at the sequence's end.
    acc, acc_rest, m_i, l_i = attend(
        acc, acc_rest, m_i, l_i, q_main, q_rest, k, v, k_stride, v_stride, 0, full, length_k, last_seen, scale2,
        False, MAIN, REST, BLOCK_N, UPCAST,
    )  # fmt: skip
    acc, acc_rest, m_i, l_i = attend(
        acc, acc_rest, m_i, l_i, q_main, q_rest, k, v, k_stride, v_stride, full, end, length_k, last_seen, scale2,
        True, MAIN, REST, BLOCK_N, UPCAST,
    )  # fmt: skip

    alive = last_seen >= 0
    l_i = tl.where(alive, l_i, 1.0)
    share = tl.where(alive, 1.0 / l_i, 0.0)
    tl.store(lse + offs_m, tl.where(alive, m_i + tl.math.log2(l_i), 0.0), mask=offs_m < length)
    store_tile(
        out, tl.where(alive[:, None], acc * share[:, None], 0.0), first, out_stride, length, BLOCK_M, 0, MAIN
    )
    if REST:
        store_tile(
            out,
            tl.where(alive[:, None], acc_rest * share[:, None], 0.0),
            first,
            out_stride,
            length,
            BLOCK_M,
            MAIN,
            REST,
        )


def packed_forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, cu_seqlens_k: Tensor, causal: bool
) -> tuple[Tensor, Tensor]:
    """out (T, H, D) in q's dtype, and the log-sum-exp of each row's scaled scores to base 2, (H, T) float32.

    The grid is T // block_m + B tiles for each head, an upper bound that needs no look at the lengths: at
    most B of a head's programs find their slot empty and leave.
    """
    tokens, heads, dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    if tokens:
        config = CONFIGS[dim, q.element_size()]
        forward_kernel[(num_slots(tokens, cu_seqlens, config.block_m) * heads,)](
            q, k, v, out, lse, cu_seqlens, cu_seqlens_k, row_heads(q), row_heads(k), row_heads(v), heads, tokens,
            cu_seqlens.shape[0] - 1, dim**-0.5 * LOG2_E,
            GROUP=heads // k.shape[1], CAUSAL=causal, HEAD_DIM=dim, MAIN=main_columns(dim), BLOCK_M=config.block_m, BLOCK_N=config.block_n,
            UPCAST=UPCAST, num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
    return out, lse


@torch.library.custom_op("r1ov::attention", mutates_args=())
def attention_op(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, cu_seqlens_k: Tensor, causal: bool, window: bool
) -> tuple[Tensor, Tensor]:
    """`packed_forward`, or for `window` the same by one tile for each sequence."""
    q, k, v = side_by_side(q), side_by_side(k), side_by_side(v)
    return (
        window_forward(q, k, v, cu_seqlens)
        if window
        else packed_forward(q, k, v, cu_seqlens, cu_seqlens_k, causal)
    )


@attention_op.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, cu_seqlens_k: Tensor, causal: bool, window: bool
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@torch.library.custom_op("r1ov::attention_backward", mutates_args=())
def attention_backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    cu_seqlens_k: Tensor,
    causal: bool,
    window: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv, each contiguous, in its tensor's dtype. Bitwise the same in every run: no sum is by
    atomics.
    """
    grad, q, k, v = side_by_side(grad), side_by_side(q), side_by_side(k), side_by_side(v)
    if window:
        return window_backward(grad, q, k, v, out, lse, cu_seqlens)
    return packed_backward(grad, q, k, v, out, lse, cu_seqlens, cu_seqlens_k, causal)


@attention_backward_op.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    cu_seqlens_k: Tensor,
    causal: bool,
    window: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, cu_seqlens, cu_seqlens_k, ctx.causal, ctx.window = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens, cu_seqlens_k)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad: Tensor, _grad_lse: Tensor):
    q, k, v, out, lse, cu_seqlens, cu_seqlens_k = ctx.saved_tensors
    gradients = attention_backward_op(
        grad, q, k, v, out, lse, cu_seqlens, cu_seqlens_k, ctx.causal, ctx.window
    )
    return *gradients, None, None, None, None


attention_op.register_autograd(_backward, setup_context=_setup_context)


def attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    causal: bool,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """`attention` by the kernels; arguments as there. No value is read back from the GPU."""
    if q.shape[2] not in HEAD_DIMS or q.dtype not in TRITON_TYPES or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"q {tuple(q.shape)} {q.dtype}, k {k.dtype}, v {v.dtype}: the kernels take one dtype of {', '.join(map(str, TRITON_TYPES))}"
            f" and head sizes {', '.join(map(str, HEAD_DIMS))}; use impl='torch'"
        )
    window = not causal and cu_seqlens_k is None and max_seqlen is not None and max_seqlen <= WINDOW
    cu_seqlens = cu_seqlens.to(torch.int32)
    cu_seqlens_k = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k.to(torch.int32)
    return attention_op(q, k, v, cu_seqlens, cu_seqlens_k, causal, window)[0]


def compile_cases() -> list["CompileCase"]:
    """Every 16-bit row of the table, causal and full."""
    from kernels.triton.gate import CompileCase

    cases = []
    for (dim, size), config in CONFIGS.items():
        if (
            size == 4
        ):  # exact float32 products run beside the tensor cores and spill; they are for comparing, not for speed
            continue
        signature = dict.fromkeys(["q", "k", "v", "out"], "*bf16") | {
            "lse": "*fp32",
            "cu_seqlens": "*i32",
            "cu_seqlens_k": "*i32",
        }
        signature |= dict.fromkeys(
            ["q_heads", "k_heads", "v_heads", "heads", "tokens", "sequences"], "i32"
        ) | {"scale2": "fp32"}
        for causal in (True, False):
            constexprs = {"GROUP": 7, "CAUSAL": causal, "HEAD_DIM": dim, "MAIN": main_columns(dim)}
            constexprs |= {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "UPCAST": False}
            name = f"attention_forward d{dim} {'causal' if causal else 'full'} bf16"
            cases.append(
                CompileCase(
                    name, forward_kernel, signature, constexprs, config.num_warps, config.num_stages, True
                )
            )
    return cases
