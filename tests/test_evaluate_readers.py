"""The five benchmarks' published formats, read from small files that hold their traps."""

import base64
import csv
import io
import json

import pytest
from PIL import Image

from r1ov.errors import UserError
from r1ov.evaluate.benchmarks import BENCHMARKS, load_items
from r1ov.evaluate.item import Prediction
from r1ov.evaluate.prompts import AFTER, messages_of, swap_pictures
from r1ov.evaluate.scoring import score
from tests.benchmark_files import (
    base64_png,
    mathverse,
    mathvision,
    mathvista,
    parquet,
    png,
    struct,
    tsv,
    wemath,
)


def right(item, answer: str) -> bool:
    return (
        score(item, Prediction(id=item.id, text=f"<think>so</think><answer>{answer}</answer>")).score == 1.0
    )


def shade(item) -> int:
    """Which of our pictures the item shows."""
    (image,) = item.images
    assert image.size == (8, 6)
    red, green, _ = image.load().getpixel((0, 0))
    return red + 256 * green


def test_mathvista_rows(tmp_path):
    rows = [
        mathvista(1, "multi_choice", "text", "No", choices=["Yes", "No"]),
        mathvista(2, "multi_choice", "text", "20", choices=["20", "20", "25"]),
        mathvista(3, "free_form", "integer", "14", unit="cm"),
        mathvista(4, "free_form", "float", "1.2", precision=1.0),
        mathvista(5, "free_form", "list", "[0, 5]"),
        mathvista(
            6,
            "multi_choice",
            "text",
            "三角形",
            choices=["圆", "三角形"],
            metadata={"language": "chinese", "skills": ["a", "b"]},
        ),
    ]
    parquet(tmp_path / "data" / "testmini-00000-of-00001.parquet", rows)
    no, twice, whole, decimal, pair, chinese = load_items("mathvista", str(tmp_path))
    assert [item.id for item in (no, pair)] == ["1", "5"]
    assert [shade(item) for item in (no, pair)] == [1, 5]
    assert (no.answer, no.kind, no.choices, no.bench, no.split) == (
        "B",
        "mcq",
        ("Yes", "No"),
        "mathvista",
        "testmini",
    )
    assert no.question == "How tall is the bar?\n(A) Yes\n(B) No"
    assert no.raw_query.startswith("Hint:")
    assert right(no, "B")
    assert right(no, "No")
    assert not right(no, "A")
    assert right(twice, "A")
    assert right(twice, "B")
    assert not right(twice, "C")
    assert whole.question == "How tall is the bar? (unit: cm)\nAnswer with a whole number."
    assert right(whole, "14 cm")
    assert not right(whole, "14.9")
    assert "1 decimal place" in decimal.question
    assert right(decimal, "1.23")
    assert not right(decimal, "1.26")
    assert decimal.precision == 1
    assert right(pair, "[0, 5]")
    assert not right(pair, "[5, 0]")
    assert right(chinese, "三角形")
    assert chinese.tags["language"] == "chinese"
    assert chinese.tags["skills"] == ("a", "b")
    assert no.tags["source"] == "PlotQA"
    assert "img_width" not in no.tags
    assert no.group == "images/1.png"


def test_json_names_pictures_by_path(tmp_path):
    """As they lie where the published zips were unpacked."""
    rows = [
        {k: v for k, v in mathvista(n, "free_form", "integer", "7").items() if k != "decoded_image"}
        for n in (1, 2, 3)
    ]
    (tmp_path / "testmini.json").write_text(json.dumps(rows), encoding="utf-8")
    for number, folder in ((1, "images"), (2, "testmini/images")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"{number}.png").write_bytes(png(number))
    first, second, missing = load_items("mathvista", str(tmp_path))
    assert (shade(first), shade(second)) == (1, 2)
    assert "missing" in missing.error
    assert not missing.images
    assert not right(missing, "7")


def test_a_split_without_golds_scores_nothing_and_says_so(tmp_path, capsys):
    parquet(
        tmp_path / "test-00000-of-00001.parquet",
        [mathvista(1, "free_form", "integer", ""), mathvista(2, "free_form", "integer", "")],
    )
    items = load_items("mathvista", str(tmp_path), "test")
    assert not any(right(item, answer) for item in items for answer in ("", ".", "0"))
    assert "2 of 2 questions have no gold answer" in capsys.readouterr().err


