"""Triton side of kernels.logprobs: the (T, V) logits come and go one tile at a time; where gradients will be
taken, as many as KEPT stay.

Forward. A tile of logits, some rows by some of the vocabulary, comes from torch.matmul into a small reused
buffer, and `fold_kernel` folds it into four running numbers a row (the online softmax of Milakov &
Gimelshein, arXiv 1805.02867): the peak logit x_max so far, the sum of e^((x - x_max)/t), the same sum
weighted by (x - x_max)/t, which the entropy needs, and the target's logit. From these

    log p(target) = (x_target - x_max)/t - log sum        entropy = log sum - weighted / sum

Backward. A tile that was not kept is computed again. It becomes d logits, g and h being the gradients of
log-prob and entropy H:

    d x_j = (g (1[j = target] - p_j) - h p_j (log p_j + H)) / t

whose products with weight and hidden are its shares of d hidden and d weight: three matmuls in all, four for
rows that were not kept, whatever function of log-probs and entropies follows. The vocabulary is the outer
loop, so that each row of d weight is finished, in float32, before it is rounded once; d hidden is summed up
in float32 likewise.

Logits are rounded to the inputs' dtype, as by a linear layer, all else is float32. Differences are taken
before they are scaled: logits of 1e4 lose nothing. -inf counts as probability 0. A target beyond the
vocabulary gives nan.

Memory beyond inputs, outputs and gradients: what is kept, one tile (34 MB forward, 67 MB backward in bf16),
the rows that have a target, and in the backward R*C floats of d hidden and 4096*C of d weight. Gradients made
in the forward instead, a chunk of rows at a time, would hold the chunk's logits and d weight in float32 at
the same moment, which is no less for a chunk that is worth it.

Shape letters: T rows, C hidden size, V vocabulary, R rows that have a target.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.tiles import load

IGNORED = tl.constexpr(-100)
# A tile's rows and columns of logits. The forward's stays in a 50 MB cache between matmul and fold. The
# backward's has more rows: with as many as a batch has, a tile of d weight is summed up by one product.
TILES = {"forward": (2048, 8192), "backward": (8192, 4096)}
# Logits that stay from the forward to the backward, 2.7 GB in bf16: those of a pack of 8,192 tokens at 152
# thousand words. Recomputed layers take as much when their turn comes.
KEPT = 5 * 2**28
CONFIG = {"BLOCK_R": 2, "BLOCK_V": 2048, "num_warps": 8, "num_stages": 2}
LOWEST = tl.constexpr(-1e20)  # stands for -inf where 0 * inf would give nan


@triton.jit
def fold_kernel(
    logits,  # (num_rows, num_columns): columns first_column ... of the vocabulary
    targets,  # (num_rows,)
    state,  # (4, num_rows) float32: peak, sum, weighted sum, target's logit; updated in place
    num_rows,
    num_columns,
    row_stride,
    state_stride,
    first_column,
    inverse_temperature,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Each program: BLOCK_R rows, all columns of the tile. Rows without a target are neither read nor
    written.
    """
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    target = tl.load(targets + rows, mask=rows < num_rows, other=IGNORED)
    wanted = target != IGNORED
    logits += rows.to(tl.int64)[:, None] * row_stride  # (BLOCK_R, 1)
    state += rows

    peak = load(state, wanted)
    total = load(state + state_stride, wanted)
    weighted = load(state + 2 * state_stride, wanted)
    for start in range(0, num_columns, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)[None, :]
        x = tl.load(logits + columns, mask=wanted[:, None] & (columns < num_columns), other=-float("inf")).to(
            tl.float32
        )
        new_peak = tl.maximum(peak, tl.max(x, 1))
        shift = (peak - new_peak) * inverse_temperature
        distance = (x - new_peak[:, None]) * inverse_temperature
        # `where`, not `maximum`: a nan among the logits has to come out as one
        distance = tl.where(distance < LOWEST, LOWEST, distance)
        p = tl.exp(distance)
        weighted = tl.exp(shift) * (weighted + total * shift) + tl.sum(p * distance, 1)
        total = tl.exp(shift) * total + tl.sum(p, 1)
        peak = new_peak
    tl.store(state, peak, mask=wanted)
    tl.store(state + state_stride, total, mask=wanted)
    tl.store(state + 2 * state_stride, weighted, mask=wanted)

    column = (target - first_column)[:, None]
    here = wanted[:, None] & (column >= 0) & (column < num_columns)
    tl.store(state[:, None] + 3 * state_stride, load(logits + column, here), mask=here)


