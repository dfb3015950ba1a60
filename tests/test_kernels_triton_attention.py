"""The Triton attention kernels against a dense float64 softmax: forward and all gradients, at ragged lengths;
interpreted without a GPU.
"""

import pytest
import torch

pytest.importorskip("triton", reason="no Triton for this platform")

from kernels import attention
from kernels.attention import attention_torch
from kernels.triton import tiles
from kernels.triton.attention import attention_op
from kernels.triton.tiles import UPCAST

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RAGGED = [1, 7, 63, 64, 65, 100, 131, 257]
# Of them those that take another way each: part of a block of 64, all of it, a row more, several blocks, of
# which the last is cut.
FEWER = [1, 63, 64, 65, 131]


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan(monkeypatch):
    """A kernel that forgets to write a row cannot pass."""
    empty = torch.empty

    def poisoned(*size, **kwargs):
        out = empty(*size, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    monkeypatch.setattr(torch, "empty", poisoned)


def starts(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int().to(DEVICE)


def definition(q, k, v, lengths, lengths_k, causal):
    """One dense softmax over all tokens, with everything masked out that a token does not see; 0 for a token
    that sees nothing.
    """
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    row_k = torch.repeat_interleave(torch.arange(len(lengths_k)), torch.tensor(lengths_k))
    seen = row[:, None] == row_k
    if causal:  # how far each token is from the end of its sequence: the last query sees the last key
        left = torch.cat([torch.arange(n).flip(0) for n in lengths])
        left_k = torch.cat([torch.arange(n).flip(0) for n in lengths_k])
        seen &= left[:, None] <= left_k
    seen = seen.to(DEVICE)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[2] ** -0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -1e30).softmax(-1) * seen, v)


