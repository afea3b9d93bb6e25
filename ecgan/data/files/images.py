"""Image files: which formats are read, in what depth, which way up; photos as RGB.

Shape legend:
    H, W  height and width
"""

import hashlib
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from ecgan.errors import UserError, first_line
from ecgan.reading.documents import read_bytes
from ecgan.reading.pictures import PICTURE_ERRORS, open_image

DEEP_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I"})
_PHOTO_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}
PHOTOMETRIC = 262  # a TIFF's tag: whether 0 is white (0) or black (1), or colours
_ORIENTATION, _SUBFILE, _BITS, _SAMPLES, _EXTRA = 274, 254, 258, 277, 338
# Channels of a TIFF's pixels by its PhotometricInterpretation; further ones are bands or alpha
_TIFF_CHANNELS = {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 4, 6: 3, 8: 3}
_COMPRESSION, _FORMAT, _WIDTH, _HEIGHT = 259, 339, 256, 257
_LEAST_TIFF = 24  # bytes
_NEXT_PAGE = -1  # no tag: where the next picture of the file is; 0 without one
_RGB, _FLOATS = 2, 3  # values of photometric interpretation and format
_THREADS = 8  # that read photos
_GROWTH = 100  # pixels of floats for a byte of the file, which compression never reaches
_MOST_FLOATS = 45_000_000  # pixels, whose memory is that of Pillow's 180 million in bytes
_TIFF_NUMBERS = {1: "whole", 2: "signed", 3: "floating-point"}
_TIFF_LOSSY = {6: "JPEG", 7: "JPEG", 50001: "WebP"}
_MOST_BYTES = 1 << 30  # of a picture's file; Pillow decodes 180 million pixels at most

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
    """An open image, and the bytes that it is read from.

    Attributes:
        image: pixels as stored; of floats in colour, which Pillow has no mode for, only their size.
        content: bytes of the file.
        orientation: EXIF's number, 1 to 8.
        floats: colours of such a file, (H, W, 3); None of others.
    """

    image: Image.Image
    content: bytes
    orientation: int
    floats: npt.NDArray[np.float32] | None = None


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
    with opened(file) as (image, content, orientation, floats):
        _check_photo(file, image)
        values = _deep_values(image, content) if floats is None else floats
        if values is not None:
            pixels = _to_bytes(file, values, levels)
            pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
            return turned_upright(pixels, orientation) if upright else pixels
        image.load()
        # Pillow warns of going to RGB at once
        colors = image.convert("RGBA") if "transparency" in image.info else image
        pixels = np.asarray(colors.convert("RGB"))
        return turned_upright(pixels, orientation) if upright else pixels


def read_grey(file: Readable) -> npt.NDArray[np.uint8]:
    """Edge map, (H, W), 0 to 255, upright; same errors as :func:`read_photo`."""
    with opened(file) as (image, content, orientation, floats):
        _check_photo(file, image)
        values = _deep_values(image, content) if floats is None else floats
        if values is not None and (values.ndim == 2 or values.dtype.kind == "f"):
            return turned_upright(_to_bytes(file, values, None), orientation)
        return turned_upright(np.asarray(image.convert("L")), orientation)


def probe_photo(file: Readable) -> PhotoFile:
    """Read a photo's file whole, and tell what it is.

    Raises:
        UserError: as :func:`read_photo`.
    """
    with opened(file) as (image, content, orientation, floats):
        _check_photo(file, image)
        mode = image.mode
        stored = image.height, image.width
        values = _deep_values(image, content) if floats is None else floats
        if values is None:
            image.draft("L", (1, 1))  # JPEG: all of the file, an eighth of the arithmetic
            image.load()
            small = image.convert("L").resize((8, 8), Image.Resampling.BOX)
            low, high, depth = 0.0, 255.0, Depth.BYTES
        else:
            finite = values[np.isfinite(values)]
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
            grey = (values if values.ndim == 2 else values.mean(2)).astype(np.float64)
            grey = np.nan_to_num(grey, nan=low, posinf=high, neginf=low)
            scaled = (grey - low) * (255 / (high - low if high > low else 1))
            small = Image.fromarray(scaled.clip(0, 255).astype(np.uint8))
            small = small.resize((8, 8), Image.Resampling.BOX)
            kinds = {np.dtype(np.uint16): Depth.WORDS, np.dtype(np.float32): Depth.FLOATS}
            depth = kinds.get(values.dtype, Depth.INTEGERS)
    digest = hashlib.sha256(content).digest()
    return PhotoFile(mode, stored, orientation, depth, low, high, digest, small.tobytes())