def test_mathvision_rows(tmp_path):
    rows = [
        mathvision(1, "B", "ABCDE"),
        mathvision(2, "D", ["1", "2", "3", "4", "5"], level=5),
        mathvision(3, "\frac{36}{13}"),
        mathvision(4, "11 "),
        mathvision(5, "69{degrees}"),
        mathvision(6, "C"),
        mathvision(
            7,
            "E",
            ["<image1>", "<image2>", "<image3>", "<image4>", "<image5>"],
            question="See <image1> and <image2>.",
        ),
    ]
    parquet(tmp_path / "test-00000-of-00001.parquet", rows)
    drawn, listed, fraction, spaced, degrees, letter, pictures = load_items("mathvision", str(tmp_path))
    assert drawn.choices == tuple("ABCDE")
    assert right(drawn, "B")
    assert not right(drawn, "F")
    assert not right(drawn, "A, B")
    assert drawn.question == "Which piece fits?\nThe options A, B, C, D, E are in the picture."
    assert right(listed, "D")
    assert right(listed, "4")
    assert not right(listed, "5")
    assert listed.tags == {"level": "5", "subject": "counting"}
    assert right(fraction, r"\frac{36}{13}")
    assert right(fraction, "36/13")
    assert fraction.kind == "math"
    assert right(spaced, "11")
    assert right(degrees, "69°")
    assert right(letter, "C")
    assert not right(letter, "B")
    assert pictures.choices == tuple("ABCDE")
    assert right(pictures, "E")
    assert pictures.question.startswith("See (picture 1) and (picture 2).")
    assert all(len(item.images) == 1 for item in (drawn, pictures))
    assert "<image" not in drawn.question + pictures.question


def test_mathverse_rows(tmp_path):
    options = "Find the angle.\nChoices:\nA:40°\nB:50°\nC:60°\nD:70°"
    rows = [
        mathverse(1, "Text Dominant", "C", "multi-choice", question=options),
        mathverse(2, "Text Lite", "(C)", "multi-choice", question=options),
        mathverse(3, "Vision Only", "B", "multi-choice", question="", question_for_eval=options),
        mathverse(
            4, "Vision Intensive", "False", "multi-choice", question="Is it?\nChoices:\nA:True\nB:False"
        ),
        mathverse(5, "Vision Dominant", "C\nD", "multi-choice", question=options),
        mathverse(6, "Text Lite", "F", "multi-choice", question=options),
        mathverse(7, "Text Lite", r"Area $=9 \pi \mathrm{cm}^{2}$"),
        mathverse(8, "Text Lite", "118掳T"),
        mathverse(9, "Text Lite", "2191.7 metres"),
        mathverse(10, "Vision Only", "7", image=struct(None)),
    ]
    parquet(tmp_path / "testmini.parquet", rows)
    bare, bracketed, seen, word, two, beyond, area, degree, metres, missing = load_items(
        "mathverse", str(tmp_path)
    )
    assert right(bare, "C")
    assert right(bare, "60°")
    assert right(bare, "C:60°")
    assert not right(bare, "D")
    assert bracketed.answer == "C"
    assert right(bracketed, "C")
    assert seen.question == "Answer the question in the picture."
    assert right(seen, "B")
    assert right(seen, "50")
    assert right(word, "B")
    assert right(word, "False")
    assert not right(word, "A")
    assert two.kind == "text"
    assert not right(two, "C")
    assert right(two, "C D")
    assert right(beyond, "F")
    assert not right(beyond, "A")
    assert right(area, "9π")
    assert not right(area, "A")
    assert right(degree, "118°")
    assert right(metres, "2191.7 m")
    assert "without a source" in missing.error
    assert bare.group == "0"
    assert bare.tags["problem_version"] == "Text Dominant"
    assert bare.raw_query.startswith("Reason")


def test_mathverse_text_only_has_no_picture(tmp_path):
    rows = [mathverse(1, "Text Only", "5", image=""), mathverse(2, "Text Only", "6", image="")]
    (tmp_path / "testmini_text_only.json").write_text(json.dumps(rows), encoding="utf-8")
    items = load_items("mathverse", str(tmp_path), "testmini_text_only")
    assert [(item.images, item.error) for item in items] == [((), None)] * 2
    (tmp_path / "testmini.json").write_text(
        json.dumps([mathverse(1, "Text Lite", "5", image="")]), encoding="utf-8"
    )
    assert "without a source" in load_items("mathverse", str(tmp_path))[0].error


