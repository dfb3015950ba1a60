"""What a family hands over (`Scene`), and the canvas it draws on: plain shapes and letters, anti-aliased."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

SIZE = 112  # side of a picture in pixels: 8x8 patches of 14, 4x4 tokens after merging
SUPERSAMPLE = 4  # pictures are drawn this many times larger, then averaged down

COLOURS = {
    "red": (219, 55, 55),
    "orange": (242, 145, 30),
    "yellow": (242, 208, 60),
    "green": (56, 158, 82),
    "blue": (52, 108, 214),
    "purple": (142, 72, 190),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
INK = (52, 58, 70)  # lines and letters
GRID = (222, 226, 232)  # faint helper lines
PAPER = ((255, 255, 255), (250, 247, 240), (243, 247, 252), (246, 250, 244))  # backgrounds

# These combinations appear only at the level "beyond" (the generalisation split): never in train, rl or test.
UNSEEN = frozenset(
    {
        ("red", "star"),
        ("orange", "diamond"),
        ("yellow", "cross"),
        ("green", "triangle"),
        ("blue", "square"),
        ("purple", "circle"),
    }
)

Level = Literal["normal", "hard", "beyond"]


def pairs(level: Level) -> list[tuple[str, str]]:
    """All (colour, shape) pairs that may be drawn at this level."""
    return [
        (colour, shape)
        for colour in COLOURS
        for shape in SHAPES
        if level == "beyond" or (colour, shape) not in UNSEEN
    ]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One question about one picture, before it is drawn.

    `draw` paints the picture on a blank `Canvas`; it runs only when the scene is kept. `description` is the
    formal description of all that is drawn (JSON or CSV; positions included), and decides which split the
    scene belongs to.
    """

    draw: Callable[["Canvas"], None]
    paper: tuple[int, int, int]
    question: str
    description: str
    reasoning: str
    answer: str
    kind: str  # mcq | yes_no | number | text | bbox


@lru_cache
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(pixels)  # Pillow's own embedded typeface: the same on every platform


class Canvas:
    """A square picture of SIZE pixels; all coordinates and sizes are in its pixels, x to the right, y down."""

    def __init__(self, paper: tuple[int, int, int]):
        self._image = Image.new("RGB", (SIZE * SUPERSAMPLE, SIZE * SUPERSAMPLE), paper)
        self._draw = ImageDraw.Draw(self._image)

    def finish(self) -> Image.Image:
        """The anti-aliased (SIZE, SIZE) RGB picture."""
        return self._image.reduce(SUPERSAMPLE)

    def polygon(self, points, fill=None, outline=None, width=1):
        self._draw.polygon(
            [(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in points], fill, outline, round(width * SUPERSAMPLE)
        )

    def line(self, points, fill=INK, width=1.0):
        self._draw.line(
            [(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in points],
            fill,
            round(width * SUPERSAMPLE),
            joint="curve",
        )

    def rectangle(self, box, fill=None, outline=None, width=1.0, radius=0.0):
        scaled = [round(value * SUPERSAMPLE) for value in box]
        self._draw.rounded_rectangle(scaled, radius * SUPERSAMPLE, fill, outline, round(width * SUPERSAMPLE))

    def ellipse(self, box, fill=None, outline=None, width=1.0):
        self._draw.ellipse(
            [round(value * SUPERSAMPLE) for value in box], fill, outline, round(width * SUPERSAMPLE)
        )

    def arc(self, box, start, end, fill=INK, width=1.0):
        """Degrees run clockwise from 3 o'clock, as in Pillow."""
        self._draw.arc(
            [round(value * SUPERSAMPLE) for value in box], start, end, fill, round(width * SUPERSAMPLE)
        )

    def text(self, x, y, text, size=12, fill=INK, anchor="mm"):
        """`anchor` as in Pillow; the default centres the text on (x, y)."""
        self._draw.text(
            (x * SUPERSAMPLE, y * SUPERSAMPLE), text, fill, _font(round(size * SUPERSAMPLE)), anchor
        )

    def shape(self, name: str, colour: str, box: tuple[float, float, float, float]):
        """One of SHAPES in one of COLOURS, touching all four sides of `box` = (x1, y1, x2, y2)."""
        x1, y1, x2, y2 = box
        fill = COLOURS[colour]
        if name == "circle":
            self.ellipse(box, fill)
        elif name == "square":
            self.rectangle(box, fill, radius=1)
        else:
            self.polygon([(x1 + u * (x2 - x1), y1 + v * (y2 - y1)) for u, v in _OUTLINES[name]], fill)


def _star() -> list[tuple[float, float]]:
    points = []
    for corner in range(10):
        radius, angle = (1.0, 0.42)[corner % 2], math.pi * corner / 5
        points.append((radius * math.sin(angle), -radius * math.cos(angle)))
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    top, bottom = min(y for _, y in points), max(y for _, y in points)
    return [((x - left) / (right - left), (y - top) / (bottom - top)) for x, y in points]


_OUTLINES = {  # corners in the unit square
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
    "cross": [
        (0.33, 0),
        (0.67, 0),
        (0.67, 0.33),
        (1, 0.33),
        (1, 0.67),
        (0.67, 0.67),
        (0.67, 1),
        (0.33, 1),
        (0.33, 0.67),
        (0, 0.67),
        (0, 0.33),
        (0.33, 0.33),
    ],
    "star": _star(),
}
