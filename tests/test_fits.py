"""The presets on the cards that they are for: what a process holds at once, counted on the meta device.

What a run holds all the time is read from the line that it prints before it begins. FSDP's buffers, the cache
and the activations come on top; nothing is computed, and none of this has been run.
"""

import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from r1ov.common import memory
from r1ov.common.processes import World
from r1ov.errors import UserError
from r1ov.folder.pretrained import build, config_from_dict
from r1ov.folder.quantized import place
from r1ov.model.lora import Lora, attach, targets
from r1ov.train.run import log
from r1ov.train.run.config import GRPOConfig, SFTConfig
from r1ov.train.run.presets import GRPO, SFT
from tests.count_step import count
from tests.test_published_shapes import PUBLISHED, published_config

CUDA = 6e8  # of a process, and its libraries
LINES = {  # release, preset, more options, processes, GB of a card, of a process: all the time, at the most
    "7B, QLoRA, SFT": ("7B", SFTConfig, "lora-24gb", {}, 1, 24, 8.3, 12.4),
    "7B, QLoRA, GRPO": ("7B", GRPOConfig, "lora-24gb", {}, 1, 24, 8.3, 14.2),
    "3B, QLoRA, GRPO": ("3B", GRPOConfig, "lora-24gb", {}, 1, 24, 4.17, 8.9),
    "3B, LoRA, GRPO": ("3B", GRPOConfig, "lora-24gb", {"quantize": None}, 1, 24, 8.0, 13),
    "7B, SFT": ("7B", SFTConfig, "r1-onevision", {}, 8, 80, 16.6, 57),
    "7B, GRPO": ("7B", GRPOConfig, "r1-onevision", {"tensor_parallel": 8}, 8, 80, 24.0, 64.5),
    "72B, SFT": ("72B", SFTConfig, "72b-4-nodes", {}, 32, 80, 36.7, 57.3),
    "72B, GRPO": ("72B", GRPOConfig, "72b-4-nodes", {}, 32, 80, 56.3, 76.9),
}
PRESETS = {SFTConfig: SFT, GRPOConfig: GRPO}


@cache
def activations(release, tokens, mode):
    """Bytes between the passes, with as many pictures of 512 x 512 pixels as there is room for."""
    found = count(release, tokens, pictures=tokens // 1024, patches=36**2, activation_checkpointing=mode)
    return found["held"] + found["kept"]


def planned(release, options, preset, more, size):
    """A run without weights, and the bytes that it says it holds. Args: more: options."""
    config = options(
        **PRESETS[options][preset]
        | {"eval_steps": 0, "learning_rate": 1e-5, "max_steps": 1, "train_batch_size": 8, **more}
    )
    model = build(config_from_dict(published_config(release)))
    if config.lora_r:
        model = model.to(torch.bfloat16)
        layers = {
            name: model.get_submodule(name).weight.shape for name in targets(model, "all-linear", False)
        }
        for name in layers if config.quantize else ():
            weight = f"{name}.weight"
            rows = model.get_parameter(weight).__getitem__
            place(model, weight, rows, config.quantize, quantizes_head=False)
        values = {f"{name}.lora_A": torch.empty(config.lora_r, shape[1]) for name, shape in layers.items()}
        values |= {f"{name}.lora_B": torch.empty(shape[0], config.lora_r) for name, shape in layers.items()}
        attach(model, values, Lora(config.model))
    run = SimpleNamespace(
        config=config,
        world=World(0, size),
        model=model,
        masters=model,
        parameters=[one for one in model.parameters() if one.requires_grad],
        device=torch.device("cuda"),
        dtype=torch.bfloat16,
        kernels="triton",
        out=Path("runs"),
        num_rows=None,
        changed=[],
        step=0,
        processor=SimpleNamespace(encode=lambda messages: SimpleNamespace(opened="")),
    )
    run.held = memory.held(run)
    [line] = (line for line in log.introduction(run, "") if line.startswith("memory"))
    return run, float(re.match(r"memory  ([0-9.]+) GB a process", line)[1]) * 1e9


@pytest.mark.parametrize("name", LINES)
def test_each_preset_fits_its_cards(monkeypatch, name):
    release, options, preset, more, size, card, always, most = LINES[name]
    monkeypatch.setattr("r1ov.common.memory.free_memory", lambda device: card * 1e9)
    monkeypatch.setattr("r1ov.folder.quantized.TILE", 2**40)  # quicker: nothing is computed
    run, held = planned(release, options, preset, more, size)
    assert held == pytest.approx(always * 1e9, rel=0.01)
    config, text = run.config, run.model.config.text
    tokens = config.max_length // config.context_parallel
    layer, vision = (
        sum(one.numel() for one in part.parameters())
        for part in (run.model.model.layers[0], run.model.visual)
    )
    head = text.vocab_size * text.hidden_size
    root = 2 * head + text.hidden_size
    between = activations(release, tokens, config.activation_checkpointing or "selective")
    between += 2 * tokens * (6 * text.hidden_size + 4 * text.intermediate_size)  # of a layer, computed again
    ends = 0
    if size > 1:
        # In bfloat16 the root all the time, a layer and the next, and gradients, which are summed in float32;
        # of the head they wait for the embedding's.
        between += 2 * root + 2 * 2 * layer + 2 * head + (2 + 4) * layer
        ends = 2 * root + (2 + 4) * max(root, vision)
    # While it answers, beside the weights: 64 rows of 2,048 tokens, a process's own heads.
    rows = (getattr(config, "max_num_seqs", None) or 64) * 2048 if options is GRPOConfig else 0
    heads = max(1, text.num_key_value_heads // config.tensor_parallel)
    cache = 2 * 2 * heads * text.head_dim * text.num_hidden_layers * rows
    if size == 1:  # the sampler's are the same weights, and memory that was freed may lie in pieces
        between += cache
    peak = CUDA + held + max(between, ends, cache + 4 * head)
    assert peak <= most * 1e9 <= card * 1e9
    print(f"{name}: {held / 1e9:.1f} all the time, {peak / 1e9:.1f} GB at the most")


def test_the_line_counts_the_vision_encoder_whole_in_each_process_that_answers(monkeypatch):
    monkeypatch.setattr("r1ov.common.memory.free_memory", lambda device: 80e9)
    one, eight = (
        planned("7B", GRPOConfig, "r1-onevision", {"tensor_parallel": n, "beta": 0.0}, 8)[1] for n in (1, 8)
    )
    size = PUBLISHED["7B"]
    language = size["parameters"] - size["in_vision"]
    assert one - eight == pytest.approx(2 * language * 7 / 8, abs=2e7)
    monkeypatch.setattr("r1ov.common.memory.free_memory", lambda device: 20e9)
    with pytest.raises(UserError, match="needs"):
        planned("7B", GRPOConfig, "r1-onevision", {}, 8)
