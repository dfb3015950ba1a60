"""`python -m r1ov.evaluate` from its flags to what it prints and keeps."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import r1ov
from r1ov.cli import run
from r1ov.data.playground import sample
from r1ov.evaluate.__main__ import main

ROOT = Path(__file__).parent.parent
TSV = (
    "index\tquestion\tA\tB\tanswer\tlevel\n0\tWhich?\tone\ttwo\tB\teasy\n"
    "1\tWhich?\tone\ttwo\tA\thard\n2\tWhich?\tone\ttwo\tB\thard\n"
)


def called(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["r1ov.evaluate", *words])
    try:
        status = run(main)
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_playground_prints_its_families_and_keeps_everything(tmp_path, monkeypatch, capsys):
    words = ["--limit", "14", "--device", "cpu", "--max-new-tokens", "128"]
    status, out, err = called(monkeypatch, capsys, *words)
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "| family | questions | right | 95% interval | well-formed | tokens |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        f"| {name}"
        for name in ["counting", "charts", "geometry", "text", "spatial", "pattern", "locate", "all"]
    ]
    assert lines[-1].startswith("| all | 14 | ")
    (folder,) = (tmp_path / "runs" / "evaluate").iterdir()
    assert folder.name.startswith("playground-test-r1ov-tiny-")
    files = [
        ".lock",
        "page.html",
        "predictions.jsonl",
        "report.json",
        "report.md",
        "settings.json",
        "verdicts.jsonl",
    ]
    assert sorted(path.name for path in folder.iterdir()) == files
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"test/{index}" for index in range(14)]
    # again: nothing is left to answer, and the same is printed; from the file alone as well
    assert called(monkeypatch, capsys, *words)[1] == out
    assert called(monkeypatch, capsys, "--predictions", str(folder / "predictions.jsonl"))[1] == out
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["prompt"], settings["max_new_tokens"], settings["temperature"], settings["model"]) == (
        "none",
        128,
        0.0,
        "r1ov-tiny",
    )
    report = (folder / "report.md").read_text()
    assert all(
        f"| {name} | {value} |" in report for name, value in settings.items() if isinstance(value, int)
    )
    assert "right" in err


def test_predictions_of_the_playground_are_scored_whatever_their_order_and_split(
    tmp_path, monkeypatch, capsys
):
    rows = []
    for id in ("test/12", "generalisation/3", "test/0"):
        split, index = id.split("/")
        rows.append(
            {"id": id, "text": f"<think>x</think>\n<answer>{sample(split, int(index)).answer}</answer>"}
        )
    rows[2]["text"] = "<think>x</think>\n<answer>nothing</answer>"
    out = called(monkeypatch, capsys, "--predictions", write(tmp_path / "p.jsonl", rows))[1]
    assert "| all | 3 | 66.7% |" in out
    assert not (tmp_path / "runs").exists()  # no --out, and no model was run
    assert (
        "| all | 2 | 100.0% |" in called(monkeypatch, capsys, "--predictions", "p.jsonl", "--limit", "2")[1]
    )


def test_a_question_without_a_prediction_is_wrong_and_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "q.tsv").write_text(TSV)
    predictions = write(
        tmp_path / "p.jsonl", [{"id": "0", "text": "<answer>B</answer>"}, {"id": "99", "text": "x"}]
    )
    status, out, err = called(
        monkeypatch, capsys, "--bench", "q.tsv", "--predictions", predictions, "--out", "o"
    )
    assert status == 0
    assert "| accuracy | 33.3% |" in out
    assert "2 answers are missing; they count as wrong" in err
    assert "1 ids are no question's" in err
    rows = [json.loads(line) for line in (tmp_path / "o" / "verdicts.jsonl").read_text().splitlines()]
    assert [(row["id"], row["score"], row["method"]) for row in rows] == [
        ("0", 1.0, "tag"),
        ("1", 0.0, "error"),
        ("2", 0.0, "error"),
    ]
    assert "| hard | 2 | 0.0% |" in (tmp_path / "o" / "report.md").read_text()


def test_a_file_of_questions_is_answered_and_goes_on_only_with_the_same_settings(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "q.tsv").write_text(TSV)
    words = ["--bench", "q.tsv", "--out", "o", "--max-new-tokens", "4", "--device", "cpu"]
    status, out, _ = called(monkeypatch, capsys, *words, "--limit", "2")
    assert status == 0
    assert "| questions | 2 |" in out
    assert "| questions | 3 |" in called(monkeypatch, capsys, *words)[1]
    status, out, err = called(monkeypatch, capsys, *words, "--system", "Be brief.")
    assert (status, out) == (2, "")
    assert "o was begun with other options: --system was None and is 'Be brief.'" in err.splitlines()[-1]


def test_an_own_model_is_asked_as_it_was_trained_and_a_difference_is_told(tmp_path, monkeypatch, capsys):
    """On a file of one's own; the checkpoint says so itself, in final/ as a run leaves it."""
    (tmp_path / "q.tsv").write_text(TSV)
    model, words = tmp_path / "final", ["--bench", "q.tsv", "--limit", "1", "--max-new-tokens", "2"]
    r1ov.save(*r1ov.load("r1ov-tiny"), model, dtype=torch.float32)
    trained = {"stage": "sft", "prompt": "none", "min_pixels": 3136, "max_pixels": 12544}
    (model / "r1ov.json").write_text(json.dumps(trained))
    own, foreign = "--prompt none --min-pixels 3136", "--prompt r1ov --min-pixels 3136 --max-pixels 12544"
    words += ["--device", "cpu", "--model", str(model)]
    status, _, err = called(monkeypatch, capsys, *words)
    assert (status, f"asked with {own} --max-pixels 12544\n" in err, "trained" in err) == (0, True, False)
    err = called(monkeypatch, capsys, *words, "--max-pixels", "50176")[2]
    assert f"asked with {own} --max-pixels 50176\n" in err
    assert f"the model was trained with {own} --max-pixels 12544\n" in err
    (model / "r1ov.json").unlink()
    status, _, err = called(monkeypatch, capsys, *words)
    assert (status, f"asked with {foreign}\n" in err, "trained" in err) == (0, True, False)


