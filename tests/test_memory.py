"""What a command says that it will need, against what it then takes, and the line in which it refuses."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import generate
from r1ov.common import memory
from r1ov.errors import UserError
from tests.checkpoint import write_checkpoint

PEAK = """
    import sys
    import generate
    generate.main()
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("peak", int(peak.split()[1]) * 1024, file=sys.stderr)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_the_plan_is_within_a_tenth_of_the_measured_peak():
    words = "--image r1ov/data/playground/examples/counting.png --temperature 1 --num-samples 64 --seed 1"
    run = subprocess.run(  # a process of its own: the peak of this one is that of all tests
        [
            sys.executable,
            "-c",
            textwrap.dedent(PEAK),
            *words.split(),
            "--max-new-tokens",
            "300",
            "--device",
            "cpu",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    said = 1e9 * float(re.search(r"\| ([\d.]+) GB of [\d.]+ free \(program", run.stderr)[1])
    peak = int(re.search(r"peak (\d+)", run.stderr)[1])
    assert abs(said - peak) < 0.1 * peak, run.stderr


def test_what_does_not_fit_is_refused_in_one_line_before_it_is_loaded(tmp_path, monkeypatch):
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(bytes(10**6))  # never read
    monkeypatch.setattr(memory, "free_memory", lambda device: 1e6)
    words = ["--model", str(tmp_path), "--prompt", "hi", "--device", "cpu", "--num-samples", "1000"]
    monkeypatch.setattr(sys, "argv", ["generate.py", *words, "--temperature", "1", "--max-new-tokens", "400"])
    with pytest.raises(UserError) as caught:
        generate.main()
    message = str(caught.value)
    assert re.match(
        r"needs [\d.]+ GB of [\d.]+ free \(program .*, weights .*, cache .*, activations", message
    )
    assert all(word in message for word in ("quantize int4", "new tokens or samples", "max_pixels"))
    assert "\n" not in message


def test_memory_is_that_of_the_container_where_it_has_less(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   5000 kB\n",
        "/sys/fs/cgroup/memory.max": "3000000\n",
        "/sys/fs/cgroup/memory.current": "1000000\n",
    }
    monkeypatch.setattr(Path, "read_text", lambda self: files[str(self)])
    assert memory.free_memory(torch.device("cpu")) == 2_000_000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert memory.free_memory(torch.device("cpu")) == 5_120_000
