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
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from r1ov.data.playground import Sample, sample
from r1ov.data.playground.scene import COLOURS, SHAPES, SIZE
from r1ov.data.processor import Processor
from r1ov.errors import UserError
from r1ov.evaluate.statistics import interval
from r1ov.look.points import Where, watching
from r1ov.look.trace import Trace, answers, embedded, trace
from r1ov.model.model import Qwen2_5_VL

NAMED = re.compile(rf"(?:\b([a-d][1-4]) )?\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")
FAMILIES = ("counting", "spatial", "locate")
METHODS = (
    "attention, mean of all heads",
    "attention, best head",
    "attention rollout",
    "gradient x input",
    "blanking",
)


@dataclass(frozen=True)
class Mention:
    """Words of a thought that name one object."""

    tokens: list[int]  # their places in the trace
    cells: list[int]  # where the object is, row * columns + column
    scene: int


def mentions(traced: Trace, item: Sample, scene: int) -> list[Mention]:
    """The words that name exactly one object of the scene; ambiguous and mistaken ones are left out."""
    objects = json.loads(item.description)["objects"]
    rows, columns = traced.cells[0].shape
    starts, text = [], ""
    for token in traced.tokens[traced.prompt_length :]:
        starts.append(len(text))
        text += token
    found = []
    for match in NAMED.finditer(text):
        cell, *pair = match.groups()
        named = [
            one for one in objects if [one["colour"], one["shape"]] == pair and cell in (None, one["cell"])
        ]
        if len(named) == 1:
            ends = [*starts[1:], len(text)]
            places = zip(starts, ends, strict=True)
            tokens = [
                i for i, (begin, end) in enumerate(places) if end > match.start(2) and begin < match.end(3)
            ]
            covered = covered_cells(named[0]["box"], rows, columns)
            found.append(Mention([traced.prompt_length + i for i in tokens], covered, scene))
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


def rollout(traced: Trace, layers: int) -> Tensor:
    """(T, T) attention through all layers: each one's mean over the heads, half of it the residual."""
    whole = torch.eye(len(traced))
    for layer in range(layers):
        weights = traced[f"model.layers.{layer}.self_attn.pattern"].mean(0)
        whole = (weights + torch.eye(len(traced))) / 2 @ whole
    return whole


def gradients(
    model: Qwen2_5_VL, processor: Processor, traced: Trace, found: Sequence[Mention]
) -> list[Tensor]:
    """For each mention (cells,): gradient of its words' log-prob times input, at each cell's embedding."""
    kept: list[Tensor] = []

    def keep(value: Tensor, _where: Where) -> Tensor:
        kept.append(value.detach().requires_grad_())
        return kept[0]

    batch = processor.pack([replace(traced.encoded, labels=None)])
    with torch.enable_grad(), watching(model, {"visual.merger.out": keep}):
        logprobs = model(**batch)[:-1].log_softmax(-1).gather(1, traced.token_ids[1:, None]).squeeze(1)
        maps = []
        for one in found:
            words = logprobs[[token - 1 for token in one.tokens]].sum()
            (grad,) = torch.autograd.grad(words, kept[0], retain_graph=True)
            maps.append((grad * kept[0].detach()).sum(-1))
    return maps


def blanked(processor: Processor, traced: Trace, regions: Sequence[Tensor], per_pass: int = 16) -> Tensor:
    """(regions, T) how much each token's log-prob falls when a region of the image becomes its mean cell.

    Args: regions: token indices of cells, as in `traced.cells`. per_pass: regions blanked side by side.
    """
    plain = embedded(processor, traced)  # (T, C)
    every_cell = torch.cat([cells.flatten() for cells in traced.cells])
    scored = []
    for first in range(0, len(regions), per_pass):
        own = regions[first : first + per_pass]
        copies = plain.repeat(len(own), 1, 1)
        for copy, region in zip(copies, own, strict=True):
            copy[region] = plain[every_cell].mean(0)
        scored.append(answers(traced, copies))
    return traced.logprobs - torch.cat(scored)


