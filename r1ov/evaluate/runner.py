"""Questions to answers: decoded together, each written down as it is finished, so that a killed run goes on
where it stopped.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from r1ov.common.files import (
    check_same_options,
    digest,
    earlier_options,
    locked,
    say,
    write_json,
    write_lines,
)
from r1ov.common.journal import Journal
from r1ov.common.processes import World
from r1ov.data.formats.records import Record
from r1ov.data.processor import Encoded, Processor
from r1ov.data.steps import encode_record, frame_of
from r1ov.engine import Completion, decode, prepare
from r1ov.errors import UserError
from r1ov.evaluate.item import Item, Items, Prediction, read_predictions
from r1ov.evaluate.prompts import messages_of
from r1ov.model.model import Qwen2_5_VL

MERGED = "predictions.jsonl"
PATCH_BYTES = 4 << 30  # images that are enough to decode for, as patches in memory
CHUNK = 8  # times max_num_seqs: rows prepared at once, so that the batch is seldom short of prompts
ALONE = World()
SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "num_samples")
ASKING = ("prompt", "system", *SAMPLING)  # options: all that an answer depends on, but model and question


def run(
    model: Qwen2_5_VL,
    processor: Processor,
    items: Items,
    asking: Any,
    folder: Path,
    settings: Mapping,
    is_right: Callable[[Item, Prediction], float],
    max_num_seqs: int = 64,
    world: World = ALONE,
) -> list[Prediction] | None:
    """Answers what is not answered yet in the folder's predictions.jsonl. Collective: all ranks call this.

    Args: asking: an object with the fields ASKING, such as `__main__`'s EvaluateConfig.
    Returns: on the main rank all rows of these items, in their order, samples of one together; None on the
        others.
    """
    order = {item.id: number for number, item in enumerate(items)}
    with ExitStack() as stack:
        refusal = None
        if world.is_main:
            try:
                stack.enter_context(locked(folder))
                settle(folder, settings)
                merge(folder, order, {item.id: _hash(item, asking) for item in items})  # of a killed run
            except UserError as error:
                refusal = error
        if world.first(refusal is not None):
            raise refusal or SystemExit(2)  # said once, by the main rank
        rows = read_predictions(folder / MERGED, may_be_torn=True)
        done = {(row.id, row.sample) for row in rows if row.finish_reason != "error"}
        left = {(item.id, sample) for item in items for sample in range(asking.num_samples)} - done
        ids = {id for id, _ in left}
        # Processes that hold a model together answer the same questions, and the first one writes.
        size = model.split.world.size if model.split else 1
        groups = world.size // size
        mine = [item for item in items if item.id in ids][world.rank // size :: groups]
        right = count = 0
        # Closed before the ranks meet: after that, the main rank removes the file.
        with (
            Journal(folder / f"predictions.rank{world.rank}.jsonl", "id", sync=False) as journal,
            tqdm(total=len(left) // groups, unit=" answers", disable=not world.is_main) as progress,
        ):

            def keep(item: Item, row: Prediction) -> None:
                nonlocal right, count
                if (row.id, row.sample) not in left or world.rank % size:
                    return  # the item lacked another sample
                journal.append(asdict(row))
                right, count = right + is_right(item, row), count + 1
                progress.update()
                progress.set_postfix_str(f"right {right / count:.1%}", refresh=False)

            answer(model, processor, mine, asking, keep, max_num_seqs)
        world.wait()
        if not world.is_main:
            return None
        rows = merge(folder, order)
    return [row for row in rows if row.id in order and row.sample < asking.num_samples]


def answer(
    model: Qwen2_5_VL,
    processor: Processor,
    items: Items,
    asking: Any,
    keep: Callable[[Item, Prediction], None],
    max_num_seqs: int,
) -> None:
    """Calls `keep` with each answer as soon as it is there, in no order. Items that cannot be asked get an
    error row.

    An answer depends on its question and the seed, not on what else is asked.
    """
    samples = asking.num_samples
    sampling = {name: getattr(asking, name) for name in SAMPLING}

    def decode_all(prompts: list[tuple[Item, Encoded]]) -> None:
        prompts.sort(key=lambda pair: -len(pair[1]))  # the longest first: the slowest do not begin last

        def on_done(number: int, completion: Completion) -> None:
            item, encoded = prompts[number // samples]
            frame = frame_of(processor, encoded, None)
            row = Prediction(
                id=item.id,
                text=completion.text,
                sample=number % samples,
                finish_reason=completion.finish_reason,
                completion_tokens=completion.completion_tokens,
                prompt_hash=_hash(item, asking),
                resized=list(frame.resized) if frame else None,
                box_unit=item.box_unit,
            )
            keep(item, row)

        asked, encoded = zip(*prompts, strict=True)
        names = [item.id.encode(errors="backslashreplace") for item in asked]
        plan = prepare(processor, encoded, names=names, max_num_seqs=max_num_seqs, **sampling)
        decode(model, processor, plan, on_done=on_done)

    # As many at a time as fit into memory.
    chunk, size, most = [], 0, max(1, CHUNK * max_num_seqs // samples)
    for item in items:
        try:
            encoded = _encode(processor, item, asking)
        except UserError as error:
            for sample in range(samples):
                row = Prediction(id=item.id, text="", sample=sample, finish_reason="error", error=str(error))
                keep(item, row)
            continue
        chunk.append((item, encoded))
        size += sum(patches.nbytes for patches in encoded.pixel_values or ())
        if len(chunk) == most or size >= PATCH_BYTES:
            decode_all(chunk)
            chunk, size = [], 0
    if chunk:
        decode_all(chunk)


def _encode(processor: Processor, item: Item, asking: Any) -> Encoded:
    """Returns the item's prompt with its images. Raises UserError if it cannot be asked."""
    if item.error:
        raise UserError(item.error)
    encoded = encode_record(record_of(item, asking), processor, add_generation_prompt=True)
    positions = processor.config.text.max_position_embeddings
    if len(encoded) >= positions:
        raise UserError(
            f"the prompt has {len(encoded):,} tokens, which leaves no room for an answer in {positions:,} "
            "positions"
        )
    return processor.with_pixels(encoded)


