"""Weights for training from scratch."""

import torch

from r1ov.folder.shard import local, local_rows
from r1ov.model.model import Qwen2_5_VL


@torch.no_grad()
def init_weights(model: Qwen2_5_VL, generator: torch.Generator) -> None:
    """Fills a model in place for training from scratch: matrices N(0, 1/fan_in), embeddings N(0, 1/hidden),
    norms 1, biases 0.

    The usual constant 0.02 leaves a small model blind for tens of thousands of samples: too little of the
    picture survives the narrow layers for the language model to notice it.

    Each matrix is drawn whole, on the generator's device, and a process that holds some of its rows keeps
    those: the numbers are the same however many processes there are.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            local(parameter).fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            drawn = torch.empty(parameter.shape, device=generator.device)
            drawn.normal_(0.0, drawn[0].numel() ** -0.5, generator=generator)
            local(parameter).copy_(drawn[local_rows(parameter)])
