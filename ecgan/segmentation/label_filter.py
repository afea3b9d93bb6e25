"""Label filter: pixels of a sample that do not show their class are set to "ignore".

FreeMask's rule (NeurIPS 2023, Sec. 3): a segmenter of real photos reads the sample, and a pixel
whose cross entropy against the layout exceeds 1.25 times the mean that its class has on real pairs
becomes unlabelled. So each class is measured by how hard it is on photos, not by one threshold.

A segmenter that learnt from a sample's source photo would accept whatever the generator has
memorised. So there are two, each trained on one half of the real pairs (cross-fitting): it is
calibrated on the other half, and judges what was made from there
(:mod:`ecgan.segmentation.calibration`).

Shape legend:
    B  images      N  classes of the recipe (input ids)      H, W  height and width
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ecgan.data import loader
from ecgan.errors import UserError
from ecgan.labels import Labels, LabelSpace
from ecgan.runtime.device import one_thread
from ecgan.segmentation.loading import load_segmenter
from ecgan.segmentation.segmenter import Segmenter

Counts = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
Maps = npt.NDArray[np.floating[Any]]
Pixels = npt.NDArray[np.uint8]
Independence = Literal["yes", "no", "unknown"]

KEPT = 0.7  # of the pixels of photos without labels that are read as a class: the surest
_SMALLEST = 1e-6
_BATCH = 8  # images in one pass on CUDA


@dataclass(frozen=True, eq=False)
class ClassLosses:
    """Mean cross entropy of each class on real pairs.

    Attributes:
        mean: mean over its pixels, (N,); NaN where the class does not occur in the pairs, or the
            segmenter does not know it.
        pixels: pixels of each class in the pairs, (N,).
        num_images: number of pairs.
    """

    mean: Numbers
    pixels: Counts
    num_images: int

    def to_json(self) -> dict[str, Any]:
        """JSON has no NaN: unknown means are null."""
        return {
            "mean": [None if np.isnan(value) else value for value in self.mean.tolist()],
            "pixels": self.pixels.tolist(),
            "num_images": self.num_images,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ClassLosses":
        mean = [np.nan if one is None else one for one in value["mean"]]
        return cls(
            np.array(mean, np.float64), np.array(value["pixels"], np.int64), value["num_images"]
        )


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of the label filter.

    Attributes:
        tolerance: pixels whose loss is above this many times their class's mean are ignored.
        min_kept: image level: a sample of which a smaller share of the labelled pixels is kept is
            inconsistent.
        min_class_kept: class level: a class of which a smaller share is kept is ignored altogether
            in that sample.
    """

    tolerance: float = 1.25
    min_kept: float = 0.5
    min_class_kept: float = 0.0


_LEVELS = 65536  # that probabilities from 0 to 1 are rounded down to


@dataclass(eq=False)
class Confidence:
    """How sure a segmenter is of the pixels that it reads as each class, over many photos.

    One threshold for all classes would leave no pixel of rare ones, of which segmenters are least
    sure; so each class has its own (class-balanced self-training, Zou et al., ECCV 2018).

    Attributes:
        pixels: pixels by the class that they are read as and by their confidence, (N, levels).
    """

    pixels: Counts

    @classmethod
    def of(cls, num_classes: int) -> "Confidence":
        """Of no pixel yet."""
        return cls(np.zeros((num_classes, _LEVELS), np.int64))

    def add(self, classes: npt.NDArray[Any], confidence: Maps) -> None:
        """Count pixels of a photo.

        Args:
            classes: the most probable class of each pixel, (H, W).
            confidence: its probability, (H, W).
        """
        levels = _levels(confidence)
        for c in np.unique(classes):
            self.pixels[c] += np.bincount(levels[classes == c], minlength=_LEVELS)

    def thresholds(self, kept: float) -> npt.NDArray[np.int64]:
        """Level that the surest ``kept`` of the pixels of each class reach, (N,).

        As many as reach the same level stay together; at least one pixel of each class does.
        """
        reached = self.pixels[:, ::-1].cumsum(axis=1)  # pixels of the highest level and down
        wanted = np.maximum(1, np.ceil(kept * self.pixels.sum(axis=1) - 1e-9))
        return _LEVELS - 1 - (reached >= wanted[:, None]).argmax(axis=1)


def surest(
    classes: npt.NDArray[Any],
    confidence: Maps,
    thresholds: npt.NDArray[np.int64],
    space: LabelSpace,
) -> Labels:
    """Label map of the pixels that reach their class's threshold, the others unlabelled, (H, W).

    Args:
        classes: as of :meth:`Confidence.add`.
        confidence: likewise.
        thresholds: of :meth:`Confidence.thresholds`.
        space: class list.
    """
    is_sure = _levels(confidence) >= thresholds[classes]
    return cast(Labels, np.where(is_sure, classes, space.ignore_index).astype(space.dtype))


def _levels(confidence: Maps) -> npt.NDArray[np.int64]:
    return (confidence.astype(np.float64) * (_LEVELS - 1)).astype(np.int64)


