"""What each of the processes of tests/test_sharding.py runs: every check of one world size in one start,
results to a file.

    python -m tests.ranks sharding_worker FOLDER N

FOLDER holds `model/`, a checkpoint. The same functions run in the test itself, in one process on a plain
model: what must come out.
"""

from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from r1ov.common.processes import World, joined
from r1ov.data.processor import Batch
from r1ov.errors import UserError
from r1ov.folder import pretrained
from r1ov.folder.pretrained import read_config, read_processor, resolve
from r1ov.folder.weights import init_weights, is_sharded, load_weights, local, whole
from r1ov.model.config import Config
from r1ov.model.model import Qwen2_5_VL
from r1ov.train.loss import sft_loss
from r1ov.train.optim import build_optimizers, clip_grad_norm, each_pack
from r1ov.train.run.config import SFTConfig
from r1ov.train.run.sharding import (
    checkpoint_activations,
    freeze,
    make_mesh,
    refresh,
    replica,
    shard,
)

LAYOUTS = {
    1: {"sharded": 1},
    2: {"sharded": 1, "copies": 2},
    3: {"sharded": 1},
    4: {"sharded": 1, "hybrid": 2},
}  # --replicate
FREEZES = [
    ("vision",),
    ("merger",),
    ("language",),
    ("vision", "merger"),
    ("vision", "language"),
    ("merger", "language"),
]
NAMES = ("input_ids", "position_ids", "labels", "pixel_values", "image_grid_thw")
SHARD_BYTES = 40_000


