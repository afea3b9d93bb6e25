"""Distances between two sets of images, from their features: Frechet, kernel, precision, recall.

Features are arrays (images, d) that a frozen network gave. The names of metrics say the network:
only Inception's are called FID and KID, others' FD and KD. Everything is float64, so neither the
batch size nor the order of the images matters (KID draws its subsets by position).

Every distance stands beside that of the reference's own train photos. A Frechet distance of fewer
images than features is biased upwards, and a note says so.

Shape legend:
    n, m  images      d  features of an image      K  images of a layout
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ecgan.metrics.statistics import NORMAL_QUANTILE, bootstrapped_distance

Floats = npt.NDArray[np.floating[Any]]

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
_BLOCK = 1000  # images whose distances to all others are looked at together
_ROUNDING = 1e-12  # of the squared lengths: a squared distance below it is rounding


class Gaussian(NamedTuple):
    """Mean and covariance of a set of features, for the Frechet distance."""

    mean: Floats  # (d,)
    covariance: Floats  # (d, d)
    num_images: int | None = None  # a file of pytorch-fid does not say


def gaussian(features: Floats) -> Gaussian:
    """Mean and unbiased covariance of features, (n, d).

    Raises:
        ValueError: fewer than 2 images.
    """
    if len(features) < 2:
        raise ValueError(f"covariance needs at least 2 images, got {len(features)}")
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    centred = features - mean
    return Gaussian(mean, centred.T @ centred / (len(features) - 1), len(features))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Frechet distance of two Gaussians: |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    The trace of the root is the sum of the singular values of L_a^T L_b with A = L_a L_a^T: all
    real, and without the root of rounding errors that eigenvalues of A B, which torchmetrics and
    torch-fidelity take, make of fewer images than features. Of more they agree to 1e-6 and better.
    """
    (mean_a, cov_a, _), (mean_b, cov_b, _) = a, b
    root = np.linalg.svd(_factor(cov_a).T @ _factor(cov_b), compute_uv=False).sum()
    distance = np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * root
    return max(0.0, float(distance))


def frechet_distance_of(a: Floats, b: Floats) -> float:
    """:func:`frechet_distance` of the features themselves, (n, d) and (m, d).

    With fewer images than features the centred features are a factor of the covariance already:
    seconds become milliseconds.
    """
    (mean_a, factor_a), (mean_b, factor_b) = _mean_and_factor(a), _mean_and_factor(b)
    root = np.linalg.svd(factor_a.T @ factor_b, compute_uv=False).sum()
    traces = np.square(factor_a).sum() + np.square(factor_b).sum()
    return max(0.0, float(np.square(mean_a - mean_b).sum() + traces - 2 * root))


def _mean_and_factor(features: Floats) -> tuple[Floats, Floats]:
    """Mean, (d,), and L with L L^T = covariance, (d, at most d)."""
    if not 2 <= len(features) <= features.shape[1]:
        found = gaussian(features)
        return found.mean, _factor(found.covariance)
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    return mean, (features - mean).T / np.sqrt(len(features) - 1)


