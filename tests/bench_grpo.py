"""One GRPO step of r1ov-tiny on a CPU beside TRL's GRPOTrainer, with the same model, pictures, rewards and
settings. Not run by pytest.

    OMP_NUM_THREADS=1 python -m tests.bench_grpo [STEPS] [PROMPTS] [--model FOLDER]

Prints the seconds of a step by phase, median over the steps, and the ratio. 8 prompts x 8 completions of the
playground's rl split, up to 128 tokens, AdamW, `dapo` loss, beta 0, one process of one thread. TRL runs as it
comes: transformers' generate (its default without a vLLM server), sdpa attention, one micro-batch, no
gradient checkpointing. Its processor is put together here of transformers' own parts, because the published
one wants torchvision for videos. Both leave out their first step, in which caches fill. Both models start
equal and sample on their own, so that lengths differ a little; the tokens made are shown. Where others use
the machine too, compare the CPU seconds.

Shown as well is the share of groups without spread, whose completions r1ov leaves out of the update:
r1ov-tiny has learned from such questions and answers most of its groups alike; a model in the midst of
training shows what a run gains.
"""

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from r1ov.data.playground import sample
from r1ov.folder.pretrained import resolve
from r1ov.reward import accuracy_reward, format_reward
from r1ov.train.grpo import train
from r1ov.train.run.config import GRPOConfig
from r1ov.train.run.log import Log

EACH, TOKENS, LEARNING_RATE = 8, 128, 1e-5


def ours(model: str, steps: int, prompts: int) -> dict[str, float]:
    """Medians of a step's phases, in seconds."""
    stamps, log = [], Log.step

    def stamped(self: Log, *arguments: Any) -> None:
        stamps.append(time.process_time())
        log(self, *arguments)

    with tempfile.TemporaryDirectory() as out, patch.object(Log, "step", stamped):
        train(
            GRPOConfig(
                out=out,
                model=model,
                max_steps=steps,
                train_batch_size=EACH * prompts,
                num_generations=EACH,
                max_completion_length=TOKENS,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                eval_steps=0,
                sample_steps=0,
                device="cpu",
                num_threads=torch.get_num_threads(),
            )
        )
        rows = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()][1:]
    return {
        "rollout and rewards": median(row["generation_seconds"] for row in rows),
        "update": median(row["update_seconds"] for row in rows),
        "step": median(row["step_ms"] / 1000 for row in rows),
        "step, CPU seconds": median(after - before for before, after in pairwise(stamps)),
        "tokens of a completion": median(row["completions/mean_length"] for row in rows),
        "groups without spread": sum(row["frac_reward_zero_std"] for row in rows) / len(rows),
        "reward": sum(row["reward"] for row in rows) / len(rows),
    }


def trls(model: str, steps: int, prompts: int) -> dict[str, float]:
    from datasets import Dataset
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from trl import GRPOConfig as TRLConfig
    from trl import GRPOTrainer

    class Processor(Qwen2_5_VLProcessor):
        """Without a video processor."""

        def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
            self.video_processor = None
            super(Qwen2_5_VLProcessor, self).__init__(image_processor, tokenizer, chat_template=chat_template)
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)

    folder = resolve(model)
    # TRL pads prompts on the left, and takes the pictures' places from the processor.
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    processor = Processor(
        Qwen2VLImageProcessorPil.from_pretrained(folder), tokenizer, tokenizer.chat_template
    )
    phases, totals, stamps = defaultdict(list), [], []

    class Timed(GRPOTrainer):
        def _generate(self, *arguments, **options):
            return self._timed("rollout and rewards", super()._generate, *arguments, **options)

        def _calculate_rewards(self, *arguments, **options):
            return self._timed("rewards", super()._calculate_rewards, *arguments, **options)

        @staticmethod
        def _timed(name, work, *arguments, **options):
            begun = time.perf_counter()
            result = work(*arguments, **options)
            phases[name].append(time.perf_counter() - begun)
            return result

        def log(self, logs, *arguments, **options):
            if "loss" in logs:
                totals.append(time.perf_counter())
                stamps.append(time.process_time())
            super().log(logs, *arguments, **options)

    def accuracy(completions, gold, kind, **_):
        return [
            accuracy_reward(one[0]["content"], *rest)
            for one, *rest in zip(completions, gold, kind, strict=True)
        ]

    def form(completions, **_):
        return [format_reward(one[0]["content"]) for one in completions]

    rows = []
    for number in range(steps * prompts):
        one = sample("rl", number)
        rows.append(
            {
                "prompt": [{"role": "user", "content": one.question}],
                "image": one.image,
                "gold": one.answer,
                "kind": one.kind,
            }
        )
    with tempfile.TemporaryDirectory() as out:
        trainer = Timed(
            model=Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32),
            reward_funcs=[accuracy, form],
            args=TRLConfig(
                output_dir=out,
                max_steps=steps,
                per_device_train_batch_size=EACH * prompts,
                num_generations=EACH,
                max_completion_length=TOKENS,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                shuffle_dataset=False,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=processor,
        )
        trainer.train()
    generated = [a + b for a, b in zip(phases["rollout and rewards"], phases["rewards"], strict=True)][1:]
    lines = [row for row in trainer.state.log_history if "reward" in row][1:]
    whole = [after - before for before, after in pairwise(totals)]  # from one line of the log to the next
    return {
        "rollout and rewards": median(generated),
        "update": median(total - part for total, part in zip(whole, generated, strict=True)),
        "step": median(whole),
        "step, CPU seconds": median(after - before for before, after in pairwise(stamps)),
        "tokens of a completion": median(row["completions/mean_length"] for row in lines),
        "groups without spread": sum(row["frac_reward_zero_std"] for row in lines) / len(whole),
        "reward": sum(row["reward"] for row in lines) / len(whole),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("steps", type=int, nargs="?", default=6)
    parser.add_argument("prompts", type=int, nargs="?", default=8)
    parser.add_argument("--model", default="r1ov-tiny", help="model folder; default: r1ov-tiny")
    options = parser.parse_args()
    steps, prompts, model = options.steps, options.prompts, options.model
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    results = {"r1ov": ours(model, steps, prompts), "TRL": trls(model, steps, prompts)}
    print(
        f"{prompts} prompts x {EACH} completions of up to {TOKENS} tokens, {model}, "
        f"{torch.get_num_threads()} thread(s), {steps} steps"
    )
    print(f"{'':24}{'r1ov':>9}{'TRL':>9}{'ratio':>8}")
    for name, value in results["r1ov"].items():
        other = results["TRL"][name]
        ratio = f"{other / value:8.1f}" if name in list(results["r1ov"])[:4] else ""
        print(f"{name:24}{value:9.3f}{other:9.3f}{ratio}")


if __name__ == "__main__":
    main()
