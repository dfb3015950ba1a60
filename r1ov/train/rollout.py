"""From the data's next prompts to groups of scored completions: what GRPO learns from."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain

import torch
from torch import Tensor

from r1ov.common.processes import World
from r1ov.data.formats.records import BadRow, Record
from r1ov.data.processor import Encoded, Processor
from r1ov.data.steps import Source, encode_record, frame_of
from r1ov.engine import Completion, decode, prepare
from r1ov.engine.generate import needs
from r1ov.errors import UserError
from r1ov.model.model import Qwen2_5_VL
from r1ov.reward import Frame, Rules, grade, shape_reward
from r1ov.reward.rules.workers import MathVerify, UserReward
from r1ov.train.loss import MIN_STD, mean_and_std
from r1ov.train.run.config import GRPOConfig
from r1ov.train.run.open import Run

Scores = Mapping[str, float | None]  # of a completion by name; None: does not apply


@dataclass(frozen=True, kw_only=True)
class Group:
    """A prompt; from `sample` on with G completions, from the `Scorer` on with their scores and rewards."""

    number: int  # of the prompt, among all of the run
    record: Record
    prompt: Encoded
    completions: Sequence[Completion] = ()
    scores: Sequence[Scores] = ()
    rewards: Tensor | None = None  # (G,) float64; NaN: unscored, left out of the group's mean and std
    frame: Frame | None = None  # where boxes are measured

    @property
    def has_spread(self) -> bool:
        """Whether its rewards differ: without a KL term it teaches nothing else."""
        return bool(mean_and_std(self.rewards)[1] >= MIN_STD)


def sample(
    model: Qwen2_5_VL,
    processor: Processor,
    prompts: Sequence[Group],
    config: GRPOConfig,
    seed: int,
    expect: Callable | None = None,
) -> list[Group]:
    """The prompts with G completions each, which depend on seed and prompt, not on the rest of the batch.

    Args: expect: `Run.expect`, told what they take if all are as long as they may be.
    """
    if not prompts:
        return []
    plan = prepare(
        processor,
        [group.prompt for group in prompts],
        max_new_tokens=config.max_completion_length,
        num_samples=config.num_generations,
        max_num_seqs=config.max_num_seqs,
        seed=seed,
        names=[str(group.number).encode() for group in prompts],
        temperature=config.temperature,
        top_p=1.0,  # and no filter of generation_config.json's: what is sampled is the policy that learns
        top_k=0,
        repetition_penalty=1.0,
    )
    if expect:
        expect(needs(model.config, *plan.sizes(), model.model.config, model.head_weight.itemsize))
    completions = iter(decode(model, processor, plan)[0])
    return [
        replace(group, completions=[next(completions) for _ in range(plan.num_samples)]) for group in prompts
    ]


TRIED = 100  # rows, until one can be used
FORMATS = {"format": "strict", "soft_format": "soft"}


def total_reward(
    scores: Mapping[str, float | None], weights: Mapping[str, float], wrong_reward: float = 0.0
) -> float | None:
    """The weighted sum of the scores; a name without a weight counts once. None: the completion leaves its
    group's baseline.

    It is None if the accuracy is (the gold cannot be read), or if no score says anything. Another score that
    is None is left out, as TRL does it: that reward does not apply to this sample.

    Args: wrong_reward: what an accuracy of 0 is worth instead of 0, such as -1.
    Source: TRL GRPOTrainer `_generate_and_score_completions`, `(rewards_per_func *
        reward_weights).nansum(dim=1)`.
    """
    if scores.get("accuracy", 0) is None:
        return None
    said = {name: score for name, score in scores.items() if score is not None}
    if said.get("accuracy") == 0:
        said["accuracy"] = wrong_reward
    return sum(weights.get(name.split("/")[0], 1.0) * score for name, score in said.items()) if said else None


def soft_overlong(length: int, max_length: int, cache: int) -> float:
    """0 up to max_length - cache tokens, from there in a straight line down to -1 at max_length, -1 beyond.

    Source: DAPO (Yu et al. 2025), equation 13; TRL `get_soft_overlong_punishment`.
    """
    if not 0 < cache <= max_length:
        raise ValueError(f"cache is {cache}, must be above 0 and at most max_length ({max_length})")
    return min(0.0, max(-1.0, (max_length - cache - length) / cache))


class Scorer:
    """The rewards of a run. Close it: a user's reward and math-verify have processes of their own.

    Args: source: the data; a user's reward is tried on the right answer to its first question, so that a
        mistake in it shows before a model is loaded.
    """

    def __init__(self, config: GRPOConfig, source: Source):
        self.config, self.rules = config, Rules(answer_from=config.answer_from, iou_mode=config.iou_mode)
        self.user = UserReward(config.reward) if config.reward else None
        # without it, what our rules leave open counts as wrong
        self.verify = MathVerify() if find_spec("math_verify") else None
        names = [*config.reward_funcs, *([self.user.name] if self.user else [])]
        self.weights = dict(zip(names, config.reward_weights or [1.0] * len(names), strict=True))
        if self.user:
            self._try_out(source)

    def __call__(self, group: Group) -> Group:
        """The group with scores and rewards."""
        scores = [self._scores(group, completion) for completion in group.completions]
        rewards = [total_reward(own, self.weights, self.config.wrong_reward) for own in scores]
        values = [math.nan if reward is None else reward for reward in rewards]
        return replace(group, scores=scores, rewards=torch.tensor(values, dtype=torch.float64))

    def _scores(self, group: Group, completion: Completion) -> Scores:
        config, record, text, scores = self.config, group.record, completion.text, {}
        for name in config.reward_funcs:
            if name == "accuracy":
                gold, finished = record.solution or "", completion.finish_reason == "stop"
                graded = grade(text, gold, record.kind, self.rules, self.verify, finished, group.frame)
                scores[name] = graded.score
            else:
                scores[name] = shape_reward(text, FORMATS[name], group.prompt.opened)
        tokens, limit = completion.completion_tokens, config.max_completion_length
        if config.overlong_cache:
            scores["overlong"] = soft_overlong(tokens, limit, config.overlong_cache)
        if self.user:
            scores |= self._users(record, text, tokens, completion.finish_reason)
        return scores

    def _users(self, record: Record, text: str, completion_tokens: int, finish_reason: str) -> Scores:
        row = {"id": record.id, "solution": record.solution, "kind": record.kind, "where": record.where}
        info = {"completion_tokens": completion_tokens, "finish_reason": finish_reason}
        return self.user(texts_of(record.prompt), text, row, info)

    def _try_out(self, source: Source) -> None:
        first = next((one for one in map(source.__getitem__, range(TRIED)) if isinstance(one, Record)), None)
        if not first:
            return
        try:
            self._users(first, f"<think>...</think>\n<answer>{first.solution}</answer>", 16, "stop")
        except UserError as error:
            raise UserError(f"{error}; it is called as function(prompt, completion, row, info)") from error

    def close(self) -> None:
        for worker in (self.user, self.verify):
            if worker and worker.process:
                worker.close()


def texts_of(messages: Sequence[Mapping]) -> list[dict]:
    """The messages as JSON data, of their images only the places."""
    texts = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [part if part["type"] == "text" else {"type": "image"} for part in content]
        texts.append({"role": message["role"], "content": content})
    return texts


def encode_prompt(processor: Processor, record: Record, longest: int) -> Encoded:
    """The prompt with its images' patches. Raises: BadRow if it cannot be used. Args: longest: tokens."""
    try:
        prompt = encode_record(replace(record, messages=record.prompt), processor, add_generation_prompt=True)
        if len(prompt) <= longest:
            return processor.with_pixels(prompt)
    except UserError as error:
        raise BadRow("the prompt cannot be read", f"{record.where}: {error}") from error
    detail = (
        f"{record.where}: {len(prompt):,} tokens, more than the {longest:,} that leave room for a completion"
    )
    raise BadRow("the prompt is too long", detail, dropped=True)


