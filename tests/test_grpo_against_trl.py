"""From completions and rewards to loss, gradients and metrics: ours beside TRL's own code, which is called
here and not derived again.

TRL's `GRPOTrainer` is made without its constructor. Its `_generate`, `_generate_and_score_completions` and
`_compute_loss` run as they are; only what would need a transformer is put in: the completions, the rewards,
and log-probs, which on both sides come of one table of states and one head (a token's state says what follows
it). Ours goes the whole way of the trainer: `group_advantages`, `deal`, `make_packs`, `policy_loss`.

Where we differ on purpose, these batches stay away, or a test below says so: log-ratios are clamped to +-20
before exp; the KL term's ratio is the token's own also with one ratio a completion; an accuracy that is None
voids a completion whatever its other rewards say; a group without spread, also one with a single reward, gets
exactly 0 and counts as such also under `scale_rewards` batch; kl, entropy and clip ratios are means over the
tokens of the step, not of its micro-batches; clip_ratio/low_min leaves out rows that are masked whole.
"""

import random
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl.trainer.grpo_trainer import GRPOTrainer

import r1ov
from r1ov.common.processes import World
from r1ov.data.formats.records import Record
from r1ov.data.pack import num_trained
from r1ov.data.processor import IGNORED, Encoded
from r1ov.engine import Completion
from r1ov.train import grpo
from r1ov.train.grpo import COUNTS, completion_logprobs, policy_loss
from r1ov.train.loss import group_advantages
from r1ov.train.rollout import Group, total_reward
from r1ov.train.run.config import GRPOConfig
from r1ov.train.run.observe import combine_metrics
from tests.grpo_worker import Bare, compared, packs_of

EACH, PROMPTS, LIMIT, VOCAB, WIDTH = 4, 4, 9, 40, 12
STOP, PAD = 1, 0
WEIGHTS = {"right": 1.0, "formed": 0.5}
LOSSES = {
    "grpo": {"loss_type": "grpo"},
    "dapo": {"loss_type": "dapo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.1},
    "gspo": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon": 0.03,
        "epsilon_high": 0.05,
    },
    "dapo by sequence": {
        "loss_type": "dapo",
        "importance_sampling_level": "sequence",
        "epsilon": 0.03,
        "use_bias_correction_kl": False,
    },
    "cispo by sequence": {
        "loss_type": "cispo",
        "epsilon_high": 1.02,
        "importance_sampling_level": "sequence",
    },
}
OPTIONS = {
    "on policy": {"num_iterations": 1},
    "off policy": {},
    "clip higher": {"epsilon": 0.1, "epsilon_high": 0.28},
    "two-sided clip": {"delta": 1.3},
    "KL times ratio": {"beta": 0.2},
    "KL": {"beta": 0.2, "use_bias_correction_kl": False},
    "correction": {"importance_sampling_correction": True, "importance_sampling_cap": 1.05},
    "truncated masked": {"mask_truncated_completions": True},
    "all at once": {
        "epsilon_high": 0.28, "delta": 1.4, "beta": 0.1, "importance_sampling_correction": True,
        "importance_sampling_cap": 1.1,
        "mask_truncated_completions": True, "scale_rewards": "batch", "temperature": 0.8,
    },
}  # fmt: skip


class Policy:
    """States of tokens, (V, D), and a head, (V, D): what follows a token depends on it alone."""

    training, is_gradient_checkpointing = True, False  # what TRL asks of a model

    def __init__(self, seed, like=None, noise=1.0):
        draw = torch.Generator().manual_seed(seed)
        self.states, self.head = (
            noise * torch.randn(VOCAB, WIDTH, generator=draw) / WIDTH**0.25 for _ in range(2)
        )
        if like:
            self.states, self.head = self.states + like.states, self.head + like.head

    def logprobs(self, ids, temperature):
        """(B, T - 1) log-probs and entropies of the tokens after the first."""
        table = (self.states[ids[:, :-1]] @ self.head.T / temperature).log_softmax(-1)
        return table.gather(-1, ids[:, 1:, None]).squeeze(-1), -(table.exp() * table).sum(-1)


