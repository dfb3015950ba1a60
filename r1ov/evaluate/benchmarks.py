"""The benchmarks: where their data is, how it is read, how many items it has, and what their authors report
of it.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from r1ov.data.playground import SPLITS
from r1ov.errors import UserError
from r1ov.evaluate import metrics
from r1ov.evaluate.files import Pictures, Row, find, read_rows
from r1ov.evaluate.generic import read_generic, read_onevision_bench
from r1ov.evaluate.item import Item, Verdict
from r1ov.evaluate.playground import playground_items
from r1ov.evaluate.published import Published, published
from r1ov.evaluate.readers import CONCEPTS, read_mathverse, read_mathvision, read_mathvista, read_wemath
from r1ov.evaluate.tables import Table

Reader = Callable[[Sequence[Row], Pictures, str], list[Item]]
DATA_SUFFIXES = (".tsv", ".csv", ".json", ".jsonl", ".parquet")
_FILES = (
    "{split}-*.parquet",
    "{split}.parquet",
    "{split}.jsonl",
    "annot_{split}.json",
    "{split}.json",
    "{split}.tsv",
)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """counts: items of each known split. floors: what guessing scores there, in per cent, by the kind of
    guess, with its source.
    """

    name: str
    title: str
    hub: str | None
    split: str
    counts: Mapping[str, int | None]
    read: Reader
    metrics: Callable[[Sequence[Item], Sequence[Verdict]], list[Table]]
    files: Sequence[str] = _FILES
    floors: Mapping[str, float] = field(default_factory=dict)

    @property
    def published(self) -> tuple[Published, ...]:
        return published(self.name)


_ALL = (
    Benchmark(
        name="mathvista",
        title="MathVista",
        hub="AI4Math/MathVista",
        split="testmini",
        counts={"testmini": 1_000, "test": 5_141},
        read=read_mathvista,
        metrics=metrics.mathvista,
        floors={"random": 17.9, "most frequent": 26.3},
    ),
    Benchmark(
        name="mathvision",
        title="MathVision",
        hub="MathLLMs/MathVision",
        split="test",
        counts={"test": 3_040, "testmini": 304},
        read=read_mathvision,
        metrics=metrics.mathvision,
        floors={"always A": 9.8},
    ),
    Benchmark(
        name="mathverse",
        title="MathVerse",
        hub="AI4Math/MathVerse",
        split="testmini",
        counts={"testmini": 3_940, "testmini_text_only": 788},
        read=read_mathverse,
        metrics=metrics.mathverse,
    ),
    Benchmark(
        name="wemath",
        title="We-Math",
        hub="We-Math/We-Math",
        split="testmini",
        counts={"testmini": 1_740},
        read=read_wemath,
        metrics=metrics.wemath,
        floors={"always A": 33.62, "always B": 29.14},
    ),
    Benchmark(
        name="r1-onevision-bench",
        title="R1-Onevision-Bench",
        hub="Fancy-MLLM/R1-Onevision-Bench",
        split="train",
        counts={"train": 942},
        read=read_onevision_bench,
        metrics=metrics.onevision_bench,
        files=("r1-onevision.tsv", "*.tsv", *_FILES),
    ),
    Benchmark(
        name="playground",
        title="the playground",
        hub=None,
        split="test",
        counts=dict.fromkeys(SPLITS),
        read=read_generic,
        metrics=metrics.playground,
    ),
)
BENCHMARKS: Mapping[str, Benchmark] = {one.name: one for one in _ALL}


def load_items(
    bench: str, data: str | None = None, split: str | None = None, limit: int | None = None, seed: int = 0
) -> list[Item]:
    """The items of a benchmark, in the order of its files. A count that is not the known one is told on
    stderr.

    Args:
        bench: a name of BENCHMARKS, or the path of a file of questions (see generic.py).
        data: file, folder or hub name; None: the benchmark's own data set on the hub.
        limit: the first so many; the playground, which is endless, needs it. seed: the playground's.
    Raises: UserError.
    """
    if bench == "playground":
        if limit is None:
            raise UserError("the playground is endless; say how many questions with --limit")
        return playground_items(split or "test", limit, seed)
    items = _read(BENCHMARKS[bench], data, split) if bench in BENCHMARKS else _read_path(bench, data, split)
    ids = [item.id for item in items]
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise UserError(f"{bench}: two rows have the id {twice!r}; every question needs its own")
    if golds := sum(not item.answer.strip() for item in items):
        _say(f"{bench}: {golds} of {len(items)} items have no gold answer: they score 0")
    if errors := [item for item in items if item.error]:
        _say(
            f"{bench}: {len(errors)} of {len(items)} items cannot be asked and score 0; the first, {errors[0].id}: {errors[0].error}"
        )
    return items[:limit]


def _read(bench: Benchmark, data: str | None, split: str | None) -> list[Item]:
    split = split or bench.split
    if split not in bench.counts:
        raise UserError(f"--split is {split!r}; {bench.name} has {', '.join(bench.counts)}")
    found = find(data or bench.hub, [pattern.format(split=split) for pattern in bench.files], (CONCEPTS,))
    items = []
    for path in found.files:
        items += bench.read(read_rows(path), Pictures(path.parent, found.inside), split)
    if len(items) != bench.counts[split]:
        _say(f"{bench.name}: {len(items):,} items; {split} is known to have {bench.counts[split]:,}")
    return items


def _read_path(bench: str, data: str | None, split: str | None) -> list[Item]:
    path = Path(bench).expanduser()
    if not path.is_file() or path.suffix.lower() not in DATA_SUFFIXES:
        known = ", ".join(BENCHMARKS)
        raise UserError(
            f"--bench is {bench!r}; expected {known}, or an existing file that ends in {', '.join(DATA_SUFFIXES)}"
        )
    if data is not None:
        raise UserError(
            "--data says where a named benchmark's data is; a file given as --bench is read itself"
        )
    return read_generic(read_rows(path), Pictures(path.parent, path.parent), split or "all", path.stem)


def metrics_of(bench: str, items: Sequence[Item], verdicts: Sequence[Verdict]) -> list[Table]:
    """The benchmark's own metrics beside plain accuracy. A file of questions has a table for each tag of few
    values.

    Args: verdicts: of any samples; an item's score is the mean over its samples, 0 without any.
    """
    own = BENCHMARKS[bench].metrics if bench in BENCHMARKS else metrics.by_every_tag
    return own(items, verdicts)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
