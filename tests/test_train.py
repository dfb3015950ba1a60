"""The training loop: its loss and optimizers against torch and transformers, its invariances, and a run from
end to end.
"""

import json
import math
import subprocess
import threading
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from r1ov.common import memory
from r1ov.common.processes import World
from r1ov.data.playground import messages, sample
from r1ov.data.playground.source import Playground
from r1ov.data.steps import Steps
from r1ov.errors import UserError
from r1ov.folder import pretrained
from r1ov.folder.pretrained import read_config, read_processor, resolve
from r1ov.folder.weights import init_weights
from r1ov.model.model import Qwen2_5_VL
from r1ov.train.loss import sft_loss
from r1ov.train.optim import Muon, build_optimizers, learning_rate_factor, orthogonalise
from r1ov.train.run import log
from r1ov.train.run import open as run_open
from r1ov.train.run.config import GRPOConfig, SFTConfig
from r1ov.train.sft import train
from tests import warm

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def processor():
    return read_processor(resolve("r1ov-tiny"))


def fresh_model(seed=0):
    model = Qwen2_5_VL(read_config(resolve("r1ov-tiny") / "config.json"))
    init_weights(model, torch.Generator().manual_seed(seed))
    return model


def loss_and_gradients(model, batches, num_items):
    model.zero_grad()
    total = 0.0
    for batch in batches:
        rest = {name: value for name, value in batch.items() if name != "labels"}
        loss = sft_loss(model.hidden_states(**rest), model.head_weight, batch["labels"], num_items)
        loss.backward()
        total += loss.item()
    return total, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_sft_loss_equals_transformers_on_each_sequence(processor):
    model = fresh_model()
    conversations = [messages(sample("train", index)) for index in range(3)]
    batches = [processor(conversation, return_labels=True) for conversation in conversations]
    num_items = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    actual, _ = loss_and_gradients(model, [processor(conversations, return_labels=True)], num_items)
    expected = 0.0
    for batch in batches:
        labels = batch.pop("labels")
        logits = model(**batch)
        expected += ForCausalLMLoss(
            logits[None], labels[None], logits.shape[-1], num_items_in_batch=num_items
        ).item()
    assert actual == pytest.approx(expected, rel=1e-5)  # float32 sums in another order


def test_loss_and_gradients_do_not_depend_on_packing_or_accumulation(processor):
    model = fresh_model()
    conversations = [messages(sample("train", index)) for index in range(6)]
    num_items = int((processor(conversations, return_labels=True)["labels"] != -100).sum())
    cuts = {"one pack": [6], "two": [2, 4], "alone": [1] * 6}
    results = {}
    for name, cut in cuts.items():
        begin, batches = 0, []
        for length in cut:
            batches.append(processor(conversations[begin : begin + length], return_labels=True))
            begin += length
        results[name] = loss_and_gradients(model, batches, num_items)
    loss, gradients = results.pop("one pack")
    for other_loss, other_gradients in results.values():
        assert other_loss == pytest.approx(loss, rel=1e-5)
        for name, gradient in gradients.items():
            scale = gradient.abs().max()
            assert (gradient - other_gradients[name]).abs().max() <= 1e-4 * scale, (
                name
            )  # float32 sums in another order


def test_only_the_reply_and_its_stop_token_are_trained(processor):
    one = sample("train", 3)
    batch = processor(messages(one), return_labels=True)
    trained = batch["labels"] != -100
    assert (
        processor.decode(batch["input_ids"][trained], skip_special_tokens=False)
        == messages(one)[1]["content"] + "<|im_end|>"
    )
    assert not trained[0]


