"""Which tool wrote a file or folder of annotations, told by the content of the files."""

from collections import Counter
from pathlib import Path

from ecgan.data.files.names import paths_below
from ecgan.data.imports.readers import coco, cvat, datumaro, label_studio, labelme, yolo
from ecgan.data.imports.source import read_json
from ecgan.errors import UsageError, UserError

READ_HERE = ("coco", "cvat", "label_studio", "labelme", "yolo")
FORMATS = (*READ_HERE, *datumaro.FORMATS)


def recognise(source: Path, name: str | None) -> tuple[str, list[Path], Counter[str]]:
    """Format of a source, its files of annotations in that format, and notes on other files.

    Args:
        source: file or folder.
        name: format that the user named; None: the files tell it.

    Raises:
        UserError: none of the formats, or files of several; or a damaged file.
    """
    if name in datumaro.FORMATS:
        return name, [], Counter()
    kinds = _kinds(source)
    others = len(kinds.pop("other", []))
    if name is None:
        name = _only(source, kinds)
    elif name not in kinds:
        raise UserError(f"{source}: no file of annotations in the form {name} is there")
    files = kinds.pop(name)
    others += sum(map(len, kinds.values()))
    return name, files, Counter({"JSON or XML files of another form, left out": others})


def _only(source: Path, kinds: dict[str, list[Path]]) -> str:
    if "mapillary_vistas" in kinds or "voc" in kinds:  # their further files look like others
        kinds = {k: files for k, files in kinds.items() if k in {"mapillary_vistas", "voc"}}
    if len(kinds) > 1:
        both = " and ".join(f"{kind} ({files[0]})" for kind, files in kinds.items())
        choice = " or ".join(f"--format {kind}" for kind in kinds)
        raise UsageError(f"{source} holds {both}; choose with {choice}")
    if not kinds:
        raise UserError(
            f"{source}: no annotations of a known form; give the file or folder that a tool "
            f"exported, or name its form with --format ({', '.join(FORMATS)})"
        )
    return next(iter(kinds))


def _kinds(source: Path) -> dict[str, list[Path]]:
    """Files of a source by the format that they tell; hidden ones are skipped."""
    kinds: dict[str, list[Path]] = {}
    for path in [source] if source.is_file() else sorted(paths_below(source)):
        hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
        kind = None if hidden or not path.is_file() else _kind(path)
        if kind is not None:
            kinds.setdefault(kind, []).append(path)
    return kinds


def _kind(path: Path) -> str | None:
    """Format that a file tells, ``other`` for unknown JSON or XML, None for other files."""
    suffix = path.suffix.lower()
    if path.name.startswith("config_v") and suffix == ".json":
        return "mapillary_vistas"
    if path.parts[-3:-1] == ("ImageSets", "Segmentation"):
        return "voc"
    if suffix in {".yaml", ".yml"}:
        return "yolo" if yolo.class_names(path) else None
    if suffix == ".xml":
        return _xml_kind(path)
    return _json_kind(path) if suffix == ".json" else None


def _xml_kind(path: Path) -> str:
    if cvat.matches(path):
        return "cvat"
    return "labelme_xml" if cvat.holds(path, "polygon") else "other"


def _json_kind(path: Path) -> str:
    value = read_json(path)
    if coco.matches(value):
        panoptic = any("segments_info" in a for a in value["annotations"] if isinstance(a, dict))
        return "coco_panoptic" if panoptic else "coco"
    if labelme.matches(value):
        return "labelme"
    if label_studio.matches(value):
        return "label_studio"
    is_datumaro = isinstance(value, dict) and {"categories", "items"} <= value.keys()
    return "datumaro" if is_datumaro else "other"
