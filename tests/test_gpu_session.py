"""The session for a GPU, rehearsed: its steps run here at toy size, so that none fails there by a slip."""

import json
import subprocess
import sys

import pytest

from tests import gpu_session


def test_steps_run(tmp_path, monkeypatch):
    """Three of them; `python -m tests.gpu_session A B --rehearse` plays all, in two minutes."""
    some = [step for step in gpu_session.STEPS if step.name in ("facts", "smoke decode", "engine 16")]
    monkeypatch.setattr(gpu_session, "STEPS", some)
    out = tmp_path / "session.jsonl"
    assert gpu_session.main(["A", "--rehearse", "--out", str(out)]) == 0, out.read_text()
    facts, smoke, engine = (json.loads(line)["results"] for line in out.read_text().splitlines())
    assert facts["cores"] > 0
    assert smoke["largest error"] < 1e-4
    assert engine["ms a step"] > 0


def test_both_runs_fit_into_the_visit():
    """A limit is twice what its step is expected to take."""
    batches = [step for step in gpu_session.STEPS if not step.beside]
    assert sum(step.limit for step in batches) / 2 < 12 * 60


def test_what_fails_or_takes_too_long_is_a_line_and_stops_nothing(tmp_path, monkeypatch):
    steps = [
        gpu_session.Step("A", "fails", 30, "-c 1/0", "-c 1/0"),
        gpu_session.Step("A", "hangs", 1, "", "-c while(1):pass"),
        gpu_session.Step("A", "tells", 30, "", """-c print('{"x":1}')"""),
    ]
    monkeypatch.setattr(gpu_session, "STEPS", steps)
    out = tmp_path / "session.jsonl"
    assert gpu_session.main(["A", "--rehearse", "--out", str(out)]) == 1
    fails, hangs, tells = map(json.loads, out.read_text().splitlines())
    assert fails["status"] == "exit 1"
    assert "ZeroDivisionError" in fails["told"]
    assert hangs["status"] == "over its 1 s"
    assert tells["results"] == {"x": 1}


@pytest.mark.skipif(bool(gpu_session.shutil.which("nvidia-smi")), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu_session", "A"],
        cwd=gpu_session.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--rehearse" in done.stderr


def test_the_table_is_made_from_the_results(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_session, "RESULTS", tmp_path / "session.jsonl")
    assert gpu_session.table() == "Not measured yet."
    rows = [{"contender": "r1ov", "milliseconds": 1.0, "rate": 400.0}]
    rows.append({"contender": "flex", "milliseconds": 2.0, "ratio": 2.0})
    lines = [
        {"step": "facts", "status": "ok", "results": {"hardware": "H", "torch": "2", "date": "2027-01-01"}},
        {"step": "attention", "status": "ok", "results": {"cases": [
            {"row": "G1", "name": "forward", "unit": "TFLOP/s", "rows": rows}]}},
        {"step": "engine 1", "status": "ok", "results": {"ms a step": 9.5}},
        {"step": "sft", "status": "exit 1", "results": {"ms": 1}},
    ]  # fmt: skip
    gpu_session.RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = gpu_session.table()
    assert "| G1 forward | 400 TFLOP/s, 2.00 x flex |" in told
    assert "| engine 1: ms a step | 9.5 |" in told
    assert "sft" not in told
