"""Writes a contact sheet of the playground, with questions, thoughts and answers:
`python -m r1ov.data.playground --show sheet.png`.
"""

import sys
import textwrap
import time
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from r1ov.cli import option, parse_cli, run
from r1ov.data.playground import FAMILIES, SPLITS, Sample, sample
from r1ov.data.playground.scene import INK, SIZE
from r1ov.errors import UserError

_ZOOM = 2
_WIDTH, _GUTTER = _ZOOM * SIZE, 18  # of a tile, and between tiles, in pixels
_DESK, _QUIET, _ANSWER = (232, 235, 240), (110, 116, 128), (24, 110, 70)


@dataclass(frozen=True, kw_only=True)
class SheetConfig:
    show: str = option(help="where to write the sheet (PNG)", metavar="FILE")
    split: Literal[tuple(SPLITS)] = option("train", "which split's samples")
    seed: int = option(0, "of the samples")
    count: int = option(5, "samples of each family")

    def __post_init__(self):
        if self.count < 1:
            raise UserError(f"--count is {self.count}; it must be at least 1")


def main() -> None:
    config = parse_cli(SheetConfig, prog="python -m r1ov.data.playground", description=__doc__)
    begin = time.perf_counter()
    samples = [sample(config.split, at, config.seed) for at in range(config.count * len(FAMILIES))]
    rate = len(samples) / (time.perf_counter() - begin)
    try:
        contact_sheet(samples).save(config.show)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the sheet {config.show}: {error}") from error
    print(f"{config.show}: {len(samples)} samples of the split {config.split}, {rate:.0f} samples/s")


def contact_sheet(samples: list[Sample]) -> Image.Image:
    """A row for each family; in each tile the image, and below it question, thought and answer."""
    rows = [[_tile(each) for each in samples[family :: len(FAMILIES)]] for family in range(len(FAMILIES))]
    heights = [max(tile.height for tile in row) for row in rows]
    width, height = len(rows[0]) * (_WIDTH + _GUTTER), sum(heights) + len(rows) * _GUTTER
    sheet = Image.new("RGB", (width + _GUTTER, height + _GUTTER), _DESK)
    y = _GUTTER
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            x = _GUTTER + column * (_WIDTH + _GUTTER)
            sheet.paste("white", (x, y, x + _WIDTH, y + height))
            sheet.paste(tile, (x, y))
        y += height + _GUTTER
    return sheet


def _tile(each: Sample) -> Image.Image:
    lines, y = [], SIZE * _ZOOM + 8
    for text, size, colour, after in (
        (f"{each.family}, {each.kind}", 10, _QUIET, 3),
        (each.question, 13, INK, 6),
        (each.reasoning or "(no thought in this split)", 11, _QUIET, 6),
        (each.answer, 14, _ANSWER, 8),
    ):
        for line in textwrap.wrap(text, int(_WIDTH / (0.56 * size))):
            lines.append(((8, y), line, colour, ImageFont.load_default(size)))
            y += round(1.25 * size)
        y += after
    tile = Image.new("RGB", (_WIDTH, y), "white")
    tile.paste(each.image.resize((SIZE * _ZOOM, SIZE * _ZOOM), Image.Resampling.LANCZOS))
    draw = ImageDraw.Draw(tile)
    for line in lines:
        draw.text(*line)
    return tile


if __name__ == "__main__":
    sys.exit(run(main))
