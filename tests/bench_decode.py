"""Decoding beside transformers' `generate`: the same weights, prompts and tokens, in one process, by turns.

    python -m tests.bench_decode [--model r1ov-tiny] [--repeats 5] [--num-threads N]

First proves that both make the same tokens, then prints medians over the repeats. "to the end" stops every
row at its own stop token; "64 tokens" forces every row to 64, so that no side gains by rows that end early.
The seconds hold everything, prefill included; "decoding alone" is what remains when the time of the same call
for a single token is taken off.
"""

import argparse
import statistics
import time
from dataclasses import replace
from itertools import pairwise

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

import r1ov
from r1ov.data.playground import messages, sample
from r1ov.engine import decode, prepare
from r1ov.folder.pretrained import resolve


def reference_inputs(batch, config):
    """Our packed prompts as transformers wants them: left-padded, with a mask and the kinds of tokens."""
    rows = [batch["input_ids"][begin:end] for begin, end in pairwise(batch["cu_seqlens"].tolist())]
    longest = max(map(len, rows))
    ids = torch.stack(
        [torch.cat([row.new_full((longest - len(row),), config.pad_token_id), row]) for row in rows]
    )
    mask = torch.stack([torch.cat([row.new_zeros(longest - len(row)), torch.ones_like(row)]) for row in rows])
    pictures = {name: batch[name] for name in ("pixel_values", "image_grid_thw")}
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == config.image_token_id).long(),
        **pictures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="r1ov-tiny")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--num-threads", type=int)
    options = parser.parse_args()
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    model, processor = r1ov.load(options.model)
    reference = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        resolve(options.model), dtype=torch.float32
    ).eval()
    config = model.config
    stops = processor.generation_config["eos_token_id"]
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {options.model}, float32, greedy, "
        f"medians of {options.repeats}"
    )
    print(
        "| sequences | answers | r1ov s | transformers s | ratio "
        "| decoding alone: r1ov tokens/s | transformers tokens/s | ratio |"
    )
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    for count in (1, 16):
        prompts = [messages(sample("test", index))[:1] for index in range(count)]
        for forced in (False, True):

            def plan(limit: int, prompts=prompts, forced=forced):
                made = prepare(
                    processor, prompts, max_new_tokens=limit, temperature=0.0, repetition_penalty=1.0
                )
                return replace(made, stop_ids=frozenset()) if forced else made

            most = 64 if forced else 256
            plans = {limit: plan(limit) for limit in (1, most)}
            inputs = reference_inputs(processor.pack(plans[1].prompts), config)

            def run_ours(limit, plans=plans):
                return [row.token_ids for row in decode(model, processor, plans[limit])[0]]

            def run_theirs(limit, inputs=inputs, forced=forced):
                lengths = (
                    {"min_new_tokens": limit, "eos_token_id": None} if forced else {"eos_token_id": stops}
                )
                made = reference.generate(
                    **inputs,
                    **lengths,
                    max_new_tokens=limit,
                    do_sample=False,
                    pad_token_id=config.pad_token_id,
                )
                return made[:, inputs["input_ids"].shape[1] :].tolist()

            answers = run_ours(most)
            for mine, theirs in zip(answers, run_theirs(most), strict=True):
                assert theirs[: len(mine)] == mine, "not the same tokens: nothing to time"
            taken = {(run, limit): [] for run in (run_ours, run_theirs) for limit in (1, most)}
            for run, limit in taken:
                run(limit)  # warm
            for _ in range(options.repeats):
                for (run, limit), times in taken.items():
                    begin = time.perf_counter()
                    run(limit)
                    times.append(time.perf_counter() - begin)
            seconds = {key: statistics.median(times) for key, times in taken.items()}
            (first, mine), (their_first, theirs) = (
                (seconds[run, 1], seconds[run, most]) for run in (run_ours, run_theirs)
            )
            later = sum(map(len, answers)) - count  # all but the first tokens, which the prefill makes
            speed, their_speed = later / (mine - first), later / (theirs - their_first)
            print(
                f"| {count} | {'64 tokens' if forced else 'to the end'} "
                f"| {mine:.3f} | {theirs:.3f} | {theirs / mine:.1f} "
                f"| {speed:,.0f} | {their_speed:,.0f} | {speed / their_speed:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