def probe_photos(
    photos: Sequence[Path],
    levels: tuple[float, float] | None = None,
    known: Callable[[str], bool] = lambda _: False,
) -> tuple[dict[Path, str], list[str]]:
    """SHA-256 of photos that can be read, by path, and a sentence on each other one.

    Args:
        photos: each is read whole, once.
        levels: as of :func:`read_photo`.
        known: of a SHA-256, whether such a photo was read before, and need not be decoded.
    """

    def look(path: Path) -> str | UserError:
        try:
            digest = sha256(path)
            # Deep photos may have values that need levels
            if not known(digest) and probe_photo(path).depth is not Depth.BYTES:
                read_photo(path, levels=levels)
        except UserError as error:
            return error
        return digest

    with ThreadPoolExecutor(_THREADS) as pool:
        looked = dict(zip(photos, pool.map(look, photos), strict=True))
    return (
        {path: found for path, found in looked.items() if isinstance(found, str)},
        [str(found) for found in looked.values() if isinstance(found, UserError)],
    )


def bytes_of(file: Readable) -> bytes:
    """Bytes of a picture's file as it is stored; a pipe or device is never opened.

    Raises:
        UserError: no regular file, one that cannot be read, or of more than 1 GiB.
    """
    return read_bytes(file, _MOST_BYTES) if isinstance(file, Path) else file.read_bytes()


def sha256(file: Readable) -> str:
    """SHA-256 of :func:`bytes_of`, hexadecimal."""
    return hashlib.sha256(bytes_of(file)).hexdigest()


def digests_of(photos: Iterable[Readable | None], like: Iterable[Path] | None = None) -> set[str]:
    """SHA-256 of photos that must not be learnt from, for a comparison by content.

    Args:
        photos: the photos; None where a pair has none.
        like: files that are compared with them; only photos of the size of one of them are read.
    """
    sizes = None if like is None else {path.stat().st_size for path in like}
    return {
        sha256(photo)
        for photo in photos
        if photo is not None
        and (sizes is None or not isinstance(photo, Path) or photo.stat().st_size in sizes)
    }


def turned_upright(pixels: npt.NDArray[_Pixel], orientation: int) -> npt.NDArray[_Pixel]:
    """Stored pixels, (H, W) or (H, W, 3), as EXIF's orientation, 1 to 8, sets them upright."""
    if orientation in {2, 4, 5, 7}:  # mirrored, then turned
        pixels = pixels[:, ::-1]
    quarters = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.ascontiguousarray(np.rot90(pixels, quarters))


def lossy_format(image: Image.Image, content: bytes) -> str:
    """Format that changes pixels: JPEG, or WebP unless it is lossless; else empty."""
    if image.format == "WEBP":
        return "" if b"VP8L" in content[:4096] else "lossy WebP"
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        inner = _TIFF_LOSSY.get(int(image.tag_v2.get(_COMPRESSION, 1)))
        return f"{inner}-compressed TIFF" if inner else ""
    return "JPEG" if image.format in {"JPEG", "MPO"} else ""


@contextmanager
def opened(file: Readable) -> Iterator[ImageBytes]:
    """Open an image file of one picture; any error in it is raised as a UserError of one sentence.

    Raises:
        UserError: missing, empty, truncated, too large, not an image, several pages or frames.
    """
    with _explained(file):
        content = bytes_of(file)
        if not content:
            raise UserError(f"{file}: empty file (0 bytes); replace the file or remove the pair")
        plain = _not_turned(content)
        try:
            image = open_image(plain)
            # Pillow turns TIFFs as they are loaded, and swaps their sides before that
            orientation = _orientation(image if plain is content else open_image(content))
        except UnidentifiedImageError:
            if (found := _float_colours(file, content)) is not None:
                yield found
                return
            _refuse_unknown(file, content)
            raise
        with image:
            _refuse_pages(file, image)
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                _refuse_bands(file, dict(image.tag_v2))
            yield ImageBytes(image, content, orientation)


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
    if bands > _TIFF_CHANNELS.get(int(tags.get(PHOTOMETRIC, 1)), samples):
        raise UserError(
            f"{file}: {bands} bands; save the three that are red, green and blue (of a label map "
            "the one with the ids) as files of their own"
        )


