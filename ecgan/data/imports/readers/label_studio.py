"""Label Studio's JSON: polygons and brush strokes of each task."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from ecgan.data.files.names import IMAGE_ENDINGS
from ecgan.data.imports.painting import unpack_label_studio
from ecgan.data.imports.source import (
    Annotations,
    Photo,
    Region,
    find_photo,
    objects_of,
    points_of,
    read_json,
    safe_name,
    size_of,
)
from ecgan.errors import shortened, shown

_LEFT_OUT = {
    "rectanglelabels": "boxes",
    "rectangle": "boxes",
    "keypointlabels": "key points",
    "keypoint": "key points",
    "ellipselabels": "ellipses",
    "ellipse": "ellipses",
    "polygon": "polygons without a class",
    "brush": "brush strokes without a class",
    "choices": "choices",
    "textarea": "captions",
}


def matches(value: object) -> bool:
    """Whether parsed JSON is a list of tasks of Label Studio."""
    first = value[0] if isinstance(value, list) and value else None
    return (
        isinstance(first, dict) and isinstance(first.get("data"), dict) and "annotations" in first
    )


def read(files: Sequence[Path], images: Path | None) -> Annotations:
    """Annotations of Label Studio files.

    Args:
        files: JSON files.
        images: folder of the photos; None: ``images`` beside the file, or the file's folder.
    """
    found = Annotations("later regions of a task lie above earlier ones")
    for file in files:
        document = read_json(file)
        if not matches(document):
            found.faults.append(f"{file}: expected tasks with data and annotations; export as JSON")
            continue
        roots = [images] if images else [file.parent / "images", file.parent]
        for place, task in objects_of(document, f"{file}: tasks", found.faults):
            photo = _photo(task, place, roots, found)
            done = [
                (where, entry)
                for where, entry in objects_of(
                    task.get("annotations"), f"{place}.annotations", found.faults
                )
                if not entry.get("was_cancelled")
            ]
            found.notes["further annotations of a task, left out"] += max(0, len(done) - 1)
            if photo is None:
                continue
            found.photos.append(photo)
            for where, entry in done[:1]:
                for at, result in objects_of(entry.get("result"), f"{where}.result", found.faults):
                    region = _region(result, at, photo, found)
                    if region is not None:
                        photo.regions.append(region)
    labels = {region.label or "" for photo in found.photos for region in photo.regions}
    found.classes = dict.fromkeys(sorted(labels))
    return found


def _photo(
    task: dict[str, Any], place: str, roots: Sequence[Path], found: Annotations
) -> Photo | None:
    """Photo of a task: the last part of its address, with or without the upload's prefix."""
    data = task.get("data")
    values = [v for v in data.values() if isinstance(v, str)] if isinstance(data, dict) else []
    address = next((v for v in values if PurePosixPath(v).suffix.lower() in IMAGE_ENDINGS), "")
    last = PurePosixPath(unquote(address).replace("\\", "/")).name
    name = safe_name(last, f"{place}.data", found.faults)
    if name is None:
        return None
    bare = re.sub(r"^[0-9a-f]{8}-", "", name)
    paths = [(n, find_photo(n, roots)) for n in (name, bare)]
    chosen, path = next((entry for entry in paths if entry[1] is not None), paths[0])
    return Photo(chosen, place, path)


def _region(result: dict[str, Any], place: str, photo: Photo, found: Annotations) -> Region | None:
    kind = shortened(str(result.get("type")), 40)
    if kind not in {"polygonlabels", "brushlabels"}:
        found.notes[f"{_LEFT_OUT.get(kind, f'results of type {kind}')}, left out"] += 1
        return None
    value = result.get("value")
    size = size_of(result.get("original_height"), result.get("original_width"))
    names = value.get(kind) if isinstance(value, dict) else None
    if size is None or (photo.size or size) != size:
        found.faults.append(f"{place}: original_height, original_width: missing, or not all equal")
    elif not isinstance(names, list) or not names or not isinstance(names[0], str):
        found.faults.append(
            f"{place}.value.{kind}: expected the name of a class, got {shown(names)}"
        )
    elif result.get("image_rotation"):
        found.faults.append(f"{place}.image_rotation: the photo was turned; turn it back there")
    else:
        assert isinstance(value, dict)
        photo.size = size
        found.notes["further classes of a region, left out"] += len(names) - 1
        if kind == "brushlabels":
            return _brush(value, place, names[0], size, found)
        points = points_of(value.get("points"), f"{place}.value.points", found.faults)
        return None if points is None else Region(names[0], (points / 100,), shares=True)
    return None


def _brush(
    value: dict[str, Any], place: str, name: str, size: tuple[int, int], found: Annotations
) -> Region | None:
    try:
        unpack_label_studio(value.get("rle"), size)
    except (TypeError, ValueError, OverflowError) as error:
        found.faults.append(f"{place}.value.rle: {error}; export the task again")
        return None
    return Region(name, mask=partial(unpack_label_studio, value.get("rle"), size))
