"""How a model is laid out for training: which parts learn, what is kept for the backward pass, and which
process holds which rows.

The order is freeze, checkpoint_activations, shard, on a model that has no weights yet (on the meta device);
then the weights are read or drawn, and each process only ever holds its own rows, in float32. The forward
pass gathers one unit at a time: the vision encoder, each decoder layer, and what is left (embedding, final
    norm, head).
"""

import os
from collections.abc import Collection
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from r1ov.common.processes import World
from r1ov.errors import UserError
from r1ov.folder import pretrained
from r1ov.folder.adapter import Folders, read_adapter
from r1ov.folder.weights import load_weights, local, local_rows, whole
from r1ov.model.config import Config
from r1ov.model.lora import Lora, attach, drawn, targets
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.parallel import split

PARTS = ("vision", "merger", "language")
# Operations whose results selective checkpointing keeps; bmm is not among them: here it only makes
# attention's (T, T) scores.
KEPT = {
    "aten::mm",
    "aten::addmm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "r1ov::attention",
}


def freeze(model: Qwen2_5_VL, parts: Collection[str]) -> None:
    """Stops these parts of the model from learning: "vision" (the encoder's blocks), "merger", "language"
    (with embedding and head).
    """
    if unknown := sorted(set(parts) - set(PARTS)):
        raise UserError(f"--freeze: there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    for name, parameter in model.named_parameters():
        if _part(name) in parts:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"--freeze {','.join(parts)} leaves nothing to train; leave one part out")


def checkpoint_activations(model: Qwen2_5_VL, mode: str) -> None:
    """What the blocks of both stacks keep of their forward pass: "off" everything, "selective" the results of
    attention and matrix products, but for those of the encoder's MLPs, "full" their input alone; the rest is
    computed again when the backward pass needs it. Names of parameters do not change.
    """
    if mode not in ("off", "selective", "full"):
        raise ValueError(f"mode is {mode!r}, must be off, selective or full")
    if mode == "off":
        return
    options = {
        "use_reentrant": False,
        # nothing else in the model is random
        "preserve_rng_state": bool(model.lora and model.lora.dropout),
    }
    # of an MLP's three products the first that comes again; per byte, the encoder's cost least to compute
    firsts = dict.fromkeys(model.visual.blocks, 0) | dict.fromkeys(model.model.layers, 2)
    for block, first in firsts.items():
        if mode == "selective":
            policy = partial(_policy, again=() if model.lora else [*block.mlp.children()][first:])
            options["context_fn"] = partial(create_selective_checkpoint_contexts, policy)
        block.forward = partial(checkpoint, block.forward, **options)


