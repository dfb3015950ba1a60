"""Does what was learned carry over? Scores models on the playground, by family and by kind of answer.

    python -m tests.carry_over --model r1ov-tiny-sft --model r1ov-tiny    # development questions
    ... --report --out FILE                                               # the report's, looked at once
    ... --samples 32 --limit 700                                          # pass@1, 8, 32 at temperature 1

Each later model is compared with the first on the same questions, with paired 95% intervals. Each thought is
read beside the scene: misses are told by what first went wrong, and right answers whose thought is false
counted.
"""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product, takewhile
from pathlib import Path
from typing import Literal, NamedTuple

import torch

import r1ov
from r1ov.cli import check_bounds, option, parse_cli, run
from r1ov.common.files import write_text
from r1ov.common.page import markdown_table
from r1ov.data.playground import FAMILIES, SPLITS, conversation, invent, paint
from r1ov.data.playground.scene import SIZE, UNSEEN, Scene
from r1ov.engine import decode, prepare
from r1ov.errors import UserError
from r1ov.evaluate.metrics import paired, pass_at_k, wilson
from r1ov.reward import Frame, Rules, grade

DEVELOPMENT, REPORT = (31, 32), (71, 72)  # question seeds; the report's were fixed before the first run
KS = (1, 8, 32)
KINDS = ("yes_no", "mcq", "number", "text", "bbox")
RULES = Rules(answer_from="auto")


class Answered(NamedTuple):
    family: str
    scene: Scene
    texts: list[str]  # one a sample
    scores: list[float]


