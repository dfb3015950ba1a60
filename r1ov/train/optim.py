"""The optimizers, the learning-rate schedule, and one step of them: gradients summed over all packs and
ranks, clipped, and applied if finite.

FSDP2 is told to sum, not to average (run/sharding.py): the loss is divided by numbers of the whole step
already.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from r1ov.data.processor import Batch
from r1ov.folder.weights import is_sharded, local, rows_of_each, whole
from r1ov.train.run.config import PLAYGROUND, TrainConfig

MOMENTUM, NEWTON_SCHULZ = 0.95, 5  # of Muon: the share of the gradients before, and steps
SIZE_7B = 8.3e9  # parameters of Qwen2.5-VL-7B


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal: every direction of a matrix moves by the same amount.

    Mirrors torch.optim.Muon (Nesterov momentum, five Newton-Schulz steps, update scaled by sqrt(max(1,
    rows/columns)), decoupled weight decay). It differs in two things, both for speed on CPUs: it computes in
    the gradient's dtype where torch's always takes bfloat16, and matrices of one shape are handled as one
    batch. A step of r1ov-tiny's 50 matrices took 4.7 s with torch's. Of sharded matrices the momentum is
    sharded likewise.

    Args: params: matrices, (rows, columns). lr: size of the update.
    Source: https://kellerjordan.github.io/posts/muon
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            by_shape = {}  # (rows, columns): parameters
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
            for (rows, columns), parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                    gradient, momentum = local(parameter.grad), local(state["momentum_buffer"])
                    momentum.lerp_(gradient, 1 - MOMENTUM)
                    updates.append(gradient.lerp(momentum, MOMENTUM))
                scale = group["lr"] * math.sqrt(max(1.0, rows / columns))
                together = torch.stack(updates)
                together = (
                    orthogonalise_sharded(together, parameters[0])
                    if is_sharded(parameters[0])
                    else orthogonalise(together)
                )
                for parameter, update in zip(parameters, together, strict=True):
                    local(parameter).mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=scale)


def orthogonalise(matrices: Tensor) -> Tensor:
    """(N, rows, columns) -> the same, each with all its singular values moved near 1 by quintic Newton-Schulz
    steps.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # steepest at zero: values land in about 0.7 .. 1.2 rather than at 1
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(NEWTON_SCHULZ):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


def orthogonalise_sharded(matrices: Tensor, parameter: Tensor) -> Tensor:
    """`orthogonalise` for matrices of which each process has some rows: (N, own rows, columns) -> the same.

    The matrices are dealt out over the processes: each is sent the rows of its own ones, makes those
    orthogonal, and sends the rows back.

    Args: parameter: one that is sharded as all of them are.
    """
    mesh, (rows, columns) = parameter.device_mesh, parameter.shape
    group, size, height = mesh.get_group(mesh.ndim - 1), mesh.size(mesh.ndim - 1), rows_of_each(parameter)
    count, own = matrices.shape[:2]
    share = -(-count // size)  # matrices that one process makes orthogonal
    sent = matrices.new_zeros(size, share, height, columns)
    sent.flatten(0, 1)[:count, :own] = matrices
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    mine = orthogonalise(received.transpose(0, 1).flatten(1, 2)[:, :rows])  # (share, rows, columns)
    padded = F.pad(mine, (0, 0, 0, size * height - rows)).unflatten(1, (size, height))
    dist.all_to_all_single(received, padded.transpose(0, 1).contiguous(), group=group)
    return received.flatten(0, 1)[:count, :own]


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything ("adamw"), or Muon for the inner matrices and AdamW for the rest ("muon"). Norms
    and biases never decay.
    """
    muon, decay, betas = config.optim == "muon", config.weight_decay, (config.adam_beta1, config.adam_beta2)
    inner, outer, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim == 1:
            vectors.append(parameter)
        elif muon and parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name:
            inner.append(parameter)
        else:
            outer.append(parameter)
    groups = [{"params": outer, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizers = []
    if outer or vectors:
        optimizers.append(torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True))
    if inner:
        optimizers.append(Muon(inner, lr=config.muon_learning_rate, weight_decay=decay))
    return optimizers


def peak_learning_rate(config: TrainConfig, parameters: int) -> float:
    """What --learning-rate is, or would best be for a model of this size."""
    if config.learning_rate:
        return config.learning_rate
    if config.stage == "grpo":
        return 1e-4 if config.data == PLAYGROUND else by_size(1e-6, parameters, config.is_lora)
    return by_size(1e-5, parameters, config.is_lora) if config.model else 2e-3


def by_size(at_7b: float, parameters: int, is_lora: bool = False) -> float:
    """A learning rate known to be right for 7B, for a model of another size, to two digits.

    It goes with 1 / width, as muP's for Adam (arXiv 2203.03466), and width with the root of the size.
    """
    if is_lora:
        at_7b *= 10  # Schulman et al. 2025, "LoRA Without Regret"
    return float(f"{at_7b * math.sqrt(SIZE_7B / parameters):.1e}")


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """What the peak learning rate is multiplied by at `step` (from 0): linear warm-up, then "cosine",
    "linear" or "constant" to `min_lr_rate`.
    """
    warmup_steps = round(config.warmup_ratio * config.max_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, config.max_steps - warmup_steps)
    shapes = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
    return config.min_lr_rate + (1 - config.min_lr_rate) * shapes[config.lr_scheduler_type]


# -- one step of them


def each_pack(packs: Sequence[Batch], model: nn.Module, device: torch.device) -> Iterator[Batch]:
    """The packs of a step, one by one, on the device, for a forward and a backward pass each.

    Groups of ranks that each hold the whole model exchange gradients only on the last pack. Within a group
    gradients are summed after every pack, so that no rank holds all of them.
    """
    for number, pack in enumerate(packs, 1):
        if is_sharded(model):
            model.set_requires_all_reduce(number == len(packs))
        yield pack.to(device)


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """The length of all gradients as one vector; longer ones than `max_norm` are scaled down to it, in place.

    For sharded parameters it is the length of the gradients that all ranks hold together, the same float on
    each of them. One non-finite value on any rank makes it inf or nan on all.
    """
    norm = whole(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
    if dist.is_initialized():  # so that all have one number, also groups that each hold the whole
        dist.all_reduce(norm)
        norm /= dist.get_world_size()
    return norm.item()


def update(
    optimizers: Iterable[torch.optim.Optimizer],
    parameters: Iterable[nn.Parameter],
    config: TrainConfig,
    step: int,
) -> dict[str, float]:
    """One step of the optimizers, number `step` (from 0), on the gradients of their parameters, which are
    cleared. One value that is not finite on any rank makes all skip it; their length is then not finite.
    """
    grad_norm = clip_grad_norm(parameters, config.max_grad_norm)
    factor = learning_rate_factor(step, config)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])
        if math.isfinite(grad_norm):
            optimizer.step()
        optimizer.zero_grad()
    return {"grad_norm": grad_norm, "learning_rate": factor * config.learning_rate}
