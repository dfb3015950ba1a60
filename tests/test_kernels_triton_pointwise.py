"""The small operations in Triton beside their definitions in float64: values and all gradients, at ragged
sizes; interpreted without a GPU.
"""

import pytest
import torch

import kernels
from kernels import pointwise

pytest.importorskip("triton", reason="no Triton for this platform")
from kernels.triton import pointwise as triton_pointwise
from kernels.triton.tiles import UPCAST
from r1ov.model.rope import text_angles, vision_angles

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = 1e-5  # float32 sums in another order, relative to the largest entry
# Two roundings, of a sum and of what is made of it. The interpreter cuts off what a GPU rounds to bfloat16.
ROUNDINGS = {torch.float16: 2**-10, torch.bfloat16: 2**-6 if UPCAST else 2**-7}


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan(monkeypatch):
    """A kernel that forgets to write a number cannot pass."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        make = getattr(owner, name)

        def poisoned(*args, _make=make, **kwargs):
            made = _make(*args, **kwargs)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        monkeypatch.setattr(owner, name, poisoned)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def angles(tokens, dim, is_vision):
    """cos and sin, the language model's or the vision encoder's."""
    places = torch.arange(tokens)
    if is_vision:
        return vision_angles(torch.stack((places % 7, places // 7), 1), dim)
    sections = (dim // 2 - 2 * (dim // 6), dim // 6, dim // 6)
    return text_angles(torch.stack((places, places % 5, places // 3)), dim, 1e6, sections)


def everything(function, leaves, others, dtype, impl):
    """The results, and the gradients of a mixture of them for each of the leaves, in float64."""
    leaves = [x.to(DEVICE, dtype).requires_grad_() for x in leaves]
    others = [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in others]
    if dtype == torch.float64:
        others = [x.double() if isinstance(x, torch.Tensor) else x for x in others]
    results = function(*leaves, *others, impl=impl)
    results = results if isinstance(results, tuple) else (results,)
    mixed = sum((x.double() * draw(*x.shape, seed=i).to(x)).sum() for i, x in enumerate(results))
    grads = torch.autograd.grad(mixed, leaves)
    assert all(x.dtype == dtype for x in (*results, *grads))
    return [x.detach().double() for x in (*results, *grads)]


def errors(actual, expected):
    return [
        (a - b).abs().max() / b.abs().max() if b.numel() else (a - b).sum()
        for a, b in zip(actual, expected, strict=True)
    ]


def exact_norm(monkeypatch):
    """The definitions take float32 statistics; in float64 nothing is rounded to float32."""
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)


def norm_inputs(tokens, width):
    return [5 * draw(tokens, width), draw(tokens, width, seed=1), 1 + 0.3 * draw(width)]


CASES = {
    **{
        f"norm {tokens}x{width}": ("rms_norm", norm_inputs(tokens, width)[::2], [0.1])
        for tokens, width in ((1, 64), (37, 100), (5, 2048), (3, 2500), (1100, 32))
    },
    **{
        f"norm of a sum {tokens}x{width}": ("add_rms_norm", norm_inputs(tokens, width), [0.1])
        for tokens, width in ((1, 64), (37, 100), (3, 2500), (1100, 32))
    },
    **{
        f"turn {tokens}x{heads}x{dim}": ("rotate", [draw(tokens, heads, dim)], angles(tokens, dim, vision))
        for tokens, heads, dim, vision in ((1, 1, 32, False), (35, 7, 128, False), (23, 3, 80, True))
    },
    **{
        f"gate {' '.join(map(str, shape))}": ("silu_mul", [4 * draw(*shape), draw(*shape, seed=1)], [])
        for shape in ((1, 1), (37, 100), (3, 2731))
    },
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda x: str(x)[6:])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_the_definition(case, dtype, monkeypatch):
    monkeypatch.setattr(triton_pointwise, "PARTS", 2)  # programs, each with rows again and again
    name, leaves, others = CASES[case]
    function = getattr(pointwise, name)
    leaves = [x.to(dtype) for x in leaves]
    if name == "rotate" and "128" in case:  # the language model's angles are rounded, the encoder's are not
        others = [x.to(dtype) for x in others]
    actual = everything(function, leaves, others, dtype, "triton")
    plain = everything(function, leaves, others, dtype, "torch")
    with monkeypatch.context() as patch:
        exact_norm(patch)
        truth = everything(function, leaves, others, torch.float64, "torch")
    # Twice the error of torch's own, or the roundings, where that happens to be exact.
    least = ROUNDINGS.get(dtype, TOLERANCE)
    bounds = [least if dtype == torch.float32 else max(2 * x, least) for x in errors(plain, truth)]
    found = errors(actual, truth)
    assert all(error <= bound for error, bound in zip(found, bounds, strict=True)), (found, bounds)


def test_slices_are_read_where_they_lie():
    """Queries and keys are thirds of one product; what is wider than it is long comes transposed."""
    fused = draw(35, 3, 2, 32).to(DEVICE)
    others = [x.to(DEVICE) for x in angles(35, 32, False)]
    for x in fused.unbind(1):
        assert torch.equal(
            pointwise.rotate(x, *others, impl="triton"),
            pointwise.rotate(x.contiguous(), *others, impl="triton"),
        )
    x, weight = draw(40, 35).to(DEVICE), draw(40).to(DEVICE)
    assert torch.equal(
        pointwise.rms_norm(x.mT, weight, 1e-6, impl="triton"),
        pointwise.rms_norm(x.mT.contiguous(), weight, 1e-6, impl="triton"),
    )
    gate, up = draw(7, 90).to(DEVICE).chunk(2, dim=1)
    expected = pointwise.silu_mul(gate.contiguous(), up.contiguous(), impl="triton")
    assert torch.equal(pointwise.silu_mul(gate, up, impl="triton"), expected)


def test_gradients_pass_through_slices_and_a_sum_that_nobody_uses():
    x, y, weight = (z.to(DEVICE).requires_grad_() for z in norm_inputs(9, 64))
    for wanted in (slice(1), slice(1, 2), slice(2)):  # the sum alone, the norm alone, both
        grads = [
            torch.autograd.grad(
                sum(
                    z[2:5].square().sum()
                    for z in pointwise.add_rms_norm(x, y, weight, 1e-6, impl=impl)[wanted]
                ),
                (x, y),
            )
            for impl in kernels.IMPLEMENTATIONS
        ]
        for ours, expected in zip(*grads, strict=True):
            assert (ours - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_no_tokens_at_all():
    for name, leaves, others in (CASES["norm of a sum 37x100"], CASES["turn 35x7x128"], CASES["gate 37 100"]):
        leaves = [x if x.dim() == 1 else x[:0] for x in leaves]
        others = [x[:0] if isinstance(x, torch.Tensor) else x for x in others]
        results = everything(getattr(pointwise, name), leaves, others, torch.float32, "triton")
        assert all((x == 0).all() for x in results)  # d weight is all that has any numbers


def test_one_dtype_is_asked_for():
    with pytest.raises(ValueError, match=r"x is .*float16, weight .*float32"):
        pointwise.rms_norm(draw(3, 8).half(), draw(8), 1e-6, impl="triton")
    with pytest.raises(ValueError, match="impl is 'cuda'"):
        pointwise.silu_mul(draw(3), draw(3), impl="cuda")


def test_torch_library_accepts_the_operators():
    x, y, weight = (z.to(DEVICE).requires_grad_() for z in norm_inputs(5, 33))
    cos, sin = (z.to(DEVICE) for z in angles(5, 32, False))
    heads = draw(5, 3, 32).to(DEVICE).requires_grad_()
    torch.library.opcheck(triton_pointwise.norm, (x, y, weight, 1e-6))
    torch.library.opcheck(triton_pointwise.norm, (x, None, weight, 1e-6))
    torch.library.opcheck(triton_pointwise.turn, (heads, cos, sin, 1.0))
    torch.library.opcheck(triton_pointwise.silu_mul, (x, y))
