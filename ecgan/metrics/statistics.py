"""Means over a few independent runs: how far they spread, and whether two of them differ.

Student's t where the spread is estimated from the runs themselves: with three seeds, an interval of
the normal distribution would be less than half as wide as it has to be. All in float64; sums by
``math.fsum``, so that the order of the runs does not matter.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95  # of all intervals
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


class Spread(NamedTuple):
    """A mean over runs; what one run cannot tell is None."""

    mean: float
    std: float | None  # of the runs, n - 1 in the denominator
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """The means of two sets of runs, second less first; what single runs cannot tell is None."""

    value: float
    low: float | None
    high: float | None
    spread: float | None  # of a run: pooled standard deviation

    @property
    def is_larger(self) -> bool:
        """Whether it is more than the spread over the runs explains: its interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def over_runs(values: Sequence[float]) -> Spread:
    """Mean of runs, with the t-interval of the mean."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Spread(mean, None, None, None)
    variance = _variance(values)
    half = quantile(0.5 + LEVEL / 2, n - 1) * math.sqrt(variance / n)
    return Spread(mean, math.sqrt(variance), mean - half, mean + half)


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Welch's interval for the difference of two means, whose variances may differ.

    Its degrees of freedom are Satterthwaite's; the pooled standard deviation weights each set's
    variance by its own.
    """
    n, m = len(first), len(second)
    value = math.fsum(second) / m - math.fsum(first) / n
    if min(n, m) < 2:
        return Difference(value, None, None, None)
    v, w = _variance(first), _variance(second)
    spread = math.sqrt(((n - 1) * v + (m - 1) * w) / (n + m - 2))
    error = v / n + w / m  # variance of the difference
    if error == 0:
        return Difference(value, value, value, spread)
    freedom = error**2 / ((v / n) ** 2 / (n - 1) + (w / m) ** 2 / (m - 1))
    half = quantile(0.5 + LEVEL / 2, freedom) * math.sqrt(error)
    return Difference(value, value - half, value + half, spread)


def quantile(probability: float, freedom: float) -> float:
    """The t below which Student's distribution has this probability.

    Args:
        probability: 0.5 to below 1.
        freedom: degrees of freedom, 1 or more.
    """
    assert 0.5 <= probability < 1, probability
    assert freedom >= 1, freedom
    # With t = sqrt(freedom) tan(a), the density is proportional to cos(a)^(freedom - 1).
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if 0.5 + _half_mass(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _half_mass(angle: float, freedom: float) -> float:
    """Probability between 0 and t = sqrt(freedom) tan(angle)."""
    # Far out there is nothing left, and the nodes would miss the peak.
    reach = min(angle, 40 / math.sqrt(freedom)) if freedom > 1 else angle
    values = np.cos((_NODES + 1) / 2 * reach) ** (freedom - 1)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
    return float(_WEIGHTS @ values) * reach / 2 * scale / math.sqrt(math.pi)


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
