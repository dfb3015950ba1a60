"""config.json in every form that is in use, judged by transformers' own class, and every refusal."""

import json

import pytest
from transformers import Qwen2_5_VLConfig

from r1ov.errors import UserError
from r1ov.folder.pretrained import config_from_dict, config_to_dict, read_config
from tests.reference import SHAPES, config_dict

TEXT_FIELDS = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
]
VISION_FIELDS = [
    "depth",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "in_channels",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "window_size",
    "out_hidden_size",
    "tokens_per_second",
]
TOP_FIELDS = ["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"]


def assert_equals_transformers(ours, theirs):
    for field in TEXT_FIELDS:
        assert getattr(ours.text, field) == getattr(theirs.text_config, field), field
    for field in VISION_FIELDS:
        assert getattr(ours.vision, field) == getattr(theirs.vision_config, field), field
    for field in TOP_FIELDS:
        assert getattr(ours, field) == getattr(theirs, field), field
    assert list(ours.vision.fullatt_block_indexes) == list(theirs.vision_config.fullatt_block_indexes)
    assert ours.text.rope_theta == theirs.text_config.rope_parameters["rope_theta"]
    assert list(ours.text.mrope_section) == list(theirs.text_config.rope_parameters["mrope_section"])
    assert ours.tie_word_embeddings == bool(theirs.tie_word_embeddings)


def resaved(raw, folder):
    """What transformers makes of a config and writes back: the nested form."""
    Qwen2_5_VLConfig(**raw).save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", SHAPES)
def test_a_flat_config_gives_the_fields_that_transformers_reads(name):
    assert_equals_transformers(config_from_dict(config_dict(name)), Qwen2_5_VLConfig(**config_dict(name)))


@pytest.mark.parametrize("name", SHAPES)
def test_the_nested_config_that_transformers_saves_means_the_same_as_the_flat_one(name, tmp_path):
    nested = resaved(config_dict(name), tmp_path)
    assert "text_config" in nested
    assert "rope_theta" not in nested
    assert read_config(tmp_path / "config.json") == config_from_dict(config_dict(name))


@pytest.mark.parametrize("name", SHAPES)
def test_what_we_write_is_read_back_equal_by_us_and_by_transformers(name):
    config = config_from_dict(config_dict(name))
    written = json.loads(json.dumps(config_to_dict(config)))
    assert config_from_dict(written) == config
    assert_equals_transformers(config, Qwen2_5_VLConfig(**written))


def test_fields_left_out_take_the_class_defaults_of_transformers():
    # What transformers 4.49 wrote for the 7B: all that equals a class default is gone.
    raw = {
        "model_type": "qwen2_5_vl",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
        "vision_config": {
            "hidden_size": 1280,
            "in_chans": 3,
            "model_type": "qwen2_5_vl",
            "spatial_patch_size": 14,
            "tokens_per_second": 2,
        },
    }
    config = config_from_dict(raw)
    assert_equals_transformers(config, Qwen2_5_VLConfig(**raw))
    assert (config.vision.depth, config.vision.tokens_per_second, config.text.vocab_size) == (32, 2, 152064)

    bare = {
        "model_type": "qwen2_5_vl",
        "rope_scaling": {"mrope_section": [16, 24, 24]},
        "vision_config": {"out_hidden_size": 8192},
    }
    theirs = Qwen2_5_VLConfig(**bare)
    assert_equals_transformers(config_from_dict(bare), theirs)
    assert config_from_dict(bare).vision.tokens_per_second == 4  # the class default; the releases write 2


@pytest.mark.parametrize("where", ["top", "text_config"])
def test_tied_heads_dtype_and_token_ids_are_found_at_either_level(where, tmp_path):
    nested = resaved(config_dict("untied"), tmp_path)
    for field in ("tie_word_embeddings", "dtype", "torch_dtype", "eos_token_id"):
        nested.pop(field, None)
        nested["text_config"].pop(field, None)
    (nested if where == "top" else nested["text_config"]).update(
        tie_word_embeddings=True, torch_dtype="float32", eos_token_id=[7, 8]
    )
    config = config_from_dict(nested)
    assert (config.tie_word_embeddings, config.torch_dtype, config.eos_token_id) == (True, "float32", (7, 8))


def test_a_sliding_window_that_is_switched_off_is_ignored():
    assert config_dict("tied")["sliding_window"] == 32768
    assert config_dict("tied")["use_sliding_window"] is False
    config_from_dict(config_dict("tied"))


