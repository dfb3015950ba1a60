"""The state that a run resumes from: its options, its tensors by name, and torch's random states."""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest

import torch
from torch import Tensor, nn

from r1ov.cli import marked
from r1ov.common.files import check_same_options
from r1ov.errors import UserError
from r1ov.folder.weights import is_sharded, local
from r1ov.train.run.config import TrainConfig
from r1ov.train.run.storage import Stored


def check_same_run(before: Mapping, config: TrainConfig, files: Sequence[str], is_finished: bool) -> None:
    """Raises UserError if a run begun with `before` cannot go on with these options or these data files."""
    pairs = zip_longest(before.get("fingerprint") or files, files, fillvalue="no file")
    changed = [f"{old} is now {new}" for old, new in pairs if old != new]
    if changed and not config.allow_changed_data:
        raise UserError(
            f"the rows of --data {config.data} have changed since the run in {config.out} began: {changed[0]}"
            f"{', ...' * (len(changed) > 1)}; put them back, choose another --out, or go on with "
            "--allow-changed-data"
        )
    where = f"the finished run in {config.out}" if is_finished else "this run"
    may_differ = {*marked(config, "resumable"), "world_size", "fingerprint"}
    check_same_options(before, asdict(config), {*may_differ, *marked(config, "overridable")}, where)
    if not config.override:
        check_same_options(before, asdict(config), may_differ, where, "go on with these by --override")


def state_tensors(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Every tensor of the training state by a name that is the same on all ranks: the tensors themselves,
    sharded where they are. Of a model with an adapter, the adapter's alone.

    `model.<parameter or buffer>`, and `optimizer.<class>.<parameter>.<state>`, say
    `optimizer.AdamW.lm_head.weight.exp_avg`.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}
    tensors = {f"model.{name}": tensor for name, tensor in (own or model.state_dict()).items()}
    for optimizer in optimizers:
        for prefix, parameter in _prefixes(model, optimizer):
            state = optimizer.state.get(parameter, {})
            tensors |= {f"{prefix}.{key}": value for key, value in state.items()}
    return tensors


def copy_of_share(tensors: Mapping[str, Tensor], is_main: bool) -> dict[str, Tensor]:
    """Copies in CPU memory of what this rank stores: its rows, and the main process what is whole. Of several
    groups that each hold the whole model, the first stores it.
    """

    def stores(tensor: Tensor) -> bool:
        if not is_sharded(tensor):
            return is_main
        mesh = tensor.device_mesh
        return mesh.ndim == 1 or mesh.get_local_rank(0) == 0

    mine = {name: local(tensor) for name, tensor in tensors.items() if stores(tensor)}
    return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in mine.items()}


@torch.no_grad()
def restore(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], stored: Mapping[str, Stored]
) -> None:
    """Fills the model's tensors, and gives the optimizers their states, but not their options.

    Args: stored: by the names of `state_tensors`.
    Raises: UserError if it is the state of another model or optimizer; then nothing was changed.
    """
    parameters = {
        prefix: (optimizer, parameter)
        for optimizer in optimizers
        for prefix, parameter in _prefixes(model, optimizer)
    }
    target = state_tensors(model, [])
    expected = {name: tensor.shape for name, tensor in target.items()}
    found = {
        name: tensor.shape for name, tensor in stored.items() if name.rpartition(".")[0] not in parameters
    }
    if other := [name for name in {**expected, **found} if expected.get(name) != found.get(name)]:
        raise UserError(
            f"the checkpoint is of another model or optimizer: {len(other)} tensors are missing, unexpected "
            f"or of another shape, first {other[0]}; start with the options it was made with, or choose "
            "another --out"
        )
    for optimizer in optimizers:
        optimizer.state.clear()
    for name, tensor in stored.items():
        if name in target:
            local(target[name]).copy_(tensor.read(target[name]))
        else:
            prefix, _, key = name.rpartition(".")
            optimizer, parameter = parameters[prefix]
            optimizer.state[parameter][key] = _laid_out(tensor.read(parameter), parameter)


def random_state() -> dict[str, str]:
    """Torch's random states of this process, for JSON: of the CPU, and of the GPU if one is in use."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return {device: base64.b64encode(state.numpy().tobytes()).decode() for device, state in states.items()}


def set_random_state(states: Mapping[str, str]) -> None:
    """Puts back what `random_state` gave; the GPU's only if one was and is in use."""
    for device, text in states.items():
        state = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
        if device == "cpu":
            torch.set_rng_state(state)
        elif torch.cuda.is_initialized():
            torch.cuda.set_rng_state(state)


def _prefixes(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    """The optimizer's parameters in its own order, each with what the names of its states begin with."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield f"optimizer.{type(optimizer).__name__}.{names[parameter]}", parameter


def _laid_out(state: Tensor, parameter: nn.Parameter) -> Tensor:
    """This rank's rows of an optimizer state, sharded as the parameter is; a count of steps as it is.

    By hand, because DTensor's own operations take seconds to find out how their first results are laid out.
    """
    state = state.to(parameter.device)
    if not state.ndim or not is_sharded(parameter):
        return state
    from torch.distributed.tensor import DTensor  # takes a second to import

    return DTensor(state, parameter._spec, requires_grad=False)
