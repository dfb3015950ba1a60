"""Where other GRPO trainers went wrong, by their issue trackers; for each the test that fails when it is put
back.

"update" is test_grpo_update.py, "run" test_grpo_run.py, "loss" test_grpo_loss*.py, "advantages"
test_grpo_advantages.py, no name this file.

 1  loss depends on micro-batches or ranks     update: test_loss_metrics_and_every_gradient_...;
                                               loss: test_the_cut_into_...
 2  a part taken for the whole batch           update: test_advantages_and_what_is_logged_...;
                                               test_two_processes_...
 3  groups mixed up                            test_each_row_keeps_...; test_the_same_question_twice_...
 4  a missing picture is replaced by another   run: test_a_picture_that_is_missing_...
 5  the same completions drawn again           test_completions_of_a_prompt_differ_...;
                                               test_the_same_question_on_...; run: test_rows_of_...
 6  groups without spread go unnoticed         advantages: test_reward_metrics_...;
                                               run: test_dynamic_sampling_gives_up_...
 7  temperature missing in one of the passes   test_policy_old_and_reference_...;
                                               update: test_sampler_and_trainer_..., transformers
 8  log-softmax in bfloat16                    test_log_probs_of_bfloat16_states_...;
                                               loss: test_ratios_are_taken_in_float32
 9  dropout in one pass and not the other      test_the_model_computes_the_same_in_training_...
10  old log-probs of other shapes than new     run: test_a_rollout_is_learned_from_...,
                                               test_a_run_leaves_... (ratio exactly 1)
11  sampler and trainer disagree               update: test_sampler_and_trainer_...
12  off by one                                 test_a_token_is_scored_by_the_state_before_it;
                                               update: transformers
13  the stop token masked                      test_the_stop_token_is_trained_...
14  cut off or stopped, confused               test_a_row_that_stops_at_its_very_last_token_...
15  placeholders of pictures sampled           test_engine.py: test_placeholders_...;
                                               test_a_picture_is_never_part_of_a_completion
16  prompts cut                                test_a_prompt_too_long_is_left_out_...;
                                               run: one line where none is left
17  wrong positions                            update: test_the_trainers_log_probs_are_those_of_transformers
18  text alone on one process hangs            update: test_loss_metrics_... (prompts with odd numbers),
                                               test_those_updates_...
19  uneven rollouts hang                       test_two_processes_...
20  checkpointing turns the cache off          test_activation_checkpointing_changes_nothing
21  resume shifts the window                   run: test_killed_six_times_...;
                                               test_two_processes_... goes on with one
22  NaN in one place                           test_a_step_that_is_not_finite_is_skipped_...;
                                               test_sharding.py: in one process, in all
23  schedule counted in rollouts               test_the_learning_rate_falls_with_every_update
24  KL unseen                                  test_kl_and_ratios_are_logged_however_small_beta_is
25  rewards that fail in silence               run: test_too_many_golds_..., test_a_gold_that_cannot_...;
                                               test_reward_worker.py
"""

# ruff: noqa: F811  fixtures are imported

import json
import math
import shutil
import subprocess
from dataclasses import replace
from statistics import stdev

import pytest
import torch

import r1ov
from r1ov.common.processes import World
from r1ov.data.formats.records import BadRow
from r1ov.data.pack import bundle
from r1ov.data.processor import IGNORED
from r1ov.engine.generate import stop_ids_of
from r1ov.train import grpo
from r1ov.train.grpo import add_logprobs, completion_logprobs
from r1ov.train.rollout import Group, encode_prompt, gather_outcomes, sample
from r1ov.train.run import observe
from r1ov.train.run.config import GRPOConfig
from tests import grpo_worker as worker
from tests import warm
from tests.test_grpo_run import (
    REWARDS,
    SMALL,
    fresh,  # noqa: F401  a fixture
    rewards,  # noqa: F401  a fixture
    run,
    samples,
    weights,
)
from tests.test_resume import ENVIRONMENT, ROOT


@pytest.fixture(scope="module")
def tiny():
    return r1ov.load("r1ov-tiny")


