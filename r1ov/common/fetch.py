"""A picture from the web: the bytes behind an http(s) URL, within limits of time and size."""

import re
import string
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException, HTTPResponse

from r1ov.errors import UserError

MAX_REDIRECTS = 5
CHUNK_BYTES = 64 * 1024


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS
    max_repeats = MAX_REDIRECTS


def _opener() -> urllib.request.OpenerDirector:
    """Knows http and https and nothing else, so that no redirect leads to file:, ftp: or data:."""
    opener = urllib.request.OpenerDirector()
    handlers = (
        urllib.request.ProxyHandler,  # the usual *_proxy variables are honoured
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirects,
    )
    for handler in handlers:
        opener.add_handler(handler())
    opener.addheaders = [("User-Agent", "r1ov"), ("Accept", "image/*,*/*;q=0.5")]
    return opener


def _read(response: HTTPResponse, deadline: float, max_bytes: int) -> bytes:
    """The whole body, or a UserError without the URL."""
    declared = response.headers.get("Content-Length", "")
    expected = int(declared) if declared.isdecimal() else None
    if expected is not None and expected > max_bytes:
        raise UserError(f"the file has {expected:,} bytes, more than the limit of {max_bytes:,}")
    body = bytearray()
    while chunk := response.read1(CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            raise UserError(f"the file has more bytes than the limit of {max_bytes:,}")
        if time.monotonic() > deadline:
            raise TimeoutError
    if expected is not None and len(body) < expected:
        raise UserError(f"the connection ended after {len(body):,} of {expected:,} bytes; try again")
    if not body:
        raise UserError("the answer is empty")
    return bytes(body)


def shown(address: str) -> str:
    """A URL or path as errors show it: on one line, not too long, without a password."""
    address = re.sub(r"(?<=://)[^/@]*@", "", address)
    address = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in address)
    return address if len(address) <= 200 else address[:197] + "..."


def fetch(url: str, timeout_seconds: float = 20, max_bytes: int = 32 * 1024 * 1024) -> bytes:
    """The bytes behind an http(s) URL.

    Args:    timeout_seconds: for everything together: name look-up, redirects (at most 5), headers and body.
    Raises:  UserError, one line that names the URL, for whatever goes wrong.
    """
    name = shown(url)
    if not url.lower().startswith(("http://", "https://")):
        raise UserError(f"{name}: only http:// and https:// URLs are fetched")
    # A URL copied from a browser may hold letters outside ASCII; what is already escaped stays as it is.
    quoted = urllib.parse.quote(url, safe=string.punctuation)
    deadline = time.monotonic() + timeout_seconds
    outcome: list[bytes | Exception] = []

    def work() -> None:
        try:
            with _opener().open(quoted, timeout=timeout_seconds) as response:
                outcome.append(_read(response, deadline, max_bytes))
        except Exception as error:  # handed to the caller's thread, which sorts it
            outcome.append(error)

    # A socket's own timeout counts from its last byte, so a server that drips would hold us for ever; a
    # daemon thread can be left behind.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    result = outcome[0] if outcome else TimeoutError()
    match result:
        case bytes():
            return result
        case UserError():
            raise UserError(f"{name}: {result}")
        case urllib.error.HTTPError():
            reason = " ".join(str(result.reason).split())[:200]
            raise UserError(f"{name}: the server answered {result.code} {reason}; check the address")
        case TimeoutError() | urllib.error.URLError(reason=TimeoutError()):
            raise UserError(
                f"{name}: no complete answer within {timeout_seconds:g} s; try again, or save the picture and give its path"
            )
        case OSError() | HTTPException() | ValueError():
            cause = getattr(result, "reason", result)
            reason = " ".join(str(getattr(cause, "strerror", None) or cause).split()) or type(result).__name__
            raise UserError(f"{name}: cannot be fetched ({reason}); check the address and the network")
        case _:
            raise result
