"""From prompts to groups of scored completions: what GRPO learns from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from r1ov.data.formats.records import BadRow, Record
from r1ov.data.processor import IGNORED, Encoded, Processor
from r1ov.engine import Completion, decode, prepare
from r1ov.errors import UserError
from r1ov.model.model import Qwen2_5_VL
from r1ov.reward import Rules, format_reward, grade, soft_overlong, total_reward
from r1ov.reward.rules.check import Gold
from r1ov.reward.rules.workers import UserReward, math_verify_or_none
from r1ov.train.loss import MIN_STD, mean_and_std
from r1ov.train.run.config import GRPOConfig


@dataclass(frozen=True, kw_only=True)
class Group:
    """A prompt, its G completions, and each one's scores by name and reward (NaN: none, it leaves the group's
    baseline).
    """

    number: int  # of the prompt, among all of the run
    record: Record
    prompt: Encoded
    completions: Sequence[Completion]
    scores: Sequence[Mapping[str, float | None]]
    rewards: Sequence[float]

    @property
    def has_spread(self) -> bool:
        """Whether the group teaches anything."""
        said = [reward for reward in self.rewards if not math.isnan(reward)]
        return bool(said) and max(said) - min(said) > 1e-6

    def summary(self) -> dict[str, Any]:
        """What all processes are told of it."""
        return {
            "number": self.number,
            "rewards": list(self.rewards),
            "scores": list(self.scores),
            "lengths": [completion.completion_tokens for completion in self.completions],
            "finished": [completion.finish_reason == "stop" for completion in self.completions],
            "prompt_tokens": len(self.prompt) * len(self.completions),
        }


class Scorer:
    """The rewards of a run. Close it: a user's reward and math-verify have processes of their own."""

    def __init__(self, config: GRPOConfig):
        self.config = config
        self.rules = Rules(answer_from=config.answer_from, iou_mode=config.iou_mode)
        self.user = UserReward(config.reward) if config.reward else None
        self.verify = math_verify_or_none()
        names = [*config.reward_funcs, *([self.user.name] if self.user else [])]
        self.weights = dict(zip(names, config.reward_weights or [1.0] * len(names), strict=True))

    def gold(self, record: Record) -> Gold:
        """What is checked before training: can this record's answer be scored at all?"""
        return Gold(record.where, record.solution or "", record.kind, self.rules)

    def __call__(self, record: Record, completion: Completion) -> dict[str, float | None]:
        """Scores by name; None: says nothing about this sample."""
        config, scores = self.config, {}
        finished = completion.finish_reason == "stop"
        for name in config.reward_funcs:
            if name == "accuracy":
                graded = grade(
                    completion.text, record.solution or "", record.kind, self.rules, self.verify, finished
                )
                scores[name] = graded.score
            else:
                scores[name] = format_reward(completion.text, "soft" if name == "soft_format" else "strict")
        if config.overlong_cache:
            scores["overlong"] = soft_overlong(
                completion.completion_tokens, config.max_completion_length, config.overlong_cache
            )
        if self.user:
            row = {"id": record.id, "solution": record.solution, "kind": record.kind, "where": record.where}
            info = {
                "completion_tokens": completion.completion_tokens,
                "finish_reason": completion.finish_reason,
            }
            scores |= self.user(texts_of(record.prompt), completion.text, row, info)
        return scores

    def total(self, scores: Mapping[str, float | None]) -> float:
        """The reward; NaN for none."""
        weights = {name: self.weights.get(name.split("/")[0], 1.0) for name in scores}
        total = total_reward(scores, weights, self.config.wrong_reward)
        return math.nan if total is None else total

    def close(self) -> None:
        for worker in (self.user, self.verify):
            if worker:
                worker.close()


def reward_metrics(rewards: Tensor) -> dict[str, float]:
    """What to log of the step's rewards (prompts, G), NaN left out: mean, std, mean std of a group, share of groups without spread.

    With p the chance of a right answer, p^G + (1 - p)^G of the groups have no spread, and teach nothing.
    Source: TRL's names; `group_std_mean` is what its older versions called reward_std.
    """
    stds = mean_and_std(rewards)[1]
    mean, std = mean_and_std(rewards.flatten())
    return {
        "reward": mean.item(),
        "reward_std": std.item(),
        "group_std_mean": stds.mean().item(),
        "frac_reward_zero_std": (stds < MIN_STD).double().mean().item(),
    }


def texts_of(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with pictures left out but for their places: JSON data."""
    return [
        {
            "role": message["role"],
            "content": message["content"]
            if isinstance(message["content"], str)
            else [part if part["type"] == "text" else {"type": "image"} for part in message["content"]],
        }
        for message in messages
    ]


def encode_prompt(processor: Processor, record: Record, longest: int) -> Encoded | BadRow:
    """The prompt with its pictures' patches, or why it cannot be used. Args: longest: tokens."""
    try:
        prompt = processor.encode(record.prompt, add_generation_prompt=True)
        if len(prompt) > longest:
            detail = f"{record.where}: {len(prompt):,} tokens, more than the {longest:,} that leave room for a completion"
            return BadRow("the prompt is too long", detail, dropped=True)
        return processor.with_pixels(prompt)
    except UserError as error:
        return BadRow("the prompt cannot be read", f"{record.where}: {error}")


def roll_out(
    model: Qwen2_5_VL,
    processor: Processor,
    prompts: Sequence[tuple[int, Record, Encoded]],
    config: GRPOConfig,
    scorer: Scorer,
    seed: int,
) -> list[Group]:
    """G sampled completions of each (number, record, prompt), scored. They depend on seed and prompt, not on
    the rest of the batch.
    """
    if not prompts:
        return []
    plan = prepare(
        processor,
        [prompt for *_, prompt in prompts],
        max_new_tokens=config.max_completion_length,
        num_samples=config.num_generations,
        max_num_seqs=config.max_num_seqs,
        seed=seed,
        names=[str(number).encode() for number, *_ in prompts],
        temperature=config.temperature,
        top_p=1.0,  # no filter of generation_config.json's: what is sampled is the policy that learns
        top_k=0,
        repetition_penalty=1.0,
    )
    completions, _ = decode(model, processor, plan)
    groups = []
    for index, (number, record, prompt) in enumerate(prompts):
        own = completions[index * config.num_generations : (index + 1) * config.num_generations]
        scores = [scorer(record, completion) for completion in own]
        rewards = [scorer.total(score) for score in scores]
        groups.append(
            Group(
                number=number, record=record, prompt=prompt, completions=own, scores=scores, rewards=rewards
            )
        )
    return groups


def sequence(prompt: Encoded, completion: Completion, is_trained: bool) -> Encoded:
    """Prompt and completion as one sequence; its labels are the completion's tokens, stop token included, if
    it is to be trained.
    """
    ids = torch.tensor(completion.token_ids, dtype=torch.int64)
    first = int(prompt.position_ids.max()) + 1
    return replace(
        prompt,
        input_ids=torch.cat((prompt.input_ids, ids)),
        labels=torch.cat(
            (torch.full_like(prompt.input_ids, IGNORED), ids if is_trained else torch.full_like(ids, IGNORED))
        ),
        position_ids=torch.cat(
            (prompt.position_ids, torch.arange(first, first + len(ids)).expand(3, -1)), dim=1
        ),
    )
