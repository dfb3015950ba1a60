"""What can play a role: a remote model, or r1ov's own engine."""

import math
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from PIL import Image

from r1ov.common.page import base64_image
from r1ov.common.remote import AskFailed, Remote, Reply
from r1ov.errors import UserError

MAX_IMAGE_LETTERS = 5 << 20  # of base64; larger PNGs go as JPEG
MAX_BATCH = 64  # questions that the engine answers together


@dataclass(frozen=True, kw_only=True)
class Question:
    prompt: str
    system: str | None = None
    image: Image.Image | None = None

    def messages(self, image: dict[str, Any] | None) -> list[dict[str, Any]]:
        """Args: image: as a part of the message."""
        # Without an image a plain text: servers of text models often know nothing else.
        content = [image, {"type": "text", "text": self.prompt}] if image else self.prompt
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": content}]


class Endpoint(Remote):
    """A model behind a URL.

    Args:
        max_pixels: larger images are scaled down to this.
        price: (in, out) money for a million tokens.
    """

    is_metered = True  # its tokens count against the budget

    def __init__(
        self,
        url: str,
        model: str,
        *,
        max_pixels: int = 2_000_000,
        price: tuple[float, float] = (0.0, 0.0),
        **more: Any,
    ):
        super().__init__(url, model, **more)
        self.max_pixels, self.price = max_pixels, price
        # What answers depend on beside the question.
        self.identity = {"url": url, "max_pixels": max_pixels, **self.options}

    def estimate(self, question: Question) -> tuple[int, int]:
        """Returns the most tokens that this should take, (prompt, completion), for the budget."""
        letters = len(question.prompt) + len(question.system or "")
        pixels = min(self.max_pixels, question.image.width * question.image.height) if question.image else 0
        return 32 + letters // 3 + pixels // 28**2, self.max_tokens

    def attempt(self, question: Question) -> Reply:
        """Asks once. Raises: as `Remote.send`."""
        image = None
        if question.image is not None:
            url = {"url": data_url(question.image, self.max_pixels)}
            image = {"type": "image_url", "image_url": url}
        return self.send(question.messages(image), self.estimate(question)[0])


def data_url(image: Image.Image, max_pixels: int) -> str:
    """Returns an RGB image, scaled down to `max_pixels`, as a data URL; PNG, or JPEG for a large one."""
    if (pixels := image.width * image.height) > max_pixels:
        size = (max(1, int(side * math.sqrt(max_pixels / pixels))) for side in image.size)
        image = image.resize(tuple(size), Image.Resampling.LANCZOS)
    text, kind = base64_image(image), "png"
    if len(text) > MAX_IMAGE_LETTERS:
        text, kind = base64_image(image, "jpeg", quality=90), "jpeg"
    return f"data:image/{kind};base64,{text}"


class EngineModel:
    """r1ov's own engine: questions that come while it is busy are answered together, as its next batch.

    An answer depends on its question alone, not on the others in the batch.

    Args: name: a model's folder, hub name, or r1ov-tiny.

    Raises: UserError for a model that cannot be loaded.
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
        from r1ov.folder.pretrained import load  # torch takes seconds, and many a run asks endpoints alone

        self.model, self.processor = load(name, device=device)
        self.name, self.max_tokens, self.temperature = name, max_tokens, temperature
        self.identity = {"engine": name, "max_tokens": max_tokens, "temperature": temperature}
        self._waiting: list[tuple[Question, Future[Reply]]] = []
        self._engine = threading.Lock()

    def estimate(self, question: Question) -> tuple[int, int]:
        return 0, 0

    def attempt(self, question: Question) -> Reply:
        """Raises: AskFailed."""
        future: Future[Reply] = Future()
        self._waiting.append((question, future))
        with self._engine:
            while not future.done():  # whoever comes first answers for all
                jobs = self._waiting[:MAX_BATCH]
                del self._waiting[: len(jobs)]
                self._answer(jobs)
        try:
            return future.result()
        except UserError as error:
            raise AskFailed(str(error)) from error

    def _answer(self, jobs: list[tuple[Question, Future[Reply]]]) -> None:
        from r1ov.engine import generate

        asked = [
            question.messages(question.image and {"type": "image", "image": question.image})
            for question, _ in jobs
        ]
        limits = {"max_new_tokens": self.max_tokens, "temperature": self.temperature}
        try:
            completions = generate(self.model, self.processor, asked, **limits)
        except (
            Exception
        ) as error:  # raised in the thread whose question it was: the others have no part in it
            if len(jobs) == 1:
                jobs[0][1].set_exception(error)
            else:
                for job in jobs:
                    self._answer([job])
            return
        for (_, future), completion in zip(jobs, completions, strict=True):
            failure = None if completion.text.strip() else "the answer is empty"
            if completion.finish_reason == "length":
                failure = f"cut off after {completion.completion_tokens} tokens"
            tokens = completion.prompt_tokens, completion.completion_tokens
            future.set_result(Reply(completion.text, failure, *tokens))


Model = Endpoint | EngineModel
