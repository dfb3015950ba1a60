"""r1ov.data.steps: what the ranks train together is the step's rows, whatever their number; nothing is lost,
nothing counted twice.
"""

import itertools
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from r1ov.data.formats.files import find_files
from r1ov.data.formats.reader import Reader
from r1ov.data.formats.records import BadRow, Record, Tally
from r1ov.data.image import LazyImage
from r1ov.data.pack import blank_sequence
from r1ov.data.playground import SPLITS, messages, sample
from r1ov.data.playground.source import Playground
from r1ov.data.processor import Batch, Processor
from r1ov.data.steps import StepData, Steps, load_steps
from r1ov.errors import UserError
from r1ov.folder.pretrained import read_config, read_processor, resolve
from r1ov.folder.weights import init_weights
from r1ov.model.model import Qwen2_5_VL
from r1ov.train.loss import sft_loss

ROWS = 12


@pytest.fixture(scope="module")
def processor() -> Processor:
    return read_processor(resolve("r1ov-tiny"))


class Rows:
    """A few records, round and round."""

    def __init__(self, conversations: list):
        self.conversations = conversations

    def __getitem__(self, number: int) -> Record | BadRow:
        item = self.conversations[number % len(self.conversations)]
        return (
            item
            if isinstance(item, BadRow)
            else Record(messages=item, format="made up", where=f"made up, row {number + 1}")
        )


def exchange(question: str, reply: str, *pictures) -> list[dict]:
    parts = [{"type": "image", "image": picture} for picture in pictures] + [
        {"type": "text", "text": question}
    ]
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": reply}]


def mixed() -> Rows:
    """Text alone, one picture, two pictures, of many lengths; 12 rows, none like another."""
    shades = [Image.new("RGB", (56 + 28 * (i % 3), 56 + 28 * (i % 2)), (20 * i, 100, 200)) for i in range(8)]
    conversations = [exchange(f"What is {i} plus {i}?", f"It is {2 * i}. " * (1 + 3 * i)) for i in range(5)]
    conversations += [
        exchange(f"Which shade is {i}?", f"A blue one, number {i}. " * (1 + i), shades[i]) for i in range(4)
    ]
    conversations += [
        exchange(f"Compare {i}.", "They differ.", shades[i], shades[i + 3]) for i in range(2, 5)
    ]
    return Rows(conversations)


def sequences(batch: Batch) -> list[tuple]:
    """Each of the batch's sequences with all that belongs to it, so that it can be compared and counted."""
    bounds = batch["cu_seqlens"].tolist()
    grids = batch["image_grid_thw"].tolist() if "image_grid_thw" in batch else []
    pictures = list(batch["pixel_values"].split([t * h * w for t, h, w in grids])) if grids else []
    found = []
    for begin, end in itertools.pairwise(bounds):
        ids = batch["input_ids"][begin:end]
        number = int((ids == VISION_START).sum())
        own, pictures = pictures[:number], pictures[number:]
        tensors = [ids, batch["labels"][begin:end], batch["position_ids"][:, begin:end], *own]
        found.append(
            tuple((tuple(tensor.shape), tensor.contiguous().numpy().tobytes()) for tensor in tensors)
        )
    assert not pictures
    return found


VISION_START = read_config(resolve("r1ov-tiny") / "config.json").vision_start_token_id


def trained(steps: list[StepData], processor: Processor) -> Counter:
    """All sequences of all ranks' batches, the blank ones left out."""
    (blank,) = sequences(processor.pack([blank_sequence(processor)]))
    return Counter(
        found for data in steps for batch in data.batches for found in sequences(batch) if found != blank
    )


def alone(source: Rows, rows: range, processor: Processor) -> Counter:
    return Counter(
        found
        for number in rows
        for found in sequences(processor(source[number].messages, return_labels=True))
    )


@pytest.mark.parametrize("max_length", [100, 160, 4096])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_all_ranks_together_train_the_rows_of_the_step_whatever_their_number(
    world_size, max_length, processor
):
    source = mixed()
    ranks = [Steps(source, processor, ROWS, max_length, rank, world_size)[1] for rank in range(world_size)]
    kept = [n for n in range(ROWS, 2 * ROWS) if len(processor.encode(source[n].messages)) <= max_length]
    assert len(kept) > ROWS / 2
    assert trained(ranks, processor) == alone(source, kept, processor)
    assert {data.rows for data in ranks} == {len(kept)}
    assert len({len(data.batches) for data in ranks}) == 1
    assert len({data.cost for data in ranks}) == 1
    assert all(
        data.items == ranks[0].items and len(data.items) == ROWS and not data.undecoded for data in ranks
    )
    for batch in (batch for data in ranks for batch in data.batches):
        assert len(batch["input_ids"]) <= max_length + len(blank_sequence(processor))
        assert world_size == 1 or "pixel_values" in batch  # so the vision encoder runs on all ranks


