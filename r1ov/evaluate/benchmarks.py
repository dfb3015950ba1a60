"""The benchmarks: where their data is, how it is read, how many items it has, and what is reported of it."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from r1ov.common.files import say, shown
from r1ov.data.formats.files import located
from r1ov.data.image import LazyImage
from r1ov.data.playground import SPLITS, invent, paint
from r1ov.data.playground.scene import SIZE
from r1ov.errors import UserError
from r1ov.evaluate import report, rows
from r1ov.evaluate.item import Item, read_lines
from r1ov.evaluate.rows import Benchmark

PLAYGROUND, PLAYGROUND_LIMIT = "playground", 1000  # it has no end
MAX_CELL = 2**30  # characters of a TSV's cell: base64 images
DATA_SUFFIXES = (".tsv", ".csv", ".json", ".jsonl", ".parquet")
_ALL = (
    Benchmark(
        "mathvista",
        hub="AI4Math/MathVista",
        counts={"testmini": 1_000, "test": 5_141},
        metrics=("task", "skills", "source"),
        id="{pid}",
        options="choices",
        group="image",
        official="query",
        tags="task skills source category context grade language",
        own=rows.mathvista,
    ),
    Benchmark(
        "mathvision",
        hub="MathLLMs/MathVision",
        counts={"test": 3_040, "testmini": 304},
        metrics=("level", "subject"),
        id="{id}",
        options="options",
        group="image",
        tags="level subject",
        own=rows.mathvision,
    ),
    Benchmark(
        "mathverse",
        hub="AI4Math/MathVerse",
        counts={"testmini": 3_940, "testmini_text_only": 788},
        metrics=(report.mathverse,),
        id="{sample_index}",
        options="question question_for_eval",
        group="problem_index",
        official="query_cot",
        tags="problem_version subject subfield source question_type",
        own=rows.mathverse,
    ),
    Benchmark(
        "wemath",
        hub="We-Math/We-Math",
        counts={"testmini": 1_740},
        metrics=(report.wemath, "steps"),
        id="{ID}@{key}",
        options="option",
        group="ID",
        own=rows.wemath,
    ),
    Benchmark(  # hint and options are in the question already; without options, the gold tells the kind
        "r1-onevision-bench",
        hub="Fancy-MLLM/R1-Onevision-Bench",
        counts={"train": 942},
        metrics=("level", "category"),
        files=("r1-onevision.tsv", "*.tsv", *rows.FILES),
        options="choices",
        tags="level category",
    ),
    Benchmark(PLAYGROUND, counts=dict.fromkeys(("test", *SPLITS)), metrics=("family",)),
)
BENCHMARKS = {one.name: one for one in _ALL}


def benchmark(name: str, split: str | None = None) -> Benchmark:
    """Returns the benchmark of this name, else a file of questions as one. Args: split: the file's."""
    own = Benchmark(Path(name).stem, counts={split or "all": None}, metrics=(report.by_every_tag,))
    return BENCHMARKS.get(name, own)


