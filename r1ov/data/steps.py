"""What both stages make of a record; and the data of supervised fine-tuning, step by step: its rows, their
packs, and which of these a rank trains.

A step is a function of its number alone: step s takes rows [s * B, (s + 1) * B) of a source without end, B
being the same for any number of ranks. So a run goes on from any step, on any number of ranks, and the
workers that prepare steps need no state.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from r1ov.common.files import one_line
from r1ov.data.formats.reader import Reader
from r1ov.data.formats.records import BadRow, Record, refused
from r1ov.data.messages import Messages
from r1ov.data.pack import needed_blank, num_trained, pack, sequence_cost
from r1ov.data.processor import Batch, Encoded, Processor
from r1ov.errors import UserError
from r1ov.reward.rules.boxes import TOKENS, Frame, Unit, corners, is_marked, recognised, resized


class Source(Protocol):
    """Rows without end, a function of the number alone. `Endless` is one, `Playground` another."""

    fingerprint: tuple[str, ...]  # a line for each file

    def __getitem__(self, number: int) -> Record | BadRow: ...


@dataclass(frozen=True, kw_only=True)
class StepData:
    """One step's data, as one rank needs it."""

    batches: list[Batch]  # this rank's packs, with labels; every rank has as many
    rows: int  # that all ranks train together, before any image failed to decode
    cost: int  # floating-point operations of training them, all ranks together
    items: list[Record | BadRow]  # what became of each row, the same on every rank; records without messages
    undecoded: list[BadRow]  # rows left out on this rank alone, because an image could not be decoded


@dataclass(frozen=True)
class Steps:
    """steps[s] is the StepData of step s, counted from 0.

    Every rank encodes all rows (text to ids, and the images' sizes: cheap), so that all come to the same
    packs without talking; only the rank that trains a pack decodes its images and cuts them into patches.

    Args:
        rows_per_step: B, over all ranks and packs.
        max_length: most tokens of a sequence, and of a pack (a pack of text alone may exceed it by those of
            the blank sequence).
        overlong: "drop" makes longer sequences a BadRow that counts as dropped, "error" raises UserError.
    """

    source: Source
    processor: Processor
    rows_per_step: int
    max_length: int
    rank: int = 0
    world_size: int = 1
    overlong: Literal["drop", "error"] = "drop"

    def __getitem__(self, step: int) -> StepData:
        """Raises UserError for an over-long row where that is an error, and for what the source raises."""
        items = []  # records and bad rows
        rows, costs = [], []  # (where, the sequence), and what it costs
        for number in range(step * self.rows_per_step, (step + 1) * self.rows_per_step):
            item = self.source[number]
            try:
                encoded = self.encoded(item)
                items.append(replace(item, messages=[]))
            except BadRow as error:
                items.append(error)
                continue
            rows.append((item.where, encoded))
            grids = () if encoded.image_grid_thw is None else encoded.image_grid_thw.tolist()
            trained = num_trained(encoded.labels)
            costs.append(sequence_cost(self.processor.config, len(encoded), trained, grids))
        packs = pack([len(encoded) for _, encoded in rows], costs, self.max_length, self.world_size)
        batches, undecoded = [], []
        for members in packs[self.rank :: self.world_size]:
            sequences = []
            for where, encoded in (rows[member] for member in members):
                try:
                    sequences.append(self.processor.with_pixels(encoded))
                except UserError as error:
                    undecoded.append(refused(where, error))
            if self.world_size > 1:
                sequences += needed_blank(sequences, self.processor)
            batches += [self.processor.pack(sequences)] if sequences else []
        return StepData(batches=batches, rows=len(rows), cost=sum(costs), items=items, undecoded=undecoded)

    def encoded(self, item: Record | BadRow) -> Encoded:
        """The row's conversation with labels, without pixels. Raises BadRow if it cannot be trained on."""
        if isinstance(item, BadRow):
            raise item
        try:
            encoded = encode_record(item, self.processor, return_labels=True)
        except UserError as error:
            raise refused(item.where, error) from error
        if len(encoded) > self.max_length:
            line = one_line(
                f"{item.where}: {len(encoded):,} tokens, more than the limit of {self.max_length:,}"
            )
            if self.overlong == "error":
                raise UserError(f"{line}; raise the limit, lower max_pixels, or let such rows be dropped")
            raise BadRow(f"the row has more than {self.max_length:,} tokens", line, dropped=True)
        return encoded


def frame_of(processor: Processor, encoded: Encoded, unit: Unit | None) -> Frame | None:
    """Where a conversation's boxes lie: in its first image, as given and as the model sees it, if any."""
    if encoded.image_grid_thw is None:
        return None
    _, height, width = (processor.image_processor.patch_size * encoded.image_grid_thw[0]).tolist()
    is_only = len({image.size for image in encoded.pictures}) == 1
    return Frame(encoded.pictures[0].size, (width, height), unit, is_only)


def encode_record(record: Record, processor: Processor, **options: Any) -> Encoded:
    """The record's messages as `Processor.encode`, their boxes measured as the model measures its own."""
    encoded = processor.encode(record.messages, **options)
    if not (frame := frame_of(processor, encoded, record.box_unit)):
        return encoded
    messages = with_boxes(record, lambda text: resized(text, frame))
    return encoded if messages == record.messages else processor.encode(messages, **options)


def with_boxes(record: Record, change: Callable[[str], str]) -> Messages:
    """The messages with what `change` makes of texts that hold boxes: replies of which the row's kind or a
    key says so, and any text with Qwen's tokens.
    """

    messages = []
    for message in record.messages:
        plain, is_reply = isinstance(message["content"], str), message["role"] == "assistant"
        parts = []
        for part in [{"text": message["content"]}] if plain else message["content"]:
            text, is_box = part.get("text", ""), record.kind in ("bbox", "boxes")
            if TOKENS.search(text) or (is_reply and (is_box or is_marked(text))):
                part = part | {"text": change(text)}
            parts.append(part)
        messages.append({**message, "content": parts[0]["text"] if plain else parts})
    return messages


def recognise_boxes(reader: Reader, processor: Processor) -> None:
    """Sets the unit of the reader's boxes by its first rows, unless it is known."""
    if not reader.box_unit:
        reader.box_unit = recognised_unit(map(reader.__getitem__, range(min(len(reader), 100))), processor)


def recognised_unit(records: Iterable[Record | BadRow], processor: Processor) -> Unit | None:
    """The unit of the boxes of records that do not say theirs: see `boxes.recognised`."""
    found = []  # (a corner, its frame)
    for record in records:
        if isinstance(record, BadRow) or record.box_unit or not record.images:
            continue
        ends = []  # corners
        answer = {"role": "assistant", "content": record.solution or record.reply or ""}
        record = replace(record, messages=[*record.prompt, answer])
        with_boxes(record, lambda text, ends=ends: ends.extend(corners(text)) or text)
        with suppress(UserError):  # an image that cannot be read is another fault
            frame = frame_of(processor, processor.encode(record.messages), None) if ends else None
            found += [(end, frame) for end in ends if frame.is_only]
    return recognised(found)


def load_steps(steps: Steps, start: int, stop: int, num_workers: int) -> Iterator[StepData]:
    """steps[start], ..., steps[stop - 1] in order, prepared ahead by `num_workers` processes."""
    if not num_workers:
        return map(steps.__getitem__, range(start, stop))
    from r1ov.data.formats.workers import prepared

    return prepared(steps.__getitem__, range(start, stop), num_workers)