def rolled(tiny, numbers, seed=1, names=None, **options):
    """Completions of the worker's prompts, as lists of ids, by prompt."""
    model, processor = tiny
    config = GRPOConfig(**{"num_generations": 4, "max_completion_length": 12, "temperature": 3.0} | options)
    prompts = []
    for name, number in zip(names or numbers, numbers, strict=True):
        record, prompt = worker.prompt(processor, number)
        prompts.append(Group(number=name, record=record, prompt=prompt))
    return sample(model, processor, prompts, config, seed)


def ids(groups):
    return [[tuple(completion.token_ids) for completion in group.completions] for group in groups]


# -- groups


def test_each_row_keeps_its_own_prompt_completion_and_advantage(tiny):
    """Through dealing, shuffling, packing: by its tokens each row is found again in its own group."""
    _, processor = tiny
    bare = worker.Bare(None, processor, World(), GRPOConfig(**worker.COMMON))
    groups = worker.groups(processor, 6, range(6))
    everyone, advantages, _ = worker.compared(bare, groups[::-1])
    expected = {
        tuple(group.prompt.input_ids.tolist() + completion.token_ids): (
            advantage,
            completion.logprobs,
            group.number,
        )
        for group, own in zip(groups, advantages, strict=True)
        for completion, advantage in zip(group.completions, own, strict=True)
    }
    assert len(expected) == 24
    found = 0
    parts = grpo.deal(bare, groups[::-1], everyone, advantages)
    for pack in worker.packs_of([one for part in parts for one in part][::-1], processor, 300):
        for whole, own, row in worker.rows_in(pack):
            advantage, logprobs, number = expected[whole]
            assert pack["advantages"][row] == pytest.approx(advantage)
            assert number != 4 or advantage == 0  # its gold cannot be scored
            actual = pack["sampler_logprobs"][own].tolist()
            assert actual == pytest.approx([0.0] * (len(actual) - len(logprobs)) + logprobs)
            found += 1
    assert found == 24


def test_completions_of_a_prompt_differ_and_those_of_the_next_rollout_too(tiny):
    first, again, later = (ids(rolled(tiny, (0, 1), seed)) for seed in (1, 1, 2))
    assert first == again
    assert len({completion for rollout in (first, later) for group in rollout for completion in group}) == 16


def test_the_same_question_twice_in_a_rollout_is_two_groups(tiny):
    one, other = rolled(tiny, (1, 1), names=(7, 8))
    assert (one.number, other.number) == (7, 8)
    assert not {*ids([one])[0]} & {*ids([other])[0]}


def test_the_same_question_on_two_processes_gets_different_completions(tiny):
    """A file of fewer rows than a rollout has prompts asks a row twice; two processes must not give it the
    same answers twice.
    """
    together = ids(rolled(tiny, (1, 1), names=(7, 8)))
    apart = [ids(rolled(tiny, (1,), names=(name,)))[0] for name in (7, 8)]
    assert apart == together


def test_where_nothing_has_spread_a_rollout_is_no_larger_than_ever(tmp_path, fresh, rewards, monkeypatch):
    sizes = []
    monkeypatch.setattr(observe, "show", lambda run, groups, *_: sizes.append(len(groups)))
    options = {
        "reward": f"{rewards}:flat",
        "reward_funcs": (),
        "dynamic_sampling": True,
        "max_steps": 1,
        "max_completion_length": 4,
    }
    run(tmp_path, model=fresh, **options)
    assert sizes == [2]


def test_minibatches_are_of_one_size_though_prompts_were_replaced(tiny):
    _, processor = tiny
    config = GRPOConfig(num_generations=2, steps_per_generation=4, train_batch_size=2, sample_steps=0)
    bare = worker.Bare(None, processor, World(), config)
    groups = [
        replace(group, completions=group.completions[:2], scores=group.scores[:2], rewards=group.rewards[:2])
        for group in worker.groups(processor, 6, range(0, 6, 2))
    ]
    groups.append(replace(groups[0], number=8))
    parts = grpo.deal(bare, groups, gather_outcomes(World(), groups), torch.zeros(4, 2))
    assert [sum(len(own) for _, own in part) for part in parts] == [2] * 4


