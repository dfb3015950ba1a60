"""A conversation turn by turn, against the same conversation decoded at once."""

import json
import shutil
from dataclasses import replace
from io import StringIO

import pytest
import torch
from PIL import Image

import generate as program
from r1ov.data.playground import sample
from r1ov.data.playground.scene import is_asked
from r1ov.engine import generate
from r1ov.engine.chat import Chat, talk, unread
from r1ov.errors import UserError
from r1ov.folder.pretrained import load, resolve
from tests.checkpoint import write_checkpoint

QUESTIONS = [
    "How many objects are there?",
    "How many red circles are there?",
    "Which shape is the most common?",
]


@pytest.fixture(scope="module")
def tiny():
    return load("r1ov-tiny")


@pytest.fixture(scope="module")
def random(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    write_checkpoint(folder)
    return load(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    for index, size in enumerate([(112, 112), (112, 112), (84, 140)]):
        sample("test", index).image.resize(size).save(folder / f"{index}.png")
    return [str(folder / f"{index}.png") for index in range(3)]


def check_turns(model, processor, chat: Chat, pictures, options) -> list[int]:
    """Asks three questions, each about one more picture; returns how many tokens each turn prefilled."""
    read = []
    for question, picture in zip(QUESTIONS, pictures, strict=True):
        chat.images = [picture]
        pieces: list[str] = []
        completion, timing = chat.ask(question, pieces.append)
        whole = generate(model, processor, chat.messages[:-1], **options)
        assert completion.token_ids == whole.token_ids
        assert completion.logprobs == pytest.approx(whole.logprobs, abs=1e-4)  # another order of float32 sums
        assert (completion.text, completion.prompt_tokens) == (whole.text, whole.prompt_tokens)
        assert "".join(pieces) == chat.messages[-1]["content"] == completion.text
        read.append(timing.prefill_tokens)
    return read


@pytest.mark.parametrize(
    ("is_watched", "temperature"),
    [(False, 0.0), (False, 1.0), (True, 0.0)],
    ids=["flat", "sampled", "modules"],
)
def test_a_turn_reads_only_what_is_new_and_answers_as_if_all_was_read_at_once(
    tiny, pictures, is_watched, temperature
):
    model, processor = tiny
    hook = model.model.norm.register_forward_hook(lambda *_: None) if is_watched else None
    options = {"max_new_tokens": 24, "temperature": temperature, "repetition_penalty": 1.1, "seed": 3}
    chat = Chat(model, processor, system="Look closely.", **options)
    try:
        read = check_turns(model, processor, chat, pictures, options)
    finally:
        if hook:
            hook.remove()
    prompts = [len(processor.encode(chat.messages[: 2 * turn])) for turn in (1, 2, 3)]
    assert read[0] == prompts[0]
    # The end of a reply that was cut off, the question, and the 16 tokens of its image.
    assert max(read[1:]) < 50 < min(prompts[1:]) - 30


def test_a_reply_that_is_cut_into_other_tokens_than_sampled_is_read_again(random, pictures):
    model, processor = random
    options = {"max_new_tokens": 24, "temperature": 1.5}
    chat = Chat(model, processor, **options)
    read = check_turns(model, processor, chat, pictures, options)
    assert read[2] < len(processor.encode(chat.messages[:5]))


def test_after_a_template_that_drops_old_thoughts_the_common_beginning_is_kept(tiny, pictures):
    model, processor = tiny
    spoken = "message.content.split('</think>')[-1]"
    template = processor.chat_template
    forgetful = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% if message.content is string %}{{ " + spoken + " }}{% else %}{% for part in message.content %}"
        "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}"
        "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert forgetful != template
    processor = replace(processor, chat_template=forgetful)
    options = {"max_new_tokens": 96, "temperature": 0.0}
    chat = Chat(model, processor, **options)
    read = check_turns(model, processor, chat, pictures, options)
    assert "</think>" in chat.messages[1]["content"]
    assert read[1] < len(processor.encode(chat.messages[:3]))


@pytest.mark.parametrize("size", [(84, 112), (112, 84), (84, 84), (112, 112)])
def test_an_image_that_changed_is_read_whole_and_the_last_token_always(tiny, size):
    _, processor = tiny

    def encoded(size: tuple[int, int], colour: str):
        images = [Image.new("RGB", (112, 112)), Image.new("RGB", size, colour)]
        content = [{"type": "image", "image": image} for image in images]
        return processor.with_pixels(processor.encode([{"role": "user", "content": content}]))

    first = encoded((84, 112), "red")
    rest, held = unread(first, [], processor.config)
    assert len(rest) == len(held) == len(first)
    same, _ = unread(encoded((84, 112), "red"), held, processor.config)
    assert (len(same), same.image_grid_thw, same.pixel_values) == (1, None, None)

    other = encoded(size, "blue")
    rest, _ = unread(other, held, processor.config)
    is_image = rest.input_ids == processor.config.image_token_id
    assert bool(is_image[0])
    assert int(is_image.sum()) == int(other.image_grid_thw[1].prod()) // 4
    assert torch.equal(rest.image_grid_thw, other.image_grid_thw[1:])
    assert torch.equal(rest.pixel_values[0], other.pixel_values[1])


def test_ctrl_c_leaves_what_was_said_and_the_next_answer_is_right(tiny, pictures):
    model, processor = tiny
    options = {"max_new_tokens": 40, "temperature": 0.0}
    chat = Chat(model, processor, images=pictures[:1], **options)
    chat.ask(QUESTIONS[0], lambda _: None)
    pieces: list[str] = []

    def stop_at_the_fifth(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.ask(QUESTIONS[1], stop_at_the_fifth)
    assert chat.messages[-1] == {"role": "assistant", "content": "".join(pieces)}
    completion, _ = chat.ask(QUESTIONS[2], lambda _: None)
    assert completion.token_ids == generate(model, processor, chat.messages[:-1], **options).token_ids
    chat.reset()
    assert (chat.messages, chat.images) == ([], pictures[:1])


def test_a_prompt_that_is_too_long_leaves_the_conversation_as_it_was(tiny):
    chat = Chat(*tiny, max_new_tokens=4)
    chat.ask("hi", lambda _: None)
    before = list(chat.messages)
    with pytest.raises(UserError, match="a prompt has"):
        chat.ask("circle," * 3000, lambda _: None)
    assert chat.messages == before
    assert chat.ask("hi", lambda _: None)[1].prefill_tokens < 20


def test_lines_are_questions_or_commands_until_the_input_ends(tiny, pictures, tmp_path, monkeypatch):
    chat = Chat(*tiny, max_new_tokens=4)
    asked, told = [], []

    def answer(line: str) -> None:
        asked.append((line, list(chat.images)))
        if line == "stop":
            raise KeyboardInterrupt
        chat.ask(line, lambda _: None)

    lines = ["/what", f"/image {pictures[1]}", "b", "/image nowhere.png", "stop", "", "/save", "/save c.json"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", StringIO("\n".join([*lines, "/reset", "d"])))
    talk(chat, "a", answer, told.append)
    assert asked == [("a", []), ("b", [pictures[1]]), ("stop", []), ("d", [])]
    saved = json.loads((tmp_path / "c.json").read_text())["messages"]
    assert [message["role"] for message in saved] == ["user", "assistant"] * 2
    assert saved[2]["content"][0] == {"type": "image", "image": pictures[1]}
    assert len(chat.messages) == 2
    assert told[0] == told[1]  # what can be typed
    assert "nowhere.png: no such file" in told[2]
    assert told[3] == ""
    assert told[4].startswith("error: ")
    assert told[5:] == ["saved: c.json", "a new conversation"]


def test_a_second_turn_is_noted_once_where_the_model_is_of_our_training(tmp_path, monkeypatch, capsys):
    own = shutil.copytree(resolve("r1ov-tiny"), tmp_path / "own")
    for times in (1, 0):
        monkeypatch.setattr(
            "sys.argv", ["generate.py", "--chat", "--max-new-tokens", "2", "--model", str(own)]
        )
        monkeypatch.setattr("sys.stdin", StringIO("What is it?\n" * 3))
        program.main()
        told = capsys.readouterr().err.splitlines()
        assert told.count(program.TURN_NOTE) == times
        if times:  # after the first answer
            assert told[told.index(program.TURN_NOTE) - 1].startswith("prefill")
        (own / "r1ov.json").unlink(missing_ok=True)


def test_what_the_tiny_model_was_not_taught_is_said_once(monkeypatch, capsys):
    for question, times in (("How many red circles are there?", 0), ("What is the capital of France?", 1)):
        monkeypatch.setattr("sys.argv", ["generate.py", "--prompt", question, "--max-new-tokens", "2"])
        program.main()
        assert capsys.readouterr().err.count(program.FAR_NOTE) == times
    monkeypatch.setattr("sys.argv", ["generate.py", "--chat", "--max-new-tokens", "2"])
    monkeypatch.setattr("sys.stdin", StringIO("\n".join([QUESTIONS[0]] * 3)))
    program.main()
    shown = capsys.readouterr()
    assert shown.err.count(program.FAR_NOTE) == 1
    assert shown.err.count("prefill") == 3
    assert shown.out.count("\n") == 3


def test_the_playgrounds_own_questions_are_known():
    assert all(is_asked(sample("test", index).question) for index in range(28))
    assert not is_asked("Why is the sky blue?")
