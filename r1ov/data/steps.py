"""A run's data, step by step: which rows a step takes, which packs they make, and which of these each rank
trains.

A step is a function of its number alone: step s takes rows [s * B, (s + 1) * B) of a source without end, B
being the same however many ranks there are. So a run goes on from any step, on any number of ranks, and the
workers that prepare steps need no state. Every rank encodes all rows (text to ids, and the pictures' sizes:
cheap), so that all come to the same packs without talking; only the rank that trains a pack decodes its
pictures and cuts them into patches.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from r1ov.common.stopping import shielded
from r1ov.common.text import one_line
from r1ov.data.formats.records import BadRow, Record
from r1ov.data.image import LazyImage
from r1ov.data.pack import pack, sequence_cost
from r1ov.data.processor import IGNORED, Batch, Encoded, Processor
from r1ov.errors import UserError
from r1ov.model.rope import mrope_positions


class Source(Protocol):
    """Rows without end; a function of the number alone. `Mixture` is one, `Playground` another."""

    def __getitem__(self, number: int) -> Record | BadRow: ...


@dataclass(frozen=True, kw_only=True)
class StepData:
    """One step's data, as one rank needs it."""

    batches: list[Batch]  # this rank's packs, with labels; every rank has as many
    rows: int  # that all ranks train together, before any picture failed to decode
    cost: int  # floating-point operations of training them, all ranks together
    items: list[
        Record | BadRow
    ]  # what became of each row, for a `Tally`, the same on every rank; records come without their messages
    undecoded: list[BadRow]  # rows left out on this rank alone, as a picture could not be decoded


class Steps(Dataset):
    """steps[s] is the StepData of step s, counted from 0."""

    def __init__(
        self,
        source: Source,
        processor: Processor,
        rows_per_step: int,
        max_length: int,
        rank: int = 0,
        world_size: int = 1,
        overlong: Literal["drop", "error"] = "drop",
    ):
        """
        Args:
            rows_per_step: B, over all ranks and micro-batches.
            max_length: tokens that a sequence, and a pack, may have; a pack of text alone can have those of
                the blank sequence more.
            overlong: what becomes of longer sequences: "drop" makes them a BadRow that counts as dropped,
                "error" a UserError.
        """
        self.source, self.processor, self.rows_per_step, self.max_length = (
            source,
            processor,
            rows_per_step,
            max_length,
        )
        self.rank, self.world_size, self.overlong = rank, world_size, overlong

    def __getitem__(self, step: int) -> StepData:
        """Raises UserError for an over-long row where that is an error, and for what the source raises."""
        items: list[Record | BadRow] = []
        rows: list[tuple[str, Encoded]] = []  # (where, the sequence)
        for number in range(step * self.rows_per_step, (step + 1) * self.rows_per_step):
            item, encoded = self._row(self.source[number])
            items.append(replace(item, messages=[]) if isinstance(item, Record) else item)
            rows += [(item.where, encoded)] if encoded is not None else []

        costs = [self._cost(encoded) for _, encoded in rows]
        packs = pack([len(encoded) for _, encoded in rows], costs, self.max_length, self.world_size)
        batches, undecoded = [], []
        for members in packs[self.rank :: self.world_size]:
            sequences = []
            for where, encoded in (rows[member] for member in members):
                try:
                    sequences.append(self.processor.with_pixels(encoded))
                except UserError as error:
                    undecoded.append(_bad(where, error))
            if self.world_size > 1 and all(encoded.pixel_values is None for encoded in sequences):
                sequences.append(blank_sequence(self.processor))
            batches += [self.processor.pack(sequences)] if sequences else []
        return StepData(batches=batches, rows=len(rows), cost=sum(costs), items=items, undecoded=undecoded)

    def _row(self, item: Record | BadRow) -> tuple[Record | BadRow, Encoded | None]:
        """The row as it is counted, and its sequence where it is trained."""
        if isinstance(item, BadRow):
            return item, None
        try:
            encoded = self.processor.encode(item.messages, return_labels=True)
        except UserError as error:
            return _bad(item.where, error), None
        if len(encoded) <= self.max_length:
            return item, encoded
        line = one_line(f"{item.where}: {len(encoded):,} tokens, more than the limit of {self.max_length:,}")
        if self.overlong == "error":
            raise UserError(f"{line}; raise the limit, lower max_pixels, or let such rows be dropped")
        return BadRow(f"the row has more than {self.max_length:,} tokens", line, dropped=True), None

    def _cost(self, encoded: Encoded) -> int:
        grids = [] if encoded.image_grid_thw is None else encoded.image_grid_thw.tolist()
        return sequence_cost(
            self.processor.config, len(encoded), int((encoded.labels != IGNORED).sum()), grids
        )


def _bad(where: str, error: UserError) -> BadRow:
    """A row with an image that cannot be decoded, or that the processor refuses."""
    if isinstance(error, BadRow):
        return error.at(where)
    return BadRow("the processor refuses it", one_line(f"{where}: {error}")[:500])


def blank_sequence(processor: Processor) -> Encoded:
    """A frame of one white merged patch, of which nothing is trained.

    It makes the vision encoder run where a rank has no picture: sharded, all ranks must gather its weights
    together. It adds exactly nothing to the loss and to any gradient, since no token of it has a label and no
    other sequence attends to it.
    """
    config, merge_size = processor.config, processor.image_processor.merge_size
    side = merge_size * processor.image_processor.patch_size
    ids = torch.tensor([config.vision_start_token_id, config.image_token_id, config.vision_end_token_id])
    grid = torch.tensor([[1, merge_size, merge_size]])
    return processor.with_pixels(
        Encoded(
            input_ids=ids,
            labels=torch.full_like(ids, IGNORED),
            position_ids=mrope_positions(ids, grid, config.image_token_id, merge_size),
            image_grid_thw=grid,
            pictures=(LazyImage((side, side), partial(Image.new, "RGB", (side, side), "white")),),
        )
    )


def load_steps(
    steps: Steps, start: int, stop: int, num_workers: int = 0, prefetch: int = 2
) -> Iterator[StepData]:
    """steps[start], ..., steps[stop - 1] in order, prepared ahead by `num_workers` processes, each `prefetch`
    steps ahead.

    Raises:  UserError in this process, with its own line, where a worker finds one; the workers end with the
        iterator.
    """
    loader = DataLoader(
        _Guarded(steps),
        sampler=range(start, stop),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # else each loader would take a number from the global one
    )
    with shielded():
        return map(_value_or_raise, loader)  # the workers begin at once


class _Guarded(Dataset):
    """A user's mistake becomes a value: raised in a worker, it would arrive as torch's text of the whole
    traceback.
    """

    def __init__(self, steps: Steps):
        self.steps = steps

    def __getitem__(self, step: int) -> StepData | UserError:
        try:
            return self.steps[step]
        except UserError as error:
            return UserError(str(error))


def _as_it_is(data: StepData | UserError) -> StepData | UserError:
    return data


def _value_or_raise(result: StepData | UserError) -> StepData:
    if isinstance(result, UserError):
        raise result
    return result
