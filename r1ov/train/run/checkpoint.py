"""Checkpoints that cannot lose work: written while the training goes on, visible only once they are complete.

    checkpoints/step-40/    complete: every file and folder was on the disk before one rename made it visible
    checkpoints/.step-50.*  being written or removed; the next start sweeps away what a killed run left of it

Any number of processes may read a checkpoint, sharded or whole, whatever wrote it. All must see the same
folder.
"""

import json
import re
import shutil
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from r1ov.common.files import say
from r1ov.common.processes import PATIENCE, World
from r1ov.errors import UserError
from r1ov.train.run import storage
from r1ov.train.run.state import copy_of_share, random_state, restore, set_random_state, state_tensors

MAX_FAILURES = 3  # failed saves in a row that stop the run


class Checkpoints:
    """The checkpoints of one run. Collective: every rank makes one, and calls its methods at the same steps.

        with Checkpoints(out / "checkpoints", world, save_total_limit=2) as checkpoints:
            step, extra = checkpoints.load_latest(model, optimizers) or (0, {})
            ...
            checkpoints.save(step, model, optimizers, {"num_tokens": num_tokens})

    Leaving the block waits for the last save, except after KeyboardInterrupt.

    Args: save_total_limit: keep this many, the newest; None keeps all.
    """

    latest = None  # step of the newest checkpoint that was saved or loaded here
    _thread = _error = None  # of the save that is under way
    _failures = 0  # in a row

    def __init__(self, folder: Path, world: World, save_total_limit: int | None = None):
        self.folder, self.save_total_limit = folder, save_total_limit
        # The saving thread's exchanges must not mix with those of the training step.
        group = dist.new_group(backend="gloo", timeout=PATIENCE) if world.size > 1 else None
        self.world = replace(world, group=group)
        try:
            self.world.on_main(lambda: [folder.mkdir(parents=True, exist_ok=True), self._sweep()])
        except OSError as error:
            raise UserError(f"{folder} cannot hold checkpoints ({error}); choose another --out") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        elif kind is not KeyboardInterrupt and self._thread:
            self._thread.join()  # a run that fails needs its last good state; its own error goes on upwards

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizers: Iterable[torch.optim.Optimizer],
        extra: dict | None = None,
    ) -> None:
        """Copies the state after `step` steps into CPU memory, and writes it while the caller goes on.

        Waits for the save before. Does nothing if this step is saved already.

        Args: extra: for `load_latest` to return, anything that JSON can hold, the same on all ranks.
        Raises: UserError if too many saves in a row have failed.
        """
        self.wait()
        if step == self.latest:
            return
        record = json.loads(json.dumps({"step": step, "world_size": self.world.size, "extra": extra or {}}))
        tensors = copy_of_share(state_tensors(model, optimizers), self.world.is_main)
        own_random_state = random_state()

        def work() -> None:
            try:
                self._write(step, tensors, record, own_random_state)
            except BaseException as error:  # for the main thread, in `wait`
                self._error = error

        # A daemon: who cannot wait can interrupt a long save.
        self._thread = threading.Thread(target=work, name=f"save of step {step}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns once nothing is being written. Raises: UserError if too many saves in a row have failed."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error and not isinstance(error, OSError):
            raise error
        self._failures = self._failures + 1 if error else 0
        if self._failures == MAX_FAILURES:
            begin = "from the beginning" if self.latest is None else f"after step {self.latest}"
            raise UserError(
                f"{MAX_FAILURES} saves in a row have failed ({error}); make room in {self.folder} and start "
                f"the same command again: it goes on {begin}"
            ) from error

    def load_latest(
        self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]
    ) -> tuple[int, dict] | None:
        """Puts the newest usable checkpoint into model and optimizers, and returns its (step, extra); None if
        there is none.

        Parameters, buffers and optimizer states come back bit by bit; the optimizers' options, such as the
        learning rate, stay as they are. Torch's random state comes back if as many ranks wrote it. A
        checkpoint that cannot be used is reported in one line and left where it is; the one before is tried.

        Raises: UserError if the checkpoint is sound, but of another model or optimizer.
        """
        self.wait()
        world, steps = self.world, self.world.on_main(self.steps)
        for step in steps:
            folder = self.folder / f"step-{step}"
            try:
                record, stored = self._open(folder)
            except OSError as error:
                if world.is_main:
                    say(f"note    {folder} cannot be used ({error}); trying the one before it")
                continue
            restore(model, optimizers, stored)
            if record["world_size"] == world.size:
                set_random_state(record["random_states"][world.rank])
            self.latest = step
            return step, record["extra"]
        if steps and world.is_main:
            say(f"note    no checkpoint in {self.folder} can be used; starting from the beginning")
        return None

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are visible now, the newest first."""
        names = (re.fullmatch(r"step-(\d+)", path.name) for path in self.folder.iterdir())
        return sorted((int(name[1]) for name in names if name), reverse=True)

    def _open(self, folder: Path) -> tuple[dict, dict[str, storage.Stored]]:
        """The record and the tensors of a sound checkpoint; each rank checks its share of the files.

        Raises: OSError, on all ranks; UserError for one of an earlier version.
        """
        record = self.world.on_main(lambda: storage.read_record(folder))
        files, stored = sorted(record["files"]), {}
        if ".metadata" in files:
            raise UserError(
                f"{folder} is pickled, as an earlier version of r1ov wrote it; go on with that version, or "
                "choose another --out"
            )

        def check() -> None:
            share = files[self.world.rank :: self.world.size]
            storage.verify(folder, {name: record["files"][name] for name in share})
            stored.update(storage.open_tensors(folder, files))

        self.world.on_all(check)
        return record, stored

    def _write(
        self, step: int, tensors: dict[str, Tensor], record: dict, own_random_state: dict[str, str]
    ) -> None:
        """Takes a checkpoint all the way to the disk, in a thread of its own. Raises: OSError on all ranks,
        already reported.
        """
        world, temporary = self.world, self.folder / f".step-{step}.tmp"
        files = [f"rank-{rank:05}.safetensors" for rank in range(world.size)]
        try:
            world.on_main(lambda: temporary.mkdir(exist_ok=True))  # it is there if it could not be removed
            path = temporary / files[world.rank]
            shares = world.on_all(lambda: (storage.write_synced(path, tensors), own_random_state))
            digests, random_states = zip(*shares, strict=True)
            record |= {"random_states": random_states, "files": dict(zip(files, digests, strict=True))}
            world.on_main(lambda: storage.write_record(temporary, record))
            world.on_main(lambda: storage.publish(temporary, self.folder / f"step-{step}"))
        except OSError as error:
            if world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)  # what resists is swept away at the next start
                kept = "there is none yet" if self.latest is None else f"that of step {self.latest} is kept"
                say(
                    f"note    the checkpoint of step {step} could not be written ({error}); {kept}, training "
                    "goes on"
                )
            raise
        self.latest = step
        if world.is_main:
            try:
                past = [number for number in self.steps() if number <= step]
                for old in past[self.save_total_limit or len(past) :]:
                    storage.hide(self.folder / f"step-{old}")
                self._sweep()
            except OSError as error:  # the new one is safe
                say(f"note    an old checkpoint could not be removed ({error})")

    def _sweep(self) -> None:
        """Removes what is no longer, or never was, a checkpoint."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path)
