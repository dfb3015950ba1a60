"""Asking with care for money: every answer is kept, nothing is asked twice, failures are tried again, a
budget holds.
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from r1ov.common.journal import Journal, Record
from r1ov.common.remote import FIRST_WAIT, PATIENCE, AskFailed, NoUse, Reply, TryAgain, retried
from r1ov.data.image import LazyImage
from r1ov.errors import UserError
from r1ov.formalize.client import Question
from r1ov.formalize.row import BudgetSpent, Role

MAX_DECODED_PIXELS = 50_000_000  # a picture that is larger is not decoded at all


class Model(Protocol):
    """What plays a role: an endpoint, or r1ov's engine."""

    name: str
    identity: Mapping[str, Any]  # what its answers depend on beside the question
    is_metered: bool  # whether its tokens count against the budget
    price: tuple[float, float]
    ready_at: float

    def estimate(self, question: Question) -> tuple[int, int]: ...

    def attempt(self, question: Question) -> Reply: ...


@dataclass(frozen=True, kw_only=True)
class Budget:
    tokens: int | None = None
    cost: float | None = None


@dataclass
class Spent:
    """Over all starts of the run. Lost: requests that failed on the way and may be billed; their tokens are
    guesses, on the high side.
    """

    requests: int = 0
    lost: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    metered_tokens: int = 0
    cost: float = 0.0

    def add(self, record: Record) -> None:
        self.requests += 1
        self.lost += record["is_lost"]
        self.prompt_tokens += record["prompt_tokens"]
        self.completion_tokens += record["completion_tokens"]
        self.metered_tokens += (record["prompt_tokens"] + record["completion_tokens"]) * record["is_metered"]
        self.cost += record["cost"]


