"""Decoding of photos, label maps and instance maps, in any mode that people store them in.

Pixels are taken as they are stored: a camera's orientation tag is not applied, since label maps
are drawn on the stored pixels and carry none.

Shape legend:
    H, W  height and width
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ecgan.errors import UserError
from ecgan.labels import Labels, LabelSpace

_PHOTO_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"}
_DEEP_MODES = {"I;16", "I;16B", "I;16L", "I;16N", "I"}  # 16 bits a pixel


@dataclass(frozen=True, eq=False)
class RawLabel:
    """Raw values of a label file, before the class list gives them a meaning.

    Attributes:
        values: numbers, or colours as 0xRRGGBB, (H, W).
        colors: whether the values are colours.
        palette: colour of each number where the file has a palette, (256,), -1 where it has none.
        mode: Pillow's mode of the file.
    """

    values: npt.NDArray[np.integer]
    colors: bool
    palette: npt.NDArray[np.int32] | None
    mode: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.values.shape[0], self.values.shape[1]

    def painted(self) -> "RawLabel":
        """Label map in the colours of its palette."""
        assert self.palette is not None
        return RawLabel(self.palette[self.values], colors=True, palette=None, mode=self.mode)


class HashedLabel(NamedTuple):
    """Raw values of a label file, and the SHA-256 of the very bytes that they come from."""

    raw: RawLabel
    digest: bytes  # 32


class Decoded(NamedTuple):
    """Label map in input ids, and the values that the class list does not know."""

    label: Labels  # (H, W); unlabelled where unknown
    unknown: list[int]  # numbers, or colours as 0xRRGGBB
    colors: bool  # whether the file was read by its colours


def read_photo(path: Path) -> npt.NDArray[np.uint8]:
    """Photo as RGB, (H, W, 3): alpha is dropped, grey repeated, 16 bits scaled to 8.

    Raises:
        UserError: missing, empty, truncated, too large, not an image.
    """
    with _opened(path) as image:
        _check_photo_mode(path, image)
        if image.mode in _DEEP_MODES:
            grey = _to_bytes(np.asarray(image))
            return np.repeat(grey[..., None], 3, axis=2)
        if "transparency" in image.info:  # Pillow warns of going to RGB at once
            image.load()
            return np.asarray(image.convert("RGBA").convert("RGB"))
        return np.asarray(image.convert("RGB"))


def read_grey(path: Path) -> npt.NDArray[np.uint8]:
    """Edge map, (H, W), 0 to 255; same errors as :func:`read_photo`."""
    with _opened(path) as image:
        _check_photo_mode(path, image)
        if image.mode in _DEEP_MODES:
            return _to_bytes(np.asarray(image))
        return np.asarray(image.convert("L"))


def probe_photo(path: Path) -> tuple[int, int]:
    """Height and width of a photo whose file is whole; faster than reading it.

    Raises:
        UserError: as :func:`read_photo`.
    """
    with _opened(path) as image:
        _check_photo_mode(path, image)
        width, height = image.size
        if image.format == "PNG":
            image.verify()  # checksums of all chunks, nothing decompressed
        else:
            image.draft("L", (1, 1))  # JPEG: all of the file, an eighth of the arithmetic
            image.load()
    return height, width


def photo_header(path: Path) -> tuple[str, tuple[int, int]]:
    """Pillow's mode of a photo, and its height and width; pixels are not read."""
    with _opened(path) as image:
        return image.mode, (image.height, image.width)


def read_raw(path: Path) -> RawLabel:
    """Label or instance map: numbers of 1, 8, 16 or 32 bits, palette indices, or colours.

    Raises:
        UserError: missing, empty, truncated, too large, not an image, no such kind of map.
    """
    with _opened(path) as image:
        return _raw(path, image)


def read_hashed(path: Path) -> HashedLabel:
    """Label or instance map with the digest of its file, which is read once for both."""
    with _explained(path):
        content = path.read_bytes()
        if not content:
            raise _empty(path)
        with Image.open(BytesIO(content)) as image:
            return HashedLabel(_raw(path, image), hashlib.sha256(content).digest())


