"""How small the house is, and how far a learner walks: budgets that are never raised.

Counted in tokens of code: comments and docstrings are free, and a token is a token however long its line is.
A walk is what one answer, one SFT step and one GRPO step enter on a CPU, counted from outside; the
playground's drawing is left out.
"""

import ast
import io
import subprocess
import textwrap
import tokenize
from pathlib import Path

import pytest

from tests import warm

ROOT = Path(__file__).parent.parent
SOURCES = [
    *sorted((ROOT / "kernels").rglob("*.py")),
    *sorted((ROOT / "r1ov").rglob("*.py")),
    ROOT / "train.py",
    ROOT / "generate.py",
]
# What a learner reads: the files that lie in these folders themselves. What lies deeper, or is named here, is
# one door further.
CORE_FOLDERS = ("", "kernels", "r1ov", "r1ov/model", "r1ov/data", "r1ov/engine", "r1ov/reward", "r1ov/train")
DOORS = (
    "kernels/bench.py",
    "kernels/gate.py",
    "kernels/tune.py",
    "r1ov/data/__main__.py",
    "r1ov/engine/chat.py",
    "r1ov/engine/parallel.py",
    "r1ov/engine/terminal.py",
    "r1ov/model/parallel.py",
    "r1ov/train/export.py",
)
CORE_TOKENS, CORE_FILES = 34_000, 34  # files: beside the __init__.py
# Rooms that are built onto the house: a look inside, adapters, weights of 4 bits, the memory plan, small
# operations for GPUs, several GPUs that answer together.
BUILT_ON = (
    "r1ov/look",
    "r1ov/model/lora.py",
    "r1ov/folder/adapter.py",
    "r1ov/train/run/lora.py",
    "r1ov/folder/quantized.py",
    "r1ov/common/memory.py",
    "kernels/pointwise.py",
    "kernels/triton/pointwise.py",
    "r1ov/model/parallel.py",
    "r1ov/engine/parallel.py",
)
# The budgets, which are never raised: without and with the rooms built on; and for each walk the files with a
# function entered, the functions, their tokens of code.
HOUSE_TOKENS, ALL_TOKENS = 128_000, 155_000
WALKS = {
    "generate.py --image r1ov/data/playground/examples/counting.png --prompt x --max-new-tokens 4": (
        20,
        110,
        12_500,
    ),
    "train.py --stage sft --max-steps 1 --eval-steps 0 --dataloader-num-workers 0"
    " --per-device-train-batch-size 8": (24, 130, 14_000),
    "train.py --stage grpo --max-steps 1 --eval-steps 0 --sample-steps 0 --per-device-train-batch-size 16": (
        32,
        190,
        22_000,
    ),
}
# Budgets that are not met yet are reported as expected failures. Until they are, nothing may move further
# away than what was measured on 29 November 2026, after adapters, weights of 4 bits, the memory plan, also
# of a step of training, and kernels for small operations had come in. (Which rules of the rewards a GRPO
# step enters depends on what was sampled, and so a little on the CPU.)
SO_FAR = dict(zip(WALKS, ((22, 125, 15_095), (28, 166, 18_525), (38, 233, 29_580)), strict=True))
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
}


def code_tokens(text: str) -> int:
    """Tokens of code; strings that stand alone as a statement are docstrings."""
    count, begins = 0, True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in LAYOUT:
            begins = begins or token.type == tokenize.NEWLINE
            continue
        if not (begins and token.type == tokenize.STRING):
            count += 1
        begins = False
    return count


def is_core(path: Path) -> bool:
    name = str(path.relative_to(ROOT))
    return name.rpartition("/")[0] in CORE_FOLDERS and name not in DOORS


def test_a_docstring_and_a_comment_cost_nothing():
    assert code_tokens('"""Doc."""\n\n\ndef f(x):  # why\n    """Doc."""\n    return "a string"\n') == len(
        ["def", "f", "(", "x", ")", ":", "return", '"a string"']
    )


def test_the_core_fits_in_a_head_and_the_whole_stays_small():
    tokens = {path: code_tokens(path.read_text(encoding="utf-8")) for path in SOURCES}
    core = [path for path in SOURCES if is_core(path)]
    assert sum(tokens[path] for path in core) <= CORE_TOKENS
    assert sum(path.name != "__init__.py" for path in core) <= CORE_FILES
    assert sum(tokens.values()) <= ALL_TOKENS
    built_on = [path for path in SOURCES if str(path.relative_to(ROOT)).startswith(BUILT_ON)]
    house = sum(tokens.values()) - sum(tokens[path] for path in built_on)
    assert house <= HOUSE_TOKENS


WATCH = """
import runpy, sys
import filelock, jinja2.sandbox, PIL.Image, safetensors.torch, tokenizers, torch, tqdm
root, entered = sys.argv[1] + "/", set()
def watch(frame, event, _):
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(root) and not code.co_name.startswith("<"):
        entered.add((code.co_filename[len(root):], code.co_firstlineno))
sys.argv = sys.argv[2:]
sys.settrace(watch)  # asked at each call of Python and, as it returns nothing, at nothing else
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
finally:
    sys.settrace(None)
    print("\\nENTERED", *(f"{name}:{line}" for name, line in sorted(entered)), file=sys.stderr)
"""


def walked(command: str, out: Path) -> dict[str, list[tuple[str, int]]]:
    """The functions that a command enters, with their tokens of code, by file."""
    own_folder = ["--out", str(out)] if "train" in command else []
    words = [warm.python(), "-c", WATCH, str(ROOT), *command.split(), *own_folder]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    places = [place.split(":") for place in done.stderr.rpartition("ENTERED ")[2].split()]
    found: dict[str, list[tuple[str, int]]] = {}
    for name in {name for name, _ in places if "/playground/" not in name}:
        firsts = {int(line) for other, line in places if other == name}
        source = (ROOT / name).read_text(encoding="utf-8").splitlines(keepends=True)
        for node in ast.walk(ast.parse("".join(source))):
            if isinstance(node, ast.FunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                if first in firsts:
                    body = textwrap.dedent("".join(source[node.lineno - 1 : node.end_lineno]))
                    found.setdefault(name, []).append((node.name, code_tokens(body)))
    return found


@pytest.mark.parametrize("command", WALKS, ids=lambda command: " ".join(command.split()[:3]))
def test_the_way_through_the_code_stays_short(command, tmp_path):
    found = walked(command, tmp_path / "run")
    functions = [function for file in found.values() for function in file]
    walk = (len(found), len(functions), sum(tokens for _, tokens in functions))
    assert all(is_ <= so_far for is_, so_far in zip(walk, SO_FAR[command], strict=True)), walk
    if any(is_ > budget for is_, budget in zip(walk, WALKS[command], strict=True)):
        pytest.xfail(f"files, functions, tokens: {walk}, the budget is {WALKS[command]}")


if __name__ == "__main__":  # python -m tests.test_learners_path: where the budgets go
    import tempfile

    for path in SOURCES:
        print(
            f"{code_tokens(path.read_text(encoding='utf-8')):6} {'core' if is_core(path) else '    '} "
            f"{path.relative_to(ROOT)}"
        )
    for command in WALKS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"\n{command}")
            for name, functions in sorted(walked(command, Path(folder) / "run").items()):
                print(
                    f"{sum(tokens for _, tokens in functions):6} {len(functions):3} {name}: "
                    f"{' '.join(name for name, _ in functions)}"
                )
