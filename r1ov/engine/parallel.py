"""Several processes that answer together with one model (r1ov/model/parallel.py): which token is next, and
which of them speaks.
"""

import math
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from r1ov.common.processes import joined
from r1ov.engine.sampling import SamplingParams, penalise_repetition, sample
from r1ov.model.parallel import Split, share


def together(work: Callable[[torch.device], None], device: str | None) -> None:
    """Does the work as one of torchrun's processes, each with a device of its own; the first one speaks."""
    with joined(device) as (world, own), open(os.devnull, "w") as null:
        if world.is_main:
            return work(own)
        with redirect_stdout(null), redirect_stderr(null):
            work(own)


def dealt(split: Split, logits: Tensor) -> tuple[slice, Tensor]:
    """Some of the rows, other ones in each process, and their logits of all words (b, V); b is B / N, rounded
    up or down. Args: logits: (B, W) of its own words.
    """
    size = split.world.size
    for owner in range(size):
        rows = share(len(logits), owner, size)
        whole = F.pad(logits[rows], (split.words.start, split.vocab_size - split.words.stop))
        dist.reduce(whole, group=split.world.group, group_dst=owner)
        if owner == split.world.rank:
            own = rows, whole
    return own


def sample_together(
    split: Split,
    logits: Tensor,
    params: SamplingParams,
    banned: Tensor,
    seen: Tensor | None,
    uniforms: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`sample` where N processes hold the model together, of each the logits (B, W) of its own words; the
    same in all of them.

    A token's number is how many words come before it, so each process counts those of its own. For that, and
    for the log-prob, they exchange the sums of their words' probabilities. For top-k and top-p they exchange
    logits: of all words, but each gets some of the rows alone, and chooses for those.
    """
    temperature, rank = params.temperature, split.world.rank
    if temperature and (params.top_k or params.top_p < 1.0):
        rows, whole = dealt(split, logits)
        made = uniforms.new_zeros(2, len(logits))
        seen = seen if seen is None else seen[rows]
        made[:, rows] = torch.stack(sample(whole, params, banned, seen, uniforms[rows]))
        tokens, logprobs = split.sum(made)
        return tokens.long(), logprobs.float()
    rows, is_own = split.inside(banned)
    scores = logits.float().index_fill(-1, rows[is_own], -math.inf)
    if seen is not None:
        scores = penalise_repetition(scores, seen[:, split.words], params.repetition_penalty)
    # In float64, as in `draw`. Greedy is a temperature at which the best word has all the probability.
    scores, logits = scores.double() / (temperature or 1e-15), logits.double() / (temperature or 1.0)
    sums = logits.new_zeros(split.world.size, 2, len(logits))  # as logarithms
    sums[rank] = torch.stack((logits, scores)).logsumexp(-1)
    whole, total = split.sum(sums).logsumexp(0)
    before = (sums[:rank, 1] - total).exp().sum(0)  # of the processes with lower words
    reached = before[:, None] + (scores - total[:, None]).exp().cumsum(-1)  # (B, W)
    tokens = split.sum((reached <= (uniforms[:, None] if temperature else 0.0)).sum(-1))
    rows, is_own = split.inside(tokens)
    chosen = split.sum(logits.gather(-1, rows[:, None])[:, 0] * is_own)
    return tokens, (chosen - whole).float()
