"""LoRA against PEFT on the same random model and rows: outputs, gradients, steps, files, merged weights."""

import json
import re
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

import r1ov
from r1ov.errors import UserError
from r1ov.folder import pretrained
from r1ov.folder.adapter import SETTINGS, WEIGHTS, merge
from r1ov.folder.quantized import weight_bytes
from r1ov.model.lora import Lora, adapted, attach, disable_adapter, drawn, targets
from r1ov.train.run.config import GRPOConfig, SFTConfig
from r1ov.train.run.presets import GRPO, SFT
from tests.checkpoint import write_checkpoint
from tests.test_published_shapes import published_config

MESSAGES = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": "r1ov/data/playground/examples/counting.png"},
            {"type": "text", "text": "How many yellow triangles are there?"},
        ],
    },
    {"role": "assistant", "content": "<think>One, two.</think>\n<answer>2</answer>"},
]
# targets as PEFT is told, and as we are
EVERYWHERE = r".*\.(layers|blocks)\.\d+\..*(_proj|attn\.qkv|attn\.proj)|.*merger\.mlp\.[02]"
CASES = {
    "all-linear": ({"target_modules": r".*language_model.*_proj"}, ("all-linear", False)),
    "vision": ({"target_modules": EVERYWHERE}, ("all-linear", True)),
    "attention": ({"target_modules": r".*language_model.*self_attn\..*_proj"}, ("attention", False)),
    "mlp, rslora": (
        {"target_modules": r".*language_model.*\.mlp\..*_proj", "use_rslora": True},
        ("mlp", False),
    ),
    "q and v": ({"target_modules": ["q_proj", "v_proj"]}, ("q_proj,v_proj", False)),
    "dropout": ({"target_modules": ["q_proj", "o_proj"], "lora_dropout": 0.3}, ("q_proj,o_proj", False)),
}
cases = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    write_checkpoint(folder)
    return folder


