"""How far a score can be trusted: intervals, paired differences, and what several samples of one question say
together.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.96  # of 95%


def wilson(right: float, count: float) -> tuple[float, float]:
    """The 95% confidence interval of a share, by Wilson's score (1927).

    Example: (90, 100) -> (0.826, 0.945)
    """
    share = right / count
    middle, spread = (
        share + Z * Z / (2 * count),
        Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count)),
    )
    low, high = (middle - spread) / (1 + Z * Z / count), (middle + spread) / (1 + Z * Z / count)
    return max(0.0, low), min(1.0, high)


def interval(scores: Sequence[float], groups: Sequence[Hashable]) -> tuple[float, float]:
    """The 95% interval of the mean of scores in [0, 1] that are not independent within a group.

    It is Wilson's, at the number of independent scores that would spread as much: n p (1 - p) / (n v), v the
    cluster-robust variance of the mean. With every score in a group of its own this is Wilson's interval
    itself; it is never narrower.

    Source: Miller 2024 (arXiv 2411.00640) section 2.2 for v, without a small-sample factor.
    """
    count, mean = len(scores), sum(scores) / len(scores)
    sums: dict[Hashable, float] = defaultdict(float)
    for score, group in zip(scores, groups, strict=True):
        sums[group] += score - mean
    variance = sum(total * total for total in sums.values()) / count**2
    spread = mean * (1 - mean)
    effective = min(count, spread / variance) if variance > 1e-12 and spread > 1e-12 else len(sums)
    return wilson(mean * effective, effective)


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two models on the same questions. Differences are of the second from the first."""

    count: int
    difference: float
    low: float
    high: float
    better: int  # questions on which the second scores higher
    worse: int
    p_value: float


def paired(
    first: Sequence[float],
    second: Sequence[float],
    groups: Sequence[Hashable],
    resamples: int = 10_000,
    seed: int = 0,
) -> Paired:
    """The mean difference, its 95% interval by a bootstrap over whole groups (percentiles), and McNemar's
    exact test.
    """
    differences: dict[Hashable, list[float]] = defaultdict(list)
    for one, other, group in zip(first, second, groups, strict=True):
        differences[group].append(other - one)
    sums = np.array([sum(values) for values in differences.values()])
    counts = np.array([len(values) for values in differences.values()])
    rng, means = np.random.default_rng(seed), []
    at_once = max(1, 2_000_000 // len(sums))
    for begin in range(0, resamples, at_once):
        drawn = rng.integers(0, len(sums), (min(at_once, resamples - begin), len(sums)))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    better = sum(other > one for one, other in zip(first, second, strict=True))
    worse = sum(other < one for one, other in zip(first, second, strict=True))
    return Paired(
        count=len(first),
        difference=float(sums.sum() / counts.sum()),
        low=float(low),
        high=float(high),
        better=better,
        worse=worse,
        p_value=mcnemar(better, worse),
    )


def mcnemar(better: int, worse: int) -> float:
    """The exact two-sided p-value of so many changes each way, were both ways equally likely.

    Example: (5, 1) -> 0.21875
    """
    changes = better + worse
    tail = sum(math.comb(changes, wins) for wins in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**changes)


def pass_at_k(count: int, right: int, k: int) -> float:
    """The chance that among k of `count` samples, drawn without putting back, one is right, if `right` of all
    are.

    Source: Chen et al. 2021 (arXiv 2107.03374) equation 1.
    """
    return 1.0 - math.comb(count - right, k) / math.comb(count, k)


def majority(answers: Sequence[str | None], scores: Sequence[float]) -> float:
    """The score of the answer that most samples gave, the earlier one of two equally common; None does not
    vote.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    return scores[list(answers).index(votes.most_common(1)[0][0])]