class Asker:
    """An `Ask` for any number of threads.

    Args:
        answers: where answers are kept, keyed by "key". What is there already is not asked again, unless it
            is a failure (a refusal, an empty answer) and `retry_failed`.
        attempts: requests for one answer, at most.
        stop: once set, nothing more is asked.
    """

    def __init__(
        self,
        models: Mapping[Role, Model],
        answers: Journal,
        *,
        budget: Budget | None = None,
        attempts: int = 6,
        retry_failed: bool = False,
        first_wait: float = FIRST_WAIT,
        stop: threading.Event | None = None,
    ):
        self.models, self.answers, self.budget, self.attempts, self.first_wait = (
            models,
            answers,
            budget or Budget(),
            attempts,
            first_wait,
        )
        self.stop = stop or threading.Event()
        self.over: str | None = None  # why nothing more is asked
        self.is_mistake = False  # `over` is the user's to mend: a wrong key, say
        self.spent, self.cached = Spent(), 0
        self._reserved = Spent()  # what is under way may take this
        self._state = threading.Condition()
        self._under_way: dict[str, threading.Lock] = {}
        self._stale = set()
        for record in answers:
            self.spent.add(record)
            if retry_failed and record["failure"]:
                self._stale.add(record["key"])

    def __call__(
        self, role: Role, prompt: str, image: LazyImage | None = None, system: str | None = None
    ) -> str:
        """Raises: AskFailed, only for this question; BudgetSpent when nothing more is asked, of which `over`
        says why.
        """
        model = self.models[role]
        question = Question(prompt=prompt, system=system, image=_decoded(image))
        key = _digest(role, model, question)
        with self._alone(key):
            record = None if key in self._stale else self.answers.get(key)
            if record is None:
                record = self._ask(role, model, question, key)
            else:
                with self._state:
                    self.cached += 1
        if record["failure"]:
            raise AskFailed(f"{role}: {record['failure']}")
        return record["text"]

    def cost(self) -> str:
        """The money spent, as far as prices are known."""
        endpoints = [model for model in self.models.values() if model.is_metered]
        unpriced = len([model for model in endpoints if model.price == (0.0, 0.0)])
        if not endpoints:
            return "none, no endpoint was asked"
        return (
            "unknown, no price given"
            if unpriced == len(endpoints)
            else f"{self.spent.cost:.4f}" + " and more" * bool(unpriced)
        )

    def told(self) -> str:
        """What has been asked and spent, on one line."""
        spent = self.spent
        tokens = spent.prompt_tokens + spent.completion_tokens
        lost = f" ({spent.lost} lost on the way)" if spent.lost else ""
        cost = f", cost {self.cost()}" if spent.cost else ""
        return f"{spent.requests} answers{lost}, {self.cached} used again, {tokens:,} tokens{cost}"

    def close(self, reason: str, is_mistake: bool = False) -> None:
        """From here on nothing is asked; what is under way may finish."""
        with self._state:
            if self.over is None:
                self.over, self.is_mistake = reason, is_mistake
            self.stop.set()
            self._state.notify_all()

    def _ask(self, role: Role, model: Model, question: Question, key: str) -> Record:
        """A new answer, on the disk."""

        def attempt() -> Record:
            self._wait(model.ready_at - time.monotonic())
            estimate = model.estimate(question)
            with self._reserve(model, estimate):
                try:
                    reply = model.attempt(question)
                except TryAgain as error:
                    if error.is_billed:
                        lost = Reply(None, str(error), *estimate)
                        self._keep(role, model, f"lost {time.time_ns()} {key}", lost, is_lost=True)
                    raise
                except NoUse as error:
                    self.close(str(error), is_mistake=True)
                    raise BudgetSpent(str(error)) from error
                if (before := self.answers.get(key)) is not None:  # a failure, whose cost stays on the bill
                    self.answers.append(before | {"key": f"before {time.time_ns()} {key}"})
                self._stale.discard(key)
                return self._keep(role, model, key, reply)

        try:
            return retried(attempt, self.attempts, self._wait, self.first_wait)
        except AskFailed as error:
            raise AskFailed(f"{role}: {error}") from error

    def _keep(self, role: Role, model: Model, key: str, reply: Reply, is_lost: bool = False) -> Record:
        cost = (reply.prompt_tokens * model.price[0] + reply.completion_tokens * model.price[1]) / 1e6
        record = {"key": key, "role": role, "model": model.name, "text": reply.text, "failure": reply.failure}
        record |= {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "cost": cost,
        }
        record |= {"is_metered": model.is_metered, "is_lost": is_lost}
        try:
            self.answers.append(record)
        except OSError as error:  # no disk, no run: every further answer would be paid for and lost
            self.close(f"{self.answers.path}: {error.strerror}", is_mistake=True)
            raise BudgetSpent(self.over) from error
        with self._state:
            self.spent.add(record)
        return record

    def _wait(self, seconds: float) -> None:
        if seconds > PATIENCE:
            self.close(
                f"the server asks to wait for {seconds / 60:.0f} minutes; start the same command again then"
            )
        if self.stop.wait(max(0.0, seconds)):
            raise BudgetSpent(self.over or "the run was asked to stop")

    @contextmanager
    def _reserve(self, model: Model, estimate: tuple[int, int]) -> Iterator[None]:
        """Within it the request is under way. It does not begin unless it fits the budget, with all that
        others under way may take.
        """
        tokens = sum(estimate) * model.is_metered
        cost = (estimate[0] * model.price[0] + estimate[1] * model.price[1]) / 1e6
        with self._state:
            while not self.stop.is_set() and not self._fits(tokens, cost):
                if self._reserved.requests == 0:
                    self.close(
                        f"the budget is used up: {self.spent.metered_tokens:,} tokens, {self.spent.cost:.4f} in money, "
                        "and the next request might exceed it; the same command with a larger budget goes on"
                    )
                else:  # the others may turn out to take less
                    self._state.wait(1)
            if self.stop.is_set():
                raise BudgetSpent(self.over or "the run was asked to stop")
            self._reserved.requests += 1
            self._reserved.metered_tokens += tokens
            self._reserved.cost += cost
        try:
            yield
        finally:
            with self._state:
                self._reserved.requests -= 1
                self._reserved.metered_tokens -= tokens
                self._reserved.cost = self._reserved.cost - cost if self._reserved.requests else 0.0
                self._state.notify_all()

    def _fits(self, tokens: int, cost: float) -> bool:
        limit = self.budget
        if (
            limit.tokens is not None
            and tokens
            and self.spent.metered_tokens + self._reserved.metered_tokens + tokens > limit.tokens
        ):
            return False
        return limit.cost is None or not cost or self.spent.cost + self._reserved.cost + cost <= limit.cost

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """One thread at a time for one question: of two rows that ask the same, one gets the other's answer."""
        with self._state:
            lock = self._under_way.setdefault(key, threading.Lock())
        with lock:
            try:
                yield
            finally:
                with self._state:
                    self._under_way.pop(key, None)


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
    """By what an answer is known: all that it depends on."""
    parts = [role, dict(model.identity), question.prompt, question.system]
    if question.image is not None:
        parts += [question.image.size, hashlib.sha256(question.image.tobytes()).hexdigest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
