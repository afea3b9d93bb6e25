"""Label maps as they are stored: numbers, numbers with a palette, or colours.

Nothing here knows a class list; what the values mean is decided for a whole data set
(:mod:`ecgan.data.files.encoding`).

Shape legend:
    H, W  height and width
"""

import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from ecgan.data.files.images import (
    DEEP_MODES,
    PHOTOMETRIC,
    Readable,
    lossy_format,
    opened,
    turned_upright,
)
from ecgan.errors import UserError

ZERO_IS_WHITE = "1 (0 is white)"  # mode of such label maps
_LISTED = 4  # numbers of a label map in a message
_COLOR_MODES = {"RGB", "RGBA", "RGBX"}


class Form(StrEnum):
    """What the pixels of a label file are."""

    NUMBERS = "numbers"
    PALETTE = "palette"
    COLORS = "colors"


@dataclass(frozen=True, eq=False)
class RawLabel:
    """Raw values of a label file, before a class list gives them a meaning.

    Attributes:
        values: numbers, or colours as 0xRRGGBB, (H, W).
        form: what the values are.
        palette: colour of each number where the file has a palette, (256,), -1 where it has none.
        transparent: pixels of alpha 0, (H, W); None where there are none.
        mode: Pillow's mode of the file.
    """

    values: npt.NDArray[np.integer]
    form: Form
    palette: npt.NDArray[np.int32] | None = None
    transparent: npt.NDArray[np.bool_] | None = None
    mode: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.values.shape[0], self.values.shape[1]


class HashedLabel(NamedTuple):
    """Raw values of a label file, and the SHA-256 of the very bytes that they come from."""

    raw: RawLabel
    digest: bytes  # 32


class Histogram(NamedTuple):
    """Values of a label file, without its transparent pixels.

    Attributes:
        form: what the values are.
        size: height and width.
        mode: Pillow's mode of the file, or :data:`ZERO_IS_WHITE`.
        values: those that occur, ascending.
        pixels: number of pixels of each.
        borders: pixels of numbers with a neighbour of another number.
        between: of these, pixels with a smaller and a larger one around: what a filter leaves
            between two classes.
        colors: palette colour of each value, -1 without one.
        transparent: pixels of alpha 0.
    """

    form: Form
    size: tuple[int, int]
    mode: str
    values: tuple[int, ...]
    pixels: tuple[int, ...]
    colors: tuple[int, ...]
    transparent: int
    borders: int
    between: int


def read_raw(file: Readable) -> RawLabel:
    """Label or instance map: numbers of 1 to 32 bits, palette indices, or colours.

    Raises:
        UserError: missing, empty, truncated, too large, not an image, of a lossy format, several
            pages or bands, partly transparent, no such kind of map.
    """
    return read_hashed(file).raw


def read_hashed(file: Readable) -> HashedLabel:
    """Label or instance map with the digest of its file, which is read once for both."""
    with opened(file) as (image, content, orientation, _):
        if kind := lossy_format(image, content):
            raise UserError(
                f"{file}: a {kind} file, whatever its name: the format changes ids; export the "
                "label maps anew as PNG"
            )
        depth = content[24] if image.format == "PNG" else _bits(image)
        zero_is_white = _zero_is_white(image)
        image.load()
        raw = _raw(file, image, depth)
        if zero_is_white:
            raw = _shown(file, raw, depth)
        transparent = raw.transparent
        raw = replace(
            raw,
            values=turned_upright(raw.values, orientation),
            transparent=None if transparent is None else turned_upright(transparent, orientation),
        )
        return HashedLabel(raw, hashlib.sha256(content).digest())


def histogram(raw: RawLabel) -> Histogram:
    """Values of a label map and how often they occur."""
    flat, kept = raw.values.ravel(), None if raw.transparent is None else ~raw.transparent.ravel()
    values, pixels = count_values(flat if kept is None else flat[kept])
    borders = between = 0
    numbers = raw.values
    if raw.form == Form.COLORS and (values == (values & 255) * 0x10101).all():
        numbers = (numbers & 255).astype(np.uint8)  # ids as greys
    if numbers.dtype.itemsize <= 2 and len(values) > 2:
        kernel = np.ones((3, 3), np.uint8)
        low, high = cv2.erode(numbers, kernel), cv2.dilate(numbers, kernel)
        borders = int((low < high).sum())
        between = int(((numbers > low) & (numbers < high)).sum())
    palette = raw.palette
    colors = [-1] * len(values) if palette is None else palette[values].tolist()
    return Histogram(
        raw.form,
        raw.size,
        raw.mode,
        tuple(values.tolist()),
        tuple(pixels.tolist()),
        tuple(colors),
        0 if raw.transparent is None else int(raw.transparent.sum()),
        borders,
        between,
    )


