"""Attention of one new query a row against a cache of keys and values, which is what decoding needs.

Shape letters: B rows, H query heads, K key/value heads, S cached positions, D head dim; N prompts, P their
cached positions, G = B / N completions of each prompt.
Grouped queries: key head j serves query heads j*H/K .. (j+1)*H/K - 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import check_impl


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
    _check(q, k_cache, v_cache, lengths, len(q))
    if impl == "triton":
        from kernels.triton.decode import decode_attention_op

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
    rows, cached = len(k_cache), k_cache.shape[2]
    unfilled = torch.arange(cached, device=lengths.device) >= lengths[:, None]  # (B, S)
    return k_cache.new_zeros(rows, cached).masked_fill_(unfilled, float("-inf"))[:, None, None]


def decode_attention_shared(
    q: Tensor,
    k_prefix: Tensor,
    v_prefix: Tensor,
    prefix_lengths: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    impl: str | None = None,
) -> Tensor:
    """`decode_attention` for G completions of each of N prompts, the prompts' keys stored once; (B, H, D) in
    q's dtype. No gradients.

    Args:
        q: (B, H, D), B = N*G, the rows of a prompt side by side.
        k_prefix, v_prefix: (N, K, P, D), the prompts' keys and values. prefix_lengths: (N,) int, at least 1.
        k_cache, v_cache: (B, K, S, D), each row's own keys and values, those after the prompt. lengths: (B,)
            int, 0 where there are none.
        impl: "torch" or "triton"; None: by device. What is said of unfilled positions in `decode_attention`
            holds for both caches.
    """
    impl = check_impl(impl, q.device)
    _check(q, k_cache, v_cache, lengths, len(q))
    _check(q, k_prefix, v_prefix, prefix_lengths, len(k_prefix))
    if not len(k_prefix) or len(q) % len(k_prefix) or k_prefix.shape[1] != k_cache.shape[1]:
        raise ValueError(
            f"{len(q)} rows, prefixes {tuple(k_prefix.shape)}, cache {tuple(k_cache.shape)}: "
            "every prompt needs as many rows as the others, and both caches as many key heads"
        )
    if impl == "triton":
        from kernels.triton.decode import decode_attention_shared_op

        return decode_attention_shared_op(q, k_prefix, v_prefix, prefix_lengths, k_cache, v_cache, lengths)
    return decode_attention_shared_torch(q, k_prefix, v_prefix, prefix_lengths, k_cache, v_cache, lengths)


def decode_attention_shared_torch(
    q: Tensor,
    k_prefix: Tensor,
    v_prefix: Tensor,
    prefix_lengths: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
) -> Tensor:
    """The definition of `decode_attention_shared`: every row gets its prompt's keys and values in front of
    its own.
    """
    group = len(q) // len(k_prefix)
    k_prefix, v_prefix, prefix_lengths = (
        x.repeat_interleave(group, 0) for x in (k_prefix, v_prefix, prefix_lengths)
    )
    bias = torch.cat(
        [decode_bias(prefix_lengths, k_prefix), decode_bias(lengths, k_cache)], -1
    )  # (B, 1, 1, P+S)
    return decode_attention_torch(
        q, torch.cat([k_prefix, k_cache], 2), torch.cat([v_prefix, v_cache], 2), bias
    )


def _check(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, rows: int) -> None:
    """ValueError unless the caches are alike, fit the queries' heads, and have a length for each of `rows`
    rows.
    """
    if (
        keys.shape != values.shape
        or len(keys) != rows
        or q.shape[1] % keys.shape[1]
        or q.shape[2] != keys.shape[3]
    ):
        raise ValueError(
            f"q {tuple(q.shape)}, keys {tuple(keys.shape)}, values {tuple(values.shape)}: "
            "rows and head sizes must be equal, key heads must divide query heads"
        )
    if lengths.shape != (rows,):
        raise ValueError(f"lengths {tuple(lengths.shape)} for {rows} rows of keys: one each")
