"""The playground: reproducible, fair without the picture, right by an independent reading of its own
descriptions.
"""

import json
import math
import random
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageFont

from r1ov import cli
from r1ov.data.playground import FAMILIES, SPLITS, invent, messages, sample, split_of
from r1ov.data.playground.__main__ import main
from r1ov.data.playground.scene import COLOURS, GRID, PAPER, SHAPES, SIZE, UNSEEN, Canvas, Scene, wordings
from r1ov.data.playground.source import Playground
from tests import reading

LEVELS = ("normal", "hard", "beyond")
SHAPE_FAMILIES = ("counting", "spatial", "pattern", "locate")  # those of coloured shapes, described in JSON
GOLDEN = (  # split, seed, index, question, answer
    ("train", 0, 0, "How many objects are there?", "3"),
    ("train", 0, 5, "Which object continues the pattern?", "orange circle"),
    (
        "rl",
        1,
        11,
        "In which direction is the red triangle from the red diamond: left, right, above or below?",
        "right",
    ),
    ("test", 0, 20, "Give the box [x1, y1, x2, y2] of the orange object.", "[7, 42, 35, 70]"),
    ("test", 2, 7, "How many more blue objects than green objects do you see?", "1"),
    ("generalisation", 0, 705, "Choose what belongs in place of the question mark: A, B, C or D.", "B"),
)


def scenes(family: str, level: str, count: int) -> list[Scene]:
    return [(some_scene if index < 500 else new_scene)(family, level, index) for index in range(count)]


def new_scene(family: str, level: str, index: int) -> Scene:
    return FAMILIES[family](random.Random(f"test/{family}/{level}/{index}"), level)


some_scene = cache(new_scene)  # most tests look at the same first ones


# --- the same sample for everyone, and never in two splits ---


@pytest.mark.parametrize(("split", "seed", "index", "question", "answer"), GOLDEN)
def test_a_sample_is_the_same_on_every_machine(split, seed, index, question, answer):
    each = sample(split=split, index=index, seed=seed)
    assert (each.question, each.answer) == (question, answer)


@pytest.mark.parametrize("split", SPLITS)
def test_drawing_a_sample_twice_gives_the_same_bytes(split):
    for index in range(2 * len(FAMILIES)):
        first, second = sample(split, index, seed=5), sample(split, index, seed=5)
        assert first.image.tobytes() == second.image.tobytes()
        assert first.image.size == (SIZE, SIZE)
        assert first.image.mode == "RGB"
        assert {**vars(first), "image": None} == {**vars(second), "image": None}


def test_no_description_is_shared_between_splits_whatever_the_seeds():
    homes: dict[tuple[str, str], set[str]] = defaultdict(set)
    for split in SPLITS:
        for seed in (0, 1):
            for index in range(350):
                family, scene = invent(split, index, seed)
                homes[family, scene.description].add(split)
    assert len(homes) > 2000
    assert all(len(splits) == 1 for splits in homes.values())


@pytest.mark.parametrize(
    ("split", "turns"), [("train", "nnnnnnnnnh"), ("rl", "nhh"), ("test", "n"), ("generalisation", "b")]
)
def test_levels_take_turns_a_sample_of_every_family_at_a_time(split, turns, monkeypatch):
    seen = []
    make = FAMILIES["locate"]
    monkeypatch.setitem(FAMILIES, "locate", lambda rng, level: seen.append(level) or make(rng, level))
    for turn in range(2 * len(turns)):
        seen.clear()
        sample(split, 7 * turn + list(FAMILIES).index("locate"))
        assert {level[0] for level in seen} == {turns[turn % len(turns)]}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_split_gets_its_share_of_each_family(family):
    shares = Counter(split_of(family, scene) for level in LEVELS for scene in scenes(family, level, 300))
    # 900 draws (not all different) of shares 1/8, 1/8, 1/4, 1/2: half of the expected share is many standard
    # errors away
    assert {
        split: shares[split] > 900 * share / 2
        for split, share in zip(SPLITS, (1 / 2, 1 / 4, 1 / 8, 1 / 8), strict=True)
    } == dict.fromkeys(SPLITS, True)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_scenes_with_one_description_are_drawn_alike(family):
    drawn: dict[str, bytes] = {}
    for scene in scenes(family, "normal", 150) + scenes(family, "beyond", 50):
        canvas = Canvas(scene.paper)
        scene.draw(canvas)
        assert drawn.setdefault(scene.description, (picture := canvas.finish().tobytes())) == picture
    assert len(set(drawn.values())) == len(drawn), "two descriptions of one picture could land in two splits"


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="no playground split is called 'dev'"):
        sample("dev")


