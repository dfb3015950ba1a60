"""A newcomer's first runs: where they go, what they are told, and what is refused before a folder is made."""

import json
import shutil
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import train as program
from r1ov import cli
from r1ov.common.files import locked
from r1ov.common.processes import World
from r1ov.common.shares import wilson
from r1ov.errors import UserError
from r1ov.folder.pretrained import resolve
from r1ov.reward.rules.workers import one_at_a_time
from r1ov.train import grpo, sft
from r1ov.train.export import export
from r1ov.train.optim import by_size, peak_learning_rate
from r1ov.train.run import heldout
from r1ov.train.run.config import GRPOConfig, SFTConfig
from r1ov.train.run.log import COLUMNS, WIDTH, Log, smoothed
from r1ov.train.run.open import settle

QUICK = {"eval_max_new_tokens": 24, "dataloader_num_workers": 0, "num_threads": 1, "device": "cpu"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    return tmp_path


def drawings(folder, rows=12, missing=()):
    """Files of own drawings: sharegpt.json for SFT, grpo.jsonl for GRPO."""
    talks, problems = [], []
    for number in range(rows):
        image = Image.new("RGB", (56, 56), "white")
        ImageDraw.Draw(image).ellipse((8, 8, 40, 40), fill="red")
        image.save(folder / f"{number}.png")
        name = "none.png" if number in missing else f"{number}.png"
        talk = [
            {"from": "human", "value": "<image>How many?"},
            {"from": "gpt", "value": "<answer>1</answer>"},
        ]
        talks.append({"conversations": talk, "images": [name]})
        problems.append({"problem": "How many?", "solution": "1", "image": name})
    (folder / "sharegpt.json").write_text(json.dumps(talks))
    (folder / "grpo.jsonl").write_text("".join(json.dumps(one) + "\n" for one in problems))


TINY = 2_654_592  # parameters of r1ov-tiny


def settled(config, num_rows=None, files=()):
    config = replace(config, learning_rate=peak_learning_rate(config, TINY))
    return settle(config, num_rows, files, World(), torch.device("cpu"))


def begun(config, num_rows=None, finished=False):
    """A folder as a run with these options leaves it."""
    before, config = settled(config, num_rows)
    folder = resolve("r1ov-tiny")
    out = Path(config.out)
    (out / ("final" if finished else "checkpoints/step-5")).mkdir(parents=True)
    if finished:
        (out / "final" / "config.json").write_bytes((folder / "config.json").read_bytes())
    options = {**vars(config), "world_size": 1, "fingerprint": ()}
    (out / "config.json").write_text(json.dumps(options))
    return before, config


# -- the folder, and what a run may change


def test_without_out_a_run_takes_the_first_folder_that_is_free_or_its_own(here):
    first, second = SFTConfig(seed=1), SFTConfig(seed=2)
    assert begun(first)[1].out == "runs/sft"
    assert begun(second, finished=True)[1].out == "runs/sft-2"
    assert settled(first)[1].out == "runs/sft"
    assert settled(second)[1].out == "runs/sft-2"
    before, third = settled(SFTConfig(seed=3))
    assert (before, third.out) == ({}, "runs/sft-3")
    assert settled(GRPOConfig())[1].out == "runs/grpo"
    with pytest.raises(UserError, match="begun with other options: --seed was 1 and is 3"):
        settled(SFTConfig(seed=3, out="runs/sft"))
    with pytest.raises(UserError) as told:
        settled(GRPOConfig(out="runs/sft"))
    assert "begun with other options: --stage was 'sft' and is 'grpo', " in str(told.value)
    assert str(told.value).count(" was ") == 6  # it was begun with five others, and so on


def test_override_changes_what_can_be_changed_and_nothing_else(here):
    begun(SFTConfig(max_steps=20, out="x"))
    with pytest.raises(UserError, match="--max-steps was 20 and is 30"):
        settled(SFTConfig(max_steps=30, out="x"))
    _, config = settled(SFTConfig(max_steps=30, learning_rate=1e-5, save_steps=3, override=True, out="x"))
    assert (config.max_steps, config.learning_rate) == (30, 1e-5)
    with pytest.raises(UserError, match="--max-length was 8192 and is 99"):
        settled(SFTConfig(max_length=99, override=True, out="x"))


def test_a_run_does_not_overwrite_a_model(here):
    for name in ("model/config.json", "trained/final/config.json"):
        (here / name).parent.mkdir(parents=True)
        (here / name).write_text('{"model_type": "qwen2_5_vl"}')
    for out in ("model", "trained"):
        with pytest.raises(UserError, match=f"--out {out}: holds a model, and no run"):
            settled(SFTConfig(out=out))


def test_two_runs_never_share_a_folder(here):
    drawings(here)
    options = {"data": "sharegpt.json", "model": "r1ov-tiny", "out": "mine", "max_steps": 1, **QUICK}
    with locked(here / "mine"), pytest.raises(UserError, match="another process is at work in this folder"):
        sft.train(SFTConfig(**options))
    assert not (here / "mine").exists()


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path):
    (tmp_path / "mine").mkdir()
    for out, left in (("mine", True), ("a/b", False)):
        with pytest.raises(ZeroDivisionError), locked(tmp_path / out):
            raise ZeroDivisionError
        assert (tmp_path / out).exists() == left
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "nowhere.json"}, "nowhere.json"),
        ({"model": "nowhere"}, "nowhere: not a model"),
        ({"eval_data": "none.json"}, "none.json: no such file"),
        ({"report_to": "wandb"}, "pip install wandb"),
        ({"eval_data": "bad.json"}, "2 of 2 rows cannot be read, more than 5.0%; 2: bad.json, row 1"),
        ({"data": "bad.json"}, "2 of 2 rows cannot be read, more than 5.0%; .* raise --max-bad-share"),
        ({"max_length": 20}, "none of 12 rows can be used; 12: .* more than the limit of 20"),
    ],
)
def test_what_is_refused_leaves_no_folder_behind_and_is_told_once(here, changes, words, capsys):
    drawings(here)
    (here / "bad.json").write_text(json.dumps([{"foo": 1}, {"foo": 2}]))
    with pytest.raises(UserError, match=words):
        sft.train(SFTConfig(**{"data": "sharegpt.json", "model": "r1ov-tiny", **QUICK, **changes}))
    assert "row 1" not in capsys.readouterr().err  # the error names it
    assert not (here / "runs").exists()


