"""Resize, crop and mirror of a whole sample, and its edges: all of its arrays stay aligned.

All functions take and return numpy arrays, (H, W) or (H, W, 3); sizes are (height, width).

Images are resized by bicubic interpolation with antialias, edge maps that the user brings by
bilinear with antialias, labels and instance ids by taking the nearest pixel: the one whose square
contains the centre of the new pixel. torchvision's v2 transforms give other numbers for all three.
Edges that the tool finds itself come from the crop, after resizing.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from ecgan.errors import UserError
from ecgan.labels import Labels

Size = tuple[int, int]  # height, width
Bytes = npt.NDArray[np.uint8]
Ids = TypeVar("Ids", bound=npt.NDArray[np.integer])
Edges = Literal["canny", "folder", "none"]
Fit = Literal["stretch", "crop", "letterbox"]

SIGMA = 1.4  # pixels
LOW, HIGH = 0.075, 0.175  # shares of the largest gradient magnitude

_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, eq=False)
class Sample:
    """Label map with its photo, edges and instance boundaries, all of one size.

    Attributes:
        key: name of the sample in shards: letters, digits, ``_`` and ``-``.
        label: input ids, (H, W), uint8 or uint16.
        image: RGB, (H, W, 3), uint8.
        edge: edges, (H, W), uint8, 0 or 255.
        boundary: instance boundaries, (H, W), uint8, 0 or 1.
    """

    key: str
    label: Labels
    image: Bytes | None = None
    edge: Bytes | None = None
    boundary: Bytes | None = None

    def __post_init__(self) -> None:
        """Raise UserError where the arrays differ in size; assert what our own code must keep."""
        assert _KEY.fullmatch(self.key), self.key
        assert self.label.ndim == 2, self.label.shape
        assert self.label.dtype in (np.uint8, np.uint16), self.label.dtype
        sizes = {name: array.shape[:2] for name, array in self.arrays().items()}
        if len(set(sizes.values())) > 1:
            *first, last = (f"{name} {size}" for name, size in sizes.items())
            raise UserError(f"{self.key}: {', '.join(first)} and {last} differ in size")

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays of the sample by name, as far as it has them."""
        named = {n: getattr(self, n) for n in ("label", "image", "edge", "boundary")}
        return {name: array for name, array in named.items() if array is not None}


def resize(sample: Sample, size: Size, instances: npt.NDArray[np.integer] | None = None) -> Sample:
    """Resize a sample without a boundary.

    Args:
        sample: sample at its full size.
        size: new height and width.
        instances: instance ids, (H, W); the boundary is drawn from them after resizing, since a
            line of one pixel does not survive it.

    Raises:
        UserError: the instance map has another size than the label.
    """
    assert sample.boundary is None
    if instances is not None and instances.shape != sample.label.shape:
        raise UserError(
            f"{sample.key}: label {sample.label.shape} and instance map {instances.shape} "
            "differ in size"
        )
    return replace(
        sample,
        label=resize_nearest(sample.label, size),
        image=None if sample.image is None else resize_image(sample.image, size),
        edge=None if sample.edge is None else resize_edge(sample.edge, size),
        boundary=(
            None if instances is None else instance_boundary(resize_nearest(instances, size))
        ),
    )


def cut(
    sample: Sample,
    size: Size,
    *,
    flip: bool = False,
    edges: Edges = "canny",
    rng: np.random.Generator | None = None,
) -> Sample:
    """Cut a window out of a sample, find its edges and mirror it.

    Args:
        sample: sample after resizing.
        size: height and width of the window; not larger than the sample.
        flip: mirror every other sample, as ``rng`` says.
        edges: ``canny`` finds them in the window; ``folder`` keeps those of the sample; ``none``
            drops them.
        rng: source of the window's position and of mirroring. Without one the window is central
            and nothing is mirrored.
    """
    top, left, mirrored = _draw(sample.label.shape, size, flip=flip, rng=rng)
    if size != sample.label.shape:
        sample = _each(sample, lambda a: a[top : top + size[0], left : left + size[1]])
    if edges == "canny" and sample.image is not None:
        sample = replace(sample, edge=canny_edges(np.ascontiguousarray(sample.image)))
    elif edges == "none":
        sample = replace(sample, edge=None)
    return _each(sample, lambda a: a[:, ::-1]) if mirrored else sample


def resize_image(image: Bytes, size: Size) -> Bytes:
    """RGB image, (H, W, 3), by bicubic interpolation with antialias."""
    return _resample(image, size, Image.Resampling.BICUBIC)


def resize_edge(edge: Bytes, size: Size) -> Bytes:
    """Edge map, (H, W), by bilinear interpolation with antialias."""
    return _resample(edge, size, Image.Resampling.BILINEAR)


def resize_nearest(ids: Ids, size: Size) -> Ids:
    """Label map or instance ids, (H, W), of any integer type: the nearest pixel's id."""
    if ids.shape == size:
        return ids
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for new, old in zip(size, ids.shape, strict=True)
    )
    return ids.take(rows, axis=0).take(columns, axis=1)


def fit_nearest(ids: Ids, size: Size, fit: Fit, border: int) -> Ids:
    """Label map or instance ids, (H, W), at a size of perhaps another aspect ratio.

    Args:
        ids: the map.
        size: new height and width.
        fit: ``stretch`` both sides to the size; ``crop`` the middle part of its aspect ratio first;
            ``letterbox``: all of the map, in the middle, between borders on two sides.
        border: value of those borders.
    """
    (height, width), (rows, columns) = size, ids.shape
    if fit == "crop":
        tall, wide = middle_part((rows, columns), size)
        top, left = (rows - tall) // 2, (columns - wide) // 2
        return cast("Ids", resize_nearest(ids[top : top + tall, left : left + wide], size))
    if fit == "stretch":
        return resize_nearest(ids, size)
    tall = min(height, max(1, round(rows * width / columns)))
    wide = min(width, max(1, round(columns * height / rows)))
    top, left = (height - tall) // 2, (width - wide) // 2
    boxed = np.full(size, border, ids.dtype)
    boxed[top : top + tall, left : left + wide] = resize_nearest(ids, (tall, wide))
    return cast("Ids", boxed)


def middle_part(whole: Size, size: Size) -> Size:
    """Height and width of the part of a picture that ``crop`` takes for another size."""
    (rows, columns), (height, width) = whole, size
    tall = min(rows, max(1, round(columns * height / width)))
    return tall, min(columns, max(1, round(rows * width / height)))


def instance_boundary(instances: npt.NDArray[np.integer]) -> Bytes:
    """Instance ids, (H, W) -> 1 where one of the four neighbours has another id, else 0.

    Both sides of a border are marked; the rim of the map is no border.
    """
    boundary = np.zeros(instances.shape, np.uint8)
    vertical = instances[1:] != instances[:-1]
    boundary[1:] |= vertical
    boundary[:-1] |= vertical
    horizontal = instances[:, 1:] != instances[:, :-1]
    boundary[:, 1:] |= horizontal
    boundary[:, :-1] |= horizontal
    return boundary


def canny_edges(image: Bytes) -> Bytes:
    """Canny edges of an RGB image, (H, W, 3) -> (H, W): 255 on an edge, 0 elsewhere.

    Grey, Gaussian of 1.4 pixels, 3x3 Sobel with replicated borders, Euclidean magnitude,
    non-maximum suppression, hysteresis between 0.075 and 0.175 of the largest magnitude of the
    image: with absolute thresholds, as OpenCV has them, a dark scene has no edges and a sunny one
    every leaf. All steps before the thresholds run in integers, so every machine finds the same
    edges. A flat image has none.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    smooth = cv2.GaussianBlur(grey, (0, 0), SIGMA)
    dx = cv2.Sobel(smooth, cv2.CV_16S, 1, 0, borderType=cv2.BORDER_REPLICATE)
    dy = cv2.Sobel(smooth, cv2.CV_16S, 0, 1, borderType=cv2.BORDER_REPLICATE)
    strongest = float(np.sqrt((dx.astype(np.int32) ** 2 + dy.astype(np.int32) ** 2).max()))
    if strongest == 0:
        return np.zeros(grey.shape, np.uint8)
    return np.asarray(
        cv2.Canny(dx, dy, LOW * strongest, HIGH * strongest, L2gradient=True), np.uint8
    )


def _each(sample: Sample, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Sample:
    """Change every array of a sample."""
    return replace(sample, **{name: change(array) for name, array in sample.arrays().items()})


def _resample(pixels: Bytes, size: Size, method: Image.Resampling) -> Bytes:
    height, width = size
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), method), np.uint8)


def _draw(
    shape: tuple[int, ...], size: Size, *, flip: bool, rng: np.random.Generator | None
) -> tuple[int, int, bool]:
    """Top and left of the window, and whether to mirror."""
    spare = shape[0] - size[0], shape[1] - size[1]
    if min(spare) < 0:
        raise ValueError(f"a window of {size} does not fit into {shape[:2]}")
    if rng is None:
        return spare[0] // 2, spare[1] // 2, False
    top, left = int(rng.integers(spare[0] + 1)), int(rng.integers(spare[1] + 1))
    return top, left, flip and bool(rng.integers(2))
