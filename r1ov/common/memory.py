"""What a command will need of a device's memory, said before it starts, and refused where it cannot fit."""

import ctypes
import mmap
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import inf, prod
from operator import mul
from pathlib import Path
from typing import Any

import torch
from torch.types import Device

from r1ov.errors import UserError

REMEDIES = "quantize int4, fewer new tokens or samples, or smaller pictures (max_pixels) take less"
IN_TRAINING = (
    "--lora-r 16, --activation-checkpointing full, more processes (--nproc-per-node), --beta 0, or a smaller "
    "--max-length, --max-num-seqs or --max-completion-length take less"
)
SMALL = 2**24  # numbers; models below gain nothing by bfloat16 on a CPU, where calls cost more than products
LARGE = getattr(mmap, "MADV_HUGEPAGE", None)  # how Linux is asked for large pages
MMAP_THRESHOLD = -3  # glibc's number of the option
CUDA, TORCH = 6e8, 4.7e8  # with their libraries; the second on a CPU, in training
LOGITS = 2**26  # that kernels/logprobs.py makes at once where torch computes
HOLES = 0.5  # of what a SMALL model's step makes: left in glibc's heap, where `return_freed` is not called
# What a decoder layer keeps of a token for its backward pass, in hidden sizes, sizes of all keys and of the
# MLP; and a block of the vision encoder of a patch, in hidden sizes and sizes of the MLP.
KEPT = {
    # Input, middle, both norms before and after their weights, queries, attention in a batch, in the pack and
    # summed; keys, values; gate, silu, up, product. The encoder's values lie in the whole of q, k and v.
    "torch": (9, 2, 4, 12, 4),
    # Norms and silu are made again, and a pack is no batch.
    "triton": (6, 2, 3, 10, 3),
    # Input, products and attention, but for the last product, and those of the encoder's MLP.
    "selective": (4, 2, 2, 6, 0),
    "full": (1, 0, 0, 1, 0),  # the input
}


def free_memory(device: torch.device) -> float:
    """Bytes that a program may still take: of a GPU, or of this machine and its container."""
    if device.type != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    free = inf
    with suppress(OSError, ValueError):  # macOS has no such files, a machine without limits "max"
        free = 1024 * int(re.search(r"MemAvailable: *(\d+)", Path("/proc/meminfo").read_text())[1])
        limit, taken = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - taken)
    return free


def return_freed() -> None:
    """Has glibc give each freed piece of 1 MB or more back to the system at once.

    By itself it comes to keep pieces of up to 32 MB, and the hole that an aligned piece leaves is too small
    for the next one as large (glibc before 2.38): SFT of 0.5B with LoRA took 12.3 GB, now 6.5. Not for a
    small model, whose steps would be 1.4 times slower, for the pages that the system clears.
    """
    with suppress(AttributeError, TypeError):  # a C library without it, or Windows
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**20)


