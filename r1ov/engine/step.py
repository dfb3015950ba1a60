"""One new token a row through the language model, written flat.

The same arithmetic as `r1ov.model.language`, layer by layer, on the model's own weights (up to fused roundings in bfloat16). Decoding
runs it once a token, where for a small model the calls from module to module and the many small operations would take longer than
the arithmetic: written so, a step of r1ov-tiny takes less than half the time. A test holds the two to the same logits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1ov.model.language import Attend
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.rope import text_angles


class Step:
    """Maps tokens (B,) at positions (B,) to the logits (B, V) of what follows them. Made anew for each decoding: it holds the weights."""

    def __init__(self, model: Qwen2_5_VL, max_positions: int):
        """Args: max_positions: positions reach from 0 to below this."""
        config, weight = model.config.text, model.head_weight
        self.heads, self.key_heads = (config.num_attention_heads, config.num_key_value_heads)
        self.head_dim, self.half = config.head_dim, config.head_dim // 2
        self.embed, self.final_norm, self.head = (model.model.embed_tokens.weight, model.model.norm.weight, weight)
        # A new token stands at the same position on all three streams.
        positions = torch.arange(max_positions, device=weight.device).expand(3, -1)
        cos, sin = text_angles(positions, config.head_dim, config.rope_theta, config.mrope_section)
        self.cos = cos.to(weight.dtype)[:, None]  # (max_positions, 1, D)
        # `rotate` negates half of x; to negate half of the sines here once is the same.
        self.sin = torch.cat((-sin[:, : self.half], sin[:, self.half :]), dim=-1).to(weight.dtype)[:, None]
        # The mean of squares as a product with (C, 1), and eps as what is added to it: one call instead of three.
        self.eps = torch.full((1, 1), config.rms_norm_eps, device=weight.device)
        self.mean = torch.full((config.hidden_size, 1), 1 / config.hidden_size, device=weight.device)

        # Where the calls cost more than the copy's memory, matrices with the same input become one, and take the norm before them in.
        joined = config.hidden_size <= 1024 and weight.dtype == torch.float32

        def behind(norm: Tensor, projections: list[nn.Linear]) -> tuple[Tensor | None, list[tuple[Tensor, Tensor | None]]]:
            """The weight of the norm, if it is still to be applied, and (weight, bias) of each matrix behind it."""
            pairs = [(projection.weight, projection.bias) for projection in projections]
            if not joined:
                return norm, pairs
            weights, biases = zip(*pairs, strict=True)
            return None, [(torch.cat(weights) * norm, None if biases[0] is None else torch.cat(biases))]

        self.layers = [
            (
                behind(layer.input_layernorm.weight, [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]),
                layer.self_attn.o_proj.weight.t(),
                behind(layer.post_attention_layernorm.weight, [layer.mlp.gate_proj, layer.mlp.up_proj]),
                layer.mlp.down_proj.weight.t(),
            )
            for layer in model.model.layers
        ]

    def __call__(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Args: attend: the attention of a layer, which also writes the cache: `KVCache.decode()`."""
        rows = len(tokens)
        x = self.embed[tokens]  # (B, C)
        cos, sin = self.cos[positions], self.sin[positions]  # (B, 1, D)
        for index, (qkv_proj, o_proj, gate_up_proj, down_proj) in enumerate(self.layers):
            parts = self._project(x, *qkv_proj)
            qkv = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).view(rows, -1, self.head_dim)  # (B, H + 2K, D)
            turned = self._rotate(qkv[:, : -self.key_heads], cos, sin)
            out = attend(index, turned[:, : self.heads], turned[:, self.heads :], qkv[:, -self.key_heads :])  # (B, H, D)
            x = torch.addmm(x, out.view(rows, -1), o_proj)
            parts = self._project(x, *gate_up_proj)
            gate, up = parts if len(parts) == 2 else parts[0].chunk(2, dim=-1)
            x = torch.addmm(x, F.silu(gate).mul_(up), down_proj)
        return F.linear(self._norm(x, self.final_norm), self.head)

    def _project(self, x: Tensor, norm: Tensor | None, projections: list[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        normed = self._norm(x, norm)
        return [F.linear(normed, weight, bias) for weight, bias in projections]

    def _norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        wide = x.float()
        normed = (wide * torch.addmm(self.eps, wide * wide, self.mean).rsqrt_()).to(x.dtype)
        return normed if weight is None else normed.mul_(weight)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return torch.addcmul(x * cos, x.roll(self.half, -1), sin)
