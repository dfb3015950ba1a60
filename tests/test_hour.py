"""A newcomer's first hour, played: README's commands in README's order, in one fresh folder, and then one's
own drawings, mistakes, reward and talk.

`python -m tests.test_hour` prints the transcript. Trainings are shortened by documented flags, and
published weights make room for `r1ov-tiny`; nothing else differs from what is typed.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests import warm

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
# What README says -> what is played: no hub, no GPU, no hour of training.
STANDS_IN = {
    "Qwen/Qwen2.5-VL-3B-Instruct": "r1ov-tiny",
    "Fancy-MLLM/R1-Onevision-7B": "r1ov-tiny",
    "--data Fancy-MLLM/R1-Onevision": "--data train.jsonl",
    "--preset r1-onevision ": "",
    "--nproc-per-node 8": "--nproc-per-node 2",
    "--bench mathvista": "--bench playground --limit 14 --temperature 0.5",
    "runs/evaluate/A runs/evaluate/B": "runs/evaluate/playground* runs/evaluate/playground*",
    "--step 100": "--step 1",
    "--samples 500": "--samples 4",
    "--limit 1000": "--limit 14",
    "--limit 2000": "--limit 14",
    "--limit 200": "--limit 12",
    "--max-steps 200": "",
}
OWN = " --max-steps 30 --save-steps 15 --eval-steps 15"  # README's training on one's own drawings
SHORTER = {
    "--out runs/mine": OWN,
    "train.py --stage sft": " --max-steps 2 --per-device-train-batch-size 8 --eval-samples 7",
    "train.py --stage grpo": (
        " --max-steps 2 --per-device-train-batch-size 16 --sample-steps 1 --eval-samples 7"
    ),
    "r1ov.evaluate --bench playground": " --max-new-tokens 96",
}
# Run by others (installation, the tests themselves, several processes) or only where there is a GPU.
LEFT_OUT = ("pip ", "source ", "torchrun ", "python -m venv", "python -m tests.", "python -m kernels.")
COLORS = ("red", "green", "blue", "orange")
SHAPES = ("circle", "square", "triangle")


@dataclass
class Hour:
    """Commands in a folder, and what they printed."""

    folder: Path
    transcript: list[str] = field(default_factory=list)

    def start(self, command: str, stdin: int | None = None) -> subprocess.Popen:
        words = shlex.split(command)
        if words[0] == "torchrun":
            words[:1] = ["python", "-m", "torch.distributed.run", "--standalone"]
        assert words[0] == "python", command
        words = [
            str(path)
            for word in words
            for path in (sorted(self.folder.glob(word)) if "*" in word else [word])
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        environment.pop("TRITON_INTERPRET", None)
        return subprocess.Popen(
            [warm.python(), *words[1:]],
            cwd=self.folder,
            env=environment,
            stdin=stdin or subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str, status: int = 0, stdin: str | None = None) -> str:
        """What it printed, stdout and stderr together; its exit status must be this one."""
        began = time.monotonic()
        process = self.start(command, subprocess.PIPE if stdin is not None else None)
        told, _ = process.communicate(stdin, timeout=120)
        self.transcript.append(f"$ {command}\n{told}({time.monotonic() - began:.1f} s)\n")
        print(self.transcript[-1])
        assert process.returncode == status, self.transcript[-1]
        assert "Traceback" not in told, self.transcript[-1]
        return told


def commands(readme: str) -> list[str]:
    """README's commands in order, lines of their own and in the text, as they are played."""
    found = []
    for match in re.finditer(
        r"^    ((?:python|torchrun) .*)$|`((?:python|torchrun) [^`]+)`", readme, re.MULTILINE
    ):
        for command in (match[1] or match[2]).replace("\n", " ").split(" && "):
            if command.startswith(LEFT_OUT):
                continue
            for written, played in STANDS_IN.items():
                command = command.replace(written, played)
            command += next((flags for program, flags in SHORTER.items() if program in command), "")
            found.append(command)
    return list(dict.fromkeys(found))


def draw(folder: Path) -> list[dict]:
    """Twelve drawings, and a question about each in the form of ShareGPT."""
    (folder / "drawings").mkdir()
    rows = []
    for color in COLORS:
        for shape in SHAPES:
            image = Image.new("RGB", (90, 70), "white")
            pen = ImageDraw.Draw(image)
            outline = {"fill": color, "outline": "black"}
            if shape == "circle":
                pen.ellipse((20, 10, 70, 60), **outline)
            elif shape == "square":
                pen.rectangle((20, 10, 70, 60), **outline)
            else:
                pen.polygon(((20, 60), (70, 60), (45, 10)), **outline)
            name = f"drawings/{color}-{shape}.png"
            image.save(folder / name)
            turns = [
                {"from": "human", "value": "<image>What is drawn here?"},
                {"from": "gpt", "value": f"<think>I see it.</think><answer>a {color} {shape}</answer>"},
            ]
            rows.append({"conversations": turns, "images": [name]})
    return rows


