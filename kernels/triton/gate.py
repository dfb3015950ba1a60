"""The gate that needs no GPU: every configuration of every kernel is compiled for two generations of GPUs,
and its machine code judged.

    python -m kernels.gate [--only TEXT]

Compiling a kernel wrongly seldom fails: it spills registers to memory, or falls back from tensor cores to
plain arithmetic, or asks for more shared memory than there is and stops at the first launch. All three are
visible in the machine code, which Triton writes on any machine. One row a case; exit 1 if one of them is
wrong. Compiled kernels come from Triton's cache where the source is unchanged.
"""

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

# Shared memory that one block may ask for, in bytes: CUDA C++ Programming Guide, "Technical Specifications
# per Compute Capability".
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
# Tensor-core products of a warp, the same of a warp group (sm_90 only), copies of whole tiles (TMA), copies
# that bypass the registers
COUNTED = ("HMMA", "HGMMA", "UTMALDG", "LDGSTS")


@dataclass(frozen=True)
class CompileCase:
    """One configuration of one kernel, as its launcher would have Triton compile it.

    Attributes:
        name: says which configuration, e.g. "attention_forward d128 causal bf16".
        kernel: the `@triton.jit` function.
        signature: each run-time argument's name -> its Triton type: "*bf16", "*fp32", "i32", "fp32". Pointers
            are taken as aligned to 16.
        constexprs: each `tl.constexpr` argument's name -> its value.
        num_warps, num_stages: as launched.
        needs_tensor_cores: the kernel's products must come out as tensor-core instructions (not asked of
            float32).
        warp_groups: on sm_90 those of whole warp groups; False where tiles have fewer than their 64 rows.
        multiples_of_16: integer arguments that are, at the sizes that count. Triton looks at each launch and
            reads rows in wider steps.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int
    needs_tensor_cores: bool
    warp_groups: bool = True
    multiples_of_16: tuple[str, ...] = ()


@dataclass(frozen=True)
class MachineCode:
    """What counts in a compiled kernel. `spills`: instructions that move registers to or from local memory;
    `shared`: bytes.
    """

    registers: int
    spills: int
    shared: int
    counts: Counter


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
    return MachineCode(registers, counts["STL"] + counts["LDL"], compiled.metadata.shared, counts)


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
    return found


def judge(cases: Iterable[CompileCase]) -> int:
    """Prints a row for each case and generation; returns how many are wrong."""
    print(
        f"{'case':44} {'arch':>5} {'regs':>5} {'spills':>6} {'shared KiB':>10} "
        + " ".join(f"{name:>7}" for name in COUNTED)
    )
    pairs = list(product(cases, SHARED_LIMIT))
    wrong = 0
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for (case, arch), code in zip(pairs, pool.map(lambda pair: compile_case(*pair), pairs), strict=True):
            found = faults(case, arch, code)
            wrong += bool(found)
            counts = " ".join(f"{code.counts[name]:7}" for name in COUNTED)
            row = f"{case.name:44} sm_{arch} {code.registers:5} {code.spills:6} {code.shared / 1024:10.1f} {counts}"
            print(row, "ok" if not found else f"WRONG: {', '.join(found)}", flush=True)
    return wrong


def all_cases() -> list[CompileCase]:
    """The cases of all modules of this folder. Raises ValueError if a kernel (a jit function named *_kernel)
    is in none of them.
    """
    from triton import JITFunction

    cases, kernels = [], {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem in ("__init__", "gate"):
            continue
        module = importlib.import_module(f"kernels.triton.{path.stem}")
        cases += module.compile_cases() if hasattr(module, "compile_cases") else []
        kernels |= {
            id(x): f"{path.name}: {name}"
            for name, x in vars(module).items()
            if isinstance(x, JITFunction) and name.endswith("_kernel")
        }
    missing = [name for key, name in kernels.items() if key not in {id(case.kernel) for case in cases}]
    if missing:
        raise ValueError(f"no compile case for {', '.join(missing)}")
    return cases


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.gate",
        description="Compiles all kernels without a GPU and judges the machine code.",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only the cases with this in their name")
    only = parser.parse_args().only
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
    wrong = judge(cases)
    print(
        f"{len(cases)} cases on {len(SHARED_LIMIT)} generations, {wrong} wrong"
        if wrong
        else f"{len(cases)} cases, all right"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
