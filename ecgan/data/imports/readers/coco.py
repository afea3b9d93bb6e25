"""COCO's JSON: polygons and run lengths of instances and of stuff."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ecgan.data.imports.painting import runs_to_mask, unpack_coco
from ecgan.data.imports.source import (
    Annotations,
    Color,
    Mask,
    Photo,
    Region,
    find_photo,
    objects_of,
    points_of,
    read_json,
    safe_name,
    size_of,
    split_of,
)
from ecgan.errors import shown
from ecgan.labels import SPLIT_FOLDERS

_TASKS = r"^(instances|stuff|person_keypoints|annotations?)[_-]?"


def matches(value: object) -> bool:
    """Whether parsed JSON is a list of annotated images in COCO's form."""
    return isinstance(value, dict) and all(
        isinstance(value.get(key), list) for key in ("images", "annotations", "categories")
    )


def read(files: Sequence[Path], images: Path | None) -> Annotations:
    """Annotations of COCO files, one for each split.

    Args:
        files: JSON files.
        images: folder of the photos; None: ``images`` or a folder of the split, near the file.
    """
    found = Annotations("later annotations of the file lie above earlier ones")
    for file in files:
        subset = _subset(file)
        split = split_of(subset)
        document = read_json(file)
        if not matches(document):
            found.faults.append(f"{file}: expected an object with images, annotations, categories")
            continue
        names = _categories(document["categories"], f"{file}: categories", found)
        roots = [images / subset, images] if images else _roots(file, subset)
        photos = _photos(document["images"], file, roots, found)
        for photo in photos.values():
            photo.split = split if len(files) > 1 or split in SPLIT_FOLDERS else ""
        found.photos += photos.values()
        for place, entry in objects_of(
            document["annotations"], f"{file}: annotations", found.faults
        ):
            _annotation(entry, place, photos, names, found)
    return found


def _subset(file: Path) -> str:
    """Name of the split in a file's name: train2017 of instances_train2017.json."""
    if file.stem == "_annotations.coco":  # Roboflow's, in a folder of the split
        return file.parent.name
    return re.sub(_TASKS, "", file.stem).strip(".") if re.match(_TASKS, file.stem) else ""


def _roots(file: Path, subset: str) -> list[Path]:
    folders = [subset, split_of(subset), "default", ""]
    bases = (file.parent, file.parent.parent)
    places = [base / above / name for above in ("images", "") for base in bases for name in folders]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def _categories(value: object, where: str, found: Annotations) -> dict[int, str]:
    names: dict[int, str] = {}
    colors: dict[str, Any] = {}
    for place, entry in objects_of(value, where, found.faults):
        number, name = entry.get("id"), entry.get("name")
        if not isinstance(number, int) or not isinstance(name, str) or not name:
            found.faults.append(f"{place}: expected a number as id and a name")
        elif number in names:
            found.faults.append(f"{place}.id: {number} is also the id of {names[number]!r}")
        else:
            names[number] = name
            colors[name] = entry.get("color")
    for number in sorted(names):
        found.classes.setdefault(names[number], _color(colors[names[number]]))
    return names


def _color(value: object) -> Color | None:
    if isinstance(value, list) and len(value) == 3 and all(v in range(256) for v in value):
        return value[0], value[1], value[2]
    return None


def _photos(
    value: object, file: Path, roots: Sequence[Path], found: Annotations
) -> dict[object, Photo]:
    photos: dict[object, Photo] = {}
    for place, entry in objects_of(value, f"{file}: images", found.faults):
        name = safe_name(entry.get("file_name"), f"{place}.file_name", found.faults)
        number = entry.get("id")
        if not isinstance(number, (int, str)) or number in photos:
            found.faults.append(f"{place}.id: expected an id of its own, got {shown(number)}")
        elif name is not None:
            path = find_photo(name, roots)
            size = size_of(entry.get("height"), entry.get("width"))
            # Label Studio names the folder images, too
            photos[number] = Photo(name.removeprefix("images/"), place, path, size=size)
    return photos


def _annotation(
    entry: dict[str, Any],
    place: str,
    photos: dict[object, Photo],
    names: dict[int, str],
    found: Annotations,
) -> None:
    number = entry.get("image_id")
    photo = photos.get(number) if isinstance(number, (int, str)) else None
    shape, category = entry.get("segmentation"), entry.get("category_id")
    if photo is None:
        found.notes["annotations of photos that the file does not list, left out"] += 1
    elif not shape:
        found.notes[f"{_kind(entry)} without an outline, left out"] += 1
    elif not isinstance(category, int) or category not in names:
        found.faults.append(
            f"{place}.category_id: {shown(category)} is not in categories; add it there"
        )
    else:
        if entry.get("iscrowd"):
            found.notes["crowd regions, painted as their class"] += 1
        region = _region(shape, f"{place}.segmentation", names[category], photo, found)
        if region is not None:
            photo.regions.append(region)


def _kind(entry: dict[str, Any]) -> str:
    if entry.get("keypoints"):
        return "key points"
    if "caption" in entry:
        return "captions"
    return "boxes" if entry.get("bbox") else "annotations"


def _region(shape: Any, place: str, name: str, photo: Photo, found: Annotations) -> Region | None:  # noqa: ANN401
    if isinstance(shape, list):
        flat = [shape] if all(isinstance(v, (int, float)) for v in shape) else shape
        parts = [points_of(part, place, found.faults) for part in flat]
        return Region(name, tuple(part for part in parts if part is not None))
    try:
        runs, size = _runs(shape, photo)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        found.faults.append(f"{place}: {error}; export it again or remove the annotation")
        return None
    photo.size = photo.size or size
    return Region(name, mask=partial(_mask, runs, size))


def _runs(shape: Any, photo: Photo) -> tuple[list[int], tuple[int, int]]:  # noqa: ANN401
    counts, size = shape["counts"], size_of(*shape["size"])
    if size is None or (photo.size is not None and size != photo.size):
        raise ValueError(f"size {shape['size']}, its photo has {photo.size}")
    runs = unpack_coco(counts) if isinstance(counts, str) else [int(run) for run in counts]
    runs_to_mask(runs, size, by_column=True)
    return runs, size


def _mask(runs: list[int], size: tuple[int, int]) -> Mask:
    return runs_to_mask(runs, size, by_column=True)