def load_items(
    name: str, data: str | None = None, split: str | None = None, limit: int | None = None
) -> list[Item]:
    """Returns the items of a benchmark, in the order of its files; says on stderr what is unusual about them.

    Args:
        name: of BENCHMARKS, or the path of a file of questions (see `rows.own_row`).
        data: file, folder or hub name; None: the benchmark's own data set on the hub.
        limit: only the first this many; None: all, of the playground 1,000.
    Raises: UserError.
    """
    bench = benchmark(name, split)
    split = split or next(iter(bench.counts))
    if split not in bench.counts:
        raise UserError(f"--split is {split!r}; {bench.name} has {', '.join(bench.counts)}")
    if name == PLAYGROUND:
        return playground_items(split, limit or PLAYGROUND_LIMIT)
    if not bench.hub:
        path = Path(name).expanduser()
        if not path.is_file() or path.suffix.lower() not in DATA_SUFFIXES:
            raise UserError(
                f"--bench is {name!r}; expected {', '.join(BENCHMARKS)}, or an existing file that ends in "
                f"{', '.join(DATA_SUFFIXES)}"
            )
        if data is not None:
            raise UserError("--data says where a named benchmark's data is; --bench FILE is read itself")
    files, inside = find(data or bench.hub or name, [pattern.format(split=split) for pattern in bench.files])
    items = {}  # by their ids
    for path in files:
        for item in rows.items_of(bench, split, read_rows(path), path.parent, inside):
            if items.setdefault(item.id, item) is not item:
                raise UserError(f"{name}: two rows have the id {item.id!r}; every question needs its own")
    total, known = len(items), bench.counts[split]
    if known not in (None, total):
        say(f"{name}: {total:,} items; {split} is known to have {known:,}")
    faults = {
        "have no gold answer and score 0": lambda item: not item.answer.strip(),
        "cannot be asked and score 0": lambda item: item.error,
    }
    if not bench.hub and any(item.images for item in items.values()):
        faults["have no image and are asked without"] = lambda item: not item.images and not item.error
    for fault, has_it in faults.items():
        if faulty := [item for item in items.values() if has_it(item)]:
            first = ": ".join(filter(None, (faulty[0].id, faulty[0].error)))
            say(f"{name}: {len(faulty)} of {total} questions {fault}; the first is {first}")
    return [*items.values()][:limit]


def find(name: str, patterns: Sequence[str]) -> tuple[Sequence[Path], Path]:
    """Returns the data files of a file, a folder, or a hub data set `owner/name[@revision]`, and the folder
    in which their images must lie.

    Args: patterns: of file names, best first; all files that match the first one that matches any are taken.
    Raises: UserError.
    """
    path, inside = located(name, patterns)
    if path.is_file():
        return [path], inside
    for pattern in patterns:
        if files := sorted(file for file in path.rglob(pattern) if file.is_file()):
            return files, inside
    raise UserError(
        f"{shown(name)}: none of its files is called {' or '.join(patterns)}; name the file that is meant"
    )


def read_rows(path: Path) -> list[dict]:
    """Returns all rows of a parquet, JSON, JSON lines, TSV or CSV file.

    Raises: UserError, also for a single row that cannot be read: a benchmark is read whole or not at all.
    """
    delimiter = {".tsv": "\t", ".csv": ","}.get(path.suffix.lower())
    if not delimiter:
        found = read_lines(path, lambda row: row)
        if not all(isinstance(row, dict) for row in found):
            raise UserError(f"{path}: expected rows with named columns, found something else")
        return found
    limit = csv.field_size_limit(MAX_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, delimiter=delimiter))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    finally:
        csv.field_size_limit(limit)
    head, *found = [line for line in lines if line] or [[]]
    if not found:
        raise UserError(f"{path}: it has no rows")
    for number, line in enumerate(found, 1):
        if len(line) != (names := len({*head})):
            raise UserError(f"{path}: row {number} has {len(line)} cells, the head line {names} names")
    return [dict(zip(head, line, strict=True)) for line in found]


# The playground as a benchmark: its splits are endless, so it is always the first questions that are asked.


def playground_items(split: str, limit: int) -> list[Item]:
    """Returns the first questions of a split; their images are painted when they are needed."""
    return [playground_item(f"{split}/{index}") for index in range(limit)]


def playground_item(id: str) -> Item:
    """Returns the question with this id ("test/12"), of any split. Raises UserError."""
    match = re.fullmatch(rf"({'|'.join(SPLITS)})/(\d{{1,9}})", id)
    if not match:
        raise UserError(f'the playground has no question {id!r:.60}; ids are such as "test/12"')
    family, scene = invent(match[1], int(match[2]), 0)
    return Item(
        bench=PLAYGROUND,
        split=match[1],
        id=id,
        question=scene.question,
        images=(LazyImage((SIZE, SIZE), lambda: paint(scene)),),
        answer=scene.answer,
        kind=scene.kind,
        tags={"family": family},
    )
