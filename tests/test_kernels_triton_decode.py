"""Decode attention in Triton (interpreted where there is no GPU) against a float64 softmax written out row by
row.
"""

import pytest
import torch

from kernels import decode_attention
from kernels.attention import decode_attention_torch, decode_bias

triton_decode = pytest.importorskip("kernels.triton.decode", reason="needs triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = [1, 64, 131, 257]
OTHER_LENGTHS = [7, 63, 65, 100]
# relative to the largest value: float32 sums in another order
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """What a kernel forgets to write stays NaN, and so does what it reads of what nobody wrote."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        made = empty(*args, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def splits(monkeypatch):
    """Sets the number of stretches, which otherwise depends on the GPU."""
    return lambda number: monkeypatch.setattr(triton_decode, "_splits", lambda *sizes: number)


def rows(lengths, heads, key_heads, dim, dtype=torch.float32, seed=0, queries=None):
    """Queries, and caches in which all that is not filled is NaN."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(queries or len(lengths), heads, dim, generator=generator)
    k, v = (
        torch.randn(len(lengths), key_heads, max(lengths) + 5, dim, generator=generator) for _ in range(2)
    )
    for b, length in enumerate(lengths):
        k[b, :, length:] = v[b, :, length:] = float("nan")
    return *(x.to(DEVICE, dtype) for x in (q, k, v)), torch.tensor(lengths, device=DEVICE)


def definition(q, keys, values):
    """(B, H, D) in float64; keys, values: for each row a (K, length, D)."""
    out = []
    for query, k, v in zip(q.double(), keys, values, strict=True):
        k, v = (x.double().repeat_interleave(len(query) // len(x), 0) for x in (k, v))  # (H, length, D)
        out.append(((k @ query[:, :, None]).squeeze(2) * q.shape[2] ** -0.5).softmax(-1)[:, None] @ v)
    return torch.stack(out).squeeze(2)


def filled(cache, lengths):
    return [row[:, :length] for row, length in zip(cache, lengths.tolist(), strict=True)]


def error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("lengths", [LENGTHS, OTHER_LENGTHS], ids=str)
@pytest.mark.parametrize(
    ("ratio", "key_heads", "dim", "number"),
    [(1, 2, 32, 3), (2, 2, 64, 1), (7, 1, 80, 2), (8, 1, 128, 5)],
    ids=lambda x: str(x),
)
def test_decode_attention_equals_the_definition(ratio, key_heads, dim, number, lengths, splits):
    splits(number)
    inputs = rows(lengths, ratio * key_heads, key_heads, dim)
    q, k, v, filled_lengths = (x.clone() for x in inputs)
    actual = decode_attention(*inputs, impl="triton")
    assert error(actual, definition(q, filled(k, filled_lengths), filled(v, filled_lengths))) < TOLERANCE
    for before, after in zip((q, k, v, filled_lengths), inputs, strict=True):
        torch.testing.assert_close(
            after, before, atol=0, rtol=0, equal_nan=True, msg="an input was written to"
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("ratio", "dim"), [(7, 128), (2, 80)], ids=str)
def test_half_precision_rounds_no_more_than_twice_what_torch_does(ratio, dim, dtype, splits):
    splits(2)
    q, k, v, lengths = rows(LENGTHS, ratio, 1, dim, dtype)
    expected = definition(q, filled(k, lengths), filled(v, lengths))
    torch_form = decode_attention(q, k.nan_to_num(), v.nan_to_num(), lengths, impl="torch")
    actual = decode_attention(q, k, v, lengths, impl="triton")
    assert actual.dtype == dtype
    assert error(actual, expected) < 2 * error(torch_form, expected)


def test_scores_of_ten_thousand_stay_exact(splits):
    """The running maximum keeps every exponent at or below 0; the largest score's key takes all."""
    splits(3)
    q, k, v, lengths = rows([100], 2, 1, 32)
    q, k = q * 1e3, k * 1e2
    expected = definition(q, filled(k, lengths), filled(v, lengths))
    assert error(decode_attention(q, k, v, lengths, impl="triton"), expected) < TOLERANCE


def test_a_window_of_a_larger_cache_is_read_in_place(splits):
    splits(2)
    q, k, v, lengths = rows([30, 40], 4, 2, 32)
    larger_k, larger_v = (torch.full((3, 2, 90, 32), float("nan"), device=DEVICE) for _ in range(2))
    larger_k[:2, :, :45], larger_v[:2, :, :45] = k, v
    strided = torch.stack([q, q], 1)[:, 1]  # (B, H, D), rows further apart
    actual = decode_attention(
        strided, larger_k[:2, :, :45], larger_v[:2, :, :45], lengths.int(), impl="triton"
    )
    assert torch.equal(actual, decode_attention(q, k, v, lengths, impl="triton"))


def test_the_bias_of_a_whole_step_gives_the_same_as_none():
    q, k, v, lengths = rows([30, 40], 4, 2, 32)
    k, v = k.nan_to_num(), v.nan_to_num()
    assert torch.equal(
        decode_attention_torch(q, k, v, decode_bias(lengths, k)),
        decode_attention(q, k, v, lengths, impl="torch"),
    )


def test_torch_sees_each_as_one_operation_with_known_shapes():
    """`torch.compile` and checkpointing rely on it."""
    q, k, v, lengths = rows([9], 2, 1, 32)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(triton_decode.decode_attention_op, (q, k, v, lengths), test_utils=checks)


def test_the_splits_fill_the_gpu_and_are_worth_their_while():
    device = torch.device("cpu")  # counts as one multiprocessor
    assert triton_decode._splits(1, 100_000, 64, device) == triton_decode.PROGRAMS_PER_SM
    assert triton_decode._splits(100, 100_000, 64, device) == 1
    assert triton_decode._splits(1, triton_decode.MIN_KEYS_PER_SPLIT, 64, device) == 1
    assert triton_decode._splits(1, 100_000, 2, device) == 2
    assert triton_decode._splits(1, 0, 64, device) == 1


def test_what_does_not_fit_is_refused():
    q, k, v, lengths = rows([9, 8], 4, 2, 32)
    with pytest.raises(ValueError, match="impl is 'cuda'"):
        decode_attention(q, k, v, lengths, impl="cuda")
    with pytest.raises(ValueError, match="key heads must divide"):
        decode_attention(q[:, :3], k, v, lengths)
    with pytest.raises(ValueError, match="one each"):
        decode_attention(q, k, v, lengths[:1])
    with pytest.raises(ValueError, match="head sizes 32"):
        decode_attention(q[..., :16], k[..., :16], v[..., :16], lengths, impl="triton")
    with pytest.raises(ValueError, match="of one dtype"):
        decode_attention(q.half(), k, v, lengths, impl="triton")
