"""Readers of shards: tar, Parquet and folder format, in order or at random.

The docs, "Formats", are the contract with other programs' readers.
"""

import itertools
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ecgan.errors import UserError
from ecgan.runtime.storage import Store, open_store
from ecgan.shards.formats import FILE_FIELDS, IMAGE_COLUMNS, listing_name
from ecgan.shards.records import Raw

# Fields of a tar's samples that hold a picture, the first that is there
TAR_FIELDS = {
    "image": ("jpg", "png", "webp", "jpeg"),
    "label": ("seg.png", "label.png", "mask.png"),
    "instances": ("instances.png",),
    "edge": ("edge.png",),
}
_PICTURES = ("image", "label")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_REMEDY = "`ecgan data verify` lists all such shards; make the set again, or remove them"


def read_raw(store: Store, name: str) -> Iterator[Raw]:
    """Samples of one shard in their order, still encoded.

    Args:
        store: storage of the data set.
        name: name of a tar or Parquet file, or of a shard of the folder format.

    Raises:
        UserError: it is missing or damaged.
    """
    place = f"{store}/{name}"
    if not name.endswith((".tar", ".parquet")):
        place = f"{store}/{listing_name(name)}"
    try:
        if name.endswith(".parquet"):
            yield from _read_parquet(store, name, place)
        elif name.endswith(".tar"):
            yield from _read_tar(store, name, place)
        else:
            for line in store.read(listing_name(name)).splitlines():
                yield raw_from_line(store, line, place)
    except FileNotFoundError:
        raise UserError(_missing(place)) from None


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int
    size: int


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
        self._starts = np.zeros(1, np.int64)  # of a Parquet file's row groups
        self._parquet: pq.ParquetFile | None = None
        try:
            if name.endswith(".tar"):
                self._members = _grouped_members(store, name, self.place)
            elif name.endswith(".parquet"):
                self._starts = _group_starts(store, name, self.place)
            else:
                self._lines = store.read(listing_name(name)).splitlines()
        except FileNotFoundError:
            raise UserError(_missing(self.place)) from None

    def __len__(self) -> int:
        return len(self._members) or len(self._lines) or int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_parquet": None}  # an open file stays in its process

    def raw(self, place: int) -> Raw:
        """The sample at a place, from 0."""
        if self._lines:
            return raw_from_line(self._store, self._lines[place], self.place)
        if self._members:
            fields: dict[str, bytes] = {}
            with self._store.open(self._name) as file:
                for member in self._members[place]:
                    file.seek(member.offset)
                    fields[_field(member.name)] = file.read(member.size)
            return raw_from_fields(self.place, _stem(self._members[place][0].name), fields)
        group = int(np.searchsorted(self._starts, place, side="right")) - 1
        with _reading_parquet(self.place):
            if self._parquet is None:
                self._parquet = pq.ParquetFile(self._store.open(self._name))
            rows = self._parquet.read_row_group(group).slice(place - int(self._starts[group]), 1)
            (row,) = rows.to_pylist()
        return raw_from_row(row, self.place, place)


class ParquetColumns:
    """A Parquet file on disk whose columns are read one by one.

    Args:
        path: the file.
        kept_bytes: a row group's column is kept for the next rows if it is not larger.

    Raises:
        UserError: it is missing or damaged.
    """

    def __init__(self, path: Path, kept_bytes: int = 0) -> None:
        self._path, self._kept_bytes = path, kept_bytes
        self._kept: dict[str, tuple[int, list[Any]]] = {}
        with _reading_parquet(str(path)):
            self._file = pq.ParquetFile(path)
            about = self._file.metadata
            self.names: list[str] = self._file.schema_arrow.names
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum([g.num_rows for g in groups], dtype=int)])
        self.largest_group = max((g.total_byte_size for g in groups), default=0)

    def keys(self) -> list[str]:
        """Key of each row."""
        column = next((name for name in ("key", "__key__") if name in self.names), None)
        own: list[Any] = [None] * int(self._starts[-1])
        if column is not None:
            with _reading_parquet(str(self._path)):
                own = self._file.read([column])[column].to_pylist()
        return [row_key(key, str(self._path), row) for row, key in enumerate(own)]

    def value(self, row: int, column: str) -> Any:  # noqa: ANN401  whatever others write
        """A value by its row, from 0; the row group around it is read."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        at = row - int(self._starts[group])
        known = self._kept.get(column)
        if known is not None and known[0] == group:
            return known[1][at]
        with _reading_parquet(str(self._path)):
            values = self._file.read_row_group(group, [column])[column]
            if values.nbytes > self._kept_bytes:
                return values[at].as_py()
            self._kept[column] = group, values.to_pylist()
        return self._kept[column][1][at]


def list_tar(path: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Keys of a tar's samples in their order, with their members by field.

    Raises:
        UserError: it is missing, damaged or compressed, or holds other than ordinary files.
    """
    store = open_store(path.parent)
    for members in _grouped_members(store, path.name, str(path)):
        yield _stem(members[0].name), {_field(member.name): member for member in members}