def test_a_run_does_not_go_on_with_other_held_out_rows(here):
    drawings(here)
    data = {"data": "sharegpt.json", "eval_data": "grpo.jsonl", "model": "r1ov-tiny", "out": "runs/x"}
    config = SFTConfig(**data, **QUICK, max_steps=1, save_steps=1, eval_steps=0)
    sft.train(config)
    assert json.loads((here / "runs/x/config.json").read_text())["learning_rate"] == by_size(1e-5, TINY)
    shutil.rmtree(here / "runs/x/final")
    held = here / "grpo.jsonl"
    held.write_text("\n".join(held.read_text().splitlines()[1:]))
    with pytest.raises(
        UserError, match=r"have changed since the run in runs/x began: grpo\.jsonl, .* is now"
    ):
        sft.train(config)


def test_a_reporter_that_cannot_be_started_is_one_line(tmp_path, monkeypatch):
    def init(**_):
        raise RuntimeError("no key\nis known")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(UserError, match="--report-to wandb: no key is known; pip install wandb, or leave"):
        Log(tmp_path, "title", 1, 0, "wandb")


# -- defaults for small data and small models


def test_a_step_takes_no_more_rows_than_there_are(here):
    _, config = settled(SFTConfig(num_train_epochs=30), 12)
    assert (config.train_batch_size, config.max_steps) == (12, 30)
    _, config = settled(GRPOConfig(num_generations=4, num_iterations=2, steps_per_generation=2), 12 * 4 * 2)
    assert (config.train_batch_size, config.max_steps) == (24, 4)
    assert settled(SFTConfig(per_device_train_batch_size=5), 12)[1].train_batch_size == 5
    assert begun(SFTConfig(train_batch_size=64, out="x"), 12)[1].train_batch_size == 12
    before, config = settled(SFTConfig(train_batch_size=64, out="x"), 12)  # the same command goes on
    assert before["train_batch_size"] == config.train_batch_size == 12