def decode(raw: RawLabel, space: LabelSpace, dataset: str) -> Decoded:
    """Decode a label map to input ids.

    A palette image is read by its indices if all of them are ids of the class list, else by its
    colours if all of them are colours of the class list.

    Args:
        raw: raw values of the file.
        space: class list.
        dataset: directory structure; ``ade20k`` stores ids plus one, with 0 for unlabelled pixels.
    """
    if raw.colors:
        return _decode_colors(raw, space)
    decoded = _decode_ids(raw, space, dataset)
    if decoded.unknown and raw.palette is not None:
        painted = _decode_colors(raw.painted(), space)
        return decoded if painted.unknown else painted
    return decoded


def class_colors(space: LabelSpace) -> dict[int, int]:
    """Label of each colour (0xRRGGBB) of one class only, and of black for unlabelled.

    Colours that the user's list does not give mean nothing.
    """
    meaning: dict[int, int] = {}
    shared: set[int] = set()
    for c in space.classes:
        if not c.has_color:
            continue
        code = c.color[0] << 16 | c.color[1] << 8 | c.color[2]
        if code in meaning:
            shared.add(code)
        meaning[code] = c.id
    if space.ignore is not None and meaning:
        meaning.setdefault(0, space.ignore_index)
    return {code: label for code, label in meaning.items() if code not in shared}


