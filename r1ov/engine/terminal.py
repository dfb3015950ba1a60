"""What `generate.py` shows: the answer as it is thought, on a terminal; plain text in a pipe; JSON for programs."""

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TextIO

from kernels.attention import default_impl
from r1ov.engine.generate import Timing, decode, prepare
from r1ov.pretrained import load

TINY_NOTE = (
    "r1ov-tiny: a few million parameters, trained on drawn pictures only (counting, charts, geometry, text and sums, positions, patterns, "
    "boxes; see r1ov/data/playground). For real pictures: --model Fancy-MLLM/R1-Onevision-7B"
)

DIM, BOLD, RESET = "\x1b[2m", "\x1b[1m", "\x1b[0m"
STYLES = {"<think>": DIM, "</think>": RESET, "<answer>": BOLD, "</answer>": RESET}
# Everything but newline and tab that would move the cursor or change the terminal's state.
CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


def answer(options: Any) -> None:
    """Runs `generate.py`: loads the model, answers, prints the answers on stdout and all else on stderr.

    Args: options: the fields of `generate.py`'s Options.
    """
    model, processor = load(options.model, options.device, options.dtype)
    if options.min_pixels or options.max_pixels:
        processor = processor.with_pixel_limits(options.min_pixels, options.max_pixels)
    sampling = {name: getattr(options, name) for name in ("temperature", "top_p", "top_k", "max_new_tokens", "seed", "num_samples")}
    plan = prepare(model, processor, [_messages(options)], **sampling)

    # Not before here: a mistake of the user's gives one line, its own.
    head = model.head_weight
    parameters = _count(sum(parameter.numel() for parameter in model.parameters()))
    dtype = str(head.dtype).removeprefix("torch.")
    _say(f"{options.model} | {parameters} parameters | {head.device} | {dtype} | attention {default_impl(head.device)}")
    if options.model == "r1ov-tiny":
        _say(TINY_NOTE)
    if plan.params.temperature == 0 and (options.num_samples > 1 or options.top_p is not None or options.top_k is not None):
        _say("greedy: --num-samples, --top-p and --top-k change nothing without a --temperature above 0")

    if options.json:
        completions, timing = decode(model, processor, plan)
        for completion in completions:
            print(json.dumps(asdict(completion), ensure_ascii=False))
    else:
        with painter(sys.stdout) as paint:
            if options.num_samples == 1:
                _, timing = decode(model, processor, plan, stream=paint)
            else:
                completions, timing = decode(model, processor, plan)
                for number, completion in enumerate(completions, 1):
                    paint.line(f"--- {number}/{len(completions)} ---")
                    paint(completion.text)
                    paint.end()
    sys.stdout.flush()
    _say(closing_line(timing))


class Painter:
    """Writes text as it arrives; in colour, the thought is dim, the answer bold, and the tags that mark them are gone."""

    def __init__(self, out: TextIO, is_terminal: bool, in_colour: bool):
        self.out, self.is_terminal, self.in_colour = out, is_terminal, in_colour
        self.held, self.is_open = "", False

    def __call__(self, piece: str) -> None:
        self.is_open = True
        if self.is_terminal:
            piece = piece.translate(CONTROLS)
        if self.in_colour:
            parts = re.split("(</?think>|</?answer>)", self.held + piece)
            # What may be the beginning of a tag waits for the rest of it.
            self.held = re.search("(<[/a-z]{0,8})?$", parts[-1])[0]
            parts[-1] = parts[-1].removesuffix(self.held) if self.held else parts[-1]
            piece = "".join(STYLES.get(part, part) for part in parts)
        self.out.write(piece)
        self.out.flush()

    def line(self, text: str) -> None:
        self.out.write(f"{DIM}{text}{RESET}\n" if self.in_colour else f"{text}\n")

    def end(self) -> None:
        """Ends the text, if there was any: nothing stays held back, no style stays on."""
        if not self.is_open:
            return
        self.out.write(self.held + (RESET if self.in_colour else "") + "\n")
        self.out.flush()
        self.held, self.is_open = "", False


@contextmanager
def painter(out: TextIO) -> Iterator[Painter]:
    """A Painter for this stream, which leaves the terminal clean however it ends. NO_COLOR (any value) and TERM=dumb mean no colour."""
    is_terminal = out.isatty()
    in_colour = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    paint = Painter(out, is_terminal, in_colour)
    try:
        yield paint
    finally:
        paint.end()


def closing_line(timing: Timing) -> str:
    """How fast it went, in one line."""
    parts = [
        f"prefill {timing.prefill_tokens} tokens in {timing.prefill_seconds:.2f} s{_rate(timing.prefill_tokens, timing.prefill_seconds)}"
    ]
    if timing.decode_tokens:
        parts.append(
            f"decode {timing.decode_tokens} tokens in {timing.decode_seconds:.2f} s{_rate(timing.decode_tokens, timing.decode_seconds)}"
        )
    return " | ".join(parts)


def _rate(tokens: int, seconds: float) -> str:
    return f", {tokens / max(seconds, 1e-9):,.0f} tokens/s"


def _messages(options: Any) -> list[dict[str, Any]]:
    system = [] if options.system is None else [{"role": "system", "content": options.system}]
    content = [{"type": "image", "image": image} for image in options.image]
    return [*system, {"role": "user", "content": [*content, {"type": "text", "text": options.prompt}]}]


def _count(number: int) -> str:
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
