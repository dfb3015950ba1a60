"""Attention within short sequences in Triton, such as the vision encoder's windows of 8x8 patches: one tile,
no loop over keys.

A window's queries, keys and values of one head fit one tile each, so its whole softmax is at hand at once,
and one backward kernel owns
all three gradients. Both kernels are bound by memory: every input is read once and every output written once.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.tiles import LOG2_E, UPCAST, load_tile, main_columns, row_heads, store_tile

if TYPE_CHECKING:
    from kernels.triton.gate import CompileCase

WINDOW = 64  # longest sequence
# (head size, element bytes) -> warps of the forward, warps of the backward
CONFIGS = {
    (32, 2): (8, 4),
    (64, 2): (4, 8),
    (80, 2): (4, 8),
    (128, 2): (4, 8),
    (32, 4): (8, 8),
    (64, 4): (8, 8),
    (80, 4): (8, 8),
    (128, 4): (8, 8),
}


@triton.jit
def window_forward_kernel(
    q, k, v, out, lse, cu_seqlens, q_heads, k_heads, v_heads, heads, tokens, scale2,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, TILE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    REST: tl.constexpr = HEAD_DIM - MAIN
    head = tl.program_id(0) % heads
    sequence = tl.program_id(0) // heads
    begin = tl.load(cu_seqlens + sequence)
    length = tl.load(cu_seqlens + sequence + 1) - begin
    q_stride = q_heads * HEAD_DIM
    k_stride = k_heads * HEAD_DIM
    v_stride = v_heads * HEAD_DIM
    out_stride = heads * HEAD_DIM
    q += begin.to(tl.int64) * q_stride + head * HEAD_DIM
    k += begin.to(tl.int64) * k_stride + head // GROUP * HEAD_DIM
    v += begin.to(tl.int64) * v_stride + head // GROUP * HEAD_DIM
    out += begin.to(tl.int64) * out_stride + head * HEAD_DIM

    q_main = load_tile(q, 0, q_stride, length, TILE, 0, MAIN, True, UPCAST)  # (TILE, MAIN)
    k_main = load_tile(k, 0, k_stride, length, TILE, 0, MAIN, True, UPCAST)
    v_main = load_tile(v, 0, v_stride, length, TILE, 0, MAIN, True, UPCAST)
    scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")  # (TILE, TILE)
    if REST:
        q_rest = load_tile(q, 0, q_stride, length, TILE, MAIN, REST, True, UPCAST)
        k_rest = load_tile(k, 0, k_stride, length, TILE, MAIN, REST, True, UPCAST)
        v_rest = load_tile(v, 0, v_stride, length, TILE, MAIN, REST, True, UPCAST)
        scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
    rows = tl.arange(0, TILE)
    scores = tl.where((rows < length)[None, :], scores, -1e30)
    m = tl.max(scores, 1) * scale2
    p = tl.math.exp2(scores * scale2 - m[:, None])
    total = tl.sum(p, 1)
    tl.store(lse + head.to(tl.int64) * tokens + begin + rows, m + tl.math.log2(total), mask=rows < length)
    p = (p / total[:, None]).to(v_main.dtype)
    store_tile(out, tl.dot(p, v_main, input_precision="ieee"), 0, out_stride, length, TILE, 0, MAIN)
    if REST:
        store_tile(out, tl.dot(p, v_rest, input_precision="ieee"), 0, out_stride, length, TILE, MAIN, REST)


@triton.jit
def window_backward_kernel(
    q, k, v, grad, out, lse, dq, dk, dv, cu_seqlens, q_heads, k_heads, v_heads, grad_heads, key_heads, tokens, scale, scale2,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, TILE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One window and one key head, with all its query heads."""
    REST: tl.constexpr = HEAD_DIM - MAIN
    key_head = tl.program_id(0) % key_heads
    sequence = tl.program_id(0) // key_heads
    begin = tl.load(cu_seqlens + sequence)
    length = tl.load(cu_seqlens + sequence + 1) - begin
    q_stride = q_heads * HEAD_DIM
    k_stride = k_heads * HEAD_DIM
    v_stride = v_heads * HEAD_DIM
    grad_stride = grad_heads * HEAD_DIM
    out_stride = key_heads * GROUP * HEAD_DIM
    dk_stride = key_heads * HEAD_DIM
    q += begin.to(tl.int64) * q_stride + key_head * GROUP * HEAD_DIM
    grad += begin.to(tl.int64) * grad_stride + key_head * GROUP * HEAD_DIM
    out += begin.to(tl.int64) * out_stride + key_head * GROUP * HEAD_DIM
    dq += begin.to(tl.int64) * out_stride + key_head * GROUP * HEAD_DIM
    k += begin.to(tl.int64) * k_stride + key_head * HEAD_DIM
    v += begin.to(tl.int64) * v_stride + key_head * HEAD_DIM
    dk += begin.to(tl.int64) * dk_stride + key_head * HEAD_DIM
    dv += begin.to(tl.int64) * dk_stride + key_head * HEAD_DIM
    lse += key_head.to(tl.int64) * GROUP * tokens + begin

    rows = tl.arange(0, TILE)
    k_main = load_tile(k, 0, k_stride, length, TILE, 0, MAIN, True, UPCAST)  # (TILE, MAIN)
    v_main = load_tile(v, 0, v_stride, length, TILE, 0, MAIN, True, UPCAST)
    dk_main = tl.zeros((TILE, MAIN), tl.float32)
    dv_main = tl.zeros((TILE, MAIN), tl.float32)
    if REST:
        k_rest = load_tile(k, 0, k_stride, length, TILE, MAIN, REST, True, UPCAST)
        v_rest = load_tile(v, 0, v_stride, length, TILE, MAIN, REST, True, UPCAST)
        dk_rest = tl.zeros((TILE, REST), tl.float32)
        dv_rest = tl.zeros((TILE, REST), tl.float32)
    for _ in range(GROUP):
        q_main = load_tile(q, 0, q_stride, length, TILE, 0, MAIN, True, UPCAST)
        grad_main = load_tile(grad, 0, grad_stride, length, TILE, 0, MAIN, True, UPCAST)
        out_main = load_tile(out, 0, out_stride, length, TILE, 0, MAIN, True, UPCAST)
        delta = tl.sum(grad_main.to(tl.float32) * out_main.to(tl.float32), 1)
        scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")  # (TILE, TILE)
        dp = tl.dot(grad_main, tl.trans(v_main), input_precision="ieee")
        if REST:
            q_rest = load_tile(q, 0, q_stride, length, TILE, MAIN, REST, True, UPCAST)
            grad_rest = load_tile(grad, 0, grad_stride, length, TILE, MAIN, REST, True, UPCAST)
            out_rest = load_tile(out, 0, out_stride, length, TILE, MAIN, REST, True, UPCAST)
            delta += tl.sum(grad_rest.to(tl.float32) * out_rest.to(tl.float32), 1)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
            dp = tl.dot(grad_rest, tl.trans(v_rest), dp, input_precision="ieee")
        p = tl.math.exp2(scores * scale2 - tl.load(lse + rows, mask=rows < length, other=0.0)[:, None])
        p = tl.where((rows < length)[None, :], p, 0.0)
        ds = (p * (dp - delta[:, None])).to(q_main.dtype)
        p = tl.trans(p.to(grad_main.dtype))
        dv_main = tl.dot(p, grad_main, dv_main, input_precision="ieee")
        dk_main = tl.dot(tl.trans(ds), q_main, dk_main, input_precision="ieee")
        store_tile(
            dq, tl.dot(ds, k_main, input_precision="ieee") * scale, 0, out_stride, length, TILE, 0, MAIN
        )
        if REST:
            dv_rest = tl.dot(p, grad_rest, dv_rest, input_precision="ieee")
            dk_rest = tl.dot(tl.trans(ds), q_rest, dk_rest, input_precision="ieee")
            store_tile(
                dq,
                tl.dot(ds, k_rest, input_precision="ieee") * scale,
                0,
                out_stride,
                length,
                TILE,
                MAIN,
                REST,
            )
        q += HEAD_DIM
        grad += HEAD_DIM
        out += HEAD_DIM
        dq += HEAD_DIM
        lse += tokens

    store_tile(dk, dk_main * scale, 0, dk_stride, length, TILE, 0, MAIN)
    store_tile(dv, dv_main, 0, dk_stride, length, TILE, 0, MAIN)
    if REST:
        store_tile(dk, dk_rest * scale, 0, dk_stride, length, TILE, MAIN, REST)
        store_tile(dv, dv_rest, 0, dk_stride, length, TILE, MAIN, REST)


