"""A tiny training run whose every kind of state matters, run by test_checkpoint.py in processes that it
kills.

Torch is imported once; the processes to be killed are forked from there, so that a kill costs milliseconds:
`python -m tests.checkpoint_worker kill FOLDER`, `... ranks FOLDER`. Each prints one JSON object.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # optimizers and fully_shard import it, for seconds: once, for all that are forked
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from r1ov.common.processes import World
from r1ov.common.stopping import stopping
from r1ov.folder import weights
from r1ov.train.optim import build_optimizers
from r1ov.train.run.checkpoint import Checkpoints
from r1ov.train.run.config import SFTConfig
from r1ov.train.run.state import state_tensors

OPTIONS = {"learning_rate": 0.01, "muon_learning_rate": 0.01, "weight_decay": 0.1}


class Net(nn.Module):
    """Embedding, matrices of odd shapes, vectors, a frozen and an unused parameter, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(11, 6)
        self.up, self.down = nn.Linear(6, 7), nn.Linear(7, 3, bias=False)
        self.frozen, self.unused = nn.Linear(3, 1), nn.Linear(2, 5)
        self.frozen.requires_grad_(False)
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.frozen(self.down(self.up(self.embed_tokens(tokens)).tanh()))


def make(seed: int = 0, optim: str = "muon") -> tuple[Net, list[torch.optim.Optimizer]]:
    torch.manual_seed(seed)
    model = Net()
    return model, build_optimizers(model, SFTConfig(optim=optim, **OPTIONS))


def train_step(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], step: int, drawn: bool = True
) -> None:
    """Args: drawn: the data come from torch's random state, else from the step's number alone."""
    generator = None if drawn else torch.Generator().manual_seed(step)
    tokens, gold = torch.randint(11, (9,), generator=generator), torch.randn(9, 1, generator=generator)
    F.mse_loss(model(tokens), gold).backward()
    model.seen += tokens.float().mean()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (1 + step)
        optimizer.step()
        optimizer.zero_grad()


def run(folder: Path, steps: int, save_steps: int) -> int:
    """Trains until done or asked to stop, leaves `final.pt`; returns the step it came to."""
    model, optimizers = make()
    with (
        stopping() as stop,
        Checkpoints(folder / "checkpoints", World(), save_total_limit=2) as checkpoints,
    ):
        step, extra = checkpoints.load_latest(model, optimizers) or (0, {"steps_seen": []})
        while step < steps and not stop.is_set():
            train_step(model, optimizers, step)
            step += 1
            extra["steps_seen"].append(step)
            if step % save_steps == 0:
                checkpoints.save(step, model, optimizers, extra)
        checkpoints.save(step, model, optimizers, extra)
    assert extra["steps_seen"] == list(range(1, step + 1)), extra
    if step == steps:
        torch.save(state_tensors(model, optimizers), folder / "final.tmp")
        os.replace(folder / "final.tmp", folder / "final.pt")  # a kill may come as soon as it is there
    return step


