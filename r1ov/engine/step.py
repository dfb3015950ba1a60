"""One new token a row through the language model.

Large models run through their own modules. For a small one on a CPU the calls from module to module, and the
many small operations,
take longer than the arithmetic: `FlatStep` writes the same layers flat, on weights laid out for it. A test
    holds it to the same logits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import default_impl
from r1ov.engine.cache import KVCache
from r1ov.model.language import DecoderLayer
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.rope import text_angles

LARGEST_FLAT = 1024  # hidden size up to which the copy of the weights is small


def make_step(model: Qwen2_5_VL, max_positions: int) -> "ModuleStep | FlatStep":
    """Args: max_positions: positions reach from 0 to below this."""
    weight = model.head_weight
    is_small = (
        model.config.text.hidden_size <= LARGEST_FLAT
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
    )
    is_watched = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    if is_small and not is_watched and default_impl(weight.device) == "torch":
        return FlatStep(model, max_positions)
    return ModuleStep(model)


class ModuleStep:
    """Maps tokens (B,) at positions (B,) to the logits (B, V) of what follows them, by the model's own
    modules.
    """

    key_order: Tensor | None = None

    @staticmethod
    def num_threads(rows: int, most: int) -> int:
        """How many CPU threads a step of so many rows is best given."""
        return most

    def __init__(self, model: Qwen2_5_VL):
        self.model = model

    def __call__(self, tokens: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        # A new token stands at the same position on all three streams.
        x = self.model.model.embed_tokens(tokens)
        return self.model.logits(self.model.model(x, positions.expand(3, -1), cache.decode()))


class FlatStep:
    """The same, each layer as few calls as possible. Made anew for each decoding: it holds the weights.

    The heads stand in groups: key head j's queries, then its key, then its value, (G + 2) heads of D numbers.
    Each head's numbers are reordered so that the pairs that rotary positions turn are neighbours, and a turn
    is one product of complex numbers, 1 for values. Each norm's weight is part of the matrix behind it.
    """

    @staticmethod
    def num_threads(rows: int, most: int) -> int:
        """Few rows: one, because several would wait for each other longer than they work (one row is twice as
        slow with two).
        """
        return most if rows >= 8 else 1

    def __init__(self, model: Qwen2_5_VL, max_positions: int):
        config = model.config.text
        dim, key_heads = config.head_dim, config.num_key_value_heads
        self.key_heads, self.dim = key_heads, dim
        self.group = config.num_attention_heads // key_heads + 2  # heads
        self.key_order = torch.arange(dim).view(2, dim // 2).t().flatten()  # 0, D/2, 1, D/2 + 1, ...
        positions = torch.arange(max_positions).expand(3, -1)
        cos, sin = text_angles(positions, dim, config.rope_theta, config.mrope_section)  # (max_positions, D)
        turns = torch.complex(cos, sin)[:, None, None, : dim // 2].repeat(
            1, 1, self.group, 1
        )  # (max_positions, 1, G + 2, D/2)
        turns[:, :, -1] = 1
        self.turns = turns
        # The mean of squares as a product with (C, 1), and eps as what is added to it: one call instead of
        # three.
        self.eps = torch.full((1, 1), config.rms_norm_eps)
        self.mean = torch.full((config.hidden_size, 1), 1 / config.hidden_size)
        self.embedding = model.model.embed_tokens.weight
        self.head = (model.head_weight * model.model.norm.weight).t()
        self.layers = [self._laid_out(layer) for layer in model.model.layers]

    def _laid_out(self, layer: DecoderLayer) -> tuple[Tensor, ...]:
        """A bias, and matrices (in, out); those that share an input are one."""

        def heads(tensor: Tensor, is_turned: bool) -> Tensor:
            heads = tensor.unflatten(0, (self.key_heads, -1, self.dim))  # (K, heads of this kind, D, ...)
            return heads[:, :, self.key_order] if is_turned else heads

        attention, mlp = layer.self_attn, layer.mlp
        projections = ((attention.q_proj, True), (attention.k_proj, True), (attention.v_proj, False))
        weight = torch.cat([heads(one.weight, is_turned) for one, is_turned in projections], dim=1).flatten(
            0, 2
        )
        bias = torch.cat([heads(one.bias, is_turned) for one, is_turned in projections], dim=1).flatten()
        gate_up = (
            torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)) * layer.post_attention_layernorm.weight
        )
        return (
            bias,
            (weight * layer.input_layernorm.weight).t(),
            attention.o_proj.weight.t(),
            gate_up.t(),
            mlp.down_proj.weight.t(),
        )

    def __call__(self, tokens: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        rows, attend = len(tokens), cache.decode_grouped()
        x = self.embedding.index_select(0, tokens)  # (B, C)
        turns = self.turns.index_select(0, positions)  # (B, 1, G + 2, D/2)
        for index, (bias, qkv_proj, o_proj, gate_up_proj, down_proj) in enumerate(self.layers):
            qkv = torch.addmm(bias, self._norm(x), qkv_proj).view(rows, self.key_heads, self.group, -1, 2)
            qkv = torch.view_as_real(torch.view_as_complex(qkv) * turns).view(
                -1, self.group, self.dim
            )  # (B*K, G + 2, D)
            x = torch.addmm(x, attend(index, qkv).view(rows, -1), o_proj)
            gate, up = (self._norm(x) @ gate_up_proj).chunk(2, dim=-1)
            x = torch.addmm(x, F.silu(gate).mul_(up), down_proj)
        return self._norm(x) @ self.head

    def _norm(self, x: Tensor) -> Tensor:
        return x * torch.addmm(self.eps, x * x, self.mean).rsqrt_()
