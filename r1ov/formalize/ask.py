"""Asks with care for money: every answer is kept, nothing is asked twice, failures are tried again, a budget
holds.
"""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from weakref import WeakValueDictionary

from PIL import Image

from r1ov.common.journal import Journal, Record
from r1ov.common.remote import FIRST_WAIT, PATIENCE, AskFailed, NoUse, Reply, TryAgain, retried
from r1ov.data.image import LazyImage
from r1ov.errors import UserError
from r1ov.formalize.models import Model, Question

MAX_DECODED_PIXELS = 50_000_000  # a larger image is not decoded at all
# What is counted of each request. Lost: failed on the way and may be billed; its tokens are guessed, on the
# high side. Metered: tokens of endpoints. Cost: money, by the prices given.
COUNTS = ("requests", "lost", "prompt_tokens", "completion_tokens", "metered_tokens", "cost")


class BudgetSpent(UserError):
    """Nothing more may be asked, and the run stops cleanly; the row is left for another start."""


@dataclass
class Asker:
    """Asks the model that plays a role, from any number of threads.

    answers: where answers are kept, keyed by "key". What is there is not asked again, unless it is a failure
        (a refusal, an empty answer) and `retry_failed`.
    max_tokens_spent, max_cost: the most metered tokens and money, over all starts of the run.
    attempts: the most requests for one answer.
    stop: once set, nothing more is asked.
    """

    models: Mapping[str, Model]
    answers: Journal
    max_tokens_spent: int | None = None
    max_cost: float | None = None
    attempts: int = 6
    retry_failed: bool = False
    first_wait: float = FIRST_WAIT
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.over: str | None = None  # why nothing more is asked
        self.is_mistake = False  # `over` is the user's to mend: a wrong key, say
        self.spent: Counter[str] = Counter()  # COUNTS, over all starts of the run
        self.cached = 0
        self._reserved: Counter[str] = Counter()  # COUNTS, the most that requests under way may take
        self._state = threading.Condition()  # guards all counts
        self._alone: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._stale: set[str] = set()  # failures of earlier starts, to be asked again
        for record in self.answers:
            if not record.keys() >= {*COUNTS}:
                raise UserError(f"{self.answers.path}: kept by another version of r1ov; choose another --out")
            self.spent.update({name: record[name] for name in COUNTS})
            if self.retry_failed and record["failure"]:
                self._stale.add(record["key"])

    def __call__(
        self, role: str, prompt: str, image: LazyImage | None = None, system: str | None = None
    ) -> str:
        """Raises: AskFailed for this question only; BudgetSpent when nothing more is asked (see `over`)."""
        model = self.models[role]
        question = Question(prompt, system, _decoded(image))
        key = _digest(role, model, question)
        with self._state:
            alone = self._alone.setdefault(key, threading.Lock())
        try:
            with alone:  # a row that asks the same waits, and gets the other's answer
                record = None if key in self._stale else self.answers.get(key)
                if record is None:
                    ask = partial(self._ask, model, question, key)
                    record = retried(ask, self.attempts, self.first_wait, self._wait)
                else:
                    with self._state:
                        self.cached += 1
            if record["failure"]:
                raise AskFailed(record["failure"])
        except AskFailed as error:
            raise AskFailed(f"{role}: {error}") from error
        return record["text"]

    def told(self) -> str:
        """Tells what has been asked and spent, on one line."""
        spent = self.spent
        lost = f" ({spent['lost']} lost on the way)" if spent["lost"] else ""
        tokens = f"{spent['prompt_tokens'] + spent['completion_tokens']:,} tokens"
        cost = f", cost {spent['cost']:.4f}" if spent["cost"] else ""
        return f"{spent['requests']} answers{lost}, {self.cached} used again, {tokens}{cost}"

    def close(self, reason: str, is_mistake: bool = False) -> BudgetSpent:
        """Asks nothing from here on; what is under way may finish. Returns what there is to raise."""
        with self._state:
            if self.over is None:
                self.over, self.is_mistake = reason, is_mistake
            self.stop.set()
            self._state.notify_all()
        return self._closed()

    def _closed(self) -> BudgetSpent:
        return BudgetSpent(self.over or "the run was asked to stop")

    def _ask(self, model: Model, question: Question, key: str) -> Record:
        """Asks once. Returns the answer, which is on the disk. Raises: as `Model.attempt`; BudgetSpent."""
        self._wait(model.ready_at - time.monotonic())
        most = Reply(None, None, *model.estimate(question))
        with self._reserving(_counts(model, most)):
            try:
                reply = model.attempt(question)
            except TryAgain as error:
                if error.is_billed:
                    lost = replace(most, failure=str(error))
                    self._keep(model, f"lost {time.time_ns()} {key}", lost, is_lost=True)
                raise
            except NoUse as error:
                raise self.close(str(error), is_mistake=True) from error
            self._stale.discard(key)
            return self._keep(model, key, reply)

    def _keep(self, model: Model, key: str, reply: Reply, is_lost: bool = False) -> Record:
        counts = _counts(model, reply, is_lost)
        before = self.answers.get(key) or {}  # a failure, whose cost stays on the bill
        record = {"key": key, "model": model.name, "text": reply.text, "failure": reply.failure}
        record |= {name: count + before.get(name, 0) for name, count in counts.items()}
        try:
            self.answers.append(record)
        except OSError as error:  # no disk, no run: every further answer would be paid for and lost
            raise self.close(f"{self.answers.path}: {error.strerror}", is_mistake=True) from error
        with self._state:
            self.spent.update(counts)
        return record

    def _wait(self, seconds: float) -> None:
        if seconds > PATIENCE:
            self.close(
                f"the server asks to wait for {seconds / 60:.0f} minutes; start the same command again then"
            )
        if self.stop.wait(max(0.0, seconds)):
            raise self._closed()

    @contextmanager
    def _reserving(self, most: Mapping[str, float]) -> Iterator[None]:
        """Waits until a request fits the budget, with the most that others under way may take; within it the
        request is under way.
        """
        with self._state:
            while not self.stop.is_set() and not self._fits(most):
                if self._reserved["requests"]:
                    self._state.wait(1)  # the others may turn out to take less
                    continue
                self.close(
                    f"the budget is used up: {self.spent['metered_tokens']:,} tokens, "
                    f"{self.spent['cost']:.4f} in money, and the next request might exceed it; a larger "
                    "budget goes on"
                )
            if self.stop.is_set():
                raise self._closed()
            self._reserved.update(most)
        try:
            yield
        finally:
            with self._state:
                self._reserved.subtract(most)
                self._state.notify_all()

    def _fits(self, most: Mapping[str, float]) -> bool:
        if not self._reserved["requests"]:
            self._reserved.clear()  # the cost may be a rounding off 0
        return not any(
            limit is not None and most[name] and self.spent[name] + self._reserved[name] + most[name] > limit
            for name, limit in (("metered_tokens", self.max_tokens_spent), ("cost", self.max_cost))
        )


def _counts(model: Model, reply: Reply, is_lost: bool = False) -> dict[str, float]:
    asked, made = reply.prompt_tokens, reply.completion_tokens
    cost = (asked * model.price[0] + made * model.price[1]) / 1e6
    return dict(zip(COUNTS, (1, is_lost, asked, made, (asked + made) * model.is_metered, cost), strict=True))


def _decoded(image: LazyImage | None) -> Image.Image | None:
    if image is None:
        return None
    width, height = image.size
    if width * height > MAX_DECODED_PIXELS:
        raise AskFailed(f"the picture has {width}x{height} pixels, above {MAX_DECODED_PIXELS:,}")
    return image.load()


def _digest(role: str, model: Model, question: Question) -> str:
    """Returns what an answer is known by: a digest of all that it depends on."""
    parts = [role, dict(model.identity), question.prompt, question.system]
    if question.image is not None:
        parts += [question.image.size, hashlib.sha256(question.image.tobytes()).hexdigest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
