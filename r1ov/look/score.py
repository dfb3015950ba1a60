"""Scores of attribution: how often does a map of "where it looked" point at the object that a word names?

The playground knows where everything is. For each pair of words in the model's own thought that names an
object of the scene ("blue triangle"), each method gives a map over the image's cells, and hits if the map's
peak lies on that object. Maps are read at the tokens that wrote the words.

    attention, mean of all heads     attention, best head (chosen on other scenes)
    attention rollout                Abnar and Zuidema 2020 (arXiv 2005.00928): layers multiplied, residual in
    gradient x input                 of the words' log-prob, at the cells' embeddings
    blanking                         how much the words' log-prob falls when a cell becomes the mean one
"""

import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor
from tqdm import tqdm

from r1ov.data.playground import Sample, conversation, sample
from r1ov.data.playground.scene import COLOURS, SHAPES, SIZE
from r1ov.data.processor import Processor
from r1ov.errors import UserError
from r1ov.evaluate.metrics import interval
from r1ov.look.trace import Trace, resumed, trace
from r1ov.model.model import Qwen2_5_VL

NAMED = re.compile(rf"(?:\b([a-d][1-4]) )?\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")
FAMILIES = ("counting", "spatial", "locate")
KEEP = ("pattern", "model.layers.0.residual")


@dataclass(frozen=True)
class Mention:
    """Words of a thought that name one object."""

    tokens: list[int]  # their places in the completion
    cells: list[int]  # where the object is, row * columns + column


def mentions(traced: Trace, item: Sample) -> list[Mention]:
    """The words that name exactly one object of the scene; ambiguous and mistaken ones are left out."""
    objects = json.loads(item.description)["objects"]
    spans, text = [], ""
    for token in traced.tokens[traced.prompt_length :]:
        spans.append((len(text), len(text) + len(token)))
        text += token
    found = []
    for match in NAMED.finditer(text):
        cell, colour, shape = match.groups()
        named = [
            one["box"]
            for one in objects
            if (one["colour"], one["shape"]) == (colour, shape) and cell in (None, one["cell"])
        ]
        if len(named) == 1:
            first, last = match.start(2), match.end(3)
            tokens = [place for place, (begin, end) in enumerate(spans) if end > first and begin < last]
            found.append(Mention(tokens, covered_cells(named[0], *traced.cells[0].shape)))
    return found


def covered_cells(box: Sequence[int], rows: int, columns: int) -> list[int]:
    """The cells on which a box mostly lies: at least half as much as on the cell that it covers most."""
    x1, y1, x2, y2 = box
    width, height = SIZE / columns, SIZE / rows
    areas = [
        max(0.0, min(x2, (column + 1) * width) - max(x1, column * width))
        * max(0.0, min(y2, (row + 1) * height) - max(y1, row * height))
        for row in range(rows)
        for column in range(columns)
    ]
    return [cell for cell, area in enumerate(areas) if area and area >= max(areas) / 2]


def heads_of(traced: Trace, mention: Mention) -> Tensor:
    """(layers, H, cells) where each head looked when the words were written: at the tokens before them."""
    first, last = (traced.prompt_length + mention.tokens[place] for place in (0, -1))
    cells = traced.cells[0].flatten()
    return torch.stack([rows[:, :, cells].mean(1) for rows in traced.rows(slice(first - 1, last))])


def rollout(traced: Trace) -> Tensor:
    """(n, cells) from each word's writing, through all layers: mean heads, and as much residual."""
    whole = itself = torch.eye(len(traced))
    for rows in traced.rows(slice(None)):
        whole = (rows.mean(0) + itself) / 2 @ whole
    return whole[traced.prompt_length - 1 : -1, traced.cells[0].flatten()]


def gradients(traced: Trace, found: Sequence[Mention]) -> Iterator[Tensor]:
    """For each mention (cells,): gradient of its words' log-prob times input, at each cell's embedding."""
    states = traced["model.layers.0.residual"].clone().requires_grad_()
    logprobs = resumed(traced, states[None])[0]
    for one in found:
        (grad,) = torch.autograd.grad(logprobs[one.tokens].sum(), states, retain_graph=True)
        yield (grad * states.detach()).sum(-1)[traced.cells[0].flatten()]


