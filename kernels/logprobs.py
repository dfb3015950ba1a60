"""Log-probs of chosen tokens over a large vocabulary, from the hidden states.

With impl="torch" a call is the definition below, over rows a few at a time; kernels/triton/logprobs.py is its
Triton side.

Shape letters: T tokens, C hidden size, V vocabulary, R rows that have a target.
"""

from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernels.dispatch import check_impl

IGNORED = -100  # torch's own mark for "no target"
CHUNK = 2**26  # logits that the torch form holds at once, 256 MB of float32


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    return_entropy: bool = False,
    impl: str | None = None,
    return_hits: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """log softmax(hidden weight^T / temperature) at each row's target; (T,) float32, in nats.

    The (T, V) logits come and go in chunks. Few enough stay for the backward, more come once more in it.

    Args:
        hidden: (T, C), after the final norm. weight: (V, C), the output head.
        targets: (T,) int64; -100 marks rows without a target. They cost nothing and give 0. Left on the CPU,
            "triton" need not wait for the GPU to count them.
        temperature: divides the logits; the sampling temperature when scoring samples.
        return_entropy: also give each row's entropy in nats, (T,) float32, 0 where there is no target.
        impl: "torch" or "triton"; None: by device.
        return_hits: also give 1 for each row whose target is the likeliest token, else 0, (T,) float32.
    """
    impl = check_impl(impl, hidden.device)
    if hidden.shape[0] != targets.shape[0]:
        raise ValueError(
            f"{hidden.shape[0]} rows of hidden states, but {targets.shape[0]} targets: they must be as many"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, must be above 0")
    wanted = return_entropy, return_hits
    if impl == "triton":
        from kernels.triton import logprobs as triton_logprobs

        found = triton_logprobs.score(hidden, weight, targets, temperature, *wanted)
        return found if found[1:] else found[0]

    def score(hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        return definition(hidden @ weight.mT, targets, temperature, *wanted)

    targets = targets.to(hidden.device)
    rows = (targets != IGNORED).nonzero().squeeze(1)  # (R,)
    chunks = rows.split(max(1, CHUNK // weight.shape[0]))
    if len(chunks) > 1:
        score = partial(checkpoint, score, use_reentrant=False, preserve_rng_state=False)
    scored = [score(hidden[chunk], targets[chunk]) for chunk in chunks]
    zeros = torch.zeros_like(targets, dtype=torch.float32)
    placed = tuple(zeros.index_put((rows,), torch.cat(parts)) for parts in zip(*scored, strict=True))
    return placed if placed[1:] else placed[0]


def definition(
    logits: Tensor,
    targets: Tensor,
    temperature: float,
    return_entropy: bool,
    return_hits: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, ...]:
    """(R, V), (R,) -> log-prob of each row's target (R,) and, if asked for, the row's entropy (R,), and 1
    where no log-prob is larger than the target's, else 0 (R,), computed in `dtype`.
    """
    logprobs = (logits.to(dtype) / temperature).log_softmax(-1)  # (R, V)
    found = [logprobs.gather(1, targets[:, None]).squeeze(1)]
    if return_entropy:
        found.append(-(logprobs.exp() * logprobs.clamp(min=-1e30)).sum(-1))  # clamped, for 0 log 0 is 0
    if return_hits:
        found.append((found[0] == logprobs.amax(-1)).to(dtype))
    return tuple(found)
