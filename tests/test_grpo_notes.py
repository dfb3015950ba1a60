"""What GRPO says beside its numbers: warnings of one line, and how fast its rollouts are."""

import json
from types import SimpleNamespace

import pytest

from r1ov.common.processes import World
from r1ov.train import grpo
from r1ov.train.run import observe
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
