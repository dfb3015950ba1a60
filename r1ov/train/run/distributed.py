"""The length of all gradients together, whoever holds them."""

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn

from r1ov.folder.weights import is_sharded, local


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """The length of all gradients as one vector; gradients longer than `max_norm` are scaled down to it, in
    place.

    Of sharded parameters it is the length of the gradients that all processes hold together, the same float
    in each of them. A gradient that is not finite anywhere makes it inf or nan everywhere, and nothing is
    scaled.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    shares = [local(gradient) for gradient in gradients]
    squares = torch.nn.utils.get_total_norm(shares).double().square()
    if is_sharded(gradients[0]):
        mesh = gradients[0].device_mesh
        dist.all_reduce(squares)  # over all, so that all have one number; every copy of the model counts once
        squares /= dist.get_world_size() / mesh.size(mesh.ndim - 1)
    norm = squares.sqrt().item()
    if norm > max_norm and math.isfinite(norm):
        torch._foreach_mul_(shares, max_norm / norm)
    return norm
