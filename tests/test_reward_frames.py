"""What a reply is judged beside: the frame that its boxes are in, and the thought that its prompt opened."""

import dataclasses
import json
import random
from contextlib import nullcontext

import pytest
import torch
from PIL import Image

from r1ov.data.formats.layouts import read_row
from r1ov.data.formats.reader import open_data
from r1ov.data.formats.records import BadRow
from r1ov.data.processor import Processor
from r1ov.data.steps import Steps, encode_record, frame_of, recognise_boxes
from r1ov.engine.generate import generate
from r1ov.errors import UserError
from r1ov.folder.pretrained import load, read_processor, resolve
from r1ov.reward import Frame, format_reward, grade, score_answer, shape_reward, split_reply
from r1ov.reward.rules.boxes import read_boxes, recognised
from r1ov.reward.rules.check import Gold, unscorable
from r1ov.train.rollout import encode_prompt
from r1ov.train.run import observe

LARGE = Image.new("RGB", (448, 224), "white")  # r1ov-tiny sees it smaller


@pytest.fixture(scope="module")
def processor() -> Processor:
    return read_processor(resolve("r1ov-tiny"))


def row(box: str, **columns) -> dict:
    reply = f'<think>there</think><answer>{{"bbox_2d": {box}, "label": "cat"}}</answer>'
    return {"problem": "Where is the cat?", "completion": reply, "image": LARGE, "id": "1", **columns}


def target(processor: Processor, one: dict) -> str:
    """What supervised fine-tuning trains of the row."""
    steps = Steps([read_row(one)], processor, rows_per_step=1, max_length=1000)
    data = steps[0]
    if isinstance(data.items[0], BadRow):
        raise data.items[0]
    (batch,) = data.batches
    return processor.decode([id for id in batch["labels"].tolist() if id >= 0])


def test_a_target_is_trained_in_the_pixels_that_the_model_sees(processor):
    encoded = processor.encode(read_row(row("[1, 2, 3, 4]")).prompt)
    (width, height), (seen_width, seen_height) = frame_of(processor, encoded, None)[:2]
    assert (width, height) == (448, 224)
    assert seen_width < width
    corners = [round(x) for x in (0.25 * seen_width, 0.5 * seen_height, 0.5 * seen_width, 0.75 * seen_height)]
    golds = {
        "[112, 112, 224, 168]": None,
        "[0.25, 0.5, 0.5, 0.75]": None,
        "[250, 500, 500, 750]": "per-mille",
    }
    for box, unit in golds.items():
        text = target(processor, row(box, **({"box_unit": unit} if unit else {})))
        assert f'{{"bbox_2d": {corners}, "label": "cat"}}' in text, box
    assert "[20, 20, 40, 40]" in target(processor, row("[20, 20, 40, 40]", box_unit="resized"))
    with pytest.raises(BadRow, match="outside its image of 448 x 224; give its box_unit"):
        target(processor, row("[250, 500, 500, 750]"))
    keeps_its_size = processor.with_pixel_limits(min_pixels=448 * 224, max_pixels=448 * 224)
    for unit in ("original", "resized"):
        with pytest.raises(BadRow, match="outside its image of 448 x 224; give its box_unit"):
            target(keeps_its_size, row("[250, 500, 500, 750]", box_unit=unit))


def seen(processor: Processor, user: str, reply: str, **columns) -> str:
    """The text of a row as the model sees it, after its image."""
    messages = [{"role": "user", "content": "<image>" + user}, {"role": "assistant", "content": reply}]
    record = read_row({"messages": messages, "images": [LARGE], **columns})
    encoded = encode_record(record, processor)
    text = processor.decode(encoded.input_ids, skip_special_tokens=False).partition("<|vision_end|>")[2]
    return text.replace("<|im_end|>\n<|im_start|>assistant\n", " / ").replace("<|im_end|>\n", "")


BOX = "<|box_start|>(35,28),(70,42)<|box_end|>"  # (112, 112), (224, 168) of 448 x 224, as 140 x 56 shows it


