"""LabelMe's JSON: a file beside each photo, with ``imagePath`` and ``shapes``."""

import base64
import binascii
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ecgan.data.imports.source import (
    Annotations,
    Mask,
    Photo,
    Points,
    Region,
    is_file,
    objects_of,
    points_of,
    read_json,
    size_of,
)
from ecgan.errors import shortened, shown
from ecgan.reading.pictures import PICTURE_ERRORS, open_image

_UNLABELLED = "__ignore__"  # LabelMe's own name for pixels without a class


def matches(value: object) -> bool:
    """Whether parsed JSON is of LabelMe's form."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("shapes"), list)
        and ("imagePath" in value or "imageData" in value)
    )


def read(files: Sequence[Path], images: Path | None, root: Path) -> Annotations:
    """Annotations of LabelMe files; the key of each is its path below ``root``.

    Args:
        files: JSON files.
        images: folder of the photos; None: where ``imagePath`` leads to, below ``root``.
        root: folder of all.
    """
    found = Annotations("later shapes of a file lie above earlier ones")
    labels: set[str] = set()
    for file in files:
        document = read_json(file)
        if not matches(document):
            found.faults.append(f"{file}: expected an object with imagePath and shapes")
            continue
        photo = _photo(document, file, images, root, found)
        for place, shape in objects_of(document["shapes"], f"{file}: shapes", found.faults):
            region = _region(shape, place, photo, found)
            if region is not None:
                photo.regions.append(region)
                labels |= {region.label} if region.label else set()
        found.photos.append(photo)
    found.classes = dict.fromkeys(sorted(labels))
    return found


def _photo(
    document: dict[str, Any], file: Path, images: Path | None, root: Path, found: Annotations
) -> Photo:
    named = str(document.get("imagePath") or "").replace("\\", "/")
    key = file.relative_to(root).with_suffix("").as_posix()
    size = size_of(document.get("imageHeight"), document.get("imageWidth"))
    # The name in the file is only looked for, and only below the folders that the user named.
    for base, name in ((images, Path(named).name), (file.parent, named)):
        path = base / name if base is not None and name else None
        allowed = [folder.resolve() for folder in (images, root) if folder is not None]
        if path is not None and is_file(path):
            if any(path.resolve().is_relative_to(folder) for folder in allowed):
                return Photo(key + path.suffix, str(file), path, size=size)
            found.faults.append(
                f"{file}: imagePath {shown(named)} lies outside of {root}; name its folder with "
                "--images"
            )
            return Photo(key, str(file))
    content, suffix = None, Path(named).suffix or ".png"
    if document.get("imageData"):
        try:
            content = base64.b64decode(document["imageData"], validate=True)
        except (TypeError, ValueError, binascii.Error):
            found.faults.append(f"{file}: imageData: not base64; put the photo beside the file")
        suffix = ".jpg" if content is not None and content[:2] == b"\xff\xd8" else ".png"
        found.notes["photos taken out of the annotation files, as they have no file"] += 1
    return Photo(key + suffix, str(file), content=content, size=size)


def _region(shape: dict[str, Any], place: str, photo: Photo, found: Annotations) -> Region | None:
    kind = shortened(str(shape.get("shape_type") or "polygon"), 40)
    if kind not in {"polygon", "mask"}:
        names = {"rectangle": "boxes", "point": "points"}
        found.notes[f"{names.get(kind, f'shapes of type {kind}')}, left out"] += 1
        return None
    label = shape.get("label")
    if not isinstance(label, str) or not label:
        found.faults.append(f"{place}.label: expected the name of a class, got {shown(label)}")
        return None
    points = points_of(shape.get("points"), f"{place}.points", found.faults)
    if points is None:
        return None
    if label == _UNLABELLED:
        found.notes[f"regions {_UNLABELLED}, unlabelled"] += 1
    name = None if label == _UNLABELLED else label
    if kind == "polygon":
        return Region(name, (points,))
    return _mask_region(shape, place, name, points, photo, found)


def _mask_region(
    shape: dict[str, Any],
    place: str,
    name: str | None,
    points: Points,
    photo: Photo,
    found: Annotations,
) -> Region | None:
    try:
        with open_image(base64.b64decode(shape["mask"], validate=True)) as image:
            pixels = np.asarray(image.convert("L")) > 0
    except PICTURE_ERRORS:  # also of the base64
        found.faults.append(f"{place}.mask: not a PNG in base64; draw the region again")
        return None
    if photo.size is None or len(points) == 0 or (points < 0).any():
        found.faults.append(f"{place}: a mask needs imageHeight, imageWidth and its corner >= 0")
        return None
    left, top = (int(v) for v in points[0])
    return Region(name, mask=partial(_placed, pixels, left, top, photo.size))


def _placed(pixels: Mask, left: int, top: int, size: tuple[int, int]) -> Mask:
    mask = np.zeros(size, bool)
    window = mask[top : top + pixels.shape[0], left : left + pixels.shape[1]]
    window[:] = pixels[: window.shape[0], : window.shape[1]]
    return mask
