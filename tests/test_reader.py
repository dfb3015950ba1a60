"""r1ov.data.formats.files, reader and `python -m r1ov.data`: rows in any order, bad rows counted,
nothing lost in silence.
"""

import base64
import contextlib
import json
import pickle
import random
import re
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from r1ov.cli import parse_cli
from r1ov.data.__main__ import LookConfig, look
from r1ov.data.formats.files import find_files
from r1ov.data.formats.layouts import LAYOUTS
from r1ov.data.formats.reader import Endless, Reader, open_data, shuffled
from r1ov.data.formats.records import BadRow, Record, Tally
from r1ov.data.formats.rows import GROUPS_AT_HAND, open_rows
from r1ov.errors import UserError
from r1ov.folder.pretrained import read_processor, resolve

DATA = Path(__file__).parent / "data"


def row(number: int) -> dict:
    return {"id": f"row-{number}", "problem": f"What is {number} + 1?", "answer": number + 1}


def write_lines(path: Path, rows: list, end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(end.join(each if isinstance(each, str) else json.dumps(each) for each in rows).encode())
    return path


def write_parquet(path: Path, rows: list[dict], group: int) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n  \n"])
def test_lines_list_and_parquet_hold_the_same_rows(tmp_path, end):
    rows = [row(number) for number in range(23)]
    paths = [
        write_lines(tmp_path / "a.jsonl", rows, end),
        write_lines(tmp_path / "b.json", [json.dumps(rows)]),
    ]
    paths += [write_parquet(tmp_path / "c.parquet", rows, group=5), tmp_path / "bom.jsonl"]
    paths[-1].write_bytes(b"\xef\xbb\xbf" + paths[0].read_bytes())
    for path in paths:
        found = open_rows(path)
        order = random.Random(0).sample(range(23), 23)
        assert [found[number] for number in order] == [rows[number] for number in order]
        assert len(found) == 23


def test_parquet_is_read_by_groups_and_no_more_than_a_few_are_kept(tmp_path, monkeypatch):
    rows = write_parquet(tmp_path / "a.parquet", [row(number) for number in range(200)], group=10)
    reads: list[int] = []
    whole = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda file, group, **more: reads.append(group) or whole(file, group, **more),
    )
    reader = open_data(str(rows))
    for number in range(200):
        assert isinstance(reader[number], Record)
    assert sorted(reads) == list(range(20))  # an epoch in shuffled order decodes each group once
    assert len(reader.reader.rows[0]._groups) == GROUPS_AT_HAND


def test_a_shuffled_order_is_a_permutation_that_differs_by_epoch_and_mixes_groups():
    orders = [shuffled([7, 0, 30, 1, 12, 50, 9], (3, 0, epoch)) for epoch in range(4)]
    for order in orders:
        assert sorted(order) == list(range(109))
    assert len({tuple(order) for order in orders}) == 4
    assert np.array_equal(shuffled([7, 30], (3, 0, 0)), shuffled([7, 30], (3, 0, 0)))
    # With groups of one row each place is equally likely: 3 rows, 6 orders, 6000 draws, 5 standard deviations
    # of sqrt(833).
    counts = Counter(tuple(shuffled([1, 1, 1], (seed,))) for seed in range(6000))
    assert len(counts) == 6
    assert all(abs(count - 1000) < 145 for count in counts.values())


def test_every_row_comes_once_an_epoch_and_a_loader_can_begin_anywhere(tmp_path):
    write_parquet(tmp_path / "a.parquet", [row(number) for number in range(30)], group=7)
    write_lines(tmp_path / "b.jsonl", [row(number) for number in range(30, 50)])
    spec = f"{tmp_path}/a.parquet,{tmp_path}/b.jsonl"
    data = open_data(spec, seed=5)
    ids = [data[number].id for number in range(3 * len(data))]
    for epoch in range(3):
        assert sorted(ids[50 * epoch : 50 * epoch + 50]) == sorted(f"row-{number}" for number in range(50))
    assert ids[:50] != ids[50:100]
    fresh = open_data(spec, seed=5)
    for number in (149, 3, 77, 50, 0):  # any order, any epoch, a new process
        assert fresh[number].id == ids[number]
    # Pickled as DataLoader does to hand it to a worker that is spawned, not forked.
    assert pickle.loads(pickle.dumps(fresh))[60].id == ids[60]
    assert [open_data(spec, seed=6)[number].id for number in range(50)] != ids[:50]
    assert [fresh.reader[number].id for number in range(50)] == [f"row-{number}" for number in range(50)]