def test_the_learning_rate_goes_with_the_size_of_the_model(here):
    assert [by_size(1e-5, size * 1e9) for size in (8.3, 2.075)] == [1e-5, 2e-5]
    assert settled(SFTConfig(model="r1ov-tiny"))[1].learning_rate == pytest.approx(5.6e-4)
    assert settled(GRPOConfig(data="x.json"))[1].learning_rate == pytest.approx(5.6e-5)
    assert settled(SFTConfig())[1].learning_rate == 2e-3
    assert settled(GRPOConfig())[1].learning_rate == 1e-4
    assert settled(SFTConfig(model="r1ov-tiny", learning_rate=1.0))[1].learning_rate == 1


# -- a run on own drawings, in both stages


def rows(out, name):
    log = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [row for row in log if name in row]


def test_own_drawings_with_a_bad_row_are_learned_evaluated_exported_and_told_in_short_lines(here, capsys):
    drawings(here, missing=[5])
    data = {"data": "sharegpt.json", "eval_data": "grpo.jsonl", "model": "r1ov-tiny", **QUICK}
    more = {"max_steps": 3, "train_batch_size": 40, "eval_steps": 2, "save_steps": 3}
    sft.train(SFTConfig(**data, **more, max_bad_share=0.05))
    shown, out = capsys.readouterr().err, here / "runs/sft"
    lines = shown.splitlines()
    assert max(map(len, lines)) <= WIDTH
    told = [line.split(":")[0] for line in lines if line.startswith("bad row ")]
    assert told == [f"bad row  {name}, row 6" for name in ("grpo.jsonl", "sharegpt.json")]
    assert "a step takes all conversations of an epoch" in shown
    assert "left out: 1: " in shown
    assert "of 11 right (" in shown
    assert [row["step"] for row in rows(out, "eval_accuracy")] == [0, 2, 3]
    assert {row["eval_samples"] for row in rows(out, "eval_accuracy")} == {11}
    assert (out / "curves.png").stat().st_size > 0
    assert sorted(path.name for path in (out / "samples").glob("*.html")) == [
        f"eval-00000{step}.html" for step in (0, 2, 3)
    ]
    assert export(out, here / "exported") == out / "checkpoints/step-3"
    final = resolve("runs/sft")
    assert final == here.relative_to(here) / "runs/sft/final"
    for name in ("model.safetensors", "r1ov.json", "config.json"):
        assert (here / "exported" / name).read_bytes() == (final / name).read_bytes()
    (final / "config.json").unlink()
    with pytest.raises(UserError, match=r"has not finished; `python -m r1ov.train.export runs/sft FOLDER`"):
        resolve("runs/sft")


