"""The kernels' own intermediate code, executed: reads and writes out of bounds, races between programs,
values that nobody wrote. By `ttsem`, where it can be imported; it asks for a newer Python and Triton than we
do, so that it is no requirement, but runs here from an unpacked wheel on the PYTHONPATH.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(importlib.util.find_spec("ttsem") is None, reason="ttsem is not on the PYTHONPATH")
@pytest.mark.parametrize("name", ["triton_decode", "triton_attention", "triton_pointwise"])
def test_no_kernel_reads_or_writes_what_it_must_not(name):
    """opcheck's tests are left out: they look at devices, and ttsem's is a stand-in."""
    left_out = "not expect and not keeps_what_it_tells and not accepts"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ttsem.sanitize", "pytest", "-q", f"tests/test_kernels_{name}.py"),
            *("-k", left_out, "-p", "no:xdist"),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
