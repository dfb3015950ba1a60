"""Checkpoints: bit-equal round trips, kills at random instants, full disks, torn files, other numbers of
ranks.
"""

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from r1ov.cli import marked
from r1ov.common.files import check_same_options
from r1ov.common.processes import World
from r1ov.errors import UserError
from r1ov.folder import weights
from r1ov.train.run import storage
from r1ov.train.run.checkpoint import Checkpoints
from r1ov.train.run.config import SFTConfig
from r1ov.train.run.state import random_state, set_random_state, state_tensors
from tests.checkpoint_worker import make, same, train_step

ROOT = Path(__file__).parent.parent
TENSORS = "rank-00000.safetensors"
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


def snapshot(model, optimizers):
    return {name: tensor.clone() for name, tensor in state_tensors(model, optimizers).items()}


def train(model, optimizers, steps):
    for step in steps:
        train_step(model, optimizers, step)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of steps 2 and 4, and the whole state at step 2."""
    model, optimizers = make()
    with Checkpoints(tmp_path, World()) as checkpoints:
        train(model, optimizers, range(2))
        at_2 = snapshot(model, optimizers)
        checkpoints.save(2, model, optimizers, {"num_tokens": 20})
        train(model, optimizers, range(2, 4))
        checkpoints.save(4, model, optimizers, {"num_tokens": 40})
    return tmp_path, at_2


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_what_is_loaded_is_what_was_saved_bit_by_bit_and_goes_on_alike(tmp_path, optim):
    model, optimizers = make(optim=optim)
    train(model, optimizers, range(3))
    expected = snapshot(model, optimizers)
    extra = {"num_tokens": 7, "loss": 0.1 + 0.2, "names": ["ä"], "nothing": None}
    with Checkpoints(tmp_path, World()) as checkpoints:
        checkpoints.save(3, model, optimizers, extra)
        train(model, optimizers, range(3, 6))  # while it is written: the copy must not notice
    other, other_optimizers = make(seed=1, optim=optim)
    learning_rates = [group["lr"] for optimizer in other_optimizers for group in optimizer.param_groups]
    with Checkpoints(tmp_path, World()) as checkpoints:
        assert checkpoints.load_latest(other, other_optimizers) == (3, extra)
    loaded = snapshot(other, other_optimizers)
    assert same(loaded, expected)
    states = {
        name.split(".")[1] + "." + name.rpartition(".")[2]
        for name in expected
        if name.startswith("optimizer.")
    }
    assert states == {"AdamW.exp_avg", "AdamW.exp_avg_sq", "AdamW.step"} | (
        {"Muon.momentum_buffer"} if optim == "muon" else set()
    )
    assert not any("unused" in name or "frozen" in name for name in expected if name.startswith("optimizer."))
    assert [
        group["lr"] for optimizer in other_optimizers for group in optimizer.param_groups
    ] == learning_rates
    train(
        other, other_optimizers, range(3, 6)
    )  # its data are drawn from the random state, which came back too
    assert same(snapshot(other, other_optimizers), snapshot(model, optimizers))


def test_with_no_checkpoint_there_is_nothing_to_load(tmp_path, capsys):
    model, optimizers = make()
    before = snapshot(model, optimizers)
    assert Checkpoints(tmp_path / "new", World()).load_latest(model, optimizers) is None
    assert same(snapshot(model, optimizers), before)
    assert capsys.readouterr().err == ""


def test_random_states_come_back():
    state = json.loads(json.dumps(random_state()))
    expected = torch.rand(3)
    set_random_state(state)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("limit", [1, 2, None])
def test_the_newest_are_kept(tmp_path, limit):
    model, optimizers = make()
    with Checkpoints(tmp_path, World(), save_total_limit=limit) as checkpoints:
        for step in (8, 9, 10, 11):
            checkpoints.save(step, model, optimizers)
    assert checkpoints.steps() == [11, 10, 9, 8][:limit]
    assert names(tmp_path) == sorted(f"step-{step}" for step in checkpoints.steps())


def test_one_save_waits_for_the_other_and_the_same_step_is_saved_once(tmp_path, monkeypatch):
    model, optimizers = make()
    order, gate, true_publish = [], threading.Event(), storage.publish

    def publish(temporary, final):
        gate.wait(30)
        order.append(final.name)
        true_publish(temporary, final)

    monkeypatch.setattr(storage, "publish", publish)
    with Checkpoints(tmp_path, World()) as checkpoints:
        checkpoints.save(1, model, optimizers)
        order.append("back")  # save returned, though nothing is published yet
        assert checkpoints.steps() == []
        gate.set()
        checkpoints.save(2, model, optimizers)
        assert order[:2] == ["back", "step-1"]
        checkpoints.save(2, model, optimizers)
    assert order == ["back", "step-1", "step-2"]


def test_what_killed_runs_left_is_removed_at_the_start_and_nothing_else(saved):
    folder, _ = saved
    shutil.copytree(folder / "step-2", folder / ".step-6.tmp")
    shutil.copytree(folder / "step-2", folder / ".step-0.old")
    (folder / "notes.txt").write_text("mine")
    assert Checkpoints(folder, World()).steps() == [4, 2]
    assert names(folder) == ["notes.txt", "step-2", "step-4"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def make_folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 2),
    "one bit flipped": flip,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a folder": make_folder,
    "other JSON": lambda path: path.write_text('{"step": 4}'),
    "no object": lambda path: path.write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [TENSORS, "checkpoint.json"])
def test_of_a_torn_checkpoint_one_is_told_in_a_line_and_the_one_before_is_used(saved, capsys, name, damage):
    folder, at_2 = saved
    DAMAGE[damage](folder / "step-4" / name)
    model, optimizers = make(seed=1)
    with Checkpoints(folder, World(), save_total_limit=1) as checkpoints:
        assert checkpoints.load_latest(model, optimizers) == (2, {"num_tokens": 20})
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "step-4 cannot be used" in told
        assert name in told or "directory" in told
        assert same(snapshot(model, optimizers), at_2)
        train(model, optimizers, [2])
        checkpoints.save(
            3, model, optimizers
        )  # must not be taken for older, and superfluous, because of the torn one
        checkpoints.wait()
        assert checkpoints.steps() == [4, 3]
        train(model, optimizers, [3])
        expected = snapshot(model, optimizers)
        checkpoints.save(4, model, optimizers)
    assert names(folder) == ["step-4"]
    with Checkpoints(folder, World()) as checkpoints:
        assert checkpoints.load_latest(model, optimizers) == (4, {})
    assert same(snapshot(model, optimizers), expected)


def test_if_none_can_be_used_the_run_is_told_that_it_starts_anew(saved, capsys):
    folder, _ = saved
    for step in (2, 4):
        (folder / f"step-{step}" / TENSORS).unlink()
    model, optimizers = make(seed=1)
    before = snapshot(model, optimizers)
    assert Checkpoints(folder, World()).load_latest(model, optimizers) is None
    assert same(snapshot(model, optimizers), before)
    assert capsys.readouterr().err.count("\n") == 3
    assert names(folder) == ["step-2", "step-4"]


def seal(folder):
    """Writes the record anew, with digests that agree with whatever the files are now."""
    record = storage.read_record(folder)
    for name in record["files"]:
        record["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    storage.write_record(folder, record)


def test_nothing_in_a_checkpoint_is_run(saved, capsys):
    """A pickle that would make a folder, under checksums that agree with it."""
    folder, at_2 = saved

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(folder / "evil"),)

    for data in (pickle.dumps(Evil()), saved_by_torch(Evil())):
        (folder / "step-4" / TENSORS).write_bytes(data)
        seal(folder / "step-4")
        model, optimizers = make()
        assert Checkpoints(folder, World()).load_latest(model, optimizers) == (2, {"num_tokens": 20})
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert TENSORS in told
        assert not (folder / "evil").exists()
        assert same(snapshot(model, optimizers), at_2)


def saved_by_torch(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_a_checkpoint_of_the_pickled_kind_is_refused_by_its_name_in_one_line(saved, capsys):
    folder, _ = saved
    record = storage.read_record(folder / "step-4")
    (folder / "step-4" / ".metadata").write_bytes(b"pickle")
    storage.write_record(folder / "step-4", record | {"files": {".metadata": {"bytes": 6, "sha256": ""}}})
    with pytest.raises(UserError, match=r"step-4 is pickled, as an earlier version of r1ov wrote it"):
        Checkpoints(folder, World()).load_latest(*make())
    assert capsys.readouterr().err == ""


def test_a_sound_checkpoint_of_another_model_or_optimizer_is_the_users_mistake(saved):
    folder, _ = saved
    model, optimizers = make(seed=1)
    model.up = nn.Linear(6, 8)
    with pytest.raises(UserError, match=r"1 tensors|model\.up\.weight"):
        Checkpoints(folder, World()).load_latest(model, [])
    model, optimizers = make(seed=1, optim="adamw")
    before = snapshot(model, optimizers)
    with pytest.raises(UserError, match=r"optimizer\.Muon\."):
        Checkpoints(folder, World()).load_latest(model, optimizers)
    assert same(snapshot(model, optimizers), before)


FULL = OSError(28, "No space left on device")
# As safetensors raises it on a file system that is full.
FULL_SAFETENSORS = SafetensorError(
    "Error while serializing: I/O error: No space left on device (os error 28)"
)


def full_file(name):
    def fill(monkeypatch):
        true_open = Path.open
        monkeypatch.setattr(
            Path,
            "open",
            lambda path, mode="r", **more: true_open(
                Path("/dev/full") if path.name == name else path, mode, **more
            ),
        )

    return fill


def full_call(module, name, when, error=FULL):
    def fill(monkeypatch):
        true = getattr(module, name)
        calls = []

        def call(*arguments, **more):
            calls.append(arguments)
            if when(len(calls), arguments):
                raise error
            return true(*arguments, **more)

        monkeypatch.setattr(module, name, call)

    return fill


FULL_DISK = {
    "tensors": full_call(weights, "save_file", lambda *_: True, FULL_SAFETENSORS),
    "record": full_file("checkpoint.json"),
    "mkdir": full_call(os, "mkdir", lambda _, arguments: True),
    **{f"fsync {n}": full_call(os, "fsync", lambda call, _, n=n: call == n) for n in range(1, 4)},
    "rename": full_call(os, "rename", lambda _, arguments: str(arguments[0]).endswith("step-3.tmp")),
}


@pytest.mark.parametrize("where", FULL_DISK)
def test_a_disk_that_fills_costs_one_checkpoint_and_not_the_run(saved, capsys, monkeypatch, where):
    folder, _ = saved
    model, optimizers = make()
    with Checkpoints(folder, World()) as checkpoints:
        checkpoints.load_latest(model, optimizers)
        with monkeypatch.context() as patch:
            FULL_DISK[where](patch)
            checkpoints.save(3, model, optimizers)
            checkpoints.wait()
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "step 3 could not be written (No space left on device" in told
        assert "step 4 is kept" in told
        assert checkpoints.latest == 4
        assert names(folder) == ["step-2", "step-4"]
        train(model, optimizers, [4])
        expected = snapshot(model, optimizers)
        checkpoints.save(5, model, optimizers)
    assert Checkpoints(folder, World()).load_latest(*make()) == (5, {})
    Checkpoints(folder, World()).load_latest(model, optimizers)
    assert same(snapshot(model, optimizers), expected)


def test_failures_in_a_row_stop_the_run(tmp_path, monkeypatch, capsys):
    model, optimizers = make()
    checkpoints = Checkpoints(tmp_path, World())

    def save(step, is_full):
        with monkeypatch.context() as patch:
            if is_full:
                FULL_DISK["tensors"](patch)
            checkpoints.save(step, model, optimizers)
            checkpoints.wait()

    save(1, True)
    save(2, True)
    save(3, False)
    save(4, True)
    save(5, True)
    with pytest.raises(
        UserError, match=r"3 saves in a row have failed .No space left on device.*after step 3"
    ):
        save(6, True)
    assert names(tmp_path) == ["step-3"]


def test_a_mistake_of_ours_in_the_saving_thread_is_a_crash_of_the_run(tmp_path, monkeypatch):
    def broken(*_):
        raise TypeError("a bug")

    monkeypatch.setattr(storage, "write_synced", broken)
    checkpoints = Checkpoints(tmp_path, World())
    checkpoints.save(1, *make())
    with pytest.raises(TypeError, match="a bug"):
        checkpoints.wait()


def test_a_run_that_fails_still_finishes_its_last_checkpoint(tmp_path):
    def fail():
        with Checkpoints(tmp_path, World()) as checkpoints:
            checkpoints.save(1, *make())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == ["step-1"]


def test_a_folder_that_cannot_be_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        Checkpoints(tmp_path / "file" / "checkpoints", World())


def test_options_that_change_the_mathematics_must_be_the_same():
    before = {
        "model": None,
        "learning_rate": 1e-5,
        "seed": 0,
        "data": ["a", "b"],
        "logging_steps": 1,
        "device": "cuda",
        "gone": None,
    }
    resumable = marked(SFTConfig(), "resumable")
    now = before | {"logging_steps": 5, "device": "cpu", "data": ("a", "b")}
    check_same_options(before, now, resumable, "this run")
    now = before | {"learning_rate": 2e-5, "seed": 1, "max_steps": 10, "device": "cpu"}
    with pytest.raises(UserError) as error:
        check_same_options(before, now, resumable, "this run")
    text = str(error.value)
    assert "--learning-rate was 1e-05 and is 2e-05" in text
    assert "--seed was 0 and is 1" in text
    assert "--max-steps was None and is 10" in text
    assert "another --out" in text
    assert "device" not in text


def worker(mode, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.checkpoint_worker", mode, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_a_run_killed_20_times_ends_with_the_bits_of_one_left_in_peace(tmp_path):
    report, told = worker("kill", tmp_path)
    assert report["equal"]
    assert report["kills"] == 20
    assert report["in_save"] >= 5  # or the test would not try what it is meant to
    assert report["resumed"] >= 5
    assert report["finished"] >= 1
    assert report["terminated"] >= 1  # by SIGTERM: saved, and exit status 0
    assert told == "", told  # no kill leaves anything that is torn


def test_any_number_of_ranks_goes_on_from_the_checkpoint_of_any_other(tmp_path):
    """4, 2, 1, 2, and 2 by 2. Also: random states rank by rank, a full disk on one rank, a missing file."""
    report, told = worker("ranks", tmp_path)
    assert report["names"]
    assert report["error"] < 1e-5  # gradients of two ranks are summed in another order
    lines = [line for line in told.splitlines() if line.startswith("note")]
    assert "rank 1: No space left on device" in lines[0]
    assert "step-9 cannot be used" in lines[1]
    assert "rank-00003.safetensors" in lines[1]
    assert "step-8 cannot be used" in lines[2]
    assert len(lines) == 3