def test_each_reward_is_logged_with_trls_deviation_also_one_that_the_first_completion_has_not(
    tmp_path, fresh, rewards
):
    rewards.write_text(
        REWARDS + "def some(prompt, completion, row, info):\n"
        "    return {'ab'[int(row['id']) % 2]: len(completion) % 7}\n"
    )
    row = run(tmp_path, model=fresh, reward=f"{rewards}:some", max_steps=1, max_completion_length=6)[0]
    for name, own in zip("ab", samples(tmp_path), strict=True):
        assert row[f"rewards/some/{name}/std"] == pytest.approx(
            stdev(one["scores"][f"some/{name}"] for one in own["completions"])
        )


# -- log-probs


def trained_rows(tiny, **options):
    return worker.part_of(rolled(tiny, (0, 1, 2), **options), advantage=1.0)


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_policy_old_and_reference_are_all_read_at_the_sampling_temperature(tiny, temperature):
    """One model in all three parts: every ratio is 1 and KL is 0, exactly; at a temperature forgotten once,
    neither.
    """
    model, processor = tiny
    config = GRPOConfig(temperature=temperature, beta=0.1, num_generations=4)
    rows = trained_rows(tiny, temperature=temperature)
    bare = worker.Bare(model, processor, World(), config)
    for judge_temperature in (temperature, 1.0):
        packs, counts = grpo.make_minibatch(bare, rows)
        for name in ("old_logprobs", "ref_logprobs"):
            judge = replace(bare, config=replace(config, temperature=judge_temperature))
            add_logprobs(judge, packs, name, model)
        model.zero_grad()
        metrics = grpo.accumulate_gradients(bare, packs, counts)
        gaps = [metrics["log_ratio/abs_max"], metrics["kl_max"]]
        assert gaps == [0, 0] if judge_temperature == temperature else min(gaps) > 0.01
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    ("sampler", "weight"), [(-math.log(3), 2.0), (math.log(2), 0.5), (-math.log(1.5), 1.5), (0.0, 1.0)]
)
def test_where_the_sampler_thought_otherwise_tokens_weigh_by_how_much_up_to_the_cap(tiny, sampler, weight):
    """A sampler to which every token was as many times less likely: loss and gradients are so many times
    larger, twice at most.
    """
    model, processor = tiny
    bare = worker.Bare(model, processor, World(), GRPOConfig(num_generations=4))
    packs, counts = grpo.make_minibatch(bare, trained_rows(tiny))
    add_logprobs(bare, packs, "old_logprobs", model)
    (pack,) = packs
    pack["sampler_logprobs"] = pack["old_logprobs"] + sampler
    found = []
    for is_on in (True, False):
        config = GRPOConfig(
            importance_sampling_correction=is_on, importance_sampling_cap=2.0, num_generations=4
        )
        model.zero_grad()
        metrics = grpo.accumulate_gradients(replace(bare, config=config), packs, counts)
        found.append((metrics["loss"], model.model.norm.weight.grad.clone()))
        assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx(abs(sampler), abs=1e-5)
    (corrected, slopes), (plain, plain_slopes) = found
    assert corrected == pytest.approx(weight * plain, rel=1e-4)
    torch.testing.assert_close(
        slopes, weight * plain_slopes, rtol=1e-3, atol=1e-5 * float(plain_slopes.abs().max())
    )
    model.zero_grad(set_to_none=True)


def test_log_probs_of_bfloat16_states_are_float32_numbers():
    """Judge: the same logits in float64. A log-softmax in bfloat16 would be off by up to 1/8; so are the
    logits, bfloat16 themselves.
    """
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(30, 64, generator=generator).bfloat16(),
        torch.randn(5000, 64, generator=generator).bfloat16(),
    )
    labels = torch.randint(0, 5000, (30,), generator=generator)
    logprobs, _ = completion_logprobs(hidden, weight, labels, 1.0)
    logits = hidden[:-1] @ weight.T
    expected = logits.double().log_softmax(-1).gather(1, labels[1:, None])[:, 0]
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs[1:].double(), expected, rtol=0, atol=1e-4)


