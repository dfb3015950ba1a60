"""A run that is asked to stop finishes its step first: SIGTERM, Ctrl-C."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.requested = False

    def agreed(self, total: Callable[..., list[float]]) -> bool:
        """Whether any rank was asked to stop, the same on all. All call it after the same step.

        A loop that sums numbers over the ranks anyway may add `requested` to them instead.

        Args: total: `World.sum`.
        """
        return total(float(self.requested))[0] > 0


@contextmanager
def stopping(announce: bool = True) -> Iterator[Stop]:
    """Within it the first SIGTERM or SIGINT (Ctrl-C) only sets `requested`; a SIGINT after that raises
    KeyboardInterrupt.

    Under torchrun the step and its save must take less than `--shutdown-timeout` (30 s): then it kills.

    Args: announce: say so on stderr; one rank is enough.
    """
    stop = Stop()

    def ask(number: int, _frame: FrameType | None) -> None:
        if stop.requested:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        stop.requested = True
        if announce:  # not by print: it may be in the middle of a line itself, and must not be entered twice
            os.write(2, b"note    stopping after this step, with a checkpoint; Ctrl-C again: at once\n")

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def leave_signals_to_the_main_process(_worker: int = 0) -> None:
    """For a DataLoader's `worker_init_fn`: a signal to the whole group must not kill the workers of a step
    that is to be finished.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
