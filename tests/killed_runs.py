"""Trains with the loops of train.py, and kills them: run by test_resume.py in a process of its own, where
torch has not yet made threads.

    python -m tests.killed_runs STAGE FOLDER KILLS SEED

First one run from end to end; then the same run in another folder, killed by SIGKILL KILLS times, and started
again each time by the same options. Each kill comes at a random moment a few steps beyond the last checkpoint
or before the first, however fast the machine is. Forked children save importing torch each time. Prints how
many kills met a run at work.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from statistics import median

import torch
import torch._dynamo  # an optimizer imports it, for seconds: once, for all that are forked

from r1ov.train.grpo import train as train_grpo
from r1ov.train.run.config import GRPOConfig, SFTConfig
from r1ov.train.sft import train as train_sft
from tests.small import small_architecture

COMMON = {
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
    "save_steps": 3,  # due in the midst of every other rollout, and then put off to its end
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


def config(stage: str, out: Path, kills: int):
    if stage == "grpo":  # r1ov-tiny: its completions end, and earn rewards
        return GRPOConfig(out=str(out), **COMMON | GRPO | {"max_steps": max(20, 3 * kills)}), train_grpo
    small = str(out.parent / "small")
    return SFTConfig(out=str(out), **COMMON | {"max_steps": 30, "config_name": small}), train_sft


def child(stage: str, out: Path, kills: int) -> int:
    """The process id of a fork that trains, and exits with 0 when it is done."""
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        options, train = config(stage, out, kills)
        train(options)
        status = 0
    finally:
        os._exit(status)


def saved(out: Path) -> int:
    """The step of the last checkpoint."""
    return max(
        [int(folder.name[5:]) for folder in out.glob("checkpoints/step-*") if folder.name[5:].isdigit()],
        default=0,
    )


def wait_for(out: Path, step: int, process: int, since: float) -> bool:
    """Until the run that began then has logged that step; False if it ends before."""
    log = out / "log.jsonl"
    while not (log.exists() and log.stat().st_mtime > since and log.read_text().count("\n") >= step):
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(0.01)
    return True


def main() -> None:
    stage, folder, kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    (folder / "small").mkdir()
    small_architecture(folder / "small")
    assert os.waitpid(child(stage, folder / "whole", kills), 0)[1] == 0
    rows = [json.loads(line) for line in (folder / "whole" / "log.jsonl").read_text().splitlines()]
    a_step = median(row["step_ms"] for row in rows) / 1000
    rng = random.Random(seed)
    landed, out = 0, folder / "killed"
    for _ in range(kills):
        since = time.time()
        process = child(stage, out, kills)
        steps = rng.randint(0, 8 if stage == "grpo" else 3)
        if steps and not wait_for(out, saved(out) + steps, process, since):
            break
        time.sleep(rng.uniform(0, 1.5 * a_step))
        if os.waitpid(process, os.WNOHANG)[0]:
            break
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        landed += 1
    if not (out / "final" / "config.json").exists():
        assert os.waitpid(child(stage, out, kills), 0)[1] == 0
    print(f"kills {landed}")


if __name__ == "__main__":
    main()
