"""Distances between samples and photos, by the networks of features; each with its real ceiling.

The names say the network: only Inception's are FID and KID. A distance of fewer images than
features is biased upwards, and the report says so.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ecgan.evaluation.measure import Look
from ecgan.metrics import distribution, statistics

Floats = npt.NDArray[np.float32]
MOST = 20_000  # images, evenly spread, that KID, precision and recall look at
INTERVAL = "value -+ 1.96 standard deviations of a bootstrap over layouts and photos"
PROTOCOL = (
    "Frechet distances over all images; KID the mean over subsets, with its own error; precision "
    "and recall by 3 nearest neighbours"
)
_FRECHET = {
    "efficientnet_lite0": "fd_efficientnet_lite0",
    "inception": "fid",
    "inception_clean": "fid_clean",
    "dinov2": "fd_dinov2",
}
_KERNEL = {"inception": "kid", "inception_clean": "kid_clean"}


class _Compared(NamedTuple):
    """Features of one network."""

    samples: Floats  # (n, d)
    layouts: npt.NDArray[np.int64]  # (n,), number of each sample's layout
    photos: Floats  # (m, d)
    train: Floats | None  # the reference's own train photos


def measure_all(
    look: Look, real: Look, train: Look | None, *, given: distribution.Gaussian | None = None
) -> tuple[dict[str, dict[str, Any]], dict[str, str], list[str]]:
    """Every distance that there are features for.

    Args:
        look: of the samples.
        real: of the reference's photos.
        train: of its train photos, for the distance that real photos have.
        given: statistics of Inception's features, in place of the reference's for ``fid``.

    Returns:
        Entries of a report by name, reasons for what could not be measured, and notes.
    """
    numbers: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    notes: list[str] = []
    _, layouts = np.unique(look.tally.layouts, return_inverse=True)
    for network, features in look.features.items():
        compared = _Compared(
            features,
            layouts,
            real.features[network],
            None if train is None else train.features[network],
        )
        statistics = given if network == "inception" else None
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            _FRECHET[network]: partial(_frechet, compared, statistics),
        }
        if network in _KERNEL:
            measures[_KERNEL[network]] = partial(_kernel, compared)
        for name, measure in measures.items():
            _try(numbers, skipped, name, measure)
        both = (f"precision_{network}", f"recall_{network}")
        try:
            numbers |= dict(zip(both, _neighbours(compared), strict=True))
        except ValueError as error:
            skipped |= dict.fromkeys(both, str(error))
        notes += _bias(network, compared)
    return numbers, skipped, notes


def _try(
    numbers: dict[str, dict[str, Any]],
    skipped: dict[str, str],
    name: str,
    measure: Callable[[], dict[str, Any]],
) -> None:
    try:
        numbers[name] = measure()
    except ValueError as error:  # too few images
        skipped[name] = str(error)


def _bias(network: str, compared: _Compared) -> list[str]:
    dim = compared.samples.shape[1]
    parts = (compared.samples, compared.photos, compared.train)
    least = min(len(part) for part in parts if part is not None)
    if least > dim:
        return []
    return [
        f"{least} images against {dim} features of {network}: the Frechet distance is biased "
        "upwards; compare it at this n only"
    ]


def _frechet(compared: _Compared, given: distribution.Gaussian | None) -> dict[str, Any]:
    samples, photos = compared.samples, compared.photos
    floor = math.nan
    if given is not None:
        value = distribution.frechet_distance(
            distribution.FeatureStatistics.of(samples).gaussian(), given
        )
        if compared.train is not None:
            own = distribution.FeatureStatistics.of(compared.train).gaussian()
            floor = distribution.frechet_distance(own, given)
        return _entry(value, floor, len(samples), (math.nan, math.nan))
    if compared.train is not None:
        floor = distribution.frechet_distance_of(compared.train, photos)
    value, low, high = statistics.bootstrapped_distance(
        distribution.frechet_distance_of, photos, samples, compared.layouts
    )
    low = 0.0 if low < 0 else low  # no distance is below
    return _entry(value, floor, len(samples), (low, high))


def _kernel(compared: _Compared) -> dict[str, Any]:
    samples, photos = _thinned(compared.samples), _thinned(compared.photos)
    found = distribution.kid(photos, samples)
    floor = math.nan
    if compared.train is not None:
        floor = distribution.kid(photos, _thinned(compared.train)).mean
    ends = found.mean - 1.96 * found.std, found.mean + 1.96 * found.std
    entry = _entry(found.mean, floor, len(samples), ends)
    protocol = f"{distribution.KID_SUBSETS} subsets of {found.subset_size} images"
    return entry | {"std": found.std, "protocol": protocol}


def _neighbours(compared: _Compared) -> list[dict[str, Any]]:
    samples, photos = _thinned(compared.samples), _thinned(compared.photos)
    found = distribution.precision_recall(photos, samples)
    floor = (math.nan, math.nan)
    if compared.train is not None:
        floor = distribution.precision_recall(photos, _thinned(compared.train))
    nothing = (math.nan, math.nan)
    return [
        _entry(value, real, len(samples), nothing) for value, real in zip(found, floor, strict=True)
    ]


def _thinned(features: Floats) -> Floats:
    """At most ``MOST``, evenly spread."""
    if len(features) <= MOST:
        return features
    return features[np.linspace(0, len(features) - 1, MOST).round().astype(int)]


def _entry(value: float, real: float, n: int, ends: tuple[float, float]) -> dict[str, Any]:
    def finite(number: float) -> float | None:
        return float(number) if math.isfinite(number) else None

    return {
        "value": finite(value),
        "real": finite(real),
        "low": finite(ends[0]),
        "high": finite(ends[1]),
        "n": n,
    }
