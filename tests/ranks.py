"""Starts the ranks of a worker as torchrun would, but as forks of one process that has imported torch.

    python -m tests.ranks WORKER FOLDER SIZE [SIZE...]

Calls `tests.WORKER.main(FOLDER)` in SIZE processes, for one size after the other.
"""

import importlib
import os
import signal
import socket
import sys
from pathlib import Path

import torch
import torch._dynamo  # fully_shard wants it, and the import takes seconds: once, for all that are forked

from tests.checkpoint_worker import forked


def run(size: int, worker: str, folder: Path) -> None:
    """Raises: SystemExit if a rank fails; then the others, which would wait for it, are killed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}

    def work(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        importlib.import_module(f"tests.{worker}").main(folder)

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
    importlib.import_module(f"tests.{sys.argv[1]}")
    for size in sys.argv[3:]:
        run(int(size), sys.argv[1], Path(sys.argv[2]))