# --- fair ---


def iou(a: list[int], b: list[int]) -> float:
    width, height = (max(0, min(a[axis + 2], b[axis + 2]) - max(a[axis], b[axis])) for axis in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def is_right(guess: str, scene: Scene) -> bool:
    return (
        iou(json.loads(guess), json.loads(scene.answer)) >= 0.5
        if scene.kind == "bbox"
        else guess == scene.answer
    )


def question_type(question: str) -> str:
    words = rf"\b({'|'.join(COLOURS)}|({'|'.join(SHAPES)})(e?s)?|[A-Z]|\d+)\b"
    return re.sub(words, "_", question)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_picture_at_most_a_third_can_be_guessed(family, level):
    """The guesser learns the best answer to each question (or to each type of question) on one half, and is
    scored on the other.
    """
    every = scenes(family, level, 3000)
    learn, score = every[::2], every[1::2]
    for key in (question_type, str):
        answers: dict[str, list[Scene]] = defaultdict(list)
        for scene in learn:
            answers[key(scene.question)].append(scene)
        guesses = {}
        for asked, seen in answers.items():
            if seen[0].kind == "bbox":  # 100 candidates judged on 100 scenes
                guesses[asked] = max(
                    (scene.answer for scene in seen[:100]),
                    key=lambda box: sum(is_right(box, scene) for scene in seen[:100]),
                )
            else:
                guesses[asked] = Counter(scene.answer for scene in seen).most_common(1)[0][0]
        right = sum(
            key(scene.question) in guesses and is_right(guesses[key(scene.question)], scene)
            for scene in score
        )
        print(f"{family} {level} {key.__name__}: {right / len(score):.3f}")
        # three standard errors of a share of 1/3 among 1500: 0.037
        assert right / len(score) <= 1 / 3 + 0.037


@pytest.mark.parametrize("split", SPLITS)
def test_thoughts_end_in_the_answer_and_rl_has_none(split):
    for index in range(20 * len(FAMILIES)):
        each = sample(split, index, seed=2)
        [user, *reply] = messages(each)
        assert user["content"][1]["text"] == each.question
        if split == "rl":
            assert each.reasoning is None
            assert not reply
        else:
            assert reply[0]["content"] == f"<think>{each.reasoning}</think>\n<answer>{each.answer}</answer>"
            assert len(each.reasoning) <= (320 if split == "test" else 400)
            if each.kind == "bbox":
                assert set(re.findall(r"\d+", each.answer)) <= set(re.findall(r"\d+", each.reasoning))
            else:
                assert (
                    each.answer.lower() in each.reasoning.lower() or each.family == "spatial"
                )  # there "yes" may follow from the steps


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_have_the_form_of_their_kind(family):
    forms = {
        "mcq": "[A-D]",
        "yes_no": "yes|no",
        "number": r"-?\d+(\.\d+)?",
        "bbox": r"\[\d+, \d+, \d+, \d+\]",
        "text": r"\S.*",
    }
    for level in LEVELS:
        for scene in scenes(family, level, 300):
            assert re.fullmatch(forms[scene.kind], scene.answer), (scene.kind, scene.answer)
            assert scene.question.isascii()
            assert scene.reasoning.isascii()


# --- right: the gold recomputed from description and question alone ---

Facts = dict


def mentioned(question: str) -> tuple[list[str], list[str]]:
    """Colours and shapes named in the question, in order."""
    colours = re.findall(rf"\b({'|'.join(COLOURS)})\b", question.lower())
    return colours, [shape for shape, _ in re.findall(rf"\b({'|'.join(SHAPES)})(e?s)?\b", question.lower())]


def matching(facts: Facts, colour: str | None, shape: str | None) -> list[Facts]:
    return [
        each
        for each in facts["objects"]
        if colour in (None, each["colour"]) and shape in (None, each["shape"])
    ]


def place(each: Facts) -> tuple[int, int]:
    x1, y1, x2, y2 = each["box"]
    return (x1 + x2) // 56, (y1 + y2) // 56


def solve_counting(question: str, facts: Facts) -> str:
    colours, shapes = mentioned(question)
    if "most" in question:
        what = "colour" if "colour" in question else "shape"
        (winner, first), *others = Counter(each[what] for each in facts["objects"]).most_common()
        assert all(count < first for _, count in others)
        return winner
    if re.search("more|outnumber|minus", question):
        first, second = [len(matching(facts, c, None)) for c in colours] or [
            len(matching(facts, None, s)) for s in shapes
        ]
        return str(first - second)
    return str(len(matching(facts, *(values[0] if values else None for values in (colours, shapes)))))


def solve_spatial(question: str, facts: Facts) -> str:
    corner = re.search("(top|bottom) (left|right) corner", question)
    if corner:
        wanted = (3 * (corner[2] == "right"), 3 * (corner[1] == "bottom"))
        [found] = [each for each in facts["objects"] if place(each) == wanted]
        return f"{found['colour']} {found['shape']}"
    named = []
    for colour, shape in zip(*mentioned(question), strict=True):
        [one] = matching(facts, colour, shape)
        named.append(place(one))
    if "directly" in question:
        side = re.search("directly (left|right|above|below)", question)[1]
        right, down = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}[side]
        [found] = [
            each for each in facts["objects"] if place(each) == (named[0][0] + right, named[0][1] + down)
        ]
        return f"{found['colour']} {found['shape']}"
    first, second = reversed(named) if question.startswith("Seen from") else named
    right, down = first[0] - second[0], first[1] - second[1]
    true = {"left": right < 0, "right": right > 0, "above": down < 0, "below": down > 0}
    if "left, right" in question:
        [answer] = [side for side, holds in true.items() if holds]
        return answer
    asked = re.search("left|right|above|below", question)[0]
    assert right if asked in ("left", "right") else down, "neither yes nor no"
    return "yes" if true[asked] else "no"