def test_a_thought_that_the_template_opened_is_kept_and_its_format_counts(tmp_path, monkeypatch, capsys):
    """Where the prompt writes `<think>`, the reply goes on from there."""
    model = tmp_path / "final"
    r1ov.save(*r1ov.load("r1ov-tiny"), model, dtype=torch.float32)
    (template,) = (path for path in model.iterdir() if path.suffix == ".jinja")
    template.write_text(template.read_text() + "{% if add_generation_prompt %}{{ '<think>' }}{% endif %}")
    words = [
        "--model",
        str(model),
        "--limit",
        "7",
        "--device",
        "cpu",
        "--out",
        "o",
        "--max-new-tokens",
        "128",
    ]
    assert called(monkeypatch, capsys, *words)[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "o" / "predictions.jsonl").read_text().splitlines()]
    assert all(row["text"].startswith("<think>") and row["text"].count("<think>") == 1 for row in rows)
    verdicts = [json.loads(line) for line in (tmp_path / "o" / "verdicts.jsonl").read_text().splitlines()]
    assert sum(one["well_formed"] for one in verdicts) >= 5
    page = (tmp_path / "o" / "page.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert all(item["samples"][0]["thinking"] for item in data["items"])


def test_boxes_of_large_pictures_are_in_the_pictures_own_pixels(tmp_path, monkeypatch, capsys):
    """The processor shrinks the pictures back to the size at which the model knows them."""
    rows = []
    for index in range(6, 70, 7):  # the playground's questions for a box
        one = sample("test", index)
        one.image.resize((448, 448), Image.Resampling.NEAREST).save(tmp_path / f"{index}.png")
        box = [4 * side for side in json.loads(one.answer)]
        row = {"id": index, "question": one.question, "answer": str(box), "kind": "bbox"}
        rows.append({**row, "image": f"{index}.png"})
    words = ["--bench", write(tmp_path / "q.jsonl", rows), "--out", "o", "--device", "cpu"]
    out = called(monkeypatch, capsys, *words, "--max-new-tokens", "96")[1]
    right = float(re.search(r"\| accuracy \| (.+)% \|", out)[1])
    assert right > 50
    predictions = ["--predictions", "o/predictions.jsonl"]  # the frame is in the file
    assert f"| accuracy | {right}% |" in called(monkeypatch, capsys, *words[:2], *predictions)[1]


def test_a_row_without_question_or_answer_is_one_line(tmp_path, monkeypatch, capsys):
    rows = [{"question": "Which?", "answer": "red"}, {"question": "Which?", "gold": "red"}]
    path = write(tmp_path / "q.jsonl", rows)
    status, out, err = called(monkeypatch, capsys, "--bench", path, "--device", "cpu")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: q: row 2: there is no gold answer, only question, gold")


MISTAKES = [
    "--bogus",
    "--bench nowhere",
    "--bench nowhere.tsv",
    "--bench p.jsonl --predictions p.jsonl",
    "--split train-and-test",
    "--limit 0",
    "--num-samples 0",
    "--num-samples 2",
    "--num-samples 99 --temperature 1",
    "--max-new-tokens 0",
    "--max-num-seqs 0",
    "--top-k -1",
    "--top-p 0 --limit 1",
    "--temperature -1 --limit 1",
    "--min-pixels 0",
    "--min-pixels 9000 --max-pixels 4000 --limit 1",
    "--prompt clever",
    "--prompt official --limit 1",
    "--dtype float16",
    "--device cuda:99 --limit 1",
    "--model nowhere/at/all --limit 1",
    "--swap-pictures --bench q.tsv",
    "--out p.jsonl --limit 1",
    "--judge http://127.0.0.1:9",
    "--judge localhost --judge-model m",
    "--predictions nowhere",
    "--predictions q.tsv",
    "--predictions empty",
    "--predictions twice.jsonl",
    "--predictions other.jsonl",
    "--bench q.tsv --predictions other.jsonl",
]


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_gives_one_line_and_status_2(words, tmp_path, monkeypatch, capsys):
    (tmp_path / "q.tsv").write_text(TSV)
    (tmp_path / "empty").touch()
    write(tmp_path / "p.jsonl", [{"id": "test/0", "text": "x"}])
    write(tmp_path / "twice.jsonl", [{"id": "test/0", "text": "x"}] * 2)
    write(tmp_path / "other.jsonl", [{"id": "none/0", "text": "x"}])
    device = [] if "--device" in words else ["--device", "cpu"]
    status, out, err = called(monkeypatch, capsys, *words.split(), *device)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not any(path.is_dir() for path in tmp_path.iterdir())  # what is refused leaves no folder


def test_mistakes_come_before_torch_is_imported():
    code = (
        "import sys, r1ov.evaluate.__main__ as m; sys.argv = ['e', '--limit', '0']; "
        "print(m.run(m.main), 'torch' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert shown == "2 False\n"


def test_the_rows_that_teach_are_kept_as_they_are(tmp_path, monkeypatch, capsys):
    """Right in none, one, two and all of four answers; the rows come back whole, unread columns too."""
    rows = [
        {"id": f"q{n}", "question": f"What is {n} + 1?", "answer": str(n + 1), "mine": [n]} for n in range(4)
    ]
    bench = write(tmp_path / "rows.jsonl", rows)
    answers = [
        {"id": f"q{n}", "sample": k, "text": f"<answer>{n + 1 if k < right else 99}</answer>"}
        for n, right in enumerate((0, 1, 2, 4))
        for k in range(4)
    ]
    predictions = write(tmp_path / "p.jsonl", answers[::-1])
    words = ["--bench", bench, "--predictions", predictions, "--keep", "0.1:0.9"]
    assert called(monkeypatch, capsys, *words)[0] == 2  # where to?
    status, _, err = called(monkeypatch, capsys, *words, "--out", "scored")
    assert status == 0, err
    assert "kept.jsonl: 2 of 4 rows" in err
    kept = [json.loads(line) for line in Path("scored/kept.jsonl").read_text().splitlines()]
    assert kept == rows[1:3]
    for wrong in ("0.1", "a:b", "0.1:"):
        status, _, err = called(monkeypatch, capsys, "--bench", bench, "--keep", wrong)
        assert status == 2
        assert err.startswith(f"error: --keep {wrong}: expected two shares")
