"""r1ov.common.fetch against a local server that behaves well, badly, and worse."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from r1ov.common.fetch import fetch
from r1ov.errors import UserError


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        match self.path.split("?")[0]:
            case "/good":
                self.answer(b"x" * 1000)
            case "/%E5%9B%BE":
                self.answer(b"escaped")
            case "/hop":
                self.send_response(302)
                self.send_header("Location", "/good")
                self.end_headers()
            case "/loop" | "/to-file" | "/to-ftp" | "/to-data" as path:
                targets = {
                    "/to-file": "file:///etc/hostname",
                    "/to-ftp": "ftp://127.0.0.1/x",
                    "/to-data": "data:,x",
                }
                self.send_response(302)
                self.send_header("Location", targets.get(path, f"/loop?{time.monotonic_ns()}"))
                self.end_headers()
            case "/empty":
                self.answer(b"")
            case "/short":
                self.answer(b"x" * 10, length=1000)
            case "/endless":
                self.send_response(200)
                self.end_headers()
                self.drip(b"x" * 65536, seconds=0)
            case "/drip":
                self.send_response(200)
                self.end_headers()
                self.drip(b"x", seconds=0.05)
            case "/garbage":
                self.wfile.write(b"\0\1\2 no http at all\r\n\r\n")
            case "/silent":
                time.sleep(3)
            case _:
                self.send_error(404)

    def answer(self, body: bytes, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def drip(self, piece: bytes, seconds: float) -> None:
        try:
            for _ in range(60):
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(seconds)
        except OSError:
            return  # the client has gone, as it should

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_the_bytes_behind_a_url_come_back_also_after_a_redirect(server: str) -> None:
    assert fetch(f"{server}/good") == fetch(f"{server}/hop") == b"x" * 1000


def test_letters_outside_ascii_are_escaped_and_what_is_escaped_stays(server: str) -> None:
    assert fetch(f"{server}/图") == fetch(f"{server}/%E5%9B%BE") == b"escaped"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/missing", "404"),
        ("/loop", "redirects"),
        ("/to-file", "unsupported protocol"),
        ("/to-ftp", "ftp"),
        ("/to-data", "data"),
        ("/empty", "empty"),
        ("/short", "received 10 bytes, expected 1000"),
        ("/endless", "limit"),
        ("/drip", "within 1 s"),
        ("/silent", "within 1 s"),
        ("/garbage", "fetched"),
    ],
)
def test_what_goes_wrong_is_told_in_one_line_that_names_the_url_and_in_time(
    server: str, path: str, reason: str
) -> None:
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        fetch(f"{server}{path}", timeout_seconds=1, max_bytes=1_000_000)
    assert str(caught.value).startswith(f"{server}{path}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 2.5  # the limit of one second, and room for a busy machine


@pytest.mark.parametrize(
    "url",
    ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x", "/etc/hostname", "http://", "http://[", "http://127.0.0.1:99999/x",
     "http://127.0.0.1:1/refused", "http://no-such-host.invalid/x.png", "http://a b/x", "http://x/\n",
     "http://" + "a" * 3000],
)  # fmt: skip
def test_a_url_that_leads_nowhere_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(UserError) as caught:
        fetch(url, timeout_seconds=3)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
