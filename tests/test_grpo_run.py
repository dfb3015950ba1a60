"""GRPO from end to end, small: what a run leaves behind, rewards and options at work, what it refuses;
killed, it goes on bit by bit.
"""

import json
import math
import shutil
import subprocess
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import r1ov
from r1ov.errors import UserError
from r1ov.folder import pretrained
from r1ov.folder.pretrained import resolve
from r1ov.folder.weights import init_weights
from r1ov.train import grpo
from r1ov.train.run import observe
from r1ov.train.run.config import GRPOConfig
from tests import warm
from tests.test_evaluate_page import read
from tests.test_resume import ENVIRONMENT, ROOT

SMALL = {
    "max_steps": 2,
    "train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 40,
    "eval_steps": 0,
    "sample_steps": 1,
    "device": "cpu",
    "num_threads": 1,
}
TRL = {  # of TRL 1.16's GRPOTrainer, `self._metrics[...]`, without tools, and of transformers' Trainer
    *(
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "num_tokens",
        "entropy",
        "loss",
        "grad_norm",
        "learning_rate",
    ),
    *(f"rewards/{name}/{what}" for name in ("accuracy", "format") for what in ("mean", "std")),
    *(f"completions/{name}{kind}_length" for name in ("mean", "min", "max") for kind in ("", "_terminated")),
    *("completions/clipped_ratio", "rollout_tokens_per_second"),
    *(f"clip_ratio/{name}" for name in ("low_mean", "low_min", "high_mean", "high_max", "region_mean")),
    *(f"sampling/sampling_logp_difference/{name}" for name in ("mean", "max")),
}
REWARDS = """
import json, pathlib
LOG = pathlib.Path(__file__).with_name("calls.txt")

def varied(prompt, completion, row, info):
    assert prompt[0]["role"] == "user"
    assert not any("image" in part for part in prompt[0]["content"] if isinstance(part, dict))
    assert row["solution"] and info["finish_reason"] in ("stop", "length")
    with LOG.open("a") as file:
        file.write(str(row["id"]) + "\\n")
    return sum(map(ord, completion)) % 5 / 4

def of_odd_rows(prompt, completion, row, info):
    score = varied(prompt, completion, row, info)
    return score if int(row["id"]) % 2 else 0.5

def flat(prompt, completion, row, info):
    varied(prompt, completion, row, info)
    return 0.5

def parts(prompt, completion, row, info):
    return {"tokens": info["completion_tokens"], "odd": len(completion) % 2, "none": None}

def broken(prompt, completion, row, info):
    return 1 / 0
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A model that has learned nothing: its completions are all different, and none of them ends."""
    folder = tmp_path_factory.mktemp("fresh")
    model, processor = r1ov.load("r1ov-tiny")
    init_weights(model, torch.Generator().manual_seed(0))
    pretrained.save(model, processor, folder, torch.float32)
    return str(folder)


@pytest.fixture
def rewards(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(REWARDS)
    return path


def calls(rewards):
    """The ids of the rows that were scored, without the call before the run that tries the reward."""
    return (rewards.parent / "calls.txt").read_text().split()[1:]


def run(out, **options):
    """The rows of its log."""
    grpo.train(GRPOConfig(out=str(out), **SMALL | options))
    return [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]


def weights(out):
    return load_file(Path(out) / "final" / "model.safetensors")


def samples(out, step=0):
    return [
        json.loads(line) for line in (out / "samples" / f"step-{step:06d}.jsonl").read_text().splitlines()
    ]


def test_a_run_leaves_a_model_a_log_with_trls_names_and_samples_to_look_at(tmp_path, capsys):
    rows = run(tmp_path, temperature=1.3, max_steps=3)
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row.keys() >= TRL
        assert all(math.isfinite(value) for value in row.values())
        assert (
            row["completions/min_length"]
            <= row["completions/mean_length"]
            <= row["completions/max_length"]
            <= 40
        )
        assert row["reward"] == pytest.approx(row["rewards/accuracy/mean"] + row["rewards/format/mean"])
        assert row["log_ratio/abs_max"] == row["clip_ratio/region_mean"] == 0  # one update a rollout
        assert row["sampling/sampling_logp_difference/max"] < 1e-4
    assert [row["learning_rate"] for row in rows] == pytest.approx(
        [1e-4, 1e-4 * 2 / 3, 1e-4 / 3]
    )  # of optimiser steps
    assert rows[0]["num_tokens"] < rows[1]["num_tokens"] < rows[2]["num_tokens"]
    before = load_file(resolve("r1ov-tiny-sft") / "model.safetensors")
    assert any(not torch.equal(tensor, before[name].float()) for name, tensor in weights(tmp_path).items())
    r1ov.load(tmp_path / "final")
    page = (tmp_path / "samples" / "step-000000.html").read_text()
    shown = samples(tmp_path)
    assert page.count("data:image/png;base64,") == len(shown) == 2
    assert all(len(one["completions"]) == 4 and one["question"] and one["gold"] for one in shown)
    assert (tmp_path / "curves.png").stat().st_size > 1000
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("step ") and "reward" in line and "length" in line for line in lines) == 3