class Batch:
    """Ragged prompts and completions of three policies, some cut off, with two rewards, of which some do not
    apply.
    """

    def __init__(self, seed, temperature=1.0):
        draw = random.Random(seed)
        self.policy = Policy(seed)
        self.old = Policy(seed + 100, self.policy, noise=0.2)
        self.ref = Policy(seed + 200, self.policy, noise=0.2)
        self.policy.states.requires_grad_()
        self.policy.head.requires_grad_()
        self.prompts, self.completions, self.sampler, self.rewards = [], [], [], []
        for prompt in range(PROMPTS):
            ids = [draw.randrange(2, VOCAB) for _ in range(draw.randint(2, 7))]
            for _ in range(EACH):
                is_cut = draw.random() < 0.25
                length = LIMIT if is_cut else draw.randint(1, LIMIT)
                completion = [draw.randrange(2, VOCAB) for _ in range(length)]
                completion = completion if is_cut else [*completion[:-1], STOP]
                row = torch.tensor([ids + completion])
                sampled = self.old.logprobs(row, temperature)[0][0, -length:] + torch.tensor(
                    [draw.gauss(0, 0.1) for _ in completion]
                )
                self.prompts.append(ids)
                self.completions.append(completion)
                self.sampler.append(sampled.tolist())
                scores = {"right": float(draw.random() < 0.5), "formed": draw.choice((0.0, 0.25, 1.0))}
                if draw.random() < 0.15:
                    scores["formed"] = None
                if draw.random() < 0.1:
                    scores = dict.fromkeys(scores)
                self.rewards.append(
                    {"right": 1.0, "formed": 0.5} if prompt == 2 else scores
                )  # a group without spread


def trl(batch, config, parts):
    """(loss, gradients, metrics, advantages) of TRL's code, the rollout learned from in one step of `parts`
    micro-batches.
    """
    trainer = object.__new__(GRPOTrainer)
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), num_processes=1, process_index=0, sync_gradients=True,
        is_main_process=True,
        gather=lambda tensor: tensor, reduce=lambda tensor, reduction: tensor,
    )  # fmt: skip
    has_correction = config.importance_sampling_correction
    args = SimpleNamespace(
        per_device_train_batch_size=len(batch.prompts), steps_per_generation=parts,
        gradient_accumulation_steps=parts, delta=config.delta,
        use_bias_correction_kl=config.use_bias_correction_kl, report_to=[],
        gradient_checkpointing_kwargs=None,
    )  # fmt: skip

    def logprobs(model, ids, mask, keep, **_):
        found, entropies = model.logprobs(ids, config.temperature)
        return found[:, -keep:], entropies[:, -keep:], None

    trainer.__dict__ |= {
        "accelerator": accelerator, "args": args, "model": batch.old, "ref_model": batch.ref,
        "use_vllm": has_correction,
        "vllm_importance_sampling_correction": has_correction,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_min": None,
        "vllm_importance_sampling_clip_max": config.importance_sampling_cap,
        "num_generations": EACH, "num_iterations": config.num_iterations,
        "current_gradient_accumulation_steps": parts,
        "environment_factories": None, "environments": None, "tools": None, "rollout_func": None,
        "pad_to_multiple_of": None,
        "_tokenizer": SimpleNamespace(pad_token_id=PAD), "eos_token_ids": [STOP],
        "processing_class": SimpleNamespace(
            batch_decode=lambda ids, skip_special_tokens: [""] * len(ids)), "_pending_extra_logs": {},
            "_pending_metrics": {},
        "mask_truncated_completions": config.mask_truncated_completions,
        "multi_objective_aggregation": "sum_then_normalize",
        "scale_rewards": config.scale_rewards, "reward_func_names": list(WEIGHTS),
        "reward_funcs": list(WEIGHTS),
        "reward_weights": torch.tensor(list(WEIGHTS.values())),
        "state": SimpleNamespace(num_input_tokens_seen=0, global_step=0),
        "_metrics": {"train": defaultdict(list)},
        "_logs": defaultdict(list) | {"rewards": defaultdict(list), "extra": defaultdict(list)},
        "loss_type": config.loss_type, "beta": config.beta, "epsilon_low": config.epsilon,
        "max_completion_length": LIMIT,
        "epsilon_high": config.epsilon if config.epsilon_high is None else config.epsilon_high,
        "top_entropy_quantile": 1.0,
        "importance_sampling_level": config.importance_sampling_level, "off_policy_mask_threshold": None,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False, "log_multimodal": False, "_is_vlm": False,
        "_get_per_token_logps_and_entropies": logprobs,
        "_tokenize_prompts": lambda prompts: (batch.prompts, None, {}),
        "_generate_single_turn": lambda *_: (batch.completions, batch.sampler),
        "_calculate_rewards": lambda *_: torch.tensor(
            [[float("nan") if value is None else value for value in scores.values()]
             for scores in batch.rewards]),
    }  # fmt: skip
    made = trainer._generate_and_score_completions([{"prompt": ""} for _ in batch.prompts])
    size = len(batch.prompts) // parts
    losses = []
    for start in range(0, len(batch.prompts), size):
        part = {name: value[start : start + size] if value.dim() else value for name, value in made.items()}
        losses.append(trainer._compute_loss(batch.policy, part))
    gradients = torch.autograd.grad(sum(losses), [batch.policy.states, batch.policy.head])
    metrics = {name: sum(values) / len(values) for name, values in trainer._metrics["train"].items()}
    return sum(losses), gradients, metrics, made["advantages"]


