"""CVAT's XML "CVAT for images 1.1": polygons and masks with a z-order."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from ecgan.data.imports.painting import runs_to_mask
from ecgan.data.imports.source import (
    Annotations,
    Color,
    Mask,
    Photo,
    Region,
    find_photo,
    points_of,
    safe_name,
    size_of,
    split_of,
)
from ecgan.errors import UserError, shown
from ecgan.reading.documents import check_file

_LEFT_OUT = {
    "box": "boxes",
    "points": "points",
    "polyline": "polylines",
    "ellipse": "ellipses",
    "cuboid": "cuboids",
    "skeleton": "skeletons",
    "tag": "tags",
}


def matches(path: Path) -> bool:
    """Whether an XML file is of CVAT.

    Raises:
        UserError: not XML.
    """
    return next(_elements(path))[1].tag == "annotations"


def holds(path: Path, tag: str) -> bool:
    """Whether an XML file has an element of this name.

    Raises:
        UserError: not XML.
    """
    return any(element.tag == tag for _, element in _elements(path))


def read(files: Sequence[Path], images: Path | None) -> Annotations:
    """Annotations of CVAT files.

    Args:
        files: XML files.
        images: folder of the photos; None: ``images`` beside the file, or the file's folder.
    """
    found = Annotations("regions of a higher z_order lie above, then later ones of the file")
    for file in files:
        known: set[str] = set()
        number = 0
        for event, element in _elements(file):
            if event == "start" and element.tag == "track":
                raise UserError(
                    f"{file}: annotations of a video; export them as 'CVAT for images 1.1'"
                )
            if event == "start":
                continue
            if element.tag == "label":
                known |= _label(element, found)
            elif element.tag == "image":
                _image(element, f"{file}: image {number}", file, images, known, found)
                number += 1
                element.clear()
    return found


def _elements(path: Path) -> Iterator[tuple[str, ElementTree.Element]]:
    check_file(path)
    try:
        with path.open("rb") as stream:
            _refuse_doctype(stream)
            stream.seek(0)
            yield from ElementTree.iterparse(stream, events=("start", "end"))  # noqa: S314
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error
    except _DoctypeError:
        raise UserError(f"{path}: has a DOCTYPE, which no export of annotations has") from None
    except (ElementTree.ParseError, expat.ExpatError, ValueError, LookupError) as error:
        raise UserError(f"{path}: not whole XML ({error}); export or copy it again") from None


class _DoctypeError(Exception):
    """A file declares a type, whose entities may grow without end."""


def _refuse_doctype(stream: BinaryIO) -> None:
    """Read up to the first element, before which a type would be declared."""
    is_past = False

    def refuse(*_: object) -> NoReturn:
        raise _DoctypeError

    def start(*_: object) -> None:
        nonlocal is_past
        is_past = True

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler, parser.StartElementHandler = refuse, start
    while not is_past and (chunk := stream.read(1 << 16)):
        parser.Parse(chunk)


def _label(element: ElementTree.Element, found: Annotations) -> set[str]:
    """Name of a class of the file's head; labels inside a skeleton are none."""
    name = element.findtext("name")
    if not name or element.findtext("parent"):
        return set()
    found.classes.setdefault(name, _color(element.findtext("color") or ""))
    return {name}


def _color(text: str) -> Color | None:
    try:
        red, green, blue = bytes.fromhex(text.removeprefix("#"))
    except ValueError:
        return None
    return red, green, blue


def _image(
    element: ElementTree.Element,
    place: str,
    file: Path,
    images: Path | None,
    known: set[str],
    found: Annotations,
) -> None:
    name = safe_name(element.get("name"), f"{place}: name", found.faults)
    if name is None:
        return
    place = f"{file}: image {name!r}"
    subset = _subset(element, place, found)
    base = file.parent / "images"
    roots = [images] if images else [base / subset, base / "default", base, file.parent]
    size = size_of(element.get("height"), element.get("width"))
    photo = Photo(name, place, find_photo(name, roots), size=size, split=split_of(subset))
    regions: list[tuple[int, Region]] = []
    for shape in element:
        if shape.tag in _LEFT_OUT:
            found.notes[f"{_LEFT_OUT[shape.tag]}, left out"] += 1
            continue
        label = shape.get("label")
        if shape.tag not in {"polygon", "mask"}:
            found.faults.append(f"{place}: <{shape.tag}> is not known; remove it or report it")
        elif label not in known:
            found.faults.append(f"{place}: label {label!r} is not in <labels>; add it there")
        else:
            read_shape = _polygon if shape.tag == "polygon" else _mask_region
            region = read_shape(shape, f"{place}: {shape.tag}", label, photo, found)
            if region is not None:
                regions.append((_number(shape, "z_order", place, found), region))
    photo.regions = [region for _, region in sorted(regions, key=lambda entry: entry[0])]
    found.photos.append(photo)


def _subset(element: ElementTree.Element, place: str, found: Annotations) -> str:
    """Folder of the photos of a split; empty where there is none."""
    text = element.get("subset") or ""
    return text and (safe_name(text, f"{place}: subset", found.faults) or "")


def _number(shape: ElementTree.Element, key: str, place: str, found: Annotations) -> int:
    try:
        return int(shape.get(key, "0"))
    except ValueError:
        found.faults.append(f"{place}: {key} {shown(shape.get(key))}: expected a whole number")
        return 0


def _polygon(
    shape: ElementTree.Element, place: str, label: str, _: Photo, found: Annotations
) -> Region | None:
    text = shape.get("points", "").replace(";", ",").strip(",")
    points = points_of(text.split(","), f"{place}: points", found.faults)
    return None if points is None else Region(label, (points,))


def _mask_region(
    shape: ElementTree.Element, place: str, label: str, photo: Photo, found: Annotations
) -> Region | None:
    left, top, width, height = (
        _number(shape, key, place, found) for key in ("left", "top", "width", "height")
    )
    try:
        runs = [int(run) for run in shape.get("rle", "").split(",")]
        runs_to_mask(runs, (height, width), by_column=False)
    except ValueError as error:
        found.faults.append(f"{place}: {error}; export it again or remove the mask")
        return None
    if photo.size is None or min(left, top) < 0:
        found.faults.append(f"{place}: needs the image's width and height, left and top from 0")
        return None
    return Region(label, mask=partial(_mask, runs, (top, left, height, width), photo.size))


def _mask(runs: list[int], window: tuple[int, int, int, int], size: tuple[int, int]) -> Mask:
    """Mask of the photo, (H, W), from the run lengths of a window of it."""
    top, left, height, width = window
    mask = np.zeros(size, bool)
    part = mask[top : top + height, left : left + width]
    part[:] = runs_to_mask(runs, (height, width), by_column=False)[: part.shape[0], : part.shape[1]]
    return mask
