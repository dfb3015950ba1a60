"""Asks with care for money: every answer is kept, nothing is asked twice, failures are tried again, a budget
holds.
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from PIL import Image

from r1ov.common.journal import Journal, Record
from r1ov.common.remote import FIRST_WAIT, PATIENCE, AskFailed, NoUse, Reply, TryAgain, retried
from r1ov.data.image import LazyImage
from r1ov.errors import UserError
from r1ov.formalize.models import Model, Question
from r1ov.formalize.row import BudgetSpent, Role

MAX_DECODED_PIXELS = 50_000_000  # a larger image is not decoded at all


@dataclass(frozen=True, kw_only=True)
class Budget:
    tokens: int | None = None
    cost: float | None = None


@dataclass
class Spent:
    """Over all starts of the run. Lost: requests that failed on the way and may be billed; their tokens are
    guessed, on the high side.
    """

    requests: int = 0
    lost: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    metered_tokens: int = 0
    cost: float = 0.0

    def add(self, record: Record, times: int = 1) -> None:
        self.requests += times
        self.lost += times * record["is_lost"]
        self.prompt_tokens += times * record["prompt_tokens"]
        self.completion_tokens += times * record["completion_tokens"]
        self.metered_tokens += times * record["metered_tokens"]
        self.cost += times * record["cost"]


@dataclass
class Asker:
    """An `Ask` for any number of threads.

    answers: where answers are kept, keyed by "key". What is there is not asked again, unless it is a failure
        (a refusal, an empty answer) and `retry_failed`.
    attempts: the most requests for one answer.
    stop: once set, nothing more is asked.
    """

    models: Mapping[Role, Model]
    answers: Journal
    budget: Budget = Budget()
    attempts: int = 6
    retry_failed: bool = False
    first_wait: float = FIRST_WAIT
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.over: str | None = None  # why nothing more is asked
        self.is_mistake = False  # `over` is the user's to mend: a wrong key, say
        self.spent, self.cached = Spent(), 0
        self._reserved = Spent()  # the most that requests under way may take
        self._state = threading.Condition()  # guards all counts
        self._under_way: set[str] = set()
        self._stale: set[str] = set()
        for record in self.answers:
            self.spent.add(record)
            if self.retry_failed and record["failure"]:
                self._stale.add(record["key"])

    def __call__(
        self, role: Role, prompt: str, image: LazyImage | None = None, system: str | None = None
    ) -> str:
        """Raises: AskFailed for this question only; BudgetSpent when nothing more is asked (see `over`)."""
        model = self.models[role]
        question = Question(prompt=prompt, system=system, image=_decoded(image))
        key = _digest(role, model, question)
        with self._alone(key):
            record = None if key in self._stale else self.answers.get(key)
            if record is None:
                try:
                    ask = partial(self._ask, role, model, question, key)
                    record = retried(ask, self.attempts, self.first_wait, self._wait)
                except AskFailed as error:
                    raise AskFailed(f"{role}: {error}") from error
            else:
                with self._state:
                    self.cached += 1
        if record["failure"]:
            raise AskFailed(f"{role}: {record['failure']}")
        return record["text"]

    def told(self) -> str:
        """What has been asked and spent, on one line."""
        spent = self.spent
        tokens = spent.prompt_tokens + spent.completion_tokens
        lost = f" ({spent.lost} lost on the way)" if spent.lost else ""
        cost = f", cost {spent.cost:.4f}" if spent.cost else ""
        return f"{spent.requests} answers{lost}, {self.cached} used again, {tokens:,} tokens{cost}"

    def close(self, reason: str, is_mistake: bool = False) -> BudgetSpent:
        """From here on nothing is asked; what is under way may finish. Returns what there is to raise."""
        with self._state:
            if self.over is None:
                self.over, self.is_mistake = reason, is_mistake
            self.stop.set()
            self._state.notify_all()
        return self._spent()

    def _spent(self) -> BudgetSpent:
        return BudgetSpent(self.over or "the run was asked to stop")

    def _ask(self, role: Role, model: Model, question: Question, key: str) -> Record:
        """Asks once. Returns the answer, which is on the disk. Raises: as `Model.attempt`; BudgetSpent."""
        self._wait(model.ready_at - time.monotonic())
        worst = _record(role, model, key, Reply(None, None, *model.estimate(question)))
        with self._reserved_for(worst):
            try:
                reply = model.attempt(question)
            except TryAgain as error:
                if error.is_billed:
                    lost = {"key": f"lost {time.time_ns()} {key}", "failure": str(error), "is_lost": True}
                    self._keep(worst | lost)
                raise
            except NoUse as error:
                raise self.close(str(error), is_mistake=True) from error
            if (before := self.answers.get(key)) is not None:  # a failure, whose cost stays on the bill
                self.answers.append(before | {"key": f"before {time.time_ns()} {key}"})
            self._stale.discard(key)
            return self._keep(_record(role, model, key, reply))

    def _keep(self, record: Record) -> Record:
        try:
            self.answers.append(record)
        except OSError as error:  # no disk, no run: every further answer would be paid for and lost
            raise self.close(f"{self.answers.path}: {error.strerror}", is_mistake=True) from error
        with self._state:
            self.spent.add(record)
        return record

    def _wait(self, seconds: float) -> None:
        if seconds > PATIENCE:
            self.close(
                f"the server asks to wait for {seconds / 60:.0f} minutes; start the same command again then"
            )
        if self.stop.wait(max(0.0, seconds)):
            raise self._spent()

    @contextmanager
    def _reserved_for(self, worst: Record) -> Iterator[None]:
        """Within it the request is under way. It begins only if it fits the budget, with the most that others
        under way may take.
        """
        with self._state:
            while not self.stop.is_set() and not self._fits(worst):
                if self._reserved.requests:
                    self._state.wait(1)  # the others may turn out to take less
                    continue
                self.close(
                    f"the budget is used up: {self.spent.metered_tokens:,} tokens, {self.spent.cost:.4f} in "
                    "money, and the next request might exceed it; a larger budget goes on"
                )
            if self.stop.is_set():
                raise self._spent()
            self._reserved.add(worst)
        try:
            yield
        finally:
            with self._state:
                self._reserved.add(worst, -1)
                self._state.notify_all()

    def _fits(self, worst: Record) -> bool:
        under_way = self._reserved if self._reserved.requests else Spent()  # the cost may be a rounding off 0
        limits = {"metered_tokens": self.budget.tokens, "cost": self.budget.cost}
        return not any(
            limit is not None
            and worst[name]
            and getattr(self.spent, name) + getattr(under_way, name) + worst[name] > limit
            for name, limit in limits.items()
        )

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Lets in one thread at a time for a question: a row that asks the same gets the other's answer."""
        with self._state:
            while key in self._under_way:
                self._state.wait()
            self._under_way.add(key)
        try:
            yield
        finally:
            with self._state:
                self._under_way.discard(key)
                self._state.notify_all()


def _record(role: Role, model: Model, key: str, reply: Reply) -> Record:
    cost = (reply.prompt_tokens * model.price[0] + reply.completion_tokens * model.price[1]) / 1e6
    metered = (reply.prompt_tokens + reply.completion_tokens) * model.is_metered
    whose = {"key": key, "role": role, "model": model.name}
    return {**whose, **vars(reply), "metered_tokens": metered, "cost": cost, "is_lost": False}


def _decoded(image: LazyImage | None) -> Image.Image | None:
    if image is None:
        return None
    width, height = image.size
    if width * height > MAX_DECODED_PIXELS:
        raise AskFailed(f"the picture has {width}x{height} pixels, above {MAX_DECODED_PIXELS:,}")
    try:
        return image.load()
    except UserError as error:
        raise AskFailed(str(error)) from error


def _digest(role: Role, model: Model, question: Question) -> str:
    """By which an answer is known: all that it depends on."""
    parts = [role, dict(model.identity), question.prompt, question.system]
    if question.image is not None:
        parts += [question.image.size, hashlib.sha256(question.image.tobytes()).hexdigest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