def record_of(item: Item, asking: Any) -> Record:
    """Returns the item as a row of training data: its boxes are read alike."""
    answer = {"solution": item.answer, "kind": item.kind, "box_unit": item.box_unit}
    messages = [] if item.error else messages_of(item, asking.prompt, asking.system)
    return Record(messages=messages, format=item.bench, **answer)


def _hash(item: Item, asking: Any) -> str:
    """Tells one prompt from another by its text and the sizes of its images, without decoding them."""
    messages = record_of(item, asking).messages
    return digest(json.dumps(messages, default=lambda image: image.size)) if messages else ""


# The run's folder: a line for each answer, from any number of processes; merged, each answer once.


def settle(folder: Path, settings: Mapping) -> None:
    """Writes down how the folder's answers are made, or checks that they are made as before.

    Args:    settings: JSON data; what is under "run" may differ.
    Raises:  UserError if anything else does.
    """
    path = folder / "settings.json"
    check_same_options(earlier_options(path) or settings, settings, ("run",), str(folder))
    write_json(path, settings)


def merge(folder: Path, order: Mapping[str, int], hashes: Mapping[str, str] = {}) -> list[Prediction]:
    """Makes one file of the answers of all processes, now and earlier, in the benchmark's order. Returns its
    rows.

    The first row of an answer counts, but a failed one gives way to any later. It may be killed at any
    moment: the other files go only when this one is complete.

    Args: order: of the ids; unknown ones come last. hashes: of the questions by id; answers to a question
        that has another are dropped, which is said on stderr.
    """
    merged, parts = folder / MERGED, sorted(folder.glob("predictions.rank*.jsonl"))
    kept, mended = {}, set()  # (id, sample) -> row; ids
    for path in [merged, *parts] if merged.exists() else parts:
        for row in read_predictions(path, may_be_torn=True):
            earlier = kept.get((row.id, row.sample))
            if row.prompt_hash and hashes.get(row.id, row.prompt_hash) != row.prompt_hash:
                mended.add(row.id)
            elif earlier is None or earlier.finish_reason == "error":
                kept[row.id, row.sample] = row
    if mended:
        say(f"{len(mended)} questions have changed since they were answered; asked again")
    rows = sorted(kept.values(), key=lambda row: (order.get(row.id, len(order)), row.id, row.sample))
    write_lines(merged, map(asdict, rows))
    for path in parts:
        path.unlink()
    return rows
