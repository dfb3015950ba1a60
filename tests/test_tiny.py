"""The model that ships: transformers loads it and says the same, it is small, and it answers by looking."""

import json

import pytest
import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import r1ov
from r1ov.data.playground import messages, sample
from r1ov.engine import decode, prepare
from r1ov.evaluate.__main__ import EvaluateConfig as Asking
from r1ov.evaluate.benchmarks import playground_items
from r1ov.evaluate.prompts import swap_pictures
from r1ov.evaluate.runner import answer
from r1ov.evaluate.scoring import score
from r1ov.folder.pretrained import resolve
from tests.bench_decode import reference_inputs

FOLDER = resolve("r1ov-tiny")
LEAST_RIGHT = 0.9  # of a thousand it gets more right; seventy scatter


@pytest.fixture(scope="module")
def tiny():
    return r1ov.load("r1ov-tiny")


@pytest.fixture(scope="module")
def reference():
    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        FOLDER, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


def test_it_is_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 16e6
    assert (
        len(r1ov.load("r1ov-tiny")[1].tokenizer.get_vocab())
        == json.loads((FOLDER / "config.json").read_text())["vocab_size"]
    )


def test_transformers_makes_the_same_greedy_tokens(tiny, reference):
    model, processor = tiny
    plan = prepare(processor, [messages(sample("test", index))[:1] for index in range(21)], temperature=0.0)
    inputs = reference_inputs(processor.pack(plan.prompts), model.config)
    made = reference.generate(**inputs, do_sample=False, max_new_tokens=160)[
        :, inputs["input_ids"].shape[1] :
    ].tolist()
    for ours, theirs in zip(decode(model, processor, plan)[0], made, strict=True):
        assert ours.finish_reason == "stop"
        assert theirs[: ours.completion_tokens] == ours.token_ids


def test_transformers_tokenizer_and_image_processor_accept_the_folder(tiny):
    _, processor = tiny
    conversation = messages(sample("test", 4))[:1]
    batch = processor(conversation)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert (
        tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * 16))["input_ids"]
        == batch["input_ids"].tolist()
    )
    theirs = Qwen2VLImageProcessorPil.from_pretrained(FOLDER)(
        images=[sample("test", 4).image], return_tensors="pt"
    )
    assert torch.equal(theirs["image_grid_thw"], batch["image_grid_thw"])
    torch.testing.assert_close(theirs["pixel_values"], batch["pixel_values"], atol=1e-6, rtol=0)


def test_a_saved_copy_is_the_same_model_to_transformers(tiny, reference, tmp_path):
    model, processor = tiny
    r1ov.save(model, processor, tmp_path / "copy", dtype=torch.float32)
    copy = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "copy", dtype=torch.float32)
    for name, tensor in reference.state_dict().items():
        assert torch.equal(tensor, copy.state_dict()[name]), name


def test_it_answers_held_out_questions_and_only_by_looking(tiny):
    """The README has the table of a thousand questions; seventy here catch a broken weights file."""
    model, processor = tiny
    shares = {}
    for swapped in (False, True):
        verdicts = []
        items = playground_items("test", 70)
        items = swap_pictures(items) if swapped else items
        asking = Asking(prompt="none", max_new_tokens=256)
        answer(
            model,
            processor,
            items,
            asking,
            lambda item, row, verdicts=verdicts: verdicts.append(score(item, row)),
            70,
        )
        shares[swapped] = sum(one.score for one in verdicts) / len(verdicts)
        assert sum(one.well_formed for one in verdicts) >= 68
    assert shares[False] >= LEAST_RIGHT
    assert shares[True] <= 0.33 + 0.15  # guessing, and nearly three sigma


def test_pictures_of_other_sizes_and_text_alone_are_answered(tiny):
    model, processor = tiny
    picture = sample("test", 0).image
    for other in (picture.resize((224, 224)), picture.resize((56, 140)), None):
        content = [] if other is None else [{"type": "image", "image": other}]
        done = r1ov.generate(
            model,
            processor,
            [
                {
                    "role": "user",
                    "content": [*content, {"type": "text", "text": "How many objects are there?"}],
                }
            ],
        )
        assert done.text
