"""What the values of label files mean: numbers or colours to input ids.

Shape legend:
    H, W  height and width
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import numpy.typing as npt

from ecgan.data.files.label_maps import Form, RawLabel, count_values
from ecgan.labels import Labels, LabelSpace


class Encoding(StrEnum):
    """How the pixels of label files name their class."""

    INDEX = "index"  # numbers, also of palette files
    COLOR = "color"  # colours of the class list, also of palettes
    GRAY = "gray"  # RGB files with r = g = b = number
    NEAREST = "nearest"  # the class of the nearest colour


BY_COLOR = frozenset({Encoding.COLOR, Encoding.NEAREST})


class Decoded(NamedTuple):
    """Label map in input ids, and the values that the class list does not know."""

    label: Labels  # (H, W); unlabelled where unknown or transparent
    unknown: list[int]  # numbers, or colours as 0xRRGGBB
    colors: bool  # whether the unknown values are colours
    changed: int = 0  # pixels of other colours than the class's


def decode(raw: RawLabel, space: LabelSpace, dataset: str, encoding: Encoding) -> Decoded:
    """Decode a label map to input ids.

    Args:
        raw: raw values of the file.
        space: class list.
        dataset: directory structure; ``ade20k`` stores ids plus one, with 0 for unlabelled pixels.
        encoding: what the values stand for.
    """
    values, seen = raw.values, None if raw.transparent is None else ~raw.transparent
    if encoding in BY_COLOR:
        decoded = _decode_colors(_colors_of(raw), space, seen, encoding)
    elif raw.form != Form.COLORS:
        decoded = _decode_ids(values, space, dataset, seen)
    else:
        grey = gray_numbers(values)
        if encoding == Encoding.INDEX or (grey < 0).any():
            unknown = count_values(values.ravel())[0].tolist()
            label = np.full(values.shape, space.ignore_index, space.dtype)
            return Decoded(cast(Labels, label), unknown, colors=True)
        decoded = _decode_ids(grey.astype(np.uint8), space, dataset, seen)
    if seen is not None:
        decoded.label[~seen] = space.ignore_index
    return decoded


def gray_numbers(colors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Number of each colour 0xRRGGBB with r = g = b, -1 for the others."""
    blue = colors & 255
    return np.where((blue == colors >> 8 & 255) & (blue == colors >> 16), blue, -1)


def meaning_of_number(number: int, space: LabelSpace, dataset: str) -> int | None:
    """Input id that a number in a file stands for; None where it has no meaning."""
    if not 0 <= number <= 65535:
        return None
    table, known = _id_table(space, dataset)
    return int(table[number]) if known[number] else None


def class_colors(space: LabelSpace) -> Mapping[int, int]:
    """Label of each colour (0xRRGGBB) of one class only, and of black for unlabelled.

    Colours that nobody gave have no meaning.
    """
    return _class_colors(space, space.colors_given)


@lru_cache(maxsize=8)
def _class_colors(
    space: LabelSpace,
    given: tuple[bool, ...],  # noqa: ARG001  not part of the space's equality, so of the key
) -> Mapping[int, int]:
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
    return MappingProxyType({c: label for c, label in meaning.items() if c not in shared})


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
    if len(names) > 1:
        return f"colour {color_text(value)} stands for {' and '.join(names)} in the class list"
    return f"colour {color_text(value)} is not in the class list"


def color_text(code: int) -> str:
    """Text (r, g, b) of a colour 0xRRGGBB."""
    return f"({code >> 16}, {code >> 8 & 255}, {code & 255})"


def nearest_classes(
    colors: npt.NDArray[np.int32], space: LabelSpace
) -> tuple[Labels, npt.NDArray[np.bool_]]:
    """Label of the class with the nearest colour (Euclidean, RGB), and whether it is equal.

    Args:
        colors: colours 0xRRGGBB, (n,).
        space: class list.
    """
    known, ids = _color_table(space, space.colors_given)
    channels = np.stack([known >> 16, known >> 8 & 255, known & 255], 1)
    nearest = np.empty(len(colors), np.int64)
    for start in range(0, len(colors), 4096):
        part = colors[start : start + 4096]
        own = np.stack([part >> 16, part >> 8 & 255, part & 255], 1)
        distance = ((own[:, None] - channels[None]) ** 2).sum(2)
        nearest[start : start + 4096] = distance.argmin(1)
    return cast(Labels, ids[nearest]), known[nearest] == colors


def _colors_of(raw: RawLabel) -> npt.NDArray[np.int32]:
    """Colours of a label map: its own, those of its palette, or numbers as greys."""
    if raw.form == Form.COLORS:
        return raw.values.astype(np.int32, copy=False)
    if raw.palette is not None:
        return raw.palette[raw.values]
    numbers = raw.values.astype(np.int64)
    return np.where((numbers >= 0) & (numbers < 256), numbers * 0x10101, -1).astype(np.int32)


def _decode_ids(
    values: npt.NDArray[Any],
    space: LabelSpace,
    dataset: str,
    seen: npt.NDArray[np.bool_] | None,
) -> Decoded:
    table, known = _id_table(space, dataset)
    outside: list[int] = []
    if values.dtype.itemsize > 2:  # 32 bits may hold anything
        is_outside = (values < 0) | (values > 65535)
        outside = [int(v) for v in np.unique(values[is_outside])]
        values = np.where(is_outside, 0, values)
    if values.dtype == np.uint8 and values.size:  # OpenCV's look-up is 6 times as fast as numpy's
        label = cast(Labels, cv2.LUT(values, table[:256]))
        is_known = cv2.LUT(values, known[:256].view(np.uint8)).view(np.bool_)
    else:
        label, is_known = table[values], known[values]
    if seen is not None:
        is_known = is_known | ~seen
    if is_known.all() and not outside:
        return Decoded(label, [], colors=False)
    unknown = {int(v) for v in np.unique(values[~is_known])}
    return Decoded(label, sorted(unknown.union(outside)), colors=False)


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


def _decode_colors(
    values: npt.NDArray[np.int32],
    space: LabelSpace,
    seen: npt.NDArray[np.bool_] | None,
    encoding: Encoding,
) -> Decoded:
    codes, ids = _color_table(space, space.colors_given)
    index = np.searchsorted(codes, values).clip(max=len(codes) - 1)
    known = codes[index] == values
    label = cast(Labels, np.where(known, ids[index], ids.dtype.type(space.ignore_index)))
    if seen is not None:
        known = known | ~seen
    if known.all():
        return Decoded(label, [], colors=True)
    unknown, _ = count_values(values[~known])
    if encoding == Encoding.NEAREST and space.classes:
        nearest, _ = nearest_classes(unknown.astype(np.int32), space)
        label[~known] = nearest[np.searchsorted(unknown, values[~known])]
        return Decoded(label, [], colors=True, changed=int((~known).sum()))
    return Decoded(label, [int(v) for v in unknown], colors=True)


@lru_cache(maxsize=8)
def _color_table(
    space: LabelSpace,
    given: tuple[bool, ...],  # noqa: ARG001  not part of the space's equality, so of the key
) -> tuple[npt.NDArray[np.int32], Labels]:
    """Colours in ascending order, and the label of each."""
    pairs = sorted(class_colors(space).items()) or [(-2, space.ignore_index)]
    codes, ids = zip(*pairs, strict=True)
    return np.array(codes, np.int32), cast(Labels, np.array(ids, space.dtype))