def next_of_cycle(values: list) -> tuple[bool, object]:
    """The value after the shortest repeating unit; False if nothing repeats."""
    for period in range(1, len(values)):
        if all(values[at] == values[at - period] for at in range(period, len(values))):
            return True, values[-period]
    return False, None


def solve_line(values: list, kind: str) -> object:
    if kind == "shape":
        found, value = next_of_cycle(values)
        return value if found else tuple(next_of_cycle([value[at] for value in values])[1] for at in (0, 1))
    if kind == "dots":
        numbers = [number for _, number in values]
        steps = [b - a for a, b in pairwise(numbers)]
        if len(set(steps)) > 1 and steps[-1] != steps[-3 if len(steps) > 2 else 0]:
            changes = {b - a for a, b in pairwise(steps)}
            assert len(changes) == 1
            return values[0][0], numbers[-1] + steps[-1] + changes.pop()
        return values[0][0], numbers[-1] + steps[-2]  # constant or alternating
    compass = ("up", "up right", "right", "down right", "down", "down left", "left", "up left")
    turns = {(compass.index(b) - compass.index(a)) % 8 for (_, a), (_, b) in pairwise(values)}
    assert len(turns) == 1
    return next_of_cycle([colour for colour, _ in values])[1], compass[
        (compass.index(values[-1][1]) + turns.pop()) % 8
    ]


