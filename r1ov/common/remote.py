"""A model behind any endpoint that speaks OpenAI's chat completions, and the HTTP client under it.

The client is the one that huggingface_hub brings, without the hub's hooks: HF_HUB_OFFLINE=1 is about the hub
alone, and the machine's Hugging Face token goes nowhere else.
"""

import importlib
import json
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import Any

from r1ov.common.files import one_line
from r1ov.errors import UserError

MAX_ANSWER_BYTES = 2 << 20
AGAIN = (408, 409, 425, 429)  # and all from 500: the request was in order
NEVER = (401, 402, 404, 405)  # the key, the account, the model or the address: no answer can be had
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between attempts, doubled each time
PATIENCE = 600.0  # seconds; a server that asks for more is not waited for
REFUSAL = (
    r"(?i)(i['’]m |i am )(sorry|afraid|unable)\b.{0,40}\b(can|able|assist|comply|help)"
    r"|i (cannot|can['’]t|won['’]t) (help|assist|comply)"
)


class AskFailed(UserError):
    """No usable answer to this one question: refused, timed out, kept failing."""


class NoUse(UserError):
    """The endpoint will answer no request at all: a wrong key, no such model, no money left."""


class TryAgain(Exception):
    """Nothing came back this time. wait: seconds that the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Reply:
    text: str | None
    failure: str | None = None  # why the text is of no use, though the model answered
    tokens: int = 0  # in and out, as the endpoint counts them


@dataclass(repr=False)  # which would show the key
class Remote:
    """A model behind a URL. Threads may share it.

    Args:
        url: with or without its /v1 and /chat/completions.
        key: sent with each request and shown in no error or answer. None: "none" is sent.
        timeout: seconds for one request.
        max_tokens: of an answer.
    """

    url: str
    model: str
    key: str | None = None
    timeout: float = 120.0
    max_tokens: int = 2048
    temperature: float | None = None

    def __post_init__(self):
        self.name = f"{self.model} at {self.url}"
        self.options = {"model": self.model, "max_tokens": self.max_tokens}
        if self.temperature is not None:
            self.options["temperature"] = self.temperature
        if "/chat/completions" not in self.url:
            self.url = self.url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
        self._client = http().Client(timeout=self.timeout)

    def send(self, messages: Sequence[Mapping]) -> Reply:
        """Asks once; `retried` asks again.

        Raises: TryAgain; AskFailed for a request that this server will never answer; NoUse for a server that
            will answer none.
        """
        # Halves of surrogate pairs, which UTF-8 cannot hold, go as question marks.
        body = json.dumps({**self.options, "messages": messages}, ensure_ascii=False).encode(
            "utf-8", "replace"
        )
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key or 'none'}"}
        deadline = time.monotonic() + self.timeout
        try:
            with self._client.stream("POST", self.url, content=body, headers=headers) as response:
                answer = read_body(response, MAX_ANSWER_BYTES, deadline)
        except (TimeoutError, http().TimeoutException):
            raise TryAgain(f"no complete answer within {self.timeout:g} s") from None
        except (http().InvalidURL, http().UnsupportedProtocol, UnicodeError) as error:
            raise NoUse(f"{self.name}: {self._clean(error)}") from None
        except http().HTTPError as error:
            raise TryAgain(f"the connection failed ({self._clean(error)})") from None
        if response.status_code != 200:
            text = answer[:2000].decode("utf-8", "replace")
            raise self._problem(response.status_code, asked_to_wait(response.headers), text)
        if len(answer) > MAX_ANSWER_BYTES:
            return Reply(None, f"the answer is larger than {MAX_ANSWER_BYTES:,} bytes", self.max_tokens)
        try:
            return self._read(json.loads(answer))
        except (ValueError, AttributeError, TypeError, LookupError, RecursionError) as error:
            # What a server sends may be no JSON, or JSON of any other shape.
            raise TryAgain(f"the answer is malformed ({self._clean(error)[:200]})") from None

    def _read(self, answer: Any) -> Reply:
        """Raises whatever is raised by looking into odd shapes."""
        choice, tokens = answer["choices"][0], (answer.get("usage") or {}).get("total_tokens")
        text, refusal = choice["message"].get("content") or "", choice["message"].get("refusal")
        ending = choice.get("finish_reason")
        if self.key:
            text = text.replace(self.key, "***")
        failure = None
        if refusal or ending == "content_filter" or (len(text) < 400 and re.match(REFUSAL, text.strip())):
            failure = f"refused: {self._clean(refusal or text or 'content filter')[:200]}"
        elif ending == "length":
            failure = "cut off at its longest; raise --max-tokens"
        elif not text.strip():
            failure = "the answer is empty"
        # A server that does not count is taken to have used all that it was allowed.
        return Reply(text, failure, tokens if type(tokens) is int and tokens > 0 else self.max_tokens)

    def _problem(self, status: int, wait: float, body: str) -> Exception:
        """What a status other than 200 means."""
        told = self._clean(body)[:300]
        reason = f"the server answered {status}" + (f" ({told})" if told else "")
        if status == 400 and "max_completion_tokens" in body:
            # OpenAI's name of today, which other servers do not know. Other threads may have learned it too.
            rest = {name: value for name, value in self.options.items() if name != "max_tokens"}
            self.options = {**rest, "max_completion_tokens": self.max_tokens}
            return TryAgain(reason)
        if status in NEVER or 300 <= status < 400 or "insufficient_quota" in body:
            return NoUse(
                f"{self.name}: {reason}; check the address, the model's name, the key and the account"
            )
        if wait > PATIENCE:
            return NoUse(f"{self.name}: the server asks to wait for {wait / 60:.0f} minutes")
        return TryAgain(reason, wait) if status in AGAIN or status >= 500 else AskFailed(reason)

    def _clean(self, error: object) -> str:
        """On one line, and without the key, should the server have sent it back."""
        text = str(error) or type(error).__name__
        return one_line(text.replace(self.key, "***") if self.key else text)


def retried(
    attempt: Callable[[], Any],
    attempts: int,
    first_wait: float = FIRST_WAIT,
    sleep: Callable[[float], object] = time.sleep,
) -> Any:
    """Returns what `attempt` returns; after a TryAgain it sleeps and calls it again.

    Raises: AskFailed after that many attempts; whatever else `attempt` raises.
    """
    for number in range(attempts):
        try:
            return attempt()
        except TryAgain as error:
            reason, wait = str(error), error.wait
        if number + 1 < attempts:
            back_off = min(LONGEST_WAIT, first_wait * 2**number) * random.uniform(0.5, 1)
            # Those who were told the same time do not come back at the same instant.
            sleep(max(wait + random.uniform(0, first_wait) if wait else 0, back_off))
    raise AskFailed(f"{reason}, {attempts} times in all")


def http() -> ModuleType:
    """The HTTP library on which this huggingface_hub is built: httpx, or its successor."""
    from huggingface_hub.errors import HTTPError  # half a second, which runs without a network need not pay

    return importlib.import_module(HTTPError.__module__)


def read_body(response: Any, max_bytes: int, deadline: float) -> bytes:
    """The body of a streamed response; where it is longer than `max_bytes`, the first bytes of it, more than
    `max_bytes`.

    Raises: TimeoutError when time.monotonic() passes the deadline.
    """
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > max_bytes:
            break
        if time.monotonic() > deadline:
            raise TimeoutError
    return bytes(body)


def asked_to_wait(headers: Mapping[str, str]) -> float:
    """Seconds that a server's Retry-After asks to wait, be it a number or a date; else 0."""
    asked = headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", asked):
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return 0.0
