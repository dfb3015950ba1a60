"""r1ov.data.formats.records and pictures: the formats of other projects' files, read by hand beside what
comes out; broken and hostile rows.
"""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from r1ov.data.formats.layouts import read_row
from r1ov.data.formats.pictures import lazy_picture
from r1ov.data.formats.records import BadRow
from r1ov.data.formats.rows import open_rows

DATA = Path(__file__).parent / "data"
RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(source: object, folder: Path, inside: Path | None) -> Image.Image:
    return lazy_picture(source, folder, inside).load()


def user(*parts: object) -> dict:
    """A question; tuples are pictures of that colour."""
    return {
        "role": "user",
        "content": [part if isinstance(part, str) else ("picture", part) for part in parts],
    }


def said(role: str, text: str) -> dict:
    return {"role": role, "content": text}


def seen(content: object) -> object:
    """Content with each picture opened and told by the colour of a pixel."""
    if isinstance(content, str):
        return content
    return [
        part["text"]
        if part["type"] == "text"
        else ("picture", picture(part["image"], DATA, DATA).getpixel((5, 5)))
        for part in content
    ]


# file -> for each row: format, messages, solution, kind. Written by reading the files.
EXPECTED = {
    "r1-onevision.parquet": [
        (
            "r1-onevision",
            [
                user(
                    RED,
                    "Hint: Please answer with the option letter.\nQuestion: Which colour?\nChoices:\n(A) "
                    "blue\n(B) red",
                ),
                said("assistant", "<think>The paper is red all over.</think>\n\nAnswer: B"),
            ],
            None,
            None,
        ),
        (
            "r1-onevision",
            [
                user(BLUE, "How many colours are there?"),
                said("assistant", "<think>I see blue and no other. The answer is 1.</think>"),
            ],
            None,
            None,
        ),
    ],
    "sharegpt.json": [
        (
            "sharegpt",
            [
                said("system", "Look closely."),
                user("Compare ", RED, " with ", BLUE, "."),
                said("assistant", "The first is red."),
                said("user", "And the second?"),
                said("assistant", "Blue."),
            ],
            "Blue.",
            None,
        )
    ],
    "messages.json": [
        (
            "messages",
            [
                user(RED, "Which colour?"),
                said("assistant", "<think>It is red.</think>\n<answer>red</answer>"),
            ],
            "red",
            None,
        )
    ],
    "alpaca.json": [
        (
            "alpaca",
            [
                said("system", "Be brief."),
                user(RED, "Name the colour.\nOf the picture."),
                said("assistant", "red"),
            ],
            "red",
            None,
        )
    ],
    "openai.jsonl": [
        (
            "messages",
            [said("system", "Be brief."), user(RED, "Which colour?"), said("assistant", "red")],
            "red",
            None,
        ),
        ("messages", [user("And this?", BLUE), said("assistant", "blue")], "blue", None),
    ],
    "trl.jsonl": [
        ("trl", [user(RED, "Which colour?"), said("assistant", "It is red.")], "It is red.", None),
        ("trl", [said("user", "What is 2 + 2?")], "4", None),
        ("trl", [said("user", "The sky is"), said("assistant", "blue")], "blue", None),
    ],
    "r1-v.parquet": [
        ("r1-v", [user(RED, "How many items are there?")], "3", None),
        (
            "r1-v",
            [user(BLUE, "How many?"), said("assistant", "<think>One, two.</think><answer>2</answer>")],
            "2",
            None,
        ),
    ],
    "vlm-r1.jsonl": [
        ("vlm-r1", [user(RED, "How many items?"), said("assistant", "4.0")], "4.0", None),
        (
            "vlm-r1",
            [user(RED, BLUE, "Are they alike?"), said("assistant", "<answer> no </answer>")],
            "no",
            "yes_no",
        ),
        ("r1-v", [user(RED, "Where is the dot?")], "[3, 4, 30, 20.5]", None),
    ],
    "easyr1.parquet": [
        ("easyr1", [user(RED, "Find x.")], "48", None),
        ("easyr1", [said("user", "What is 6 times 7?")], "42", None),
    ],
    "verl.parquet": [("verl", [user(BLUE, "Find x.")], "12", None)],
    "question.jsonl": [
        ("question-answer", [said("user", "Tom has 3 and 4 apples. How many?")], "7", None),
        ("question-answer", [user(RED, "Is it red?")], "yes", "yes_no"),
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_format_is_read_unchanged_as_a_person_reads_it(name):
    rows = open_rows(DATA / name)
    assert len(rows) == len(EXPECTED[name])
    for number, (form, messages, solution, kind) in enumerate(EXPECTED[name]):
        record = read_row(rows[number])
        found = [
            {"role": message["role"], "content": seen(message["content"])} for message in record.messages
        ]
        assert found == messages
        assert (record.format, record.solution, record.kind) == (form, solution, kind)


def test_prompt_and_reply_part_where_the_last_answer_begins():
    record = read_row(open_rows(DATA / "sharegpt.json")[0])
    assert record.reply == "Blue."
    assert [message["role"] for message in record.prompt] == ["system", "user", "assistant", "user"]
    assert record.images == ["red.png", "blue.png"]
    assert read_row({"problem": "1 + 1?", "answer": 2}).reply is None


def test_parquets_none_is_the_same_as_absent():
    row = {
        "prompt": None,
        "chosen": None,
        "images": None,
        "problem": "How many?",
        "answer": "5",
        "system": None,
    }
    assert read_row(row).messages == [said("user", "How many?")]


def test_without_marks_pictures_stand_before_the_first_question():
    turns = [
        {"from": "human", "value": "One?"},
        {"from": "gpt", "value": "1"},
        {"from": "human", "value": "Two?"},
    ]
    content = [
        message["content"] for message in read_row({"conversations": turns, "images": ["a", "b"]}).messages
    ]
    assert content[0] == [
        {"type": "image", "image": "a"},
        {"type": "image", "image": "b"},
        {"type": "text", "text": "One?"},
    ]
    assert content[1:] == ["1", "Two?"]


def test_parts_without_a_source_take_the_columns_pictures_in_order_and_text_keeps_its_spaces():
    parts = [{"type": "image"}, {"type": "text", "text": " and\n"}, {"type": "image", "image": None}]
    row = {
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "  So."}],
        "images": ["a.png", "b.png"],
    }
    content = read_row(row).messages[0]["content"]
    assert content == [{"type": "image", "image": "a.png"}, parts[1], {"type": "image", "image": "b.png"}]
    assert read_row(row).reply == "  So."


