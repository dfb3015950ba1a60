"""A function in a process of its own, each call within a time limit: an overdue process is killed, with all
that it started.

Requests and replies are lines of JSON over pipes, so that a thread, a rank or a process with a GPU may own
one.
Also the program of that process: python -m r1ov.reward.rules.workers FILE.py:function |
    package.module:function
"""

import contextlib
import importlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from r1ov.errors import UserError

MAX_REPLY = 1_000_000  # bytes


class WorkerTimeout(Exception):
    """The call took longer than its limit; the process is gone, the next call starts a new one."""


class WorkerError(Exception):
    """The function raised, or its process ended by itself; the message is one line."""


class Worker:
    """Calls `target` in another process. Close it, or use it as a context manager.

    Args:
        target: "path/to/file.py:function" or "package.module:function"; takes and returns JSON data.
        timeout: seconds that a call may take. startup: seconds for a new process to import the target.
        memory_bytes: address space of the process, on Linux; 0: no limit.
    """

    def __init__(self, target: str, timeout: float, startup: float = 60.0, memory_bytes: int = 0):
        self.target, self.timeout, self.startup, self.memory_bytes = target, timeout, startup, memory_bytes
        self.process: subprocess.Popen | None = None

    def __call__(self, *arguments: Any) -> Any:
        """The function's result. Raises: WorkerTimeout; WorkerError."""
        self.start()
        return self._exchange(json.dumps(arguments).encode() + b"\n", self.timeout)

    def start(self) -> None:
        """Starts the process and has it load the target, unless it is there already. Raises as a call does."""
        if self.process is not None:
            return
        root = str(Path(__file__).resolve().parents[3])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "r1ov.reward.rules.workers",
                self.target,
                str(self.timeout),
                str(self.memory_bytes),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,
        )
        os.set_blocking(self.process.stdin.fileno(), False)
        try:
            self._exchange(b"", self.startup)
        except WorkerError:
            self.close()  # a process that could not load its function is of no use
            raise

    def close(self) -> None:
        """Kills the process and everything in its session, and waits for its end."""
        if self.process is None:
            return
        process, self.process = self.process, None
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it and its children are gone already
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self):
        self.close()

    def _exchange(self, request: bytes, seconds: float) -> Any:
        """Sends a request and reads one line. Neither a full pipe nor a silent process can hold it beyond the
        limit.
        """
        try:
            reply = json.loads(self._converse(request, time.monotonic() + seconds))
        except BaseException:  # an interrupted exchange too would leave its reply to the next call
            self.close()
            raise
        if "error" in reply:
            raise WorkerError(" ".join(reply["error"].split())[:500])
        return reply["value"]

    def _converse(self, request: bytes, deadline: float) -> bytes:
        sender, receiver = self.process.stdin.fileno(), self.process.stdout.fileno()
        poll = select.poll()  # unlike select.select, at ease with file numbers above 1,023
        poll.register(receiver, select.POLLIN)
        poll.register(sender, select.POLLOUT)
        received = b""
        while not received.endswith(b"\n"):
            if not request:
                poll.modify(sender, 0)
            events = dict(poll.poll(max(0, 1000 * (deadline - time.monotonic()))))
            if not events or time.monotonic() > deadline:
                raise WorkerTimeout(f"{self.target}: no result within {self.timeout:g} s")
            if receiver in events:
                part = os.read(receiver, 1 << 16)
                received += part
                if not part or len(received) > MAX_REPLY:
                    raise WorkerError(f"{self.target}: its process ended, or wrote too much")
            elif events[sender] & select.POLLERR:
                raise WorkerError(f"{self.target}: its process ended")
            else:
                with contextlib.suppress(BrokenPipeError):  # the next poll tells
                    request = request[os.write(sender, request) :]
        return received


def load_function(target: str) -> Callable[..., Any]:
    """The function named "FILE.py:name" or "package.module:name". Raises: ValueError if there is none."""
    place, _, name = target.rpartition(":")
    if not place or not name.isidentifier():
        raise ValueError(f"{target!r}: expected FILE.py:function")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise ValueError(f"{place}: no such file")
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(Path(place).resolve().parent))
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{place} has no function {name!r}")
    return function


