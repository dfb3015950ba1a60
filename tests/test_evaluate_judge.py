"""The judge: a stand-in server that counts what it is asked, and answers well, badly, late and not at all."""

import json
import os
import subprocess
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from r1ov.errors import UserError
from r1ov.evaluate import judge
from r1ov.evaluate.item import Item, Prediction, Verdict
from r1ov.evaluate.judge import needs_judge
from tests import warm

ROOT = Path(__file__).parent.parent


class Endpoint(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.asked.append((prompt, self.headers.get("Authorization"), self.path, body["model"]))
            count = sum(prompt == other for other, *_ in self.server.asked)
        said = self.server.says(prompt, count)
        if isinstance(said, int):
            self.send_response(said)
            self.end_headers()
            return
        content = json.dumps(
            {
                "choices": [
                    {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
                ]
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    server.lock, server.asked, server.says = threading.Lock(), [], lambda prompt, count: "CORRECT"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def case(
    id: str, text: str, method: str, score: float = 0.0, kind: str | None = "math", answer: str | None = None
):
    return Verdict(
        item=Item(bench="b", split="s", id=id, question=f"question {id}?", answer="7", kind=kind),
        prediction=Prediction(id=id, text=text),
        score=score,
        answer=answer,
        method=method,
        well_formed=0.0,
    )


CASES = [
    case("right", "7", "short", score=1.0, answer="7"),
    case("letter", "B", "short", kind="mcq", answer="B"),
    case("cut", "<think>seven", "truncated"),
    case("broken", "", "error"),
    case(
        "prose",
        "<think>secret</think>I count seven of them in the picture, and not one more.",
        "unparsed",
        kind="mcq",
    ),
    case("wrong", "about seven", "short", answer="about seven"),
    case("other", "<answer>9</answer>", "tag", answer="9"),
]


def asks(server, folder, cases=CASES) -> dict[str, float | None]:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    judged = judge.judge(cases, url, "some-judge", folder / "judge.jsonl")
    assert [(one.score, one.method) for one in judged] == [
        (one.score, one.method) for one in cases
    ]  # the rules' column stays
    return {one.item.id: one.judged for one in judged}


def test_only_what_the_rules_leave_open_is_asked():
    assert [one.item.id for one in CASES if needs_judge(one)] == ["prose", "wrong", "other"]


def test_each_open_answer_is_asked_once_and_never_again(server, tmp_path):
    server.says = lambda prompt, count: "WRONG" if "9" in prompt else "CORRECT"
    expected = {
        **dict.fromkeys(["right", "letter", "cut", "broken"]),
        "prose": 1.0,
        "wrong": 1.0,
        "other": 0.0,
    }
    for _ in range(2):
        assert asks(server, tmp_path) == expected
    assert len(server.asked) == 3
    assert {path for _, _, path, _ in server.asked} == {"/v1/chat/completions"}
    assert {model for *_, model in server.asked} == {"some-judge"}
    assert not [
        prompt for prompt, *_ in server.asked if "secret" in prompt
    ]  # of a reply only what follows the thought
    assert asks(
        server, tmp_path, [case("new", "I count seven of them in the picture, and not one more.", "unparsed")]
    ) == {"new": 1.0}
    assert len(server.asked) == 4


def test_equal_questions_are_one_request(server, tmp_path):
    asks(server, tmp_path, [CASES[4]] * 5)
    assert len(server.asked) == 1


def test_failures_are_asked_again_a_few_times_and_then_left_open(server, tmp_path, capsys):
    said = {
        "prose": [500, 503, "Thinking...</think>CORRECT"],
        "wrong": ["maybe"] * 9,
        "other": ["it is INCORRECT"],
    }
    server.says = lambda prompt, count: next(
        words[count - 1] for id, words in said.items() if f"question {id}?" in prompt
    )
    judged = asks(server, tmp_path)
    assert (judged["prose"], judged["wrong"], judged["other"]) == (1.0, None, 0.0)
    assert Counter(prompt.split("?")[0].split()[-1] for prompt, *_ in server.asked) == {
        "prose": 3,
        "wrong": 4,
        "other": 1,
    }
    assert "the judge left 1 of 3 open" in capsys.readouterr().err
    server.says = lambda prompt, count: "WRONG"
    assert asks(server, tmp_path)["wrong"] == 0.0  # the next start asks it again, and nothing else
    assert len(server.asked) == 9


def test_a_refused_key_is_not_tried_again_and_stops_everything(server, tmp_path):
    server.says = lambda prompt, count: 401
    with pytest.raises(UserError, match=r"--judge: none of 3 requests was answered .*401"):
        asks(server, tmp_path)
    assert len(server.asked) == 3


def test_a_server_that_is_not_there_gives_one_line(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="none of 3 requests was answered"):
        asks(server, tmp_path)


def test_a_judge_that_hangs_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "SECONDS", 0.1)
    monkeypatch.setattr(judge, "ATTEMPTS", 1)
    hung = threading.Event()
    server.says = lambda prompt, count: hung.wait(5) or "CORRECT"
    begun = time.monotonic()
    with pytest.raises(UserError, match="none of 3"):
        asks(server, tmp_path)
    assert time.monotonic() - begun < 4
    hung.set()


def test_the_key_comes_from_the_environment_and_no_other_token_is_ever_sent(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    asks(server, tmp_path, CASES[4:5])
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    asks(server, tmp_path, CASES[5:6])
    assert [key for _, key, *_ in server.asked] == ["Bearer none", "Bearer sk-mine"]


OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def test_offline_is_about_the_hub_and_not_about_a_judge_on_this_machine(server, tmp_path):
    """In a process of its own: huggingface_hub reads HF_HUB_OFFLINE when it is imported."""
    (tmp_path / "q.jsonl").write_text('{"id": "0", "question": "How many?", "answer": "seven of them"}\n')
    (tmp_path / "p.jsonl").write_text('{"id": "0", "text": "<answer>there are seven</answer>"}\n')
    url = f"http://127.0.0.1:{server.server_port}/v1"
    words = ["--bench", "q.jsonl", "--predictions", "p.jsonl", "--judge", url, "--judge-model", "m"]
    done = subprocess.run(
        [warm.python(), "-m", "r1ov.evaluate", *words, "--out", "o"],
        cwd=tmp_path,
        env={**os.environ, **dict.fromkeys(OFFLINE, "1"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, len(server.asked)) == (0, 1), done.stderr
    assert "| accuracy by rules and judge | 100.0% |" in done.stdout


def test_a_torn_cache_is_read_as_far_as_it_goes(server, tmp_path):
    asks(server, tmp_path)
    path = tmp_path / "judge.jsonl"
    path.write_text(path.read_text()[:-8])
    assert asks(server, tmp_path)["other"] == 1.0
    assert len(server.asked) == 4