def row(config: Config, seed: int, grid: tuple[int, int, int] | None, length: int) -> dict[str, Tensor]:
    """One sequence of random tokens around a random picture, the second half of it trained."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, 90, (length,), generator=generator)
    if grid is None:
        ids, pixels, grids = (
            text,
            torch.zeros(0, config.vision.patch_dim),
            torch.zeros(0, 3, dtype=torch.int64),
        )
    else:
        t, h, w = grid
        picture = [
            config.vision_start_token_id,
            *[config.image_token_id] * (t * h * w // 4),
            config.vision_end_token_id,
        ]
        ids = torch.cat([text[: length // 2], torch.tensor(picture), text[length // 2 :]])
        pixels, grids = (
            torch.randn(t * h * w, config.vision.patch_dim, generator=generator),
            torch.tensor([grid]),
        )
    labels = torch.where(torch.arange(len(ids)) >= len(ids) - length // 2, ids, -100)
    positions = torch.stack([torch.arange(len(ids)), torch.arange(len(ids)) // 2, torch.arange(len(ids)) % 5])
    return dict(zip(NAMES, (ids, positions, labels, pixels, grids), strict=True))


def blank(config: Config) -> dict[str, Tensor]:
    """A picture of nothing that teaches nothing: it makes the vision encoder run."""
    one = row(config, 0, (1, 2, 2), 0)
    return one | {
        "labels": torch.full_like(one["labels"], -100),
        "pixel_values": torch.zeros_like(one["pixel_values"]),
    }


def steps(config: Config) -> list[list[dict[str, Tensor]]]:
    """Three steps' rows. Dealt to two or four processes, some get text alone; of the second step's, the
    fourth gets nothing.
    """
    picture, text = partial(row, config, grid=(1, 4, 6)), partial(row, config, grid=None)
    first = [
        picture(1, length=9),
        text(2, length=15),
        row(config, 3, (1, 8, 4), 21),
        text(4, length=8),
        picture(5, length=11),
    ]
    return [
        first,
        [text(6, length=12), picture(7, length=9), picture(8, length=13)],
        [picture(9, length=7), text(10, length=19)] * 2,
    ]


def pack(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    batch = {
        name: torch.cat([one[name] for one in rows], dim=-1 if name == "position_ids" else 0)
        for name in NAMES
    }
    lengths = torch.tensor([0] + [len(one["input_ids"]) for one in rows])
    batch["cu_seqlens"] = lengths.cumsum(0).int()
    if not len(batch["image_grid_thw"]):
        del batch["pixel_values"], batch["image_grid_thw"]
    return batch


def backward(
    model: Qwen2_5_VL, rows: list[dict[str, Tensor]], world: World, packs: int = 1, has_blank: bool = True
) -> float:
    """One step's loss over all processes, gradients left in the parameters. Each process takes every
    `world.size`-th row of a pack.
    """
    count = sum(int((one["labels"] != -100).sum()) for one in rows)
    total, batches = 0.0, []
    for number in range(packs):
        mine = rows[number::packs][world.rank :: world.size]
        if has_blank and world.size > 1 and not any(len(one["image_grid_thw"]) for one in mine):
            mine = [*mine, blank(model.config)]
        batches.append(Batch(pack(mine)))
    for batch in each_pack(batches, model, "cpu"):
        labels = batch.pop("labels")
        loss = model(**batch, then=partial(sft_loss, labels=labels, num_items_in_batch=count))
        loss.backward()
        total += loss.item()
    return world.sum(total)[0]


def gradients(model: Qwen2_5_VL) -> dict[str, Tensor]:
    return {
        name: whole(parameter.grad).clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def weights(model: Qwen2_5_VL) -> dict[str, Tensor]:
    return {name: whole(parameter).clone() for name, parameter in model.named_parameters()}


def built(
    folder: Path, world: World, replicate: int | None, frozen=(), mode="off", compute_dtype=torch.float32
) -> Qwen2_5_VL:
    """The model as the trainer makes it; replicate None: plain."""

    model = pretrained.build(read_config(folder / "model" / "config.json"))
    freeze(model, frozen)
    checkpoint_activations(model, mode)
    if replicate is not None:
        shard(model, make_mesh(world, torch.device("cpu"), replicate), compute_dtype)
    load_weights(model, folder / "model", "cpu", torch.float32)
    return model.train()


def trained(model: Qwen2_5_VL, world: World, optim: str) -> dict:
    """Three steps of training."""
    config = SFTConfig(optim=optim, learning_rate=1e-3, muon_learning_rate=0.02, weight_decay=0.1)
    optimizers = build_optimizers(model, config)
    norms = []
    for rows in steps(model.config):
        backward(model, rows, world)
        norms.append(clip_grad_norm(model.parameters(), 0.5))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return {"weights": weights(model), "norms": norms}


def one_step(model: Qwen2_5_VL, world: World, step: int = 0, packs: int = 1) -> dict:
    model.zero_grad()
    loss = backward(model, steps(model.config)[step], world, packs)
    return {"loss": loss, "gradients": gradients(model)}


def greedy(model: Qwen2_5_VL) -> list[int]:
    """Eight tokens that the plain model writes after the first row."""
    batch = pack(steps(model.config)[0][:1])
    batch.pop("labels")
    tokens: list[int] = []
    for _ in range(8):
        tokens.append(int(model(**batch)[-1].argmax()))
        batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor(tokens[-1:])])
        batch["position_ids"] = torch.cat(
            [batch["position_ids"], batch["position_ids"].amax(1, keepdim=True) + 1], dim=1
        )
        batch["cu_seqlens"] = torch.tensor([0, len(batch["input_ids"])], dtype=torch.int32)
    return tokens


class Largest(TorchDispatchMode):
    """The most bytes that any operation allocated for one tensor. What the files' own pages are seen through
    costs nothing.
    """

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is not torch.ops.aten.set_.source_Storage:
            given = {
                leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if _is_held(leaf)
            }
            made = [
                leaf
                for leaf in tree_leaves(out)
                if _is_held(leaf) and leaf.untyped_storage().data_ptr() not in given
            ]
            self.bytes = max([self.bytes, *(leaf.untyped_storage().nbytes() for leaf in made)])
        return out


def _is_held(leaf: object) -> bool:
    """True for a tensor with memory of its own, which a sharded one, or one on its way, only wraps."""
    return type(leaf) in (Tensor, torch.nn.Parameter) and leaf.device.type != "meta"


def loaded(folder: Path, world: World, replicate: int) -> tuple[Qwen2_5_VL, dict]:
    with Largest() as largest:
        model = built(folder, world, replicate)
    held = sum(local(parameter).untyped_storage().nbytes() for parameter in model.parameters())
    return model, {"weights": weights(model), "held": held, "largest": largest.bytes}


def drawn(world: World, config: Config, replicate: int | None) -> dict[str, Tensor]:
    """Weights from scratch."""
    with torch.device("meta"):
        model = Qwen2_5_VL(config)
    if replicate is not None:
        shard(model, make_mesh(world, torch.device("cpu"), replicate), torch.float32)
    model.to_empty(device="cpu")
    init_weights(model, torch.Generator().manual_seed(3))
    return weights(model)


def saved(model: Qwen2_5_VL, folder: Path) -> str:
    """Written twice; then where nothing can be, which is told in one line."""
    processor = read_processor(resolve("r1ov-tiny"))
    pretrained.save(model, processor, folder / "float32", torch.float32, SHARD_BYTES)
    pretrained.save(model, processor, folder / "bfloat16")
    try:
        pretrained.save(model, processor, folder / "float32" / "config.json" / "below")
    except UserError as error:
        return str(error)
    return "saved"


def trained_with_replica(model: Qwen2_5_VL, world: World) -> dict:
    """`trained`, and what a copy answers before and after it, brought up to date."""
    copy = replica(model, torch.float32)
    before = greedy(copy)
    result = trained(model, world, "adamw")
    refresh(copy, model)
    is_equal = all(
        torch.equal(result["weights"][name], parameter) for name, parameter in copy.named_parameters()
    )
    return result | {
        "answers": [before, greedy(copy)],
        "is plain and equal": is_equal and not is_sharded(copy),
    }


def in_bfloat16(folder: Path, world: World) -> dict:
    model = built(folder, world, 1, compute_dtype=torch.bfloat16)
    result = one_step(model, world)
    return result | {
        "master": {p.dtype for p in model.parameters()},
        "reduced": {p.grad.dtype for p in model.parameters()},
    }


def check(folder: Path, world: World) -> dict:
    """Everything that is checked with this many processes."""
    results: dict = {}
    for name, replicate in LAYOUTS[world.size].items():
        model, loading = loaded(folder, world, replicate)
        results[name] = {
            "loading": loading,
            "step": one_step(model, world),
            "packs": one_step(model, world, packs=2),
            "empty": one_step(model, world, step=1),
            "save": saved(model, folder / f"saved-{world.size}-{name}"),
            "adamw": trained_with_replica(built(folder, world, replicate), world),
            "muon": trained(built(folder, world, replicate), world, "muon"),
        }
        if world.rank == world.size - 1:
            local(model.model.layers[0].mlp.down_proj.weight.grad)[0, 0] = float("inf")
        results[name]["not finite"] = clip_grad_norm(model.parameters(), 0.5)
    config = read_config(folder / "model" / "config.json")
    results["drawn"] = drawn(world, config, 1)
    if world.size == 2:
        results["modes"] = {
            mode: one_step(built(folder, world, 1, mode=mode), world) for mode in ("selective", "full")
        }
        results["freeze"] = {frozen: one_step(built(folder, world, 1, frozen), world) for frozen in FREEZES}
        results["bfloat16"] = in_bfloat16(folder, world)
    text = [one for one in steps(config)[0] if not len(one["image_grid_thw"])]
    if world.size <= len(text):  # no picture anywhere, so no process needs a blank one
        model = built(folder, world, 1)
        results["text only"] = {
            "loss": backward(model, text, world, has_blank=False),
            "gradients": gradients(model),
        }
        results["after text only"] = one_step(model, world)
    return results


def main(folder: Path) -> None:
    with joined("cpu") as (world, _device):
        results = [None] * world.size
        dist.all_gather_object(results, check(folder, world))
        if world.is_main:
            torch.save(results, folder / f"results-{world.size}.pt")