@pytest.mark.parametrize(
    "frozen", [{"freeze": "language"}, {"lora_r": 2, "lora_target": "attn.qkv", "lora_vision": True}]
)
def test_a_pack_without_an_image_changes_nothing_where_only_the_reading_of_images_is_trained(here, frozen):
    """The same rows in one pack, and in two of which one has no image."""
    drawings(here, rows=1)
    image = json.loads((here / "sharegpt.json").read_text())
    words = [
        {"messages": [{"role": "user", "content": "word " * 20}, {"role": "assistant", "content": "So."}]}
    ]
    (here / "mixed.json").write_text(json.dumps([*image, *words]))
    (here / "words.json").write_text(json.dumps(words))
    options = {
        "model": "r1ov-tiny",
        "max_steps": 2,
        "train_batch_size": 2,
        **QUICK,
        **frozen,
        "merge": "lora_r" in frozen,
    }
    results = []
    for length in (1000, 100):
        sft.train(
            SFTConfig(
                data="mixed.json",
                out=f"runs/{length}",
                max_length=length,
                **options,
            )
        )
        results.append(load_file(here / f"runs/{length}/final/model.safetensors"))
        assert [row["grad_norm"] > 0 for row in rows(here / f"runs/{length}", "grad_norm")] == [True, True]
    before = load_file(resolve("r1ov-tiny") / "model.safetensors")
    assert any(not torch.equal(results[0][name], before[name].float()) for name in before)
    one, two = (rows(here / f"runs/{length}", "grad_norm") for length in (1000, 100))
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-4)
    for name, value in results[0].items():  # AdamW makes much of a small gradient's last digits: 1e-5 seen
        torch.testing.assert_close(results[1][name], value, rtol=0, atol=5e-5)
    with pytest.raises(UserError, match="none of 1 rows has an image"):
        sft.train(SFTConfig(data="words.json", **options))


def test_held_out_questions_that_leave_no_room_for_an_answer_are_told(here, capsys):
    drawings(here, rows=4)
    data = {"data": "sharegpt.json", "eval_data": "grpo.jsonl", "model": "r1ov-tiny", "max_steps": 1}
    sft.train(SFTConfig(**data, **QUICK | {"eval_max_new_tokens": 2048}))
    shown = " ".join(capsys.readouterr().err.split())
    assert "note held-out questions that are not asked: 4; the prompt is too long: grpo.jsonl, row " in shown


def test_grpo_answers_own_held_out_questions_and_its_pages_stay(here, capsys):
    drawings(here, rows=4)
    path = here / "mine.py"
    path.write_text(
        "def short(completions, solution, **kwargs):\n    return [-len(completions[0][0]['content'])]\n"
    )
    options = {"max_completion_length": 16, "num_generations": 2, "train_batch_size": 4, "max_steps": 1}
    grpo.train(
        GRPOConfig(data="grpo.jsonl", eval_data="grpo.jsonl", reward="mine.py:short", **options, **QUICK)
    )
    out = here / "runs/grpo"
    assert [row["eval_samples"] for row in rows(out, "eval_accuracy")] == [4, 4]
    assert rows(out, "reward")[0]["rewards/short/mean"] < 0
    names = {path.name for path in (out / "samples").glob("*-000000.*")}
    assert names == {f"{kind}-000000.{end}" for kind in ("eval", "step") for end in ("html", "jsonl")}


def test_what_is_no_checkpoint_is_not_exported(here):
    for name in ("nowhere", "runs/x/checkpoints/step-9"):
        with pytest.raises(UserError, match=f"^{name}: neither a checkpoint nor a run with one"):
            export(Path(name), here / "model")


# -- rewards of one's own


def test_a_reward_is_tried_before_a_model_is_loaded(here, monkeypatch):
    drawings(here, rows=2)
    (here / "mine.py").write_text("def two(prompt, completion):\n    return 1.0\n")
    monkeypatch.setattr(grpo, "open_run", lambda *_: pytest.fail("opened"))
    with pytest.raises(
        UserError, match=r"two\(\) takes 2 positional .* function\(prompt, completion, row, info\)"
    ):
        grpo.train(GRPOConfig(data="grpo.jsonl", reward="mine.py:two"))


def test_trls_rewards_are_called_with_lists_of_one():
    seen = {}

    def everything(prompts, completions, **columns):
        seen.update(columns, prompts=prompts, completions=completions)
        return [0.5]

    def some(completions, solution):
        return [float(solution[0] in completions[0][0]["content"])]

    row, info = {"id": "7", "solution": "4"}, {"completion_tokens": 3, "finish_reason": "stop"}
    assert one_at_a_time(everything)([{"role": "user", "content": "?"}], "x", row, info) == 0.5
    assert seen["solution"] == ["4"]
    assert seen["completions"] == [[{"role": "assistant", "content": "x"}]]
    assert seen["prompts"] == [[{"role": "user", "content": "?"}]]
    assert one_at_a_time(some)([], "it is 4", row, info) == 1


