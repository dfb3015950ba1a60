"""One request at a time, against a server that does what a test says: what is read, what is tried again, what
is told.
"""

import base64
import io
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from r1ov.common.remote import AskFailed, NoUse, Remote, TryAgain, asked_to_wait, retried
from r1ov.formalize.models import Endpoint, Question, data_url
from tests.openai_server import OpenAIServer

KEY = "sk-never-to-be-seen"


def attempt(kind: str, **more):
    """(what came of one request, the endpoint, the server)."""
    with OpenAIServer(lambda body, before: kind) as server:
        timeout = 0.4 if kind.startswith(("hang", "drip")) else 20.0
        endpoint = Endpoint(server.url, "some-model", key=KEY, timeout=timeout, **more)
        try:
            return endpoint.attempt(Question(prompt="How many? \udc80", system="Count.")), endpoint, server
        except (TryAgain, AskFailed, NoUse) as error:
            return error, endpoint, server


def test_a_request_is_what_the_protocol_says_and_its_answer_comes_back():
    image = Image.new("RGB", (30, 20), "red")
    with OpenAIServer(usage=(123, 45)) as server:
        endpoint = Endpoint(server.url, "some-model", key=KEY, max_tokens=77, temperature=0.5)
        reply = endpoint.attempt(Question(prompt="How many?", system="Count.", image=image))
    (body,), (headers,) = server.bodies, server.headers
    assert reply.text.startswith("answer ")
    assert (reply.failure, reply.prompt_tokens, reply.completion_tokens) == (None, 123, 45)
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
        Endpoint(server.url, "m").attempt(Question(prompt="Hi"))
    assert "hf_saved" not in str(server.headers)


