"""The gate passes our kernels and stops those that are wrong. In a process of its own: here Triton
interprets, there it compiles.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")  # there is none for macOS and Windows

ROOT = Path(__file__).parents[1]

WRONG_KERNELS = """
import sys
from pathlib import Path

import torch
import triton
import triton.language as tl

from tests import gate_kernels as gate
from kernels.triton import attention
from kernels.triton import logprobs as triton_logprobs


@triton.jit
def softmax(x, out, SIZE: tl.constexpr):
    columns = tl.arange(0, SIZE)
    values = tl.load(x + columns)
    e = tl.exp(values - tl.max(values))
    tl.store(out + columns, e / tl.sum(e))


@triton.jit
def product(a, b, out, count, SIZE: tl.constexpr):
    columns = tl.arange(0, SIZE)
    square = columns[:, None] * SIZE + columns
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for i in range(count):
        total = tl.dot(tl.load(a + i * SIZE * SIZE + square), tl.load(b + i * SIZE * SIZE + square), total)
    tl.store(out + square, total)


def two_loops():
    # The forward as it was: a loop over the keys that all queries see, and one over those that some do.
    source = Path(attention.__file__).read_text().replace("r1ov::attention", "r1ov::two_loops")
    begin, end = source.index("    for start in range("), source.index("\\n    alive = ")
    once = "range(0, tl.maximum(end, 1), BLOCK_N)"
    assert once in source
    loops = [source[begin:end].replace(once, f"range({span}, BLOCK_N)") for span in ("0, full", "full, end")]
    Path(sys.argv[1], "two_loops.py").write_text(source[:begin] + "".join(loops) + source[end:])
    sys.path.append(sys.argv[1])
    from two_loops import packed_forward

    x, cu_seqlens = torch.zeros(250, 4, 128, dtype=torch.bfloat16), torch.tensor([0, 250], dtype=torch.int32)
    return gate.launches("two", lambda: packed_forward(x, x, x, cu_seqlens, cu_seqlens, True, False))


def case(name, kernel, pointers, size, warps=4, stages=2, tensor_cores=False):
    signature = dict.fromkeys(pointers, "*fp32" if kernel is softmax else "*bf16")
    signature |= {"out": "*fp32"} if kernel is softmax else {"out": "*fp32", "count": "i32"}
    return gate.CompileCase(name, kernel, signature, {"SIZE": size}, warps, stages, tensor_cores)


wrong = gate.judge(
    [
        case("sound", softmax, "x", 1024),
        case("sound product", product, "ab", 64, tensor_cores=True),
        case("512 values a thread", softmax, "x", 16384, warps=1),
        case("no product", softmax, "x", 1024, tensor_cores=True),
        case("six stages", product, "ab", 128, stages=6, warps=8, tensor_cores=True),
        *two_loops(),
        case("narrow", product, "ab", 64, warps=8, tensor_cores=True),
    ]
)
print("wrong:", wrong)
triton_logprobs.lost_kernel = softmax
try:
    gate.all_cases()
except ValueError as error:
    print(error)
del triton_logprobs.lost_kernel
sys.argv = ["gate", "--only", "no such kernel"]
print("status of a filter that fits nothing:", gate.main())
"""


def run(*command, **variables):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env | variables, capture_output=True, text=True
    )


def test_every_kernel_configuration_passes():
    result = run("-m", "kernels.gate", "--alternate")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all right" in result.stdout


def test_wrong_kernels_are_stopped_and_a_filter_that_fits_nothing_is_an_error(tmp_path):
    script = tmp_path / "wrong_kernels.py"
    script.write_text(WRONG_KERNELS, encoding="utf-8")
    result = run(str(script), str(tmp_path), PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr
    rows = {arch: [row for row in result.stdout.splitlines() if f" sm_{arch} " in row] for arch in (80, 90)}
    for arch, tensor_cores in ((80, "no HMMA or HGMMA"), (90, "no HGMMA")):
        sound, sound_product, spilling, plain, greedy, two_loops, narrow = rows[arch]
        assert sound.endswith(" ok")
        assert sound_product.endswith(" ok")
        assert spilling.endswith("register spills")
        assert plain.endswith(f"WRONG: {tensor_cores}")
        assert f"shared memory above {163 if arch == 80 else 227} KiB" in greedy
        assert ("serialised products" in two_loops) == (arch == 90)
        assert ("products of 32 columns" in narrow) == (arch == 90)
    assert "wrong: 8" in result.stdout
    assert "logprobs.py: no call of the gate launches lost_kernel" in result.stdout
    assert "status of a filter that fits nothing: 2" in result.stdout
    assert "no case has 'no such kernel' in its name" in result.stderr


def test_it_refuses_to_judge_the_interpreter():
    result = run("-m", "kernels.gate", TRITON_INTERPRET="1")
    assert result.returncode == 2
    assert "unset it" in result.stderr
    assert len(result.stderr.splitlines()) == 1
