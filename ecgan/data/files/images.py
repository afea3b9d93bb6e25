"""Image files: which formats are read, in what depth, which way up; photos as RGB.

Shape legend:
    H, W  height and width
"""

import hashlib
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from ecgan.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
DEEP_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I"})
_PHOTO_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}
_ORIENTATION, _SUBFILE, _BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA = 274, 254, 258, 262, 277, 338
# Channels of a TIFF's pixels by its PhotometricInterpretation; further ones are bands or alpha
_TIFF_CHANNELS = {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 4, 6: 3, 8: 3}

Orientation = Literal["auto", "apply", "stored"]
_Pixel = TypeVar("_Pixel", bound=np.generic)


class Readable(Protocol):
    """A path, or another thing with bytes and a name for messages."""

    def read_bytes(self) -> bytes: ...

    def stat(self) -> os.stat_result:
        """State of the file that holds it."""
        ...


class Depth(StrEnum):
    """Numbers that a photo's file stores."""

    BYTES = "8 bits"
    WORDS = "16 bits"
    INTEGERS = "32 bits"
    FLOATS = "floats"


@dataclass(frozen=True)
class PhotoFile:
    """A photo as it is stored.

    Attributes:
        mode: Pillow's mode.
        stored: height and width of the stored pixels.
        orientation: EXIF's number, 1 to 8; 1 is upright.
        depth: numbers that it stores.
        low: smallest value of a deeper photo than 8 bits.
        high: largest value of such a photo.
        digest: SHA-256 of the file.
        look: a grey thumbnail of 8 x 8, 64 bytes; near-equal photos have near-equal ones.
    """

    mode: str
    stored: tuple[int, int]
    orientation: int
    depth: Depth
    low: float
    high: float
    digest: bytes
    look: bytes

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width after the orientation is applied."""
        height, width = self.stored
        return (width, height) if self.orientation >= 5 else self.stored


class ImageBytes(NamedTuple):
    """An open image, and the bytes that it is read from."""

    image: Image.Image
    content: bytes


def read_photo(
    file: Readable, *, upright: bool = True, levels: tuple[float, float] | None = None
) -> npt.NDArray[np.uint8]:
    """Photo as RGB, (H, W, 3): alpha is dropped, grey repeated, deeper ones scaled to 8 bits.

    Args:
        file: the photo.
        upright: apply EXIF's orientation, as every viewer does.
        levels: values of black and white in photos of more than 8 bits; None: 0 and 65535.

    Raises:
        UserError: missing, empty, truncated, too large, not an image, several pages or bands, or
            floats without levels.
    """
    with opened(file) as (image, content):
        _check_photo(file, image)
        values = _deep_values(image, content)
        if values is not None:
            pixels = _to_bytes(file, values, levels)
            pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
            return turned_upright(pixels, _orientation(image)) if upright else pixels
        image.load()
        turned = ImageOps.exif_transpose(image) if upright else image
        if "transparency" in image.info:  # Pillow warns of going to RGB at once
            turned = turned.convert("RGBA")
        return np.asarray(turned.convert("RGB"))


def read_grey(file: Readable) -> npt.NDArray[np.uint8]:
    """Edge map, (H, W), 0 to 255; same errors as :func:`read_photo`."""
    with opened(file) as (image, content):
        _check_photo(file, image)
        values = _deep_values(image, content)
        if values is not None and values.ndim == 2:
            return _to_bytes(file, values, None)
        return np.asarray(image.convert("L"))


def probe_photo(file: Readable) -> PhotoFile:
    """Read a photo's file whole, and tell what it is.

    Raises:
        UserError: as :func:`read_photo`.
    """
    with opened(file) as (image, content):
        _check_photo(file, image)
        mode, orientation = image.mode, _orientation(image)
        stored = image.height, image.width
        values = _deep_values(image, content)
        if values is None:
            image.draft("L", (1, 1))  # JPEG: all of the file, an eighth of the arithmetic
            image.load()
            small = image.convert("L").resize((8, 8), Image.Resampling.BOX)
            low, high, depth = 0.0, 255.0, Depth.BYTES
        else:
            low, high = float(values.min()), float(values.max())
            grey = values if values.ndim == 2 else values.mean(2)
            scaled = (np.nan_to_num(grey) - low) * (255 / (high - low if high > low else 1))
            small = Image.fromarray(scaled.clip(0, 255).astype(np.uint8))
            small = small.resize((8, 8), Image.Resampling.BOX)
            kinds = {np.dtype(np.uint16): Depth.WORDS, np.dtype(np.float32): Depth.FLOATS}
            depth = kinds.get(values.dtype, Depth.INTEGERS)
    digest = hashlib.sha256(content).digest()
    return PhotoFile(mode, stored, orientation, depth, low, high, digest, small.tobytes())


def sha256(file: Readable) -> str:
    """SHA-256 of the bytes, hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def turned_upright(pixels: npt.NDArray[_Pixel], orientation: int) -> npt.NDArray[_Pixel]:
    """Stored pixels, (H, W) or (H, W, 3), as EXIF's orientation, 1 to 8, sets them upright."""
    if orientation in {2, 4, 5, 7}:  # mirrored, then turned
        pixels = pixels[:, ::-1]
    quarters = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.ascontiguousarray(np.rot90(pixels, quarters))


