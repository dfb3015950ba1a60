"""Points inside the model: named places whose values can be read and overwritten, in any pass through it.

A point is the checkpoint's own module path and a last word:

    model.layers.2.residual           (T, C) enters the layer
    model.layers.2.self_attn.q, .k    (T, H | K, D) queries and keys, turned to their positions
    model.layers.2.self_attn.pattern  (H, T, T) how much each token (row) looks at each token (column)
    model.layers.2.self_attn.heads    (T, H, D) what each head gathered, before they are mixed
    model.layers.2.self_attn.out      (T, C) is added to the residual, and so is
    model.layers.2.mlp.out            (T, C)
    visual.blocks.1. ...              the same, with attn for self_attn and P patches for T tokens
    visual.merger.out                 (M, C) merged cells
    model.norm.out                    (T, C) goes to the head
    logits                            (T, V); a training loss makes none: edit model.norm.out there

Patches and cells come in the image's reading order, not in the encoder's own (by windows). Points are hooks
on the model's own modules: without any, nothing is in the way. TransformerLens calls
`residual` hook_resid_pre, `heads` hook_z, and `pattern` by the same name.
"""

import difflib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from r1ov.errors import UserError
from r1ov.model.config import VisionConfig
from r1ov.model.language import DecoderLayer, SelfAttention
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.vision import VisionAttention, VisionBlock, layout


class Where(NamedTuple):
    """What a function at a point is told beside the value."""

    point: str
    position_ids: Tensor | None  # (3, T) of the tokens; None in the vision encoder


Function = Callable[[Any, Where], Any]  # value -> value, or None to leave it as it is
ATTENTION = ("q", "k", "pattern", "heads")  # last words of the points within an attention
LAST_WORDS = {  # module's class -> last words of its points
    DecoderLayer: ("residual",),
    VisionBlock: ("residual",),
    SelfAttention: (*ATTENTION, "out"),
    VisionAttention: (*ATTENTION, "out"),
}
OUT = ("mlp", "merger", "norm", "embed_tokens")  # modules with an `out` alone


def points_of(model: Qwen2_5_VL) -> dict[str, nn.Module]:
    """Every point of the model, with the module it belongs to, in the order in which they are computed."""
    points = {}
    for name, module in model.named_modules():
        words = LAST_WORDS.get(type(module), ())
        if name.rpartition(".")[2] in OUT and name != "visual.merger.mlp":
            words = ("out",)
        points |= {f"{name}.{word}": module for word in words}
    return points | {"logits": model}


def check_point(name: str, points: Collection[str]) -> None:
    """Raises UserError, with the nearest names, for a point that is not there."""
    if name not in points:
        near = difflib.get_close_matches(name, points, n=3, cutoff=0.3)
        raise UserError(f"there is no point {name!r}; the nearest are {', '.join(near) or ', '.join(points)}")


def reading_order(image_grid_thw: Tensor, config: VisionConfig) -> tuple[Tensor, Tensor]:
    """Where in the encoder's order the patches (P,) and the cells (M,) of the reading order are."""
    grids = tuple(map(tuple, image_grid_thw.tolist()))
    positions, order, _, _ = layout(grids, config)
    unit = config.spatial_merge_size**2
    frames = [(h * w, w) for t, h, w in grids for _ in range(t)]
    sizes, widths = torch.tensor(frames).T
    begins = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    row, column = positions.unflatten(0, (-1, unit))[order].flatten(0, 1).T  # (P,) each
    return (begins + row * widths.repeat_interleave(sizes) + column).argsort(), order.argsort()


def sequences(cu_seqlens: Tensor) -> Tensor:
    """(T,) the number of the sequence, or window, in which each token lies."""
    return torch.arange(len(cu_seqlens) - 1, device=cu_seqlens.device).repeat_interleave(cu_seqlens.diff())


def pattern(q: Tensor, k: Tensor, of: Tensor, causal: bool, rows: slice | Tensor = slice(None)) -> Tensor:
    """The attention weights of some rows, computed by the definition; (H, rows, T) float32.

    Args: q, k: (T, H | K, D). of: (T,) the sequence of each token, which sees its own alone.
    """
    places = torch.arange(len(k), device=k.device)
    seen = of[rows][:, None] == of
    if causal:
        seen &= places <= places[rows][:, None]
    q, k = q[rows].float(), k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).float()
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[2] ** -0.5
    return scores.masked_fill(~seen, float("-inf")).softmax(-1)


