"""One offline page that walks from pixel to answer with this image's own numbers (page.html draws it).

At Qwen2.5-VL-7B's shapes, with a 504 x 504 image (324 cells) and 300 words, in bfloat16: kept are 28 layers
of 651 tokens x (2 x 3584 + 512) numbers, 0.28 GB (with 2,000 words 1.1 GB); beside them a pass of 1,024
tokens (0.12 GB) or `CHUNK` logits in some copies (0.3 GB). Measured with one layer of this width in float32,
a vocabulary of 30,000, 4 blanked regions and passes of 2,048 tokens: 0.85 GB in all above the model. In the
page: mean maps 300 x 28 x 324 and eleven words' single heads 11 x 28 x 28 x 324, 2.7 and 2.8 MB, a third more
in base64, and 2 MB of other numbers and of the image: under 10 MB.
"""

import base64
import html
import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from r1ov.common.files import write_text
from r1ov.common.page import base64_image
from r1ov.data.image import ImageProcessor
from r1ov.data.messages import Messages
from r1ov.data.processor import Processor
from r1ov.errors import UserError
from r1ov.folder.pretrained import load
from r1ov.look.compare import compare
from r1ov.look.cost import cache_bytes, parts, times
from r1ov.look.edit import zero
from r1ov.look.points import Where, watching
from r1ov.look.score import blanked
from r1ov.look.trace import CHUNK, Trace, looked_at, resumed, trace
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.vision import layout
from r1ov.train.run.samples import question_of

PASSES = 64  # at most: regions that are blanked, heads that are silenced
ROOM = 3_000_000  # numbers of attention maps in the page, one byte each; of means, and of single heads
WORDS = ("residual", "self_attn.q", "self_attn.k")  # what the page needs of each layer


def write_page(
    path: Path,
    model: Qwen2_5_VL,
    processor: Processor,
    messages: Messages,
    name: str,
    versus: str | None = None,
    completion: str | Sequence[int] | None = None,
) -> Trace:
    """Writes the page of one conversation. Returns the trace that it shows.

    Args: name: the model's, for the title. versus: another model, asked about the same tokens. completion: a
        reply to read, as text or token ids; None: the model's own greedy answer.
    """
    layers = range(len(model.model.layers))
    keep = [f"model.layers.{layer}.{word}" for layer in layers for word in WORDS]
    traced = trace(model, processor, messages, completion, keep)
    written = traced.token_ids[traced.prompt_length :]
    if not len(written):
        raise UserError("the completion is empty: there is no word to look at")
    question = question_of(messages)
    data = {"model": name, "question": question, **gather(processor, traced)}
    if versus:
        weight = model.model.embed_tokens.weight
        other = trace(*load(versus, weight.device, weight.dtype), messages, written, ())
        data["versus"] = parted(processor, traced, other, versus)
    data["walk"] = walk(traced, data)
    stop = "<li><b>{title}</b> {text} <code>{source}</code></li>"
    image = '<img alt="the image as the model gets it" src="{url}">'
    parts = {
        "title": html.escape(f"{name}: {question}"[:120]),
        "images": "".join(image.format(**one) for one in data["images"]),
        "question": html.escape(question),
        "answer": html.escape(processor.decode(written)),
        "walk": "".join(stop.format(**one) for one in data["walk"]),
        # Inside <script> nothing is markup but "<!--" and "</script".
        "data": json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
    }
    write_text(path, filled("page.html", parts))
    return traced


def filled(template: str, parts: Mapping[str, str]) -> str:
    """A page of this folder with HTML in the place of its <!--names-->."""
    page = (Path(__file__).parent / template).read_text(encoding="utf-8")
    return re.sub("<!--([a-z]+)-->", lambda place: parts[place[1]], page)


