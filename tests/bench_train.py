"""A training step beside transformers': the same weights, rows and optimizer in one process, runs taken in
turn.

    python -m tests.bench_train [--model r1ov-tiny] [--samples 64] [--repeats 7] [--num-threads N]

r1ov trains the rows as r1ov/train/sft.py does: packed, without padding. transformers' model trains them as
Hugging Face's Trainer does: padded on the right to the longest row, all in one batch or 8 at a time, which is
Trainer's default. A step is forward, backward, clipping and AdamW. First proves that all losses are equal,
then prints medians over the repeats. transformers' batches are ready before the clock starts, its cache is
off and it gets r1ov's flushing of denormals: nothing but layout and model differs. At the end: how long
r1ov's loop waits for its data, which one worker makes.
"""

import argparse
import statistics
import time
from functools import partial
from itertools import pairwise

import torch
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2_5_VLForConditionalGeneration

import r1ov
from r1ov.data.playground.source import Playground
from r1ov.data.steps import Steps, load_steps
from r1ov.folder.pretrained import resolve
from r1ov.train.loss import sft_loss_and_correct
from r1ov.train.optim import build_optimizers, clip_grad_norm
from r1ov.train.run.config import SFTConfig

MAX_LENGTH = 8192
MICRO_BATCH = 8
WARM, STEPS = 2, 10  # of the loop that waits for data


def padded(batches, config, size):
    """r1ov's packs as Trainer's collator lays them out: `size` rows a batch, (B, longest) with a mask, and
    their pictures.
    """
    rows = []
    for batch in batches:
        pixels, grids = (
            batch["pixel_values"].split(batch["image_grid_thw"].prod(1).tolist()),
            batch["image_grid_thw"].split(1),
        )
        bounds = pairwise(batch["cu_seqlens"].tolist())
        for (begin, end), pixel_values, grid in zip(bounds, pixels, grids, strict=True):  # a picture a row
            rows.append((batch["input_ids"][begin:end], batch["labels"][begin:end], pixel_values, grid))
    made = []
    for first in range(0, len(rows), size):
        ids, labels, pixels, grids = zip(*rows[first : first + size], strict=True)
        inputs = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=config.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
            "pixel_values": torch.cat(pixels),
            "image_grid_thw": torch.cat(grids),
        }
        made.append(
            inputs
            | {"mm_token_type_ids": (inputs["input_ids"] == config.image_token_id).long(), "use_cache": False}
        )
    return made


def our_step(model, optimizers, batches):
    num_items = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        rest = {name: tensor for name, tensor in batch.items() if name != "labels"}
        then = partial(sft_loss_and_correct, labels=batch["labels"], num_items_in_batch=num_items)
        part, _ = model(**rest, then=then)
        part.backward()
        total += part.item()
    clip_grad_norm(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return total


def their_step(model, optimizers, batches):
    num_items = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = model(**batch, num_items_in_batch=num_items).loss
        loss.backward()
        total += loss.item()
    clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return total


def waited(model, optimizers, steps):
    """(seconds that a step of the loop takes, seconds of it in which the loop waits for data), medians."""
    took, waits = [], []
    data = load_steps(steps, 0, WARM + STEPS, num_workers=1)
    for _ in range(WARM + STEPS):
        begin = time.perf_counter()
        batches = next(data).batches
        waits.append(time.perf_counter() - begin)
        our_step(model, optimizers, batches)
        took.append(time.perf_counter() - begin)
    return statistics.median(took[WARM:]), statistics.median(waits[WARM:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="r1ov-tiny")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--num-threads", type=int)
    options = parser.parse_args()
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    torch.set_flush_denormal(True)
    model, processor = r1ov.load(options.model, device="cpu", dtype=torch.float32)
    model.train()
    reference = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        resolve(options.model), dtype=torch.float32
    ).train()
    steps = Steps(Playground(), processor, options.samples, MAX_LENGTH)
    begin = time.perf_counter()
    batches = steps[0].batches
    preparing = time.perf_counter() - begin
    together, apart = (padded(batches, model.config, size) for size in (options.samples, MICRO_BATCH))
    # A rate of next to nothing, so that all repeats train the same weights.
    optimizers = [build_optimizers(each, SFTConfig(learning_rate=1e-9)) for each in (model, reference)]
    contestants = {
        "r1ov, packed": partial(our_step, model, optimizers[0], batches),
        "transformers, padded": partial(their_step, reference, optimizers[1], together),
        f"transformers, padded, {MICRO_BATCH} at a time": partial(
            their_step, reference, optimizers[1], apart
        ),
    }
    ours, *theirs = (run() for run in contestants.values())  # and warm
    for other in theirs:
        # r1ov-tiny's loss is near 0, a small difference of numbers near 10, which float32 holds to 1e-6
        assert abs(ours - other) <= 1e-5 * other + 1e-6, (
            f"losses {ours} and {other} are not equal: nothing to time"
        )
    tokens = sum(len(batch["labels"]) for batch in batches)
    places, fewer = (sum(batch["labels"].numel() for batch in each) for each in (together, apart))
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {options.model}, float32, medians "
        f"of {options.repeats}"
    )
    print(
        f"{options.samples} playground samples, {tokens:,} tokens in {len(batches)} pack(s); padded "
        f"{places:,}, "
        f"{MICRO_BATCH} at a time {fewer:,}; every loss {ours:.6f}\n"
    )
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.repeats):
        for name, run in contestants.items():
            begin = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - begin)
    print("| step | ms | samples/s | tokens/s | times r1ov's |")
    print("|---|---:|---:|---:|---:|")
    fastest = statistics.median(taken["r1ov, packed"])
    for name, times in taken.items():
        seconds = statistics.median(times)
        speed = options.samples / seconds
        print(
            f"| {name} | {1000 * seconds:,.0f} | {speed:,.1f} | {tokens / seconds:,.0f} | "
            f"{seconds / fastest:.2f} |",
            flush=True,
        )
    took, waits = waited(model, optimizers[0], steps)
    print(
        f"\ndata: {1000 * preparing:,.0f} ms to prepare a step; with one worker the loop's step takes "
        f"{1000 * took:,.0f} ms, "
        f"of which it waits {1000 * waits:.1f} ms, {waits / took:.1%}"
    )


if __name__ == "__main__":
    main()
