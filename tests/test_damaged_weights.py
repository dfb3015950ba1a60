"""Damaged and hostile weight files: each refused in one line that says what is wrong."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from r1ov.common.files import write_json
from r1ov.errors import UserError
from r1ov.folder.weights import INDEX
from tests.reference import config_dict
from tests.weight_files import loaded, write_checkpoint

# Each of these damages a folder with an intact sharded checkpoint.


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
    tensors = {
        key.replace(old, new): value
        for file in folder.glob("*.safetensors")
        for key, value in load_file(file).items()
    }
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


def shard_is_folder(folder):
    in_file(folder, "x.safetensors")
    (folder / "x.safetensors").mkdir()


def list_in_vain(folder):
    edit_index(folder, lambda index: index["weight_map"].update({"model.x": first_shard(folder).name}))


def no_head(folder):
    replace_all(folder, "lm_head", "head")


def config(**changes):
    return lambda folder: write_json(folder / "config.json", config_dict("untied") | changes)


BROKEN = "truncated or not a safetensors file"
BESIDE = "expected a .safetensors file beside the index"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\n"
DAMAGE = {
    "no weights": (lambda f: [file.unlink() for file in f.glob("model*")], "no model.safetensors"),
    "only a pickle": (only_pickle, "only pickled weights (pytorch_model.bin)"),
    "shard missing": (lambda f: first_shard(f).unlink(), "no such file"),
    "shard empty": (lambda f: cut(f, 0), BROKEN),
    "shard cut in its header length": (lambda f: cut(f, 5), BROKEN),
    "shard cut in its header": (lambda f: cut(f, 200), BROKEN),
    "shard cut in its data": (lambda f: cut(f, os.path.getsize(first_shard(f)) - 1), BROKEN),
    "shard with a tail": (lambda f: overwrite(f, os.path.getsize(first_shard(f)), b"more"), BROKEN),
    "header length of all ones": (lambda f: overwrite(f, 0, b"\xff" * 8), BROKEN),
    "header not JSON": (lambda f: overwrite(f, 8, b"\x00" * 50), BROKEN),
    "shard is a pickle": (lambda f: first_shard(f).write_bytes(pickle.dumps(Bomb())), BROKEN),
    "shard is a folder": (shard_is_folder, BROKEN),
    "shard is a Git LFS pointer": (lambda f: first_shard(f).write_text(POINTER), "git lfs pull"),
    "index empty": (lambda f: (f / INDEX).write_text(""), "not readable as JSON"),
    "index cut": (lambda f: os.truncate(f / INDEX, 100), "not readable as JSON"),
    "index binary": (lambda f: (f / INDEX).write_bytes(b"\x80\x02}"), "not readable as JSON"),
    "index a list": (lambda f: (f / INDEX).write_text("[]"), "expected an object"),
    "no weight_map": (lambda f: edit_index(f, lambda index: index.pop("weight_map")), "no weight_map"),
    "weight_map a list": (
        lambda f: edit_index(f, lambda index: index.update(weight_map=[])),
        "no weight_map",
    ),
    "weight_map empty": (lambda f: edit_index(f, lambda index: index.update(weight_map={})), "no weight_map"),
    "file is a number": (lambda f: in_file(f, 7), BESIDE),
    "file outside, relative": (outside, BESIDE),
    "file outside, absolute": (lambda f: in_file(f, "/etc/passwd.safetensors"), BESIDE),
    "file outside, backslash": (lambda f: in_file(f, "..\\x.safetensors"), BESIDE),
    "file in a subfolder": (lambda f: in_file(f, "sub/x.safetensors"), BESIDE),
    "file is the folder above": (lambda f: in_file(f, ".."), BESIDE),
    "file with a zero byte": (lambda f: in_file(f, "x\0.safetensors"), BESIDE),
    "file is a pickle": (lambda f: in_file(f, "pytorch_model.bin"), BESIDE),
    "tensor in the index, not in the shard": (list_in_vain, "without model.x"),
    "tensor in the shard, not in the index": (
        lambda f: edit_index(f, lambda index: index["weight_map"].pop("lm_head.weight")),
        "unlisted lm_head.weight",
    ),
    "tensor missing": (lambda f: edit_shard(f, lambda shard: shard.pop(max(shard))), "1 missing ("),
    "head missing": (no_head, "1 missing (lm_head.weight), 1 unexpected (head.weight)"),
    "tensor unexpected": (
        lambda f: edit_shard(f, add(model__extra=torch.ones(3))),
        "1 unexpected (model.extra)",
    ),
    "tensor of another shape": (lambda f: edit_shard(f, reshape_norm), "1 of another shape ("),
    "tensor twice, in both layouts": (
        lambda f: edit_shard(f, add(model__language_model__norm__weight=torch.ones(9))),
        "same parameter",
    ),
    "tensor of integers": (
        lambda f: edit_shard(f, add(model__extra=torch.ones(128, dtype=torch.int8))),
        "I8",
    ),
    "tensor of doubles": (
        lambda f: edit_shard(f, add(model__extra=torch.ones(3, dtype=torch.float64))),
        "F64",
    ),
    "tensor of eight bits": (
        lambda f: edit_shard(f, add(model__extra=torch.ones(3).to(torch.float8_e4m3fn))),
        "F8_E4M3",
    ),
    "line break in a name": (
        lambda f: edit_shard(f, lambda shard: shard.update({"a\nb\x1b[31m": torch.ones(3)})),
        r"a\nb\x1b[31m",
    ),
    "scalar": (lambda f: edit_shard(f, add(model__extra=torch.tensor(1.0))), "1 unexpected (model.extra)"),
    "names of another architecture": (
        lambda f: replace_all(f, "model.", "language_model.model."),
        "missing (model.embed_tokens.weight, ",
    ),
    "other sizes in the config": (config(intermediate_size=90), "9 of another shape ("),
    "more layers in the config": (config(num_hidden_layers=4), "12 missing ("),
    "fewer layers in the config": (config(num_hidden_layers=2), "12 unexpected ("),
}


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
