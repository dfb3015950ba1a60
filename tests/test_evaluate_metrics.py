"""The benchmarks' own metrics to the digit, on items with the published counts."""

from collections import Counter
from collections.abc import Iterable, Sequence

import pytest

from r1ov.evaluate.benchmarks import BENCHMARKS, benchmark, load_items
from r1ov.evaluate.item import Item, Prediction, Verdict
from r1ov.evaluate.report import VERSIONS, Table, dimensions, tables_of
from r1ov.evaluate.scoring import score
from tests.benchmark_files import mathverse, mathvision, mathvista, parquet, png, struct, wemath


def item(
    number: int | str, bench: str = "b", gold: str = "A", kind: str = "mcq", group: str | None = None, **tags
) -> Item:
    return Item(
        bench=bench,
        split="s",
        id=str(number),
        question="?",
        answer=gold,
        kind=kind,
        choices=tuple("ABCDE"),
        group=group,
        tags=tags,
    )


def verdicts(items: Iterable[Item], right: Iterable[str], sample: int = 0) -> list[Verdict]:
    right = set(right)
    return [
        Verdict(
            item=one,
            prediction=Prediction(id=one.id, text="", sample=sample),
            score=float(one.id in right),
            answer="",
            method="tag",
            well_formed=1.0,
        )
        for one in items
    ]


def metrics_of(bench: str, items: Sequence[Item], found: Sequence[Verdict]) -> list[Table]:
    """The benchmark's own tables; an answer that is missing is a wrong one, as the command makes it."""
    there = {(one.item.id, one.prediction.sample) for one in found}
    for sample in {0, *(one.prediction.sample for one in found)}:
        found = [*found, *verdicts([one for one in items if (one.id, sample) not in there], [], sample)]
    samples = len({one.prediction.sample for one in found})
    return [bare(table) for table in tables_of(benchmark(bench).metrics, found)[0][1 + (samples > 1) :]]


def bare(table: Table) -> Table:
    """A table by a tag without its intervals and its last row, which test_evaluate_report.py has."""
    if "95% interval" not in table.columns:
        return table
    rows = table.rows if table.rows[-1][0] != "all" else table.rows[:-1]
    return Table(table.title, table.columns[:3], tuple(row[:3] for row in rows))


def always(items: Sequence[Item], letter: str) -> list[Verdict]:
    """The verdicts on this letter wherever there are options; the other questions stay unanswered."""
    asked = [one for one in items if one.kind == "mcq"]
    return [
        score(one, Prediction(id=one.id, text=f"<think>so</think><answer>{letter}</answer>")) for one in asked
    ]


def percent(tables: Sequence[Table], title: str) -> dict[str, tuple[str, ...]]:
    """{a row's first cell: its shares of one, in per cent with two decimals}."""
    (table,) = [one for one in tables if one.title == title]
    assert all(len(row) == len(table.columns) for row in table.rows)
    shares = {row[0]: [cell for cell in row[1:] if not isinstance(cell, int)] for row in table.rows}
    return {
        name: tuple("-" if cell is None else f"{cell:.2%}".rstrip("%") for cell in cells)
        for name, cells in shares.items()
    }


def groups_of_golds() -> list[tuple[str, str]]:
    """(one-step golds, composite gold) of 525 groups that have We-Math's published counts.

    Golds: A 585, B 507, C 454, D 193, E 1. Which groups hold which is our own choice, made so that answering
    A everywhere gives the published IK 365, IG 7, CM 55 (150 loose), RM 98 (3 loose), and answering B
    everywhere the published scores. "." is to be neither A nor B.
    """
    groups = [("AA", "A")] * 40 + [("AAA", "A")] * 15  # A: CM
    groups += [("A.", "A")] * 65 + [("A..", "A")] * 30  # A: RM, complete mastery in the loose sense
    groups += [("BB", "A")] * 2 + [("BBB", "A")]  # A: RM in the loose sense too; B: IG
    groups += [("AA", ".")] * 7  # A: IG
    groups += [("A.", "B")] * 100 + [("AB", ".")] * 52 + [("A.", ".")] * 46  # A: IK; B: RM, IK, IK
    groups += [("BB", "B")] * 32 + [("B.", "B")] * 6 + [("..", ".")] * 10  # B: CM, loose CM, IK
    groups += [("BBB", ".")] * 2 + [("B..", "B")] * 117  # B: IG, loose CM
    others = iter("C" * 454 + "D" * 193 + "E")
    return [
        tuple("".join(next(others) if one == "." else one for one in golds) for golds in group)
        for group in groups
    ]


def wemath_rows() -> list[dict]:
    rows = []
    for number, (steps, multi) in enumerate(groups_of_golds()):
        name = f"{len(steps)}steps"
        rows += [wemath(f"{name}_{number}", f"{name}_{step}", gold) for step, gold in enumerate(steps, 1)]
        rows.append(wemath(f"{name}_{number}", f"{name}_multi", multi))
    return rows