class Judgement(NamedTuple):
    """Verdict of the filter on one sample.

    Attributes:
        label: the layout, unlabelled where the sample does not show it, (H, W).
        consistency: mean probability, in [0, 1], that the segmenter gives to the layout's class,
            over the labelled pixels that can be judged; 1 where there are none.
        kept_fraction: share of the layout's labelled pixels that ``label`` keeps; 1 where there are
            none.
        is_consistent: it keeps enough of them.
        kept_pixels: labelled pixels of ``label``.
        labelled_pixels: labelled pixels of the layout.
    """

    label: Labels
    consistency: float
    kept_fraction: float
    is_consistent: bool
    kept_pixels: int
    labelled_pixels: int


# The rule


def class_probabilities(probabilities: Tensor, labels: Tensor, ignore: int) -> Tensor:
    """Probability of each pixel's class, (B, H, W); 1 at unlabelled pixels.

    Args:
        probabilities: probabilities of the classes, (B, N, H, W).
        labels: int64, (B, H, W).
        ignore: the value of unlabelled pixels.
    """
    labelled = labels != ignore
    classes = labels.where(labelled, labels.new_zeros(()))
    own = probabilities.gather(1, classes[:, None])[:, 0]
    return own.where(labelled, own.new_ones(()))


def pixel_losses(probabilities: Tensor, labels: Tensor, ignore: int) -> Tensor:
    """Cross entropy of each pixel: -log of its class's probability, (B, H, W); 0 if unlabelled.

    Probabilities are bounded from below by 1e-6. A softmax in float32 ends at an exact zero, whose
    infinite loss would make the class's mean infinite and so let everything pass; with the bound,
    no pixel weighs more than 14, about five times a guess among 19 classes. The arguments are those
    of :func:`class_probabilities`.
    """
    return -class_probabilities(probabilities, labels, ignore).clamp(min=_SMALLEST).log()


def class_loss_sums(losses: Maps, labels: Labels, num_classes: int) -> tuple[Numbers, Counts]:
    """Sum of the losses and number of the pixels of each class, (N,) each, in float64.

    Args:
        losses: losses of pixels, of any shape.
        labels: labels of the same pixels; what is not below ``num_classes`` is left out.
        num_classes: N.
    """
    labelled = labels < num_classes
    classes = labels[labelled]
    sums = np.bincount(classes, losses[labelled].astype(np.float64), num_classes)
    return sums.astype(np.float64), np.bincount(classes, minlength=num_classes).astype(np.int64)


def mean_class_losses(
    sums: Numbers, pixels: Counts, known: npt.NDArray[np.bool_], num_images: int
) -> ClassLosses:
    """Means over a data set.

    Args:
        sums: sum of the losses of each class, (N,).
        pixels: pixels of each class, (N,).
        known: classes that the segmenter can tell, (N,).
        num_images: images of the data set.
    """
    mean = np.full(len(sums), np.nan)
    np.divide(sums, pixels, out=mean, where=known & (pixels > 0))
    return ClassLosses(mean, pixels, num_images)


def judge(
    losses: Maps,
    probabilities: Maps,
    label: Labels,
    class_losses: ClassLosses,
    thresholds: Thresholds,
    ignore_index: int,
) -> Judgement:
    """Judge one sample: pixels first, then classes, then the image.

    Pixels of classes without a mean cannot be judged: they are kept, and leave the sample's
    consistency alone.

    Args:
        losses: losses of its pixels, from :func:`pixel_losses`, (H, W).
        probabilities: probabilities of the layout's classes, from :func:`class_probabilities`,
            (H, W).
        label: the layout, (H, W).
        class_losses: mean losses of the same segmenter.
        thresholds: thresholds of the label filter.
        ignore_index: the value of unlabelled pixels.
    """
    N = len(class_losses.mean)
    limits = np.full(ignore_index + 1, np.nan)  # of each value of a label map
    limits[:N] = thresholds.tolerance * class_losses.mean
    limit = limits[label]
    labelled = label != ignore_index
    kept = labelled & ~(losses > limit)  # nothing is above NaN

    num_labelled = np.bincount(label[labelled], minlength=N)
    num_kept = np.bincount(label[kept], minlength=N)
    is_lost = np.zeros(ignore_index + 1, np.bool_)
    is_lost[:N] = num_kept / np.maximum(num_labelled, 1) < thresholds.min_class_kept
    kept &= ~is_lost[label]

    kept_pixels, labelled_pixels = int(kept.sum()), int(labelled.sum())
    kept_fraction = kept_pixels / labelled_pixels if labelled_pixels else 1.0
    judged = probabilities[~np.isnan(limit)]
    consistency = min(1.0, float(judged.mean(dtype=np.float64))) if judged.size else 1.0
    return Judgement(
        cast(Labels, np.where(kept, label, label.dtype.type(ignore_index))),
        consistency,
        kept_fraction,
        kept_fraction >= thresholds.min_kept,
        kept_pixels,
        labelled_pixels,
    )


def prediction_key(segmenter: Segmenter) -> dict[str, Any]:
    """Everything that decides a segmenter's predictions, for a cache key."""
    return {"hash": segmenter.hash, "normalisation": asdict(segmenter.normalisation)}


