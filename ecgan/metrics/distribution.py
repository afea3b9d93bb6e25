"""Distances between sets of images, and the agreement of segmentations.

Distances work on features, (images, dim), that a frozen network gave: compute them once, and every
number comes from them. Only Inception's are called FID and KID; those of another network carry its
name. Everything is float64 or int64, so neither the batch size nor the order matters (KID draws its
subsets by position), and parts of a set can be merged.

Shape legend:
    n, m  images      d  features of an image      N  classes      B  images in a batch
"""

import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from ecgan.errors import UserError, first_line
from ecgan.runtime.files import whole_file, writing

Floats = npt.NDArray[np.floating[Any]]
Counts = npt.NDArray[np.int64]

Pixels = npt.NDArray[np.uint8]

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
_BLOCK = 1000  # images whose distances to all others are looked at together
_ROUNDING = 1e-12  # of the squared lengths: a squared distance below it is rounding


class Gaussian(NamedTuple):
    """What a Frechet distance knows of a set of features."""

    mean: Floats  # (d,)
    covariance: Floats  # (d, d)
    num_images: int | None = None  # a file of pytorch-fid does not say


def read_npz(path: Path, dim: int) -> Gaussian:
    """Read statistics as pytorch-fid writes them: ``mu`` and ``sigma``.

    Args:
        path: an npz file.
        dim: d that they must have.

    Raises:
        UserError: no such file, no such arrays, of other shapes, or not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (file[name].astype(np.float64) for name in ("mu", "sigma"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except KeyError as error:
        raise UserError(f"{path}: has no array {error}; expected mu and sigma") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        cause = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise UserError(
            f"{path}: not an npz file of mean (mu) and covariance (sigma){cause}; give one that "
            "pytorch-fid or --save-npz wrote"
        ) from None
    if mean.shape != (dim,) or covariance.shape != (dim, dim):
        raise UserError(
            f"{path}: mu {mean.shape} and sigma {covariance.shape}; expected ({dim},) and "
            f"({dim}, {dim})"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: mu or sigma has NaN or infinity")
    return Gaussian(mean, covariance)


def write_npz(path: Path, gaussian: Gaussian) -> None:
    """Write statistics as pytorch-fid reads them; whole or not at all.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    with writing(path), whole_file(path) as file:
        np.savez(file, allow_pickle=False, mu=gaussian.mean, sigma=gaussian.covariance)


@dataclass
class FeatureStatistics:
    """Mean and covariance of a stream of feature vectors; the batch size does not matter.

    Sums in float64: the covariance is a difference of two large numbers. They are taken about the
    first vector, which takes most of that difference away.
    """

    dim: int
    count: int = 0
    origin: Floats = field(init=False)
    total: Floats = field(init=False)
    total_outer: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.origin = np.zeros(self.dim)
        self.total = np.zeros(self.dim)
        self.total_outer = np.zeros((self.dim, self.dim))

    @classmethod
    def of(cls, features: Floats) -> Self:
        """Statistics of an array, (n, d)."""
        statistics = cls(features.shape[1])
        statistics.update(features)
        return statistics

    def update(self, features: Floats) -> None:
        """Add features, (n, d)."""
        assert features.shape[1:] == (self.dim,), f"{features.shape} features, {self.dim} expected"
        if not len(features):
            return
        features = features.astype(np.float64)
        if self.count == 0:
            self.origin = features[0].copy()
        offsets = features - self.origin
        self.count += len(features)
        self.total += offsets.sum(axis=0)
        self.total_outer += offsets.T @ offsets

    def merge(self, other: "FeatureStatistics") -> None:
        """Add what another part of the set has seen."""
        if other.count == 0:
            return
        if self.count == 0:
            self.origin = other.origin.copy()
        shift = other.origin - self.origin
        cross = np.outer(other.total, shift)
        self.total += other.total + other.count * shift
        self.total_outer += other.total_outer + cross + cross.T
        self.total_outer += other.count * np.outer(shift, shift)
        self.count += other.count

    def mean_and_covariance(self) -> tuple[Floats, Floats]:
        """Mean, (d,), and unbiased covariance, (d, d)."""
        if self.count < 2:
            raise ValueError(f"covariance needs at least 2 images, got {self.count}")
        mean = self.total / self.count
        centred = self.total_outer - self.count * np.outer(mean, mean)
        return self.origin + mean, centred / (self.count - 1)

    def gaussian(self) -> Gaussian:
        """The same, named, with the number of images."""
        return Gaussian(*self.mean_and_covariance(), self.count)


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
        mean, covariance = FeatureStatistics.of(features).mean_and_covariance()
        return mean, _factor(covariance)
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
    """Kernel Inception distance by torchmetrics, of Inception features (n, 2048) and (m, 2048).

    Unbiased for any number of images, unlike FID. Subsets of 1,000 images as is usual, or half of
    the smaller set, so that subsets differ and their deviation says something.

    Raises:
        ValueError: a set has fewer than 4 images.
    """
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


class EdgeCounts(NamedTuple):
    """Pixels behind precision and recall of an edge map; they add over images."""

    matched_edge: int  # edge pixels of the map near an edge of the image
    num_edge: int
    matched_canny: int  # edge pixels of the image near an edge of the map
    num_canny: int


