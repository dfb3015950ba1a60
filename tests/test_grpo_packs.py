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
from r1ov.data.pack import Continuation, make_packs, num_trained
from r1ov.data.playground.source import Playground
from r1ov.data.processor import IGNORED
from r1ov.folder.pretrained import read_processor, resolve
from r1ov.train.grpo import COUNTS, accumulate_gradients, make_minibatch
from r1ov.train.rollout import encode_prompt
from r1ov.train.run.config import GRPOConfig
from tests.grpo_worker import Bare, packs_of, rows_in, shuffled

ONE = World()


@pytest.fixture(scope="module")
def processor():
    return read_processor(resolve("r1ov-tiny"))


@pytest.fixture(scope="module")
def part(processor):
    """Of five prompts: a picture, a picture, none, two pictures, none; their completions ragged, some with
    advantage 0.
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
    for record in records:
        completions = []
        for _ in range(4):
            ids = torch.tensor([rng.randrange(90) for _ in range(rng.randint(1, 24))])
            advantage = 0.0 if rng.random() < 0.2 else rng.gauss(0, 1)
            logprobs = torch.tensor([rng.gauss(-4, 1) for _ in ids])
            completions.append(
                Continuation(input_ids=ids, labels=ids, logprobs=logprobs, advantage=torch.tensor(advantage))
            )
        made.append((encode_prompt(processor, record, 2000), completions))
    return made


def rows_of(part):
    return [(prompt, completion) for prompt, own in part for completion in own]


def update(processor, packs, rows):
    """Loss, gradients, and of each row, by all its tokens, the log-probs of those that are trained."""
    model, _ = r1ov.load("r1ov-tiny")
    model.requires_grad_(True)
    read = sum(num_trained(pack["labels"]) for pack in packs)
    items = sum(num_trained(row.labels) for _, row in rows)
    counts = dict(zip(COUNTS, (items, len(rows), read), strict=True))
    metrics = accumulate_gradients(Bare(model, processor, ONE, GRPOConfig()), packs, counts)
    found = {}
    for pack in packs:
        with torch.no_grad():
            logits = model(**pack.inputs)
        for ids, own, _ in rows_in(pack):
            labels = pack["labels"][own]
            before = logits[own].log_softmax(-1)[:-1]
            found[ids] = before[labels[1:] != IGNORED]
    return metrics["loss"], {name: parameter.grad for name, parameter in model.named_parameters()}, found


@pytest.mark.parametrize("max_length", [8192, 110])
@pytest.mark.parametrize("skip", [False, True])
def test_log_probs_loss_and_every_gradient_are_those_of_rows_that_share_nothing(
    processor, part, max_length, skip
):
    rows = rows_of(part)
    alone = make_packs([(prompt, [one]) for prompt, one in rows], processor, 8192, ONE)
    kept = [(prompt, [one for one in own if one.teaches or not skip]) for prompt, own in part]
    together = packs_of(shuffled(kept, 1), processor, max_length)
    assert "prefixes" not in alone[0]
    assert (len(together) > 1) == (max_length == 110)
    assert all(len(pack["input_ids"]) <= max_length for pack in together)
    loss, gradients, logprobs = update(processor, alone, rows)
    our_loss, our_gradients, our_logprobs = update(processor, together, rows)
    assert our_loss == pytest.approx(loss, rel=1e-5, abs=1e-7)
    assert our_logprobs.keys() == {ids for ids in logprobs if not skip or ids in our_logprobs}
    assert len(our_logprobs) == sum(row.teaches or not skip for _, row in rows) > 10
    for ids, own in our_logprobs.items():
        torch.testing.assert_close(
            own, logprobs[ids], rtol=0, atol=1e-4
        )  # of values down to -20: some float32 roundings
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        assert (our_gradients[name] - gradient).abs().max() <= 2e-5 * gradient.abs().max(), name


def test_a_prompt_and_its_pictures_stand_in_a_pack_once(processor, part):
    run = Bare(None, processor, ONE, GRPOConfig(beta=1.0))
    (pack,), counts = make_minibatch(run, part)
    completions = sum(len(row.input_ids) for _, row in rows_of(part))
    shared = sum(len(prompt) - 1 for prompt, _ in part)
    assert (
        len(pack["input_ids"]) == shared + len(rows_of(part)) + completions
    )  # each row has its prompt's last token of its own
    assert len(pack["image_grid_thw"]) == sum(len(prompt.pictures) for prompt, _ in part) == 4
    assert [counts[name] for name in COUNTS] == [completions, len(rows_of(part)), completions]
    assert sorted(ids for ids, *_ in rows_in(pack)) == sorted(
        (*prompt.input_ids.tolist(), *row.input_ids.tolist()) for prompt, row in rows_of(part)
    )


def test_a_prompt_that_ends_in_a_picture_is_not_shared(processor, part):
    """Its last token is every row's own, and would be a placeholder without a picture."""
    prompt, completions = part[3]
    end = int((prompt.input_ids == processor.config.image_token_id).nonzero().max()) + 1
    cut = replace(prompt, input_ids=prompt.input_ids[:end], position_ids=prompt.position_ids[:, :end])
    (pack,) = packs_of([(cut, completions)], processor, 8192)
    assert "prefixes" not in pack
    assert len(pack["image_grid_thw"]) == 2 * len(completions)
    update(processor, [pack], [(cut, one) for one in completions])
