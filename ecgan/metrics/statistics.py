"""Confidence intervals: Student's t over runs, Wilson's of shares, bootstraps over images.

All intervals are of 95 %, all arithmetic in float64. Student's t where the spread is estimated from
the runs themselves: with three seeds, an interval of the normal distribution would be less than
half as wide as it has to be.

Shape legend:
    n, m  images      k  numbers of an image      R  resamples
"""

from collections.abc import Callable, Sequence
from math import sqrt
from statistics import fmean, stdev, variance
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Numbers = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating[Any]]

LEVEL = 0.95
RESAMPLES = 200
MOST_RESAMPLED = 5000  # images of a set in each resample of a distance
NORMAL_QUANTILE = 1.96  # of a two-sided interval


class Estimate(NamedTuple):
    """A value with the ends of its interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


# Over runs


class Spread(NamedTuple):
    """Mean over runs; None for what a single run cannot tell."""

    mean: float
    std: float | None  # n - 1 in the denominator
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """Mean of the second set of runs less that of the first; None for what single runs cannot tell.

    ``spread`` is the pooled standard deviation of a run.
    """

    value: float
    low: float | None
    high: float | None
    spread: float | None

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def over_runs(values: Sequence[float]) -> Spread:
    """Mean of runs, with the t-interval of the mean."""
    mean, n = fmean(values), len(values)
    if n < 2:
        return Spread(mean, None, None, None)
    std = stdev(values)
    half = t_quantile(n - 1) * std / sqrt(n)
    return Spread(mean, std, mean - half, mean + half)


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Welch's interval for the difference of two means, whose variances may differ.

    Its degrees of freedom are Satterthwaite's; the pooled standard deviation weights each set's
    variance by its own.
    """
    n, m = len(first), len(second)
    value = fmean(second) - fmean(first)
    if min(n, m) < 2:
        return Difference(value, None, None, None)
    v, w = variance(first), variance(second)
    spread = sqrt(((n - 1) * v + (m - 1) * w) / (n + m - 2))
    error = v / n + w / m  # variance of the difference
    if error == 0:
        return Difference(value, value, value, spread)
    freedom = error**2 / ((v / n) ** 2 / (n - 1) + (w / m) ** 2 / (m - 1))
    half = t_quantile(freedom) * sqrt(error)
    return Difference(value, value - half, value + half, spread)


def t_quantile(freedom: float) -> float:
    """Half the width of a two-sided interval of Student's t, in standard errors."""
    return float(stats.t.ppf(0.5 + LEVEL / 2, freedom))


# Over votes


class Share(NamedTuple):
    """Share of successes among independent votes.

    ``low`` and ``high`` are Wilson's interval (1927), ``p`` is the exact two-sided probability of
    so uneven a vote where there is no preference.
    """

    value: float
    low: float
    high: float
    p: float


def share(successes: int, n: int) -> Share:
    """Share with Wilson's interval and the p of the binomial test against 1/2."""
    test = stats.binomtest(successes, n)
    ends = test.proportion_ci(LEVEL, method="wilson")
    return Share(successes / n, float(ends.low), float(ends.high), float(test.pvalue))


# Over images: percentile bootstraps


def resampled(
    rows: Numbers, groups: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[Numbers, Numbers]:
    """Sums over all rows, and over resamples of their groups (bootstrap).

    Args:
        rows: numbers of each image, (n, k).
        groups: layout of each image; images of one layout are drawn together, since another style
            of the same layout is no independent image.
        seed: seed of the draws.
        resamples: R.

    Returns:
        (1, k) and (R, k); no resamples where there is one group.
    """
    _, group = np.unique(groups, return_inverse=True)
    num_groups = int(group.max()) + 1
    per_group = np.zeros((num_groups, rows.shape[1]))
    np.add.at(per_group, group, rows)
    rng = np.random.default_rng(seed)
    draws = resamples if num_groups > 1 else 0
    times = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=draws)
    return per_group.sum(axis=0, keepdims=True), times @ per_group


def with_percentiles(value: float, samples: Numbers) -> Estimate:
    """A value with the percentiles of its resamples."""
    known = samples[np.isfinite(samples)]
    if not known.size:
        return Estimate(float(value), np.nan, np.nan)
    low, high = np.percentile(known, [50 - 50 * LEVEL, 50 + 50 * LEVEL])
    return Estimate(float(value), float(low), float(high))


def bootstrapped_ratio(
    parts: npt.ArrayLike,
    wholes: npt.ArrayLike,
    groups: Sequence[str],
    *,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Ratio of two sums, with its interval by a bootstrap over groups.

    Args:
        parts: summands of the numerator, (n,).
        wholes: summands of the denominator, (n,).
        groups: group of each.
        resamples: R.
    """
    rows = np.stack([np.asarray(parts, float), np.asarray(wholes, float)], axis=1)
    whole, drawn = (s[:, 0] / s[:, 1] for s in resampled(rows, groups, resamples=resamples))
    return with_percentiles(whole[0], drawn)


def bootstrapped_mean(values: Sequence[float], groups: Sequence[str]) -> Estimate:
    """Mean over groups of each one's mean, with its interval."""
    names, group = np.unique(groups, return_inverse=True)
    means = np.bincount(group, np.asarray(values, float)) / np.bincount(group)
    return bootstrapped_ratio(means, np.ones(len(names)), names.tolist())


def bootstrapped_distance(
    measure: Callable[[Floats, Floats], float],
    real: Floats,
    generated: Floats,
    layouts: Sequence[str] | npt.NDArray[np.integer[Any]],
    *,
    resamples: int = 50,
    seed: int = 0,
) -> Estimate:
    """Distance of two sets of features -+ 1.96 standard deviations of its bootstrap.

    Not its percentiles: an image that is drawn twice makes a set narrower, so that the Frechet
    distance of a resample is biased upwards; how far resamples scatter is not. Photos are drawn one
    by one, samples by layout. Of a set above 5,000 images a resample has 5,000: too wide an
    interval rather than hours.

    Args:
        measure: distance of real and generated features.
        real: (m, d).
        generated: (n, d).
        layouts: layout of each generated image.
        resamples: R.
        seed: seed of the draws.
    """
    value = measure(real, generated)
    _, group = np.unique(layouts, return_inverse=True)
    rows = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    if len(rows) < 2 or len(real) < 3:
        return Estimate(value, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    num_photos = min(len(real), MOST_RESAMPLED)
    num_layouts = max(2, min(len(rows), MOST_RESAMPLED * len(rows) // len(generated)))
    values: list[float] = []
    for _ in range(resamples):
        photos = rng.integers(len(real), size=num_photos)
        drawn = rng.integers(len(rows), size=num_layouts)
        values.append(measure(real[photos], generated[np.concatenate([rows[i] for i in drawn])]))
    half = NORMAL_QUANTILE * float(np.std(values, ddof=1))
    return Estimate(value, value - half, value + half)
