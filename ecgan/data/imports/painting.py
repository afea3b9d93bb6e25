"""Regions to pixels: polygons, and the run lengths of COCO, CVAT and Label Studio.

Shape legend:
    H, W  height and width of the photo
"""

import numpy as np
import numpy.typing as npt

from ecgan.data.imports.source import Mask, Points
from ecgan.labels import Labels

_MOST_PIXELS = 200_000_000  # of a mask; photos of more are not opened


def fill_polygon(label: Labels, points: Points, value: int) -> int:
    """Paint a polygon into a label map in place; the number of pixels painted.

    A pixel belongs to a polygon if its centre lies inside (even-odd rule). Polygons that share an
    edge so neither overlap nor leave a gap, whatever their coordinates.

    Args:
        label: label map, (H, W).
        points: corners, (points, 2), x and y with 0 at the left and top edge of the photo.
        value: what is painted.
    """
    height, width = label.shape
    start, end = points, np.roll(points, -1, axis=0)
    upward = start[:, 1] > end[:, 1]
    start, end = np.where(upward[:, None], end, start), np.where(upward[:, None], start, end)
    # Rows whose centre line an edge crosses: first to last, without last
    first, last = (
        np.ceil(y - 0.5).clip(0, height).astype(np.int64) for y in (start[:, 1], end[:, 1])
    )
    counts = last - first
    if not counts.any():
        return 0
    edge = np.repeat(np.arange(len(points)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    (x0, y0), (x1, y1) = start[edge].T, end[edge].T
    x = x0 + (row + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
    column = np.ceil(x - 0.5).clip(0, width).astype(np.int64)
    top, left = int(row.min()), int(column.min())
    shape = int(row.max()) - top + 1, int(column.max()) - left + 1
    crossings = np.zeros(shape, np.int32)
    np.add.at(crossings, (row - top, column - left), 1)
    inside = (np.cumsum(crossings, axis=1) & 1).astype(bool)[:, :-1]
    label[top : top + inside.shape[0], left : left + inside.shape[1]][inside] = value
    return int(inside.sum())


def runs_to_mask(counts: npt.ArrayLike, size: tuple[int, int], *, by_column: bool) -> Mask:
    """Mask of run lengths that begin with a run of unset pixels, (H, W).

    Args:
        counts: run lengths.
        size: H and W.
        by_column: whether the runs go down the columns, as COCO's, or along the rows, as CVAT's.

    Raises:
        ValueError: they do not add up to the size, or it is that of no photo.
    """
    _refuse_many_pixels(size)
    num_pixels = size[0] * size[1]
    try:
        runs = np.asarray(counts, np.int64)
    except OverflowError:
        runs = np.full(1, -1)
    # Each for itself too: a sum beyond 64 bits begins anew
    if runs.ndim != 1 or ((runs < 0) | (runs > num_pixels)).any() or runs.sum() != num_pixels:
        raise ValueError(f"run lengths do not add up to {size[1]} x {size[0]} pixels")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(size, order="F" if by_column else "C")


def unpack_coco(text: str) -> list[int]:
    """Run lengths of COCO's compressed form.

    Five bits a character, least significant first, the sixth says that more follow; from the
    fourth on, a number is the difference to the one two before it.

    Raises:
        ValueError: not such a text.
    """
    runs: list[int] = []
    value = shift = 0
    for byte in text.encode("ascii"):
        bits = byte - 48
        if not 0 <= bits < 64:
            raise ValueError("run lengths in an unknown form")
        value |= (bits & 31) << shift
        shift += 5
        if shift > 60:
            raise ValueError("a run longer than any photo")
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("run lengths break off")
    return runs


def unpack_label_studio(values: object, size: tuple[int, int]) -> Mask:
    """Mask of Label Studio's brush, (H, W): where the alpha of its RGBA picture is not 0.

    The form is that of the JavaScript package rle-pack: a head of the number of values, their bits
    and four lengths of counters; then runs of one value, or stretches of different ones.

    Raises:
        ValueError: damaged, or of another size.
    """
    _refuse_many_pixels(size)
    bits = np.unpackbits(np.asarray(values, np.uint8))
    position = 0

    def read(count: int) -> int:
        nonlocal position
        chunk = bits[position : position + count]
        if len(chunk) < count:
            raise ValueError("brush strokes break off")
        position += count
        return int("".join(map(str, chunk)), 2)

    total, width = read(32), read(5) + 1
    counters = [read(4) + 1 for _ in range(4)]
    if total != size[0] * size[1] * 4:
        raise ValueError(f"brush strokes of another size than {size[1]} x {size[0]} pixels")
    pixels = np.zeros(total, bool)
    index = 0
    while index < total:
        is_run = read(1)
        end = min(index + read(counters[read(2)]) + 1, total)
        if is_run:
            pixels[index:end] = read(width) > 0
        else:
            pixels[index:end] = [read(width) > 0 for _ in range(end - index)]
        index = end
    return pixels.reshape(*size, 4)[..., 3]


def _refuse_many_pixels(size: tuple[int, int]) -> None:
    """Refuse a mask that no photo has: a few digits would take all memory."""
    if min(size) < 0 or size[0] * size[1] > _MOST_PIXELS:
        raise ValueError(f"a mask of more than {_MOST_PIXELS:,} pixels")