@pytest.fixture(scope="module")
def hour(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hour") / "r1ov"
    skipped = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "venv", "runs")
    shutil.copytree(ROOT, folder, ignore=skipped)
    rows = draw(folder)
    for name, part in (("train.jsonl", rows), ("held-out.jsonl", rows[::3])):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    shutil.copy(folder / "drawings/red-circle.png", folder / "photo.jpg")
    return Hour(folder)


def test_every_command_of_the_readme_in_its_order(hour):
    told = {command: hour.run(command) for command in commands(README)}
    answers = [
        text for command, text in told.items() if command.startswith("python generate.py --image r1ov")
    ]
    assert all("\n<answer>3</answer>\n" in text for text in answers), answers
    program = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    (hour.folder / "program.py").write_text(program)
    assert "-> 3" in hour.run("python program.py")
    for name in ("look.html", "sheet.png", "runs/sft/final/config.json", "runs/grpo/curves.png"):
        assert (hour.folder / name).exists(), name
    # The twelve drawings: fewer than a step's 64, said; learned by heart in thirty steps; asked as trained.
    trained, asked = (
        next(told[c] for c in told if word in c) for word in ("--out runs/mine", "held-out.jsonl --model")
    )
    assert "12" in trained, trained
    assert re.search(r"right +\S*100|100\.0%", asked), asked
    for command, text in told.items():
        if "train.py" in command:
            assert max(map(len, text.splitlines())) <= 120, text


def test_the_same_again(hour):
    """A finished run says so; more steps must be asked for; a run's folder is a model."""
    mine = next(command for command in commands(README) if "--out runs/mine" in command)
    assert len(hour.run(mine).splitlines()) == 1
    longer = mine.replace("--max-steps 30", "--max-steps 32")
    assert "--override" in hour.run(longer, status=2)
    assert "max_steps" in hour.run(longer + " --override") or "max-steps" in hour.transcript[-1]
    hour.run("python -m r1ov.train.export runs/mine/checkpoints/step-30 exported")
    told = hour.run(
        "python generate.py --model exported --image drawings/red-circle.png --prompt 'What is drawn here?'"
    )
    assert "a red circle" in told


def test_what_is_wrong_is_said_in_a_line_and_leaves_no_folder(hour):
    before = {path.name for path in (hour.folder / "runs").iterdir()}
    rows = (hour.folder / "train.jsonl").read_text().splitlines()
    bad = [*rows[:5], rows[5].replace("drawings/", "missing/"), *rows[6:]]
    (hour.folder / "bad.jsonl").write_text("\n".join(bad) + "\n")
    for command, words in {
        "python train.py --stage sft --num-generations 4": ["--num-generations", "grpo"],
        "python train.py --stage sft --max-stps 4": ["--max-steps"],
        "python train.py --stage sft --data nothing.jsonl": ["nothing.jsonl"],
        "python -m kernels.bench": ["GPU"],
    }.items():
        told = hour.run(command, status=2)
        assert len(told.splitlines()) == 1, told
        assert all(word in told for word in words), told
    told = hour.run("python -m r1ov.data bad.jsonl")
    assert "missing/" in told
    told = hour.run(
        "python train.py --stage sft --model r1ov-tiny --data bad.jsonl --max-steps 6 --out runs/bad"
    )
    assert "missing/" in told
    assert {path.name for path in (hour.folder / "runs").iterdir()} == before | {"bad"}


def test_a_reward_of_ones_own_in_trls_form(hour):
    (hour.folder / "reward.py").write_text(
        "def short(prompts, completions, **columns):\n"
        "    return [1 / (1 + len(one)) for one in completions]\n"
    )
    told = hour.run(
        "python train.py --stage grpo --reward reward.py:short --max-steps 1 --per-device-train-batch-size 16"
        " --eval-steps 0 --out runs/reward"
    )
    assert "short" in told


def test_talking(hour):
    talk = "What is drawn here?\nAnd its color?\n/save talk.jsonl\n/reset\n"
    told = hour.run("python generate.py --chat --model runs/mine --image drawings/red-circle.png", stdin=talk)
    assert "a red circle" in told
    turns = json.loads((hour.folder / "talk.jsonl").read_text())["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    told = hour.run(
        "python generate.py --image r1ov/data/playground/examples/counting.png --prompt - --json",
        stdin="How many yellow triangles are there?",
    )
    sample = json.loads(next(line for line in told.splitlines() if line.startswith("{")))
    assert sample["answer"] == "3"
    assert "".join(sample["tokens"]).count("<answer>") == 1


def test_what_formalize_prints_works(hour):
    report = (hour.folder / "runs/formalize/report.html").read_text()
    assert "rejected" in report
    told = next(entry for entry in hour.transcript if "r1ov.formalize" in entry)
    command = re.search(r"python train\.py .*", told)[0]
    hour.run(command + " --max-steps 1 --per-device-train-batch-size 4 --eval-steps 0")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-s"]))
