"""Scaled dot-product attention: over packed sequences, and of one new query a row against a cache.

Packed means: sequences lie end to end along the token axis, and `cu_seqlens` = (0, len_0, len_0 + len_1, ...)
says where each begins. Tokens attend within their own sequence only, so there is no padding and no mask
tensor. A cache holds the keys and values of a row in a rectangle, which is what decoding needs.

Shape letters: T query tokens, S key tokens or cached positions, H query heads, K key/value heads, D head dim,
B sequences or rows.
Grouped queries: key head j serves query heads j*H/K .. (j+1)*H/K - 1.
"""

from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kernels.dispatch import check_impl


def starts(lengths: Tensor) -> Tensor:
    """(B+1,) int32: where sequences of these lengths (B,) begin when they lie end to end, and where all end.

    Example: 3 2 2 -> 0 3 5 7
    """
    return F.pad(lengths.cumsum(0), (1, 0)).int()


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    causal: bool = True,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen: int | None = None,
    impl: str | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v within each sequence; (T, H, D) in q's dtype.

    Args:
        q: (T, H, D). k, v: (S, K, D), K divides H.
        cu_seqlens: (B+1,) int32 starts of the query sequences; empty sequences are allowed.
        causal: the last query of a sequence sees all its keys, the one before all but the last, and so on. A
            query that sees no key at all gets 0.
        cu_seqlens_k: (B+1,) int32 starts of the key sequences, where they differ from the queries'.
        max_seqlen: no sequence has more queries. The kernels do without it; up to 64 they take smaller tiles.
        impl: "torch", "triton" (head sizes 32, 64, 80, 128; deterministic, backward too), or None for the
            device's default.
    """
    impl = check_impl(impl, q.device)
    if q.shape[1] % k.shape[1] or q.shape[2] != k.shape[2] or k.shape != v.shape:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: "
            "heads must divide, head sizes must be equal"
        )
    if impl == "triton":
        from kernels.triton.attention import attention_triton

        with torch.cuda.device_of(q):
            return attention_triton(q, k, v, cu_seqlens, causal, cu_seqlens_k, max_seqlen)
    return attention_torch(q, k, v, cu_seqlens, causal, cu_seqlens_k)


def attention_torch(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, causal: bool, cu_seqlens_k: Tensor | None = None
) -> Tensor:
    """The definition of `attention`, on torch's scaled_dot_product_attention, one call per group of
    like-sized sequences.
    """
    spans = _spans(cu_seqlens, q.shape[0])
    spans_k = spans if cu_seqlens_k is None else _spans(cu_seqlens_k, k.shape[0])
    if not any(spans):
        return torch.zeros_like(q)
    if len({*zip(spans, spans_k, strict=True)}) == 1:  # the packed tensors are already a batch
        k, v = (x.unflatten(0, (len(spans), spans_k[0])) for x in (k, v))
        return _sdpa(q.unflatten(0, (len(spans), spans[0])), k, v, causal).flatten(0, 1)
    groups, order = _plan(spans, spans_k, causal, q.device)
    outputs = [_sdpa(q[index], k[index_k], v[index_k], causal).flatten(0, 1) for index, index_k in groups]
    return torch.cat(outputs)[order]


@lru_cache(maxsize=32)  # all layers of a model ask for the same one
@torch.inference_mode(False)
def _plan(
    spans: tuple[int, ...], spans_k: tuple[int, ...], causal: bool, device: torch.device
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """How sequences of these lengths are gathered into batches.

    A group's sequences are padded to its longest. Where attention is causal and the first queries see equally
    many keys, the padding is hidden by itself (it comes after every real query), so lengths up to a factor of
    two share a group; all others need equal lengths.

    Returns: for each group the tokens to gather for queries (B, L) and for keys (B, S); and (T,) where each
        token is among the B*L outputs of all groups end to end.
    """
    groups = {}
    for row, (length, length_k) in enumerate(zip(spans, spans_k, strict=True)):
        key = (length_k - length, length.bit_length() if causal else length, length_k > 0)
        if length:
            groups.setdefault(key, []).append(row)
    plan, order = [], []
    tokens, tokens_k = (torch.arange(sum(lengths)).split(lengths) for lengths in (spans, spans_k))
    for rows in groups.values():
        padded = [
            pad_sequence([one[row] for row in rows], batch_first=True, padding_value=-1)
            for one in (tokens, tokens_k)
        ]
        order.append(padded[0].flatten())
        # each padded with its last token
        plan.append(tuple(one.cummax(1).values.to(device) for one in padded))
    return plan, torch.cat(order).argsort()[-sum(spans) :].to(device)  # the padding, -1, comes first


def _spans(cu_seqlens: Tensor, tokens: int) -> tuple[int, ...]:
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != tokens:
        raise ValueError(f"cu_seqlens runs from {bounds[0]} to {bounds[-1]}, but there are {tokens} tokens")
    return tuple(end - begin for begin, end in pairwise(bounds))


def _sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """(B, L, H, D), (B, S, K, D) twice -> (B, L, H, D)."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    visible = None
    if causal and q.shape[2] != k.shape[2]:
        # torch.nn.attention.bias.causal_lower_right is the same mask, but importing it takes a second (it
        # brings torch._dynamo).
        visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(
            k.shape[2] - q.shape[2]
        )
    return F.scaled_dot_product_attention(
        q, k, v, visible, is_causal=causal and visible is None, enable_gqa=q.shape[1] != k.shape[1]
    ).transpose(1, 2)


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, impl: str | None = None
) -> Tensor:
    """Each row's one query over the first `lengths[b]` keys of its cache row; (B, H, D) in q's dtype.

    It has no gradients.

    Args:
        q: (B, H, D). k_cache, v_cache: (B, K, S, D), rows of which only the first lengths[b] (at least 1)
            positions are filled; what lies behind must be finite for "torch", and is not read by "triton".
        lengths: (B,) int. "triton" reads them on the device; nothing here waits for it.
        impl: "torch" or "triton"; None: by device.
    """
    impl = check_impl(impl, q.device)
    rows, heads, dim = q.shape
    if k_cache.shape != v_cache.shape or (len(k_cache), k_cache.shape[3], heads % k_cache.shape[1]) != (
        rows,
        dim,
        0,
    ):
        raise ValueError(
            f"q {tuple(q.shape)}, keys {tuple(k_cache.shape)}, values {tuple(v_cache.shape)}: "
            "rows and head sizes must be equal, key heads must divide query heads"
        )
    if lengths.shape != (rows,):
        raise ValueError(f"lengths {tuple(lengths.shape)} for {rows} rows of keys: one each")
    if impl == "triton":
        from kernels.triton.decode import decode_attention_op

        with torch.cuda.device_of(q):
            return decode_attention_op(q, k_cache, v_cache, lengths)
    return decode_attention_torch(q, k_cache, v_cache, decode_bias(lengths, k_cache))


def decode_attention_torch(q: Tensor, k_cache: Tensor, v_cache: Tensor, bias: Tensor) -> Tensor:
    """The definition of `decode_attention`.

    Args: bias: (B, 1, 1, S), `decode_bias(lengths, k_cache)`; a caller with many layers makes it once a step.
    """
    grouped = q.unflatten(
        1, (k_cache.shape[1], -1)
    )  # (B, K, H/K, D): the queries of one key head side by side
    return F.scaled_dot_product_attention(grouped, k_cache, v_cache, attn_mask=bias).flatten(1, 2)


def decode_bias(lengths: Tensor, k_cache: Tensor) -> Tensor:
    """(B, 1, 1, S) in the cache's dtype: 0 where a row's key is filled, -inf behind it."""
    unfilled = torch.arange(k_cache.shape[2], device=lengths.device) >= lengths[:, None]  # (B, S)
    return k_cache.new_zeros(unfilled.shape).masked_fill_(unfilled, float("-inf"))[:, None, None]
