"""Which implementation a kernel's public function runs: an explicit argument, or the device's default; never
a caught exception.
"""

import importlib.util
import os

import torch

IMPLEMENTATIONS = ("torch", "triton")

_chosen: str | None = None  # what `use` named


def use(impl: str | None) -> None:
    """The one switch: what every call with `impl=None` runs from now on, whatever the device; None: the
    device's default again.
    """
    global _chosen
    _chosen = None if impl is None else check_impl(impl, "cpu")


def check_impl(impl: str | None, device: torch.device | str) -> str:
    """`impl`; None means the one named to `use`, else "triton" on a GPU and "torch" elsewhere. ValueError if
    there is no such implementation.
    """
    impl = impl or _chosen or ("triton" if torch.device(device).type == "cuda" else "torch")
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl is {impl!r}, must be one of {', '.join(IMPLEMENTATIONS)}")
    return impl


def unavailable(device: torch.device | str) -> str | None:
    """Why "triton" cannot run on this device, and what to do; None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (on Linux: pip install triton); torch does without"
    if torch.device(device).type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return (
            f"Triton's kernels need a GPU, found {device}; use torch, "
            "or set TRITON_INTERPRET=1 to have them interpreted, slowly"
        )
    return None


def has_amx(device: torch.device) -> bool:
    """True for CPUs whose cores multiply tiles of bfloat16."""
    return device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False)
