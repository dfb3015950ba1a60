"""Study internals: `python -m r1ov.look --image x.png --prompt "..."` writes one page to open in a browser.

`python -m r1ov.look runs/grpo --step 100` writes one of a step of GRPO, from what the run kept in samples/.
`python -m r1ov.look score --samples 500` scores ways of telling where a model looked.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from r1ov.cli import option, parse_cli, run
from r1ov.common.files import can_be_written, say
from r1ov.errors import UserError

DEFAULT_PROMPT = "How many objects are there?"


@dataclass(frozen=True, kw_only=True)
class PageConfig:
    image: tuple[str, ...] = option((), "an image: a path or an http(s) URL; may be given several times")
    prompt: str | None = option(None, f"the question (default with an image: {DEFAULT_PROMPT!r})")
    system: str | None = option(None, "the system prompt; default: the chat template's own")
    model: str = option("r1ov-tiny", "model folder, hub name or r1ov-tiny")
    versus: str | None = option(None, "another model, asked about the same words")
    completion: str | None = option(None, "a reply to read, of a training row say; default: the model's own")
    out: str = option("look.html", "the page")
    device: str | None = option(None, "default: cuda if there is one, else cpu")
    dtype: Literal["float32", "bfloat16"] | None = option(
        None, "default: the checkpoint's; on a CPU without instructions for bfloat16 float32 if it fits"
    )

    def __post_init__(self):
        if not (self.prompt or self.image):
            raise UserError("nothing to look at: give --image, --prompt or both")


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    run: str = option(help="the folder of a GRPO run; the first word of the command")
    step: int = option(help="the step; kept are those that --sample-steps of the run divides", least=0)
    group: int | None = option(
        None, "which of the kept groups; default: the first whose rewards differ", least=1
    )
    model: str | None = option(None, "the learner; default: the run's final/")
    reference: str | None = option(None, "default: the model that the run started from")
    out: str = option("step.html", "the page")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    samples: int = option(500, "scenes of the playground", least=1)
    split: Literal["test", "rl", "generalisation"] = option("test", "of the playground")
    seed: int = option(0, "of the scenes; the best head is chosen on those of the next seed")
    model: str = option("r1ov-tiny", "model folder, hub name or r1ov-tiny")


def page(config: PageConfig, path: Path) -> str:
    """Writes the page. Returns the reply that it shows."""
    from r1ov.data.messages import conversation
    from r1ov.folder.pretrained import load
    from r1ov.look.page import write_page

    model, processor = load(config.model, config.device, config.dtype)
    images = [{"type": "image", "image": image} for image in config.image]
    messages = conversation(config.prompt or DEFAULT_PROMPT, images, config.system)
    traced = write_page(path, model, processor, messages, config.model, config.versus, config.completion)
    return processor.decode(traced.token_ids[traced.prompt_length :])


def step(config: StepConfig, path: Path) -> str:
    """Writes the page. Returns a line about it."""
    from r1ov.look.step import write_step

    return write_step(path, Path(config.run), config.step, config.group, config.model, config.reference)


def score(config: ScoreConfig) -> None:
    from r1ov.common.page import markdown_table
    from r1ov.folder.pretrained import load
    from r1ov.look.score import table

    rows = table(*load(config.model), config.samples, config.split, config.seed)
    print(markdown_table([[*rows[0]], *([*row.values()] for row in rows)]))


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["score"]:
        return score(parse_cli(ScoreConfig, words[1:], prog="python -m r1ov.look score", description=__doc__))
    options, write = PageConfig, page
    if words and not words[0].startswith("-"):
        if not Path(words[0]).is_dir():
            raise UserError(f"{words[0]}: no run's folder, and the only command is score")
        options, write, words = StepConfig, step, ["--run", *words]
    config = parse_cli(options, words, prog="python -m r1ov.look", description=__doc__)
    if not can_be_written(config.out):
        raise UserError(f"--out {config.out}: not a file that can be written; its folder must be there")
    path = Path(config.out)
    print(write(config, path))
    say(f"{path}: open it in a browser ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    sys.exit(run(main))
