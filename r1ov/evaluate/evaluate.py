"""The whole way: questions, answers, verdicts, report."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from r1ov.common.device import choose_device, choose_kernels
from r1ov.engine.sampling import SamplingParams
from r1ov.errors import UserError
from r1ov.evaluate.benchmarks import BENCHMARKS, load_items, metrics_of
from r1ov.evaluate.compare import VERDICTS, write_verdicts
from r1ov.evaluate.item import Item, Prediction
from r1ov.evaluate.judge import Judge
from r1ov.evaluate.page import write_page
from r1ov.evaluate.playground import items_by_id, playground_items
from r1ov.evaluate.predictions import read_predictions
from r1ov.evaluate.prompts import check_style, swap_pictures
from r1ov.evaluate.report import (
    Answered,
    floors_table,
    markdown,
    published_table,
    score_cells,
    tables_of,
    write_report,
)
from r1ov.evaluate.runner import Asking, fingerprint, run, settings_of
from r1ov.evaluate.scoring import score
from r1ov.evaluate.tables import Table
from r1ov.folder.hub import resolve
from r1ov.folder.pretrained import load

PLAYGROUND, PLAYGROUND_LIMIT = "playground", 1000  # which has no end
MIN_PIXELS, MAX_PIXELS = 256 * 28 * 28, 1280 * 28 * 28  # what Qwen2.5-VL's authors advise


def evaluate(config: Any) -> None:
    """Prints the scores on stdout and keeps everything in the folder. Args: config: the fields of
    `__main__`'s EvaluateConfig.
    """
    if config.predictions:
        items, predictions = predicted(config)
        folder, settings = (
            (None if config.out is None else made(Path(config.out))),
            {"predictions": config.predictions},
        )
    else:
        items = questions(config)
        answers = asked(config, items)
        if answers is None:
            return  # not the first of torchrun's processes
        predictions, folder, settings = answers
    by_id = {item.id: item for item in items}
    verdicts = [score(by_id[row.id], row, config.lenient) for row in predictions]
    if config.judge:
        cache = (folder or made(Path("runs/evaluate"))) / "judge.jsonl"
        verdicts = Judge(config.judge, config.judge_model, cache)(by_id, predictions, verdicts)
        settings = {**settings, "judge": config.judge_model}
    settings = {**settings, "lenient": config.lenient}
    answered = [
        Answered(item=by_id[one.id], prediction=one, verdict=two)
        for one, two in zip(predictions, verdicts, strict=True)
    ]
    shown, more = report(config, items, answered)
    if folder:
        title = f"{name_of(config.bench)} {items[0].split}: {config.predictions or config.model}"
        write_verdicts(folder / VERDICTS, answered)
        write_report(folder, title, [*shown, *more], settings)
        if config.page:
            write_page(folder / "page.html", title, answered)
        print(
            f"{folder}/: report.md, report.csv, report.json, predictions{', page.html' if config.page else ''}",
            file=sys.stderr,
        )
    print("\n\n".join(markdown(table) for table in shown))


def questions(config: Any) -> list[Item]:
    """The benchmark's, as many as are wanted, with other pictures if that is wanted."""
    if config.bench == PLAYGROUND:
        return playground_items(
            config.split or "test", config.limit or PLAYGROUND_LIMIT, swap=config.swap_pictures
        )
    items = load_items(config.bench, config.data, config.split, config.limit)
    return swap_pictures(items) if config.swap_pictures else items


def predicted(config: Any) -> tuple[list[Item], list[Prediction]]:
    """The questions and the answers of the file --predictions; of the playground only those that it has."""
    rows = read_predictions(Path(config.predictions))
    if not rows:
        raise UserError(f"{config.predictions}: there are no predictions in it")
    seen: set[tuple[str, int]] = set()
    for row in rows:
        if (row.id, row.sample) in seen:
            raise UserError(
                f"{config.predictions}: {row.id} stands there twice; several samples of a question are told apart by `sample`, 0, 1 ..."
            )
        seen.add((row.id, row.sample))
    if config.bench == PLAYGROUND:
        items = items_by_id(list(dict.fromkeys(row.id for row in rows))[: config.limit])
    else:
        items = questions(replace(config, swap_pictures=False))
    wanted = {item.id for item in items}
    known = [row for row in rows if row.id in wanted]
    if not known:
        raise UserError(
            f"{config.predictions}: none of its {len(rows)} ids is one of the questions', {rows[0].id!r} is not; {items[0].id!r} would be"
        )
    if len(known) < len(rows) and not config.limit:
        print(
            f"{len(rows) - len(known)} rows have ids that are no question's; they are left out",
            file=sys.stderr,
        )
    samples = max(row.sample for row in known) + 1
    lacking = [
        (item.id, sample) for item in items for sample in range(samples) if (item.id, sample) not in seen
    ]
    if lacking:
        print(
            f"{len(lacking)} answers are missing, of {lacking[0][0]} first; they count as wrong",
            file=sys.stderr,
        )
    known += [
        Prediction(id=id, text="", sample=sample, finish_reason="error", error="no prediction")
        for id, sample in lacking
    ]
    order = {item.id: number for number, item in enumerate(items)}
    return items, sorted(known, key=lambda row: (order[row.id], row.sample))