@contextmanager
def watching(model: Qwen2_5_VL, functions: Mapping[str, Function]) -> Iterator[None]:
    """Within it, every pass through the model gives each point's value to its function: `r1ov.edit`.

    Args:   functions: point -> function(value, where); it returns the value to go on with, or None.
    Raises: UserError for an unknown point.
    """
    points = points_of(model)
    for name in functions:
        check_point(name, points)
    # Of the pass under way: positions, the sequences of a plain one, and the images' reading order.
    passing = {}

    def changed(name: str, value: Tensor) -> Tensor:
        """What a point's function makes of a value, which is in reading order."""
        positions = None if name.startswith("visual.") else passing.get("position_ids")
        new = functions[name](value, Where(name, positions))
        if new is None:
            return value
        if new.shape != value.shape:
            raise UserError(f"the edit of {name} returns {tuple(new.shape)}; expected {tuple(value.shape)}")
        return new

    def apply(name: str, value: Tensor) -> Tensor:
        if name not in functions:
            return value
        if not name.startswith("visual."):
            return changed(name, value)
        order = passing["orders"][name == "visual.merger.out"].to(value.device)
        return changed(name, value[order])[order.argsort()]

    def attended(path: str, module: nn.Module, args: tuple) -> tuple:
        """The arguments of an attention module, with its points around the attention that it is given."""
        x, cos, sin, attend, *rest = args

        def attending(*given: Any) -> Tensor:
            *layer, q, k, v = given
            q, k = apply(f"{path}.q", q), apply(f"{path}.k", k)
            if f"{path}.pattern" in functions:
                out = by_pattern(path, attend, q, k, v)
            else:
                out = attend(*layer, q, k, v)
            return apply(f"{path}.heads", out)

        return (x, cos, sin, attending, *rest)

    def by_pattern(path: str, attend: Callable, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What heads gather by a pattern that goes through its function."""
        is_vision = path.startswith("visual.")
        of = sequences(attend.keywords["cu_seqlens"]) if is_vision else passing.get("sequences")
        if of is None or len(q) != len(of):
            raise UserError(f"{path}.pattern is there in plain passes only, not in decoding; edit heads")
        order = passing["orders"][0].to(q.device) if is_vision else torch.arange(len(q), device=q.device)
        q, k, v, of = (one.to(q.device)[order] for one in (q, k, v, of))
        weights = changed(f"{path}.pattern", pattern(q, k, of, causal=not is_vision)).to(v.dtype)
        v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        return torch.einsum("hqk,khd->qhd", weights, v)[order.argsort()]

    def note_pass(_module: nn.Module, args: tuple, given: dict) -> None:
        given = inspect.signature(model.forward).bind(*args, **given).arguments
        passing["sequences"] = sequences(given["cu_seqlens"]) if given.get("prefixes") is None else None

    with ExitStack() as stack:
        hook = stack.enter_context
        hook(model.register_forward_pre_hook(note_pass, with_kwargs=True))
        hook(model.register_forward_hook(lambda *_: passing.update(sequences=None)))
        hook(model.model.register_forward_pre_hook(lambda _m, args: passing.update(position_ids=args[1])))
        hook(
            model.visual.register_forward_pre_hook(
                lambda _m, args: passing.update(orders=reading_order(args[1], model.config.vision))
            )
        )
        watched = {}  # attention modules, once for all of their points
        for name in functions:
            path, _, word = name.rpartition(".")
            if word == "residual":
                before = lambda _m, args, name=name: (apply(name, args[0]), *args[1:])  # noqa: E731
                hook(points[name].register_forward_pre_hook(before))
            elif word == "out":
                hook(points[name].register_forward_hook(lambda _m, _a, value, name=name: apply(name, value)))
            elif word in ATTENTION:
                watched[path] = points[name]
        for path, module in watched.items():
            hook(module.register_forward_pre_hook(partial(attended, path)))
        if "logits" in functions:
            plain = model.logits  # the engine asks for them too, without the model's own forward
            model.logits = lambda hidden: apply("logits", plain(hidden))
            stack.callback(delattr, model, "logits")
        yield
