"""Supervised fine-tuning beside transformers: the same files through its tokenizer, image processor and
model, padded, and torch's AdamW.

The judge reads the files with a few lines of its own, which know nothing of r1ov's readers, packing or loss.
"""

import json
import re
from functools import partial

import pytest
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from r1ov.data.formats.reader import open_data
from r1ov.data.steps import Steps
from r1ov.folder import pretrained
from r1ov.train.loss import sft_loss_and_correct
from r1ov.train.run.config import SFTConfig
from r1ov.train.sft import train
from tests.checkpoint import write_checkpoint
from tests.test_formats import FURTHER
from tests.test_records import DATA, EXPECTED

# Pictures; pictures in two turns and a row of text; text alone; pictures, a system prompt, a gold answer
# beside the reply.
DATA_SETS = {
    "r1-onevision": ["r1-onevision.parquet"],
    "sharegpt": ["sharegpt.json", "sharegpt-turns.parquet"],
    "alpaca": ["alpaca-text.jsonl"],
    "messages": ["openai.jsonl", "qwen.json", "messages.json"],
    "trl": ["trl.parquet"],
}
MIXED = [name for names in DATA_SETS.values() for name in names]
MAX_LENGTH = 140  # tokens; of two rows or three, so that most steps below are several packs
RATE, DECAY, BETAS = 1e-3, 0.1, (0.9, 0.98)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder)
    return folder


def spec(names: list[str]) -> str:
    return ",".join(str(DATA / name) for name in names)


def reference(folder) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()


def padded(names: list[str], folder) -> dict[str, torch.Tensor]:
    """The files' rows, as the tests of the readers write them down, as one right-padded batch made with
    transformers alone.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pictures = Qwen2VLImageProcessorPil.from_pretrained(folder)
    ids, labels, pixels, grids = [], [], [], []
    for _, messages, _, _ in (row for name in names for row in (EXPECTED | FURTHER)[name]):
        plain = []
        for message in messages:
            parts = [message["content"]] if isinstance(message["content"], str) else message["content"]
            shown = [Image.new("RGB", (56, 28), part[1]) for part in parts if isinstance(part, tuple)]
            if shown:
                made = pictures(images=shown, return_tensors="pt")
                pixels.append(made["pixel_values"])
                grids.append(made["image_grid_thw"])
            content = [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                for part in parts
            ]
            plain.append({"role": message["role"], "content": content if shown else message["content"]})
        text = tokenizer.apply_chat_template(plain, tokenize=False)
        text = text.replace("<|image_pad|>", "<|image_pad|>" * int(grids[-1][0].prod() // 4) if grids else "")
        encoded = tokenizer(text, return_offsets_mapping=True)
        replies = [
            match.span(1)
            for match in re.finditer(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", text, re.DOTALL)
        ]
        is_trained = [
            any(first <= begin and end <= last for first, last in replies)
            for begin, end in encoded["offset_mapping"]
        ]
        row = torch.tensor(encoded["input_ids"])
        ids.append(row)
        labels.append(torch.where(torch.tensor(is_trained), row, -100))
    config = json.loads((folder / "config.json").read_text())
    batch = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=config["pad_token_id"]),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }
    batch["mm_token_type_ids"] = (batch["input_ids"] == config["image_token_id"]).long()
    return batch | ({"pixel_values": torch.cat(pixels), "image_grid_thw": torch.cat(grids)} if pixels else {})


def published(tensors) -> dict[str, torch.Tensor]:
    """By the names in checkpoint files, which are r1ov's."""
    return {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
        for name, tensor in tensors
    }


def step_of(names: list[str], folder):
    """r1ov's model with the gradients of one step over the files, the loss, and how many packs it took; as
    r1ov/train/sft.py does it.
    """
    model, processor = pretrained.load(str(folder), "cpu", torch.float32)
    source = open_data(spec(names), need="reply")
    data = Steps(source, processor, len(source), MAX_LENGTH)[0]
    assert data.rows == len(source) == sum(len(batch["cu_seqlens"]) - 1 for batch in data.batches)
    num_items = sum(int((batch["labels"] != -100).sum()) for batch in data.batches)
    loss = 0.0
    for batch in data.batches:
        labels = batch.pop("labels")
        then = partial(sft_loss_and_correct, labels=labels, num_items_in_batch=num_items)
        part, _ = model(**batch, then=then)
        part.backward()
        loss += part.item()
    return model, loss, len(data.batches)