def is_lossy(image: Image.Image, content: bytes) -> bool:
    """Whether the format changes pixels: JPEG, or WebP unless it is lossless."""
    if image.format == "WEBP":
        return b"VP8L" not in content[:4096]
    return image.format in {"JPEG", "MPO"}


@contextmanager
def opened(file: Readable) -> Iterator[ImageBytes]:
    """Open an image file of one picture; any error in it is raised as a UserError of one sentence.

    Raises:
        UserError: missing, empty, truncated, too large, not an image, several pages or frames.
    """
    with _explained(file):
        if isinstance(file, Path) and file.exists() and not file.is_file():
            raise UserError(f"{file}: not a file; replace it or remove the pair")
        content = file.read_bytes()
        if not content:
            raise UserError(f"{file}: empty file (0 bytes); replace the file or remove the pair")
        try:
            image = Image.open(BytesIO(content), formats=FORMATS)
        except UnidentifiedImageError:
            _refuse_bands(file, _tiff_tags(content))
            raise
        with image:
            _refuse_pages(file, image)
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                _refuse_bands(file, dict(image.tag_v2))
            yield ImageBytes(image, content)


def _refuse_pages(file: Readable, image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames == 1 or image.format == "MPO":  # phones keep a second, smaller picture in a photo
        return
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        frames = sum(_is_page(image, index) for index in range(frames))
        image.seek(0)
    if frames > 1:
        raise UserError(
            f"{file}: {frames} pages or frames; save the one that is meant as a file of its own"
        )


def _is_page(image: TiffImagePlugin.TiffImageFile, index: int) -> bool:
    """Whether a picture of a TIFF is one by itself, not a smaller copy or a mask of another."""
    image.seek(index)
    return not int(image.tag_v2.get(_SUBFILE, 0)) & 0b101


def _refuse_bands(file: Readable, tags: dict[int, Any]) -> None:
    samples = int(tags.get(_SAMPLES, 1))
    extra = tags.get(_EXTRA, ())
    alpha = 1 in extra[:1] or 2 in extra[:1] if isinstance(extra, tuple) else extra in {1, 2}
    bands = samples - alpha
    if bands > _TIFF_CHANNELS.get(int(tags.get(_PHOTOMETRIC, 1)), samples):
        raise UserError(
            f"{file}: {bands} bands; save the three that are red, green and blue (of a label map "
            "the one with the ids) as files of their own"
        )


def _tiff_tags(content: bytes) -> dict[int, Any]:
    """Tags of the first picture of a TIFF that Pillow knows no mode for; empty for other files."""
    if content[:4] not in {b"II*\0", b"MM\0*"}:
        return {}
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(content[:8])
        stream = BytesIO(content)
        stream.seek(tags.next)
        tags.load(stream)
        return dict(tags)
    except (OSError, SyntaxError, ValueError, struct.error):
        return {}


def _check_photo(file: Readable, image: Image.Image) -> None:
    if image.mode not in _PHOTO_MODES | DEEP_MODES | {"F"}:
        raise UserError(f"{file}: pixels of mode {image.mode}; convert the picture to RGB")


def _orientation(image: Image.Image) -> int:
    number = image.getexif().get(_ORIENTATION, 1)
    return number if number in range(1, 9) else 1


def _deep_values(image: Image.Image, content: bytes) -> npt.NDArray[Any] | None:
    """Values of a photo of more than 8 bits, (H, W) or (H, W, 3); None for others.

    Pillow reads only the upper byte of colour photos of 16 bits.
    """
    if image.mode == "F":
        return np.asarray(image)
    if image.mode in DEEP_MODES:
        values = np.asarray(image)
        return values if values.dtype == np.int32 else values.astype(np.uint16)
    is_deep = image.format == "PNG" and content[24:25] == b"\x10"
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        is_deep = max(image.tag_v2.get(_BITS, (8,))) == 16
    if not is_deep or image.mode not in {"RGB", "RGBA", "RGBX"}:
        return None
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    values = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        return None
    return values[:, :, 2::-1]


def _to_bytes(
    file: Readable, values: npt.NDArray[Any], levels: tuple[float, float] | None
) -> npt.NDArray[np.uint8]:
    if levels is None:
        if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
            raise UserError(
                f"{file}: values from {values.min():g} to {values.max():g}; set data.photo_levels "
                "to the values of black and white"
            )
        return ((values.astype(np.int64) + 128) // 257).astype(np.uint8)
    low, high = levels
    scaled = (np.nan_to_num(values).astype(np.float64) - low) * (255 / (high - low))
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


@contextmanager
def _explained(file: Readable) -> Iterator[None]:
    """Errors of reading an image file, raised as a UserError of one sentence."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = re.search(r"\d+", str(error))
        count = f"{int(pixels[0]):,}" if pixels else "too many"
        raise UserError(
            f"{file}: {count} pixels, too large to be read safely; scale the pair down first"
        ) from error
    except UnidentifiedImageError:
        raise UserError(
            f"{file}: not an image of a known format; replace the file or remove the pair"
        ) from None
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    # What Pillow's decoders raise for damaged files: SyntaxError for PNG, OSError for the rest.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise UserError(
            f"{file}: truncated or damaged ({error}); replace the file or remove the pair"
        ) from error