def test_the_model_computes_the_same_in_training_as_in_sampling(tiny):
    model, processor = tiny
    assert not any(isinstance(module, torch.nn.Dropout) and module.p for module in model.modules())
    bare = worker.Bare(model, processor, World(), GRPOConfig(num_generations=4))
    packs = worker.packs_of(trained_rows(tiny), processor, 10_000)
    for mode in (True, False):
        add_logprobs(bare, packs, str(mode), model.train(mode))
    assert torch.equal(packs[0]["True"], packs[0]["False"])


def test_a_token_is_scored_by_the_state_before_it():
    """A model made by hand: the state at place t is sure that token t + 1 comes next, at odds of e^5 to the
    other three.
    """
    tokens = torch.tensor([2, 0, 3, 1, 1])
    hidden = torch.nn.functional.one_hot(torch.cat((tokens[1:], tokens[:1])), 4).float()
    labels = torch.tensor([IGNORED, IGNORED, 3, 1, 2])
    logprobs, entropies = completion_logprobs(hidden, 5 * torch.eye(4), labels, 1.0)
    right, wrong = -torch.tensor(1 + 3 * torch.e**-5).log(), -torch.tensor(torch.e**5 + 3).log()
    torch.testing.assert_close(logprobs, torch.stack((0 * right, 0 * right, right, right, wrong)))
    assert (entropies[2:] > 0).all()
    assert entropies[:2].tolist() == [0, 0]


# -- stop tokens, limits, prompts


def test_the_stop_token_is_trained_whichever_of_the_two_it_is(tiny):
    """In Qwen2.5-VL one of them is the padding token too: a mask made of token values would lose it."""
    _, processor = tiny
    group = worker.groups(processor, 1, range(1))[0]
    assert len(stop_ids_of(processor)) == 2
    config = GRPOConfig(num_generations=2, mask_truncated_completions=True)
    bare = worker.Bare(None, processor, World(), config)
    for stop in stop_ids_of(processor):
        ended = replace(group.completions[0], token_ids=[5, stop, 6, stop], finish_reason="stop")
        two = replace(group, completions=[ended, replace(ended, finish_reason="length")])
        (((prompt, (trained, cut_off)),),) = grpo.deal(
            bare, [two], gather_outcomes(World(), [two]), torch.zeros(1, 2)
        )
        (whole,) = bundle(prompt, [trained])
        assert whole.labels[-4:].tolist() == [5, stop, 6, stop]
        assert (whole.labels[:-4] == IGNORED).all()
        (whole,) = bundle(prompt, [cut_off])
        assert (whole.labels == IGNORED).all()


def test_a_row_that_stops_at_its_very_last_token_was_not_cut_off(tiny):
    stop_ids = stop_ids_of(tiny[1])
    whole = rolled(tiny, (1,), temperature=1.0, max_completion_length=60)[0].completions[0]
    assert (whole.finish_reason, whole.token_ids[-1] in stop_ids) == ("stop", True)
    for limit, reason in ((whole.completion_tokens, "stop"), (whole.completion_tokens - 1, "length")):
        again = rolled(tiny, (1,), temperature=1.0, max_completion_length=limit)[0].completions[0]
        assert again.finish_reason == reason
        assert again.token_ids == whole.token_ids[:limit]


def test_a_picture_is_never_part_of_a_completion(tiny):
    """At a temperature at which every token is as likely as any other."""
    config = tiny[1].config
    vision = {
        config.image_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
        config.video_token_id,
    }
    seen = {
        token
        for group in ids(rolled(tiny, (0, 1, 2), temperature=1e5, max_completion_length=200))
        for row in group
        for token in row
    }
    assert len(seen) > 500
    assert not seen & vision


def test_a_prompt_too_long_is_left_out_and_never_cut(tiny):
    _, processor = tiny
    record, whole = worker.prompt(processor, 0)
    assert encode_prompt(processor, record, len(whole)).input_ids.tolist() == whole.input_ids.tolist()
    with pytest.raises(BadRow) as left_out:
        encode_prompt(processor, record, len(whole) - 1)
    assert left_out.value.dropped