def asked(config: Any, items: Sequence[Item]) -> tuple[list[Prediction], Path, dict[str, Any]] | None:
    """The model's answers, their folder and their settings; None in all but the first of torchrun's
    processes.
    """
    at_play = config.bench == PLAYGROUND
    asking = Asking(
        prompt=config.prompt or ("none" if at_play else "r1ov"),
        max_new_tokens=config.max_new_tokens or (256 if at_play else 4096),
        **{
            name: getattr(config, name)
            for name in (
                "system",
                "temperature",
                "top_p",
                "top_k",
                "repetition_penalty",
                "seed",
                "num_samples",
            )
        },
    )
    check_style(items, asking.prompt)
    SamplingParams.resolve(
        {},
        **{name: getattr(asking, name) for name in ("temperature", "top_p", "top_k", "repetition_penalty")},
    )
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    device = choose_device(config.device)
    if device.type == "cuda":
        device = choose_device(f"cuda:{os.environ['LOCAL_RANK']}") if "LOCAL_RANK" in os.environ else device
        torch.cuda.set_device(device)  # Triton launches its kernels there
    kernels = choose_kernels(config.kernels, device)
    path = resolve(config.model)
    model, processor = load(path, device, config.dtype)
    print_of = fingerprint(processor, path)
    processor = processor.with_pixel_limits(**pixel_limits(config.min_pixels, config.max_pixels, at_play))
    settings = settings_of(
        asking,
        processor,
        bench=config.bench,
        split=items[0].split,
        model=config.model,
        fingerprint=print_of,
        swap_pictures=config.swap_pictures,
        dtype=str(model.head_weight.dtype).removeprefix("torch."),
        run={
            "data": config.data,
            "device": str(device),
            "kernels": kernels,
            "torch": torch.__version__,
            "questions": len(items),
        },
    )
    folder = made(Path(config.out) if config.out else default_folder(settings))

    def is_right(item: Item, row: Prediction) -> float:
        return score(item, row, config.lenient).score

    rows = run(model, processor, items, asking, folder, settings, is_right, config.max_num_seqs)
    return None if rows is None else (rows, folder, settings)


def pixel_limits(least: int | None, most: int | None, at_play: bool) -> dict[str, int | None]:
    """What a picture is resized to; a limit that is not given gives way to one that is. None: the
    checkpoint's.
    """
    if not at_play:
        least, most = (
            (least or min(MIN_PIXELS, most or MIN_PIXELS)),
            (most or max(MAX_PIXELS, least or MAX_PIXELS)),
        )
    return {"min_pixels": least, "max_pixels": most}


def default_folder(settings: Mapping[str, Any]) -> Path:
    """One for each benchmark, split, model and way of asking:
    runs/evaluate/playground-test-r1ov-tiny-3f9a2c1b.
    """
    digest = hashlib.blake2b(json.dumps({**settings, "run": None}).encode(), digest_size=4).hexdigest()
    model = "-".join(Path(settings["model"]).parts[-2:])
    name = "-".join((name_of(settings["bench"]), settings["split"], model, digest))
    return Path("runs/evaluate") / re.sub(r"[^\w.-]+", "-", name)


def name_of(bench: str) -> str:
    """Without the folders, of a file of questions."""
    return Path(bench).name or bench


def made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {folder}: cannot be made ({error.strerror}); choose another folder"
        ) from error
    return folder


def report(
    config: Any, items: Sequence[Item], answered: Sequence[Answered]
) -> tuple[list[Table], list[Table]]:
    """The tables that are printed, and those that only the report has. Of the playground only its families
    are printed.
    """
    bench = BENCHMARKS.get(config.bench)
    shown, more = tables_of(answered, metrics_of(config.bench, items, [one.verdict for one in answered]))
    more = [floors_table(items, bench), *more]
    if bench and bench.published:
        model = config.predictions or config.model
        more = [published_table(bench, model, items[0].split, score_cells(answered)[0]), *more]
    if config.bench == PLAYGROUND:
        return shown[-1:], [*shown[:-1], *more]
    return shown, more
