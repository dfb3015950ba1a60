"""From questions to a report: the whole way."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from r1ov.cli import flag
from r1ov.common.files import digest, earlier_options, locked, say, write_lines
from r1ov.common.processes import World, choose_kernels, dtype_name, joined
from r1ov.data.formats.files import fingerprint
from r1ov.data.steps import recognised_unit
from r1ov.engine import needs
from r1ov.errors import UserError
from r1ov.evaluate.benchmarks import PLAYGROUND, benchmark, load_items, playground_item, read_rows
from r1ov.evaluate.item import Item, Items, Prediction, by_question, read_predictions
from r1ov.evaluate.judge import judge
from r1ov.evaluate.prompts import swap_pictures
from r1ov.evaluate.report import accuracy, markdown, tables_of, write_page, write_report, write_verdicts
from r1ov.evaluate.runner import ASKING, record_of, run
from r1ov.evaluate.scoring import score
from r1ov.folder.pretrained import find, read_model, read_processor

FOLDER = Path("runs/evaluate")
TRAINED_WITH = "r1ov.json"  # beside the weights: how our training put its questions
PIXELS = 256 * 28 * 28, 1280 * 28 * 28  # least and most, as Qwen2.5-VL's authors advise


def evaluate(config: Any) -> None:
    """Prints the scores on stdout and keeps everything in the folder. Args: config: the fields of
    `__main__`'s EvaluateConfig.
    """
    if config.predictions:
        folder = config.out and Path(config.out)
        write(config, *predicted(config), folder, {"predictions": config.predictions})
        return
    items = load_items(config.bench, config.data, config.split, config.limit)
    items = swap_pictures(items) if config.swap_pictures else items
    with joined(config.device) as (world, device):
        answers = asked(config, items, world, device)
    if answers:
        write(config, items, *answers)


def write(
    config: Any,
    items: Items,
    predictions: Sequence[Prediction],
    folder: Path | None,
    settings: Mapping,
) -> None:
    """Scores the answers, prints the tables, and writes the report if there is a folder."""
    by_id = {item.id: item for item in items}
    verdicts = [score(by_id[row.id], row) for row in predictions]
    with locked(folder) if folder else nullcontext():
        if config.judge:
            cache = (folder or FOLDER) / "judge.jsonl"
            verdicts = judge(verdicts, config.judge, config.judge_model, cache)
            settings = {**settings, "judge": config.judge_model}
        shown, more = tables_of(benchmark(config.bench).metrics, verdicts)
        if folder:
            title = f"{Path(config.bench).name} {items[0].split}: {config.predictions or config.model}"
            write_verdicts(folder / "verdicts.jsonl", verdicts)
            write_report(folder, title, [*shown, *more], settings)
            scored = f"{title}, {accuracy(verdicts):.1%} right"
            write_page(folder / "page.html", scored, verdicts, settings.get("prompt", "none"))
            if config.keep:
                # The rows that teach in RL: right in this share of their answers.
                path, kept = Path(config.bench), folder / "kept.jsonl"
                low, high = map(float, config.keep.split(":"))
                rates = [accuracy(own) for own in by_question(verdicts).values()]
                rows = zip(read_rows(path), rates, strict=False)  # with --limit the first ones
                teaching = [row for row, rate in rows if low <= rate <= high]
                write_lines(kept, teaching)
                say(f"{kept}: {len(teaching)} of {len(rates)} rows, for --image-folder {path.parent}")
            say(f"{folder}/: page.html, report.md, report.json, predictions")
    if config.bench == PLAYGROUND:
        shown = shown[-1:]  # the families
    print("\n\n".join(map(markdown, shown)))


def predicted(config: Any) -> tuple[list[Item], list[Prediction]]:
    """Returns the questions and the answers in the file --predictions; of the playground only its own."""
    name, rows = config.predictions, read_predictions(Path(config.predictions))
    found = {(row.id, row.sample): row for row in rows}
    if twice := len(rows) - len(found):
        raise UserError(
            f"{name}: {twice} answers stand there twice; several samples of a question are told apart by "
            "`sample`, 0, 1 ..."
        )
    ids = dict.fromkeys(row.id for row in rows)
    if config.bench == PLAYGROUND:
        items = [playground_item(id) for id in [*ids][: config.limit]]
    else:
        items = load_items(config.bench, config.data, config.split, config.limit)
    known = {item.id for item in items}
    if not known & ids.keys():
        raise UserError(
            f"{name}: none of its {len(ids)} ids is one of the questions'; {rows[0].id!r} is not, "
            f"{items[0].id!r} would be"
        )
    samples = range(max(row.sample for row in rows) + 1)
    answers = [
        found.get((item.id, sample))
        or Prediction(id=item.id, text="", sample=sample, finish_reason="error", error="no prediction")
        for item in items
        for sample in samples
    ]
    if lacking := len(answers) - sum(row.id in known for row in rows):
        say(f"{lacking} answers are missing; they count as wrong and are listed")
    if (left := len(ids.keys() - known)) and not config.limit:
        say(f"{left} ids are no question's; their answers are left out")
    return items, answers


def asked(
    config: Any, items: Items, world: World, device: torch.device
) -> tuple[list[Prediction], Path, dict] | None:
    """Returns the model's answers, their folder and their settings; None on all but the main rank."""
    at_play, is_published = config.bench == PLAYGROUND, benchmark(config.bench).hub is not None
    folders = find(config.model, config.adapter)
    trained = earlier_options(folders.settings / TRAINED_WITH)
    prompt = config.prompt or ("none" if at_play or (trained and not is_published) else "r1ov")
    most_tokens = config.max_new_tokens or (256 if at_play else 4096)
    asking = replace(config, prompt=prompt, max_new_tokens=most_tokens)
    if lacking := [item.id for item in items if prompt == "official" and item.raw_query is None]:
        raise UserError(
            f"--prompt official: {len(lacking)} of {len(items)} questions have no official prompt, "
            f"{lacking[0]} first; choose another --prompt"
        )
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    kernels = choose_kernels(config.kernels, device)
    processor = read_processor(folders.settings)
    rows = min(config.max_num_seqs, len(items) * config.num_samples)
    beside = partial(needs, processor.config, rows, most_tokens, 0, 0)
    model, said = read_model(
        folders, processor.config, device, config.dtype, config.quantize, beside, config.tensor_parallel
    )
    least, most = PIXELS if is_published else (None, None)
    processor = processor.with_pixel_limits(config.min_pixels or least, config.max_pixels or most)
    images = processor.image_processor
    if not at_play and (
        unit := recognised_unit([record_of(item, asking) for item in items[:100]], processor)
    ):
        items = [replace(item, box_unit=item.box_unit or unit) for item in items]
        say(f"note    the boxes fill the frame {unit}: they are read so")
    put = {"prompt": prompt, "min_pixels": images.min_pixels, "max_pixels": images.max_pixels}
    if world.is_main:
        say(f"{device} | {kernels} kernels | {said}")
        say(f"asked with {_flags(put)}")
        if trained and (own := {name: trained.get(name, put[name]) for name in put}) != put:
            say(f"note    the model was trained with {_flags(own)}")
    # What tells one model's folder from another: training changes weights everywhere.
    files = chain(*(place.iterdir() for place in {*vars(folders).values()} - {None}))
    weights = sorted(file for file in files if file.suffix in (".json", ".jinja", ".txt", ".safetensors"))
    settings = {
        "bench": config.bench,
        "split": items[0].split,
        "model": config.model,
        "fingerprint": digest("".join(map(fingerprint, weights))),
        "swap_pictures": config.swap_pictures,
        "dtype": dtype_name(model.model.embed_tokens.weight.dtype),
        "quantize": config.quantize,
        **{name: getattr(asking, name) for name in ASKING},
        **put,
        "run": {"data": config.data, "device": str(device), "kernels": kernels, "torch": torch.__version__},
    }
    # One for each benchmark, split, model and way of asking: playground-test-r1ov-tiny-3f9a2c1b.
    own = digest(json.dumps({**settings, "run": None}), 4)
    name = "-".join([Path(config.bench).name, items[0].split, *Path(config.model).parts[-2:], own])
    folder = Path(config.out or FOLDER / re.sub(r"[^\w.-]+", "-", name))

    def is_right(item: Item, row: Prediction) -> float:
        return score(item, row).score

    rows = run(model, processor, items, asking, folder, settings, is_right, config.max_num_seqs, world)
    return rows and (rows, folder, settings)


def _flags(options: Mapping) -> str:
    return " ".join(f"{flag(name)} {value}" for name, value in options.items())
