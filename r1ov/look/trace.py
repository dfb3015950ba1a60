"""One pass through the model over a prompt and its completion, with what happened on the way kept to be read.

    trace = r1ov.trace(model, processor, messages)
    trace["model.layers.2.self_attn.pattern"]  # (H, T, T)

The completion is teacher-forced: what is read at a token is what the model held when it wrote the next one.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kernels import attention
from r1ov.data.messages import Messages
from r1ov.data.pack import continued
from r1ov.data.processor import Encoded, Processor
from r1ov.engine import generate
from r1ov.errors import UserError
from r1ov.look.points import check_point, pattern, points_of, reading_order, sequences, watching
from r1ov.model.config import Config
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.rope import text_angles
from r1ov.model.vision import layout

KEPT = ("pattern", "residual", "heads", "out")  # last words; of `pattern` q and k, from which it is made
CHUNK = 2**24  # logits held at once, 64 MB of float32


class Share(NamedTuple):
    """How a token's attention is divided, (layers, H) each; they add up to 1."""

    image: Tensor
    question: Tensor  # the rest of the prompt
    thought: Tensor  # the completion so far, this token included
    first: Tensor  # the first token, which many heads use as a sink


@dataclass(frozen=True, kw_only=True)
class Trace:
    """T tokens, of which the first `prompt_length` were given.

    Attributes:
        tokens: each token's text. token_ids: (T,). positions: (3, T) time, height, width.
        logprobs, entropy: (T,) nats, of each token given those before it; the first has none and is nan.
        cells: of each image the token index of every merged cell, (rows, columns).
        image_grid_thw: (N, 3) patches of each image.
    """

    tokens: list[str]
    token_ids: Tensor
    positions: Tensor
    prompt_length: int
    logprobs: Tensor
    entropy: Tensor
    cells: list[Tensor]
    image_grid_thw: Tensor | None
    values: dict[str, Tensor]  # by point
    points: tuple[str, ...]  # all that the model has
    model: Qwen2_5_VL | None = field(repr=False)  # for logits and lenses; None after loading
    encoded: Encoded | None = field(repr=False)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_layers(self) -> int:
        return sum(name.startswith("model.layers.") and name.endswith(".residual") for name in self.points)

    def __getitem__(self, point: str) -> Tensor:
        """The value at a point. Raises UserError for one that is not there, or was not kept."""
        path, _, word = point.rpartition(".")
        if point in self.values:
            return self.values[point]
        if point == "logits":
            with torch.no_grad():
                return self._model().logits(self["model.norm.out"])
        if word == "pattern" and f"{path}.q" in self.values:
            of = self.windows(path) if path.startswith("visual.") else torch.zeros_like(self.token_ids)
            return pattern(self[f"{path}.q"], self[f"{path}.k"], of, not path.startswith("visual."))
        check_point(point, self.points)
        raise UserError(f"{point} was not kept; trace again with keep={word!r} among the kept")

    def windows(self, path: str) -> Tensor:
        """(P,) the window, or the whole frame, of each patch in a block's attention."""
        config = self._model().config.vision
        _, _, *starts = layout(tuple(map(tuple, self.image_grid_thw.tolist())), config)
        is_whole = int(path.split(".")[2]) in config.fullatt_block_indexes
        order, _ = reading_order(self.image_grid_thw, config)
        return sequences(starts[is_whole])[order].to(self.token_ids.device)

    def lens(self, layer: int, tokens: Tensor | slice = slice(None)) -> Tensor:
        """(T, V) log-probs of the next token, had the model stopped before this layer (the logit lens).

        Args: layer: 0 for the embeddings, up to the number of layers, where it is the model's own answer.
            tokens: (n,) those that are asked about, for (n, V).
        """
        model, layers = self._model(), self.num_layers
        if not 0 <= layer <= layers:
            raise UserError(
                f"layer is {layer}; the model has layers 0 to {layers - 1}, and {layers} is its end"
            )
        with torch.no_grad():
            if layer == layers:
                states = self["model.norm.out"][tokens]
            else:
                states = model.model.norm(self[f"model.layers.{layer}.residual"][tokens])
            return model.logits(states).float().log_softmax(-1)

    def rows(self, tokens: int | Tensor | slice) -> Iterator[Tensor]:
        """Yields for each layer (H, n, T) where its heads look from some tokens; 0 for later tokens."""
        tokens = torch.tensor([tokens]) if isinstance(tokens, int) else tokens
        for layer in range(self.num_layers):
            q, k = (self[f"model.layers.{layer}.self_attn.{word}"] for word in "qk")
            yield pattern(q, k, torch.zeros_like(self.token_ids), True, tokens)

    def attention_to_picture(self, token: int, image: int = 0) -> tuple[Tensor, Share]:
        """(layers, H, rows, columns) attention from a token to each cell of an image, and all its shares."""
        if not self.cells:
            raise UserError("there is no image in this trace")
        weights = torch.stack([rows[:, 0] for rows in self.rows(token)])  # (layers, H, T)
        shares = [weights[..., group].sum(-1) for group in looked_at(self)]
        return weights[:, :, self.cells[image]], Share(*shares)

    def rivals(self, count: int = 5) -> tuple[Tensor, ...]:
        """The likeliest tokens at each place: ids (T, count), log-probs, and the rank (T,) of each token."""

        def ranked(logprobs: Tensor, target: Tensor) -> tuple[Tensor, ...]:
            top = logprobs.topk(count)
            return top.indices, top.values, (logprobs > logprobs.gather(1, target[:, None])).sum(-1)

        return each_token(self._model(), self["model.norm.out"], ranked, self.token_ids[1:])

    def save(self, path: str | Path) -> None:
        """Writes everything but the model to a safetensors file."""
        tensors = {f"value:{name}": value for name, value in self.values.items()}
        tensors |= {f"cells:{number:06}": cells for number, cells in enumerate(self.cells)}
        tensors |= {name: getattr(self, name) for name in _tensors() if getattr(self, name) is not None}
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        words = {name: getattr(self, name) for name in ("tokens", "points", "prompt_length")}
        save_file(tensors, path, {"words": json.dumps(words)})

    def _model(self) -> Qwen2_5_VL:
        if self.model is None:
            raise UserError("this needs the model: load_trace(path, model)")
        return self.model


