"""Weights in and out against transformers: its files loaded by us, ours by it, the published shapes, and damaged files."""

import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from r1ov.errors import UserError
from r1ov.model.config import Config
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.rope import mrope_positions
from r1ov.model.weights import load_weights, save_weights, write_json
from tests.reference import IMAGE, SHAPES, config_dict, prompt, reference_logits, reference_model

LOGITS = 1e-4  # relative; float32 sums in another order give about 1e-6
INDEX = "model.safetensors.index.json"
SMALL = 150_000  # bytes; the checkpoints of tests.reference have about 0.6 to 1.2 MB in float32


def blank(raw):
    with torch.device("meta"):
        return Qwen2_5_VL(Config.from_dict(raw))


def loaded(folder, dtype=torch.float32):
    model = blank(json.loads((folder / "config.json").read_text()))
    load_weights(model, folder, "cpu", dtype)
    return model.eval()


def saved(model, folder, dtype=torch.float32, max_shard_size=10**9):
    save_weights(model, folder, dtype, max_shard_size)
    write_json(folder / "config.json", model.config.to_dict())


@torch.no_grad()
def assert_logits_equal(ours, theirs):
    ids, pixels, grids = prompt(torch.Generator().manual_seed(1), [(1, 4, 6), (1, 16, 2)], [2, 3, 5])
    cu_seqlens = torch.tensor([0, len(ids)], dtype=torch.int32)
    actual = ours(ids, mrope_positions(ids, grids, IMAGE, 2), cu_seqlens, pixels, grids)
    expected = reference_logits(theirs, ids, pixels, grids)
    assert (actual - expected).abs().max() < LOGITS * expected.abs().max()


def in_memory_names(published):
    """The layout of transformers' state_dict from that of its files."""
    if published.startswith("visual."):
        return "model." + published
    return published.replace("model.", "model.language_model.", 1)


def write_checkpoint(folder, name, names="published", config="flat", sharded=False):
    """A checkpoint as transformers writes it, in any of the layouts in use; returns the model it was made from."""
    reference = reference_model(name)
    reference.save_pretrained(folder, max_shard_size=SMALL if sharded else "5GB")
    if config == "flat":
        write_json(folder / "config.json", config_dict(name))
    if names == "in memory":
        for file in folder.glob("*.safetensors"):
            save_file({in_memory_names(key): value for key, value in load_file(file).items()}, file, metadata={"format": "pt"})
        if sharded:
            index = json.loads((folder / INDEX).read_text())
            index["weight_map"] = {in_memory_names(key): file for key, file in index["weight_map"].items()}
            write_json(folder / INDEX, index)
    return reference


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
@pytest.mark.parametrize("config", ["flat", "nested"])
@pytest.mark.parametrize("names", ["published", "in memory"])
@pytest.mark.parametrize("name", SHAPES)
def test_checkpoints_of_transformers_load_strictly_with_equal_logits(name, names, config, sharded, tmp_path):
    reference = write_checkpoint(tmp_path, name, names, config, sharded)
    assert ((tmp_path / INDEX).exists(), ("text_config" in json.loads((tmp_path / "config.json").read_text()))) == (
        sharded,
        config == "nested",
    )
    with safe_open(next(tmp_path.glob("*.safetensors")), "pt") as reader:
        assert all(key.startswith(("model.visual.", "model.language_model.", "lm_head.")) for key in reader.keys()) == (
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
    theirs, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "ours", output_loading_info=True, dtype=torch.float32)
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
        listed = {"model.safetensors"} if single else {INDEX, *json.loads((out / INDEX).read_text())["weight_map"].values()}
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
    for function, fatal_call in (("r1ov.model.weights.save_file", 3), ("os.replace", 1), ("os.replace", 3)):
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
            assert all(torch.equal(value, before[key]) for key, value in loaded(tmp_path / "out").state_dict().items())
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


