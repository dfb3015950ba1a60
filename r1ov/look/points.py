"""Points inside the model: named places whose values can be read and overwritten, in any pass through it.

A point is the checkpoint's own module path and a last word:

    model.layers.2.residual           (T, C) enters the layer
    model.layers.2.self_attn.heads    (T, H, D) what each head gathered, before they are mixed
    model.layers.2.self_attn.pattern  (H, T, T) how much each token (row) looks at each token (column)
    model.layers.2.self_attn.out      (T, C) is added to the residual, and so is
    model.layers.2.mlp.out            (T, C)
    visual.blocks.1. ...              the same, with attn for self_attn and P patches for T tokens
    visual.merger.out                 (M, C) merged cells
    model.norm.out                    (T, C) goes to the head
    logits                            (T, V)

Patches and cells come in the image's reading order, not in the encoder's own (by windows). Points are hooks
on the model's own modules: without any, nothing is in the way. TransformerLens calls
`residual` hook_resid_pre, `heads` hook_z, and `pattern` by the same name.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from r1ov.errors import UserError
from r1ov.model.config import VisionConfig
from r1ov.model.language import DecoderLayer, SelfAttention
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.rope import rotate
from r1ov.model.vision import VisionAttention, VisionBlock, layout


class Where(NamedTuple):
    """What a function at a point is told beside the value."""

    point: str
    position_ids: Tensor | None  # (3, T) of the tokens; None in the vision encoder


class Heads(NamedTuple):
    """What an attention module attends with: q (n, H, D) and k, v (S, K, D), turned to their positions.

    `cu_seqlens` cuts the tokens into those that see each other; None: causal, and all of one sequence.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    cu_seqlens: Tensor | None


Function = Callable[[Any, Where], Any]  # value -> value, or None to leave it as it is
LAST_WORDS = {  # module's class -> last words of its points
    DecoderLayer: ("residual",),
    VisionBlock: ("residual",),
    SelfAttention: ("heads", "pattern", "out"),
    VisionAttention: ("heads", "pattern", "out"),
}
OUT = ("mlp", "merger", "norm", "embed_tokens")  # modules with an `out` alone


def points_of(model: Qwen2_5_VL) -> dict[str, nn.Module]:
    """Every point of the model, with the module it belongs to, in the order in which they are computed."""
    points: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        words = LAST_WORDS.get(type(module), ())
        if name.rpartition(".")[2] in OUT and name != "visual.merger.mlp":
            words = ("out",)
        points |= {f"{name}.{word}": module for word in words}
    return points | {"logits": model}


def check_point(name: str, points: Mapping[str, Any]) -> None:
    """Raises UserError, with the nearest names, for a point that is not there."""
    if name not in points:
        near = difflib.get_close_matches(name, points, n=3, cutoff=0.3)
        raise UserError(f"there is no point {name!r}; the nearest are {', '.join(near) or ', '.join(points)}")


def reading_order(image_grid_thw: Tensor, config: VisionConfig) -> tuple[Tensor, Tensor]:
    """Where in the encoder's order the patches (P,) and the cells (M,) of the reading order are."""
    grids = [tuple(grid) for grid in image_grid_thw.tolist()]
    positions, order, _, _ = layout(tuple(grids), config)
    unit = config.spatial_merge_size**2
    places, frames, before = positions.unflatten(0, (-1, unit))[order].flatten(0, 1), [], 0  # (P, 2)
    for t, h, w in grids:
        frames += [(before + index * h * w, w) for index in range(t) for _ in range(h * w)]
        before += t * h * w
    begin, width = torch.tensor(frames).T
    return (begin + places[:, 0] * width + places[:, 1]).argsort(), order.argsort()


def pattern(heads: Heads, rows: slice | Tensor = slice(None)) -> Tensor:
    """The attention weights of some rows of q, computed by the definition; (H, rows, S) float32."""
    q, k, _, cu_seqlens = heads
    places = torch.arange(len(k) - len(q), len(k), device=q.device)[rows]  # the last query sees the last key
    q, k = q[rows].float(), k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).float()
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[2] ** -0.5
    keys = torch.arange(len(k), device=q.device)
    if cu_seqlens is None:
        seen = keys <= places[:, None]
    else:
        ids = torch.searchsorted(cu_seqlens[1:], keys, right=True)
        seen = ids == ids[places][:, None]
    return scores.masked_fill(~seen, float("-inf")).softmax(-1)


