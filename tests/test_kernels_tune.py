"""The tuner takes the fastest tile that runs; rehearsed at toy size."""

import json
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="no Triton for this platform")

from kernels.triton import tiles
from tests import tune_kernels as tuner

TABLE = Path(tiles.__file__).with_name("tiles.json")


def test_a_rehearsal_runs_every_kernel(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        tuner, "CANDIDATES", {kernel: found[:1] for kernel, found in tuner.CANDIDATES.items()}
    )
    out = tmp_path / "tiles.json"
    assert tuner.main(["--rehearse", "--only", "causal", "--out", str(out)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 3
    assert all(line.endswith(" ms") for line in told), told
    before, after = json.loads(TABLE.read_text()), json.loads(out.read_text())
    new = {
        name: after["sm_90"].pop(name)
        for name in ("forward", "dq", "dkdv")
        for name in [f"{name} 32 causal short"]
    }
    assert after == before
    assert all(tuple(tile) in tuner.CANDIDATES[name.split()[0]] for name, tile in new.items())


def test_the_fastest_that_runs_is_taken(monkeypatch):
    seen = []

    def milliseconds(_step, _device):
        table = tiles._tables()["sm_90"]
        seen.append(table["dq 32 windows"])
        if seen[-1][0] == 128:
            raise MemoryError("too much shared memory\nand so on")
        return float(10 - seen[-1][1] / 64)

    before = json.dumps(tiles._tables())
    monkeypatch.setattr(tuner, "milliseconds", milliseconds)
    found = tuner.tune(tuner.TOY, "dq 32 windows", "cpu")
    assert len(seen) == len(tuner.CANDIDATES["dq"])  # each was in the table while it was measured
    assert found == {"dq 32 windows": [64, 128, 4, 2]}
    assert json.dumps(tiles._tables()) == before


def test_the_table_is_written_as_it_lies():
    assert tuner.written(json.loads(TABLE.read_text())) == TABLE.read_text()


def test_without_a_gpu_it_says_so_in_one_line(capsys):
    if not tuner.torch.cuda.is_available():
        assert tuner.main([]) == 2
        assert capsys.readouterr().err.count("\n") == 1
