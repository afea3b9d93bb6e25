"""Class lists as people and other tools write them, read into label spaces. No torch here.

One function reads every format, by the content of the file and, of text, by its name. Lists that
give no value of unlabelled pixels leave it to the caller (``data.ignore`` of the recipe).
"""

import codecs
import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml

from ecgan import labels
from ecgan.errors import UserError, first_line, shown
from ecgan.labels import MAX_BYTES, SPLIT_FOLDERS, LabelSpace
from ecgan.reading.documents import read_bytes, read_json
from ecgan.reading.places import refuse_whole_disk
from ecgan.reading.plain_yaml import Loader, parse_yaml

# Names that class lists have beside label maps, the one that decides first
NAMES = (
    "classes.json",
    "id2label.json",
    "dataset_meta.json",
    "labelmap.txt",
    "_classes.csv",
    "class_dict.csv",
    "class_names.txt",
    "labels.txt",
    "classes.txt",
    "dataset.yaml",
    "data.yaml",
)
_MAY_BE_OTHERS = {"dataset_meta.json", "dataset.yaml", "data.yaml"}  # names of files of any kind

RESIZED_COPY = "cache.json"  # beside the class list of a copy by `ecgan data cache`

_MAX_YAML_BYTES = 1 << 20  # the parser is slow
_FORMS = (
    'expected {"classes": [{"id": 0, "name": "road"}, ...]}, {"0": "road", ...}, {"road": 0, ...} '
    "or a list of names"
)
_UNLABELLED = {"ignore", "unlabelled", "unlabeled", "void"}  # names of 255 and -1


class _Parsed(NamedTuple):
    """Content of a class list as :func:`ecgan.labels.from_json` takes it."""

    document: dict[str, Any]
    places: Sequence[str] = ()  # of its classes in the file


class _FormatError(Exception):
    """A fault of the file, whose name is known further up."""


def read_class_list(path: Path, *, ignore: int | None = 255) -> LabelSpace:
    """Class list of any known format; docs/data.md, "Class lists", shows them all.

    Args:
        path: the file.
        ignore: value of unlabelled pixels where the file gives none.

    Raises:
        UserError: no such file, none of the formats, or faults in the list; all faults at once.
    """
    parsed = _parsed(path)
    if parsed is None:
        raise UserError(f"{path}: no class names in it; {_FORMS}")
    return _space(path, parsed, ignore)


def find_class_list(folder: Path, *, below: bool = True) -> Path | None:
    """Class list beside the data: in a folder or, as Roboflow has it, in the folders of its splits.

    Args:
        folder: the data set's.
        below: where there is none, take those up to two levels below, as in a folder that was
            packed in another one.

    Raises:
        UserError: a list has faults, or two of them give a number or a colour two meanings; the
            folder holds the whole disk.
    """
    splits = [name for names in SPLIT_FOLDERS.values() for name in names]
    found = _only_list(folder, [folder, *(folder / name for name in splits)])
    if found is not None or not below:
        return found
    refuse_whole_disk(folder)
    return _only_list(folder, _folders_below(folder, levels=2))


