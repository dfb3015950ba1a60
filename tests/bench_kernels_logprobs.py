"""The other half of what `python -m tests.bench_kernels` measures: log-probs over the vocabulary, their loss,
and the small operations.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from kernels import pointwise
from tests.bench_kernels_cases import Bind, Case, Inputs, largest_error, random


def logprobs_flops(rows: int, width: int, vocabulary: int, backward: bool) -> int:
    """One product of (rows, width) and (width, vocabulary); three with the gradients of both."""
    return 2 * rows * width * vocabulary * (3 if backward else 1)


def logprobs_case(row: str, rows: int, width: int, vocabulary: int, backward: bool, goal: str) -> Case:
    """Log-probs of one target a row; with `backward` their mean and its gradients, which is SFT's loss and
    costs what GRPO's does.
    """

    def make(seed: int, device: str) -> Inputs:
        hidden = random(3 * seed, device, rows, width).requires_grad_(backward)
        # logits with a deviation of 4: a few words hold most of the probability, as in a trained model
        weight = (
            random(3 * seed + 1, device, vocabulary, width).mul_(4 * width**-0.5).requires_grad_(backward)
        )
        targets = torch.randint(
            vocabulary, (rows,), generator=torch.Generator(device).manual_seed(3 * seed + 2), device=device
        )
        return {"hidden": hidden, "weight": weight, "targets": targets}

    def finish(logprobs: Tensor) -> Tensor:
        return -logprobs.mean() if backward else logprobs

    def ours(impl: str | None, x: Inputs) -> Callable[[], Tensor]:
        return lambda: finish(kernels.token_logprobs(x["hidden"], x["weight"], x["targets"], impl=impl))

    def compiled(x: Inputs) -> Callable[[], Tensor]:
        call = torch.compile(
            lambda h, w, t: -F.cross_entropy((h @ w.mT).float(), t, reduction="none"), dynamic=False
        )
        return lambda: finish(call(x["hidden"], x["weight"], x["targets"]))

    def liger(options: dict, x: Inputs) -> Callable[[], Tensor]:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as entropy

        reduction = "mean" if backward else "none"
        sign = 1 if backward else -1
        return lambda: (
            sign
            * entropy(
                input=x["hidden"], weight=x["weight"], target=x["targets"], reduction=reduction, **options
            )
        )

    def cut(x: Inputs) -> Callable[[], Tensor]:
        from cut_cross_entropy import linear_cross_entropy

        # Unfiltered: the gradients of words below its threshold, nearly all of them, are not computed
        # otherwise.
        return lambda: finish(
            -linear_cross_entropy(x["hidden"], x["weight"], x["targets"], reduction="none", filter_eps=None)
        )

    def trl(x: Inputs) -> Callable[[], Tensor]:
        from trl.trainer.utils import selective_log_softmax

        return lambda: finish(selective_log_softmax(x["hidden"] @ x["weight"].mT, x["targets"]))

    contenders: dict[str, Bind] = {
        "r1ov": partial(ours, None),
        "r1ov plain torch": partial(ours, "torch"),
        "torch.compile": compiled,
        "liger": partial(liger, {}),
        "liger, larger chunks": partial(liger, {"chunk_mem_const": 16}),
        "cut_cross_entropy": cut,
        "trl": trl,
    }
    return Case(
        group="logprobs",
        row=row,
        name=f"{'mean log-prob forward and backward' if backward else 'log-probs forward'}, "
        f"{rows} rows, {width} x {vocabulary}",
        mode="both" if backward else "forward",
        work=logprobs_flops(rows, width, vocabulary, backward),
        unit="TFLOP/s",
        goal=goal,
        make=make,
        contenders=contenders,
        proof=gradients_proof if backward else logprobs_proof,
    )


def logprobs_proof(x: Inputs, outputs: tuple[Tensor, ...]) -> float:
    """The first 64 rows."""
    expected = (
        (x["hidden"][:64].double() @ x["weight"].double().mT)
        .log_softmax(1)
        .gather(1, x["targets"][:64, None])
    )
    return largest_error([(outputs[0][:64], expected.squeeze(1))])


def gradients_proof(x: Inputs, outputs: tuple[Tensor, ...]) -> float:
    """d hidden of the first 64 rows; d weight of the first 64 words and of those rows' targets, to which
    every row contributes.
    """
    hidden, weight, targets = x["hidden"].detach(), x["weight"].detach().double(), x["targets"]
    words = torch.cat([torch.arange(64, device=targets.device), targets[:64]]).unique()
    grad_weight = torch.zeros(len(words), weight.shape[1], dtype=torch.float64, device=weight.device)
    grad_hidden = None
    for chunk, chosen in zip(
        hidden.split(512), targets.split(512), strict=True
    ):  # 512 rows of float64 logits: 0.6 GB
        chunk = chunk.double()
        slope = (chunk @ weight.mT).softmax(1)
        slope[torch.arange(len(chosen), device=chosen.device), chosen] -= 1
        slope /= len(targets)
        grad_weight += slope[:, words].mT @ chunk
        grad_hidden = slope[:64] @ weight if grad_hidden is None else grad_hidden
    return largest_error([(outputs[0][:64], grad_hidden), (outputs[1][words], grad_weight)])


def small_case(
    name: str,
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    shapes: list[tuple[int, ...]],
    moved: int,
    liger: Bind | None,
    backward: bool = False,
) -> Case:
    """A memory-bound operation as one kernel, in plain torch, and in the fused forms of others.

    Args: function: called with the inputs and `impl`. moved: bytes. backward: of one result, to all inputs.
    """
    names = [f"x{i}" for i in range(len(shapes))]

    def make(seed: int, device: str) -> Inputs:
        inputs = {
            name: random(9 * seed + i, device, *shape).requires_grad_(backward)
            for i, (name, shape) in enumerate(zip(names, shapes, strict=True))
        }
        if name.startswith("rotary"):  # the halves of cosines and sines are alike
            for angle in ("x1", "x2"):
                inputs[angle] = inputs[angle].chunk(2, -1)[0].repeat(1, 2)
        return inputs | ({"grad": random(9 * seed + 8, device, *shapes[0])} if backward else {})

    def ours(impl: str | None, x: Inputs) -> Callable[[], Tensor]:
        return lambda: function(*(x[name] for name in names), impl=impl)

    def compiled(x: Inputs) -> Callable[[], Tensor]:
        call = torch.compile(partial(function, impl="torch"), dynamic=False)
        return lambda: call(*(x[name] for name in names))

    def proof(x: Inputs, outputs: tuple[Tensor, ...]) -> float:
        leaves = [x[name].detach().double().requires_grad_(backward) for name in names]
        expected = function(*leaves, impl="torch")
        if backward:
            expected = torch.autograd.grad(expected, leaves, x["grad"].double())
        return largest_error(
            zip(outputs, expected if isinstance(expected, tuple) else (expected,), strict=True)
        )

    return Case(
        group="small",
        row="G9",
        name=f"{name}, {' '.join('x'.join(map(str, shape)) for shape in shapes)}",
        mode="backward" if backward else "forward",
        work=moved,
        unit="TB/s",
        goal="85% of a copy",
        make=make,
        contenders={
            "r1ov": partial(ours, None),
            "r1ov plain torch": partial(ours, "torch"),
            "torch.compile": compiled,
        }
        | ({"liger": liger} if liger else {}),
        proof=proof,
        is_short=not backward,
    )


def small_cases(tokens: int, width: int, inner: int, heads: int, dim: int) -> list[Case]:
    def norm(x: Tensor, weight: Tensor, impl: str | None) -> Tensor:
        return pointwise.rms_norm(x, weight, 1e-6, impl=impl)

    def norm_of_sum(x: Tensor, residual: Tensor, weight: Tensor, impl: str | None) -> tuple[Tensor, Tensor]:
        return pointwise.add_rms_norm(x, residual, weight, 1e-6, impl=impl)[::-1]

    def liger_silu(x: Inputs) -> Callable[[], Tensor]:
        from liger_kernel.transformers.functional import liger_swiglu

        return lambda: liger_swiglu(x["x0"], x["x1"])

    def liger_sum(x: Inputs) -> Callable[[], Tensor]:
        from liger_kernel.transformers.functional import liger_fused_add_rms_norm

        return lambda: liger_fused_add_rms_norm(x["x0"], x["x1"], x["x2"], 1e-6, in_place=False)

    def liger_norm(x: Inputs) -> Callable[[], Tensor]:
        from liger_kernel.transformers.functional import liger_rms_norm

        return lambda: liger_rms_norm(x["x0"], x["x1"], 1e-6, in_place=False)

    row, rows = 2 * tokens, (tokens, width)  # row: bytes of a bfloat16 column
    gates, weight, angles = [(tokens, inner)] * 2, (width,), (tokens, dim)
    turned = [(tokens, heads, dim), angles, angles]
    return [
        small_case("norm of a sum", norm_of_sum, [rows, rows, weight], (2 * row + 1) * 2 * width, liger_sum),
        small_case("norm backward", norm, [rows, weight], (3 * row + 4) * width, liger_norm, backward=True),
        small_case("rotary", pointwise.rotate, turned, row * (2 * heads * dim + 2 * dim), None),
        small_case("gate", pointwise.silu_mul, gates, row * inner * 3, liger_silu),
        small_case("gate backward", pointwise.silu_mul, gates, row * inner * 5, liger_silu, backward=True),
    ]