# -- the console and the curves


def test_every_evaluation_shows_another_answer_the_one_at_the_end_too(tmp_path, capsys):
    prompts = [[{"role": "user", "content": f"What is {number}?"}] for number in range(5)]
    source = [SimpleNamespace(prompt=prompt, solution="1", images=[]) for prompt in prompts]
    answers = [(number, "<answer>1</answer>", 1.0, 1.0) for number in range(5)]
    config = SimpleNamespace(eval_data="x", eval_split="test", eval_steps=50)
    for step in (0, 50, 100, 120):  # 120 is the last
        run = SimpleNamespace(config=config, out=tmp_path, step=step)
        heldout.show(run, source, answers, 5.0, 5.0, 1.0)
    shown = [line.strip() for line in capsys.readouterr().err.splitlines() if "What is" in line]
    assert shown == [f"What is {number}?" for number in range(4)]


def test_unknown_flags_suggest_the_nearest_and_name_their_stage(monkeypatch, capsys):
    for words, told in (
        ("--max-step 3", "did you mean --max-steps?"),
        ("--stage sft --num-generations 4", "--num-generations belongs to --stage grpo"),
        ("--stage grpo --bogus", "unrecognized arguments: --bogus (see"),
    ):
        monkeypatch.setattr(sys, "argv", ["train.py", *words.split()])
        with pytest.raises(SystemExit) as end:
            cli.run(program.main)
        assert end.value.code == 2
        assert told in capsys.readouterr().err


def test_a_steps_line_is_never_wider_than_the_console(tmp_path, capsys):
    log = Log(tmp_path, "title", 10_000)
    log.step({"step": 1234, **dict.fromkeys(COLUMNS, 1234.5)}, 40_000)
    line = capsys.readouterr().err.rstrip("\n")
    assert len(line) <= WIDTH
    assert line.startswith("step  1234/10000 | reward 1234.500 | right ")
    assert line.endswith("| eta 11h06m")


def test_a_smoothed_line_has_whole_windows_only():
    steps, values = smoothed(range(0, 200, 2), [float(number % 2) for number in range(100)])
    assert (steps[0], steps[-1], len(values)) == (10, 188, 90)  # 5 neighbours on either side
    assert all(value in (pytest.approx(5 / 11), pytest.approx(6 / 11)) for value in values)


def test_the_interval_is_wilsons_and_never_leaves_its_share_outside():
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(12, 12) == pytest.approx((0.7575, 1), abs=1e-4)
    for number in range(1, 300):
        assert (wilson(0, number)[0], wilson(number, number)[1]) == (0, 1)


def test_panels_are_those_of_the_stage_each_once(tmp_path):
    def panels(*rows):
        log = Log(tmp_path, "title", 3)
        log.rows = [{"step": step, **row} for step, row in zip(count(1), rows, strict=False)]
        return log.panels()

    trained = {"loss": 1.0, "mean_token_accuracy": 0.5, "grad_norm": 2.0}
    held = {"eval_loss": 2.0, "eval_mean_token_accuracy": 0.4, "eval_accuracy": 0.1, "eval_samples": 12}
    found = panels(trained, trained, held)
    assert list(found) == [
        "loss (nats per token)",
        "tokens predicted right",
        "held-out answers",
        "gradient norm",
    ]
    assert found["loss (nats per token)"].keys() == {"trained", "held out"}
    assert found["held-out answers"] == {"right": ((3,), (0.1,), (12,))}
    one = {"reward": 0.5, "rewards/accuracy/mean": 0.5, "rewards/accuracy/std": 0.1, "loss": 0.0}
    two = {**one, "reward": 0.7, "rewards/mine/x/mean": 0.2, "frac_reward_zero_std": 0.25}
    assert list(panels(one)) == ["reward"]
    assert list(panels(two)) == ["reward", "reward: accuracy", "reward: mine/x", "groups that teach nothing"]
