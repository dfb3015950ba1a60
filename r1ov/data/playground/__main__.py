"""Shows the playground: a contact sheet with questions, thoughts and answers (`python -m r1ov.data.playground
--show sheet.png`), or all that it asks, and so what r1ov-tiny can be asked (`--questions`).
"""

import sys
import textwrap
import time
from dataclasses import dataclass
from typing import Literal

from matplotlib.figure import Figure

from r1ov.cli import option, parse_cli, run
from r1ov.data.playground import FAMILIES, SPLITS, Sample, sample
from r1ov.data.playground.scene import wordings
from r1ov.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SheetConfig:
    show: str | None = option(None, "where to write the sheet (PNG)")
    questions: bool = option(False, "print every question, {blanks} as they are")
    split: Literal[tuple(SPLITS)] = option("train", "the samples' split")
    seed: int = option(0, "the samples' seed")
    count: int = option(5, "samples of each family", least=1)

    def __post_init__(self):
        if not (self.show or self.questions):
            raise UserError("nothing to do; give --show FILE or --questions")


def main() -> None:
    config = parse_cli(SheetConfig, prog="python -m r1ov.data.playground", description=__doc__)
    if config.questions:
        for family in FAMILIES:
            for topic, questions in wordings(family).items():
                print(f"{family}: {topic}", *questions, sep="\n    ", end="\n\n")
        print('What is in {} is of the picture: {name} "yellow triangles", {x} the "B" of a chart, say.')
    if not config.show:
        return
    begin = time.perf_counter()
    samples = [sample(config.split, at, config.seed) for at in range(config.count * len(FAMILIES))]
    rate = len(samples) / (time.perf_counter() - begin)
    try:
        contact_sheet(samples).savefig(config.show)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the sheet {config.show}: {error}") from error
    print(f"{config.show}: {len(samples)} samples of the split {config.split}, {rate:.0f} samples/s")


def contact_sheet(samples: list[Sample]) -> Figure:
    """Returns a row for each family; below each image its question, thought and answer."""
    rows, columns = len(FAMILIES), len(samples) // len(FAMILIES)
    figure = Figure((3 * columns, 5 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).T.flat  # the families take turns
    for each, place in zip(samples, places, strict=True):
        place.imshow(each.image)
        said = each.question, each.reasoning or "(no thought in this split)", each.answer
        text = "\n\n".join(textwrap.fill(words, 36) for words in said)
        place.set(title=f"{each.family}, {each.kind}", xlabel=text, xticks=[], yticks=[])
    return figure


if __name__ == "__main__":
    sys.exit(run(main))
