"""`python -m r1ov.data.playground --show sheet.png`: a contact sheet of all families, with questions,
thoughts and answers.
"""

import argparse
import textwrap
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from r1ov.data.playground import FAMILIES, SPLITS, Sample, sample
from r1ov.data.playground.scene import INK, SIZE

_ZOOM = 2
_WIDTH, _GUTTER = _ZOOM * SIZE, 18  # of a tile, and between tiles, in pixels
_DESK, _QUIET, _ANSWER = (232, 235, 240), (110, 116, 128), (24, 110, 70)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m r1ov.data.playground", description="Draw a contact sheet of the playground."
    )
    parser.add_argument(
        "--show", required=True, type=Path, metavar="FILE", help="where to write the sheet (PNG)"
    )
    parser.add_argument("--split", default="train", choices=SPLITS, help="default: train")
    parser.add_argument("--seed", default=0, type=int, help="default: 0")
    parser.add_argument("--count", default=5, type=int, help="samples of each family (default: 5)")
    args = parser.parse_args()
    if args.count < 1:
        parser.error("--count must be at least 1")
    begin = time.perf_counter()
    samples = [sample(args.split, index, args.seed) for index in range(args.count * len(FAMILIES))]
    seconds = time.perf_counter() - begin
    try:
        contact_sheet(samples).save(args.show)
    except (OSError, ValueError) as problem:
        parser.error(f"cannot write the sheet {args.show}: {problem}")
    print(
        f"{args.show}: {len(samples)} samples of the split {args.split}, {len(samples) / seconds:.0f} samples/s"
    )


def contact_sheet(samples: list[Sample]) -> Image.Image:
    """One row for each family, in order of appearance; the picture, and below it question, thought and
    answer.
    """
    families: dict[str, list[Image.Image]] = {}
    for each in samples:
        families.setdefault(each.family, []).append(_tile(each))
    heights = [max(tile.height for tile in tiles) for tiles in families.values()]
    columns = max(map(len, families.values()))
    sheet = Image.new(
        "RGB",
        (_GUTTER + columns * (_WIDTH + _GUTTER), _GUTTER + sum(heights) + len(heights) * _GUTTER),
        _DESK,
    )
    y = _GUTTER
    for tiles, height in zip(families.values(), heights, strict=True):
        for column, tile in enumerate(tiles):
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
            lines.append((y, line, size, colour))
            y += round(1.25 * size)
        y += after
    tile = Image.new("RGB", (_WIDTH, y), "white")
    tile.paste(each.image.resize((SIZE * _ZOOM, SIZE * _ZOOM), Image.Resampling.LANCZOS))
    draw = ImageDraw.Draw(tile)
    for y, line, size, colour in lines:
        draw.text((8, y), line, colour, ImageFont.load_default(size))
    return tile


if __name__ == "__main__":
    main()