@triton.jit
def gradient_kernel(
    logits,  # (num_rows, num_columns): columns first_column ... of the vocabulary
    grad_logits,  # the same shape; may be `logits` itself
    targets,  # (num_rows,)
    state,  # (5, num_rows) float32: peak, log sum, entropy, gradient of the log-prob, gradient of the entropy
    num_rows,
    num_columns,
    row_stride,
    grad_stride,
    state_stride,
    first_column,
    inverse_temperature,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Each program: BLOCK_R rows, all columns of the tile. Rows without a target are not read and get 0."""
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]  # (BLOCK_R, 1)
    inside = rows < num_rows
    target = tl.load(targets + rows, mask=inside, other=IGNORED)
    wanted = target != IGNORED
    logits += rows.to(tl.int64) * row_stride
    grad_logits += rows.to(tl.int64) * grad_stride
    state += rows

    peak = load(state, wanted)
    log_sum = load(state + state_stride, wanted)
    entropy = load(state + 2 * state_stride, wanted)
    g = load(state + 3 * state_stride, wanted) * inverse_temperature
    h = load(state + 4 * state_stride, wanted) * inverse_temperature
    for start in range(0, num_columns, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)[None, :]
        real = columns < num_columns
        x = tl.load(logits + columns, mask=wanted & real, other=-float("inf")).to(tl.float32)
        logp = (x - peak) * inverse_temperature - log_sum
        logp = tl.where(logp < LOWEST, LOWEST, logp)
        grad = tl.where(columns == target - first_column, g, 0.0) - tl.exp(logp) * (g + h * (logp + entropy))
        tl.store(grad_logits + columns, grad.to(grad_logits.dtype.element_ty), mask=inside & real)


def _over_rows(kernel: Any, first_column: int, temperature: float, *tensors: Tensor) -> None:
    """Runs a kernel, in place, on the rows of a tile (R, columns), the first of the tensors."""
    rows, columns = tensors[0].shape
    strides = (x.stride(0) for x in tensors if x.ndim == 2)
    grid = (triton.cdiv(rows, CONFIG["BLOCK_R"]),)
    kernel[grid](*tensors, rows, columns, *strides, first_column, 1 / temperature, **CONFIG)


def _new_state(rows: int, device: torch.device) -> Tensor:
    """(4, rows) float32: nothing folded yet; a target that no tile holds stays nan."""
    state = torch.zeros(4, rows, device=device)
    state[0], state[3] = LOWEST.value, float("nan")
    return state


def _finish(state: Tensor, temperature: float) -> Tensor:
    """(4, R) as folded -> (5, R): log-prob, peak, log sum, entropy, and 1 where the target's is the peak."""
    peak, total, weighted, chosen = state
    log_sum = total.log()
    logprob, hit = (chosen - peak) / temperature - log_sum, (chosen == peak).float()
    return torch.stack([logprob, peak, log_sum, log_sum - weighted / total, hit])


def _trained(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) the rows of hidden states that have a target, and (R,) these; both where the states are."""
    rows = (targets != IGNORED.value).nonzero().squeeze(1)
    return tuple(one.to(hidden.device, non_blocking=True) for one in (rows, targets[rows]))


def _slices(total: int, size: int, edge: int = 0) -> Iterator[slice]:
    """Parts of at most this size, none of them across the edge."""
    for begin, end in ((0, edge), (edge, total)):
        yield from (slice(first, min(first + size, end)) for first in range(begin, end, size))


def _accumulate(out: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """out += a b, or out = a b the first time; `out` is float32, and the product of low-precision factors is
    not rounded to theirs.
    """
    if out.is_cuda:
        torch.addmm(out, a, b, out_dtype=torch.float32, beta=0 if first else 1, out=out)
    else:
        product = a.float() @ b.float()
        out.copy_(product if first else out + product)


def forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, most_kept: int
) -> tuple[Tensor, Tensor]:
    """(T, C), (V, C), (T,) -> log-probs, peak logits, log sums, entropies and hits, (5, T) float32, 0 where
    there is no target; and the logits of the first of the R rows, at most `most_kept` of them.
    """
    results = torch.zeros(5, len(targets), device=hidden.device)
    rows, targets = _trained(hidden, targets)
    kept = hidden.new_empty(min(len(rows), most_kept), len(weight))
    if len(rows):
        most, columns = TILES["forward"]
        height = min(len(rows), most)
        width = min(len(weight), most * columns // height // 64 * 64)  # fewer rows, wider tiles
        buffer = hidden.new_empty(height, width)
        state = _new_state(len(rows), hidden.device)
        for block in _slices(len(rows), height, len(kept)):
            x, chosen = hidden[rows[block]], targets[block]
            for part in _slices(len(weight), width):
                w = weight[part]
                tile = kept[block, part] if block.stop <= len(kept) else buffer[: len(x), : len(w)]
                torch.mm(x, w.mT, out=tile)
                _over_rows(fold_kernel, part.start, temperature, tile, chosen, state[:, block])
        results.index_copy_(1, rows, _finish(state, temperature))
    return results, kept


def backward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    state: Tensor,
    kept: Tensor,
    temperature: float,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """d hidden (T, C) and d weight (V, C), or (0,) if not needed. `state` is `gradient_kernel`'s, (5, T)."""
    grad_hidden = torch.zeros_like(hidden) if need_hidden else hidden.new_empty(0)
    grad_weight = torch.zeros_like(weight) if need_weight else weight.new_empty(0)
    rows, targets = _trained(hidden, targets)
    if not len(rows):
        return grad_hidden, grad_weight
    hidden, state = hidden[rows], state[:, rows]
    most, columns = TILES["backward"]
    height, width = min(len(rows), most), min(len(weight), columns)
    buffer = hidden.new_empty(height, width)
    sum_hidden = hidden.new_empty(hidden.shape, dtype=torch.float32)
    sum_weight = hidden.new_empty(width, hidden.shape[1], dtype=torch.float32)
    for part in _slices(len(weight), width):
        for block in _slices(len(rows), height, len(kept)):
            x, w = hidden[block], weight[part]
            tile = buffer[: len(x), : len(w)]
            is_kept = block.stop <= len(kept)
            logits = kept[block, part] if is_kept else torch.mm(x, w.mT, out=tile)
            changed = logits, tile, targets[block], state[:, block]
            _over_rows(gradient_kernel, part.start, temperature, *changed)
            if need_hidden:
                _accumulate(sum_hidden[block], tile, w, first=part.start == 0)
            if need_weight:
                _accumulate(sum_weight[: len(w)], tile.mT, x, first=block.start == 0)
        if need_weight:
            grad_weight[part] = sum_weight[: part.stop - part.start]
    if need_hidden:
        grad_hidden.index_copy_(0, rows, sum_hidden.to(hidden.dtype))
    return grad_hidden, grad_weight


token_logprobs = torch.library.custom_op("r1ov::token_logprobs", forward, mutates_args=())
token_logprobs_backward = torch.library.custom_op("r1ov::token_logprobs_backward", backward, mutates_args=())


@token_logprobs.register_fake
def _(hidden: Tensor, weight: Tensor, targets: Tensor, _: float, most_kept: int) -> tuple[Tensor, Tensor]:
    kept = hidden.new_empty(min(len(targets), most_kept), len(weight))  # if all have a target
    return hidden.new_empty(5, len(targets), dtype=torch.float32), kept


@token_logprobs_backward.register_fake
def _(hidden: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, ...]:
    pairs = zip((hidden, weight), others[-2:], strict=True)
    return tuple(torch.empty_like(x) if needed else x.new_empty(0) for x, needed in pairs)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.temperature, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # the kept logits' would be zeros
    ctx.save_for_backward(*tensors, *output)


def _token_logprobs_autograd(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    hidden, weight, targets, results, kept = ctx.saved_tensors
    state = torch.cat([results[1:4], grad[:1], grad[3:4]])
    others = kept, ctx.temperature, *ctx.needs_input_grad[:2]
    return *token_logprobs_backward(hidden, weight, targets, state, *others), None, None, None


token_logprobs.register_autograd(_token_logprobs_autograd, setup_context=_keep)


def score(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    return_entropy: bool,
    return_hits: bool,
) -> tuple[Tensor, ...]:
    """What `kernels.token_logprobs` gives; logits are kept only if gradients may be asked for."""
    is_learning = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    most_kept = is_learning * KEPT // len(weight)  # rows
    with torch.cuda.device_of(hidden):
        results, _ = token_logprobs(hidden, weight, targets, temperature, most_kept)
    return results[0], *[results[3]] * return_entropy, *[results[4].detach()] * return_hits