def test_wemath_rows(tmp_path):
    rows = [
        wemath("2steps_1", "2steps_1", "B"),
        wemath(
            "2steps_1", "2steps_2", "D", option="A．3 cm；B．4; 5 cm；C．5 cm；D．6 cm；E．No correct answer"
        ),
        wemath("2steps_1", "2steps_multi", "A", option="A. F;    B. D;    C. B;    D. I"),
        wemath("3steps_1", "3steps_1", "E", **{"knowledge concept": "Left-Right Position"}),
    ]
    parquet(tmp_path / "data" / "testmini-00000-of-00001.parquet", rows)
    first, wide, letters, _ = load_items("wemath", str(tmp_path))
    assert [item.id for item in (first, letters)] == ["2steps_1@2steps_1", "2steps_1@2steps_multi"]
    assert first.group == letters.group
    assert first.question == f"What is the area?\n{rows[0]['option']}"
    assert first.choices[-1] == "No correct answer"
    assert right(first, "B")
    assert right(first, "4 cm")
    assert not right(first, "D")
    assert wide.choices == ("3 cm", "4; 5 cm", "5 cm", "6 cm", "No correct answer")
    assert right(wide, "D")
    assert right(wide, "D．6 cm")
    assert letters.choices == ("F", "D", "B", "I")
    assert right(letters, "A")
    assert not right(letters, "B")
    assert first.tags == {"key": "2steps_1", "steps": "one-step (S1)", "concept": "Area of Circles"}
    assert letters.tags["steps"] == "two-step (S2)"
    assert shade(first) == 1


def test_r1_onevision_bench_tsv(tmp_path):
    hint = "Hint: Please answer with the letter.\nQuestion: What\tis it?\nChoices:\n"
    more = {"level": "Junior High School", "category": "Math"}
    rows = [
        {
            "index": 0,
            "image": base64_png(7),
            "question": hint + "A. 3 cm\nB. 5 cm",
            "choices": "A. 3 cm\nB. 5 cm",
            "answer": "B",
            **more,
        },
        {
            "index": 1,
            "image": "0",
            "question": "Question: Say its colour.",
            "choices": "",
            "answer": "blue",
            **more,
        },
        {
            "index": 2,
            "image": base64_png(9),
            "question": 'It says "5".',
            "choices": "['1 m', '2 m', '3 m']",
            "answer": "C",
            **more,
        },
        {"index": 3, "image": "77", "question": "How heavy?", "choices": "", "answer": "2.5 kg", **more},
        {
            "index": 4,
            "image": base64_png(300),
            "question": "Which?",
            "choices": "[]",
            "answer": "20 N",
            **more,
        },
    ]
    path = tsv(tmp_path / "r1-onevision.tsv", rows)
    letter, word, python, missing, value = load_items("r1-onevision-bench", str(path))
    assert [shade(item) for item in (letter, word, python, value)] == [7, 7, 9, 300]
    assert letter.question == rows[0]["question"]
    assert letter.tags == more
    assert letter.kind == "mcq"
    assert letter.split == "train"
    assert right(letter, "B")
    assert right(letter, "5 cm")
    assert not right(letter, "C")
    assert letter.group == word.group != python.group
    assert word.kind is None
    assert right(word, "Blue")
    assert right(python, "3 m")
    assert right(value, "20")
    assert "missing" in missing.error
    assert load_items("r1-onevision-bench", str(tmp_path))[2].question == 'It says "5".'


def test_a_cell_may_be_longer_than_csv_reads_by_itself(tmp_path):
    file = io.BytesIO()
    Image.effect_noise((400, 400), 90).save(file, "PNG")
    cell = base64.b64encode(file.getvalue()).decode()
    assert len(cell) > csv.field_size_limit()
    tsv(tmp_path / "mine.tsv", [{"index": 1, "image": cell, "question": "What?", "answer": "noise"}])
    assert load_items(str(tmp_path / "mine.tsv"))[0].images[0].size == (400, 400)


