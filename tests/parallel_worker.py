"""What each of the processes of tests/test_parallel.py runs: every check of one world size in one start,
results to a file.

    python -m tests.ranks parallel_worker FOLDER N

FOLDER holds checkpoints, by name. The same functions run in the test itself, in one process on a whole model:
what must come out.
"""

import os
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

import generate
from r1ov import cli
from r1ov.common.processes import World, joined
from r1ov.data.processor import Processor
from r1ov.engine import Completion, decode, prepare, sampling
from r1ov.engine.parallel import sample_together
from r1ov.engine.sampling import SamplingParams
from r1ov.errors import UserError
from r1ov.evaluate.__main__ import EvaluateConfig
from r1ov.evaluate.evaluate import evaluate
from r1ov.folder.pretrained import build, find, read_config, read_model, read_processor
from r1ov.folder.weights import load_weights, whole
from r1ov.model.config import TextConfig
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.parallel import Context, Split, teams
from r1ov.train import sft
from r1ov.train.grpo import deal
from r1ov.train.loss import sft_loss_and_correct
from r1ov.train.rollout import Group, sample
from r1ov.train.run.config import GRPOConfig, SFTConfig
from r1ov.train.run.sharding import checkpoint_activations, make_mesh, refresh, replica, shard
from tests import grpo_worker as grpo
from tests.checkpoint_worker import ended, forked
from tests.sharding_worker import Largest, blank, pack, steps

CASES = {  # how tokens are chosen
    "greedy": {"temperature": 0.0, "repetition_penalty": 1.3},
    "sampled": {"temperature": 0.9, "num_samples": 2, "seed": 5, "repetition_penalty": 1.1},
    "top-k and top-p": {
        "temperature": 1.2,
        "top_k": 40,
        "top_p": 0.9,
        "seed": 6,
        "repetition_penalty": 1.2,
    },
}
CONVERSATIONS = [  # of odd lengths, with no, one or two pictures of odd sizes
    [
        {
            "role": "user",
            "content": [
                *(
                    {
                        "type": "image",
                        "image": Image.linear_gradient("L").resize((60 + 13 * number, 50 + 29 * one)),
                    }
                    for one in range(number % 3)
                ),
                {"type": "text", "text": f"How many {'red ' * (number % 5)}circles? {number}"},
            ],
        }
    ]
    for number in range(6)
]
FLAGS = ["--temperature", "1", "--seed", "3", "--num-samples", "2", "--max-new-tokens", "8", "--json"]


def answers(model: Qwen2_5_VL, processor: Processor) -> dict[str, list[Completion]]:
    """Ragged prompts with no, one or two pictures, more of them than there are rows: places are refilled."""
    return {
        name: decode(
            model, processor, prepare(processor, CONVERSATIONS, max_new_tokens=8, max_num_seqs=4, **how)
        )[0]
        for name, how in CASES.items()
    }


FILTERS = [{"top_k": 40}, {"top_p": 0.9}, {"top_k": 300, "top_p": 0.7, "repetition_penalty": 1.3}]