REFUSED = {  # changes to a good flat config -> what the message must name
    "another architecture": ({"model_type": "qwen2_vl"}, "model_type"),
    "no architecture": ({"model_type": None}, "model_type"),
    "sliding window": ({"use_sliding_window": True}, "use_sliding_window"),
    "sliding layers": (
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        "layer_types",
    ),
    "yarn": ({"rope_scaling": {"type": "yarn", "factor": 4, "mrope_section": [2, 3, 3]}}, "yarn"),
    "linear rope under its newer key": (
        {"rope_scaling": {"rope_type": "linear", "mrope_section": [2, 3, 3]}},
        "linear",
    ),
    "rope type that is a list": ({"rope_scaling": {"type": ["mrope"], "mrope_section": [2, 3, 3]}}, "mrope"),
    "rope that is a word": ({"rope_scaling": "mrope"}, "rope_scaling"),
    "no mrope_section": ({"rope_scaling": {"type": "mrope"}}, "mrope_section"),
    "mrope_section of two": ({"rope_scaling": {"type": "mrope", "mrope_section": [4, 4]}}, "mrope_section"),
    "mrope_section with a negative": (
        {"rope_scaling": {"type": "mrope", "mrope_section": [-1, 5, 4]}},
        "mrope_section",
    ),
    "mrope_section of words": (
        {"rope_scaling": {"type": "mrope", "mrope_section": ["2", "3", "3"]}},
        "mrope_section",
    ),
    "activation": ({"hidden_act": "gelu"}, "hidden_act"),
    "vision activation": ({"vision_config": {"hidden_act": "quick_gelu"}}, "vision_config.hidden_act"),
    "dropout": ({"attention_dropout": 0.1}, "attention_dropout"),
    "quantised": ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    "heads do not divide": ({"num_attention_heads": 5}, "num_attention_heads"),
    "groups do not divide": ({"num_key_value_heads": 3}, "num_key_value_heads"),
    "vision heads do not divide": ({"vision_config": {"num_heads": 3}}, "head size"),
    "vision width": ({"vision_config": {"out_hidden_size": 32}}, "out_hidden_size"),
    "tiny window": ({"vision_config": {"window_size": 14}}, "window_size"),
    "text for a number": ({"hidden_size": "64"}, "hidden_size"),
    "fraction": ({"num_hidden_layers": 3.5}, "num_hidden_layers"),
    "truth for a number": ({"num_hidden_layers": True}, "num_hidden_layers"),
    "null": ({"vocab_size": None}, "vocab_size"),
    "zero": ({"intermediate_size": 0}, "intermediate_size"),
    "negative": ({"vision_config": {"depth": -1}}, "vision_config.depth"),
    "not a number": ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    "infinity": ({"rope_theta": float("inf")}, "rope_theta"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "absurd vocabulary": ({"vocab_size": 10**15}, "vocab_size"),
    "absurd merge": ({"vision_config": {"spatial_merge_size": 10**6}}, "spatial_merge_size"),
    "vision_config that is a list": ({"vision_config": [1]}, "vision_config"),
    "text_config that is null": ({"text_config": None}, "text_config"),
    "token id as text": ({"eos_token_id": ["91"]}, "eos_token_id"),
    "image token beyond the vocabulary": ({"image_token_id": 100}, "image_token_id"),
    "tied as text": ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
    "dtype as number": ({"torch_dtype": 16}, "torch_dtype"),
    "block index as text": ({"vision_config": {"fullatt_block_indexes": ["1"]}}, "fullatt_block_indexes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_we_do_not_compute_is_refused_by_name_in_one_line(case, tmp_path):
    changes, named = REFUSED[case]
    raw = config_dict("tied")
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if key == "vision_config" and isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UserError) as caught:
        read_config(tmp_path / "config.json")
    assert named in str(caught.value)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_quantised_nested_config_is_refused(tmp_path):
    nested = resaved(config_dict("tied"), tmp_path) | {"quantization_config": {"quant_method": "gptq"}}
    with pytest.raises(UserError, match="quantization_config"):
        config_from_dict(nested)


UNREADABLE = {
    "missing": None,
    "empty": b"",
    "truncated": b'{"model_type": "qwen2_5_vl", ',
    "a list": b"[]",
    "not text": b"\xff\xfe\x00\x01",
    "nested too deep": b"[" * 200_000,
    "a number of ten thousand digits": b'{"hidden_size": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_is_no_json_object_is_refused_in_one_line(case, tmp_path):
    if UNREADABLE[case] is not None:
        (tmp_path / "config.json").write_bytes(UNREADABLE[case])
    with pytest.raises(UserError, match=r"config\.json: ") as caught:
        read_config(tmp_path / "config.json")
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="not readable"):
        read_config(tmp_path)