def _tensors() -> list[str]:
    """The fields of a trace that are a tensor each."""
    return [one.name for one in fields(Trace) if one.type in (Tensor, Tensor | None)]


def load_trace(path: str | Path, model: Qwen2_5_VL | None = None) -> Trace:
    """Reads what `Trace.save` wrote. Args: model: the one that was traced; logits and lenses need it."""
    with safe_open(path, "pt") as file:
        words = json.loads(file.metadata()["words"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    return Trace(
        **words,
        **{name: tensors.get(name) for name in _tensors()},
        cells=[tensors[name] for name in sorted(tensors) if name.startswith("cells:")],
        values={
            name.removeprefix("value:"): one for name, one in tensors.items() if name.startswith("value:")
        },
        model=model,
        encoded=None,
    )


@torch.no_grad()
def trace(
    model: Qwen2_5_VL,
    processor: Processor,
    messages: Messages,
    completion: str | Sequence[int] | Tensor | None = None,
    keep: Sequence[str] = KEPT,
) -> Trace:
    """Runs the model once over a conversation and a completion, and keeps what its points held.

    Args:
        completion: a text, token ids, or None: the model's own greedy answer.
        keep: points, or the last words of those to keep. What is kept of a pattern is q and k.
    Raises: UserError for a conversation that cannot be read, and for an unknown word.
    """
    prompt = processor.with_pixels(processor.encode(messages, add_generation_prompt=True))
    if completion is None:
        completion = generate(model, processor, messages, temperature=0.0).token_ids
    if isinstance(completion, str):
        completion = processor.tokenizer.encode(completion, add_special_tokens=False).ids
    ids = torch.as_tensor(completion, dtype=torch.int64).cpu()
    encoded = continued(prompt, ids, labels=ids)
    return trace_encoded(model, processor, encoded, len(prompt), keep)


@torch.no_grad()
def trace_encoded(
    model: Qwen2_5_VL, processor: Processor, encoded: Encoded, prompt_length: int, keep: Sequence[str] = KEPT
) -> Trace:
    """`trace` of what is encoded already."""
    values = {}  # by point
    points = points_of(model)
    words = {name.rpartition(".")[2] for name in points}
    for one in keep:
        if one not in words:
            check_point(one, points)
    kept = {*keep, "model.norm.out", *(("q", "k") if "pattern" in keep else ())} - {"pattern", "logits"}
    functions = {
        name: lambda value, where: values.update({where.point: value.detach()})
        for name in points
        if {name, name.rpartition(".")[2]} & kept
    }
    batch = processor.pack([replace(encoded, labels=None)]).to(model.model.embed_tokens.weight.device)
    with watching(model, functions):
        model(**batch, then=lambda hidden, _weight: hidden)
    token_ids = batch["input_ids"]
    logprobs, entropy = each_token(model, values["model.norm.out"], chosen_and_entropy, token_ids[1:])
    return Trace(
        tokens=[processor.decode([token], skip_special_tokens=False) for token in token_ids.tolist()],
        token_ids=token_ids,
        positions=batch["position_ids"],
        prompt_length=prompt_length,
        logprobs=logprobs,
        entropy=entropy,
        cells=cells_of(token_ids, encoded.image_grid_thw, model.config),
        image_grid_thw=encoded.image_grid_thw,
        values=values,
        points=tuple(points),
        model=model,
        encoded=encoded,
    )


def cells_of(token_ids: Tensor, image_grid_thw: Tensor | None, config: Config) -> list[Tensor]:
    """Of each image the token index of every merged cell, (rows, columns)."""
    unit = config.vision.spatial_merge_size
    grids = [] if image_grid_thw is None else image_grid_thw.tolist()
    shapes = [(t * h // unit, w // unit) for t, h, w in grids]
    places = (token_ids == config.image_token_id).nonzero().squeeze(1)
    parts = places.split([rows * columns for rows, columns in shapes])
    return list(map(Tensor.view, parts, shapes))


def each_token(model: Qwen2_5_VL, states: Tensor, function: Callable, *others: Tensor) -> tuple[Tensor, ...]:
    """What a function makes of each token's log-probs, given those before it, as `in_chunks`.

    Args: states: (T, C) after the last norm. others: (T-1, ...).
    Returns: (T, ...) each; the first token has none: nan, or 0.
    """
    with torch.no_grad():
        whole = in_chunks(model, states[:-1], function, *others)
    nothing = [x.new_full((1, *x.shape[1:]), math.nan if x.is_floating_point() else 0) for x in whole]
    return tuple(map(torch.cat, zip(nothing, whole, strict=True)))


def in_chunks(model: Qwen2_5_VL, states: Tensor, function: Callable, *others: Tensor) -> list[Tensor]:
    """Calls function(log-probs (n, V), n rows of the others), which gives tensors (n, ...), for all."""
    size = max(1, CHUNK // model.config.text.vocab_size)
    parts = zip(*(x.split(size) for x in (states, *others)), strict=True)
    found = [function(model.logits(x).float().log_softmax(-1), *rest) for x, *rest in parts]
    return [torch.cat(values) for values in zip(*found, strict=True)]


def chosen_and_entropy(logprobs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    chosen = logprobs.gather(1, targets[:, None]).squeeze(1)
    return chosen, -(logprobs.exp() * logprobs.clamp(min=-1e30)).sum(-1)  # clamped, for 0 log 0 is 0


def looked_at(traced: Trace) -> list[Tensor]:
    """The tokens of each field of `Share`, as masks (T,)."""
    places = torch.arange(len(traced), device=traced.token_ids.device)
    is_image = torch.zeros_like(places, dtype=torch.bool)
    for cells in traced.cells:
        is_image[cells] = True
    rest, given = places > 0, places < traced.prompt_length
    return [is_image & rest, given & ~is_image & rest, ~given & rest, ~rest]


def resumed(traced: Trace, states: Tensor, layer: int = 0) -> Tensor:
    """(copies, n) log-probs of the completion's tokens, had `layer` been entered by other states.

    Args: states: (copies, T, C), as the layer's residual with something changed; they run side by side.
    """
    model, (count, length, _) = traced.model, states.shape
    cu_seqlens = torch.arange(count + 1, dtype=torch.int32, device=states.device) * length

    def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, cu_seqlens)

    text, x = model.config.text, states.flatten(0, 1)
    angles = text_angles(traced.positions, text.head_dim, text.rope_theta, text.mrope_section)
    cos, sin = (one.to(x.dtype).repeat(count, *[1] * (one.ndim - 1)) for one in angles)
    for one in model.model.layers[layer:]:
        x = one(x, cos, sin, attend)
    written = x.unflatten(0, (count, length))[:, traced.prompt_length - 1 : -1].flatten(0, 1)
    targets = traced.token_ids[traced.prompt_length :].repeat(count)
    logprobs, _ = in_chunks(model, model.model.norm(written), chosen_and_entropy, targets)
    return logprobs.unflatten(0, (count, -1))