def chosen(vocab_size: int, split: Split | None) -> tuple[list[Tensor], float]:
    """What top-k and top-p leave to be drawn, for fewer rows than processes and for more, of logits with and
    without ties; and the most memory that anything took, in tensors of float64 for all words of B / N rows.
    """
    size = split.world.size if split else 1
    generator, made, most = torch.Generator().manual_seed(7), [], 0.0
    for number, rows in enumerate((1, 2, 3, 5, 8, 9)):
        logits = 3 * torch.randn(rows, vocab_size, generator=generator)
        logits = logits.round() if number % 2 else logits.bfloat16()
        seen = torch.rand(rows, vocab_size, generator=generator) < 0.2
        uniforms = torch.rand(rows, generator=generator, dtype=torch.float64)
        for how in FILTERS:
            params = SamplingParams(temperature=1.2, **how)
            rest = params, torch.tensor([3, vocab_size - 2]), seen if "repetition_penalty" in how else None
            with Largest() as largest:
                if split:
                    made += sample_together(split, logits[:, split.words], *rest, uniforms)
                else:
                    made += sampling.sample(logits, *rest, uniforms)
            most = max(most, largest.bytes / (8 * vocab_size * -(-rows // size)))
    return made, most


def loaded(folder: Path, size: int) -> tuple[Qwen2_5_VL, Processor]:
    folders = find(folder)
    processor = read_processor(folders.settings)
    device = torch.device("cpu")
    return read_model(folders, processor.config, device, None, tensor_parallel=size)[0], processor


def refused(folder: Path, size: int, quantize: str | None = None) -> str:
    folders = find(folder)
    config = read_processor(folders.settings).config
    try:
        read_model(folders, config, torch.device("cpu"), None, quantize, tensor_parallel=size)
    except UserError as error:
        return str(error)
    return ""


def check(folder: Path, name: str) -> None:
    """What is asked of the models themselves."""
    results: dict = {}
    with joined("cpu") as (world, _device):
        for shape in ("even", "uneven", "adapted"):
            with Largest() as largest:
                model, processor = loaded(folder / shape, world.size)
            held, patches = sum(parameter.nbytes for parameter in model.parameters()), []
            first = model.visual.patch_embed
            first.register_forward_pre_hook(lambda _, inputs, patches=patches: patches.append(len(inputs[0])))
            results[shape] = {"answers": answers(model, processor), "held": held, "largest": largest.bytes}
            results[shape]["patches"] = sum(patches)
        results["chosen"] = chosen(model.config.text.vocab_size, model.split)
        results["refused"] = [
            refused(folder / "even", world.size + 1),
            refused(folder / "even", world.size, "int8"),
            refused(folder / "two heads", world.size),
        ]
    torch.save(results, folder / f"check {name}")


def run_generate(folder: Path, name: str) -> None:
    sys.argv = ["generate.py", *command(folder), "--tensor-parallel", "2"]
    with (folder / f"generate {name}").open("w") as out, redirect_stdout(out):
        assert cli.run(generate.main) == 0


def run_evaluate(folder: Path, name: str) -> None:
    with (folder / f"evaluate {name}").open("w") as out, redirect_stdout(out), redirect_stderr(out):
        evaluate(evaluation(folder, out=folder / "evaluated", tensor_parallel=2))


def dies(folder: Path) -> None:
    """The last rank is killed while all of them answer."""
    with joined("cpu") as (world, _device):
        model, processor = loaded(folder / "even", world.size)
        plan = prepare(processor, CONVERSATIONS[:3], max_new_tokens=6, temperature=0.0, max_num_seqs=1)
        is_last = world.rank == world.size - 1
        decode(model, processor, plan, on_done=lambda *_: is_last and os.kill(os.getpid(), signal.SIGKILL))


def kill(folder: Path, name: str) -> None:
    """How each rank ends, and what it says, in a file; in copies of the ranks, which are to live."""

    def work() -> None:
        try:
            cli.run(partial(dies, folder))
        except SystemExit as end:  # as the interpreter would print it
            (folder / f"killed {name}").write_text(f"{end}\n")
            raise

    status = ended(forked(work))
    with (folder / f"killed {name}").open("a") as out:
        print(f"status {status}", file=out)


# -- training


def one_step(folder: Path, size: int | None, mode: str = "off") -> dict:
    """The loss and the gradients of a packed step with pictures, `size` processes to a pack; None: one alone,
    on a plain model.
    """
    world = World() if size is None else World(dist.get_rank(), dist.get_world_size())
    model = build(read_config(folder / "config.json"))
    checkpoint_activations(model, mode)
    if size:
        shard(model, make_mesh(world, torch.device("cpu"), 1), torch.float32)
        Context(model, size)
    load_weights(model, folder, "cpu", torch.float32)
    rows = steps(model.config)[0]
    count = sum(int((one["labels"] != -100).sum()) for one in rows)
    trainers = teams(world, size, "") if size else world
    mine = rows[trainers.rank :: trainers.size]
    batch = pack(mine if any(len(one["image_grid_thw"]) for one in mine) else [*mine, blank(model.config)])
    labels = batch.pop("labels")
    loss, _ = model(**batch, then=partial(sft_loss_and_correct, labels=labels, num_items_in_batch=count))
    loss.backward()
    gradients = {name: whole(one.grad).clone() for name, one in model.named_parameters()}
    return {"loss": world.sum(loss.item())[0], "gradients": gradients}


def rewarded(groups: list[Group]) -> list[Group]:
    """With a reward that depends on the answer alone."""
    made = []
    for group in groups:
        rewards = [sum(one.token_ids) % 7 / 7 for one in group.completions]
        scores = [{"accuracy": reward} for reward in rewards]
        made.append(replace(group, rewards=torch.tensor(rewards, dtype=torch.float64), scores=scores))
    return made


def rollout_and_update(folder: Path, tensor_parallel: int, context_parallel: int, sharded: bool) -> dict:
    """Prompts sampled, rewarded, and learned from, as the loop does it."""
    world = World(dist.get_rank(), dist.get_world_size()) if sharded else World()
    processor = read_processor(folder)
    model = policy = grpo.built(folder.parent, folder.name, world, sharded)
    reference = grpo.built(folder.parent, "few, moved", world, sharded)
    context = None
    if context_parallel > 1:
        context = Context(model, context_parallel)
        context.share(reference)
    if sharded:
        with Largest() as largest:
            policy = replica(model, torch.float32, tensor_parallel)
        with Largest() as again:
            refresh(policy, model)
    config = GRPOConfig(**grpo.COMMON | {"max_length": 130, "mask_truncated_completions": False})
    askers = teams(world, tensor_parallel, "") if sharded else world
    prompts = [
        Group(number=number, record=record, prompt=prompt)
        for number in range(askers.rank, 5, askers.size)
        for record, prompt in [grpo.prompt(processor, number)]
    ]
    sampled = sample(policy, processor, prompts, config, seed=4)
    groups = rewarded(sampled[world.rank % tensor_parallel :: tensor_parallel])
    trainers = teams(world, context_parallel, "") if sharded else world
    run = grpo.Bare(model, processor, world, config, trainers=trainers, context=context)
    everyone, advantages, _ = grpo.compared(run, groups)
    part = deal(run, groups, everyone, advantages)[0]
    done = {"answers": {one.number: [each.token_ids for each in one.completions] for one in groups}}
    for loss, options in grpo.LOSSES.items():
        of = replace(run, config=replace(config, **options))
        done[loss] = grpo.updated(of, part, model, reference, 130, None)
    if sharded:
        done["held"] = sum(one.nbytes for one in policy.parameters())
        done["largest"] = max(largest.bytes, again.bytes)
    return done


def train(folder: Path, name: str) -> None:
    few, results = folder / "few", {}
    with joined("cpu") as (world, _device):
        sizes = [2, 4] if world.size == 4 else [2]
        results["steps"] = {size: one_step(few, size) for size in sizes}
        if world.size == 2:
            results["modes"] = [one_step(few, 2, mode) for mode in ("selective", "full")]
            try:
                odd = TextConfig(num_attention_heads=7, num_key_value_heads=7)
                Context(SimpleNamespace(config=SimpleNamespace(text=odd)), 2)
            except UserError as error:
                results["heads"] = str(error)
        shapes = [(2, 2), (4, 1), (1, 4)] if world.size == 4 else [(2, 1)]
        results["updates"] = {shape: rollout_and_update(few, *shape, sharded=True) for shape in shapes}
    torch.save(results, folder / f"train {name}")


def run_sft(folder: Path, name: str) -> None:
    """The whole way: held-out loss and answers before the first step, two steps, a model."""
    with (folder / f"sft {name}").open("w") as out, redirect_stdout(out), redirect_stderr(out):
        sft.train(replace(learning(folder, folder / "learned"), tensor_parallel=2, context_parallel=2))


WORK = {"2": [check, run_generate, kill, train, run_sft], "4": [check, run_evaluate, train]}


def main(folder: Path) -> None:
    """Does the next of WORK that its files in the folder do not show."""
    size = os.environ["WORLD_SIZE"]
    name = f"{os.environ['RANK']} of {size}"
    done = len(list(folder.glob(f"* {name}")))
    WORK[size][done](folder, name)


def evaluation(folder: Path, out: Path, tensor_parallel: int) -> EvaluateConfig:
    return EvaluateConfig(
        model=str(folder / "uneven"),
        limit=5,
        max_new_tokens=8,
        max_num_seqs=2,
        device="cpu",
        out=str(out),
        tensor_parallel=tensor_parallel,
    )


def learning(folder: Path, out: Path) -> SFTConfig:
    return SFTConfig(
        model=str(folder / "few"),
        out=str(out),
        max_steps=2,
        train_batch_size=3,
        eval_samples=3,
        eval_max_new_tokens=8,
        learning_rate=1e-3,
        dataloader_num_workers=0,
        num_threads=1,
        device="cpu",
    )


def command(folder: Path) -> list[str]:
    image = "r1ov/data/playground/examples/counting.png"
    return ["--model", str(folder / "uneven"), "--image", image, "--device", "cpu", *FLAGS]
