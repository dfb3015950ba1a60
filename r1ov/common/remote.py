"""A model behind any endpoint that speaks OpenAI's chat completions, and the HTTP client under it.

The client is the one that huggingface_hub brings, without the hub's hooks: HF_HUB_OFFLINE=1 is about the hub
alone, and the machine's Hugging Face token goes nowhere else.
"""

import importlib
import json
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

from r1ov.common.files import one_line
from r1ov.errors import UserError

T = TypeVar("T")
MAX_ANSWER_BYTES = 2 << 20
AGAIN = (408, 409, 425, 429)  # and all from 500: the request was in order
NEVER = (401, 402, 404, 405)  # the key, the account, the model or the address: no answer can be had
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between attempts, doubled each time
PATIENCE = 600.0  # seconds; a server that asks for more is not waited for
REFUSAL = re.compile(
    r"(i['’]m |i am )(sorry|afraid|unable)\b.{0,40}\b(can|able|assist|comply|help)"
    r"|i (cannot|can['’]t|won['’]t) (help|assist|comply)",
    re.I,
)


class AskFailed(UserError):
    """No usable answer to this one question: refused, timed out, kept failing."""


class NoUse(UserError):
    """The endpoint will answer no request at all: a wrong key, no such model, no money left."""


class TryAgain(Exception):
    """Nothing came back this time.

    wait: seconds that the server asks for. is_billed: it may have worked on the answer and charge for it.
    """

    def __init__(self, reason: str, wait: float = 0.0, is_billed: bool = False):
        super().__init__(reason)
        self.wait, self.is_billed = wait, is_billed


