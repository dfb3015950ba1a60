"""What each process of tests/test_grpo_update.py runs under torchrun: whole GRPO updates of one world size in
one start, results to a file.

    torchrun --nproc-per-node N tests/grpo_worker.py FOLDER

FOLDER holds three checkpoints: `policy`, which learns, `old`, which sampled, and `ref`. The same functions
    run in the test itself, in
one process on plain models: what must come out.
"""

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent))

from r1ov.common.processes import World, joined
from r1ov.data.formats.records import Record
from r1ov.data.playground import sample
from r1ov.data.playground.source import Playground
from r1ov.data.processor import Encoded, Processor
from r1ov.engine import Completion
from r1ov.folder.pretrained import build, resolve
from r1ov.folder.settings import read_config, read_processor
from r1ov.folder.weights import load_weights, whole
from r1ov.model.model import Qwen2_5_VL
from r1ov.train.experience import Pack, Row, make_packs, with_logprobs
from r1ov.train.grpo import compare, deal, learn
from r1ov.train.rollout import Group, encode_prompt
from r1ov.train.run.config import GRPOConfig
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
    """As much of a `Run` as an update needs; the gradients stay."""

    model: Qwen2_5_VL | None
    processor: Processor
    world: World
    config: GRPOConfig
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    extra: dict = field(default_factory=dict)

    def update(self) -> dict:
        return {}


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
                    completion_tokens=length,
                    thinking=None,
                    answer=None,
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
                rewards=rewards,
            )
        )
    return [group for group in made if group.number in numbers]


def built(folder: Path, name: str, world: World, is_sharded: bool) -> Qwen2_5_VL:
    model = build(read_config(folder / name / "config.json"))
    if is_sharded:
        shard(model, make_mesh(world, torch.device("cpu"), 1), torch.float32)
    load_weights(model, folder / name, "cpu", torch.float32)
    return model.eval()


def rows_in(pack: Pack) -> Iterator[tuple[tuple[int, ...], slice, int]]:
    """Each row's tokens from the first on, where in the pack its own stand, and which sequence there it is."""
    bounds, ids = pack.batch["cu_seqlens"].tolist(), pack.batch["input_ids"].tolist()
    prefixes = pack.batch["prefixes"].tolist() if "prefixes" in pack.batch else [-1] * (len(bounds) - 1)
    for number, prefix in enumerate(prefixes):
        if number not in prefixes:
            before = ids[bounds[prefix] : bounds[prefix + 1]] if prefix >= 0 else []
            own = slice(bounds[number], bounds[number + 1])
            yield tuple(before + ids[own]), own, number


def rows_of(run: Bare, mine: list[Group]) -> tuple[list[list[Row]], list[list[float]], dict[str, float]]:
    advantages, metrics = compare(run, mine)
    return deal(run, mine, advantages), [one.tolist() for one in advantages], metrics


def updated(
    run: Bare,
    rows: list[Row],
    old: Qwen2_5_VL | None,
    ref: Qwen2_5_VL | None,
    max_length: int,
    order: int | None,
    skip: bool = False,
) -> dict:
    """Loss, metrics and gradients of one update on these rows, the whole way that the trainer goes."""
    if order is not None:
        rows = random.Random(order).sample(rows, len(rows))
    run.model.zero_grad()
    made = make_packs(rows, run.processor, max_length, run.world, skip)
    packs = with_logprobs(made, old, ref, run.config.temperature, run.device)
    metrics = learn(run, packs)
    del metrics["update_seconds"]
    gradients = {
        name: whole(parameter.grad).clone()
        for name, parameter in run.model.named_parameters()
        if parameter.grad is not None
    }
    read = sum(pack.num_read for pack in packs)
    return {"metrics": metrics, "gradients": gradients, "packs": len(packs), "rows": len(rows), "read": read}


def check(folder: Path, world: World, is_sharded: bool) -> dict:
    """Everything that is checked with this many processes."""
    processor = read_processor(resolve("r1ov-tiny"))
    policy, old, ref = (built(folder, name, world, is_sharded) for name in ("policy", "old", "ref"))
    results: dict = {}
    for loss, options in LOSSES.items():
        run = Bare(policy, processor, world, GRPOConfig(**COMMON | options))
        for cut, (max_length, count, order) in CUTS.items():
            mine = groups(processor, count, range(world.rank, count, world.size))
            minibatches, advantages, compared = rows_of(run, mine)
            results["dealt", count] = [
                [row.sequence.input_ids.tolist() for row in rows] for rows in minibatches
            ]
            results["advantages", count] = {
                group.number: own for group, own in zip(mine, advantages, strict=True)
            }
            results["compared", count] = compared
            results[loss, cut] = updated(run, minibatches[0], old, ref, max_length, order)
        run = Bare(policy, processor, world, GRPOConfig(**COMMON | options | {"beta": 0.0}))
        for case, flat in IDLE.items():
            mine = groups(processor, 6, range(world.rank, 6, world.size))
            mine = [replace(group, rewards=[1.0] * EACH) if group.number in flat else group for group in mine]
            rows = rows_of(run, mine)[0][1]
            results[loss, case, True] = updated(run, rows, old, None, 115, 1, skip=True)
            if world.size == 1:  # what it must equal
                results[loss, case, False] = updated(run, rows, old, None, 115, 1)
                results[loss, case, "teaching"] = updated(
                    run, [row for row in rows if row.teaches], old, None, 8192, None
                )
    for scale in ("batch", "none"):
        run = SimpleNamespace(config=GRPOConfig(**COMMON, scale_rewards=scale), world=world, extra={})
        mine = groups(processor, 6, range(world.rank, 6, world.size))
        results["advantages", scale] = {
            group.number: own.tolist() for group, own in zip(mine, compare(run, mine)[0], strict=True)
        }
    return results


def main(folder: Path) -> None:
    with joined("cpu") as (world, _device):
        results = [None] * world.size
        dist.all_gather_object(results, check(folder, world, is_sharded=True))
        if world.is_main:
            torch.save(results, folder / f"results-{world.size}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
