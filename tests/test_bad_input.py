"""Bad input to `generate.py` and `r1ov.load`: each kind gives status 2, one line on stderr ("error: ..."),
and nothing else.
"""

import functools
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

import generate
import r1ov
import r1ov.data.formats.open_image
from r1ov.cli import run
from r1ov.common.fetch import fetch
from r1ov.errors import UserError
from tests import warm
from tests.checkpoint import TINY

ROOT = Path(__file__).parent.parent
BILLIONS = str(2**31 - 1)


def png_file(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and whose data is a few bytes."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def picture(width: int, height: int, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.effect_noise((width, height), 50).save(file, format)
    return file.getvalue()


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        match self.path:
            case "/page":
                self.answer(b"<!doctype html><title>no picture</title>")
            case "/endless":
                self.answer(bytes(200_000), length=None)
            case "/slow":
                time.sleep(1)
            case "/reset":
                # Lingering for zero seconds makes it an RST in the place of an answer.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            case "/to-file":
                self.send_response(302)
                self.send_header("Location", "file:///etc/hostname")
                self.end_headers()
            case _:
                self.send_error(404)

    def answer(self, body: bytes, length: int | None = -1) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `{name}` stands for in the tables below: paths of good and bad files, and a server's address."""
    folder = tmp_path_factory.mktemp("files")
    contents = {
        "ok.png": picture(56, 56),
        "empty.png": b"",
        "cut.png": picture(64, 64)[:900],
        "cut.jpg": picture(64, 64, "JPEG")[:600],
        "text.png": b"not a picture at all",
        "bomb.png": png_file(60000, 60000),
        "header.png": png_file(2**31 - 1, 2**31 - 1),
        "flat.png": picture(201, 1),
        "film.mp4": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(500),
        "red\n\x1b[31m.png": b"no",
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"dir": str(folder), "ok": f"{folder}/ok.png", "url": f"http://127.0.0.1:{server.server_port}"}
    server.shutdown()


# kind: (the command line, what the error must say). `{ok}` is a good picture.
LINES = {
    # nothing, or the wrong thing, to answer
    "no arguments": ([], "give --image, --prompt or both"),
    "neither picture nor prompt": (["--system", "You are kind."], "give --image, --prompt or both"),
    "empty prompt": (["--image", "{ok}", "--prompt", ""], "--prompt is empty"),
    "blank prompt": (["--prompt", " \n\t"], "--prompt is empty"),
    "prompt longer than the model's positions": (["--prompt", "word " * 3000], "2048 positions"),
    "system prompt longer than the model's positions": (
        ["--image", "{ok}", "--system", "word " * 3000],
        "2048 positions",
    ),
    "more pictures than positions": (
        ["--image", "{ok}", "--max-pixels", "3136"] + ["--image", "{ok}"] * 400,
        "2048 positions",
    ),
    "picture placeholder in the prompt": (
        ["--image", "{ok}", "--prompt", "<|image_pad|>?"],
        "2 <|image_pad|> placeholders",
    ),
    "picture placeholder without a picture": (["--prompt", "<|image_pad|>"], "1 <|image_pad|> placeholders"),
    "video placeholder in the system prompt": (
        ["--prompt", "x", "--system", "<|video_pad|>"],
        "videos are not supported",
    ),
    "lone surrogate in the prompt": (["--prompt", "caf\udce9"], r"not valid Unicode at"),
    # flags
    "unknown flag": (["--prompt", "x", "--beams", "4"], "unrecognized arguments: --beams 4"),
    "unknown flag with control characters": (["--prompt", "x", "--red\x1b[31m\nflag"], r"--red\x1b[31m flag"),
    "abbreviated flag": (["--promp", "x"], "unrecognized arguments: --promp"),
    "word without a flag": (["picture.png"], "unrecognized arguments"),
    "ten thousand unknown words": (["x" * 20] * 10000, "unrecognized arguments"),
    "flag without its value": (["--image"], "expected one argument"),
    "number of 5,000 digits": (["--prompt", "x", "--seed", "9" * 5000], "is not a whole number"),
    "temperature nan": (["--prompt", "x", "--temperature", "nan"], "'nan' is not a number"),
    "temperature infinite": (["--prompt", "x", "--temperature=inf"], "'inf' is not a number"),
    "temperature negative": (["--prompt", "x", "--temperature=-1"], "0 (greedy)"),
    "temperature that underflows": (["--prompt", "x", "--temperature", "1e-300"], "0 (greedy), or from 1e-6"),
    "temperature that overflows": (["--prompt", "x", "--temperature", "1e308"], "to 1e6"),
    "top-p above 1": (["--prompt", "x", "--top-p", "1.1"], "--top-p is 1.1"),
    "top-p zero": (["--prompt", "x", "--top-p", "0"], "--top-p is 0.0"),
    "top-k negative": (["--prompt", "x", "--top-k", "-1"], "--top-k is -1"),
    "no samples": (["--prompt", "x", "--num-samples", "0"], "--num-samples is 0"),
    "a hundred million samples": (["--prompt", "x", "--num-samples", "100000000"], "at most 1024"),
    "more processes than there are": (["--prompt", "x", "--tensor-parallel", "2"], "processes are 1"),
    "min-pixels above max-pixels": (
        ["--image", "{ok}", "--min-pixels", "9", "--max-pixels", "8"],
        "is above --max-pixels 8",
    ),
    "max-pixels below the checkpoint's min_pixels": (
        ["--image", "{ok}", "--max-pixels", "1"],
        "min_pixels is 3136, above max_pixels",
    ),
    "max-pixels of 30 digits": (["--image", "{ok}", "--max-pixels", "9" * 30], "max_pixels is 999"),
    "picture enlarged beyond all memory": (
        ["--image", "{ok}", "--min-pixels", BILLIONS, "--max-pixels", BILLIONS],
        "lower max_pixels",
    ),
    "dtype float16": (["--prompt", "x", "--dtype", "float16"], "overflows"),
    "dtype unknown": (["--prompt", "x", "--dtype", "int4"], "invalid choice: 'int4'"),
    "device unknown": (["--prompt", "x", "--device", "toaster"], "device 'toaster' cannot be used here"),
    "device with a line break": (["--prompt", "x", "--device", "cpu\ncuda"], r"device 'cpu\ncuda'"),
    "device cuda:99": (["--prompt", "x", "--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
    "device without numbers": (["--prompt", "x", "--device", "meta"], "runs on cpu and cuda"),
    "device that torch has forgotten": (
        ["--prompt", "x", "--device", "mkldnn"],
        "device 'mkldnn' cannot be used here",
    ),
    # pictures
    "picture missing": (["--image", "{dir}/none.png"], "none.png: no such file"),
    "picture's path empty": (["--image", ""], "path is empty"),
    "picture's path too long": (["--image", "x" * 5000], "cannot be read"),
    "picture's path with control characters": (
        ["--image", "{dir}/red\n\x1b[31m.png"],
        r"red\n\x1b[31m.png: not a picture",
    ),
    "picture's path not Unicode": (["--image", "caf\udce9.png"], "no such file"),
    "picture is a folder": (["--image", "{dir}"], "is a folder"),
    "picture is a device": (["--image", "/dev/zero"], "not an ordinary file"),
    "picture empty": (["--image", "{dir}/empty.png"], "the file is empty"),
    "picture truncated": (["--image", "{dir}/cut.png"], "cannot be decoded"),
    "photo truncated": (["--image", "{dir}/cut.jpg"], "cannot be decoded"),
    "picture of text": (["--image", "{dir}/text.png"], "not a picture"),
    "picture is a video": (["--image", "{dir}/film.mp4"], "not a picture"),
    "decompression bomb": (["--image", "{dir}/bomb.png"], "too large a picture"),
    "header of four billion billion pixels": (["--image", "{dir}/header.png"], "too large a picture"),
    "aspect ratio of 201": (["--image", "{dir}/flat.png"], "201x1"),
    "data URL broken": (["--image", "data:image/png;base64,!!"], "base64"),
    # URLs
    "URL not found": (["--image", "{url}/none.png"], "404"),
    "URL of a page": (["--image", "{url}/page"], "not a picture"),
    "URL slow": (["--image", "{url}/slow"], "no complete answer within"),
    "URL that goes on and on": (["--image", "{url}/endless"], "more bytes than the limit"),
    "URL that redirects to a file": (["--image", "{url}/to-file"], "unsupported protocol"),
    "URL that resets the connection": (["--image", "{url}/reset"], "cannot be fetched"),
    "URL of a closed port": (["--image", "http://127.0.0.1:1/x.png"], "cannot be fetched"),
    "URL of a file": (["--image", "file:///etc/hostname"], "not a picture"),
    "URL of an unknown scheme": (["--image", "gopher://127.0.0.1/x.png"], "only http:// and https://"),
    "URL without a host": (["--image", "http://"], "cannot be fetched"),
    # models
    "model's name empty": (["--prompt", "x", "--model", ""], "not a model"),
    "model's name with control characters": (
        ["--prompt", "x", "--model", "a\x1b[31m\nb"],
        r"'a\x1b[31m\nb': not a model",
    ),
    "model's folder missing": (["--prompt", "x", "--model", "{dir}/none"], "no such folder"),
    "model is a file": (["--prompt", "x", "--model", "{ok}"], "expected the folder of a model"),
    "model's folder holds none": (["--prompt", "x", "--model", "{dir}"], "config.json: no such file"),
}


def filled(words: list[str], files: dict[str, str]) -> list[str]:
    for name, value in files.items():
        words = [word.replace("{" + name + "}", value) for word in words]
    return words


def assert_one_error(status: int | None, out: str, err: str, says: str) -> None:
    assert (status, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err[:-1].isprintable(), err  # so one line, and nothing that would move the cursor
    assert len(err) < 2500
    assert says in err


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Runs `generate.py` in this process: (status, stdout, stderr). Pictures from the web have half a second
    and 100 kB.
    """
    monkeypatch.setattr(
        r1ov.data.formats.open_image,
        "fetch",
        functools.partial(fetch, timeout_seconds=0.5, max_bytes=100_000),
    )

    def call(words: list[str]) -> tuple[int | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["generate.py", *words])
        try:
            status = run(generate.main)
        except SystemExit as exit:  # argparse's
            status = exit.code
        return status, *capfd.readouterr()

    return call


@pytest.mark.parametrize("kind", LINES)
def test_a_bad_command_line_gives_one_line_and_status_2(kind, files, command):
    words, says = LINES[kind]
    assert_one_error(*command(filled(words, files)), says)


def change(name: str, **values):
    """Sets fields of a JSON file in a model's folder."""
    return lambda folder: (folder / name).write_text(
        json.dumps(json.loads((folder / name).read_text()) | values)
    )


def write(name: str, data: bytes):
    """Puts a file into a model's folder in the place of the one there."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)

    return damage


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    write("model.safetensors", data[: len(data) // 2])(folder)


def index_outside(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


ATTACK = b"{{ ''.__class__.__mro__[1].__subclasses__() }}"
ENDLESS_HEADER = struct.pack("<Q", 2**63) + b"{}"
FALSE_HEADER = (
    b'{"model.norm.weight":{"dtype":"F32","shape":[1000000000000,1000000],'
    b'"data_offsets":[0,4000000000000000000]}}'
)
ABSURD_SIZES = struct.pack("<Q", len(FALSE_HEADER)) + FALSE_HEADER

# kind: (what is done to a copy of r1ov-tiny's folder, what the error must say)
FOLDERS = {
    "config missing": (remove("config.json"), "config.json: no such file"),
    "config not JSON": (write("config.json", b"{'model_type'"), "config.json: not readable as JSON"),
    "config a list": (write("config.json", b"[]"), "expected an object"),
    "config nested beyond measure": (write("config.json", b"[" * 100_000), "config.json"),
    "config of another model": (change("config.json", model_type="llama"), "model_type is 'llama'"),
    "config with a sliding window": (change("config.json", use_sliding_window=True), "use_sliding_window"),
    "config with a text for a number": (change("config.json", hidden_size="192"), "hidden_size is '192'"),
    "config of absurd sizes": (change("config.json", vocab_size=10**15), "vocab_size"),
    "config of more layers than weights": (change("config.json", num_hidden_layers=40), "missing ("),
    "weights missing": (remove("model.safetensors"), "no model.safetensors"),
    "weights empty": (write("model.safetensors", b""), "truncated or not a safetensors file"),
    "weights truncated": (cut_weights, "truncated or not a safetensors file"),
    "weights with a header of absurd length": (
        write("model.safetensors", ENDLESS_HEADER),
        "truncated or not a safetensors file",
    ),
    "weights with a header of absurd sizes": (
        write("model.safetensors", ABSURD_SIZES),
        "truncated or not a safetensors file",
    ),
    "weights elsewhere by their index": (index_outside, "beside the index"),
    "tokenizer missing": (remove("tokenizer.json"), "tokenizer.json: no such file"),
    "tokenizer corrupt": (
        write("tokenizer.json", b'{"version": "1.0", "model": 3}'),
        "tokenizer.json: not a tokenizer",
    ),
    "tokenizer config corrupt": (
        write("tokenizer_config.json", b"{"),
        "tokenizer_config.json: not readable as JSON",
    ),
    "preprocessor missing": (remove("preprocessor_config.json"), "preprocessor_config.json: no such file"),
    "preprocessor corrupt": (write("preprocessor_config.json", b"null"), "preprocessor_config.json"),
    "preprocessor with a text for a number": (
        change("preprocessor_config.json", max_pixels="many"),
        "max_pixels is 'many'",
    ),
    "template broken": (
        write("chat_template.jinja", b"{% for m in %}"),
        "chat_template.jinja: the chat template is broken",
    ),
    "template that reaches for Python": (write("chat_template.jinja", ATTACK), "the chat template refuses"),
    "generation config corrupt": (
        write("generation_config.json", b"\0"),
        "generation_config.json: not readable as JSON",
    ),
    "generation config of beams": (
        change("generation_config.json", num_beams=4),
        "generation_config.json: num_beams is 4; r1ov decodes without it",
    ),
    "generation config with a text for a stop id": (
        change("generation_config.json", eos_token_id="<|im_end|>"),
        "eos_token_id",
    ),
    "generation config with a text for a number": (
        change("generation_config.json", top_p="most"),
        "top_p is 'most'",
    ),
}
FINE_UNTIL_USED = {kind for kind in FOLDERS if kind.startswith(("template that", "generation config with"))}


def damaged(kind: str, folder: Path) -> Path:
    """A copy of r1ov-tiny's folder, its weights only linked, with one thing broken."""
    folder.mkdir()
    for path in TINY.iterdir():
        if path.suffix == ".safetensors":
            (folder / path.name).symlink_to(path)
        else:
            shutil.copy(path, folder)
    FOLDERS[kind][0](folder)
    return folder


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_broken_model_gives_one_line_and_status_2(kind, files, command, tmp_path):
    folder = damaged(kind, tmp_path / "model")
    assert_one_error(*command(["--image", files["ok"], "--model", str(folder)]), FOLDERS[kind][1])


@pytest.mark.parametrize("kind", sorted(FOLDERS.keys() - FINE_UNTIL_USED))
def test_r1ov_load_refuses_a_broken_model_in_one_line(kind, tmp_path):
    with pytest.raises(UserError) as caught:
        r1ov.load(damaged(kind, tmp_path / "model"))
    assert FOLDERS[kind][1] in str(caught.value)
    assert "\n" not in str(caught.value)


# In a process of its own, as a user runs it: (the shell's words around the command, further environment, what
# the error says).
PROCESSES = {
    "no arguments": ("{generate}", {}, "nothing to answer"),
    "unknown flag, stdout closed": ("{generate} --nonsense >&-", {}, "unrecognized arguments"),
    "bytes that are no Unicode": ("{generate} --image {ok} --prompt $'caf\\xe9'", {}, "not valid Unicode"),
    "a terminal of ASCII": (
        "{generate} --image 图.png",
        {"PYTHONIOENCODING": "ascii"},
        r"\u56fe.png: no such file",
    ),
    "a full disk": (
        "{generate} --prompt x --max-new-tokens 2 2>&1 >/dev/full | tail -n 1 >&2; exit ${{PIPESTATUS[0]}}",
        {},
        "No space left",
    ),
    "a kernel without a GPU": (
        "{generate} --prompt x --device cpu --kernels triton",
        {"TRITON_INTERPRET": "0"},
        "kernels need a GPU",
    ),
    "a hub name, offline": (
        "{generate} --prompt x --model nobody/nothing",
        {"HF_HUB_OFFLINE": "1"},
        "HF_HUB_OFFLINE is set",
    ),
    "a hub name, offline by another name": (
        "{generate} --prompt x --model nobody/nothing",
        {"TRANSFORMERS_OFFLINE": "1"},
        "TRANSFORMERS_OFFLINE; unset it",
    ),
    "processes that would each answer": (
        "{generate} --prompt x",
        {"WORLD_SIZE": "2"},
        "--tensor-parallel is 1, processes are 2",
    ),
}


def shell(
    line: str, files: dict[str, str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    line = line.format(generate=f"{warm.python()} generate.py", **files)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.run(
        ["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("kind", PROCESSES)
def test_the_program_itself_gives_one_line_and_status_2(kind, files, tmp_path):
    line, environment, says = PROCESSES[kind]
    done = shell(line, files, {"HF_HOME": str(tmp_path), **environment})
    assert_one_error(done.returncode, done.stdout, done.stderr, says)


def test_a_reader_that_goes_away_is_no_error(files):
    done = shell("{generate} --prompt x --max-new-tokens 200 | head -c 0; exit ${{PIPESTATUS[0]}}", files)
    assert (done.returncode, done.stdout) == (141, "")
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr
