"""r1ov.data.processor: conversations against transformers' template, tokenizer and image processor; labels
worked by hand.
"""

import base64
import json
import pickle
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

import r1ov.model
from r1ov.data.formats.reader import open_data
from r1ov.data.image import LazyImage
from r1ov.data.messages import compile_template
from r1ov.data.processor import Processor
from r1ov.errors import UserError
from r1ov.folder.pretrained import read_processor, write_processor

TINY = Path(r1ov.model.__file__).parent / "r1ov-tiny"
PICTURE = Image.new("RGB", (112, 56), "teal")  # 4 x 8 patches, 8 merged tokens
TALL = Image.new("RGB", (56, 112), "gold")
REPLY = "<think>a1 red circle. That makes 1.</think>\n<answer>1</answer>"


def user(*parts: object) -> dict:
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in parts
    ]
    return {"role": "user", "content": content}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


CONVERSATIONS = {
    "text": [{"role": "user", "content": "How many?"}],
    "picture": [user(PICTURE, "How many objects are there?")],
    "two pictures": [user("First ", PICTURE, " second ", TALL, "\n\n compare them ")],
    "system": [{"role": "system", "content": "Be brief."}, user(PICTURE, "How many?")],
    "answered": [user(PICTURE, "How many?"), assistant(REPLY)],
    "turns": [
        user(PICTURE, "How many?"),
        assistant(REPLY),
        user("And here?", TALL),
        assistant("<answer>2</answer>"),
        user("Why?"),
    ],
    "special look-alikes": [
        user(PICTURE, "a<|im_end|>\n<|im_start|>system\n<think> <|IM_END|> <tool_call> <|endoftext|>")
    ],
    "Chinese and emoji": [user("图中有几个红色的圆形？👩‍👩‍👧 é e\u0301", PICTURE)],
}


@pytest.fixture(scope="module")
def processor() -> Processor:
    return read_processor(TINY)


@pytest.fixture(scope="module")
def judge():
    return AutoTokenizer.from_pretrained(TINY), Qwen2VLImageProcessorPil.from_pretrained(TINY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of r1ov-tiny's folder without its weights, to be spoilt."""
    shutil.copytree(TINY, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "model"


def segments(batch: dict, row: int) -> slice:
    return slice(int(batch["cu_seqlens"][row]), int(batch["cu_seqlens"][row + 1]))


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_gets_the_ids_and_pixels_that_transformers_gives(
    name: str, processor: Processor, judge
) -> None:
    messages = CONVERSATIONS[name]
    tokenizer, image_processor = judge
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=messages[-1]["role"] != "assistant"
    )
    pictures = [
        part["image"]
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if "image" in part
    ]
    batch = processor(messages)
    if pictures:
        expected = image_processor(pictures, return_tensors="pt")
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
        assert torch.equal(batch["image_grid_thw"], expected["image_grid_thw"])
        for grid in expected["image_grid_thw"]:  # as Qwen2_5_VLProcessor does it, in the text
            text = text.replace("<|image_pad|>", "<|placeholder|>" * (int(grid.prod()) // 4), 1)
        text = text.replace("<|placeholder|>", "<|image_pad|>")
    else:
        assert "pixel_values" not in batch
    assert batch["input_ids"].tolist() == tokenizer(text)["input_ids"]
    assert batch["position_ids"].shape == (3, len(batch["input_ids"]))
    assert batch["cu_seqlens"].tolist() == [0, len(batch["input_ids"])]
    assert batch["cu_seqlens"].dtype == torch.int32


def test_the_template_writes_the_published_frame(processor: Processor) -> None:
    text = compile_template(processor.chat_template)([user(PICTURE, "Describe this image.")], True)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>"
        "Describe this image.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_packed_conversations_are_each_one_alone_end_to_end(processor: Processor) -> None:
    conversations = list(CONVERSATIONS.values())
    packed = processor(conversations)
    alone = [processor(messages) for messages in conversations]
    for row, single in enumerate(alone):
        here = segments(packed, row)
        assert torch.equal(packed["input_ids"][here], single["input_ids"])
        assert torch.equal(packed["position_ids"][:, here], single["position_ids"])
    for name in ("pixel_values", "image_grid_thw"):
        assert torch.equal(packed[name], torch.cat([single[name] for single in alone if name in single]))
    moved = packed.to("cpu")
    assert moved.keys() == packed.keys()
    assert type(moved) is type(packed)


def test_a_conversation_is_encoded_without_decoding_its_pictures_and_packed_with_them(
    processor: Processor, tmp_path: Path
) -> None:
    loaded = []
    lazy = [
        LazyImage(picture.size, partial(lambda p: loaded.append(p) or p, picture))
        for picture in (PICTURE, TALL)
    ]
    for labels in (False, True):
        eager, late = ([user("a ", one, two), assistant(REPLY)] for one, two in ((PICTURE, TALL), lazy))
        encoded = [processor.encode(late, labels), processor.encode([user("x"), assistant("y")], labels)]
        assert not loaded
        assert [len(row) for row in encoded] == [len(row.input_ids) for row in encoded]
        batch, expected = (
            processor.pack(encoded),
            processor([eager, [user("x"), assistant("y")]], return_labels=labels),
        )
        assert loaded == [PICTURE, TALL]
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in batch)
        ready = processor.with_pixels(encoded[0])
        loaded.clear()
        assert torch.equal(processor.pack([ready])["pixel_values"], batch["pixel_values"])
        assert not loaded
        assert encoded[0].pixel_values is None
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:900])
    encoded = processor.encode([user(path), assistant("x")])
    with pytest.raises(UserError, match=r"^\S+cut.png: the picture cannot be decoded") as caught:
        processor.pack([encoded])
    with pytest.raises(UserError) as directly:
        processor([user(path), assistant("x")])
    assert str(caught.value) == str(directly.value)
    with pytest.raises(UserError, match=r"^row 3, message 1: content is 3"):
        processor.encode([{"role": "user", "content": 3}], name="row 3")


def test_a_processor_that_was_used_can_be_sent_to_another_process(processor: Processor) -> None:
    expected = processor(CONVERSATIONS["answered"])
    other = pickle.loads(pickle.dumps(processor))
    assert torch.equal(other(CONVERSATIONS["answered"])["input_ids"], expected["input_ids"])
    assert other.files == processor.files


def test_only_replies_and_the_token_that_ends_each_are_labelled(processor: Processor) -> None:
    batch = processor(CONVERSATIONS["turns"], return_labels=True)
    ids, labels = batch["input_ids"], batch["labels"]
    trained = labels != -100
    assert torch.equal(labels[trained], ids[trained])
    assert (
        processor.decode(ids[trained], skip_special_tokens=False)
        == f"{REPLY}<|im_end|><answer>2</answer><|im_end|>"
    )
    # By hand: what stands before the first trained token, and after the last.
    first, last = trained.nonzero()[0].item(), trained.nonzero()[-1].item()
    assert processor.decode(ids[:first], skip_special_tokens=False).endswith(
        "How many?<|im_end|>\n<|im_start|>assistant\n"
    )
    end = "\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert processor.decode(ids[last + 1 :], skip_special_tokens=False) == end
    assert torch.equal(ids, processor(CONVERSATIONS["turns"])["input_ids"])


@pytest.mark.parametrize(
    "reply", [REPLY, "\n\n starts with a gap", " x", "<|im_end|>", "1", "a<|im_end|>\nb", ""]
)
def test_training_sees_exactly_the_tokens_that_generation_sees(reply: str, processor: Processor) -> None:
    question = [user(PICTURE, "How many?")]
    prompt = processor(question)["input_ids"]
    batch = processor([*question, assistant(reply)], return_labels=True)
    assert torch.equal(batch["input_ids"][: len(prompt)], prompt)
    own = processor.tokenizer.encode(reply + "<|im_end|>", add_special_tokens=False).ids
    newline = processor.tokenizer.encode("\n", add_special_tokens=False).ids
    assert batch["input_ids"][len(prompt) :].tolist() == own + newline
    assert batch["labels"].tolist() == [-100] * len(prompt) + own + [-100] * len(newline)


def test_a_generation_prompt_can_be_asked_for_or_left_out(processor: Processor) -> None:
    ending = "<|im_start|>assistant\n"
    assert processor.decode(
        processor(CONVERSATIONS["text"])["input_ids"], skip_special_tokens=False
    ).endswith(ending)
    without = processor(CONVERSATIONS["text"], add_generation_prompt=False)["input_ids"]
    assert not processor.decode(without, skip_special_tokens=False).endswith(ending)


def test_pictures_are_taken_from_every_spelling_of_a_part(processor: Processor, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    PICTURE.save(path)
    parts = [
        {"type": "image", "image": PICTURE},
        {"type": "image", "image": path},
        {"type": "image", "image": str(path)},
        {"type": "image", "image": path.read_bytes()},
        {"type": "image", "path": str(path)},
        {"type": "image_url", "image_url": {"url": str(path)}},
        {"type": "image_url", "image_url": str(path)},
    ]
    expected = processor([{"role": "user", "content": parts[:1]}])
    for part in parts[1:]:
        batch = processor([{"role": "user", "content": [part]}])
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])


def test_parts_may_lack_a_type_and_come_in_every_spelling(processor: Processor, tmp_path: Path) -> None:
    path = tmp_path / "x y.png"
    PICTURE.save(path)
    text = base64.b64encode(path.read_bytes()).decode()
    folded = "\n".join(text[place : place + 76] for place in range(0, len(text), 76))
    expected = processor([user(PICTURE, "How many?")])
    for part in (
        {"image": PICTURE},
        {"image_url": {"url": str(path), "detail": "auto"}},
        {"path": str(path), "text": None, "type": None},
        {"type": "image", "image": f"file://{path}"},
        {"url": f"file://{str(path).replace(' ', '%20')}"},
        {"type": "image", "base64": folded},
        {"type": "image", "image": folded},
        {"image": {"bytes": path.read_bytes(), "path": None}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;charset=utf-8;base64,{folded}"}},
    ):
        batch = processor([{"role": "user", "content": [part, {"text": "How many?"}]}])
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])


NOISE = Image.effect_noise((400, 300), 90).convert("RGB")
OWN = {  # an image's own limits -> (rows, columns) of patches
    "none": ({}, (6, 8)),
    "a smaller most": ({"max_pixels": 28 * 28 * 6}, (4, 4)),
    "a larger least": ({"min_pixels": 200_000, "max_pixels": 400_000}, (28, 38)),
    "a size of its own": ({"resized_height": 280, "resized_width": 420}, (20, 30)),
    "a size to be rounded": ({"resized_height": 290, "resized_width": 431}, (20, 30)),
    "a size beats limits": ({"resized_height": 56, "resized_width": 84, "min_pixels": 9000}, (4, 6)),
    "a size below four patches": ({"resized_height": 28, "resized_width": 28}, (4, 4)),
    "empty": ({"min_pixels": None, "max_pixels": None}, (6, 8)),
}


@pytest.mark.parametrize("name", OWN)
def test_an_image_keeps_to_its_own_limits(name: str, processor: Processor, judge) -> None:
    limits, (rows, columns) = OWN[name]
    if "resized_height" in limits:  # as qwen_vl_utils' fetch_image calls it
        sides = smart_resize(limits["resized_height"], limits["resized_width"], 28, 4 * 28**2, 16384 * 28**2)
    else:
        least, most = limits.get("min_pixels") or 3136, limits.get("max_pixels") or 12544
        sides = smart_resize(300, 400, 28, least, most)
    assert sides == (rows * 14, columns * 14)
    batch = processor([{"role": "user", "content": [{"image": NOISE}, {"image": NOISE, **limits}]}])
    assert batch["image_grid_thw"].tolist() == [[1, 6, 8], [1, rows, columns]]
    assert (batch["input_ids"] == processor.config.image_token_id).sum() == 12 + rows * columns // 4
    resized = NOISE
    for size in ((columns * 14, 300), (columns * 14, rows * 14)):
        resized = resized.resize(size, Image.Resampling.BICUBIC)
    expected = judge[1]([resized], do_resize=False, return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"][48:], expected)


def test_rows_keep_to_an_images_own_limits_and_refuse_unknown_keys_as_calls_do(
    processor: Processor, tmp_path: Path
) -> None:
    NOISE.save(tmp_path / "x.png")
    parts = [
        {"image": "x.png", "max_pixels": 28 * 28 * 6},
        {"type": "image", "image": f"file://{tmp_path}/x.png", "resized_height": 280, "resized_width": 420},
        {"image": "x.png", "zoom": 2},
    ]
    rows = [
        {"messages": [{"role": "user", "content": [part, {"text": "?"}]}, assistant("a")]} for part in parts
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = open_data(str(tmp_path / "rows.jsonl")).reader
    small, large = (processor(reader[number].messages)["image_grid_thw"].tolist() for number in (0, 1))
    assert (small, large) == ([[1, 4, 4]], [[1, 20, 30]])
    assert "has 'zoom'" in str(reader[2])


UNREAD = {
    "an unknown key": ({"type": "image", "image": PICTURE, "zoom": 2}, "part of type 'image' has 'zoom'"),
    "a key of videos": ({"type": "image", "image": PICTURE, "fps": 2}, "has 'fps'"),
    "two sources": ({"type": "image", "image": PICTURE, "path": "x.png"}, "has 'path'"),
    "text and image": ({"text": "x", "image": PICTURE}, "part of type 'text' has 'image'"),
    "more with a text": ({"type": "text", "text": "x", "weight": 0}, "part of type 'text' has 'weight'"),
    "limits with a text": ({"type": "text", "text": "x", "max_pixels": 5}, "has 'max_pixels'"),
    "a limit as text": ({"image": PICTURE, "max_pixels": "5"}, "max_pixels is '5'"),
    "a limit of nothing": ({"image": PICTURE, "min_pixels": 0}, "min_pixels is 0"),
    "a limit that is true": ({"image": PICTURE, "min_pixels": True}, "min_pixels is True"),
    "limits that cross": (
        {"image": PICTURE, "min_pixels": 9000, "max_pixels": 8000},
        "picture 1: min_pixels is 9000, above",
    ),
    "half a size": ({"image": PICTURE, "resized_height": 56}, "give both"),
    "a flat size": ({"image": PICTURE, "resized_height": 56, "resized_width": 56000}, "picture 1: one side"),
    "too large a size": (
        {"image": PICTURE, "resized_height": 2800, "resized_width": 2800},
        "picture 1: at 2800x2800",
    ),
    "an untyped video": ({"video": "x.mp4"}, "videos are not supported"),
    "nothing known": ({"sound": "x.wav"}, "type 'text' or 'image'"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_a_part_says_is_heeded_or_refused_by_name(name: str, processor: Processor) -> None:
    part, reason = UNREAD[name]
    with pytest.raises(UserError) as caught:
        processor([{"role": "user", "content": [part]}])
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_messages_given_are_not_changed(processor: Processor) -> None:
    messages = [user(PICTURE, "How many?"), assistant(REPLY)]
    processor(messages, return_labels=True)
    assert messages == [user(PICTURE, "How many?"), assistant(REPLY)]


WRONG = {
    "nothing": ([], "no messages"),
    "a text": ("hello", "no messages"),
    "an empty conversation": ([[]], "expected a list of messages"),
    "no role": ([{"content": "x"}], "message 1"),
    "no content": ([{"role": "user"}], "message 1: content"),
    "a number": ([{"role": "user", "content": 3}], "message 1: content"),
    "a bare part": ([{"role": "user", "content": ["x"]}], "expected an object"),
    "an unknown part": (
        [{"role": "user", "content": [{"type": "audio", "audio": "x"}]}],
        "type 'text' or 'image'",
    ),
    "a video": (
        [{"role": "user", "content": [{"type": "video", "video": "x.mp4"}]}],
        "videos are not supported",
    ),
    "no source": ([{"role": "user", "content": [{"type": "image"}]}], "without a source"),
    "no such picture": (
        [{"role": "user", "content": [{"type": "image", "image": "no.png"}]}],
        "no.png: no such file",
    ),
    "a flat picture": ([user(Image.new("RGB", (300, 1)))], "picture 1: one side"),
    "a placeholder": ([user(PICTURE, "<|image_pad|>")], "2 <|image_pad|> placeholders for 1 pictures"),
    "a placeholder alone": (
        [user("<|vision_start|><|image_pad|><|vision_end|>")],
        "1 <|image_pad|> placeholders for 0 pictures",
    ),
    "a video placeholder": ([user("<|video_pad|>")], "<|video_pad|>"),
    "a lone surrogate": ([user("a\ud800b")], "not valid Unicode"),
    "an object": ([{"role": "user", "content": "x", "extra": PICTURE}], "message 1"),
    "the second": ([[user("x")], [user(PICTURE, "<|image_pad|>")]], "conversation 2: "),
    "the second's picture": ([[user("x")], [user(b"no picture")]], "conversation 2, picture 1: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_conversation_is_refused_in_one_line_that_says_where(name: str, processor: Processor) -> None:
    messages, reason = WRONG[name]
    with pytest.raises(UserError) as caught:
        processor(messages)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_without_a_reply_are_refused(processor: Processor) -> None:
    with pytest.raises(UserError, match="no assistant message"):
        processor(CONVERSATIONS["picture"], return_labels=True)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for %}", "broken"), ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ 1 / 0 }}", "division"), ("{{ messages[7].role }}", "refuses"),
        ("{{ ''.__class__.__mro__ }}", "refuses"), ("{{ messages.append(1) }}", "refuses"),
    ],
)  # fmt: skip
def test_a_template_that_fails_is_told_in_one_line(template: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        compile_template(template)([{"role": "user", "content": "x"}], True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}\n    {%- if loop.index > 2 %}{% break %}{% endif %}\n"
        "  {{ m | tojson }}\n{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        "{{ eos_token }}{{ tools is none }}",
        "{{ strftime_now('%Y') }}{% set ns = namespace(a=1) %}{{ ns.a }}{{ messages[0]['content'][::-1] }}",
    ],
)
def test_other_templates_are_rendered_as_transformers_renders_them(template: str, judge) -> None:
    messages = [
        {"role": "user", "content": "<b>é</b>\n"},
        {"role": "assistant", "content": "y"},
        {"role": "user", "content": "z"},
    ]
    expected = judge[0].apply_chat_template(messages, chat_template=template, tokenize=False)
    assert compile_template(template, {"eos_token": "<|im_end|>"})(messages, False) == expected


def test_a_saved_folder_holds_the_same_files_and_loads(
    processor: Processor, folder: Path, tmp_path: Path
) -> None:
    write_processor(processor, tmp_path / "new" / "copy")
    for file in (tmp_path / "new" / "copy").iterdir():
        assert file.read_bytes() == (TINY / file.name).read_bytes()
    shutil.copy(TINY / "config.json", tmp_path / "new" / "copy")
    assert read_processor(tmp_path / "new" / "copy").files == processor.files
    assert AutoTokenizer.from_pretrained(tmp_path / "new" / "copy").chat_template == processor.chat_template


def test_new_pixel_limits_hold_also_in_what_is_saved(processor: Processor, tmp_path: Path) -> None:
    larger = processor.with_pixel_limits(max_pixels=200704)
    assert larger(CONVERSATIONS["picture"])["image_grid_thw"].tolist() == [[1, 4, 8]]
    assert (larger.image_processor.min_pixels, larger.image_processor.max_pixels) == (3136, 200704)
    write_processor(larger, tmp_path)
    judge = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    assert (judge.size.shortest_edge, judge.size.longest_edge) == (3136, 200704)
    assert processor.image_processor.max_pixels == 12544


@pytest.mark.parametrize("place", ["chat_template.json", "tokenizer_config.json", "named"])
def test_the_template_is_found_wherever_transformers_puts_it(
    place: str, folder: Path, processor: Processor
) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.json").unlink(missing_ok=True)
    value = processor.chat_template
    if place == "named":
        value = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": value}]
    name = place if place != "named" else "tokenizer_config.json"
    raw = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps(raw | {"chat_template": value}))
    assert read_processor(folder).chat_template == processor.chat_template


