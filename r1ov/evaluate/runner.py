"""Questions to answers: decoded together, each written down as it is finished, so that a killed run goes on
where it stopped.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from r1ov.common.files import locked
from r1ov.common.processes import World
from r1ov.data.processor import Encoded, Processor
from r1ov.engine import Completion, decode, prepare
from r1ov.errors import UserError
from r1ov.evaluate.item import Item, Items, Prediction
from r1ov.evaluate.predictions import MERGED, appending, merge, read_predictions, settle
from r1ov.evaluate.prompts import Style, messages_of, prompt_hash
from r1ov.model.model import Qwen2_5_VL

PATCH_BYTES = 4 << 30  # images in memory at once, as patches
CHUNK = 8  # times max_num_seqs: rows prepared at once, so that the batch is seldom short of prompts


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Everything that an answer depends on, except the model and the question; any object with these fields
    will do.
    """

    prompt: Style = "r1ov"
    system: str | None = None
    max_new_tokens: int = 4096
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    num_samples: int = 1


ALONE = World()
SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "num_samples")


def run(
    model: Qwen2_5_VL,
    processor: Processor,
    items: Items,
    asking: Asking,
    folder: Path,
    settings: Mapping[str, Any],
    is_right: Callable[[Item, Prediction], float],
    max_num_seqs: int = 64,
    world: World = ALONE,
) -> list[Prediction] | None:
    """Answers what is not answered yet in the folder's predictions.jsonl. Collective: all ranks call this.

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
                # with the answers of a killed run
                _check_prompts(items, merge(folder, order), asking)
            except UserError as error:
                refusal = error
        if world.first(refusal is not None):
            raise refusal or SystemExit(2)  # said once, by the main rank
        rows = read_predictions(folder / MERGED)
        done = {(row.id, row.sample) for row in rows if row.finish_reason != "error"}
        left = {(item.id, sample) for item in items for sample in range(asking.num_samples)} - done
        ids = {id for id, _ in left}
        mine = [item for item in items if item.id in ids][world.rank :: world.size]
        total, right, count = len(left) // world.size, 0.0, 0
        # Closed before the ranks meet: after that, the main rank removes the file.
        with (
            appending(folder, world.rank) as write,
            tqdm(total=total, unit=" answers", disable=not world.is_main, smoothing=0.05) as progress,
        ):

            def keep(item: Item, row: Prediction) -> None:
                nonlocal right, count
                if (row.id, row.sample) not in left:
                    return  # the item lacked another sample
                write(row)
                right, count = right + is_right(item, row), count + 1
                progress.update()
                progress.set_postfix_str(f"right {right / count:.1%}", refresh=False)

            answer(model, processor, mine, asking, keep, max_num_seqs)
        world.wait()
        if not world.is_main:
            return None
        rows = merge(folder, order)
    return [row for row in rows if row.id in order and row.sample < asking.num_samples]


def _check_prompts(items: Items, rows: Sequence[Prediction], asking: Asking) -> None:
    """Raises UserError if a question is not the one that was answered."""
    asked = {row.id: row.prompt_hash for row in rows if row.prompt_hash}
    for item in items:
        if item.id in asked and (
            item.error or asked[item.id] != prompt_hash(messages_of(item, asking.prompt, asking.system))
        ):
            raise UserError(
                f"question {item.id} is not the one that was answered before: its text or pictures changed; "
                "choose another --out"
            )


def answer(
    model: Qwen2_5_VL,
    processor: Processor,
    items: Items,
    asking: Asking,
    keep: Callable[[Item, Prediction], None],
    max_num_seqs: int,
) -> None:
    """Calls `keep` with each answer as soon as it is there, in no order. Items that cannot be asked get an
    error row.

    An answer depends on its question and the seed, not on what else is asked.
    """

    def fail(item: Item, reason: str) -> None:
        row = Prediction(id=item.id, text="", finish_reason="error", seed=asking.seed, error=reason)
        for sample in range(asking.num_samples):
            keep(item, replace(row, sample=sample))

    def decode_all(prompts: Sequence[tuple[Item, Encoded]]) -> None:
        started = time.perf_counter()

        def on_done(number: int, completion: Completion) -> None:
            item, encoded = prompts[number // asking.num_samples]
            sizes = processor.image_sizes(encoded)
            row = Prediction(
                id=item.id,
                text=completion.text,
                sample=number % asking.num_samples,
                finish_reason=completion.finish_reason,
                completion_tokens=completion.completion_tokens,
                seconds=round(time.perf_counter() - started, 3),
                prompt_hash=prompt_hash(messages_of(item, asking.prompt, asking.system)),
                seed=asking.seed,
                resized=list(sizes[1]) if sizes else None,
            )
            keep(item, row)

        plan = prepare(
            processor,
            [encoded for _, encoded in prompts],
            names=[item.id.encode(errors="backslashreplace") for item, _ in prompts],
            max_num_seqs=max_num_seqs,
            **{name: getattr(asking, name) for name in SAMPLING},
        )
        decode(model, processor, plan, on_done=on_done)

    most = max(1, CHUNK * max_num_seqs // asking.num_samples)
    for chunk in _chunks(processor, items, asking, most, fail):
        decode_all(chunk)


def _chunks(
    processor: Processor,
    items: Items,
    asking: Asking,
    most: int,
    fail: Callable[[Item, str], None],
) -> Iterator[list[tuple[Item, Encoded]]]:
    """Yields the items with their prompts, as many at a time as fit, longest first, so that the slowest do
    not begin last.
    """
    chunk: list[tuple[Item, Encoded]] = []
    size = 0
    positions, images = processor.config.text.max_position_embeddings, processor.image_processor
    patch = 4 * 3 * images.temporal_patch_size * images.patch_size**2  # bytes
    for item in items:
        try:
            if item.error:
                raise UserError(item.error)
            messages = messages_of(item, asking.prompt, asking.system)
            encoded = processor.encode(messages, add_generation_prompt=True)
            if len(encoded) >= positions:
                raise UserError(
                    f"the prompt has {len(encoded):,} tokens, "
                    f"which leaves no room for an answer in {positions:,} positions"
                )
            own = 0 if encoded.image_grid_thw is None else int(encoded.image_grid_thw.prod(1).sum()) * patch
            if chunk and (len(chunk) == most or size + own > PATCH_BYTES):
                yield sorted(chunk, key=lambda pair: -len(pair[1]))
                chunk, size = [], 0
            chunk.append((item, processor.with_pixels(encoded)))
            size += own
        except UserError as error:
            fail(item, str(error))
    if chunk:
        yield sorted(chunk, key=lambda pair: -len(pair[1]))


def fingerprint(folder: Path) -> str:
    """Tells one model's folder from another by its files: small ones whole, large ones at 256 places.


    Reading all of 15 GB would take longer than many an evaluation; training changes weights everywhere.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".txt", ".safetensors"):
            digest.update(path.name.encode())
            size = path.stat().st_size
            with path.open("rb") as file:
                for place in range(0, size, max(1 << 16, size // 256)):
                    file.seek(place)
                    digest.update(file.read(1 << 16))
    return digest.hexdigest()
