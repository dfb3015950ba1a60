"""Shows the playground: a contact sheet with questions, thoughts and answers (`python -m r1ov.data.playground
--show sheet.png`), or all that it asks, and so what r1ov-tiny can be asked (`--questions`).
"""

import sys
import textwrap
import time
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from r1ov.cli import check_bounds, option, parse_cli, run
from r1ov.data.playground import FAMILIES, SPLITS, Sample, sample
from r1ov.data.playground.scene import INK, SIZE, wordings
from r1ov.errors import UserError

_WIDTH, _GUTTER = 2 * SIZE, 18  # of a tile, and between tiles, in pixels
_DESK, _QUIET, _ANSWER = "#e8ebf0", "#6e7480", "#186e46"


@dataclass(frozen=True, kw_only=True)
class SheetConfig:
    show: str | None = option(None, "where to write the sheet (PNG)", metavar="FILE")
    questions: bool = option(False, "print every question, {blanks} as they are")
    split: Literal[tuple(SPLITS)] = option("train", "the samples' split")
    seed: int = option(0, "the samples' seed")
    count: int = option(5, "samples of each family", least=1)

    def __post_init__(self):
        check_bounds(self)
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
        contact_sheet(samples).save(config.show)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the sheet {config.show}: {error}") from error
    print(f"{config.show}: {len(samples)} samples of the split {config.split}, {rate:.0f} samples/s")


def contact_sheet(samples: list[Sample]) -> Image.Image:
    """Returns a row for each family; in each tile the image, and below it question, thought and answer."""
    rows = [[_tile(each) for each in samples[family :: len(FAMILIES)]] for family in range(len(FAMILIES))]
    step, y = _WIDTH + _GUTTER, _GUTTER
    sheet = Image.new("RGB", (y + step * len(rows[0]), 5 * _WIDTH * len(rows)), _DESK)  # room enough
    for row in rows:
        for at, tile in enumerate(row):
            sheet.paste(tile, (_GUTTER + step * at, y))
        y += max(tile.height for tile in row) + _GUTTER
    return sheet.crop((0, 0, sheet.width, y))


def _tile(each: Sample) -> Image.Image:
    tile = Image.new("RGB", (_WIDTH, 4 * _WIDTH), "white")
    tile.paste(each.image.resize((_WIDTH, _WIDTH), Image.Resampling.LANCZOS))
    draw, y = ImageDraw.Draw(tile), _WIDTH + 8
    for text, size, colour in (
        (f"{each.family}, {each.kind}", 10, _QUIET),
        (each.question, 13, INK),
        (each.reasoning or "(no thought in this split)", 11, _QUIET),
        (each.answer, 14, _ANSWER),
    ):
        for line in textwrap.wrap(text, int(_WIDTH / (0.56 * size))):
            draw.text((8, y), line, colour, ImageFont.load_default(size))
            y += round(1.25 * size)
        y += 6
    return tile.crop((0, 0, _WIDTH, y))


if __name__ == "__main__":
    sys.exit(run(main))
