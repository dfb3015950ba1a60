"""Asks with care for money: every answer is kept, nothing is asked twice, failures are tried again, a budget
holds.
"""

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from r1ov.common.journal import Journal
from r1ov.common.remote import FIRST_WAIT, AskFailed, NoUse, retried
from r1ov.data.image import LazyImage
from r1ov.errors import UserError
from r1ov.formalize.models import Model

COUNTS = ("requests", "tokens")  # of the answers, over all starts of the run


class BudgetSpent(Exception):
    """Nothing more may be asked, and the run stops cleanly; the row is left for another start."""


@dataclass
class Asker:
    """Asks the model that plays a role, from any number of threads.

    answers: where answers are kept, keyed by "key". What is there is not asked again, unless it is a failure
        (a refusal, an empty answer) and `retry_failed`.
    max_tokens_spent: over all starts of the run; looked at before each request.
    attempts: the most requests for one answer.
    stop: once set, nothing more is asked.
    """

    models: Mapping[str, Model]
    answers: Journal
    max_tokens_spent: int | None = None
    attempts: int = 6
    retry_failed: bool = False
    first_wait: float = FIRST_WAIT
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.is_over = False  # the budget is used up
        self.spent = Counter()  # COUNTS, and "reused": answers that were there already
        self._lock = threading.Lock()  # guards the counts
        self._alone = defaultdict(threading.Lock)  # by the questions' keys
        for record in self.answers:
            if not record.keys() >= {*COUNTS}:
                raise UserError(f"{self.answers.path}: kept by another version of r1ov; choose another --out")
            self.spent.update({name: record[name] for name in COUNTS})

    def __call__(
        self, role: str, prompt: str, image: LazyImage | None = None, system: str | None = None
    ) -> str:
        """Raises: AskFailed for this question only; BudgetSpent when nothing more is asked; NoUse when
        nothing more can be.
        """
        pixels = image and image.load()
        question = (prompt, system, pixels)
        seen = pixels and [pixels.size, sha256(pixels.tobytes()).hexdigest()]
        # All else that an answer depends on are options, which are the same in all starts of a run.
        key = sha256(json.dumps([role, prompt, system, seen]).encode()).hexdigest()
        with self._alone[key]:  # a row that asks the same waits, and gets the other's answer
            record = self.answers.get(key)
            if record and not (record["failure"] and self.retry_failed):
                with self._lock:
                    self.spent["reused"] += 1
            else:
                try:
                    record = retried(
                        lambda: self._ask(role, key, question), self.attempts, self.first_wait, self._wait
                    )
                except AskFailed as error:
                    raise AskFailed(f"{role}: {error}") from error
        if record["failure"]:
            raise AskFailed(f"{role}: {record['failure']}")
        return record["text"]

    def told(self) -> str:
        """Tells what has been asked and spent, on one line."""
        answers = f"{self.spent['requests']} answers, {self.spent['reused']} used again"
        return f"{answers}, {self.spent['tokens']:,} tokens of endpoints"

    def _ask(self, role: str, key: str, question: tuple) -> dict:
        """Asks once. Returns the answer, which is on the disk."""
        self._wait(0)
        if self.max_tokens_spent and self.spent["tokens"] >= self.max_tokens_spent:
            self.is_over = True
            self.stop.set()
            raise BudgetSpent
        reply = self.models[role](*question)
        record = {"key": key, "role": role, "text": reply.text, "failure": reply.failure}
        before = self.answers.get(key) or dict.fromkeys(COUNTS, 0)  # a failure, which stays on the bill
        counts = {"requests": 1, "tokens": reply.tokens}
        try:
            self.answers.append(record | {name: counts[name] + before[name] for name in COUNTS})
        except OSError as error:  # no disk, no run: every further answer would be paid for and lost
            raise NoUse(f"{self.answers.path}: {error.strerror}") from error
        with self._lock:
            self.spent.update(counts)
        return record

    def _wait(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise BudgetSpent
