"""SIGTERM, SIGUSR1 and Ctrl-C: the main process finishes what it is at, and its helpers do not notice."""

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # the last is Slurm's warning, --signal=USR1@90


@contextmanager
def stopping(announcement: str = "") -> Iterator[threading.Event]:
    """Yields an event that the first of SIGNALS sets; a SIGINT (Ctrl-C) after that raises KeyboardInterrupt.

    Under torchrun it does not, because torchrun passes on to its ranks what they may have got already; what
    is left to do must take less than its `--shutdown-timeout` (30 s): then it kills.

    Args: announcement: what happens now, for stderr; one rank is enough.
    """
    stop = threading.Event()
    before = {number: signal.signal(number, partial(_ask, stop, announcement)) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _ask(stop: threading.Event, announcement: str, number: int, _frame: FrameType | None) -> None:
    """The handler of a signal."""
    alone = "TORCHELASTIC_RUN_ID" not in os.environ
    if stop.is_set():
        if number == signal.SIGINT and alone:
            raise KeyboardInterrupt
        return
    stop.set()
    if announcement:  # not by print, which may be in the middle of a line and must not be entered twice
        note = f"\rnote    {announcement}{'; Ctrl-C again: at once' if alone else ''}"
        os.write(2, f"{note:<120}\n".encode())  # in the place of a progress bar


@contextmanager
def shielded() -> Iterator[None]:
    """Processes that are started within it never see SIGNALS; they must end when their parent does.

    A scheduler signals every process of a job, but only the main one may decide what ends when. Signals that
    are blocked stay so in a child, from its first instruction on.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    resource_tracker.ensure_running()  # multiprocessing's own, which then unblocks some signals here
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        atexit.register(_kill_helpers)


def _kill_helpers() -> None:
    """At exit, multiprocessing would send SIGTERM to the children that are left, and wait for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes a killed loader worker for a fault
    for child in multiprocessing.active_children():
        child.kill()
