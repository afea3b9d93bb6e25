"""Samples, reference and judge -> numbers. Used by validation during training and by ``evaluate``.

Two questions. *Does the image show its layout?* A judge, a segmenter, reads the image, and its
reading is compared with the layout, in evaluation ids. *Do the images look like the photos?* The
distance between the distributions of their features.

Every number is meant to stand beside what the same measurement gives for real photos.

Shape legend:
    n  images      E  evaluation classes      B  images in a batch      H, W  height and width
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ecgan import metrics
from ecgan.data.loader import Batch, TripleDataset, ordered_batches, to_device, to_images
from ecgan.labels import Labels, LabelSpace
from ecgan.segmentation import Segmenter

Counts = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

RESAMPLES = 200
AGREEMENTS = ("miou", "frequency_weighted_iou", "accuracy", "accuracy_with_void")


class Estimate(NamedTuple):
    """A number with the ends of its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


class Agreement(NamedTuple):
    """How far readings agree with layouts."""

    overall: dict[str, Estimate]  # by the names in AGREEMENTS
    iou: list[Estimate]  # (E,)


@dataclass
class Tally:
    """What a judge read in each image, counted against its layout.

    Attributes:
        num_classes: E.
        keys: of the images, in the order they came.
        layouts: the layout each image was made from; images of one layout are not independent.
        hits: pixels of each class that were read as such, each (E,).
        labelled: pixels of each class in the layout.
        read: labelled pixels that were read as each class.
        pixels: all pixels of each image, unlabelled ones too.
        confusion: over all images, layout's class x class read; the last column holds readings
            that are no evaluation class. (E, E + 1)
    """

    num_classes: int
    keys: list[str] = field(default_factory=list[str])
    layouts: list[str] = field(default_factory=list[str])
    hits: list[Counts] = field(default_factory=list[Counts])
    labelled: list[Counts] = field(default_factory=list[Counts])
    read: list[Counts] = field(default_factory=list[Counts])
    pixels: list[int] = field(default_factory=list[int])
    confusion: Counts = field(init=False)

    def __post_init__(self) -> None:
        self.confusion = np.zeros((self.num_classes, self.num_classes + 1), np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, key: str, layout: str, label: Labels, reading: npt.NDArray[np.integer]) -> None:
        """Count one image.

        Args:
            key: of the image.
            layout: key of its layout.
            label: evaluation ids, (H, W); what is not below E is not scored.
            reading: evaluation ids as the judge sees them, (H, W); E and above are wrong always.
        """
        E = self.num_classes
        scored = label < E
        pairs = label[scored].astype(np.int64) * (E + 1) + np.minimum(reading[scored], E)
        confusion = np.bincount(pairs, minlength=E * (E + 1)).reshape(E, E + 1)
        self.keys.append(key)
        self.layouts.append(layout)
        self.hits.append(confusion.diagonal().copy())
        self.labelled.append(confusion.sum(axis=1))
        self.read.append(confusion.sum(axis=0)[:E])
        self.pixels.append(label.size)
        self.confusion += confusion

    def select(self, layouts: frozenset[str]) -> "Tally":
        """The images of these layouts; its confusion is left at zero."""
        part = Tally(self.num_classes)
        for index, layout in enumerate(self.layouts):
            if layout in layouts:
                part.keys.append(self.keys[index])
                part.layouts.append(layout)
                part.hits.append(self.hits[index])
                part.labelled.append(self.labelled[index])
                part.read.append(self.read[index])
                part.pixels.append(self.pixels[index])
        return part

    def accuracies(self) -> Numbers:
        """Pixel accuracy of each image, (n,); NaN where nothing is labelled."""
        hits, labelled = np.stack(self.hits).sum(axis=1), np.stack(self.labelled).sum(axis=1)
        return _ratio(hits.astype(float), labelled.astype(float))


def agreement(tally: Tally, *, seed: int = 0) -> Agreement:
    """Sums over all images, as mIoU is defined, with intervals.

    The interval is a percentile bootstrap over layouts: images of one layout are drawn together,
    since another style of the same layout is no independent image.
    """
    assert len(tally), "nothing was counted"
    _, group = np.unique(tally.layouts, return_inverse=True)
    num_groups = int(group.max()) + 1

    def by_layout(rows: Sequence[npt.ArrayLike]) -> Numbers:
        sums = np.zeros((num_groups, *np.shape(rows[0])))
        np.add.at(sums, group, np.asarray(rows, float))
        return sums

    per_layout = tuple(by_layout(r) for r in (tally.hits, tally.labelled, tally.read, tally.pixels))
    value = _numbers(*(part.sum(axis=0, keepdims=True) for part in per_layout))
    rng = np.random.default_rng(seed)
    times = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=RESAMPLES)
    drawn = _numbers(*(times @ part for part in per_layout))

    def estimate(point: float, samples: Numbers) -> Estimate:
        known = samples[np.isfinite(samples)]
        if num_groups < 2 or not known.size:
            return Estimate(float(point), np.nan, np.nan)
        low, high = np.percentile(known, [2.5, 97.5])
        return Estimate(float(point), float(low), float(high))

    overall = {name: estimate(value[name][0], drawn[name]) for name in AGREEMENTS}
    iou = [estimate(value["iou"][0, c], drawn["iou"][:, c]) for c in range(tally.num_classes)]
    return Agreement(overall, iou)


def _numbers(hits: Numbers, labelled: Numbers, read: Numbers, pixels: Numbers) -> dict[str, Numbers]:
    """The definitions, on rows of counts (R, E), (R, E), (R, E) and (R,)."""
    iou = _ratio(hits, labelled + read - hits)  # (R, E)
    occurs = np.isfinite(iou)
    total = labelled.sum(axis=1)
    return {
        "iou": iou,
        "miou": _ratio(np.where(occurs, iou, 0).sum(axis=1), occurs.sum(axis=1)),
        "frequency_weighted_iou": _ratio((labelled * np.where(occurs, iou, 0)).sum(axis=1), total),
        "accuracy": _ratio(hits.sum(axis=1), total),
        "accuracy_with_void": _ratio(hits.sum(axis=1), pixels),
    }


def _ratio(part: Numbers, whole: npt.NDArray[np.generic]) -> Numbers:
    whole = np.asarray(whole, float)
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