def _factor(covariance: Floats) -> Floats:
    """L with L L^T = covariance, (d, rank): Cholesky's, or of the eigenvectors that are there."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:  # singular
        values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


class Kid(NamedTuple):
    """Kernel Inception distance: mean and standard deviation over random subsets."""

    mean: float
    std: float
    subset_size: int


def kid(real: Floats, generated: Floats, *, seed: int = 0) -> Kid:
    """Kernel Inception distance by torchmetrics, of Inception's features or another network's.

    Unbiased for any number of images, unlike FID. Subsets of 1,000 images as is usual, or half of
    the smaller set, so that subsets differ and their deviation says something.

    Raises:
        ValueError: a set has fewer than 4 images.
    """
    # A second of imports that no other metric needs, several where the package is read first
    from torchmetrics.image.kid import KernelInceptionDistance

    least = min(len(real), len(generated))
    if least < 4:
        raise ValueError(f"KID needs at least 4 images of each set, got {least}")
    size = min(KID_SUBSET_SIZE, least // 2)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message=".*save all extracted features.*")
        torch.default_generator.manual_seed(seed)
        metric = KernelInceptionDistance(
            feature=_Features(real.shape[1]), subsets=KID_SUBSETS, subset_size=size
        )
        metric.update(_tensor(real), real=True)
        metric.update(_tensor(generated), real=False)
        mean, std = metric.compute()
    return Kid(float(mean), float(std), size)


class PrecisionRecall(NamedTuple):
    """Improved precision and recall (Kynkaanniemi et al. 2019, Eq. 2)."""

    precision: float  # share of generated images within the real ones' manifold
    recall: float  # share of real images within the generated ones'


def precision_recall(real: Floats, generated: Floats, *, k: int = 3) -> PrecisionRecall:
    """Shares of each set within the other's manifold.

    The manifold of a set is the union of balls around its points, each as wide as its k-th nearest
    neighbour in the set is far. Deterministic; in float64, in blocks: O(n) memory. Images whose
    features differ by less than a millionth of their length are copies of each other.

    Args:
        real: (m, d).
        generated: (n, d).
        k: neighbours.

    Raises:
        ValueError: a set has no more than k images.
    """
    least = min(len(real), len(generated))
    if least <= k:
        raise ValueError(f"precision and recall need more than {k} images, got {least}")
    photos, samples = _tensor(real), _tensor(generated)
    precision = _share_within(samples, photos, _radii(photos, k))
    return PrecisionRecall(precision, _share_within(photos, samples, _radii(samples, k)))


def _radii(points: Tensor, k: int) -> Tensor:
    """Squared distance of each point to its k-th nearest neighbour but itself, (n,)."""
    parts = [_squared(block, points).kthvalue(k + 1).values for block in points.split(_BLOCK)]
    return torch.cat(parts)


def _share_within(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    inside = [(_squared(block, centres) <= radii).any(dim=1) for block in points.split(_BLOCK)]
    return float(torch.cat(inside).double().mean())


def _squared(block: Tensor, points: Tensor) -> Tensor:
    """Squared distances, (b, d) and (n, d) -> (b, n).

    By products, in a tenth of the time of differences; they leave a rounding error where a copy is
    at distance 0.
    """
    lengths = block.square().sum(dim=1, keepdim=True) + points.square().sum(dim=1)
    squared = torch.addmm(lengths, block, points.T, alpha=-2)
    return squared.masked_fill_(squared <= _ROUNDING * lengths, 0)


def pairwise_distances(stages: Sequence[Tensor]) -> Tensor:
    """Perceptual distances between all pairs of images (LPIPS, Eq. 1, without learned weights).

    Args:
        stages: maps of each stage, channels of length 1 at each pixel, (K, C, h, w).

    Returns:
        Of pair (i, j), i < j, in the order (0, 1), (0, 2), ..., (1, 2), ...: the squared difference
        summed over channels, mean over pixels, mean over stages, (K (K - 1) / 2,).
    """
    first, second = torch.triu_indices(len(stages[0]), len(stages[0]), offset=1).unbind()
    first, second = first.tolist(), second.tolist()
    values = [
        torch.stack(
            [(m[i] - m[j]).square().sum(dim=0).mean() for i, j in zip(first, second, strict=True)]
        )
        for m in stages
    ]
    return torch.stack(values).mean(dim=0)


class _Features(nn.Module):
    """Identity network: torchmetrics then takes features in place of images."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, features: Tensor) -> Tensor:
        return features


def _tensor(features: Floats) -> Tensor:
    return torch.from_numpy(features.astype(np.float64))


# Comparison of samples with photos

MOST_COMPARED = 20_000  # images, evenly spread, of KID, precision and recall
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
    "vgg16_hed": "fd_vgg16_hed",
}
_KERNEL = {"inception": "kid", "inception_clean": "kid_clean", "vgg16_hed": "kd_vgg16_hed"}


