"""Settles, before anything imports triton, how its kernels run; and that `kernels` is our folder and not
somebody else's package.
"""

import os
from importlib.metadata import distributions

import pytest

# Processes side by side share the cores, and so do all that they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The files that take longest. With --dist loadfile they come first, so that all processes end together.
SLOWEST = (
    "test_kernels_gate",
    "test_parallel",
    "test_grpo_run",
    "test_sharding",
    "test_kernels_triton_attention",
    "test_hour",
    "test_grpo_update",
    "test_resume",
    "test_memory",
    "test_grpo_pitfalls",
    "test_signals",
    "test_lora_train",
    "test_kernels_model",
    "test_train",
    "test_bf16",
    "test_look_step",
    "test_look_page",
    "test_bad_input",
    "test_checkpoint",
    "test_evaluate_runner",
    "test_hub",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {name: place for place, name in enumerate(SLOWEST)}
        items.sort(key=lambda item: places.get(item.path.stem, len(SLOWEST)))


def pytest_configure(config: pytest.Config) -> None:
    """Takes the files in our order: xdist's own puts those of many tests first.

    transformers imports the Hugging Face package `kernels` where it is installed, and would find our
    folder in its stead.
    """
    config.option.loadscopereorder = False
    if any(distributions(name="kernels")):
        pytest.exit(
            "the package `kernels` is installed and collides with the folder of that name here: pip "
            "uninstall kernels",
            returncode=2,
        )