def deterministic(device: torch.device) -> AbstractContextManager[object]:
    """One thread on a CPU, where the number of threads decides the order of sums."""
    return one_thread() if device.type == "cpu" else nullcontext()


def batch_size(device: torch.device) -> int:
    """Images of a pass; on a CPU one, whose prediction does then not depend on others."""
    return _BATCH if device.type == "cuda" else 1


# The filter


@dataclass(frozen=True)
class FilterSpec:
    """Configuration of the filter, small enough to be sent to workers.

    Attributes:
        segmenters: folders or names; one, or two that are cross-fitted.
        losses: mean losses of each of them.
        thresholds: thresholds of the label filter.
        hash: hash of the segmenters' weights and of their losses.
        independent: whether each segmenter judges only samples of pairs that it did not learn from.
        weights: hash of each segmenter's weights, so that none of them is taken for a judge.
    """

    segmenters: tuple[str, ...]
    losses: tuple[ClassLosses, ...]
    thresholds: Thresholds
    hash: str
    independent: Independence
    weights: tuple[str, ...] = ()

    def pooled_losses(self) -> Numbers:
        """Mean loss of each class over the pairs of all segmenters, (N,); NaN where not known."""
        means = np.stack([one.mean for one in self.losses])
        pixels = np.stack([one.pixels for one in self.losses]) * np.isfinite(means)
        total = pixels.sum(axis=0)
        sums = (np.nan_to_num(means) * pixels).sum(axis=0)
        return np.divide(sums, total, out=np.full(len(total), np.nan), where=total > 0)


@dataclass(frozen=True)
class Folds:
    """Assignment of layouts to segmenters: of two, the one that did not learn from its source.

    Attributes:
        num_segmenters: 1 or 2.
        by_label: SHA-256 of the label file of each pair -> the segmenter that learnt from it.
        by_key: key of each pair -> the segmenter that learnt from it.
    """

    num_segmenters: int = 1
    by_label: Mapping[str, int] = field(default_factory=dict[str, int])
    by_key: Mapping[str, int] = field(default_factory=dict[str, int])

    def fold(self, key: str, label_sha256: str) -> int:
        """Number of the segmenter that judges a layout.

        A pair is recognised by the content of its label file, whatever its key; else by its key,
        as a map that was edited. For a layout of neither half, the hash of its key decides.
        """
        if self.num_segmenters == 1:
            return 0
        learnt = self.by_label.get(label_sha256, self.by_key.get(key))
        return key_number(key) % 2 if learnt is None else 1 - learnt


def filter_hash(segmenters: Sequence[Segmenter], losses: Sequence[ClassLosses]) -> str:
    """SHA-256 of segmenters and of their losses."""
    document = [*map(prediction_key, segmenters), *(one.to_json() for one in losses)]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def key_number(key: str) -> int:
    """First 64 bits of the SHA-256 of a key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


class Filter:
    """Label filter of a worker.

    Args:
        spec: configuration from ``prepare_filter``.
        space: the recipe's classes.
        device: device of the segmenters.

    Raises:
        UserError: a segmenter is not there, or not the one that the spec was made with.
    """

    def __init__(self, spec: FilterSpec, space: LabelSpace, device: torch.device) -> None:
        self.spec = spec
        self.ignore_index = space.ignore_index
        self.device = device
        self.segmenters = [
            load_segmenter(name, space, device=device, role="filter") for name in spec.segmenters
        ]
        if filter_hash(self.segmenters, spec.losses) != spec.hash:
            raise UserError(
                f"--filter: {' or '.join(spec.segmenters)} holds other weights than when the run "
                "was planned; run the same command again"
            )

    @torch.inference_mode()
    def judge_batch(self, images: Pixels, labels: Labels, fold: int) -> list[Judgement]:
        """Judge samples of layouts of one fold.

        Args:
            images: (B, H, W, 3).
            labels: their layouts, input ids, (B, H, W).
            fold: number of the segmenter, from :meth:`Folds.fold`.
        """
        segmenter, losses = self.segmenters[fold], self.spec.losses[fold]
        judgements: list[Judgement] = []
        with deterministic(self.device):
            step = batch_size(self.device)
            for first in range(0, len(images), step):
                some = labels[first : first + step]
                maps = self._maps(segmenter, images[first : first + step], some)
                judgements += [
                    judge(loss, own, label, losses, self.spec.thresholds, self.ignore_index)
                    for loss, own, label in zip(*maps, some, strict=True)
                ]
        return judgements

    def _maps(
        self, segmenter: Segmenter, images: Pixels, labels: Labels
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Losses and probabilities of the layouts' classes, (B, H, W) each."""
        pixels = torch.tensor(images).permute(0, 3, 1, 2).to(self.device)
        classes = torch.from_numpy(labels.astype(np.int64)).to(self.device)
        found = segmenter.probabilities(loader.to_images(pixels))
        losses = pixel_losses(found, classes, self.ignore_index)
        own = class_probabilities(found, classes, self.ignore_index)
        return losses.cpu().numpy(), own.cpu().numpy()
