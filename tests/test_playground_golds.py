"""Charts, geometry and text of the playground: every gold recomputed from description and question, and
looked for in the pixels.
"""

import csv
import json
import math
import operator
import random
import re
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest

from r1ov.data.playground import charts, geometry, text
from r1ov.data.playground.grid import CELL, cell_name
from r1ov.data.playground.scene import COLOURS, INK, PAPER, SIZE, Canvas, Scene, wordings

LEVELS = ("normal", "hard", "beyond")
MODULES = {"charts": charts, "geometry": geometry, "text": text}
OPERATIONS = {"+": operator.add, "-": operator.sub, "x": operator.mul}


def scenes(family: str, level: str, count: int, seed: str = "golds") -> list[Scene]:
    return [MODULES[family].make(random.Random(f"{seed}/{level}/{index}"), level) for index in range(count)]


def pixels(scene: Scene) -> np.ndarray:
    """The drawn picture, (SIZE, SIZE, 3)."""
    canvas = Canvas(scene.paper)
    scene.draw(canvas)
    return np.asarray(canvas.finish(), dtype=int)


def read_chart(description: str) -> tuple[dict[str, str], dict[str, int]]:
    """What the header says, and the value of each category."""
    header, *table = description.split("\n")
    assert header.startswith("# ")
    return dict(item.split(": ") for item in header[2:].split(", ")), {
        row["category"]: int(row["value"]) for row in csv.DictReader(table)
    }


def recompute(terms: str) -> int:
    """The value of a sum without brackets, products first."""
    parts = re.split(r" ([+-]) ", terms)
    values = [math.prod(int(factor) for factor in part.split(" x ")) for part in parts[::2]]
    total = values[0]
    for sign, value in zip(parts[1::2], values[1:], strict=True):
        total = OPERATIONS[sign](total, value)
    return total


def solve_charts(scene: Scene) -> str:
    _, values = read_chart(scene.description)
    limit = re.search(r"\d", scene.question)
    if limit:
        return str(sum(value > int(limit[0]) for value in values.values()))
    named = re.findall(r"\b[A-H]\b", scene.question)
    if len(named) == 1:
        return str(values[named[0]])
    if len(named) == 2:
        first, second = (values[name] for name in named)
        if re.search(r"sum|plus|together|Add", scene.question):
            return str(first + second)
        assert re.search(r"difference|more|above|minus", scene.question)
        return str(first - second)
    wanted = (min if re.search(r"lowest|smallest|least", scene.question) else max)(values.values())
    [found] = [name for name, value in values.items() if value == wanted]
    return found


def solve_geometry(scene: Scene) -> str:
    figure = json.loads(scene.description)
    if figure["figure"] == "rectangle":
        w, h = figure["sides"]
        around = "perimeter" in scene.question or "around" in scene.question
        assert around != ("area" in scene.question)
        return str(w + h + w + h if around else w * h)
    if figure["figure"] == "shape on a grid":
        covered = set()
        row, widest = 0, max(w for w, _ in figure["parts"])
        for w, h in figure["parts"]:
            start = 0 if figure["flush"] == "left" else widest - w
            covered |= {(start + right, row + down) for right in range(w) for down in range(h)}
            row += h
        return str(len(covered))
    if figure["figure"] == "polygon":
        return str(len({tuple(corner) for corner in figure["corners"]}))
    if figure["figure"] == "two rays":
        return str(abs(figure["directions"][0] - figure["directions"][1]))
    assert figure["angles"].count(None) == 1
    return str(180 - sum(angle or 0 for angle in figure["angles"]))