def theirs(base: Path, **settings) -> peft.PeftModel:
    """The judge, with random matrices, B not 0."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=12, **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.1, generator=generator)
    return model


def close(ours: torch.Tensor, theirs: torch.Tensor, bound: float = 1e-5) -> bool:
    """Within `bound`, or of numbers above 1 within that share of the largest."""
    return bool((ours - theirs).abs().max() <= bound * theirs.abs().max().clamp(min=1))


def rows(base: Path) -> dict[str, torch.Tensor]:
    processor = pretrained.read_processor(base)
    batch = processor(MESSAGES)
    return {**batch, "labels": batch["input_ids"].clone()}


def their_inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    pictured = {name: batch[name] for name in ("pixel_values", "image_grid_thw")}
    types = (batch["input_ids"] == 1036).int()[None]
    ids = {"input_ids": batch["input_ids"][None], "labels": batch["labels"][None], "mm_token_type_ids": types}
    return {**ids, "position_ids": batch["position_ids"][:, None], **pictured}


def their_name(name: str) -> str:
    name = name.removeprefix("base_model.model.").replace(".default.weight", "")
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


@cases
def test_outputs_gradients_and_three_steps_are_pefts(base, tmp_path, name):
    judge = theirs(base, **CASES[name][0])
    judge.save_pretrained(tmp_path)
    ours, _ = r1ov.load(tmp_path)  # the base is found by its name in the file
    assert sorted(adapted(ours)) == sorted(targets(ours, *CASES[name][1]))
    batch = rows(base)
    with torch.no_grad():  # without dropout
        expected = judge.eval()(**their_inputs(batch)).logits[0]
        assert close(ours(**{k: v for k, v in batch.items() if k != "labels"}), expected)
    ours.train(), judge.train()
    optimizers = [
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        for model in (ours, judge)
    ]
    mine = {name: one for name, one in ours.named_parameters() if one.requires_grad}
    their = {their_name(name): one for name, one in judge.named_parameters() if one.requires_grad}
    assert mine.keys() == their.keys()
    assert all("lora_" in name for name in mine)
    for step in range(3):
        losses = []
        for model, inputs in ((ours, batch), (judge, their_inputs(batch))):
            torch.manual_seed(step)  # of dropout: the layers draw in the same order
            loss = model(**inputs)
            losses.append(loss if model is ours else loss.loss)
            losses[-1].backward()
        assert close(*losses)
        for name in mine:
            assert close(mine[name].grad, their[name].grad), (step, name)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for name in mine:
        assert close(mine[name], their[name]), name


@cases
def test_peft_loads_ours_and_merges_to_the_same(base, tmp_path, name):
    ours, processor = r1ov.load(base)
    layers = targets(ours, *CASES[name][1])
    generator = torch.Generator().manual_seed(2)
    values = {n: torch.randn(v.shape, generator=generator) / 10 for n, v in drawn(ours, layers, 4).items()}
    settings = {k: v for k, v in CASES[name][0].items() if k != "target_modules"}
    attach(ours, values, Lora(str(base), 12, settings.get("lora_dropout", 0.0), "use_rslora" in settings))
    r1ov.save(ours, processor, tmp_path)
    judge = Qwen2_5_VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    judge = peft.PeftModel.from_pretrained(judge, tmp_path).eval()
    assert {their_name(n) for n, _ in judge.named_parameters() if "lora_" in n} == values.keys()
    batch = rows(base)
    logits = judge(**their_inputs(batch)).logits[0]
    del batch["labels"]
    assert close(ours(**batch), logits)
    # as transformers' own loading takes an adapter's folder
    again, _ = r1ov.load(tmp_path)
    assert torch.equal(again(**batch), ours(**batch))
    merged = judge.merge_and_unload().state_dict()
    for tensor, value in merge(ours).state_dict().items():
        their = merged[
            f"model.{tensor}"
            if tensor.startswith("visual.")
            else tensor.replace("model.", "model.language_model.", 1)
        ]
        assert close(value, their, 1e-6), tensor
    assert not adapted(ours)
    assert close(ours(**batch), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_adapter_changes_no_bit_and_one_that_is_off_neither(base, dtype):
    ours, _ = r1ov.load(base, dtype=dtype)
    batch = {k: v for k, v in rows(base).items() if k != "labels"}
    before = ours(**batch)
    values = drawn(ours, targets(ours, "all-linear", True), 4)
    attach(ours, values, Lora(str(base), 32))
    assert {p.dtype for n, p in ours.named_parameters() if "lora_" in n} == {torch.float32}
    assert torch.equal(ours(**batch), before)
    with torch.no_grad():
        for linear in adapted(ours).values():
            linear.lora_B.normal_()
    assert not torch.allclose(ours(**batch), before)
    with disable_adapter(ours):
        assert torch.equal(ours(**batch), before)


def test_as_many_layers_as_pefts_own_all_linear(base):
    judge = theirs(base, target_modules="all-linear")
    ours, _ = r1ov.load(base)
    names = {their_name(n).rpartition(".lora_")[0] for n, _ in judge.named_parameters() if "lora_" in n}
    assert set(targets(ours, "all-linear", True)) == names


def test_ranks_that_differ_are_read_and_written(base, tmp_path):
    judge = theirs(base, target_modules=["q_proj", "v_proj"], rank_pattern={"layers.1.self_attn.q_proj": 7})
    judge.save_pretrained(tmp_path / "theirs")
    ours, processor = r1ov.load(tmp_path / "theirs")
    batch = rows(base)
    logits = judge.eval()(**their_inputs(batch)).logits[0]
    del batch["labels"]
    assert close(ours(**batch), logits)
    r1ov.save(ours, processor, tmp_path / "ours")
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    again = peft.PeftModel.from_pretrained(again, tmp_path / "ours").eval()
    assert close(again(**their_inputs(rows(base))).logits[0], logits)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save is"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern is"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"something_new": 1}, "something_new is 1"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path"),
        ({"base_model_name_or_path": "/nowhere"}, ": /nowhere: no such folder"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(base, tmp_path, change, named):
    theirs(base, target_modules=["q_proj"]).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / SETTINGS).read_text())
    (tmp_path / SETTINGS).write_text(json.dumps(raw | change))
    with pytest.raises(UserError, match=re.escape(named)) as error:
        r1ov.load(tmp_path)
    assert "\n" not in str(error.value)


def test_another_models_adapter_and_a_damaged_one_are_refused(base, tmp_path):
    theirs(base, target_modules=["q_proj"]).save_pretrained(tmp_path)
    good = load_file(tmp_path / WEIGHTS)
    first = next(iter(good))
    for change in ({first: good[first][:, 1:]}, {first.replace("q_proj", "x_proj"): good[first]}):
        save_file({n: t.clone().contiguous() for n, t in (good | change).items()}, tmp_path / WEIGHTS)
        with pytest.raises(UserError, match="not an adapter of this model"):
            r1ov.load(tmp_path)
    save_file({n: t for n, t in good.items() if n != first}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match="not an adapter of this model"):
        r1ov.load(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(UserError, match="no safetensors file"):
        r1ov.load(tmp_path)


@pytest.mark.parametrize(
    ("release", "quantize", "weights"), [("7B", "int4", 7.7), ("3B", "int4", 3.8), ("3B", None, 7.6)]
)
@pytest.mark.parametrize(("options", "presets"), [(SFTConfig, SFT), (GRPOConfig, GRPO)])
def test_the_preset_for_24_gb_fits(release, quantize, weights, options, presets):
    """Counted on the meta device: bytes of weights and of the adapter's states, of cache and activations."""
    config = options(**presets["lora-24gb"])
    sizes = pretrained.config_from_dict(published_config(release))
    model, text = pretrained.build(sizes).to(torch.bfloat16), sizes.text
    held = weight_bytes(model, 2, quantize)
    if (
        quantize
    ):  # in training the head stays as it is: one byte a number more, and if it is tied no second one
        held += text.vocab_size * text.hidden_size * (-1 if sizes.tie_word_embeddings else 1)
    assert held < weights * 1e9
    layers = targets(model, config.lora_target, config.lora_vision)
    adapter = sum(config.lora_r * sum(model.get_submodule(name).weight.shape) for name in layers)
    assert len(layers) == 7 * text.num_hidden_layers
    states = 16 * adapter  # float32: the matrices, their gradients, two moments
    tokens = config.max_length
    kept = 2 * tokens * text.hidden_size * text.num_hidden_layers  # each layer's input
    layer = 2 * tokens * (6 * text.hidden_size + 4 * text.intermediate_size)  # one, recomputed
    logits = 2 * (tokens * text.vocab_size + 2**25)  # kept until the backward, and a tile of their gradient
    rows = getattr(config, "max_num_seqs", 0)
    positions = 2048 if rows else 0
    cache = 2 * 2 * text.num_key_value_heads * text.head_dim * text.num_hidden_layers * rows * positions
    assert held + states + kept + layer + logits + cache < 16e9  # a third of the card is left