def roomy(shape: Sequence[int], dtype: torch.dtype, device: Device) -> torch.Tensor:
    """An empty tensor, on a CPU in large pages, where the system has them: small ones take longer to make
    than to fill, and longer to read.
    """
    if torch.device(device).type != "cpu" or LARGE is None:
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, prod(shape) * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(LARGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def held(run: Any) -> dict[str, float]:
    """Bytes that a process of a training holds all the time, by what they are. Args: run: open.py's `Run`."""
    config, size, copies = run.config, run.world.size, run.config.replicate
    counted = run.model.parameters(), run.parameters, run.model.visual.parameters()
    total, trained, vision = (sum(map(torch.numel, parameters)) for parameters in counted)
    # weights, gradients and AdamW's two moments; of what does not learn weights alone, so of a reference
    weights = sum(tensor.nbytes for tensor in run.masters.state_dict().values())
    parts = {"weights, gradients and optimizer": (weights + 12 * trained) * copies / size}
    is_copied, is_grpo = run.model is not run.masters, config.stage == "grpo"
    if is_grpo and config.beta and not config.is_lora:
        parts["reference"] = run.dtype.itemsize * total if is_copied else 4 * total * copies / size
    if is_copied or (size > 1 and (is_grpo or (config.eval_steps and config.asks))):
        copy = run.dtype.itemsize * (vision + (total - vision) / config.tensor_parallel)
        parts["a copy that answers"] = copy
    if config.save_steps and run.device.type == "cpu":
        parts["a checkpoint on its way"] = 12 * trained / size
    return parts


def activations(run: Any, packs: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, float]:
    """Bytes that the forward and backward pass of the largest pack hold at the worst moment, beside weights,
    gradients and the optimizer's moments; {} without packs.

    That is when all that is KEPT is there, and the backward pass is at the loss, with its logits three or
    five times, or at the last layer, of which what was not kept is made again, beside its MLP's gradients.

    Args: run: open.py's `Run`. packs: with labels.
    Source: what autograd saves, tensor by tensor (tests/test_memory.py).
    """
    text, vision, itemsize = run.model.config.text, run.model.config.vision, run.dtype.itemsize
    rows = [KEPT[run.kernels], KEPT.get(run.config.activation_checkpointing, KEPT[run.kernels])]
    sizes = text.hidden_size, text.num_key_value_heads * text.head_dim, text.intermediate_size
    is_small = run.device.type == "cpu" and sum(map(torch.numel, run.model.parameters())) <= SMALL
    wide = 20 if run.config.stage == "grpo" else 12  # bytes a logit: three times, with the entropy five
    most, name = 0.0, ""
    for pack in packs:
        tokens, patches = len(pack["labels"]) / run.config.context_parallel, len(pack.get("pixel_values", ()))
        ends = 4 * tokens * sizes[0] + patches * vision.patch_dim
        patches *= run.model.visual.patch_embed.proj.weight.requires_grad
        layer, kept = (tokens * sum(map(mul, row, sizes)) for row in rows)
        block, seen = (patches * (a * vision.hidden_size + b * vision.intermediate_size) for *_, a, b in rows)
        again = layer - kept + tokens * (sizes[0] + 2 * sizes[2])
        scored = min(int((pack["labels"] >= 0).sum()), LOGITS // text.vocab_size) * (run.kernels == "torch")
        logits = wide * scored * text.vocab_size / itemsize
        whole = text.num_hidden_layers * layer + vision.depth * block
        kept = text.num_hidden_layers * kept + vision.depth * seen
        size = ends + kept + max(again, logits) + HOLES * is_small * (ends + whole + logits)
        if size > most:
            most, name = size, f"a pack of {len(pack['labels']):,} tokens"
    return {name: itemsize * most} if most else {}


def of_step(run: Any, packs: list[Mapping[str, torch.Tensor]]) -> dict[str, float]:
    """What a step holds at its worst moment beside `held`: activations, and of a single pack the gradients,
    which `held` counts, come as those go, the head's first.
    """
    needed = activations(run, packs)
    if len(packs) > 1:
        return needed
    learn = sum(map(torch.numel, run.parameters))
    head = run.model.head_weight
    later = 4 * (learn - head.numel() * head.requires_grad) * run.config.replicate / run.world.size
    return {name: max(0.0, size - later) for name, size in needed.items()}


def plan(
    parts: Mapping[str, float], device: torch.device, is_training: bool = False, refuses: bool = True
) -> str:
    """Says what is needed and how much of that is free.

    Args: parts: bytes, by what they are for. is_training: some of them may be taken already.
    Raises: UserError if it is more, and `refuses`.
    """
    if device.type == "cpu":
        taken = 3e8
        with suppress(OSError):  # where nobody counts, about what torch and its libraries take
            taken = int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
        program = max(taken - sum(parts.values()), TORCH) if is_training else taken
    else:
        taken, program = torch.cuda.memory_reserved(device), CUDA
    needed = {"program": program, **parts}
    free, need = free_memory(device) + taken, sum(needed.values())
    shown = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in needed.items())
    line = f"{need / 1e9:.2f} GB of {free / 1e9:.1f} free ({shown})"
    if need > free and refuses:
        raise UserError(f"needs {line}; {IN_TRAINING if is_training else REMEDIES}")
    return line