def writing(scene: Scene) -> list[str]:
    """What stands on the tiles, each found in the cell that it is said to fill."""
    tiles = json.loads(scene.description)["tiles"]
    assert all(cell_name(tile["x"] // CELL, tile["y"] // CELL) == tile["cell"] for tile in tiles)
    assert len({tile["cell"] for tile in tiles}) == len(tiles)
    return [tile["text"] for tile in tiles]


def solve_text(scene: Scene) -> str:
    written = writing(scene)
    if written[-1] == "=":
        return str(recompute(" ".join(written[:-1])))
    if written[0].isalpha():
        return "".join(written)
    assert len(set(written)) == len(written)
    wanted = min if re.search(r"smallest|lowest|least", scene.question) else max
    return max(written, key=int) if wanted is max else min(written, key=int)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("solve", [solve_charts, solve_geometry, solve_text])
def test_the_gold_follows_from_description_and_question(solve, level):
    for scene in scenes(solve.__name__.removeprefix("solve_"), level, 3000):
        assert solve(scene) == scene.answer, (scene.question, scene.description)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", MODULES)
def test_every_equation_in_a_thought_holds(family, level):
    found = 0
    for scene in scenes(family, level, 1500):
        for sentence in re.split(r"\.(?: |$)", scene.reasoning):
            values = [
                recompute(side) for side in sentence.split(" = ") if re.fullmatch(r"\d+(?: [-+x] \d+)*", side)
            ]
            assert len(set(values)) <= 1, scene.reasoning
            found += len(values) > 1
    assert found > 100  # the pattern does find equations


@pytest.mark.parametrize("family", MODULES)
def test_a_thought_begins_with_what_is_seen(family):
    for scene in scenes(family, "normal", 1000):
        seen = scene.reasoning
        if family == "charts":
            _, values = read_chart(scene.description)
            assert re.sub(r" \(\d\)", "", seen).startswith(
                ", ".join(f"{name} {value}" for name, value in values.items()) + ". "
            )
        elif family == "text":
            written = (" " if "=" in writing(scene) else ", ").join(writing(scene)).removesuffix(" =")
            assert re.match(
                r"(The picture says|The letters are|The numbers are) " + re.escape(written) + r"\. ", seen
            )
        else:
            assert re.match(r"(The sides|The shape|The upper part|Row 1|The rays|The angles)", seen)
        assert 20 <= len(seen) <= 160


def test_bars_and_dots_end_at_their_value():
    for scene in scenes("charts", "normal", 300) + scenes("charts", "beyond", 100):
        header, values = read_chart(scene.description)
        picture, left, bottom = pixels(scene), int(header["left"]), int(header["bottom"])
        palette = [COLOURS[colour] for colour in header["colours"].split()]
        for place, value in enumerate(values.values()):
            mine = np.abs(picture - palette[place % len(palette)]).sum(-1) < 30
            if header["chart"] == "horizontal bars":
                along = mine[int(5 + (bottom - 5) / len(values) * (place + 0.5)), left:]
            else:
                across = left + (SIZE - 5 - left) / len(values) * (place + 0.5)
                along = mine[bottom - 1 :: -1, int(across)]
            end = charts.UNIT * value
            if header["chart"] == "line":  # lines are thinner than 2 pixels, dots are 7 wide
                x, y = round(across), bottom - end
                assert mine[y - 2 : y + 2, x - 2 : x + 2].all(), (scene.description, place)
            else:
                # the last pixel may be blended with the paper; a unit is 11 pixels
                assert abs(np.flatnonzero(along).max() + 1 - end) <= 1, (scene.description, place)


def test_as_many_cells_of_the_grid_are_coloured_as_the_gold_says():
    shapes = [
        scene for level in LEVELS for scene in scenes("geometry", level, 400) if "grid" in scene.description
    ]
    assert len(shapes) > 100
    for scene in shapes:
        figure, picture = json.loads(scene.description), pixels(scene)
        middles = range(geometry.UNIT // 2, SIZE, geometry.UNIT)
        colour = list(COLOURS[figure["colour"]])
        assert sum(picture[down, right].tolist() == colour for down in middles for right in middles) == int(
            scene.answer
        )
        if len(figure["parts"]) == 2:
            assert figure["parts"][0][0] != figure["parts"][1][0], "an L needs two widths"


def cross(a: list, b: list, c: list, d: list) -> bool:
    """Whether the line from a to b goes through that from c to d, ends apart."""

    def side(p: list, q: list, r: list) -> int:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def test_triangles_and_polygons_are_drawn_true_to_their_measures():
    for level in LEVELS:
        for scene in scenes("geometry", level, 600):
            figure = json.loads(scene.description)
            if figure["figure"] not in ("triangle", "polygon"):
                continue
            corners = figure["corners"]
            turns = []
            for at in range(len(corners)):
                before, here, after = (np.array(corners[(at + step) % len(corners)]) for step in (-1, 0, 1))
                (ax, ay), (bx, by) = before - here, after - here
                turns.append(math.degrees(math.atan2(ax * by - ay * bx, ax * bx + ay * by)))
            if level == "beyond" and figure["figure"] == "polygon":  # nine cells of 4 x 4 are never convex
                sides = [*pairwise([*corners, corners[0]])]
                assert not any(cross(*one, *other) for one, other in combinations(sides, 2)), corners
            else:
                assert len({turn > 0 for turn in turns}) == 1, "not convex"
            assert all(abs(turn) < 170 for turn in turns), "a corner that nobody can see"
            if figure["figure"] == "triangle":
                angles = [int(scene.answer) if angle is None else angle for angle in figure["angles"]]
                # corners are rounded to whole pixels, half a pixel on sides of at least 20
                assert all(abs(abs(turn) - angle) < 4 for turn, angle in zip(turns, angles, strict=True)), (
                    figure,
                    turns,
                )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", MODULES)
def test_nothing_is_cut_off_at_the_border(family, level):
    for scene in scenes(family, level, 150):
        picture = pixels(scene)
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        if family == "text":  # a tile may touch the border; its whole width is inside
            assert all(
                12.5 <= tile[axis] <= SIZE - 12.5
                for tile in json.loads(scene.description)["tiles"]
                for axis in "xy"
            )
        elif (
            "shape on a grid" not in scene.description
        ):  # a grid fills the picture; its squares are counted above
            # the degree sign of a wide number may touch the last column: four pixels at most
            assert (border != scene.paper).any(-1).sum() <= 4, scene.description


@pytest.mark.parametrize("family", MODULES)
def test_what_is_drawn_stands_out_from_the_paper(family):
    for scene in scenes(family, "normal", 100):
        assert (np.abs(pixels(scene) - scene.paper).sum(-1) > 100).mean() > 0.01
    assert not [paper for paper in PAPER if math.dist(INK, paper) < 200]
    assert not [style for style, (face, _, ink) in text.STYLES.items() if math.dist(ink, face) < 200]


@pytest.mark.parametrize("family", MODULES)
def test_each_type_of_question_has_balanced_golds(family):
    golds: dict[str, Counter] = {}
    topics = {wording: topic for topic, several in wordings(family).items() for wording in several}
    for scene in scenes(family, "normal", 4000):
        [topic] = {
            topic
            for wording, topic in topics.items()
            if re.fullmatch(re.sub(r"\\{\w+\\}", r"\\w+", re.escape(wording)), scene.question)
        }
        golds.setdefault(topic, Counter())[scene.answer] += 1
    assert golds.keys() == wordings(family).keys()
    for topic, answers in golds.items():
        share = answers.most_common(1)[0][1] / answers.total()
        print(f"{family} {topic}: {len(answers)} golds, the commonest {share:.2f}")
        # three standard errors of a share of 1/3 among the 600 or more of each topic: 0.06
        assert share < 1 / 3 - 0.03 + 0.06


@pytest.mark.parametrize("family", MODULES)
def test_scenes_hardly_ever_repeat(family):
    descriptions = [scene.description for level in LEVELS for scene in scenes(family, level, 2000)]
    assert len(set(descriptions)) > 0.98 * len(descriptions)
    assert all(
        scene.description == again.description
        for scene, again in zip(scenes(family, "normal", 50), scenes(family, "normal", 50), strict=True)
    )


def test_beyond_shows_what_neither_training_nor_rl_shows():
    def facts(family: str, level: str) -> list:
        return [scene.description for scene in scenes(family, level, 800)]

    assert min(len(read_chart(each)[1]) for each in facts("charts", "beyond")) > max(
        len(read_chart(each)[1]) for level in ("normal", "hard") for each in facts("charts", level)
    )
    corners, rays = {}, {}
    for level in LEVELS:
        figures = [json.loads(each) for each in facts("geometry", level)]
        corners[level] = {len(figure["corners"]) for figure in figures if figure["figure"] == "polygon"}
        rays[level] = {tuple(figure["directions"]) for figure in figures if figure["figure"] == "two rays"}
    assert set(sum(rays["beyond"], ())) <= set(sum(rays["normal"], ())), "a direction that is never shown"
    for found in (corners, rays):
        assert not found["beyond"] & (found["normal"] | found["hard"])
    letters = {}
    for level in LEVELS:
        letters[level] = {
            len(writing(scene)) for scene in scenes("text", level, 800) if writing(scene)[0].isalpha()
        }
    assert max(letters["normal"]) < min(letters["hard"]) <= max(letters["hard"]) < min(letters["beyond"])
