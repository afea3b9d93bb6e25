"""Annotations of another tool, painted and written as a folder of photos and label maps."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np

from ecgan.data.files.images import turned_upright
from ecgan.data.files.names import IMAGE_ENDINGS, paths_below
from ecgan.data.files.pairing import capped, count
from ecgan.data.imports.painting import fill_polygon
from ecgan.data.imports.readers import coco, cvat, datumaro, label_studio, labelme, yolo
from ecgan.data.imports.recognition import recognise
from ecgan.data.imports.source import (
    Annotations,
    Mask,
    Photo,
    Region,
)
from ecgan.errors import UsageError, UserError
from ecgan.labels import LabelClass, Labels, LabelSpace, default_color, from_json
from ecgan.reading.documents import parse_json, read_bytes
from ecgan.reading.pictures import PICTURE_ERRORS, open_image
from ecgan.runtime.files import check_out, whole_folder, writing

_READ_HERE: Mapping[str, Callable[[list[Path], Path | None, Path], Annotations]] = {
    "coco": lambda files, images, _: coco.read(files, images),
    "cvat": lambda files, images, _: cvat.read(files, images),
    "label_studio": lambda files, images, _: label_studio.read(files, images),
    "labelme": labelme.read,
    "yolo": lambda files, images, _: yolo.read(files, images),
}
_BACKGROUNDS = ("background", "_background_", "__background__")  # COCO and CVAT, LabelMe, VOC


@dataclass(frozen=True)
class Imported:
    """What was written.

    Attributes:
        format: format of the source.
        rule: which region lies above which, in words.
        background: class of the pixels that no region covers; None: unlabelled.
        space: class list.
        splits: photos of each split; of "" where there are none.
        notes: what was left out or changed, and how often.
    """

    format: str
    rule: str
    background: str | None
    space: LabelSpace
    splits: Mapping[str, int]
    notes: Mapping[str, int]

    def to_text(self, out: Path) -> str:
        """Report of several lines."""
        counts = ", ".join(f"{name} {count}" for name, count in self.splits.items() if name)
        uncovered = (
            f"are {self.background}"
            if self.background is not None
            else f"are unlabelled ({self.space.ignore}); --background NAME makes them a class"
        )
        lines = [
            f"Wrote {count(sum(self.splits.values()), 'photo')} with label maps of "
            f"{count(self.space.num_classes, 'class', 'classes')} to {out}"
            f"{f' ({counts})' if counts else ''}",
            f"  format: {self.format}; {self.rule}",
            f"  pixels that no region covers {uncovered}",
            *(f"  {count} {note}" for note, count in sorted(self.notes.items())),
        ]
        return "\n".join(lines)


def import_annotations(
    source: Path,
    out: Path,
    *,
    name: str | None = None,
    images: Path | None = None,
    background: str | None = None,
) -> Imported:
    """Write ``images/``, ``labels/`` and ``classes.json`` of annotations of another tool.

    The folder appears when it is complete. Photos are copied byte for byte; label maps are as large
    as the photos stand upright, as annotation tools show them.

    Args:
        source: file or folder of annotations.
        out: folder that is new or empty.
        name: one of ``recognition.FORMATS``; None: recognised from the files.
        images: folder of the photos, where they are not beside the annotations.
        background: class of the pixels that no region covers; it gets id 0 if the source lacks it.
            None: they are unlabelled, unless the source has a class called background.

    Raises:
        UserError: faults of the annotations, all of them at once; nothing is written then.
    """
    check_out(out, "an import")
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; give the annotations")
    if images is not None and not images.is_dir():
        raise UsageError(f"--images {images}: no such folder")
    name, files, notes = recognise(source, name)
    root = source if source.is_dir() else source.parent
    if name in datumaro.FORMATS:
        if images is not None:
            raise UsageError(f"--images: {name} has its photos in folders of its own; leave it out")
        found = datumaro.read(root, name)
    else:
        found = _READ_HERE[name](files, images, root)
        found.notes["photos without annotations, left out"] += _without_annotations(
            found, images or (source if source.is_dir() else None)
        )
    found.notes.update(notes)
    background = _add_background(found, background)
    _check(found, source)
    space = _space(found, source)
    with writing(out), whole_folder(out) as folder:
        writer = _Writer(folder, space, background, found)
        for photo in found.photos:
            writer.write(photo)
        _raise_faults(found, source)
        if not writer.splits:
            raise UserError(
                f"{source}: no file of {count(len(found.photos), 'photo')} is there (first: "
                f"{found.photos[0].name}); name the folder of the photos with --images DIR"
            )
        text = json.dumps(space.to_json(), indent=1) + "\n"
        (folder / "classes.json").write_text(text, encoding="utf-8")
    counted = {note: count for note, count in found.notes.items() if count}
    return Imported(
        name, found.rule, background, space, dict(sorted(writer.splits.items())), counted
    )


def _without_annotations(found: Annotations, folder: Path | None) -> int:
    """Number of image files below the folder that no annotations name."""
    if folder is None:
        return 0
    named = {photo.path.resolve() for photo in found.photos if photo.path is not None}
    there = (path for path in paths_below(folder) if path.suffix.lower() in IMAGE_ENDINGS)
    return sum(path.resolve() not in named for path in there)


def _add_background(found: Annotations, asked: str | None) -> str | None:
    """Class of the pixels that no region covers; added as the first where the source lacks it."""
    if asked is None:
        return next((c for c in found.classes if c.lower() in _BACKGROUNDS), None)
    if asked not in found.classes:
        found.classes = {asked: (0, 0, 0), **found.classes}
    return asked


def _check(found: Annotations, source: Path) -> None:
    """Raise what can be known before a photo is opened."""
    names: dict[tuple[str, str], Photo] = {}
    for photo in found.photos:
        key = photo.split, photo.name.rpartition(".")[0] or photo.name
        if key in names:
            found.faults.append(
                f"{photo.source}: {photo.name} and {names[key].name} of {names[key].source} would "
                "share a label map; rename one of them, or import one file alone"
            )
        names[key] = photo
    if not found.classes and not found.faults:
        found.faults.append("no class, and no region to make one of")
    if not found.photos and not found.faults:
        found.faults.append("no photos in the annotations")
    if len(found.classes) > 65535:
        found.faults.append(f"{len(found.classes)} classes; label maps have up to 65535")
    _raise_faults(found, source)


def _raise_faults(found: Annotations, source: Path) -> None:
    if found.faults:
        raise UserError(f"{source}: cannot be imported", capped(found.faults))


def _space(found: Annotations, source: Path) -> LabelSpace:
    """Class list, as it will be read back."""
    classes = tuple(
        LabelClass(number, name, color or default_color(number))
        for number, (name, color) in enumerate(found.classes.items())
    )
    text = json.dumps(LabelSpace(classes).written().to_json())
    remedy = "rename it where the photos are annotated"
    place = f"{source}: its classes"
    return from_json(parse_json(text, place, "names of classes", remedy), place)


class _Writer:
    """Writes photos and their label maps below a folder; counts and collects faults."""

    def __init__(
        self, folder: Path, space: LabelSpace, background: str | None, found: Annotations
    ) -> None:
        self.folder, self.found, self.space = folder, found, space
        self.ids = {c.name: c.id for c in space.classes}
        self.empty = space.ignore_index if background is None else self.ids[background]
        self.divided = any(photo.split for photo in found.photos)
        self.splits: Counter[str] = Counter()

    def write(self, photo: Photo) -> None:
        """Write one photo and its label map, or note why not."""
        if photo.path is None and photo.content is None:
            self.found.notes["photos without a file, left out"] += 1
            return
        try:
            upright, orientation = _photo_size(photo)
        except (*PICTURE_ERRORS, UserError) as error:
            self.found.faults.append(
                f"{photo.path or photo.source}: not a photo that can be read ({error}); replace it"
            )
            return
        if not photo.name.lower().endswith(IMAGE_ENDINGS):
            endings = ", ".join(IMAGE_ENDINGS)
            self.found.faults.append(
                f"{photo.source}: the photo {photo.name} needs one of the endings {endings}"
            )
            return
        label = self._label(photo, upright, orientation)
        if label is None:
            return
        split = photo.split or ("default" if self.divided else "")
        images, labels = (self.folder / kind / split / photo.name for kind in ("images", "labels"))
        images.parent.mkdir(parents=True, exist_ok=True)
        labels.parent.mkdir(parents=True, exist_ok=True)
        if photo.path is not None:
            shutil.copyfile(photo.path, images)
        else:
            images.write_bytes(photo.content or b"")
        _, png = cv2.imencode(".png", label)
        labels.with_name(f"{labels.stem}.png").write_bytes(png.tobytes())
        self.splits[split] += 1

    def _label(self, photo: Photo, upright: tuple[int, int], orientation: int) -> Labels | None:
        """Label map of the photo as it stands upright, (H, W)."""
        turned = orientation >= 5
        size = photo.size or upright
        if size not in {upright, upright[::-1] if turned else upright}:
            self.found.faults.append(
                f"{photo.source}: annotated at {size[1]} x {size[0]} pixels, but the photo "
                f"{photo.name} has {upright[1]} x {upright[0]}; give the photo that was annotated"
            )
            return None
        label = cast(Labels, np.full(size, self.empty, self.space.dtype))
        for region in photo.regions:
            self._paint(label, region, photo)
        if not photo.regions:
            self.found.notes["photos without a region"] += 1
        if size != upright:  # drawn on the stored pixels, which lie on their side
            self.found.notes["label maps turned upright with their photos"] += 1
            label = cast(Labels, turned_upright(cast(Any, label), orientation))
        return label

    def _paint(self, label: Labels, region: Region, photo: Photo) -> None:
        value = self.space.ignore_index if region.label is None else self.ids[region.label]
        if region.mask is not None:
            mask = region.mask()
            if mask.shape != label.shape:
                self.found.faults.append(
                    f"{photo.source}: a mask of {mask.shape[1]} x {mask.shape[0]} pixels on a "
                    f"photo of {label.shape[1]} x {label.shape[0]}; export it again"
                )
                return
            painted = _paint_mask(label, mask, value)
        else:
            scale = label.shape[::-1] if region.shares else (1, 1)
            polygons = [polygon * scale for polygon in region.polygons]
            painted = sum(fill_polygon(label, polygon, value) for polygon in polygons)
            edge = np.array(label.shape[::-1]) + 0.01
            if any(((polygon < -0.01) | (polygon > edge)).any() for polygon in polygons):
                self.found.notes["regions that reach out of their photo, clipped"] += 1
        if not painted:
            self.found.notes["regions without a pixel inside the photo"] += 1


def _paint_mask(label: Labels, mask: Mask, value: int) -> int:
    label[mask] = value
    return int(mask.sum())


def _photo_size(photo: Photo) -> tuple[tuple[int, int], int]:
    """Height and width as the photo stands upright, and its EXIF orientation."""
    content = photo.content or b"" if photo.path is None else read_bytes(photo.path)
    with open_image(content) as image:
        orientation = image.getexif().get(0x0112, 1)
        height, width = image.height, image.width
    orientation = orientation if orientation in range(1, 9) else 1
    return ((width, height) if orientation >= 5 else (height, width)), orientation
