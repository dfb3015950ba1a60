"""Packs in which a prompt stands once for all of its completions: the numbers are those of each completion
with a prompt of its own.
"""

import random
from dataclasses import replace

import pytest
import torch
from PIL import Image

import r1ov
from r1ov.common.processes import World
from r1ov.data.formats.records import Record
from r1ov.data.playground.source import Playground
from r1ov.data.processor import IGNORED
from r1ov.engine import Completion
from r1ov.folder.pretrained import resolve
from r1ov.folder.settings import read_processor
from r1ov.train.experience import Row, make_packs
from r1ov.train.grpo import learn
from r1ov.train.rollout import encode_prompt, sequence
from r1ov.train.run.config import GRPOConfig
from tests.grpo_worker import Bare, rows_in

ONE = World()


@pytest.fixture(scope="module")
def processor():
    return read_processor(resolve("r1ov-tiny"))


@pytest.fixture(scope="module")
def rows(processor):
    """Of five prompts: a picture, a picture, none, two pictures, none; their completions ragged, shuffled,
    some with advantage 0.
    """
    wide = Image.linear_gradient("L").resize((168, 56)).convert("RGB")
    content = [
        {"type": "image", "image": wide},
        {"type": "text", "text": "and"},
        {"type": "image", "image": wide.rotate(180)},
    ]
    asked = ("What is 17 + 25?", [*content, {"type": "text", "text": "Which is darker? " * 4}], "Hm.")
    records = [Playground("rl")[number] for number in (0, 5)]
    records += [
        Record(messages=[{"role": "user", "content": content}], format="", where="") for content in asked
    ]
    rng = random.Random(0)
    made = []
    for number, record in enumerate(records):
        prompt = encode_prompt(processor, record, 2000)
        for _ in range(4):
            ids = [rng.randrange(90) for _ in range(rng.randint(1, 24))]
            whole = sequence(
                prompt, Completion(**dict.fromkeys(Completion.__annotations__) | {"token_ids": ids}), True
            )
            advantage = 0.0 if rng.random() < 0.2 else rng.gauss(0, 1)
            made.append(
                Row(
                    sequence=whole,
                    logprobs=[rng.gauss(-4, 1) for _ in ids],
                    advantage=advantage,
                    group=number,
                )
            )
    return rng.sample(made, len(made))


def update(processor, packs):
    """Loss, gradients, and of each row, by all its tokens, the log-probs of those that are trained."""
    model, _ = r1ov.load("r1ov-tiny")
    model.requires_grad_(True)
    metrics = learn(Bare(model, processor, ONE, GRPOConfig()), packs)
    found = {}
    for pack in packs:
        batch = {name: value for name, value in pack.batch.items() if name != "labels"}
        with torch.no_grad():
            logits = model(**batch)
        for ids, own, _ in rows_in(pack):
            labels = pack.batch["labels"][own]
            before = logits[own].log_softmax(-1)[:-1]
            found[ids] = before[labels[1:] != IGNORED]
    return metrics["loss"], {name: parameter.grad for name, parameter in model.named_parameters()}, found


@pytest.mark.parametrize("max_length", [8192, 110])
@pytest.mark.parametrize("skip", [False, True])
def test_log_probs_loss_and_every_gradient_are_those_of_rows_that_share_nothing(
    processor, rows, max_length, skip
):
    alone = make_packs([replace(row, group=None) for row in rows], processor, 8192, ONE)
    together = make_packs(rows, processor, max_length, ONE, skip)
    assert "prefixes" not in alone[0].batch
    assert (len(together) > 1) == (max_length == 110)
    assert all(len(pack.batch["input_ids"]) <= max_length for pack in together)
    loss, gradients, logprobs = update(processor, alone)
    our_loss, our_gradients, our_logprobs = update(processor, together)
    assert our_loss == pytest.approx(loss, rel=1e-5, abs=1e-7)
    assert our_logprobs.keys() == {ids for ids in logprobs if not skip or ids in our_logprobs}
    assert len(our_logprobs) == sum(row.teaches or not skip for row in rows) > 10
    for ids, own in our_logprobs.items():
        torch.testing.assert_close(
            own, logprobs[ids], rtol=0, atol=1e-4
        )  # of values down to -20: some float32 roundings
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        assert (our_gradients[name] - gradient).abs().max() <= 2e-5 * gradient.abs().max(), name


def test_a_prompt_and_its_pictures_stand_in_a_pack_once(processor, rows):
    (pack,) = make_packs(rows, processor, 8192, ONE)
    prompts = {row.group: row.sequence for row in rows}
    completions = sum(len(row.logprobs) for row in rows)
    shared = sum(
        len(row.sequence) - len(row.logprobs) - 1 for row in {row.group: row for row in rows}.values()
    )
    assert (
        len(pack.batch["input_ids"]) == shared + len(rows) + completions
    )  # each row has its prompt's last token of its own
    assert len(pack.batch["image_grid_thw"]) == sum(len(prompt.pictures) for prompt in prompts.values()) == 4
    assert (pack.num_items, pack.num_sequences) == (completions, len(rows))
    assert sorted(ids for ids, *_ in rows_in(pack)) == sorted(
        tuple(row.sequence.input_ids.tolist()) for row in rows
    )


def test_a_prompt_that_ends_in_a_picture_is_not_shared(processor, rows):
    """Its last token is every row's own, and would be a placeholder without a picture."""
    pictured = [row for row in rows if row.group == 3]
    end = int((pictured[0].sequence.input_ids == processor.config.image_token_id).nonzero().max()) + 1

    def cut(row):
        whole, first = row.sequence, len(row.sequence) - len(row.logprobs)
        keep = torch.tensor([*range(end), *range(first, len(whole))])
        cut = replace(
            whole,
            input_ids=whole.input_ids[keep],
            labels=whole.labels[keep],
            position_ids=whole.position_ids[:, keep],
        )
        return replace(row, sequence=cut)

    (pack,) = make_packs([cut(row) for row in pictured], processor, 8192, ONE)
    assert "prefixes" not in pack.batch
    assert len(pack.batch["image_grid_thw"]) == 2 * len(pictured)
    update(processor, [pack])
