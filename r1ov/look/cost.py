"""What is computed where: for each part of a pass its operations, its weights, and the time that it took.

A multiply-add counts as two operations. Attention counts its whole square of scores, of which a causal mask
hides half.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch

from r1ov.data.processor import Batch
from r1ov.model.config import Config
from r1ov.model.model import Qwen2_5_VL


class Part(NamedTuple):
    """One kind of step, all its repetitions together."""

    name: str
    shape: str  # what goes through it
    flops: int
    weights: int  # numbers


def product(name: str, rows: int, columns: int, weights: int) -> Part:
    """Every row goes through every weight once."""
    return Part(name, f"{rows} x {columns}", 2 * rows * weights, weights)


def parts(
    config: Config, tokens: int, context: int, scored: int, grids: Sequence[Sequence[int]] = ()
) -> list[Part]:
    """The parts of one forward pass.

    Args:
        tokens: that go through the language model. context: how many each can see, itself included.
        scored: tokens whose logits are made. grids: (time, height, width) patches of each image.
    """
    text, wide, layers = config.text, config.text.hidden_size, config.text.num_hidden_layers
    heads, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    grouped = f"{text.num_attention_heads} heads of {text.head_dim} on {text.num_key_value_heads}"
    seen = Part("language: attention", f"{grouped}, {context} seen", 4 * tokens * context * heads * layers, 0)
    mlp = 3 * wide * text.intermediate_size * layers
    return [
        *(vision_parts(config, grids) if grids else ()),
        product(f"language: q, k, v, o of {layers} layers", tokens, wide, 2 * wide * (heads + keys) * layers),
        seen,
        product("language: MLP", tokens, text.intermediate_size, mlp),
        product("head", scored, text.vocab_size, wide * text.vocab_size),
    ]


def vision_parts(config: Config, grids: Sequence[Sequence[int]]) -> list[Part]:
    vision, depth = config.vision, config.vision.depth
    width, joined = vision.hidden_size, vision.hidden_size * vision.spatial_merge_size**2
    whole = len({*vision.fullatt_block_indexes} & {*range(depth)})
    patches = sum(t * h * w for t, h, w in grids)
    pairs = whole * sum(t * (h * w) ** 2 for t, h, w in grids)
    pairs += (depth - whole) * sum(t * window_squares(h, w, config) for t, h, w in grids)
    block = 4 * width * width + 3 * width * vision.intermediate_size
    attention = f"vision: attention, {whole} whole and {depth - whole} windowed"
    return [
        product("patches to vectors", patches, vision.patch_dim, vision.patch_dim * width),
        product(f"vision: products of {depth} blocks", patches, width, block * depth),
        Part(attention, f"{vision.num_heads} heads of {vision.head_dim}", 4 * width * pairs, 0),
        product("merger", patches * width // joined, joined, joined * (joined + vision.out_hidden_size)),
    ]


def window_squares(height: int, width: int, config: Config) -> int:
    """The sum over a frame's windows of their patches squared."""
    side = config.vision.window_size // config.vision.patch_size
    rows, columns = (
        sum(min(side, size - first) ** 2 for first in range(0, size, side)) for size in (height, width)
    )
    return rows * columns


def cache_bytes(config: Config, tokens: int, itemsize: int) -> int:
    """Keys and values of one sequence."""
    text = config.text
    return 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * tokens * itemsize


@torch.no_grad()
def times(model: Qwen2_5_VL, batch: Batch) -> dict[str, float]:
    """Seconds of one pass by kind of module, the lesser of two: vision, merger, attention, MLP, head, all."""
    kinds = {
        "vision": [model.visual.patch_embed, *model.visual.blocks],
        "merger": [model.visual.merger],
        "attention": [layer.self_attn for layer in model.model.layers],
        "MLP": [layer.mlp for layer in model.model.layers],
    }

    def clock(spent: dict[str, float], kind: str, sign: int, *_hooked: object) -> None:
        spent[kind] += sign * now(model)

    best = {}
    for _ in range(2):
        spent = defaultdict(float)
        with ExitStack() as stack:
            for kind, modules in kinds.items():
                for module in modules:
                    stack.enter_context(module.register_forward_pre_hook(partial(clock, spent, kind, -1)))
                    stack.enter_context(module.register_forward_hook(partial(clock, spent, kind, 1)))
            clock(spent, "all", -1)
            hidden = model(**batch, then=lambda hidden, _weight: hidden)
            clock(spent, "head", -1)
            model.logits(hidden[-1:])
            clock(spent, "head", 1)
            clock(spent, "all", 1)
        best = {name: min(seconds, best.get(name, seconds)) for name, seconds in spent.items()}
    return best


def now(model: Qwen2_5_VL) -> float:
    """Seconds, once the device has done what it was told."""
    if model.model.embed_tokens.weight.is_cuda:
        torch.cuda.synchronize(model.model.embed_tokens.weight.device)
    return time.perf_counter()
