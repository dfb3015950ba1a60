"""Qwen2.5-VL whole: pictures become embeddings that stand where their placeholders stood, and the language model reads on.

Mirrors transformers' `Qwen2_5_VLForConditionalGeneration`. It differs in layout only: batches are packed (tokens (T,) and `cu_seqlens`
instead of (B, T) and a mask), and positions are always given. Attribute names are those of the published checkpoint files.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from kernels import attention
from r1ov.model.config import Config
from r1ov.model.language import ALL, Attend, LanguageModel
from r1ov.model.shard import local, local_rows
from r1ov.model.vision import VisionEncoder

T = TypeVar("T")


class Qwen2_5_VL(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.visual = VisionEncoder(config.vision)
        self.model = LanguageModel(config.text)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """(V, C), the embedding itself where the two are tied."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None = None, image_grid_thw: Tensor | None = None) -> Tensor:
        """(T, C) embeddings of text and pictures; the picture tokens replace the image placeholders in order."""
        x = self.model.embed_tokens(input_ids)
        if pixel_values is None:
            return x
        places = input_ids == self.config.image_token_id
        pictures = self.visual(pixel_values, image_grid_thw).to(x.dtype)  # (M, C)
        if int(places.sum()) != len(pictures):
            raise ValueError(f"{int(places.sum())} image placeholders, but the pictures give {len(pictures)} tokens")
        return x.masked_scatter(places[:, None], pictures)

    def hidden_states(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        attend: Attend | None = None,
        only: Tensor | slice = ALL,
    ) -> Tensor:
        """(T, C) states after the final norm, or those of the tokens `only` (n,); other arguments as in `forward`."""

        def packed(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention(q, k, v, cu_seqlens, causal=True)

        return self.model(self.embed(input_ids, pixel_values, image_grid_thw), position_ids, attend or packed, only)

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, C) -> (T, V)."""
        return hidden @ self.head_weight.mT

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        attend: Attend | None = None,
        then: Callable[[Tensor, Tensor], T] | None = None,
    ) -> Tensor | T:
        """(T, V) logits of each next token, or what `then` makes of the states that would give them.

        Args:
            input_ids: (T,) int64, B sequences end to end. position_ids: (3, T) int64. cu_seqlens: (B+1,) int32 starts.
            pixel_values: (P, patch_dim) patches of all pictures in order. image_grid_thw: (N, 3) int64.
            attend: another attention for the decoder layers (the engine's cache); default causal within each sequence.
            then: called as then(hidden (T, C), head_weight (V, C)), for instance a loss. A sharded model's parameters are whole
                within its forward only, so a loss that needs the head must be computed here; it returns a tensor, or tensors in a
                tuple, list or dict.
        """
        hidden = self.hidden_states(input_ids, position_ids, cu_seqlens, pixel_values, image_grid_thw, attend)
        return self.logits(hidden) if then is None else then(hidden, self.head_weight)


@torch.no_grad()
def init_weights(model: Qwen2_5_VL, generator: torch.Generator) -> None:
    """Fills a model in place for training from scratch: matrices N(0, 1/fan_in), embeddings N(0, 1/hidden), norms 1, biases 0.

    The usual constant 0.02 leaves a small model blind for tens of thousands of samples: too little of the picture survives the
    narrow layers for the language model to notice it.

    Each matrix is drawn whole, on the generator's device, and a process that holds some of its rows keeps those: the numbers are the
    same however many processes there are.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            local(parameter).fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            drawn = torch.empty(parameter.shape, device=generator.device)
            drawn.normal_(0.0, drawn[0].numel() ** -0.5, generator=generator)
            local(parameter).copy_(drawn[local_rows(parameter)])
