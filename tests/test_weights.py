"""Weights in and out against transformers: its files loaded by us, ours by it; what a crash leaves; peak
memory.
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from r1ov.common.files import write_json
from r1ov.common.memory import LARGE
from r1ov.engine import cache
from r1ov.engine.cache import KVCache
from r1ov.errors import UserError
from r1ov.folder import weights
from r1ov.folder.weights import INDEX
from tests.reference import SHAPES, config_dict
from tests.weight_files import SMALL, assert_logits_equal, blank, loaded, saved, write_checkpoint


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
@pytest.mark.parametrize("config", ["flat", "nested"])
@pytest.mark.parametrize("names", ["published", "in memory"])
@pytest.mark.parametrize("name", SHAPES)
def test_checkpoints_of_transformers_load_strictly_with_equal_logits(name, names, config, sharded, tmp_path):
    reference = write_checkpoint(tmp_path, name, names, config, sharded)
    assert (tmp_path / INDEX).exists() == sharded
    assert ("text_config" in json.loads((tmp_path / "config.json").read_text())) == (config == "nested")
    keys = load_file(next(tmp_path.glob("*.safetensors"))).keys()
    assert all(key.startswith(("model.visual.", "model.language_model.", "lm_head.")) for key in keys) == (
        names == "in memory"
    )
    assert_logits_equal(loaded(tmp_path), reference)


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
@pytest.mark.parametrize("name", SHAPES)
def test_transformers_loads_what_we_save_with_no_key_left_over_and_equal_logits(name, sharded, tmp_path):
    write_checkpoint(tmp_path / "theirs", name)
    model = loaded(tmp_path / "theirs")
    saved(model, tmp_path / "ours", max_shard_size=SMALL if sharded else 10**9)
    files = sorted(path.name for path in (tmp_path / "ours").glob("*.safetensors"))
    if sharded:
        assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
        assert len(files) > 2
    else:
        assert files == ["model.safetensors"]
    theirs, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "ours", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    assert_logits_equal(model, theirs.eval())
    assert_logits_equal(loaded(tmp_path / "ours"), theirs)


def test_saved_shards_keep_to_their_size_and_their_index_adds_up(tmp_path):
    write_checkpoint(tmp_path / "theirs", "tied")
    saved(loaded(tmp_path / "theirs"), tmp_path, torch.bfloat16, 50_000)
    index = json.loads((tmp_path / INDEX).read_text())
    sizes = {}
    for file in sorted(set(index["weight_map"].values())):
        tensors = load_file(tmp_path / file)
        assert set(tensors) == {key for key, home in index["weight_map"].items() if home == file}
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
        sizes[file] = sum(tensor.nbytes for tensor in tensors.values())
        assert sizes[file] <= 50_000 or len(tensors) == 1
        with safe_open(tmp_path / file, "pt") as reader:
            assert reader.metadata() == {"format": "pt"}
    assert sum(sizes.values()) == index["metadata"]["total_size"]
    assert "lm_head.weight" not in index["weight_map"]


def test_saving_again_leaves_no_file_of_the_earlier_save_and_touches_no_other(tmp_path):
    write_checkpoint(tmp_path / "theirs", "untied")
    model = loaded(tmp_path / "theirs")
    out = tmp_path / "out"
    for max_shard_size in (SMALL, 2 * SMALL, 10**9, SMALL):
        saved(model, out, max_shard_size=max_shard_size)
        (out / "notes.txt").write_text("mine")
        (out / "model-00009-of-00009.safetensors.tmp").write_text("left by a crash")
        saved(model, out, max_shard_size=max_shard_size)
        single = max_shard_size == 10**9
        listed = (
            {"model.safetensors"}
            if single
            else {INDEX, *json.loads((out / INDEX).read_text())["weight_map"].values()}
        )
        assert {path.name for path in out.iterdir()} == listed | {"config.json", "notes.txt"}
        assert torch.equal(loaded(out).lm_head.weight, model.lm_head.weight)


def test_a_save_that_is_cut_short_keeps_the_earlier_one_or_leaves_no_config(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "theirs", "untied")
    model = loaded(tmp_path / "theirs")
    saved(model, tmp_path / "out", max_shard_size=SMALL)
    before = loaded(tmp_path / "out").state_dict()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    for function, fatal_call in (("r1ov.folder.weights.save_file", 3), ("os.replace", 1), ("os.replace", 3)):
        calls = 0
        module, _, attribute = function.rpartition(".")
        original = getattr(sys.modules[module], attribute)

        def cut_short(*args, original=original, fatal_call=fatal_call, **kwargs):
            nonlocal calls
            calls += 1
            if calls == fatal_call:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(function, cut_short)
            with pytest.raises(KeyboardInterrupt):
                saved(model, tmp_path / "out", max_shard_size=SMALL)
        if attribute == "save_file":
            assert all(
                torch.equal(value, before[key])
                for key, value in loaded(tmp_path / "out").state_dict().items()
            )
        else:
            assert not (tmp_path / "out" / "config.json").exists()
    saved(model, tmp_path / "out", max_shard_size=SMALL)
    assert torch.equal(loaded(tmp_path / "out").lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_every_float_format_on_disk_loads_as_either_dtype(stored, wanted, tmp_path):
    write_checkpoint(tmp_path, "untied")
    tensors = {key: value.to(stored) for key, value in load_file(tmp_path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")  # without metadata, as some tools write it
    for key, parameter in loaded(tmp_path, wanted).named_parameters():
        assert parameter.dtype == wanted
        assert parameter.requires_grad
        assert torch.equal(parameter, tensors[key].to(wanted))


@torch.no_grad()
def test_a_model_maps_its_files_never_writes_to_them_and_outlives_them(tmp_path):
    write_checkpoint(tmp_path, "untied")
    file = tmp_path / "model.safetensors"
    before, tensors = file.read_bytes(), load_file(file)
    model = loaded(tmp_path)
    mapped = [
        line.split()[:2] for line in Path("/proc/self/maps").read_text().splitlines() if str(file) in line
    ]
    begins = [int(span.split("-")[0], 16) for span, _ in mapped]
    assert all(access.endswith("p") for _, access in mapped)  # private: what is written stays in the process
    assert begins[0] < model.lm_head.weight.data_ptr() < begins[0] + 2 * len(before)
    for parameter in model.parameters():
        parameter.add_(1)
    assert file.read_bytes() == before
    file.unlink()
    assert all(torch.equal(value, tensors[key] + 1) for key, value in model.state_dict().items())


def test_links_out_of_the_folder_work_as_a_hub_cache_has_them(tmp_path):
    reference = write_checkpoint(tmp_path / "blobs", "tied", sharded=True)
    snapshot = tmp_path / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for file in (tmp_path / "blobs").iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert_logits_equal(loaded(snapshot), reference)


def test_a_tied_model_takes_a_file_that_repeats_the_embedding_and_refuses_a_head_of_its_own(tmp_path):
    reference = write_checkpoint(tmp_path, "tied")
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
        tmp_path / "model.safetensors",
    )
    assert_logits_equal(loaded(tmp_path), reference)

    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, tmp_path / "model.safetensors"
    )
    with pytest.raises(
        UserError, match=r"lm_head\.weight is not the embedding, although tie_word_embeddings is true"
    ):
        loaded(tmp_path)
    write_json(tmp_path / "config.json", config_dict("tied") | {"tie_word_embeddings": False})
    assert torch.equal(loaded(tmp_path).lm_head.weight, tensors["model.embed_tokens.weight"] + 1)


@pytest.mark.skipif(LARGE is None, reason="large pages are Linux's")
@pytest.mark.parametrize("config", ["tied", "untied"])
def test_decoding_takes_weights_from_their_file_a_few_a_step_and_changes_none(config, tmp_path, monkeypatch):
    write_checkpoint(tmp_path, config)
    model, tensors = loaded(tmp_path), load_file(tmp_path / "model.safetensors")
    before = dict(model.named_parameters())
    addresses = {name: parameter.data_ptr() for name, parameter in before.items()}
    assert set(model.mapped) == set(tensors) == set(before)
    monkeypatch.setattr(cache, "AT_ONCE", 2**14)  # bytes
    tokens, positions, steps, logits = torch.tensor([5]), torch.tensor([0]), [], []
    with torch.inference_mode():
        rows = KVCache(model.model, 1, 40)
        for _ in range(30):
            logits.append(cache.step(model, rows, tokens, positions))
            steps.append(len(model.mapped))
            rows.lengths.zero_()  # each step is the first again
            rows.longest = 0
    assert steps[0] > steps[1] > steps[2] > 0 == steps[-1]
    assert all(torch.equal(logits[0], others) for others in logits)
    for name, parameter in model.named_parameters():
        assert parameter is before[name]  # an optimizer's, too
        assert torch.equal(parameter, tensors[name])
        is_read = name.startswith("model.layers.") or parameter is model.head_weight
        assert (parameter.data_ptr() != addresses[name]) == is_read
    ids = torch.arange(5)
    model(ids, ids.expand(3, -1), torch.tensor([0, 5], dtype=torch.int32)).sum().backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


MEMORY = """
    import sys, time, torch
    from pathlib import Path
    from r1ov.folder.pretrained import read_config
    from r1ov.model.model import Qwen2_5_VL
    from r1ov.folder.weights import load_weights

    def status(field):
        lines = [line.split() for line in open("/proc/self/status")]
        return next(int(words[1]) * 1024 for words in lines if words[0] == field + ":")

    folder = Path(sys.argv[1])
    for dtype in (torch.bfloat16, torch.float32):
        with torch.device("meta"):
            model = Qwen2_5_VL(read_config(folder / "config.json"))
        before = status("VmRSS")
        load_weights(model, folder, "cpu", dtype)
        print(status("VmHWM") - before, sum(parameter.nbytes for parameter in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_loading_takes_no_memory_in_the_files_dtype_and_in_another_the_model_and_part_of_a_file(tmp_path):
    raw = config_dict("untied") | {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 12,
        "vocab_size": 20_000,
    }
    raw |= {
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    }
    raw["vision_config"] |= {"out_hidden_size": 1024}
    model = blank(raw).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)  # pages that were never written take no memory
    saved(model, tmp_path, torch.bfloat16)
    del model
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), tmp_path], capture_output=True, text=True, check=True
    )
    (mapped, stored), (growth, size) = (map(int, line.split()) for line in run.stdout.splitlines())
    # 32 MB for the allocator and the code that is first run here
    assert mapped < 32e6
    assert size == 2 * stored
    assert size <= growth + 32e6
    assert growth < size + 2**28 + 64e6 < size + stored  # 256 MB of the file, and the tensor that passed them


def test_a_file_is_opened_anew_so_that_its_parts_leave_memory_one_by_one(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, "untied")
    opened, real = [], weights._opened
    monkeypatch.setattr(weights, "MOST_OPEN", 2**10)  # bytes
    monkeypatch.setattr(weights, "_opened", lambda file: opened.append(file) or real(file))
    counts = {}
    for dtype in (torch.float32, torch.bfloat16):
        opened.clear()
        loaded(tmp_path, dtype=dtype)
        counts[dtype] = len(opened)
    assert min(counts.values()) > 20
