"""A training step at a published shape with random weights on one GPU: time, tokens/s, MFU, memory; beside
transformers' model.

    python -m tests.bench_train_gpu [--release 3B] [--tokens 8192] [--rows 8] [--repeats 5] [--out
    kernels/results/sft-h200.json]
    python -m tests.bench_train_gpu --release tiny --tokens 512 --device cpu    # that it runs at all

Rows of equal length, each with one picture, so that padding costs transformers nothing. Both keep float32
weights and AdamW moments and compute in bfloat16 (r1ov in a copy of the weights, transformers by autocast);
on a CPU both compute in float32. r1ov is measured with activation checkpointing off and selective,
transformers (SDPA) without.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from contextlib import nullcontext
from datetime import date
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from r1ov.cli import run
from r1ov.common.processes import choose_kernels, joined
from r1ov.data.pack import sequence_cost
from r1ov.data.processor import Batch
from r1ov.errors import UserError
from r1ov.folder.pretrained import config_from_dict, resolve
from r1ov.folder.weights import init_weights
from r1ov.model.config import Config
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.rope import mrope_positions
from r1ov.train.loss import sft_loss
from r1ov.train.optim import build_optimizers, clip_grad_norm
from r1ov.train.run.config import SFTConfig
from r1ov.train.run.log import PEAK_FLOPS
from r1ov.train.run.sharding import checkpoint_activations, computing_copy
from tests.test_published_shapes import published_config


def rows_of(
    config: Config, rows: int, length: int, grid: tuple[int, int, int], generator: torch.Generator
) -> tuple[Batch, dict]:
    """The same rows packed for r1ov and as (B, T) for transformers; what follows the picture is trained."""
    merged = grid[0] * grid[1] * grid[2] // config.vision.spatial_merge_size**2
    special = [config.vision_start_token_id, *[config.image_token_id] * merged, config.vision_end_token_id]
    text = torch.randint(
        0, min(1000, config.text.vocab_size), (rows, length - len(special)), generator=generator
    )
    ids = torch.cat((torch.tensor(special).expand(rows, -1), text), dim=1)  # (B, T)
    labels = ids.clone()
    labels[:, : len(special) + 1] = -100
    grids = torch.tensor([grid]).expand(rows, -1).contiguous()
    pixels = torch.randn(rows * grid[0] * grid[1] * grid[2], config.vision.patch_dim, generator=generator)
    positions = mrope_positions(ids[0], grids[:1], config.image_token_id, config.vision.spatial_merge_size)
    packed = Batch(
        input_ids=ids.flatten(),
        position_ids=positions.repeat(1, rows),
        cu_seqlens=torch.arange(rows + 1, dtype=torch.int32) * length,
        pixel_values=pixels,
        image_grid_thw=grids,
        labels=labels.flatten(),
    )
    padded = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "pixel_values": pixels,
        "image_grid_thw": grids,
    }
    return packed, padded | {"mm_token_type_ids": (ids == config.image_token_id).long(), "use_cache": False}


def measured(step, repeats: int, device: torch.device) -> tuple[float, float | None]:
    """(seconds, peak GB, None on a CPU) of a step, the median after two warm ones."""
    times = []
    for repeat in range(repeats + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if repeat >= 2:
            times.append(time.perf_counter() - begin)
    return statistics.median(
        times
    ), torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None


def copy_of(masters: Qwen2_5_VL, optimizers: list[torch.optim.Optimizer], mode: str) -> Qwen2_5_VL:
    """What computes in a run on one GPU."""
    config = SimpleNamespace(activation_checkpointing=mode)
    run = SimpleNamespace(masters=masters, dtype=torch.bfloat16, config=config, optimizers=optimizers)
    return computing_copy(run)


def ours(config: Config, batch: Batch, mode: str, device: torch.device):
    with torch.device("meta"):
        model = Qwen2_5_VL(config)
    checkpoint_activations(model, mode)
    masters = model = model.to_empty(device=device)
    init_weights(model, torch.Generator(device=device).manual_seed(0))
    optimizers = build_optimizers(model, SFTConfig(learning_rate=1e-5, adam_beta2=0.999))
    if device.type == "cuda":
        model = copy_of(masters, optimizers, mode)
    batch = batch.to(device)
    labels = batch.pop("labels")
    num_items = int((labels != -100).sum())

    def step() -> None:
        model(**batch, then=partial(sft_loss, labels=labels, num_items_in_batch=num_items)).backward()
        clip_grad_norm(masters.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def theirs(raw: dict, batch: dict, device: torch.device):
    config = Qwen2_5_VLConfig(**{**raw, "attn_implementation": "sdpa"})
    with device:
        model = Qwen2_5_VLForConditionalGeneration(config).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    batch = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def needs_gpu(release: str, device: str | None) -> None:
    """Raises: UserError for a published release without a GPU: its float32 weights, gradients and moments
    fill a machine's memory before the first step.
    """
    if release == "tiny" or (torch.cuda.is_available() and device != "cpu"):
        return
    raise UserError(
        f"the bench of {release} needs an NVIDIA GPU; on a CPU only --release tiny can be measured"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", default="3B")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="off,selective,transformers", help="of these, by commas")
    parser.add_argument("--device")
    parser.add_argument("--kernels")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    needs_gpu(options.release, options.device)
    raw = (
        json.loads((resolve("r1ov-tiny") / "config.json").read_text())
        if options.release == "tiny"
        else published_config(options.release)
    )
    config = config_from_dict(raw)
    side = 8 if options.release == "tiny" else 32  # patches: 448 pixels
    generator = torch.Generator().manual_seed(0)
    packed, padded = rows_of(config, options.rows, options.tokens // options.rows, (1, side, side), generator)
    trained = int((packed["labels"] != -100).sum()) // options.rows
    cost = options.rows * sequence_cost(config, options.tokens // options.rows, trained, [(1, side, side)])
    with joined(options.device) as (_, device):
        kernels = choose_kernels(options.kernels, device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        shape = f"{options.rows} rows of {options.tokens // options.rows} tokens"
        print(f"{name}, torch {torch.__version__}, {options.release}, {shape}, {kernels} kernels")
        print("| step | ms | tokens/s | MFU | peak GB |\n|---|---:|---:|---:|---:|")
        cases = {
            f"r1ov, checkpointing {mode}": partial(ours, config, packed, mode, device)
            for mode in ("off", "selective")
        }
        cases["transformers, SDPA"] = partial(theirs, raw, padded, device)
        facts = {
            "date": date.today().isoformat(),
            "device": name,
            "torch": torch.__version__,
            "command": " ".join(sys.argv[1:]),
        }
        results = {}
        for label, build in cases.items():
            if not any(word in label for word in options.only.split(",")):
                continue
            seconds, memory = measured(build(), options.repeats, device)
            peak = (
                next(
                    (
                        peak
                        for known, peak in PEAK_FLOPS.items()
                        if known in torch.cuda.get_device_name(device)
                    ),
                    None,
                )
                if device.type == "cuda"
                else None
            )
            results[label] = {
                "seconds": seconds,
                "mfu": cost / seconds / peak if peak else None,
                "peak_gb": memory,
            }
            mfu = f"{results[label]['mfu']:.1%}" if peak else "-"
            print(
                f"| {label} | {1000 * seconds:,.0f} | {options.tokens / seconds:,.0f} | {mfu} | "
                f"{memory or 0:.1f} |",
                flush=True,
            )
            if options.out:  # after each: a later one may run out of memory
                options.out.write_text(json.dumps(facts | {"results": results}, indent=2) + "\n")
            gc.collect()  # a sharded model is a circle of references
            if device.type == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(run(main))
