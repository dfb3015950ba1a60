"""r1ov.load and r1ov.save whole: a folder in, a folder out, and what the caller can get wrong."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, GenerationConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import r1ov
from r1ov.common import processes
from r1ov.common.files import write_json
from r1ov.common.processes import choose_device, choose_dtype
from r1ov.errors import UserError
from r1ov.folder.adapter import Folders
from r1ov.folder.pretrained import find, read_processor
from tests.weight_files import SMALL, assert_logits_equal, write_checkpoint

SPECIAL = [
    "<|endoftext|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


@pytest.fixture
def checkpoint(tmp_path):
    """A whole folder: weights, config, and a tokenizer of ninety words and the special tokens that
    config.json names.
    """
    folder = tmp_path / "checkpoint"
    reference = write_checkpoint(folder, "untied")
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(90)}, unk_token="w0"))
    tokenizer.add_special_tokens(SPECIAL)  # ids 90 to 96
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"},
    )
    write_json(
        folder / "preprocessor_config.json",
        {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056},
    )
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"
    )
    write_json(
        folder / "generation_config.json",
        {"eos_token_id": [91, 90], "repetition_penalty": 1.05, "do_sample": True},
    )
    return folder, reference


def test_load_gives_a_model_for_evaluation_and_its_processor(checkpoint):
    folder, reference = checkpoint
    model, processor = r1ov.load(str(folder), device="cpu", dtype=torch.float32)
    assert not model.training
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert_logits_equal(model, reference)
    batch = processor([{"role": "user", "content": "w1"}])
    assert model(**batch).shape == (len(batch["input_ids"]), 100)


@pytest.mark.parametrize("max_shard_size", [SMALL, 5_000_000_000])
def test_what_save_writes_loads_here_and_in_transformers(checkpoint, max_shard_size, tmp_path):
    model, processor = r1ov.load(checkpoint[0])
    r1ov.save(model, processor, tmp_path / "out", dtype=torch.float32, max_shard_size=max_shard_size)
    again, processor_again = r1ov.load(tmp_path / "out")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert processor_again.generation_config == processor.generation_config

    theirs, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values()), info
    assert theirs.dtype == torch.float32  # by config.json
    assert theirs.generation_config.repetition_penalty == 1.05
    assert_logits_equal(again, theirs.eval())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == list(range(90, 97))
    assert "message" in tokenizer.chat_template
    Qwen2VLImageProcessorPil.from_pretrained(tmp_path / "out")


def test_save_writes_bfloat16_unless_told_otherwise_and_changes_nothing_in_the_model(checkpoint, tmp_path):
    model, processor = r1ov.load(checkpoint[0])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    r1ov.save(model, processor, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    again, _ = r1ov.load(tmp_path / "out")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
        assert torch.equal(again.state_dict()[key], before[key].bfloat16().float())


def test_a_model_can_be_saved_over_the_folder_it_came_from(checkpoint):
    folder, reference = checkpoint
    model, processor = r1ov.load(folder)
    r1ov.save(model, processor, folder, dtype=torch.float32, max_shard_size=SMALL)
    assert not (folder / "model.safetensors").exists()
    assert_logits_equal(r1ov.load(folder)[0], reference)


def test_a_save_whose_processor_fails_leaves_no_config(checkpoint, tmp_path):
    model, processor = r1ov.load(checkpoint[0])
    r1ov.save(model, processor, tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").unlink()
    (tmp_path / "out" / "tokenizer.json").mkdir()
    with pytest.raises(UserError, match="cannot be saved there"):
        r1ov.save(model, processor, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("instructions", [(), ("avx512_bf16",), ("amx_bf16",), ("bf16",)])
def test_the_dtype_is_the_checkpoints_where_it_is_computed_well_unless_it_is_given(instructions, monkeypatch):
    cpu, cuda, b, f = torch.device("cpu"), torch.device("cuda"), torch.bfloat16, torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True))
    monkeypatch.setattr(processes, "free_memory", lambda device: 40e9)
    for stored in ("bfloat16", "float16"):
        assert choose_dtype(None, cpu, stored, 7e9)[0] == (b if instructions else f)
        assert choose_dtype(None, cpu, stored, 11e9)[0] == b  # 44 GB in float32
        assert choose_dtype(None, cpu, stored, 4e6)[0] == f  # r1ov-tiny's size
        assert choose_dtype(None, cuda, stored, 4e6)[0] == b
    assert choose_dtype(None, cpu, "float32", 11e9)[0] == choose_dtype(None, cuda, "float32")[0] == f
    assert choose_dtype("bfloat16", cpu)[0] == choose_dtype(b, cpu)[0] == b
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_gpu_that_is_chosen_is_the_one_that_everything_is_launched_on(monkeypatch):
    """Without a GPU: torch is told that there are several. `cuda` alone is the current one, and stays it."""
    current = []
    placed = {"cuda": "cuda:0"}  # of what is put there

    def empty(_, device):
        return SimpleNamespace(
            device=torch.device(placed.get(str(device), device)), is_cuda=device.type == "cuda"
        )

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cuda") == torch.device("cuda")
    assert choose_device("cpu") == torch.device("cpu")
    assert current == [torch.device("cuda:1"), torch.device("cuda:0")]


WRONG = {
    "half precision": (dict(dtype=torch.float16), "overflows"),
    "half precision by name": (dict(dtype="float16"), "overflows"),
    "doubles": (dict(dtype=torch.float64), "not one of float32, bfloat16"),
    "no dtype": (dict(dtype="fast"), "not one of float32, bfloat16"),
    "a number as dtype": (dict(dtype=16), "not one of float32, bfloat16"),
    "no device": (dict(device="toaster"), "device 'toaster' cannot be used here"),
    "no such GPU": (dict(device="cuda:99"), "device 'cuda:99' cannot be used here"),
    "another maker's": (dict(device="xpu:99"), "device 'xpu:99' cannot be used here"),
    "device without numbers": (dict(device="meta"), "runs on cpu and cuda"),
    "empty device": (dict(device=""), "cannot be used here"),
    "list of devices": (dict(device=["cpu"]), "cannot be used here"),
    "no such folder": (dict(name="/no/such/folder"), "no such folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_load_refuses_what_it_cannot_do_in_one_line(case, checkpoint):
    arguments, message = WRONG[case]
    with pytest.raises(UserError) as caught:
        r1ov.load(**{"name": checkpoint[0], **arguments})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_load_names_the_file_that_is_missing(missing, checkpoint):
    (checkpoint[0] / missing).unlink()
    with pytest.raises(UserError, match=missing) as caught:
        r1ov.load(checkpoint[0])
    assert "\n" not in str(caught.value)


def test_the_folder_of_a_lora_adapter_names_its_base(checkpoint, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"base_model_name_or_path": "/nowhere/of-base", "lora_alpha": 8}
    write_json(folder / "adapter_config.json", settings)
    with pytest.raises(UserError, match=r"/nowhere/of-base: no such folder") as caught:
        r1ov.load(folder)
    assert "\n" not in str(caught.value)
    assert find(checkpoint[0], folder) == Folders(checkpoint[0], checkpoint[0], folder)
    write_json(folder / "adapter_config.json", settings | {"base_model_name_or_path": str(checkpoint[0])})
    assert find(folder) == Folders(checkpoint[0], checkpoint[0], folder)
    (folder / "config.json").write_bytes((checkpoint[0] / "config.json").read_bytes())
    assert find(folder).settings == folder


def test_a_model_with_an_adapter_beside_it_is_a_model(checkpoint):
    write_json(
        checkpoint[0] / "adapter_config.json", {"base_model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct"}
    )
    r1ov.load(checkpoint[0])


def test_save_refuses_what_it_cannot_do_in_one_line(checkpoint, tmp_path):
    model, processor = r1ov.load(checkpoint[0])
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (dict(folder=tmp_path / "file"), "cannot be saved there"),
        (dict(folder=tmp_path / "file" / "below"), "cannot be saved there"),
        (dict(folder=tmp_path / "out", dtype=torch.float16), "overflows"),
        (dict(folder=tmp_path / "out", max_shard_size=0), "expected a number of bytes"),
        (dict(folder=tmp_path / "out", max_shard_size="5GB"), "expected a number of bytes"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            r1ov.save(model, processor, **arguments)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# Settings of generation_config.json that r1ov reads, or that choose no token without one that it refuses.
READ = "do_sample temperature top_k top_p repetition_penalty max_new_tokens eos_token_id"
WITHOUT_EFFECT = """bos_token_id pad_token_id decoder_start_token_id max_length early_stopping length_penalty
    diversity_penalty remove_invalid_values renormalize_logits low_memory is_assistant return_dict_in_generate
    use_mtp use_cache speculation_type prompt_lookup_num_tokens max_matching_ngram_size target_lookbehind
    transformers_version"""
OF_SPEED = ("assistant_", "num_assistant_", "output_", "cache_", "compile_", "continuous_", "disable_")
OF_SPEED += ("prefill_", "max_cache_len", "_from")


def test_a_generation_setting_of_transformers_is_read_or_refused_or_chooses_no_token(checkpoint):
    folder, _ = checkpoint
    path = folder / "generation_config.json"
    settings = vars(GenerationConfig())
    for name in settings.keys() - {*READ.split(), *WITHOUT_EFFECT.split()}:
        if name.startswith(OF_SPEED):
            continue
        for value in (settings[name], 0, 1):  # as transformers writes it where it does nothing
            path.write_text(json.dumps({name: value}))
            read_processor(folder)
        for value in (3, 0.5, [[5]]):
            path.write_text(json.dumps({name: value}))
            with pytest.raises(UserError, match=rf"generation_config.json: {name} is .*set it to null"):
                read_processor(folder)


def test_importing_r1ov_imports_nothing_heavy():
    heavy = {"torch", "PIL", "huggingface_hub"}
    code = f"import sys, r1ov; print(r1ov.__version__, *[name for name in {heavy} if name in sys.modules])"
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.split() == ["0.1.0"]
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = r1ov.lode