def edge_agreement(edge: Pixels, canny: Pixels, tolerance: int | None = None) -> EdgeCounts:
    """How far a generated edge map and Canny of its image mean the same edges.

    Args:
        edge: the map, (H, W); 128 and above is an edge.
        canny: edges of the image, (H, W), not 0 on an edge.
        tolerance: a pixel matches an edge of the other within a square of so many pixels around
            it; default: 0.0075 of the diagonal, as in BSDS, and at least 1.
    """
    if tolerance is None:
        tolerance = max(1, round(0.0075 * float(np.hypot(*edge.shape))))
    window = np.ones((2 * tolerance + 1,) * 2, np.uint8)
    drawn, found = (edge >= 128).astype(np.uint8), (canny > 0).astype(np.uint8)
    near_drawn, near_found = (np.asarray(cv2.dilate(m, window), np.uint8) for m in (drawn, found))
    return EdgeCounts(
        int((drawn & near_found).sum()),
        int(drawn.sum()),
        int((found & near_drawn).sum()),
        int(found.sum()),
    )


class InceptionFeatures(nn.Module):
    """The Inception network of FID and KID, with torch-fidelity's TF1 resize; frozen.

    Args:
        weights: ``pt_inception-2015-12-05-6726825d.pth`` of pytorch-fid, which torch-fidelity
            calls ``weights-inception-2015-12-05-6726825d.pth``.

    Raises:
        UserError: torch-fidelity is missing, or the weights do not fit.
    """

    dim = 2048

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise UserError("FID and KID take torch-fidelity; pip install 'ecgan[eval]'") from None
        _check_weights(Path(weights))
        try:
            self.network = FeatureExtractorInceptionV3("inception", ["2048"], str(weights))
        except RuntimeError as error:
            raise _bad_weights(Path(weights), first_line(error)) from None

    def forward(self, images: Tensor) -> Tensor:
        """Images in [-1, 1], (B, 3, H, W) -> features, (B, 2048); rounded as in a file."""
        pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return cast("tuple[Tensor]", self.network(pixels))[0]

    def forward_resized(self, pixels: Tensor) -> Tensor:
        """Pixels in 0..255 that were resized already, float32, (B, 3, 299, 299) -> (B, 2048)."""
        x = (pixels - 128) / 128  # as TensorFlow's graph does
        for name, layer in self.network.named_children():
            if name != "fc":  # the head of ImageNet, the last of them
                x = layer(x)
        return x.flatten(1)


@dataclass
class ConfusionMatrix:
    """Pixels by true and by predicted class, summed over a whole set, as mIoU is defined.

    Attributes:
        num_classes: N.
        counts: true class x predicted class, int64, (N, N + 1); the last column is predictions
            that are no class.
        num_void: pixels without a true class.
    """

    num_classes: int
    counts: Counts = field(init=False)
    num_void: int = 0

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.num_classes, self.num_classes + 1), np.int64)

    def update(self, labels: npt.ArrayLike, predictions: npt.ArrayLike) -> None:
        """Add pixels; labels from N on are void, predictions from N on are wrong everywhere."""
        true, predicted = np.asarray(labels).ravel(), np.asarray(predictions).ravel()
        assert true.shape == predicted.shape, f"{true.shape} labels, {predicted.shape} predictions"
        N = self.num_classes
        labelled = true < N
        pairs = true[labelled].astype(np.int64) * (N + 1)
        pairs += np.minimum(predicted[labelled].astype(np.int64), N)
        self.counts += np.bincount(pairs, minlength=N * (N + 1)).reshape(N, N + 1)
        self.num_void += int(true.size - labelled.sum())

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add another part of the set."""
        self.counts += other.counts
        self.num_void += other.num_void

    def iou(self) -> Floats:
        """Intersection over union of each class, (N,); NaN for a class in neither.

        A class that was predicted and never there has 0.
        """
        hits = self.counts.diagonal().astype(np.float64)
        union = self.counts.sum(axis=1) + self.counts.sum(axis=0)[: self.num_classes] - hits
        return np.divide(hits, union, out=np.full(self.num_classes, np.nan), where=union > 0)

    def miou(self) -> float:
        """Mean IoU of the classes that occur; NaN where none does."""
        iou = self.iou()
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

    def accuracy(self) -> float:
        """Share of the labelled pixels that are right."""
        return _share(int(self.counts.diagonal().sum()), int(self.counts.sum()))

    def accuracy_with_void(self) -> float:
        """Share of all pixels that are right; void pixels count as wrong."""
        hits = int(self.counts.diagonal().sum())
        return _share(hits, int(self.counts.sum()) + self.num_void)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


class _Features(nn.Module):
    """What torchmetrics takes for a network, where it gets the features themselves."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, features: Tensor) -> Tensor:
        return features


def _tensor(features: Floats) -> Tensor:
    return torch.from_numpy(features.astype(np.float64))


def _check_weights(path: Path) -> None:
    """torch-fidelity would run what a pickle holds: read it as plain tensors first."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise _bad_weights(path, "no such file") from None
    except Exception as error:  # noqa: BLE001  torch has half a dozen kinds for foreign files
        raise _bad_weights(path, first_line(error)) from None


def _bad_weights(path: Path, reason: str) -> UserError:
    return UserError(
        f"evaluate.inception_weights: {path}: {reason}; expected "
        "pt_inception-2015-12-05-6726825d.pth (https://github.com/mseitzer/pytorch-fid/releases), "
        "or leave it out with evaluate.features: [efficientnet_lite0]"
    )
