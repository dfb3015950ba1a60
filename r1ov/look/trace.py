"""One pass through the model over a prompt and its completion, with what happened on the way kept to be read.

    trace = r1ov.trace(model, processor, messages)
    trace["model.layers.2.self_attn.pattern"]  # (H, T, T)

The completion is teacher-forced: what is read at a token is what the model held when it wrote the next one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kernels import attention
from kernels.logprobs import definition
from r1ov.data.messages import Messages
from r1ov.data.processor import Encoded, Processor
from r1ov.engine import generate
from r1ov.errors import UserError
from r1ov.look.points import Heads, check_point, pattern, points_of, reading_order, watching
from r1ov.model.model import Qwen2_5_VL

KEPT = (
    "pattern",
    "residual",
    "heads",
    "out",
)  # last words; `pattern` keeps queries and keys, from which it is made
CHUNK = 2**25  # logits held at once, 128 MB of float32


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
    heads: dict[str, Heads]  # by attention module
    points: tuple[str, ...]  # all that the model has
    model: Qwen2_5_VL | None = field(repr=False)  # for logits and lenses; None after loading
    encoded: Encoded | None = field(repr=False)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, point: str) -> Tensor:
        """The value at a point. Raises UserError for one that is not there, or was not kept."""
        path, _, word = point.rpartition(".")
        if point in self.values:
            return self.values[point]
        if point == "logits":
            return self._head(self["model.norm.out"])
        if word == "pattern" and path in self.heads:
            weights = pattern(self.heads[path])
            if path.startswith("visual."):
                order, _ = reading_order(self.image_grid_thw, self._model().config.vision)
                weights = weights[:, order][:, :, order]
            return weights
        check_point(point, self.points)
        raise UserError(f"{point} was not kept; trace again with keep={word!r} among the kept")

    def lens(self, layer: int, tokens: Tensor | slice = slice(None)) -> Tensor:
        """(T, V) log-probs of the next token, had the model stopped before this layer (the logit lens).

        Args: layer: 0 for the embeddings, up to the number of layers, where it is the model's own answer.
            tokens: (n,) those that are asked about, for (n, V).
        """
        layers = len(self._model().model.layers)
        if not 0 <= layer <= layers:
            raise UserError(
                f"layer is {layer}; the model has layers 0 to {layers - 1}, and {layers} is its end"
            )
        with torch.no_grad():
            if layer == layers:
                states = self["model.norm.out"][tokens]
            else:
                states = self.model.model.norm(self[f"model.layers.{layer}.residual"][tokens])
            return self._head(states).float().log_softmax(-1)

    def rows(self, tokens: int | slice) -> Iterator[Tensor]:
        """Yields for each layer (H, n, T) where its heads look from some tokens; 0 for later tokens."""
        tokens = tokens if isinstance(tokens, slice) else slice(tokens, tokens + 1 or None)
        for layer in range(sum(name.startswith("model.") for name in self.heads)):
            yield pattern(self.heads[f"model.layers.{layer}.self_attn"], tokens)

    def attention_to_picture(self, token: int, image: int = 0) -> tuple[Tensor, Share]:
        """(layers, H, rows, columns) attention from a token to each cell of an image, and all its shares."""
        if not self.cells:
            raise UserError("there is no image in this trace")
        weights = torch.stack([rows[:, 0] for rows in self.rows(token)])  # (layers, H, T)
        return weights[:, :, self.cells[image]], Share(
            *(weights[..., group].sum(-1) for group in looked_at(self))
        )

    def rivals(self, count: int = 5) -> tuple[Tensor, Tensor, Tensor]:
        """The likeliest tokens at each place: ids (T, count), log-probs, and the rank (T,) of each token."""
        ids, values, ranks = (
            [self.token_ids.new_zeros(1, count)],
            [torch.full((1, count), math.nan)],
            [self.token_ids.new_zeros(1)],
        )
        states, target = self["model.norm.out"][:-1], self.token_ids[1:]
        for part in torch.arange(len(target)).split(max(1, CHUNK // self._model().head_weight.shape[0])):
            logprobs = self._head(states[part]).float().log_softmax(-1)
            top = logprobs.topk(count, dim=-1)
            own = logprobs.gather(1, target[part, None])
            ids.append(top.indices)
            values.append(top.values.cpu())
            ranks.append((logprobs > own).sum(-1))
        return torch.cat(ids), torch.cat(values), torch.cat(ranks)

    def save(self, path: str | Path) -> None:
        """Writes everything but the model to a safetensors file."""
        tensors = {f"value:{name}": value for name, value in self.values.items()}
        for name, heads in self.heads.items():
            tensors |= {
                f"heads:{name}:{key}": part for key, part in heads._asdict().items() if part is not None
            }
        for name in ("token_ids", "positions", "logprobs", "entropy", "image_grid_thw"):
            if getattr(self, name) is not None:
                tensors[name] = getattr(self, name)
        tensors |= {f"cells:{number}": cells for number, cells in enumerate(self.cells)}
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        metadata = {
            "prompt_length": str(self.prompt_length),
            "tokens": "\0".join(self.tokens),
            "points": "\0".join(self.points),
        }
        save_file(tensors, path, metadata)

    def _head(self, states: Tensor) -> Tensor:
        with torch.no_grad():
            return self._model().logits(states)

    def _model(self) -> Qwen2_5_VL:
        if self.model is None:
            raise UserError("this needs the model: load_trace(path, model)")
        return self.model


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
        keep: last words of the points to keep. What is kept of a pattern is q and k.
    Raises: UserError for a conversation that cannot be read, and for an unknown word.
    """
    if unknown := set(keep) - {*KEPT, "logits"}:
        raise UserError(f"keep: there is no {sorted(unknown)[0]!r}; there are {', '.join(KEPT)}")
    prompt = processor.with_pixels(processor.encode(messages, add_generation_prompt=True))
    if completion is None:
        completion = generate(model, processor, messages, temperature=0.0).token_ids
    if isinstance(completion, str):
        completion = processor.tokenizer.encode(completion, add_special_tokens=False).ids
    encoded = continued(prompt, torch.as_tensor(completion, dtype=torch.int64))
    return trace_encoded(model, processor, encoded, len(prompt), keep)


