"""Files that list photos: those of each split (VOC's ImageSets), or each with its label map.

The second are ``metadata.jsonl`` and ``metadata.csv`` of Hugging Face's ImageFolder. Paths in them
are names below their own folder, and nothing outside the data set is read.
"""

import codecs
import csv
import io
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from ecgan.data.files import names
from ecgan.data.files.names import IMAGE_SUFFIXES, NOUNS, FoundFile, Kind
from ecgan.data.files.pairing import count
from ecgan.errors import UserError
from ecgan.labels import SPLIT_FOLDERS
from ecgan.reading.documents import MOST_BYTES, parse_json, read_bytes
from ecgan.reading.places import relative_name

_MAX_BYTES = 50_000_000


class Divided(NamedTuple):
    """What lists say of the names that are there.

    Attributes:
        split_of: split of each name that a list has; None where no list's name says.
        twice: names in the lists of two splits.
        missing: lines that none of the names fits.
    """

    split_of: dict[str, str | None]
    twice: set[str]
    missing: list[str]

    @property
    def faults(self) -> list[str]:
        """A sentence on names in two lists, and one on names that no label map has."""
        faults: list[str] = []
        if self.twice:
            faults.append(
                f"{count(len(self.twice), 'name')} in the lists of two splits (first: "
                f"{min(self.twice)}); a photo must be in one of them"
            )
        if self.missing:
            faults.append(
                f"{count(len(self.missing), 'name')} in the lists of splits without a label map "
                f"(first: {self.missing[0]}); add what is missing, or take the names out"
            )
        return faults


def read(files: Iterable[FoundFile]) -> dict[str, list[str]]:
    """Lines of each split where text files list them: ImageSets/Segmentation/*.txt and the like.

    The other folders of ImageSets count where there is no Segmentation.
    """
    found: dict[int, dict[str, list[str]]] = {}
    for file in files:
        folders = [folder.lower() for folder in file.folders]
        is_voc = folders[-2:-1] == ["imagesets"]
        is_list = not folders or folders[-1:] in (["splits"], ["split"], ["imagesets"])
        split = names.split_of(file.stem)
        if not is_voc and not (is_list and split):
            continue
        if own := _lines(file.path):
            rank = 1 if is_voc and folders[-1] != "segmentation" else 0
            found.setdefault(rank, {})[split or file.stem.lower()] = own
    return found.get(min(found, default=0), {})


def _lines(path: Path) -> list[str]:
    """Lines of a text file with something on them; none of a file that is no text."""
    try:
        content = read_bytes(path, _MAX_BYTES)
        is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if is_wide else "utf-8-sig")
    except (UserError, ValueError):
        return []
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and line[0] != "#"]


def divide(lists: Mapping[str | None, Sequence[str]], known: Collection[str]) -> Divided:
    """Split of each name that a line of the lists fits, with its folders or without.

    Args:
        lists: lines of each split: a name, which may have blanks, or a name and something more.
        known: names of label maps.
    """
    by_stem: dict[str, list[str]] = {}
    for name in known:
        by_stem.setdefault(name.rpartition("/")[2], []).append(name)
    found = Divided({}, set(), [])
    for split, lines in lists.items():
        for line in lines:
            own = next((own for path in _paths(line) if (own := _fitting(path, by_stem))), [])
            if not own:
                found.missing.append(line)
            for name in own:
                if found.split_of.setdefault(name, split) != split:
                    found.twice.add(name)
    return found


def _paths(line: str) -> Iterator[str]:
    """Names that a line may mean: all of it, or its first word, without the ending."""
    for text in dict.fromkeys((line, line.split(maxsplit=1)[0])):
        path = unicodedata.normalize("NFC", text.replace("\\", "/")).strip("/")
        stem, suffix = path.rpartition(".")[::2]
        yield stem if f".{suffix.lower()}" in IMAGE_SUFFIXES else path


def _fitting(path: str, by_stem: Mapping[str, Sequence[str]]) -> list[str]:
    """Names that are equal to a path as far as both have folders."""
    own = by_stem.get(path.rpartition("/")[2], ())
    equal = [name for name in own if name == path or path.endswith(f"/{name}")]
    return equal or [name for name in own if name.endswith(f"/{path}")]


def by_split(lists: Mapping[str, Sequence[str]]) -> Mapping[str | None, Sequence[str]]:
    """Lines of each split; of no split, as in CVAT's default.txt, where no list's name says."""
    named: dict[str | None, Sequence[str]] = {
        split: own for split, own in lists.items() if split in SPLIT_FOLDERS
    }
    if "train" not in named and "trainval" in lists:
        held = {*named.get("val", ()), *named.get("test", ())}
        named["train"] = [name for name in lists["trainval"] if name not in held]
    return named or {None: [name for own in lists.values() for name in own]}


# Pairs


_METADATA = {"metadata.jsonl", "metadata.csv"}
_MANIFEST = "manifest.json"  # beside the lists of our own sets, which name files as folders do
_FILE = "file_name"
_MANY = "correct the line, or name folders with data.images and data.labels"


