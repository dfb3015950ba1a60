"""The runner: a killed run goes on where it stopped, and an answer depends on nothing but its question."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from r1ov import load
from r1ov.data.image import LazyImage
from r1ov.engine import generate
from r1ov.errors import UserError
from r1ov.evaluate import runner
from r1ov.evaluate.__main__ import EvaluateConfig as Asking
from r1ov.evaluate.benchmarks import playground_items
from r1ov.evaluate.item import read_predictions
from r1ov.evaluate.prompts import messages_of, swap_pictures
from r1ov.evaluate.runner import answer, run
from tests import warm

ROOT = Path(__file__).parent.parent
GREEDY = Asking(prompt="none", max_new_tokens=24)
SAMPLED = replace(GREEDY, temperature=3.0, num_samples=3, seed=5)


@pytest.fixture(scope="module")
def tiny():
    return load("r1ov-tiny")


@pytest.fixture(scope="module")
def items():
    return playground_items("test", 9)


def answered(tiny, items, asking, max_num_seqs=64) -> dict:
    rows = {}
    answer(*tiny, items, asking, lambda item, row: rows.__setitem__((row.id, row.sample), row), max_num_seqs)
    return rows


def right(item, row) -> float:
    return 1.0


def broken() -> None:
    raise UserError("the picture: cannot be decoded")


def texts(rows) -> list:
    return [(row.id, row.sample, row.text) for row in rows]


def test_killed_ten_times_on_one_process_and_on_two_it_ends_with_the_same_answers(tmp_path):
    words = [warm.python(), "-m", "tests.killed_evaluation", str(tmp_path), "1"]
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[1]) >= 5, done.stdout  # kills that met it at work
    whole, killed = (read_predictions(tmp_path / name / "predictions.jsonl") for name in ("whole", "killed"))
    assert texts(whole) == texts(killed)
    assert [(row.id, row.sample) for row in whole] == [
        (f"test/{index}", sample) for index in range(24) for sample in range(2)
    ]
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [
        ".lock",
        "predictions.jsonl",
        "settings.json",
    ]


def test_its_answers_are_those_of_generate(tiny, items):
    rows = answered(tiny, items, GREEDY, max_num_seqs=4)
    prompts = [messages_of(item, "none", None) for item in items]
    done = generate(*tiny, prompts, max_new_tokens=24, temperature=0.0, repetition_penalty=1.0)
    for item, completion in zip(items, done, strict=True):
        row = rows[item.id, 0]
        assert (row.text, row.finish_reason, row.completion_tokens) == (
            completion.text,
            completion.finish_reason,
            completion.completion_tokens,
        )


def test_a_sample_depends_on_its_question_and_the_seed_alone(tiny, items, monkeypatch):
    together = answered(tiny, items, SAMPLED)
    assert len({row.text for row in together.values()}) > len(items)  # they do differ
    alone = {}
    for item in reversed(items):
        alone |= answered(tiny, [item], SAMPLED, max_num_seqs=3)
    monkeypatch.setattr(runner, "PATCH_BYTES", 1)  # every question a chunk of its own
    for other in (alone, answered(tiny, items, SAMPLED)):
        assert {key: row.text for key, row in other.items()} == {
            key: row.text for key, row in together.items()
        }
    assert answered(tiny, items[:1], replace(SAMPLED, seed=6))["test/0", 0].text != together["test/0", 0].text


def test_pictures_are_decoded_a_chunk_at_a_time(tiny, items, monkeypatch):
    decoded, at_first_answer = [], []

    def counting(item):
        image = item.images[0]
        return replace(item, images=[LazyImage(image.size, lambda: decoded.append(item.id) or image.load())])

    monkeypatch.setattr(runner, "PATCH_BYTES", 3 * 64 * 1176 * 4)  # three pictures of 112 x 112
    answer(
        *tiny,
        [counting(item) for item in items],
        GREEDY,
        lambda item, row: at_first_answer.append(len(decoded)),
        64,
    )
    assert at_first_answer[0] == 3
    assert len(decoded) == len(items)


def test_what_cannot_be_asked_is_a_row_that_says_why_and_is_asked_again(tiny, items, tmp_path):
    missing = replace(items[0], images=(), error="a picture's file is missing: x.png")
    undecodable = replace(items[1], images=[LazyImage((112, 112), broken)])
    long = replace(items[2], question="circle " * 3000)
    rows = run(*tiny, [missing, undecodable, long, items[3]], GREEDY, tmp_path, {}, right)
    assert [row.finish_reason for row in rows[:3]] == ["error"] * 3
    assert [row.text for row in rows[:3]] == [""] * 3
    for row, reason in zip(rows, ("missing: x.png", "cannot be decoded", "leaves no room"), strict=False):
        assert reason in row.error
    assert rows[3].error is None
    asked = []
    rows = run(*tiny, items[:4], GREEDY, tmp_path, {}, lambda item, row: asked.append(item.id) or 1.0)
    assert sorted(asked) == ["test/0", "test/1", "test/2"]
    assert [row.finish_reason for row in rows if row.error] == []
    assert texts(rows) == [
        (item.id, 0, answered(tiny, [item], GREEDY)[item.id, 0].text) for item in items[:4]
    ]


def test_more_questions_go_on_in_the_same_folder_and_answers_are_kept_in_the_benchmarks_order(
    tiny, items, tmp_path
):
    run(*tiny, items[4:6], GREEDY, tmp_path, {}, right)
    asked = []
    rows = run(*tiny, items[:6], GREEDY, tmp_path, {}, lambda item, row: asked.append(item.id) or 1.0)
    assert sorted(asked) == ["test/0", "test/1", "test/2", "test/3"]
    assert [row.id for row in rows] == [item.id for item in items[:6]]
    fewer = run(*tiny, items[:2], GREEDY, tmp_path, {}, right)
    assert [row.id for row in fewer] == ["test/0", "test/1"]
    assert len(read_predictions(tmp_path / "predictions.jsonl")) == 6  # nothing is thrown away


def test_other_settings_are_no_continuation(tiny, items, tmp_path):
    run(*tiny, items[:1], GREEDY, tmp_path, {"temperature": 0.0, "run": {"device": "cpu"}}, right)
    run(*tiny, items[:1], GREEDY, tmp_path, {"temperature": 0.0, "run": {"device": "cuda"}}, right)
    with pytest.raises(UserError, match=r"--temperature was 0\.0 and is 1\.0; .*choose another --out"):
        run(*tiny, items[:1], GREEDY, tmp_path, {"temperature": 1.0, "run": {}}, right)


def test_a_question_that_was_mended_is_asked_again_and_no_other(tiny, items, tmp_path, capsys):
    run(*tiny, items[:3], GREEDY, tmp_path, {}, right)
    mended = [items[0], replace(items[1], question="How many circles are there?"), items[2]]
    asked = []
    rows = run(*tiny, mended, GREEDY, tmp_path, {}, lambda item, row: asked.append(item.id) or 1.0)
    assert asked == ["test/1"]
    assert rows[1].text == answered(tiny, [mended[1]], GREEDY)["test/1", 0].text
    assert texts(rows) == texts(read_predictions(tmp_path / "predictions.jsonl"))
    assert "1 questions have changed since they were answered; asked again" in capsys.readouterr().err


def test_rows_are_there_as_soon_as_their_answers_are(tiny, items, tmp_path):
    class Stopped(Exception):
        pass

    def stop(item, row):
        assert (
            json.loads((tmp_path / "predictions.rank0.jsonl").read_text().splitlines()[-1])["id"] == item.id
        )
        raise Stopped

    with pytest.raises(Stopped):
        run(*tiny, items, GREEDY, tmp_path, {}, stop)
    assert len((tmp_path / "predictions.rank0.jsonl").read_text().splitlines()) == 1


def test_swapped_pictures_are_another_questions(items):
    several = [replace(item, tags={}) for item in (*items[:3], replace(items[3], images=()))]
    swapped = swap_pictures(several)
    for before, after in zip(several, swapped, strict=True):
        assert replace(after, images=before.images) == before
    assert [item.images for item in swapped] == [items[1].images, items[2].images, items[0].images, ()]
    with pytest.raises(UserError, match="no two of these questions have pictures that look different"):
        swap_pictures(several[2:])


def test_equal_pictures_are_not_swapped_for_each_other(items, capsys):
    """As in sets with several questions about each picture, one after the other."""
    one, other = items[0].images, items[1].images
    again = [LazyImage(one[0].size, lambda: one[0].load().copy())]  # the same to look at
    undecodable = [LazyImage((112, 112), broken)]
    shown = [one, again, other, other, one, (), undecodable]
    mixed = [replace(items[0], id=str(number), images=images) for number, images in enumerate(shown)]
    swapped = [item.images for item in swap_pictures(mixed)]
    assert swapped == [other, other, one, one, other, (), undecodable]
    assert "2 of 7 questions have no picture to exchange" in capsys.readouterr().err
    with pytest.raises(UserError, match="no two of these questions have pictures that look different"):
        swap_pictures(mixed[:2])


def test_a_prompt_has_pictures_then_the_question_then_what_the_style_adds(items):
    item = replace(items[0], raw_query="Hint: answer with a number.\nQuestion: how many?")
    for style, text in (("none", item.question), ("official", item.raw_query)):
        assert messages_of(item, style, None) == [
            {
                "role": "user",
                "content": [{"type": "image", "image": item.images[0]}, {"type": "text", "text": text}],
            }
        ]
    thinking = messages_of(item, "r1ov", "Be brief.")
    assert thinking[0] == {"role": "system", "content": "Be brief."}
    text = thinking[1]["content"][1]["text"]
    assert text.startswith(item.question + "\n")
    assert all(tag in text for tag in ("<think>", "</think>", "<answer>", "</answer>"))
