"""One process that computes in bfloat16 and learns in float32: gradients, the course of both loops beside
float32's, resuming, and checkpoints of one kind in a run of the other.
"""

import json
import shutil
from copy import deepcopy
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from r1ov.data.playground import messages, sample
from r1ov.folder.pretrained import read_config, read_processor
from r1ov.folder.weights import init_weights
from r1ov.model.model import Qwen2_5_VL
from r1ov.train import grpo, sft
from r1ov.train.loss import sft_loss
from r1ov.train.optim import build_optimizers
from r1ov.train.run.config import GRPOConfig, SFTConfig
from r1ov.train.run.sharding import computing_copy, freeze
from tests.small import small_architecture

ALWAYS = {"device": "cpu", "num_threads": 1, "eval_steps": 0, "dataloader_num_workers": 0}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_architecture(tmp_path_factory.mktemp("small"))


def logged(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def trained(small, out, **options):
    """The rows of its log and the weights that it leaves."""
    options = ALWAYS | {"config_name": str(small), "train_batch_size": 4} | options
    sft.train(SFTConfig(out=str(out), **options))
    return logged(out), load_file(out / "final" / "model.safetensors")


def backward(model, pack):
    model(**pack.inputs, then=partial(sft_loss, labels=pack["labels"], num_items_in_batch=50)).backward()


@pytest.mark.parametrize("mode", ["off", "selective"])
def test_gradients_are_made_in_bfloat16_and_summed_in_float32(small, mode):
    processor = read_processor(small)
    packs = [
        processor([messages(sample("train", at)) for at in own], return_labels=True) for own in ((0, 3), (5,))
    ]
    masters = Qwen2_5_VL(read_config(small / "config.json"))
    init_weights(masters, torch.Generator().manual_seed(0))
    freeze(masters, ("merger",))
    plain, before = deepcopy(masters).bfloat16(), deepcopy(masters)
    config = SFTConfig(optim="muon", learning_rate=1e-3, muon_learning_rate=1e-3, adam_beta2=0.99)
    optimizers = build_optimizers(masters, config)
    copy = computing_copy(masters, torch.bfloat16, mode, optimizers[-1])
    expected: dict[str, torch.Tensor] = {}
    for pack in packs:
        plain.zero_grad()
        backward(plain, pack)
        for name, parameter in plain.named_parameters():
            if parameter.requires_grad:
                expected[name] = expected.get(name, 0) + parameter.grad.float()
        backward(copy, pack)
    assert "visual.blocks.0.attn.qkv.weight" in expected
    for name, master in masters.named_parameters():
        assert copy.get_parameter(name).grad is None, name  # handed over
        assert (master.grad is None) == ("merger" in name)
        assert master.grad is None or torch.equal(master.grad, expected[name]), name
    for optimizer in optimizers:
        optimizer.step()
    for name, master in masters.named_parameters():
        assert torch.equal(master, before.get_parameter(name)) == ("merger" in name), name
        assert torch.equal(copy.get_parameter(name), master.bfloat16()), name


def test_100_steps_of_sft_follow_those_in_float32(small, tmp_path):
    expected, _ = trained(small, tmp_path / "float32", max_steps=100)
    rows, weights = trained(small, tmp_path / "bfloat16", max_steps=100, bf16=True)
    losses, others = ([row["loss"] for row in run] for run in (rows, expected))
    assert losses == pytest.approx(others, rel=0.01)  # a bfloat16 has 8 bits; seen: 0.0012
    assert losses != pytest.approx(others, rel=1e-5)
    assert others[-1] < 0.5 * others[0]
    name = "model.layers.0.mlp.up_proj.weight"
    assert (
        weights[name] != weights[name].bfloat16().float()
    ).float().mean() > 0.9  # the float32 ones are left


def test_resumed_it_ends_with_the_same_bits_and_each_kind_goes_on_from_the_others_checkpoint(small, tmp_path):
    flags = {"max_steps": 4, "save_steps": 2, "save_total_limit": None}
    whole = {
        is_bf16: trained(small, tmp_path / f"{is_bf16}", bf16=is_bf16, **flags) for is_bf16 in (False, True)
    }
    for first in (False, True):
        for then in (False, True):
            out = tmp_path / f"{first} then {then}"
            shutil.copytree(tmp_path / f"{first}", out)
            shutil.rmtree(out / "final")
            shutil.rmtree(out / "checkpoints" / "step-4")
            rows, weights = trained(small, out, bf16=then, override=first != then, **flags)
            expected_rows, expected = whole[first]
            assert [row["step"] for row in rows] == [1, 2, 3, 4]
            assert all(torch.equal(weights[name], expected[name]) for name in expected) == (first == then)
            # of two steps; what was not loaded would be elsewhere at once
            assert [row["loss"] for row in rows] == pytest.approx(
                [row["loss"] for row in expected_rows], rel=0.005
            )


def test_grpo_follows_its_course_in_float32_on_the_same_completions(tmp_path, monkeypatch):
    """25 updates on one rollout, with a reference: the ratio, its clip and the KL term are all at work."""
    monkeypatch.setattr(grpo, "group_advantages", lambda *_: torch.tensor([1.0, -1.0, 0.5, -0.5]))
    kept, sample_of = [], grpo.sample

    def recorded(*arguments):
        kept.append(sample_of(*arguments))
        return kept[-1]

    logs = {}
    for is_bf16, replay in ((False, recorded), (True, lambda *_: kept[0])):
        monkeypatch.setattr(grpo, "sample", replay)
        out, steps = tmp_path / f"{is_bf16}", 25
        options = {"max_steps": steps, "num_iterations": steps, "train_batch_size": 4, "num_generations": 4}
        options |= {
            "max_completion_length": 40,
            "temperature": 2.3,
            "seed": 1,
            "beta": 0.04,
            "sample_steps": 0,
        }
        grpo.train(GRPOConfig(out=str(out), bf16=is_bf16, **{**ALWAYS, **options}))
        logs[is_bf16] = logged(out)
    ours, theirs = (
        {name: [row[name] for row in logs[is_bf16]] for name in logs[True][0]} for is_bf16 in (True, False)
    )
    # a hundredth of the advantages' mean size: the loss is a mean of ratios times these, which nearly cancel
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=0.01 * 0.75)
    assert min(theirs["loss"]) < -0.05
    assert theirs["clip_ratio/region_mean"][-1] > 0.1
    # of tokens all but impossible for the reference: 8 bits of a logit are much, until both settle; up
    # to 0.065 with three seeds on a CPU with AMX
    assert ours["kl"][-1] == pytest.approx(theirs["kl"][-1], rel=0.1)
    # up to 0.038 on CPUs without instructions for bfloat16, which round elsewhere
    assert ours["entropy"] == pytest.approx(theirs["entropy"], rel=0.05)
    assert ours["entropy"] != theirs["entropy"]