def test_one_rank_with_room_packs_the_rows_as_the_processor_does(processor):
    source = mixed()
    (batch,) = Steps(source, processor, ROWS, 4096)[0].batches
    expected = processor([source[number].messages for number in range(ROWS)], return_labels=True)
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in batch)


def loss_and_gradients(model: Qwen2_5_VL, batch: Batch) -> tuple[float, dict[str, torch.Tensor | None]]:
    model.zero_grad()
    rest = {name: value for name, value in batch.items() if name != "labels"}
    loss = sft_loss(model.hidden_states(**rest), model.head_weight, batch["labels"], 10)
    loss.backward()
    return loss.item(), {
        name: None if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize("rows", [slice(0, 3), slice(3, 8)], ids=["text alone", "pictures too"])
def test_the_blank_sequence_adds_nothing_to_loss_and_gradients(rows, processor):
    model = Qwen2_5_VL(processor.config)
    init_weights(model, torch.Generator().manual_seed(0))
    encoded = [
        processor.encode(conversation, return_labels=True) for conversation in mixed().conversations[rows]
    ]
    loss, gradients = loss_and_gradients(model, processor.pack(encoded))
    other_loss, others = loss_and_gradients(model, processor.pack([*encoded, blank_sequence(processor)]))
    assert other_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        if gradient is None:
            assert name.startswith("visual.")
            assert not others[name].any()  # there, and exactly zero
        else:
            # Sums over a few rows more, all of them zero, may be taken in another order: a few roundings of
            # float32.
            torch.testing.assert_close(
                others[name], gradient, rtol=1e-5, atol=1e-6 * gradient.abs().max().item()
            )
    loss, gradients = loss_and_gradients(model, processor.pack([blank_sequence(processor)]))
    assert loss == 0
    assert all(
        gradient is not None and not gradient.any()
        for name, gradient in gradients.items()
        if name != "lm_head.weight"
    )


def test_rows_too_long_are_dropped_and_counted_or_an_error(processor):
    source = mixed()
    lengths = [len(processor.encode(source[number].messages)) for number in range(ROWS)]
    limit = sorted(lengths)[-3]
    data = Steps(source, processor, ROWS, limit)[0]
    assert data.rows == ROWS - 2
    shown: list[str] = []
    tally = Tally(say=shown.append)
    for item in data.items:
        tally.add(item)
    assert tally.dropped == {f"the row has more than {limit:,} tokens": 2}
    assert tally.formats == {"made up": ROWS - 2}
    first = next(number for number, length in enumerate(lengths) if length > limit)
    assert shown == [
        f"dropped  made up, row {first + 1}: {lengths[first]} tokens, more than the limit of {limit}"
    ]
    with pytest.raises(
        UserError,
        match=rf"^made up, row {first + 1}: {lengths[first]} tokens, more than the limit of {limit}; raise",
    ):
        Steps(source, processor, ROWS, limit, overlong="error")[0]
    nothing = Steps(source, processor, ROWS, 3, rank=1, world_size=2)[0]
    assert (nothing.rows, nothing.batches, nothing.cost) == (0, [], 0)


def test_bad_rows_are_counted_and_the_others_trained(processor):
    good = mixed().conversations
    bad = [
        BadRow(reason="the line is not JSON", detail="x.jsonl, row 2: the line is not JSON"),
        exchange("<|image_pad|>", "x"),
        exchange("x", "y", Image.new("RGB", (300, 1))),
        good[0][:1],
    ]
    source = Rows([good[0], *bad, good[1]])
    data = Steps(source, processor, 6, 1000)[0]
    assert data.rows == 2
    assert trained([data], processor) == alone(source, [0, 5], processor)
    assert [type(item) for item in data.items] == [Record, BadRow, BadRow, BadRow, BadRow, Record]
    assert data.items[1] == bad[0]
    reasons = ["placeholders for 0 pictures", "picture 1: one side", "no assistant message"]
    for item, number, reason in zip(data.items[2:5], (3, 4, 5), reasons, strict=True):
        assert item.detail.startswith(f"made up, row {number}: ")
        assert reason in item.detail
    assert all(not item.messages for item in data.items if isinstance(item, Record))


@pytest.fixture
def damaged(tmp_path: Path) -> Reader:
    """Six rows with a picture each; those of rows 2 and 5 are cut off in their midst."""
    for number in range(1, 7):
        path = tmp_path / f"{number}.png"
        Image.effect_noise((84, 84), 50).save(path)
        if number in (2, 5):
            path.write_bytes(path.read_bytes()[:1000])
    rows = [
        {"problem": f"<image>{n}?", "answer": "1", "solution": "<think>x</think>1", "image": f"{n}.png"}
        for n in range(1, 7)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Reader(find_files(str(tmp_path / "a.jsonl")), need="reply")


@pytest.mark.parametrize("world_size", [1, 2, 6])
def test_a_picture_that_cannot_be_decoded_takes_its_row_out_on_the_rank_that_finds_it(
    world_size, damaged, processor
):
    source = damaged
    ranks = [
        Steps(source, processor, 6, 60 if world_size < 6 else 4096, rank, world_size)[0]
        for rank in range(world_size)
    ]
    assert all(isinstance(item, Record) for item in ranks[0].items)  # it is found out only when it is needed
    assert trained(ranks, processor) == alone(source, [0, 2, 3, 5], processor)
    found = [bad for data in ranks for bad in data.undecoded]
    assert {bad.reason for bad in found} == {"a picture cannot be opened"}
    details = sorted(bad.detail for bad in found)
    assert len(details) == 2
    for detail, number in zip(details, (2, 5), strict=True):
        assert f"a.jsonl, row {number}: " in detail
        assert f"{number}.png: the picture cannot be decoded" in detail
        assert "\n" not in detail
    if world_size > 1:  # a pack that lost all it had still runs
        assert len({len(data.batches) for data in ranks}) == 1
        assert all("pixel_values" in batch for data in ranks for batch in data.batches)


def test_a_rank_decodes_only_the_pictures_that_it_trains(processor):
    loaded: list[int] = []

    def picture(number: int) -> LazyImage:
        return LazyImage((56, 56), lambda: loaded.append(number) or Image.new("RGB", (56, 56)))

    source = Rows([exchange(f"{number}?", "x", picture(number)) for number in range(10)])
    for rank in range(3):
        assert Steps(source, processor, 10, 40, rank, 3)[0].rows == 10
    assert sorted(loaded) == list(range(10))


def same(one: StepData, other: StepData) -> bool:
    equal = [
        all(torch.equal(a[name], b[name]) for name in a.keys() | b.keys())
        for a, b in zip(one.batches, other.batches, strict=True)
    ]
    return all(equal) and (one.rows, one.cost, one.items, one.undecoded) == (
        other.rows,
        other.cost,
        other.items,
        other.undecoded,
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_step_is_the_same_in_a_new_process_and_in_workers(num_workers, processor):
    state = torch.get_rng_state()
    steps = Steps(Playground("train", seed=3), processor, 5, 400)
    results = list(load_steps(Steps(Playground("train", seed=3), processor, 5, 400), 3, 8, num_workers))
    assert len(results) == 5
    assert same(results[2], steps[5])
    assert same(results[2], pickle.loads(pickle.dumps(steps))[5])  # as where workers are spawned, not forked
    assert not same(results[2], results[3])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_users_mistake_found_in_a_worker_arrives_as_its_one_line(num_workers, processor):
    results = load_steps(Steps(mixed(), processor, 2, 60, overlong="error"), 0, 6, num_workers)
    with pytest.raises(UserError) as caught:
        list(results)
    assert str(caught.value).startswith("made up, row ")
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_signals_to_every_process_do_not_reach_the_workers(processor):
    before = multiprocessing.active_children()  # of a test whose error is not collected yet
    results = load_steps(Steps(mixed(), processor, 4, 1000), 0, 12, num_workers=2)
    next(results), next(results)  # one from each, so that both are under way
    workers = [worker for worker in multiprocessing.active_children() if worker not in before]
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(results)) == 10
    for worker in workers:
        worker.join(10)
        assert worker.exitcode == 0


def test_a_crash_of_the_main_process_ends_the_workers_too():
    program = """
from tests.test_steps import *
results = load_steps(Steps(mixed(), read_processor(resolve("r1ov-tiny")), 4, 1000), 0, 100, num_workers=2)
next(results), next(results)
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
1 / 0
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    workers = done.stdout.split()
    assert len(workers) == 2
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


@pytest.mark.parametrize("split", SPLITS)
def test_the_playgrounds_records_are_its_samples_painted_only_when_needed(split, monkeypatch):
    painted = []
    from r1ov.data.playground import source

    paint = source.paint
    monkeypatch.setattr(source, "paint", lambda scene: painted.append(scene) or paint(scene))
    for index in range(7):
        record, expected = Playground(split, seed=2)[index], sample(split, index, seed=2)
        (picture,) = record.images
        assert picture.size == expected.image.size
        assert not painted
        assert picture.load().tobytes() == expected.image.tobytes()
        painted.clear()
        question, *reply = messages(expected)
        assert record.messages[0]["content"][1] == question["content"][1]
        assert list(record.messages[1:]) == reply
        assert (record.solution, record.kind, record.reply is None) == (
            expected.answer,
            expected.kind,
            split == "rl",
        )
