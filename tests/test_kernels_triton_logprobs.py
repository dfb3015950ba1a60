"""The Triton log-probs against the definition in float64, on a GPU where there is one, else under Triton's
interpreter: values, entropies and every gradient.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from kernels import logprobs, token_logprobs
from kernels.logprobs import definition

pytest.importorskip("triton")  # there is none for macOS and Windows
from kernels.triton import logprobs as triton_logprobs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# float32 sums in another order, relative to the largest entry
TOLERANCE = 1e-5
# several tiles along rows and vocabulary, the last ones ragged
SMALL_TILES = {"forward": (4, 320), "backward": (8, 192)}


@pytest.fixture(autouse=True)
def _on_the_device():
    with torch.device(DEVICE):
        yield


@pytest.fixture(autouse=True)
def _unwritten_memory_holds_nan(monkeypatch):
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        make = getattr(owner, name)

        def poisoned(*args, _make=make, **kwargs):
            made = _make(*args, **kwargs)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        monkeypatch.setattr(owner, name, poisoned)


def inputs(rows, vocabulary, width=8, dtype=torch.float32, ignored=0.3):
    generator = torch.Generator(DEVICE).manual_seed(rows)
    hidden = torch.randn(rows, width, generator=generator).to(dtype)
    weight = torch.randn(vocabulary, width, generator=generator).to(dtype)
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < ignored] = -100
    return hidden, weight, targets


def everything(score, tensors, targets):
    """Log-probs, entropies, and the gradients of a mixture of both for each of the tensors, which must come
    back unchanged.
    """
    leaves = [x.clone().requires_grad_() for x in tensors]
    logprobs, entropy = score(*leaves)
    mix, mix_entropy = torch.linspace(0.5, 1, len(targets)), torch.linspace(-1, 1, len(targets))
    grads = torch.autograd.grad((logprobs * mix).sum() + (entropy * mix_entropy).sum(), leaves)
    for before, after in zip(tensors, leaves, strict=True):
        assert torch.equal(before, after), "an input was written to"
    return [x.double() for x in (logprobs.detach(), entropy.detach(), *grads)]


def exact(hidden, weight, targets, temperature):
    """The same from all logits at once, in float64."""

    def score(hidden, weight):
        wanted = targets != -100
        scored = definition(
            hidden @ weight.mT, targets.clamp(min=0), temperature, return_entropy=True, dtype=torch.float64
        )
        return [x.where(wanted, 0) for x in scored]

    return everything(score, (hidden.double(), weight.double()), targets)


def scored(hidden, weight, targets, temperature, impl):
    return everything(
        lambda h, w: token_logprobs(h, w, targets, temperature, True, impl), (hidden, weight), targets
    )


def assert_near(actual, expected, bounds):
    for name, ours, truth, bound in zip(
        ("logprobs", "entropy", "d hidden", "d weight"), actual, expected, bounds, strict=False
    ):
        error = (ours - truth).abs().max() / truth.abs().max()
        assert error < bound, f"{name}: off by {error:.2g} of the largest entry, allowed {bound:.2g}"


class OneTile(torch.autograd.Function):
    """The two kernels on logits (T, V) that no product could give: infinite ones, and all of a row alike."""

    @staticmethod
    def forward(ctx, logits, targets, temperature):
        state = triton_logprobs._new_state(len(targets), logits.device)
        triton_logprobs._over_rows(triton_logprobs.fold_kernel, 0, temperature, logits, targets, state)
        finished = triton_logprobs._finish(state, temperature).masked_fill(targets == -100, 0.0)
        ctx.given = 0, temperature
        ctx.save_for_backward(logits, targets, finished)
        return finished[0].clone(), finished[3].clone()

    @staticmethod
    def backward(ctx, grad, grad_entropy):
        logits, targets, finished = ctx.saved_tensors
        out = torch.empty_like(logits)
        state = torch.stack([*finished[1:4], grad, grad_entropy])
        triton_logprobs._over_rows(triton_logprobs.gradient_kernel, *ctx.given, logits, out, targets, state)
        return out, None, None


@pytest.mark.parametrize("kept", [0, 6, 19])  # none, some and all of the rows
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 7), (19, 1000), (11, 2049)])
def test_values_and_gradients_equal_the_definition(monkeypatch, rows, vocabulary, temperature, kept):
    monkeypatch.setattr(triton_logprobs, "TILES", SMALL_TILES)
    monkeypatch.setattr(triton_logprobs, "KEPT", kept * vocabulary)
    hidden, weight, targets = inputs(rows, vocabulary, ignored=0.3 if rows > 1 else 0.0)
    actual = scored(hidden, weight, targets, temperature, "triton")
    assert_near(actual, exact(hidden, weight, targets, temperature), [TOLERANCE] * 4)


def test_a_vocabulary_of_152_thousand(monkeypatch):
    monkeypatch.setattr(triton_logprobs, "TILES", {"forward": (4, 65536), "backward": (4, 4096)})
    hidden, weight, targets = inputs(5, 151_936, width=4)
    assert_near(
        scored(hidden, weight, targets, 0.7, "triton"), exact(hidden, weight, targets, 0.7), [TOLERANCE] * 4
    )


@pytest.mark.parametrize("kept", [0, 6])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_as_exact_as_the_torch_form(monkeypatch, dtype, kept):
    monkeypatch.setattr(triton_logprobs, "TILES", SMALL_TILES)
    monkeypatch.setattr(triton_logprobs, "KEPT", kept * 1000)
    hidden, weight, targets = inputs(13, 1000, dtype=dtype)
    truth = exact(hidden, weight, targets, 0.7)
    bounds = [
        2 * (ours - x).abs().max() / x.abs().max()
        for ours, x in zip(scored(hidden, weight, targets, 0.7, "torch"), truth, strict=True)
    ]
    assert_near(scored(hidden, weight, targets, 0.7, "triton"), truth, bounds)


def test_large_hidden_states_lose_nothing(monkeypatch):
    monkeypatch.setattr(triton_logprobs, "TILES", SMALL_TILES)
    hidden, weight, targets = inputs(6, 1000, width=1)
    hidden, weight = (
        torch.full_like(hidden, 1e4),
        1 + torch.round(weight * 64) / 1e4,
    )  # logits near 1e4, a few apart
    assert_near(
        scored(hidden, weight, targets, 1.0, "triton")[:2],
        exact(hidden, weight, targets, 1.0)[:2],
        [1e-3, 1e-3],
    )


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_logits_of_any_size(temperature):
    generator = torch.Generator(DEVICE).manual_seed(3)
    logits = torch.randn(9, 2049, generator=generator)
    targets = torch.randint(0, 2049, (9,), generator=generator)
    logits[1, ::2] = float("-inf")
    logits[2] += 1e4
    logits[3] -= 1e4
    logits[4, 5], targets[4] = 1e4, 5
    logits[5], logits[5, 2048], targets[5] = float("-inf"), 3.0, 2048  # one token is certain, the last
    logits[6, :2048] = float("-inf")  # nothing in the first block
    targets[1], targets[6], targets[7] = 1, 2048, -100
    wanted = targets != -100

    def truth(logits):
        scored = definition(
            logits, targets.clamp(min=0), temperature, return_entropy=True, dtype=torch.float64
        )
        return [x.where(wanted, 0) for x in scored]

    expected = everything(truth, (logits.double(),), targets)
    actual = everything(lambda x: OneTile.apply(x, targets, temperature), (logits,), targets)
    for ours, x in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, x, atol=TOLERANCE, rtol=TOLERANCE)
    assert (actual[2][7] == 0).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # numpy, of inf - inf
def test_an_impossible_target_is_minus_infinity_and_a_broken_logit_is_nan():
    logits = torch.zeros(4, 5)
    logits[0, 2], logits[1, 3], logits[2, 3] = float("-inf"), float("nan"), float("inf")
    targets = torch.tensor([2, 0, 0, 5])  # the last one is beyond the vocabulary
    values, _ = OneTile.apply(logits, targets, 1.0)
    assert values[0] == float("-inf")
    assert values[1:].isnan().all()


def test_rows_without_a_target_are_never_read():
    hidden, weight, targets = inputs(9, 100)
    expected = scored(hidden, weight, targets, 1.0, "triton")
    hidden[targets == -100] = float("nan")
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    logprobs, entropy = token_logprobs(*leaves, targets, return_entropy=True, impl="triton")
    assert torch.equal(logprobs.double(), expected[0])
    assert torch.equal(entropy.double(), expected[1])
    grad_hidden, grad_weight = torch.autograd.grad(logprobs.sum(), leaves)
    assert (grad_hidden[targets == -100] == 0).all()
    assert grad_weight.isfinite().all()


@pytest.mark.parametrize("rows", [0, 3])
def test_no_target_at_all(rows):
    hidden, weight = (torch.randn(n, 4, requires_grad=True) for n in (rows, 10))
    targets = torch.full((rows,), -100)
    logprobs, entropy = token_logprobs(hidden, weight, targets, return_entropy=True, impl="triton")
    assert (logprobs == 0).all()
    assert (entropy == 0).all()
    for grad in torch.autograd.grad((logprobs + entropy).sum(), (hidden, weight)):
        assert (grad == 0).all()


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_either_side_may_be_frozen(frozen):
    hidden, weight, targets = inputs(9, 100)
    expected = scored(hidden, weight, targets, 1.0, "triton")
    leaf = (weight if frozen == "hidden" else hidden).requires_grad_()
    logprobs, entropy = token_logprobs(hidden, weight, targets, return_entropy=True, impl="triton")
    loss = (logprobs * torch.linspace(0.5, 1, 9)).sum() + (entropy * torch.linspace(-1, 1, 9)).sum()
    (grad,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(grad.double(), expected[3 if frozen == "hidden" else 2])


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_hits_are_the_targets_that_are_likeliest(monkeypatch, impl):
    monkeypatch.setattr(logprobs, "CHUNK", 4 * 150)
    monkeypatch.setattr(triton_logprobs, "TILES", {"forward": (4, 64), "backward": (8, 64)})
    hidden, weight, targets = inputs(19, 150)
    first = (hidden @ weight.mT).argmax(1)
    targets[::2] = first[::2].where(targets[::2] != -100, -100)
    plain = token_logprobs(hidden, weight, targets, 0.7, impl=impl)
    values, hits = token_logprobs(hidden, weight.requires_grad_(), targets, 0.7, impl=impl, return_hits=True)
    assert torch.equal(hits, (first == targets).float())
    assert 0 < hits.sum() < (targets != -100).sum()
    assert torch.equal(values.detach(), plain)
    assert not hits.requires_grad
    assert len(token_logprobs(hidden, weight, targets, 0.7, True, impl, True)) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_products_are_summed_in_float32(dtype):
    """On a GPU by a product that widens as it sums, elsewhere by one of widened factors. A sum rounded to 16
    bits would be off by a thousandth.
    """
    generator = torch.Generator(DEVICE).manual_seed(5)
    a, b, c, d = torch.randn(4, 48, 48, generator=generator).to(dtype).unbind()
    out = torch.empty(48, 40, dtype=torch.float32)  # holds nan
    triton_logprobs._accumulate(out, a, b.mT[:, :40], first=True)
    triton_logprobs._accumulate(out, c, d[:, :40], first=False)
    expected = a.double() @ b.double().mT[:, :40] + c.double() @ d.double()[:, :40]
    assert (out - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: targets on the host, rows on the device")
def test_targets_may_stay_on_the_host():
    hidden, weight, targets = inputs(19, 1000, dtype=torch.bfloat16)
    expected = scored(hidden, weight, targets, 0.7, "triton")
    on_host = targets.cpu()

    def score(h, w):
        return token_logprobs(h, w, on_host, 0.7, True, "triton")

    for ours, theirs in zip(everything(score, (hidden, weight), targets), expected, strict=True):
        assert torch.equal(ours, theirs)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor of floats that any operation gives."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize("kept", [0, 10])
def test_no_more_logits_are_held_than_may_be(monkeypatch, kept):
    monkeypatch.setattr(triton_logprobs, "TILES", {"forward": (8, 192), "backward": (8, 192)})
    hidden, weight, targets = inputs(24, 1000, width=2, ignored=0.0)
    with Largest() as forward:
        results, logits = triton_logprobs.forward(hidden, weight, targets, 1.0, kept)
    state = torch.cat([results[1:], torch.ones(2, 24)])
    with Largest() as backward:
        triton_logprobs.backward(hidden, weight, targets, state, logits, 1.0, True, True)
    assert forward.numel == (kept * 1000 or 8 * 192)  # or a tile; all logits would be 24,000
    # the weight's gradient, or a view of eight rows that were kept
    assert backward.numel == max(weight.numel(), min(kept, 8) * 1000)
    with torch.no_grad(), Largest() as scoring:
        token_logprobs(hidden.requires_grad_(), weight, targets, impl="triton")
    assert scoring.numel == 5 * 24  # five numbers a row, and no logits, where no gradient can be asked for
    total = token_logprobs(hidden, weight, targets, impl="triton").sum()
    with Largest() as whole:
        total.backward()
    assert whole.numel == 5 * 24  # five numbers a row; no zeros as a gradient of the logits that were kept


def products(monkeypatch, kept):
    """Products of (R, C) and (V, C), of R of 24 rows that have a target, `kept` of which may stay: with
    gradients for both, for hidden states alone, and without.
    """
    hidden, weight, targets = inputs(24, 1000, ignored=0.5)
    monkeypatch.setattr(triton_logprobs, "KEPT", kept * 1000)
    multiply, accumulate, done = torch.mm, triton_logprobs._accumulate, []

    def count(call, a, b, *arguments, **options):
        done.append(len(a) * a.shape[1] * b.shape[1])
        return call(*arguments, a, b, **options)

    monkeypatch.setattr(torch, "mm", lambda a, b, **options: count(multiply, a, b, **options))
    monkeypatch.setattr(
        triton_logprobs, "_accumulate", lambda out, a, b, first: count(accumulate, a, b, out, first=first)
    )
    found = []
    for learning in ((hidden, weight), (hidden,), ()):
        done.clear()
        hidden.requires_grad_(False), weight.requires_grad_(False)
        for x in learning:
            x.requires_grad_()
        total = token_logprobs(hidden, weight, targets, impl="triton").sum()
        if learning:
            total.backward()
        found.append(sum(done) / (int((targets != -100).sum()) * 1000 * 8))
    return found


def test_a_loss_takes_three_products_where_the_logits_were_kept(monkeypatch):
    monkeypatch.setattr(triton_logprobs, "TILES", SMALL_TILES)
    assert products(monkeypatch, kept=24) == [3, 2, 1]
    assert products(monkeypatch, kept=0) == [4, 3, 1]


@pytest.mark.parametrize("kept", [0, 5])
def test_torch_library_accepts_the_operator(kept):
    hidden, weight, targets = inputs(5, 33, ignored=0.0)
    tensors = hidden.requires_grad_(), weight.requires_grad_()
    torch.library.opcheck(triton_logprobs.token_logprobs, (*tensors, targets, 0.7, kept))


def test_checkpointing_changes_nothing():
    hidden, weight, targets = inputs(9, 100)
    expected = scored(hidden, weight, targets, 0.7, "triton")

    def score(hidden, weight):
        return checkpoint(token_logprobs, hidden, weight, targets, 0.7, True, "triton", use_reentrant=False)

    for ours, theirs in zip(everything(score, (hidden, weight), targets), expected, strict=True):
        assert torch.equal(ours, theirs)