def test_muon_moves_like_torch_muon():
    torch.manual_seed(0)
    shapes = [(48, 32), (32, 48), (40, 40), (48, 32)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    mine, reference = (
        Muon(ours, lr=0.02, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95),
    )
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        # four updates of about 0.02 * 0.15 an element; torch's five Newton-Schulz steps run in bfloat16, 8
        # bits
        torch.testing.assert_close(a, b, atol=1e-3, rtol=0)


def test_orthogonalise_moves_all_singular_values_near_one():
    values = torch.linalg.svdvals(
        orthogonalise(torch.randn(3, 30, 50, generator=torch.Generator().manual_seed(0)))
    )
    assert values.min() > 0.3  # the steps are tuned for slope, not for convergence
    assert values.max() < 1.3


def test_every_parameter_has_one_optimizer():
    model = fresh_model()
    for optim in ("adamw", "muon"):
        config = SFTConfig(optim=optim, learning_rate=1e-3, muon_learning_rate=0.02, weight_decay=0.1)
        optimizers = build_optimizers(model, config)
        held = [
            parameter
            for optimizer in optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        assert sorted(map(id, held)) == sorted(map(id, model.parameters()))


def test_the_learning_rate_climbs_then_falls():
    config = SFTConfig(max_steps=100, warmup_ratio=0.1, lr_scheduler_type="cosine")
    factors = [learning_rate_factor(step, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert learning_rate_factor(100, replace(config, min_lr_rate=0.1)) == pytest.approx(0.1)
    assert learning_rate_factor(55, replace(config, lr_scheduler_type="linear")) == pytest.approx(0.5)
    assert learning_rate_factor(99, replace(config, lr_scheduler_type="constant")) == 1.0


def test_a_fresh_model_learns_one_batch_by_heart(processor):
    model = fresh_model()
    (batch,) = Steps(Playground(), processor, 4, 8192)[0].batches
    num_items = int((batch["labels"] != -100).sum())
    optimizers = build_optimizers(model, SFTConfig(optim="muon", learning_rate=2e-3, muon_learning_rate=0.02))
    for _ in range(30):
        loss, _ = loss_and_gradients(model, [batch], num_items)
        for optimizer in optimizers:
            optimizer.step()
    assert loss < 0.3  # it starts near log(1046) = 7


def test_a_run_leaves_a_model_that_loads_and_a_log_with_the_fields_names(tmp_path, capsys):
    out = tmp_path / "run"
    config = SFTConfig(
        max_steps=2,
        per_device_train_batch_size=7,
        eval_steps=2,
        eval_samples=7,
        save_steps=1,
        dataloader_num_workers=0,
        out=str(out),
        num_threads=1,
    )
    train(config)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert all("eval_loss" in row for row in rows if "eval_accuracy" in row)
    assert {"loss", "mean_token_accuracy", "learning_rate", "grad_norm", "num_tokens"} <= set(steps[0])
    assert [row["step"] for row in rows if "eval_accuracy" in row] == [0, 2]
    assert json.loads((out / "config.json").read_text())["max_steps"] == 2
    assert (out / "curves.png").stat().st_size > 0
    assert sorted(path.name for path in (out / "samples").iterdir()) == [
        f"eval-00000{n}.{kind}" for n in (0, 2) for kind in ("html", "jsonl")
    ]
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["step-1", "step-2"]
    model, _ = pretrained.load(str(out / "final"))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    asked = {"stage": "sft", "prompt": "none", "min_pixels": 3136, "max_pixels": 12544}
    assert json.loads((out / "final" / "r1ov.json").read_text()) == asked
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "step 2/2 | loss" in shown.err
    with pytest.raises(SystemExit) as end:
        train(config)
    assert end.value.code == 0
    assert capsys.readouterr().err == f"done    {out}/ holds this run, finished; model in {out}/final\n"
    with pytest.raises(UserError, match=r"the finished run in .* with other options: --seed was 0 and is 1"):
        train(replace(config, seed=1))


@pytest.mark.parametrize(
    ("given", "device", "expected"),
    [(None, "cuda", "selective"), (None, "cpu", "off"), ("full", "cpu", "full"), ("off", "cuda", "off")],
)
def test_a_gpu_recomputes_some_activations_unless_told(given, device, expected):
    config = SFTConfig(activation_checkpointing=given)
    settled = run_open.resolve(config, None, World(), torch.device(device), {})
    assert settled.activation_checkpointing == expected


def test_an_evaluation_that_a_stop_left_out_is_made_on_resume_and_none_twice(tmp_path, monkeypatch):
    config = SFTConfig(
        max_steps=2,
        per_device_train_batch_size=2,
        eval_steps=1,
        eval_samples=1,
        eval_max_new_tokens=2,
        dataloader_num_workers=0,
        out=str(tmp_path),
        num_threads=1,
    )
    asked = threading.Event()
    asked.set()
    with monkeypatch.context() as patch:
        patch.setattr(run_open, "stopping", lambda _: nullcontext(asked))
        train(config)  # ends after step 1, whose evaluation is due
    assert not (tmp_path / "final").exists()
    train(config)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], "eval_loss" in row) for row in rows] == [
        (0, True),
        (1, False),
        (1, True),
        (2, False),
        (2, True),
    ]


@pytest.mark.parametrize(
    ("beta", "size", "held", "is_copied"),
    [(0.0, 1, 16, 0), (0.1, 1, 20, 0), (0.0, 4, 8, 0), (0.1, 4, 9, 0), (0.0, 1, 18, 1), (0.1, 1, 20, 1)],
)
def test_the_memory_that_is_announced_counts_reference_and_the_copy_that_answers(
    beta, size, held, is_copied, processor
):
    """Bytes a parameter: 16 for weights, gradients and moments and 4 for a reference, of which each of
    several processes holds its share; and a copy of its own to answer with. Where one process computes in
    bfloat16, 2 for that copy and 2 for the reference.
    """
    model = torch.nn.Linear(10_000, 1_000, bias=False, device="meta")  # 10 M parameters
    model.visual = torch.nn.Identity()
    run = SimpleNamespace(
        config=GRPOConfig(beta=beta, train_batch_size=8, max_steps=1, learning_rate=1e-6),
        world=World(0, size),
        masters=model,
        model=deepcopy(model) if is_copied else model,
        parameters=list(model.parameters()),
        processor=processor,
        out=Path("runs"),
        device=torch.device("cpu"),
        dtype=torch.bfloat16 if is_copied else torch.float32,
        kernels="torch",
        num_rows=None,
        changed=[],
        step=0,
    )
    run.held = memory.held(run)
    (line,) = [line for line in log.introduction(run, "") if line.startswith("memory")]
    assert line.startswith(f"memory  {held / 100:.2f} GB a process")
    assert ("reference" in line, "copy" in line) == (beta > 0, size > 1 or is_copied == 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_steps": 0}, "--max-steps is 0"),
        ({"warmup_ratio": 2.0}, "--warmup-ratio is 2.0"),
        ({"learning_rate": -1.0}, "--learning-rate is -1.0"),
        ({"max_length": 3}, "--max-length is 3"),
    ],
)
def test_options_out_of_range_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        SFTConfig(**flags)


