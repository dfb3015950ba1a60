"""A few rows times a matrix, the other way round: the same product, and its gradients, as float64's."""

import pytest
import torch
import torch.nn.functional as F

from kernels import pointwise
from kernels.pointwise import FEW, linear

BF16 = dict(rtol=2**-7, atol=2**-6)  # one rounding of the sum, and one of each factor's share in a gradient


def drawn(rows, inputs=96, outputs=130):
    generator = torch.Generator().manual_seed(rows)
    shapes = (rows, inputs), (outputs, inputs), (outputs,)
    x, weight, bias = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    return x, (weight / inputs**0.5).bfloat16(), bias


@pytest.fixture
def amx(monkeypatch):
    """The way that CPUs with AMX go; every CPU can."""
    monkeypatch.setattr(pointwise, "has_amx", lambda device: True)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 3, 10, FEW, FEW + 1])
def test_the_product_and_its_gradients_are_those_of_float64(amx, rows, has_bias):
    x, weight, bias = drawn(rows)
    own = [one.clone().requires_grad_() for one in (x, weight, *([bias] * has_bias))]
    exact = [one.double().requires_grad_() for one in (x, weight, *([bias] * has_bias))]
    y, expected = linear(*own), F.linear(*exact)
    assert y.is_contiguous() or not has_bias
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, **BF16)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    y.backward(upstream)
    expected.backward(upstream.double())
    for one, other in zip(own, exact, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=2**-6, atol=2**-4)


def test_a_row_alone_is_a_row_among_others(amx):
    x, weight, bias = drawn(10)
    together = linear(x, weight, bias)
    alone = torch.cat([linear(row[None], weight, bias) for row in x])
    torch.testing.assert_close(alone, together, **BF16)


def test_which_way_is_gone(monkeypatch):
    products = []

    def counted(*args):
        products.append("F.linear")
        return args[0] @ args[1].mT

    monkeypatch.setattr(pointwise.F, "linear", counted)
    x, weight, _ = drawn(4)
    monkeypatch.setattr(pointwise, "has_amx", lambda device: False)
    linear(x, weight)  # a CPU without AMX
    monkeypatch.setattr(pointwise, "has_amx", lambda device: True)
    linear(x.float(), weight.float())
    linear(torch.cat([x] * FEW), weight)
    assert len(products) == 3
    linear(x, weight)
    assert len(products) == 3