def _grouped_members(store: Store, name: str, place: str) -> list[list[Member]]:
    """Members of each sample."""
    with _open_tar(store, name, place) as tar:
        found = [Member(i.name, i.offset_data, i.size) for i in _members(tar, place)]
    grouped = itertools.groupby(found, key=lambda member: _stem(member.name))
    return [list(members) for _, members in grouped]


def _missing(place: str) -> str:
    return f"{place}: the manifest lists this shard, but it is not there; make the set again"


@contextmanager
def _open_tar(store: Store, name: str, place: str) -> Iterator[tarfile.TarFile]:
    """A tar that is read; UserError where it is damaged."""
    start = b""
    try:
        with store.open(name) as file:
            start = file.read(512)
            file.seek(0)
            if start.startswith(_COMPRESSED):
                raise UserError(
                    f"{place}: a compressed tar, which cannot be read at random; unpack it"
                )
            with tarfile.open(fileobj=file, mode="r:") as tar:
                yield tar
    except (tarfile.TarError, EOFError) as error:
        is_tar = start[257:262] == b"ustar"
        fault = f"a damaged tar: {error}" if is_tar else "not a tar file"
        raise UserError(f"{place}: {fault}; {_REMEDY}") from error


def _members(tar: tarfile.TarFile, place: str) -> Iterator[tarfile.TarInfo]:
    """Files of a tar that belong to samples; folders and hidden files are passed over.

    Raises:
        UserError: a link, a sparse file, a device, or a name that leads out of the folder.
    """
    for info in tar:
        if info.isdir():
            continue
        if info.issparse() or not info.isfile():
            kind = "a sparse file" if info.issparse() else "a link or device"
            raise UserError(f"{place}: {info.name} is {kind}; pack ordinary files only")
        if info.name.startswith("/") or ".." in info.name.split("/"):
            raise UserError(f"{place}: {info.name} leads out of the folder; pack it anew")
        if _stem(info.name).rpartition("/")[2]:
            yield info


def _stem(name: str) -> str:
    """Key of a tar's member as webdataset has it: up to the first dot of the name, with folders."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _field(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()


def _group_starts(store: Store, name: str, place: str) -> npt.NDArray[np.int64]:
    with _reading_parquet(place), store.open(name) as file:
        metadata = pq.read_metadata(file)
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    return np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])


def _read_tar(store: Store, name: str, place: str) -> Iterator[Raw]:
    with _open_tar(store, name, place) as tar:
        found = ((info.name, tar.extractfile(info)) for info in _members(tar, place))
        files = ((name, file) for name, file in found if file is not None)
        for key, members in itertools.groupby(files, key=lambda member: _stem(member[0])):
            fields = {_field(member): file.read() for member, file in members}
            yield raw_from_fields(place, key, fields)


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


def _read_parquet(store: Store, name: str, place: str) -> Iterator[Raw]:
    with store.open(name) as opened:
        with _reading_parquet(place):
            file = pq.ParquetFile(opened)
            names = file.schema_arrow.names
            batches = file.iter_batches(batch_size=16)
        if missing := sorted({"image", "label"} - set(names)):
            raise UserError(f"{place}: no column {' and '.join(missing)}")
        number = 0
        while True:
            with _reading_parquet(place):  # not around what the caller does with a row
                batch = next(batches, None)
                rows = cast("list[dict[str, Any]]", [] if batch is None else batch.to_pylist())
            if batch is None:
                return
            for row in rows:
                yield raw_from_row(row, place, number)
                number += 1


@contextmanager
def _reading_parquet(place: str) -> Iterator[None]:
    """Turn what a damaged Parquet file makes of its readers into a sentence.

    Damage in pages is an OSError, in names and in text a ValueError.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        line = str(error).partition("\n")[0].rstrip(".")
        raise UserError(f"{place}: a damaged Parquet file: {line}; {_REMEDY}") from error


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
    image_format = (path or "image.jpg").rpartition(".")[2]
    return Raw(row_key(row.get("key"), place, number), record, image, label, edge, image_format)


def row_key(key: object, place: str, number: int) -> str:
    """Key of a row: its own, or of file and row."""
    return str(key) if key not in (None, "") else f"{PurePosixPath(place).stem}-{number}"


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


def raw_from_line(store: Store, line: bytes, place: str) -> Raw:
    """A sample of the folder format from the line that lists it.

    Raises:
        UserError: the line is damaged, or a file that it names is not there.
    """
    entry = _parsed(place, line)
    image, label, edge = (_file_bytes(store, entry[f]) for f in FILE_FIELDS)
    record = {k: v for k, v in entry.items() if k not in FILE_FIELDS}
    image_format = entry["file_name"].rpartition(".")[2]
    return Raw(entry["key"], record, image, label, edge, image_format)


def _file_bytes(store: Store, name: str) -> bytes:
    try:
        return store.read(name)
    except FileNotFoundError:
        raise UserError(
            f"{store}/{name}: the data set lists this file, but it is not there"
        ) from None


def _parsed(place: str, text: bytes | str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{place}: a damaged record: {error}") from error
