"""Triton side of kernels.pointwise. Arithmetic is float32; only what is written is rounded. Nothing but
inputs is kept for the backward pass: what it needs beside them is computed again from rows that it reads.

No sum is by atomics, so that results are the same bits in every run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.tiles import CHANGING, load, row_heads, side_by_side

BLOCK = 2048  # numbers of a tile
PARTS = 512  # programs that share the rows of a norm's backward, each with a sum of its own for d weight


@triton.jit(do_not_specialize=CHANGING)
def norm_kernel(
    x, residual, weight, total, out, rows, width, eps,
    ADD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < width)
    places = row.to(tl.int64) * width + column
    value = load(x + places, inside)
    if ADD:
        value += load(residual + places, inside)
        value = value.to(x.dtype.element_ty)
        tl.store(total + places, value, mask=inside)
        value = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 1)[:, None] / width + eps)
    factor = load(weight + column, column < width)
    tl.store(out + places, value * scale * factor, mask=inside)


@triton.jit(do_not_specialize=CHANGING)
def norm_backward_kernel(
    grad, grad_total, total, weight, grad_x, parts, rows, width, eps,
    ADD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """d x, and in `parts` (programs, width) each program's share of d weight."""
    column = tl.arange(0, COLUMNS)[None, :]
    factor = load(weight + column, column < width)
    share = tl.zeros((1, COLUMNS), tl.float32)
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & (column < width)
        places = row.to(tl.int64) * width + column
        value = load(total + places, inside)
        slope = load(grad + places, inside)
        direct = load(grad_total + places, inside & ADD)
        scale = tl.rsqrt(tl.sum(value * value, 1)[:, None] / width + eps)
        normed = value * scale
        share += tl.sum(slope * normed, 0)[None, :]
        slope *= factor
        slope = (slope - normed * (tl.sum(slope * normed, 1)[:, None] / width)) * scale
        tl.store(grad_x + places, slope + direct, mask=inside)
    tl.store(parts + tl.program_id(0) * width + column, share, mask=column < width)