def window_forward(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """out (T, H, D) and the log-sum-exp (H, T) to base 2, as `packed_forward` gives them; no sequence is
    longer than WINDOW.
    """
    tokens, heads, dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    if tokens:
        window_forward_kernel[((cu_seqlens.shape[0] - 1) * heads,)](
            q, k, v, out, lse, cu_seqlens, row_heads(q), row_heads(k), row_heads(v), heads, tokens, dim**-0.5 * LOG2_E,
            GROUP=heads // k.shape[1], HEAD_DIM=dim, MAIN=main_columns(dim), TILE=WINDOW, UPCAST=UPCAST,
            num_warps=CONFIGS[dim, q.element_size()][0],
        )  # fmt: skip
    return out, lse


def window_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dq (T, H, D), dk and dv (T, K, D), contiguous, in their tensors' dtypes."""
    tokens, _, dim = q.shape
    key_heads = k.shape[1]
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if tokens:
        window_backward_kernel[((cu_seqlens.shape[0] - 1) * key_heads,)](
            q, k, v, grad, out, lse, dq, dk, dv, cu_seqlens, row_heads(q), row_heads(k), row_heads(v), row_heads(grad),
            key_heads, tokens, dim**-0.5, dim**-0.5 * LOG2_E,
            GROUP=q.shape[1] // key_heads, HEAD_DIM=dim, MAIN=main_columns(dim), TILE=WINDOW, UPCAST=UPCAST,
            num_warps=CONFIGS[dim, q.element_size()][1],
        )  # fmt: skip
    return dq, dk, dv


def compile_cases() -> list["CompileCase"]:
    """Every 16-bit row of the table."""
    from kernels.triton.gate import CompileCase

    cases = []
    for (dim, size), warps in CONFIGS.items():
        if (
            size == 4
        ):  # exact float32 products run beside the tensor cores and spill; they are for comparing, not for speed
            continue
        names = [["q", "k", "v", "out"], ["q", "k", "v", "grad", "out", "dq", "dk", "dv"]]
        numbers = [
            ["q_heads", "k_heads", "v_heads", "heads"],
            ["q_heads", "k_heads", "v_heads", "grad_heads", "key_heads"],
        ]
        scales = [{"scale2": "fp32"}, {"scale": "fp32", "scale2": "fp32"}]
        for i, kernel in enumerate((window_forward_kernel, window_backward_kernel)):
            signature = dict.fromkeys(names[i], "*bf16") | {
                "lse": "*fp32",
                "cu_seqlens": "*i32",
                "tokens": "i32",
            }
            signature |= dict.fromkeys(numbers[i], "i32") | scales[i]
            constexprs = {
                "GROUP": 1,
                "HEAD_DIM": dim,
                "MAIN": main_columns(dim),
                "TILE": WINDOW,
                "UPCAST": False,
            }
            name = f"{kernel.__name__.removesuffix('_kernel')} d{dim} bf16"
            cases.append(CompileCase(name, kernel, signature, constexprs, warps[i], 3, True))
    return cases
