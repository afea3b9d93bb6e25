"""YOLO's text files of outlines: ``data.yaml``, ``labels/.../*.txt`` beside ``images/...``."""

from pathlib import Path

from ecgan.data.files.names import IMAGE_ENDINGS, paths_below
from ecgan.data.imports.source import (
    Annotations,
    Photo,
    Region,
    points_of,
    split_of,
)
from ecgan.errors import UserError, shown
from ecgan.reading.documents import read_bytes
from ecgan.reading.plain_yaml import parse_yaml


def class_names(path: Path) -> list[str] | None:
    """Names of a ``data.yaml`` in order of their numbers; None where it has none."""
    try:
        document = parse_yaml(read_bytes(path, 1 << 20).decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path}: not YAML; export or copy it again") from error
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    return [str(name) for name in names] if isinstance(names, list) else None


def read(files: list[Path], images: Path | None) -> Annotations:
    """Annotations of the folder of a ``data.yaml``.

    Args:
        files: the YAML file.
        images: folder of the photos; None: the folders of the labels, with ``images`` in their path
            for ``labels``.
    """
    found = Annotations("later lines of a file lie above earlier ones")
    root = files[0].parent
    names = class_names(files[0]) or []
    if len(files) > 1 or not names:
        found.faults.append(f"{files[-1]}: expected one data.yaml, with names from 0 without gaps")
    found.classes = dict.fromkeys(names)
    texts = sorted(
        path
        for path in paths_below(root)
        if path.suffix == ".txt" and "labels" in path.parts[len(root.parts) :]
    )
    for file in texts:
        parts = list(file.relative_to(root).parts)
        at = parts.index("labels")
        # labels/train/a.txt or train/labels/a.txt
        key = Path(*parts[at + 1 :]).with_suffix("")
        split = split_of(parts[at - 1]) if at else ""
        if not at and len(key.parts) > 1 and split_of(key.parts[0]) in {"train", "val", "test"}:
            split, key = split_of(key.parts[0]), Path(*key.parts[1:])
        parts[at] = "images"
        folder = root.joinpath(*parts).parent if images is None else images
        paths = [folder / f"{file.stem}{suffix}" for suffix in IMAGE_ENDINGS]
        path = next((path for path in paths if path.is_file()), None)
        name = f"{key.as_posix()}{path.suffix if path else '.jpg'}"
        photo = Photo(name, str(file), path, split=split)
        photo.regions = _regions(file, names, found)
        found.photos.append(photo)
    return found


def _regions(file: Path, names: list[str], found: Annotations) -> list[Region]:
    """Outlines of a file; their coordinates are shares of the photo's size."""
    regions: list[Region] = []
    try:
        lines = read_bytes(file).decode("utf-8").splitlines()
    except (UserError, ValueError):
        found.faults.append(f"{file}: not a text file; export or copy it again")
        return []
    for number, line in enumerate(lines, 1):
        label, *values = line.split() or [""]
        if not label:
            continue
        index = int(label) if label.isdecimal() and len(label) < 10 else len(names)
        if index >= len(names):
            found.faults.append(f"{file}: line {number}: class {shown(label)} is not in data.yaml")
        elif len(values) == 4:
            found.notes["boxes, left out"] += 1
        else:
            points = points_of(values, f"{file}: line {number}", found.faults)
            if points is not None:
                regions.append(Region(names[index], (points,), shares=True))
    return regions
