"""LoRA in training: what learns, what is kept, killed and resumed, processes, GRPO's reference, export."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

import generate
import r1ov
from r1ov.common.processes import World
from r1ov.errors import UserError
from r1ov.evaluate import __main__ as evaluate
from r1ov.folder import pretrained
from r1ov.folder.adapter import WEIGHTS
from r1ov.folder.quantized import FEW, QuantizedLinear
from r1ov.model.lora import adapted, targets
from r1ov.train import grpo, sft
from r1ov.train.export import export
from r1ov.train.export import main as export_main
from r1ov.train.run import open as open_run
from r1ov.train.run.config import GRPOConfig, SFTConfig
from r1ov.train.run.log import Log
from r1ov.train.run.sharding import build_adapted
from tests import warm
from tests.checkpoint import write_checkpoint
from tests.test_lora import MESSAGES
from tests.test_resume import ENVIRONMENT, ROOT

COMMON = {
    "max_steps": 4,
    "train_batch_size": 6,
    "eval_steps": 0,
    "dataloader_num_workers": 0,
    "device": "cpu",
    "num_threads": 1,
    "learning_rate": 1e-2,
    "lora_r": 4,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    write_checkpoint(folder)
    return folder


def trained(base: Path, out: Path, **options) -> dict[str, torch.Tensor]:
    sft.train(SFTConfig(model=str(base), out=str(out), **COMMON | options))
    return load_file(out / "final" / WEIGHTS)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, trained(base, out, save_steps=2)


@pytest.mark.parametrize("is_made_for_it", [False, True])
@pytest.mark.parametrize("is_real", [False, True])
@pytest.mark.parametrize("r", [None, 4])
def test_a_base_of_real_size_is_held_in_bfloat16_on_a_cpu_made_for_it(
    base, tmp_path, capsys, monkeypatch, is_made_for_it, is_real, r
):
    monkeypatch.setattr(open_run, "computes_bfloat16", lambda device: is_made_for_it)
    monkeypatch.setattr(open_run, "SMALL", 1000 if is_real else 2**24)
    options = COMMON | {"lora_r": r, "max_steps": 1}
    sft.train(SFTConfig(model=str(base), out=str(tmp_path / "run"), **options))
    narrow = is_made_for_it and is_real and r is not None
    assert f"cpu, {'bfloat16' if narrow else 'float32'}, torch kernels" in capsys.readouterr().err
    saved = load_file(tmp_path / "run" / "final" / (WEIGHTS if r else "model.safetensors"))
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}  # what learns


def test_a_run_leaves_an_adapter_that_peft_and_we_load_on_an_untouched_base(base, whole):
    out, tensors = whole
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)
    files = {path.name for path in (out / "final").iterdir()}
    assert {"adapter_config.json", WEIGHTS, "config.json", "preprocessor_config.json", "r1ov.json"} <= files
    assert "model.safetensors" not in files
    [file] = (out / "checkpoints" / "step-4").glob("*.safetensors")
    stored = load_file(file)
    assert stored
    assert all("lora_" in name for name in stored)  # what is trained alone
    ours, processor = r1ov.load(out)
    batch = processor([{"role": "user", "content": "How many?"}])
    judge = Qwen2_5_VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    judge = peft.PeftModel.from_pretrained(judge, out / "final").eval()
    logits = judge(input_ids=batch["input_ids"][None]).logits[0]
    assert torch.allclose(ours(**batch), logits, atol=1e-5)
    before, _ = r1ov.load(base)
    assert not torch.allclose(ours(**batch), before(**batch), atol=1e-3)


def killed(out: Path, train: Callable[[Path], dict]) -> dict[str, torch.Tensor]:
    """What the run leaves that is killed in its third step, before it is saved, and begun again."""
    process = os.fork()
    if not process:
        step = Log.step
        Log.step = lambda log, row, *more: (
            os.kill(os.getpid(), 9) if row["step"] == 3 else step(log, row, *more)
        )
        train(out)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert (out / "checkpoints").is_dir()
    return train(out)


def test_killed_in_a_run_with_dropout_it_ends_with_the_same_bits(base, whole, tmp_path):
    options = {"lora_dropout": 0.2, "save_steps": 1, "activation_checkpointing": "full"}
    expected = trained(base, tmp_path / "whole", **options)
    assert any(not torch.equal(expected[name], whole[1][name]) for name in expected)
    again = killed(tmp_path / "run", lambda out: trained(base, out, **options))
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    kept = trained(
        base, tmp_path / "kept", lora_dropout=0.2
    )  # activations: what is recomputed draws the same
    assert all(torch.allclose(kept[name], expected[name], atol=1e-6) for name in expected)


def in_two_processes(stage: str, base: Path, out: Path, options: dict, *flags: str) -> None:
    options = {"model": base, "out": out, **options}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [warm.python(), "-m", "tests.ranks", "train", "2", "--stage", stage, *words, *flags]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def rewarded(base, tmp_path_factory):
    """Options of GRPO whose reward any answer gets some of, and the adapter that such a run leaves."""
    folder = tmp_path_factory.mktemp("rewarded")
    reward = "def score(prompt, completion, row, info):\n    return sum(map(ord, completion)) % 5 / 4\n"
    (folder / "reward.py").write_text(reward)
    options = COMMON | {"train_batch_size": 8, "num_generations": 4, "max_completion_length": 12, "beta": 0.1}
    options |= {"reward": f"{folder}/reward.py:score", "save_steps": 1, "sample_steps": 0}
    expected = learned(base, folder / "run", options)
    assert any(tensor.abs().max() > 0 for name, tensor in expected.items() if "lora_B" in name)
    return options, expected


def learned(base: Path, out: Path, options: dict) -> dict[str, torch.Tensor]:
    grpo.train(GRPOConfig(model=str(base), out=str(out), **options))
    return load_file(out / "final" / WEIGHTS)


def test_killed_in_a_run_of_grpo_it_ends_with_the_same_bits(base, rewarded, tmp_path):
    options, expected = rewarded
    again = killed(tmp_path / "run", lambda out: learned(base, out, options))
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_grpo_in_two_processes_that_answer_and_learn_together_is_as_in_one(base, rewarded, tmp_path):
    options, expected = rewarded
    in_two_processes("grpo", base, tmp_path / "run", options | {"tensor_parallel": 2, "context_parallel": 2})
    again = load_file(tmp_path / "run" / "final" / WEIGHTS)
    assert again.keys() == expected.keys()
    assert all(torch.allclose(again[name], expected[name], atol=1e-5) for name in expected)


def test_two_processes_and_merging_at_the_end_are_as_one(base, whole, tmp_path):
    out, _ = whole
    options = COMMON | {"activation_checkpointing": "full"}
    in_two_processes("sft", base, tmp_path / "run", options, "--merge")
    export(out, tmp_path / "alone", merged=True)
    ours, theirs = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "alone", tmp_path / "run/final")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)
    before = r1ov.load(base)[0].state_dict()
    assert {name for name in ours if not torch.equal(ours[name], before[name])} == {
        name for name in ours if name.startswith("model.layers") and name.endswith("_proj.weight")
    }


def test_export_of_a_checkpoint_as_adapter_and_merged(base, whole, tmp_path):
    out, _ = whole
    export(out / "checkpoints" / "step-2", tmp_path / "adapter")
    export(out / "checkpoints" / "step-2", tmp_path / "model", merged=True)
    adapter, merged = (r1ov.load(tmp_path / name) for name in ("adapter", "model"))
    batch = adapter[1]([{"role": "user", "content": "How many?"}])
    assert torch.allclose(adapter[0](**batch), merged[0](**batch), atol=1e-5)
    export(out / "checkpoints" / "step-4", tmp_path / "last")
    final, last = load_file(out / "final" / WEIGHTS), load_file(tmp_path / "last" / WEIGHTS)
    assert all(torch.equal(final[name], last[name]) for name in final)


def test_a_run_goes_on_with_an_adapter_of_its_own_rank_and_settings(base, whole, tmp_path):
    out, tensors = whole
    options = {"lora_r": None, "max_steps": 1, "learning_rate": 1e-9}
    for name, more in {"by itself": {"model": str(out)}, "on a base": {"adapter": str(out)}}.items():
        sft.train(SFTConfig(**{"model": str(base), "out": str(tmp_path / name), **COMMON, **options, **more}))
        again = load_file(tmp_path / name / "final" / WEIGHTS)
        assert all(torch.allclose(again[name], tensors[name], atol=1e-6) for name in tensors)


def test_an_adapter_that_is_given_as_the_model_learns_at_an_adapters_rate(base, whole, tmp_path):
    rates = {}
    for name, model in (("all weights", base), ("adapter", whole[0])):
        options = {"lora_r": None, "learning_rate": None, "max_steps": 1}
        sft.train(SFTConfig(model=str(model), out=str(tmp_path / name), **COMMON | options))
        rates[name] = json.loads((tmp_path / name / "config.json").read_text())["learning_rate"]
    assert rates["adapter"] == pytest.approx(10 * rates["all weights"], rel=0.1)  # each to two digits


def test_the_reference_of_grpo_is_the_model_without_its_adapter(base, tmp_path, monkeypatch):
    built, scored = [], []
    build, add_logprobs = grpo.Run.build, grpo.add_logprobs
    monkeypatch.setattr(grpo.Run, "build", lambda run: built.append(build(run)) or built[-1])

    def watched(run, packs, name, model):
        add_logprobs(run, packs, name, model)
        scored.append((name, [pack[name] for pack in packs], [dict(pack) for pack in packs]))

    monkeypatch.setattr(grpo, "add_logprobs", watched)
    reward = "def score(prompt, completion, row, info):\n    return sum(map(ord, completion)) % 5 / 4\n"
    (tmp_path / "reward.py").write_text(reward)
    options = {
        "train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 12,
        "beta": 0.1,
        "max_steps": 2,
    }
    options |= {"reward": f"{tmp_path}/reward.py:score"}
    grpo.train(
        GRPOConfig(model=str(base), out=str(tmp_path / "run"), **COMMON | options | {"sample_steps": 0})
    )
    assert len(built) == 1  # no second copy
    bare, _ = r1ov.load(base)
    [(name, logprobs, packs), *_rest] = scored[-1:]
    assert name == "ref_logprobs"
    for pack, one in zip(packs, logprobs, strict=True):
        inputs = {
            key: pack[key] for key in pack if key in ("input_ids", "position_ids", "cu_seqlens", "prefixes")
        }
        inputs |= {key: pack[key] for key in ("pixel_values", "image_grid_thw") if key in pack}

        def then(hidden, weight, pack=pack):
            return grpo.completion_logprobs(hidden, weight, pack["labels"], 1.0)

        with torch.no_grad():
            assert torch.allclose(bare(**inputs, then=then)[0], one, atol=1e-6)
    row = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert row["kl"] > 0
    with pytest.raises(UserError, match="merge that first"):
        grpo.train(
            GRPOConfig(
                model=str(tmp_path / "run"), out=str(tmp_path / "on"), **COMMON | options | {"lora_r": None}
            )
        )


@pytest.mark.parametrize("bits", ["int4", "int8"])
def test_qlora_learns_as_lora_does_on_the_weights_that_the_bits_mean(base, tmp_path, bits):
    config = SFTConfig(
        model=str(base), quantize=bits, lora_r=4, lora_vision=True, activation_checkpointing="off"
    )
    rest = pretrained.find(base), pretrained.read_config(base / "config.json")
    rest += World(), torch.device("cpu"), torch.float32
    ours = build_adapted(config, *rest)
    judge = build_adapted(replace(config, quantize=None), *rest)
    quantised = {name: module for name, module in ours.named_modules() if isinstance(module, QuantizedLinear)}
    assert sorted(quantised) == sorted(name for name in targets(judge, "all-linear", with_vision=False))
    processor = pretrained.read_processor(base)
    batch = processor(MESSAGES)
    assert len(batch["input_ids"]) > FEW  # fewer take a kernel of another precision
    with torch.no_grad():
        for name, module in quantised.items():
            judge.get_submodule(name).weight.copy_(module.weight)
        for model in (ours, judge):
            for number, linear in enumerate(adapted(model).values()):
                generator = torch.Generator().manual_seed(number)
                linear.lora_B.normal_(0.0, 0.1, generator=generator)
    for model in (ours, judge):
        optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3)
        for _ in range(3):
            model(**batch, labels=batch["input_ids"]).backward()
            optimizer.step()
            model.gradients = {
                name: one.grad for name, one in model.named_parameters() if one.grad is not None
            }
            optimizer.zero_grad()
    mine, theirs = ({n: p for n, p in m.named_parameters() if "lora_" in n} for m in (ours, judge))
    assert ours.gradients.keys() == judge.gradients.keys() == mine.keys() == theirs.keys()
    for name in mine:
        assert torch.allclose(ours.gradients[name], judge.gradients[name], atol=1e-5), name
        assert torch.allclose(mine[name], theirs[name], atol=1e-5), name


def test_a_qlora_run_resumes_and_its_adapter_is_merged_into_the_weights_as_they_were(base, tmp_path):
    options = {"quantize": "int4", "save_steps": 2}
    expected = trained(base, tmp_path / "whole", **options)
    out = tmp_path / "run"
    sft.train(SFTConfig(model=str(base), out=str(out), **COMMON | options | {"max_steps": 2}))
    shutil.rmtree(out / "final")
    again = trained(base, out, **options, override=True)
    assert again.keys() == expected.keys()
    export(out, tmp_path / "model", merged=True)
    merged, _ = r1ov.load(tmp_path / "model")
    plain, processor = r1ov.load(out)
    batch = processor([{"role": "user", "content": "How many?"}])
    assert torch.allclose(merged(**batch), plain(**batch), atol=1e-5)
    model, _ = r1ov.load(out, quantize="int4")
    assert any(isinstance(module, QuantizedLinear) for module in adapted(model).values())
    for wrong in ({"merge": True}, {"lora_r": None}):
        with pytest.raises(UserError, match="--quantize"):
            trained(base, tmp_path / "wrong", **options | wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"freeze": "vision"},
        {"model": None},
        {"adapter": "given"},
        # Without a rank these would change nothing: all weights would learn.
        {"lora_r": None, "lora_alpha": 16},
        {"lora_r": None, "lora_target": "q_proj"},
        {"lora_r": None, "lora_dropout": 0.1},
        {"lora_r": None, "merge": True},
    ],
    ids=lambda wrong: [*wrong][-1],
)
def test_what_does_not_go_together_is_refused(base, whole, tmp_path, wrong):
    wrong = {name: str(whole[0]) if value == "given" else value for name, value in wrong.items()}
    with pytest.raises(UserError, match="freeze all but an adapter"):
        sft.train(SFTConfig(**{"model": str(base), "out": str(tmp_path / "run"), **COMMON, **wrong}))
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_every_command_takes_an_adapter_by_itself_or_on_a_base(base, whole, tmp_path, monkeypatch, capsys):
    """One that says something else than its base, so that it cannot be left out unnoticed."""
    adapter = shutil.copytree(whole[0] / "final", tmp_path / "adapter")
    tensors = {name: 5 * tensor for name, tensor in load_file(adapter / WEIGHTS).items()}
    save_file(tensors, adapter / WEIGHTS)
    monkeypatch.chdir(tmp_path)

    def answer(*words: str) -> str:
        image = ROOT / "r1ov" / "data" / "playground" / "examples" / "counting.png"
        words = (
            "--image",
            str(image),
            "--max-new-tokens",
            "8",
            "--device",
            "cpu",
            "--temperature",
            "0",
            *words,
        )
        monkeypatch.setattr(sys, "argv", ["generate.py", *words])
        generate.main()
        return capsys.readouterr().out

    alone, both = answer("--model", str(adapter)), answer("--model", str(base), "--adapter", str(adapter))
    assert alone == both != answer("--model", str(base))
    texts = []
    for number, words in enumerate(
        (["--model", str(adapter)], ["--model", str(base), "--adapter", str(adapter)])
    ):
        words += ["--limit", "2", "--max-new-tokens", "8", "--device", "cpu", "--out", f"scored{number}"]
        monkeypatch.setattr(sys, "argv", ["r1ov.evaluate", *words])
        evaluate.main()
        lines = Path(f"scored{number}/predictions.jsonl").read_text().splitlines()
        texts.append([json.loads(line)["text"] for line in lines])
    assert texts[0] == texts[1]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["export", str(adapter), "merged", "--merge"])
    export_main()
    assert answer("--model", "merged") == alone
    with pytest.raises(UserError, match=r"adapter_config\.json: no such file"):
        answer("--model", str(base), "--adapter", str(base))