def test_the_model_does_not_hang_on_its_files(tmp_path):
    write_checkpoint(tmp_path, "untied")
    model = loaded(tmp_path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for file in tmp_path.glob("*.safetensors"):
        with open(file, "r+b") as raw:
            raw.write(bytes(os.path.getsize(file)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


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
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors")
    assert_logits_equal(loaded(tmp_path), reference)

    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head\.weight is not the embedding, although tie_word_embeddings is true"):
        loaded(tmp_path)
    write_json(tmp_path / "config.json", config_dict("tied") | {"tie_word_embeddings": False})
    assert torch.equal(loaded(tmp_path).lm_head.weight, tensors["model.embed_tokens.weight"] + 1)


# Damage: a name -> (what is done to a folder with a checkpoint of four shards or so, what the one line must say).


def edit_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    write_json(folder / INDEX, index)


def first_shard(folder):
    return min(folder.glob("model-00001-*.safetensors"))


def edit_shard(folder, change):
    """Changes the tensors of the first shard, and the index with them."""
    tensors, shard = load_file(first_shard(folder)), first_shard(folder)
    change(tensors)
    save_file(tensors, shard)

    def relist(index):
        kept = {key: file for key, file in index["weight_map"].items() if file != shard.name}
        index["weight_map"] = kept | dict.fromkeys(tensors, shard.name)

    edit_index(folder, relist)


def replace_all(folder, old, new):
    """Renames every tensor."""
    tensors = {key.replace(old, new): value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}
    for file in folder.glob("model*"):
        file.unlink()
    save_file(tensors, folder / "model.safetensors")


def only_pickle(folder):
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


class Bomb:
    def __reduce__(self):
        return (os._exit, (77,))


def in_file(folder, file):
    """The index says that the first tensor is in `file`."""
    edit_index(folder, lambda index: index["weight_map"].update({next(iter(index["weight_map"])): file}))


def cut(folder, size):
    os.truncate(first_shard(folder), size)


def overwrite(folder, begin, data):
    with open(first_shard(folder), "r+b") as raw:
        raw.seek(begin)
        raw.write(data)


def outside(folder):
    """An intact shard beside the folder, reached by ../"""
    first_shard(folder).rename(folder.parent / "stolen.safetensors")
    index = (folder / INDEX).read_text().replace("model-00001-of", "../stolen-of")
    (folder / INDEX).write_text(index)


def add(**tensors):
    return lambda shard: shard.update({key.replace("__", "."): value for key, value in tensors.items()})


def reshape_norm(shard):
    key = next(key for key in shard if key.endswith("layernorm.weight") or "norm" in key)
    shard[key] = torch.ones(7)


DAMAGE = {
    "no weights": (lambda f: [file.unlink() for file in f.glob("model*")], "no model.safetensors"),
    "only a pickle": (only_pickle, "only pickled weights (pytorch_model.bin)"),
    "shard missing": (lambda f: first_shard(f).unlink(), "no such file"),
    "shard empty": (lambda f: cut(f, 0), "truncated or not a safetensors file"),
    "shard cut in its header length": (lambda f: cut(f, 5), "truncated or not a safetensors file"),
    "shard cut in its header": (lambda f: cut(f, 200), "truncated or not a safetensors file"),
    "shard cut in its data": (lambda f: cut(f, os.path.getsize(first_shard(f)) - 1), "truncated or not a safetensors file"),
    "shard with a tail": (lambda f: overwrite(f, os.path.getsize(first_shard(f)), b"more"), "truncated or not a safetensors file"),
    "header length of all ones": (lambda f: overwrite(f, 0, b"\xff" * 8), "truncated or not a safetensors file"),
    "header not JSON": (lambda f: overwrite(f, 8, b"\x00" * 50), "truncated or not a safetensors file"),
    "shard is a pickle": (lambda f: first_shard(f).write_bytes(pickle.dumps(Bomb())), "truncated or not a safetensors file"),
    "shard is a folder": (lambda f: (first_shard(f).rename(f / "x"), (f / "model-00001-of-00001.safetensors").mkdir(), in_file(f, "model-00001-of-00001.safetensors")), "model-00001"),
    "shard is a Git LFS pointer": (lambda f: first_shard(f).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n"), "git lfs pull"),
    "index empty": (lambda f: (f / INDEX).write_text(""), "not readable as JSON"),
    "index cut": (lambda f: os.truncate(f / INDEX, 100), "not readable as JSON"),
    "index binary": (lambda f: (f / INDEX).write_bytes(b"\x80\x02}"), "not readable as JSON"),
    "index a list": (lambda f: (f / INDEX).write_text("[]"), "expected an object"),
    "no weight_map": (lambda f: edit_index(f, lambda index: index.pop("weight_map")), "no weight_map"),
    "weight_map a list": (lambda f: edit_index(f, lambda index: index.update(weight_map=[])), "no weight_map"),
    "weight_map empty": (lambda f: edit_index(f, lambda index: index.update(weight_map={})), "no weight_map"),
    "file is a number": (lambda f: in_file(f, 7), "expected a .safetensors file beside the index"),
    "file outside, relative": (outside, "expected a .safetensors file beside the index"),
    "file outside, absolute": (lambda f: in_file(f, "/etc/passwd.safetensors"), "expected a .safetensors file beside the index"),
    "file outside, backslash": (lambda f: in_file(f, "..\\x.safetensors"), "expected a .safetensors file beside the index"),
    "file in a subfolder": (lambda f: in_file(f, "sub/x.safetensors"), "expected a .safetensors file beside the index"),
    "file is the folder above": (lambda f: in_file(f, ".."), "expected a .safetensors file beside the index"),
    "file with a zero byte": (lambda f: in_file(f, "x\0.safetensors"), "expected a .safetensors file beside the index"),
    "file is a pickle": (lambda f: in_file(f, "pytorch_model.bin"), "expected a .safetensors file beside the index"),
    "tensor in the index, not in the shard": (lambda f: edit_index(f, lambda index: index["weight_map"].update({"model.x": first_shard(f).name})), "without model.x"),
    "tensor in the shard, not in the index": (lambda f: edit_index(f, lambda index: index["weight_map"].pop("lm_head.weight")), "unlisted lm_head.weight"),
    "tensor missing": (lambda f: edit_shard(f, lambda shard: shard.pop(max(shard))), "1 missing ("),
    "head missing": (lambda f: write_json(f / "config.json", config_dict("tied") | {"tie_word_embeddings": False}) or replace_all(f, "lm_head", "head"), "1 missing (lm_head.weight), 1 unexpected (head.weight)"),
    "tensor unexpected": (lambda f: edit_shard(f, add(model__extra=torch.ones(3))), "1 unexpected (model.extra)"),
    "tensor of another shape": (lambda f: edit_shard(f, reshape_norm), "1 of another shape ("),
    "tensor twice, in both layouts": (lambda f: edit_shard(f, add(model__language_model__norm__weight=torch.ones(128))), "the same parameter"),
    "tensor of integers": (lambda f: edit_shard(f, add(model__norm__weight=torch.ones(128, dtype=torch.int8))), "I8"),
    "tensor of doubles": (lambda f: edit_shard(f, add(model__extra=torch.ones(3, dtype=torch.float64))), "F64"),
    "tensor of eight bits": (lambda f: edit_shard(f, add(model__extra=torch.ones(3).to(torch.float8_e4m3fn))), "F8_E4M3"),
    "tensor with a line break in its name": (lambda f: edit_shard(f, lambda shard: shard.update({"a\nb\x1b[31m": torch.ones(3)})), r"a\nb\x1b[31m"),
    "scalar": (lambda f: edit_shard(f, add(model__extra=torch.tensor(1.0))), "1 unexpected (model.extra)"),
    "names of another architecture": (lambda f: replace_all(f, "model.", "language_model.model."), "missing (model.embed_tokens.weight, "),
    "other sizes in the config": (lambda f: write_json(f / "config.json", config_dict("untied") | {"intermediate_size": 90}), "9 of another shape ("),
    "more layers in the config": (lambda f: write_json(f / "config.json", config_dict("untied") | {"num_hidden_layers": 4}), "12 missing ("),
    "fewer layers in the config": (lambda f: write_json(f / "config.json", config_dict("untied") | {"num_hidden_layers": 2}), "12 unexpected ("),
}  # fmt: skip


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact")
    write_checkpoint(folder, "untied", sharded=True)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files_are_refused_in_one_line_that_says_what_is_wrong(case, intact, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, data in intact.items():
        (folder / name).write_bytes(data)
    damage, message = DAMAGE[case]
    damage(folder)
    with pytest.raises(UserError) as caught:
        loaded(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_the_error_lists_the_first_five_of_each_kind(intact, tmp_path):
    for name, data in intact.items():
        (tmp_path / name).write_bytes(data)
    replace_all(tmp_path, "visual.", "eyes.")
    with pytest.raises(UserError) as caught:
        loaded(tmp_path)
    count = sum(key.startswith("visual.") for key in json.loads(intact[INDEX])["weight_map"])
    assert f"{count} missing (visual." in str(caught.value)
    assert f"{count} unexpected (eyes." in str(caught.value)
    for prefix in ("visual.", "eyes."):
        assert str(caught.value).count(prefix) == 5
    assert str(caught.value).count("...") == 2


# The published sizes: text, vision and totals of each release.
PUBLISHED = {
    "3B": dict(hidden=2048, layers=36, heads=16, key_heads=2, intermediate=11008, vocab=151936, tied=True, vision=3420, parameters=3_754_622_976, in_vision=668_684_288, tensors=824),
    "7B": dict(hidden=3584, layers=28, heads=28, key_heads=4, intermediate=18944, vocab=152064, tied=False, vision=3420, parameters=8_292_166_656, in_vision=676_550_144, tensors=729),
    "32B": dict(hidden=5120, layers=64, heads=40, key_heads=8, intermediate=27648, vocab=152064, tied=False, vision=3456, parameters=33_452_718_336, in_vision=688_841_984, tensors=1161),
    "72B": dict(hidden=8192, layers=80, heads=64, key_heads=8, intermediate=29568, vocab=152064, tied=False, vision=3456, parameters=73_410_777_344, in_vision=704_573_696, tensors=1353),
}  # fmt: skip


def published_config(release):
    size = PUBLISHED[release]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": size["hidden"],
        "initializer_range": 0.02,
        "intermediate_size": size["intermediate"],
        "max_position_embeddings": 128000,
        "max_window_layers": size["layers"],
        "model_type": "qwen2_5_vl",
        "num_attention_heads": size["heads"],
        "num_hidden_layers": size["layers"],
        "num_key_value_heads": size["key_heads"],
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": size["tied"],
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": size["vision"],
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": size["hidden"],
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": size["vocab"],
    }


def published_shapes(release):
    """Every tensor of a release and its shape, by the rule of its files, without a look at any module."""
    size = PUBLISHED[release]
    wide, v, c, merged = size["vision"], 1280, size["hidden"], 4 * 1280
    shapes = {"visual.patch_embed.proj.weight": (v, 3, 2, 14, 14)}

    def linear(name, outputs, inputs, bias=True):
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    for i in range(32):
        block = f"visual.blocks.{i}"
        shapes |= {f"{block}.norm1.weight": (v,), f"{block}.norm2.weight": (v,)}
        linear(f"{block}.attn.qkv", 3 * v, v)
        linear(f"{block}.attn.proj", v, v)
        linear(f"{block}.mlp.gate_proj", wide, v)
        linear(f"{block}.mlp.up_proj", wide, v)
        linear(f"{block}.mlp.down_proj", v, wide)
    shapes["visual.merger.ln_q.weight"] = (v,)
    linear("visual.merger.mlp.0", merged, merged)
    linear("visual.merger.mlp.2", c, merged)
    for i in range(size["layers"]):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.input_layernorm.weight": (c,), f"{layer}.post_attention_layernorm.weight": (c,)}
        linear(f"{layer}.self_attn.q_proj", 128 * size["heads"], c)
        linear(f"{layer}.self_attn.k_proj", 128 * size["key_heads"], c)
        linear(f"{layer}.self_attn.v_proj", 128 * size["key_heads"], c)
        linear(f"{layer}.self_attn.o_proj", c, 128 * size["heads"], bias=False)
        linear(f"{layer}.mlp.gate_proj", size["intermediate"], c, bias=False)
        linear(f"{layer}.mlp.up_proj", size["intermediate"], c, bias=False)
        linear(f"{layer}.mlp.down_proj", c, size["intermediate"], bias=False)
    shapes |= {"model.embed_tokens.weight": (size["vocab"], c), "model.norm.weight": (c,)}
    if not size["tied"]:
        shapes["lm_head.weight"] = (size["vocab"], c)
    return shapes


@pytest.mark.parametrize("release", PUBLISHED)
def test_the_published_shapes_have_the_published_names_and_parameter_counts(release):
    model = blank(published_config(release))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    assert shapes == published_shapes(release)
    assert len(shapes) == PUBLISHED[release]["tensors"]
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[release]["parameters"]
    assert sum(parameter.numel() for parameter in model.visual.parameters()) == PUBLISHED[release]["in_vision"]

    with torch.device("meta"):
        reference = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**published_config(release)))
    theirs = {name: tuple(parameter.shape) for name, parameter in reference.named_parameters()}
    assert {in_memory_names(name): shape for name, shape in shapes.items()} == theirs


MEMORY = """
    import sys, time, torch
    from pathlib import Path
    from r1ov.model.config import Config
    from r1ov.model.model import Qwen2_5_VL
    from r1ov.model.weights import load_weights

    def status(field):
        return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field + ":"))

    folder = Path(sys.argv[1])
    with torch.device("meta"):
        model = Qwen2_5_VL(Config.from_file(folder / "config.json"))
    before = status("VmRSS")
    load_weights(model, folder, "cpu", torch.bfloat16)
    print(status("VmHWM") - before, sum(parameter.nbytes for parameter in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_of_loading_is_the_model_and_one_shard(tmp_path):
    raw = config_dict("untied") | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "vocab_size": 20_000}
    raw |= {"num_attention_heads": 8, "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    raw["vision_config"] |= {"out_hidden_size": 1024}
    model = blank(raw).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)  # pages that were never written take no memory
    saved(model, tmp_path, torch.bfloat16, 60_000_000)
    largest = max(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    del model
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(MEMORY), tmp_path], capture_output=True, text=True, check=True)
    growth, size = map(int, run.stdout.split())
    assert size > 350e6
    assert largest < size / 5
    # 32 MB for the allocator and the code that is first run here
    assert size <= growth + 32e6
    assert growth < size + largest + 32e6
