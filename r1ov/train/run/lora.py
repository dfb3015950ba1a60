"""The options of LoRA, in both stages; what they do is in r1ov/model/lora.py."""

from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

from r1ov.cli import option

of_new = partial(option, idle="lora_r None")  # an adapter that is gone on with has its own


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    adapter: str | None = option(
        None, "train this LoRA adapter of --model on; one given as --model finds its base itself"
    )
    lora_r: int | None = option(None, "train a LoRA adapter of this rank, the model itself frozen", least=1)
    lora_alpha: int = of_new(32, "what the adapter adds is multiplied by this / r", least=1)
    lora_dropout: float = of_new(0.0, "of what the adapter reads", least=0, below=1)
    lora_target: str = of_new(
        "all-linear", "layers with an adapter: all-linear, attention, mlp, or ends of names: q_proj,v_proj"
    )
    lora_vision: bool = of_new(False, "those of the vision encoder too")
    use_rslora: bool = of_new(False, "multiply by alpha / sqrt(r) instead")
    quantize: Literal["int4", "int8"] | None = option(None, "hold the frozen language model in 4 or 8 bits")
    merge: bool = option(False, "leave a model, its adapter merged, in final/", resumable=True)

    @property
    def is_lora(self) -> bool:
        return bool(self.lora_r or self.adapter)


# Any other value asks for an adapter: without --lora-r or --adapter it would change nothing.
LORA_DEFAULTS = {field.name: field.default for field in fields(LoraOptions)}
