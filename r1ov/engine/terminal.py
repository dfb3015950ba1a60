"""What `generate.py` shows: the answer as it is thought, on a terminal; plain text in a pipe; JSON for
programs.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TextIO

from r1ov.common.device import choose_device, choose_kernels
from r1ov.engine import Timing, decode, prepare
from r1ov.errors import UserError
from r1ov.folder.pretrained import SHIPPED, load, resolve
from r1ov.folder.settings import read_processor

TINY_NOTE = (
    "it knows drawn pictures only: counts, charts, geometry, letters and sums, positions, patterns, boxes. "
    "For photos: --model Fancy-MLLM/R1-Onevision-7B"
)

DIM, BOLD, RESET = "\x1b[2m", "\x1b[1m", "\x1b[0m"
STYLES = {"<think>": DIM, "</think>": RESET, "<answer>": BOLD, "</answer>": RESET}
# Everything but newline and tab that would move the cursor or change the terminal's state.
CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


def answer(options: Any) -> None:
    """Runs `generate.py`: loads the model, answers, prints the answers on stdout and all else on stderr.

    Args: options: the fields of `generate.py`'s Options.
    """
    device = choose_device(options.device)
    kernels = choose_kernels(options.kernels, device)
    folder = resolve(options.model)
    processor = read_processor(folder)
    if options.min_pixels or options.max_pixels:
        processor = processor.with_pixel_limits(options.min_pixels, options.max_pixels)
    sampling = {
        name: getattr(options, name)
        for name in ("temperature", "top_p", "top_k", "max_new_tokens", "seed", "num_samples")
    }
    plan = prepare(processor, [_messages(options)], **sampling)

    if plan.params.temperature == 0 and options.num_samples > 1:
        raise UserError(
            f"greedy decoding gives {options.num_samples} times the same answer; give a --temperature above 0"
        )

    model, _ = load(folder, device, options.dtype)

    # Not before here: a mistake of the user's gives one line, its own.
    head = model.head_weight
    parameters = _count(sum(parameter.numel() for parameter in model.parameters()))
    dtype = str(head.dtype).removeprefix("torch.")
    _say(f"{options.model} | {parameters} parameters | {head.device} | {dtype} | {kernels} kernels")
    if options.model in SHIPPED:
        _say(TINY_NOTE)

    if options.json:
        completions, timing = decode(model, processor, plan)
        for completion in completions:
            print(json.dumps(asdict(completion), ensure_ascii=False))
    else:
        with painter(sys.stdout) as paint:
            if options.num_samples == 1:
                completions, timing = decode(model, processor, plan, stream=paint)
            else:
                completions, timing = decode(model, processor, plan)
                for number, completion in enumerate(completions, 1):
                    paint.line(f"--- {number}/{len(completions)} ---")
                    paint(completion.text)
                    paint.end()
    sys.stdout.flush()
    if cut := [completion for completion in completions if completion.finish_reason == "length"]:
        _say(
            f"cut off after {cut[0].completion_tokens:,} tokens (--max-new-tokens, or the model's last position)"
        )
    _say(closing_line(timing))


class Painter:
    """Writes text as it arrives; in colour, the thought is dim, the answer bold, and the tags that mark them
    are gone.
    """

    def __init__(self, out: TextIO, is_terminal: bool, in_colour: bool):
        self.out, self.is_terminal, self.in_colour = out, is_terminal, in_colour
        self.held, self.is_open, self.is_styled = "", False, False

    def __call__(self, piece: str) -> None:
        self.is_open = True
        if self.is_terminal:
            piece = piece.translate(CONTROLS)
        if self.in_colour:
            parts = re.split("(</?think>|</?answer>)", self.held + piece)
            # What may be the beginning of a tag waits for the rest of it.
            self.held = re.search(r"(<[/a-z]{0,8})?\Z", parts[-1])[
                0
            ]  # not `$`, which also matches before a last newline
            parts[-1] = parts[-1].removesuffix(self.held) if self.held else parts[-1]
            for part in parts:
                self.is_styled = STYLES[part] != RESET if part in STYLES else self.is_styled
            piece = "".join(STYLES.get(part, part) for part in parts)
        self.out.write(piece)
        self.out.flush()

    def line(self, text: str) -> None:
        self.out.write(f"{DIM}{text}{RESET}\n" if self.in_colour else f"{text}\n")

    def end(self) -> None:
        """Ends the text, if there was any: nothing stays held back, no style stays on."""
        if not self.is_open:
            return
        self.out.write(self.held + (RESET if self.is_styled else "") + "\n")
        self.out.flush()
        self.held, self.is_open, self.is_styled = "", False, False


@contextmanager
def painter(out: TextIO) -> Iterator[Painter]:
    """A Painter for this stream, which leaves the terminal clean however it ends. NO_COLOR (any value) and
    TERM=dumb mean no colour.
    """
    is_terminal = out.isatty()
    in_colour = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    paint = Painter(out, is_terminal, in_colour)
    try:
        yield paint
    finally:
        paint.end()


def closing_line(timing: Timing) -> str:
    """How fast it went, in one line."""
    parts = [_rate("prefill", timing.prefill_tokens, timing.prefill_seconds)]
    if timing.decode_tokens:
        parts.append(_rate("decode", timing.decode_tokens, timing.decode_seconds))
    return " | ".join(parts)


def _rate(what: str, tokens: int, seconds: float) -> str:
    return f"{what} {tokens:,} token{'s' * (tokens != 1)} in {seconds:.2f} s ({tokens / max(seconds, 1e-9):,.0f} tokens/s)"


def _messages(options: Any) -> list[dict[str, Any]]:
    system = [] if options.system is None else [{"role": "system", "content": options.system}]
    content = [{"type": "image", "image": image} for image in options.image]
    return [*system, {"role": "user", "content": [*content, {"type": "text", "text": options.prompt}]}]


def _count(number: int) -> str:
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
