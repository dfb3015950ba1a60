"""The command line of dataclasses, and `generate.py` from its flags to what it prints."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

import generate
from r1ov.cli import check_bounds, marked, option, parse_cli, placed, run
from r1ov.engine.terminal import BOLD, DIM, RESET, Painter
from r1ov.errors import UserError
from tests import warm
from tests.checkpoint import write_checkpoint

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class Settings:
    learning_rate: float = option(1e-3, "100% of it")
    max_steps: int | None = option(None, "how many")
    stage: Literal["sft", "grpo"] = option("sft", "which")
    image: tuple[str, ...] = option((), "pictures")
    bf16: bool = option(False, "precision")
    resume: bool = option(True, "go on")
    name: str | None = option(None, "a name")


def parsed(*argv: str) -> Settings:
    return parse_cli(Settings, list(argv), prog="train.py", description="d")


def test_every_kind_of_field_is_a_flag():
    assert parsed() == Settings()
    words = "--learning-rate 2e-4 --max-steps 5 --stage grpo --image a --image b --bf16 --no-resume --name x"
    expected = Settings(
        learning_rate=2e-4, max_steps=5, stage="grpo", image=("a", "b"), bf16=True, resume=False, name="x"
    )
    assert parsed(*words.split()) == expected


def test_a_field_without_a_default_is_required(capsys):
    @dataclass(frozen=True, kw_only=True)
    class Required:
        out: str = option(help="folder")

    with pytest.raises(SystemExit) as stop:
        parse_cli(Required, [], prog="p", description="d")
    assert stop.value.code == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("", ""),
        ("A", "--first A"),
        ("A B", "--first A --second B"),
        ("A B --x 3", "--first A --second B --x 3"),
        ("A --x 3", "--first A --x 3"),
        ("--x A B", "--x A B"),
        ("A B C", "--first A --second B C"),
    ],
)
def test_leading_words_get_their_flags(words, flags):
    assert placed(words.split(), "first", "second") == flags.split()


@pytest.mark.parametrize(
    "words",
    [
        "--learn 1",
        "--bogus",
        "stray",
        "--max-steps 1.5",
        "--max-steps",
        "--learning-rate nan",
        "--stage dpo",
        "--bf16 yes",
        "--learning_rate 1",
    ],
)
def test_a_wrong_flag_is_one_line_on_stderr_and_status_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parsed(*words.split())
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_help_names_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        parsed("--help")
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert "100% of it (default: 0.001)" in out
    assert "--resume, --no-resume" in out


@dataclass(frozen=True, kw_only=True)
class Bounded:
    steps: int | None = option(None, "", least=1, resumable=True)
    top_p: float = option(1.0, "", above=0, most=1)
    beta: float = option(0.5, "", least=0, below=1, resumable=True)

    def __post_init__(self) -> None:
        check_bounds(self)


def test_a_number_outside_the_bounds_of_its_declaration_is_refused():
    for sound in ({}, {"steps": 1, "top_p": 1, "beta": 0}, {"top_p": 1e-9, "beta": 0.99}):
        Bounded(**sound)
    for name, value, bound in (
        ("steps", 0, "at least 1"),
        ("top_p", 0.0, "above 0"),
        ("top_p", 1.01, "at most 1"),
        ("beta", -0.1, "at least 0"),
        ("beta", 1.0, "below 1"),
    ):
        flag = "--" + name.replace("_", "-")
        with pytest.raises(UserError, match=f"^{flag} is {value}; it must be {bound}$"):
            Bounded(**{name: value})


@dataclass(frozen=True, kw_only=True)
class Dependent:
    preset: str | None = option(None, "")
    optim: Literal["adamw", "muon"] = option("adamw", "")
    muon_rate: float = option(0.1, "", idle="optim adamw")
    max_steps: int | None = option(None, "")
    epochs: float = option(1.0, "", idle="max_steps")
    judge: str | None = option(None, "")
    judge_model: str | None = option(None, "", idle="judge None")
    beta: float = option(0.0, "")
    corrected: bool = option(True, "", idle="beta 0.0")


PRESETS = {"short": {"max_steps": 3}, "corrected": {"corrected": False, "muon_rate": 1.0, "epochs": 2.0}}


def dependent(words: str) -> Dependent:
    return parse_cli(Dependent, words.split(), prog="p.py", description="d", presets=PRESETS)


@pytest.mark.parametrize(
    ("words", "name", "other"),
    [
        ("--muon-rate 0.1", "--muon-rate", "--optim adamw"),
        ("--muon-rate=2 --optim adamw", "--muon-rate", "--optim adamw"),
        ("--epochs 3 --max-steps 5", "--epochs", "--max-steps"),
        ("--epochs 3 --preset short", "--epochs", "--max-steps"),
        ("--judge-model m", "--judge-model", None),
        ("--no-corrected", "--corrected", "--beta 0.0"),
        ("--corrected --beta 0", "--corrected", "--beta 0.0"),
    ],
)
def test_an_option_that_is_given_and_does_nothing_is_refused_in_one_line(words, name, other, capsys):
    with pytest.raises(SystemExit) as stop:
        dependent(words)
    assert stop.value.code == 2
    how = f"with {other} (given, the preset's, or the default)" if other else "without --judge"
    told = f"error: {name} has no effect {how}; leave it out, or change that (see p.py --help)\n"
    assert capsys.readouterr().err == told


def test_what_has_an_effect_or_comes_from_a_preset_or_by_default_passes():
    assert dependent("") == Dependent()
    assert dependent("--optim muon --muon-rate 2") == Dependent(optim="muon", muon_rate=2)
    assert dependent("--epochs 3 --beta 0.1 --no-corrected") == Dependent(epochs=3, beta=0.1, corrected=False)
    assert dependent("--judge j --judge-model m") == Dependent(judge="j", judge_model="m")
    assert dependent("--preset corrected") == Dependent(preset="corrected", **PRESETS["corrected"])
    assert dependent("--preset short --max-steps 4") == Dependent(preset="short", max_steps=4)


COMMANDS = {
    "--muon-learning-rate 0.02": "with --optim adamw (",
    "--optim muon --lr-scheduler-type constant --min-lr-rate 0.1": "with --lr-scheduler-type constant (",
    "--max-steps 5 --num-train-epochs 2": "with --max-steps (",
    "--train-batch-size 8 --gradient-accumulation-steps 2": "with --train-batch-size (",
    "--preset r1-onevision --per-device-train-batch-size 2": "with --train-batch-size (",
    "--stage grpo --train-batch-size 8 --per-device-train-batch-size 8": "with --train-batch-size (",
    "--model r1ov-tiny --config-name r1ov-tiny": "with --model (",
    "--eval-steps 0 --eval-samples 5": "with --eval-steps 0 (",
    "--stage grpo --eval-steps 0 --eval-split test": "with --eval-steps 0 (",
    "--adapter somewhere --lora-alpha 64": "without --lora-r;",
    "--stage grpo --overlong error": "with --stage grpo (",
    "--stage grpo --importance-sampling-cap 4": "without --importance-sampling-correction;",
    "--stage grpo --no-use-bias-correction-kl": "with --beta 0.0 (",
}


@pytest.mark.parametrize("words", COMMANDS)
def test_training_refuses_what_would_do_nothing(words, monkeypatch, capsys):
    import train

    monkeypatch.setattr(sys, "argv", ["train.py", *words.split()])
    with pytest.raises(SystemExit) as stop:
        run(train.main)
    assert stop.value.code == 2
    assert f" has no effect {COMMANDS[words]}" in capsys.readouterr().err


@pytest.mark.parametrize("adapter", [[], ["--model", "r1ov-tiny", "--lora-r", "2"]])
def test_groups_of_processes_are_refused_where_there_is_one_process(adapter, tmp_path, monkeypatch, capsys):
    import train

    words = ["--replicate", "2", "--max-steps", "1", "--device", "cpu", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train.py", *words, *adapter])
    assert run(train.main) == 2
    told = "error: --replicate is 2; it must divide the number of processes, 1\n"
    assert capsys.readouterr().err.endswith(told)


def test_a_preset_that_is_not_there_is_refused(monkeypatch, capsys):
    import train

    monkeypatch.setattr(sys, "argv", ["train.py", "--preset", "dapo"])
    assert run(train.main) == 2
    assert capsys.readouterr().err.startswith("error: --preset is 'dapo'; there are lora-24gb, ")


@pytest.mark.parametrize("words", ["--top-p 0.5", "--temperature 0 --top-k 5", "--judge-model m"])
def test_evaluation_refuses_what_would_do_nothing(words, monkeypatch, capsys):
    from r1ov.evaluate.__main__ import main

    monkeypatch.setattr(sys, "argv", ["r1ov.evaluate", *words.split()])
    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == 2
    assert " has no effect with" in capsys.readouterr().err


def test_marks_of_a_declaration_find_its_options():
    assert marked(Bounded(steps=3), "resumable") == {"steps": 3, "beta": 0.5}


def test_a_value_that_looks_like_a_stage_does_not_select_it(monkeypatch):
    import train

    chosen = []
    monkeypatch.setattr(train, "parse_cli", lambda options, **_: chosen.append(options) or sys.exit())
    for words in (
        "--out|--stage grpo",
        "--data|x --stage=grpo|--stage|sft",
        "--stage|grpo",
        "--stage=grpo",
        "--stage",
    ):
        monkeypatch.setattr(sys, "argv", ["train.py", *words.split("|")])
        with pytest.raises(SystemExit):
            train.main()
    assert [options.__name__ for options in chosen] == [
        "SFTConfig",
        "SFTConfig",
        "GRPOConfig",
        "GRPOConfig",
        "SFTConfig",
    ]


def fails_with(error: BaseException) -> int:
    def main() -> None:
        raise error

    return run(main)


def test_run_turns_what_happens_into_an_exit_status(capsys):
    assert run(lambda: None) == 0
    assert fails_with(UserError("found x,\nexpected y")) == 2
    assert capsys.readouterr().err == "error: found x, expected y\n"
    assert fails_with(KeyboardInterrupt()) == 130
    with pytest.raises(ZeroDivisionError):
        fails_with(ZeroDivisionError())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random checkpoint and a picture x.png."""
    folder = tmp_path_factory.mktemp("random")
    write_checkpoint(folder)
    Image.effect_noise((90, 60), 80).convert("RGB").save(folder / "x.png")
    return folder