def ask(model: str, split: str, seeds: Sequence[int], limit: int, samples: int, swap: bool) -> list[Answered]:
    """The answers to the first `limit` questions of every seed; greedy, if there is one sample."""
    loaded, processor = r1ov.load(model)
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0} if samples > 1 else {"temperature": 0.0}
    many, answered = max(1, 64 // samples), []
    for seed, first in product(seeds, range(0, limit, many)):
        scenes = [invent(split, number, seed) for number in range(first, min(first + many, limit))]
        pictures = [paint(scene) for _, scene in scenes]
        pictures = pictures[len(FAMILIES) :] + pictures[: len(FAMILIES)] if swap else pictures
        talks = [
            conversation(picture, scene.question, None, "")
            for picture, (_, scene) in zip(pictures, scenes, strict=True)
        ]
        plan = prepare(processor, talks, max_new_tokens=256, num_samples=samples, seed=seed, **sampling)
        done = iter(decode(loaded, processor, plan)[0])
        for family, scene in scenes:
            own = [next(done) for _ in range(samples)]
            frame = Frame((SIZE, SIZE), (SIZE, SIZE), None) if scene.kind == "bbox" else None
            ends = (one.finish_reason == "stop" for one in own)
            marks = [
                grade(one.text, scene.answer, scene.kind, RULES, None, end, frame).score
                for one, end in zip(own, ends, strict=True)
            ]
            texts = [one.text for one in own]
            answered.append(Answered(family, scene, texts, [mark or 0.0 for mark in marks]))
    return answered


def common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def first_fault(scene: Scene, text: str) -> str | None:
    """What first goes wrong in a thought, beside the scene's own; None if nothing does.

    Numbers of a box are not compared: the answer tells how far off they are.
    """
    thought, gold = text.partition("<think>")[2].partition("</think>")[0], scene.reasoning
    if scene.kind == "bbox":
        thought, gold = (re.sub(r"\d+", "0", one.partition("x ")[0]) + "x" for one in (thought, gold))
    if thought == gold:
        return None
    at = common(gold, thought)
    begin, end = gold.rfind(". ", 0, at) + 1, gold.find(".", at) % (len(gold) + 1)
    if " = " in gold[begin:end]:
        return "sum"
    if begin > 0 and gold[end:] in ("", "."):
        return "conclusion"
    for pair in UNSEEN:
        for found in re.finditer(" ".join(pair), gold):
            if found.start() <= at < found.end():
                return "pair never seen"
    if thought[at : at + 1] in ".," or not thought[at:]:
        return "stops early"
    return "number" if gold[at : at + 1].isdigit() else "word"


# -- tables


def table(head: Sequence[str], rows: Sequence[Sequence[str | int]]) -> str:
    return markdown_table([head, *([str(cell) for cell in row] for row in rows)])


def share(values: Sequence[float]) -> str:
    low, high = wilson(sum(values), len(values))
    return f"{sum(values) / len(values):.1%} ({low:.0%} to {high:.0%})"


def parts(answered: Sequence[Answered]) -> dict[str, list[int]]:
    """The places of each family's questions, of each kind's, and of all."""
    found = {name: [n for n, one in enumerate(answered) if one.family == name] for name in FAMILIES}
    found |= {
        f"answers: {kind}": [n for n, one in enumerate(answered) if one.scene.kind == kind] for kind in KINDS
    }
    return {name: places for name, places in found.items() if places} | {"all": [*range(len(answered))]}


def scores_table(answered: dict[str, list[Answered]]) -> str:
    """Right by family and kind, and of each later model the paired difference from the first."""
    first, *others = answered
    rows = []
    for name, places in parts(answered[first]).items():
        one = [answered[first][place].scores[0] for place in places]
        row = [name, len(places), share(one)]
        for other in others:
            two = [answered[other][place].scores[0] for place in places]
            by = paired(one, two, range(len(one)))
            row += [share(two), f"{100 * by.difference:+.1f} ({100 * by.low:+.1f} to {100 * by.high:+.1f})"]
        rows.append(row)
    names = [name for other in others for name in (other, "difference")]
    return table(["part", "questions", first, *names], rows)


def samples_table(answered: Sequence[Answered], samples: int) -> str:
    ks = [k for k in KS if k <= samples]
    rows = []
    for name, places in parts(answered).items():
        right = [int(sum(score >= 0.5 for score in answered[place].scores)) for place in places]
        row = (sum(pass_at_k(samples, one, k) for one in right) / len(right) for k in ks)
        rows.append([name, len(places), *(f"{value:.1%}" for value in row)])
    return table(["part", "questions", *(f"pass@{k}" for k in ks)], rows)


def thoughts_table(answered: Sequence[Answered]) -> str:
    """What is true of the first sample's thought to each question, by family and of all."""
    rows = []
    for name in (*FAMILIES, "all"):
        own = [one for one in answered if name in (one.family, "all")]
        faults = [(one.scores[0] >= 0.5, first_fault(one.scene, one.texts[0])) for one in own]
        true = [not fault for right, fault in faults if right]
        missed = Counter(fault or "answer" for right, fault in faults if not right)
        causes = ", ".join(f"{cause} {count}" for cause, count in missed.most_common())
        rows.append([name, f"{sum(true)} of {len(true)}", causes])
    return table(["family", "true thoughts of right answers", "first faults of misses"], rows)


@dataclass(frozen=True, kw_only=True)
class Options:
    model: tuple[str, ...] = option((), "model folder or name; may be repeated: compared with the first")
    split: Literal[tuple(SPLITS)] = option("generalisation", "the questions' split")
    report: bool = option(False, "the report's questions; otherwise development ones")
    limit: int = option(1000, "questions of each of the two seeds", least=1)
    samples: int = option(1, "answers a question: 1 is greedy, more are at temperature 1", least=1, most=64)
    swap: bool = option(False, "control: every question with another question's picture")
    out: str | None = option(None, "also write the tables there, as Markdown")

    def __post_init__(self):
        check_bounds(self)
        if not self.model:
            raise UserError("no model is given; give one or more by --model")


def main() -> None:
    options = parse_cli(Options, prog="python -m tests.carry_over", description=__doc__.split("\n")[0])
    torch.set_flush_denormal(True)
    seeds = REPORT if options.report else DEVELOPMENT
    asked = options.split, seeds, options.limit, options.samples, options.swap
    answered = {model: ask(model, *asked) for model in options.model}
    told = f"{options.split}, question seeds {seeds[0]} and {seeds[1]}, {options.limit} each"
    told += ", pictures swapped" if options.swap else ""
    if options.samples > 1:
        tables = {f"{model}: {told}": samples_table(own, options.samples) for model, own in answered.items()}
    else:
        tables = {told: scores_table(answered)}
    tables |= {f"{model}: how it thinks": thoughts_table(own) for model, own in answered.items()}
    text = "\n\n".join(f"{title}\n\n{table}" for title, table in tables.items())
    if options.out:
        write_text(Path(options.out), text + "\n")
    print(text)


if __name__ == "__main__":
    sys.exit(run(main))
