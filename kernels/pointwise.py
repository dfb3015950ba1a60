"""Small operations, bound by memory and not by arithmetic: norms, rotary turns, the gate of an MLP. On GPUs
each is one kernel, which reads and writes every number once.

Shape letters: T tokens, C hidden size, H heads, D head dim.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import check_impl


def or_triton(definition: Callable) -> Callable:
    """The definition, or its namesake among the Triton kernels: as `impl` says, or by device."""

    @wraps(definition)
    def chosen(x: Tensor, *others: Any, impl: str | None = None) -> Any:
        if check_impl(impl, x.device) == "torch":
            return definition(x, *others)
        from kernels.triton import pointwise

        with torch.cuda.device_of(x):
            return getattr(pointwise, definition.__name__)(x, *others)

    return chosen


@or_triton
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight: float32 statistics, rounded to x's dtype before the weight, as in Qwen2RMSNorm.

    Args: x: (T, C). weight: (C,).
    """
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


@or_triton
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum x + residual, and its norm; each (T, C)."""
    total = x + residual
    return total, rms_norm(total, weight, eps, impl="torch")


@or_triton
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (x[d], x[d + D/2]) by its angle; in the wider dtype of the two, rounded to x's.

    Args: x: (T, H, D). cos, sin: (T, D), the second half of each like the first; no gradient is theirs.
    """
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cos[:, None] + turned * sin[:, None]).to(x.dtype)


@or_triton
def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of one shape."""
    return F.silu(gate) * up
