"""Readers of shards: tar, Parquet and folder format, in order or at random.

The docs, "Formats", are the contract with other programs' readers.
"""

import itertools
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from ecgan.errors import UserError
from ecgan.reading.documents import parse_json
from ecgan.runtime.storage import Store
from ecgan.shards.files import tars
from ecgan.shards.files.names import listing_name, shard_parts
from ecgan.shards.files.tables import Table, open_table
from ecgan.shards.files.tars import REMEDY, Member
from ecgan.shards.formats import IMAGE_COLUMNS, listed_sample
from ecgan.shards.records import RECORD_FIELDS, Raw

# Fields of a tar's samples that hold a picture, the first that is there
TAR_FIELDS = {
    "image": ("jpg", "png", "webp", "jpeg"),
    "label": ("seg.png", "label.png", "mask.png"),
    "instances": ("instances.png",),
    "edge": ("edge.png",),
}
# Columns of a Parquet file that hold a picture, the first that is there
_COLUMNS_OF = {
    "image": ("image", "pixel_values"),
    "label": ("label", "mask", "annotation", "segmentation"),
    "instances": ("instances",),
    "edge": ("edge",),
}
_PICTURES = ("image", "label")
_NOTHING = object()


def read_raw(store: Store, name: str) -> Iterator[Raw]:
    """Samples of one shard in their order, still encoded.

    Args:
        store: storage of the data set.
        name: name of a tar or Parquet file, or of a shard of the folder format.

    Raises:
        UserError: it is missing or damaged.
    """
    place = f"{store}/{name}"
    try:
        if name.endswith(".parquet"):
            with store.open(name) as file:
                table = _opened(file, place)
                for number, row in enumerate(table.rows(_columns(table))):
                    yield raw_from_row(_in_our_names(row), place, number)
        elif name.endswith(".tar"):
            yield from _read_tar(store, name, place)
        else:
            place = f"{store}/{listing_name(name)}"
            for line in store.read(listing_name(name)).splitlines():
                yield raw_from_line(store, line, name)
    except FileNotFoundError:
        raise UserError(_missing(place)) from None