def test_boxes_beside_each_other_are_read_alike_in_both_forms():
    assert read_boxes("(1,2),(3,4)(5,6),(7,8)") == read_boxes("[1, 2, 3, 4] [5, 6, 7, 8]")  # as decoded


def test_a_prompts_box_and_a_replys_point_move_with_their_image_too(processor):
    tokens = "<|box_start|>(112,112),(224,168)<|box_end|>"
    assert seen(processor, f"What is in {tokens}?", "x") == f"What is in {BOX}? / x"
    assert seen(processor, "What is in [112, 112, 224, 168]?", "x") == "What is in [112, 112, 224, 168]? / x"
    point = '[{"point_2d": [112, 112], "label": "2"}]'
    assert seen(processor, "Where?", point) == 'Where? / [{"point_2d": [35, 28], "label": "2"}]'
    assert seen(processor, "Where?", "112, 112, 224, 168", kind="bbox") == "Where? / 35, 28, 70, 42"


def spread(count: int, width: int, height: int, seed: int = 0) -> list[tuple[float, float]]:
    """Far corners all over a frame, some of them at its ends."""
    rng = random.Random(seed)
    return [
        (width, height),
        *((rng.uniform(0.1, 1) * width, rng.uniform(0.1, 1) * height) for _ in range(count)),
    ]


def test_the_unit_of_a_data_sets_boxes_is_recognised_where_no_other_would_do():
    large, photo = Frame((448, 224), (140, 56)), Frame((4000, 3000), (1204, 896))

    def unit(frame: Frame, corners: list) -> str | None:
        return recognised([(corner, frame) for corner in corners])

    assert unit(large, spread(20, 448, 224)) is None  # the original's own pixels
    assert unit(large, spread(20, 140, 56)) == "resized"
    assert unit(large, spread(20, 1000, 1000)) == "per-mille"
    assert unit(large, [(900, 950)]) == "per-mille"  # beyond the image: no pixels
    assert unit(photo, spread(20, 1000, 1000)) == "per-mille"  # within the image, and yet
    assert unit(photo, spread(20, 4000, 3000)) is None
    assert unit(large, spread(20, 1, 1)) is None  # 0 to 1 says so itself
    # few rows, or all boxes in one corner, say nothing
    assert unit(large, spread(2, 140, 56)) is None
    assert unit(photo, spread(100, 600, 500)) is None
    # one box of many that lies beyond its image is a mistake of its own
    assert unit(large, [*spread(20, 448, 224), (900, 950)]) is None
    assert unit(large, [*spread(20, 1000, 1000), (1200, 900)]) is None
    with pytest.raises(UserError, match="measured in resized or per-mille; give their box_unit"):
        unit(Frame((4000, 4000), (980, 980)), spread(20, 980, 980))


@pytest.mark.parametrize(("unit", "width", "height"), [("per-mille", 1000, 1000), ("resized", 140, 56)])
def test_a_file_whose_boxes_fill_another_frame_is_read_in_it(unit, width, height, processor, tmp_path):
    LARGE.save(tmp_path / "a.png")
    boxes = [[0, 0, round(x), round(y)] for x, y in spread(20, width, height)]
    rows = [{"problem": "Where?", "solution": str(box), "kind": "bbox", "image": "a.png"} for box in boxes]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    reader = open_data(str(path)).reader
    assert reader[0].box_unit is None
    recognise_boxes(reader, processor)
    assert {reader[number].box_unit for number in range(20)} == {unit}
    declared = open_data(str(path), box_unit="original").reader
    recognise_boxes(declared, processor)
    assert declared[0].box_unit == "original"


