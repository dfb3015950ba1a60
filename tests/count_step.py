"""What a step of training launches, moves and keeps, counted on the meta device: nothing is computed, and no
GPU or memory is needed.

    python -m tests.count_step [--release 3B] [--tokens 8192] [--pictures 8] [--patches 1024]
        [--activation-checkpointing selective] [--processes 8]

Every operation below autograd is a kernel, but for views and what only makes room; one of ours is as many as
it launches. It moves its inputs and its outputs, each once. The optimizer is left out.

With --processes, what each of them has to hold of a model that they share, at the worst moment of a step.
"""

import argparse
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy
from torch.utils.weak import WeakIdKeyDictionary

import kernels
from kernels.triton import logprobs as triton_logprobs
from r1ov.folder.pretrained import config_from_dict
from r1ov.model.model import Qwen2_5_VL
from r1ov.train.loss import sft_loss_and_correct
from r1ov.train.run import sharding
from tests.test_published_shapes import published_config

# Products and attention: what is not elementwise.
PRODUCTS = (
    "mm",
    "addmm",
    "bmm",
    "attention",
    "attention_backward",
    "token_logprobs",
    "token_logprobs_backward",
)
LAUNCHES = {"attention_backward": 3, "norm_backward": 3}  # of ours that are more than one kernel
ONLY_ROOM = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")


@dataclass
class Pass:
    """kernels, and bytes, by the operation's name."""

    kernels: Counter = field(default_factory=Counter)
    moved: Counter = field(default_factory=Counter)
    made: int = 0  # bytes of all results
    kept: int = 0  # bytes of the results that selective checkpointing keeps

    def elementwise(self) -> tuple[int, int]:
        """Kernels and bytes without products and attention."""
        return tuple(
            sum(n for name, n in one.items() if name not in PRODUCTS) for one in (self.kernels, self.moved)
        )


