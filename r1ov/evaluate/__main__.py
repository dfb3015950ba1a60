"""Scores a model: `python -m r1ov.evaluate --bench playground --split test --limit 1000`.

`python -m r1ov.evaluate compare A B` compares two of its --out folders.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from r1ov.cli import AskingOptions, option, parse_cli, placed, run
from r1ov.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(AskingOptions):
    bench: str = option(
        "playground",
        "playground, mathvista, mathvision, mathverse, wemath, r1-onevision-bench, or a file of questions",
    )
    data: str | None = option(None, "the benchmark's file or folder (default: from the hub)")
    split: str | None = option(
        None, "default: the benchmark's own; of the playground test, or train, rl, generalisation"
    )
    limit: int | None = option(
        None, "only the first questions (default: all; of the playground, which has no end, 1000)", least=1
    )
    out: str | None = option(
        None, "folder of answers and reports; the same command goes on in it (default: one in runs/evaluate)"
    )
    predictions: str | None = option(None, "score this file of `id` and `text`, and run no model")
    keep: str | None = option(
        None,
        "0.1:0.9 also writes kept.jsonl, the rows of --bench FILE.jsonl with this share of right answers",
    )
    prompt: Literal["r1ov", "official", "direct", "none"] | None = option(
        None,
        "r1ov: think, then answer in tags; official: the data's own; direct: the answer alone; "
        "none: the question (default: r1ov; on the playground, and of our own models on own files, none)",
    )
    num_samples: int = option(1, "answers a question, for mean@k and pass@k; needs a temperature", least=1)
    max_new_tokens: int | None = option(
        None, "longest answer (default: 4096; on the playground 256)", least=1
    )
    temperature: float = option(0.0, "0 is greedy", least=0)
    top_p: float = option(
        1.0,
        "sample from the likeliest tokens that make up this probability",
        above=0,
        most=1,
        idle="temperature 0.0",
    )
    top_k: int = option(
        0, "sample from this many likeliest tokens, 0 for all", least=0, idle="temperature 0.0"
    )
    repetition_penalty: float = option(1.0, "above 1, tokens that were there become less likely", above=0)
    max_num_seqs: int = option(64, "answers decoded together", least=1)
    swap_pictures: bool = option(False, "control: every question with another question's image")
    judge: str | None = option(
        None, "URL of an OpenAI-compatible endpoint, asked if rules cannot decide; key from OPENAI_API_KEY"
    )
    judge_model: str | None = option(None, "the judge's name there", idle="judge None")
    num_threads: int | None = option(None, "CPU threads (default: torch's own choice)", least=1)

    def __post_init__(self) -> None:
        """Raises UserError for the mistakes that can be seen before torch is imported."""
        if self.num_samples > self.max_num_seqs:
            raise UserError(
                f"--num-samples {self.num_samples} is above --max-num-seqs {self.max_num_seqs}; "
                "the samples of a question are decoded together"
            )
        if self.num_samples > 1 and not self.temperature and not self.predictions:
            raise UserError(
                f"greedy decoding gives one answer {self.num_samples} times; give a --temperature above 0"
            )
        if self.keep and not (
            re.fullmatch(r"[01]?\.?\d+:[01]?\.?\d+", self.keep) and self.bench.endswith(".jsonl")
        ):
            raise UserError(
                f"--keep {self.keep}: expected two shares such as 0.1:0.9, and --bench FILE.jsonl"
            )
        if self.keep and self.predictions and not self.out:
            raise UserError("--keep writes into a folder; say which by --out")
        if self.out and Path(self.out).is_file():
            raise UserError(f"--out {self.out}: is a file; choose another folder")
        if self.judge and not (self.judge.startswith(("http://", "https://")) and self.judge_model):
            raise UserError("--judge needs the URL of an endpoint, http://HOST/v1 say, and --judge-model")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    first: str = option(
        help="the first evaluation: its --out folder, or the verdicts.jsonl in one; `compare A B` names both"
    )
    second: str = option(help="the second")
    common: bool = option(False, "compare the questions that both have, if not all are the same")
    limit: int = option(50, "rows of the table of questions that changed", least=0)


def comparison(words: list[str]) -> CompareConfig:
    """Reads the words after `compare`: A B, then flags."""
    return parse_cli(
        CompareConfig,
        placed(words, "first", "second"),
        prog="python -m r1ov.evaluate compare A B",
        description="compares A and B",
    )


def main() -> None:
    if sys.argv[1:2] == ["compare"]:
        config = comparison(sys.argv[2:])
        from r1ov.evaluate.compare import compare

        print(compare(config))
        return
    config = parse_cli(EvaluateConfig, prog="python -m r1ov.evaluate", description=__doc__.splitlines()[0])
    # torch takes seconds to import: not before the command line is known to be right.
    from r1ov.evaluate.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    sys.exit(run(main))
