"""The language model with a memory: a prompt is prefilled at once, then a step runs one new token a row.

The keys and values of a token are written once and read by every later token of its row.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import attention, check_impl, decode_attention
from kernels.attention import decode_attention_torch
from r1ov.common.memory import LARGE, roomy
from r1ov.data.processor import Batch
from r1ov.errors import UserError
from r1ov.model.language import LanguageModel
from r1ov.model.model import Qwen2_5_VL
from r1ov.model.rope import text_angles

ROOM = 64  # columns that are added at least, and half as many as there are: most answers are short
SLACK = 16  # columns, so that a CPU reads few empty ones, and makes its views anew every 16 steps
AT_ONCE = 2**26  # bytes of weights that a step takes from their file, or one tensor
MOST_COPIED = 2**26  # bytes of weights: what copying them takes, tens of steps gain


class KVCache:
    """One tensor a layer, (rows, 2K, S, D): K heads of keys, then K of values. The first are live.

    Row b holds `lengths[b]` tokens from its start; behind them are zeros, or tokens that nobody reads. Rows
    join with their prompts (`admit`) and leave when their answer is finished (`keep`), so that a step costs
    what its live rows cost. S grows with the answers; until it does, all that a step uses stays in its place.
    """

    def __init__(self, model: LanguageModel, max_rows: int, capacity: int):
        """Args: capacity: the most tokens that a row may hold, prompt included."""
        config, weight, self.capacity = model.config, model.embed_tokens.weight, capacity
        empty = weight.new_zeros(max_rows, 2 * config.num_key_value_heads, 0, config.head_dim)
        self.layers, device = [empty] * config.num_hidden_layers, weight.device
        self.lengths = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.numbers = torch.arange(max_rows, device=device)
        self.longest = 0  # of the lengths, on the host, so that nothing waits for the device
        self.live = self.rows = self.columns = 0  # rows that are live; rows and columns that a step uses
        self.held = 0  # tokens of the next prompt that are there already; above 0 for a single row alone
        self.has_bias = check_impl(None, device) == "torch"
        self.key_order = slice(None)  # (D,) how a prompt's keys are reordered before they are kept

    def admit(self, prompt_lengths: list[int], num_samples: int) -> None:
        """Adds `num_samples` rows a prompt behind the live ones; `places` is where to fill them."""
        self.longest = max(self.longest, self.held + max(prompt_lengths))
        device, lengths = self.lengths.device, torch.tensor(prompt_lengths)
        prompt = torch.repeat_interleave(lengths)  # (T,) which prompt each token belongs to
        rows = self.live + prompt * num_samples + torch.arange(num_samples)[:, None]
        columns = torch.cat([torch.arange(length) for length in prompt_lengths]) + self.held
        self.places = rows.to(device), slice(None), columns.to(device)  # (num_samples, T), all heads, (T,)
        before, self.live = self.live, self.live + num_samples * len(lengths)
        self.lengths[before : self.live] = (self.held + lengths).repeat_interleave(num_samples)
        self.reserve(self.live, 0)

    def reserve(self, rows: int, steps: int) -> None:
        """Sees to it that the next `steps` steps of the first `rows` rows are the device's work alone."""
        needed, (max_rows, _, before, _) = self.longest + steps, self.layers[0].shape
        if needed > before:
            columns = min(needed + needed // 2 + ROOM, self.capacity)
            try:
                for index, layer in enumerate(self.layers):  # in turn, so that only one layer is there twice
                    # With zeros: a masked key has weight 0, and 0 * NaN would be NaN.
                    self.layers[index] = F.pad(layer, (0, 0, 0, columns - before))
            except RuntimeError as error:  # of a GPU as of a CPU
                if "allocate" not in str(error):
                    raise
                raise UserError(
                    f"the cache for {max_rows} rows of {columns:,} tokens takes more than is free on "
                    f"{layer.device}; lower max_new_tokens or num_samples"
                ) from None
            self.ramp = F.pad(layer.new_zeros(columns), (0, columns), value=float("-inf"))
        elif rows == self.rows and needed <= self.columns:
            return
        columns = len(self.ramp) // 2
        self.rows, self.columns = rows, columns if self.ramp.is_cuda else min(needed + SLACK, columns)
        live = [layer[:rows, :, : self.columns] for layer in self.layers]
        # (B, K, columns, D) of each layer
        self.keys, self.values = zip(*(layer.chunk(2, dim=1) for layer in live), strict=True)
        self.by_column = [layer.transpose(1, 2) for layer in live]  # (B, columns, 2K, D)
        # A row's bias is the window of these in which as many zeros lie as it has tokens.
        self.windows = self.ramp[columns - self.columns :].unfold(0, self.columns, 1)[:, None, None]

    def append(self, rows: int) -> None:
        """Makes the first rows one token longer; `places` is where to fill them, and `attend` reads them."""
        self.reserve(rows, 1)
        self.longest += 1
        self.ends = self.lengths[:rows]
        self.places = self.numbers[:rows], self.ends.clone()
        self.ends += 1
        if self.has_bias:
            self.bias = self.windows.index_select(0, self.columns - self.ends)  # (B, 1, 1, columns)

    def fill(self, cu_seqlens: Tensor, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention of the packed prompts that join; an `Attend` when bound to where they start."""
        kv = torch.cat((k[..., self.key_order], v), dim=1)  # (T, 2K, D), a prompt's in each of its rows
        self.layers[layer][self.places] = kv
        if self.held:
            return self._go_on(layer, q)
        if len(q) == len(k):
            return attention(q, k, v, cu_seqlens)
        one_each = torch.arange(len(cu_seqlens), dtype=torch.int32, device=q.device)
        return attention(q, k, v, one_each, cu_seqlens_k=cu_seqlens)

    def _go_on(self, layer: int, q: Tensor) -> Tensor:
        """The same of the last tokens of a prompt whose beginning is there already."""
        kv = self.layers[layer][0, :, : self.longest].transpose(0, 1)  # (S, 2K, D)
        k, v = kv.contiguous().chunk(2, dim=1)
        bounds = torch.tensor([[0, len(q)], [0, len(k)]], dtype=torch.int32, device=q.device)
        return attention(q[..., self.key_order], k, v, bounds[0], cu_seqlens_k=bounds[1])

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """(B, H, D) the attention of each row's newest token, with queries q (B, H, D) and its own keys and
        values (B, 2K, D).
        """
        self.by_column[layer][self.places] = kv
        keys, values = self.keys[layer], self.values[layer]
        if self.has_bias:
            return decode_attention_torch(q, keys, values, self.bias)
        return decode_attention(q, keys, values, self.ends)

    def keep(self, rows: list[int]) -> list[int]:
        """Drops all live rows but these. Rows from the end fill the holes, so that only they are copied.

        Returns: for each row of now, which row it was before; whatever else is kept by row has to follow it.
        """
        holes = sorted(set(range(len(rows))) - set(rows))
        movers = [row for row in rows if row >= len(rows)]
        former = list(range(len(rows)))
        for hole, mover in zip(holes, movers, strict=True):
            former[hole] = mover
        for layer in self.layers if holes else ():
            layer[holes, :, : self.longest] = layer[movers, :, : self.longest]
        self.lengths[holes], self.live = self.lengths[movers], len(rows)
        self.longest = max(self.lengths[: self.live].tolist(), default=0)
        return former


def prefill(model: Qwen2_5_VL, batch: Batch, cache: KVCache, num_samples: int) -> Tensor:
    """(N * num_samples, V) logits of each row's first new token, for N packed prompts that join the cache, or
    for the rest of one that it holds the beginning of.

    Only the last token of a prompt goes through the last layer and the head: a 152-thousand-word row for
    every prompt token would be the largest tensor here.
    """
    cu_seqlens = batch["cu_seqlens"]
    cache.admit(cu_seqlens.diff().tolist(), num_samples)
    cu_seqlens = cu_seqlens.to(cache.lengths.device)
    logits = model.logits(
        model.hidden_states(**batch, attend=partial(cache.fill, cu_seqlens), only=cu_seqlens[1:].long() - 1)
    )
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
    is_small = sum(parameter.nbytes for parameter in model.model.parameters()) <= MOST_COPIED
    is_plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and cache.has_bias
    is_watched = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    if is_small and is_plain and not is_watched:
        return FlatStep(model, cache)
    return partial(step, model, cache)


def take_from_file(model: Qwen2_5_VL) -> None:
    """Copies some of the weights that are still their file into large pages, which a step reads faster by a
    fifth or more. Each step takes a few, so that the first word does not wait for all. A parameter stays the
    same object, with the same numbers; no other thread may be computing with it.
    """
    taken = 0
    while LARGE and model.mapped and taken < AT_ONCE:
        name = model.mapped.pop()
        parameter = model.get_parameter(name)
        # All that a step reads: not the vision encoder, and of an embedding that is no head a few rows.
        is_read = name.startswith("model.layers.") or parameter is model.head_weight
        if is_read and parameter.is_cpu:  # a model may have been moved since
            with torch.inference_mode(False):
                parameter.data = roomy(parameter.shape, parameter.dtype, "cpu").copy_(parameter.data)
            taken += parameter.nbytes


def step(model: Qwen2_5_VL, cache: KVCache, tokens: Tensor, positions: Tensor) -> Tensor:
    """A `Step` through the model's own modules."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return cache.attend(layer, q, torch.cat((k, v), dim=1))

    take_from_file(model)
    cache.append(len(tokens))
    x = model.model.embed_tokens(tokens)
    # A new token has the same position on all three streams.
    return model.logits(model.model(x, positions.expand(3, -1), attend))


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
        rows = rows.flatten()
        positions = torch.arange(cache.capacity).expand(3, -1)
        turns = torch.complex(*text_angles(positions, dim, config.rope_theta, config.mrope_section))
        self.turns = turns[:, None, : dim // 2]  # (positions, 1, D/2)
        # The mean of squares is a product with (C, 1), and eps is added to it: one call instead of three.
        mean = torch.full((config.hidden_size, 1), 1 / config.hidden_size)
        eps = torch.full((1, 1), config.rms_norm_eps)
        self.norm = lambda x: x * torch.addmm(eps, x * x, mean).rsqrt_()
        self.embedding = model.model.embed_tokens.weight
        self.head = (model.head_weight * model.model.norm.weight).t().contiguous()
        self.layers = []
        for layer in model.model.layers:
            attn, mlp = layer.self_attn, layer.mlp
            qkv = (attn.q_proj, attn.k_proj, attn.v_proj)
            bias = torch.cat([linear.bias for linear in qkv])[rows]
            gate_up = torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight))
            matrices = (
                torch.cat([linear.weight for linear in qkv])[rows] * layer.input_layernorm.weight,
                attn.o_proj.weight,
                gate_up * layer.post_attention_layernorm.weight,
                mlp.down_proj.weight,
            )
            self.layers.append((bias, *(matrix.t().contiguous() for matrix in matrices)))

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        cache, rows = self.cache, len(tokens)
        cache.append(rows)
        x = self.embedding.index_select(0, tokens)  # (B, C)
        turns = self.turns.index_select(0, positions)  # (B, 1, D/2)
        # All layers write into one place, whose views are made once: a call costs as much as a small product.
        qkv = x.new_empty(rows, len(self.layers[0][0]))
        heads = qkv.view(rows, -1, 2 * turns.shape[2])
        q, kv = heads.tensor_split([self.heads], 1)
        pairs = torch.view_as_complex(heads.unflatten(2, (-1, 2)))[:, : -self.key_heads]
        gate_up = x.new_empty(rows, self.layers[0][3].shape[1])
        gate, up = gate_up.chunk(2, 1)
        for index, (bias, qkv_proj, o_proj, gate_up_proj, down_proj) in enumerate(self.layers):
            torch.addmm(bias, self.norm(x), qkv_proj, out=qkv)
            pairs.mul_(turns)  # queries and keys, where they are in `qkv`
            x.addmm_(cache.attend(index, q, kv).flatten(1), o_proj)
            torch.mm(self.norm(x), gate_up_proj, out=gate_up)
            x.addmm_(F.silu(gate).mul_(up), down_proj)
        return self.norm(x) @ self.head
