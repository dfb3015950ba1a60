"""A picture from the web: the bytes behind an http(s) URL, within limits of time and size."""

import string
import time
from urllib.parse import quote, urljoin

from r1ov.common.files import one_line, shown
from r1ov.common.remote import http, read_body, within
from r1ov.errors import UserError

MAX_REDIRECTS = 5
HEADERS = {"User-Agent": "r1ov", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}


def fetch(url: str, timeout_seconds: float = 20, max_bytes: int = 32 * 1024 * 1024) -> bytes:
    """Returns the bytes behind an http(s) URL.

    Args:    timeout_seconds: for everything together: name look-up, redirects (at most 5), headers and body.
    Raises:  UserError, one line that names the URL, for whatever goes wrong.
    """
    name, deadline = shown(url), time.monotonic() + timeout_seconds
    try:
        return within(timeout_seconds, lambda: _get(url, deadline, max_bytes))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except (http().TimeoutException, TimeoutError):
        raise UserError(
            f"{name}: no complete answer within {timeout_seconds:g} s; try again, or save the picture "
            "and give its path"
        ) from None
    except (http().HTTPError, http().InvalidURL, UnicodeError) as error:
        reason = one_line(str(error))[:200] or type(error).__name__
        raise UserError(f"{name}: cannot be fetched ({reason}); check the address and the network") from None


def _get(url: str, deadline: float, max_bytes: int) -> bytes:
    """Raises: UserError without the URL; what the HTTP library and `read_body` raise."""
    with http().Client(timeout=max(0.0, deadline - time.monotonic()), headers=HEADERS) as client:
        for _ in range(MAX_REDIRECTS + 1):
            if not url.lower().startswith(("http://", "https://")):
                raise UserError(f"{url[:20]} is not allowed; only http:// and https:// URLs are fetched")
            # A URL copied from a browser may hold letters outside ASCII; what is escaped already stays so.
            with client.stream("GET", quote(url, safe=string.punctuation)) as response:
                status = response.status_code
                if response.has_redirect_location:
                    url = urljoin(url, response.headers["Location"])
                    continue
                if status != 200:
                    raise UserError(
                        f"the server answered {status} {response.reason_phrase[:200]}; check the address"
                    )
                expected = int(response.headers.get("Content-Length", -1))
                if expected > max_bytes:
                    raise UserError(f"the file has {expected:,} bytes, more than the limit of {max_bytes:,}")
                try:
                    body = read_body(response, max_bytes, deadline)
                except http().RemoteProtocolError as error:
                    read = f"{response.num_bytes_downloaded:,}" + f" of {expected:,}" * (expected >= 0)
                    raise UserError(f"the connection ended after {read} bytes; try again") from error
            if len(body) > max_bytes:
                raise UserError(f"the file has more bytes than the limit of {max_bytes:,}")
            if not body:
                raise UserError("the answer is empty")
            return body
    raise UserError(f"the server answered {status} more than {MAX_REDIRECTS} times; check the address")