def gather(processor: Processor, traced: Trace) -> dict:
    """Everything that the page shows of one trace, as JSON."""
    ids, values, ranks = traced.rivals()
    no_cell = torch.zeros(0, dtype=torch.int64, device=traced.token_ids.device)
    cells = torch.cat([no_cell, *(one.flatten() for one in traced.cells)])
    rivals = [
        [[shown(processor, token), round(value, 3)] for token, value in zip(*own, strict=True)]
        for own in zip(ids.tolist(), values.nan_to_num().tolist(), strict=True)
    ]
    return {
        "tokens": traced.tokens,
        "begin": traced.prompt_length,
        "positions": traced.positions.tolist(),
        "logprobs": rounded(traced.logprobs),
        "entropy": rounded(traced.entropy),
        "ranks": ranks.tolist(),
        "rivals": rivals,
        "layers": traced.num_layers,
        "heads": traced.model.config.text.num_attention_heads,
        "images": [shown_image(processor, traced, number) for number in range(len(traced.cells))],
        **attention_maps(traced, cells),
        "causal": causal(traced) if traced.cells else None,
        "lens": lens(processor, traced, cells),
        "ablation": ablation(traced),
        "cost": cost(processor, traced),
    }


def shown(processor: Processor, token: int) -> str:
    return processor.decode([token], skip_special_tokens=False)


