"""Resize, crop and mirror a whole sample: image, label, edge and boundary stay aligned.

All functions take and return numpy arrays, (H, W) or (H, W, 3); sizes are (height, width).

Images are resized by bicubic interpolation with antialias, edge maps that the user brings by
bilinear with antialias, labels and instance ids by taking the nearest pixel: the one whose square
contains the centre of the new pixel. Edges that the tool finds itself come from the crop, after
resizing.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from ecgan.data.edges import canny_edges
from ecgan.data.sample import Sample
from ecgan.errors import UserError

Size = tuple[int, int]  # height, width
Bytes = npt.NDArray[np.uint8]
Ids = TypeVar("Ids", bound=npt.NDArray[np.integer])
Edges = Literal["canny", "folder", "none"]


def prepare(
    sample: Sample,
    instances: npt.NDArray[np.integer] | None = None,
    *,
    resize_to: Size,
    crop_to: Size | None = None,
    flip: bool = False,
    edges: Edges = "canny",
    rng: np.random.Generator | None = None,
) -> Sample:
    """Resize a sample, cut a window out of it and mirror it; find its edges.

    Args:
        sample: at its full size, without a boundary.
        instances: instance ids, (H, W); the boundary comes from them, after resizing.
        resize_to: size before the crop.
        crop_to: size of the window; default: no crop. Not larger than ``resize_to``.
        flip: mirror every other sample, as ``rng`` says.
        edges: ``canny`` finds them in the window; ``folder`` keeps those of the sample; ``none``
            drops them.
        rng: where the window lies and whether to mirror. Without one the window is central and
            nothing is mirrored.
    """
    resized = resize(sample, resize_to, instances)
    return cut(resized, crop_to or resize_to, flip=flip, edges=edges, rng=rng)


def resize(sample: Sample, size: Size, instances: npt.NDArray[np.integer] | None = None) -> Sample:
    """The part of :func:`prepare` before the crop; see there.

    A boundary that is one pixel wide does not survive resizing: it is drawn anew from the ids.

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
    """The part of :func:`prepare` after resizing: window, edges, mirror."""
    top, left, mirrored = _draw(sample.label.shape, size, flip=flip, rng=rng)
    if size != sample.label.shape:
        sample = _each(sample, lambda a: a[top : top + size[0], left : left + size[1]])
    if edges == "canny" and sample.image is not None:
        sample = replace(sample, edge=canny_edges(np.ascontiguousarray(sample.image)))
    elif edges == "none":
        sample = replace(sample, edge=None)
    return _each(sample, lambda a: a[:, ::-1]) if mirrored else sample


def prepare_label(label: Ids, size: Size) -> Ids:
    """A layout as training sees it: the whole map at the generator's size."""
    return resize_nearest(label, size)


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


def _each(sample: Sample, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Sample:
    """Change every array of a sample that is there."""
    arrays = {name: getattr(sample, name) for name in ("label", "image", "edge", "boundary")}
    return replace(sample, **{n: change(a) for n, a in arrays.items() if a is not None})


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