@dataclass(frozen=True)
class Reply:
    text: str | None
    failure: str | None = None  # why the text is of no use, though the model answered
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Remote:
    """A model behind a URL. Threads may share it.

    Args:
        url: with or without its /v1 and /chat/completions.
        key: sent with each request and shown in no error or answer. None: "none" is sent.
        timeout: seconds for one request, all of it.
        max_tokens: of an answer.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        timeout: float = 120.0,
        max_tokens: int = 2048,
        temperature: float | None = None,
    ):
        self.name, self.key, self.timeout, self.max_tokens = f"{model} at {url}", key, timeout, max_tokens
        self.ready_at = 0.0  # by time.monotonic(): the server asked for no request before
        self.options: dict[str, Any] = {"model": model, "max_tokens": max_tokens}
        if temperature is not None:
            self.options["temperature"] = temperature
        address, mark, query = url.partition("?")
        address = address.rstrip("/")
        if not address.endswith("/chat/completions"):
            address = address.removesuffix("/v1") + "/v1/chat/completions"
        self._url = address + mark + query
        self._client = http().Client(timeout=timeout)

    def send(self, messages: Sequence[Mapping[str, Any]], prompt_tokens: int = 0) -> Reply:
        """Asks once; `retried` asks again.

        Args: prompt_tokens: a guess, for servers that do not tell.
        Raises: TryAgain; AskFailed for a request that this server will never answer; NoUse for a server that
            will answer none.
        """
        try:
            return within(self.timeout + 1, partial(self._send, messages, prompt_tokens))
        except TimeoutError:
            raise TryAgain(f"no complete answer within {self.timeout:g} s", is_billed=True) from None

    def _send(self, messages: Sequence[Mapping[str, Any]], prompt_tokens: int) -> Reply:
        """Raises: TimeoutError; otherwise as `send`."""
        deadline, status, wait = time.monotonic() + self.timeout, 0, 0.0
        # Halves of surrogate pairs, which UTF-8 cannot hold, go as question marks.
        body = json.dumps({**self.options, "messages": messages}, ensure_ascii=False).encode(
            "utf-8", "replace"
        )
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key or 'none'}"}
        try:
            with self._client.stream("POST", self._url, content=body, headers=headers) as response:
                status, wait = response.status_code, asked_to_wait(response.headers)
                if wait > 0:
                    self.ready_at = max(self.ready_at, time.monotonic() + wait)
                answer = read_body(response, MAX_ANSWER_BYTES, deadline)
        except (http().InvalidURL, http().UnsupportedProtocol, UnicodeError) as error:
            raise NoUse(f"{self.name}: {self._clean(error)}") from None
        except (http().ReadTimeout, http().WriteTimeout):
            raise TimeoutError from None
        except http().HTTPError as error:
            raise TryAgain(f"the connection failed ({self._clean(error)})", is_billed=status > 0) from None
        if status != 200:
            raise self._problem(status, wait, answer[:2000].decode("utf-8", "replace"))
        if len(answer) > MAX_ANSWER_BYTES:
            failure = f"the answer is larger than {MAX_ANSWER_BYTES:,} bytes"
            return Reply(None, failure, prompt_tokens, self.max_tokens)
        try:
            return self._read(json.loads(answer), prompt_tokens)
        except (ValueError, AttributeError, TypeError, LookupError, RecursionError) as error:
            # What a server sends may be no JSON, or JSON of any other shape.
            raise TryAgain(f"the answer is malformed ({self._clean(error)[:200]})", is_billed=True) from None

    def _read(self, answer: Any, prompt_tokens: int) -> Reply:
        """Raises whatever is raised by looking into odd shapes."""
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
        if text is not None and not isinstance(text, str):
            raise ValueError(f"the content is a {type(text).__name__}")
        prompt_tokens = _count(usage.get("prompt_tokens"), prompt_tokens)
        completion_tokens = _count(usage.get("completion_tokens"), len(text or "") // 3 + 1)
        is_refusal = text and len(text) < 400 and REFUSAL.match(text.strip())
        failure = None
        if refusal or is_refusal or choice.get("finish_reason") == "content_filter":
            failure = f"refused: {self._clean(refusal or text or 'content filter')[:200]}"
        elif choice.get("finish_reason") == "length":
            failure = f"cut off after {completion_tokens} tokens; raise --max-tokens"
        elif not text or not text.strip():
            failure = "the answer is empty"
        text = text.replace(self.key, "***") if text and self.key else text
        return Reply(text, failure, prompt_tokens, completion_tokens)

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
        if status in AGAIN or status >= 500:
            return TryAgain(reason, wait)
        return AskFailed(reason)

    def _clean(self, error: object) -> str:
        """On one line, and without the key, should the server have sent it back."""
        text = str(error) or type(error).__name__
        return one_line(text.replace(self.key, "***") if self.key else text)


def nap(seconds: float) -> None:
    """Sleeps. Raises: AskFailed if that is too long."""
    if seconds > PATIENCE:
        raise AskFailed(f"the server asks to wait for {seconds / 60:.0f} minutes")
    time.sleep(seconds)


def retried(
    attempt: Callable[[], T],
    attempts: int,
    first_wait: float = FIRST_WAIT,
    sleep: Callable[[float], object] = nap,
) -> T:
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


def within(seconds: float, work: Callable[[], T]) -> T:
    """Returns what `work` returns, or raises TimeoutError.

    An HTTP client's timeouts count from the last byte, so a server that drips would hold us for ever; a
    daemon thread can be left behind.
    """
    outcome: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:  # handed to the caller's thread
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def asked_to_wait(headers: Mapping[str, str]) -> float:
    """Seconds that a server's headers ask to wait, else 0: Retry-After in its two forms, and rate limits with
    nothing remaining.
    """
    headers = {name.lower(): value.strip() for name, value in headers.items()}
    waits = [_number(headers.get("retry-after-ms", "")) / 1000, _number(headers.get("retry-after", ""))]
    if headers.get("retry-after", "")[:1].isalpha():
        try:  # by the server's own clock where it tells
            now = parsedate_to_datetime(headers["date"]).timestamp() if "date" in headers else time.time()
            waits.append(parsedate_to_datetime(headers["retry-after"]).timestamp() - now)
        except ValueError:
            pass
    for name, value in headers.items():
        if re.fullmatch(r"(x-)?ratelimit-remaining(-\w+)?", name) and value == "0":
            waits.append(_duration(headers.get(name.replace("remaining", "reset"), "")))
    # The IETF's draft: "api";r=0;t=55
    if match := re.search(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d{1,9})", headers.get("ratelimit", "")):
        waits.append(float(match[1]))
    return max(waits)


def _duration(text: str) -> float:
    """Seconds. Example: "6m0s" -> 360, "20ms" -> 0.02, "55" -> 55, "1790000000" -> until then."""
    if re.fullmatch(r"(\d+(\.\d+)?(ms|h|m|s))+", text):
        units = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
        return sum(
            float(amount) * units[unit] for amount, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", text)
        )
    seconds = _number(text)
    return max(0.0, seconds - time.time()) if seconds > 1e9 else seconds


def _number(text: str) -> float:
    return float(text) if re.fullmatch(r"\d{1,15}(\.\d{1,9})?", text) else 0.0


def _count(value: object, guess: int) -> int:
    """A number of tokens as a server tells it, if it can be one."""
    return value if type(value) is int and 0 <= value < 10**8 else guess
