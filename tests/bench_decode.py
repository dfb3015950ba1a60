"""Decoding beside transformers' `generate`: the same weights, prompts and tokens, in one process, runs taken in turn.

    python -m tests.bench_decode [--model r1ov-tiny] [--repeats 5] [--num-threads N]

First proves that both make the same tokens, then prints medians over the repeats. "to the end" stops every row at its own stop token;
"64 tokens" forces every row to 64, so that no side gains by rows that end early.
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
from r1ov.engine.generate import decode, prepare
from r1ov.model.hub import resolve


def reference_inputs(batch, config):
    """Our packed prompts as transformers wants them: left-padded, with a mask and the kinds of tokens."""
    rows = [batch["input_ids"][begin:end] for begin, end in pairwise(batch["cu_seqlens"].tolist())]
    longest = max(map(len, rows))
    ids = torch.stack([torch.cat([row.new_full((longest - len(row),), config.pad_token_id), row]) for row in rows])
    mask = torch.stack([torch.cat([row.new_zeros(longest - len(row)), torch.ones_like(row)]) for row in rows])
    pictures = {name: batch[name] for name in ("pixel_values", "image_grid_thw")}
    return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == config.image_token_id).long(), **pictures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="r1ov-tiny")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--num-threads", type=int)
    options = parser.parse_args()
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    model, processor = r1ov.load(options.model)
    reference = Qwen2_5_VLForConditionalGeneration.from_pretrained(resolve(options.model), dtype=torch.float32).eval()
    config = model.config
    stops = processor.generation_config["eos_token_id"]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {options.model}, float32, greedy, medians of {options.repeats}")
    print("| sequences | answers | r1ov s | transformers s | ratio | r1ov tokens/s | transformers tokens/s |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for count in (1, 16):
        prompts = [messages(sample("test", index))[:1] for index in range(count)]
        for answers in ("to the end", "64 tokens"):
            forced = answers == "64 tokens"
            plan = prepare(processor, prompts, max_new_tokens=64 if forced else 256, temperature=0.0, repetition_penalty=1.0)
            inputs = reference_inputs(plan.batch, config)
            # A stop id that no model ever makes keeps every row going to its limit.
            ours = replace(processor, generation_config={"eos_token_id": [config.text.vocab_size]}) if forced else processor
            lengths = (
                {"min_new_tokens": 64, "max_new_tokens": 64, "eos_token_id": None}
                if forced
                else {"max_new_tokens": 256, "eos_token_id": stops}
            )

            def run_ours(plan=plan, ours=ours):
                return [row.token_ids for row in decode(model, ours, plan)[0]]

            def run_theirs(inputs=inputs, lengths=lengths):
                made = reference.generate(**inputs, **lengths, do_sample=False, pad_token_id=config.pad_token_id)
                return made[:, inputs["input_ids"].shape[1] :].tolist()

            for mine, theirs in zip(run_ours(), run_theirs(), strict=True):
                assert theirs[: len(mine)] == mine, "not the same tokens: nothing to time"
            times = {run_ours: [], run_theirs: []}
            for _ in range(options.repeats):
                for run, taken in times.items():
                    begin = time.perf_counter()
                    tokens = run()
                    taken.append(time.perf_counter() - begin)
                    if run is run_ours:
                        made = sum(map(len, tokens))
            mine, theirs = (statistics.median(taken) for taken in times.values())
            print(
                f"| {count} | {answers} | {mine:.3f} | {theirs:.3f} | {theirs / mine:.1f} | {made / mine:,.0f} | {made / theirs:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
