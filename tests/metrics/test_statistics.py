"""Intervals against SciPy, textbook formulas and theory."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ecgan.metrics import distribution, statistics


def naive_variance(values):
    total = 0.0
    for value in values:
        total += value
    squares = 0.0
    for value in values:
        squares += (value - total / len(values)) ** 2
    return squares / (len(values) - 1)


scores = st.lists(st.floats(0, 1).map(lambda x: round(x, 4)), min_size=2, max_size=6)


@settings(max_examples=20)
@given(scores)
def test_mean_and_interval_over_runs(values):
    found = statistics.over_runs(values)
    std = math.sqrt(naive_variance(values))
    half = stats.t.ppf(0.975, len(values) - 1) * std / math.sqrt(len(values))
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert found.std == pytest.approx(std, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))


@settings(max_examples=20)
@given(scores, scores)
def test_difference_is_welchs(first, second):
    found = statistics.difference(first, second)
    n, m = len(first), len(second)
    v, w = naive_variance(first), naive_variance(second)
    assert found.value == pytest.approx(sum(second) / m - sum(first) / n, abs=1e-12)
    pooled = math.sqrt((v * (n - 1) + w * (m - 1)) / (n + m - 2))
    assert found.spread == pytest.approx(pooled, abs=1e-12)
    if v + w > 1e-8:
        theirs = stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-7)
        assert found.is_significant == (theirs.low > 0 or theirs.high < 0)


def test_what_single_runs_cannot_tell():
    assert statistics.over_runs([0.5]) == (0.5, None, None, None)
    found = statistics.difference([0.25], [0.5, 0.5])
    assert found == (0.25, None, None, None)
    assert not found.is_significant


def test_runs_without_spread():
    assert statistics.difference([0.5, 0.5], [0.5, 0.5]) == (0, 0, 0, 0)
    assert not statistics.difference([0.5, 0.5], [0.5, 0.5]).is_significant
    assert statistics.difference([0.5, 0.5], [0.25, 0.25]).is_significant  # smaller, and surely so


@given(st.integers(1, 300), st.floats(0, 1))
def test_shares_are_those_of_the_formulas(n, share):
    """Wilson's interval and the exact tail, term by term."""
    successes, z = round(share * n), 1.959963984540054
    p = successes / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    tail = sum(math.comb(n, k) for k in range(max(successes, n - successes), n + 1))
    expected = (p, low, high, min(1, 2 * tail / 2**n))
    assert statistics.share(successes, n) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_bootstrap_over_participants_is_that_of_theory():
    rng = np.random.default_rng(0)
    votes = (100 * rng.normal(0.6, 0.1, 200).clip(0, 1)).astype(int)
    groups = [str(index) for index in range(200)]
    found = statistics.bootstrapped_ratio(votes, np.full(200, 100), groups, resamples=2000)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(votes.mean() / 100)
    expected = 2 * 1.96 * np.std(votes / 100) / np.sqrt(200)
    assert found.high - found.low == pytest.approx(expected, rel=0.15)
    alone = statistics.bootstrapped_ratio(votes[:1], [100], groups[:1])
    assert np.isnan(alone[1:]).all()


def mean_difference(real, generated):
    return float(generated.mean() - real.mean())


def test_the_interval_of_a_mean_is_that_of_theory():
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(400, 1)), rng.normal(size=(300, 1)) + 1
    _, low, high = statistics.bootstrapped_distance(
        mean_difference, real, generated, np.arange(300), resamples=400
    )
    assert (low + high) / 2 == pytest.approx(mean_difference(real, generated))
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(1 / 400 + 1 / 300), rel=0.1)
    # The same images four times over, of the same layouts: nothing new, no narrower
    again = statistics.bootstrapped_distance(
        mean_difference, real, np.repeat(generated, 4, axis=0), np.repeat(np.arange(300), 4)
    )
    assert again.high - again.low == pytest.approx(high - low, rel=0.3)
    alone = statistics.bootstrapped_distance(mean_difference, real, generated, np.zeros(300, int))
    assert np.isnan(alone[1:]).all()


def test_the_interval_of_a_frechet_distance_is_that_of_theory():
    rng = np.random.default_rng(1)
    real, generated = rng.normal(size=(400, 1)), rng.normal(size=(300, 1)) + 5
    _, low, high = statistics.bootstrapped_distance(
        distribution.frechet_distance_of, real, generated, np.arange(300), resamples=300
    )
    value = distribution.frechet_distance_of(real, generated)
    assert (low + high) / 2 == pytest.approx(value)  # not that of resamples, which is biased
    # Of (mu - nu)^2, far apart; that of the deviations' difference is hundreds of times less
    assert high - low == pytest.approx(2 * 1.96 * 2 * 5 * np.sqrt(1 / 400 + 1 / 300), rel=0.15)


def test_resamples_of_large_sets_are_smaller(monkeypatch):
    monkeypatch.setattr(statistics, "MOST_RESAMPLED", 60)
    sizes = []

    def measure(real, generated):
        sizes.append((len(real), len(generated)))
        return 0.0

    layouts = np.repeat(np.arange(50), 4)  # 200 samples, 4 of each
    statistics.bootstrapped_distance(
        measure, np.zeros((90, 1)), np.zeros((200, 1)), layouts, resamples=5
    )
    assert sizes == [(90, 200)] + [(60, 60)] * 5
    sizes.clear()
    statistics.bootstrapped_distance(measure, np.zeros((40, 1)), np.zeros((60, 1)), np.arange(60))
    assert sizes == [(40, 60)] * 51