def trace_encoded(
    model: Qwen2_5_VL, processor: Processor, encoded: Encoded, prompt_length: int, keep: Sequence[str] = KEPT
) -> Trace:
    """`trace` of what is encoded already."""
    values: dict[str, Tensor] = {}
    heads: dict[str, Heads] = {}
    points = points_of(model)
    wanted = [
        name
        for name in points
        if name.rpartition(".")[2] in keep and not name.endswith((".pattern", "logits"))
    ]
    functions = {
        name: lambda value, where: values.update({where.point: value.detach()})
        for name in [*wanted, "model.norm.out"]
    }
    device = model.head_weight.device
    batch = processor.pack([replace(encoded, labels=None)]).to(device)
    with torch.no_grad(), watching(model, functions, heads.__setitem__ if "pattern" in keep else None):
        model(**batch, then=lambda hidden, _weight: hidden)
    token_ids = batch["input_ids"]
    config = processor.config
    places, cells, done = (token_ids == config.image_token_id).nonzero().squeeze(1), [], 0
    for t, h, w in [] if encoded.image_grid_thw is None else encoded.image_grid_thw.tolist():
        rows, columns = t * h // config.vision.spatial_merge_size, w // config.vision.spatial_merge_size
        cells.append(places[done : done + rows * columns].view(rows, columns))
        done += rows * columns
    logprobs, entropy = score_tokens(model, values["model.norm.out"], token_ids)
    return Trace(
        tokens=[processor.decode([token], skip_special_tokens=False) for token in token_ids.tolist()],
        token_ids=token_ids,
        positions=batch["position_ids"],
        prompt_length=prompt_length,
        logprobs=logprobs,
        entropy=entropy,
        cells=cells,
        image_grid_thw=encoded.image_grid_thw,
        values=values,
        heads=heads,
        points=tuple(points),
        model=model,
        encoded=encoded,
    )


