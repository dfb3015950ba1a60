"""How far a score can be trusted: intervals, paired differences, and what several samples of one question say
together.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

Z = 1.96  # of 95%
RESAMPLES = 10_000  # of the bootstrap


def wilson(right: float, count: float) -> tuple[float, float]:
    """Returns the 95% confidence interval of a share, by Wilson's score (1927).

    Example: (90, 100) -> (0.826, 0.945)
    """
    share, z2 = right / count, Z * Z
    middle = share + z2 / (2 * count)
    spread = Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    low, high = ((middle + side) / (1 + z2 / count) for side in (-spread, spread))
    return max(0.0, low), min(1.0, high)


def interval(scores: Sequence[float], groups: Sequence[Hashable]) -> tuple[float, float]:
    """Returns the 95% interval of the mean of scores in [0, 1] that depend on each other within a group.

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


class Paired(NamedTuple):
    """Two models on the same questions. Differences are second minus first."""

    count: int
    difference: float
    low: float
    high: float
    better: int  # questions on which the second scores higher
    worse: int
    p_value: float


def paired(first: Sequence[float], second: Sequence[float], groups: Sequence[Hashable]) -> Paired:
    """Returns the mean difference, its 95% interval by a bootstrap over whole groups (percentiles), and
    McNemar's exact p.
    """
    differences = np.subtract(second, first)
    _, of_group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sums, counts = np.bincount(of_group, differences), np.bincount(of_group)
    rng, means = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(sums), len(sums))
        means.append(sums[drawn].sum() / counts[drawn].sum())
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    return Paired(
        len(differences),
        float(differences.mean()),
        *map(float, np.percentile(means, (2.5, 97.5))),
        better,
        worse,
        mcnemar(better, worse),
    )


def mcnemar(better: int, worse: int) -> float:
    """Returns the exact two-sided p-value of this many changes each way, if both ways were equally likely.

    Example: (5, 1) -> 0.21875
    """
    changes = better + worse
    tail = sum(math.comb(changes, wins) for wins in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**changes)


def pass_at_k(count: int, right: int, k: int) -> float:
    """Returns the chance that one of k samples is right, drawn without replacement from `count` of which
    `right` are.

    Source: Chen et al. 2021 (arXiv 2107.03374) equation 1.
    """
    return 1.0 - math.comb(count - right, k) / math.comb(count, k)


def majority(answers: Sequence[str | None], scores: Sequence[float]) -> float:
    """Returns the score of the most frequent answer, the earlier of equals; None does not vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    return scores[list(answers).index(votes.most_common(1)[0][0])] if votes else 0.0