# -- the loop


def numbers_of(rows):
    return [
        {name: value for name, value in row.items() if not name.endswith(("_ms", "_seconds", "_per_second"))}
        for row in rows
    ]


def test_two_processes_roll_out_and_learn_what_one_does_and_one_goes_on_from_their_checkpoint(
    tmp_path, fresh, rewards
):
    """Odd rows alone have spread, so that the processes' shares are uneven. Float32 sums in another order
    move weights by 1e-7, which no draw notices here; the gap shows in the fourth digit of a gradient at
    most."""
    options = {
        "model": fresh,
        "reward": f"{rewards}:of_odd_rows",
        "max_steps": 4,
        "dynamic_sampling": True,
        "max_resamplings": 9,
    }
    options |= {
        "num_iterations": 2,
        "max_completion_length": 10,
        "save_steps": 2,
        "learning_rate": 1e-5,
        "weight_decay": 0.0,
    }
    whole = numbers_of(run(tmp_path / "one", **options))
    flags = {**SMALL, **options, "out": tmp_path / "two", "save_total_limit": 9}
    words = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in flags.items()
    ]
    launcher = ["-m", "tests.ranks", "train", "2", "--stage", "grpo"]
    done = subprocess.run(
        [warm.python(), *launcher, *words],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    two = numbers_of(json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines())
    for folder in ("final", "checkpoints/step-4"):
        shutil.rmtree(tmp_path / "two" / folder)
    resumed = numbers_of(run(tmp_path / "two", **options))
    for rows in (two, resumed):
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        for row, expected in zip(rows, whole, strict=True):
            assert row == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert resumed[:2] == two[:2]  # it did go on
    assert all(row["grad_norm"] > 0.1 for row in whole)


def test_activation_checkpointing_changes_nothing(tmp_path, fresh, rewards):
    """Sampling goes through the same modules, with its cache, and no step of it is computed twice."""
    options = {"model": fresh, "reward": f"{rewards}:varied", "max_steps": 2, "max_completion_length": 10}
    plain, full = (
        numbers_of(run(tmp_path / mode, activation_checkpointing=mode, **options)) for mode in ("off", "full")
    )
    assert plain[0]["grad_norm"] > 0
    assert plain == full


def test_a_step_that_is_not_finite_is_skipped_and_the_run_goes_on(tmp_path, fresh, rewards, monkeypatch):
    real, seen = grpo.policy_loss, []

    def policy_loss(*arguments, **options):
        loss, metrics = real(*arguments, **options)
        seen.append(loss)
        return (loss * torch.nan if len(seen) == 1 else loss), metrics

    monkeypatch.setattr(grpo, "policy_loss", policy_loss)
    options = {
        "model": fresh,
        "reward": f"{rewards}:varied",
        "max_completion_length": 6,
        "lr_scheduler_type": "constant",
    }
    rows = run(tmp_path / "nan", **options)
    assert rows[0]["grad_norm"] is None  # JSON has no NaN
    assert rows[1]["grad_norm"] > 0
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "nan").values())


def test_the_learning_rate_falls_with_every_update(tmp_path):
    """Five updates, four of them of one rollout; the schedule ends where the run does."""
    options = {
        "num_iterations": 2,
        "steps_per_generation": 2,
        "max_steps": 5,
        "max_completion_length": 2,
        "learning_rate": 1e-5,
    }
    rows = run(tmp_path, **options)
    assert [row["learning_rate"] for row in rows] == pytest.approx(
        [1e-5 * share for share in (1, 0.8, 0.6, 0.4, 0.2)]
    )


def test_kl_and_ratios_are_logged_however_small_beta_is(tmp_path):
    rows = run(tmp_path, beta=1e-9, max_completion_length=4)
    assert all({"kl", "kl_max", "log_ratio/abs_mean", "log_ratio/abs_max"} <= row.keys() for row in rows)
    assert len(samples(tmp_path)) == 2
