"""From questions to a report: the whole way."""

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from r1ov.cli import flag
from r1ov.common.files import earlier_options, locked
from r1ov.common.processes import World, choose_kernels, dtype_name, joined
from r1ov.data.formats.files import fingerprint
from r1ov.errors import UserError
from r1ov.evaluate.benchmarks import PLAYGROUND, benchmark, load_items, playground_by_id, playground_items
from r1ov.evaluate.item import Answered, Answers, Item, Items, Prediction, read_predictions
from r1ov.evaluate.judge import Judge
from r1ov.evaluate.metrics import Table, accuracy
from r1ov.evaluate.page import write_page
from r1ov.evaluate.prompts import swap_pictures
from r1ov.evaluate.report import (
    floors_table,
    markdown,
    published_table,
    tables_of,
    write_report,
    write_verdicts,
)
from r1ov.evaluate.runner import Asking, run
from r1ov.evaluate.scoring import score
from r1ov.folder.pretrained import load, resolve

FOLDER = Path("runs/evaluate")
PLAYGROUND_LIMIT = 1000  # the playground has no end
TRAINED_WITH = "r1ov.json"  # beside the weights: how our training put its questions
MIN_PIXELS, MAX_PIXELS = 256 * 28 * 28, 1280 * 28 * 28  # as Qwen2.5-VL's authors advise


def evaluate(config: Any) -> None:
    """Prints the scores on stdout and keeps everything in the folder. Args: config: the fields of
    `__main__`'s EvaluateConfig.
    """
    if config.predictions:
        items, predictions = predicted(config)
        folder, settings = config.out and Path(config.out), {"predictions": config.predictions}
        write(config, items, predictions, folder, settings)
        return
    items = questions(config)
    with joined(config.device) as (world, device):
        answers = asked(config, items, world, device)
    if answers:
        write(config, items, *answers)


def write(
    config: Any,
    items: Items,
    predictions: Sequence[Prediction],
    folder: Path | None,
    settings: Mapping[str, Any],
) -> None:
    """Scores the answers, prints the tables, and writes the report if there is a folder."""
    by_id = {item.id: item for item in items}
    verdicts = [score(by_id[row.id], row) for row in predictions]
    with locked(folder) if folder else nullcontext():
        if config.judge:
            judge = Judge(config.judge, config.judge_model, (folder or FOLDER) / "judge.jsonl")
            verdicts = judge(by_id, predictions, verdicts)
            settings = {**settings, "judge": config.judge_model}
        answered = [
            Answered(item=by_id[row.id], prediction=row, verdict=verdict)
            for row, verdict in zip(predictions, verdicts, strict=True)
        ]
        shown, more = report(config, items, answered)
        if folder:
            title = f"{_name(config.bench)} {items[0].split}: {config.predictions or config.model}"
            write_verdicts(folder / "verdicts.jsonl", answered)
            write_report(folder, title, [*shown, *more], settings)
            if config.page:
                write_page(folder / "page.html", title, answered, settings.get("prompt", "none"))
            page = ", page.html" if config.page else ""
            print(f"{folder}/: report.md, report.csv, report.json, predictions{page}", file=sys.stderr)
    print("\n\n".join(map(markdown, shown)))


def questions(config: Any) -> list[Item]:
    """Returns the benchmark's questions, with other images if the control is asked for."""
    if config.bench == PLAYGROUND:
        return playground_items(
            config.split or "test", config.limit or PLAYGROUND_LIMIT, config.swap_pictures
        )
    items = load_items(config.bench, config.data, config.split, config.limit)
    return swap_pictures(items) if config.swap_pictures else items


def predicted(config: Any) -> tuple[list[Item], list[Prediction]]:
    """Returns the questions and the answers in the file --predictions; of the playground only its own."""
    rows = read_predictions(Path(config.predictions))
    if not rows:
        raise UserError(f"{config.predictions}: there are no predictions in it")
    found: dict[tuple[str, int], Prediction] = {}
    for row in rows:
        if found.setdefault((row.id, row.sample), row) is not row:
            raise UserError(
                f"{config.predictions}: {row.id} stands there twice; "
                "several samples of a question are told apart by `sample`, 0, 1 ..."
            )
    if config.bench == PLAYGROUND:
        items = playground_by_id(list(dict.fromkeys(row.id for row in rows))[: config.limit])
    else:
        items = load_items(config.bench, config.data, config.split, config.limit)
    ids = {item.id for item in items}
    known = [row for row in rows if row.id in ids]
    if not known:
        raise UserError(
            f"{config.predictions}: none of its {len(rows)} ids is one of the questions', "
            f"{rows[0].id!r} is not; {items[0].id!r} would be"
        )
    if len(known) < len(rows) and not config.limit:
        left = len(rows) - len(known)
        print(f"{left} rows have ids that are no question's; they are left out", file=sys.stderr)
    samples = range(max(row.sample for row in known) + 1)
    wanted = [(item.id, sample) for item in items for sample in samples]
    if lacking := [key for key in wanted if key not in found]:
        first = lacking[0][0]
        print(f"{len(lacking)} answers are missing, of {first} first; they count as wrong", file=sys.stderr)
    for id, sample in lacking:
        found[id, sample] = Prediction(
            id=id, text="", sample=sample, finish_reason="error", error="no prediction"
        )
    return items, [found[key] for key in wanted]


