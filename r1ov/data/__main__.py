"""A look at a data set: `python -m r1ov.data FILE` tells what was recognised, what is wrong, how long it is,
and shows one example.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import numpy as np

from r1ov.cli import option, parse_cli, placed, run
from r1ov.common.files import one_line, printable
from r1ov.data.formats.reader import ReadingOptions, open_data
from r1ov.data.formats.records import BadRow, Record, Tally, counted
from r1ov.errors import UserError

if TYPE_CHECKING:
    from r1ov.data.processor import Batch, Processor

KINDS = {"with pictures": "images", "with a reply": "reply", "with a solution": "solution"}


@dataclass(frozen=True, kw_only=True)
class LookConfig(ReadingOptions):
    data: str = option(
        help="file, folder or hub data set, or several: a.parquet,b.jsonl; it may also come first, "
        "without --data"
    )
    model: str = option(
        "r1ov-tiny", "model folder, hub name or r1ov-tiny, for its tokenizer and chat template"
    )
    split: str = option("train", "taken where files are named after splits")
    need: Literal["any", "reply", "solution"] = option(
        "any", "what a row must have: a reply for SFT, a solution for GRPO"
    )
    limit: int = option(1000, "rows looked at, evenly spread; 0: all", least=0)


def look(config: LookConfig) -> None:
    # torch takes seconds to import: not before the command line is known to be right.
    from r1ov.data.steps import encode_record, recognise_boxes
    from r1ov.folder.pretrained import read_processor, resolve

    processor = read_processor(resolve(config.model))
    data = open_data(
        config.data,
        split=config.split,
        need=None if config.need == "any" else config.need,
        **config.reading,
    )
    recognise_boxes(data.reader, processor)
    for file in data.reader.files:
        print(f"file      {one_line(str(file.path))}")
    if data.reader.box_unit:
        print(f"boxes     {data.reader.box_unit}")

    def encode(record: Record) -> "Batch":
        for image in record.images:
            image.load()
        return processor.pack([encode_record(record, processor, return_labels=record.reply is not None)])

    tally, example = Tally(1.0), None
    kinds = Counter(dict.fromkeys(KINDS, 0))
    lengths = []  # of each row: its tokens, those trained, those of images
    for item, batch in data.survey(encode, config.limit):
        tally.add(item)
        if isinstance(item, BadRow):
            continue
        ids = batch["input_ids"]
        pictures = int((ids == processor.config.image_token_id).sum())
        lengths.append((len(ids), sum(trained(batch)), pictures))
        kinds.update(name for name, field in KINDS.items() if getattr(item, field))
        if example is None or (example[0].reply is None and item.reply is not None):
            example = item, batch
    print(f"rows      {len(data):,}, looked at {tally.rows:,}")
    print(f"format    {counted(tally.formats) or 'none'}")
    print(f"records   {', '.join(f'{count:,} {name}' for name, count in kinds.items())}")
    for stage, kind in (("sft", "with a reply"), ("grpo", "with a solution")):
        if not kinds[kind]:
            print(f"note      --stage {stage} cannot use it: there is no row {kind}")
    if tally.unread:
        print(f"unread    {one_line(counted(tally.unread))}")
    for title, counts in (("repairs", tally.repairs), ("dropped", tally.dropped), ("bad rows", tally.bad)):
        for name, count in counts.most_common():
            print(f"{title:<9} {count:>7,}  {one_line(tally.first.get(name, name))}")
    if example:
        record, batch = example
        print(f"{'length':<17} {'mean':>8} {'least':>8} {'median':>8} {'95%':>8} {'most':>8}")
        shown = [np.mean(lengths, 0), *np.quantile(lengths, (0, 0.5, 0.95, 1), 0)]
        names = ("tokens", "of them trained", "of them picture")
        for name, *columns in zip(names, *shown, strict=True):
            print(f"{name:<17} " + " ".join(f"{column:>8,.0f}" for column in columns))
        print(f"\nexample   {one_line(record.where)}; solution {one_line(str(record.solution))}; ", end="")
        print(f"what lies between [[ and ]] is trained\n\n{rendered(processor, batch)}")
    tally.max_bad_share = config.max_bad_share
    tally.finish()
    if not (kinds["with a reply"] or kinds["with a solution"]):
        raise UserError("no stage can use it: no row has a reply to learn from, or a gold answer")


def trained(batch: "Batch") -> list[bool]:
    """Which tokens are trained; none of a batch without labels."""
    return (batch["labels"] != -100).tolist() if "labels" in batch else [False] * len(batch["input_ids"])


def rendered(processor: "Processor", batch: "Batch") -> str:
    """The batch as the model sees it, trained spans between [[ and ]], an image's tokens as one with their
    number.
    """
    picture, spans = processor.config.image_token_id, []
    tokens = zip(batch["input_ids"].tolist(), trained(batch), strict=True)
    for (is_trained, is_picture), span in groupby(tokens, key=lambda token: (token[1], token[0] == picture)):
        ids = [id for id, _ in span]
        text = processor.decode(ids[:1] if is_picture else ids, skip_special_tokens=False)
        text = "\n".join(map(printable, text.split("\n"))) + (f" x {len(ids)}" if is_picture else "")
        spans.append(f"[[{text}]]" if is_trained else text)
    return "".join(spans)


def main() -> None:
    words = placed(sys.argv[1:], "data")
    look(parse_cli(LookConfig, words, prog="python -m r1ov.data", description=__doc__))


if __name__ == "__main__":
    sys.exit(run(main))