def _folders_below(folder: Path, levels: int) -> list[Path]:
    """Folders below a folder, those of a level sorted; no hidden ones and no links."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith((".", "__"))
            )
    except OSError:
        return []
    own = [folder / name for name in names]
    return own if levels == 1 else own + [f for one in own for f in _folders_below(one, levels - 1)]


def _only_list(folder: Path, places: Sequence[Path]) -> Path | None:
    """Class list of some places below a folder; all that are there must agree."""
    paths = [place / name for name in NAMES for place in places if (place / name).is_file()]
    found: list[tuple[Path, LabelSpace]] = []
    for path in paths:
        parsed = _parsed(path)
        if parsed is not None:
            found.append((path, _space(path, parsed)))
    if not found:
        return None
    first, space = found[0]
    for path, other in found[1:]:
        difference = _difference(space, other)
        if difference:
            names = [p.relative_to(folder).as_posix() for p in (first, path)]
            raise UserError(
                f"{folder}: two class lists that differ, {names[0]} and {names[1]}: {difference}; "
                "remove the wrong one, or set data.classes to the right one"
            )
    return first


def list_of_labels(folder: Path) -> Path | None:
    """Class list of a folder of label maps: in it or above it, from labels/SPLIT the data set's.

    Raises:
        UserError: as :func:`find_class_list`.
    """
    places = [folder, folder.parent]
    if folder.parent.name in {"labels", "masks"}:
        places.append(folder.parent.parent)
    found = (find_class_list(place, below=False) for place in places)
    return next((path for path in found if path is not None), None) or find_class_list(folder)


def list_of_copy(folder: Path) -> Path | None:
    """Class list of a copy that ``ecgan data cache`` wrote; None where the folder is none."""
    about, path = folder / RESIZED_COPY, folder / NAMES[0]
    if not about.is_file() or not path.is_file():
        return None
    try:
        content = read_json(about, "a copy", "", MAX_BYTES)
    except UserError:
        return None
    is_ours = isinstance(content, dict) and {"version", "cropped", "classes"} <= content.keys()
    return path if is_ours else None


def _difference(a: LabelSpace, b: LabelSpace) -> str:
    """First difference between two lists in what both of them say; empty where they agree.

    One may leave classes of the other unlabelled.
    """
    entries_a, entries_b = (
        {
            number: entry
            for entry in space.entries()
            for number in entry.get("ids", [entry.get("id")])
        }
        for space in (a, b)
    )
    numbers = (entries_a.keys() | entries_b.keys()) - {*a.ignored, *b.ignored}
    for number in sorted(numbers):
        one, other = entries_a.get(number, {}), entries_b.get(number, {})
        if one.get("name") != other.get("name"):
            names = [entry.get("name", "no class") for entry in (one, other)]
            return f"{number} is {names[0]} in the first and {names[1]} in the second"
        colors = [entry.get("color") for entry in (one, other)]
        if None not in colors and colors[0] != colors[1]:
            return f"{one['name']} is {colors[0]} in the first and {colors[1]} in the second"
    return ""


def _space(path: Path, parsed: _Parsed, ignore: int | None = 255) -> LabelSpace:
    document = dict(parsed.document)
    if ignore != 255:  # else what fits the number of classes
        document.setdefault("ignore", ignore)
    return labels.from_json(document, str(path), parsed.places)


def _parsed(path: Path) -> _Parsed | None:
    """Content of a file; None where it is about something else, as its name may allow."""
    try:
        text = _text(path)
        if path.suffix.lower() in {".yaml", ".yml"}:
            parsed = _from_mapping(_yaml(text))
        elif path.suffix.lower() == ".json" or text.lstrip()[:1] in {"{", "["}:
            parsed = _from_mapping(_json(text))
        elif path.suffix.lower() == ".csv":
            parsed = _from_csv(text)
        else:
            parsed = _from_lines(text)
    except _FormatError as error:
        raise UserError(f"{path}: {error}") from error.__cause__
    if parsed is None and path.name not in _MAY_BE_OTHERS:
        raise UserError(f"{path}: {_FORMS}")
    return parsed


def _text(path: Path) -> str:
    limit = _MAX_YAML_BYTES if path.suffix.lower() in {".yaml", ".yml"} else MAX_BYTES
    if not path.exists():
        raise _FormatError(
            "no such file; write the class list there, or set data.classes in the recipe"
        )
    content = read_bytes(path, limit)
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise _FormatError(f"not text in UTF-8 (byte {error.start}); save it as UTF-8") from error


# JSON and YAML


def _json(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _FormatError(f"not a JSON file: {first_line(error)}; mend it") from error


class _Loader(Loader):
    """Takes aliases; refuses keys that occur twice, of which YAML's parser would keep the last."""

    aliases = True

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[yaml.Node] = [key for key, _ in node.value]
        scalars = [key for key in keys if isinstance(key, yaml.ScalarNode)]
        _without_duplicates([(key.value, None) for key in scalars])
        return super().construct_mapping(node, deep)


