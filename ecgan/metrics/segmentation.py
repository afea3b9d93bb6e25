"""Agreement of predicted label maps with true ones: mIoU, accuracy, consistency, edges.

Counts are kept image by image, so that intervals can be bootstrapped over layouts; all of them are
integers, so neither the batch size nor the order of the images matters.

Shape legend:
    n  images      N  classes      H, W  height and width      R  resamples
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from ecgan.metrics.statistics import Estimate, resampled, with_percentiles

Counts = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

AGREEMENTS = ("miou", "frequency_weighted_iou", "accuracy", "accuracy_with_void", "consistency")


class Agreement(NamedTuple):
    """Scores of a set of images, with intervals."""

    overall: dict[str, Estimate]  # by the names in AGREEMENTS
    iou: list[Estimate]  # of each class, (N,); NaN for one that neither occurs nor is predicted


@dataclass
class PerImageConfusion:
    """Confusion counts of each image, and the confusion matrix of all together.

    Attributes:
        num_classes: N.
        keys: keys of the images, in the order they came.
        layouts: layout of each image; images of one layout are not independent.
        true_positives: pixels of each class that were predicted as such, each (N,).
        labelled: pixels of each class in the true labels, each (N,).
        predicted: labelled pixels that were predicted as each class, each (N,).
        pixels: all pixels of each image, unlabelled ones too.
        label_probability: sum over an image's labelled pixels of the probability that was predicted
            for the true class; NaN where it is not known.
        matrix: true class x predicted class, summed over the images, (N, N + 1); the last column is
            no class.
    """

    num_classes: int
    keys: list[str] = field(default_factory=list[str])
    layouts: list[str] = field(default_factory=list[str])
    true_positives: list[Counts] = field(default_factory=list[Counts])
    labelled: list[Counts] = field(default_factory=list[Counts])
    predicted: list[Counts] = field(default_factory=list[Counts])
    pixels: list[int] = field(default_factory=list[int])
    label_probability: list[float] = field(default_factory=list[float])
    matrix: Counts = field(init=False)

    def __post_init__(self) -> None:
        self.matrix = np.zeros((self.num_classes, self.num_classes + 1), np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def add(
        self,
        key: str,
        layout: str,
        label: npt.NDArray[np.integer[Any]],
        prediction: npt.NDArray[np.integer[Any]],
        label_probability: float = np.nan,
    ) -> None:
        """Count one image.

        Args:
            key: key of the image.
            layout: key of its layout.
            label: true classes, (H, W); pixels from N on are not scored.
            prediction: predicted classes, (H, W); from N on they are wrong everywhere.
            label_probability: sum of the probabilities of the true classes.
        """
        N = self.num_classes
        scored = label < N
        pairs = label[scored].astype(np.int64) * (N + 1) + np.minimum(prediction[scored], N)
        matrix = np.bincount(pairs, minlength=N * (N + 1)).reshape(N, N + 1)
        self.keys.append(key)
        self.layouts.append(layout)
        self.true_positives.append(matrix.diagonal().copy())
        self.labelled.append(matrix.sum(axis=1))
        self.predicted.append(matrix.sum(axis=0)[:N])
        self.pixels.append(label.size)
        self.label_probability.append(label_probability)
        self.matrix += matrix

    def extend(self, other: "PerImageConfusion") -> None:
        """Add the images of another part of the set."""
        for name in PER_IMAGE:
            getattr(self, name).extend(getattr(other, name))
        self.matrix += other.matrix

    def select(self, layouts: Collection[str]) -> "PerImageConfusion":
        """The images of these layouts; without a confusion matrix, which is of all together."""
        part = PerImageConfusion(self.num_classes)
        chosen = [i for i, layout in enumerate(self.layouts) if layout in layouts]
        for name in PER_IMAGE:
            getattr(part, name).extend(getattr(self, name)[i] for i in chosen)
        return part

    def labelled_classes(self) -> npt.NDArray[np.bool_]:
        """Which classes have a labelled pixel in any image, (N,)."""
        return np.stack(self.labelled).sum(axis=0) > 0

    def accuracies(self) -> Numbers:
        """Pixel accuracy of each image, (n,); NaN where nothing is labelled."""
        return _ratio(np.stack(self.true_positives).sum(axis=1), self._labelled_pixels())

    def consistencies(self) -> Numbers:
        """Mean probability of the true class in each image, (n,); NaN where it is not known."""
        return _ratio(np.asarray(self.label_probability, float), self._labelled_pixels())

    def _labelled_pixels(self) -> Counts:
        return np.stack(self.labelled).sum(axis=1)


_COUNTED = ("true_positives", "labelled", "predicted", "pixels", "label_probability")
PER_IMAGE = ("keys", "layouts", *_COUNTED)


def agreement(
    confusion: PerImageConfusion, *, classes: npt.NDArray[np.bool_] | None = None, seed: int = 0
) -> Agreement:
    """Scores from sums over all images, as mIoU is defined, with intervals.

    The interval is a percentile bootstrap over layouts: images of one layout are drawn together,
    since another style of the same layout is no independent image. Every mean is over the same
    classes: one that is not labelled in a draw counts there with its IoU in all images.

    Args:
        confusion: counts of each image.
        classes: classes that mIoU is the mean over, (N,); default: those that are labelled or
            predicted.
        seed: of the bootstrap.
    """
    assert len(confusion), "no images"
    counted = [getattr(confusion, name) for name in _COUNTED]
    widths = np.cumsum([np.size(rows[0]) for rows in counted])[:-1]
    rows = np.concatenate([np.reshape(part, (len(confusion), -1)) for part in counted], axis=1)
    whole, drawn = resampled(rows.astype(np.float64), confusion.layouts, seed=seed)
    counts, draws = (np.split(sums, widths, axis=1) for sums in (whole, drawn))
    value, samples = _scores(*counts), _scores(*draws)
    mean_over = np.isfinite(value["iou"][0])
    if classes is not None:
        mean_over &= classes
    of_all = value["iou"][:, mean_over]  # (1, K)
    labelled = draws[1][:, mean_over] > 0  # (R, K)
    value["miou"] = _ratio(of_all.sum(axis=1), np.sum(mean_over, keepdims=True))
    iou_drawn = np.where(labelled, samples["iou"][:, mean_over], of_all)
    samples["miou"] = _ratio(iou_drawn.sum(axis=1), np.full(len(iou_drawn), mean_over.sum()))
    overall = {name: with_percentiles(value[name][0], samples[name]) for name in AGREEMENTS}
    iou = [
        with_percentiles(value["iou"][0, c], samples["iou"][:, c])
        for c in range(confusion.num_classes)
    ]
    return Agreement(overall, iou)


def _scores(
    hits: Numbers, labelled: Numbers, predicted: Numbers, pixels: Numbers, probability: Numbers
) -> dict[str, Numbers]:
    """Scores of rows of counts, (R, N), (R, N), (R, N), (R, 1) and (R, 1)."""
    iou = intersection_over_union(hits, labelled, predicted)
    known, total = np.nan_to_num(iou), labelled.sum(axis=1)
    return {
        "iou": iou,
        "frequency_weighted_iou": _ratio((labelled * known).sum(axis=1), total),
        "accuracy": _ratio(hits.sum(axis=1), total),
        "accuracy_with_void": _ratio(hits.sum(axis=1), pixels[:, 0]),
        "consistency": _ratio(probability[:, 0], total),
    }


def intersection_over_union(hits: Numbers, labelled: Numbers, predicted: Numbers) -> Numbers:
    """IoU of true positives, labelled and predicted pixels, (R, N); NaN where there are none."""
    return _ratio(hits, labelled + predicted - hits)


def _ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Numbers:
    """Quotient; NaN where the denominator is 0."""
    whole = np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


# Edge maps


class EdgeCounts(NamedTuple):
    """Pixel counts behind precision and recall of an edge map; they add over images."""

    matched_edge: int  # edge pixels of the map near an edge of the image
    num_edge: int
    matched_canny: int  # edge pixels of the image near an edge of the map
    num_canny: int


def edge_agreement(edge: Pixels, canny: Pixels, tolerance: int | None = None) -> EdgeCounts:
    """Matches between a generated edge map and Canny's edges of its image.

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


def edge_scores(counts: Sequence[Sequence[int]], layouts: Sequence[str]) -> dict[str, Estimate]:
    """Precision, recall and F1 of edge maps, from the :class:`EdgeCounts` of each image."""

    def scores(sums: Numbers) -> dict[str, Numbers]:
        matched_edge, num_edge, matched_canny, num_canny = sums.T
        precision, recall = _ratio(matched_edge, num_edge), _ratio(matched_canny, num_canny)
        f1 = _ratio(2 * precision * recall, precision + recall)
        return {"edge_precision": precision, "edge_recall": recall, "edge_f1": f1}

    whole, drawn = (scores(s) for s in resampled(np.asarray(counts, float), layouts))
    return {name: with_percentiles(float(whole[name][0]), drawn[name]) for name in whole}
