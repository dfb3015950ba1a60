"""The judge: small random Qwen2.5-VL checkpoints made and run by transformers."""

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

IMAGE, VISION_START, VISION_END = 95, 92, 93  # token ids in a vocabulary of 100

# Three odd shapes: tied and untied, grouped 2:1, 4:1 and 1:1, windows of 2 and 4 merged patches, different
# full-attention blocks.
SHAPES = {
    "tied": dict(
        tie_word_embeddings=True,
        heads=4,
        key_heads=2,
        window_size=56,
        fullatt=[1, 3],
        section=[2, 3, 3],
        hidden=64,
    ),
    "untied": dict(
        tie_word_embeddings=False,
        heads=4,
        key_heads=1,
        window_size=112,
        fullatt=[0],
        section=[4, 6, 6],
        hidden=128,
    ),
    "ungrouped": dict(
        tie_word_embeddings=False,
        heads=6,
        key_heads=6,
        window_size=84,
        fullatt=[2],
        section=[1, 1, 2],
        hidden=48,
    ),
}


def config_dict(name: str) -> dict:
    """A flat config.json, as published."""
    shape = SHAPES[name]
    return {
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "vocab_size": 100,
        "hidden_size": shape["hidden"],
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["key_heads"],
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": shape["section"]},
        "tie_word_embeddings": shape["tie_word_embeddings"],
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": 3,
        "image_token_id": IMAGE,
        "video_token_id": 96,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
        "vision_token_id": 94,
        "bos_token_id": 90,
        "eos_token_id": 91,
        "pad_token_id": 90,
        "torch_dtype": "float32",
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 36,
            "num_heads": 2,
            "in_chans": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": shape["window_size"],
            "fullatt_block_indexes": shape["fullatt"],
            "out_hidden_size": shape["hidden"],
            "tokens_per_second": 2,
        },
    }


def reference_model(name: str, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """A float32 model of transformers with every weight random: also the biases and norms, whose usual 0 and
    1 would hide mistakes.
    """
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config_dict(name))).eval().float()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0 if "norm" in key or "ln_q" in key else 0.0, 0.2)
            else:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5)
    return model


def prompt(
    generator: torch.Generator, grids: list[tuple[int, int, int]], text_lengths: list[int]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Token ids (T,) with the pictures' placeholders between runs of random text, pixel values (P, 1176),
    grids (N, 3).
    """
    pieces = []
    for index, length in enumerate(text_lengths):
        pieces.append(torch.randint(0, 90, (length,), generator=generator))
        if index < len(grids):
            t, h, w = grids[index]
            pieces.append(torch.tensor([VISION_START, *[IMAGE] * (t * h * w // 4), VISION_END]))
    if not grids:
        return torch.cat(pieces), None, None
    pixels = torch.randn(sum(t * h * w for t, h, w in grids), 1176, generator=generator)
    return torch.cat(pieces), pixels, torch.tensor(grids)


def reference_logits(
    model, input_ids: Tensor, pixel_values: Tensor | None, image_grid_thw: Tensor | None
) -> Tensor:
    """(T, V) logits of one sequence. transformers 5 finds pictures' positions by mm_token_type_ids alone."""
    kinds = (input_ids == IMAGE).long()[None]
    return model(
        input_ids=input_ids[None],
        pixel_values=pixel_values,
        image_grid_thw=image_grid_thw,
        mm_token_type_ids=kinds,
    ).logits[0]