def solve_matrix(cells: list) -> tuple[str, str]:
    row, column = divmod(cells.index(None), 3)
    answer = []
    for which in (0, 1):
        grid = [
            [None if cell is None else cell[which] for cell in cells[3 * at : 3 * at + 3]] for at in range(3)
        ]
        in_row, in_column = (
            {value for value in line if value} for line in (grid[row], [line[column] for line in grid])
        )
        if len(in_row) == 1:
            answer.append(in_row.pop())
        elif len(in_column) == 1:
            answer.append(in_column.pop())
        else:
            [missing] = {value for line in grid for value in line if value} - in_row
            assert missing not in in_column
            answer.append(missing)
    return tuple(answer)


def solve_pattern(question: str, facts: Facts) -> str:
    def content(cell: Facts) -> tuple | None:
        return (
            None
            if cell["kind"] == "?"
            else (cell["colour"], cell.get("shape") or cell.get("dots") or cell.get("points"))
        )

    cells = [content(cell) for cell in facts["cells"]]
    kind = facts["cells"][0 if cells[0] else 1]["kind"]
    gold = solve_matrix(cells) if len(cells) == 9 else solve_line(cells[:-1], kind)
    if facts["options"]:
        [letter] = [letter for letter, cell in facts["options"].items() if content(cell) == gold]
        return letter
    return " ".join(gold) if kind == "shape" else str(gold[1])


def solve_locate(question: str, facts: Facts) -> str:
    colours, shapes = mentioned(question)
    [target] = matching(facts, *(values[0] if values else None for values in (colours, shapes)))
    return str(target["box"])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("solve", [solve_counting, solve_spatial, solve_pattern, solve_locate])
def test_an_independent_solver_finds_the_gold_in_the_description(solve, level):
    for scene in scenes(solve.__name__.removeprefix("solve_"), level, 500):
        assert solve(scene.question, json.loads(scene.description)) == scene.answer, (
            scene.question,
            scene.description,
        )


# --- the picture shows what the description says ---


def described(scene: Scene) -> list[Facts]:
    """Everything with a colour and a box."""
    facts = json.loads(scene.description)
    return [
        each
        for each in (*facts.get("objects", ()), *facts.get("cells", ()), *facts.get("options", {}).values())
        if "colour" in each
    ]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", SHAPE_FAMILIES)
def test_each_described_box_holds_its_colour_and_touches_it_on_all_sides(family, level):
    for scene in scenes(family, level, 40):
        canvas = Canvas(scene.paper)
        scene.draw(canvas)
        pixels = np.asarray(canvas.finish(), dtype=int)
        palette = np.array([*COLOURS.values(), scene.paper, GRID])
        nearest = np.abs(pixels[:, :, None] - palette).sum(-1).argmin(-1)
        for each in described(scene):
            x1, y1, x2, y2 = each["box"]
            assert 0 <= x1 < x2 <= SIZE
            assert 0 <= y1 < y2 <= SIZE
            inside = nearest[y1:y2, x1:x2] == list(COLOURS).index(each["colour"])
            assert inside.any()
            if "shape" in each:
                assert inside.mean() > 0.2  # a star, the thinnest, covers 0.3 of its box
                ys, xs = np.nonzero(inside)
                # a pixel at the tip of a star or triangle is mostly paper: the colour may begin up to 3
                # pixels inside
                assert max(xs.min(), ys.min(), x2 - x1 - 1 - xs.max(), y2 - y1 - 1 - ys.max()) <= 3
            outside = nearest[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] == list(COLOURS).index(
                each["colour"]
            )
            assert outside.sum() <= inside.sum() + 2, "the shape sticks out of its box"


@pytest.mark.parametrize("family", SHAPE_FAMILIES)
def test_things_do_not_overlap_and_lie_inside_the_picture(family):
    for level in LEVELS:
        for scene in scenes(family, level, 100):
            boxes = [each["box"] for each in described(scene)]
            assert all(iou(a, b) == 0 for at, a in enumerate(boxes) for b in boxes[:at])


@pytest.mark.parametrize("family", SHAPE_FAMILIES)
def test_unseen_pairs_appear_beyond_and_only_there(family):
    found = {
        level: {
            (each["colour"], each.get("shape"))
            for scene in scenes(family, level, 500)
            for each in described(scene)
        }
        for level in LEVELS
    }
    assert not UNSEEN & (found["normal"] | found["hard"])
    assert found["beyond"] >= UNSEEN