def groups_of(batch):
    groups = []
    for number in range(PROMPTS):
        members = range(number * EACH, (number + 1) * EACH)
        ids = torch.tensor(batch.prompts[members[0]])
        completions = [
            Completion(
                text="", token_ids=batch.completions[index], logprobs=batch.sampler[index],
                finish_reason="stop" if batch.completions[index][-1] == STOP else "length",
                prompt_tokens=len(ids),
            ) for index in members
        ]  # fmt: skip
        rewards = [total_reward(batch.rewards[index], WEIGHTS) for index in members]
        groups.append(
            Group(
                number=number, record=Record(messages=[], format="", where=""), completions=completions,
                prompt=Encoded(input_ids=ids, position_ids=torch.arange(len(ids)).expand(3, -1)),
                scores=[batch.rewards[index] for index in members],
                rewards=torch.tensor([float("nan") if one is None else one for one in rewards],
                dtype=torch.float64),
            )
        )  # fmt: skip
    return groups


def ours(batch, config, processor):
    run = Bare(None, processor, World(), config)
    everyone, advantages, metrics = compared(run, groups_of(batch))
    (part,) = grpo.deal(run, groups_of(batch), everyone, advantages)
    packs = packs_of(part, processor, 60)  # however it is cut
    assert len(packs) > 1
    count = sum(num_trained(pack["labels"]) for pack in packs)
    counts = dict(zip(COUNTS, (count, len(batch.prompts), count), strict=True))

    def known(policy, pack):
        logprobs = policy.logprobs(pack["input_ids"][None], config.temperature)[0][0]
        return torch.nn.functional.pad(logprobs, (1, 0)).detach().masked_fill(pack["labels"] == IGNORED, 0.0)

    losses, shares = [], []
    for pack in packs:
        is_off_policy = config.num_iterations > 1 or config.importance_sampling_correction  # as TRL has it
        if is_off_policy:
            pack["old_logprobs"] = known(batch.old, pack)
        if config.beta:
            pack["ref_logprobs"] = known(batch.ref, pack)
        hidden = batch.policy.states[pack["input_ids"]]
        scored = completion_logprobs(hidden, batch.policy.head, pack["labels"], config.temperature)
        loss, share = policy_loss(*scored, pack, counts, config)
        losses.append(loss)
        shares.append(share)
    gradients = torch.autograd.grad(sum(losses), [batch.policy.states, batch.policy.head])
    return sum(losses), gradients, metrics | combine_metrics(shares), advantages.flatten()


