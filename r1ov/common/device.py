"""Chooses device, number type and kernels: those asked for, or the default, or one line that says why not."""

import warnings

import torch

from kernels import default_impl, unavailable, use
from r1ov.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(device: str | torch.device | None) -> torch.device:
    """A device that holds tensors here; None: the GPU if there is one. Raises UserError."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about devices that torch no longer knows, before its error
            chosen = torch.device(device)
            torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        raise UserError(
            f"device {str(device)!r} cannot be used here, by this torch on this machine; try cpu{_gpus()}"
        ) from error
    if chosen.type not in ("cpu", "cuda"):
        raise UserError(
            f"device {str(device)!r} cannot be used here: r1ov runs on cpu and cuda; try cpu{_gpus()}"
        )
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """float32 or bfloat16, by name or as a dtype; None: bfloat16, on a CPU float32. Raises UserError."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    name = dtype if isinstance(dtype, str) else dtype_name(dtype)
    if name in ("float16", "half"):
        raise UserError("dtype float16 overflows in the vision encoder's last block; use bfloat16 or float32")
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def choose_kernels(impl: str | None, device: torch.device) -> str:
    """Switches attention and log-probs to this implementation, or to the device's default; returns its name.

    Raises: UserError if it cannot run there.
    """
    chosen = impl or default_impl(device)
    if reason := unavailable(chosen, device):
        raise UserError(f"--kernels {chosen}: {reason}")
    use(impl)
    return chosen


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _gpus() -> str:
    count = torch.cuda.device_count()
    return "".join(f", cuda:{index}" for index in range(count))
