"""LoRA: a linear layer stays as it is and learns through two thin matrices beside it, y = W x + s B A x.

The matrices hang on the model's own layers by a hook: the base's parameters keep the names of their files,
and whatever runs the layers, training, decoding or a look inside, runs the adapter too. At first B is 0, and
the model its base bit for bit. Names of settings, and first values, are PEFT's.

Source: Hu et al. 2021 (arXiv 2106.09685); s = alpha / sqrt(r): Kalajdzievski 2023 (2312.03732).
Shape letters: r rank, (in, out) the sizes of a layer.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1ov.errors import UserError
from r1ov.model.model import Qwen2_5_VL

TARGETS = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj", "attn.qkv", "attn.proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


@dataclass
class Lora:
    """An adapter's settings; called as a forward hook of each of its layers."""

    base: str  # the name of the model that it adapts
    alpha: float = 32.0
    dropout: float = 0.0  # of what A reads, while gradients are taken: never of answers
    use_rslora: bool = False
    enabled: bool = True

    def scaling(self, r: int) -> float:
        return self.alpha / r ** (0.5 if self.use_rslora else 1)

    def __call__(self, linear: nn.Linear, inputs: tuple[Tensor], y: Tensor) -> Tensor:
        if not self.enabled:
            return y
        x = F.dropout(inputs[0], self.dropout, linear.training and torch.is_grad_enabled())
        # float32 weights, in the arithmetic of the layer
        low = F.linear(x, linear.lora_A.to(x.dtype))  # (T, r)
        return y + F.linear(low, linear.lora_B.to(x.dtype)) * self.scaling(len(linear.lora_A))


def targets(model: Qwen2_5_VL, target: str, with_vision: bool) -> list[str]:
    """The names of the linear layers that `--lora-target` means; the output head is never among them.

    Args: target: "all-linear", "attention", "mlp", or ends of names, as in PEFT's target_modules:
        "q_proj,v_proj".
    """
    parts = ("model.", "visual.") if with_vision else ("model.",)
    modules = model.named_modules()
    names = [name for name, module in modules if isinstance(module, nn.Linear) and name.startswith(parts)]
    if target == "all-linear":
        return names
    ends = TARGETS.get(target) or target.split(",")
    found = [name for name in names if f".{name}".endswith(tuple(f".{end}" for end in ends))]
    if not found:
        raise UserError(
            f"--lora-target: no linear layer's name ends in {target!r}; expected all-linear, attention, mlp, "
            "or ends of names such as q_proj,v_proj (with --lora-vision also the vision encoder's: attn.qkv)"
        )
    return found


def drawn(
    model: Qwen2_5_VL, layers: Iterable[str], r: int, seed: int = 0, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """The matrices of a new adapter by name: A uniform up to 1 / sqrt(in), as PEFT draws it, B 0."""
    values, generator = {}, torch.Generator().manual_seed(seed)
    for layer in layers:
        rows, columns = model.get_submodule(layer).weight.shape
        bound = columns**-0.5
        values[f"{layer}.lora_A"] = (
            torch.empty(r, columns).uniform_(-bound, bound, generator=generator).to(device)
        )
        values[f"{layer}.lora_B"] = torch.zeros(rows, r, device=device)
    return values


def attach(model: Qwen2_5_VL, values: Mapping[str, Tensor], lora: Lora) -> None:
    """Puts an adapter on a model, in place, and freezes all else.

    Args: values: `<layer>.lora_A` (r, in) and `<layer>.lora_B` (out, r), for each layer that is adapted.
    """
    model.requires_grad_(False).lora = lora
    for name, value in values.items():
        layer, _, matrix = name.rpartition(".")
        linear = model.get_submodule(layer)
        own = value[model.split.own(name)] if model.split else value
        setattr(linear, matrix, nn.Parameter(own.float()))
        if matrix == "lora_A":
            linear.register_forward_hook(lora)


def adapted(model: Qwen2_5_VL) -> dict[str, nn.Linear]:
    """The layers with an adapter, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


@contextmanager
def disable_adapter(model: Qwen2_5_VL) -> Iterator[None]:
    """Inside the block a model with an adapter is its base; one without is what it is."""
    try:
        if model.lora:
            model.lora.enabled = False
        yield
    finally:
        if model.lora:
            model.lora.enabled = True