def test_a_vlmevalkit_tsv_with_options_in_columns(tmp_path):
    rows = [
        {
            "index": 10,
            "image": base64_png(1),
            "question": "Which?",
            "hint": "Look.",
            "A": "red",
            "B": "blue",
            "C": "",
            "answer": "B",
            "l2-category": "x",
        },
        {
            "index": 11,
            "image": "10",
            "question": "Which?",
            "hint": "",
            "A": "1",
            "B": "2",
            "C": "3",
            "answer": "C",
            "l2-category": "y",
        },
        {
            "index": 12,
            "image": str([base64_png(2), base64_png(3)]),
            "question": "Say.",
            "hint": "",
            "A": "",
            "B": "",
            "C": "",
            "answer": "7",
            "l2-category": "y",
        },
    ]
    one, shared, several = load_items(str(tsv(tmp_path / "mine.tsv", rows)))
    assert one.question == "Look.\nWhich?\n(A) red\n(B) blue"
    assert one.choices == ("red", "blue")
    assert one.bench == "mine"
    assert shade(one) == shade(shared) == 1
    assert one.tags == {"l2-category": "x"}
    assert len(several.images) == 2
    assert several.kind is None
    assert right(several, "7")


def test_generic_json_lines(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png(4))
    rows = [
        {
            "id": "q1",
            "question": "How many?",
            "answer": "7",
            "kind": "number",
            "images": ["pictures/a.png"],
            "topic": "counting",
            "group": "g",
        },
        {"id": "q2", "question": "Which?", "answer": "red", "choices": ["red", "blue"], "images": []},
        {
            "id": "q3",
            "question": "How long?",
            "answer": "1.23",
            "kind": "number",
            "image_path": "../secret.png",
        },
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path.parent / "secret.png").write_bytes(png(5))
    counted, text_only, outside = load_items(str(tmp_path / "mine.jsonl"))
    assert shade(counted) == 4
    assert counted.tags == {"topic": "counting"}
    assert counted.group == "g"
    assert counted.kind == "number"
    assert text_only.images == ()
    assert text_only.error is None
    assert right(text_only, "A")
    assert right(text_only, "red")
    assert "outside" in outside.error


def test_rows_whose_image_cell_is_empty_are_counted(tmp_path, capsys):
    rows = [
        {"id": "q1", "question": "How many?", "answer": "7", "image": base64_png(4)},
        {"id": "q2", "question": "How many?", "answer": "7", "image": ""},
        {"id": "q3", "question": "How many?", "answer": "7", "image": ""},
    ]
    items = load_items(str(tsv(tmp_path / "mine.tsv", rows)))
    assert [len(item.images) for item in items] == [1, 0, 0]
    assert "2 of 3 questions have no image and are asked without; the first is q2" in capsys.readouterr().err
    load_items(str(tsv(tmp_path / "text.tsv", [{"id": "q1", "question": "1 + 1?", "answer": "2"}])))
    assert capsys.readouterr().err == ""  # the file has no images at all