def _refuse_unknown(file: Readable, content: bytes) -> None:
    """Refuse what Pillow cannot open, where its content says what it is."""
    if content.startswith(b"version https://git-lfs"):
        raise UserError(f"{file}: a pointer of Git LFS, not the file; fetch it with git lfs pull")
    tags = _tiff_tags(content)
    _refuse_bands(file, tags)
    bits, formats = tags.get(_BITS), tags.get(_FORMAT, (1,))
    if isinstance(bits, tuple) and bits and isinstance(formats, tuple):
        kind = _TIFF_NUMBERS.get(formats[0], "unknown")
        raise UserError(
            f"{file}: a TIFF of {len(bits)} channels of {max(bits)} bits, {kind} numbers, is not "
            "read; save it with 8 or 16 bits a channel"
        )


def _float_colours(file: Readable, content: bytes) -> ImageBytes | None:
    """A TIFF of floats in colour, by OpenCV; None of what is none, or OpenCV does not read either.

    Raises:
        UserError: several pages or bands.
        PIL.Image.DecompressionBombError: too many pixels to be read safely.
    """
    tags = _tiff_tags(content)
    formats = tags.get(_FORMAT)
    formats = {*formats} if isinstance(formats, tuple) else {formats}
    if tags.get(PHOTOMETRIC) != _RGB or formats != {_FLOATS}:
        return None
    _refuse_bands(file, tags)
    width, height = int(tags.get(_WIDTH, 0)), int(tags.get(_HEIGHT, 0))
    if width * height > _MOST_FLOATS:  # before memory for them is taken
        raise Image.DecompressionBombError(f"{width * height} pixels")
    if width * height > _GROWTH * len(content):  # nor for what the file cannot hold
        return None
    if tags[_NEXT_PAGE]:
        raise UserError(
            f"{file}: 2 or more pages or frames; save the one that is meant as a file of its own"
        )
    values = _decoded(content)
    if values is None or values.dtype.kind != "f" or values.shape[:2] != (height, width):
        return None
    orientation = tags.get(_ORIENTATION, 1)
    orientation = orientation if orientation in range(1, 9) else 1
    image = Image.new("F", (width, height))
    return ImageBytes(image, content, orientation, values.astype(np.float32))


def _decoded(content: bytes) -> npt.NDArray[Any] | None:
    """Colours as OpenCV decodes them, (H, W, 3), as stored; None where it does not."""
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        values = cv2.imdecode(np.frombuffer(_not_turned(content), np.uint8), flags)
    except cv2.error:
        return None
    return None if values is None or values.ndim != 3 else values[:, :, 2::-1]


def _not_turned(content: bytes) -> bytes:
    """A TIFF without its orientation, which decoders apply unasked; another file as it is."""
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    if order is None or len(content) < _LEAST_TIFF:
        return content
    is_big = struct.unpack_from(f"{order}H", content, 2) == (43,)  # BigTIFF
    (start,) = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", content, 8 if is_big else 4)
    if start + 8 > len(content):
        return content
    (number,) = struct.unpack_from(f"{order}{'Q' if is_big else 'H'}", content, start)
    first, size, value = (start + 8, 20, 12) if is_big else (start + 2, 12, 8)
    for at in range(first, min(first + size * number, len(content) - size + 1), size):
        tag, kind = struct.unpack_from(f"{order}HH", content, at)
        if tag == _ORIENTATION:
            one = struct.pack(f"{order}{'H' if kind == 3 else 'I'}", 1)
            return content[: at + value] + one + content[at + value + len(one) :]
    return content


def _tiff_tags(content: bytes) -> dict[int, Any]:
    """Tags of the first picture of a TIFF that Pillow knows no mode for; empty for other files."""
    if content[:4] not in {b"II*\0", b"MM\0*"}:
        return {}
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(content[:8])
        stream = BytesIO(content)
        stream.seek(tags.next)
        tags.load(stream)
        return {**dict(tags), _NEXT_PAGE: tags.next}
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
    values = _decoded(content)
    return None if values is None or values.dtype != np.uint16 else values


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
    except PICTURE_ERRORS as error:
        raise UserError(
            f"{file}: truncated or damaged ({first_line(error)}); replace the file or remove the "
            "pair"
        ) from error
