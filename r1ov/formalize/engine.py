"""r1ov's own engine in a role: asks that come while it is busy are answered together, as its next batch."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from r1ov.common.remote import AskFailed, Reply
from r1ov.errors import UserError
from r1ov.formalize.client import Question

MAX_BATCH = 64


@dataclass
class _Job:
    question: Question
    reply: Reply | None = None
    failure: Exception | None = None


class EngineModel:
    """A folder, a hub name or r1ov-tiny. The answers depend on the seed and the question, not on who else is
    in the batch.
    """

    is_metered = False
    price = (0.0, 0.0)
    ready_at = 0.0

    def __init__(
        self,
        name: str,
        *,
        device: str | None = None,
        max_tokens: int = 2048,
        temperature: float | None = None,
    ):
        """Raises: UserError for a model that cannot be loaded."""
        from r1ov.folder.pretrained import (
            load,
        )  # torch takes seconds to import, and many a run asks endpoints alone

        self.model, self.processor = load(name, device=device)
        self.name, self.max_tokens, self.temperature = name, max_tokens, temperature
        self.identity: Mapping[str, Any] = {
            "engine": name,
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        self._waiting: list[_Job] = []
        self._engine = threading.Lock()

    def estimate(self, question: Question) -> tuple[int, int]:
        return 0, 0

    def attempt(self, question: Question) -> Reply:
        """Raises: AskFailed."""
        job = _Job(question)
        self._waiting.append(job)
        with self._engine:
            while job.reply is None and job.failure is None:  # whoever comes first answers for all
                jobs = self._waiting[:MAX_BATCH]
                del self._waiting[: len(jobs)]
                self._answer(jobs)
        if isinstance(job.failure, UserError):
            raise AskFailed(str(job.failure))
        if job.failure is not None:
            raise job.failure
        return job.reply

    def _answer(self, jobs: list[_Job]) -> None:
        from r1ov.engine import generate

        try:
            completions = generate(
                self.model,
                self.processor,
                [_messages(job.question) for job in jobs],
                max_new_tokens=self.max_tokens,
                temperature=self.temperature,
            )
        except Exception as error:  # raised in the thread whose question it was: those that share its batch have no part in it
            if len(jobs) == 1:
                jobs[0].failure = error
            else:
                for job in jobs:
                    self._answer([job])
            return
        for job, completion in zip(jobs, completions, strict=True):
            failure = (
                f"cut off after {completion.completion_tokens} tokens"
                if completion.finish_reason == "length"
                else None
            )
            failure = failure or (None if completion.text.strip() else "the answer is empty")
            job.reply = Reply(
                completion.text, failure, completion.prompt_tokens, completion.completion_tokens
            )


def _messages(question: Question) -> list[dict[str, Any]]:
    picture = [{"type": "image", "image": question.image}] if question.image is not None else []
    system = [{"role": "system", "content": question.system}] if question.system else []
    return [*system, {"role": "user", "content": [*picture, {"type": "text", "text": question.prompt}]}]
