"""What a step of training launches, moves and keeps, counted on the meta device: nothing is computed, and no
GPU or memory is needed.

    python -m tests.count_step [--release 3B] [--tokens 8192] [--pictures 8] [--patches 1024]
        [--activation-checkpointing selective]

Every operation below autograd is a kernel, but for views and what only makes room; one of ours is as many as
it launches. It moves its inputs and its outputs, each once. The optimizer is left out.
"""

import argparse
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

import kernels
from r1ov.folder.pretrained import config_from_dict
from r1ov.model.model import Qwen2_5_VL
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
    config = config_from_dict(published_config(release))
    with torch.device("meta"):
        model = Qwen2_5_VL(config).to(torch.bfloat16)
        input_ids, labels = torch.zeros(2, tokens, dtype=torch.int64)
        pixels = torch.zeros(pictures * patches, config.vision.patch_dim, dtype=torch.bfloat16)
        cu_seqlens = torch.zeros(pictures + 1, dtype=torch.int32)
    forward, backward, counting, alive = Pass(), Pass(), Counting(), []
    with patch("r1ov.train.run.sharding._policy", partial(counting.noting, sharding._policy)):
        sharding.checkpoint_activations(model, activation_checkpointing)
    side = round(patches**0.5)
    grids = torch.tensor([[1, side, side]] * pictures)
    parameters = {x.untyped_storage()._cdata for x in model.parameters()}
    held: dict[int, int] = {}  # storage -> bytes

    def hold(x: Tensor) -> Tensor:
        if x.untyped_storage()._cdata not in parameters:
            held[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
            alive.append(x)  # else its storage's address might be another's
        return x

    def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernels.attention(q, k, v, cu_seqlens)

    kernels.use("triton")
    try:
        with counting, torch.autograd.graph.saved_tensors_hooks(hold, lambda x: x):
            counting.into = forward
            # As in Qwen2_5_VL.hidden_states, which asks how many placeholders there are.
            x = model.model.embed_tokens(input_ids)
            x = x.masked_scatter((input_ids == config.image_token_id)[:, None], model.visual(pixels, grids))
            hidden = model.model(x, torch.zeros(3, tokens, dtype=torch.int64, device="meta"), attend)
            loss = -kernels.token_logprobs(hidden, model.head_weight, labels).sum()
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
    found = count(**vars(parser.parse_args()))
    print(f"{'':9} {'kernels':>8} {'GB moved':>9} {'elementwise: kernels':>21} {'GB moved':>9}")
    for name in ("forward", "backward"):
        one = found[name]
        kernels, moved = one.elementwise()
        whole = f"{one.kernels.total():8} {one.moved.total() / 1e9:9.0f}"
        print(f"{name:9} {whole} {kernels:21} {moved / 1e9:9.0f}")
    print(f"kept by checkpointing {found['kept'] / 1e9:.1f} GB, by autograd {found['held'] / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
