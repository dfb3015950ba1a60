"""Trains with the loops of train.py, and kills them: run by test_resume.py in a process of its own, where torch has not yet made threads.

    python -m tests.killed_runs STAGE FOLDER KILLS SEED

First one run from end to end; then the same run in another folder, killed by SIGKILL after a random time, KILLS times, and started again
each time by the same options. Forked children save importing torch each time.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from r1ov.train.config import GRPOConfig, SFTConfig
from r1ov.train.grpo import train as train_grpo
from r1ov.train.sft import train as train_sft

COMMON = {
    "max_steps": 30,
    "train_batch_size": 4,
    "eval_steps": 0,
    "save_steps": 2,
    "num_threads": 1,
    "dataloader_num_workers": 0,
    "logging_steps": 1,
    "optim": "muon",
    "device": "cpu",
}
GRPO = {  # rollouts whose groups often lack spread, each learned from twice
    "max_steps": 20,
    "train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 40,
    "temperature": 1.3,
    "num_iterations": 2,
    "dynamic_sampling": True,
    "max_resamplings": 1,
    "beta": 0.1,
    "learning_rate": 1e-3,
    "sample_steps": 0,
    "optim": "adamw",
}


def config(stage: str, out: Path):
    if stage == "grpo":
        return GRPOConfig(out=str(out), **COMMON | GRPO), train_grpo
    return SFTConfig(out=str(out), **COMMON), train_sft


def child(stage: str, out: Path) -> int:
    """The process id of a fork that trains, and exits with 0 when it is done."""
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        options, train = config(stage, out)
        train(options)
        status = 0
    finally:
        os._exit(status)


def main() -> None:
    stage, folder, kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    begun = time.monotonic()
    assert os.waitpid(child(stage, folder / "whole"), 0)[1] == 0
    seconds = time.monotonic() - begun
    rng = random.Random(seed)
    landed = 0
    for _ in range(kills):
        process = child(stage, folder / "killed")
        time.sleep(rng.uniform(0.1, max(seconds / 5, 2 * seconds / kills)))
        done, _ = os.waitpid(process, os.WNOHANG)
        if done:
            break
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        landed += 1
    if not (folder / "killed" / "final" / "config.json").exists():
        assert os.waitpid(child(stage, folder / "killed"), 0)[1] == 0
    print(f"kills {landed}")


if __name__ == "__main__":
    main()