@pytest.mark.parametrize("name", [*DATA_SETS, "mixed"])
def test_a_steps_loss_and_every_gradient_equal_those_of_a_padded_batch_in_transformers(name, folder):
    names = DATA_SETS.get(name, MIXED)
    model, loss, packs = step_of(names, folder)
    assert packs > 1 or name in ("alpaca", "trl")
    theirs = reference(folder)
    batch = padded(names, folder)
    expected = theirs(**batch).loss
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)  # float32 sums in another order
    gradients = {name: parameter.grad for name, parameter in published(theirs.named_parameters()).items()}
    assert {name for name, grad in gradients.items() if grad is not None} == {
        n for n, p in model.named_parameters() if p.grad is not None
    }
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert "pixel_values" not in batch
            assert name.startswith("visual.")
            continue
        # float32 sums in another order, of the scale of each tensor
        assert (parameter.grad - gradients[name]).abs().max() <= 1e-4 * gradients[name].abs().max(), name


def trained(names: list[str], folder, out, steps: int) -> list[dict]:
    """A run of `train` on the files, every step over all their rows; its log."""
    train(
        SFTConfig(
            model=str(folder),
            data=spec(names),
            out=str(out),
            train_batch_size=sum(len((EXPECTED | FURTHER)[name]) for name in names),
            max_length=MAX_LENGTH,
            max_steps=steps,
            learning_rate=RATE,
            weight_decay=DECAY,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            lr_scheduler_type="constant",
            warmup_ratio=0,
            eval_steps=0,
            dataloader_num_workers=0,
            device="cpu",
            num_threads=1,
        )
    )
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def plain_loop(names: list[str], folder, steps: int):
    """transformers' model after as many steps of torch's AdamW, the first step's gradients after clipping,
    and each step's loss, norm.
    """
    model, batch = reference(folder), padded(names, folder)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    rest = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS)
    first, log = {}, []
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        first = first or {
            name: parameter.grad.clone() for name, parameter in published(model.named_parameters()).items()
        }
        optimizer.step()
        optimizer.zero_grad()
        log.append((loss.item(), norm.item()))
    return model.eval(), first, log


def test_weights_after_one_step_equal_a_plain_adamw_loop_on_transformers_model(folder, tmp_path):
    (line,) = trained(MIXED, folder, tmp_path / "run", 1)
    theirs, gradients, ((loss, norm),) = plain_loop(MIXED, folder, 1)
    assert line["loss"] == pytest.approx(loss, rel=1e-5)
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-5)
    before = dict(pretrained.load(str(folder))[0].named_parameters())
    expected = published(theirs.named_parameters())
    ours, _ = pretrained.load(str(tmp_path / "run" / "final"))
    compared = total = 0
    for name, parameter in ours.named_parameters():
        gradient, scale = gradients[name].abs(), gradients[name].abs().max()
        moved, wanted = parameter - before[name], expected[name] - before[name]
        # AdamW's first update is rate * g / (|g| + 1e-8): little more than a sign. Where g is only rounding
        # so is its sign, and the two may part by twice the rate. They are compared where g is well above
        # that, as gradients are known to differ by 5e-6 of their scale.
        is_clear = gradient > 1e-4 * scale
        # of a rate of 1e-3; a weight near 1 is rounded to 6e-8, and 1e-8 beside a small g weighs a little
        # differently
        assert (moved - wanted)[is_clear].abs().max() <= 1e-3 * RATE, name
        assert (moved - wanted).abs().max() <= 2.01 * RATE, name
        compared, total = compared + int(is_clear.sum()), total + is_clear.numel()
    assert compared > 0.9 * total


def test_twenty_steps_follow_transformers_and_the_exported_model_is_read_by_it(folder, tmp_path):
    log = trained(MIXED, folder, tmp_path / "run", 20)
    theirs, _, expected = plain_loop(MIXED, folder, 20)
    for line, (loss, norm) in zip(log, expected, strict=True):
        # float32 sums in another order; the weights whose first updates went the other way, see above, are
        # those the loss hardly feels
        assert line["loss"] == pytest.approx(loss, rel=1e-5)
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]

    read, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "run" / "final", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    model, processor = pretrained.load(str(tmp_path / "run" / "final"))
    source = open_data(spec(MIXED), need="reply").reader
    batch = padded(MIXED, tmp_path / "run" / "final")
    labels = batch.pop("labels")
    with torch.no_grad():
        wanted = read.eval()(**batch).logits
        for row in range(len(source)):
            found = model(**processor(source[row].messages))
            length = int(batch["attention_mask"][row].sum())
            assert len(found) == length
            # float32 sums in another order, of the scale of the logits
            assert (found - wanted[row, :length]).abs().max() <= 1e-4 * wanted[row, :length].abs().max()
        after = theirs(**batch, labels=labels).loss.item()
    assert read(**batch, labels=labels).loss.item() == pytest.approx(after, rel=1e-5)
