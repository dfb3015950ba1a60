"""Packed attention against softmax(q k^T / sqrt(d)) v written out with a mask, forward and gradients, at
ragged lengths.
"""

import pytest
import torch

from kernels import attention, decode_attention

# float32 sums in another order
TOLERANCE = 2e-5


def definition(q, k, v, lengths, lengths_k, causal):
    """One dense softmax over all tokens, everything outside a token's own sequence (and, causal, its future)
    masked out.
    """
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    row_k = torch.repeat_interleave(torch.arange(len(lengths_k)), torch.tensor(lengths_k))
    # how far each token is from the end of its sequence: the last query sees the last key
    left = torch.cat([torch.arange(n).flip(0) for n in lengths])
    left_k = torch.cat([torch.arange(n).flip(0) for n in lengths_k])
    seen = row[:, None] == row_k
    if causal:
        seen &= left[:, None] <= left_k
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[2] ** -0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), v)


def starts(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


CASES = {
    "one": ([1], None),
    "equal": ([16, 16, 16], None),
    "ragged": ([63, 1, 100, 7, 131, 64], None),
    "with empty sequences": ([0, 5, 0, 9, 0], None),
    "other key lengths": ([3, 1, 7], [10, 1, 9]),
    "several go on from one": ([9, 3, 6, 2, 5, 0, 7, 1], [9, 12, 15, 11, 8, 3, 16, 10]),
}


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize(("heads", "key_heads", "dim"), [(4, 4, 16), (6, 2, 20), (4, 1, 80)])
@pytest.mark.parametrize("case", CASES)
def test_attention_and_its_gradients_equal_the_definition(case, heads, key_heads, dim, causal):
    lengths, lengths_k = CASES[case]
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(sum(lengths), heads, dim, generator=generator, requires_grad=True)
    k, v = (
        torch.randn(sum(lengths_k or lengths), key_heads, dim, generator=generator, requires_grad=True)
        for _ in range(2)
    )
    mix = torch.randn(q.shape, generator=generator)
    kept = [x.detach().clone() for x in (q, k, v)]

    expected = definition(q, k, v, lengths, lengths_k or lengths, causal)
    expected_grads = torch.autograd.grad((expected * mix).sum(), (q, k, v))
    actual = attention(
        q, k, v, starts(lengths), causal, cu_seqlens_k=None if lengths_k is None else starts(lengths_k)
    )
    actual_grads = torch.autograd.grad((actual * mix).sum(), (q, k, v))

    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=TOLERANCE)
    for name, ours, theirs in zip("qkv", actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(
            ours, theirs, atol=TOLERANCE, rtol=TOLERANCE, msg=lambda text, name=name: f"d{name}: {text}"
        )
    for before, after in zip(kept, (q, k, v), strict=True):
        assert torch.equal(before, after), "an input was written to"


def test_nothing_leaks_between_sequences():
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(12, 2, 8, generator=generator) for _ in range(3))
    poisoned = [x.clone() for x in (q, k, v)]
    for x in poisoned:
        x[5:] = float("nan")
    assert torch.equal(attention(q, k, v, starts([5, 7]))[:5], attention(*poisoned, starts([5, 7]))[:5])


def test_decode_attention_equals_attention_over_the_filled_part():
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([1, 9, 4])
    q = torch.randn(3, 6, 16, generator=generator)
    k_cache, v_cache = (torch.randn(3, 2, 12, 16, generator=generator) for _ in range(2))
    packed_k, packed_v = (
        torch.cat([cache[b, :, :n].transpose(0, 1) for b, n in enumerate(lengths)])
        for cache in (k_cache, v_cache)
    )
    expected = attention(q, packed_k, packed_v, starts([1, 1, 1]), cu_seqlens_k=starts(lengths.tolist()))
    torch.testing.assert_close(
        decode_attention(q, k_cache, v_cache, lengths), expected, atol=TOLERANCE, rtol=TOLERANCE
    )


def test_wrong_arguments_are_refused():
    q = torch.zeros(4, 3, 8)
    with pytest.raises(ValueError, match="heads must divide"):
        attention(q, q[:, :2], q[:, :2], starts([4]))
    with pytest.raises(ValueError, match="runs from 0 to 3, but there are 4 tokens"):
        attention(q, q, q, starts([3]))
    with pytest.raises(ValueError, match="impl is 'magic'"):
        attention(q, q, q, starts([4]), impl="magic")