def asked(
    config: Any, items: Items, world: World, device: torch.device
) -> tuple[list[Prediction], Path, dict[str, Any]] | None:
    """Returns the model's answers, their folder and their settings; None on all but the main rank."""
    at_play = config.bench == PLAYGROUND
    path = resolve(config.model)
    trained = earlier_options(path / TRAINED_WITH)
    is_published = benchmark(config.bench).hub is not None
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
    model, processor = load(path, device, config.dtype)
    least, most = config.min_pixels, config.max_pixels
    if is_published:  # a limit that is not given gives way to one that is
        least = least or min(MIN_PIXELS, most or MIN_PIXELS)
        most = most or max(MAX_PIXELS, least)
    processor = processor.with_pixel_limits(least, most)
    images = processor.image_processor
    put = {"prompt": prompt, "min_pixels": images.min_pixels, "max_pixels": images.max_pixels}
    if world.is_main:
        print("asked with", _flags(put), file=sys.stderr)
        if trained and (own := {name: trained.get(name, put[name]) for name in put}) != put:
            print("note    the model was trained with", _flags(own), file=sys.stderr)
    settings = {
        "bench": config.bench,
        "split": items[0].split,
        "model": config.model,
        "fingerprint": _digest(path),
        "swap_pictures": config.swap_pictures,
        "dtype": dtype_name(model.head_weight.dtype),
        **{field.name: getattr(asking, field.name) for field in fields(Asking)},
        **put,
        "run": {
            "data": config.data,
            "device": str(device),
            "kernels": kernels,
            "torch": torch.__version__,
            "questions": len(items),
        },
    }
    folder = Path(config.out) if config.out else default_folder(settings)
    rows = run(model, processor, items, asking, folder, settings, _is_right, config.max_num_seqs, world)
    return None if rows is None else (rows, folder, settings)


def _digest(folder: Path) -> str:
    """Returns what tells one model's folder from another: training changes weights everywhere."""
    names = (".json", ".jinja", ".txt", ".safetensors")
    files = [fingerprint(file) for file in sorted(folder.iterdir()) if file.suffix in names]
    return hashlib.blake2b("".join(files).encode(), digest_size=8).hexdigest()


def _flags(options: Mapping[str, Any]) -> str:
    return " ".join(f"{flag(name)} {value}" for name, value in options.items())


def _is_right(item: Item, row: Prediction) -> float:
    return score(item, row).score


def default_folder(settings: Mapping[str, Any]) -> Path:
    """Returns one for each benchmark, split, model and way of asking:
    runs/evaluate/playground-test-r1ov-tiny-3f9a2c1b.
    """
    digest = hashlib.blake2b(json.dumps({**settings, "run": None}).encode(), digest_size=4).hexdigest()
    model = "-".join(Path(settings["model"]).parts[-2:])
    name = "-".join((_name(settings["bench"]), settings["split"], model, digest))
    return FOLDER / re.sub(r"[^\w.-]+", "-", name)


def _name(bench: str) -> str:
    """Returns the name of a benchmark, or of a file of questions without its folders."""
    return Path(bench).name or bench


def report(config: Any, items: Items, answered: Answers) -> tuple[list[Table], list[Table]]:
    """Returns the tables to print (of the playground the families alone), and those of the report only."""
    bench = benchmark(config.bench)
    shown, more = tables_of(bench, answered)
    more = [floors_table(items, bench.floors), *more]
    if bench.published:
        model = config.predictions or config.model
        more = [published_table(bench, model, items[0].split, accuracy(answered)), *more]
    if config.bench == PLAYGROUND:
        return shown[-1:], [*shown[:-1], *more]
    return shown, more
