"""The small files of tests/data through the reader, as a run reads them: nothing is converted beforehand, no
row is lost.
"""

from collections.abc import Mapping
from pathlib import Path

import pytest

from r1ov.data.formats.files import find_files
from r1ov.data.formats.layouts import LAYOUTS, read_row
from r1ov.data.formats.reader import Reader
from r1ov.data.formats.records import Record
from r1ov.data.formats.rows import open_rows
from r1ov.data.processor import IGNORED
from r1ov.folder.pretrained import read_processor, resolve
from tests import make_data
from tests.test_records import BLUE, DATA, EXPECTED, RED, said, user

FILES = sorted(path.name for path in DATA.iterdir() if path.suffix != ".png")

# As EXPECTED in tests/test_records.py: for each row its format, messages, gold answer and kind. Written by
# reading the rows.
FURTHER = {
    "sharegpt-turns.parquet": [
        (
            "sharegpt",
            [
                user(RED, "What colour is this paper?"),
                said("assistant", "<think>All of it is red.</think>\n<answer>red</answer>"),
                user("Now look here. ", BLUE, "Is it the same?"),
                said("assistant", "<think>This one is blue, the first was red.</think>\n<answer>no</answer>"),
            ],
            "no",
            None,
        ),
        (
            "sharegpt",
            [
                said("user", "Say hello."),
                said("assistant", "Hello."),
                said("user", "Again."),
                said("assistant", "Hello!"),
            ],
            "Hello!",
            None,
        ),
    ],
    "alpaca-text.jsonl": [
        (
            "alpaca",
            [said("user", "Add the numbers.\n2, 3"), said("assistant", "2 and 3 make 5.\nThe sum is 5.")],
            None,
            None,
        ),
        ("alpaca", [said("user", "Name a colour."), said("assistant", "Green")], "Green", None),
    ],
    "qwen.json": [
        (
            "messages",
            [user(BLUE, "What is this?"), said("assistant", "A blue paper.")],
            "A blue paper.",
            None,
        ),
        (
            "messages",
            [
                user(RED, BLUE, "Which is red?"),
                said("assistant", "The first."),
                said("user", "Sure?"),
                said("assistant", "Yes."),
            ],
            "Yes.",
            None,
        ),
    ],
    "trl.parquet": [
        (
            "trl",
            [
                said("system", "Think first."),
                user(RED, "How many colours?"),
                said("assistant", "<think>Red, and that is all.</think><answer>1</answer>"),
            ],
            "1",
            None,
        ),
        ("trl", [said("user", "What is 3 + 4?"), said("assistant", "It is 7.")], "7", None),
    ],
    "verl-text.jsonl": [
        ("verl", [said("system", "Show your work."), said("user", "2 + 2 = ?")], "4", None),
        ("verl", [said("user", "3 + 3 = ?")], "6", None),
    ],
}


def read(record: Record) -> tuple:
    """The record with each picture told by its size and the colour of a pixel."""

    def told(part: dict) -> object:
        if part["type"] == "text":
            return part["text"]
        assert part["image"].size == (56, 28)
        return ("picture", part["image"].load().getpixel((5, 5)))

    messages = [
        {
            "role": message["role"],
            "content": content
            if isinstance(content := message["content"], str)
            else list(map(told, content)),
        }
        for message in record.messages
    ]
    return record.format, messages, record.solution, record.kind


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_recognised_and_read_as_a_person_reads_it(name):
    reader = Reader(find_files(str(DATA / name)))
    assert [read(reader[number]) for number in range(len(reader))] == (EXPECTED | FURTHER)[name]


def test_the_files_are_those_that_the_script_makes(tmp_path):
    make_data.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in DATA.iterdir())
    for name in FILES:  # the rows, not the bytes: those are pyarrow's and zlib's own affair
        made, kept = (Reader(find_files(str(folder / name))) for folder in (tmp_path, DATA))
        assert [read(made[number]) for number in range(len(made))] == [
            read(kept[number]) for number in range(len(kept))
        ], name


def form(source: object) -> str:
    if isinstance(source, Mapping):
        return "struct"
    if isinstance(source, bytes):
        return "bytes"
    return "data URL" if source.startswith("data:") else "path" if Path(source).suffix else "base64"


def test_every_format_container_and_form_of_picture_occurs():
    formats, forms = set(), set()
    for name in FILES:
        rows = open_rows(DATA / name)
        for number in range(len(rows)):
            record = read_row(rows[number])
            formats.add(record.format)
            forms |= set(map(form, record.images))
    assert formats == set(LAYOUTS)
    assert forms == {"path", "bytes", "struct", "base64", "data URL"}
    assert {Path(name).suffix for name in FILES} == {".json", ".jsonl", ".parquet"}


def test_one_parser_serves_both_stages():
    """Every row has replies that can be trained, or a gold answer to be scored against, or both."""
    processor = read_processor(resolve("r1ov-tiny"))
    for name in FILES:
        files = find_files(str(DATA / name))
        sft, grpo = (Reader(files, need=need) for need in ("reply", "solution"))
        for number, (_, messages, solution, _) in enumerate((EXPECTED | FURTHER)[name]):
            replies = [message["content"] for message in messages if message["role"] == "assistant"]
            record = sft[number]
            assert isinstance(record, Record) == bool(replies)
            if replies:
                batch = processor(record.messages, return_labels=True)
                trained = batch["labels"][batch["labels"] != IGNORED]
                assert processor.decode(trained, skip_special_tokens=False) == "".join(
                    f"{reply}<|im_end|>" for reply in replies
                )
            assert isinstance(grpo[number], Record) == (solution is not None)