def count_values(flat: npt.NDArray[np.integer]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Values of a 1-d array, ascending, and how often each occurs.

    Neighbouring pixels are mostly equal: runs are counted, which sorts a hundredth of the values.
    """
    if flat.size == 0:
        return flat[:0], np.zeros(0, np.int64)
    if flat.dtype.itemsize <= 2:
        counts = np.bincount(flat)
        values = np.flatnonzero(counts)
        return values, counts[values]
    ends = np.flatnonzero(np.append(flat[1:] != flat[:-1], True))
    lengths = np.diff(ends, prepend=-1)
    values, index = np.unique(flat[ends], return_inverse=True)
    return values, np.bincount(index, lengths, len(values)).astype(np.int64)


def codes(rgb: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Colours (..., 3) as 0xRRGGBB."""
    r, g, b = (rgb[..., channel].astype(np.int32) for channel in range(3))
    return r << 16 | g << 8 | b


def _bits(image: Image.Image) -> int:
    tags = getattr(image, "tag_v2", {})
    return max(tags.get(258, (8,)))


def _zero_is_white(image: Image.Image) -> bool:
    """Whether a TIFF states that its number 0 is white: viewers, and Pillow, show it inverted."""
    is_tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
    return is_tiff and image.tag_v2.get(PHOTOMETRIC) == 0


def _shown(file: Readable, raw: RawLabel, depth: int) -> RawLabel:
    """A label map whose number 0 is white: of 1 bit as it is shown, so that white is 1.

    Raises:
        UserError: of more bits, where the numbers as stored and as shown may both be class ids.
    """
    if depth == 1:
        return replace(raw, mode=ZERO_IS_WHITE)
    largest = 2**depth - 1
    read = count_values(raw.values.ravel())[0][:_LISTED].tolist()
    # Pillow inverts up to 8 bits
    stored = [number if depth > 8 else largest - number for number in read]
    pairs = ", ".join(f"{number} or {largest - number}" for number in stored)
    raise UserError(
        f"{file}: a TIFF that states that 0 is white (PhotometricInterpretation 0), so that its "
        f"numbers as stored or as shown may be meant: {pairs}; save the label map as PNG, or as a "
        "TIFF whose 0 is black (PhotometricInterpretation 1)"
    )


def _raw(file: Readable, image: Image.Image, depth: int) -> RawLabel:
    mode = image.mode
    if mode not in _COLOR_MODES | {"1", "L", "LA", "P", "PA"} | DEEP_MODES:
        raise UserError(
            f"{file}: pixels of mode {mode}; a label map has one channel of class ids, or the "
            "colours of the class list in RGB"
            + ("; save ids as whole numbers of 8 or 16 bits" if mode == "F" else "")
        )
    transparent = _transparent(file, image)
    if mode in _COLOR_MODES:
        colors = codes(np.asarray(image.convert("RGB")))
        return RawLabel(colors, Form.COLORS, None, transparent, mode)
    values = np.asarray(image.getchannel(0) if mode in {"LA", "PA"} else image)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)  # as bytes they may be 255
    elif values.dtype.byteorder == ">":
        values = values.astype(np.uint16)
    if mode == "L" and depth in {2, 4}:  # Pillow spreads them over 0 to 255
        values = values // (255 // (2**depth - 1))
    if mode in {"P", "PA"}:
        return RawLabel(values, Form.PALETTE, _palette(image), transparent, mode)
    return RawLabel(values, Form.NUMBERS, None, transparent, mode)


def _palette(image: Image.Image) -> npt.NDArray[np.int32]:
    palette = np.full(256, -1, np.int32)
    colors = np.asarray(image.getpalette("RGB"), np.int32).reshape(-1, 3)[:256]
    palette[: len(colors)] = codes(colors)
    return palette


def _transparent(file: Readable, image: Image.Image) -> npt.NDArray[np.bool_] | None:
    """Pixels of alpha 0, which have no class; None where there are none."""
    has_alpha = "transparency" in image.info and image.mode not in {"1", *DEEP_MODES}
    if not has_alpha and image.mode not in {"RGBA", "LA", "PA"}:
        return None
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    partly = int(((alpha > 0) & (alpha < 255)).sum())
    if partly:
        raise UserError(
            f"{file}: half-transparent pixels ({partly}); save the label map without alpha, or "
            "with alpha 0 for unlabelled pixels only"
        )
    return None if alpha.all() else alpha == 0
