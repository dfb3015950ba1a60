"""What `python -m tests.bench_kernels` measures: the workloads, who runs them, how much work they are, and
their proof in float64.

Sizes are Qwen2.5-VL-7B's: 28 query and 4 key heads of 128, vision heads 16 of 80, windows of 64 patches,
vocabulary 152,064. A contender is a function from a case's inputs to a call without arguments: what it
prepares in between (layouts, masks) is not timed.
Random data throughout, never zeros: a GPU multiplies zeros faster.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from kernels.attention import decode_attention_torch, decode_bias

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Inputs = dict[str, Tensor]
Bind = Callable[[Inputs], Callable[[], Tensor | tuple[Tensor, ...]]]
# Packages that some contenders need: name -> (module, distribution)
PEERS = {
    "fa3_fwd": ("fa3_fwd_interface", "fa3-fwd"),
    "liger": ("liger_kernel", "liger-kernel"),
    "cut_cross_entropy": ("cut_cross_entropy", "cut-cross-entropy"),
    "trl": ("trl", "trl"),
}
LOOP = "sdpa in a loop, as transformers"
# bfloat16 keeps 8 bits: single roundings are 2^-9 of a value, and a sum of many is allowed some ten of them,
# relative to the largest value
TOLERANCE = 2e-2


@dataclass(frozen=True, kw_only=True)
class Case:
    """One workload.

    Attributes:
        group: what --only selects. row: its number on the scorecard. mode: what is timed; "both" is forward
            and backward.
        work, unit: floating-point operations ("TFLOP/s") or bytes that must move ("TB/s") in one call,
            whoever makes it.
        make: a seed and a device to fresh inputs. Those that require gradients are the leaves; "grad" is the
            output's gradient.
        contenders: name -> Bind. Names that begin with "r1ov" are ours, the first is the one that is
            compared; the others begin with the name of the package they need, if it is one of PEERS.
        proof: inputs and outputs (or gradients) to the largest error relative to the largest value, against
            float64, on a slice.
        is_short: so short that it is replayed as a CUDA graph, without the time that the host takes to launch
            it.
        host_bound: contenders that are not, because they read lengths on the host or because the host's time
            is what counts.
    """

    group: str
    row: str
    name: str
    mode: Literal["forward", "backward", "both"]
    work: float
    unit: Literal["TFLOP/s", "TB/s"]
    goal: str
    make: Callable[[int, str], Inputs]
    contenders: dict[str, Bind]
    proof: Callable[[Inputs, tuple[Tensor, ...]], float]
    is_short: bool = False
    host_bound: tuple[str, ...] = ()


def random(seed: int, device: str, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=device, dtype=dtype)


def largest_error(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The largest difference of any pair (ours, float64), each relative to the largest float64 value of its
    pair.
    """
    errors = [(actual.double() - expected).abs().max() / expected.abs().max() for actual, expected in pairs]
    return torch.stack(errors).max().item()  # torch's max, and not Python's: it keeps a NaN


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


# Packed attention