def called(monkeypatch, capsys, *argv: str) -> tuple[int, str, str]:
    """`python generate.py argv` without a new process: status, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["generate.py", *argv])
    try:
        status = run(generate.main)
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def test_text_goes_to_stdout_and_all_else_to_stderr(folder, monkeypatch, capsys):
    argv = [
        "--model",
        str(folder),
        "--image",
        str(folder / "x.png"),
        "--max-new-tokens",
        "6",
        "--device",
        "cpu",
    ]
    status, out, err = called(monkeypatch, capsys, *argv)
    assert status == 0
    assert out.endswith("\n")
    assert "\x1b" not in out
    first, cut, last = err.splitlines()
    assert cut.startswith("cut off after 6 tokens")
    assert re.search(
        r"cpu \| torch kernels \| float32 \(as the checkpoint\) \| \d\.\d+ GB of .* free \(program ", first
    )
    assert re.search(r"prefill \d+ tokens in .* tokens/s\) \| decode 5 tokens in .* tokens/s", last)


def test_json_prints_one_object_a_sample_with_the_documented_fields(folder, monkeypatch, capsys):
    argv = [
        "--model",
        str(folder),
        "--prompt",
        "hi",
        "--max-new-tokens",
        "5",
        "--temperature",
        "1",
        "--num-samples",
        "3",
        "--json",
    ]
    status, out, _ = called(monkeypatch, capsys, *argv)
    assert status == 0
    samples = [json.loads(line) for line in out.splitlines()]
    fields = "text token_ids tokens logprobs finish_reason prompt_tokens completion_tokens thinking answer"
    assert [set(sample) for sample in samples] == [set(fields.split())] * 3
    assert len({tuple(sample["token_ids"]) for sample in samples}) == 3
    assert all(len(sample["tokens"]) == len(sample["token_ids"]) for sample in samples)
    again = called(monkeypatch, capsys, *argv)[1]
    assert again == out


def test_a_dash_reads_the_question_from_stdin(folder, monkeypatch, capsys):
    argv = ["--model", str(folder), "--max-new-tokens", "4", "--json", "--prompt"]
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"red circle?\n")))
    read = called(monkeypatch, capsys, *argv, "-")
    assert read[:2] == called(monkeypatch, capsys, *argv, "red circle?")[:2]
    assert json.loads(read[1])["tokens"]
    for wrong in (b" \n", b"\xff"):
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(wrong)))
        status, _, err = called(monkeypatch, capsys, *argv, "-")
        assert (status, err.count("\n")) == (2, 1)


def test_several_pictures_and_a_system_prompt_reach_the_model(folder, monkeypatch, capsys):
    picture = str(folder / "x.png")
    base = ["--model", str(folder), "--max-new-tokens", "1", "--json", "--prompt", "hi", "--image", picture]
    variants = ([], ["--image", picture], ["--system", "red circle " * 9], ["--max-pixels", "3136"])
    lengths = [json.loads(called(monkeypatch, capsys, *base, *more)[1])["prompt_tokens"] for more in variants]
    assert lengths[1] > lengths[0]
    assert lengths[2] > lengths[0]
    assert lengths[3] < lengths[0]


def test_several_greedy_samples_are_refused_because_they_would_be_one_answer(folder, monkeypatch, capsys):
    argv = ["--model", str(folder), "--prompt", "hi", "--max-new-tokens", "3", "--num-samples", "2"]
    status, out, err = called(monkeypatch, capsys, *argv)
    assert (status, out) == (2, "")
    assert err == "error: greedy decoding gives 2 times the same answer; give a --temperature above 0\n"


MISTAKES = [
    "",
    "--bogus",
    "--prompt",
    "--temp 1 --prompt hi",
    "--prompt= ",
    "--prompt hi --max-new-tokens 0",
    "--prompt hi --max-new-tokens -5",
    "--prompt hi --max-new-tokens many",
    "--prompt hi --temperature -0.1",
    "--prompt hi --temperature inf",
    "--prompt hi --top-p 0",
    "--prompt hi --top-p 1.01",
    "--prompt hi --top-k -1",
    "--prompt hi --seed -1",
    "--prompt hi --num-samples 0",
    "--prompt hi --chat --json",
    "--prompt - --chat",
    "--chat --image {folder}/nowhere.png",
    "--prompt hi --min-pixels 0",
    "--prompt hi --min-pixels 5000 --max-pixels 4000",
    "--prompt hi --dtype float16",
    "--prompt hi --dtype int8",
    "--prompt hi --device tpu",
    "--prompt hi --device cuda:99",
    "--prompt hi --device meta",
    "--prompt hi --model {folder}/nowhere/at/all",
    "--prompt hi --model {folder}/x.png",
    "--prompt hi --model {folder}/empty",
    "--image {folder}/nowhere.png",
    "--image {folder}",
    "--image {folder}/config.json",
    "--image {folder}/cut.png",
    "--image {folder}/none.png",
    "--image {folder}/thin.png",
    "--image {folder}/x.png --image {folder}/nowhere.png",
    "--image http://127.0.0.1:9/x.png",
    "--image ftp://127.0.0.1/x.png",
    "--image=",
    "--prompt <|image_pad|>",
    "--prompt <|video_pad|>",
    "--image {folder}/x.png --prompt <|image_pad|>",
    "--prompt {long}",
    "--image {folder}/x.png --system {long}",
    "--prompt \udcff",
]


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_gives_one_line_on_stderr_and_status_2(words, folder, monkeypatch, capsys):
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "cut.png").write_bytes((folder / "x.png").read_bytes()[:1000])
    (folder / "none.png").touch()
    Image.new("RGB", (1, 300)).save(folder / "thin.png")
    argv = [word.format(folder=folder, long="circle," * 600) for word in words.split(" ") if word]
    argv = argv if "--model" in argv else ["--model", str(folder), *argv]
    status, out, err = called(monkeypatch, capsys, *argv)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_mistake_in_prompt_or_image_is_reported_before_the_weights_are_loaded(folder, monkeypatch, capsys):
    monkeypatch.setattr("r1ov.folder.pretrained.load_weights", lambda *_: pytest.fail("loaded"))
    for words in (["--prompt", "circle," * 600], ["--image", str(folder / "nowhere.png")]):
        status, _, err = called(monkeypatch, capsys, "--model", str(folder), *words)
        assert status == 2
        assert err.count("\n") == 1


def test_an_answer_reads_config_and_tokenizer_once_and_loads_no_algebra(folder):
    watched = """