def test_rows_of_training_data_are_questions_as_training_reads_them(tmp_path):
    (tmp_path / "a.png").write_bytes(png(4))
    asked = [{"role": "user", "content": "<image>How many?"}]
    rows = [
        {"problem": "How many?", "solution": "<answer>7</answer>", "image_path": "a.png", "level": "easy"},
        {"messages": asked, "solution": "7", "images": ["a.png"]},
        {"prompt": json.dumps(asked), "reward_model": {"ground_truth": "7"}, "images": ["a.png"]},
        {"query": "How many?", "options": ["6", "7"], "label": "7", "img": "a.png"},
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    items = load_items(str(tmp_path / "mine.jsonl"))
    assert [(shade(item), item.question) for item in items[:3]] == [(4, "How many?")] * 3
    assert items[0].tags == {"level": "easy"}
    assert all(right(item, "7") and not right(item, "6") for item in items[:3])
    assert items[3].question == "How many?\n(A) 6\n(B) 7"
    assert right(items[3], "B")
    (tmp_path / "mine.jsonl").write_text(json.dumps({"messages": [*asked, *asked], "solution": "7"}))
    with pytest.raises(UserError, match=r"row 1: .*several messages|row 1: the number of pictures"):
        load_items(str(tmp_path / "mine.jsonl"))


def user(*content) -> dict:
    return {"role": "user", "content": [*content]}


def test_training_files_are_benchmark_files(tmp_path):
    """One reader serves both: the question is put as training puts it, the gold is training's."""
    (tmp_path / "a.png").write_bytes(png(4))
    image, words = {"type": "image", "image": "a.png"}, {"type": "text", "text": "Which colour?"}
    rows = {
        "ms-swift's GRPO": {"messages": [user(image, words)], "solution": "<answer>red</answer>"},
        "OpenAI's": {"messages": [user(words, image), {"role": "assistant", "content": "red"}]},
        "R1-V's": {"problem": "Which colour?", "solution": "<answer>red</answer>", "image": "a.png"},
        "EasyR1's": {"problem": "<image>Which colour?", "answer": "red", "images": ["a.png"]},
        "sharegpt's": {
            "conversations": [
                {"from": "human", "value": "<image>Which colour?"},
                {"from": "gpt", "value": "<think>I look.</think>\n<answer>red</answer>"},
            ],
            "images": ["a.png"],
        },
    }
    for name, row in rows.items():
        (tmp_path / "mine.jsonl").write_text(json.dumps(row), encoding="utf-8")
        (item,) = load_items(str(tmp_path / "mine.jsonl"))
        assert (item.question.strip(), item.answer, shade(item)) == ("Which colour?", "red", 4), name
        assert right(item, "red"), name
        (asked,) = messages_of(item, "none", None)
        assert asked["role"] == "user"
        kinds = [part["type"] for part in asked["content"]]
        assert kinds == (["text", "image"] if name == "OpenAI's" else ["image", "text"]), name
        assert all(part.get("image", item.images[0]) is item.images[0] for part in asked["content"])


def test_a_conversation_is_asked_as_it_is(tmp_path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "<think>so</think>\n<answer>7</answer>"},
    ]
    (tmp_path / "mine.jsonl").write_text(json.dumps({"messages": turns}), encoding="utf-8")
    (item,) = load_items(str(tmp_path / "mine.jsonl"))
    assert messages_of(item, "none", None) == turns[:-1]
    other = messages_of(item, "direct", "Be long.")
    assert [one["role"] for one in other] == ["system", "user", "assistant", "user"]
    assert other[0]["content"] == "Be long."
    assert AFTER["direct"] in other[3]["content"][-1]["text"]


def test_counts_are_checked_against_the_known_ones(tmp_path, capsys):
    parquet(tmp_path / "test-00000-of-00001.parquet", [mathvision(1, "7")])
    load_items("mathvision", str(tmp_path))
    assert capsys.readouterr().err == "mathvision: 1 items; test is known to have 3,040\n"
    assert {name: next(iter(one.counts.values())) for name, one in BENCHMARKS.items() if one.hub} == {
        **{
            "mathvista": 1_000,
            "mathvision": 3_040,
            "mathverse": 3_940,
            "wemath": 1_740,
            "r1-onevision-bench": 942,
        },
    }


def test_shards_of_a_split_are_read_in_order_and_other_splits_left_alone(tmp_path):
    for shard in (1, 0):
        parquet(tmp_path / f"testmini-0000{shard}-of-00002.parquet", [mathvision(shard, "7")])
    parquet(tmp_path / "test-00000-of-00001.parquet", [mathvision(5, "7")])
    assert [item.id for item in load_items("mathvision", str(tmp_path), "testmini")] == ["0", "1"]


def test_a_broken_picture_is_an_error_row_and_stays(tmp_path, capsys):
    broken = [struct(b"\x89PNG\r\n\x1a\nnothing"), struct(b""), struct(None, "images/9.png")]
    parquet(
        tmp_path / "test-00000-of-00001.parquet",
        [mathvision(n, "7", decoded_image=one) for n, one in enumerate(broken)],
    )
    items = load_items("mathvision", str(tmp_path))
    assert len(items) == 3
    assert all(item.error and not item.images for item in items)
    assert "3 of 3 questions cannot be asked" in capsys.readouterr().err


def test_a_gold_that_no_answer_can_equal_is_said_and_not_a_silent_0(tmp_path, capsys):
    golds = ['{"point_2d": [10, 20]}', '{"bbox_2d": [1, 2, 3]}', "<|box_start|>(5,6)<|box_end|>"]
    rows = [{"question": "Where?", "answer": gold} for gold in golds]
    rows += [{"question": "Where?", "answer": "[9, 8, 7, 6]", "kind": "bbox"}]
    rows += [{"question": "Where?", "answer": '{"bbox_2d": [1, 2, 3, 4]}'}]
    path = tmp_path / "points.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    items = load_items(str(path))
    assert [item.error for item in items] == 4 * [
        "the gold answer is a point, or a box that cannot be read"
    ] + [None]
    assert "4 of 5 questions cannot be asked and score 0" in capsys.readouterr().err