def test_a_row_is_not_changed_by_reading_it():
    row = {
        "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " x"}]}],
        "images": ["a.png"],
    }
    before = repr(row)
    read_row(row)
    assert repr(row) == before


PAIR = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([1, 2], "the row is not an object"),
        ({"foo": 1, "bar": 2}, "the format is not known"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference pair"),
        ({"conversations": PAIR, "images": ["a", "b"], "videos": ["x.mp4"]}, "a video"),
        ({"conversations": [*PAIR, {"from": "observation", "value": "x"}]}, "a message's role is not known"),
        ({"conversations": PAIR[::-1]}, "the turns are out of order"),
        ({"conversations": []}, "the messages are not a list"),
        ({"conversations": [PAIR[0], {"from": "gpt", "value": None}]}, "neither a text nor a list"),
        (
            {"conversations": [PAIR[0], {"from": "gpt", "value": "  "}]},
            "a message of the assistant's is empty",
        ),
        (
            {"conversations": [{"from": "human", "value": "<image> <image>"}], "images": ["a"]},
            "the number of pictures differs",
        ),
        (
            {"conversations": [{"from": "human", "value": "<image> and?"}], "images": ["a", "b"]},
            "the number of pictures differs",
        ),
        ({"conversations": [{"from": "human", "value": "<image>?"}]}, "the number of pictures differs"),
        (
            {"conversations": [PAIR[0], {"from": "gpt", "value": "<image>"}], "images": ["a"]},
            "a picture in a message of the assistant's",
        ),
        ({"conversations": [{"from": "human", "value": "<|image_pad|>?"}]}, "frame tokens"),
        ({"conversations": [{"from": "human", "value": "x<|im_end|>"}]}, "frame tokens"),
        ({"conversations": [{"from": "human", "value": "\ud800"}]}, "not valid Unicode"),
        ({"problem": "x", "answer": True}, "neither a text, nor a number"),
        ({"problem": "x", "answer": float("nan")}, "neither a text, nor a number"),
        ({"problem": "x", "solution": "<answer></answer>"}, "the gold answer is empty"),
        ({"problem": "x", "answer": float("inf")}, "neither a text, nor a number"),
        ({"problem": 3, "answer": "x"}, "problem is not a text"),
        ({"prompt": "x", "reward_model": {"style": "rule"}}, "no ground_truth"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video", "video": "x"}]}]},
            "neither text nor picture",
        ),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row, reason):
    with pytest.raises(BadRow, match=reason):
        read_row(row)