def _yaml(text: str) -> object:
    try:
        return parse_yaml(text, _Loader)
    except ValueError as error:
        raise _FormatError(f"not a YAML file: {error}; mend it") from error


def _without_duplicates(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _FormatError(f"key {shown(twice)} occurs twice; leave one of them")
    return found


def _from_mapping(value: object) -> _Parsed | None:
    """From JSON or YAML; None where it has no class names."""
    if isinstance(value, list):
        return _Parsed({"classes": _named(cast("list[Any]", value))})
    if not isinstance(value, dict):
        return None
    fields = cast("dict[Any, Any]", value)
    for key, palette in (("classes", "palette"), ("CLASSES", "PALETTE")):
        if isinstance(fields.get(key), list):
            entries = _with_colors(_named(fields[key]), fields.get(palette), palette)
            return _Parsed({**fields, "classes": entries})
    for key, palette in (("names", ""), ("id2label", ""), ("label_map", "segmentation_colors")):
        if isinstance(fields.get(key), (list, dict)):
            return _inner(key, fields[key], fields.get(palette), palette)
    return _from_pairs(fields)


def _inner(key: str, inner: Any, colors: Any, palette: str) -> _Parsed:  # noqa: ANN401
    """Class list below a key of a file, and its colours."""
    if isinstance(inner, list):
        entries = _named(cast("list[Any]", inner))
        parsed = _Parsed({"classes": entries}, [f"{key}[{index}]" for index in range(len(entries))])
    else:
        parsed = _from_pairs(cast("dict[Any, Any]", inner))
    if parsed is None:
        raise _FormatError(f'{key}: expected names, or {{"0": "road", ...}}, got {shown(inner)}')
    entries = _with_colors(parsed.document["classes"], colors, palette)
    return _Parsed({**parsed.document, "classes": entries}, parsed.places)


def _named(entries: Sequence[Any]) -> list[Any]:
    return [{"name": entry.strip()} if isinstance(entry, str) else entry for entry in entries]


def _with_colors(entries: list[Any], colors: Any, key: str) -> list[Any]:  # noqa: ANN401
    if colors is None:
        return entries
    if not isinstance(colors, list) or len(cast("list[Any]", colors)) != len(entries):
        raise _FormatError(
            f"{key}: expected {len(entries)} colours, one a class, got {shown(colors)}"
        )
    return [
        {**entry, "color": color} if isinstance(entry, dict) else entry
        for entry, color in zip(entries, cast("list[Any]", colors), strict=True)
    ]


def _from_pairs(pairs: Mapping[Any, Any]) -> _Parsed | None:
    """From number -> name, or name -> number or numbers; None where it is neither."""
    keys, values = [*pairs], [*pairs.values()]
    places = [f"key {key}" for key in keys]
    if keys and all(_is_number(key) for key in keys) and not any(map(_are_numbers, values)):
        named = _named(values)
        entries: list[Any] = [
            {**entry, "id": int(key)} if isinstance(entry, dict) else entry
            for key, entry in zip(keys, named, strict=True)
        ]
        return _without_unlabelled(entries, places)
    if keys and all(isinstance(key, str) and not _is_number(key) for key in keys):
        if not all(map(_are_numbers, values)):
            return None
        entries = [
            {"name": key.strip(), "ids" if isinstance(value, list) else "id": value}
            for key, value in pairs.items()
        ]
        return _without_unlabelled(entries, places)
    return None


def _is_number(key: object) -> bool:
    return not isinstance(key, bool) and re.fullmatch(r"\s*-?[0-9]{1,5}\s*", str(key)) is not None


def _are_numbers(value: object) -> bool:
    several = cast("list[object]", value if isinstance(value, list) else [value])
    return bool(several) and all(isinstance(v, int) and not isinstance(v, bool) for v in several)


def _without_unlabelled(entries: Sequence[Any], places: Sequence[str]) -> _Parsed:
    """Classes but those that stand for unlabelled pixels: 255 and -1 under a name that says so."""
    document: dict[str, Any] = {}
    kept = [True] * len(entries)
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            continue
        number, name = (cast("dict[str, Any]", entry).get(key) for key in ("id", "name"))
        if number in {255, -1} and str(name).strip(" _").lower() in _UNLABELLED:
            kept[index] = False
            if number == 255:
                document["ignore"] = 255
    return _Parsed({**document, "classes": [*compress(entries, kept)]}, [*compress(places, kept)])


# Text


def _from_csv(text: str) -> _Parsed:
    """Columns by their heads: Pixel Value and Class (Roboflow); name, r, g and b."""
    reader = csv.reader(text.splitlines(), skipinitialspace=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except csv.Error as error:
        raise _FormatError(f"line {reader.line_num}: not CSV ({error}); mend the line") from error
    heads = [cell.lower() for cell in rows[0][1]] if rows else []
    columns = {role: [h for h in heads if h in names] for role, names in _HEADS.items()}
    if not columns["name"]:
        raise _FormatError(
            "no column Class; expected the columns Pixel Value, Class or name, r, g, b"
        )
    entries: list[dict[str, Any]] = []
    for line, cells in rows[1:]:
        if len(cells) != len(heads):
            raise _FormatError(
                f"line {line}: number of columns {len(cells)}, expected {len(heads)}; mend the line"
            )
        cell = dict(zip(heads, map(_as_number, cells), strict=True))
        entry = {role: cell[found[0]] for role, found in columns.items() if found}
        entry["name"] = str(entry["name"])
        color = [entry.pop(channel) for channel in "rgb" if channel in entry]
        entries.append({**entry, "color": color} if color else entry)
    return _without_unlabelled(entries, [f"line {line}" for line, _ in rows[1:]])


def _as_number(text: str) -> int | str:
    return int(text) if _is_number(text) else text


_HEADS: Mapping[str, frozenset[str]] = {
    "id": frozenset({"pixel value", "value", "id", "index"}),
    "name": frozenset({"class", "name", "label"}),
    "r": frozenset({"r", "red"}),
    "g": frozenset({"g", "green"}),
    "b": frozenset({"b", "blue"}),
}
# name:r,g,b:parts:actions; the colour may be missing
_CVAT = re.compile(r"(?P<name>[^:]*):(?P<color>[^:]*):[^:]*:[^:]*")
_NUMBERED = re.compile(r"(?P<id>-?[0-9]{1,5})\s*[:=,\t]\s*(?P<name>.+)")


def _from_lines(text: str) -> _Parsed:
    """A class a line: CVAT's labelmap.txt, 7: road, or names alone (LabelMe)."""
    numbered = enumerate(map(str.strip, text.splitlines()), 1)
    lines = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    places = [f"line {number}" for number, _ in lines]
    for form, entry in ((_CVAT, _cvat_entry), (_NUMBERED, _numbered_entry)):
        matches = [form.fullmatch(line) for _, line in lines]
        if lines and all(matches):
            return _without_unlabelled([entry(match) for match in matches if match], places)
    names = [line for _, line in lines]
    if names[:1] == ["__ignore__"]:  # LabelMe's -1, which its tools save as 255
        names, places = names[1:], places[1:]
    if "__ignore__" in names:
        place = places[names.index("__ignore__")]
        raise _FormatError(
            f"{place}: __ignore__ stands for -1, so it must be the first line; move it"
        )
    return _Parsed({"classes": names}, places)


def _cvat_entry(match: re.Match[str]) -> dict[str, Any]:
    name, color = match["name"].strip(), match["color"].strip()
    channels = [_as_number(channel.strip()) for channel in color.split(",")]
    return {"name": name, "color": channels} if color else {"name": name}


def _numbered_entry(match: re.Match[str]) -> dict[str, Any]:
    return {"id": int(match["id"]), "name": match["name"]}
