"""What each of the processes of tests/test_grpo_update.py runs: whole GRPO updates of one world size in one
start, results to a file.

    python -m tests.ranks grpo_worker FOLDER N

FOLDER holds three checkpoints: `policy`, which learns, `old`, which sampled, and `ref`. The same functions
run in the test itself, in one process on plain models: what must come out.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from r1ov.common.processes import World, joined
from r1ov.data.formats.records import Record
from r1ov.data.pack import Continuation, Part, make_packs, num_trained
from r1ov.data.playground import sample
from r1ov.data.playground.source import Playground
from r1ov.data.processor import Batch, Encoded, Processor
from r1ov.engine import Completion
from r1ov.folder.pretrained import build, read_config, read_processor, resolve
from r1ov.folder.weights import load_weights, whole
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.parallel import Context
from r1ov.train.grpo import accumulate_gradients, add_logprobs, deal, make_minibatch
from r1ov.train.loss import group_advantages
from r1ov.train.rollout import Group, encode_prompt, gather_outcomes
from r1ov.train.run.config import GRPOConfig
from r1ov.train.run.observe import observe
from r1ov.train.run.sharding import make_mesh, shard

EACH = 4  # completions a prompt
COMMON = {
    "num_generations": EACH,
    "max_completion_length": 24,
    "temperature": 0.8,
    "steps_per_generation": 3,
    "mask_truncated_completions": True,
    "importance_sampling_correction": True,
    "importance_sampling_cap": 1.1,
    "epsilon": 0.05,
    "beta": 0.1,
    "sample_steps": 0,
}
LOSSES = {  # each with other metrics
    "dapo": {"loss_type": "dapo", "delta": 1.3},
    "grpo": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon": 0.005,
    },
    "dr_grpo": {"loss_type": "dr_grpo", "use_bias_correction_kl": False},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.02},
}
CUTS = {  # max_length, how many of the prompts, order of the rows
    "one pack": (8192, 6, None),
    "many packs, shuffled": (115, 6, 1),
    "fewer prompts than processes": (8192, 1, 2),
}
IDLE = {
    "some": {1, 2},
    "all": set(range(6)),
}  # prompts whose completions are all rewarded alike; beside number 4, which has no reward


@dataclass
class Bare:
    """As much of a `Run` as the gradients of an update need."""

    model: Qwen2_5_VL | None
    processor: Processor
    world: World
    config: GRPOConfig
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    extra: dict = field(default_factory=dict)
    step: int = 0
    trainers: World | None = None
    context: Context | None = None

    def __post_init__(self):
        self.trainers = self.trainers or self.world


def prompt(processor: Processor, number: int) -> tuple[Record, Encoded]:
    """A picture's question, or for odd numbers text alone: of two or four processes some have no picture at
    all.
    """
    record = Playground("rl")[number]
    if number % 2:
        text = f"{sample('rl', number).question} {'Think first. ' * (number % 3)}"
        record = Record(
            messages=[{"role": "user", "content": text}], solution="1", format="text", where=str(number)
        )
    return record, encode_prompt(processor, record, 4096)


def groups(processor: Processor, count: int, numbers: range) -> list[Group]:
    """Of the first `count` prompts those in `numbers`: random completions, one in five cut off, one prompt's
    gold unscorable.
    """
    made = []
    for number in range(count):
        rng = random.Random(number)
        record, encoded = prompt(processor, number)
        completions, rewards = [], []
        for _ in range(EACH):
            length, is_cut = rng.randint(1, 24), rng.random() < 0.2
            ids = [rng.randrange(90) for _ in range(length)]
            completions.append(
                Completion(
                    text="",
                    token_ids=ids,
                    logprobs=[-4.5 + rng.gauss(0, 0.2) for _ in ids],
                    finish_reason="length" if is_cut else "stop",
                    prompt_tokens=len(encoded),
                )
            )
            rewards.append(float("nan") if number == 4 else rng.random())
        scores = [{"accuracy": None if number == 4 else reward} for reward in rewards]
        made.append(
            Group(
                number=number,
                record=record,
                prompt=encoded,
                completions=completions,
                scores=scores,
                rewards=torch.tensor(rewards, dtype=torch.float64),
            )
        )
    return [group for group in made if group.number in numbers]


def built(folder: Path, name: str, world: World, is_sharded: bool) -> Qwen2_5_VL:
    model = build(read_config(folder / name / "config.json"))
    if is_sharded:
        shard(model, make_mesh(world, torch.device("cpu"), 1), torch.float32)
    load_weights(model, folder / name, "cpu", torch.float32)
    return model.eval()


def rows_in(pack: Batch) -> Iterator[tuple[tuple[int, ...], slice, int]]:
    """Each row's tokens from the first on, where in the pack its own stand, and which sequence it is."""
    bounds, ids = pack["cu_seqlens"].tolist(), pack["input_ids"].tolist()
    prefixes = pack["prefixes"].tolist() if "prefixes" in pack else [-1] * (len(bounds) - 1)
    for number, prefix in enumerate(prefixes):
        if number not in prefixes:
            before = ids[bounds[prefix] : bounds[prefix + 1]] if prefix >= 0 else []
            own = slice(bounds[number], bounds[number + 1])
            yield tuple(before + ids[own]), own, number


