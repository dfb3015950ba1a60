"""Processes that prepare steps ahead of the run: torch's DataLoader, the user's mistakes kept readable."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from r1ov.common.stopping import shielded
from r1ov.errors import UserError


def prepared(make: Callable[[int], Any], numbers: range, num_workers: int) -> Iterator:
    """make(number) for each, in order, every worker two ahead. The workers begin at once, and end with the
    iterator.

    Raises: UserError in this process, with its own line, where a worker finds one.
    """
    loader = DataLoader(
        _Guarded(make),
        sampler=numbers,
        batch_size=None,
        num_workers=num_workers,
        generator=torch.Generator(),  # else each loader would take a number from the global one
    )
    with shielded():
        return map(_step_or_raise, loader)


class _Guarded:
    """The user's mistake as a text: raised in a worker, it would arrive with torch's whole traceback."""

    def __init__(self, make: Callable[[int], Any]):
        self.make = make

    def __getitem__(self, number: int) -> Any:
        try:
            return self.make(number)
        except UserError as error:
            return str(error)


def _step_or_raise(result: Any) -> Any:
    if isinstance(result, str):
        raise UserError(result)
    return result
