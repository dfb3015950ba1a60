"""Who plays describer, reasoner and judge: a model behind a URL, r1ov's own engine, the playground's own
truth, or the rules alone.
"""

import math
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Any, NamedTuple

from PIL import Image

from r1ov.common.files import shown
from r1ov.common.page import base64_image
from r1ov.common.remote import Remote, Reply
from r1ov.data.messages import conversation
from r1ov.errors import UserError

ROLES = ("describer", "judge", "reasoner")
NO_MODEL = {"playground": "the playground's own truth", "rules": "rules alone, no model"}
# A URL without a password, and with no query that could be one: it is written down.
URL = r"(?i)https?://([\w.-]+|\[[\da-f:]+\])(:\d{1,5})?(/[\w./~-]*)?(\?api-version=[\w.-]+)?"
KEYS = {  # the hosts that a key was made for -> its environment variable
    r"(?i)https://([\w-]+\.)*(huggingface\.co|huggingface\.cloud|hf\.space)[:/]": "HF_TOKEN",
    r"(?i)https://([\w-]+\.)*openai\.com[:/]": "OPENAI_API_KEY",
}
# (prompt, system text or None, image or None) -> the model's reply
Model = Callable[[str, str | None, Image.Image | None], Reply]


class Player(NamedTuple):
    """told: who it is, for people. model: None if the playground's truth or the rules play the role."""

    told: str
    model: Model | None = None


def endpoint(remote: Remote, max_pixels: int) -> Model:
    """The model behind a URL; larger images are scaled down to `max_pixels` for it."""

    def ask(prompt: str, system: str | None = None, image: Image.Image | None = None) -> Reply:
        part = image and {"type": "image_url", "image_url": {"url": data_url(image, max_pixels)}}
        return remote.send(conversation(prompt, [part] if part else [], system))

    return ask


def data_url(image: Image.Image, max_pixels: int) -> str:
    """Returns an RGB image, scaled down to `max_pixels`, as the data URL of a PNG."""
    shrink = max(1, math.sqrt(image.width * image.height / max_pixels))
    size = [max(1, int(side / shrink)) for side in image.size]
    return f"data:image/png;base64,{base64_image(image.resize(size, Image.Resampling.LANCZOS))}"


class Engine:
    """r1ov's own engine: questions that come while it is busy are answered together, as its next batch.

    An answer depends on its question alone, not on the others in the batch. Its tokens cost nothing, and are
    not counted.

    Args: name: a model's folder, hub name, or r1ov-tiny. limits: for `generate`.
    Raises: UserError for a model that cannot be loaded.
    """

    def __init__(self, name: str, device: str | None, **limits: Any):
        from r1ov.folder.pretrained import load  # torch takes seconds, and many a run asks endpoints alone

        self.model, self.processor = load(name, device=device)
        self.limits = limits
        self._waiting = []  # conversations, each with the future of its reply
        self._turn = threading.Lock()

    def __call__(self, prompt: str, system: str | None, image: Image.Image | None) -> Reply:
        future = Future()
        part = image and {"type": "image", "image": image}
        self._waiting.append((conversation(prompt, [part] if part else [], system), future))
        with self._turn:
            if not future.done():  # the first in a batch answers for all
                jobs = self._waiting[:]
                del self._waiting[: len(jobs)]
                self._answer(jobs)
        return future.result()

    def _answer(self, jobs: list[tuple[list, Future[Reply]]]) -> None:
        from r1ov.engine import generate

        try:
            asked = [messages for messages, _ in jobs]
            completions = generate(self.model, self.processor, asked, **self.limits)
        except Exception as error:
            if len(jobs) > 1:  # the fault of one question fails no other
                for job in jobs:
                    self._answer([job])
            elif isinstance(error, UserError):
                jobs[0][1].set_result(Reply("", str(error)))
            else:
                jobs[0][1].set_exception(error)
            return
        for (_, future), completion in zip(jobs, completions, strict=True):
            failure = None if completion.text.strip() else "the answer is empty"
            if completion.finish_reason == "length":
                failure = "cut off at its longest; raise --max-tokens"
            future.set_result(Reply(completion.text, failure))


def cast(config: Any) -> dict[str, Player]:
    """Returns the players by role, from the fields `describer`, `describer_model`, ... of the command line;
    the same model in two roles is loaded once.

    Raises: UserError.
    """

    @cache
    def engine(name: str) -> Engine:
        return Engine(name, config.device, max_new_tokens=config.max_tokens, temperature=config.temperature)

    return {role: _player(config, role, engine) for role in ROLES}


def _player(config: Any, role: str, engine: Callable[[str], Engine]) -> Player:
    spec, model, key_env = (getattr(config, role + end) for end in ("", "_model", "_key_env"))
    is_playground = config.data.partition(":")[0] == "playground"
    own = "rules" if role == "judge" else "playground" if is_playground else None  # what needs no model
    spec = spec or ("r1ov-tiny" if role == "reasoner" and own else own)
    if spec is None or (spec in NO_MODEL and spec != own):
        raise UserError(
            f"--{role} cannot be {spec or 'left out'} with --data {config.data[:80]}; give --{role} a URL "
            "or a model"
        )
    if not spec.lower().startswith(("http://", "https://")):
        if model or key_env:
            raise UserError(f"--{role}-model is for a URL, as is --{role}-key-env; --{role} is {spec}")
        if spec in NO_MODEL:
            return Player(NO_MODEL[spec])
        return Player(f"{spec}, in r1ov's engine", engine(spec))
    if not re.fullmatch(URL, spec):
        raise UserError(
            f"--{role} {shown(spec.partition('?')[0])}: not a URL as expected, such as "
            f"http://localhost:8000/v1; a key comes from --{role}-key-env NAME"
        )
    if not model:
        raise UserError(f"--{role} {spec} needs --{role}-model, the model's name there")
    # Never a key that was not meant for this host.
    known = (name for host, name in KEYS.items() if name in os.environ and re.match(host, f"{spec}/"))
    key_env = key_env or next(known, None)
    key = os.environ.get(key_env, "").strip() if key_env else None
    if key_env and not re.fullmatch("[!-~]+", key):  # printable ASCII
        raise UserError(f"--{role}-key-env: the environment variable {key_env} holds no key")
    remote = Remote(spec, model, key, config.timeout, config.max_tokens, config.temperature)
    told = f"{model} at {spec}, {f'key from ${key_env}' if key_env else 'no key'}"
    return Player(told, endpoint(remote, config.max_pixels))
