"""Answers questions and is killed meanwhile: run by test_evaluate_runner.py in a process of its own, where
torch has not yet made threads.

    python -m tests.killed_evaluation FOLDER SEED

First one run from end to end; then the same in another folder, killed by SIGKILL a random while after a
random number of answers, five times as one process and five times as two, and started again each time. Forked
children save importing torch each time.
"""

import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import torch

from r1ov import load
from r1ov.common.processes import joined
from r1ov.evaluate.__main__ import EvaluateConfig as Asking
from r1ov.evaluate.benchmarks import playground_items
from r1ov.evaluate.item import Item, Prediction, read_predictions
from r1ov.evaluate.runner import run

COUNT = 24
ASKING = Asking(prompt="none", max_new_tokens=32, temperature=3.0, num_samples=2, seed=3)


def slowly(item: Item, row: Prediction) -> float:
    """Rows come one by one, as from a larger model, so that kills fall between them."""
    time.sleep(0.01)
    return 0.0


def children(model, processor, folder: Path, size: int) -> list[int]:
    """The process ids of this many forks that work as torchrun's processes, and exit with 0 when done."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stderr.flush()
    started = []
    for rank in range(size):
        process = os.fork()
        if not process:
            status = 1
            try:
                os.environ.update(
                    RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
                )
                items = playground_items("test", COUNT)
                with joined("cpu") as (world, _):
                    run(model, processor, items, ASKING, folder, {"seed": 3}, slowly, 8, world)
                status = 0
            finally:
                os._exit(status)
        started.append(process)
    return started


def written(folder: Path) -> set[tuple[str, int]]:
    """Which answers there are, in the merged file and in the processes' parts; none may be there twice."""
    merged, parts = (
        [
            (row.id, row.sample)
            for path in folder.glob(f"predictions{which}.jsonl")
            for row in read_predictions(path, may_be_torn=True)
        ]
        for which in ("", ".rank*")
    )
    assert len(set(merged)) == len(merged)
    assert len(set(parts)) == len(parts), "answered twice"
    # unless it was killed when the parts were merged and not yet removed
    assert not set(parts) & set(merged) or set(parts) <= set(merged), "answered again"
    return {*merged, *parts}


def lines(folder: Path) -> int:
    """How many answers there are; a little more where files are being merged."""
    try:
        return sum(path.read_bytes().count(b"\n") for path in folder.glob("predictions*.jsonl"))
    except FileNotFoundError:  # just merged
        return 0


def main() -> None:
    torch.set_num_threads(1)
    folder, rng = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
    for name in ("whole", "killed"):
        (folder / name).mkdir()
    model, processor = load("r1ov-tiny")
    (process,) = children(model, processor, folder / "whole", 1)
    assert os.waitpid(process, 0)[1] == 0
    there, landed = set(), 0
    for size in [1] * 5 + [2] * 5:
        started = children(model, processor, folder / "killed", size)
        wanted = min(len(there) + rng.randint(1, 5), 2 * COUNT)
        while lines(folder / "killed") < wanted:
            time.sleep(0.003)
        time.sleep(rng.uniform(0.0, 0.05))
        for process in started:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        now = written(folder / "killed")
        assert there <= now, "answers were lost"
        landed += len(there) < len(now) < 2 * COUNT
        there = now
    for process in children(model, processor, folder / "killed", 2):
        assert os.waitpid(process, 0)[1] == 0
    print(f"landed {landed}")


if __name__ == "__main__":
    main()
