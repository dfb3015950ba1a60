"""One request to an OpenAI-compatible endpoint, through huggingface_hub: what came back, what it cost,
whether to try again.
"""

import base64
import io
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar

from huggingface_hub import InferenceClient, get_session
from huggingface_hub.errors import HTTPError, InferenceTimeoutError, OfflineModeIsEnabled
from PIL import Image

from r1ov.common.text import one_line
from r1ov.errors import UserError
from r1ov.formalize.row import AskFailed

MAX_ANSWER_BYTES = 2 << 20
MAX_PICTURE_BYTES = 4 << 20  # larger PNGs go as JPEG
AGAIN = (408, 409, 425, 429)  # and all from 500: the request was in order
NEVER = (401, 402, 404, 405)  # the key, the account, the model or the address: no row can be had
REFUSAL = re.compile(
    r"(i['’]m |i am )(sorry|afraid|unable)\b.{0,40}\b(can|able|assist|comply|help)|i (cannot|can['’]t|won['’]t) (help|assist|comply)",
    re.I,
)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Question:
    prompt: str
    system: str | None = None
    image: Image.Image | None = None


@dataclass(frozen=True)
class Reply:
    text: str | None
    failure: str | None = None  # why there is no usable text, though the model answered
    prompt_tokens: int = 0
    completion_tokens: int = 0


class TryAgain(Exception):
    """Nothing came back this time.

    wait: seconds that the server asks for. is_billed: it may have worked on the answer all the same, and
        charge for it.
    """

    def __init__(self, reason: str, wait: float = 0.0, is_billed: bool = False):
        super().__init__(reason)
        self.wait, self.is_billed = wait, is_billed


class NoUse(UserError):
    """The endpoint will answer no request at all: a wrong key, no such model, no money left."""


@dataclass
class _Call:
    """What the thread that makes a request, and the hook that sees its response, tell each other."""

    deadline: float
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class _TooLong(Exception):
    pass


class _Status(Exception):
    """A response that is no answer; the text is the beginning of its body."""