@contextmanager
def watching(
    model: Qwen2_5_VL, functions: Mapping[str, Function], on_heads: Callable[[str, Heads], None] | None = None
) -> Iterator[None]:
    """Within it, every pass through the model gives each point's value to its function.

    Args:
        functions: point -> function(value, where); it returns the value to go on with, or None.
        on_heads: called with an attention module's name and what it attends with.
    Raises: UserError for an unknown point.
    """
    points = points_of(model)
    for name in functions:
        check_point(name, points)
    position_ids: list[Tensor | None] = [None]  # of the pass under way
    orders: list[tuple[Tensor, Tensor]] = []  # of the images under way

    def apply(name: str, value: Tensor) -> Tensor | None:
        """Returns the new value, or None if nobody wants another."""
        if name not in functions:
            return None
        if not name.startswith("visual."):
            return checked(name, value, functions[name](value, Where(name, position_ids[0])))
        order = orders[-1][name == "visual.merger.out"].to(value.device)
        is_pattern = name.endswith(".pattern")
        read = value[:, order][:, :, order] if is_pattern else value[order]
        new = checked(name, value, functions[name](read, Where(name, None)))
        if new is None:
            return None
        back = order.argsort()
        return new[:, back][:, :, back] if is_pattern else new[back]

    def checked(name: str, value: Tensor, new: Tensor | None) -> Tensor | None:
        if new is not None and new.shape != value.shape:
            raise UserError(f"the edit of {name} returns {tuple(new.shape)}; expected {tuple(value.shape)}")
        return new

    with ExitStack() as stack:

        def hook(register: Callable, function: Callable, **options: bool) -> None:
            stack.callback(register(function, **options).remove)

        def note_positions(_module: nn.Module, args: tuple) -> None:
            position_ids[0] = args[1]

        def note_order(_module: nn.Module, args: tuple) -> None:
            orders[:] = [reading_order(args[1], model.config.vision)]

        hook(model.model.register_forward_pre_hook, note_positions)
        hook(model.visual.register_forward_pre_hook, note_order)
        for name, module in points.items():
            path, _, word = name.rpartition(".")
            if name not in functions and not (word == "pattern" and on_heads):
                continue
            if word == "residual":
                hook(
                    module.register_forward_pre_hook,
                    lambda _m, args, name=name: _first(args, apply(name, args[0])),
                )
            elif word == "out":
                hook(module.register_forward_hook, lambda _m, _a, value, name=name: apply(name, value))
            elif word == "pattern" or (
                word == "heads" and not on_heads and f"{path}.pattern" not in functions
            ):
                _watch_attention(hook, module, path, functions, apply, on_heads)
        if "logits" in functions:
            plain = model.logits

            def logits(hidden: Tensor) -> Tensor:
                value = plain(hidden)
                new = apply("logits", value)
                return value if new is None else new

            model.logits = logits  # the engine asks for them too, without the model's own forward
            stack.callback(delattr, model, "logits")
        yield


def _first(args: tuple, value: Tensor | None) -> tuple | None:
    return None if value is None else (value, *args[1:])


def _watch_attention(
    hook: Callable,
    module: SelfAttention | VisionAttention,
    path: str,
    functions: Mapping[str, Function],
    apply: Callable[[str, Tensor], Tensor | None],
    on_heads: Callable[[str, Heads], None] | None,
) -> None:
    """Watches the points `heads` and `pattern` of one attention module."""
    current: list[Heads] = []  # of the pass under way
    if isinstance(module, SelfAttention):
        projection = module.o_proj

        def around(_module: nn.Module, args: tuple) -> tuple:
            x, cos, sin, attend, *rest = args

            def attending(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                current[:] = [Heads(q, k, v, None)]
                return attend(layer, q, k, v)

            return (x, cos, sin, attending, *rest)

        hook(module.register_forward_pre_hook, around)
    else:
        projection = module.proj
        turn: list[tuple] = []

        def before(_module: nn.Module, args: tuple) -> None:
            turn[:] = [args[1:4]]

        def split(_module: nn.Module, _args: tuple, value: Tensor) -> None:
            cos, sin, cu_seqlens = turn[0]
            q, k, v = value.unflatten(-1, (3, module.num_heads, -1)).unbind(1)
            q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
            current[:] = [Heads(q, k, v, cu_seqlens)]

        hook(module.register_forward_pre_hook, before)
        hook(module.qkv.register_forward_hook, split)

    def gathered(_module: nn.Module, args: tuple) -> tuple | None:
        heads, out, changed = current.pop(), args[0], None
        if on_heads:
            on_heads(path, heads)
        if f"{path}.pattern" in functions:
            if len(heads.q) != len(heads.k):
                raise UserError(
                    f"{path}.pattern can be edited in whole passes only, not token by token; edit heads"
                )
            weights = apply(f"{path}.pattern", pattern(heads))
            if weights is not None:
                v = heads.v.repeat_interleave(heads.q.shape[1] // heads.v.shape[1], dim=1)
                out = changed = torch.einsum("hqk,khd->qhd", weights.to(v.dtype), v).flatten(1)
        split_out = out.unflatten(-1, (heads.q.shape[1], -1))  # (T, H, D)
        if (new := apply(f"{path}.heads", split_out)) is not None:
            changed = new.flatten(1)
        return None if changed is None else (changed,)

    hook(projection.register_forward_pre_hook, gathered)