@pytest.fixture(scope="module")
def processor():
    return r1ov.load("r1ov-tiny")[1]


def config_of(**options):
    return GRPOConfig(
        **{
            "num_generations": EACH,
            "max_completion_length": LIMIT,
            "num_iterations": 2,
            "sample_steps": 0,
        }
        | options
    )


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_gradients_advantages_and_metrics_equal_trls_own(processor, name, option):
    options = OPTIONS[option] | LOSSES[name]
    if options["loss_type"] == "cispo":
        options.pop("delta", None)  # it has none
    if options.get("importance_sampling_level") == "sequence":
        options["use_bias_correction_kl"] = False  # the next test
    config = config_of(**options)
    for seed, parts in ((1, 1), (2, 2), (3, 4)):
        batch = Batch(seed, config.temperature)
        expected, expected_gradients, their_metrics, their_advantages = trl(batch, config, parts)
        loss, gradients, metrics, advantages = ours(batch, config, processor)
        torch.testing.assert_close(advantages, their_advantages, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-6)
        assert min(gradient.abs().max() for gradient in gradients) > 1e-3
        if parts == 1:  # TRL takes the mean of its micro-batches' means
            unlike = {"frac_reward_zero_std"} if config.scale_rewards == "batch" else set()
            unlike |= {"clip_ratio/low_min"} if config.mask_truncated_completions else set()
            names = set(their_metrics) - unlike
            assert {one: metrics[one] for one in names} == pytest.approx(
                {one: their_metrics[one] for one in names}, rel=1e-4, abs=1e-6
            )


def test_those_batches_were_no_easy_ones(processor):
    """Clips bind on both sides, the correction too, rows are cut off, rewards are missing, a group has no
    spread.
    """
    for name, options in LOSSES.items():
        _, _, metrics, _ = ours(Batch(1), config_of(**options), processor)
        shares = (
            [metrics["cispo_clip_ratio"]]
            if "cispo" in name
            else [metrics["clip_ratio/low_mean"], metrics["clip_ratio/high_mean"]]
        )
        assert all(0.01 < share < 0.9 for share in shares), (name, shares)
    batch = Batch(1)
    _, _, metrics, _ = ours(batch, config_of(**OPTIONS["correction"]), processor)
    assert (
        metrics["sampling/importance_sampling_ratio/min"]
        < 1
        < metrics["sampling/importance_sampling_ratio/max"]
        == pytest.approx(1.05)
    )
    assert 0 < metrics["completions/clipped_ratio"] < 1
    assert metrics["frac_reward_zero_std"] == 0.25
    assert {None in scores.values() for scores in batch.rewards} == {True, False}


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_of_random_rewards_equal_trls_own(scale):
    """Some groups with missing rewards, one with a single reward, one with none."""
    for seed in range(20):
        batch, draw = Batch(0), random.Random(seed)
        batch.rewards = [
            {"right": draw.uniform(-2, 2), "formed": None if draw.random() < 0.2 else draw.gauss(0, 1)}
            for _ in batch.prompts
        ]
        for index in (5, 8, 9, 10, 12, 13, 14, 15):
            batch.rewards[index] = dict.fromkeys(WEIGHTS)
        expected = trl(batch, config_of(scale_rewards=scale), 1)[3]
        rewards = [total_reward(scores, WEIGHTS) for scores in batch.rewards]
        actual = group_advantages(
            torch.tensor([float("nan") if one is None else one for one in rewards]), EACH, scale
        )
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_with_a_ratio_a_completion_the_kl_term_keeps_the_tokens_own_where_trl_does_not(processor):
    """TRL says itself that its term is then no longer the gradient of the divergence."""
    config = config_of(beta=0.2, **LOSSES["gspo"])
    batch = Batch(1)
    (theirs, *_), (mine, *_) = trl(batch, config, 1), ours(batch, config, processor)
    assert abs(theirs - mine) > 1e-5
