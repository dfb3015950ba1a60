"""A python that has imported torch already. Importing torch takes a program seconds, and so again does what
its optimizers want of it; `warm.python()` stands in the place of `sys.executable` and saves both.

It is a shell script that starts the client below, which imports nothing of size. The client hands its words,
folder, environment, stdin, stdout and stderr to a server, one for each process of pytest and there when first
asked for. A fork of the server becomes the program: signals that the client gets are passed on to it, the
client ends as it ends, and if the client is killed, so is it. Of ours nothing is imported before: a program
imports all of r1ov itself. Programs that torchrun starts below a warm one are warm too.

What is to be seen of a program's own start (what it imports, its memory, its tree of processes) is tried with
`sys.executable`.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NoReturn

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
SHOWN = (0, 1, 2)  # stdin, stdout, stderr
IMPORTED = (
    "filelock",
    "jinja2.sandbox",
    "matplotlib.pyplot",
    "PIL.Image",
    "safetensors.torch",
    "tokenizers",
    "torch",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.elastic.multiprocessing.errors",
    "torch.distributed.launcher.api",
)


@cache
def python() -> str:
    """The path to start programs with, `[python(), "train.py", ...]`."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    address, script = folder / "address", folder / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{__file__}" "{address}" "$@"\n')
    script.chmod(0o700)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)  # which holds for as long as a process does
    server = subprocess.Popen(
        [sys.executable, __file__, "serve", str(address), str(script)],
        stdin=subprocess.PIPE,  # closed when this process ends, however it ends: the server's sign to go
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert server.stdout.readline() == "ready\n"
    atexit.register(lambda: (server.stdin.close(), server.wait(), shutil.rmtree(folder)))
    return str(script)


def program(client: int) -> int | None:
    """The process id of the program that a process stands for; None if it is no client."""
    note = Path(python()).with_name(f"{client}")
    return int(note.read_text()) if note.exists() else None


# -- the client


def ask(address: str, words: list[str]) -> NoReturn:
    """Has the server start a program, and ends as that does."""
    shown = [fd for fd in SHOWN if os.path.exists(f"/dev/fd/{fd}")]  # as `>&-` closes one
    while os.open(os.devnull, os.O_RDWR) <= max(SHOWN):
        pass  # those are taken, and nothing else comes in their place
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(address)
        more = {"client": os.getpid(), "folder": os.getcwd(), "environment": dict(os.environ)}
        asked = json.dumps({"words": words, "shown": shown, **more}).encode()
        socket.send_fds(line, [len(asked).to_bytes(8)], SHOWN)
        line.sendall(asked)
        program = int.from_bytes(received(line, 8))
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: os.kill(program, number))
        status = int.from_bytes(received(line, 8), signed=True)
    if status >= 0:
        os._exit(status)
    with contextlib.suppress(OSError):  # SIGKILL has no other
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
    os._exit(1)


def received(line: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        found += (piece := line.recv(count - len(found)))
        assert piece, "the other end is gone"
    return found


# -- the server


def serve(address: str, script: str) -> list[str]:
    """Returns in a fork that is to become a program, with that program's words."""
    del sys.path[0]  # the folder of this file
    for name in IMPORTED:
        import_module(name)
    gc.freeze()  # or every fork would copy what its collector marks
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal goes to all
        print("ready", flush=True)
        while sys.stdin not in select.select([door, sys.stdin], [], [])[0]:
            line, _ = door.accept()
            if not os.fork():
                door.close()
                return mind(line, script)
            line.close()
            reap()
    reap()
    os._exit(0)


def reap() -> None:
    """Buries the minders that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def mind(line: socket.socket, script: str) -> list[str]:
    """Forks a program and tells how it ends; kills it when who asked for it is gone."""
    count, shown, _, _ = socket.recv_fds(line, 8, len(SHOWN))
    asked = json.loads(received(line, int.from_bytes(count)))
    ends, ended = os.pipe()
    program = os.fork()
    if not program:
        line.close()
        os.close(ends)
        os.close(ended)
        begin(asked, shown, script)
        return asked["words"]
    signal.signal(signal.SIGCHLD, lambda *_: None)
    os.set_blocking(ended, False)
    signal.set_wakeup_fd(ended)
    for fd in (*shown, *SHOWN):  # a reader waits until nobody can write any more
        os.close(fd)
    note = Path(script).with_name(str(asked["client"]))
    note.write_text(str(program))
    line.sendall(program.to_bytes(8))
    while not (done := os.waitpid(program, os.WNOHANG))[0]:
        if line in select.select([line, ends], [], [])[0]:
            os.kill(program, signal.SIGKILL)
            done = os.waitpid(program, 0)
            break
        os.read(ends, 64)
    note.unlink()
    with contextlib.suppress(BrokenPipeError):
        line.sendall(os.waitstatus_to_exitcode(done[1]).to_bytes(8, signed=True))
    os._exit(0)


def begin(asked: dict, shown: list[int], script: str) -> None:
    """Makes this process what a new one of the client's would be."""
    for number, fd in zip(SHOWN, shown, strict=True):
        os.dup2(fd, number)
        os.close(fd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"] | {"PYTHON_EXEC": script})  # what torchrun starts
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    encoding, _, errors = asked["environment"].get("PYTHONIOENCODING", "utf-8").partition(":")
    streams = []
    for number, mode in zip(SHOWN, "rww", strict=True):
        if number in asked["shown"]:
            how = "backslashreplace" if number == 2 else errors or "strict"
            streams.append(os.fdopen(number, mode, encoding=encoding, errors=how))
        else:
            os.close(number)
            streams.append(None)
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__ = streams
    if sys.stdout:
        is_direct = asked["words"][0] == "-u" or bool(os.environ.get("PYTHONUNBUFFERED"))
        sys.stdout.reconfigure(line_buffering=sys.stdout.isatty(), write_through=is_direct)
    if sys.stderr:
        sys.stderr.reconfigure(line_buffering=True)


def play(words: list[str]) -> None:
    """As python does with these words. The end of an interpreter, a second for all of torch, is left out."""
    status = 0
    try:
        run(words)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        status = end.code or 0
    threading._shutdown()
    atexit._run_exitfuncs()
    if sys.stdout:
        sys.stdout.flush()
    os._exit(status & 255)


def run(words: list[str]) -> None:
    if words[0] == "-u":
        words = words[1:]
    if words[0] == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(words[0]).absolute().parent))
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        play(serve(*sys.argv[2:]))
    else:
        ask(sys.argv[1], sys.argv[2:])