@triton.jit(do_not_specialize=CHANGING)
def rotate_kernel(
    x, cos, sin, out, rows, heads, row_heads, sign,
    DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A row is one head of one token; a tile has the first half of its columns, and the second beside it."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < DIM // 2)
    token = (row // heads).to(tl.int64)
    c = load(cos + token * DIM + column, inside)
    s = load(sin + token * DIM + column, inside) * sign
    x += (token * row_heads + row % heads) * DIM + column
    first = load(x, inside)
    second = load(x + DIM // 2, inside)
    out += row.to(tl.int64) * DIM + column
    tl.store(out, first * c - second * s, mask=inside)
    tl.store(out + DIM // 2, second * c + first * s, mask=inside)


@triton.jit
def silu_mul_kernel(gate, up, out, size, COLUMNS: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = places < size
    g = load(gate + places, inside)
    u = load(up + places, inside)
    tl.store(out + places, g * tl.sigmoid(g) * u, mask=inside)


@triton.jit
def silu_mul_backward_kernel(grad, gate, up, grad_gate, grad_up, size, COLUMNS: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = places < size
    slope = load(grad + places, inside)
    g = load(gate + places, inside)
    u = load(up + places, inside)
    s = tl.sigmoid(g)
    tl.store(grad_gate + places, slope * u * s * (1 + g * (1 - s)), mask=inside)
    tl.store(grad_up + places, slope * g * s, mask=inside)


def _tile(width: int) -> dict[str, int]:
    """Whole rows of this width: several where they are short."""
    columns = triton.next_power_of_2(width)
    return {
        "ROWS": max(1, BLOCK // columns),
        "COLUMNS": columns,
        "num_warps": min(16, max(4, columns // 512)),
    }


@torch.library.custom_op("r1ov::norm", mutates_args=())
def norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`add_rms_norm`; without a residual the first result is empty."""
    add, width = residual is not None, len(weight)
    if not x.dtype == weight.dtype == (residual if add else x).dtype:
        raise ValueError(
            f"x is {x.dtype}, weight {weight.dtype}: the kernel takes one dtype; use impl='torch'"
        )
    x, residual = x.contiguous(), residual.contiguous() if add else x
    out, total = torch.empty_like(x), torch.empty_like(x) if add else x.new_empty(0)
    rows, tile = x.numel() // width, _tile(width)
    grid = (triton.cdiv(rows, tile["ROWS"]),)
    norm_kernel[grid](x, residual, weight, total, out, rows, width, eps, ADD=add, **tile)
    return total, out


@torch.library.custom_op("r1ov::norm_backward", mutates_args=())
def norm_backward(
    grad: Tensor, grad_total: Tensor, total: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """d total and d weight; `grad_total` is empty where the sum was not asked for."""
    grad, grad_total, total = grad.contiguous(), grad_total.contiguous(), total.contiguous()
    width, grad_x = len(weight), torch.empty_like(total)
    rows, tile = total.numel() // width, _tile(width)
    programs = min(PARTS, triton.cdiv(rows, tile["ROWS"]))
    parts = torch.empty(programs, width, dtype=torch.float32, device=total.device)
    norm_backward_kernel[(programs,)](
        *(grad, grad_total, total, weight, grad_x, parts, rows, width, eps),
        ADD=grad_total.numel() > 0,
        **tile,
    )
    return grad_x, parts.sum(0).to(weight.dtype)


@torch.library.custom_op("r1ov::rotate", mutates_args=())
def turn(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    """`rotate`, or with a sign of -1 back: the gradient."""
    x, cos, sin = side_by_side(x), cos.contiguous(), sin.contiguous()
    tokens, heads, dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, tile = tokens * heads, _tile(dim // 2)
    grid = (triton.cdiv(rows, tile["ROWS"]),)
    rotate_kernel[grid](x, cos, sin, out, rows, heads, row_heads(x), sign, DIM=dim, **tile)
    return out


@torch.library.custom_op("r1ov::silu_mul", mutates_args=())
def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    silu_mul_kernel[(triton.cdiv(gate.numel(), BLOCK),)](gate, up, out, gate.numel(), COLUMNS=BLOCK)
    return out


@torch.library.custom_op("r1ov::silu_mul_backward", mutates_args=())
def silu_mul_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()
    grads, size = (torch.empty_like(gate), torch.empty_like(up)), gate.numel()
    silu_mul_backward_kernel[(triton.cdiv(size, BLOCK),)](grad, gate, up, *grads, size, COLUMNS=BLOCK)
    return grads


def _like(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(tensors[-1].new_empty(0 if x is None else x.shape) for x in tensors)


norm.register_fake(lambda x, residual, weight, eps: _like(residual, x))
norm_backward.register_fake(lambda grad, grad_total, total, weight, eps: _like(total, weight))
turn.register_fake(lambda x, *_: _like(x)[0])
silu_mul.register_fake(lambda gate, up: _like(gate)[0])
silu_mul_backward.register_fake(lambda grad, gate, up: _like(gate, up))


def _keep_norm(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, residual, weight, ctx.eps = inputs
    ctx.adds = residual is not None
    ctx.save_for_backward(output[0] if ctx.adds else x, weight)


def _norm_gradients(ctx: Any, grad_total: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, grad_weight = norm_backward(grad, grad_total, *ctx.saved_tensors, ctx.eps)
    return grad_x, grad_x if ctx.adds else None, grad_weight, None


def _keep_turn(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, cos, sin, ctx.sign = inputs
    ctx.save_for_backward(cos, sin)


norm.register_autograd(_norm_gradients, setup_context=_keep_norm)
turn.register_autograd(
    lambda ctx, grad: (turn(grad, *ctx.saved_tensors, -ctx.sign), None, None, None), setup_context=_keep_turn
)
silu_mul.register_autograd(
    lambda ctx, grad: silu_mul_backward(grad, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return norm(x, None, weight, eps)[1]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return norm(x, residual, weight, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return turn(x, cos, sin, 1.0)