def accepted_ids(space: LabelSpace, dataset: str) -> str:
    """Numbers that label files may hold, in words."""
    if dataset == "ade20k" and space.file_ids is None:
        return f"1-{space.num_classes}, and 0 for unlabelled"
    numbers = range(space.num_classes) if space.file_ids is None else [n for n, _ in space.file_ids]
    ids = _ranges(numbers)
    return ids if space.ignore is None else f"{ids} and {space.ignore}"


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in ascending order, in words: 0-18, 20."""
    starts = [n for n, before in zip(numbers, [-2, *numbers], strict=False) if n != before + 1]
    ends = [n for n, after in zip(numbers, [*numbers[1:], -1], strict=True) if n + 1 != after]
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def unknown_fault(value: int, space: LabelSpace, dataset: str, *, colors: bool) -> str:
    """Sentence about a number, or a colour as 0xRRGGBB, that the class list does not know."""
    if not colors:
        return f"label {value}: the class list has {accepted_ids(space, dataset)}"
    if not any(space.colors_given):
        return (
            f"colour {color_text(value)}: the class list gives no colours, which masks in RGB need"
        )
    names = [
        c.name
        for c in space.classes
        if c.has_color and c.color == (value >> 16, value >> 8 & 255, value & 255)
    ]
    if names:
        return f"colour {color_text(value)} stands for {' and '.join(names)} in the class list"
    return f"colour {color_text(value)} is not in the class list"


def color_text(code: int) -> str:
    """Text (r, g, b) of a colour 0xRRGGBB."""
    return f"({code >> 16}, {code >> 8 & 255}, {code & 255})"


def _raw(path: Path, image: Image.Image) -> RawLabel:
    mode, palette = image.mode, None
    if mode in {"RGB", "RGBA", "RGBX"}:
        return RawLabel(_codes(np.asarray(image)), colors=True, palette=None, mode=mode)
    if mode in {"LA", "PA"}:
        image = image.getchannel(0)
    elif mode not in {"1", "L", "P", *_DEEP_MODES}:
        raise UserError(
            f"{path}: pixels of mode {mode}; a label map has one channel of class ids, or the "
            "colours of the class list in RGB"
        )
    if mode == "P":
        palette = np.full(256, -1, np.int32)
        colors = np.asarray(image.getpalette("RGB"), np.int32).reshape(-1, 3)[:256]
        palette[: len(colors)] = _codes(colors)
    values = np.asarray(image)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)  # as bytes they may be 255
    elif values.dtype.byteorder == ">":
        values = values.astype(np.uint16)
    return RawLabel(values, colors=False, palette=palette, mode=mode)


def _decode_ids(raw: RawLabel, space: LabelSpace, dataset: str) -> Decoded:
    table, known = _id_table(space, dataset)
    values = raw.values
    if values.dtype.itemsize > 2:  # 32 bits may hold anything
        outside = (values < 0) | (values > 65535)
        if outside.any():
            inside = _decode_ids(
                RawLabel(np.where(outside, 0, values), colors=False, palette=None, mode=raw.mode),
                space,
                dataset,
            )
            unknown = inside.unknown + [int(v) for v in np.unique(values[outside])]
            return Decoded(inside.label, sorted(unknown), colors=False)
    if values.dtype == np.uint8 and values.size:  # OpenCV's look-up is 6 times as fast as numpy's
        label = cast(Labels, cv2.LUT(values, table[:256]))
        is_known = cv2.LUT(values, known[:256].view(np.uint8)).view(np.bool_)
    else:
        label, is_known = table[values], known[values]
    if is_known.all():
        return Decoded(label, [], colors=False)
    return Decoded(label, [int(v) for v in np.unique(values[~is_known])], colors=False)


@lru_cache(maxsize=8)
def _id_table(space: LabelSpace, dataset: str) -> tuple[Labels, npt.NDArray[np.bool_]]:
    """Label of each number in a file, and whether the number has a meaning; both (65536,)."""
    table = np.full(65536, space.ignore_index, space.dtype)
    known = np.zeros(65536, bool)
    is_shifted = dataset == "ade20k" and space.file_ids is None
    pairs = space.file_ids or [(c.id + is_shifted, c.id) for c in space.classes]
    for number, label in pairs:
        table[number], known[number] = label, True
    ignore = 0 if is_shifted else space.ignore
    if ignore is not None:
        known[ignore] = True
    return cast(Labels, table), known


def _decode_colors(raw: RawLabel, space: LabelSpace) -> Decoded:
    codes, ids = _color_table(space, space.colors_given)
    values = raw.values
    index = np.searchsorted(codes, values).clip(max=len(codes) - 1)
    known = codes[index] == values
    label = np.where(known, ids[index], ids.dtype.type(space.ignore_index))
    unknown = [] if known.all() else [int(v) for v in np.unique(values[~known])]
    return Decoded(cast(Labels, label), unknown, colors=True)


@lru_cache(maxsize=8)
def _color_table(
    space: LabelSpace,
    given: tuple[bool, ...],  # noqa: ARG001  not part of the space's equality, so of the key
) -> tuple[npt.NDArray[np.int32], Labels]:
    """Colours in ascending order, and the label of each."""
    pairs = sorted(class_colors(space).items()) or [(-1, space.ignore_index)]
    codes, ids = zip(*pairs, strict=True)
    return np.array(codes, np.int32), cast(Labels, np.array(ids, space.dtype))


def _codes(rgb: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    r, g, b = (rgb[..., channel].astype(np.int32) for channel in range(3))
    return r << 16 | g << 8 | b


def _to_bytes(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """16 bits -> 8 bits, rounded."""
    return ((values.astype(np.int64).clip(0, 65535) + 128) // 257).astype(np.uint8)


def _check_photo_mode(path: Path, image: Image.Image) -> None:
    if image.mode not in _PHOTO_MODES | _DEEP_MODES:
        raise UserError(f"{path}: pixels of mode {image.mode}; convert the picture to RGB")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file; any error in it is raised as a UserError of one sentence."""
    with _explained(path):
        if path.stat().st_size == 0:
            raise _empty(path)
        with Image.open(path) as image:
            yield image


def _empty(path: Path) -> UserError:
    return UserError(f"{path}: empty file (0 bytes); replace the file or remove the pair")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Errors of reading an image file, raised as a UserError of one sentence."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = re.search(r"\d+", str(error))
        count = f"{int(pixels[0]):,}" if pixels else "too many"
        raise UserError(
            f"{path}: {count} pixels, too large to be read safely; scale the pair down first"
        ) from error
    except UnidentifiedImageError:
        raise UserError(f"{path}: not an image; replace the file or remove the pair") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    # What Pillow's decoders raise for damaged files: SyntaxError for PNG, OSError for the rest.
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(
            f"{path}: truncated or damaged ({error}); replace the file or remove the pair"
        ) from error