def inputs(lengths, lengths_k, heads, key_heads, dim, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(lengths), heads, dim), *[(sum(lengths_k), key_heads, dim)] * 2, (sum(lengths), heads, dim)]
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def with_gradients(forward, q, k, v, mix):
    """The output and the three gradients of sum(output * mix), by name."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    out = forward(q, k, v)
    return dict(zip(("out", "dq", "dk", "dv"), (out, *torch.autograd.grad(out, (q, k, v), mix)), strict=True))


def check(lengths, heads, key_heads, dim, dtype, causal, lengths_k=None, max_seqlen=None):
    q, k, v, mix = inputs(lengths, lengths_k or lengths, heads, key_heads, dim, dtype)
    cu, cu_k = starts(lengths), None if lengths_k is None else starts(lengths_k)
    kept = [x.clone() for x in (q, k, v)]
    exact = with_gradients(
        lambda *x: definition(*x, lengths, lengths_k or lengths, causal),
        *(x.double() for x in (q, k, v, mix)),
    )
    ours = with_gradients(lambda *x: attention(*x, cu, causal, cu_k, max_seqlen, impl="triton"), q, k, v, mix)
    theirs = None
    if dtype != torch.float32:
        theirs = with_gradients(lambda *x: attention_torch(*x, cu, causal, cu_k), q, k, v, mix)
    for name, expected in exact.items():
        assert ours[name].dtype == dtype
        assert ours[name].shape == expected.shape
        error = (ours[name].double() - expected).abs().max().item()
        # float32: sums in another order. Else: each is rounded to dtype at the end and in between, and so is
        # torch's form. Triton's interpreter cuts where it casts to bfloat16, which costs up to half a unit in
        # the last place more than rounding.
        largest = expected.abs().max().item()
        cut = 2**-8 * largest if dtype == torch.bfloat16 and UPCAST else 0.0
        allowed = (
            1e-5 * largest
            if theirs is None
            else 2 * (theirs[name].double() - expected).abs().max().item() + cut
        )
        assert error <= allowed, f"{name} is off by {error:.2e}, allowed is {allowed:.2e}"
    for before, after in zip(kept, (q, k, v), strict=True):
        assert torch.equal(before, after), "an input was written to"


@pytest.mark.parametrize(
    ("heads", "key_heads", "dim", "dtype", "causal", "lengths"),
    [
        (4, 2, 32, torch.bfloat16, True, FEWER),
        (1, 1, 64, torch.float32, False, RAGGED),
        (1, 1, 80, torch.float32, False, FEWER),
        (2, 1, 80, torch.float16, True, FEWER),
        (2, 1, 64, torch.bfloat16, True, RAGGED),
        (2, 1, 128, torch.bfloat16, True, FEWER),
        (1, 1, 128, torch.float16, False, FEWER),
    ],
    ids=str,
)
def test_ragged_sequences(heads, key_heads, dim, dtype, causal, lengths):
    check(lengths, heads, key_heads, dim, dtype, causal)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize(
    ("heads", "dim", "dtype"), [(7, 128, torch.bfloat16), (8, 32, torch.float32)], ids=str
)
def test_many_query_heads_on_one_key_head(heads, dim, dtype, causal):
    check([65, 0, 1, 3, 0], heads, 1, dim, dtype, causal)


def test_keys_that_end_one_short_of_a_block():
    """The last block must be masked, though only by its last column."""
    check([1, 1, 1, 2], 1, 1, 32, torch.float32, True, lengths_k=[31, 63, 127, 64])


@pytest.mark.filterwarnings(
    "ignore:overflow encountered in exp2"
)  # by the interpreter, of what is then masked out
def test_a_windows_scores_far_below_zero_leave_its_gradients_finite():
    """Keys beyond the window's end have scores of 0 there, and exp(0 - lse) would overflow."""
    lengths = [20, 64, 1]
    q, k, v, mix = inputs(lengths, lengths, 2, 1, 80, torch.float32)
    q, k = 0.1 * q + 6, 0.1 * k - 6  # scores of about -320
    exact = with_gradients(
        lambda *x: definition(*x, lengths, lengths, False), *(x.double() for x in (q, k, v, mix))
    )
    ours = with_gradients(
        lambda *x: attention(*x, starts(lengths), False, None, 64, impl="triton"), q, k, v, mix
    )
    for name, expected in exact.items():
        # float32 holds scores of 320 to 3e-5, and so it does their exponentials, of which gradients are
        # differences.
        assert (ours[name] - expected).abs().max() <= 1e-3 * expected.abs().max(), name


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize(("dim", "dtype"), [(64, torch.float32), (128, torch.bfloat16)], ids=str)
def test_other_key_lengths(dim, dtype, causal):
    """More keys than queries, fewer (then the first queries of a causal sequence see none), none at all, and
    no queries.
    """
    check([3, 1, 7, 130, 5, 0, 140], 2, 1, dim, dtype, causal, lengths_k=[130, 64, 3, 139, 0, 5, 64])


@pytest.mark.parametrize(
    ("heads", "key_heads", "dim", "dtype"),
    [
        (2, 2, 80, torch.float32),
        (2, 2, 80, torch.bfloat16),
        (4, 2, 32, torch.float32),
        (7, 1, 128, torch.float16),
        (2, 1, 64, torch.bfloat16),
    ],
    ids=str,
)
def test_windows(heads, key_heads, dim, dtype):
    check([64, 1, 7, 0, 63, 64, 16], heads, key_heads, dim, dtype, causal=False, max_seqlen=64)


@pytest.mark.parametrize("max_seqlen", [None, 64], ids=["packed", "windows"])
def test_slices_of_a_fused_projection(max_seqlen):
    generator = torch.Generator().manual_seed(1)
    fused = torch.randn(45, 3, 2, 32, generator=generator).to(DEVICE)
    cu = starts([20, 25])
    apart = [x.contiguous() for x in fused.unbind(1)]

    def forward(q, k, v):
        return attention(q, k, v, cu, causal=False, max_seqlen=max_seqlen, impl="triton")

    q, k, v = fused.requires_grad_().unbind(1)
    out = forward(q, k, v)
    (grad,) = torch.autograd.grad(out.sum(), fused)  # the gradient of a sum has strides of 0
    expected = with_gradients(forward, *apart, torch.ones_like(apart[0]))
    assert torch.equal(out, expected["out"])
    assert torch.equal(grad, torch.stack([expected[name] for name in ("dq", "dk", "dv")], 1))