class OpenShard:
    """A shard for random access: what it holds is looked up once.

    Args:
        store: storage of the data set.
        name: name of the shard, as for :func:`read_raw`.

    Raises:
        UserError: it is missing or damaged.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.place = f"{store}/{name}"
        self._store, self._name = store, name
        self._members: list[list[Member]] = []  # of a tar
        self._lines: list[bytes] = []  # of the folder format
        self._table: Table | None = None  # of a Parquet file, in the process that opened it
        self._process = 0
        self._rows = 0
        try:
            if name.endswith(".tar"):
                with store.open(name) as file:
                    self._members = _grouped_members(file, self.place)
            elif name.endswith(".parquet"):
                with store.open(name) as file:
                    self._rows = int(_opened(file, self.place).starts[-1])
            else:
                self._lines = store.read(listing_name(name)).splitlines()
        except FileNotFoundError:
            raise UserError(_missing(self.place)) from None

    def __len__(self) -> int:
        return len(self._members) or len(self._lines) or self._rows

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_table": None}  # an open file stays in its process

    def raw(self, place: int) -> Raw:
        """The sample at a place, from 0."""
        try:
            return self._raw(place)
        except FileNotFoundError:
            raise UserError(_missing(self.place)) from None

    def _raw(self, place: int) -> Raw:
        if self._lines:
            return raw_from_line(self._store, self._lines[place], self._name)
        if self._members:
            with self._store.open(self._name) as file:
                return _raw_of(file, self._members[place], self.place)
        # Forked processes of a DataLoader share the position of a file that was open before them
        if self._table is None or self._process != os.getpid():
            self._process = os.getpid()
            self._table = _opened(self._store.open(self._name), self.place)
        row = self._table.row(place, _columns(self._table))
        return raw_from_row(_in_our_names(row), self.place, place)


class Columns:
    """A Parquet or Arrow file on disk whose columns are read one by one.

    Args:
        path: the file.
        kept_bytes: a row group's column is kept for the next rows if it is not larger.

    Raises:
        UserError: it is missing or damaged.
    """

    def __init__(self, path: Path, kept_bytes: int = 0) -> None:
        self._path, self._kept_bytes = path, kept_bytes
        self._kept: dict[str, tuple[int, list[Any]]] = {}
        self._table = open_table(path, str(path))
        self.names, self.largest_group = self._table.names, self._table.largest_group

    def keys(self) -> list[str]:
        """Key of each row."""
        column = next((name for name in ("key", "__key__") if name in self.names), None)
        own: list[Any] = [None] * int(self._table.starts[-1])
        if column is not None:
            own = self._table.column(column)
        return [row_key(key, str(self._path), row) for row, key in enumerate(own)]

    def value(self, row: int, column: str) -> Any:  # noqa: ANN401  whatever others write
        """A value by its row, from 0; the row group around it is read."""
        group, at = self._table.find(row)
        known = self._kept.get(column)
        if known is not None and known[0] == group:
            return known[1][at]
        kept: list[Any] = []
        size, found = 0, _NOTHING
        for batch in self._table.batches(group, [column]):
            values = batch.column(0)
            if 0 <= at < len(values):
                found = values[at].as_py()
            at -= len(values)
            size += values.nbytes
            if size <= self._kept_bytes:
                kept += values.to_pylist()
            elif found is not _NOTHING:
                return found
        if found is _NOTHING:
            raise UserError(f"{self._path}: damaged: no row {row}; {REMEDY}")
        if size <= self._kept_bytes:
            self._kept[column] = group, kept
        return found


def list_tar(path: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Keys of a tar's samples in their order, with their members by field.

    Raises:
        UserError: it is missing, damaged or compressed, or holds other than ordinary files.
    """
    with path.open("rb") as file:
        for members in _grouped_members(file, str(path)):
            fields = {tars.field(member.name): member for member in members}
            yield tars.stem(members[0].name), fields


def _grouped_members(file: BinaryIO, place: str) -> list[list[Member]]:
    """Members of each sample."""
    members = tars.list_members(file, place)
    return [list(own) for _, own in itertools.groupby(members, lambda m: tars.stem(m.name))]


def _missing(place: str) -> str:
    return f"{place}: the manifest lists this shard, but it is not there; make the set again"


def _opened(file: BinaryIO, place: str) -> Table:
    """A Parquet file with the columns of samples."""
    table = Table(file, place)
    if missing := [kind for kind in _PICTURES if column_of(kind, table.names) is None]:
        raise UserError(f"{place}: no column {' and '.join(missing)}")
    return table


def column_of(kind: str, there: Collection[str]) -> str | None:
    """Column of a Parquet file that holds a kind of picture; None where none does."""
    return next((name for name in _COLUMNS_OF[kind] if name in there), None)


def _columns(table: Table) -> list[str]:
    """Columns of a sample that a file may have, whatever the names of its pictures."""
    found = [column_of(kind, table.names) for kind in IMAGE_COLUMNS]
    return [*filter(None, found), *RECORD_FIELDS]


def _in_our_names(row: dict[str, Any]) -> dict[str, Any]:
    columns = {column_of(kind, row): kind for kind in IMAGE_COLUMNS}
    return {columns.get(name, name): value for name, value in row.items()}


def _read_tar(store: Store, name: str, place: str) -> Iterator[Raw]:
    with store.open(name) as file:
        members = tars.list_members(file, place)
        for _, own in itertools.groupby(members, lambda member: tars.stem(member.name)):
            yield _raw_of(file, own, place)


def _raw_of(file: BinaryIO, members: Iterable[Member], place: str) -> Raw:
    """A sample from its members."""
    key, fields = "", dict[str, bytes]()
    for member in members:
        key = tars.stem(member.name)
        fields[tars.field(member.name)] = tars.read_member(file, member, place)
    return raw_from_fields(place, key, fields)


