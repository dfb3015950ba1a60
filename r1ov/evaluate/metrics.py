"""How sure a score is: intervals of a mean, a difference in pairs, the chance of one right in k samples."""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from statistics import fmean
from typing import NamedTuple

from r1ov.common.shares import Z, wilson


def variance_of_mean(values: Sequence[float], groups: Sequence[Hashable]) -> float:
    """Returns the variance of the mean of values that depend on each other within a group.

    Source: Miller 2024 (arXiv 2411.00640) section 2.2, without a small-sample factor.
    """
    mean, sums = fmean(values), defaultdict(float)
    for value, group in zip(values, groups, strict=True):
        sums[group] += value - mean
    return sum(total * total for total in sums.values()) / len(values) ** 2


def interval(scores: Sequence[float], groups: Sequence[Hashable]) -> tuple[float, float]:
    """Returns the 95% interval of the mean of scores in [0, 1] that depend on each other within a group.

    It is Wilson's, at the number of independent scores that would spread as much: n p (1 - p) / (n v), v the
    variance of the mean. With every score in a group of its own this is Wilson's interval itself; it is never
    narrower.
    """
    mean, variance = fmean(scores), variance_of_mean(scores, groups)
    spread = mean * (1 - mean)
    is_varied = variance > 1e-12 and spread > 1e-12
    effective = min(len(scores), spread / variance) if is_varied else len(set(groups))
    return wilson(mean * effective, effective)


class Paired(NamedTuple):
    """Two models on the same questions. Differences are second minus first."""

    difference: float
    low: float
    high: float
    better: int  # questions on which the second scores higher
    worse: int
    p_value: float


def paired(first: Sequence[float], second: Sequence[float], groups: Sequence[Hashable]) -> Paired:
    """Returns the mean difference, its 95% interval and McNemar's exact p. A few groups that happen to agree
    never make the interval narrower than that of independent questions.
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    variances = (variance_of_mean(differences, each) for each in (groups, range(len(differences))))
    mean, spread = fmean(differences), Z * math.sqrt(max(variances))
    better, worse = sum(one > 0 for one in differences), sum(one < 0 for one in differences)
    return Paired(mean, mean - spread, mean + spread, better, worse, mcnemar(better, worse))


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
