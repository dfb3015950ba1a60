"""Runs that are asked to stop: the first signal is noted, the second Ctrl-C interrupts, loader workers
survive.
"""

import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from r1ov.common.processes import World
from r1ov.common.stopping import leave_signals_to_the_main_process, stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_only_noted(number, capfd):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with stopping() as stop:
        assert not stop.requested
        assert not stop.agreed(World().sum)
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.agreed(World().sum)
        os.kill(os.getpid(), signal.SIGTERM)  # once more changes nothing
    assert capfd.readouterr().err.count("\n") == 1
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def test_the_second_ctrl_c_interrupts_at_once(capfd):
    before = signal.getsignal(signal.SIGINT)

    def interrupted_twice():
        with stopping(announce=False) as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
    assert signal.getsignal(signal.SIGINT) == before
    assert capfd.readouterr().err == ""


def test_one_rank_that_is_asked_stops_all():
    with stopping() as stop:
        assert stop.agreed(lambda mine: [mine + 1.0])


class WorkersIds(Dataset):
    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(os.getpid())


def test_workers_of_a_loader_survive_signals_to_the_whole_group():
    loader = DataLoader(
        WorkersIds(),
        sampler=range(8),
        batch_size=None,
        num_workers=1,
        worker_init_fn=leave_signals_to_the_main_process,
        prefetch_factor=2,
    )
    batches = iter(loader)
    worker = int(next(batches))
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker, number)
    assert [int(batch) for batch in batches] == [worker] * 7
