"""The language model: a Qwen2 decoder over embeddings of text and image tokens, packed end to end.

Mirrors transformers' `Qwen2_5_VLTextModel`. It differs in one thing: the attention of a layer is passed in
as a function, so that training (packed causal attention) and decoding (the engine's KV cache) run the same
lines.

Shape letters: T packed tokens, C hidden size, H query heads, K key/value heads, D head dim.
"""

from collections.abc import Callable
from types import EllipsisType

import torch
from torch import Tensor, nn

from kernels.pointwise import add_rms_norm, rotate
from r1ov.model.config import TextConfig
from r1ov.model.rope import text_angles
from r1ov.model.vision import MLP, Linear, RMSNorm

# (layer index, q (T, H, D), k (T, K, D), v (T, K, D)) -> (T, H, D); q and k are already rotated.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
ALL = ...  # unlike a slice of all, no kernel


class SelfAttention(nn.Module):
    def __init__(self, config: TextConfig, layer_index: int):
        super().__init__()
        self.layer_index, self.head_dim = layer_index, config.head_dim
        self.q_proj = Linear(config.hidden_size, config.num_attention_heads * config.head_dim)
        self.k_proj = Linear(config.hidden_size, config.num_key_value_heads * config.head_dim)
        self.v_proj = Linear(config.hidden_size, config.num_key_value_heads * config.head_dim)
        self.o_proj = Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, only: Tensor | EllipsisType = ALL
    ) -> Tensor:
        projected = self.q_proj(x[only]), self.k_proj(x), self.v_proj(x)
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in projected)  # (T, H | K, D)
        return self.o_proj(
            attend(self.layer_index, rotate(q, cos[only], sin[only]), rotate(k, cos, sin), v).flatten(1)
        )


class DecoderLayer(nn.Module):
    def __init__(self, config: TextConfig, layer_index: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, layer_index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, only: Tensor | EllipsisType = ALL
    ) -> Tensor:
        """(T, C) -> (T, C), or (n, C) for the tokens `only` (n,), which still see all the others."""
        norm = self.post_attention_layernorm
        terms = x[only], self.self_attn(self.input_layernorm(x), cos, sin, attend, only)
        x, normed = add_rms_norm(*terms, norm.weight, norm.eps)
        return x + self.mlp(normed)


class LanguageModel(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        # Not nn.Embedding(...): on the meta device its random start imports torch._dynamo, which takes more
        # than a second.
        self.embed_tokens = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.hidden_size), freeze=False
        )
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, position_ids: Tensor, attend: Attend, only: Tensor | EllipsisType = ALL
    ) -> Tensor:
        """(T, C) hidden states after the final norm, from embeddings x (T, C) at position_ids (3, T).

        Args: only: (n,) the tokens whose states are wanted; the last layer then computes these alone.
        """
        config = self.config
        angles = text_angles(position_ids, config.head_dim, config.rope_theta, config.mrope_section)
        # Unlike the vision encoder's, this rotation runs in x's dtype.
        cos, sin = (angle.to(x.dtype) for angle in angles)
        for layer in self.layers[:-1]:
            x = layer(x, cos, sin, attend)
        x = self.layers[-1](x, cos, sin, attend, only)
        return self.norm(x)
