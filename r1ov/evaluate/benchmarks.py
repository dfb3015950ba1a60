"""The benchmarks: where their data is, how it is read, how many items it has, and what others report."""

import csv
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from r1ov.common.files import shown
from r1ov.data.formats.files import HUB_NAME
from r1ov.data.formats.records import BadRow
from r1ov.data.formats.rows import open_rows
from r1ov.data.image import LazyImage
from r1ov.data.playground import FAMILIES, SPLITS, invent, paint
from r1ov.data.playground.scene import SIZE
from r1ov.errors import UserError
from r1ov.evaluate import metrics, readers
from r1ov.evaluate.item import Item
from r1ov.folder.hub import download

PLAYGROUND = "playground"
MAX_CELL = 2**30  # characters of a TSV's cell: base64 images
DATA_SUFFIXES = (".tsv", ".csv", ".json", ".jsonl", ".parquet")


class Published(NamedTuple):
    """A score that others report, in per cent: for context, as prompts, budgets, extraction and judges
    differ.
    """

    model: str
    metric: str
    score: float
    source: str


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
    def published(self) -> list[Published]:
        with (Path(__file__).parent / "published.tsv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file, delimiter="\t") if row.pop("bench") == self.name]
        return [Published(**row)._replace(score=float(row["score"])) for row in rows]


_ALL = (
    Benchmark(
        name="mathvista",
        hub="AI4Math/MathVista",
        counts={"testmini": 1_000, "test": 5_141},
        read=readers.published(
            readers.mathvista,
            id="{pid}",
            images=("image", "decoded_image"),
            options=("choices",),
            group="image",
            official="query",
            tags=("task", "skills", "source", "category", "context", "grade", "language"),
        ),
        metrics=("task", "skills", "source"),
        floors={"random": 17.9, "most frequent": 26.3},
    ),
    Benchmark(
        name="mathvision",
        hub="MathLLMs/MathVision",
        counts={"test": 3_040, "testmini": 304},
        read=readers.published(
            readers.mathvision,
            id="{id}",
            images=("image", "decoded_image"),
            options=("options",),
            group="image",
            tags=("level", "subject"),
        ),
        metrics=("level", "subject", metrics.mathvision),
        floors={"always A": 9.8},
    ),
    Benchmark(
        name="mathverse",
        hub="AI4Math/MathVerse",
        counts={"testmini": 3_940, "testmini_text_only": 788},
        read=readers.published(
            readers.mathverse,
            id="{sample_index}",
            options=("question", "question_for_eval"),
            group="problem_index",
            official="query_cot",
            tags=("problem_version", "subject", "subfield", "source", "question_type"),
        ),
        metrics=(metrics.mathverse,),
    ),
    Benchmark(
        name="wemath",
        hub="We-Math/We-Math",
        counts={"testmini": 1_740},
        read=readers.published(
            readers.wemath, id="{ID}@{key}", images=("image_path",), options=("option",), group="ID"
        ),
        metrics=(metrics.wemath,),
        floors={"always A": 33.62, "always B": 29.14},
    ),
    Benchmark(
        name="r1-onevision-bench",
        hub="Fancy-MLLM/R1-Onevision-Bench",
        counts={"train": 942},
        read=readers.published(
            readers.onevision_bench, id="{index}", options=("choices",), tags=("level", "category")
        ),
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
    files, inside = find(data or bench.hub or name, [pattern.format(split=split) for pattern in bench.files])
    items: dict[str, Item] = {}
    has_images = False
    for file in files:
        pictures, rows = readers.Pictures(file.parent, inside), read_rows(file)
        has_images = has_images or any(re.search("image|img|picture", " ".join(row).lower()) for row in rows)
        for item in readers.read(bench.read, rows, pictures, bench.name, split):
            if items.setdefault(item.id, item) is not item:
                raise UserError(f"{name}: two rows have the id {item.id!r}; every question needs its own")
    count = bench.counts[split] or len(items)
    if len(items) != count:
        _say(f"{name}: {len(items):,} items; {split} is known to have {count:,}")
    if golds := sum(not item.answer.strip() for item in items.values()):
        _say(f"{name}: {golds} of {len(items)} items have no gold answer: they score 0")
    if errors := [item for item in items.values() if item.error]:
        first = f"the first, {errors[0].id}: {errors[0].error}"
        _say(f"{name}: {len(errors)} of {len(items)} items cannot be asked and score 0; {first}")
    bare = [item.id for item in items.values() if not item.images and not item.error]
    if bare and has_images and name not in BENCHMARKS:
        first = f"and are asked without; first {bare[0]}"
        _say(f"{name}: {len(bare)} of {len(items)} questions have no image {first}")
    return [*items.values()][:limit]


def find(name: str, patterns: Sequence[str]) -> tuple[Sequence[Path], Path]:
    """Returns the data files of a file, a folder, or a hub data set `owner/name[@revision]`, and the folder
    in which their images must lie.

    Args: patterns: of file names, best first; all files that match the first one that matches any are taken.
    Raises: UserError.
    """
    path = inside = Path(name).expanduser()
    if path.is_file():
        return [path], path.parent
    if not path.exists():
        match = None if name.startswith(("/", ".", "~")) else HUB_NAME.fullmatch(name)
        if not match or match["inner"]:
            raise UserError(
                f"{shown(name)}: no such file or folder, and not a hub data set's name (owner/name)"
            )
        wanted = [f"*{pattern}" for pattern in (*patterns, readers.CONCEPTS)]
        path = download(name, match["repo"], match["revision"], "dataset", allow_patterns=wanted)
        inside = path.parent.parent  # the cache's links lead to blobs/
    for pattern in patterns:
        if files := sorted(file for file in path.rglob(pattern) if file.is_file()):
            return files, inside
    raise UserError(
        f"{shown(name)}: none of its files is called {' or '.join(patterns)}; name the file that is meant"
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns all rows of a parquet, JSON (a list, or an object of rows), JSON lines, TSV or CSV file.

    Raises: UserError, also for a single row that cannot be read: a benchmark is read whole or not at all.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in (".tsv", ".csv"):
            rows = _read_table(path, "\t" if suffix == ".tsv" else ",")
        elif suffix == ".json":
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
            rows = list(rows.values()) if isinstance(rows, dict) else rows
        else:
            opened = open_rows(path)
            rows = [opened[number] for number in range(len(opened))]
    except BadRow as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        found = "none" if rows == [] else "something else"
        raise UserError(f"{path}: expected rows with named columns, found {found}")
    return rows


def _read_table(path: Path, delimiter: str) -> list[dict[str, Any]]:
    limit = csv.field_size_limit(MAX_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter=delimiter))
    finally:
        csv.field_size_limit(limit)
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            which = "more" if None in row else "fewer"
            raise UserError(f"{path}: row {number} has {which} cells than the head line")
    return rows


def _say(line: str) -> None:
    print(line, file=sys.stderr)


# The playground as a benchmark: its splits are endless, so it is always the first questions that are asked.


def playground_items(split: str, limit: int, swap: bool = False) -> list[Item]:
    """Returns the first questions of a split; their images are painted when they are needed.

    swap: each with the image of the family's next different scene, a control: who still scores has not
        looked.
    """
    return playground_by_id((f"{split}/{index}" for index in range(limit)), swap)


def playground_by_id(ids: Iterable[str], swap: bool = False) -> list[Item]:
    """Returns the questions with these ids ("test/12"), of any splits. Raises UserError."""
    return [_playground_item(id, swap) for id in ids]


def _playground_item(id: str, swap: bool) -> Item:
    match = re.fullmatch(rf"({'|'.join(SPLITS)})/(\d{{1,9}})", id)
    if not match:
        raise UserError(f'the playground has no question {id!r:.60}; ids are such as "test/12"')
    split, index = match[1], int(match[2])
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
