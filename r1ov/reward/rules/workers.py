"""Functions in processes of their own, a user's reward and math-verify: too long a call is killed."""

import importlib
import inspect
import json
import logging
import os
import resource
import signal
import sys
import traceback
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Process, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from r1ov.common.files import one_line
from r1ov.common.stopping import shielded
from r1ov.errors import UserError

START_SECONDS = 60.0  # for a new process to import its function
REWARD_SECONDS = 10.0  # for a call of a user's reward
MAX_TIMEOUTS = 8  # calls of a user's reward, one after the other
VERIFY_SECONDS = 5.0  # for a call of math-verify
VERIFY_BYTES = 4 << 30
MAX_FORMULA = 1_000  # characters that math-verify is given
ORPHAN_SECONDS = 600  # for a call whose caller has died


class WorkerError(Exception):
    """The function raised, or its process ended; the message is one line."""


class WorkerTimeout(WorkerError):
    """The call took longer than its limit; its process was killed, the next call starts a new one."""


@dataclass(eq=False)
class Worker:
    """Calls `target` in another process. Close it.

    Args:
        target: "path/to/file.py:function" or "package.module:function"; returns JSON data.
        timeout: seconds that a call may take.
        memory_bytes: address space of the process, on Linux; 0: no limit.
    """

    target: str
    timeout: float
    memory_bytes: int = 0
    process: Process | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Returns the function's result. Raises: WorkerError."""
        self.start()
        return self._exchange(self.timeout, arguments)

    def start(self) -> None:
        """Starts the process and loads the target, unless that is done. Raises as a call does."""
        if self.process:
            return
        context = get_context("spawn")  # a fork would inherit the locks of torch's threads
        self.pipe, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self.target, self.memory_bytes))
        with theirs, shielded():
            process.start()
        self.process, self._end = process, weakref.finalize(self, end, process, self.pipe)
        try:
            self._exchange(START_SECONDS)
        except WorkerError:
            self.close()  # its function could not be loaded
            raise

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self.process:
            self.process = None
            self._end()

    def _exchange(self, seconds: float, arguments: Any = None) -> Any:
        try:
            if arguments is not None:
                self.pipe.send(arguments)
            if not self.pipe.poll(seconds):
                raise WorkerTimeout(f"{self.target}: no result within {seconds:g} s")
            reply = self.pipe.recv()
        except (OSError, EOFError):
            self.close()
            raise WorkerError(f"{self.target}: its process ended") from None
        except BaseException:  # an interrupted exchange too would leave its reply to the next call
            self.close()
            raise
        if isinstance(reply, WorkerError):
            raise reply
        return reply


def end(process: Process, pipe: Connection) -> None:
    """Kills the process and everything in its session, and waits for its end."""
    with suppress(ProcessLookupError, PermissionError):  # it has no session yet, or is gone already
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
    pipe.close()


def serve(pipe: Connection, target: str, memory_bytes: int) -> None:
    """Runs in the process: loads the function, then answers calls until the pipe closes."""
    os.setsid()
    os.dup2(2, 1)  # what the function prints
    if memory_bytes and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    loaded = []  # the function
    with suppress(EOFError):
        pipe.send(_reply(target, lambda: loaded.append(one_at_a_time(load_function(target)))))
        while loaded:
            arguments = pipe.recv()
            signal.alarm(ORPHAN_SECONDS)
            reply = _reply(target, loaded[0], *arguments)
            signal.alarm(0)
            pipe.send(reply)


def _reply(target: str, function: Callable, *arguments: Any) -> Any:
    """The function's value as JSON data, or its mistake."""
    try:
        return json.loads(json.dumps(function(*arguments), allow_nan=False, default=float))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}, line {where.lineno}"
        return WorkerError(one_line(f"{target}: {type(error).__name__}: {error} ({place})"))


def load_function(target: str) -> Callable:
    """The function named "FILE.py:name" or "package.module:name"."""
    place, _, name = target.rpartition(":")
    if place.endswith(".py"):
        sys.path.insert(0, str(Path(place).resolve().parent))
        place = Path(place).stem
    if not callable(function := getattr(importlib.import_module(place), name, None)):
        raise ValueError(f"{place} has no function {name!r}")
    return function


# A user's reward.


