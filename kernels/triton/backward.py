"""The backward of packed attention in Triton, split so that every sum has one owner and no atomics are
needed: it is deterministic.

With scores s = scale * q k^T, p = softmax(s), out = p v and delta = rowsum(grad * out):
    dv = p^T grad,   ds = p * (grad v^T - delta),   dq = scale * ds k,   dk = scale * ds^T q.
One kernel writes delta, one owns tiles of keys (dk, dv) and walks over the queries of all heads that share
them, one owns tiles of queries (dq) and walks over the keys. Both recompute p = exp2(s - lse). Seven products
where a fused kernel with atomics has five.
Source: Dao, FlashAttention-2, arXiv 2307.08691, algorithm 2, its loop taken apart in two.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.tiles import (
    LOG2_E,
    UPCAST,
    Config,
    find_tile,
    load_tile,
    main_columns,
    num_slots,
    row_heads,
    store_tile,
    visible_keys,
)

if TYPE_CHECKING:
    from kernels.triton.gate import CompileCase

# (head size, element bytes) -> tiles. dk and dv: BLOCK_N keys are owned, BLOCK_M queries a step; dq: the
# other way round.
DKDV_CONFIGS = {
    (32, 2): Config(64, 128, 8, 2),
    (64, 2): Config(64, 128, 8, 2),
    (80, 2): Config(32, 128, 8, 2),
    (128, 2): Config(64, 64, 8, 2),
    (32, 4): Config(32, 64, 8, 2),
    (64, 4): Config(32, 64, 8, 2),
    (80, 4): Config(32, 32, 8, 2),
    (128, 4): Config(32, 32, 8, 2),
}
DQ_CONFIGS = {
    (32, 2): Config(128, 64, 8, 2),
    (64, 2): Config(128, 64, 8, 2),
    (80, 2): Config(128, 64, 8, 2),
    (128, 2): Config(128, 32, 8, 2),
    (32, 4): Config(64, 32, 8, 2),
    (64, 4): Config(64, 32, 8, 2),
    (80, 4): Config(32, 32, 8, 2),
    (128, 4): Config(32, 32, 8, 2),
}
DELTA_ROWS = 64


@triton.jit
def delta_kernel(
    grad, out, delta, grad_heads, heads, tokens,
    HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, ROWS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """delta (H, T) = rowsum(grad * out), ROWS tokens of one head a program."""
    REST: tl.constexpr = HEAD_DIM - MAIN
    head = tl.program_id(0) % heads
    first = tl.program_id(0) // heads * ROWS
    grad += head * HEAD_DIM
    out += head * HEAD_DIM
    grad_main = load_tile(grad, first, grad_heads * HEAD_DIM, tokens, ROWS, 0, MAIN, True, UPCAST).to(
        tl.float32
    )
    out_main = load_tile(out, first, heads * HEAD_DIM, tokens, ROWS, 0, MAIN, True, UPCAST).to(tl.float32)
    total = tl.sum(grad_main * out_main, 1)
    if REST:
        grad_rest = load_tile(grad, first, grad_heads * HEAD_DIM, tokens, ROWS, MAIN, REST, True, UPCAST).to(
            tl.float32
        )
        out_rest = load_tile(out, first, heads * HEAD_DIM, tokens, ROWS, MAIN, REST, True, UPCAST).to(
            tl.float32
        )
        total += tl.sum(grad_rest * out_rest, 1)
    rows = first + tl.arange(0, ROWS)
    tl.store(delta + head.to(tl.int64) * tokens + rows, total, mask=rows < tokens)


@triton.jit
def dkdv_kernel(
    q, k, v, grad, lse, delta, dk, dv, cu_seqlens, cu_seqlens_k, q_heads, k_heads, v_heads, grad_heads, key_heads, tokens, sequences,
    scale, scale2,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    REST: tl.constexpr = HEAD_DIM - MAIN
    key_head = tl.program_id(0) % key_heads
    sequence, first, begin_k, length_k = find_tile(
        cu_seqlens_k, sequences, tl.program_id(0) // key_heads, BLOCK_N
    )
    if first >= length_k:
        return
    begin = tl.load(cu_seqlens + sequence)
    length = tl.load(cu_seqlens + sequence + 1) - begin
    q_stride = q_heads * HEAD_DIM
    k_stride = k_heads * HEAD_DIM
    v_stride = v_heads * HEAD_DIM
    grad_stride = grad_heads * HEAD_DIM
    dk_stride = key_heads * HEAD_DIM
    k += begin_k.to(tl.int64) * k_stride + key_head * HEAD_DIM
    v += begin_k.to(tl.int64) * v_stride + key_head * HEAD_DIM
    dk += begin_k.to(tl.int64) * dk_stride + key_head * HEAD_DIM
    dv += begin_k.to(tl.int64) * dk_stride + key_head * HEAD_DIM
    q += begin.to(tl.int64) * q_stride + key_head * GROUP * HEAD_DIM
    grad += begin.to(tl.int64) * grad_stride + key_head * GROUP * HEAD_DIM
    lse += key_head.to(tl.int64) * GROUP * tokens + begin
    delta += key_head.to(tl.int64) * GROUP * tokens + begin

    k_main = load_tile(k, first, k_stride, length_k, BLOCK_N, 0, MAIN, True, UPCAST)
    v_main = load_tile(v, first, v_stride, length_k, BLOCK_N, 0, MAIN, True, UPCAST)
    dk_main = tl.zeros((BLOCK_N, MAIN), tl.float32)
    dv_main = tl.zeros((BLOCK_N, MAIN), tl.float32)
    if REST:
        k_rest = load_tile(k, first, k_stride, length_k, BLOCK_N, MAIN, REST, True, UPCAST)
        v_rest = load_tile(v, first, v_stride, length_k, BLOCK_N, MAIN, REST, True, UPCAST)
        dk_rest = tl.zeros((BLOCK_N, REST), tl.float32)
        dv_rest = tl.zeros((BLOCK_N, REST), tl.float32)

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
        q_main = load_tile(
            q + head * HEAD_DIM, place, q_stride, length, BLOCK_M, 0, MAIN, True, UPCAST
        )  # (BLOCK_M, MAIN)
        scores = tl.dot(k_main, tl.trans(q_main), input_precision="ieee")  # (BLOCK_N, BLOCK_M)
        if REST:
            q_rest = load_tile(
                q + head * HEAD_DIM, place, q_stride, length, BLOCK_M, MAIN, REST, True, UPCAST
            )
            scores = tl.dot(k_rest, tl.trans(q_rest), scores, input_precision="ieee")
        scores = scores * scale2 - tl.load(lse + head * tokens + rows, mask=rows < length, other=0.0)[None, :]
        if CAUSAL:
            scores = tl.where(rows[None, :] >= first_seeing[:, None], scores, -1e30)
        p = tl.math.exp2(scores)
        grad_main = load_tile(
            grad + head * HEAD_DIM, place, grad_stride, length, BLOCK_M, 0, MAIN, True, UPCAST
        )
        rounded = p.to(grad_main.dtype)
        dv_main = tl.dot(rounded, grad_main, dv_main, input_precision="ieee")
        dp = tl.dot(v_main, tl.trans(grad_main), input_precision="ieee")
        if REST:
            grad_rest = load_tile(
                grad + head * HEAD_DIM, place, grad_stride, length, BLOCK_M, MAIN, REST, True, UPCAST
            )
            dv_rest = tl.dot(rounded, grad_rest, dv_rest, input_precision="ieee")
            dp = tl.dot(v_rest, tl.trans(grad_rest), dp, input_precision="ieee")
        row_delta = tl.load(delta + head * tokens + rows, mask=rows < length, other=0.0)
        ds = (p * (dp - row_delta[None, :])).to(q_main.dtype)
        dk_main = tl.dot(ds, q_main, dk_main, input_precision="ieee")
        if REST:
            dk_rest = tl.dot(ds, q_rest, dk_rest, input_precision="ieee")

    store_tile(dk, dk_main * scale, first, dk_stride, length_k, BLOCK_N, 0, MAIN)
    store_tile(dv, dv_main, first, dk_stride, length_k, BLOCK_N, 0, MAIN)
    if REST:
        store_tile(dk, dk_rest * scale, first, dk_stride, length_k, BLOCK_N, MAIN, REST)
        store_tile(dv, dv_rest, first, dk_stride, length_k, BLOCK_N, MAIN, REST)


@triton.jit
def collect_dq(
    dq, dq_rest, q_main, q_rest, grad_main, grad_rest, lse, delta, k, v, k_stride, v_stride, start, end, length_k, last_seen, scale2,
    MASKED: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, BLOCK_N: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Adds the share of the keys start .. end to dq of a tile of queries."""
    for first in range(start, end, BLOCK_N):
        k_main = load_tile(k, first, k_stride, length_k, BLOCK_N, 0, MAIN, MASKED, UPCAST)  # (BLOCK_N, MAIN)
        v_main = load_tile(v, first, v_stride, length_k, BLOCK_N, 0, MAIN, MASKED, UPCAST)
        scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")  # (BLOCK_M, BLOCK_N)
        dp = tl.dot(grad_main, tl.trans(v_main), input_precision="ieee")
        if REST:
            k_rest = load_tile(k, first, k_stride, length_k, BLOCK_N, MAIN, REST, MASKED, UPCAST)
            v_rest = load_tile(v, first, v_stride, length_k, BLOCK_N, MAIN, REST, MASKED, UPCAST)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
            dp = tl.dot(grad_rest, tl.trans(v_rest), dp, input_precision="ieee")
        scores = scores * scale2 - lse[:, None]
        if MASKED:
            offs_n = first + tl.arange(0, BLOCK_N)
            scores = tl.where(offs_n[None, :] <= last_seen[:, None], scores, -1e30)
        p = tl.math.exp2(scores)
        ds = (p * (dp - delta[:, None])).to(k_main.dtype)
        dq = tl.dot(ds, k_main, dq, input_precision="ieee")
        if REST:
            dq_rest = tl.dot(ds, k_rest, dq_rest, input_precision="ieee")
    return dq, dq_rest


