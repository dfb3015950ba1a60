"""A model's name to a folder: what is shipped, what is on disk, and a hub, played by a local server that
speaks its protocol.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import r1ov.common.hub
from r1ov.errors import UserError
from r1ov.folder.pretrained import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "run.py": b"evil",
    "pytorch_model.bin": b"evil",
    "copy/model.safetensors": b"2",
}
STATUS = {
    "nobody/private": (401, "RepoNotFound"),
    "nobody/gated": (403, "GatedRepo"),
    "nobody/broken": (500, None),
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as a download needs."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0].removeprefix("/api/models")
        repo = "/".join(path.split("/")[1:3])
        if repo in STATUS:
            status, code = STATUS[repo]
            return self.reply(status, b"no", {"X-Error-Code": code} if code else {})
        if repo != "somebody/model":
            return self.reply(404, b"no", {"X-Error-Code": "RepoNotFound"})
        if "/revision/" in path and path.rsplit("/", 1)[1] not in ("main", COMMIT):
            return self.reply(404, b"no", {"X-Error-Code": "RevisionNotFound"})
        if "/resolve/" in path:
            data = FILES[path.split("/resolve/")[1].split("/", 1)[1]]
            return self.reply(
                200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
            )
        if "/tree/" in path:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in FILES.items()
            ]
            return self.reply(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        info = {
            "id": repo,
            "sha": COMMIT,
            "siblings": [{"rfilename": name} for name in FILES],
            "private": False,
            "tags": [],
            "downloads": 0,
        }
        return self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def reply(self, status, body, headers):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def resolved(names, cache, **environment):
    """What `resolve` does with a hub's name, in a fresh process, because huggingface_hub reads its settings
    at import (and without torch, which takes seconds): for each a path or an error.
    """
    code = (
        "import json, sys\nfrom r1ov.errors import UserError\nfrom r1ov.common.hub import from_hub\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        result = [str(from_hub(name)), None]\n"
        "    except UserError as error:\n        result = [None, str(error)]\n"
        "    print(json.dumps(result))"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = {
        **kept,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **environment,
    }
    root = Path(__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-c", code, *names],
        capture_output=True,
        text=True,
        env=environment,
        cwd=root,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_a_hub_name_is_downloaded_once_without_code_pickles_or_subfolders(endpoint, tmp_path):
    by_branch, by_commit = resolved(
        ["somebody/model", f"somebody/model@{COMMIT}"], tmp_path, HF_ENDPOINT=endpoint
    )
    assert by_branch == by_commit
    folder = Path(by_branch[0])
    assert {str(path.relative_to(folder)) for path in folder.rglob("*")} == {
        "config.json",
        "model.safetensors",
    }
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert folder.is_relative_to(tmp_path)  # huggingface_hub's own cache, where HF_HOME puts it
    # now out of reach, then forbidden to look
    assert resolved(["somebody/model"], tmp_path, HF_ENDPOINT="http://127.0.0.1:9") == [by_branch]
    assert resolved(["somebody/model"], tmp_path, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="1") == [by_branch]


def test_what_the_hub_refuses_becomes_one_line_that_says_what_to_do(endpoint, tmp_path):
    expected = {
        "nobody/nothing": "no such model on the hub",
        "nobody/private": "hf auth login",
        "nobody/gated": "ask for access at",
        "nobody/broken": "out of reach",
        "somebody/model@v9": "no revision v9",
        "somebody/a..b": "not a name that the hub allows",
    }
    for name, (path, error) in zip(expected, resolved(expected, tmp_path, HF_ENDPOINT=endpoint), strict=True):
        assert path is None, name
        assert error.startswith(f"{name}: ")
        assert expected[name] in error
        assert "\n" not in error


def test_without_a_network_or_offline_the_error_says_so(endpoint, tmp_path):
    [(_, error)] = resolved(["somebody/model"], tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "http://127.0.0.1:9 is out of reach" in error
    [(_, error)] = resolved(["somebody/model"], tmp_path, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in error


def test_the_shipped_model_and_folders_need_no_hub(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it would fail
    for name in ("r1ov-tiny", "r1ov-tiny-sft"):
        assert resolve(name) == Path(r1ov.model.__file__).parent / name
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("owner/name", "owner/", "./owner", str(tmp_path), tmp_path / "owner", "~/owner"):
        assert resolve(name).is_dir()


NOT_MODELS = {
    "/no/such/folder": "no such folder",
    "./nothing": "no such folder",
    "~/nothing": "no such folder",
    "a/b/c": "no such folder",
    "a/b/": "no such folder",
    "C:\\models\\tiny": "no such folder",
    Path("owner/name"): "no such folder",
    "a" * 5000: "not a model",
    "/" + "a" * 5000: "no such folder",
    "": "not a model",
    "tiny": "not a model",
    "two words/name": "not a model",
    "a\nb": "not a model",
    "/a\nb": "no such folder",
    "a\0b": "not a model",
    "https://huggingface.co/owner/name": "no such folder",
    "owner/name@": "not a model",
    None: "expected a text or a path",
    7: "expected a text or a path",
}


@pytest.mark.parametrize("name", NOT_MODELS, ids=lambda name: repr(name)[:20])
def test_what_is_no_model_is_refused_in_one_line_without_a_look_at_the_hub(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=NOT_MODELS[name]) as caught:
        resolve(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="a file; expected the folder"):
        resolve(str(tmp_path / "model.safetensors"))
