"""From a row of logits to its next token and the token's log-prob.

Penalty, temperature, top-k and top-p come in this order, Hugging Face's; the first two, which only multiply,
may change places.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from r1ov.errors import UserError

RANGES = {  # of a setting: what holds for it, in code and in words
    "temperature": (lambda x: x == 0 or 1e-6 <= x <= 1e6, "0 (greedy), or from 1e-6 to 1e6"),
    "top_k": (lambda x: isinstance(x, int) and x >= 0, "a whole number, 0 (off) or above"),
    "top_p": (lambda x: 0 < x <= 1, "above 0 and at most 1 (off)"),
    "repetition_penalty": (lambda x: 0 < x < math.inf, "above 0 (1 is off)"),
}


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How a token is chosen. Temperature 0 is greedy: top-k, top-p and the seed then change nothing."""

    temperature: float = 0.0
    top_k: int = 0  # 0 keeps every token
    top_p: float = 1.0  # 1 keeps every token
    repetition_penalty: float = 1.0  # 1 changes nothing

    def __post_init__(self) -> None:
        """Raises UserError for a value outside its range."""
        for name, (holds, range_) in RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not holds(value):
                raise UserError(f"{name} is {value!r}; it must be {range_}")

    @classmethod
    def resolve(cls, generation_config: Mapping, **given: float | None) -> "SamplingParams":
        """The given settings; those left at None come from `generation_config.json`.

        As in Hugging Face, the file's temperature counts only if the file says `do_sample: true`; otherwise
        decoding is greedy. Unlike there, a file without top_k means no top-k (transformers would use 50, a
        default that nobody wrote down for these models).
        """
        is_greedy = not generation_config.get("do_sample")
        # The later ones win.
        sources = {"temperature": 1.0}, generation_config, {"temperature": 0.0} if is_greedy else {}, given
        pairs = (pair for source in sources for pair in source.items())
        return cls(**{name: value for name, value in pairs if name in RANGES and value is not None})


def sample(
    logits: Tensor, params: SamplingParams, banned: Tensor, seen: Tensor | None, uniforms: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Each row's next token and its log-probability.

    The log-prob is the model's own, at the temperature of the sampling (at 1 when greedy): log_softmax(logits
    / temperature) before bans, penalty, top-k and top-p. It is what TRL and vLLM call the token's log-prob,
    and what scoring the finished text gives again.

    Args:
        logits: (B, V), any float dtype; not modified.
        banned: (b,) ids that are never chosen.
        seen: (B, V) bool, the ids in the row's prompt and output so far; None without a repetition penalty.
        uniforms: (B,) float64 in [0, 1), each row's own random number; None at temperature 0.
    Returns:
        (B,) int64 tokens and (B,) float32 log-probs, in nats.
    """
    scores = logits.to(torch.float32, copy=True)
    if params.temperature not in (0.0, 1.0):
        scores /= params.temperature
    logprobs = scores.log_softmax(-1)
    scores.index_fill_(-1, banned, -math.inf)
    if params.repetition_penalty != 1.0:
        scores = penalise_repetition(scores, seen, params.repetition_penalty)
    if params.temperature == 0.0:
        tokens = scores.max(-1).indices  # in half the time of argmax
    else:
        if params.top_k:
            scores = keep_top_k(scores, params.top_k)
        if params.top_p < 1.0:
            scores = keep_top_p(scores, params.top_p)
        tokens = draw(scores, uniforms)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def penalise_repetition(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """(B, V) scores, those of `seen` ids (B, V) divided by `penalty` when positive, multiplied when negative.

    Source: Keskar et al. 2019 (CTRL) section 4.1; over the distinct ids of prompt and output, as in
        transformers.
    """
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def keep_top_k(scores: Tensor, top_k: int) -> Tensor:
    """(B, V) scores, -inf below the row's k-th best. Ties with the k-th best all stay, as in transformers."""
    kth_best = scores.topk(min(top_k, scores.shape[-1])).values[:, -1:]
    return scores.masked_fill(scores < kth_best, -math.inf)


def keep_top_p(scores: Tensor, top_p: float) -> Tensor:
    """(B, V) scores, -inf outside the smallest set of likeliest tokens whose probability reaches `top_p`.

    The best token always stays.

    Source: Holtzman et al. 2020 section 3.1; the boundary is transformers': from the least likely up, tokens
        go while their cumulative probability is at most 1 - top_p.
    """
    ascending, order = scores.sort(dim=-1)
    removed = ascending.softmax(-1).cumsum(-1) <= 1.0 - top_p
    removed[:, -1] = False
    return scores.masked_fill(removed.scatter(-1, order, removed), -math.inf)


def draw(scores: Tensor, uniforms: Tensor) -> Tensor:
    """(B,) tokens drawn from softmax(scores), (B, V), by inverting its cumulative sum at `uniforms` (B,).

    With one random number a row, a draw depends on nothing else in the batch, and drawing costs no more than
    the softmax.
    """
    # In float64: 150 thousand float32 additions would shift the boundaries by more than rare tokens are wide.
    cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    # The first entry above the threshold, so never a token of probability 0.
    return torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)[:, 0]


def row_uniforms(seeds: list[int], count: int) -> Tensor:
    """(B, count) float64 in [0, 1): each row's random numbers, from its own generator on the CPU."""
    rows = [torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).double()


def row_seeds(prompts: Iterable[bytes], num_samples: int, seed: int) -> list[int]:
    """One seed a row, `num_samples` rows a prompt, made of the seed, the prompt, and the sample's number.

    So a row's samples do not depend on the other prompts, on its place among them, or on the size of the
    batch; and the same prompt given twice gets two different samples, the ones that num_samples=2 gives.

    Args: prompts: what tells the prompts apart: a digest of their ids and images, or names.
    """
    counts, seeds = Counter(), []
    for prompt in prompts:
        for _ in range(num_samples):
            digest = hashlib.blake2b(repr((seed, prompt, counts[prompt])).encode(), digest_size=8).digest()
            seeds.append(int.from_bytes(digest, "little") >> 1)
            counts[prompt] += 1
    return seeds
