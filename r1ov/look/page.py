"""One offline page that walks from pixel to answer with this image's own numbers (page.html draws it)."""

import base64
import html
import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

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
from r1ov.look.edit import edit, zero
from r1ov.look.score import blanked
from r1ov.look.trace import Trace, answers, embedded, looked_at, trace
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.vision import layout

PASSES = 64  # at most: regions that are blanked, heads that are silenced
ROOM = 3_000_000  # numbers of attention maps in the page, one byte each
RIVALS = 5


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
    traced = trace(model, processor, messages, completion)
    if len(traced) == traced.prompt_length:
        raise UserError("the completion is empty: there is no word to look at")
    data = gather(model, processor, traced)
    if versus:
        other_model, other_processor = load(versus, model.head_weight.device, model.head_weight.dtype)
        completion = traced.token_ids[traced.prompt_length :]
        data["versus"] = parted(
            processor, traced, trace(other_model, other_processor, messages, completion), versus
        )
    question = " ".join(
        part["text"] for message in messages for part in as_parts(message["content"]) if "text" in part
    )
    data |= {"model": name, "question": question, "walk": walk(processor, traced, data)}
    images = "".join(
        f'<img alt="the image as the model gets it" src="{one["url"]}">' for one in data["images"]
    )
    answer = processor.decode(traced.token_ids[traced.prompt_length :])
    parts = {
        "title": html.escape(f"{name}: {question}"[:120]),
        "images": images,
        "question": html.escape(question),
        "answer": html.escape(answer),
        "walk": "".join(
            f"<li><b>{html.escape(stop['title'])}</b> {stop['text']} <code>{stop['source']}</code></li>"
            for stop in data["walk"]
        ),
        # Inside <script> nothing is markup but "<!--" and "</script".
        "data": json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
    }
    write_text(path, filled("page.html", parts))
    return traced


def filled(template: str, parts: Mapping[str, str]) -> str:
    """A page of this folder with HTML in the place of its <!--names-->."""
    page = (Path(__file__).parent / template).read_text(encoding="utf-8")
    return re.sub("<!--([a-z]+)-->", lambda place: parts[place[1]], page)


def as_parts(content: str | Sequence[dict]) -> Sequence[dict]:
    return [{"text": content}] if isinstance(content, str) else content


