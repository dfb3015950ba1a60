"""The benchmarks: where their data is, how it is read, how many items it has, and what others report."""

import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from r1ov.data.image import LazyImage
from r1ov.data.playground import FAMILIES, SPLITS, invent, paint
from r1ov.data.playground.scene import SIZE
from r1ov.errors import UserError
from r1ov.evaluate import metrics, readers
from r1ov.evaluate.files import Pictures, find, read_rows
from r1ov.evaluate.item import Item, Items, Verdicts
from r1ov.evaluate.tables import Table

PLAYGROUND = "playground"
DATA_SUFFIXES = (".tsv", ".csv", ".json", ".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark.

    Args: counts: items of each known split, the default one first. metrics: functions, and tags to group by.
        files: patterns of their names, best first. floors: what guessing scores, in per cent, as published.
    """

    name: str
    hub: str | None = None
    counts: Mapping[str, int | None]
    read: readers.Reader = readers.generic
    metrics: Sequence[str | metrics.Metric]
    files: Sequence[str] = (
        "{split}-*.parquet",
        "{split}.parquet",
        "{split}.jsonl",
        "annot_{split}.json",
        "{split}.json",
        "{split}.tsv",
    )
    floors: Mapping[str, float] = field(default_factory=dict)

    @property
    def split(self) -> str:
        return next(iter(self.counts))

    @property
    def published(self) -> list["Published"]:
        return published(self.name)


_ALL = (
    Benchmark(
        name="mathvista",
        hub="AI4Math/MathVista",
        counts={"testmini": 1_000, "test": 5_141},
        read=readers.mathvista,
        metrics=("task", "skills", "source"),
        floors={"random": 17.9, "most frequent": 26.3},
    ),
    Benchmark(
        name="mathvision",
        hub="MathLLMs/MathVision",
        counts={"test": 3_040, "testmini": 304},
        read=readers.mathvision,
        metrics=("level", "subject", metrics.mathvision),
        floors={"always A": 9.8},
    ),
    Benchmark(
        name="mathverse",
        hub="AI4Math/MathVerse",
        counts={"testmini": 3_940, "testmini_text_only": 788},
        read=readers.mathverse,
        metrics=(metrics.mathverse,),
    ),
    Benchmark(
        name="wemath",
        hub="We-Math/We-Math",
        counts={"testmini": 1_740},
        read=readers.wemath,
        metrics=(metrics.wemath,),
        floors={"always A": 33.62, "always B": 29.14},
    ),
    Benchmark(
        name="r1-onevision-bench",
        hub="Fancy-MLLM/R1-Onevision-Bench",
        counts={"train": 942},
        read=readers.onevision_bench,
        metrics=("level", "category"),
        files=("r1-onevision.tsv", "*.tsv", *Benchmark.files),
    ),
    Benchmark(name=PLAYGROUND, counts=dict.fromkeys(("test", *SPLITS)), metrics=("family",)),
)
BENCHMARKS = {one.name: one for one in _ALL}


def benchmark(name: str, split: str | None = None) -> Benchmark:
    """Returns the benchmark of this name, else a file of questions as one. Args: split: the file's."""
    own = Benchmark(name=Path(name).stem, counts={split or "all": None}, metrics=(metrics.by_every_tag,))
    return BENCHMARKS.get(name, own)


def load_items(
    name: str, data: str | None = None, split: str | None = None, limit: int | None = None
) -> list[Item]:
    """Returns the items of a benchmark, in the order of its files; says on stderr what is unusual about them.

    Args:
        name: of BENCHMARKS, or the path of a file of questions (see `readers.generic`).
        data: file, folder or hub name; None: the benchmark's own data set on the hub.
        limit: only the first this many; the playground, which is endless, needs it.
    Raises: UserError.
    """
    bench = benchmark(name, split)
    split = split or bench.split
    if split not in bench.counts:
        raise UserError(f"--split is {split!r}; {bench.name} has {', '.join(bench.counts)}")
    if name == PLAYGROUND:
        if limit is None:
            raise UserError("the playground is endless; say how many questions with --limit")
        return playground_items(split, limit)
    if name not in BENCHMARKS:
        path = Path(name).expanduser()
        if not path.is_file() or path.suffix.lower() not in DATA_SUFFIXES:
            known = f"{', '.join(BENCHMARKS)}, or an existing file that ends in {', '.join(DATA_SUFFIXES)}"
            raise UserError(f"--bench is {name!r}; expected {known}")
        if data is not None:
            raise UserError(
                "--data says where a named benchmark's data is; a file given as --bench is read itself"
            )
    patterns = [pattern.format(split=split) for pattern in bench.files]
    found = find(data or bench.hub or name, patterns, (readers.CONCEPTS,))
    items: list[Item] = []
    for file in found.files:
        pictures = Pictures(file.parent, found.inside)
        items += readers.read(bench.read, read_rows(file), pictures, bench.name, split)
    ids: set[str] = set()
    for item in items:
        if item.id in ids:
            raise UserError(f"{name}: two rows have the id {item.id!r}; every question needs its own")
        ids.add(item.id)
    count = bench.counts[split] or len(items)
    if len(items) != count:
        _say(f"{name}: {len(items):,} items; {split} is known to have {count:,}")
    if golds := sum(not item.answer.strip() for item in items):
        _say(f"{name}: {golds} of {len(items)} items have no gold answer: they score 0")
    if errors := [item for item in items if item.error]:
        first = f"the first, {errors[0].id}: {errors[0].error}"
        _say(f"{name}: {len(errors)} of {len(items)} items cannot be asked and score 0; {first}")
    return items[:limit]


def metrics_of(name: str, items: Items, verdicts: Verdicts) -> list[Table]:
    return metrics.tables_of(benchmark(name).metrics, items, verdicts)


class Published(NamedTuple):
    """A score that others report, in per cent: for context, as prompts, budgets, extraction and judges
    differ.
    """

    model: str
    metric: str
    score: float
    source: str


def published(bench: str) -> list[Published]:
    with (Path(__file__).parent / "published.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [Published(**{**row, "score": float(row["score"])}) for row in rows if row.pop("bench") == bench]


# The playground as a benchmark: its splits are endless, so it is always the first questions that are asked.


def playground_items(split: str, limit: int, swap: bool = False) -> list[Item]:
    """Returns the first questions of a split; their images are painted when they are needed.

    swap: each with the image of the family's next different scene, a control: who still scores has not
        looked.
    """
    if split not in SPLITS:
        raise UserError(f"--split is {split!r}; the playground has {', '.join(SPLITS)}")
    return [_playground_item(split, index, swap) for index in range(limit)]


def playground_by_id(ids: Iterable[str]) -> list[Item]:
    """Returns the questions with these ids ("test/12"), of any splits. Raises UserError."""
    items = []
    for id in ids:
        split, _, index = id.partition("/")
        if split not in SPLITS or not index.isdecimal() or len(index) > 9:
            raise UserError(f'the playground has no question {id!r:.60}; ids are such as "test/12"')
        items.append(_playground_item(split, int(index)))
    return items


def _playground_item(split: str, index: int, swap: bool = False) -> Item:
    family, scene = invent(split, index, 0)
    shown = index
    while swap and invent(split, shown, 0)[1].description == scene.description:
        shown += len(FAMILIES)
    return Item(
        bench=PLAYGROUND,
        split=split,
        id=f"{split}/{index}",
        question=scene.question,
        images=(LazyImage((SIZE, SIZE), lambda: paint(invent(split, shown, 0)[1])),),
        answer=scene.answer,
        kind=scene.kind,
        tags={"family": family},
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr)
