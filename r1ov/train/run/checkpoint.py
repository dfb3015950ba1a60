"""Checkpoints that cannot lose work: written while the training goes on, visible only once they are complete.

    checkpoints/step-40/    complete: every file and folder was synced to the disk before one rename made it visible
    checkpoints/.step-50.*  being written or removed; what a killed run leaves of it is swept away at the next start

A checkpoint may be read by any number of processes, sharded or whole, whatever wrote it. All of them must see
the same folder.
"""

import json
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from r1ov.common.processes import World
from r1ov.common.text import one_line
from r1ov.errors import UserError
from r1ov.train.run.log import say
from r1ov.train.run.state import copied, random_state, restore, set_random_state, state_tensors

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one run. Every rank makes one, and calls its methods at the same steps.

        with Checkpoints(out / "checkpoints", world, save_total_limit=2) as checkpoints:
            step, extra = checkpoints.load_latest(model, optimizers) or (0, {})
            ...
            checkpoints.save(step, model, optimizers, {"num_tokens": num_tokens})

    Leaving the block waits for the last save, unless it is left in a hurry (KeyboardInterrupt).

    Args:
        save_total_limit: how many to keep, the newest; None keeps all.
        max_failures: so many failed saves in a row stop the run, with UserError; fewer are told in a line
            each.
    """

    def __init__(
        self, folder: Path, world: World, save_total_limit: int | None = None, max_failures: int = 3
    ):
        assert save_total_limit is None or save_total_limit >= 1, f"save_total_limit is {save_total_limit}"
        self.folder, self.world, self.save_total_limit, self.max_failures = (
            folder,
            world,
            save_total_limit,
            max_failures,
        )
        self.latest: int | None = None  # step of the newest checkpoint that was saved or loaded here
        self._failures = 0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        # A group of its own: what the saving thread exchanges must not mix with the exchanges of the training
        # step.
        self._group = (
            dist.new_group(backend="gloo", timeout=timedelta(hours=2)) if dist.is_initialized() else None
        )
        warnings.filterwarnings(
            "ignore", message="torch.distributed is disabled", category=UserWarning
        )  # one process is no mistake
        try:
            self._on_main(lambda: [folder.mkdir(parents=True, exist_ok=True), self._sweep()])
        except OSError as error:
            raise UserError(f"{folder} cannot hold checkpoints ({error}); choose another --out") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif not issubclass(kind, KeyboardInterrupt) and self._thread is not None:
            self._thread.join()  # a run that fails needs its last good state; its own error goes on upwards

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizers: Iterable[torch.optim.Optimizer],
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Copies the state that `step` steps have led to into CPU memory, and writes it while the caller goes
        on.

        Waits for the save before. Does nothing if this step is saved already.

        Args: extra: what `load_latest` shall give back, anything that JSON can hold, the same on all ranks.
        Raises: UserError if too many saves in a row have failed.
        """
        self.wait()
        if step == self.latest:
            return
        record = json.loads(json.dumps({"step": step, "world_size": self.world.size, "extra": extra or {}}))
        tensors = {name: copied(tensor) for name, tensor in state_tensors(model, optimizers).items()}
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
        """Returns once nothing is being written any more. Raises: UserError if too many saves in a row have
        failed.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is None:
            self._failures = 0
            return
        if not isinstance(error, OSError):
            raise error
        self._failures += 1
        if self._failures >= self.max_failures:
            begin = "from the beginning" if self.latest is None else f"after step {self.latest}"
            raise UserError(
                f"{self._failures} saves in a row have failed ({error}); make room in {self.folder} and start the same command again: "
                f"it goes on {begin}"
            ) from error

    def load_latest(
        self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]
    ) -> tuple[int, dict[str, Any]] | None:
        """Puts the newest usable checkpoint into model and optimizers, and returns its (step, extra); None if
        there is none.

        Parameters, buffers and optimizer states come back bit by bit; the optimizers' options, the learning
        rate say, stay as they are. Torch's random state comes back if there are as many ranks as wrote it. A
        checkpoint that cannot be used is told in one line, left where it is, and the one before is taken.

        Raises: UserError if the checkpoint is sound, but of another model or optimizer.
        """
        self.wait()
        steps = self._on_main(self.steps)
        if not steps:
            return None
        for step in steps:
            folder = self.folder / f"step-{step}"
            try:
                record, metadata = self._check(folder)
            except OSError as error:
                if self.world.is_main:
                    say(f"note    {folder} cannot be used ({error}); trying the one before it")
                continue
            self._load(folder, record, metadata, model, optimizers)
            self.latest = step
            return step, record["extra"]
        if self.world.is_main:
            say(f"note    no checkpoint in {self.folder} can be used; starting from the beginning")
        return None

    def steps(self) -> list[int]:
        """Of the checkpoints that are visible here and now, the newest first."""
        names = (re.fullmatch(r"step-(\d+)", path.name) for path in self.folder.iterdir())
        return sorted((int(name[1]) for name in names if name), reverse=True)

    def _check(self, folder: Path) -> tuple[dict[str, Any], Any]:
        """The record and the metadata of a sound checkpoint; each rank reads its share of the files. Raises:
        OSError, on all ranks.
        """
        from r1ov.train.run import storage  # takes a second to import

        record = self._on_main(lambda: storage.read_record(folder))
        share = sorted(record["files"])[self.world.rank :: self.world.size]
        self._on_all(lambda: storage.verify(folder, {name: record["files"][name] for name in share}))
        found: list[Any] = []
        self._on_all(lambda: found.append(storage.read_metadata(folder)))
        return record, found[0]

    def _load(
        self,
        folder: Path,
        record: dict[str, Any],
        metadata: Any,
        model: nn.Module,
        optimizers: Iterable[torch.optim.Optimizer],
    ) -> None:
        from r1ov.train.run import storage

        stored = {
            name: (entry.size, entry.properties.dtype) for name, entry in metadata.state_dict_metadata.items()
        }
        restore(
            model,
            optimizers,
            stored,
            lambda tensors: storage.read_tensors(folder, metadata, tensors, self._group),
        )
        if record["world_size"] == self.world.size:
            set_random_state(record["random_states"][self.world.rank])

    def _write(
        self, step: int, tensors: dict[str, Tensor], record: dict[str, Any], own_random_state: dict[str, str]
    ) -> None:
        """The whole way of a checkpoint to the disk, in a thread of its own. Raises: OSError, on all ranks,
        told already.
        """
        from r1ov.train.run import storage

        temporary = self.folder / f".step-{step}.tmp"
        try:
            self._on_main(
                lambda: temporary.mkdir(exist_ok=True)
            )  # there if it could not be removed after a failure
            storage.write_tensors(temporary, tensors, self._group)
            names = [f"__{self.world.rank}_*", *([".metadata"] if self.world.is_main else [])]
            own = self._on_all(
                lambda: {path.name: storage.describe(path) for name in names for path in temporary.glob(name)}
            )
            record |= {
                "random_states": self._on_all(lambda: own_random_state),
                "files": {k: v for files in own for k, v in files.items()},
            }
            self._on_main(lambda: storage.write_record(temporary, record))
            self._on_main(lambda: storage.publish(temporary, self.folder / f"step-{step}"))
        except OSError as error:
            if self.world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)  # what resists is swept away at the next start
                kept = "there is none yet" if self.latest is None else f"that of step {self.latest} is kept"
                say(
                    f"note    the checkpoint of step {step} could not be written ({error}); {kept}, training goes on"
                )
            raise
        self.latest = step
        if self.world.is_main:
            try:
                past = [number for number in self.steps() if number <= step]
                for old in past[self.save_total_limit :] if self.save_total_limit else []:
                    storage.hide(self.folder / f"step-{old}")
                self._sweep()
            except OSError as error:  # the new one is safe
                say(f"note    an old checkpoint could not be removed ({_reason(error)})")

    def _sweep(self) -> None:
        """Removes what is no longer, or never was, a checkpoint."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path)

    def _on_main(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, where alone it runs, in all ranks; if it fails, OSError in all of
        them.
        """
        return self._on_all(lambda: work() if self.world.is_main else None)[0]

    def _on_all(self, work: Callable[[], T]) -> list[T]:
        """What `work` returns in each rank, by rank; if it fails in any, OSError in all of them."""
        result, trouble = None, None
        try:
            result = work()
        except OSError as error:
            trouble = _reason(error)
        everyone = [(result, trouble)]
        if self._group is not None:
            everyone = [None] * self.world.size
            dist.all_gather_object(everyone, (result, trouble), group=self._group)
        troubles = [
            f"rank {rank}: {trouble}" if self.world.size > 1 else trouble
            for rank, (_, trouble) in enumerate(everyone)
            if trouble
        ]
        if troubles:
            raise OSError("; ".join(troubles))
        return [result for result, _ in everyone]


def _reason(error: OSError) -> str:
    """Example: "No space left on device: checkpoint.json"."""
    if error.strerror is None:
        return one_line(str(error))
    return one_line(f"{error.strerror}: {Path(error.filename).name}" if error.filename else error.strerror)