def gather(model: Qwen2_5_VL, processor: Processor, traced: Trace) -> dict[str, Any]:
    """Everything that the page shows of one trace, as JSON."""
    config, layers = processor.config, len(model.model.layers)
    begin, end = traced.prompt_length, len(traced)
    ids, values, ranks = traced.rivals(RIVALS)
    cells = [one.flatten() for one in traced.cells]
    every_cell = torch.cat(cells) if cells else torch.zeros(0, dtype=torch.int64)

    # Where each word looked when it was written: at the token before it.
    heads = config.text.num_attention_heads
    chosen = traced.entropy[begin:].argsort(descending=True)
    fitting = max(8, ROOM // max(1, layers * heads * len(every_cell)))
    chosen = sorted(chosen[:fitting].tolist())  # words of which every head is kept
    groups = looked_at(traced)
    means, single, shares = [], [], torch.zeros(end - begin, len(groups))
    for rows in traced.rows(slice(begin - 1, end - 1)):  # (H, words, T)
        means.append(rows[:, :, every_cell].mean(0))
        single.append(rows[:, chosen][:, :, every_cell])
        shares += torch.stack([rows[:, :, group].sum(-1).mean(0) for group in groups], dim=1).cpu() / layers
    maps = torch.stack(means, dim=1)  # (words, layers, cells)
    full = {
        begin + word: packed(torch.stack([one[:, place] for one in single]))
        for place, word in enumerate(chosen)
    }
    typical = maps.mean(1).median(0).values  # a sink is looked at by all words
    sinks = (
        (typical > 10 * typical.median().clamp(min=1e-6)).nonzero().flatten().tolist() if len(typical) else []
    )
    return {
        "tokens": traced.tokens,
        "ids": traced.token_ids.tolist(),
        "begin": begin,
        "positions": traced.positions.tolist(),
        "logprobs": rounded(traced.logprobs),
        "entropy": rounded(traced.entropy),
        "ranks": ranks.tolist(),
        "rivals": [
            [
                [processor.decode([token], skip_special_tokens=False), round(value, 3)]
                for token, value in zip(own, probs, strict=True)
            ]
            if place
            else []
            for place, (own, probs) in enumerate(zip(ids.tolist(), values.tolist(), strict=True))
        ],
        "layers": layers,
        "heads": heads,
        "images": [shown_image(processor, traced, number) for number in range(len(cells))],
        "maps": packed(maps),
        "full": full,
        "shares": [rounded(one) for one in shares] if cells else [],
        "sinks": sinks,
        "causal": causal(processor, traced) if cells else None,
        "lens": lens(processor, traced),
        "ablation": ablation(processor, traced),
        "cost": cost(model, processor, traced),
    }


def packed(values: Tensor) -> dict[str, Any]:
    """Numbers as bytes in base64, scaled by the largest."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    scaled = (values / (largest or 1.0) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return {"shape": list(values.shape), "max": largest, "bytes": base64.b64encode(scaled.tobytes()).decode()}


def rounded(values: Tensor, digits: int = 4) -> list[float | None]:
    return [None if math.isnan(value) else round(value, digits) for value in values.tolist()]


def shown_image(processor: Processor, traced: Trace, number: int) -> dict[str, Any]:
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


def causal(processor: Processor, traced: Trace) -> dict[str, Any]:
    """How much each word's log-prob falls when a region of the first image becomes the mean cell."""
    rows, columns = traced.cells[0].shape
    side = math.ceil(math.sqrt(rows * columns / PASSES))  # cells of a region, each way
    across = math.ceil(columns / side)
    numbers = torch.arange(rows)[:, None] // side * across + torch.arange(columns) // side  # (rows, columns)
    regions = [traced.cells[0][numbers == number] for number in range(int(numbers.max()) + 1)]
    falls = blanked(processor, traced, regions, max(1, 2048 // len(traced)))[:, traced.prompt_length :]
    return {"side": side, "columns": across, "falls": [rounded(one, 3) for one in falls.T]}


def lens(processor: Processor, traced: Trace) -> dict[str, Any]:
    """What the model would say after each layer, at each word and cell: the likeliest token, its share."""
    words = torch.arange(traced.prompt_length - 1, len(traced) - 1)
    cells = torch.cat([one.flatten() for one in traced.cells]) if traced.cells else words[:0]
    asked = torch.cat((words, cells))
    layers = len(traced.model.model.layers)
    said: list[list[list]] = [[] for _ in asked]
    for layer in range(layers + 1):
        logprobs = traced.lens(layer, asked)
        top = logprobs.max(-1)
        own = logprobs[range(len(words)), traced.token_ids[words + 1]].exp().tolist()
        for number, (value, token) in enumerate(
            zip(top.values.exp().tolist(), top.indices.tolist(), strict=True)
        ):
            text = processor.decode([token], skip_special_tokens=False)
            said[number].append(
                [text, round(value, 3), *([round(own[number], 3)] if number < len(words) else [])]
            )
    return {"words": said[: len(words)], "cells": said[len(words) :]}


def ablation(processor: Processor, traced: Trace) -> list[list]:
    """What silencing a head, or a whole layer where heads are many, does to the answer's log-prob."""
    layers, heads = len(traced.model.model.layers), processor.config.text.num_attention_heads
    plain = embedded(processor, traced)[None]
    before = float(traced.logprobs[traced.prompt_length :].sum())
    found = []
    for layer in range(layers):
        for head in range(heads) if layers * heads <= PASSES else [None]:
            silence = zero(None if head is None else [head])
            with edit(traced.model, {f"model.layers.{layer}.self_attn.heads": silence}):
                after = float(answers(traced, plain)[0, traced.prompt_length :].sum())
            found.append([layer, head, round(after - before, 3)])
    return sorted(found, key=lambda one: one[2])


def cost(model: Qwen2_5_VL, processor: Processor, traced: Trace) -> dict[str, Any]:
    """Operations and bytes of the prompt's pass, of one more token, of a training step; a pass in seconds."""
    config, size = processor.config, model.head_weight.element_size()
    grids = [] if traced.image_grid_thw is None else traced.image_grid_thw.tolist()
    prompt, whole = traced.prompt_length, len(traced)
    passes = {
        "prompt": parts(config, prompt, prompt, 1, grids),
        "one token": parts(config, 1, whole, 1),
        "training": parts(config, whole, whole, whole - prompt, grids),
    }
    batch = processor.pack([replace(traced.encoded, labels=None)]).to(traced.token_ids.device)
    return {
        "parts": {
            name: [
                [part.name, part.shape, part.flops * (3 if name == "training" else 1), part.weights * size]
                for part in own
            ]
            for name, own in passes.items()
        },
        "cache": cache_bytes(config, whole, size),
        "seconds": {name: round(seconds, 5) for name, seconds in times(model, batch).items()},
    }


def parted(processor: Processor, traced: Trace, other: Trace, name: str) -> dict[str, Any]:
    """Where another model would have gone on differently."""
    found = compare(traced, other)
    return {
        "name": name,
        "divergence": rounded(found.divergence, 4),
        "logprobs": rounded(other.logprobs),
        "choices": [
            processor.decode([token], skip_special_tokens=False) for token in found.choices[1].tolist()
        ],
        "partings": [place for place in found.partings() if place >= traced.prompt_length],
    }


def walk(processor: Processor, traced: Trace, data: dict[str, Any]) -> list[dict[str, str]]:
    """The guided walk of walk.txt in this image's own numbers, each stop with its place in the code."""
    text, vision, begin, whole = (
        processor.config.text,
        processor.config.vision,
        traced.prompt_length,
        len(traced),
    )
    flops = {name: sum(part[2] for part in own) for name, own in data["cost"]["parts"].items()}
    written = traced.logprobs[begin:]
    numbers = {
        "text": text,
        "vision": vision,
        "prompt": begin,
        "whole": whole,
        "answer": whole - begin,
        "last_position": ", ".join(str(int(axis[-1])) for axis in traced.positions),
        "image_share": float(np.mean([shares[0] for shares in data["shares"] or [[0.0]]])),
        "cache": data["cost"]["cache"],
        "one_token": flops["one token"],
        "one_prompt": flops["prompt"],
        "least": float(written.min().exp()),
        "nats": -float(written.sum()),
        "chance": float(written.sum().exp()),
    }
    if traced.cells:
        t, h, w = traced.image_grid_thw[0].tolist()
        numbers |= {
            "wide": w * vision.patch_size,
            "high": h * vision.patch_size,
            "patches": t * h * w,
            "full": ", ".join(map(str, vision.fullatt_block_indexes)),
            "windows": len(data["images"][0]["windows"]),
            "rows": traced.cells[0].shape[0],
            "columns": traced.cells[0].shape[1],
            "first_cell": int(traced.cells[0][0, 0]),
            "last_cell": int(traced.cells[0][-1, -1]),
        }
    stops = []
    for block in (Path(__file__).parent / "walk.txt").read_text(encoding="utf-8").strip().split("\n\n"):
        head, title, words = block.split("\n")
        when, module, name = head.split()
        if when == "any" or traced.cells:
            stops.append(
                {"title": title, "text": html.escape(words.format(**numbers)), "source": source(module, name)}
            )
    return stops


def source(module: str, name: str) -> str:
    """file:line of a function or class."""
    thing = import_module(module)
    for part in name.split("."):
        thing = getattr(thing, part)
    thing = inspect.unwrap(thing)
    path = Path(inspect.getsourcefile(thing)).relative_to(Path(__file__).parents[2])
    return f"{path}:{inspect.getsourcelines(thing)[1]}"
