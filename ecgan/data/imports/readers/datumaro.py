"""Further formats, read with Datumaro, the data library behind CVAT (extra ``import``)."""

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ecgan.data.imports.source import (
    Annotations,
    Color,
    Photo,
    Region,
    points_of,
    safe_name,
    split_of,
)
from ecgan.errors import UserError, first_line

# Our name and Datumaro's, and what a folder of it holds
FORMATS = {
    "coco_panoptic": "coco_panoptic",
    "datumaro": "datumaro",
    "labelme_xml": "label_me",
    "mapillary_vistas": "mapillary_vistas_instances",
    "voc": "voc_segmentation",
}
_LEFT_OUT = {
    "bbox": "boxes",
    "rotated_bbox": "boxes",
    "label": "tags",
    "points": "key points",
    "polyline": "polylines",
    "caption": "captions",
    "ellipse": "ellipses",
}


def read(root: Path, name: str) -> Annotations:
    """Annotations of a folder in one of ``FORMATS``.

    Args:
        root: folder.
        name: our name of the format.

    Raises:
        UserError: Datumaro is not installed, or refuses the folder.
    """
    try:
        datumaro: Any = importlib.import_module("datumaro")
    except ImportError as error:
        raise UserError(
            f"--format {name} is read with Datumaro ({first_line(error)}): "
            "pip install 'ecgan[import]', best in an environment of its own"
        ) from None
    found = Annotations("regions of a higher z-order lie above, then later ones of the source")
    with _log_as_notes(found):
        try:
            dataset = datumaro.Dataset.import_from(str(root), FORMATS[name])
            categories = {kind.name: value for kind, value in dataset.categories().items()}
            names = [entry.name for entry in categories["label"]]
            colors = getattr(categories.get("mask"), "colormap", None) or {}
            found.classes = {name: _color(colors.get(i)) for i, name in enumerate(names)}
            for item in dataset:
                photo = _photo(item, root, found)
                if photo is not None:
                    photo.regions = list(_regions(item, names, found))
                    found.photos.append(photo)
        except (
            datumaro.errors.DatumaroError,
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:
            cause = error.__cause__ or error
            raise UserError(
                f"{root}: Datumaro cannot read it as {name}: {first_line(cause)}"  # pyright: ignore[reportArgumentType]
            ) from error
    return found


def _color(value: Any) -> Color | None:  # noqa: ANN401
    return None if value is None else (int(value[0]), int(value[1]), int(value[2]))


def _photo(item: Any, root: Path, found: Annotations) -> Photo | None:  # noqa: ANN401
    """Photo of an item; its file must lie below the folder."""
    place = f"{root}: item {item.id!r}"
    path = Path(getattr(item.media, "path", None) or "")
    is_file = path.is_file()
    if is_file and not path.resolve().is_relative_to(root.resolve()):
        found.faults.append(f"{place}: its photo {path} lies outside of the folder")
        return None
    name = safe_name(f"{item.id}{path.suffix or '.jpg'}", place, found.faults)
    size = getattr(item.media, "size", None) if is_file else None
    if name is None:
        return None
    return Photo(
        name,
        place,
        path if is_file else None,
        size=(int(size[0]), int(size[1])) if size else None,
        split=split_of(item.subset),
    )


def _regions(item: Any, names: list[str], found: Annotations) -> Iterator[Region]:  # noqa: ANN401
    """Polygons and masks of an item in painting order; the rest is counted."""
    for entry in sorted(item.annotations, key=lambda a: getattr(a, "z_order", 0)):
        kind, place = entry.type.name, f"item {item.id!r}: {entry.type.name}"
        if kind not in {"polygon", "mask"}:
            found.notes[f"{_LEFT_OUT.get(kind, kind)}, left out"] += 1
        elif entry.label is None or not 0 <= entry.label < len(names):
            found.faults.append(f"{place} without a class of the list; correct it there")
        else:
            if entry.attributes.get("is_crowd"):
                found.notes["crowd regions, painted as their class"] += 1
            label = names[entry.label]
            if kind == "mask":
                yield Region(label, mask=lambda entry=entry: np.asarray(entry.image) > 0)
            elif (points := points_of(entry.points, place, found.faults)) is not None:
                yield Region(label, (points,))


@contextmanager
def _log_as_notes(found: Annotations) -> Iterator[None]:
    """What Datumaro logs as a warning, such as an entry that it skips, told as notes."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.notes[f"warnings of Datumaro: {record.getMessage()}"] += 1

    handler, root = Notes(logging.WARNING), logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