def test_names_are_parted_at_commas_unless_they_are_a_files_own(tmp_path):
    odd, other = (write_lines(tmp_path / name, [row(0)]) for name in ("a,b.jsonl", "o(c,d).jsonl"))
    for name in (odd, other):
        assert [file.path for file in open_data(str(name)).reader.files] == [name]
    both = open_data(f"{other}, {other}").reader
    assert [file.path for file in both.files] == [other, other]
    for wrong in (f"{other},,{other}", ""):
        with pytest.raises(UserError, match="--data"):
            open_data(wrong)


def test_a_folder_gives_its_training_split_and_refuses_to_guess(tmp_path):
    for name in (
        "ai2d/train-00000-of-00002.jsonl",
        "ai2d/train-00001-of-00002.jsonl",
        "ai2d/test-00000-of-00001.jsonl",
        "b/train.jsonl",
    ):
        write_lines(tmp_path / name, [row(0)])
    (tmp_path / "dataset_info.json").write_text("{}")
    names = [file.path.relative_to(tmp_path).as_posix() for file in find_files(str(tmp_path))]
    assert names == ["ai2d/train-00000-of-00002.jsonl", "ai2d/train-00001-of-00002.jsonl", "b/train.jsonl"]
    assert [file.path.name for file in find_files(str(tmp_path), "test")] == ["test-00000-of-00001.jsonl"]
    with pytest.raises(UserError, match="no split 'dev', only test, train"):
        find_files(str(tmp_path), "dev")
    write_lines(tmp_path / "b/more.jsonl", [row(0)])
    with pytest.raises(UserError, match=r"named after splits it holds more\.jsonl; name the files"):
        find_files(str(tmp_path))
    assert [file.path.name for file in find_files(str(tmp_path / "b/more.jsonl"))] == ["more.jsonl"]
    write_lines(tmp_path / "other.json", ["[]"])
    with pytest.raises(UserError, match=r"holds \.json and \.jsonl files; name"):
        find_files(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "no such file"),
        ("a.txt", b"x", "expected a file that ends in"),
        ("a.jsonl", b"", "it has no rows"),
        ("a.json", b"[]", "it has no rows"),
        ("a.json", b"[1, 2", "not valid JSON"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        (
            "a.json",
            b'[{"question": "How many?", "answer": "4", "answer": "5"}]',
            "there twice among question",
        ),
        ("a.parquet", b"PAR1 and no more", "not a complete parquet file"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    ],
)
def test_a_file_that_is_no_data_is_one_line_for_the_user(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        open_data(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_two_columns_of_one_name_are_refused(tmp_path):
    pq.write_table(
        pa.table([["q"], ["4"], ["5"]], names=["question", "answer", "answer"]), tmp_path / "a.parquet"
    )
    with pytest.raises(UserError, match="two of its columns have one name: question, answer, answer"):
        open_data(str(tmp_path / "a.parquet"))


def test_lines_in_another_encoding_say_so(tmp_path):
    for encoding in ("gb18030", "latin-1", "shift-jis", "utf-8"):
        letter = "ü" if encoding == "latin-1" else "中"
        text = json.dumps({"question": f"{letter}?", "answer": letter}, ensure_ascii=False)
        (tmp_path / "a.jsonl").write_bytes(text.encode(encoding))
        found = open_data(str(tmp_path / "a.jsonl"))[0]
        if encoding == "utf-8":
            assert found.solution == letter
        else:
            assert found.reason == "the line is not UTF-8"
            assert found.detail.endswith("save the file as UTF-8")


def test_a_hub_data_set_is_looked_for_by_name_and_its_cache_is_the_limit(tmp_path, monkeypatch):
    import huggingface_hub

    blobs, snapshot = tmp_path / "datasets--o--n" / "blobs", tmp_path / "datasets--o--n" / "snapshots" / "abc"
    (snapshot / "ai2d").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_bytes((DATA / "red.png").read_bytes())
    (snapshot / "ai2d" / "x.png").symlink_to("../../../blobs/1")
    write_lines(blobs / "2", [{"problem": "<image>?", "answer": "1", "image": "x.png"}])
    (snapshot / "ai2d" / "train.jsonl").symlink_to("../../../blobs/2")
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repo, **more: asked.append((repo, more)) or str(snapshot)
    )
    assert open_data("o/n/ai2d@main")[0].images[0].size == (56, 28)
    assert asked[0][0] == "o/n"
    assert asked[0][1]["revision"] == "main"
    assert asked[0][1]["repo_type"] == "dataset"
    with pytest.raises(UserError, match="the data set has no other"):
        open_data("o/n/other")
    with pytest.raises(UserError, match="no such file"):  # a slip of the pen is not asked of the hub
        open_data("data/train.jsonl")
    assert len(asked) == 2


def test_bad_rows_are_counted_by_reason_and_shown_once_with_file_and_row(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl",
        [row(0), "{not json", {"foo": 1}, row(3), {"foo": 2}, '{"problem": NaN, "answer": 1}'],
    )
    reader, shown = Reader(find_files(str(path))), []
    tally = Tally(max_bad_share=0.7, say=shown.append)
    for number in range(len(reader)):
        tally.add(reader[number])
    tally.finish()
    assert tally.formats == {"easyr1": 2}
    assert tally.bad == {"the line is not JSON": 2, "the format is not known": 2}
    assert [re.sub(r".*/", "", line)[:14] for line in shown] == ["a.jsonl, row 2", "a.jsonl, row 3"]
    tally.max_bad_share = 0.5
    with pytest.raises(UserError, match=r"4 of 6 rows cannot be read, more than 50\.0%.*row 2"):
        tally.finish()


def test_too_many_bad_rows_stop_a_run_in_its_midst_and_a_few_do_not():
    def bad(number):
        return BadRow(reason="r", detail=f"f, row {number}: r")

    good = Record(messages=[], format="x")
    tally = Tally(max_bad_share=0.05)
    for number in range(10):
        tally.add(bad(number))  # 5% of 200, below which a share says little
    for _ in range(3):
        tally.add(bad(7))  # again, in the next epoch
    with pytest.raises(UserError, match=r"11 of 11 rows .* raise --max-bad-share"):
        tally.add(bad(10))
    tally = Tally(max_bad_share=0.05)
    for number in range(2000):
        tally.add(bad(number) if number % 25 == 0 else good)
    tally.finish()
    assert tally.bad.total() == 80
    with pytest.raises(UserError, match="none of 0 rows"):
        Tally().finish()


def test_one_bad_row_is_forgiven_unless_none_may_be():
    good, bad = Record(messages=[], format="x"), BadRow(reason="r", detail="f, row 1: r")
    for share, is_refused in ((0.05, False), (0, True)):
        tally = Tally(max_bad_share=share)
        for item in [good] * 11:
            tally.add(item)
        with pytest.raises(UserError, match="1 of 12 rows") if is_refused else nullcontext():
            tally.add(bad)
            tally.finish()


def test_what_a_stage_needs_is_asked_of_each_row():
    files = find_files(str(DATA / "trl.jsonl"))
    assert [type(Reader(files, need="reply")[number]) for number in range(3)] == [Record, BadRow, Record]
    only = find_files(str(DATA / "sharegpt.json")) + find_files(str(DATA / "r1-onevision.parquet"))
    reader = Reader(only, need="solution")
    assert [type(reader[number]) for number in range(3)] == [Record, BadRow, BadRow]
    assert [Reader(only, need="solution", clean=True)[number].solution for number in (1, 2)] == ["B", "1"]


def test_pictures_are_sought_in_the_folder_given_or_beside_the_file(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"problem": "?", "answer": "1", "image": "red.png"}])
    files = find_files(str(path))
    assert "file is missing" in Reader(files)[0].detail
    assert Reader(files, image_folder=DATA)[0].images[0].size == (56, 28)
    write_lines(path, [{"problem": "?", "answer": "1", "image": str(DATA / "red.png")}])
    assert "outside the data's folder" in Reader(files)[0].detail


