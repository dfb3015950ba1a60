"""Checkpoints on disk in every layout in use, as transformers writes them, and our own loading and saving of
them.
"""

import json

import torch
from safetensors.torch import load_file, save_file

from r1ov.common.files import write_json
from r1ov.folder.pretrained import config_from_dict, config_to_dict
from r1ov.folder.weights import INDEX, load_weights, save_weights
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.rope import mrope_positions
from tests.reference import IMAGE, config_dict, prompt, reference_logits, reference_model

LOGITS = 1e-4  # relative; float32 sums in another order give about 1e-6
SMALL = 150_000  # bytes; the checkpoints of tests.reference have about 0.6 to 1.2 MB in float32


def blank(raw):
    with torch.device("meta"):
        return Qwen2_5_VL(config_from_dict(raw))


def loaded(folder, dtype=torch.float32):
    model = blank(json.loads((folder / "config.json").read_text()))
    load_weights(model, folder, "cpu", dtype)
    return model.eval()


def saved(model, folder, dtype=torch.float32, max_shard_size=10**9):
    save_weights(model, folder, dtype, max_shard_size)
    write_json(folder / "config.json", config_to_dict(model.config))


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
    """A checkpoint as transformers writes it, in any of the layouts in use; returns the model it was made
    from.
    """
    reference = reference_model(name)
    reference.save_pretrained(folder, max_shard_size=SMALL if sharded else "5GB")
    if config == "flat":
        write_json(folder / "config.json", config_dict(name))
    if names == "in memory":
        for file in folder.glob("*.safetensors"):
            save_file(
                {in_memory_names(key): value for key, value in load_file(file).items()},
                file,
                metadata={"format": "pt"},
            )
        if sharded:
            index = json.loads((folder / INDEX).read_text())
            index["weight_map"] = {in_memory_names(key): file for key, file in index["weight_map"].items()}
            write_json(folder / INDEX, index)
    return reference
