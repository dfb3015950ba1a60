"""Edits: overwrite what a point holds, and see what becomes of the answer.

    with r1ov.edit(model, {"model.layers.2.self_attn.heads": zero(heads=[3])}):
        result = r1ov.generate(model, processor, messages)

An edit acts in training, in decoding and in `r1ov.trace` alike. A function of your own takes (value, where)
and returns the new value, or None to leave it.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from r1ov.errors import UserError
from r1ov.look.points import Function, Where


def zero(heads: Sequence[int] | None = None) -> Function:
    """Nothing in place of the value; with `heads`, in these heads alone."""
    return lambda value, where: _replaced(value, torch.zeros_like(value), heads, where)


def mean(heads: Sequence[int] | None = None) -> Function:
    """The mean over all tokens in place of each token's own value."""
    return lambda value, where: _replaced(value, value.mean(0, keepdim=True).expand_as(value), heads, where)


def take(trace, heads: Sequence[int] | None = None) -> Function:
    """What the same point held in another trace, of as many tokens."""

    def function(value: Tensor, where: Where) -> Tensor:
        other = trace[where.point].to(value)
        if other.shape != value.shape:
            raise UserError(
                f"{where.point} is {tuple(value.shape)} here and {tuple(other.shape)} in the other trace"
            )
        return _replaced(value, other, heads, where)

    return function


def add(vector: Tensor, scale: float = 1.0) -> Function:
    """Steers: adds a vector (C,) to every token."""
    return lambda value, _where: value + scale * vector.to(value)


def blank(cells: Sequence[int], with_: Literal["mean", "zero"] = "mean") -> Function:
    """For visual.merger.out: hides merged cells from the language model.

    Args: cells: row * columns + column of each, all images counted on. with_: the mean cell, or zeros.
    """

    def function(value: Tensor, _where: Where) -> Tensor:
        value = value.clone()
        value[list(cells)] = value.mean(0) if with_ == "mean" else 0.0
        return value

    return function


def _replaced(value: Tensor, other: Tensor, heads: Sequence[int] | None, where: Where) -> Tensor:
    if heads is None:
        return other
    if not where.point.endswith((".heads", ".pattern")):
        raise UserError(f"{where.point} has no heads; leave `heads` out, or edit self_attn.heads")
    axis = 1 if where.point.endswith(".heads") else 0
    chosen = torch.zeros(value.shape[axis], dtype=torch.bool, device=value.device)
    chosen[list(heads)] = True
    return torch.where(chosen[:, None] if axis else chosen[:, None, None], other, value)