def raw_from_fields(place: str, key: str, members: dict[str, bytes]) -> Raw:
    """A sample from the fields of a tar's members.

    Raises:
        UserError: fields are missing.
    """
    image_format = next((f for f in TAR_FIELDS["image"] if f in members), None)
    label = next((f for f in TAR_FIELDS["label"] if f in members), None)
    if image_format is None or label is None:
        raise UserError(
            f"{place}: sample {key} has the fields {', '.join(sorted(members))}; "
            "expected jpg (or png, webp) and seg.png (or label.png, mask.png)"
        )
    record = _parsed(place, members.get("json", b"{}"))
    edge = members.get("edge.png")
    return Raw(key, record, members[image_format], members[label], edge, image_format)


def raw_from_row(row: dict[str, Any], place: str, number: int) -> Raw:
    """A sample from a row of a Parquet file; its key is made of file and row where it has none.

    Args:
        row: values by column; pictures are bytes or Hugging Face's ``{"bytes": …, "path": …}``.
        place: of the file.
        number: of the row, from 0.

    Raises:
        UserError: a picture is missing, or no picture.
    """
    where = f"{place}: row {number}"
    if missing := sorted({"image", "label"} - row.keys()):
        raise UserError(f"{place}: no column {' and '.join(missing)}")
    image, label = (picture(row[column], f"{where}, column {column}") for column in _PICTURES)
    edge = None if row.get("edge") is None else picture(row["edge"], f"{where}, column edge")
    record = {k: v for k, v in row.items() if k not in IMAGE_COLUMNS}
    path = row["image"].get("path") if isinstance(row["image"], dict) else None
    image_format = (path if isinstance(path, str) else "image.jpg").rpartition(".")[2]
    return Raw(row_key(row.get("key"), place, number), record, image, label, edge, image_format)


def row_key(key: object, place: str, number: int) -> str:
    """Key of a row: its own, or of file and row; Arrow files of all splits have one name."""
    if key not in (None, ""):
        return str(key)
    path = PurePosixPath(place)
    folder = f"{path.parent.name}-" if path.suffix == ".arrow" else ""
    return f"{folder}{path.stem}-{number}"


def picture(value: object, where: str) -> bytes:
    """Bytes of an image file in a Parquet column.

    Raises:
        UserError: null, or no bytes.
    """
    given = value
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        value = fields.get("bytes")
        if value is None and fields.get("path"):
            raise UserError(
                f"{where}: only the path {fields['path']!r}; write the pictures' bytes into "
                "the file"
            )
    if isinstance(value, bytes):
        return value
    if value is None and (given is None or isinstance(given, dict)):
        raise UserError(f"{where}: null; fill it in, or remove the row")
    kinds = {str: "text", int: "a number", float: "a number", list: "a list"}
    kind = kinds.get(type(value), f"a {type(value).__name__}")
    raise UserError(
        f"{where}: {kind}; expected the bytes of an image file, or a struct of bytes and path"
    )


def raw_from_line(store: Store, line: bytes, name: str) -> Raw:
    """A sample of a shard of the folder format, from the line that lists it.

    Raises:
        UserError: the line is damaged, or a file that it names is not there.
    """
    place = f"{store}/{listing_name(name)}"
    listed = listed_sample(line, shard_parts(name).split, place)
    image, label, edge = (_file_bytes(store, file) for file in listed.files)
    return Raw(listed.key, listed.record, image, label, edge, listed.image_format)


def _file_bytes(store: Store, name: str) -> bytes:
    try:
        return store.read(name)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{store}/{name}: the data set lists this file, but it is not there; make the set again"
        ) from None


def _parsed(place: str, text: bytes) -> dict[str, Any]:
    value = parse_json(text, place, "a record of a sample", REMEDY)
    if not isinstance(value, dict):
        raise UserError(f"{place}: a damaged record: no JSON object; {REMEDY}")
    return cast("dict[str, Any]", value)
