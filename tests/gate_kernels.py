"""The gate that needs no GPU: what the public functions launch is compiled for two generations of GPUs.

    python -m kernels.gate [--only TEXT] [--alternate]

Compiling a kernel wrongly seldom fails: it spills registers to memory, or falls back from tensor cores to
plain arithmetic, or waits for each tensor-core product before it starts the next, or asks for more shared
memory than there is and stops at the first launch. All of this is visible in the machine code, which Triton
writes on any machine. Prints one row a case; exits with 1 if one of them is wrong. Compiled kernels come from
Triton's cache where the source is unchanged.
"""

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from kernels.triton.tiles import HEAD_DIMS, LONG

# Shared memory that one block may ask for, in bytes: CUDA C++ Programming Guide, "Technical Specifications
# per Compute Capability".
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
# Tensor-core products of a warp, the same of a warp group (sm_90 only), copies of whole tiles (TMA), copies
# that bypass the registers
COUNTED = ("HMMA", "HGMMA", "UTMALDG", "LDGSTS")


# Kernels without a product, and what a tensor's dtype is to Triton.
PLAIN_KERNELS = (
    *("combine_kernel", "fold_kernel", "gradient_kernel", "norm_kernel", "rotate_kernel"),
    *("norm_backward_kernel", "silu_mul_kernel", "silu_mul_backward_kernel"),
)
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class CompileCase:
    """One launch of one kernel, as Triton would compile it.

    Attributes:
        name: says which launch, e.g. "attention d128 causal: forward_kernel".
        kernel: the `@triton.jit` function.
        signature: each run-time argument's name -> its Triton type: "*bf16", "*fp32", "i32", "fp32". Pointers
            are taken as aligned to 16.
        constexprs: each `tl.constexpr` argument's name -> its value.
        num_warps, num_stages: as launched.
        needs_tensor_cores: the kernel's products must come out as tensor-core instructions.
        warp_groups: on sm_90 those of whole warp groups; False where tiles have fewer than their 64 rows.
        multiples_of_16: integer arguments that are; Triton then reads rows in wider steps.
        archs: the generations that launch it so.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int
    needs_tensor_cores: bool = False
    warp_groups: bool = True
    multiples_of_16: tuple[str, ...] = ()
    archs: tuple[int, ...] = tuple(SHARED_LIMIT)


@dataclass(frozen=True)
class MachineCode:
    """What counts in a compiled kernel.

    Attributes:
        spills: instructions that move registers to or from local memory. shared: bytes.
        waits: for the products of a warp group. counts: instructions by name.
        widths: columns of the warp groups' products.
    """

    registers: int
    spills: int
    shared: int
    waits: int
    counts: Counter
    widths: frozenset[int] = frozenset()


def compile_case(case: CompileCase, arch: int) -> MachineCode:
    """Compiles one case for compute capability `arch` (80 or 90) and reads the machine code. No GPU is asked
    for.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    given = [*case.signature, *case.constexprs]
    if sorted(given) != sorted(names):
        raise ValueError(
            f"{case.name}: the kernel takes {', '.join(names)}; the case gives {', '.join(given)}"
        )
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    aligned = [
        i for i, name in enumerate(names) if signature[name].startswith("*") or name in case.multiples_of_16
    ]
    source = ASTSource(
        case.kernel, signature, case.constexprs, {(i,): [["tt.divisibility", 16]] for i in aligned}
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    except Exception as error:
        error.add_note(f"while compiling {case.name} for sm_{arch}")
        raise

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # e.g. "        /*0140*/              @!P0 LDGSTS.E.BYPASS.128 [R33], [R8.64] ;"
    counts = Counter(
        re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", listing, re.MULTILINE)
    )
    registers = int(re.search(r"REG:(\d+)", listing)[1])
    waits = len(re.findall(r"WARPGROUP\.DEPBAR", listing))
    widths = frozenset(map(int, re.findall(r"HGMMA\.\d+x(\d+)x", listing)))
    spills = counts["STL"] + counts["LDL"]
    return MachineCode(registers, spills, compiled.metadata.shared, waits, counts, widths)


def faults(case: CompileCase, arch: int, code: MachineCode) -> list[str]:
    """What is wrong with a compiled case, in words; empty if nothing."""
    found = []
    if not code.counts["EXIT"]:
        found.append("no machine code could be read")
    if code.spills:
        found.append(f"{code.spills} register spills")
    if code.shared > SHARED_LIMIT[arch]:
        found.append(f"shared memory above {SHARED_LIMIT[arch] // 1024} KiB")
    if case.needs_tensor_cores:
        wanted = ["HGMMA"] if arch == 90 and case.warp_groups else ["HMMA", "HGMMA"]
        if not sum(code.counts[name] for name in wanted):
            found.append(f"no {' or '.join(wanted)}")
    # Below 64 columns the tensor cores wait for shared memory; a head may have no more.
    head = case.constexprs.get("DIM", 0)
    narrow = code.widths - {head, head % 64}
    if narrow and min(narrow) < 64:
        found.append(f"products of {min(narrow)} columns")
    if code.waits > code.counts["HGMMA"] // 2:
        found.append(f"serialised products: {code.waits} waits for {code.counts['HGMMA']}")
    return found


def judge(cases: Iterable[CompileCase], alternate: bool = False) -> int:
    """Prints a row for each case and generation; returns how many are wrong.

    Args: alternate: the head sizes of small models alone, 32 and 64, for one of the generations in turn.
    """
    print(
        f"{'case':48} {'arch':>5} {'regs':>5} {'spills':>6} {'shared KiB':>10} "
        + " ".join(f"{name:>7}" for name in COUNTED)
    )
    pairs = [
        (case, arch)
        for number, (case, arch) in enumerate((case, arch) for case in cases for arch in case.archs)
        if not (alternate and re.search(r" d(32|64)\b", case.name) and (number + number // 2) % 2)
    ]
    wrong = 0
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for (case, arch), code in zip(pairs, pool.map(lambda pair: compile_case(*pair), pairs), strict=True):
            found = faults(case, arch, code)
            wrong += bool(found)
            counts = " ".join(f"{code.counts[name]:7}" for name in COUNTED)
            row = f"{case.name:48} sm_{arch} {code.registers:5} {code.spills:6} {code.shared / 1024:10.1f}"
            print(row, counts, "ok" if not found else f"WRONG: {', '.join(found)}", flush=True)
    return wrong


def launches(name: str, call: Callable[[], Any]) -> list[CompileCase]:
    """Every kernel that a call launches, as a case. Nothing is run: a recorder takes the kernels' place."""
    from triton.runtime.jit import JITFunction

    cases = []

    def record(kernel, *args, grid, warmup, **options) -> None:
        given = dict(zip(kernel.arg_names, args, strict=False)) | options
        values = {param.name: given[param.name] for param in kernel.params}
        constexprs = {param.name: values.pop(param.name) for param in kernel.params if param.is_constexpr}
        kinds = {
            key: TYPES[value.dtype]
            if isinstance(value, torch.Tensor)
            else "fp32"
            if isinstance(value, float)
            else "i32"
            for key, value in values.items()
        }
        short = kernel.__name__ == "partial_kernel" and constexprs["BLOCK_M"] < 64
        cases.append(
            CompileCase(
                name=f"{name}: {kernel.__name__}",
                kernel=kernel,
                signature=kinds,
                constexprs=constexprs,
                num_warps=options.get("num_warps", 4),
                num_stages=options.get("num_stages", 3),
                needs_tensor_cores=kernel.__name__ not in PLAIN_KERNELS
                and values[kernel.arg_names[0]].itemsize == 2,
                warp_groups=not short,
                multiples_of_16=tuple(
                    param.name
                    for param in kernel.params
                    if type(value := values.get(param.name)) is int
                    and value % 16 == 0
                    and not param.do_not_specialize
                ),
            )
        )

    with patch.object(JITFunction, "run", record):
        call()
    return cases


def all_cases() -> list[CompileCase]:
    """What the public functions launch at every head size and dtype that counts, each configuration once.

    float32 attention is left out: its exact products run beside the tensor cores, and spill.

    Raises: ValueError if a kernel (a jit function named *_kernel) of this folder is never launched.
    """
    from triton.runtime.jit import JITFunction

    import kernels
    from kernels import pointwise

    def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    def attend(dim: int, heads: int, key_heads: int, causal: bool, longest: int) -> None:
        tokens = max(250, longest)
        q, k, v = (zeros(tokens, count, dim).requires_grad_() for count in (heads, key_heads, key_heads))
        cu_seqlens = torch.tensor([*range(0, tokens, longest), tokens], dtype=torch.int32)
        out = kernels.attention(q, k, v, cu_seqlens, causal, max_seqlen=longest, impl="triton")
        out.backward(zeros(*out.shape))

    def decode(dim: int) -> None:
        q, keys = zeros(4, 28, dim), zeros(4, 4, 32, dim)
        kernels.decode_attention(q, keys, keys, torch.full((4,), 9), impl="triton")

    def score(dtype: torch.dtype) -> None:
        hidden, weight = (zeros(rows, 128, dtype=dtype).requires_grad_() for rows in (64, 4096))
        kernels.token_logprobs(hidden, weight, torch.arange(64), impl="triton").sum().backward()

    def norm(width: int, dtype: torch.dtype = torch.bfloat16, alone: bool = False) -> None:
        x, residual, weight = (
            zeros(*size, width, dtype=dtype).requires_grad_() for size in ((70,), (70,), ())
        )
        if alone:
            pointwise.rms_norm(x, weight, 1e-6, impl="triton").sum().backward()
        else:
            total, normed = pointwise.add_rms_norm(x, residual, weight, 1e-6, impl="triton")
            (total + normed).sum().backward()

    def gate(dtype: torch.dtype) -> None:
        pointwise.silu_mul(
            *(zeros(70, 160, dtype=dtype).requires_grad_() for _ in "gu"), impl="triton"
        ).sum().backward()

    def rotate(dim: int, dtype: torch.dtype) -> None:
        angles = zeros(70, dim, dtype=torch.float32 if dim == 80 else dtype)
        pointwise.rotate(zeros(70, 4, dim, dtype=dtype), angles, angles, impl="triton")

    found: list[CompileCase] = []
    for width in (2048, 8192):
        found += launches(f"norm of a sum {width}", partial(norm, width))
    found += launches("norm 64", partial(norm, 64, alone=True))
    found += launches("norm of a sum fp32 2048", partial(norm, 2048, torch.float32))
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        found += launches(f"gate {name}", partial(gate, dtype))
        for dim in (80, 128):
            found += launches(f"turn d{dim} {name}", partial(rotate, dim, dtype))
    for dim, arch in product(HEAD_DIMS, SHARED_LIMIT):
        own: list[CompileCase] = []
        with patch("kernels.triton.tiles.architecture", lambda _, arch=arch: f"sm_{arch}"):
            for causal, longest in product((True, False), (128, LONG)):
                how = f"{'causal' if causal else 'full'}{' long' if longest == LONG else ''}"
                own += launches(f"attention d{dim} {how}", partial(attend, dim, 28, 4, causal, longest))
            own += launches(f"window d{dim}", partial(attend, dim, 16, 16, False, 64))
        found += [replace(case, archs=(arch,)) for case in own]
        found += launches(f"decode d{dim}", partial(decode, dim))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        found += launches(f"log-probs {str(dtype).removeprefix('torch.')}", partial(score, dtype))
    # A configuration that several calls launch is one case.
    cases: dict[tuple[str, ...], CompileCase] = {}
    for case in found:
        settings = case.signature, case.constexprs, case.num_warps, case.num_stages
        key = (case.kernel.__name__, *map(str, settings))
        known = cases.setdefault(key, case)
        cases[key] = replace(known, archs=tuple(sorted({*known.archs, *case.archs})))
    launched = {case.kernel.__name__ for case in found}
    for path in sorted(Path(kernels.__file__).parent.glob("triton/*.py")):
        module = importlib.import_module(f"kernels.triton.{path.stem}")
        for name, value in vars(module).items():
            if isinstance(value, JITFunction) and name.endswith("_kernel") and name not in launched:
                raise ValueError(f"{path.name}: no call of the gate launches {name}")
    return list(cases.values())


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.gate",
        description="Compiles all kernels without a GPU and judges the machine code.",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only the cases with this in their name")
    parser.add_argument(
        "--alternate", action="store_true", help="head sizes 32 and 64 for one generation in turn: faster"
    )
    options = parser.parse_args()
    only = options.only
    if os.environ.get("TRITON_INTERPRET"):
        print(
            "TRITON_INTERPRET is set, so Triton would interpret the kernels and not compile them: unset it",
            file=sys.stderr,
        )
        return 2
    cases = [case for case in all_cases() if only in case.name]
    if not cases:
        print(f"no case has {only!r} in its name", file=sys.stderr)
        return 2
    wrong = judge(cases, options.alternate)
    print(
        f"{len(cases)} cases on {len(SHARED_LIMIT)} generations, {wrong} wrong"
        if wrong
        else f"{len(cases)} cases, all right"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
