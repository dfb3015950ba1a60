"""A GRPO step at a published shape with random weights on one GPU, by phase, and its rollout beside
transformers' `generate`.

    python -m tests.bench_grpo_gpu [--release 3B] [--prompts 16] [--generations 8] [--tokens 512] [--out
    kernels/results/grpo-h200.json]
    python -m tests.bench_grpo_gpu --release tiny --prompts 2 --generations 2 --tokens 16 --device cpu

Prompts of equal length, each with one picture; no completion stops before its limit, so that padding and
early ends cost nobody anything. On a GPU weights and AdamW's moments are float32, and both decode in
bfloat16. The bound is what reading the weights and the keys and values of all rows once a token would take at
the device's published memory bandwidth, or where that is not known at the measured one.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
import transformers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from r1ov.cli import run
from r1ov.common.processes import World, choose_kernels, joined
from r1ov.data.pack import Continuation
from r1ov.data.processor import Batch, Encoded, Processor
from r1ov.engine import Completion, decode, prepare
from r1ov.folder.pretrained import config_from_dict, read_processor, resolve
from r1ov.folder.weights import init_weights
from r1ov.model.config import Config
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.rope import mrope_positions
from r1ov.train.grpo import accumulate_gradients, add_logprobs, make_minibatch
from r1ov.train.optim import build_optimizers, clip_grad_norm
from r1ov.train.run.config import GRPOConfig
from tests.bench_train_gpu import copy_of, needs_gpu
from tests.grpo_worker import Bare
from tests.test_published_shapes import published_config

BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.0e12, "B200": 8.0e12}  # bytes a second, by name


def prompts_of(
    config: Config, count: int, length: int, side: int, generator: torch.Generator
) -> list[Encoded]:
    """`count` prompts of `length` tokens with a picture of side x side patches."""
    grid = torch.tensor([[1, side, side]])
    merged = side * side // config.vision.spatial_merge_size**2
    picture = torch.tensor(
        [config.vision_start_token_id, *[config.image_token_id] * merged, config.vision_end_token_id]
    )
    made = []
    for _ in range(count):
        text = torch.randint(
            0, min(1000, config.text.vocab_size), (length - len(picture),), generator=generator
        )
        ids = torch.cat((picture, text))
        positions = mrope_positions(ids, grid, config.image_token_id, config.vision.spatial_merge_size)
        pixels = torch.randn(side * side, config.vision.patch_dim, generator=generator)
        made.append(
            Encoded(input_ids=ids, position_ids=positions, image_grid_thw=grid, pixel_values=(pixels,))
        )
    return made


def never_ending(processor: Processor, config: Config) -> Processor:
    """One whose stop id no model ever makes."""
    return replace(processor, config=config, generation_config={"eos_token_id": [config.text.vocab_size]})


def timed(work: Callable, device: torch.device) -> tuple[float, object]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun, result


def bound(config: Config, rows: int, prompt: int, tokens: int, width: int, device: torch.device) -> float:
    """Tokens a second that reading weights and cache allows, at `width` bytes a number."""
    text = config.text
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    bandwidth = next((value for known, value in BANDWIDTH.items() if known in name), None)
    if bandwidth is None:
        source = torch.ones(2**26, device=device)
        target = torch.empty_like(source)
        seconds = min(timed(lambda: target.copy_(source), device)[0] for _ in range(5))
        bandwidth = 2 * source.numel() * source.element_size() / seconds
    key_values = 2 * text.num_key_value_heads * text.head_dim
    layer = text.hidden_size * (2 * text.hidden_size + key_values + 3 * text.intermediate_size)
    weights = text.num_hidden_layers * layer + text.vocab_size * text.hidden_size
    cache = rows * (prompt + tokens / 2) * text.num_hidden_layers * key_values
    return rows * bandwidth / (width * (weights + cache))


def update(
    run: Bare,
    masters: Qwen2_5_VL,
    optimizers: list[torch.optim.Optimizer],
    packs: list[Batch],
    counts: dict[str, float],
) -> None:
    accumulate_gradients(run, packs, counts)
    clip_grad_norm(masters.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def ours(
    config: Config,
    processor: Processor,
    prompts: list[Encoded],
    options: argparse.Namespace,
    world: World,
    device: torch.device,
):
    """Medians of each phase's seconds, and the rollout's tokens a second."""
    each, tokens = options.generations, options.tokens
    with torch.device("meta"):
        model = Qwen2_5_VL(config)
    masters = model = model.to_empty(device=device)
    init_weights(masters, torch.Generator(device=device).manual_seed(0))
    optimizers = build_optimizers(masters, GRPOConfig(learning_rate=1e-6))
    if device.type == "cuda":
        model = copy_of(masters, optimizers, "selective")
    learning = GRPOConfig(
        num_generations=each,
        max_completion_length=tokens,
        max_length=options.max_length,
        loss_type="grpo",
    )
    run = Bare(model, processor, world, learning, device)
    names = [str(number).encode() for number in range(len(prompts))]

    def roll_out(seed: int):
        plan = prepare(
            processor, prompts, max_new_tokens=tokens, num_samples=each, seed=seed, names=names,
            temperature=1.0,
            top_p=1.0, top_k=0, repetition_penalty=1.0,
        )  # fmt: skip
        return decode(model, processor, plan)

    def packed(completions: list[Completion]) -> tuple[list[Batch], dict[str, float]]:
        rows = []
        for index, completion in enumerate(completions):
            ids, logprobs = torch.tensor(completion.token_ids), torch.tensor(completion.logprobs)
            advantage = torch.tensor(1.0 if index % 2 else -1.0)
            rows.append(Continuation(input_ids=ids, labels=ids, logprobs=logprobs, advantage=advantage))
        part = [(prompt, rows[each * index : each * (index + 1)]) for index, prompt in enumerate(prompts)]
        return make_minibatch(run, part)

    phases: dict[str, list[float]] = {}
    for repeat in range(options.repeats + 1):
        seconds = {}
        seconds["rollout"], (completions, timing) = timed(lambda seed=repeat: roll_out(seed), device)
        assert all(completion.completion_tokens == tokens for completion in completions)
        seconds |= {"rollout: prefill": timing.prefill_seconds, "rollout: decode": timing.decode_seconds}
        packs, counts = packed(completions)
        seconds["log-probs, one pass"], _ = timed(
            lambda packs=packs: add_logprobs(run, packs, "old_logprobs", model), device
        )
        seconds["update"], _ = timed(
            lambda packs=packs, counts=counts: update(run, masters, optimizers, packs, counts), device
        )
        if repeat:  # the first one compiles and fills caches
            for name, value in seconds.items():
                phases.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in phases.items()}


def theirs(raw: dict, prompts: list[Encoded], options: argparse.Namespace, device: torch.device) -> float:
    """Median seconds of transformers' `generate` for the same rollout."""
    config = Qwen2_5_VLConfig(**{**raw, "attn_implementation": "sdpa"})
    with device:
        model = (
            Qwen2_5_VLForConditionalGeneration(config)
            .to(torch.bfloat16 if device.type == "cuda" else torch.float32)
            .eval()
        )
    ids = torch.stack([prompt.input_ids for prompt in prompts]).to(device)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == config.image_token_id).long(),
        "pixel_values": torch.cat([prompt.pixel_values[0] for prompt in prompts]).to(device),
        "image_grid_thw": torch.cat([prompt.image_grid_thw for prompt in prompts]).to(device),
    }
    lengths = {
        "min_new_tokens": options.tokens,
        "max_new_tokens": options.tokens,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    sampling = {
        "do_sample": True,
        "top_k": 0,
        "top_p": 1.0,
        "temperature": 1.0,
        "num_return_sequences": options.generations,
    }

    def generate():
        with torch.inference_mode():
            return model.generate(**inputs, **lengths, **sampling)

    times = [timed(generate, device)[0] for _ in range(options.repeats + 1)]
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", default="3B")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--max-length", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["r1ov", "transformers"], help="one of the two sides")
    parser.add_argument("--device")
    parser.add_argument("--kernels")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    needs_gpu(options.release, options.device)
    is_tiny = options.release == "tiny"
    raw = (
        json.loads((resolve("r1ov-tiny") / "config.json").read_text())
        if is_tiny
        else published_config(options.release)
    )
    config = config_from_dict(raw)
    processor = never_ending(read_processor(resolve("r1ov-tiny")), config)
    length, side = (48, 8) if is_tiny else (320, 32)  # 448 pixels
    prompts = prompts_of(config, options.prompts, length, side, torch.Generator().manual_seed(0))
    rows = options.prompts * options.generations
    made = rows * options.tokens
    with joined(options.device) as (world, device):
        kernels = choose_kernels(options.kernels, device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        shape = (
            f"{options.prompts} prompts of {length} tokens x "
            f"{options.generations} completions of {options.tokens}"
        )
        print(
            f"{name}, torch {torch.__version__}, transformers {transformers.__version__}, {options.release}, "
            f"{shape}, {kernels} kernels"
        )
        facts = {
            "date": date.today().isoformat(), "device": name, "torch": torch.__version__,
            "transformers": transformers.__version__,
            "command": " ".join(sys.argv[1:]), "kernels": kernels, "shape": shape,
        }  # fmt: skip
        best = bound(config, rows, length, options.tokens, 2 if device.type == "cuda" else 4, device)
        speeds = {"bound": best}
        if options.only != "transformers":
            seconds = ours(config, processor, prompts, options, world, device)
            speeds["rollout"] = made / seconds["rollout"]
            speeds["decode alone"] = (made - rows) / seconds["rollout: decode"]
            peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
            facts |= {"seconds": seconds, "peak_gb": peak}
            for phase, value in seconds.items():
                print(f"{phase:24}{value:9.3f} s", flush=True)
            save(options.out, facts | {"tokens_per_second": speeds})  # the peer may yet run out of memory
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if options.only != "r1ov":
            speeds["transformers' generate"] = made / theirs(raw, prompts, options, device)
    for label, speed in speeds.items():
        print(f"{label:24}{speed:9,.0f} tokens/s, {speed / best:6.1%} of the bound")
    save(options.out, facts | {"tokens_per_second": speeds})


def save(path: Path | None, facts: dict) -> None:
    if path:
        path.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run(main))