def test_boxes_beside_images_of_several_sizes_are_refused(processor, tmp_path):
    small = Image.new("RGB", (56, 56))
    box = '{"bbox_2d": [1, 2, 30, 40]}'
    for images in ([LARGE, LARGE], [LARGE], [LARGE, small]):
        one = {"problem": "Where?", "completion": box, "images": images}
        expected = pytest.raises(BadRow, match="of several sizes") if small in images else nullcontext()
        with expected:
            target(processor, one)
        with expected:
            seen_prompt = read_row({"problem": BOX, "answer": "a cat", "images": images})
            encode_prompt(processor, seen_prompt, 1000)
        gold = read_row({"problem": "Where?", "answer": box, "images": images})
        frame = frame_of(processor, encode_prompt(processor, gold, 1000), None)
        assert (score_answer(box, box, frame=frame) is None) == (small in images)
        _, whys = zip(
            *[(None, ""), *unscorable([Gold("row", box, frame=observe.frame_of(gold))])[0]], strict=True
        )
        assert any("of several sizes" in why for why in whys) == (small in images)
    assert "nothing" in target(processor, {"problem": "?", "completion": "nothing", "images": [LARGE, small]})


def test_a_list_that_nobody_calls_a_box_is_trained_as_it_is(processor):
    one = {"problem": "Which numbers?", "completion": "[112, 112, 224, 168]", "image": LARGE}
    assert "[112, 112, 224, 168]" in target(processor, one)


def test_a_reply_is_graded_in_the_frame_of_its_image():
    frame = Frame((448, 224), (112, 56))
    reply = '<think>there</think><answer>{"bbox_2d": [28, 28, 56, 42]}</answer>'
    assert grade(reply, "[112, 112, 224, 168]", "bbox", frame=frame).score == 1.0
    assert grade(reply, "[28, 28, 56, 42]", "bbox", frame=frame).score == 0.0
    assert grade(reply, "[28, 28, 56, 42]", "bbox", frame=frame._replace(unit="resized")).score == 1.0
    assert grade(reply, "[28, 28, 56, 42]", "bbox").score == 1.0


def test_a_thought_that_the_prompt_opened_counts():
    reply = "2 and 2 is 4.</think>\n<answer>4</answer>"
    assert format_reward(reply) == format_reward(reply, "soft") == 1.0
    assert split_reply(reply) == ("2 and 2 is 4.", "4")
    assert shape_reward(reply) == 0.0  # of a whole reply: nobody opened it
    assert shape_reward("<think>\n" + reply) == 1.0
    for broken in (
        "4</think>",
        "</think><answer>4</answer>",
        "<answer>4</answer>",
        "a</think>b</think><answer>4</answer>",
    ):
        assert format_reward(broken) == 0.0, broken


def test_an_empty_thought_that_the_prompt_closed_too_is_no_fault_of_the_reply():
    opened = "<think>\n\n</think>\n\n"
    assert shape_reward(f"{opened}<answer>4</answer>", opened=opened) == 1.0
    assert shape_reward(f"{opened}<answer>4</answer>", "soft", opened) == 1.0
    for reply in ("<answer> </answer>", "4", "so <answer>4</answer>", "<think>a</think><answer>4</answer>"):
        assert shape_reward(opened + reply, opened=opened) == 0.0, reply
    assert shape_reward(f"{opened}<answer>4</answer>") == 0.0  # the model's own empty thought


@pytest.mark.parametrize("opening", ["<think>", "<think>\n", "<think>\n\n</think>\n\n", ""])
def test_a_completion_begins_with_what_its_template_opened(opening):
    model, processor = load("r1ov-tiny-sft", device="cpu", dtype=torch.float32)
    template = processor.chat_template.replace(
        "<|im_start|>assistant\n{% endif %}",
        "<|im_start|>assistant\n" + opening + "{% endif %}",
    )
    processor = dataclasses.replace(processor, chat_template=template)
    messages = [{"role": "user", "content": "How many?"}]
    pieces: list[str] = []
    completion = generate(model, processor, messages, max_new_tokens=8, temperature=0.0, stream=pieces.append)
    assert "".join(pieces) == completion.text
    assert processor.encode(messages).opened == opening
    assert completion.text == opening + processor.decode(completion.token_ids)
    if opening:
        assert completion.thinking is not None