def test_rewards_are_weighed_and_advantages_are_the_papers(tmp_path, fresh, rewards):
    """Of what samples/ tell of each completion, by hand."""
    rows = run(
        tmp_path,
        model=fresh,
        max_steps=1,
        reward=f"{rewards}:parts",
        reward_funcs=("accuracy", "soft_format"),
        reward_weights=(2.0, 0.5, 0.125),
        wrong_reward=-1.0,
        overlong_cache=30,
    )
    everything = []
    for shown in samples(tmp_path):
        own = shown["completions"]
        for one in own:
            scores = one["scores"]
            assert scores.keys() == {
                "accuracy",
                "soft_format",
                "overlong",
                "parts/tokens",
                "parts/odd",
                "parts/none",
            }
            assert scores["accuracy"] == 0
            assert scores["parts/none"] is None
            assert scores["overlong"] == pytest.approx(
                -max(0, scores["parts/tokens"] - 10) / 30
            )  # L 40, cache 30: free up to 10
            expected = (
                2 * -1
                + 0.5 * scores["soft_format"]
                + scores["overlong"]
                + 0.125 * (scores["parts/tokens"] + scores["parts/odd"])
            )
            assert one["reward"] == pytest.approx(expected)
        values = [one["reward"] for one in own]
        spread = stdev(values)
        for one in own:
            expected = (one["reward"] - mean(values)) / (spread + 1e-4) if spread else 0
            assert one["advantage"] == pytest.approx(expected, rel=1e-5, abs=1e-6)
        everything += values
    assert any(one["advantage"] for shown in samples(tmp_path) for one in shown["completions"])
    assert rows[0]["reward"] == pytest.approx(mean(everything))
    assert rows[0]["reward_std"] == pytest.approx(stdev(everything))
    assert rows[0]["rewards/parts/tokens/mean"] == rows[0]["completions/mean_length"]
    assert "rewards/parts/none/mean" not in rows[0]


def test_dynamic_sampling_replaces_the_groups_without_spread(tmp_path, fresh, rewards):
    rows = run(
        tmp_path,
        model=fresh,
        reward_funcs=(),
        reward=f"{rewards}:of_odd_rows",
        dynamic_sampling=True,
        max_resamplings=9,
    )
    assert [row["frac_reward_zero_std"] for row in rows] == [0, 0]
    shown = [shown for step in (0, 1) for shown in samples(tmp_path, step)]
    assert all(len({one["reward"] for one in group["completions"]}) > 1 for group in shown)
    drawn = [int(number) for number in calls(rewards)[::4]]
    assert drawn == list(range(len(drawn)))  # each prompt once, in order, none left out, none asked again
    assert 5 <= len(drawn) <= 9


def test_dynamic_sampling_gives_up_where_nothing_has_spread(tmp_path, fresh, rewards):
    rows = run(
        tmp_path,
        model=fresh,
        reward_funcs=(),
        reward=f"{rewards}:flat",
        dynamic_sampling=True,
        max_resamplings=2,
        weight_decay=0.0,
    )
    assert [row["frac_reward_zero_std"] for row in rows] == [1, 1]
    assert [row["grad_norm"] for row in rows] == [0, 0]
    assert len(calls(rewards)) == 2 * 3 * 8
    before = load_file(Path(fresh) / "model.safetensors")
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path).items()
    )  # no advantage, no step