def make_mesh(world: World, device: torch.device, replicate: int) -> DeviceMesh:
    """The processes in `replicate` groups that each hold the whole model: (shard,), or (replicate, shard) for
    more than one group.

    Groups are consecutive ranks: with one group a node the parameters travel within nodes only, and gradients
        alone between them.
    """
    if replicate < 1 or world.size % replicate:
        raise UserError(f"--replicate is {replicate}; it must divide the number of processes, {world.size}")
    sizes = (world.size,) if replicate == 1 else (replicate, world.size // replicate)
    return init_device_mesh(device.type, sizes, mesh_dim_names=("replicate", "shard")[-len(sizes) :])


def shard(
    model: Qwen2_5_VL, mesh: DeviceMesh, compute_dtype: torch.dtype, reshard_after_forward: bool = True
) -> None:
    """Deals the model's parameters out over the mesh, in place; it computes in `compute_dtype` and sums
    gradients in float32.

    Gradients are the sums over all processes, not their means: the loss is divided by the global number of
        tokens already.

    Args:
        model: on the meta device, or with whole weights that are the same in all processes.
        mesh: of `make_mesh`.
        reshard_after_forward: False keeps the gathered parameters until the backward pass: no second
            gathering, more memory.
    """
    # not on the way of a run that is not sharded
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    layers = list(model.model.layers)
    for unit in (model.visual, *layers, model):
        # The root is needed first by the backward pass: it always stays gathered.
        fully_shard(
            unit,
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=reshard_after_forward and unit is not model,
        )
        unit.set_gradient_divide_factor(1.0)
        # else a factor of 1 is NCCL's own scaled sum, which gloo has not
        unit.set_force_sum_reduction_for_comms(True)
    # The vision encoder is no one's next in these lists: a batch without pictures never asks for it.
    for this, following in pairwise([model.visual, *layers]):
        this.set_modules_to_forward_prefetch([following])
    for previous, this in pairwise(layers):
        this.set_modules_to_backward_prefetch([previous])


def share_out(
    model: Qwen2_5_VL, world: World, device: torch.device, replicate: int, dtype: torch.dtype
) -> None:
    """`shard` over all processes. CPUs have memory to spare, and gathering twice takes their time."""
    shard(model, make_mesh(world, device, replicate), dtype, device.type != "cpu")


def replica(model: Qwen2_5_VL, dtype: torch.dtype, tensor_parallel: int = 1) -> Qwen2_5_VL:
    """An ordinary copy of the model, for answering questions: whole in every process, or split between so
    many. All processes call this together.
    """
    with torch.device("meta"):
        copy = Qwen2_5_VL(model.config)
        if tensor_parallel > 1:
            split(copy, tensor_parallel)
        if model.lora:
            own = {name: torch.empty(one.shape) for name, one in model.named_parameters() if "lora_" in name}
            attach(copy, own, model.lora)
    device = local(next(model.parameters())).device
    copy = copy.requires_grad_(False).to(dtype).to_empty(device=device).eval()
    refresh(copy, model, everything=True)
    return copy


@torch.no_grad()
def refresh(copy: Qwen2_5_VL, model: Qwen2_5_VL, everything: bool = False) -> None:
    """Brings a replica's weights up to date, one tensor at a time, in place; with an adapter its alone,
    unless everything is wanted. All processes call this together.
    """
    parameters = dict(model.named_parameters())
    for name, parameter in copy.named_parameters():
        if everything or not model.lora or "lora_" in name:
            value = whole(parameters[name])
            parameter.copy_(value[copy.split.own(name)] if copy.split else value)


def computing_copy(
    masters: Qwen2_5_VL, dtype: torch.dtype, mode: str, last: torch.optim.Optimizer
) -> Qwen2_5_VL:
    """A copy of a run's weights in the dtype of the arithmetic, to compute in their place. Its gradients
    become theirs, in float32, one by one as they are made.

    Args: mode: as of `checkpoint_activations`. last: of the optimizers: its step renews the copy.
    """
    copy = replica(masters, dtype)
    checkpoint_activations(copy, mode)
    for parameter, master in zip(copy.parameters(), masters.parameters(), strict=True):
        if master.requires_grad:
            parameter.requires_grad_().register_post_accumulate_grad_hook(partial(_hand_over, master))
    last.register_step_post_hook(lambda *_: refresh(copy, masters))
    return copy


@torch.no_grad()
def towards_start(masters: Qwen2_5_VL, model: Qwen2_5_VL, start: Qwen2_5_VL, share: float) -> None:
    """Moves what was learned a share of the way back to where it began: much of what was gained stays, and
    more of what was lost comes back.

    Args: model: what computes, the masters or a copy of them. start: laid out as the masters.
    Source: linear interpolation towards initialization, WARP (Rame et al. 2024, arXiv 2406.16768).
    """
    for weight, first in zip(masters.parameters(), start.parameters(), strict=True):
        weight.lerp_(first, share)
    if model is not masters:
        refresh(model, masters)


def _hand_over(master: Tensor, parameter: Tensor) -> None:
    gradient, parameter.grad = parameter.grad, None
    master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)


@torch.no_grad()
def build_adapted(
    config: Any, folders: Folders, sizes: Config, world: World, device: torch.device, dtype: torch.dtype
) -> Qwen2_5_VL:
    """A model, frozen, with the LoRA adapter that learns: the one in `folders`, or a new one. Sharded over
    several processes.

    Args: config: the options of a run. dtype: of the arithmetic, in which the base is held; the adapter is
        float32.
    """
    if config.quantize and (world.size > 1 or config.merge):
        raise UserError(
            "--quantize is for one process, without --merge (python -m r1ov.train.export merges later)"
        )
    if config.freeze or bool(folders.adapter) == bool(config.lora_r) or not config.model:
        raise UserError(
            "LoRA, and --quantize, freeze all but an adapter, which --lora-r makes anew and --adapter goes "
            "on with: give one of them, a --model, and no --freeze"
        )
    model = pretrained.build(sizes).to(dtype)
    if folders.adapter:
        values, lora = read_adapter(folders.adapter, model, device)
    else:
        base = os.path.abspath(config.model) if os.path.isdir(config.model) else config.model
        lora = Lora(base, config.lora_alpha, config.lora_dropout, config.use_rslora)
        layers = targets(model, config.lora_target, config.lora_vision)
        values = drawn(model, layers, config.lora_r, config.seed, device)
    if world.size == 1:
        load_weights(model, folders.weights, device, dtype, config.quantize, quantizes_head=False)
    attach(model, values, lora)
    checkpoint_activations(model, config.activation_checkpointing)
    if world.size * config.replicate > 1:
        share_out(model, world, device, config.replicate, dtype)
        load_weights(model, folders.weights, device, dtype)
        for name, value in values.items():
            parameter = model.get_parameter(name)
            local(parameter).copy_(value[local_rows(parameter)])
    torch.manual_seed(config.seed + world.rank)  # of dropout
    return model


def _part(name: str) -> str:
    if name.startswith("visual.merger."):
        return "merger"
    return "vision" if name.startswith("visual.") else "language"


def _policy(
    _context: Any, operation: Any, *args: Any, again: Collection[nn.Module], **_kwargs: Any
) -> CheckpointPolicy:
    """Args: again: whose results are not kept. Of one that ends the block no gradient needs it, and
    recomputing stops before it.
    """
    keeps = operation.name() in KEPT and all(
        getattr(args[-1], "_base", None) is not one.weight for one in again
    )
    return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE
