"""Spread of styles: how much a class varies between styles of one layout, against photos.

A class's mean colour, or mean feature, is one point in each image that shows the class. The spread
is the variance of these points over styles of one layout, divided by their variance over photos.

Sums over classes are divided, not ratios averaged: where a class hardly varies over photos its
ratio is noise. All sums are float64.

Shape legend:
    n  images      E  evaluation classes      C  channels: 3 of a colour, or of a feature map
    g  groups: styles of one layout each      h, w  height and width of a map      R  resamples
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ecgan.metrics.statistics import Estimate, resampled, with_percentiles

Numbers = npt.NDArray[np.float64]

LEAST_PIXELS = 64  # of an image, that a class must have there: fewer are texture, not a mean
_HARDLY = 0.01  # of the classes' mean variance over photos: a ratio to less says nothing


class StyleSpread(NamedTuple):
    """Spread of the styles of a set, 1 where they differ as photos do."""

    overall: Estimate  # with its interval by a bootstrap over layouts
    per_class: Numbers  # (E,); NaN where it is not defined


def class_means(maps: Tensor, labels: npt.NDArray[np.integer[Any]], num_classes: int) -> Numbers:
    """Mean of each class's pixels in each image.

    Args:
        maps: images or feature maps, (n, C, h, w).
        labels: classes at the images' size, (n, H, W), of which each pixel of a map reads the one
            at its centre; from E on, a pixel has no class.
        num_classes: E.

    Returns:
        (n, E, C); NaN where a class has fewer than ``LEAST_PIXELS`` of the image's pixels, or the
        same area of a map.
    """
    (h, w), (H, W) = maps.shape[2:], labels.shape[1:]
    rows, columns = (2 * np.arange(h) + 1) * H // (2 * h), (2 * np.arange(w) + 1) * W // (2 * w)
    small = labels[:, rows][:, :, columns].reshape(len(labels), -1).astype(np.int64)
    least = max(1.0, LEAST_PIXELS * h * w / (H * W))
    means: list[Numbers] = []
    for pixels, label in zip(maps.flatten(2).double().cpu().numpy(), small, strict=True):
        count, *sums = (
            np.bincount(label, channel, minlength=num_classes)[:num_classes]
            for channel in (None, *pixels)
        )
        mean = np.column_stack(sums) / np.maximum(count, 1)[:, None]
        means.append(np.where(count[:, None] >= least, mean, np.nan))
    return np.stack(means)


def class_sums(means: Numbers) -> Numbers:
    """Number of images, sum of squares and sum of the means of each class; sums of parts add up.

    Args:
        means: (n, E, C), NaN where an image lacks the class.

    Returns:
        (E, 2 + C).
    """
    there = np.isfinite(means[:, :, :1])  # (n, E, 1)
    known = np.where(there, means, 0)
    columns = (there.sum(axis=(0, 2)), np.square(known).sum(axis=(0, 2)))
    return np.column_stack([*columns, known.sum(axis=0)])


def scatter(sums: Numbers) -> Numbers:
    """Squared deviations of a class's means from their own mean, and degrees of freedom, n - 1.

    Args:
        sums: of :func:`class_sums`, (E, 2 + C).

    Returns:
        (2, E), the deviations summed over channels; 0 and 0 where less than two images have the
        class.
    """
    count, squares, total = sums[:, 0], sums[:, 1], sums[:, 2:]
    deviations = squares - np.square(total).sum(axis=1) / np.maximum(count, 1)
    several = count > 1
    return np.where(several, [np.maximum(deviations, 0), count - 1], 0.0)


def style_spread(styles: Numbers, layouts: Sequence[str], photos: Numbers) -> StyleSpread:
    """Variance of class means over styles of a layout, against that over photos.

    The variance of each class is unbiased and pooled over the layouts that show it: where all have
    as many styles, the mean of the layouts' variances. Classes without a variance of both kinds are
    left out of both sums.

    Args:
        styles: :func:`scatter` of the styles of each group, (g, 2, E).
        layouts: layout of each group, (g,).
        photos: that of the photos, (2, E).

    Raises:
        ValueError: no class has two styles in a layout and two photos.
    """
    E = styles.shape[2]
    with np.errstate(divide="ignore", invalid="ignore"):
        of_photos = photos[0] / photos[1]  # (E,); NaN without photos
        sums = resampled(styles.reshape(len(styles), -1), layouts)
        whole, drawn = (each[:, :E] / each[:, E:] for each in sums)  # (1, E) and (R, E)
        per_class = whole[0] / of_photos
    both = np.isfinite(whole[0] + of_photos)
    if not both.any():
        raise ValueError("no class has two styles of a layout and two photos")
    per_class[~(of_photos >= _HARDLY * of_photos[both].mean())] = np.nan
    overall = with_percentiles(float(_ratio(whole, of_photos)[0]), _ratio(drawn, of_photos))
    return StyleSpread(overall, per_class)


def _ratio(of_styles: Numbers, of_photos: Numbers) -> Numbers:
    """Ratio of the sums over the classes that have both variances, (R, E) and (E,) -> (R,)."""
    both = np.isfinite(of_styles + of_photos)
    parts = np.where(both, of_styles, 0).sum(axis=1)
    wholes = np.where(both, of_photos, 0).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return parts / wholes