def continued(prompt: Encoded, completion: Tensor) -> Encoded:
    """Prompt and completion (n,) as one sequence."""
    first = int(prompt.position_ids.max()) + 1
    positions = torch.arange(first, first + len(completion)).expand(3, -1)
    return replace(
        prompt,
        input_ids=torch.cat((prompt.input_ids, completion)),
        position_ids=torch.cat((prompt.position_ids, positions), dim=1),
    )


def score_tokens(model: Qwen2_5_VL, states: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """(T,) log-probs of the tokens, and entropies of what might have been there; nan for the first."""
    targets = token_ids[1:]
    parts = torch.arange(len(targets)).split(max(1, CHUNK // model.head_weight.shape[0]))
    with torch.no_grad():
        scored = [
            definition(model.logits(states[:-1][part]), targets[part], 1.0, return_entropy=True)
            for part in parts
        ]
    nothing = torch.full((1,), math.nan, device=states.device)
    return tuple(torch.cat((nothing, *values)) for values in zip(*scored, strict=True))


def looked_at(traced: Trace) -> list[Tensor]:
    """The tokens of each field of `Share`, as masks (T,)."""
    places = torch.arange(len(traced), device=traced.token_ids.device)
    is_image = torch.zeros_like(places, dtype=torch.bool)
    for cells in traced.cells:
        is_image[cells] = True
    rest, given = places > 0, places < traced.prompt_length
    return [is_image & rest, given & ~is_image & rest, ~given & rest, ~rest]


@torch.no_grad()
def answers(traced: Trace, embeddings: Tensor) -> Tensor:
    """(copies, T) log-probs of the trace's tokens, had its tokens been embedded in other ways.

    Args: embeddings: (copies, T, C), as `embedded` with something changed; they run as one packed batch.
    """
    model, count = traced.model, len(embeddings)
    cu_seqlens = torch.arange(count + 1, dtype=torch.int32, device=embeddings.device) * len(traced)

    def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, cu_seqlens, causal=True)

    states = model.model(embeddings.flatten(0, 1), traced.positions.repeat(1, count), attend)
    return torch.stack([score_tokens(model, own, traced.token_ids)[0] for own in states.split(len(traced))])


@torch.no_grad()
def embedded(processor: Processor, traced: Trace) -> Tensor:
    """(T, C) what enters the language model: words and cells."""
    batch = processor.pack([replace(traced.encoded, labels=None)]).to(traced.token_ids.device)
    return traced.model.embed(*(batch.get(name) for name in ("input_ids", "pixel_values", "image_grid_thw")))


def load_trace(path: str | Path, model: Qwen2_5_VL | None = None) -> Trace:
    """Reads what `Trace.save` wrote. Args: model: the one that was traced; logits and lenses need it."""
    with safe_open(path, "pt") as file:
        metadata: dict[str, Any] = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    heads = {}
    for name in {name.split(":")[1] for name in tensors if name.startswith("heads:")}:
        heads[name] = Heads(*(tensors.get(f"heads:{name}:{key}") for key in Heads._fields))
    return Trace(
        tokens=metadata["tokens"].split("\0"),
        prompt_length=int(metadata["prompt_length"]),
        **{
            name: tensors.get(name)
            for name in ("token_ids", "positions", "logprobs", "entropy", "image_grid_thw")
        },
        cells=[
            tensors[f"cells:{number}"] for number in range(sum(name.startswith("cells:") for name in tensors))
        ],
        values={
            name.removeprefix("value:"): tensor
            for name, tensor in tensors.items()
            if name.startswith("value:")
        },
        heads=heads,
        points=tuple(metadata["points"].split("\0")),
        model=model,
        encoded=None,
    )