class UserReward(Worker):
    """The scores of a user's own reward, `--reward FILE.py:function`, by name.

    def my_reward(prompt, completion, row, info):  # JSON data: messages, a text, the data's row, facts
        return 1.0 if "triangle" in completion else 0.0  # or None: does not apply; or {"name": score, ...}

    or as TRL's, called with lists of one: `one_at_a_time`.

    Args: target: "FILE.py:function", loaded at once, so that a mistake in it stops the run before training.
    Attributes: name: the function's. timeouts: how many calls in a row took too long.
    """

    def __init__(self, target: str):
        path, _, self.name = target.rpartition(":")
        if not path.endswith(".py") or not Path(path).is_file() or not self.name.isidentifier():
            raise UserError(f"--reward is {target!r}; expected FILE.py:function, with a file that exists")
        super().__init__(target, REWARD_SECONDS)
        self.timeouts = 0
        try:
            self.start()
        except WorkerError as error:
            raise UserError(f"--reward cannot be loaded: {error}") from None

    def __call__(self, prompt: Any, completion: str, row: Mapping, info: Mapping) -> dict[str, float | None]:
        """Returns {name: score}; None where the function does not apply or took too long.

        Raises: UserError if the function raises, returns anything but a finite number, None or an object of
            them, or takes too long MAX_TIMEOUTS times in a row: a broken reward must not pass for a low one.
        """
        try:
            value = super().__call__(prompt, completion, row, info)
            self.timeouts = 0
        except WorkerTimeout as error:
            self.timeouts += 1
            if self.timeouts >= MAX_TIMEOUTS:
                raise UserError(f"--reward: {self.timeouts} calls in a row took too long ({error})") from None
            return {self.name: None}
        except WorkerError as error:
            raise UserError(f"--reward: {error}") from None
        parts = value if isinstance(value, dict) else {"": value}
        scores = {f"{self.name}/{key}" if key else self.name: score for key, score in parts.items()}
        for key, score in scores.items():
            if not isinstance(score, int | float | None):
                raise UserError(
                    f"--reward: {key} is {score!r:.40}; expected a number, None, or an object of them"
                )
        return {key: None if score is None else float(score) for key, score in scores.items()}


def one_at_a_time(function: Callable) -> Callable:
    """TRL's kind of reward, (prompts, completions, **columns) -> scores, as ours, given lists of one; ours as
    it is.

    As in TRL a completion is a list of messages, because the prompt is one.
    """
    names = inspect.signature(function).parameters
    if not names.keys() & {"prompts", "completions"}:
        return function
    takes_all = any(one.kind is one.VAR_KEYWORD for one in names.values())

    def score(prompt: Any, completion: str, row: Mapping, info: Mapping) -> Any:
        replies = [{"role": "assistant", "content": completion}]
        columns = {"prompts": prompt, "completions": replies, **row, **info}
        return function(**{name: [value] for name, value in columns.items() if takes_all or name in names})[0]

    return score


# math-verify.


@dataclass(eq=False)
class MathVerify(Worker):
    """Whether answer and gold are the same mathematics, by math-verify, where our exact rules cannot say.

    A call that fails or takes too long returns None, never True.

    Source: huggingface/Math-Verify 0.9, `parse` and `verify`, which build sympy expressions from what a model
        wrote. Its own time limits use SIGALRM (main thread only, whole seconds), so they are switched off
        here.
    """

    target: str = f"{__name__}:judge"
    timeout: float = VERIFY_SECONDS
    memory_bytes: int = VERIFY_BYTES

    def __call__(self, gold: str, answer: str) -> bool | None:
        if max(len(gold), len(answer)) > MAX_FORMULA:
            return None
        try:
            return super().__call__(gold, answer)
        except WorkerError:
            return None


def judge(gold: str, answer: str) -> bool | None:
    """Runs in the worker. None if either side cannot be parsed."""
    from math_verify import parse, verify

    logging.disable(logging.WARNING)  # that its own time limits are off
    sides = [parse(f"\\boxed{{{side}}}", parsing_timeout=None) for side in (gold, answer)]
    if not all(sides):
        return None
    if not verify(*sides, timeout_seconds=None):
        return False
    # It rounds numbers to a few places, so that 1/2004! is 1/2006!: each must be near for its own size.
    mine, theirs = (sorted(_numbers(side[0])) for side in sides)
    return len(mine) != len(theirs) or all(
        abs(a - b) <= 1e-6 * max(abs(a), abs(b)) for a, b in zip(mine, theirs, strict=True)
    )


def _numbers(value: Any) -> list:
    """The finite real numbers that a sympy value is: one, a set's, a tuple's, an interval's, x in x = 3."""
    if getattr(value, "is_number", False):
        return [value.evalf(30)] if value.is_finite and value.is_real else []
    is_several = type(value).__name__ in ("FiniteSet", "Tuple", "Interval", "Equality")
    return [number for part in value.args for number in _numbers(part)] if is_several else []
