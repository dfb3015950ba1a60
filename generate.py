"""Shows a picture and a question to a model and prints what it thinks and answers.

python generate.py --image picture.png --prompt "How many red circles are there?"
python generate.py --model Fancy-MLLM/R1-Onevision-7B --image photo.jpg --prompt "What is going on here?"
"""

import sys
from dataclasses import dataclass
from typing import Literal

from r1ov.cli import check_bounds, option, parse_cli, run
from r1ov.errors import UserError

DEFAULT_PROMPT = "How many objects are there?"
MAX_SAMPLES = 1024


@dataclass(frozen=True, kw_only=True)
class Options:
    image: tuple[str, ...] = option((), "a picture: a path or an http(s) URL; may be given several times")
    prompt: str | None = option(None, f"the question (default with a picture: {DEFAULT_PROMPT!r})")
    system: str | None = option(None, "the system prompt (default: the chat template's own)")
    model: str = option(
        "r1ov-tiny",
        "a folder, a Hugging Face name such as Fancy-MLLM/R1-Onevision-7B, or r1ov-tiny, which is shipped",
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
    seed: int = option(0, "the same seed gives the same samples", least=0)
    num_samples: int = option(1, "how many answers", least=1, most=MAX_SAMPLES)
    min_pixels: int | None = option(
        None, "smaller pictures are enlarged to this many pixels (default: the checkpoint's)", least=1
    )
    max_pixels: int | None = option(
        None, "larger pictures are shrunk to this many pixels (default: the checkpoint's)", least=1
    )
    device: str | None = option(None, "cpu, cuda or cuda:N (default: cuda where there is one)")
    dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, "default: float32 on a CPU, bfloat16 on a GPU"
    )
    kernels: Literal["torch", "triton"] | None = option(
        None, "attention and log-probs (default: triton on a GPU, torch elsewhere)"
    )
    json: bool = option(False, "print one JSON object a sample")

    def __post_init__(self) -> None:
        """Raises UserError for what can be seen to be wrong before torch is even imported."""
        check_bounds(self)
        if self.temperature and not 1e-6 <= self.temperature <= 1e6:
            raise UserError(
                f"--temperature is {self.temperature}; it must be 0 (greedy), or from 1e-6 to 1e6"
            )
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise UserError(f"--min-pixels {self.min_pixels} is above --max-pixels {self.max_pixels}")
        if self.dtype == "float16":
            raise UserError(
                "--dtype float16 overflows in Qwen2.5-VL's vision encoder (answers turn into '!!!!'); use bfloat16 or float32"
            )
        if not self.prompt and not self.image:
            raise UserError("nothing to answer: give --image, --prompt or both")
        if self.prompt is None:
            object.__setattr__(self, "prompt", DEFAULT_PROMPT)
        elif not self.prompt.strip():
            raise UserError("--prompt is empty")


def main() -> None:
    options = parse_cli(Options, prog="generate.py", description=__doc__.splitlines()[0])
    # torch takes seconds to import: not before the command line is known to be right, and never for --help.
    from r1ov.engine.terminal import answer

    answer(options)


if __name__ == "__main__":
    sys.exit(run(main))