class Endpoint:
    """A model behind a URL. Several threads may use it.

    Args:
        key: sent with each request, and nowhere else: no error shows it. None: none is sent, not the one that
            `hf auth login` saved either.
        timeout: seconds for one request, all of it.
        max_tokens: of an answer.
        max_pixels: larger pictures are scaled down to this.
        price: (in, out) money for a million tokens.
    """

    is_metered = True

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        timeout: float = 120.0,
        max_tokens: int = 2048,
        temperature: float | None = None,
        max_pixels: int = 2_000_000,
        price: tuple[float, float] = (0.0, 0.0),
    ):
        self.timeout, self.max_tokens, self.max_pixels, self.price = timeout, max_tokens, max_pixels, price
        self.identity = {
            "url": url,
            "model": model,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "max_pixels": max_pixels,
        }
        self.name = f"{model} at {url}"
        self.ready_at = 0.0  # by time.monotonic(): the server asked for no request before
        self._key = key
        self._sampling: dict[str, Any] = {
            "model": model,
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        self._client = InferenceClient(base_url=url, api_key=key or "none", timeout=timeout)

    def estimate(self, question: Question) -> tuple[int, int]:
        """The most tokens that this should take, (prompt, completion): for the budget, before the server
        tells.
        """
        letters = len(question.prompt) + len(question.system or "")
        pixels = min(self.max_pixels, question.image.width * question.image.height) if question.image else 0
        return 32 + letters // 3 + pixels // 28**2, self.max_tokens

    def attempt(self, question: Question) -> Reply:
        """Asks once.

        Raises: TryAgain; AskFailed for a request that this server will never answer; NoUse for a server that
            will answer none.
        """
        messages = self._messages(question)
        call = _Call(time.monotonic() + self.timeout)
        try:
            output = _within(self.timeout + 1, partial(self._send, messages, call))
            reply = self._read(output, self.estimate(question)[0])
        except _Status as body:
            raise self._sorted(call, str(body)) from None
        except _TooLong:
            prompt_tokens, completion_tokens = self.estimate(question)
            return Reply(
                text=None,
                failure=f"the answer is larger than {MAX_ANSWER_BYTES:,} bytes",
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
            )
        except OfflineModeIsEnabled as error:
            raise NoUse(f"{self.name}: {self._clean(error)}") from None
        except (HTTPError, TimeoutError) as error:
            kind = type(error.__cause__ if isinstance(error, InferenceTimeoutError) else error).__name__
            if "Timeout" in kind:
                is_billed = kind not in ("ConnectTimeout", "PoolTimeout")
                raise TryAgain(f"no complete answer within {self.timeout:g} s", is_billed=is_billed) from None
            raise TryAgain(
                f"the connection failed ({self._clean(error) or kind})", is_billed=call.status is not None
            ) from None
        # What a server sends may be no JSON, or JSON of any other shape, which huggingface_hub does not look
        # into.
        except (ValueError, AttributeError, TypeError, LookupError, RecursionError) as error:
            raise TryAgain(f"the answer is malformed ({self._clean(error)[:200]})", is_billed=True) from None
        finally:
            if (wait := asked_to_wait(call.headers)) > 0:
                self.ready_at = max(self.ready_at, time.monotonic() + wait)
        return reply

    def _messages(self, question: Question) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = [{"type": "text", "text": _sendable(question.prompt)}]
        if question.image is not None:
            content.insert(
                0, {"type": "image_url", "image_url": {"url": data_url(question.image, self.max_pixels)}}
            )
        system = [{"role": "system", "content": _sendable(question.system)}] if question.system else []
        # Servers of text models often know texts alone.
        return [
            *system,
            {"role": "user", "content": content if question.image is not None else content[0]["text"]},
        ]

    def _send(self, messages: list[dict[str, Any]], call: _Call) -> Any:
        _here.call = call
        hooks = get_session().event_hooks["response"]
        if _watch not in hooks:
            hooks.append(_watch)
        return self._client.chat_completion(messages, **self._sampling)

    def _read(self, output: Any, prompt_tokens: int) -> Reply:
        """Args: prompt_tokens: a guess, for servers that do not tell. Raises: whatever is raised by looking
        into odd shapes.
        """
        choice, usage = output.choices[0], output.usage
        text, refusal = choice.message.content, choice.message.get("refusal")
        if text is not None and not isinstance(text, str):
            raise ValueError(f"the content is a {type(text).__name__}")
        prompt_tokens = _count(getattr(usage, "prompt_tokens", None), prompt_tokens)
        completion_tokens = _count(getattr(usage, "completion_tokens", None), len(text or "") // 3 + 1)
        failure = None
        if (
            refusal
            or choice.finish_reason == "content_filter"
            or (text and len(text) < 400 and REFUSAL.match(text.strip()))
        ):
            failure = f"refused: {self._clean(refusal or text or 'content filter')[:200]}"
        elif choice.finish_reason == "length":
            failure = f"cut off after {completion_tokens} tokens; raise --max-tokens"
        elif not text or not text.strip():
            failure = "the answer is empty"
        text = text.replace(self._key, "***") if text and self._key else text
        return Reply(
            text=text, failure=failure, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
        )

    def _sorted(self, call: _Call, body: str) -> Exception:
        """What a status other than 200 means."""
        status, told = call.status or 0, self._clean(body)[:300]
        reason = f"the server answered {status}" + (f" ({told})" if told else "")
        if (
            status == 400 and "max_completion_tokens" in body
        ):  # OpenAI's name of today, which other servers do not know
            rest = {name: value for name, value in self._sampling.items() if name != "max_tokens"}
            self._sampling = rest | {"extra_body": {"max_completion_tokens": self.max_tokens}}
            return TryAgain(reason)
        if status in NEVER or 300 <= status < 400 or "insufficient_quota" in body:
            return NoUse(
                f"{self.name}: {reason}; check the address, the model's name, the key and the account"
            )
        if status in AGAIN or status >= 500:
            return TryAgain(reason, asked_to_wait(call.headers))
        return AskFailed(reason)

    def _clean(self, error: object) -> str:
        """On one line, and without the key, should the server have sent it back."""
        text = str(error)
        return one_line(text.replace(self._key, "***") if self._key else text)


_here = threading.local()  # .call: the _Call of this thread


def _watch(response: Any) -> None:
    """A response hook of huggingface_hub's session: its own client reads answers of any length, for any time,
    before it gives them.
    """
    call: _Call | None = getattr(_here, "call", None)
    if call is None:  # a download of huggingface_hub's own
        return
    call.status, call.headers = response.status_code, response.headers
    response.iter_bytes = partial(_limited, response.iter_bytes, call)
    if response.status_code != 200:
        try:
            raise _Status(response.read()[:2000].decode("utf-8", "replace"))
        except _TooLong:
            raise _Status("") from None


def _limited(chunks: Callable[[], Iterator[bytes]], call: _Call) -> Iterator[bytes]:
    size = 0
    for chunk in chunks():
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise _TooLong
        if time.monotonic() > call.deadline:
            raise TimeoutError
        yield chunk


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Its result, or TimeoutError: a client's time-outs count from the last byte, so a server that drips
    would hold us for ever.
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


def data_url(image: Image.Image, max_pixels: int) -> str:
    """An RGB picture as a data URL: scaled down to `max_pixels`, PNG, or JPEG where that would be large."""
    if image.width * image.height > max_pixels:
        shrink = math.sqrt(max_pixels / (image.width * image.height))
        image = image.resize(
            (max(1, int(image.width * shrink)), max(1, int(image.height * shrink))), Image.Resampling.LANCZOS
        )
    file = io.BytesIO()
    image.save(file, "PNG")
    kind = "png"
    if file.tell() > MAX_PICTURE_BYTES:
        file, kind = io.BytesIO(), "jpeg"
        image.save(file, "JPEG", quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def asked_to_wait(headers: Mapping[str, str]) -> float:
    """Seconds that a server's headers ask to wait; 0 for none: Retry-After in its two forms, and rate limits
    with nothing remaining.
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


def _sendable(text: str) -> str:
    """Halves of surrogate pairs, which UTF-8 cannot hold, as question marks."""
    return text.encode("utf-8", "replace").decode()
