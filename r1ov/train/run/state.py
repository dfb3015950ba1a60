"""The state that a run resumes from: its tensors by name, and torch's random states."""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from r1ov.errors import UserError
from r1ov.folder.weights import is_sharded, local


def state_tensors(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Every tensor of the training state by a name that is the same on all ranks: the tensors themselves,
    sharded where they are.

    `model.<parameter or buffer>`, and `optimizer.<class>.<parameter>.<state>`, say
    `optimizer.AdamW.lm_head.weight.exp_avg`.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for optimizer in optimizers:
        for prefix, parameter in _prefixes(model, optimizer):
            tensors |= {prefix + key: value for key, value in optimizer.state.get(parameter, {}).items()}
    return tensors


def copied(tensor: Tensor) -> Tensor:
    """A copy in CPU memory; of a sharded tensor a sharded one, of this rank's rows alone."""
    return _laid_out(local(tensor).to("cpu", copy=True), tensor)


def restore(
    model: nn.Module,
    optimizers: Iterable[torch.optim.Optimizer],
    stored: Mapping[str, tuple[torch.Size, torch.dtype]],
    read: Callable[[dict[str, Tensor]], None],
) -> None:
    """Fills the model's tensors, and gives the optimizers their states; the optimizers' options are left as
    they are.

    Args:
        stored: shape and dtype of what there is to read, by the names of `state_tensors`.
        read: fills the tensors that it is given by name.
    Raises: UserError if it is the state of another model or optimizer; nothing has been changed then.
    """
    keys: dict[str, list[str]] = {}
    for name in stored:
        prefix, _, key = name.rpartition(".")
        keys.setdefault(prefix + ".", []).append(key)
    target = state_tensors(model, [])
    states: list[tuple[torch.optim.Optimizer, dict[int, dict[str, Tensor]]]] = []
    for optimizer in optimizers:
        state = {}
        for index, (prefix, parameter) in enumerate(_prefixes(model, optimizer)):
            if prefix in keys:  # else this parameter never had a gradient, and has no state to come back to
                state[index] = {key: _empty(parameter, *stored[prefix + key]) for key in keys[prefix]}
                target |= {prefix + key: value for key, value in state[index].items()}
        states.append((optimizer, state))
    other = [
        name
        for name in {**target, **stored}
        if name not in target or name not in stored or target[name].shape != stored[name][0]
    ]
    if other:
        raise UserError(
            f"the checkpoint is of another model or optimizer: {len(other)} tensors are missing, unexpected or of another shape, first "
            f"{other[0]}; start with the options it was made with, or choose another --out"
        )
    read(target)
    for optimizer, state in states:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_state() -> dict[str, str]:
    """Torch's random states of this process, for JSON: of the CPU, and of the GPU if one is in use."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return {device: base64.b64encode(state.numpy().tobytes()).decode() for device, state in states.items()}


def set_random_state(states: Mapping[str, str]) -> None:
    """Undoes what was drawn since `random_state`. A GPU's state is left as it is where there was none, or is
    none.
    """
    decoded = {
        device: torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
        for device, text in states.items()
    }
    torch.set_rng_state(decoded["cpu"])
    if "cuda" in decoded and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(decoded["cuda"])


def _prefixes(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    """The optimizer's parameters in its own order, each with what the names of its states begin with."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield f"optimizer.{type(optimizer).__name__}.{names[parameter]}.", parameter


def _empty(parameter: nn.Parameter, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Room for a state of the parameter: laid out as the parameter is, or a small tensor of its own such as a
    count of steps.
    """
    if shape == parameter.shape and parameter.ndim:
        return _laid_out(torch.zeros_like(local(parameter), dtype=dtype), parameter)
    return torch.zeros(shape, dtype=dtype)


def _laid_out(rows: Tensor, tensor: Tensor) -> Tensor:
    """This rank's rows as a tensor that is sharded as `tensor` is, if it is.

    By hand, because DTensor's own operations (`to`, `zeros_like`) take seconds to find out how their first
    results are laid out.
    """
    if not is_sharded(tensor):
        return rows
    from torch.distributed.tensor import DTensor  # takes a second to import

    return DTensor(rows, tensor._spec, requires_grad=False)
