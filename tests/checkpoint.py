"""Checkpoint folders for tests: random weights written by transformers, with r1ov-tiny's own tokenizer,
template and settings.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

TINY = Path(__file__).parent.parent / "r1ov" / "model" / "r1ov-tiny"


def write_checkpoint(folder: Path, seed: int = 0, **settings: Any) -> Qwen2_5_VLForConditionalGeneration:
    """Fills the folder and returns the model that wrote it. All weights are random, biases and norms too."""
    for path in TINY.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
    config = json.loads((TINY / "config.json").read_text())
    config |= {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config |= {"max_position_embeddings": 512, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    config["vision_config"] |= {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
    }
    config |= settings
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config)).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0 if "norm" in name or "ln_q" in name else 0.0, 0.2)
            else:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(TINY / "generation_config.json", folder)
    return model
