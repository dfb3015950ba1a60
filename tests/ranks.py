"""Starts ranks as torchrun would, but as forks of one process that has imported torch.

python -m tests.ranks train SIZE [FLAG...]            trains, in SIZE processes
python -m tests.ranks WORKER FOLDER SIZE [SIZE...]    calls tests.WORKER.main(FOLDER), size by size
"""

import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch._dynamo  # fully_shard wants it, and the import takes seconds: once, for all that are forked

import train
from r1ov import cli
from tests.checkpoint_worker import forked


def run(size: int, main: Callable[[], object]) -> None:
    """Raises: SystemExit if a rank fails; then the others, which would wait for it, are killed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}

    def work(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        if status := main():
            raise SystemExit(status)

    children = {forked(lambda rank=rank: work(rank)) for rank in range(size)}
    while children:
        child, status = os.wait()
        children.discard(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            raise SystemExit(f"a rank of {size} ended with {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "train":
        size, sys.argv = int(sys.argv[2]), ["train.py", *sys.argv[3:]]
        run(size, partial(cli.run, train.main))
    else:
        worker = importlib.import_module(f"tests.{sys.argv[1]}")
        for size in sys.argv[3:]:
            run(int(size), partial(worker.main, Path(sys.argv[2])))
