"""What is computed where: for each part of a pass its products, its weights, and the time that it took.

A multiply-add counts as two operations. Attention counts its whole square of scores, of which a causal mask
hides half.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch

from r1ov.data.processor import Batch
from r1ov.model.config import Config
from r1ov.model.model import Qwen2_5_VL


@dataclass(frozen=True)
class Part:
    """One kind of step, all its repetitions together."""

    name: str
    shape: str  # what goes through it
    flops: int
    weights: int  # numbers


def parts(
    config: Config, tokens: int, context: int, scored: int, grids: Sequence[Sequence[int]] = ()
) -> list[Part]:
    """The parts of one forward pass.

    Args:
        tokens: that go through the language model. context: how many each can see, itself included.
        scored: tokens whose logits are made. grids: (time, height, width) patches of each image.
    """
    vision, text = config.vision, config.text
    width, inner, unit = vision.hidden_size, vision.intermediate_size, vision.spatial_merge_size**2
    patches, full = (
        sum(t * h * w for t, h, w in grids),
        len(set(vision.fullatt_block_indexes) & {*range(vision.depth)}),
    )
    found = []
    if patches:
        squares = sum(t * (h * w) ** 2 for t, h, w in grids)
        windows = sum(t * window_squares(h, w, config) for t, h, w in grids)
        merged, out = patches // unit, vision.out_hidden_size
        joined = unit * width
        block = 4 * width * width + 3 * width * inner
        found = [
            Part(
                "patches to vectors",
                f"{patches} x {vision.patch_dim}",
                2 * patches * vision.patch_dim * width,
                vision.patch_dim * width,
            ),
            Part(
                f"vision: products of {vision.depth} blocks",
                f"{patches} x {width}",
                2 * patches * block * vision.depth,
                block * vision.depth,
            ),
            Part(
                f"vision: attention, {full} whole and {vision.depth - full} windowed",
                f"{vision.num_heads} heads of {vision.head_dim}",
                4 * width * (full * squares + (vision.depth - full) * windows),
                0,
            ),
            Part(
                "merger",
                f"{merged} x {joined}",
                2 * merged * joined * (joined + out),
                joined * (joined + out),
            ),
        ]
    wide, layers = text.hidden_size, text.num_hidden_layers
    heads, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    projections, mlp = wide * (2 * heads + 2 * keys), 3 * wide * text.intermediate_size
    grouped = f"{text.num_attention_heads} heads of {text.head_dim} on {text.num_key_value_heads}"
    return [
        *found,
        Part(
            f"language: q, k, v, o of {layers} layers",
            f"{tokens} x {wide}",
            2 * tokens * projections * layers,
            projections * layers,
        ),
        Part("language: attention", f"{grouped}, {context} seen", 4 * tokens * context * heads * layers, 0),
        Part(
            "language: MLP", f"{tokens} x {text.intermediate_size}", 2 * tokens * mlp * layers, mlp * layers
        ),
        Part(
            "head",
            f"{scored} x {text.vocab_size}",
            2 * scored * wide * text.vocab_size,
            wide * text.vocab_size,
        ),
    ]


def window_squares(height: int, width: int, config: Config) -> int:
    """The sum over a frame's windows of their patches squared."""
    side = config.vision.window_size // config.vision.patch_size
    rows = [min(side, height - first) for first in range(0, height, side)]
    columns = [min(side, width - first) for first in range(0, width, side)]
    return sum(row * row for row in rows) * sum(column * column for column in columns)


def cache_bytes(config: Config, tokens: int, itemsize: int) -> int:
    """Keys and values of one sequence."""
    text = config.text
    return 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * tokens * itemsize


@torch.no_grad()
def times(model: Qwen2_5_VL, batch: Batch, repeats: int = 3) -> dict[str, float]:
    """Seconds of one pass by kind of module, the least of some: vision, merger, attention, MLP, head, all."""
    kinds = {
        "vision": [model.visual.patch_embed, *model.visual.blocks],
        "merger": [model.visual.merger],
        "attention": [layer.self_attn for layer in model.model.layers],
        "MLP": [layer.mlp for layer in model.model.layers],
    }

    def clock(spent: dict[str, float], kind: str, sign: int, *_hooked: object) -> None:
        spent[kind] += sign * now(model)

    best: dict[str, float] = {}
    for _ in range(repeats):
        spent: dict[str, float] = defaultdict(float)
        with ExitStack() as stack:
            for kind, modules in kinds.items():
                for module in modules:
                    stack.callback(module.register_forward_pre_hook(partial(clock, spent, kind, -1)).remove)
                    stack.callback(module.register_forward_hook(partial(clock, spent, kind, 1)).remove)
            since = now(model)
            hidden = model(**batch, then=lambda hidden, _weight: hidden)
            before_head = now(model)
            model.logits(hidden[-1:])
            spent["head"], spent["all"] = now(model) - before_head, now(model) - since
        best = {name: min(seconds, best.get(name, seconds)) for name, seconds in spent.items()}
    return best


def now(model: Qwen2_5_VL) -> float:
    """Seconds, once the device has done what it was told."""
    if model.head_weight.is_cuda:
        torch.cuda.synchronize(model.head_weight.device)
    return time.perf_counter()
