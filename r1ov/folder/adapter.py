"""LoRA adapters in PEFT's files: adapter_config.json and adapter_model.safetensors.

What a setting asks for and r1ov does not do is refused by name. Which layers are adapted, and their ranks,
the tensors say: target_modules, layers_to_transform, rank_pattern and the like are honoured whatever they
are.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from r1ov.common.files import one_line, read_json, write_json
from r1ov.errors import UserError
from r1ov.folder.faults import INDEX, SINGLE, few
from r1ov.folder.weights import local, whole, world_of, write_tensors
from r1ov.model.lora import Lora, adapted, targets
from r1ov.model.model import Qwen2_5_VL

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Settings that may have any value, because they are honoured, shown by the tensors, or change nothing here.
KNOWN = [
    "base_model_name_or_path",
    "revision",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "r",
    "rank_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "auto_mapping",
    "inference_mode",
    "task_type",
    "peft_version",
    "fan_in_fan_out",
    "megatron_core",
    "qalora_group_size",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "runtime_config",
]
MUST_BE = {"peft_type": ["LORA"], "bias": ["none"], "init_lora_weights": [True, "gaussian", "orthogonal"]}


@dataclass(frozen=True)
class Folders:
    """Where a model's files are: of what it is and how it is asked, of its weights, and of an adapter."""

    settings: Path
    weights: Path
    adapter: Path | None = None


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / SETTINGS).is_file() and not any((folder / name).is_file() for name in (SINGLE, INDEX))


def read_settings(folder: Path) -> Lora:
    """The settings of an adapter. Raises: UserError that names the one that r1ov does not honour."""
    path = folder / SETTINGS
    raw = read_json(path, "a LoRA adapter has one; a whole model is given as --model")
    for name, value in raw.items():
        if value and name not in KNOWN and value not in MUST_BE.get(name, ()):
            raise UserError(f"{path}: {name} is {value!r:.100}; r1ov computes plain LoRA only")
    base, alpha, dropout = (
        raw.get(name) for name in ("base_model_name_or_path", "lora_alpha", "lora_dropout")
    )
    if not base or any(not isinstance(number, int | float) for number in (alpha, dropout or 0)):
        raise UserError(
            f"{path}: expected base_model_name_or_path, and numbers as lora_alpha and lora_dropout"
        )
    revision = f"@{raw['revision']}" if raw.get("revision") else ""
    return Lora(f"{base}{revision}", alpha, dropout or 0.0, bool(raw.get("use_rslora")))


def read_adapter(
    folder: Path, model: Qwen2_5_VL, device: torch.device | str
) -> tuple[dict[str, Tensor], Lora]:
    """An adapter's matrices and settings, for `attach`. Args: model: its base, for names and shapes."""
    settings, path = read_settings(folder), folder / WEIGHTS
    try:
        with safe_open(path, framework="pt", device=str(device)) as reader:
            values = {_ours(name): reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 no mapping
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: no safetensors file that can be read ({one_line(str(error))[:200]})"
        ) from None
    expected = {}
    for layer in targets(model, "all-linear", with_vision=True):
        if (a := values.get(f"{layer}.lora_A")) is not None:
            rows, columns = model.get_submodule(layer).weight.shape
            expected |= {f"{layer}.lora_A": (len(a), columns), f"{layer}.lora_B": (rows, len(a))}
    found = {name: tuple(value.shape) for name, value in values.items()}
    if other := [name for name in expected | found if expected.get(name) != found.get(name)]:
        raise UserError(
            f"{path}: not an adapter of this model: {few(other)} missing, unexpected or of another shape"
        )
    return {name: values[name] for name in expected}, settings


@torch.no_grad()
def merge(model: Qwen2_5_VL) -> Qwen2_5_VL:
    """Adds an adapter to its base, in place: an ordinary model. Collective if the model is sharded."""
    state = model.state_dict()
    for layer, linear in adapted(model).items():
        weight, a, b = (state[f"{layer}.{name}"] for name in ("weight", "lora_A", "lora_B"))
        change = local(b).float() @ whole(a).float() * model.lora.scaling(len(a))
        local(weight).copy_(local(weight) + change)
        linear._forward_hooks.clear()
        del linear.lora_A, linear.lora_B
    model.lora = None
    return model


def save_adapter(model: Qwen2_5_VL, folder: Path) -> None:
    """Writes an adapter as PEFT does, in float32. Collective if the model is sharded. Raises: OSError."""
    lora, state, world = model.lora, model.state_dict(), world_of(model)
    ranks = {_theirs(layer): len(linear.lora_A) for layer, linear in adapted(model).items()}
    tensors = {
        f"{PREFIX}{_theirs(name)}.weight": whole(value).to("cpu", torch.float32)
        for name, value in state.items()
        if "lora_" in name
    }
    r, (base, _, revision) = max(ranks.values()), lora.base.partition("@")
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "revision": revision or None,
        "r": r,
        "rank_pattern": {layer: own for layer, own in ranks.items() if own != r},
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.use_rslora,
        "target_modules": list(ranks),  # whole: their ends would mean the vision encoder's too
        "inference_mode": True,
    }
    world.on_main(partial(folder.mkdir, parents=True, exist_ok=True))
    world.on_main(partial((folder / "config.json").unlink, missing_ok=True))  # back when all is in place
    world.on_main(partial(write_tensors, folder / WEIGHTS, tensors))
    world.on_main(partial(write_json, folder / SETTINGS, settings))


def _ours(name: str) -> str:
    """PEFT's name of a tensor, of transformers 4.49 to 5, as ours."""
    name = name.removeprefix(PREFIX).removesuffix(".weight")
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def _theirs(name: str) -> str:
    return f"model.{name}" if name.startswith("visual.") else f"model.language_{name}"
