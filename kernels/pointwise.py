"""Operations bound by memory and not by arithmetic: norms, rotary turns, the gate of an MLP, and a few rows
times a matrix. On GPUs each of the small ones is one kernel, which reads and writes every number once.

Shape letters: T tokens, C hidden size, H heads, D head dim.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import check_impl, has_amx

FEW = 64  # rows: with more, multiplying takes longer than reading the matrix


def rms_norm(x: Tensor, weight: Tensor, eps: float, impl: str | None = None) -> Tensor:
    """x / rms(x) * weight: float32 statistics, rounded to x's dtype before the weight, as in Qwen2RMSNorm.

    Args: x: (T, C). weight: (C,).
    """
    if check_impl(impl, x.device) == "triton":
        return _in_triton("rms_norm", x, weight, eps)
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, impl: str | None = None
) -> tuple[Tensor, Tensor]:
    """The sum x + residual, and its norm; each (T, C)."""
    if check_impl(impl, x.device) == "triton":
        return _in_triton("add_rms_norm", x, residual, weight, eps)
    total = x + residual
    return total, rms_norm(total, weight, eps, impl="torch")


def rotate(x: Tensor, cos: Tensor, sin: Tensor, impl: str | None = None) -> Tensor:
    """Turns each pair (x[d], x[d + D/2]) by its angle; in the wider dtype of the two, rounded to x's.

    Args: x: (T, H, D). cos, sin: (T, D), the second half of each like the first; no gradient is theirs.
    """
    if check_impl(impl, x.device) == "triton":
        return _in_triton("rotate", x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cos[:, None] + turned * sin[:, None]).to(x.dtype)


def silu_mul(gate: Tensor, up: Tensor, impl: str | None = None) -> Tensor:
    """silu(gate) * up, of one shape."""
    if check_impl(impl, gate.device) == "triton":
        return _in_triton("silu_mul", gate, up)
    gated = F.silu(gate)
    # In its own memory where nobody wants its gradient: pages for another take longer than the product.
    return gated * up if torch.is_grad_enabled() else gated.mul_(up)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of x (T, K) and weight (N, K).

    For a few rows on a CPU with AMX the weight is the left factor, which oneDNN reads as it lies; a right one
    it rearranges at every call. The result then lies column by column, unless there is a bias.
    """
    if len(x) > FEW or x.dtype != torch.bfloat16 or not has_amx(x.device):
        return F.linear(x, weight, bias)
    y = (weight @ x.mT).mT if len(x) > 1 else (weight @ x[0])[None]
    return y if bias is None else y.contiguous() + bias


def _in_triton(name: str, x: Tensor, *others: Any) -> Any:
    """What the Triton kernel of this name makes of the same arguments."""
    from kernels.triton import pointwise

    with torch.cuda.device_of(x):
        return getattr(pointwise, name)(x, *others)