import collections, json, sys
opened = collections.Counter()
sys.addaudithook(lambda event, args: event == "open" and opened.update([str(args[0])]))
import generate
generate.main()
algebra = [name for name in sys.modules if name.startswith("r1ov.reward.rules")]
print(json.dumps([algebra, {path: count for path, count in opened.items() if path.startswith(sys.argv[2])}]))
"""
    words = ["--model", str(folder), "--image", str(folder / "x.png"), "--max-new-tokens", "2"]
    shown = subprocess.run(
        [warm.python(), "-c", watched, *words], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    algebra, opened = json.loads(shown.splitlines()[-1])
    assert algebra == []
    assert [opened[str(folder / name)] for name in ("config.json", "tokenizer.json")] == [1, 1]


def painted(pieces: list[str], in_colour: bool = True) -> str:
    out = StringIO()
    paint = Painter(out, in_colour)
    for piece in pieces:
        paint(piece)
    paint.end()
    return out.getvalue()


REPLY = "<think>1 < 2, a<b></think>\n<answer>4</answer>"


def test_in_colour_the_thought_is_dim_and_the_answer_bold_wherever_the_pieces_are_cut():
    expected = f"{DIM}1 < 2, a<b>{RESET}\n{BOLD}4{RESET}\n"
    for length in range(1, len(REPLY) + 1):
        assert painted([REPLY[i : i + length] for i in range(0, len(REPLY), length)]) == expected


def test_without_colour_the_text_is_as_it_is():
    assert painted([REPLY], in_colour=False) == REPLY + "\n"


def test_what_is_held_back_as_a_possible_tag_comes_out_at_the_end():
    assert painted(["a <thi"]) == "a <thi\n"
    assert painted(["<think>a <thi"]) == f"{DIM}a <thi{RESET}\n"
    assert painted(["x <\n", "y"]) == "x <\ny\n"


def test_a_model_cannot_send_control_sequences_to_the_terminal():
    assert painted(["a\x1b[31mb\x07\x9b2J\n\tc"]) == "a[31mb2J\n\tc\n"


def test_nothing_is_written_when_there_was_no_text():
    assert painted([]) == ""


def on_a_terminal(folder: Path, interrupt: bool, **environment: str) -> tuple[int, str]:
    """`generate.py` with its stdout on a terminal of its own: exit status, and what the terminal got."""
    master, slave = pty.openpty()
    argv = [warm.python(), "generate.py", "--model", str(folder), "--prompt", "hi", "--device", "cpu"]
    # At random it hardly ever stops, and with this seed not before this process gets its turn, even on a busy
    # machine.
    argv += ["--temperature", "3", "--max-new-tokens", "480", "--seed", "1"]
    heard = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # where the tests run in a shell's background, it is ignored
    process = subprocess.Popen(
        argv,
        cwd=ROOT,
        stdout=slave,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
        preexec_fn=heard,
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not piece:
            break
        if interrupt and not shown:
            process.send_signal(signal.SIGINT)
        shown += piece
    os.close(master)
    return process.wait(), shown.decode()


def test_ctrl_c_ends_with_130_and_leaves_the_terminal_clean(folder):
    status, shown = on_a_terminal(folder, interrupt=True, TERM="xterm")
    assert status == 130
    assert shown.endswith("\r\n")
    assert not re.findall(r"\x1b\[\d*m", shown) or re.findall(r"\x1b\[\d*m", shown)[-1] == RESET


def test_no_color_is_honoured_on_a_terminal(folder):
    status, shown = on_a_terminal(folder, interrupt=False, NO_COLOR="1", TERM="xterm")
    assert status == 0
    assert "\x1b" not in shown


def test_help_and_mistakes_come_before_torch_is_imported():
    started = time.perf_counter()
    code = (
        "import sys, generate; sys.argv = ['generate.py']; "
        "print(generate.run(generate.main), 'torch' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert shown == "2 False\n"
    # Nothing is imported but argparse and dataclasses: a tenth of a second, here with room for a busy
    # machine.
    assert time.perf_counter() - started < 5