def attention_maps(traced: Trace, cells: Tensor) -> dict:
    """Where each word looked when it was written: at the token before it.

    Each layer's mean head of every word (or, where that takes too much room, the mean of all layers), and all
    heads of the least sure words, as many as there is room for.
    """
    begin, words, layers = traced.prompt_length, len(traced) - traced.prompt_length, traced.num_layers
    heads = traced.model.config.text.num_attention_heads
    fitting = max(8, ROOM // max(1, layers * heads * len(cells)))
    is_chosen = torch.zeros(words, dtype=torch.bool)
    is_chosen[traced.entropy[begin:].argsort(descending=True)[:fitting].cpu()] = True
    groups = torch.stack(looked_at(traced)).float()  # (4, T)
    maps, shares, full = [], [], []
    for block in torch.arange(words).split(max(1, CHUNK // (heads * len(traced)))):
        own = is_chosen[block]
        seen = [
            (rows.mean(0)[:, cells], rows.mean(0) @ groups.T, rows[:, own][:, :, cells])
            for rows in traced.rows(begin - 1 + block)  # (H, n, T)
        ]
        by_layer, share, single = (torch.stack(one).cpu() for one in zip(*seen, strict=True))
        maps.append(by_layer.transpose(0, 1))
        shares.append(share.mean(0))
        full.append(single.movedim(2, 0))
    means = torch.cat(maps)  # (words, layers, cells)
    typical = means.mean(1).median(0).values
    is_sink = typical > 10 * typical.median().clamp(min=1e-6) if len(typical) else typical  # for all words
    chosen = zip(is_chosen.nonzero().flatten().tolist(), torch.cat(full), strict=True)
    return {
        "maps": packed(means if means.numel() <= ROOM else means.mean(1, keepdim=True)),
        "full": {begin + word: packed(one) for word, one in chosen},  # (layers, heads, cells) each
        "shares": [rounded(one) for one in torch.cat(shares)],
        "sinks": is_sink.nonzero().flatten().tolist(),
    }


def packed(values: Tensor) -> dict:
    """Numbers as bytes in base64, scaled by the largest."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    scaled = (values / (largest or 1.0) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return {"shape": list(values.shape), "max": largest, "bytes": base64.b64encode(scaled.tobytes()).decode()}


def rounded(values: Tensor, digits: int = 4) -> list[float | None]:
    return [None if math.isnan(value) else round(value, digits) for value in values.tolist()]


def shown_image(processor: Processor, traced: Trace, number: int) -> dict:
    """One image as its patches hold it, and where each patch and cell is in every order."""
    config = processor.config.vision
    t, h, w = grid = tuple(traced.image_grid_thw[number].tolist())
    positions, order, cu_window, _ = layout((grid,), config)
    unit = config.spatial_merge_size**2
    first = sum(cells.numel() for cells in traced.cells[:number])
    image = from_patches(traced.encoded.pixel_values[number], grid, processor.image_processor)
    return {
        "url": f"data:image/png;base64,{base64_image(image)}",
        "rows": t * h // config.spatial_merge_size,
        "columns": w // config.spatial_merge_size,
        "patch": config.patch_size,
        "merge": config.spatial_merge_size,
        "window": config.window_size,
        "tokens": traced.cells[number].flatten().tolist(),
        "first": first,
        # each patch's row and column, as in `pixel_values`; the cells by window; where each window ends
        "places": positions.tolist(),
        "order": order.tolist(),
        "windows": (cu_window[1:] // unit).tolist(),
    }


def from_patches(patches: Tensor, grid: tuple[int, int, int], image_processor: ImageProcessor) -> Image.Image:
    """The image that the patches (P, 1176) were cut from, after its resizing."""
    _, h, w = grid
    size, merge = image_processor.patch_size, image_processor.merge_size
    cut = patches[: h * w].view(h // merge, w // merge, merge, merge, 3, -1, size, size)[:, :, :, :, :, 0]
    pixels = cut.permute(0, 2, 5, 1, 3, 6, 4).reshape(h * size, w * size, 3).float()
    mean, std = (torch.tensor(getattr(image_processor, name)) for name in ("image_mean", "image_std"))
    pixels = (pixels * std + mean) / image_processor.rescale_factor
    return Image.fromarray(pixels.round().clamp(0, 255).numpy().astype(np.uint8))


def causal(traced: Trace) -> dict:
    """How much each word's log-prob falls when a region of the first image becomes the mean cell."""
    rows, columns = traced.cells[0].shape
    side = math.ceil(math.sqrt(rows * columns / PASSES))  # cells of a region, each way
    across = math.ceil(columns / side)
    numbers = torch.arange(rows)[:, None] // side * across + torch.arange(columns) // side  # (rows, columns)
    regions = [traced.cells[0][numbers == number] for number in range(int(numbers.max()) + 1)]
    falls = blanked(traced, regions)
    return {"side": side, "columns": across, "falls": [rounded(one, 3) for one in falls.T]}


def lens(processor: Processor, traced: Trace, cells: Tensor) -> dict:
    """What the model would say after each layer, at each word and cell: the likeliest token, its share, and
    the share of the word that came.
    """
    words = len(traced) - traced.prompt_length
    asked = torch.cat((torch.arange(traced.prompt_length - 1, len(traced) - 1, device=cells.device), cells))
    following = traced.token_ids.roll(-1)[asked]
    size = max(1, CHUNK // traced.model.config.text.vocab_size)
    said = [[] for _ in asked]  # [token, its share, that of the word that came] after each layer
    for layer in range(traced.num_layers + 1):
        for places in torch.arange(len(asked), device=cells.device).split(size):
            logprobs = traced.lens(layer, asked[places])
            (best, token), own = logprobs.max(-1), logprobs.gather(1, following[places, None])
            found = [one.tolist() for one in (places, token, best.exp(), own[:, 0].exp())]
            for place, one, *shares in zip(*found, strict=True):
                said[place].append([shown(processor, one), *(round(share, 3) for share in shares)])
    return {"words": said[:words], "cells": said[words:]}


@torch.no_grad()
def ablation(traced: Trace) -> list[list]:
    """What silencing a head, or a whole layer where heads are many, does to the answer's log-prob."""
    layers, heads = traced.num_layers, traced.model.config.text.num_attention_heads
    before, found = float(traced.logprobs[traced.prompt_length :].sum()), []
    for layer in range(layers):
        silenced = [[head] for head in range(heads)] if layers * heads <= PASSES else [None]
        point = f"model.layers.{layer}.residual"
        copies = traced[point].expand(len(silenced), -1, -1)

        def silence(value: Tensor, where: Where, silenced: list = silenced) -> Tensor:
            """Of each copy, all of which run side by side, its own heads."""
            own = value.unflatten(0, (len(silenced), -1))
            return torch.cat([zero(one)(copy, where) for one, copy in zip(silenced, own, strict=True)])

        with watching(traced.model, {f"model.layers.{layer}.self_attn.heads": silence}):
            after = resumed(traced, copies, layer).sum(1).tolist()
        found += [
            [layer, one and one[0], round(change - before, 3)]
            for one, change in zip(silenced, after, strict=True)
        ]
    return sorted(found, key=lambda one: one[2])


def cost(processor: Processor, traced: Trace) -> dict:
    """Operations and bytes of the prompt's pass, of one more token, of a training step; a pass in seconds."""
    config, size = traced.model.config, traced.model.model.embed_tokens.weight.element_size()
    grids = [] if traced.image_grid_thw is None else traced.image_grid_thw.tolist()
    prompt, whole = traced.prompt_length, len(traced)
    passes = {
        "prompt": (1, parts(config, prompt, prompt, 1, grids)),
        "one token": (1, parts(config, 1, whole, 1)),
        "training": (3, parts(config, whole, whole, whole - prompt, grids)),  # backward: twice the forward
    }
    batch = processor.pack([replace(traced.encoded, labels=None)]).to(traced.token_ids.device)
    return {
        "parts": {
            name: [[part.name, part.shape, times_ * part.flops, part.weights * size] for part in own]
            for name, (times_, own) in passes.items()
        },
        "cache": cache_bytes(config, whole, size),
        "seconds": {name: round(seconds, 5) for name, seconds in times(traced.model, batch).items()},
    }


def parted(processor: Processor, traced: Trace, other: Trace, name: str) -> dict:
    """Where another model would have gone on differently."""
    found = compare(traced, other)
    return {
        "name": name,
        "divergence": rounded(found.divergence),
        "logprobs": rounded(other.logprobs),
        "choices": [shown(processor, token) for token in found.choices[1].tolist()],
        "partings": [place for place in found.partings() if place >= traced.prompt_length],
    }


def walk(traced: Trace, data: dict) -> list[dict[str, str]]:
    """The guided walk of walk.txt in this image's own numbers, each stop with its place in the code."""
    config, written = traced.model.config, traced.logprobs[traced.prompt_length :]
    operations = {name: sum(part[2] for part in own) for name, own in data["cost"]["parts"].items()}
    numbers = {
        "config": config,
        "data": data,
        "prompt": traced.prompt_length,
        "whole": len(traced),
        "answer": len(written),
        "last_position": ", ".join(map(str, traced.positions[:, -1].tolist())),
        "image_share": float(np.mean([shares[0] for shares in data["shares"]])),
        "one_token": operations["one token"],
        "one_prompt": operations["prompt"],
        "least": float(written.min().exp()),
        "nats": -float(written.sum()),
        "chance": float(written.sum().exp()),
    }
    if traced.cells:
        image, (_, high, wide) = data["images"][0], traced.image_grid_thw[0].tolist()
        numbers |= {
            "image": image,
            "wide": wide * config.vision.patch_size,
            "high": high * config.vision.patch_size,
            "patches": len(image["places"]),
            "full": ", ".join(map(str, config.vision.fullatt_block_indexes)),
            "windows": len(image["windows"]),
            "last_cell": image["tokens"][-1],
        }
    stops = []
    for block in (Path(__file__).parent / "walk.txt").read_text(encoding="utf-8").strip().split("\n\n"):
        head, title, words = block.split("\n")
        when, module, name = head.split()
        if when == "any" or traced.cells:
            said = html.escape(words.format(**numbers))
            stops.append({"title": title, "text": said, "source": source(module, name)})
    return stops


def source(module: str, name: str) -> str:
    """file:line of a function or class."""
    thing = inspect.unwrap(attrgetter(name)(import_module(module)))
    path = Path(inspect.getsourcefile(thing)).relative_to(Path(__file__).parents[2])
    return f"{path}:{inspect.getsourcelines(thing)[1]}"
