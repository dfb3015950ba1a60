"""Shows an image and a question to a model and prints its thoughts and its answer.

python generate.py --image picture.png --prompt "How many red circles are there?"
python generate.py --model Fancy-MLLM/R1-Onevision-7B --image photo.jpg --prompt "What is going on here?"
python generate.py --chat --image picture.png
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from r1ov.cli import AskingOptions, check_bounds, option, parse_cli, run
from r1ov.common.files import can_be_written, say
from r1ov.errors import UserError

DEFAULT_PROMPT = "How many objects are there?"
MAX_SAMPLES = 1024
TINY_NOTE = (
    "it knows drawn pictures only: counts, charts, geometry, letters and sums, positions, patterns, boxes. "
    "For photos: --model Fancy-MLLM/R1-Onevision-7B"
)
FAR_NOTE = (
    "it was not taught to answer this: it knows single questions, the ones that "
    "python -m r1ov.data.playground --questions prints"
)
TURN_NOTE = "if this model was trained on single questions, a second turn is new to it; /reset starts again"


@dataclass(frozen=True, kw_only=True)
class Options(AskingOptions):
    image: tuple[str, ...] = option((), "an image: a path or an http(s) URL; may be given several times")
    prompt: str | None = option(
        None, f"the question; - reads it from stdin (default with an image: {DEFAULT_PROMPT!r})"
    )
    max_new_tokens: int | None = option(
        None, "the most tokens of an answer (default: the checkpoint's, or 2048)", least=1
    )
    temperature: float | None = option(None, "0 is greedy (default: the checkpoint's)")
    top_p: float | None = option(
        None,
        "sample from the likeliest tokens that make up this probability (default: the checkpoint's)",
        above=0,
        most=1,
    )
    top_k: int | None = option(
        None, "sample from this many likeliest tokens, 0 for all (default: the checkpoint's)", least=0
    )
    num_samples: int = option(1, "how many answers", least=1, most=MAX_SAMPLES)
    json: bool = option(False, "print one JSON object a sample")
    chat: bool = option(False, "a conversation: questions are read line by line until the input ends")
    look: str | None = option(None, "also write this page: what the model did, word by word (r1ov/look)")

    def __post_init__(self) -> None:
        """Raises UserError for every mistake that can be seen without torch."""
        check_bounds(self)
        if self.max_pixels and (self.min_pixels or 0) > self.max_pixels:
            raise UserError(f"--min-pixels {self.min_pixels} is above --max-pixels {self.max_pixels}")
        if self.look and not can_be_written(self.look):
            raise UserError(f"--look {self.look}: not a file that can be written; its folder must be there")
        if self.chat and (self.json or self.look or self.num_samples > 1 or self.prompt == "-"):
            raise UserError("--chat goes with none of --json, --look, --num-samples and --prompt -")
        if self.tensor_parallel != (count := int(os.environ.get("WORLD_SIZE", "1"))):
            raise UserError(
                f"--tensor-parallel is {self.tensor_parallel}, processes are {count}; it must be as many as "
                "torchrun's --nproc-per-node starts"
            )
        if self.tensor_parallel > 1 and (self.chat or self.look or self.prompt == "-"):
            raise UserError("--tensor-parallel goes with none of --chat, --look and --prompt -")
        if not (self.prompt or self.image or self.chat):
            raise UserError("nothing to answer: give --image, --prompt or both")
        if self.prompt is None and not self.chat:
            object.__setattr__(self, "prompt", DEFAULT_PROMPT)
        elif self.prompt == "-":
            read = sys.stdin.buffer.read().decode(errors="surrogateescape")
            object.__setattr__(self, "prompt", read.strip())
        if self.prompt is not None and not self.prompt.strip():
            raise UserError("--prompt is empty")


def main(device: Any = None) -> None:
    """Args: device: this process's, where several have joined."""
    options = parse_cli(Options, prog="generate.py", description=__doc__.splitlines()[0])
    # torch takes seconds to import: not before the command line is known to be right, and never for --help.
    from r1ov.common.processes import choose_device, choose_dtype, choose_kernels
    from r1ov.data.messages import conversation
    from r1ov.data.playground.scene import is_asked
    from r1ov.engine import decode, needs, prepare
    from r1ov.engine.terminal import painted
    from r1ov.folder.pretrained import SHIPPED, find, read_model, read_processor

    if options.tensor_parallel > 1 and not device:
        from r1ov.engine.parallel import together

        return together(main, options.device)
    device = device or choose_device(options.device)
    choose_dtype(options.dtype, device)
    kernels = choose_kernels(options.kernels, device)
    folders = find(options.model, options.adapter)
    processor = read_processor(folders.settings).with_pixel_limits(options.min_pixels, options.max_pixels)
    names = ("temperature", "top_p", "top_k", "max_new_tokens", "seed", "num_samples")
    settings = {name: getattr(options, name) for name in names}
    images = [{"type": "image", "image": image} for image in options.image]
    messages = conversation(options.prompt or "", images, options.system)
    plan = prepare(processor, [messages], **settings)
    if plan.params.temperature == 0 and options.num_samples > 1:
        raise UserError(
            f"greedy decoding gives {options.num_samples} times the same answer; give a --temperature above 0"
        )

    # Only now: every mistake above is reported before anything large is loaded.
    beside = partial(needs, processor.config, *plan.sizes())
    model, said = read_model(
        folders, processor.config, device, options.dtype, options.quantize, beside, options.tensor_parallel
    )
    say(f"{options.model} | {device} | {kernels} kernels | {said}")
    if is_tiny := options.model in SHIPPED and not folders.adapter:
        say(TINY_NOTE)
    show = painted if sys.stdout.isatty() else plain
    if options.chat:
        from r1ov.engine.chat import Chat, talk

        del settings["num_samples"]
        chat = Chat(model, processor, options.system, options.image, **settings)
        notes = [FAR_NOTE] if is_tiny else [TURN_NOTE] * (folders.settings / "r1ov.json").exists()

        def answer(question: str) -> None:
            if notes and (len(chat.messages) > 1 or (is_tiny and not is_asked(question))):
                say(notes.pop())
            with show() as stream:
                completion, timing = chat.ask(question, stream)
            report([completion], timing)

        return talk(chat, options.prompt, answer, say)

    if is_tiny and not is_asked(options.prompt):
        say(FAR_NOTE)
    if options.num_samples == 1 and not options.json:
        with show() as stream:
            completions, timing = decode(model, processor, plan, stream)
    else:
        completions, timing = decode(model, processor, plan)
        for number, completion in enumerate(completions, 1):
            if options.json:
                tokens = [processor.decode([id], skip_special_tokens=False) for id in completion.token_ids]
                more = ("completion_tokens", "thinking", "answer")
                sample = vars(completion) | {name: getattr(completion, name) for name in more}
                print(json.dumps(sample | {"tokens": tokens}, ensure_ascii=False))
            else:
                print(f"--- {number}/{len(completions)} ---")
                with show() as stream:
                    stream(completion.text)
    sys.stdout.flush()
    report(completions, timing)
    if options.look:
        from r1ov.look.page import write_page

        answer_ids = completions[0].token_ids
        write_page(Path(options.look), model, processor, messages, options.model, completion=answer_ids)
        say(f"{options.look}: open it in a browser")


@contextmanager
def plain() -> Iterator[Callable[[str], None]]:
    """Writes each piece of a text as it comes, for pipes and files."""
    yield partial(print, end="", flush=True)
    print()


def report(completions: Sequence, timing: Any) -> None:
    """Says what was cut off, and how fast it went."""
    if cut := [len(one.token_ids) for one in completions if one.finish_reason == "length"]:
        say(f"cut off after {cut[0]:,} tokens (--max-new-tokens, or the model's last position)")
    parts = (
        ("prefill", timing.prefill_tokens, timing.prefill_seconds),
        ("decode", timing.decode_tokens, timing.decode_seconds),
    )
    rates = (
        f"{name} {tokens:,} token{'s' * (tokens != 1)} in {seconds:.2f} s "
        f"({tokens / max(seconds, 1e-9):,.0f} tokens/s)"
        for name, tokens, seconds in parts
        if tokens
    )
    say(" | ".join(rates))


if __name__ == "__main__":
    sys.exit(run(main))