class Distance(NamedTuple):
    """A metric of samples beside that of real photos; NaN where it is not defined."""

    value: float
    real: float  # of the reference's own train photos
    n: int  # samples
    low: float = math.nan
    high: float = math.nan
    std: float | None = None  # over repetitions
    protocol: str | None = None  # particular to this metric


@dataclass(frozen=True)
class FeatureSets:
    """Features of samples, photos and train photos by one network.

    Attributes:
        network: name of the network.
        samples: (n, d).
        layouts: layout of each sample.
        photos: the reference's photos, (m, d).
        train: its train photos; None: not measured.
        given: statistics in place of the photos' own, for the Frechet distance.
    """

    network: str
    samples: Floats
    layouts: Sequence[str]
    photos: Floats
    train: Floats | None
    given: Gaussian | None = None

    def distances(self) -> tuple[dict[str, Distance], dict[str, str], list[str]]:
        """Distances by name, reasons for those that cannot be measured, and notes."""
        both = (f"precision_{self.network}", f"recall_{self.network}")
        measures: dict[tuple[str, ...], Callable[[], Sequence[Distance]]] = {
            (_FRECHET[self.network],): self._frechet,
        }
        if self.network in _KERNEL:
            measures[(_KERNEL[self.network],)] = self._kernel
        measures[both] = self._neighbours
        found: dict[str, Distance] = {}
        skipped: dict[str, str] = {}
        for names, measure in measures.items():
            try:
                found |= dict(zip(names, measure(), strict=True))
            except ValueError as error:  # too few images
                skipped |= dict.fromkeys(names, str(error))
        return found, skipped, self._notes()

    def _notes(self) -> list[str]:
        parts = (self.samples, self.photos, self.train)
        least, dim = min(len(part) for part in parts if part is not None), self.samples.shape[1]
        if least > dim:
            return []
        return [
            f"{least} images against {dim} features of {self.network}: the Frechet distance is "
            "biased upwards; compare it at this n only"
        ]

    def _frechet(self) -> list[Distance]:
        if self.given is not None:
            to_given = partial(_distance_to, self.given)
            return [Distance(to_given(self.samples), self._real(to_given), len(self.samples))]
        real = self._real(lambda train: frechet_distance_of(train, self.photos))
        value, low, high = bootstrapped_distance(
            frechet_distance_of, self.photos, self.samples, self.layouts
        )
        low = 0.0 if low < 0 else low  # no distance is below
        return [Distance(value, real, len(self.samples), low, high)]

    def _kernel(self) -> list[Distance]:
        photos = _thinned(self.photos)
        found = kid(photos, _thinned(self.samples))
        real = self._real(lambda train: kid(photos, _thinned(train)).mean)
        half = NORMAL_QUANTILE * found.std
        protocol = f"{KID_SUBSETS} subsets of {found.subset_size} images"
        ends = found.mean - half, found.mean + half
        return [Distance(found.mean, real, len(self.samples), *ends, found.std, protocol)]

    def _neighbours(self) -> list[Distance]:
        photos, real = _thinned(self.photos), (math.nan, math.nan)
        found = precision_recall(photos, _thinned(self.samples))
        if self.train is not None:
            real = precision_recall(photos, _thinned(self.train))
        return [Distance(*both, len(self.samples)) for both in zip(found, real, strict=True)]

    def _real(self, measure: Callable[[Floats], float]) -> float:
        return math.nan if self.train is None else measure(self.train)


def _distance_to(given: Gaussian, features: Floats) -> float:
    return frechet_distance(gaussian(features), given)


def _thinned(features: Floats) -> Floats:
    """At most ``MOST_COMPARED`` images, evenly spread."""
    if len(features) <= MOST_COMPARED:
        return features
    return features[np.linspace(0, len(features) - 1, MOST_COMPARED).round().astype(int)]