def test_a_reply_that_names_a_choice_is_the_gold_letter_of_it():
    row = {"question": "Which?", "options": ["red", "blue"]}
    golds = {"blue": "B", "(A)": "A", "B. blue": "B", "It looks blue to me": "It looks blue to me"}
    assert {reply: read_row({**row, "response": reply}).solution for reply in golds} == golds


def test_a_whole_number_is_a_gold_answer_however_long():
    assert read_row({"problem": "What is 10 to the 400th?", "answer": 10**400}).solution == "1" + 400 * "0"


def png(size: tuple[int, int] = (40, 30), colour: str = "red", form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_picture_is_the_same_as_path_bytes_struct_base64_and_data_url(form, tmp_path):
    data = png(form=form)
    (tmp_path / "x").write_bytes(data)
    text = base64.b64encode(data).decode()
    broken_lines = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    expected = Image.open(io.BytesIO(data)).convert("RGB").tobytes()
    for source in (
        "x",
        str(tmp_path / "x"),
        data,
        {"bytes": data, "path": "none.png"},
        {"bytes": None, "path": "x"},
        text,
        broken_lines,
    ):
        assert picture(source, tmp_path, tmp_path).tobytes() == expected
    assert picture(f"data:image/x;base64,{text}", tmp_path, tmp_path).tobytes() == expected


def test_no_path_leads_out_of_the_datas_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    inside = tmp_path / "data"
    inside.mkdir()
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "ok.png").symlink_to(inside / "real.png")
    (inside / "real.png").write_bytes(png())
    for path in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "x/../../secret.png"):
        with pytest.raises(BadRow, match="outside the data's folder"):
            picture(path, inside, inside)
        assert path == "x/../../secret.png" or picture(path, inside, None).size == (40, 30)
    assert picture("ok.png", inside, inside).size == (40, 30)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("http://127.0.0.1:9/x.png", "nothing is fetched"),
        ("file:///etc/passwd", "outside the data's folder"),
        ("data:image/png,abc", "not base64"),
        ("data:image/png;base64,!!!!", "base64 is broken"),
        ("iVBORw0KGgo" + "A" * 60 + "*", "base64 is broken"),
        ("iVBORw0KGgo" + "A" * 61, "cannot be opened"),
        ("none.png", "file is missing"),
        ("a\0b.png", "cannot be read"),
        ("x" * 5000, "cannot be read|is missing"),
        (".", "cannot be opened"),
        (b"not a picture", "cannot be opened"),
        ({"bytes": None, "path": None}, "no form that is known"),
        (3.5, "no form that is known"),
        ("", "no form that is known"),
    ],
)
def test_a_picture_that_cannot_be_had_says_why(source, reason, tmp_path):
    with pytest.raises(BadRow, match=reason):
        picture(source, tmp_path, tmp_path)
