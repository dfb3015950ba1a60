"""One optimiser step: gradients summed over all packs and ranks, clipped, and applied if finite.

FSDP2 is told to sum, not to average (run/sharding.py): the loss is divided by numbers of the whole step
already.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn

from r1ov.data.processor import Batch
from r1ov.errors import UserError
from r1ov.folder.weights import is_sharded, local
from r1ov.model.model import Qwen2_5_VL
from r1ov.train.optim import learning_rate_factor
from r1ov.train.run.log import say
from r1ov.train.run.open import Run

MAX_SKIPPED = 10


def each_pack(packs: Sequence[Batch], run: Run) -> Iterator[Batch]:
    """The packs of a step, one by one, on the run's device, for a forward and a backward pass each."""
    for number, pack in enumerate(packs, 1):
        sum_over_copies(run.model, is_last=number == len(packs))
        yield pack.to(run.device)


def sum_over_copies(model: Qwen2_5_VL, is_last: bool) -> None:
    """Call before each pack: groups of ranks that each hold the whole model exchange gradients only on the
    last one.

    Within a group gradients are summed after every pack, so that no rank holds all of them. A plain model
    ignores it.
    """
    if is_sharded(model):
        model.set_requires_all_reduce(is_last)


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """The length of all gradients as one vector; longer ones than `max_norm` are scaled down to it, in place.

    For sharded parameters it is the length of the gradients that all ranks hold together, the same float on
    each of them. One non-finite value on any rank makes it inf or nan on all, and nothing is scaled.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    shares = [local(gradient) for gradient in gradients]
    squares = torch.nn.utils.get_total_norm(shares).double().square()
    if is_sharded(gradients[0]):
        mesh = gradients[0].device_mesh
        dist.all_reduce(squares)  # over all ranks, so that all have one number; each copy counts once
        squares /= dist.get_world_size() / mesh.size(mesh.ndim - 1)
    norm = squares.sqrt().item()
    if norm > max_norm and math.isfinite(norm):
        torch._foreach_mul_(shares, max_norm / norm)
    return norm


def update(run: Run) -> dict[str, float]:
    """One step of the optimizers on the accumulated gradients, which are cleared.

    A non-finite value on any rank skips the step on all. Raises: UserError after MAX_SKIPPED in a row.
    """
    config = run.config
    grad_norm = clip_grad_norm(run.parameters, config.max_grad_norm)
    warmup_steps = round(config.warmup_ratio * config.max_steps)
    factor = learning_rate_factor(
        run.step, config.max_steps, warmup_steps, config.lr_scheduler_type, config.min_lr_rate
    )
    is_finite = math.isfinite(grad_norm)  # the same on all ranks
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])
        if is_finite:
            optimizer.step()
        optimizer.zero_grad()
    run.skipped_in_a_row = 0 if is_finite else run.skipped_in_a_row + 1
    if not is_finite:
        note_skipped(run, grad_norm)
    return {"grad_norm": grad_norm, "learning_rate": factor * config.learning_rate}


def note_skipped(run: Run, grad_norm: float) -> None:
    run.extra["skipped_steps"] = run.extra.get("skipped_steps", 0) + 1
    if run.world.is_main:
        say(f"note    step {run.step + 1} is skipped: the gradient's length is {grad_norm}")
    if run.skipped_in_a_row >= MAX_SKIPPED:
        raise UserError(
            f"step {run.step + 1}: the gradient's length is {grad_norm}, {run.skipped_in_a_row} times in a "
            f"row; "
            "lower the learning rate, or warm up longer"
        )
