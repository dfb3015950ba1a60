"""What a command says that it will need, against what it then takes, and the line in which it refuses."""

import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import generate
import kernels
from r1ov.common import memory
from r1ov.errors import UserError
from r1ov.folder.pretrained import read_config
from r1ov.folder.weights import init_weights
from r1ov.model.model import Qwen2_5_VL
from r1ov.train import sft
from r1ov.train.grpo import completion_logprobs
from r1ov.train.loss import sft_loss_and_correct
from r1ov.train.run import sharding
from r1ov.train.run.config import SFTConfig
from r1ov.train.sft import train
from tests import count_step
from tests.checkpoint import write_checkpoint

PEAK = """
    import sys
    import {program} as program
    program.main()
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("peak", int(peak.split()[1]) * 1024, file=sys.stderr)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_the_plan_is_within_a_tenth_of_the_measured_peak():
    words = "--image r1ov/data/playground/examples/counting.png --temperature 1 --num-samples 64 --seed 1"
    run = subprocess.run(  # a process of its own: the peak of this one is that of all tests
        [
            sys.executable,
            "-c",
            textwrap.dedent(PEAK.format(program="generate")),
            *words.split(),
            "--max-new-tokens",
            "300",
            "--device",
            "cpu",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    said = 1e9 * float(re.search(r"\| ([\d.]+) GB of [\d.]+ free \(program", run.stderr)[1])
    peak = int(re.search(r"peak (\d+)", run.stderr)[1])
    assert abs(said - peak) < 0.1 * peak, run.stderr


def test_what_does_not_fit_is_refused_in_one_line_before_it_is_loaded(tmp_path, monkeypatch):
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(bytes(10**6))  # never read
    monkeypatch.setattr(memory, "free_memory", lambda device: 1e6)
    words = ["--model", str(tmp_path), "--prompt", "hi", "--device", "cpu", "--num-samples", "1000"]
    monkeypatch.setattr(sys, "argv", ["generate.py", *words, "--temperature", "1", "--max-new-tokens", "400"])
    with pytest.raises(UserError) as caught:
        generate.main()
    message = str(caught.value)
    assert re.match(
        r"needs [\d.]+ GB of [\d.]+ free \(program .*, weights .*, cache .*, activations", message
    )
    assert all(word in message for word in ("quantize int4", "new tokens or samples", "max_pixels"))
    assert "\n" not in message


def test_memory_is_that_of_the_container_where_it_has_less(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   5000 kB\n",
        "/sys/fs/cgroup/memory.max": "3000000\n",
        "/sys/fs/cgroup/memory.current": "1000000\n",
    }
    monkeypatch.setattr(Path, "read_text", lambda self: files[str(self)])
    assert memory.free_memory(torch.device("cpu")) == 2_000_000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert memory.free_memory(torch.device("cpu")) == 5_120_000


TRAIN = """--stage sft --max-steps 3 --eval-steps 0 --max-length 1024 --device cpu --num-threads 1
    --dataloader-num-workers 0"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_the_plan_of_a_training_is_within_a_tenth_of_the_measured_peak(tmp_path):
    code = textwrap.dedent(PEAK.format(program="train"))
    run = subprocess.run(
        [sys.executable, "-c", code, *TRAIN.split(), "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    said = re.findall(r"memory +([\d.]+) GB of [\d.]+ free[^)]*\s+pack\s+of", run.stderr)
    peak = int(re.search(r"peak (\d+)", run.stderr)[1])
    assert said, run.stderr
    assert abs(1e9 * float(said[-1]) - peak) < 0.1 * peak, run.stderr


def pack_of(config, lengths, pictures):
    """A pack of sequences of these lengths; the second half of each is trained, pictures begin the first."""
    tokens, side = sum(lengths), 8
    ids = torch.randint(0, 1000, (tokens,))
    ids[: pictures * side**2 // 4] = config.image_token_id
    labels = torch.cat([torch.arange(n).ge(n // 2) * 2 - 1 for n in lengths]) * 5
    return {
        "input_ids": ids,
        "position_ids": torch.arange(tokens).expand(3, -1),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(),
        "pixel_values": torch.randn(pictures * side**2, config.vision.patch_dim),
        "image_grid_thw": torch.tensor([[1, side, side]] * pictures),
        "labels": labels.where(labels > 0, -100),
    }


SHAPES = {  # changes of r1ov-tiny's text and vision
    "as it is": ({}, {}),
    "deep, with a wide MLP": ({"num_hidden_layers": 8, "intermediate_size": 1024}, {}),
    "many words": ({"vocab_size": 20_000}, {}),
    "a deep encoder": ({}, {"depth": 8, "intermediate_size": 512}),
}


@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize("mode", ["off", "selective", "full"])
@pytest.mark.parametrize("shape", SHAPES)
def test_activations_are_those_that_live_at_the_same_time(shape, mode, stage):
    config = read_config(Path("r1ov/model/r1ov-tiny/config.json"))
    text, vision = SHAPES[shape]
    config = replace(config, text=replace(config.text, **text), vision=replace(config.vision, **vision))
    model = Qwen2_5_VL(config)
    init_weights(model, torch.Generator().manual_seed(0))
    sharding.checkpoint_activations(model, mode)
    for parameter in model.parameters():  # gradients are no activations
        parameter.register_post_accumulate_grad_hook(lambda one: setattr(one, "grad", None))
    pack = pack_of(config, [300, 200, 260, 240], 6)
    run = SimpleNamespace(
        model=model,
        config=SimpleNamespace(activation_checkpointing=mode, context_parallel=1, stage=stage),
        dtype=torch.float32,
        kernels="torch",
        device=torch.device("meta"),  # which has no heap with holes
    )
    given = {name: tensor for name, tensor in pack.items() if name != "labels"}
    then = partial(sft_loss_and_correct, labels=pack["labels"], num_items_in_batch=1)
    if stage == "grpo":
        then = partial(completion_logprobs, labels=pack["labels"], temperature=1.0)
    living = count_step.Living("cpu")
    with living:
        model(**given, then=then)[0].sum().backward()
    found = living.most + pack["pixel_values"].nbytes
    assert sum(memory.activations(run, [pack]).values()) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradients_of_a_single_pack_come_as_its_activations_go(shape):
    text, vision = SHAPES[shape]
    config = read_config(Path("r1ov/model/r1ov-tiny/config.json"))
    config = replace(config, text=replace(config.text, **text), vision=replace(config.vision, **vision))
    model, pack = Qwen2_5_VL(config), pack_of(config, [300, 200, 260, 240], 6)
    init_weights(model, torch.Generator().manual_seed(0))
    run = SimpleNamespace(
        model=model,
        parameters=[*model.parameters()],
        config=SimpleNamespace(activation_checkpointing="off", context_parallel=1, replicate=1, stage="sft"),
        world=SimpleNamespace(size=1),
        dtype=torch.float32,
        kernels="torch",
        device=torch.device("meta"),
    )
    then = partial(sft_loss_and_correct, labels=pack["labels"], num_items_in_batch=1)
    living = count_step.Living("cpu")
    with living:
        model(**{name: tensor for name, tensor in pack.items() if name != "labels"}, then=then)[0].backward()
    gradients = sum(parameter.grad.nbytes for parameter in model.parameters())
    found = living.most + pack["pixel_values"].nbytes
    assert sum(memory.of_step(run, [pack]).values()) + gradients == pytest.approx(found, rel=0.1)
    assert memory.of_step(run, [pack, pack]) == memory.activations(run, [pack])


@pytest.mark.parametrize("mode", ["off", "selective", "full"])
def test_activations_with_the_kernels_are_those_counted_on_the_meta_device(mode):
    model = count_step.build("3B")
    sharding.checkpoint_activations(model, mode)
    model.model.embed_tokens.weight.requires_grad_(False)
    head = model.head_weight.nbytes  # of its gradient, which the kernel makes all the same: no activation
    for parameter in model.model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda one: setattr(one, "grad", None))
    living = count_step.Living()
    kernels.use("triton")
    try:
        with living:
            count_step.loss_of(model, tokens=4096, pictures=4, patches=1024).backward()
    finally:
        kernels.use(None)
    pack = {"labels": torch.zeros(4096), "pixel_values": torch.empty(4 * 1024, 0)}
    run = SimpleNamespace(
        model=model,
        config=SimpleNamespace(activation_checkpointing=mode, context_parallel=1, stage="grpo"),
        dtype=torch.bfloat16,
        kernels="triton",
        device=torch.device("meta"),
    )
    assert sum(memory.activations(run, [pack]).values()) == pytest.approx(living.most - head, rel=0.1)


REFUSED = """
import sys
from r1ov.common import memory
from r1ov.train.run.config import SFTConfig
from r1ov.train.sft import train

memory.free_memory = lambda device: 2.5e8  # enough for what is held all the time
train(SFTConfig(max_steps=1, eval_steps=0, dataloader_num_workers=0, device="cpu", out=sys.argv[1]))
"""


def test_a_pack_that_does_not_fit_is_refused_in_one_line_before_it_is_trained(tmp_path):
    """In a process of its own: what this one holds already counts as the program's."""
    words = [sys.executable, "-c", REFUSED, str(tmp_path / "run")]
    done = subprocess.run(words, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    name, _, message = done.stderr.strip().splitlines()[-1].partition(": ")
    assert name == "r1ov.errors.UserError"
    assert re.match(r"needs [\d.]+ GB of [\d.]+ free \(program .*, a pack of 5,\d\d\d tokens", message)
    assert all(word in message for word in ("--activation-checkpointing full", "--max-length", "--lora-r"))


def test_no_foresight_ends_a_run_that_is_on_its_way(tmp_path, monkeypatch, capsys):
    """A pack of the second step is said not to fit, and tried."""
    counts = iter([1e6, 1e12])
    monkeypatch.setattr(sft, "of_step", lambda run, packs: {"a pack": next(counts)})
    options = {"max_steps": 2, "eval_steps": 0, "dataloader_num_workers": 0, "device": "cpu"}
    train(SFTConfig(**options, out=str(tmp_path / "run")))
    said = "".join(capsys.readouterr())
    assert re.search(r"memory  1,?000\.\d\d GB of [\d.]+ free", said)
    assert (tmp_path / "run" / "final").is_dir()