AGAIN = {
    "429 7": "answered 429",
    "500": "answered 500",
    "503 1": "answered 503",
    "hang 5": "within 0.4 s",
    "drip": "within 0.4 s",
    "drip-head": "within 0.4 s",
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
NOT_BILLED = {"429 7", "500", "503 1", "drop", "huge-error"}


@pytest.mark.parametrize("kind", AGAIN)
def test_what_may_be_better_next_time_is_tried_again(kind):
    begun = time.monotonic()
    error, _, _ = attempt(kind)
    assert isinstance(error, TryAgain)
    assert AGAIN[kind] in str(error)
    assert error.is_billed == (kind not in NOT_BILLED)
    # The request's own limit and a second of grace, whatever the server drips.
    assert time.monotonic() - begun < 9


def test_a_server_that_drips_is_hung_up_on():
    with OpenAIServer(lambda body, before: "drip") as server:
        with pytest.raises(TryAgain):
            Endpoint(server.url, "m", timeout=0.3).attempt(Question(prompt="Hi"))
        deadline = time.monotonic() + 9
        while server.active and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.active == 0


@pytest.mark.parametrize("kind", ["refusal", "refusal-field", "filtered", "empty", "length", "huge"])
def test_an_answer_of_no_use_says_why_and_is_paid_for(kind):
    reply, _, _ = attempt(kind)
    words = {
        "refusal": "refused",
        "refusal-field": "refused: not this one",
        "filtered": "refused",
        "empty": "empty",
        "length": "cut off",
    }
    assert words.get(kind, "larger than") in reply.failure
    assert reply.completion_tokens == (2048 if kind == "huge" else 5)


def test_a_small_body_that_unpacks_to_a_large_one_is_cut_off():
    with OpenAIServer(lambda body, before: "bomb") as server:
        assert "larger than" in Endpoint(server.url, "m", timeout=10).attempt(Question(prompt="Hi")).failure


@pytest.mark.parametrize("kind", ["no-usage", "odd-usage"])
def test_tokens_that_a_server_does_not_tell_are_guessed(kind):
    reply, _, _ = attempt(kind)
    assert reply.text.startswith("answer")
    assert 30 < reply.prompt_tokens < 50
    assert 5 < reply.completion_tokens < 10


@pytest.mark.parametrize("kind", ["401", "402", "404", "redirect", "status 429 insufficient_quota"])
def test_a_server_that_will_answer_nothing_at_all_ends_the_run(kind):
    error, _, server = attempt(kind)
    assert isinstance(error, NoUse)
    assert "some-model at http://127.0.0.1" in str(error)
    assert len(server.bodies) == 1


@pytest.mark.parametrize("kind", ["400", "403", "413", "422"])
def test_a_request_that_the_server_objects_to_is_not_sent_again(kind):
    error, _, _ = attempt(kind)
    assert type(error) is AskFailed
    assert kind in str(error)


@pytest.mark.parametrize("kind", ["400", "401", "500"])
def test_no_error_shows_the_key_though_the_server_sends_it_back(kind):
    error, _, _ = attempt(kind)
    assert "Bearer ***" in str(error)
    assert KEY not in str(error)


def test_an_answer_that_holds_the_key_is_kept_without_it():
    with OpenAIServer(reply=lambda body: f"your key is {KEY}") as server:
        assert Endpoint(server.url, "m", key=KEY).attempt(Question(prompt="Hi")).text == "your key is ***"


def test_offline_mode_is_about_the_hub_alone(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    reply, _, server = attempt("ok")
    assert reply.text.startswith("answer ")
    assert len(server.bodies) == 1


def test_openais_newer_name_for_the_longest_answer_is_learned():
    def behave(body: dict, before: int) -> str:
        return "ok" if "max_completion_tokens" in body else "status 400 max_completion_tokens"

    with OpenAIServer(behave) as server:
        endpoint = Endpoint(server.url, "m", max_tokens=9)
        with pytest.raises(TryAgain):
            endpoint.attempt(Question(prompt="Hi"))
        assert endpoint.attempt(Question(prompt="Hi")).failure is None
    assert server.bodies[1]["max_completion_tokens"] == 9
    assert "max_tokens" not in server.bodies[1]
    with OpenAIServer(behave, latency=0.3) as server:
        endpoint = Endpoint(server.url, "m")
        with ThreadPoolExecutor(4) as pool:  # that learn it at the same time
            asked = [pool.submit(endpoint.attempt, Question(prompt="Hi")) for _ in range(4)]
        assert all(isinstance(one.exception(), TryAgain) for one in asked)


DATE = {"Date": "Wed, 21 Oct 2015 07:28:00 GMT"}
WAITS = [
    ({}, 0),
    ({"Retry-After": "120"}, 120),
    ({"retry-after": "1.5"}, 1.5),
    ({"Retry-After-Ms": "250"}, 0.25),
    ({"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT", **DATE}, 30),
    ({"Retry-After": "Wed, 21 Oct 2015 07:27:30 GMT", **DATE}, 0),
    ({"Retry-After": "Wed, 99 Oct 2015 07:28:30 GMT", **DATE}, 0),
    ({"Retry-After": "soon"}, 0),
    ({"Retry-After": "-5"}, 0),
    ({"Retry-After": "9" * 400}, 0),
    ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1h6m0.5s"}, 3960.5),
    ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20ms"}, 0.02),
    ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "6m0s"}, 0),
    (
        {
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": "2s",
            "x-ratelimit-reset-requests": "9s",
        },
        2,
    ),
    ({"RateLimit-Remaining": "0", "RateLimit-Reset": "17"}, 17),
    (
        {"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'},
        55,
    ),  # huggingface_hub's own example
    ({"RateLimit": '"api";r=10;t=55'}, 0),
]


@pytest.mark.parametrize(("headers", "seconds"), WAITS, ids=lambda value: str(value)[:60])
def test_the_time_that_a_server_asks_to_wait_is_read_from_its_headers(headers, seconds):
    assert asked_to_wait(headers) == pytest.approx(seconds)


def test_a_time_of_day_to_come_back_at_is_waited_for():
    assert asked_to_wait(
        {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(time.time() + 40)}
    ) == pytest.approx(40, abs=2)


@pytest.mark.parametrize("kind", ["429 30", "429-date", "429-reset 30s", "limit 30"])
def test_an_endpoint_is_not_ready_before_the_time_that_it_named(kind):
    _, endpoint, _ = attempt(kind)
    assert endpoint.ready_at - time.monotonic() == pytest.approx(30, abs=9)


def test_large_pictures_are_scaled_and_those_that_png_cannot_press_go_as_jpeg():
    def picture(image: Image.Image, max_pixels: int) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(data_url(image, max_pixels).partition(",")[2])))

    flat = picture(Image.new("RGB", (400, 100)), 10_000)
    assert (flat.format, flat.size) == ("PNG", (200, 50))
    assert picture(Image.new("RGB", (100_000, 1)), 10_000).size[1] == 1
    noise = Image.frombytes("RGB", (1300, 1300), random.Random(0).randbytes(3 * 1300**2))
    noisy = picture(noise, 2_000_000)
    assert (noisy.format, noisy.size) == ("JPEG", (1300, 1300))


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
        Endpoint(server.url.removesuffix("/v1") + end, "m").attempt(Question(prompt="Hi"))
    assert server.paths == [path]


def test_retries_are_a_few_and_their_reason_is_told(monkeypatch):
    naps = []
    monkeypatch.setattr(time, "sleep", naps.append)

    def ask(text: str, attempts: int):
        remote = Remote(server.url, "m")
        return retried(lambda: remote.send([{"role": "user", "content": text}]), attempts)

    with OpenAIServer(lambda body, before: "503 7" if before < 2 else "ok") as server:
        assert ask("Hi", 4).text.startswith("answer ")
        with pytest.raises(AskFailed, match=r"answered 503 .*, 2 times in all"):
            ask("Hello", 2)
    assert len(server.bodies) == 5
    assert len(naps) == 3
    assert all(7 <= nap <= 8 for nap in naps)
    with (
        OpenAIServer(lambda body, before: "429 7200") as server,
        pytest.raises(AskFailed, match="asks to wait for 120 minutes"),
    ):
        ask("Hi", 4)
    assert len(server.bodies) == 1