def test_completions_that_were_cut_off_teach_nothing_where_they_are_masked(tmp_path, fresh, rewards):
    common = {"model": fresh, "max_completion_length": 6, "reward": f"{rewards}:varied"}
    masked, plain = (
        run(tmp_path / str(is_on), mask_truncated_completions=is_on, **common) for is_on in (True, False)
    )
    for row in masked:
        assert row["completions/clipped_ratio"] == 1
        assert row["reward_std"] > 0
        assert row["loss"] == row["grad_norm"] == row["entropy"] == 0
    assert all(row["grad_norm"] > 0 for row in plain)
    before = load_file(Path(fresh) / "model.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path / "True").items())


def test_a_rollout_is_learned_from_in_parts_and_several_times(tmp_path, fresh, rewards):
    options = {
        "num_iterations": 2,
        "steps_per_generation": 2,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
    }
    rows = run(tmp_path, model=fresh, reward=f"{rewards}:varied", **options)
    assert len(calls(rewards)) == 2 * 16  # two rollouts for six steps, each of two batches
    for index, row in enumerate(rows):
        assert (row["log_ratio/abs_max"] == 0) == (
            index % 4 == 0
        )  # after the first update the policy is no longer the sampler's
        assert 0 <= row["clip_ratio/low_min"] <= row["clip_ratio/low_mean"] <= 1
        assert 0 <= row["clip_ratio/high_mean"] <= row["clip_ratio/high_max"] <= 1
        assert row["clip_ratio/region_mean"] == pytest.approx(
            row["clip_ratio/low_mean"] + row["clip_ratio/high_mean"]
        )
        assert (
            row["sampling/sampling_logp_difference/max"] < 1e-4
        )  # of the sampling policy, not of the one that has moved on
    assert max(row["clip_ratio/region_mean"] for row in rows) > 0
    for name in ("reward", "completions/mean_length", "num_tokens"):
        assert len({row[name] for row in rows[:4]}) == len({row[name] for row in rows[4:]}) == 1


def test_kl_starts_at_exactly_0_and_is_what_the_loss_shows(tmp_path, fresh, rewards):
    """The reference is the model at the start. Completions are equally long here, so that the policy's term
    adds up to nothing.
    """
    rows = run(
        tmp_path,
        model=fresh,
        reward=f"{rewards}:varied",
        beta=0.5,
        learning_rate=1e-4,
        max_steps=3,
        max_completion_length=6,
    )
    assert rows[0]["kl"] == rows[0]["kl_max"] == 0
    assert rows[1]["kl"] > 1e-3
    for row in rows:
        assert row["completions/min_length"] == 6
        assert row["loss"] == pytest.approx(0.5 * row["kl"], abs=1e-6)


def test_correcting_a_sampler_that_agrees_changes_nothing(tmp_path, fresh, rewards):
    """By more than its log-probs differ from the trainer's, 1e-5 at most."""
    rows = [
        run(
            tmp_path / str(is_on),
            model=fresh,
            max_steps=1,
            reward=f"{rewards}:varied",
            importance_sampling_correction=is_on,
        )[0]
        for is_on in (True, False)
    ]
    assert rows[0]["grad_norm"] == pytest.approx(rows[1]["grad_norm"], rel=1e-4)
    assert rows[0]["grad_norm"] > 0


# -- data files, golds, refusals


def data(folder, count, **changed):
    """`count` rows of problem and solution, every other one with a picture. changed: row number, as rN, ->
    other keys.
    """
    Image.new("RGB", (56, 84), "red").save(folder / "red.png")
    rows = [
        {"id": str(n), "problem": f"How much is {n} plus 1?", "solution": str(n + 1)} for n in range(count)
    ]
    for row in rows[::2]:
        row["image"] = "red.png"
    for name, keys in changed.items():
        rows[int(name[1:])] |= keys
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_of_a_file_are_each_asked_once_an_epoch_and_answered_anew(tmp_path, fresh, rewards):
    options = {
        "max_steps": None,
        "num_train_epochs": 2,
        "learning_rate": 1e-12,
        "max_completion_length": 8,
    }  # a policy that stays
    rows = run(tmp_path / "run", model=fresh, data=data(tmp_path, 6), reward=f"{rewards}:varied", **options)
    assert [row["step"] for row in rows] == list(range(1, 7))  # 6 prompts x 4 completions in batches of 8
    for epoch in (calls(rewards)[:24], calls(rewards)[24:]):
        assert sorted(epoch) == sorted(4 * [str(n) for n in range(6)])
    shown = [group for step in range(6) for group in samples(tmp_path / "run", step)]
    assert len({(group["question"], one["text"]) for group in shown for one in group["completions"]}) == 48
    items = read(tmp_path / "run" / "samples" / "step-000000.html").data["items"]
    assert sum(len(item["pictures"]) for item in items) == sum(
        int(group["question"].split()[3]) % 2 == 0 for group in shown[:2]
    )


def test_a_gold_that_cannot_be_scored_leaves_the_baseline_and_is_told(
    tmp_path, fresh, rewards, capsys, monkeypatch
):
    """Whatever its completions' other rewards are."""
    path = data(tmp_path, 24, r7={"solution": "many", "kind": "number"})
    advantages = {}
    monkeypatch.setattr(observe, "GROUPS_SHOWN", 24)
    monkeypatch.setattr(
        observe,
        "show",
        lambda _, groups, numbers, own, *rest: advantages.update(
            zip([group.record.id for group in groups], own, strict=True)
        ),
    )
    rows = run(
        tmp_path / "run", model=fresh, data=path, reward=f"{rewards}:varied", train_batch_size=96, max_steps=1
    )
    assert "1 gold answers do not score 1 against themselves" in capsys.readouterr().err
    assert rows[0]["rewards/varied/std"] > 0
    assert not advantages.pop("7").any()
    assert sum(bool(own.any()) for own in advantages.values()) > 20


def test_a_picture_that_is_missing_drops_its_row_and_another_takes_the_place(tmp_path, rewards):
    path = data(tmp_path, 24, r4={"image": "none.png"})
    run(
        tmp_path / "run",
        data=path,
        reward=f"{rewards}:varied",
        max_steps=6,
        max_completion_length=2,
        max_bad_share=0.5,
    )
    asked = calls(rewards)
    assert len(asked) == 6 * 8
    assert "4" not in asked
    assert len(set(asked)) == 12  # nor is any other asked twice in its stead
    assert all(
        asked[i : i + 4] == [asked[i]] * 4 for i in range(0, len(asked), 4)
    )  # a group is of one prompt


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_generations": 1}, "--num-generations is 1; a group needs 2 or more"),
        ({"temperature": 0.0}, "--temperature is 0.0; it must be above 0"),
        ({"reward_funcs": ("bleu",)}, "there is no 'bleu'"),
        ({"reward_weights": (1.0,)}, "--reward-weights: 1 for 2 rewards"),
        ({"overlong_cache": 41}, "--overlong-cache is 41; it must be from 1 to --max-completion-length"),
        ({"train_batch_size": 6}, "a rollout of 6 completions is no multiple of --num-generations 4"),
        ({"loss_type": "cispo"}, "epsilon_high is None; with loss_type cispo it caps the ratio itself"),
        ({"delta": 1.1}, "delta is 1.1"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"reward": "nowhere.py:f"}, "expected FILE.py:function, with a file that exists"),
        ({"max_num_seqs": 3}, "max_num_seqs is 3"),
        ({"max_length": 60}, "none of the prompts of this rollout can be used"),
        ({"start_share": 1.0}, "--start-share is 1.0; it must be"),
        ({"start_share": 0.5, "lora_r": 2}, "--start-share is of all weights"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(tmp_path, options, words):
    with pytest.raises(UserError) as caught:
        run(tmp_path, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def weights_of(folder):
    return load_file(Path(folder) / "model.safetensors")


@pytest.mark.parametrize("bf16", [False, True])
def test_what_was_learned_goes_a_share_of_the_way_back_to_where_it_began(
    tmp_path, fresh, rewards, monkeypatch, bf16
):
    """Before it is evaluated for the last time; checkpoints hold the weights that learn."""
    options = {"model": fresh, "reward": f"{rewards}:varied", "bf16": bf16, "learning_rate": 1e-3}
    run(tmp_path / "plain", **options)
    seen = []
    monkeypatch.setattr(
        grpo, "evaluate", lambda run: seen.append((run.step, run.answering_model().state_dict()))
    )
    options |= {"start_share": 0.25, "save_steps": 1, "eval_steps": 1}
    run(tmp_path / "back", **options)
    start, plain = weights_of(fresh), weights_of(tmp_path / "plain" / "final")
    expected = {name: weight.lerp(start[name], 0.25) for name, weight in plain.items()}
    assert sum(not torch.equal(start[name], plain[name]) for name in start) > 10
    back = weights_of(tmp_path / "back" / "final")
    assert all(torch.equal(back[name], expected[name]) for name in start)
    assert [step for step, _ in seen] == [0, 1, 2]
    dtype = torch.bfloat16 if bf16 else torch.float32
    assert all(torch.equal(seen[-1][1][name], expected[name].to(dtype)) for name in start)
    shutil.rmtree(tmp_path / "back" / "final")  # as if killed between the last checkpoint and the end
    run(tmp_path / "back", **options)
    back = weights_of(tmp_path / "back" / "final")
    assert all(torch.equal(back[name], expected[name]) for name in start)


def test_two_processes_go_back_to_where_they_began_as_one_does(tmp_path):
    made = {}
    for name, share in (("plain", "0"), ("back", "0.25")):
        command = "train.py --stage grpo --max-steps 1 --per-device-train-batch-size 16 --eval-steps 0"
        command += f" --sample-steps 0 --nproc-per-node 2 --start-share {share} --out {tmp_path / name}"
        subprocess.run([warm.python(), *command.split()], cwd=ROOT, env=ENVIRONMENT, check=True)
        made[name] = weights_of(tmp_path / name / "final")
    start = {name: weight.float() for name, weight in weights_of(resolve("r1ov-tiny-sft")).items()}
    for name, weight in made["plain"].items():
        assert torch.equal(made["back"][name], weight.lerp(start[name], 0.25)), name


def test_too_many_golds_that_cannot_be_scored_a_broken_reward_and_no_rows_refuse_the_run(tmp_path, rewards):
    bad = {"solution": "many", "kind": "number"}
    with pytest.raises(
        UserError,
        match=r"2 of 24 gold answers do not score 1 against themselves, at most 5% may: .*'many' as number",
    ):
        run(tmp_path / "golds", data=data(tmp_path, 24, r3=bad, r9=bad))
    with pytest.raises(UserError, match=r"--reward: .*ZeroDivisionError"):
        run(tmp_path / "broken", reward=f"{rewards}:broken")
    with pytest.raises(UserError, match=r"none of 24 rows can be used; .* more than the 0 that leave room"):
        run(tmp_path / "long", data=data(tmp_path, 24), max_length=40)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} <= {"__pycache__"}


def test_a_flag_of_the_other_stage_or_a_wrong_one_is_one_line_from_the_command_line():
    for words in (["--num-generations", "1"], ["--num-generation", "4"], ["--reward-funcs", "bleu"]):
        done = subprocess.run(
            [warm.python(), "train.py", "--stage", "grpo", *words],
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: ")


# -- killed


def test_killed_six_times_at_random_a_run_ends_with_the_same_bits(tmp_path):
    """Dynamic sampling included: how far the prompts were drawn is in the checkpoint, and so is nothing of a
    rollout half learned from.
    """
    done = subprocess.run(
        [warm.python(), "-m", "tests.killed_runs", "grpo", str(tmp_path), "6", "1"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.split()[1]) >= 3, done.stdout  # kills that met a run at work
    assert done.stderr.count("resume  after step") >= 1
    assert (tmp_path / "whole/final/model.safetensors").read_bytes() == (
        tmp_path / "killed/final/model.safetensors"
    ).read_bytes()
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    ]
    for rows in logs:
        for row in rows:
            for name in [name for name in row if name.endswith(("_ms", "_seconds", "_per_second"))]:
                del row[name]
    assert logs[0] == logs[1]
    assert len({row["grad_norm"] for row in logs[0]}) > 5