@pytest.fixture(scope="module")
def wemath_items(tmp_path_factory) -> list[Item]:
    return load_items(
        "wemath", str(parquet(tmp_path_factory.mktemp("wemath") / "testmini.parquet", wemath_rows()))
    )


def test_the_synthetic_we_math_has_the_published_counts(wemath_items, capsys):
    golds = Counter(one.answer for one in wemath_items)
    assert golds == {"A": 585, "B": 507, "C": 454, "D": 193, "E": 1}
    keys = Counter(one.tags["key"] for one in wemath_items)
    assert keys["2steps_multi"] == 360
    assert keys["3steps_multi"] == 165
    assert len(wemath_items) == 1740 == BENCHMARKS["wemath"].counts["testmini"]
    assert capsys.readouterr().err == ""


def test_we_math_answered_with_a_everywhere(wemath_items):
    found = always(wemath_items, "A")
    tables = metrics_of("wemath", wemath_items, found)
    # score, IK, IG, CM, RM
    assert percent(tables, "four-dimensional score") == {
        "strict": ("11.14", "69.52", "1.33", "10.48", "64.05"),
        "loose": ("29.24", "69.52", "1.33", "28.57", "1.96"),
    }
    assert percent(tables, "by steps") == {
        "one-step (S1)": ("35.56",),
        "two-step (S2)": ("29.72",),
        "three-step (S3)": ("27.88",),
    }
    assert f"{sum(one.score for one in found) / 1740:.2%}" == "33.62%"


def test_we_math_answered_with_b_everywhere(wemath_items):
    found = always(wemath_items, "B")
    scores = percent(metrics_of("wemath", wemath_items, found), "four-dimensional score")
    assert (scores["strict"][0], scores["loose"][0]) == ("6.57", "30.00")
    assert f"{sum(one.score for one in found) / 1740:.2%}" == "29.14%"


def test_we_math_all_wrong_and_all_right(wemath_items):
    wrong = percent(metrics_of("wemath", wemath_items, verdicts(wemath_items, [])), "four-dimensional score")
    assert wrong == dict.fromkeys(("strict", "loose"), ("0.00", "100.00", "0.00", "0.00", "-"))
    assert percent(metrics_of("wemath", wemath_items, []), "four-dimensional score") == wrong
    right = verdicts(wemath_items, [one.id for one in wemath_items])
    assert percent(metrics_of("wemath", wemath_items, right), "four-dimensional score")["strict"] == (
        "100.00",
        "0.00",
        "0.00",
        "100.00",
        "0.00",
    )


def test_the_four_dimensions_of_single_groups():
    """Each kind of group alone, worked by hand from the definitions: (composite, steps) -> strict score,
    loose score.
    """
    for multi, steps, strict, loose in [
        (True, (True, True), 1.0, 1.0),
        (True, (True, False), 0.0, 1.0),
        (True, (False, False), 0.0, 0.0),
        (False, (True, True), 0.5, 0.5),
        (False, (True, False), 0.0, 0.0),
        (False, (False, False, False), 0.0, 0.0),
    ]:
        assert dimensions([(multi, steps)], strict=True)[0] == strict
        assert dimensions([(multi, steps)], strict=False)[0] == loose


def test_we_math_leaves_out_torn_groups_and_averages_over_samples():
    items = [
        item(f"{group}{key}", group=group, key=f"2steps_{key}", concept="c")
        for group in "xyz"
        for key in ("1", "2", "multi")
    ]
    del items[-1]  # of z
    first = verdicts(items, ["x1", "x2", "xmulti"])
    second = verdicts(items, [one.id for one in items], sample=1)
    (table,) = metrics_of("wemath", items, first + second)
    assert table.rows[0] == ("strict", 4, 0.75, 0.25, 0.0, 0.75, 0.0)
    assert metrics_of("wemath", items[-2:], []) == []


def test_mathverse_is_the_mean_of_five_versions_without_text_only(tmp_path):
    picture = struct(png())
    rows = [
        mathverse(5 * n + v, version, "7", image=picture)
        for n in range(788)
        for v, version in enumerate(VERSIONS)
    ]
    items = load_items("mathverse", str(parquet(tmp_path / "testmini.parquet", rows)))
    text_only = [item(f"t{n}", problem_version="Text Only", subject="Plane Geometry") for n in range(788)]
    solved = dict(zip(VERSIONS, (400, 380, 360, 340, 310), strict=True))
    right = [one.id for one in items if int(one.group) < solved[one.tags["problem_version"]]]
    tables = metrics_of(
        "mathverse", items + text_only, verdicts(items + text_only, [*right, *(one.id for one in text_only)])
    )
    assert tables[0].rows[0][1] == pytest.approx(0.4543, abs=5e-5)  # (400 + 380 + 360 + 340 + 310) / 5 / 788
    assert percent(tables, "by version") == {
        "Text Dominant": ("50.76",),
        "Text Lite": ("48.22",),
        "Vision Intensive": ("45.69",),
        "Vision Dominant": ("43.15",),
        "Vision Only": ("39.34",),
        "Text Only (apart)": ("100.00",),
    }
    assert [table.rows for table in tables if table.title == "by subject"] == [
        (("Plane Geometry", 3940, 1790 / 3940),)
    ]
    few = [one for one in items if one.tags["problem_version"] != "Text Lite"][:7]
    assert metrics_of("mathverse", few, verdicts(few, [few[0].id]))[0].rows == [("4", 0.5 / 4)]