def maps_of(
    model: Qwen2_5_VL, processor: Processor, traced: Trace, found: Sequence[Mention]
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """For each mention the maps of all heads (layers, H, cells), and the other methods' maps (cells,)."""
    cells = traced.cells[0].flatten()
    whole, falls = rollout(traced, len(model.model.layers)), blanked(processor, traced, list(cells.split(1)))
    for one, gradient in zip(found, gradients(model, processor, traced, found), strict=True):
        written = slice(one.tokens[0] - 1, one.tokens[-1])  # where the words were decided
        heads = torch.stack([rows[:, :, cells].mean(1) for rows in traced.rows(written)])
        yield (
            heads,
            {
                METHODS[0]: heads.mean((0, 1)),
                METHODS[2]: torch.stack([whole[token - 1, cells] for token in one.tokens]).mean(0),
                METHODS[3]: gradient,
                METHODS[4]: falls[:, one.tokens].sum(1),
            },
        )


def look_at(
    model: Qwen2_5_VL, processor: Processor, count: int, split: str, seed: int, swapped: bool = False
) -> tuple[list[Mention], Tensor, dict[str, Tensor]]:
    """Answers `count` scenes and maps all their mentions.

    Args: swapped: the maps are of the same tokens before the image of the scene that came before.
    Returns: n mentions; (n, layers, H, cells) maps of heads; the other methods' maps (n, cells).
    """
    every: list[Mention] = []
    heads: list[Tensor] = []
    others: dict[str, list[Tensor]] = {}
    index, scene, former = -1, 0, None
    with tqdm(total=count, unit=" scenes", desc="swapped" if swapped else f"seed {seed}", leave=False) as bar:
        while scene < count:
            index += 1
            item = sample(split, index, seed)
            if item.family not in FAMILIES:
                continue
            traced = trace(model, processor, asked(item, item))
            found = mentions(traced, item, scene)
            if swapped and former is not None:
                completion = traced.token_ids[traced.prompt_length :]
                traced = trace(model, processor, asked(item, former), completion)
            if found and (former is not None or not swapped):
                every += found
                for own, rest in maps_of(model, processor, traced, found):
                    heads.append(own)
                    for name, values in rest.items():
                        others.setdefault(name, []).append(values)
            former, scene = item, scene + 1
            bar.update()
    if not every:
        raise UserError(
            f"none of {count} thoughts names an object of its scene; more --samples, or another --model"
        )
    return every, torch.stack(heads), {name: torch.stack(values) for name, values in others.items()}


def asked(item: Sample, image_of: Sample) -> list[dict]:
    parts = [{"type": "image", "image": image_of.image}, {"type": "text", "text": item.question}]
    return [{"role": "user", "content": parts}]


def hits(maps: Tensor, cells: Sequence[Sequence[int]]) -> list[float]:
    """1.0 for each map (n, cells) whose peak lies on its object."""
    return [float(peak in own) for peak, own in zip(maps.argmax(-1).tolist(), cells, strict=True)]


def table(
    model: Qwen2_5_VL, processor: Processor, samples: int, split: str = "test", seed: int = 0
) -> list[dict]:
    """A row for each method: hits, their 95% interval by scene, and the two controls."""
    chosen, chosen_heads, _ = look_at(model, processor, max(20, samples // 4), split, seed + 1)
    truth = [one.cells for one in chosen]
    layers, count = chosen_heads.shape[1:3]
    rates = {(i, j): sum(hits(chosen_heads[:, i, j], truth)) for i in range(layers) for j in range(count)}
    layer, head = max(rates, key=rates.get)
    found, heads, others = look_at(model, processor, samples, split, seed)
    swapped, swapped_heads, swapped_others = look_at(model, processor, samples, split, seed, swapped=True)
    others[METHODS[1]], swapped_others[METHODS[1]] = heads[:, layer, head], swapped_heads[:, layer, head]
    truth, shuffled = [one.cells for one in found], [one.cells for one in found]
    random.Random(seed).shuffle(shuffled)
    rows = []
    for name in METHODS:
        right = hits(others[name], truth)
        low, high = interval(right, [one.scene for one in found])
        rows.append(
            {
                "method": name + (f" (layer {layer}, head {head})" if name == METHODS[1] else ""),
                "words": len(found),
                "hits": sum(right) / len(right),
                "low": low,
                "high": high,
                "shuffled": sum(hits(others[name], shuffled)) / len(right),
                "swapped": sum(hits(swapped_others[name], [one.cells for one in swapped])) / len(swapped),
            }
        )
    return rows
