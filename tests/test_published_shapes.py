"""The 3B, 7B, 32B and 72B releases on the meta device: every tensor's name and shape, and the exact parameter
counts.
"""

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.weight_files import blank, in_memory_names

FIELDS = (
    "hidden",
    "layers",
    "heads",
    "key_heads",
    "intermediate",
    "vocab",
    "tied",
    "vision",
    "parameters",
    "in_vision",
    "tensors",
)
RELEASES = {
    "3B": (2048, 36, 16, 2, 11008, 151936, True, 3420, 3_754_622_976, 668_684_288, 824),
    "7B": (3584, 28, 28, 4, 18944, 152064, False, 3420, 8_292_166_656, 676_550_144, 729),
    "32B": (5120, 64, 40, 8, 27648, 152064, False, 3456, 33_452_718_336, 688_841_984, 1161),
    "72B": (8192, 80, 64, 8, 29568, 152064, False, 3456, 73_410_777_344, 704_573_696, 1353),
}
PUBLISHED = {release: dict(zip(FIELDS, values, strict=True)) for release, values in RELEASES.items()}


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
    assert (
        sum(parameter.numel() for parameter in model.visual.parameters()) == PUBLISHED[release]["in_vision"]
    )

    with torch.device("meta"):
        reference = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**published_config(release)))
    theirs = {name: tuple(parameter.shape) for name, parameter in reference.named_parameters()}
    assert {in_memory_names(name): shape for name, shape in shapes.items()} == theirs