class Counting(TorchDispatchMode):
    """Counts into `into` whatever runs within it."""

    into: Pass

    def noting(self, policy: Callable, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Selective checkpointing's policy; what it keeps is made once more, and counted apart."""
        found = policy(context, function, *args, **kwargs)
        if found is CheckpointPolicy.MUST_SAVE:
            into, self.into = self.into, Pass()
            function(*args)
            into.kept += self.into.made
            self.into = into
        return found

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        namespace, _, name = function._schema.name.partition("::")
        # A view is of what it was given, and writes nothing.
        is_view = any(
            r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns
        )
        if is_view or name in ONLY_ROOM or namespace not in ("aten", "r1ov"):
            return out
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not any(x.is_meta for x in (*made, *given)):  # on the host
            return out
        self.into.kernels[name] += LAUNCHES.get(name, 1)
        self.into.moved[name] += sum(x.nbytes for x in (*given, *made))
        self.into.made += sum(x.nbytes for x in made)
        return out


class Living(TorchDispatchMode):
    """Remembers the most bytes of results that ever lived at the same time, on the meta device or another."""

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device
        self.living = self.most = 0
        self.known = WeakIdKeyDictionary()  # storages

    def forget(self, size: int) -> None:
        self.living -= size

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        is_view = any(
            r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns
        )
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.device.type == self.device and not is_view:
                storage = x.untyped_storage()
                if storage not in self.known:
                    self.known[storage] = size = storage.nbytes()
                    weakref.finalize(storage, self.forget, size)
                    self.living += size
        self.most = max(self.most, self.living)
        return out


def build(release: str) -> Qwen2_5_VL:
    with torch.device("meta"):
        return Qwen2_5_VL(config_from_dict(published_config(release))).to(torch.bfloat16)


def loss_of(model: Qwen2_5_VL, tokens: int, pictures: int, patches: int) -> Tensor:
    """The loss of a pack that is all trained, as SFT computes it."""
    config, side = model.config, round(patches**0.5)
    merged = pictures * patches // config.vision.spatial_merge_size**2
    input_ids, position_ids = torch.zeros(4, tokens, dtype=torch.int64, device="meta").split((1, 3))
    pixels = torch.zeros(pictures * patches, config.vision.patch_dim, dtype=torch.bfloat16, device="meta")
    labels = torch.zeros(tokens, dtype=torch.int64)
    assert merged <= tokens
    return model(
        input_ids[0],
        position_ids,
        torch.tensor([0, tokens], dtype=torch.int32),
        pixels,
        torch.tensor([[1, side, side]] * pictures),
        then=partial(sft_loss_and_correct, labels=labels, num_items_in_batch=tokens),
    )[0]


def plan(
    release: str = "7B",
    processes: int = 8,
    tokens: int = 8192,
    pictures: int = 8,
    patches: int = 1024,
    activation_checkpointing: str = "selective",
) -> dict[str, float]:
    """Bytes of a GPU that shares the model with others, by what they are for, where the backward pass begins:
    then all activations are there. What comes later is less: an encoder or an embedding, and none of them.
    """
    model, living = build(release), Living()
    sharding.checkpoint_activations(model, activation_checkpointing)
    total = sum(x.numel() for x in model.parameters())
    layer = sum(x.numel() for x in model.model.layers[0].parameters())
    root = total - sum(x.numel() for x in model.visual.parameters()) - layer * len(model.model.layers)
    for x in model.parameters():  # of whole ones only as many as below, see there
        x.register_post_accumulate_grad_hook(lambda x: setattr(x, "grad", None))
    kernels.use("triton")
    try:
        with living:
            loss_of(model, tokens, pictures, patches).backward()
    finally:
        kernels.use(None)
    rows, columns = triton_logprobs.TILES["backward"]
    width, rows = model.config.text.hidden_size, min(rows, tokens)
    return {
        "own rows of weights, gradients and moments": 16 * total / processes,
        # the root's stay, beside them those of the layer that computes and of the next
        "weights that are gathered, in bfloat16": 2 * (root + 2 * layer),
        # the root's until the end; of a layer in bfloat16, and in float32 as it is summed, while the one
        # before it is on its way
        "gradients before they are summed over all": 2 * root + 2 * (2 + 4) * layer,
        "activations": living.most,
        "buffers of the loss": 2 * rows * columns + 4 * (rows + columns) * width,
        "CUDA and its libraries": 0.6e9,
    }


def count(
    release: str = "3B",
    tokens: int = 8192,
    pictures: int = 8,
    patches: int = 1024,
    activation_checkpointing: str = "selective",
) -> dict[str, Any]:
    """The forward and the backward pass, and the bytes that are held between them: what selective
    checkpointing keeps, and what autograd saves beside it.
    """
    model = build(release)
    forward, backward, counting, alive = Pass(), Pass(), Counting(), []
    with patch("r1ov.train.run.sharding._policy", partial(counting.noting, sharding._policy)):
        sharding.checkpoint_activations(model, activation_checkpointing)
    parameters = {x.untyped_storage()._cdata for x in model.parameters()}
    held: dict[int, int] = {}  # storage -> bytes

    def hold(x: Tensor) -> Tensor:
        if x.untyped_storage()._cdata not in parameters:
            held[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
            alive.append(x)  # else its storage's address might be another's
        return x

    kernels.use("triton")
    try:
        with counting, torch.autograd.graph.saved_tensors_hooks(hold, lambda x: x):
            counting.into = forward
            loss = loss_of(model, tokens, pictures, patches)
            counting.into = backward
            loss.backward()
    finally:
        kernels.use(None)
    return {"forward": forward, "backward": backward, "kept": forward.kept, "held": sum(held.values())}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.count_step", description=__doc__.splitlines()[0])
    parser.add_argument("--release", default="3B", help="3B, 7B, 32B or 72B")
    for name, value in (("tokens", 8192), ("pictures", 8), ("patches", 1024)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--activation-checkpointing", default="selective", choices=["off", "selective", "full"]
    )
    parser.add_argument("--processes", type=int, default=0)
    given = vars(parser.parse_args())
    processes = given.pop("processes")
    found = count(**given)
    print(f"{'':9} {'kernels':>8} {'GB moved':>9} {'elementwise: kernels':>21} {'GB moved':>9}")
    for name in ("forward", "backward"):
        one = found[name]
        kernels, moved = one.elementwise()
        whole = f"{one.kernels.total():8} {one.moved.total() / 1e9:9.0f}"
        print(f"{name:9} {whole} {kernels:21} {moved / 1e9:9.0f}")
    print(f"kept by checkpointing {found['kept'] / 1e9:.1f} GB, by autograd {found['held'] / 1e9:.1f} GB")
    if processes:
        parts = plan(processes=processes, **given)
        for name, size in parts.items():
            print(f"{size / 1e9:6.1f} GB {name}")
        print(f"{sum(parts.values()) / 1e9:6.1f} GB in all, of each of {processes} processes")


if __name__ == "__main__":
    main()