@pytest.mark.parametrize("family", ["counting", "spatial", "locate"])
def test_levels_differ_in_the_number_of_objects(family):
    counts = [{len(described(scene)) for scene in scenes(family, level, 300)} for level in LEVELS]
    assert max(counts[0]) < max(counts[1]) < min(counts[2])


def test_colours_can_be_told_apart_on_every_paper():
    every = list(COLOURS.values())
    assert all(math.dist(a, b) > 60 for at, a in enumerate(every) for b in (*every[:at], *PAPER))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_letter_drawn_is_in_the_typeface(family, monkeypatch):
    font = ImageFont.load_default(20)
    missing = bytes(font.getmask("\uffff"))
    written = set()
    monkeypatch.setattr(Canvas, "text", lambda self, x, y, text, *rest, **more: written.update(text))
    for level in LEVELS:
        for scene in scenes(family, level, 100):
            scene.draw(Canvas(scene.paper))
    assert not [letter for letter in written - {" "} if bytes(font.getmask(letter)) == missing]


# --- handy ---


def test_drawing_never_holds_training_back():
    sample()  # fonts and caches
    begin = time.process_time()
    for index in range(50 * len(FAMILIES)):
        sample("train", index, seed=9)
    rate = 50 * len(FAMILIES) / (time.process_time() - begin)
    print(f"{rate:.0f} samples/s")
    assert rate > 200  # a step of the tiny model takes about 70 samples/s on the same thread


def test_all_questions_are_listed_for_whoever_wants_to_ask_them(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["playground", "--questions"])
    assert cli.run(main) == 0
    *blocks, said = capsys.readouterr().out.strip().split("\n\n")
    assert said.startswith("What is in {} is of the picture")
    blocks = [block.splitlines() for block in blocks]
    listed = {title: [line.strip() for line in lines] for title, *lines in blocks}
    assert listed == {
        f"{family}: {topic}": questions
        for family in FAMILIES
        for topic, questions in wordings(family).items()
    }
    assert "How many {name} are there?" in listed["counting: how many"]


def test_the_contact_sheet_is_written_and_mistakes_are_explained(tmp_path):
    command = [sys.executable, "-m", "r1ov.data.playground", "--count", "1"]
    done = subprocess.run(
        [*command, "--show", tmp_path / "sheet.png", "--split", "rl"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "samples/s" in done.stdout
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > len(FAMILIES) * 2 * SIZE
    for wrong in (
        ["--split", "dev", "--show", "x.png"],
        [],
        ["--show", tmp_path / "no" / "sheet.png"],
        ["--show", "x.png", "--count", "0"],
    ):
        failed = subprocess.run([*command, *wrong], capture_output=True, text=True)
        assert failed.returncode == 2
        assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reward_for_reading_knows_a_true_thought_from_a_false_one(family):
    source, place = Playground("rl", 3), list(FAMILIES).index(family)
    for turn in range(6):
        record = source[number := turn * len(FAMILIES) + place]
        scene, row = invent("rl", number, 3)[1], {"where": record.where}
        said = f"<think>{scene.reasoning}</think>\n<answer>wrong</answer>"
        words = scene.reasoning.split()
        assert reading.score([], said, row, {}) == 1.0
        for at in range(len(words)):
            if words[at].strip(".,").isdigit() and scene.kind == "bbox":
                other = said.replace(words[at], words[at].replace(words[at][0], "9"))
                assert reading.score([], other, row, {}) == 1.0  # of a box, how well is the answer's score
            elif scene.kind != "bbox" or at < words.index("x"):
                other = " ".join([*words[:at], f"un{words[at]}", *words[at + 1 :]])
                assert reading.score([], f"<think>{other}</think>", row, {}) == 0.0
        assert reading.score([], scene.reasoning, row, {}) == 0.0  # no thought
    assert reading.score([], said, {"where": "rows.jsonl, row 3"}, {}) is None
