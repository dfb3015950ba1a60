"""The plan of the house: who may import whom, how long a file may be, and the names that other people's
scripts rely on.
"""

import ast
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import kernels
import r1ov
from r1ov.data import playground

ROOT = Path(__file__).parent.parent
# The longest matching prefix wins; a module imports only from floors below its own, or from its own room.
FLOORS = {
    "kernels": 0,
    "r1ov": 0,
    "r1ov.errors": 0,
    "r1ov.common": 0.5,
    "r1ov.cli": 0.75,
    "r1ov.model": 1,
    "r1ov.reward": 1,
    "r1ov.folder": 1.5,
    "r1ov.data": 2,
    "r1ov.folder.pretrained": 2.75,
    "r1ov.data.__main__": 3,
    "r1ov.engine": 3,
    "r1ov.train": 4,
    "r1ov.evaluate": 4,
    "r1ov.formalize": 4,
    "r1ov.look": 4.5,
    "tests": 5,
    "train": 5,
    "generate": 5,
}
SOURCES = [
    *sorted((ROOT / "kernels").rglob("*.py")),
    *sorted((ROOT / "r1ov").rglob("*.py")),
    ROOT / "train.py",
    ROOT / "generate.py",
]


def room(module: str) -> str:
    return max((name for name in FLOORS if module == name or module.startswith(name + ".")), key=len)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_floors_below(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    home = room(module)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            # `from r1ov import pretrained` names a module of its own
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "r1ov"
                else [node.module]
            )
        for name in names:
            if name.split(".")[0] in ("kernels", "r1ov", "train", "generate") and module != "r1ov":
                other = room(name)
                assert other == home or FLOORS[other] < FLOORS[home], (
                    f"{module} imports {name}, which is not below it"
                )
                assert not (home == "kernels" and other != "kernels"), "kernels knows nothing of r1ov"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_longer_than_a_reader_can_hold(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


def test_top_level_holds_what_the_design_names():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    top = {line.split("/")[0] for line in tracked if line and not line.startswith(".")}
    assert top <= {
        "README.md",
        "requirements.txt",
        "train.py",
        "generate.py",
        "r1ov",
        "kernels",
        "tests",
        "LICENSE",
        "pyproject.toml",
    }


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_public_python_names_are_frozen():
    from r1ov.model.model import Qwen2_5_VL
    from r1ov.reward import accuracy_reward, format_reward
    from r1ov.train.loss import group_advantages, grpo_loss, sft_loss

    assert parameters(r1ov.load) == ["name", "device", "dtype", "quantize"]
    assert parameters(r1ov.save) == ["model", "processor", "folder", "dtype", "max_shard_size"]
    options = [
        "max_new_tokens",
        "temperature",
        "top_p",
        "top_k",
        "repetition_penalty",
        "seed",
        "num_samples",
        "stream",
    ]
    assert parameters(r1ov.generate) == ["model", "processor", "messages", *options]
    assert parameters(Qwen2_5_VL.forward)[1:6] == [
        "input_ids",
        "position_ids",
        "cu_seqlens",
        "pixel_values",
        "image_grid_thw",
    ]
    assert parameters(playground.sample) == ["split", "index", "seed"]
    fields = ["image", "question", "description", "reasoning", "answer", "kind", "family"]
    assert list(playground.Sample.__dataclass_fields__) == fields
    assert parameters(kernels.attention) == [
        "q",
        "k",
        "v",
        "cu_seqlens",
        "causal",
        "cu_seqlens_k",
        "max_seqlen",
        "impl",
    ]
    assert parameters(kernels.token_logprobs) == [
        "hidden",
        "weight",
        "targets",
        "temperature",
        "return_entropy",
        "impl",
        "return_hits",
    ]
    assert parameters(accuracy_reward) == ["completion", "gold", "kind"]
    assert parameters(format_reward) == ["completion", "mode"]
    assert parameters(sft_loss)[:3] == ["hidden", "weight", "labels"]
    assert parameters(group_advantages)[:3] == ["rewards", "num_generations", "scale_rewards"]
    assert parameters(grpo_loss)[:4] == ["logprobs", "advantages", "cu_seqlens", "completion_mask"]


FLAGS = {
    (
        "generate.py",
    ): "image prompt system model max-new-tokens temperature top-p top-k seed num-samples min-pixels "
    "max-pixels device dtype kernels json",
    (
        "train.py",
    ): "stage model data out max-steps learning-rate per-device-train-batch-size gradient-accumulation-steps "
    "save-steps logging-steps seed kernels preset",
    (
        "train.py",
        "--stage",
        "grpo",
    ): "stage model data out preset max-steps learning-rate num-generations beta epsilon temperature",
    ("-m", "r1ov.evaluate", "compare"): "common limit",
    (
        "-m",
        "r1ov.evaluate",
    ): "bench model split out limit predictions data prompt system num-samples max-new-tokens temperature "
    "top-p top-k seed min-pixels max-pixels max-num-seqs judge judge-model device dtype kernels",
    (
        "-m",
        "r1ov.formalize",
    ): "data out limit describer describer-model reasoner reasoner-model judge judge-model concurrency "
    "max-tokens-spent retry-failed",
}


@pytest.mark.parametrize("command", FLAGS, ids=" ".join)
def test_public_flags_are_frozen(command):
    shown = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for flag in FLAGS[command].split():
        assert f"--{flag}" in shown


def test_importing_does_no_work():
    """`import r1ov` loads neither torch nor anything that would probe a GPU, and no import starts a thread or
    opens a socket.
    """
    code = "import sys, r1ov, threading as t; assert 'torch' not in sys.modules; assert t.active_count() == 1"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# The core, in the order in which it reads, and the folders one door further.
CORE = [
    *(f"kernels/{name}.py" for name in ("attention", "logprobs", "dispatch")),
    *(f"r1ov/model/{name}.py" for name in ("config", "rope", "vision", "language", "model", "lora")),
    *(f"r1ov/data/{name}.py" for name in ("image", "messages", "processor", "pack")),
    *(f"r1ov/engine/{name}.py" for name in ("sampling", "cache", "decode", "generate")),
    *(f"r1ov/reward/{name}.py" for name in ("format", "accuracy")),
    *(f"r1ov/train/{name}.py" for name in ("loss", "optim", "rollout", "sft", "grpo")),
]
FOLDERS = [
    "kernels/triton/",
    "r1ov/common/",
    "r1ov/folder/",
    "r1ov/data/formats/",
    "r1ov/data/playground/",
    "r1ov/reward/rules/",
    "r1ov/train/run/",
    "r1ov/evaluate/",
    "r1ov/formalize/",
    "r1ov/look/",
    "tests/",
]
README = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")


def test_the_readme_names_the_core_and_the_folders():
    """Every file of the core by its name, every folder beside it by its own, and nothing else."""
    for name in [*CORE, *FOLDERS]:
        assert (ROOT / name).exists(), name
        assert re.search(rf"^    {re.escape(name)}\s", README, re.MULTILINE), (
            f"README's list of files lacks {name}"
        )
    assert len(README.splitlines()) <= 250
    assert len(README.split()) <= 2_800
    assert max(map(len, README.splitlines())) <= 160
    for path in re.findall(r"\]\((r1ov/[^)]+)\)|--image (r1ov/\S+)", README):
        assert (ROOT / (path[0] or path[1])).exists(), path


def test_the_readmes_commands_parse(monkeypatch):
    from generate import Options
    from r1ov.cli import parse_cli
    from r1ov.evaluate.__main__ import EvaluateConfig, comparison
    from r1ov.formalize.__main__ import FormalizeConfig
    from r1ov.train.run.config import GRPOConfig, SFTConfig

    programs = {
        "generate.py": Options,
        "train.py": SFTConfig,
        "r1ov.evaluate": EvaluateConfig,
        "r1ov.formalize": FormalizeConfig,
    }
    presets = {"r1-onevision": {}, "dapo": {}}
    seen = set()
    for line in re.findall(r"^    ((?:pip|python|torchrun|OMP).*)$", README, re.MULTILINE):
        for command in line.split(" && "):
            words = shlex.split(command)
            started = "--nproc-per-node" in words and words[words.index("--nproc-per-node") + 1]
            monkeypatch.setenv("WORLD_SIZE", started or "1")
            for program, options in programs.items():
                if program in words:
                    options = GRPOConfig if "grpo" in words else options
                    if "compare" in words:
                        comparison(words[words.index("compare") + 1 :])
                        continue
                    parse_cli(
                        options,
                        words[words.index(program) + 1 :],
                        prog=program,
                        description="",
                        presets=presets,
                    )
                    seen.add(program)
    assert seen >= {"generate.py", "train.py"}