WRONG = [
    None,
    3,
    -1.5,
    True,
    "",
    "\ud800",
    "x" * 3000,
    [],
    [[]],
    {},
    {"a": None},
    [None],
    "http://x/y.png",
    "../../etc/passwd",
    "/etc/passwd",
]


def mutated(rng: random.Random, value: object) -> object:
    """The value with one thing in it wrong: dropped, swapped, nested deeply, retyped, its text cut."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        rest = {name: each for name, each in value.items() if name != key}
        return rest if rng.random() < 0.2 else rest | {key: mutated(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        return value[:place] + [mutated(rng, value[place])] * rng.choice((0, 1, 1, 2)) + value[place + 1 :]
    if isinstance(value, str) and value and rng.random() < 0.5:
        place = rng.randrange(len(value))
        return (
            value[:place]
            + rng.choice(("", "<image>", "*", "\0", "<think>", "..", "data:", "<|im_end|>"))
            + value[place + 1 :]
        )
    deep: object = 1
    for _ in range(500):
        deep = [deep]
    return rng.choice([*WRONG, deep])


def as_json(value: object) -> object:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {key: as_json(each) for key, each in value.items()}
    return [as_json(each) for each in value] if isinstance(value, list) else value


def test_mutated_files_never_crash_and_never_lose_a_row_in_silence(tmp_path):
    files = sorted(path for path in DATA.iterdir() if path.suffix != ".png")
    assert len(files) >= 10
    processor = read_processor(resolve("r1ov-tiny"))
    good = bad = 0
    for seed in range(220):
        rng = random.Random(seed)
        source = open_rows(files[seed % len(files)])
        rows = [mutated(rng, as_json(source[number])) for number in range(len(source))]
        text = "\n".join(json.dumps(each) for each in rows)
        if seed % 4 == 0:  # and the file itself is damaged
            place = rng.randrange(len(text))
            text = text[:place] + rng.choice(("\n", "", "}", "\x00", "[" * 100_000)) + text[place + 1 :]
        path = tmp_path / f"{seed}.jsonl"
        path.write_text(text)
        try:
            reader = Reader(find_files(str(path)), image_folder=DATA, clean=seed % 2 == 0)
        except UserError:
            continue
        tally = Tally(max_bad_share=1.0)
        for number in range(len(reader)):
            item = reader[number]
            if isinstance(item, Record):  # whatever passes can be encoded, or is refused in one line
                with contextlib.suppress(UserError):
                    processor(item.messages, return_labels=item.reply is not None)
            assert isinstance(item, Record) or (
                f"row {number + 1}" in item.detail and "\n" not in item.detail
            )
            tally.add(item)
        assert tally.rows == len(reader) == len([line for line in text.split("\n") if line.strip()])
        good, bad = good + tally.formats.total(), bad + tally.bad.total()
    assert good > 50
    assert bad > 50


def test_a_parquet_file_with_damaged_bytes_gives_bad_rows_and_no_crash(tmp_path):
    whole = (DATA / "r1-onevision.parquet").read_bytes()
    seen: Counter[str] = Counter()
    for seed in range(60):
        rng, data = random.Random(seed), bytearray(whole)
        for _ in range(3):
            data[rng.randrange(4, len(data))] ^= 1 << rng.randrange(8)
        path = tmp_path / f"{seed}.parquet"
        path.write_bytes(data)
        try:
            reader = Reader(find_files(str(path)))
            seen.update(type(reader[number]).__name__ for number in range(len(reader)))
        except UserError:
            seen["file refused"] += 1
    assert seen["BadRow"] > 0
    assert seen["file refused"] > 0


def test_the_look_at_a_file_shows_counts_lengths_and_what_is_trained(capsys):
    look(
        parse_cli(
            LookConfig, ["--data", str(DATA / "r1-onevision.parquet"), "--clean"], prog="x", description=""
        )
    )
    shown = capsys.readouterr().out
    assert "format    r1-onevision 2" in shown
    assert "records   2 with pictures, 2 with a reply, 2 with a solution" in shown
    assert "repairs         1  answer taken from the thought's end" in shown
    # 56 x 28 pixels are fewer than min_pixels, 3136, so they grow by sqrt(2), up to whole tokens of 28: 84 x
    # 56, which is 3 x 2 tokens. The reply and the token that ends it are trained, nothing else.
    assert "<|vision_start|><|image_pad|> x 6<|vision_end|>Hint: Please answer" in shown
    assert "[[<think>The paper is red all over.</think>\n<answer>B</answer><|im_end|>]]" in shown
    assert shown.count("[[") == 2  # the legend's and the reply's
    assert re.search(r"^of them picture +6 +6 +6 +6 +6$", shown, re.MULTILINE)


def test_the_look_says_which_stage_has_nothing_to_learn(tmp_path, capsys):
    path = write_lines(tmp_path / "a.jsonl", [{"question": "How many?", "answer": "4"}])
    look(LookConfig(data=str(path)))
    shown = capsys.readouterr().out
    assert "--stage sft cannot use it: there is no row with a reply" in shown
    assert "--stage grpo cannot" not in shown


def test_the_look_ends_with_an_error_where_no_stage_can_use_the_file(tmp_path, capsys):
    path = write_lines(tmp_path / "a.jsonl", [{"question": "How many?", "target": "4"}])
    with pytest.raises(UserError, match="no stage can use it: no row has a reply to learn from, or a gold"):
        look(LookConfig(data=str(path)))
    assert "unread    target 1" in capsys.readouterr().out


def test_the_look_ends_with_an_error_where_too_much_is_bad(tmp_path, capsys):
    path = write_lines(tmp_path / "a.jsonl", [row(0), {"foo": 1}])
    with pytest.raises(UserError, match="1 of 2 rows cannot be read"):
        look(LookConfig(data=str(path)))
    assert "the format is not known: keys foo" in capsys.readouterr().out


def test_all_formats_have_a_file_and_they_are_read_together():
    paths = sorted(path for path in DATA.iterdir() if path.suffix != ".png")
    data = open_data(",".join(map(str, paths)))
    assert {data[number].format for number in range(len(data))} == set(LAYOUTS)
    assert isinstance(data, Endless)