TASKS = {"figure question answering": 269, "geometry problem solving": 208, "math word problem": 186}
TASKS |= {"visual question answering": 179, "textbook question answering": 158}


def test_mathvista_by_task_skill_and_source(tmp_path):
    """1,000 rows with the published tasks and answer types; A is right for the 540 multiple-choice ones of
    even number.
    """
    tasks = [task for task, count in TASKS.items() for _ in range(count)]
    types = ["text"] * 540 + ["integer"] * 418 + ["float"] * 40 + ["list"] * 2
    rows = []
    for n, (task, kind) in enumerate(zip(tasks, types, strict=True)):
        gold = {"text": ("one", "two")[n % 2], "integer": "7", "float": "1.25", "list": "[3, 4]"}[kind]
        more = (
            {"choices": ["one", "two"]} if kind == "text" else {"precision": 2.0 if kind == "float" else None}
        )
        skills = ["arithmetic reasoning"] * (n < 353) + ["scientific reasoning"] * (n >= 963)
        metadata = {"task": task, "skills": skills, "source": f"source {n % 10}"}
        rows.append(
            mathvista(
                n, "multi_choice" if kind == "text" else "free_form", kind, gold, metadata=metadata, **more
            )
        )
    items = load_items("mathvista", str(parquet(tmp_path / "testmini.parquet", rows)))
    found = always(items, "A")
    assert sum(one.score for one in found) == 270
    tables = metrics_of("mathvista", items, found)
    assert [table.title for table in tables] == ["by task", "by skills", "by source"]
    assert tables[0].rows[0] == ("figure question answering", 269, 135 / 269)
    assert percent(tables, "by task") == {
        **{
            "figure question answering": ("50.19",),
            "geometry problem solving": ("50.00",),
            "math word problem": ("16.67",),
        },
        **{"textbook question answering": ("0.00",), "visual question answering": ("0.00",)},
    }
    assert [row[:2] for row in tables[1].rows] == [
        ("arithmetic reasoning", 353),
        ("scientific reasoning", 37),
    ]
    assert f"{tables[1].rows[0][2]:.2%}" == "50.14%"
    assert [row[1] for row in tables[2].rows] == [100] * 10
    assert Counter((one.kind, one.is_integer, one.precision) for one in items) == {
        **{
            ("mcq", False, None): 540,
            ("number", True, None): 418,
            ("number", False, 2): 40,
            ("tuple", False, None): 2,
        },
    }


def test_mathvision_by_level_and_subject(tmp_path):
    picture = struct(png())
    rows = [
        mathvision(
            n,
            "A" if n < 298 else "B",
            "ABCDE" if n < 1532 else (),
            level=n % 5 + 1,
            subject=f"subject {n % 16:02}",
            decoded_image=picture,
        )
        for n in range(3040)
    ]
    items = load_items("mathvision", str(parquet(tmp_path / "test.parquet", rows)))
    found = always(items, "A")
    assert f"{sum(one.score for one in found) / 3040:.1%}" == "9.8%"
    levels, subjects = metrics_of("mathvision", items, found)
    assert [row[:2] for row in levels.rows] == [(str(level), 608) for level in range(1, 6)]
    assert f"{levels.rows[0][2]:.2%}" == "9.87%"
    assert len(subjects.rows) == 16
    assert subjects.rows[0] == ("subject 00", 190, 19 / 190)


def test_r1_onevision_bench_by_level_and_category():
    items = [
        item(n, level=("College", "High School")[n % 2], category=("Math", "Physics", "Biology")[n % 3])
        for n in range(6)
    ]
    tables = metrics_of("r1-onevision-bench", items, verdicts(items, ["0", "2", "3"]))
    assert tables[0].rows == (("College", 3, 2 / 3), ("High School", 3, 1 / 3))
    assert tables[1].rows == (("Biology", 2, 0.5), ("Math", 2, 1.0), ("Physics", 2, 0.0))


def test_an_item_counts_once_whatever_its_samples_and_0_without_any():
    items = [item(n, family="text") for n in range(3)]
    found = [*verdicts(items[:2], ["0"]), *verdicts(items[:1], [], sample=1)]
    assert metrics_of("playground", items, found)[0].rows == (("text", 3, pytest.approx(0.5 / 3)),)


def test_a_file_of_questions_has_tables_of_tags_that_divide_it():
    items = [item(n, topic="ab"[n % 2], name=f"n{n}", same="x") for n in range(4)]
    assert [(table.title, table.rows) for table in metrics_of("mine.tsv", items, verdicts(items, ["1"]))] == [
        ("by topic", (("a", 2, 0.0), ("b", 2, 0.5))),
    ]
