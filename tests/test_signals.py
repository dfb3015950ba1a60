"""A scheduler signals every process of a job: no helper of any command may die of it, nor the run with it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import warm

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node 2 "
TRAIN = " --max-steps 40 --eval-steps 0 --device cpu --num-threads 1 --save-steps 100 --out OUT"
SFT = "train.py --stage sft --per-device-train-batch-size 2 --dataloader-num-workers 2" + TRAIN
GRPO = (
    "train.py --stage grpo --per-device-train-batch-size 8 --num-generations 4 --max-completion-length 40"
    " --reward REWARD" + TRAIN
)
EVALUATE = (
    "r1ov.evaluate --limit 24 --max-new-tokens 60 --max-num-seqs 4 --device cpu --num-threads 1 --out OUT"
)
REWARD = """
import subprocess
cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # a helper of the helper

def score(prompt, completion, row, info):
    assert cat.poll() is None
    return 1.0
"""


def processes_below(process: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            child = warm.program(child) or child
            found += [*processes_below(child), child]
    return found


def started(command: str, out: Path) -> subprocess.Popen:
    """Its stderr goes to OUT.txt."""
    reward = out.with_suffix(".py")
    reward.write_text(REWARD)
    words = command.replace("REWARD", f"{reward}:score").replace("OUT", str(out)).split()
    quick = warm.python()
    # Alone, a program starts as users start it; how torchrun's processes start is not what is tried.
    python = quick if words[1].startswith("torch.") else sys.executable
    with out.with_suffix(".txt").open("w") as told:
        return subprocess.Popen(
            [python, *words],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=told,
            # A job in a shell's background ignores SIGINT, and so would all that it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def signalled(
    command: str, out: Path, number: int, is_at_work: Callable[[str], bool], helpers: int
) -> tuple[int, str]:
    """Exit status and stderr of a command whose processes are all sent a signal, the youngest first.

    Args:
        is_at_work: whether the moment has come, by what it has told so far.
        helpers: how many processes there must be below it then.
    """
    process, told = started(command, out), out.with_suffix(".txt")
    while not is_at_work(told.read_text()):
        assert process.poll() is None, told.read_text()
        time.sleep(0.01)
    below = processes_below(warm.program(process.pid) or process.pid)
    assert len(below) >= helpers, below
    for each in [*below, process.pid]:
        os.kill(each, number)
    return process.wait(timeout=120), told.read_text()


def is_training(told: str) -> bool:
    return "step  2/" in told


SIGTERM, SIGINT = signal.SIGTERM, signal.SIGINT


# Under torchrun, below, each of them gets the other signal; test_resume.py sends both to a run without
# helpers.
@pytest.mark.parametrize(
    ("command", "helpers", "number"), [(SFT, 2, SIGTERM), (GRPO, 2, SIGINT)], ids=["sft", "grpo"]
)
def test_training_saves_and_exits_0(command, helpers, number, tmp_path):
    status, told = signalled(command, tmp_path / "run", number, is_training, helpers)
    assert status == 0, told
    assert "Traceback" not in told
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert told.count(f"stop    after {checkpoint.name.replace('-', ' ')}, saved") == 1


@pytest.mark.parametrize(("command", "helpers", "number"), [(SFT, 2, SIGINT), (GRPO, 2, SIGTERM)])
def test_under_torchrun_every_rank_saves(command, helpers, number, tmp_path):
    _, told = signalled(TORCHRUN + command, tmp_path / "run", number, is_training, 2 + 2 * helpers)
    assert told.count("Traceback") == told.count("SignalException: "), told  # torchrun's own
    assert (tmp_path / "run" / "checkpoints").exists(), told
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert len(list(checkpoint.glob("rank-*"))) == 2
    assert told.count(f"stop    after {checkpoint.name.replace('-', ' ')}, saved") == 1


@pytest.mark.parametrize(("launcher", "number"), [("-m ", SIGINT), (TORCHRUN + "-m ", SIGTERM)])
def test_an_evaluation_ends_at_once_and_the_same_command_goes_on(launcher, number, tmp_path):
    out = tmp_path / "run"

    def is_answering(_told: str) -> bool:
        return any(path.stat().st_size for path in out.glob("predictions.rank*.jsonl"))

    status, told = signalled(launcher + EVALUATE, out, number, is_answering, 0 if launcher == "-m " else 2)
    assert told.count("Traceback") == told.count("SignalException: "), told
    assert status == 130 or launcher != "-m "
    answers = {json.loads(line)["id"] for path in out.glob("predictions.rank*") for line in path.open()}
    assert 0 < len(answers) < 24
    assert started(launcher + EVALUATE, out).wait(timeout=300) == 0, out.with_suffix(".txt").read_text()
    rows = [json.loads(line) for line in (out / "predictions.jsonl").open()]
    assert len({row["id"] for row in rows}) == len(rows) == 24