@triton.jit
def dq_kernel(
    q, k, v, grad, lse, delta, dq, cu_seqlens, cu_seqlens_k, q_heads, k_heads, v_heads, grad_heads, heads, tokens, sequences, scale,
    scale2,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    REST: tl.constexpr = HEAD_DIM - MAIN
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
    grad_stride = grad_heads * HEAD_DIM
    dq_stride = heads * HEAD_DIM
    q += begin.to(tl.int64) * q_stride + head * HEAD_DIM
    grad += begin.to(tl.int64) * grad_stride + head * HEAD_DIM
    dq += begin.to(tl.int64) * dq_stride + head * HEAD_DIM
    k += begin_k.to(tl.int64) * k_stride + head // GROUP * HEAD_DIM
    v += begin_k.to(tl.int64) * v_stride + head // GROUP * HEAD_DIM

    offs_m = first + tl.arange(0, BLOCK_M)
    row_lse = tl.load(lse + head.to(tl.int64) * tokens + begin + offs_m, mask=offs_m < length, other=0.0)
    row_delta = tl.load(delta + head.to(tl.int64) * tokens + begin + offs_m, mask=offs_m < length, other=0.0)
    last_seen, full, end = visible_keys(first, length, length_k, CAUSAL, BLOCK_M, BLOCK_N)

    q_main = load_tile(q, first, q_stride, length, BLOCK_M, 0, MAIN, True, UPCAST)
    grad_main = load_tile(grad, first, grad_stride, length, BLOCK_M, 0, MAIN, True, UPCAST)
    q_rest = q_main
    grad_rest = grad_main
    dq_main = tl.zeros((BLOCK_M, MAIN), tl.float32)
    dq_rest = dq_main
    if REST:
        q_rest = load_tile(q, first, q_stride, length, BLOCK_M, MAIN, REST, True, UPCAST)
        grad_rest = load_tile(grad, first, grad_stride, length, BLOCK_M, MAIN, REST, True, UPCAST)
        dq_rest = tl.zeros((BLOCK_M, REST), tl.float32)
    dq_main, dq_rest = collect_dq(
        dq_main, dq_rest, q_main, q_rest, grad_main, grad_rest, row_lse, row_delta, k, v, k_stride, v_stride, 0, full, length_k,
        last_seen, scale2, False, MAIN, REST, BLOCK_N, UPCAST,
    )  # fmt: skip
    dq_main, dq_rest = collect_dq(
        dq_main, dq_rest, q_main, q_rest, grad_main, grad_rest, row_lse, row_delta, k, v, k_stride, v_stride, full, end, length_k,
        last_seen, scale2, True, MAIN, REST, BLOCK_N, UPCAST,
    )  # fmt: skip
    store_tile(dq, dq_main * scale, first, dq_stride, length, BLOCK_M, 0, MAIN)
    if REST:
        store_tile(dq, dq_rest * scale, first, dq_stride, length, BLOCK_M, MAIN, REST)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """dq (T, H, D), dk and dv (S, K, D), contiguous, in their tensors' dtypes. lse as `packed_forward` gave
    it.
    """
    tokens, heads, dim = q.shape
    tokens_k, key_heads = k.shape[:2]
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    sequences = cu_seqlens.shape[0] - 1
    shared = {
        "GROUP": heads // key_heads,
        "CAUSAL": causal,
        "HEAD_DIM": dim,
        "MAIN": main_columns(dim),
        "UPCAST": UPCAST,
    }
    if tokens:
        delta_kernel[(triton.cdiv(tokens, DELTA_ROWS) * heads,)](
            grad, out, delta, row_heads(grad), heads, tokens,
            HEAD_DIM=dim, MAIN=main_columns(dim), ROWS=DELTA_ROWS, UPCAST=UPCAST, num_warps=4,
        )  # fmt: skip
        config = DQ_CONFIGS[dim, q.element_size()]
        dq_kernel[(num_slots(tokens, cu_seqlens, config.block_m) * heads,)](
            q, k, v, grad, lse, delta, dq, cu_seqlens, cu_seqlens_k, row_heads(q), row_heads(k), row_heads(v), row_heads(grad),
            heads, tokens, sequences, dim**-0.5, dim**-0.5 * LOG2_E,
            **shared, BLOCK_M=config.block_m, BLOCK_N=config.block_n, num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
    if tokens_k:
        config = DKDV_CONFIGS[dim, q.element_size()]
        dkdv_kernel[(num_slots(tokens_k, cu_seqlens_k, config.block_n) * key_heads,)](
            q, k, v, grad, lse, delta, dk, dv, cu_seqlens, cu_seqlens_k, row_heads(q), row_heads(k), row_heads(v), row_heads(grad),
            key_heads, tokens, sequences, dim**-0.5, dim**-0.5 * LOG2_E,
            **shared, BLOCK_M=config.block_m, BLOCK_N=config.block_n, num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
    return dq, dk, dv


def compile_cases() -> list["CompileCase"]:
    """Every 16-bit row of the tables, causal and full."""
    from kernels.triton.gate import CompileCase

    cases = []
    for (dim, size), dkdv in DKDV_CONFIGS.items():
        if (
            size == 4
        ):  # exact float32 products run beside the tensor cores and spill; they are for comparing, not for speed
            continue
        columns = {"HEAD_DIM": dim, "MAIN": main_columns(dim), "UPCAST": False}
        signature = {
            "grad": "*bf16",
            "out": "*bf16",
            "delta": "*fp32",
            "grad_heads": "i32",
            "heads": "i32",
            "tokens": "i32",
        }
        cases.append(
            CompileCase(
                f"delta d{dim} bf16", delta_kernel, signature, columns | {"ROWS": DELTA_ROWS}, 4, 3, False
            )
        )
        inputs = dict.fromkeys(["q", "k", "v", "grad"], "*bf16") | {"lse": "*fp32", "delta": "*fp32"}
        numbers = {"cu_seqlens": "*i32", "cu_seqlens_k": "*i32"} | dict.fromkeys(
            ["q_heads", "k_heads", "v_heads", "grad_heads"], "i32"
        )
        ends = {"tokens": "i32", "sequences": "i32", "scale": "fp32", "scale2": "fp32"}
        for kernel, config, outputs, heads in (
            (dkdv_kernel, dkdv, {"dk": "*bf16", "dv": "*bf16"}, {"key_heads": "i32"}),
            (dq_kernel, DQ_CONFIGS[dim, size], {"dq": "*bf16"}, {"heads": "i32"}),
        ):
            for causal in (True, False):
                constexprs = columns | {
                    "GROUP": 7,
                    "CAUSAL": causal,
                    "BLOCK_M": config.block_m,
                    "BLOCK_N": config.block_n,
                }
                name = f"attention_{kernel.__name__.removesuffix('_kernel')} d{dim} {'causal' if causal else 'full'} bf16"
                types = inputs | outputs | numbers | heads | ends
                cases.append(
                    CompileCase(name, kernel, types, constexprs, config.num_warps, config.num_stages, True)
                )
    return cases