def test_two_processes_take_the_steps_of_one(tmp_path):
    options = {
        "stage": "sft",
        "max-steps": 3,
        "eval-steps": 0,
        "dataloader-num-workers": 0,
        "num-threads": 1,
        "per-device-train-batch-size": 3,
        "max-length": 300,
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    alone = {name.replace("-", "_"): value for name, value in options.items() if name != "stage"}
    train(SFTConfig(**alone, gradient_accumulation_steps=2, out=str(tmp_path / "one")))
    two = [warm.python(), "-m", "tests.ranks", "train", "2", *flags, "--out", str(tmp_path / "two")]
    done = subprocess.run(two, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for a, b in zip(*logs, strict=True):
        for name in ("loss", "grad_norm", "mean_token_accuracy", "num_tokens"):
            assert b[name] == pytest.approx(a[name], rel=1e-4), (
                name
            )  # float32 sums in another order, over three steps


def test_a_run_ends_at_the_eleventh_skipped_step_in_a_row(capsys):
    run = SimpleNamespace(step=0, extra={"skipped": [1, 2]}, world=World())
    for run.step in range(5, 15):
        run_open.Run._note_skipped(run, math.nan)
    assert capsys.readouterr().err.count("is skipped: the gradient's length is nan") == 10
    run.step = 15
    with pytest.raises(UserError, match=r"step 15 is skipped: .* nan, as 10 before; lower the learning rate"):
        run_open.Run._note_skipped(run, math.nan)
    run.step = 17
    run_open.Run._note_skipped(run, math.inf)
    assert run.extra["skipped"] == [1, 2, *range(5, 16), 17]