def test_mistakes_are_told_in_one_line(tmp_path):
    parquet(tmp_path / "test-00000-of-00001.parquet", [mathvision(1, "7"), mathvision(1, "8")])
    (tmp_path / "ragged.tsv").write_text("index\tquestion\tanswer\n1\tq\n", encoding="utf-8")
    (tmp_path / "broken.jsonl").write_text(
        '{"question": "q", "answer": "a"}\n{"question"\n', encoding="utf-8"
    )
    (tmp_path / "list.json").write_text("[1, 2]", encoding="utf-8")
    (tmp_path / "twice.tsv").write_text("question\tanswer\tanswer\nHow many?\t4\t5\n", encoding="utf-8")
    (tmp_path / "kind.jsonl").write_text(
        '{"question": "q", "answer": "a", "kind": "int"}\n', encoding="utf-8"
    )
    for arguments, words in [
        (("mathvision", str(tmp_path)), "two rows have the id '1'"),
        (("mathvision", str(tmp_path), "train"), "it is 'train'|mathvision has test, testmini"),
        (("mathvision", str(tmp_path), "testmini"), "none of its files is called testmini-\\*.parquet"),
        (("mathvision", str(tmp_path / "none")), "no such file or folder"),
        (("mathvista", str(tmp_path / "test-00000-of-00001.parquet")), "no column pid"),
        ((str(tmp_path / "ragged.tsv"),), "row 1 has 2 cells, the head line 3"),
        ((str(tmp_path / "twice.tsv"),), "row 1 has 3 cells, the head line 2 names"),
        ((str(tmp_path / "broken.jsonl"),), "not JSON"),
        ((str(tmp_path / "list.json"),), "expected rows with named columns"),
        ((str(tmp_path / "kind.jsonl"),), "kind is 'int'"),
        (("mmmu",), "--bench is 'mmmu'; expected mathvista"),
        ((str(tmp_path / "kind.jsonl"), "x"), "--data says where"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            load_items(*arguments)
        assert "\n" not in str(error.value)


def test_a_benchmark_without_data_comes_from_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    folder = tmp_path / "snapshots" / "abc"
    parquet(folder / "data" / "testmini-00000-of-00001.parquet", [wemath("2steps_1", "2steps_1", "B")])
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repo, **more: asked.append((repo, more)) or str(folder)
    )
    assert len(load_items("wemath")) == len(load_items("wemath", "somebody/copy@v2")) == 1
    assert [(repo, more["repo_type"], more["revision"]) for repo, more in asked] == [
        ("We-Math/We-Math", "dataset", None),
        ("somebody/copy", "dataset", "v2"),
    ]
    assert "*testmini-*.parquet" in asked[0][1]["allow_patterns"]


def test_the_playground_is_painted_when_it_is_looked_at(monkeypatch):
    from r1ov.data.playground import sample
    from r1ov.evaluate import benchmarks as playground

    painted = []
    paint = playground.paint
    monkeypatch.setattr(playground, "paint", lambda scene: painted.append(scene) or paint(scene))
    items = load_items("playground", split="generalisation", limit=8)
    assert not painted
    assert len(items) == 8
    for index, item in enumerate(items):
        one = sample("generalisation", index)
        assert (item.question, item.answer, item.kind, item.tags) == (
            one.question,
            one.answer,
            one.kind,
            {"family": one.family},
        )
        assert item.images[0].load().tobytes() == one.image.tobytes()
        assert item.images[0].size == one.image.size
    assert len(painted) == 8
    assert right(items[0], items[0].answer)
    swapped = swap_pictures(playground.playground_items("test", 14))[0]
    assert swapped.images[0].load().tobytes() == sample("test", 7).image.tobytes()
    assert swapped.question == sample("test", 0).question


def test_a_line_that_is_not_json_is_named_by_its_row(tmp_path):
    lines = [json.dumps({"question": f"{number}?", "answer": "1"}) for number in range(9)]
    lines[6] = lines[6][:20]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"mine\.jsonl, row 7: the line is not JSON"):
        load_items(str(tmp_path / "mine.jsonl"))