def main(target: str, seconds: float, memory_bytes: int) -> None:
    """Answers requests until the pipe closes. What the function prints goes to stderr, its mistakes go into
    the reply.
    """
    requests, replies = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    if memory_bytes and sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    function: Callable[..., Any] | None = None
    while True:
        line = requests.readline() if function else "[]"
        if not line:
            return
        try:
            value = None
            if function is None:
                function = load_function(target)
            else:
                # should the owner be killed during the call, the system ends this process by its CPU time
                signal.setitimer(signal.ITIMER_PROF, 10 + seconds * (os.cpu_count() or 1))
                value = function(*json.loads(line))
                signal.setitimer(signal.ITIMER_PROF, 0)
            reply = json.dumps({"value": value}, allow_nan=False, default=float)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            reply = json.dumps(
                {
                    "error": f"{target}: {type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
                }
            )
        print(reply, file=replies, flush=True)
        if function is None:
            return


MAX_TIMEOUTS = 8  # one after the other


class UserReward:
    """Scores of the user's function, by name. The file is loaded at once, so that a mistake in it stops the
    run before training.

    Args: target: "FILE.py:function". seconds: hard limit of a call.
    Attributes: name: the function's. timeouts: how many calls were overdue.
    """

    def __init__(self, target: str, seconds: float = 10.0):
        path, _, self.name = target.rpartition(":")
        if not path.endswith(".py") or not Path(path).is_file() or not self.name.isidentifier():
            raise UserError(f"--reward is {target!r}; expected FILE.py:function, with a file that exists")
        self.worker = Worker(target, seconds)
        self.timeouts = self.in_a_row = 0
        try:
            self.worker.start()
        except (WorkerError, WorkerTimeout) as error:
            raise UserError(f"--reward cannot be loaded: {error}") from None

    def __call__(
        self, prompt: Any, completion: str, row: Mapping[str, Any], info: Mapping[str, Any]
    ) -> dict[str, float | None]:
        """{name: score}; None where the function says nothing or was overdue.

        Raises: UserError if the function raises, returns anything else than a finite number, None or an
            object of them, or was
            overdue MAX_TIMEOUTS times in a row: a broken reward must not pass for a low one.
        """
        try:
            value = self.worker(prompt, completion, row, info)
        except WorkerTimeout as error:
            self.timeouts += 1
            self.in_a_row += 1
            if self.in_a_row >= MAX_TIMEOUTS:
                raise UserError(
                    f"--reward: {self.in_a_row} calls in a row took over {self.worker.timeout:g} s ({error})"
                ) from None
            return {self.name: None}
        except WorkerError as error:
            raise UserError(f"--reward: {error}") from None
        self.in_a_row = 0
        scores = (
            {f"{self.name}/{key}": score for key, score in value.items()}
            if isinstance(value, dict)
            else {self.name: value}
        )
        for key, score in scores.items():
            if not isinstance(score, int | float | None):
                raise UserError(
                    f"--reward: {key} is {score!r:.40}; expected a number, None, or an object of them"
                )
        return {key: None if score is None else float(score) for key, score in scores.items()}

    def close(self) -> None:
        self.worker.close()


MAX_LENGTH = 1_000  # characters of an answer
MEMORY_BYTES = 4 << 30


class MathVerify:
    """Whether answer and gold are the same mathematics, by math-verify. A call that fails or is overdue says
    None, never True.

    Args: seconds: hard limit of a call. target: the function in the worker.
    Attributes: calls, timeouts, errors: how many there were, for the log.
    """

    def __init__(self, seconds: float = 5.0, target: str = "r1ov.reward.rules.workers:judge"):
        self.worker = Worker(target, seconds, memory_bytes=MEMORY_BYTES)
        self.calls = self.timeouts = self.errors = 0

    def __call__(self, gold: str, answer: str) -> bool | None:
        if max(len(gold), len(answer)) > MAX_LENGTH:
            return None
        self.calls += 1
        try:
            return self.worker(gold, answer)
        except WorkerTimeout:
            self.timeouts += 1
        except WorkerError:
            self.errors += 1
        return None

    def close(self) -> None:
        self.worker.close()


def math_verify_or_none(seconds: float = 5.0) -> MathVerify | None:
    """A judge if math-verify is installed, else None: what our rules leave open then counts as wrong."""
    return MathVerify(seconds) if find_spec("math_verify") else None


def judge(gold: str, answer: str) -> bool | None:
    """Runs in the worker. None if either side cannot be parsed."""
    from math_verify import parse, verify

    sides = [parse(f"\\boxed{{{side}}}", parsing_timeout=None) for side in (gold, answer)]
    return bool(verify(*sides, timeout_seconds=None)) if all(sides) else None


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
