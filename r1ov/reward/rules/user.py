"""A user's own reward, `--reward FILE.py:function`, run in a worker process within a time limit.

def my_reward(prompt, completion, row, info):       # JSON data: a prompt's messages, a text, the data's row, facts about the sample
    return 1.0 if "triangle" in completion else 0.0  # or None: says nothing about this sample; or {"name": score, ...}
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1ov.errors import UserError
from r1ov.reward.rules.worker import Worker, WorkerError, WorkerTimeout

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
