"""Processes that prepare steps ahead of the run: torch's DataLoader, the user's mistakes kept readable."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from r1ov.common.stopping import shielded
from r1ov.data.steps import StepData, Steps
from r1ov.errors import UserError


def prepared(steps: Steps, numbers: range, num_workers: int) -> Iterator[StepData]:
    """The steps in order, each worker two ahead. The workers begin at once, and end with the iterator.

    Raises: UserError in this process, with its own line, where a worker finds one.
    """
    loader = DataLoader(
        _Guarded(steps),
        sampler=numbers,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # else each loader would take a number from the global one
    )
    with shielded():
        return map(_data_or_raise, loader)


class _Guarded(Dataset):
    """The user's mistake as a text: raised in a worker, it would arrive with torch's whole traceback."""

    def __init__(self, steps: Steps):
        self.steps = steps

    def __getitem__(self, step: int) -> StepData | str:
        try:
            return self.steps[step]
        except UserError as error:
            return str(error)


def _as_it_is(result: StepData | str) -> StepData | str:
    return result


def _data_or_raise(result: StepData | str) -> StepData:
    if isinstance(result, str):
        raise UserError(result)
    return result
