"""Small operations, bound by memory and not by arithmetic: norms, rotary turns, the gate of an MLP. On GPUs
each is one kernel, which reads and writes every number once.

Shape letters: T tokens, C hidden size, H heads, D head dim.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import check_impl


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
    return F.silu(gate) * up


def _in_triton(name: str, x: Tensor, *others: Any) -> Any:
    """What the Triton kernel of this name makes of the same arguments."""
    from kernels.triton import pointwise

    with torch.cuda.device_of(x):
        return getattr(pointwise, name)(x, *others)
