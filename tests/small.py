"""A small architecture: whole runs then cost starting, saving and stopping, not arithmetic."""

import json
import shutil
from pathlib import Path

TINY = Path(__file__).parent.parent / "r1ov" / "model" / "r1ov-tiny"


def small_architecture(folder: Path) -> Path:
    """Fills a folder as `--config-name` takes it: r1ov-tiny's processor, and few and narrow layers."""
    for path in TINY.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
    config = json.loads((TINY / "config.json").read_text())
    config |= {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    }
    config["vision_config"] |= {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 48,
        "depth": 2,
        "fullatt_block_indexes": [1],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
