"""Questions to answers: decoded together, each written down as it is finished, so that whatever is killed
goes on where it stopped.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from r1ov.data.processor import Encoded, Processor
from r1ov.engine import Completion, decode, prepare
from r1ov.errors import UserError
from r1ov.evaluate.item import Item, Prediction
from r1ov.evaluate.predictions import MERGED, appending, locked, merge, read_predictions, settle
from r1ov.evaluate.prompts import Style, messages_of, prompt_hash
from r1ov.model.model import Qwen2_5_VL

PATCH_BYTES = (
    4 << 30
)  # of the pictures that lie in memory at once, as patches; twice that while they are packed
CHUNK = 8  # times max_num_seqs: rows prepared at once, so that the batch is seldom short of prompts


@dataclass(frozen=True, kw_only=True)
class Asking:
    """All that an answer depends on, but for the model and the question."""

    prompt: Style = "r1ov"
    system: str | None = None
    max_new_tokens: int = 4096
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    num_samples: int = 1


@dataclass(frozen=True)
class Ranks:
    """This process's number, and how many torchrun started."""

    rank: int = 0
    size: int = 1

    def wait(self) -> None:
        """Until all have come so far."""
        if self.size > 1:
            dist.barrier()

    def told(self, value: bool) -> bool:
        """The first process's value."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, 0)
        return values[0]


@contextmanager
def ranks() -> Iterator[Ranks]:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    dist.init_process_group(
        "gloo", timeout=timedelta(days=30)
    )  # for one waits as long as the slowest works; torchrun sees who dies
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def run(
    model: Qwen2_5_VL,
    processor: Processor,
    items: Sequence[Item],
    asking: Asking,
    folder: Path,
    settings: Mapping[str, Any],
    is_right: Callable[[Item, Prediction], float],
    max_num_seqs: int = 64,
) -> list[Prediction] | None:
    """Answers what is not answered yet in the folder's predictions.jsonl, alone or as one of torchrun's
    processes.

    Returns: in the first process all rows of these items, in their order, samples of one together; None in
        the others.
    """
    order = {item.id: number for number, item in enumerate(items)}
    with ranks() as world, ExitStack() as stack:
        refusal = None
        if world.rank == 0:
            try:
                stack.enter_context(locked(folder))
                settle(folder, settings)
                _check_prompts(items, merge(folder, order), asking)  # with what a killed run left behind
            except UserError as error:
                refusal = error
        if world.told(refusal is not None):
            raise refusal or SystemExit(2)  # said once, by the first
        rows = read_predictions(folder / MERGED)
        done = {(row.id, row.sample) for row in rows if row.finish_reason != "error"}
        wanted = range(asking.num_samples)
        pending = [item for item in items if any((item.id, sample) not in done for sample in wanted)][
            world.rank :: world.size
        ]
        left = sum((item.id, sample) not in done for item in pending for sample in wanted)
        right, count = 0.0, 0
        # Closed before the wait: after that, the first process removes the file.
        with (
            appending(folder, world.rank) as write,
            tqdm(total=left, unit=" answers", disable=world.rank > 0, smoothing=0.05) as progress,
        ):

            def keep(item: Item, row: Prediction) -> None:
                nonlocal right, count
                if (row.id, row.sample) in done:
                    return  # of an item that lacked other samples
                write(row)
                right, count = right + is_right(item, row), count + 1
                progress.update()
                progress.set_postfix_str(f"right {right / count:.1%}", refresh=False)

            answer(model, processor, pending, asking, keep, max_num_seqs)
        world.wait()
        if world.rank:
            return None
        rows = merge(folder, order)
    return [row for row in rows if row.id in order and row.sample < asking.num_samples]


def _check_prompts(items: Sequence[Item], rows: Sequence[Prediction], asking: Asking) -> None:
    """Raises UserError if a question is not the one that was answered."""
    asked = {row.id: row.prompt_hash for row in rows if row.prompt_hash}
    for item in items:
        if item.id in asked and asked[item.id] != prompt_hash(
            messages_of(item, asking.prompt, asking.system)
        ):
            raise UserError(
                f"question {item.id} is not the one that was answered before: its text or pictures changed; choose another --out"
            )


def answer(
    model: Qwen2_5_VL,
    processor: Processor,
    items: Sequence[Item],
    asking: Asking,
    keep: Callable[[Item, Prediction], None],
    max_num_seqs: int,
) -> None:
    """Calls `keep` with each answer as soon as it is there, in no order. What cannot be asked has one as
    well, that says why.

    An answer depends on its question and the seed, not on what else is asked.
    """
    failures: list[tuple[Item, str]] = []
    for chunk in _chunks(
        processor, items, asking, max(1, CHUNK * max_num_seqs // asking.num_samples), failures
    ):
        prompts = []
        for item, encoded in chunk:
            try:
                prompts.append((item, processor.with_pixels(encoded)))
            except UserError as error:
                failures.append((item, str(error)))
        for item, reason in failures:
            for sample in range(asking.num_samples):
                row = Prediction(
                    id=item.id, text="", sample=sample, finish_reason="error", seed=asking.seed, error=reason
                )
                keep(item, row)
        failures.clear()
        if prompts:
            _decode(model, processor, prompts, asking, keep, max_num_seqs)


def _chunks(
    processor: Processor, items: Sequence[Item], asking: Asking, most: int, failures: list[tuple[Item, str]]
) -> Iterator[list[tuple[Item, Encoded]]]:
    """The items with their prompts, as many at a time as fit, longest first: those that take longest do not
    begin last.
    """
    chunk: list[tuple[Item, Encoded]] = []
    size = 0
    positions, images = processor.config.text.max_position_embeddings, processor.image_processor
    patch = 4 * 3 * images.temporal_patch_size * images.patch_size**2  # bytes
    for item in items:
        try:
            if item.error:
                raise UserError(item.error)
            encoded = processor.encode(
                messages_of(item, asking.prompt, asking.system), add_generation_prompt=True
            )
            if len(encoded) >= positions:
                raise UserError(
                    f"the prompt has {len(encoded):,} tokens, which leaves no room for an answer in {positions:,} positions"
                )
        except UserError as error:
            failures.append((item, str(error)))
            continue
        own = 0 if encoded.image_grid_thw is None else int(encoded.image_grid_thw.prod(1).sum()) * patch
        if chunk and (len(chunk) == most or size + own > PATCH_BYTES):
            yield sorted(chunk, key=lambda pair: -len(pair[1]))
            chunk, size = [], 0
        chunk.append((item, encoded))
        size += own
    yield sorted(chunk, key=lambda pair: -len(pair[1]))


def _decode(
    model: Qwen2_5_VL,
    processor: Processor,
    prompts: Sequence[tuple[Item, Encoded]],
    asking: Asking,
    keep: Callable[[Item, Prediction], None],
    max_num_seqs: int,
) -> None:
    plan = prepare(
        processor,
        [encoded for _, encoded in prompts],
        names=[item.id.encode(errors="backslashreplace") for item, _ in prompts],
        max_num_seqs=max_num_seqs,
        **{name: getattr(asking, name) for name in SAMPLING},
    )
    started = time.perf_counter()

    def on_done(number: int, completion: Completion) -> None:
        item = prompts[number // asking.num_samples][0]
        row = Prediction(
            id=item.id,
            text=completion.text,
            sample=number % asking.num_samples,
            finish_reason=completion.finish_reason,
            completion_tokens=completion.completion_tokens,
            seconds=round(time.perf_counter() - started, 3),
            prompt_hash=prompt_hash(messages_of(item, asking.prompt, asking.system)),
            seed=asking.seed,
        )
        keep(item, row)

    decode(model, processor, plan, on_done=on_done)


SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "num_samples")


def fingerprint(processor: Processor, folder: Path) -> str:
    """Tells one model from another: its tokenizer, template and settings, and of its weights the header and a
    thousandth.

    Reading all of 15 GB would take longer than many an evaluation; a training changes weights everywhere.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, text in sorted(
        {**processor.files, "config.json": (folder / "config.json").read_text(encoding="utf-8")}.items()
    ):
        digest.update(f"{name}\n{text}".encode())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            for place in range(0, size, max(1 << 16, size // 256)):
                file.seek(place)
                digest.update(file.read(1 << 16 if place == 0 else 4096))
    return digest.hexdigest()


def settings_of(asking: Asking, processor: Processor, **more: Any) -> dict[str, Any]:
    """What settings.json says of a run. Args: more: of the model and the questions."""
    limits = {name: getattr(processor.image_processor, name) for name in ("min_pixels", "max_pixels")}
    return {**more, **{name: getattr(asking, name) for name in Asking.__dataclass_fields__}, **limits}
