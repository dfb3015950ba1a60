"""Runs that are asked to stop: the first signal is noted, the second Ctrl-C interrupts, loader workers
survive.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from r1ov.common.stopping import shielded, stopping

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_signal_is_only_noted(number, capfd):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with stopping("stopping") as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)  # once more changes nothing
    assert capfd.readouterr().err.count("\n") == 1
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def test_the_second_ctrl_c_interrupts_at_once(capfd):
    before = signal.getsignal(signal.SIGINT)

    def interrupted_twice():
        with stopping() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.is_set()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
    assert signal.getsignal(signal.SIGINT) == before
    assert capfd.readouterr().err == ""


class WorkersIds(Dataset):
    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(os.getpid())


def test_workers_of_a_loader_never_see_signals_to_the_whole_group():
    loader = DataLoader(WorkersIds(), sampler=range(8), batch_size=None, num_workers=1, prefetch_factor=2)
    with shielded():
        batches = iter(loader)
    (child,) = multiprocessing.active_children()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(child.pid, number)  # at its first instructions, perhaps
    assert [int(batch) for batch in batches] == [child.pid] * 8


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_helper_never_sees_signals_whatever_starts_it(method):
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    with shielded():
        child = context.Process(target=echo, args=(theirs,))
        child.start()
        program = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(child.pid, number)
        program.send_signal(number)
    ours.send("still there")
    assert ours.recv() == "still there"
    child.join()
    assert program.communicate(b"still there") == (b"still there", None)
    assert (child.exitcode, program.returncode) == (0, 0)


def echo(pipe) -> None:
    pipe.send(pipe.recv())


def test_a_signal_that_comes_while_helpers_are_started_is_not_lost():
    with stopping() as stop:
        with shielded():
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_a_program_that_fails_ends_though_its_helpers_do_not_see_signals():
    code = """
import torch
from torch.utils.data import DataLoader
from r1ov.common.stopping import shielded
with shielded():
    batches = iter(DataLoader(range(9), num_workers=1))
next(batches)
held = [batches]  # as the traceback of an error holds it
held.append(held)
raise ZeroDivisionError
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError\n")
