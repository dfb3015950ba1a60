"""math-verify, for equalities that our exact rules leave open: only ever in a worker process that is killed
when it takes too long.

Source: huggingface/Math-Verify 0.9, `parse` and `verify`, which build sympy expressions from what a model
wrote. Its own time limits use SIGALRM (main thread only, whole seconds), so they are switched off here.
"""

from importlib.util import find_spec

from r1ov.reward.rules.worker import Worker, WorkerError, WorkerTimeout

MAX_LENGTH = 1_000  # characters of an answer
MEMORY_BYTES = 4 << 30


class MathVerify:
    """Whether answer and gold are the same mathematics, by math-verify. A call that fails or is overdue says
    None, never True.

    Args: seconds: hard limit of a call. target: the function in the worker.
    Attributes: calls, timeouts, errors: how many there were, for the log.
    """

    def __init__(self, seconds: float = 5.0, target: str = "r1ov.reward.rules.verify:judge"):
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
