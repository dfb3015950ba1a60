"""The language model with a memory: a prompt is prefilled at once, then a step runs one new token a row.

The keys and values of a token are written once and read by every later token of its row.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import attention, decode_attention, default_impl, starts
from kernels.attention import decode_attention_torch, decode_bias
from r1ov.data.processor import Batch
from r1ov.errors import UserError
from r1ov.model.config import TextConfig
from r1ov.model.language import ALL
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.rope import text_angles

ROOM = 64  # for new tokens, at first
SLACK = 16  # columns, so that views and bias are rebuilt every 16 steps, not every step
MOST_COPIED = 2**26  # bytes of weights: what copying them takes, tens of steps gain


class KVCache:
    """One tensor a layer, (rows, 2K, S, D): K heads of keys, then K of values. The first B rows are live.

    Row b holds `lengths[b]` tokens from its start; behind them are zeros, or tokens that nobody reads. Rows
    join with their prompts (`admit`) and leave when their answer is finished (`keep`), so that a step costs
    what its live rows cost. S grows with the answers.
    """

    def __init__(
        self, config: TextConfig, max_rows: int, capacity: int, dtype: torch.dtype, device: torch.device
    ):
        """Args: capacity: the most tokens that a row may hold, prompt included."""
        self.key_heads, self.capacity = config.num_key_value_heads, capacity
        empty = torch.zeros(max_rows, 2 * self.key_heads, 0, config.head_dim, dtype=dtype, device=device)
        self.layers = [empty] * config.num_hidden_layers
        self.lengths = torch.zeros(0, dtype=torch.int64, device=device)  # (B,)
        self.longest = 0  # of the lengths, on the host, so that nothing waits for the device
        self.columns = 0  # how many a step reads; 0: its views are out of date
        self.held = 0  # tokens of the next prompt that are there already; above 0 for a single row alone
        self.key_order: Tensor | slice = ALL  # (D,) how a prompt's keys are reordered before they are kept

    def admit(self, prompt_lengths: list[int], num_samples: int) -> None:
        """Adds `num_samples` rows a prompt behind the live ones; `places` is where to fill them."""
        self.longest, self.columns = max(self.longest, self.held + max(prompt_lengths)), 0
        self._reserve(min(self.longest + ROOM, self.capacity))
        device, lengths = self.lengths.device, torch.tensor(prompt_lengths)
        prompt = torch.repeat_interleave(lengths)  # (T,) which prompt each token belongs to
        rows = len(self.lengths) + prompt * num_samples + torch.arange(num_samples)[:, None]
        columns = torch.cat([torch.arange(self.held, self.held + length) for length in prompt_lengths])
        self.places = rows.to(device), slice(None), columns.to(device)  # (num_samples, T), all heads, (T,)
        lengths = (self.held + lengths).repeat_interleave(num_samples)
        self.lengths = torch.cat((self.lengths, lengths.to(device)))

    def append(self) -> None:
        """Makes every live row one token longer; `places` is where to fill them, and `attend` reads them."""
        ends, self.lengths, self.longest = self.lengths, self.lengths + 1, self.longest + 1
        if self.longest > self.columns:
            self._reserve(self.longest)
            self.columns = min(self.longest + SLACK, self.layers[0].shape[2])
            live = [layer[: len(ends), :, : self.columns] for layer in self.layers]
            self.keys = [layer[:, : self.key_heads] for layer in live]  # (B, K, columns, D)
            self.values = [layer[:, self.key_heads :] for layer in live]
            self.rows = torch.arange(len(ends), device=ends.device)
            has_bias = default_impl(ends.device) == "torch"
            self.bias = decode_bias(self.lengths, self.keys[0]) if has_bias else None
        elif self.bias is not None:
            self.bias[self.rows, 0, 0, ends] = 0
        self.places = self.rows, slice(None), ends

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """(B, H, D) the attention of each row's newest token, with queries q (B, H, D)."""
        keys, values = self.keys[layer], self.values[layer]
        if self.bias is None:
            return decode_attention(q, keys, values, self.lengths)
        return decode_attention_torch(q, keys, values, self.bias)

    def keep(self, rows: list[int]) -> list[int]:
        """Drops all live rows but these. Rows from the end fill the holes, so that only they are copied.

        Returns: for each row of now, which row it was before; whatever else is kept by row has to follow it.
        """
        holes = sorted(set(range(len(rows))) - set(rows))
        movers = [row for row in rows if row >= len(rows)]
        former = list(range(len(rows)))
        for hole, mover in zip(holes, movers, strict=True):
            former[hole] = mover
        if holes:
            for layer in self.layers:
                layer[holes, :, : self.longest] = layer[movers, :, : self.longest]
        self.lengths = self.lengths[former]
        self.longest, self.columns = max(self.lengths.tolist(), default=0), 0
        return former

    def _reserve(self, columns: int) -> None:
        """Makes room for this many tokens a row and half as many again: most answers are short."""
        rows, heads, before, dim = self.layers[0].shape
        if columns <= before:
            return
        columns = min(columns + columns // 2, self.capacity)
        try:
            for index, layer in enumerate(self.layers):  # in turn, so that only one layer is there twice
                # With zeros: a masked key has weight 0, and 0 * NaN would be NaN.
                self.layers[index] = F.pad(layer, (0, 0, 0, columns - before))
        except RuntimeError as error:  # a GPU raises OutOfMemoryError, which is one; a CPU the plain one
            if not isinstance(error, torch.OutOfMemoryError) and "allocate" not in str(error):
                raise
            gigabytes = len(self.layers) * rows * heads * columns * dim * layer.dtype.itemsize / 1e9
            raise UserError(
                f"the cache for {rows} rows of {columns:,} tokens takes {gigabytes:.1f} GB, "
                f"more than is free on {layer.device}; lower max_new_tokens or num_samples"
            ) from None


def prefill(model: Qwen2_5_VL, batch: Batch, cache: KVCache, num_samples: int) -> Tensor:
    """(N * num_samples, V) logits of each row's first new token, for N packed prompts that join the cache, or
    for the rest of one that it holds the beginning of.

    Only the last token of a prompt goes through the last layer and the head: a 152-thousand-word row for
    every prompt token would be the largest tensor here.
    """
    cu_seqlens = batch["cu_seqlens"]
    cache.admit(cu_seqlens.diff().tolist(), num_samples)
    cu_seqlens_k = starts(cu_seqlens.diff() + cache.held)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kv = torch.cat((k[..., cache.key_order], v), dim=1)  # (T, 2K, D), a prompt's in each of its rows
        cache.layers[layer][cache.places] = kv
        whole = len(q) == len(k)
        if whole and not cache.held:
            return attention(q, k, v, cu_seqlens)
        if cache.held:
            kv = cache.layers[layer][0, :, : cache.longest].transpose(0, 1)  # (S, 2K, D)
            q, (k, v) = q[..., cache.key_order], kv.contiguous().chunk(2, dim=1)
        one_each = torch.arange(len(cu_seqlens), dtype=torch.int32, device=q.device)
        return attention(q, k, v, cu_seqlens if whole else one_each, cu_seqlens_k=cu_seqlens_k)

    last = cu_seqlens[1:].long() - 1
    logits = model.logits(model.hidden_states(**batch, attend=attend, only=last))
    if not logits.isfinite().all():
        raise UserError(
            "the model's logits are not finite: its weights are damaged, or its dtype is too narrow"
        )
    return logits.repeat_interleave(num_samples, dim=0)


# Maps tokens (B,) at positions (B,) to the logits (B, V) of what follows them; its cache grows by them.
Step = Callable[[Tensor, Tensor], Tensor]


def make_step(model: Qwen2_5_VL, cache: KVCache) -> Step:
    """Returns the faster of two equal steps, for a cache that is still empty."""
    weight = model.model.embed_tokens.weight
    copied = sum(parameter.nbytes for parameter in model.model.parameters())
    is_small = copied <= MOST_COPIED and weight.dtype == torch.float32
    is_plain = weight.device.type == "cpu" and default_impl("cpu") == "torch"
    is_watched = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    if is_small and is_plain and not is_watched:
        return FlatStep(model, cache)
    return partial(step, model, cache)


def step(model: Qwen2_5_VL, cache: KVCache, tokens: Tensor, positions: Tensor) -> Tensor:
    """A `Step` through the model's own modules."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.layers[layer][cache.places] = torch.cat((k, v), dim=1)
        return cache.attend(layer, q)

    cache.append()
    x = model.model.embed_tokens(tokens)
    # oneDNN rearranges bfloat16 weights before each product; for a single row PyTorch's own product, which
    # reads them once, takes half the time.
    has_onednn = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = has_onednn and not (x.dtype == torch.bfloat16 and len(tokens) == 1)
    try:
        # A new token has the same position on all three streams.
        return model.logits(model.model(x, positions.expand(3, -1), attend))
    finally:
        torch.backends.mkldnn.enabled = has_onednn


class FlatStep:
    """A `Step` for a small model on a CPU, where calling modules takes longer than the arithmetic.

    The same layers in as few calls as possible, on copies of the weights, made anew for each decoding.
    Matrices are (in, out), those that share an input are one, and each norm's weight is part of the matrix
    behind it. The numbers of a query or key are reordered: the pairs that rotary positions turn are
    neighbours, and a turn is one product of complex numbers. The cache keeps keys in this order.
    """

    def __init__(self, model: Qwen2_5_VL, cache: KVCache):
        config = model.config.text
        dim, self.key_heads = config.head_dim, config.num_key_value_heads
        self.cache, self.heads = cache, config.num_attention_heads
        cache.key_order = torch.arange(dim).view(2, dim // 2).t().flatten()  # 0, D/2, 1, D/2 + 1, ...
        rows = torch.arange((self.heads + 2 * self.key_heads) * dim).view(-1, dim)  # of queries, keys, values
        rows[: -self.key_heads] = rows[: -self.key_heads, cache.key_order]
        positions = torch.arange(cache.capacity).expand(3, -1)
        cos, sin = text_angles(positions, dim, config.rope_theta, config.mrope_section)
        self.turns = torch.complex(cos, sin)[:, None, : dim // 2]  # (positions, 1, D/2)
        # The mean of squares is a product with (C, 1), and eps is added to it: one call instead of three.
        self.mean = torch.full((config.hidden_size, 1), 1 / config.hidden_size)
        self.eps = torch.full((1, 1), config.rms_norm_eps)
        self.embedding = model.model.embed_tokens.weight
        self.head = (model.head_weight * model.model.norm.weight).t().contiguous()
        self.layers = []
        for layer in model.model.layers:
            attn, mlp = layer.self_attn, layer.mlp
            qkv = (attn.q_proj, attn.k_proj, attn.v_proj)
            bias = torch.cat([linear.bias for linear in qkv])[rows.flatten()]
            gate_up = torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight))
            matrices = (
                torch.cat([linear.weight for linear in qkv])[rows.flatten()] * layer.input_layernorm.weight,
                attn.o_proj.weight,
                gate_up * layer.post_attention_layernorm.weight,
                mlp.down_proj.weight,
            )
            self.layers.append((bias, *(matrix.t().contiguous() for matrix in matrices)))

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        cache, rows = self.cache, len(tokens)
        cache.append()
        x = self.embedding.index_select(0, tokens)  # (B, C)
        turns = self.turns.index_select(0, positions)  # (B, 1, D/2)
        for index, (bias, qkv_proj, o_proj, gate_up_proj, down_proj) in enumerate(self.layers):
            qkv = torch.addmm(bias, self._norm(x), qkv_proj).view(rows, self.heads + 2 * self.key_heads, -1)
            pairs = torch.view_as_complex(qkv.view(rows, -1, turns.shape[2], 2))
            pairs[:, : -self.key_heads].mul_(turns)  # queries and keys, where they are in `qkv`
            cache.layers[index][cache.places] = qkv[:, self.heads :]
            x = torch.addmm(x, cache.attend(index, qkv[:, : self.heads]).flatten(1), o_proj)
            gate, up = (self._norm(x) @ gate_up_proj).chunk(2, dim=-1)
            x = torch.addmm(x, F.silu(gate).mul_(up), down_proj)
        return self._norm(x) @ self.head

    def _norm(self, x: Tensor) -> Tensor:
        return x * torch.addmm(self.eps, x * x, self.mean).rsqrt_()
