"""Whole runs that are killed, stopped, or moved to another number of processes, and go on by the same
command.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from r1ov import cli
from r1ov.data.formats import files
from r1ov.train.run.log import Log
from tests import warm
from tests.small import small_architecture

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
FLAGS = [
    "--max-steps",
    "12",
    "--train-batch-size",
    "6",
    "--eval-steps",
    "0",
    "--save-steps",
    "2",
    "--dataloader-num-workers",
    "0",
    "--logging-steps",
    "1",
    "--device",
    "cpu",
    "--num-threads",
    "1",
]


def command(out: Path, processes: int, *flags: str) -> list[str]:
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        if processes > 1
        else []
    )
    return [warm.python(), *launcher, "train.py", "--stage", "sft", "--out", str(out), *FLAGS, *flags]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    return subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)


def steps(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]


def stopped_after(out: Path, step: int, processes: int, *flags: str) -> subprocess.CompletedProcess[str]:
    """A run that is sent SIGTERM once it has logged a step."""
    process = subprocess.Popen(
        command(out, processes, *flags), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    shown = []
    for line in process.stderr:
        shown.append(line)
        if line.startswith(f"step {step}/"):
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stderr.read()
    return subprocess.CompletedProcess([], process.wait(timeout=120), "", "".join(shown) + rest)


@pytest.fixture
def here(monkeypatch, capfd):
    """Runs a command of one process in this one, which has imported torch already.

    Args: stop_after: the step at whose end it is sent the signal.
    """

    def call(
        out: Path, *flags: str, stop_after: int = 0, number: int = signal.SIGTERM
    ) -> subprocess.CompletedProcess[str]:
        def step(log: Log, *values: object, **more: object) -> None:
            true_step(log, *values, **more)
            if len((out / "log.jsonl").read_text().splitlines()) == stop_after:
                os.kill(os.getpid(), number)

        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", command(out, 1, *flags)[1:])
            patch.setattr(Log, "step", step)
            try:
                status = cli.run(train.main)
            except SystemExit as done:
                status = done.code
        return subprocess.CompletedProcess([], status, *capfd.readouterr())

    true_step = Log.step
    return call


def ended(out: Path) -> tuple[dict[str, torch.Tensor], str]:
    """A finished run's weights and log."""
    return load_file(out / "final" / "model.safetensors"), (out / "log.jsonl").read_text()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_architecture(tmp_path_factory.mktemp("small"))


def test_killed_20_times_at_random_a_run_ends_with_the_same_bits(tmp_path):
    done = run([warm.python(), "-m", "tests.killed_runs", "sft", str(tmp_path), "20", "1"])
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.split()[1]) >= 15, done.stdout  # kills that met a run at work
    assert done.stderr.count("resume  after step") >= 8
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "whole" / "final" / file).read_bytes() == (
            tmp_path / "killed" / "final" / file
        ).read_bytes(), file
    assert steps(tmp_path / "killed") == list(range(1, 31))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_and_exits_0_and_the_same_command_goes_on(tmp_path, here, small, number):
    flags = ["--config-name", str(small)]
    assert here(tmp_path / "whole", *flags).returncode == 0
    out = tmp_path / "run"
    stopped = here(out, *flags, stop_after=3, number=number)
    assert stopped.returncode == 0, stopped.stderr
    assert "the same command goes on" in stopped.stderr
    assert not (out / "final").exists()
    done = here(out, *flags)
    assert done.returncode == 0, done.stderr
    assert "resume  after step 3" in done.stderr
    weights, expected = ended(out)[0], ended(tmp_path / "whole")[0]
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert steps(out) == list(range(1, 13))


