"""Settles, before anything imports triton, how its kernels run; and that `kernels` is our folder and not
somebody else's package.
"""

import os
from importlib.metadata import distributions

import pytest

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # processes side by side share the cores, and so do all that they start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure() -> None:
    """transformers imports the Hugging Face package `kernels` where it is installed, and would find our
    folder in its stead.
    """
    if any(distributions(name="kernels")):
        pytest.exit(
            "the package `kernels` is installed and collides with the folder of that name here: pip "
            "uninstall kernels",
            returncode=2,
        )
