"""The evaluation's runner beside a loop over transformers' `generate`, one question at a time: same
questions, same greedy texts.

    python -m tests.bench_evaluate [--limit 64] [--repeats 5] [--num-threads 1] [--max-new-tokens 256]

Both sides run in one process, in turn, so that whatever else the machine does slows both; of each the median
and the range of the repeats are told, in wall time and in CPU time. The ratio is that of each pair.

Both sides begin with the items and end with their texts: pictures, tokenising, prefill and decoding are all
inside the time; the runner also scores each answer and writes it down.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from r1ov import load
from r1ov.evaluate.__main__ import EvaluateConfig as Asking
from r1ov.evaluate.benchmarks import playground_items
from r1ov.evaluate.prompts import messages_of
from r1ov.evaluate.runner import run
from r1ov.evaluate.scoring import score
from r1ov.folder.pretrained import resolve
from tests.bench_decode import reference_inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)
    model, processor = load("r1ov-tiny")
    reference = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        resolve("r1ov-tiny"), dtype=torch.float32
    ).eval()
    asking = Asking(prompt="none", max_new_tokens=options.max_new_tokens)
    items = playground_items("test", options.limit)
    tokens = 0

    def ask(items) -> dict[str, str]:
        with tempfile.TemporaryDirectory() as folder:
            rows = run(
                model, processor, items, asking, Path(folder), {}, lambda item, row: score(item, row).score
            )
        return {row.id: row.text for row in rows}

    @torch.inference_mode()
    def loop(items) -> dict[str, str]:
        nonlocal tokens
        texts = {}
        for item in items:
            # The inputs are made by our processor, which does not cost transformers' side its own, slower
            # one.
            inputs = reference_inputs(
                processor(messages_of(item, "none", None), add_generation_prompt=True), model.config
            )
            made = reference.generate(**inputs, do_sample=False, max_new_tokens=options.max_new_tokens)[
                0, inputs["input_ids"].shape[1] :
            ]
            tokens += len(made)
            texts[item.id] = processor.decode(made)
        return texts

    def timed(work, items) -> tuple[dict[str, str], tuple[float, float]]:
        wall, cpu = time.perf_counter(), time.process_time()
        texts = work(items)
        return texts, (time.perf_counter() - wall, time.process_time() - cpu)

    ask(items[:4])  # warm up, both
    loop(items[:4])
    tokens, pairs = 0, []
    for repeat in range(options.repeats):
        sides = [(ask, "ours"), (loop, "theirs")]
        done = {name: timed(work, items) for work, name in sides[:: -1 if repeat % 2 else 1]}
        ours, theirs = done["ours"][0], done["theirs"][0]
        same = sum(ours[id] == theirs[id] for id in theirs)
        assert same == len(items), f"only {same} of {len(items)} texts are the same"
        pairs.append((done["ours"][1], done["theirs"][1]))
    print(
        f"torch {torch.__version__}, {options.num_threads} thread(s), r1ov-tiny, float32, greedy, "
        f"{len(items)} questions, {tokens // options.repeats:,} tokens, {options.repeats} pairs in turn"
    )
    print("| seconds, median (range) | the runner | transformers' generate, one by one | times as fast |")
    print("|---|---:|---:|---:|")
    for at, name in enumerate(("wall", "CPU")):
        ours, theirs = ([pair[side][at] for pair in pairs] for side in (0, 1))
        ratios = [slow / fast for fast, slow in zip(ours, theirs, strict=True)]
        cells = [spread(ours), spread(theirs), spread(ratios, 1)]
        print(f"| {name} | {' | '.join(cells)} |")
    print("\nthe texts are the same")


def spread(values: list[float], digits: int = 2) -> str:
    low, middle, high = (f"{fold(values):.{digits}f}" for fold in (min, statistics.median, max))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
