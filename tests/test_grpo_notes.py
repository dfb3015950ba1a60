"""What GRPO says beside its numbers: warnings of one line, and how fast its rollouts are."""

import json
from types import SimpleNamespace

import pytest

from r1ov.common.processes import World
from r1ov.data.playground import FAMILIES
from r1ov.train import grpo
from r1ov.train.run import heldout, observe
from r1ov.train.run.config import GRPOConfig
from tests.test_grpo_run import SMALL


def test_twenty_rollouts_in_a_row_that_teach_little_are_worth_a_line_that_says_what_to_do(capsys):
    run = SimpleNamespace(extra={}, world=World())
    shares = [0.9] * 19 + [0.8] + [0.81] * 41
    said = []
    for share in shares:
        observe.note_flat(run, share)
        said.append(capsys.readouterr().err)
    assert [number for number, text in enumerate(said, 1) if text] == [40, 60]
    assert said[39].count("note") == 1
    assert max(map(len, said[39].splitlines())) <= 120
    assert said[39].startswith("note    in 20 rollouts in a row over 80% of the groups had equal rewards")
    assert "--dynamic-sampling" in said[39]
    assert run.extra == {"flat_rollouts": 41}  # a checkpoint keeps the count


def test_the_process_that_is_not_the_main_one_says_nothing(capsys):
    observe.note_flat(SimpleNamespace(extra={"flat_rollouts": 19}, world=World(1, 2)), 1.0)
    assert not capsys.readouterr().err


def test_what_broke_is_said_at_the_end_though_the_whole_rose(capsys):
    first = {"eval_accuracy": 0.7, "eval_accuracy/number": 0.6, "eval_accuracy/yes_no": 0.95}
    last = {"eval_accuracy": 0.8, "eval_accuracy/number": 0.9, "eval_accuracy/yes_no": 0.5}
    heldout.tell_parts(first, last)
    assert capsys.readouterr().err == "parts   number 60% -> 90%, yes_no 95% -> 50% (fell)\n"


def test_held_out_answers_are_told_by_family_and_kind(tmp_path, capsys):
    quick = {"max_steps": 1, "eval_steps": 1, "eval_samples": 14, "eval_max_new_tokens": 4}
    grpo.train(GRPOConfig(out=str(tmp_path), **SMALL | quick | {"max_completion_length": 4}))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    first, last = (row for row in rows if "eval_accuracy" in row)
    parts = {name.partition("/")[2] for name in first if "y/" in name}
    assert parts == {name.partition("/")[2] for name in last if "y/" in name}
    assert {*FAMILIES, "number", "bbox"} <= parts
    assert "parts   counting 0% -> 0%, number 0% -> 0%" in capsys.readouterr().err


def test_a_rollouts_speed_and_the_samplers_weights_are_shown(tmp_path, capsys):
    quick = {
        "max_steps": 1,
        "max_completion_length": 4,
        "sample_steps": 0,
        "importance_sampling_correction": True,
    }
    grpo.train(GRPOConfig(out=str(tmp_path), **SMALL | quick))
    shown = capsys.readouterr().err
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert row["rollout_tokens_per_second"] == pytest.approx(
        8 * row["completions/mean_length"] / row["generation_seconds"]
    )
    assert "| gen " in next(line for line in shown.splitlines() if line.startswith("step 1/1"))
    weights = [row[f"sampling/importance_sampling_ratio/{name}"] for name in ("min", "mean", "max")]
    assert weights == sorted(weights)
    assert weights[-1] <= 2
    assert weights == pytest.approx([1, 1, 1], abs=1e-4)  # a sampler that agrees