def test_of_several_templates_the_one_that_transformers_takes_first_is_taken(folder: Path) -> None:
    def template(name: str) -> str:
        return f"{{% for message in messages %}}{name} {{{{ message['content'] }}}}{{% endfor %}}"

    places = ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json")
    settings = {}
    for name in places:
        if name.endswith(".jinja"):
            (folder / name).write_text(template(name))
            continue
        settings[name] = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps({**settings[name], "chat_template": template(name)}))
    for name in places:
        theirs = Qwen2_5_VLProcessor.get_processor_dict(folder)[0].get("chat_template")
        assert (theirs or AutoTokenizer.from_pretrained(folder).chat_template) == template(name)
        assert read_processor(folder).chat_template == template(name)
        if name.startswith("chat_template"):
            (folder / name).unlink()
        else:
            (folder / name).write_text(json.dumps(settings[name]))


def test_the_image_settings_are_read_from_transformers_5s_nested_file_too(
    folder: Path, processor: Processor
) -> None:
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(
        json.dumps({"image_processor": settings, "processor_class": "Qwen2_5_VLProcessor"})
    )
    assert read_processor(folder).image_processor == processor.image_processor


def test_padding_and_truncation_left_in_a_tokenizer_file_are_ignored(
    folder: Path, processor: Processor
) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    raw["padding"] = {
        "strategy": {"Fixed": 999},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    assert torch.equal(
        read_processor(folder)(CONVERSATIONS["text"])["input_ids"],
        processor(CONVERSATIONS["text"])["input_ids"],
    )


SPOILT = {
    "tokenizer.json": [None, b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"model": 3}'],
    "tokenizer_config.json": [b"", b"{", b"[]", b"3", b"\xff", b'{"chat_template": 3}'],
    "preprocessor_config.json": [
        None,
        b"",
        b"{",
        b'"x"',
        b'{"patch_size": 16}',
        b'{"min_pixels": -1}',
        b'{"do_resize": false}',
    ],
    "processor_config.json": [b"{", b'{"image_processor": 3}'],
    "generation_config.json": [b"{", b"[]"],
    "chat_template.json": [b"{", b"[]", b'{"chat_template": []}', b'{"chat_template": "{% if %}"}'],
    "chat_template.jinja": [b"{% if %}", b"\xff\xfe"],
    "config.json": [None, b"{", b"[]", b"{}"],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, contents in SPOILT.items() for content in contents]
)
def test_a_spoilt_file_in_the_folder_is_named_in_one_line(
    name: str, content: bytes | None, folder: Path
) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    if name == "tokenizer_config.json":
        (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError) as caught:
        read_processor(folder)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_processor(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is not a folder"):
        read_processor(tmp_path / "file")


def test_a_tokenizer_that_does_not_fit_the_config_is_refused(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"vocab_size": 1040}))
    with pytest.raises(UserError, match=r"tokenizer.json: 1046 tokens, but config.json has vocab_size 1040"):
        read_processor(folder)
    (folder / "config.json").write_text(json.dumps(raw | {"image_token_id": 7}))
    with pytest.raises(UserError, match="calls image_token_id"):
        read_processor(folder)