@dataclass
class Listed:
    """Photos with their maps, as files of a data set list them.

    Attributes:
        source: name of the file that lists them.
        pairs: each photo, and its maps by kind.
        faults: paths that are refused or not there.
    """

    source: str
    pairs: list[tuple[FoundFile, dict[Kind, FoundFile]]] = field(
        default_factory=list["tuple[FoundFile, dict[Kind, FoundFile]]"]
    )
    faults: list[str] = field(default_factory=list[str])


def read_pairs(files: Iterable[FoundFile], root: Path) -> Listed | None:
    """Pairs that ``metadata.jsonl`` and ``metadata.csv`` list; None where none lists label maps.

    Args:
        files: files below the data set's folder.
        root: that folder.
    """
    listed: Listed | None = None
    seen: set[Path] = set()
    for file in files:
        name = file.path.name.lower()
        if name not in _METADATA or (file.path.parent / _MANIFEST).is_file():
            continue
        rows = _Rows(file.path)
        columns = rows.columns
        if "image" not in columns or "label" not in columns:
            continue
        listed = listed or Listed(file.path.name)
        _take_rows(listed, rows, columns, root, seen)
    return listed


def _take_rows(
    listed: Listed, rows: "_Rows", columns: Mapping[Kind, list[str]], root: Path, seen: set[Path]
) -> None:
    if several := [own for own in columns.values() if len(own) > 1]:
        listed.faults.append(
            f"{rows.path}: the columns {' and '.join(several[0])} may both be meant; rename one"
        )
        return
    unnamed: list[int] = []
    for number, row in rows:
        found = _files_of(row, columns, number, rows.path, root, listed.faults)
        if row.get(columns["label"][0]) in (None, ""):
            unnamed.append(number)
        if (photo := found.pop("image", None)) is not None:
            if photo.path in seen:
                listed.faults.append(f"{rows.path}: line {number}: {photo.path.name} stands twice")
            seen.add(photo.path)
            listed.pairs.append((photo, found))
    listed.faults += [rows.fault] if rows.fault else []
    if unnamed:
        listed.faults.append(
            f"{rows.path}: {count(len(unnamed), 'line')} without a {NOUNS['label']} (first: line "
            f"{unnamed[0]}); add its name, or take the line out"
        )


def _files_of(
    row: Mapping[str, Any],
    columns: Mapping[Kind, list[str]],
    number: int,
    path: Path,
    root: Path,
    faults: list[str],
) -> dict[Kind, FoundFile]:
    """Files that a line of a list names, by kind."""
    found: dict[Kind, FoundFile] = {}
    for kind, (column,) in columns.items():
        try:
            file = _listed_file(row.get(column), path.parent, root)
        except ValueError as error:
            faults.append(f"{path}: line {number}, {column}: {error}; {_MANY}")
            continue
        if file is not None:
            found[kind] = file
    return found


def _listed_file(value: object, folder: Path, root: Path) -> FoundFile | None:
    """The file that a value names, below the folder of its list; None without a value.

    Raises:
        ValueError: it is no name below a folder, is not there, or leads out of the data set.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__}, not the name of a file")  # noqa: TRY004
    path = folder / relative_name(value)
    if not path.is_file():
        raise ValueError(f"{value}: no such file")
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{value}: a link that leads out of the data set; copy the file into it")
    return FoundFile(path.parent.relative_to(root).parts, path.stem, path)


class _Rows:
    """Lines of a list, each with its number; what is wrong with one stands in ``fault``."""

    def __init__(self, path: Path) -> None:
        self.path, self.fault = path, ""
        try:
            self._text = read_bytes(path, MOST_BYTES).decode("utf-8-sig")
        except (UserError, ValueError):  # a list of something else
            self._text = ""
        first = next(iter(self), (0, dict[str, Any]()))[1]
        self.columns = _columns(first)
        self.fault = ""

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if self.path.suffix.lower() == ".csv":
            return self._of_csv()
        return self._of_json()

    def _of_json(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(self._text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line, f"{self.path}: line {number}", "JSON", _MANY)
            except UserError as error:
                self.fault = str(error)
                return
            if not isinstance(row, dict):
                self.fault = f"{self.path}: line {number}: no JSON object; {_MANY}"
                return
            yield number, cast("dict[str, Any]", row)

    def _of_csv(self) -> Iterator[tuple[int, dict[str, Any]]]:
        reader = csv.DictReader(io.StringIO(self._text, newline=""))
        try:
            for row in reader:
                yield reader.line_num, cast("dict[str, Any]", row)
        except csv.Error as error:
            self.fault = f"{self.path}: line {reader.line_num}: not CSV: {error}; {_MANY}"


def _columns(row: Mapping[str, Any]) -> dict[Kind, list[str]]:
    """Columns that name files, by the kind of picture that their names stand for."""
    found: dict[Kind, list[str]] = {}
    for column, value in row.items():
        if not isinstance(column, str):  # the rest of a line of CSV that is too long
            continue
        if column == _FILE:
            found.setdefault("image", []).append(column)
            continue
        kind = names.place_of((column.removesuffix(f"_{_FILE}"),)).kind
        is_path = isinstance(value, str) and Path(value).suffix.lower() in IMAGE_SUFFIXES
        if kind is not None and (column.endswith(f"_{_FILE}") or is_path):
            found.setdefault(kind, []).append(column)
    return found