def test_two_processes_then_one_then_two_see_the_same_rows_and_end_with_the_same_weights(tmp_path, here):
    eight = ["--max-steps", "8"]
    assert here(tmp_path / "whole", *eight).returncode == 0
    whole = ended(tmp_path / "whole")
    out = tmp_path / "run"
    for processes, step in ((2, 1), (1, 4)):
        stopped = stopped_after(out, step, processes, *eight)
        assert "the same command goes on" in stopped.stderr, stopped.stderr
    done = run(command(out, 2, *eight))
    assert done.returncode == 0, done.stderr
    weights = load_file(out / "final" / "model.safetensors")
    for name, tensor in whole[0].items():
        # float32 sums in another order, over eight steps of AdamW, whose first steps divide by gradients
        # near zero: one element was off by 3e-5 on a CPU with AVX-512, by less on one without
        torch.testing.assert_close(
            weights[name], tensor, rtol=0, atol=5e-5 + 1e-4 * float(tensor.abs().max())
        )
    mine, theirs = (
        [json.loads(line) for line in text.splitlines()]
        for text in ((out / "log.jsonl").read_text(), whole[1])
    )
    for one, other in zip(mine, theirs, strict=True):
        assert one["num_tokens"] == other["num_tokens"]  # the same rows in every step, each once
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


ROWS = [
    {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n:02}"}]}
    for n in range(40)
]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_changed_data_is_no_continuation_unless_it_is_asked_for_and_a_finished_run_is_done(
    tmp_path, here, small
):
    data, out = tmp_path / "rows.jsonl", tmp_path / "run"
    flags = ["--data", str(data), "--eval-data", str(data), "--eval-steps", "6", "--eval-samples", "4"]
    flags += ["--config-name", str(small)]
    write_rows(data, ROWS)
    stopped = here(out, *flags, stop_after=2)
    assert "the same command goes on" in stopped.stderr
    fewer, one_letter, moved = ROWS[:13], [*ROWS], ROWS[1:] + ROWS[:1]
    one_letter[7] = ROWS[8]
    for changed in (fewer, one_letter, moved, [*ROWS, ROWS[0]]):
        write_rows(data, changed)
        refused = here(out, *flags)
        assert refused.returncode == 2
        told = f"error: the rows of --data {data} have changed since the run in {out} began: rows.jsonl, "
        assert refused.stderr.startswith(told)
        assert refused.stderr.count("\n") == 1
    anyway = here(out, *flags, "--allow-changed-data")
    assert anyway.returncode == 0, anyway.stderr
    assert "resume  after step" in anyway.stderr
    losses = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [f"eval    loss {row['eval_loss']:.4f}, " for row in losses if "eval_loss" in row]
    assert len(losses) == 3
    assert all(loss in stopped.stderr + anyway.stderr for loss in losses)  # what is logged is shown

    again = here(out, *flags)  # as a scheduler does with a job that it puts back in the queue
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr == f"done    {out}/ holds this run, finished; model in {out}/final\n"
    other = here(out, *flags, "--seed", "1")
    assert other.returncode == 2
    assert other.stderr.startswith(
        f"error: the finished run in {out} was begun with other options: --seed was 0"
    )
    write_rows(data, ROWS)
    other = here(out, *flags)
    assert other.returncode == 2
    assert f"the rows of --data {data} have changed since the run in {out} began" in other.stderr


def test_the_fingerprint_of_a_large_file_is_of_all_its_parts(tmp_path):
    path = tmp_path / "large.parquet"
    data = bytearray(3 * files.BLOCKS * files.BLOCK_BYTES + 5)
    path.write_bytes(data)
    prints = {files.fingerprint(path)}
    for place in (0, 3 * 100 * files.BLOCK_BYTES, 3 * 255 * files.BLOCK_BYTES + 9):
        data[place] = 1
        path.write_bytes(data)
        prints.add(files.fingerprint(path))
    assert len(prints) == 4
    path.rename(tmp_path / "other.parquet")
    assert files.fingerprint(tmp_path / "other.parquet") not in prints


def test_other_options_are_no_continuation(tmp_path, here, small):
    out, flags = tmp_path / "run", ["--config-name", str(small)]
    here(out, *flags, stop_after=2)
    refused = here(out, *flags, "--learning-rate", "0.001")
    assert refused.returncode == 2
    assert refused.stderr.startswith(
        "error: this run was begun with other options: --learning-rate was 0.002 and is 0.001"
    )
    assert refused.stderr.count("\n") == 1
    harmless = here(out, *flags, "--logging-steps", "3", "--save-steps", "5")
    assert harmless.returncode == 0, harmless.stderr
