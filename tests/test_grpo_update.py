"""A whole GRPO update: the same from any number of processes, cut into any packs, in any order; and the
sampler agrees with the trainer.

Each number of processes is started once (tests/grpo_worker.py), runs all checks, and leaves its results for
the tests here. What one process must give is TRL's definition, in tests/test_grpo_loss_batch.py; each token's
log-prob is transformers', below.
"""

import json
import math
import subprocess
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

import r1ov
from r1ov.common.processes import World
from r1ov.data.formats.records import Record
from r1ov.data.pack import bundle
from r1ov.data.playground.source import Playground
from r1ov.data.processor import IGNORED
from r1ov.folder import pretrained
from r1ov.folder.pretrained import read_config, read_processor, resolve
from r1ov.folder.weights import init_weights
from r1ov.model.model import Qwen2_5_VL
from r1ov.train.grpo import add_logprobs
from r1ov.train.rollout import Group, encode_prompt, sample
from r1ov.train.run.config import GRPOConfig
from tests import grpo_worker as worker
from tests import warm

ROOT = Path(__file__).parent.parent
SIZES = (1, 2, 4)
ONE = World()
CASES = [(loss, cut) for loss in worker.LOSSES for cut in worker.CUTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three small random checkpoints near each other, with sizes that two and four do not all divide."""
    folder = tmp_path_factory.mktemp("grpo")
    config = json.loads((resolve("r1ov-tiny") / "config.json").read_text())
    config |= {
        "hidden_size": 48,
        "intermediate_size": 50,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    }
    config |= {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "tie_word_embeddings": False}
    config["vision_config"] |= {
        "hidden_size": 32,
        "intermediate_size": 9,
        "num_heads": 2,
        "out_hidden_size": 48,
        "depth": 2,
    }
    config["vision_config"] |= {"fullatt_block_indexes": [1]}
    (folder / "config.json").write_text(json.dumps(config))
    model = Qwen2_5_VL(read_config(folder / "config.json"))
    generator = torch.Generator().manual_seed(0)
    init_weights(model, generator)
    for name, noise in (("policy", 0.05), ("old", 0.004), ("ref", 0.01)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += noise * torch.randn(parameter.shape, generator=generator)
        pretrained.save(model, read_processor(resolve("r1ov-tiny")), folder / name, torch.float32)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    """size -> the results of each of so many processes, started when first asked for; size 1 is this process,
    on plain models.
    """
    done = {}

    def of(size):
        if size not in done and size == 1:
            done[1] = [worker.check(folder, World(), is_sharded=False)]
        elif size not in done:
            several = [str(size) for size in SIZES if size > 1]
            command = [warm.python(), "-m", "tests.ranks", "grpo_worker", str(folder), *several]
            run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
            assert run.returncode == 0, run.stderr[-4000:]
            for size_of in map(int, several):
                done[size_of] = torch.load(folder / f"results-{size_of}.pt", weights_only=False)
                assert len(done[size_of]) == size_of
        return done[size]

    return of


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("loss", "cut"), CASES)
def test_loss_metrics_and_every_gradient_are_those_of_one_process_and_one_pack(results, size, loss, cut):
    """Float32 sums in another order cost a few 1e-7 of the largest number; a wrong normaliser or a lost token
    costs percents.
    """
    _, count, _ = worker.CUTS[cut]
    expected = results(1)[0][loss, "one pack" if count == 6 else cut]
    for result in results(size):
        actual = result[loss, cut]
        assert actual["gradients"].keys() == expected["gradients"].keys()
        for name, gradient in expected["gradients"].items():
            assert (actual["gradients"][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
        assert actual["metrics"] == pytest.approx(expected["metrics"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("loss", worker.LOSSES)
@pytest.mark.parametrize("idle", worker.IDLE)
def test_rows_that_teach_nothing_may_be_left_out(results, size, loss, idle):
    """Loss, gradients and clip ratios are those with all rows; what is a mean over what is read, those of the
    other rows alone.
    """
    all_rows, others = (
        results(1)[0][loss, idle, False],
        results(1)[0][loss, idle, "teaching" if idle == "some" else False],
    )
    assert sum(result[loss, idle, True]["read"] for result in results(size)) == others["read"]
    for result in results(size):
        actual = result[loss, idle, True]
        for name, gradient in all_rows["gradients"].items():
            assert (actual["gradients"][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
        assert actual["metrics"]["loss"] == pytest.approx(all_rows["metrics"]["loss"], rel=1e-5, abs=1e-7)
        for name, value in actual["metrics"].items():
            kept = all_rows if name.startswith(("clip_ratio", "cispo", "loss")) else others
            assert value == pytest.approx(kept["metrics"][name], rel=1e-4, abs=1e-6), name


def test_leaving_out_was_worth_a_test(results):
    """Half the tokens go; one of four processes keeps none; bounds and means do differ; and where nothing
    teaches, nothing goes.
    """
    for loss in worker.LOSSES:
        some, full = results(1)[0][loss, "some", True], results(1)[0][loss, "some", False]
        assert 0 < some["read"] < 0.7 * full["read"]
        assert some["metrics"]["entropy"] != pytest.approx(full["metrics"]["entropy"], rel=1e-4)
        assert max(gradient.abs().max() for gradient in full["gradients"].values()) > 1e-5
        assert 0 in [result[loss, "some", True]["read"] for result in results(4)]
        assert results(1)[0][loss, "all", True]["read"] == results(1)[0][loss, "all", False]["read"] > 0
        assert not any(gradient.any() for gradient in results(1)[0][loss, "all", True]["gradients"].values())


def test_those_updates_were_no_easy_ones(results):
    """Ratios differ from 1, clips bind, KL is felt, rows are masked, packs are many, a process has text
    alone, and one nothing.
    """
    for loss in worker.LOSSES:
        one = results(1)[0][loss, "one pack"]
        metrics = one["metrics"]
        assert one["packs"] == 1
        assert results(1)[0][loss, "many packs, shuffled"]["packs"] > 3
        assert metrics["log_ratio/abs_max"] > 0.02
        assert metrics["kl"] > 1e-4
        clipped = metrics["cispo_clip_ratio" if loss == "cispo" else "clip_ratio/region_mean"]
        assert 0.02 < clipped < 0.98
        assert max(gradient.abs().max() for gradient in one["gradients"].values()) > 1e-3
    assert [result["dapo", "fewer prompts than processes"]["rows"] for result in results(4)] == [2, 0, 0, 0]
    processor = read_processor(resolve("r1ov-tiny"))
    groups = worker.groups(processor, 6, range(6))
    assert [bool(group.prompt.pictures) for group in groups] == [True, False] * 3
    assert {completion.finish_reason for group in groups for completion in group.completions} == {
        "stop",
        "length",
    }


@pytest.mark.parametrize("size", SIZES)
def test_advantages_and_what_is_logged_of_rewards_do_not_depend_on_the_number_of_processes(results, size):
    for key in [("advantages", 6), ("advantages", "batch"), ("advantages", "none")]:
        together = {number: own for result in results(size) for number, own in result[key].items()}
        assert together == results(1)[0][key]  # to the last bit: every process computes all of them
    for result in results(size):
        assert result["compared", 6] == results(1)[0]["compared", 6]


def test_advantages_are_those_worked_with_pythons_statistics(results):
    groups = worker.groups(read_processor(resolve("r1ov-tiny")), 6, range(6))
    rewards = {group.number: group.rewards.tolist() for group in groups}
    scored = [reward for own in rewards.values() for reward in own if not math.isnan(reward)]
    for key, divisor in (
        (6, lambda own: stdev(own) + 1e-4),
        ("batch", lambda own: stdev(scored) + 1e-4),
        ("none", lambda own: 1.0),
    ):
        actual = results(1)[0]["advantages", key]
        for group in groups:
            expected = [0.0] * worker.EACH
            own = rewards[group.number]
            if not math.isnan(own[0]):
                expected = [(reward - mean(own)) / divisor(own) for reward in own]
            assert actual[group.number] == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_minibatches_hold_the_same_rows_whatever_the_number_of_processes(results, size):
    for count, sizes in ((6, [8, 8, 8]), (1, [2, 1, 1])):
        alone = results(1)[0]["dealt", count]
        assert [len(rows) for rows in alone] == sizes
        for part, rows in enumerate(alone):
            assert sorted(row for result in results(size) for row in result["dealt", count][part]) == sorted(
                rows
            )


# -- the sampler and the trainer


@pytest.fixture(scope="module")
def prompts():
    """Ragged: pictures of two sizes, none, two; short and long questions."""
    _, processor = r1ov.load("r1ov-tiny")
    wide = Image.linear_gradient("L").resize((168, 56)).convert("RGB")
    content = [
        {"type": "image", "image": wide},
        {"type": "text", "text": "and"},
        {"type": "image", "image": wide.rotate(180)},
    ]
    asked = ("What is 17 + 25?", [*content, {"type": "text", "text": "Which is darker on the left? " * 4}])
    records = [Playground("rl")[number] for number in (0, 1, 5)]
    records += [
        Record(messages=[{"role": "user", "content": content}], format="", where="") for content in asked
    ]
    return [
        Group(number=number, record=record, prompt=encode_prompt(processor, record, 2000))
        for number, record in enumerate(records)
    ]


def rolled(model, processor, prompts, **options):
    config = GRPOConfig(num_generations=3, max_completion_length=40, **options)
    return config, sample(model, processor, prompts, config, seed=1)


@pytest.mark.parametrize("max_num_seqs", [None, 5])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_sampler_and_trainer_give_every_token_the_same_log_prob(prompts, temperature, max_num_seqs):
    """One decodes token by token out of a cache, in a batch that shrinks and is refilled, the other reads
    packed rows at once. Logits of this model reach 30, where float32 has steps of 2e-6, and layers add up a
    few of them."""
    model, processor = r1ov.load("r1ov-tiny")
    config, groups = rolled(model, processor, prompts, temperature=temperature, max_num_seqs=max_num_seqs)
    seen = largest = 0
    packs = worker.packs_of(worker.part_of(groups), processor, 700)
    add_logprobs(worker.Bare(model, processor, ONE, config), packs, "old_logprobs", model)
    for pack in packs:
        trained = pack["labels"] != IGNORED
        gap = (pack["old_logprobs"] - pack["sampler_logprobs"])[trained].abs()
        seen, largest = seen + len(gap), max(largest, gap.max().item())
        assert (pack["sampler_logprobs"][trained] < 0).any()
        assert (pack["sampler_logprobs"][~trained] == 0).all()
        assert (pack["old_logprobs"][~trained] == 0).all()
    assert seen == sum(completion.completion_tokens for group in groups for completion in group.completions)
    assert (
        len({completion.completion_tokens for group in groups for completion in group.completions}) > 2
    )  # rows left at different times
    assert largest < 1e-4


def test_the_trainers_log_probs_are_those_of_transformers(prompts):
    """Each row alone, read by transformers, its logits divided by the temperature."""
    model, processor = r1ov.load("r1ov-tiny")
    judge = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        resolve("r1ov-tiny"), dtype=torch.float32
    ).eval()
    config, groups = rolled(model, processor, prompts, temperature=1.3)
    packs = worker.packs_of(worker.part_of(groups), processor, 10_000)
    add_logprobs(worker.Bare(model, processor, ONE, config), packs, "old_logprobs", model)
    (pack,) = packs
    packed = {ids: pack["old_logprobs"][own] for ids, own, _ in worker.rows_in(pack)}
    rows = [(prompt, one) for prompt, own in worker.part_of(groups) for one in own]
    for prompt, row in rows[::2]:
        (encoded,) = bundle(prompt, [row])
        pictures = {}
        if encoded.pixel_values is not None:
            pictures = {
                "pixel_values": torch.cat(encoded.pixel_values),
                "image_grid_thw": encoded.image_grid_thw,
            }
            pictures["mm_token_type_ids"] = (encoded.input_ids == processor.config.image_token_id).int()[None]
        with torch.no_grad():
            logits = judge(input_ids=encoded.input_ids[None], **pictures).logits[0]
        expected = (logits / 1.3).log_softmax(-1)[:-1].gather(1, encoded.input_ids[1:, None])[:, 0]
        count = len(row.logprobs)
        actual = packed[tuple(encoded.input_ids.tolist())]
        torch.testing.assert_close(actual[-count:], expected[-count:], rtol=0, atol=1e-4)
