"""A real model beside transformers, each as it loads by default: the same prompts, in one process, by turns.

    python -m tests.bench_real FOLDER [--num-threads 1] [--dtype DTYPE] [--quantize int4] [--tokens 48]

The folder is any Qwen2.5-VL in Hugging Face's layout; the prompts are text. Every answer is forced to its
full length. A row gives seconds for both sides and their ratio; the last ones how far the model as it is, and
with int8 and int4 weights, is from float32: KL divergence a token, and how often the likeliest next token is
the same.
"""

import argparse
import time
from dataclasses import replace

import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

import r1ov
from r1ov.engine import decode, prepare
from r1ov.folder.pretrained import read_processor

QUESTIONS = [
    "What is the capital of France?",
    "Write a Python function that reverses a string.",
    "Explain in two sentences why the sky is blue.",
    "List the first ten prime numbers and say how you know.",
    "Solve 3x + 5 = 20 step by step.",
    "Translate 'good morning, how are you?' into German and Spanish.",
    "What does a compiler do, and how does it differ from an interpreter?",
    "A train goes 60 km in 45 minutes. How fast is it in km/h?",
    "Write a haiku about the sea.",
    "How many sides does a hexagon have, and what is the sum of its angles?",
]


def timed(run):
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


class Ours:
    def __init__(self, folder, **settings):
        self.model, self.processor = r1ov.load(folder, **settings)

    def answer(self, questions, tokens):
        conversations = [[{"role": "user", "content": question}] for question in questions]
        plan = prepare(self.processor, conversations, max_new_tokens=tokens, temperature=0.0)
        return [
            row.token_ids
            for row in decode(self.model, self.processor, replace(plan, stop_ids=frozenset()))[0]
        ]

    @torch.inference_mode()
    def logprobs(self, conversations):
        """(T, V) of all conversations, in float32."""
        batch = self.processor.pack([self.processor.encode(one) for one in conversations])
        names = ("input_ids", "position_ids", "cu_seqlens")
        return self.model(**{name: batch[name] for name in names}).float().log_softmax(-1)


class Theirs:
    def __init__(self, folder, **settings):
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, **settings).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.template = read_processor(folder).chat_template

    def answer(self, questions, tokens):
        chats = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=True,
            )
            for question in questions
        ]
        inputs = self.tokenizer(chats, return_tensors="pt", padding=True)
        made = self.model.generate(
            **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=151643
        )
        return made[:, inputs["input_ids"].shape[1] :].tolist()


def tell_quality(folder, answers, dtype):
    """How far weights of fewer bits are from float32's, over the questions with their answers."""
    conversations = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in zip(QUESTIONS, answers, strict=True)
    ]
    exact = Ours(folder, dtype="float32").logprobs(conversations)
    print("| beside float32 | KL a token | the same likeliest token |\n|---|---:|---:|")
    for settings in (dtype, {"quantize": "int8"}, {"quantize": "int4"}):
        near = Ours(folder, **settings).logprobs(conversations)
        kl = (exact.exp() * (exact - near)).sum(-1).mean()
        same = (exact.argmax(-1) == near.argmax(-1)).float().mean()
        name = settings.get("quantize", "as it is")
        print(f"| {name} | {kl:.4f} | {same:.1%} of {len(exact)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--dtype", help="of both sides; default: each side's own")
    parser.add_argument("--quantize", choices=("int4", "int8"), help="our side alone")
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)
    dtype = {"dtype": options.dtype} if options.dtype else {}
    quantize = {"quantize": options.quantize} if options.quantize else {}
    print(
        f"torch {torch.__version__}, {torch.cpu.get_capabilities()['cpu_name']}, "
        f"{options.num_threads} thread(s)"
    )
    first, theirs = timed(lambda: Theirs(options.folder, **dtype))
    second, ours = timed(lambda: Ours(options.folder, **dtype, **quantize))
    names = [str(next(side.model.parameters()).dtype) for side in (ours, theirs)]
    print(
        f"| {options.quantize or ''} {names[0]} beside {names[1]} "
        "| r1ov s | transformers s | ratio | equal tokens |"
    )
    print("|---|---:|---:|---:|---:|")

    def row(name, mine, its, extra=""):
        print(f"| {name} | {mine:.2f} | {its:.2f} | {its / mine:.2f} | {extra} |", flush=True)

    row("load", second, first)

    def race(name, batches, before=(0.0, 0.0)):
        times, equal, total = [0.0, 0.0], 0, 0
        for number, batch in enumerate(batches):
            sides = ((0, ours), (1, theirs)) if number % 2 else ((1, theirs), (0, ours))
            made = {}
            for index, side in sides:
                took, made[index] = timed(lambda side=side, batch=batch: side.answer(batch, options.tokens))
                times[index] += took
            for mine, its in zip(made[0], made[1], strict=True):
                equal += sum(a == b for a, b in zip(mine, its, strict=True))
                total += len(its)
        row(name, times[0] + before[0], times[1] + before[1], f"{equal} of {total}")

    race(f"load + 3 prompts x {options.tokens}", [[question] for question in QUESTIONS[:3]], (second, first))
    race(f"ten prompts one by one x {options.tokens}", [[question] for question in QUESTIONS])
    race(f"a batch of ten x {options.tokens}", [QUESTIONS])

    answers = [ours.processor.decode(ids) for ids in ours.answer(QUESTIONS, options.tokens)]
    tell_quality(options.folder, answers, dtype)


if __name__ == "__main__":
    main()
