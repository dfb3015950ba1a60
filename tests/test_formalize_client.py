"""One request at a time, against a server that does what a test says: what is read, what is tried again, what
is told.
"""

import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from r1ov.common.remote import AskFailed, NoUse, Remote, TryAgain, asked_to_wait, retried
from r1ov.formalize.models import Model, data_url, endpoint
from tests.openai_server import OpenAIServer

KEY = "sk-never-to-be-seen"


def model(server: OpenAIServer, **more) -> Model:
    return endpoint(Remote(server.url, "some-model", **({"key": KEY} | more)), 2_000_000)


def attempt(kind: str, **more):
    """(what came of one request, the server)."""
    with OpenAIServer(lambda body, before: kind) as server:
        timeout = 0.4 if kind.startswith(("hang", "drip")) else 20.0
        try:
            return model(server, timeout=timeout, **more)("How many? \udc80", "Count."), server
        except (TryAgain, AskFailed, NoUse) as error:
            return error, server


def test_a_request_is_what_the_protocol_says_and_its_answer_comes_back():
    image = Image.new("RGB", (30, 20), "red")
    with OpenAIServer(usage=(123, 45)) as server:
        reply = model(server, max_tokens=77, temperature=0.5)("How many?", "Count.", image)
    (body,), (headers,) = server.bodies, server.headers
    assert reply.text.startswith("answer ")
    assert (reply.failure, reply.tokens) == (None, 123 + 45)
    assert headers["authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("some-model", 77, 0.5)
    assert body["messages"][0] == {"role": "system", "content": "Count."}
    picture, text = body["messages"][1]["content"]
    assert text == {"type": "text", "text": "How many?"}
    sent = Image.open(
        io.BytesIO(base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,")))
    )
    assert sent.tobytes() == image.tobytes()


def test_without_a_key_none_is_sent_not_even_the_one_saved_on_this_machine(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_saved")
    with OpenAIServer() as server:
        model(server, key=None)("Hi")
    assert "hf_saved" not in str(server.headers)


AGAIN = {
    "429 7": "answered 429",
    "500": "answered 500",
    "503 1": "answered 503",
    "hang 5": "within 0.4 s",
    "drip": "within 0.4 s",
    "drop": "connection failed",
    "drop-mid": "connection failed",
    "truncated": "malformed",
    "malformed": "malformed",
    "no-choices": "malformed",
    "odd-shape": "malformed",
    "list": "malformed",
    "number": "malformed",
    "deep": "malformed",
    "not-utf8": "malformed",
    "huge-error": "answered 500",
}


@pytest.mark.parametrize("kind", AGAIN)
def test_what_may_be_better_next_time_is_tried_again(kind):
    begun = time.monotonic()
    error, _ = attempt(kind)
    assert isinstance(error, TryAgain)
    assert AGAIN[kind] in str(error)
    # The request's own limit, whatever the server drips.
    assert time.monotonic() - begun < 9


def test_a_server_that_drips_is_hung_up_on():
    with OpenAIServer(lambda body, before: "drip") as server:
        with pytest.raises(TryAgain):
            model(server, timeout=0.3)("Hi")
        deadline = time.monotonic() + 9
        while server.active and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.active == 0


@pytest.mark.parametrize("kind", ["refusal", "refusal-field", "filtered", "empty", "length", "huge"])
def test_an_answer_of_no_use_says_why_and_is_paid_for(kind):
    reply, _ = attempt(kind)
    words = {
        "refusal": "refused",
        "refusal-field": "refused: not this one",
        "filtered": "refused",
        "empty": "empty",
        "length": "cut off",
    }
    assert words.get(kind, "larger than") in reply.failure
    assert reply.tokens == (2048 if kind == "huge" else 15)


def test_a_small_body_that_unpacks_to_a_large_one_is_cut_off():
    with OpenAIServer(lambda body, before: "bomb") as server:
        assert "larger than" in model(server, timeout=10)("Hi").failure


@pytest.mark.parametrize("kind", ["no-usage", "odd-usage"])
def test_a_server_that_counts_no_tokens_is_taken_to_have_used_all_that_it_was_allowed(kind):
    reply, _ = attempt(kind, max_tokens=77)
    assert reply.text.startswith("answer")
    assert reply.tokens == 77


@pytest.mark.parametrize("kind", ["401", "402", "404", "redirect", "status 429 insufficient_quota"])
def test_a_server_that_will_answer_nothing_at_all_ends_the_run(kind):
    error, server = attempt(kind)
    assert isinstance(error, NoUse)
    assert "some-model at http://127.0.0.1" in str(error)
    assert len(server.bodies) == 1


@pytest.mark.parametrize("kind", ["400", "403", "413", "422"])
def test_a_request_that_the_server_objects_to_is_not_sent_again(kind):
    error, _ = attempt(kind)
    assert type(error) is AskFailed
    assert kind in str(error)


@pytest.mark.parametrize("kind", ["400", "401", "500"])
def test_no_error_shows_the_key_though_the_server_sends_it_back(kind):
    error, _ = attempt(kind)
    assert "Bearer ***" in str(error)
    assert KEY not in str(error)


def test_an_answer_that_holds_the_key_is_kept_without_it():
    with OpenAIServer(reply=lambda body: f"your key is {KEY}") as server:
        assert model(server)("Hi").text == "your key is ***"


def test_offline_mode_is_about_the_hub_alone(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    reply, server = attempt("ok")
    assert reply.text.startswith("answer ")
    assert len(server.bodies) == 1


def test_openais_newer_name_for_the_longest_answer_is_learned():
    def behave(body: dict, before: int) -> str:
        return "ok" if "max_completion_tokens" in body else "status 400 max_completion_tokens"

    with OpenAIServer(behave) as server:
        ask = model(server, max_tokens=9)
        with pytest.raises(TryAgain):
            ask("Hi")
        assert ask("Hi").failure is None
    assert server.bodies[1]["max_completion_tokens"] == 9
    assert "max_tokens" not in server.bodies[1]
    with OpenAIServer(behave, latency=0.3) as server:
        ask = model(server)
        with ThreadPoolExecutor(4) as pool:  # that learn it at the same time
            asked = [pool.submit(ask, "Hi") for _ in range(4)]
        assert all(isinstance(one.exception(), TryAgain) for one in asked)


WAITS = [
    ({}, 0),
    ({"Retry-After": "120"}, 120),
    ({"Retry-After": "1.5"}, 1.5),
    ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    ({"Retry-After": "Wed, 99 Oct 2015 07:28:30 GMT"}, 0),
    ({"Retry-After": "soon"}, 0),
    ({"Retry-After": "-5"}, 0),
    ({"Retry-After": "9" * 400}, 0),
]


@pytest.mark.parametrize(("headers", "seconds"), WAITS, ids=lambda value: str(value)[:60])
def test_the_time_that_a_server_asks_to_wait_is_read_from_its_headers(headers, seconds):
    assert asked_to_wait(headers) == pytest.approx(seconds)


@pytest.mark.parametrize("kind", ["429 30", "429-date"])
def test_a_server_that_is_busy_says_when_to_come_back(kind):
    error, _ = attempt(kind)
    assert error.wait == pytest.approx(30, abs=9)


def test_large_pictures_are_scaled():
    def picture(image: Image.Image, max_pixels: int) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(data_url(image, max_pixels).partition(",")[2])))

    flat = picture(Image.new("RGB", (400, 100)), 10_000)
    assert (flat.format, flat.size) == ("PNG", (200, 50))
    assert picture(Image.new("RGB", (100_000, 1)), 10_000).size[1] == 1


@pytest.mark.parametrize(
    ("end", "path"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/openai/v1", "/openai/v1/chat/completions"),
        ("/proxy", "/proxy/v1/chat/completions"),
        ("/odd/chat/completions?api-version=1", "/odd/chat/completions?api-version=1"),
    ],
)
def test_an_address_is_completed_as_huggingface_hub_does(end, path):
    with OpenAIServer() as server:
        endpoint(Remote(server.url.removesuffix("/v1") + end, "m"), 1)("Hi")
    assert server.paths == [path]


def test_retries_are_a_few_and_their_reason_is_told():
    naps = []

    def ask(text: str, attempts: int):
        remote = Remote(server.url, "m")
        return retried(lambda: remote.send([{"role": "user", "content": text}]), attempts, sleep=naps.append)

    with OpenAIServer(lambda body, before: "503 7" if before < 2 else "ok") as server:
        assert ask("Hi", 4).text.startswith("answer ")
        with pytest.raises(AskFailed, match=r"answered 503 .*, 2 times in all"):
            ask("Hello", 2)
    assert len(server.bodies) == 5
    assert len(naps) == 3
    assert all(7 <= nap <= 8 for nap in naps)
    with (
        OpenAIServer(lambda body, before: "429 7200") as server,
        pytest.raises(NoUse, match="asks to wait for 120 minutes"),
    ):
        ask("Hi", 4)
    assert len(server.bodies) == 1
