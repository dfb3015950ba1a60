"""Who plays describer, reasoner and judge: a model behind a URL, r1ov's own engine, the playground's own
truth, or the rules alone.
"""

import math
import os
import re
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from PIL import Image

from r1ov.common.files import shown
from r1ov.common.page import base64_image
from r1ov.common.remote import AskFailed, Remote, Reply
from r1ov.errors import UserError

MAX_IMAGE_LETTERS = 5 << 20  # of base64; larger PNGs go as JPEG
MAX_BATCH = 64  # questions that the engine answers together
DEFAULTS = {"describer": "playground", "reasoner": "r1ov-tiny", "judge": "rules"}  # with the playground
NO_MODEL = {"playground": "the playground's own truth", "rules": "rules alone, no model"}
KEYS = {
    "huggingface.co": "HF_TOKEN",
    "huggingface.cloud": "HF_TOKEN",
    "hf.space": "HF_TOKEN",
    "openai.com": "OPENAI_API_KEY",
}


class Question(NamedTuple):
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
        price: tuple[float, float] | None = None,
        **more: Any,
    ):
        super().__init__(url, model, **more)
        self.max_pixels, self.price = max_pixels, price or (0.0, 0.0)
        # What answers depend on beside the question.
        self.identity = {"url": url, "max_pixels": max_pixels, **self.options}

    def estimate(self, question: Question) -> tuple[int, int]:
        """Returns the most tokens that this should take, (prompt, completion), for the budget."""
        letters = len(question.prompt) + len(question.system or "")
        pixels = min(self.max_pixels, question.image.width * question.image.height) if question.image else 0
        return 32 + letters // 3 + pixels // 28**2, self.max_tokens

    def attempt(self, question: Question) -> Reply:
        """Asks once. Raises: as `Remote.send`."""
        image = question.image and {
            "type": "image_url",
            "image_url": {"url": data_url(question.image, self.max_pixels)},
        }
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
        self.name, self.limits = name, {"max_new_tokens": max_tokens, "temperature": temperature}
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
        try:
            completions = generate(self.model, self.processor, asked, **self.limits)
        except Exception as error:  # raised in the thread whose question it was
            if len(jobs) == 1:
                jobs[0][1].set_exception(error)
            else:
                for job in jobs:
                    self._answer([job])
            return
        for (_, future), completion in zip(jobs, completions, strict=True):
            asked, made = completion.prompt_tokens, completion.completion_tokens
            failure = None if completion.text.strip() else "the answer is empty"
            if completion.finish_reason == "length":
                failure = f"cut off after {made} tokens"
            future.set_result(Reply(completion.text, failure, asked, made))


Model = Endpoint | EngineModel


class Player(NamedTuple):
    """One role as the command line gives it. `spec`: a URL, a model folder or name, "playground", "rules"."""

    role: str
    spec: str
    model: str | None = None
    key_env: str | None = None
    price: tuple[float, float] | None = None  # (in, out) money for a million tokens

    @property
    def is_endpoint(self) -> bool:
        return self.spec.lower().startswith(("http://", "https://"))

    @property
    def is_engine(self) -> bool:
        return not self.is_endpoint and self.spec not in NO_MODEL

    def __str__(self) -> str:
        if not self.is_endpoint:
            return NO_MODEL.get(self.spec, f"{self.spec}, in r1ov's engine")
        key = f"key from ${self.key_env}" if self.key_env else "no key"
        is_open = re.match(r"http://(?!(localhost|127\.0\.0\.1|\[::1\])(:|/|$))", self.spec.lower())
        if self.key_env and is_open:
            key += ", which travels unencrypted"
        return f"{self.model} at {self.spec}, {key}"

    def key(self) -> str | None:
        """Returns the secret. Raises: UserError if the variable holds none."""
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not re.fullmatch("[!-~]+", key):  # printable ASCII
            raise UserError(f"--{self.role}-key-env: the environment variable {self.key_env} holds no key")
        return key


def cast(config: Any) -> dict[str, Player]:
    """Returns the players by role, from the fields `describer`, `describer_model`, ... of the command line.

    Raises: UserError.
    """
    return {role: _player(config, role) for role in DEFAULTS}


def _player(config: Any, role: str) -> Player:
    ends = ("", "_model", "_key_env", "_price")
    spec, model, key_env, price = (getattr(config, role + end) for end in ends)
    is_playground = config.data.partition(":")[0] == "playground"
    if spec is None and not is_playground and role != "judge":
        raise UserError(
            f"--data {config.data[:80]} does not bring its own descriptions: give --{role} a URL or a model"
        )
    player = Player(role, spec or DEFAULTS[role], model, key_env, price and _price(role, price))
    fits = {"rules": role == "judge", "playground": is_playground and role != "judge"}
    if not fits.get(player.spec, True):
        more = ", or --data playground" if role != "judge" else ""
        raise UserError(f"--{role} {spec} cannot be; give a URL or a model{more}")
    if not player.is_endpoint:
        for end, value in {"model": model, "key-env": key_env, "price": price}.items():
            if value is not None:
                raise UserError(f"--{role}-{end} is for a --{role} that is a URL, and that is {player.spec}")
        return player
    try:
        parts = urlsplit(spec)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host:
        raise UserError(f"--{role} {shown(spec)}: not a URL; expected one such as http://localhost:8000/v1")
    odd = [name for name, _ in parse_qsl(parts.query) if name != "api-version"]
    if "@" in parts.netloc or odd or parts.fragment:
        raise UserError(
            f"--{role}: a URL with a password or a query in it would be written down; keys come from "
            f"--{role}-key-env NAME"
        )
    if not model:
        raise UserError(f"--{role} {spec} needs --{role}-model, the model's name there")
    # Never a key that was not meant for this host.
    known = [name for domain, name in KEYS.items() if f".{host}".endswith(f".{domain}")]
    return player._replace(key_env=key_env or next((name for name in known if name in os.environ), None))


def _price(role: str, text: str) -> tuple[float, float]:
    number = r"(\d{1,5}(?:\.\d+)?)"
    if not (found := re.fullmatch(f"{number}/{number}", text)):
        raise UserError(
            f"--{role}-price is {text[:40]!r}; expected money for a million tokens, in/out, such as 2.5/10"
        )
    return float(found[1]), float(found[2])


def models(players: Mapping[str, Player], config: Any) -> dict[str, Model]:
    """Returns what can be asked, by role; the same model in two roles is loaded once. Raises: UserError."""
    limits = {"max_tokens": config.max_tokens, "temperature": config.temperature}
    remote = limits | {"timeout": config.timeout, "max_pixels": config.max_pixels}
    engine = cache(lambda name: EngineModel(name, device=config.device, **limits))
    return {
        role: Endpoint(player.spec, player.model, key=player.key(), price=player.price, **remote)
        if player.is_endpoint
        else engine(player.spec)
        for role, player in players.items()
        if player.spec not in NO_MODEL
    }
