"""What a reply is judged beside: the frame that its boxes are in, and the thought that its prompt opened."""

import dataclasses

import pytest
import torch
from PIL import Image

from r1ov.data.formats.layouts import read_row
from r1ov.data.formats.records import BadRow
from r1ov.data.processor import Processor
from r1ov.data.steps import Steps
from r1ov.engine.generate import generate
from r1ov.folder.pretrained import load, read_processor, resolve
from r1ov.reward import Frame, format_reward, grade, shape_reward, split_reply

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
    (width, height), (seen_width, seen_height) = processor.image_sizes(encoded)
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


@pytest.mark.parametrize("opening", ["<think>", "<think>\n", ""])
def test_a_completion_begins_with_what_its_template_opened(opening):
    model, processor = load("r1ov-tiny-sft", device="cpu", dtype=torch.float32)
    template = processor.chat_template.replace(
        "<|im_start|>assistant\n{% endif %}",
        "<|im_start|>assistant\n" + opening.replace("\n", "\\n") + "{% endif %}",
    ).replace("\\n{% endif %}", "\n{% endif %}")
    processor = dataclasses.replace(processor, chat_template=template)
    messages = [{"role": "user", "content": "How many?"}]
    pieces: list[str] = []
    completion = generate(model, processor, messages, max_new_tokens=8, temperature=0.0, stream=pieces.append)
    assert "".join(pieces) == completion.text
    assert processor.encode(messages).opened == opening
    assert completion.text == opening + processor.decode(completion.token_ids)
    if opening:
        assert completion.thinking is not None