Encode = Callable[[Record], Encoded]  # raises BadRow


def next_prompts(run: Run, encode: Encode, count: int) -> list[Group]:
    """This rank's share of the data's next `count` prompts; the unusable ones are counted and left out.
    Collective.
    """
    world, first = run.askers, run.extra.get("next_prompt", 0)
    items = []  # records and bad rows, for the tally
    prompts = []
    for number in range(first + world.rank, first + count, world.size):
        item = run.source[number]
        try:
            if isinstance(item, BadRow):
                raise item
            prompt = encode(item)
            frame = frame_of(run.processor, prompt, item.box_unit)
            prompts.append(Group(number=number, record=item, prompt=prompt, frame=frame))
            items.append(replace(item, messages=[]))
        except BadRow as error:
            items.append(error)
    for item in chain(*world.gather(items)):
        run.tally.add(item)
    run.extra["next_prompt"] = first + count
    return prompts


def first_of(flat: list[Group], run: Run, count: int) -> list[Group]:
    """This rank's among the first `count` of all ranks. Raises UserError if there are none. Collective."""
    numbers = sorted(chain(*run.world.gather([group.number for group in flat])))[:count]
    if not numbers:
        raise UserError(f"none of the prompts of this rollout can be used; {run.tally.summary()}")
    return [group for group in flat if group.number in numbers]


def until_enough(
    groups: list[Group], run: Run, encode: Encode, count: int
) -> Iterator[tuple[list[Group], int]]:
    """Prompts, and their seed, for a rollout of `count` groups, which the caller adds to `groups`.

    Collective: all ranks call this.

    Prompts that cannot be used, and under dynamic sampling groups without spread, which are taken out again,
    are replaced by the data's next, --max-resamplings times; after that a rollout is smaller. Where no group
    has spread the first `count` stay, though nothing but a KL term learns from them, and the run goes on.

    Args: groups: of this rank, empty at first.
    """
    world, missing = run.world, count
    flat = []  # groups without spread
    for _ in range(1 + run.config.max_resamplings):
        seed = run.config.seed * 1_000_003 + run.extra.get("next_prompt", 0)
        yield next_prompts(run, encode, missing), seed
        if run.config.dynamic_sampling:
            flat += [group for group in groups if not group.has_spread]
            groups[:] = [group for group in groups if group.has_spread]
        missing = count - int(world.sum(len(groups))[0])
        if not missing:
            return
    if missing == count:
        groups += first_of(flat, run, count)


@dataclass(frozen=True)
class Outcome:
    """What all ranks know of a group."""

    number: int  # of its prompt, among all of the run
    rewards: Tensor  # (G,)
    scores: Sequence[Scores]
    lengths: list[int]  # of the completions, in tokens
    finished: list[bool]
    prompt_tokens: int  # read by all of its completions together


def gather_outcomes(world: World, groups: Sequence[Group]) -> list[Outcome]:
    """The outcomes of all ranks' groups in the order of their prompts. Collective: all ranks call this."""
    own = [
        Outcome(
            number=group.number,
            rewards=group.rewards,
            scores=group.scores,
            lengths=[one.completion_tokens for one in group.completions],
            finished=[one.finish_reason == "stop" for one in group.completions],
            prompt_tokens=len(group.prompt) * len(group.completions),
        )
        for group in groups
    ]
    return sorted(chain(*world.gather(own)), key=lambda one: one.number)