def forked(work: Callable[[], object]) -> int:
    """The process id of a copy of this process that does the work and ends."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        if status:
            sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(status)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def unfinished(out: Path) -> set[tuple[str, int]]:
    """What is being written or removed."""
    found = set()
    for path in (out / "checkpoints").glob(".step-*"):
        with contextlib.suppress(FileNotFoundError):  # gone between two looks
            found.add((path.name, path.stat().st_ino))
    return found


def kill(folder: Path, kills: int = 20, steps: int = 16) -> dict[str, object]:
    """Runs of so many steps, killed at random instants and started again, beside one left in peace."""
    chance, report = (
        random.Random(0),
        {"kills": 0, "in_save": 0, "resumed": 0, "terminated": 0, "finished": 0, "equal": True},
    )
    began = time.perf_counter()
    (folder / "peace").mkdir()
    assert ended(forked(lambda: run(folder / "peace", steps, 2))) == 0
    whole = time.perf_counter() - began
    expected = torch.load(folder / "peace" / "final.pt")
    attempts = 0
    while report["kills"] < kills or report["finished"] == 0:
        out = folder / f"killed-{report['finished']}"
        out.mkdir(exist_ok=True)
        left_over = unfinished(out)
        report["resumed"] += any((out / "checkpoints").glob("step-*"))
        child = forked(lambda out=out: run(out, steps, 2))
        if report["kills"] < kills:
            attempts += 1
            time.sleep(chance.uniform(0, whole / 3))
            if attempts % 2:  # wait for a save to be under way, or for the end of the run
                while not unfinished(out) - left_over and not (out / "final.pt").exists():
                    time.sleep(0.001)
            os.kill(child, signal.SIGTERM if attempts % 8 == 7 else signal.SIGKILL)
        status = ended(child)
        if status == -signal.SIGKILL:
            report["kills"] += 1
            report["in_save"] += bool(unfinished(out) - left_over)
        else:
            assert status == 0, status
            report["terminated"] += not (out / "final.pt").exists()
        if (out / "final.pt").exists():
            report["finished"] += 1
            report["equal"] &= same(torch.load(out / "final.pt"), expected)
    return report


def on_ranks(size: int, folder: Path, work: Callable[[World], None]) -> None:
    """Runs `work` in `size` processes joined by gloo; one is a plain process without a group."""

    meeting = folder / f"store-{time.monotonic_ns()}"

    def rank_work(rank: int) -> None:
        if size > 1:
            dist.init_process_group(
                "gloo", store=dist.FileStore(str(meeting), size), rank=rank, world_size=size
            )
        work(World(rank, size))
        if size > 1:
            dist.barrier()
            dist.destroy_process_group()

    children = {forked(lambda rank=rank: rank_work(rank)) for rank in range(size)}
    while children:
        child, status = os.wait()
        children.discard(child)
        if status:
            for other in children:  # they would wait for it
                os.kill(other, signal.SIGKILL)
            raise SystemExit(f"a rank of {size} ended with {os.waitstatus_to_exitcode(status)}")


def whole_state(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    tensors = state_tensors(model, optimizers)
    return {
        name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()
        for name, tensor in tensors.items()
    }


def ranks(folder: Path) -> dict[str, object]:
    """4 ranks, then 2, 1, 2, and 4 as 2 x 2, each going on from the checkpoint of the one before."""
    checkpoints_at = folder / "checkpoints"

    def build(world: World, seed: int) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
        torch.manual_seed(seed)
        model = Net()
        if world.size > 1:
            shape, names = (world.size,), ("shard",)
            if seed == 8:
                shape, names = (2, 2), ("replicate", "shard")
            fully_shard(model, mesh=dist.init_device_mesh("cpu", shape, mesh_dim_names=names))
        return model, build_optimizers(model, SFTConfig(optim="muon", **OPTIONS))

    def part(begin: int, end: int) -> Callable[[World], None]:
        def work(world: World) -> None:
            model, optimizers = build(world, seed=begin)
            with Checkpoints(checkpoints_at, world) as checkpoints:
                loaded = checkpoints.load_latest(model, optimizers)
                if begin:
                    assert loaded == (begin, {"step": begin}), loaded
                    assert same(whole_state(model, optimizers), torch.load(folder / f"state-{begin}.pt")), (
                        f"state of step {begin}"
                    )
                for step in range(begin, end):
                    train_step(model, optimizers, step, drawn=False)
                state = whole_state(model, optimizers)
                if world.is_main:
                    torch.save(state, folder / f"state-{end}.pt")
                checkpoints.save(end, model, optimizers, {"step": end})
                for step in range(3):  # goes on while it is written
                    train_step(model, optimizers, step, drawn=False)

        return work

    def random_states(world: World) -> None:
        model, optimizers = build(world, seed=0)
        torch.manual_seed(100 + world.rank)
        with Checkpoints(folder / "random", world) as checkpoints:
            checkpoints.save(1, model, optimizers)
            expected = torch.rand(4)
            assert checkpoints.load_latest(model, optimizers) is not None
            assert torch.equal(torch.rand(4), expected)

    def missing_rank(world: World) -> None:
        model, optimizers = build(world, seed=0)
        with Checkpoints(checkpoints_at, world) as checkpoints:
            assert checkpoints.load_latest(model, optimizers) == (6, {"step": 6})

    def full_disk(world: World) -> None:
        """On rank 1 alone."""
        model, optimizers = build(world, seed=0)
        with Checkpoints(folder / "full", world) as checkpoints:
            checkpoints.save(1, model, optimizers)
            checkpoints.wait()
            true_save = weights.save_file

            def fail(*_: object, **_more: object) -> None:
                raise SafetensorError("I/O error: No space left on device (os error 28)")

            weights.save_file = fail if world.rank == 1 else true_save
            checkpoints.save(2, model, optimizers)
            checkpoints.wait()
            assert checkpoints.latest == 1
            if world.is_main:
                assert [path.name for path in (folder / "full").iterdir()] == ["step-1"]
            weights.save_file = true_save
            checkpoints.save(3, model, optimizers)
        assert checkpoints.latest == 3
        with Checkpoints(folder / "full", world) as checkpoints:
            assert checkpoints.load_latest(model, optimizers) == (3, {})

    for size, begin, end in ((4, 0, 2), (2, 2, 4), (1, 4, 6), (2, 6, 8), (4, 8, 9)):
        on_ranks(size, folder, part(begin, end))
    on_ranks(2, folder, random_states)
    on_ranks(2, folder, full_disk)
    torch.manual_seed(0)
    model, optimizers = build(World(), seed=0)
    on_ranks(
        1,
        folder,
        lambda world: (
            [train_step(model, optimizers, step, drawn=False) for step in range(9)]
            and torch.save(whole_state(model, optimizers), folder / "alone.pt")
        ),
    )
    sharded, alone = torch.load(folder / "state-9.pt"), torch.load(folder / "alone.pt")
    error = max(
        float((sharded[name] - alone[name]).abs().max() / alone[name].abs().max().clamp(min=1e-6))
        for name in alone
    )
    (checkpoints_at / "step-9" / "rank-00003.safetensors").unlink()
    (checkpoints_at / "step-8" / "rank-00001.safetensors").unlink()
    on_ranks(2, folder, missing_rank)
    return {"names": sharded.keys() == alone.keys(), "error": error}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"kill": kill, "ranks": ranks}[sys.argv[1]](Path(sys.argv[2]))))