def part_of(groups: list[Group], advantage: float = 0.0) -> Part:
    """All completions of these groups, each trained and of this advantage."""

    def continuation(completion: Completion) -> Continuation:
        ids = torch.tensor(completion.token_ids)
        logprobs, weight = torch.tensor(completion.logprobs), torch.tensor(advantage)
        return Continuation(input_ids=ids, labels=ids, logprobs=logprobs, advantage=weight)

    return [(group.prompt, list(map(continuation, group.completions))) for group in groups]


def packs_of(part: Part, processor: Processor, max_length: int) -> list[Batch]:
    """The packs of one process."""
    return make_packs(part, processor, max_length, World())


def compared(run: Bare, mine: list[Group]) -> tuple[list[dict], Tensor, dict[str, float]]:
    """The outcome of all groups, their advantages (prompts, G), and what is logged, as the loop has them."""
    everyone = gather_outcomes(run.world, mine)
    rewards = torch.stack([one.rewards for one in everyone])
    advantages = group_advantages(
        rewards.flatten(), run.config.num_generations, run.config.scale_rewards
    ).view_as(rewards)
    return everyone, advantages.float(), observe(run, mine, everyone, advantages)


def shuffled(part: Part, order: int) -> Part:
    """The same completions with the prompts in another order, and those of a prompt too."""
    rng = random.Random(order)
    return [(prompt, rng.sample(own, len(own))) for prompt, own in rng.sample(part, len(part))]


def updated(
    run: Bare,
    part: Part,
    old: Qwen2_5_VL | None,
    ref: Qwen2_5_VL | None,
    max_length: int,
    order: int | None,
    skip: bool = False,
) -> dict:
    """Loss, metrics and gradients of one update on these rows, all the way that the trainer goes."""
    if order is not None:
        part = shuffled(part, order)
    run.model.zero_grad()
    # completions of advantage 0 stay out where there is no KL term
    packing = replace(run.config, max_length=max_length, beta=0.0 if skip else 1.0)
    packs, counts = make_minibatch(replace(run, config=packing), part)
    for name, model in (("old_logprobs", old), ("ref_logprobs", ref)):
        if model:
            add_logprobs(run, packs, name, model)
    metrics = accumulate_gradients(run, packs, counts)
    gradients = {
        name: whole(parameter.grad).clone()
        for name, parameter in run.model.named_parameters()
        if parameter.grad is not None
    }
    return {
        "metrics": metrics,
        "gradients": gradients,
        "packs": len(packs),
        "rows": sum(len(own) for _, own in part),
        "read": sum(num_trained(batch["labels"]) for batch in packs),
    }


def check(folder: Path, world: World, is_sharded: bool) -> dict:
    """Everything that is checked with this many processes."""
    processor = read_processor(resolve("r1ov-tiny"))
    policy, old, ref = (built(folder, name, world, is_sharded) for name in ("policy", "old", "ref"))
    results: dict = {}
    for loss, options in LOSSES.items():
        run = Bare(policy, processor, world, GRPOConfig(**COMMON | options))
        for cut, (max_length, count, order) in CUTS.items():
            mine = groups(processor, count, range(world.rank, count, world.size))
            everyone, advantages, metrics = compared(run, mine)
            minibatches = deal(run, mine, everyone, advantages)
            results["dealt", count] = [
                [
                    prompt.input_ids.tolist() + one.input_ids.tolist()
                    for prompt, completions in part
                    for one in completions
                ]
                for part in minibatches
            ]
            places = [one.number for one in everyone]
            results["advantages", count] = {
                group.number: advantages[places.index(group.number)].tolist() for group in mine
            }
            results["compared", count] = metrics
            results[loss, cut] = updated(run, minibatches[0], old, ref, max_length, order)
        run = Bare(policy, processor, world, GRPOConfig(**COMMON | options | {"beta": 0.0}))
        for case, flat in IDLE.items():
            mine = groups(processor, 6, range(world.rank, 6, world.size))
            ones = torch.ones(EACH, dtype=torch.float64)
            mine = [replace(group, rewards=ones) if group.number in flat else group for group in mine]
            part = deal(run, mine, *compared(run, mine)[:2])[1]
            results[loss, case, True] = updated(run, part, old, None, 115, 1, skip=True)
            if world.size == 1:  # what it must equal
                results[loss, case, False] = updated(run, part, old, None, 115, 1)
                teaching = [(prompt, [one for one in own if one.teaches]) for prompt, own in part]
                results[loss, case, "teaching"] = updated(run, teaching, old, None, 8192, None)
    for scale in ("batch", "none"):
        run = Bare(None, processor, world, GRPOConfig(**COMMON, scale_rewards=scale))
        mine = groups(processor, 6, range(world.rank, 6, world.size))
        everyone, advantages, _ = compared(run, mine)
        places = [one.number for one in everyone]
        results["advantages", scale] = {
            group.number: advantages[places.index(group.number)].tolist() for group in mine
        }
    return results


def main(folder: Path) -> None:
    with joined("cpu") as (world, _device):
        results = [None] * world.size
        dist.all_gather_object(results, check(folder, world, is_sharded=True))
        if world.is_main:
            torch.save(results, folder / f"results-{world.size}.pt")
