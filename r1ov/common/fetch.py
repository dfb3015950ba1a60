"""A picture from the web: the bytes behind an http(s) URL, within limits of time and size."""

import time

from r1ov.common.files import one_line, shown
from r1ov.common.remote import http, read_body
from r1ov.errors import UserError

HEADERS = {"User-Agent": "r1ov", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}


def fetch(url: str, timeout_seconds: float = 20, max_bytes: int = 32 * 1024 * 1024) -> bytes:
    """Returns the bytes behind an http(s) URL; redirects are followed.

    Args:    timeout_seconds: for the body, and for each step on the way to it.
    Raises:  UserError, one line that names the URL, for whatever goes wrong.
    """
    name, deadline = shown(url), time.monotonic() + timeout_seconds
    try:
        with (
            http().Client(timeout=timeout_seconds, headers=HEADERS, max_redirects=5) as client,
            client.stream("GET", url, follow_redirects=True) as response,
        ):
            body = read_body(response, max_bytes, deadline)
    except (http().TimeoutException, TimeoutError):
        raise UserError(
            f"{name}: no complete answer within {timeout_seconds:g} s; try again, or save the picture "
            "and give its path"
        ) from None
    except (http().HTTPError, http().InvalidURL, UnicodeError) as error:
        reason = one_line(str(error))[:200] or type(error).__name__
        raise UserError(f"{name}: cannot be fetched ({reason}); check the address and the network") from None
    if response.status_code != 200:
        raise UserError(f"{name}: the server answered {response.status_code}; check the address")
    if len(body) > max_bytes:
        raise UserError(f"{name}: the file has more bytes than the limit of {max_bytes:,}")
    if not body:
        raise UserError(f"{name}: the answer is empty")
    return body
