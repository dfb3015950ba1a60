"""How sure a share is."""

import math

Z = 1.96  # of 95%


def wilson(right: float, count: float) -> tuple[float, float]:
    """Returns the 95% confidence interval of a share, by Wilson's score (1927).

    Example: (90, 100) -> (0.826, 0.945)
    """
    share, z2 = right / count, Z * Z / count
    middle, spread = share + z2 / 2, math.sqrt(z2 * (share * (1 - share) + z2 / 4))
    # Rounded, so that the share is never outside: 0 and 1 are bounds themselves.
    low, high = (round((middle + side) / (1 + z2), 12) for side in (-spread, spread))
    return max(0.0, low), high