@pytest.mark.parametrize(
    ("causal", "max_seqlen"), [(True, None), (False, None), (False, 64)], ids=["causal", "full", "windows"]
)
def test_nothing_leaks_between_sequences_and_two_runs_are_equal(causal, max_seqlen):
    lengths = [5, 40, 21]
    q, k, v, mix = inputs(lengths, lengths, 2, 1, 64, torch.float32)
    poisoned = [x.clone() for x in (q, k, v, mix)]
    for x in poisoned:
        x[:5] = x[45:] = float("nan")

    def forward(q, k, v):
        return attention(q, k, v, starts(lengths), causal, max_seqlen=max_seqlen, impl="triton")

    clean, dirty = with_gradients(forward, q, k, v, mix), with_gradients(forward, *poisoned)
    for name in clean:
        assert torch.equal(clean[name][5:45], dirty[name][5:45]), name
        assert dirty[name][:5].isnan().all(), f"{name} hides a NaN"


def test_large_scores_stay_finite():
    lengths = [70, 9]
    q, k, v, mix = inputs(lengths, lengths, 1, 1, 64, torch.float32)
    ours = with_gradients(lambda *x: attention(*x, starts(lengths), impl="triton"), 300 * q, 300 * k, v, mix)
    exact = definition(300 * q.double(), 300 * k.double(), v.double(), lengths, lengths, True)
    assert all(x.isfinite().all() for x in ours.values())
    # Scores of 1e5 and more are off by 1e-2 in float32, so that a few rows with two close winners mix them
    # differently.
    assert ((ours["out"] - exact).abs().amax(-1) < 1e-2).double().mean() > 0.95


def test_no_sequences_and_no_tokens():
    for lengths in ([], [0], [0, 0]):
        q, k, v, mix = inputs(lengths, lengths, 2, 1, 32, torch.float32)
        assert all(
            x.shape[0] == 0
            for x in with_gradients(
                lambda *x, n=lengths: attention(*x, starts(n), impl="triton"), q, k, v, mix
            ).values()
        )


@pytest.mark.parametrize("window", [False, True], ids=["packed", "windows"])
def test_the_op_keeps_what_it_tells_torch(window):
    q, k, v, _ = (x.requires_grad_() for x in inputs([3, 17], [3, 17], 2, 1, 32, torch.float32))
    torch.library.opcheck(attention_op, (q, k, v, starts([3, 17]), starts([3, 17]), False, window))


def test_what_the_kernels_cannot_do_is_refused():
    q = torch.zeros(4, 2, 48, device=DEVICE)
    with pytest.raises(ValueError, match="head sizes 32, 64, 80, 128; use impl='torch'"):
        attention(q, q, q, starts([4]), impl="triton")
    q = torch.zeros(4, 2, 64, device=DEVICE)
    with pytest.raises(ValueError, match="one dtype of"):
        attention(q, q.half(), q.half(), starts([4]), impl="triton")


def test_tiles_are_those_of_the_nearest_entry(monkeypatch):
    general, causal, windows = [64, 32, 4, 2], [128, 32, 4, 2], [64, 64, 4, 3]
    table = {"dq 64": general, "dq 64 causal long": causal, "dq 64 windows": windows}
    monkeypatch.setattr(tiles, "_tables", lambda: {"sm_80": table, "sm_90": {"dq 64": windows}})
    monkeypatch.setattr(tiles, "architecture", lambda device: "sm_80")
    q, starts_of = torch.zeros(2 * tiles.LONG, 1, 64, dtype=torch.float16), torch.tensor

    def taken(q, ends, causal=True, short=False):
        tile = tiles.launch("dq", q, starts_of([0, *ends]), causal, short)
        return [tile[name] for name in ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")]

    assert taken(q, [1, 2 * tiles.LONG]) == causal
    assert taken(q, [1, 2, 2 * tiles.LONG]) == general  # too short, on average
    assert taken(q, [2 * tiles.LONG], causal=False) == general
    assert taken(q, [2 * tiles.LONG], short=True) == windows
    assert taken(q.float(), [2 * tiles.LONG]) == [64, 32, 4, 2]  # half of each, but 32
    monkeypatch.undo()
    for arch in ("sm_80", "sm_90"):
        for kernel in ("forward", "dq", "dkdv"):
            assert all(f"{kernel} {dim}" in tiles._tables()[arch] for dim in tiles.HEAD_DIMS)