@torch.no_grad()
def blanked(traced: Trace, regions: Sequence[Tensor], tokens_per_pass: int = 1024) -> Tensor:
    """(regions, n) how much each word's log-prob falls when a region of the image becomes its mean cell.

    Args: regions: token indices of cells, as in `traced.cells`.
    """
    plain = traced["model.layers.0.residual"]  # (T, C)
    mean_cell = plain[torch.cat([cells.flatten() for cells in traced.cells])].mean(0)
    side_by_side, scored = max(1, tokens_per_pass // len(traced)), []
    for first in range(0, len(regions), side_by_side):
        own = regions[first : first + side_by_side]
        copies = torch.stack([plain.index_put((region,), mean_cell) for region in own])
        scored.append(resumed(traced, copies))
    return traced.logprobs[traced.prompt_length :] - torch.cat(scored)


def maps_of(traced: Trace, found: Sequence[Mention], best: int) -> Iterator[dict[str, Tensor]]:
    """For each mention every method's map (cells,). Args: best: layer * heads + head."""
    through, falls = rollout(traced), blanked(traced, list(traced.cells[0].flatten().split(1)))
    for one, gradient in zip(found, gradients(traced, found), strict=True):
        heads = heads_of(traced, one)
        yield {
            "attention, mean of all heads": heads.mean((0, 1)),
            f"attention, best head (layer {best // heads.shape[1]}, head {best % heads.shape[1]})": (
                heads.flatten(0, 1)[best]
            ),
            "attention rollout": through[one.tokens].mean(0),
            "gradient x input": gradient,
            "blanking": falls[:, one.tokens].sum(1),
        }


def scenes(
    model: Qwen2_5_VL, processor: Processor, count: int, split: str, seed: int
) -> Iterator[tuple[int, Trace, list[Mention], Trace | None]]:
    """Yields each scene's number, trace and mentions, and the trace of the same tokens before another image,
    that of the scene that came before.
    """
    index, former = -1, None
    for scene in tqdm(range(count), unit=" scenes", desc=f"seed {seed}", leave=False):
        while (item := sample(split, index := index + 1, seed)).family not in FAMILIES:
            pass
        traced = trace(model, processor, conversation(item.image, item.question, None, ""), keep=KEEP)
        words = traced.token_ids[traced.prompt_length :]
        swapped = None
        if former:
            other = conversation(former.image, item.question, None, "")
            swapped = trace(model, processor, other, words, KEEP)
        yield scene, traced, mentions(traced, item), swapped
        former = item


def peaks_of(traced: Trace, found: Sequence[Mention], best: int) -> list[dict[str, int]]:
    """For each mention the cell of every method's peak."""
    return [{name: int(one.argmax()) for name, one in maps.items()} for maps in maps_of(traced, found, best)]


def table(
    model: Qwen2_5_VL, processor: Processor, samples: int, split: str = "test", seed: int = 0
) -> list[dict]:
    """A row for each method: hits, their 95% interval by scene, and the two controls."""
    text = model.config.text
    votes = torch.zeros(text.num_hidden_layers * text.num_attention_heads)
    for _, traced, found, _ in scenes(model, processor, max(2, samples // 4), split, seed + 1):
        for one in found:
            votes += torch.isin(heads_of(traced, one).argmax(-1), torch.tensor(one.cells)).flatten()
    best = int(votes.argmax())
    seen = []  # of each mention: scene, cells, peaks, and the peaks before the other image
    for scene, traced, found, swapped in scenes(model, processor, samples, split, seed):
        if found:
            own = peaks_of(traced, found, best)
            others = peaks_of(swapped, found, best) if swapped else [None] * len(found)
            seen += [(scene, one.cells, *both) for one, *both in zip(found, own, others, strict=True)]
    if not seen:
        raise UserError(
            f"none of {samples} thoughts names an object of its scene; more --samples, or another --model"
        )
    number, truth, peaks, others = zip(*seen, strict=True)
    shuffled = list(truth)
    random.Random(seed).shuffle(shuffled)
    rows = []
    for name in peaks[0]:
        right = [float(one[name] in cells) for one, cells in zip(peaks, truth, strict=True)]
        wrong = [one[name] in cells for one, cells in zip(peaks, shuffled, strict=True)]
        swapped = [one[name] in cells for one, cells in zip(others, truth, strict=True) if one]
        rows.append(
            {
                "method": name,
                "words": len(right),
                "peak on the object": fmean(right),
                "95% interval": interval(right, number),
                "shuffled truth": fmean(wrong),
                "swapped image": fmean(swapped or [math.nan]),
            }
        )
    return rows
