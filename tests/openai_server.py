"""A local server that speaks OpenAI's chat completions and misbehaves as it is told; it counts what it was
asked and what it answered.
"""

import gzip
import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Event(NamedTuple):
    """A request, by what it asks; `answered`: whether a whole, well-formed completion was sent to somebody: a
    refusal is one.
    """

    content: str
    begun: float  # time.monotonic()
    answered: bool
    key: str  # that came with it


ANSWERS = {"ok", "refusal", "refusal-field", "filtered", "empty", "length", "no-usage", "odd-usage"}
BODIES = {
    "malformed": b"<html>Bad gateway, but with status 200</html>",
    "no-choices": b'{"choices": [], "usage": {}}',
    "odd-shape": b'{"choices": [{"message": "hello"}], "usage": 3}',
    "list": b'[{"choices": 1}]',
    "number": b'{"choices": [{"message": {"content": 12}, "finish_reason": "stop"}]}',
    "deep": b"[" * 300_000,
    "not-utf8": b'{"choices": [{"message": {"content": "\xff\xfe"}}]}',
}


def content_of(body: dict) -> str:
    """What a request asks, in a few letters."""
    return hashlib.sha256(json.dumps(body["messages"], sort_keys=True).encode()).hexdigest()[:16]


def text_of(body: dict) -> str:
    """The user's words."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


class OpenAIServer(ThreadingHTTPServer):
    """Args: behave: from (body of the request, how often this content was asked before) to the name of a
    behaviour; "ok" answers.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        behave: Callable[[dict, int], str] = lambda body, before: "ok",
        reply: Callable[[dict], str] = lambda body: f"answer {content_of(body)}",
        latency: float = 0.0,
        usage: tuple[int, int] = (10, 5),
    ):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behave, self.reply, self.latency, self.usage = behave, reply, latency, usage
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.lock = threading.Lock()
        self.events: list[Event] = []
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.active = self.peak = 0
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def answered(self) -> Counter[str]:
        with self.lock:
            return Counter(event.content for event in self.events if event.answered)

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: OpenAIServer

    def do_POST(self) -> None:
        server, begun = self.server, time.monotonic()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = content_of(body)
        with server.lock:
            before = server.asked[content]
            server.asked[content] += 1
            server.bodies.append(body)
            server.paths.append(self.path)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.active += 1
            server.peak = max(server.peak, server.active)
        kind, answered = server.behave(body, before), False
        try:
            if server.latency:
                time.sleep(server.latency)
            if not self.is_alone():
                self.misbehave(kind, body)
                self.wfile.flush()
                answered = kind in ANSWERS
        finally:
            with server.lock:
                server.active -= 1
                key = self.headers.get("Authorization", "").removeprefix("Bearer ")
                server.events.append(Event(content, begun, answered, key))

    def is_alone(self) -> bool:
        """Whether the client has gone: what would be sent now is no answer."""
        try:
            return self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def misbehave(self, kind: str, body: dict) -> None:
        if kind in ANSWERS:
            return self.send(200, self.completion(kind, body))
        if kind in BODIES:
            return self.send(200, BODIES[kind])
        match kind.split():
            case ["429" | "503" as status, wait]:
                self.send(int(status), b'{"error": {"message": "slow down"}}', {"Retry-After": wait})
            case ["429-date"]:
                now = int(time.time())
                self.send(429, b"", {"Retry-After": formatdate(now + 30, usegmt=True)})
            case [status] if status.isdigit():
                self.send(
                    int(status),
                    json.dumps({"error": {"message": f"no: {self.headers.get('Authorization')}"}}).encode(),
                )
            case ["status", status, text]:
                self.send(int(status), json.dumps({"error": {"message": text, "code": text}}).encode())
            case ["redirect"]:
                self.send(307, b"", {"Location": "http://127.0.0.1:9/v1/chat/completions"})
            case ["hang", seconds]:
                self.server.closing.wait(float(seconds))
                self.close_connection = True
            case ["drop"]:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
            case ["drop-mid"]:
                whole = self.completion("ok", body)
                self.send(200, whole[: len(whole) // 2], {"Content-Length": str(len(whole))})
                self.close_connection = True
            case ["truncated"]:
                whole = self.completion("ok", body)
                self.send(200, whole[: len(whole) // 2])
            case ["huge"]:
                self.send(200, self.completion("ok", body, "x" * 10_000_000))
            case ["bomb"]:
                self.send(
                    200,
                    gzip.compress(self.completion("ok", body, "x" * 50_000_000), 1),
                    {"Content-Encoding": "gzip"},
                )
            case ["huge-error"]:
                self.send(500, b"x" * 10_000_000)
            case ["drip"]:
                self.send(200, b"", {"Content-Length": "10000000"})
                self.wfile.flush()
                while not self.server.closing.wait(0.02):
                    self.wfile.write(b" ")
                    self.wfile.flush()
            case _:
                raise AssertionError(f"no behaviour is called {kind}")
        return None

    def completion(self, kind: str, body: dict, text: str | None = None) -> bytes:
        message = {"role": "assistant", "content": text or self.server.reply(body)}
        prompt_tokens, completion_tokens = self.server.usage
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": sum(self.server.usage),
        }
        finish = "stop"
        match kind:
            case "refusal":
                message["content"] = (
                    f"I'm sorry, but I can't assist with that request: {self.server.reply(body)}"
                )
            case "refusal-field":
                message |= {"content": None, "refusal": "not this one"}
            case "filtered":
                finish = "content_filter"
            case "empty":
                message["content"] = " \n"
            case "length":
                finish = "length"
            case "odd-usage":
                usage = {"prompt_tokens": -3, "completion_tokens": "many"}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }
        if kind == "no-usage":
            del answer["usage"]
        return json.dumps(answer).encode()

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (
            {"Content-Length": str(len(body)), "Content-Type": "application/json"} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass
