"""What a family returns (`Scene`), and the canvas it draws on: plain shapes and letters, anti-aliased."""

import re
from collections.abc import Callable, Iterable
from functools import cache
from itertools import product
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

from PIL import Image, ImageColor, ImageDraw, ImageFont

SIZE = 112  # side of an image in pixels: 8x8 patches of 14, 4x4 tokens after merging
SUPERSAMPLE = 4  # images are drawn this many times larger, then averaged down

Level = Literal["normal", "hard", "beyond"]
Colour = tuple[int, int, int]  # RGB
Pair = tuple[str, str]  # (colour, shape)
Point = tuple[float, float]


def colours(codes: str) -> list[Colour]:
    """Example: "#ff0000 #0000ff" -> [(255, 0, 0), (0, 0, 255)]."""
    return [ImageColor.getrgb(code) for code in codes.split()]


def outline(points: str) -> list[Point]:
    """Reads corners as SVG writes them. Example: "0,0.5 1,1" -> [(0.0, 0.5), (1.0, 1.0)]."""
    return [tuple(map(float, point.split(","))) for point in points.split()]


def by_level(normal, hard, beyond) -> dict:
    """Returns level -> what holds at it."""
    return {"normal": normal, "hard": hard, "beyond": beyond}


_NAMES = ("red", "orange", "yellow", "green", "blue", "purple")
COLOURS = dict(zip(_NAMES, colours("#db3737 #f2911e #f2d03c #389e52 #346cd6 #8e48be"), strict=True))
DARK = [name for name in COLOURS if name != "yellow"]  # a thin yellow line is hard to see
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
INK, GRID = colours("#343a46 #dee2e8")  # of lines and letters; of faint helper lines
PAPER = colours("#ffffff #faf7f0 #f3f7fc #f6faf4")  # backgrounds
# These combinations appear only at the level "beyond" (the generalisation split): never in train, rl or test.
UNSEEN = frozenset(zip(COLOURS, ("star", "diamond", "cross", "triangle", "square", "circle"), strict=True))

QUESTIONS = Path(__file__).parent / "questions.txt"


def pairs(level: Level) -> list[Pair]:
    """Returns all pairs that may be drawn at this level."""
    every = product(COLOURS, SHAPES)
    return [pair for pair in every if level == "beyond" or pair not in UNSEEN]


@cache
def _topics(family: str) -> dict[str, tuple[str, list[str]]]:
    """Returns topic -> the kind of its answers, and the ways in which a family asks about it."""
    found = re.findall(rf"# {family}: (.+) \((.+)\)\n((?:.+\n?)+)", QUESTIONS.read_text("utf-8"))
    return {topic: (kind, lines.splitlines()) for topic, kind, lines in found}


def wordings(family: str) -> dict[str, list[str]]:
    """Returns topic -> the ways in which a family asks about it, from questions.txt."""
    return {topic: lines for topic, (_, lines) in _topics(family).items()}


def is_asked(question: str) -> bool:
    """True if the playground asks this, in one of its wordings, whatever stands in the blanks."""
    forms = [re.escape(line) for line in QUESTIONS.read_text("utf-8").split("\n") if line]
    return any(re.fullmatch(re.sub(r"\\{\w+\\}", ".+", form), question.strip()) for form in forms)


def ask(rng: Random, family: str, topic: str, **slots: object) -> tuple[str, str]:
    """Returns a question in one of its wordings, the blanks filled, and the kind of its answer."""
    kind, lines = _topics(family)[topic]
    return rng.choice(lines).format(**slots), kind


class Scene(NamedTuple):
    """One question about one image, before it is drawn.

    `draw` paints the image on a blank `Canvas`; it runs only when the scene is kept. `description` is the
    formal description of all that is drawn (JSON or CSV; positions included), and decides which split the
    scene belongs to.
    """

    draw: Callable[["Canvas"], None]
    paper: Colour
    question: str
    kind: str  # of the answer: mcq | yes_no | number | text | bbox
    description: str
    reasoning: str
    answer: str


@cache
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(pixels)  # Pillow's own embedded typeface: the same on every platform


class Canvas:
    """A square image of SIZE pixels; all coordinates and sizes are in its pixels, x to the right, y down."""

    def __init__(self, paper: Colour):
        self._image = Image.new("RGB", (SIZE * SUPERSAMPLE, SIZE * SUPERSAMPLE), paper)
        self._draw = ImageDraw.Draw(self._image)

    def finish(self) -> Image.Image:
        """Returns the anti-aliased (SIZE, SIZE) RGB image."""
        return self._image.reduce(SUPERSAMPLE)

    def polygon(self, points, fill):
        self._draw.polygon(_large(points), fill)

    def line(self, points, fill, width=1.0):
        self._draw.line(_large(points), fill, round(width * SUPERSAMPLE), joint="curve")

    def grid(self, step: int):
        """Draws faint lines every `step` pixels, both ways."""
        for at in range(step, SIZE, step):
            self.line([(at, 0), (at, SIZE)], GRID)
            self.line([(0, at), (SIZE, at)], GRID)

    def rectangle(self, box, fill=None, outline=None, width=1.0, radius=0.0):
        whole = [round(value * SUPERSAMPLE) for value in box]
        self._draw.rounded_rectangle(whole, radius * SUPERSAMPLE, fill, outline, round(width * SUPERSAMPLE))

    def dot(self, x, y, radius, fill):
        self.rectangle((x - radius, y - radius, x + radius, y + radius), fill, radius=radius)

    def arc(self, x, y, radius, start, end, fill, width):
        """Degrees run clockwise from 3 o'clock, as in Pillow."""
        box = [round(at * SUPERSAMPLE) for at in (x - radius, y - radius, x + radius, y + radius)]
        self._draw.arc(box, start, end, fill, round(width * SUPERSAMPLE))

    def text(self, x, y, text, size, fill=INK):
        """Writes it centred on (x, y)."""
        place = (x * SUPERSAMPLE, y * SUPERSAMPLE)
        self._draw.text(place, text, fill, _font(round(size * SUPERSAMPLE)), "mm")

    def shape(self, name, colour, box):
        """Draws one of SHAPES in one of COLOURS, touching all four sides of the square `box` = (x1, y1, x2,
        y2).
        """
        x, y, right, _ = box
        side, fill = right - x, COLOURS[colour]
        if name in _OUTLINES:
            self.polygon([(x + u * side, y + v * side) for u, v in _OUTLINES[name]], fill)
        elif name == "square":
            self.rectangle(box, fill, radius=1)
        else:
            self.dot(x + side / 2, y + side / 2, side / 2, fill)


def _large(points: Iterable[Point]) -> list[Point]:
    return [(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in points]


_OUTLINES = {  # in the unit square
    "triangle": outline("0.5,0 1,1 0,1"),
    "diamond": outline("0.5,0 1,0.5 0.5,1 0,0.5"),
    "cross": outline(
        "0.33,0 0.67,0 0.67,0.33 1,0.33 1,0.67 0.67,0.67 0.67,1 0.33,1 0.33,0.67 0,0.67 0,0.33 0.33,0.33"
    ),
    "star": outline(
        "0.5,0 0.6298,0.3649 1,0.382 0.71,0.624 0.809,1 0.5,0.7849 0.191,1 0.2901,0.624 0,0.382 0.3702,0.3649"
    ),
}