def attention_flops(lengths: list[int], heads: int, dim: int, causal: bool) -> int:
    """Of the forward: two products over each pair of query and key that see each other. The backward's five
    products are 2.5 times that.
    """
    return 4 * heads * dim * sum(n * (n + 1) // 2 if causal else n * n for n in lengths)


def attention_bytes(tokens: int, heads: int, key_heads: int, dim: int, backward: bool) -> int:
    """bfloat16: q, k, v in and out once; the backward reads those and the output's gradient, and writes three
    gradients.
    """
    return 2 * tokens * dim * (4 * heads + 4 * key_heads if backward else 2 * heads + 2 * key_heads)


def attention_case(
    row: str,
    lengths: list[int],
    heads: int,
    key_heads: int,
    dim: int,
    causal: bool,
    mode: str,
    goal: str,
    unit: str = "TFLOP/s",
) -> Case:
    tokens, backward = sum(lengths), mode == "backward"

    def make(seed: int, device: str) -> Inputs:
        q, k, v, grad = (
            random(4 * seed + i, device, tokens, n, dim)
            for i, n in enumerate((heads, key_heads, key_heads, heads))
        )
        starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        inputs = {name: x.requires_grad_(backward) for name, x in {"q": q, "k": k, "v": v}.items()} | {
            "cu_seqlens": starts
        }
        return inputs | ({"grad": grad} if backward else {})

    flops = attention_flops(lengths, heads, dim, causal) * (2.5 if backward else 1)
    kinds = (
        f"{len(lengths)} x {lengths[0]}"
        if len(set(lengths)) == 1
        else f"{len(lengths)} of {min(lengths)}-{max(lengths)}"
    )
    return Case(
        group="attention",
        row=row,
        name=f"attention {mode}, {'causal' if causal else 'full'}, heads {heads}/{key_heads} of {dim}, "
        f"{kinds} tokens",
        mode=mode,
        work=flops if unit == "TFLOP/s" else attention_bytes(tokens, heads, key_heads, dim, backward),
        unit=unit,
        goal=goal,
        make=make,
        contenders=attention_contenders(lengths, causal, backward),
        proof=partial(attention_proof, lengths=lengths, causal=causal),
        is_short=unit == "TB/s" and not backward,
        host_bound=("r1ov plain torch", LOOP),
    )


def attention_contenders(lengths: list[int], causal: bool, backward: bool) -> dict[str, Bind]:
    longest = max(lengths)

    def ours(impl: str | None, x: Inputs) -> Callable[[], Tensor]:
        return lambda: kernels.attention(
            x["q"], x["k"], x["v"], x["cu_seqlens"], causal, max_seqlen=longest, impl=impl
        )

    def varlen(x: Inputs) -> Callable[[], Tensor]:
        from torch.nn.attention.varlen import varlen_attn

        options = {} if x["q"].shape[1] == x["k"].shape[1] else {"enable_gqa": True}
        window = (-1, 0) if causal else (-1, -1)
        starts = x["cu_seqlens"]
        return lambda: varlen_attn(
            x["q"], x["k"], x["v"], starts, starts, longest, longest, window_size=window, **options
        )

    @lru_cache(
        maxsize=1
    )  # one for all sets of inputs: torch.compile would compile again for each, and give up
    def document_mask(device: torch.device) -> "BlockMask":
        from torch.nn.attention.flex_attention import create_block_mask

        document = torch.repeat_interleave(torch.tensor(lengths, device=device))  # (T,)

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            same = document[i] == document[j]
            return same & (i >= j) if causal else same

        return create_block_mask(visible, None, None, len(document), len(document), device=device)

    def flex(options: dict, x: Inputs) -> Callable[[], Tensor]:
        mask = document_mask(x["q"].device)

        def call() -> Tensor:
            q, k, v = (x[name].transpose(0, 1)[None] for name in "qkv")
            return _compiled_flex()(
                q, k, v, block_mask=mask, enable_gqa=True, kernel_options=options
            ).transpose(1, 2)

        return call

    def sdpa(backend: str, x: Inputs) -> Callable[[], Tensor]:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def call() -> Tensor:
            q, k, v = (x[name].unflatten(0, (len(lengths), longest)).transpose(1, 2) for name in "qkv")
            with sdpa_kernel(SDPBackend[backend]):
                return F.scaled_dot_product_attention(
                    q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
                ).transpose(1, 2)

        return call

    def loop(x: Inputs) -> Callable[[], Tensor]:
        def call() -> Tensor:
            parts = zip(*(x[name].split(lengths) for name in "qkv"), strict=True)
            done = [
                F.scaled_dot_product_attention(*(y.transpose(0, 1)[None] for y in part))[0].transpose(0, 1)
                for part in parts
            ]
            return torch.cat(done)

        return call

    def fa3(x: Inputs) -> Callable[[], Tensor]:
        from fa3_fwd_interface import flash_attn_varlen_func

        starts = x["cu_seqlens"]
        return lambda: _first(
            flash_attn_varlen_func(x["q"], x["k"], x["v"], starts, starts, longest, longest, causal=causal)
        )

    contenders: dict[str, Bind] = {
        "r1ov": partial(ours, None),
        "r1ov plain torch": partial(ours, "torch"),
        "varlen_attn": varlen,
        "flex_attention": partial(flex, {}),
        "flex_attention TMA": partial(flex, {"USE_TMA": True}),
    }
    if not backward:
        contenders["fa3_fwd"] = fa3
    if len(set(lengths)) == 1:
        contenders |= {
            "sdpa cuDNN": partial(sdpa, "CUDNN_ATTENTION"),
            "sdpa flash": partial(sdpa, "FLASH_ATTENTION"),
        }
    if longest <= 64:
        contenders[LOOP] = loop
    return contenders


def _first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Some versions return the sums beside the output."""
    return out[0] if isinstance(out, tuple) else out


def attention_proof(x: Inputs, outputs: tuple[Tensor, ...], lengths: list[int], causal: bool) -> float:
    """The first sequence with the first key head and the last with the last, with all their query heads."""
    ratio = x["q"].shape[1] // x["k"].shape[1]

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for sequence, key_head in ((0, 0), (len(lengths) - 1, x["k"].shape[1] - 1)):
            begin = sum(lengths[:sequence])
            rows, heads = (
                slice(begin, begin + lengths[sequence]),
                range(key_head * ratio, (key_head + 1) * ratio),
            )
            k, v = (x[name][rows, key_head].detach().double().requires_grad_() for name in "kv")
            for head in heads:  # one at a time: the scores of 16k tokens in float64 take 2 GB
                q = x["q"][rows, head].detach().double().requires_grad_()
                scores = q @ k.T * q.shape[1] ** -0.5
                if causal:
                    hidden = torch.ones(scores.shape, dtype=torch.bool, device=q.device).triu(1)
                    scores = scores.masked_fill(hidden, float("-inf"))
                expected = scores.softmax(-1) @ v
                if "grad" not in x:
                    yield outputs[0].reshape(x["q"].shape)[rows, head], expected.detach()
                    continue
                expected.backward(x["grad"][rows, head].double())
                yield outputs[0][rows, head], q.grad
            if "grad" in x:
                yield outputs[1][rows, key_head], k.grad
                yield outputs[2][rows, key_head], v.grad

    return largest_error(pairs())


# Decoding


def decode_bytes(keys: int, rows: int, heads: int, key_heads: int, dim: int) -> int:
    """bfloat16: `keys` cached positions in all, keys and values, read once; a query read and an output
    written a row.
    """
    return 2 * (2 * keys * key_heads * dim + 2 * rows * heads * dim)


def decode_case(row: str, rows: int, context: int, goal: str) -> Case:
    """`context` cached positions a row."""
    heads, key_heads, dim = 28, 4, 128

    def make(seed: int, device: str) -> Inputs:
        q = random(5 * seed, device, rows, heads, dim)
        k, v = (random(5 * seed + i, device, rows, key_heads, context, dim) for i in (1, 2))
        return {"q": q, "k": k, "v": v, "lengths": torch.full((rows,), context, device=device)}

    def ours(impl: str | None, x: Inputs) -> Callable[[], Tensor]:
        if impl == "torch":
            bias = decode_bias(x["lengths"], x["k"])
            return lambda: decode_attention_torch(x["q"], x["k"], x["v"], bias)
        return lambda: kernels.decode_attention(x["q"], x["k"], x["v"], x["lengths"], impl)

    def sdpa(x: Inputs) -> Callable[[], Tensor]:
        # all rows are full, so that it needs no mask
        return lambda: F.scaled_dot_product_attention(x["q"][:, :, None], x["k"], x["v"], enable_gqa=True)

    def flex(x: Inputs) -> Callable[[], Tensor]:
        return lambda: _compiled_flex()(x["q"][:, :, None], x["k"], x["v"], enable_gqa=True)

    def fa3(x: Inputs) -> Callable[[], Tensor]:
        from fa3_fwd_interface import flash_attn_with_kvcache

        k, v = (x[name].transpose(1, 2).contiguous() for name in "kv")
        lengths = x["lengths"].int()
        return lambda: _first(flash_attn_with_kvcache(x["q"][:, None], k, v, cache_seqlens=lengths))

    def proof(x: Inputs, outputs: tuple[Tensor, ...]) -> float:
        k, v = (x[name][[0, -1]].double() for name in "kv")
        k, v = (y.repeat_interleave(heads // key_heads, 1) for y in (k, v))  # (2, H, S, D)
        weights = (k @ x["q"][[0, -1], :, :, None].double() * dim**-0.5).softmax(2)  # (2, H, S, 1)
        return largest_error([(outputs[0].reshape(rows, heads, dim)[[0, -1]], (weights * v).sum(2))])

    return Case(
        group="decode",
        row=row,
        name=f"decode attention, {rows} rows of {context}",
        mode="forward",
        work=decode_bytes(rows * context, rows, heads, key_heads, dim),
        unit="TB/s",
        goal=goal,
        make=make,
        contenders={
            "r1ov": partial(ours, None),
            "r1ov plain torch": partial(ours, "torch"),
            "sdpa": sdpa,
            "flex_attention": flex,
            "fa3_fwd kvcache": fa3,
        },
        proof=proof,
        is_short=True,
    )
