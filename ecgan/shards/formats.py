"""Shard formats: WebDataset tars, Parquet files, or the files of a folder; written whole.

A **shard** is the unit that is written whole or not at all. The same samples give the same bytes.
The docs, "Formats", are the contract with other programs' readers; where a line here looks odd, a
reader is why.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ecgan.errors import UserError
from ecgan.reading.documents import parse_json
from ecgan.runtime.storage import Store
from ecgan.shards.files.names import (
    Format,
    ImageFormat,
    is_key,
    listing_name,
    sample_files,
    shard_parts,
)
from ecgan.shards.manifest import CommitRecord, FilterTotals, ShardEntry
from ecgan.shards.records import RECORD_FIELDS, Encoded

# A row is read with its whole row group: small ones serve random access, and readers of more than
# 2 GB in one struct column fail.
_ROW_GROUP_ROWS = 100
_ROW_GROUP_BYTES = 64 << 20


def write_shard(
    store: Store,
    name: str,
    samples: Iterable[Encoded],
    *,
    data_format: Format,
    image_format: ImageFormat,
    num_classes: int,
) -> CommitRecord:
    """Write a shard, whole or not at all, and say what it holds.

    Args:
        store: of the data set.
        name: name of the shard, as :func:`shard_name` gives it.
        samples: samples in their order; an iterator makes them while the shard is written.
        data_format: format of the data set.
        image_format: format of the encoded images, for their file names.
        num_classes: number of class ids that records count.

    Raises:
        UserError: a record with a key that readers would not take for one, or other classes.
    """
    totals = np.zeros(num_classes, np.int64)
    consistency, kept, count = 0.0, 0.0, 0

    def counted() -> Iterator[Encoded]:
        nonlocal consistency, kept, count
        for sample in samples:
            record = sample.record
            if not is_key(record.key) or len(record.class_pixels) != num_classes:
                raise UserError(
                    f"{store}/{name}: sample {record.key[:80]!r}: no key that a data set may have, "
                    f"or class_pixels that are not {num_classes} numbers"
                )
            totals[:] += record.class_pixels
            consistency += max(0.0, record.consistency)
            kept += record.kept_fraction
            count += 1
            yield sample

    if data_format == "folder":
        sums = _write_folder(store, name, counted(), image_format)
    else:
        write = _write_tar if data_format == "webdataset" else _write_parquet
        with store.writing(name) as file:
            hashed = _Hashed(file)
            write(cast(BinaryIO, hashed), counted(), image_format, num_classes)
        sums = hashed.sums()
    size, sha256, md5 = sums
    return CommitRecord(
        name=name,
        samples=count,
        bytes=size,
        sha256=sha256,
        md5=md5,
        class_pixels=tuple(totals.tolist()),
        filter=FilterTotals(consistency=consistency, kept=kept),
    )


class _Hashed(io.RawIOBase):
    """A file that is written from its start to its end, and its sums; it leaves the file open."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, 0
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401  bytes, or a view of some
        self._file.write(data)
        self._sha256.update(data)
        self._md5.update(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def sums(self) -> tuple[int, str, str]:
        """Size, sha256 and md5."""
        return self._size, self._sha256.hexdigest(), self._md5.hexdigest()


def _write_tar(
    file: BinaryIO, samples: Iterable[Encoded], image_format: ImageFormat, _num_classes: int
) -> None:
    """All fields of a sample next to each other, no time, owner or mode that could vary."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            record = json.dumps(sample.record.to_json()).encode()
            for name, data in (
                ("edge.png", sample.edge),
                (image_format, sample.image),
                ("json", record),
                ("seg.png", sample.label),
            ):
                info = tarfile.TarInfo(f"{sample.record.key}.{name}")
                info.size = len(data)
                info.mode = 0o444
                tar.addfile(info, io.BytesIO(data))


_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGE_COLUMNS = ("image", "label", "edge")


def parquet_schema(num_classes: int) -> pa.Schema:
    """Columns, with the metadata by which ``datasets`` shows image columns as images."""
    assert num_classes > 0
    types = {
        **dict.fromkeys(IMAGE_COLUMNS, _IMAGE),
        **dict.fromkeys(("key", "source"), pa.string()),
        **dict.fromkeys(("style", "seed", "width", "height"), pa.int64()),
        **dict.fromkeys(("consistency", "kept_fraction"), pa.float64()),
        **dict.fromkeys(("variation", "digital_source_type"), pa.string()),
        "class_pixels": pa.list_(pa.int64()),
    }
    assert tuple(types) == IMAGE_COLUMNS + RECORD_FIELDS
    features: dict[str, Any] = {
        name: {"dtype": "float64" if kind == pa.float64() else str(kind), "_type": "Value"}
        for name, kind in types.items()
    }
    for name in IMAGE_COLUMNS:
        features[name] = {"_type": "Image"}
    features["class_pixels"] = {
        "feature": {"dtype": "int64", "_type": "Value"},
        "_type": "Sequence",
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema(list(types.items()), metadata=metadata)


def _write_parquet(
    file: BinaryIO, samples: Iterable[Encoded], image_format: ImageFormat, num_classes: int
) -> None:
    schema = parquet_schema(num_classes)
    with pq.ParquetWriter(
        file, schema, write_page_index=True, use_content_defined_chunking=True
    ) as writer:
        rows: list[dict[str, Any]] = []
        size = 0
        for sample in samples:
            data = (sample.image, sample.label, sample.edge)
            new = sum(map(len, data))
            if rows and (len(rows) == _ROW_GROUP_ROWS or size + new > _ROW_GROUP_BYTES):
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows, size = [], 0
            endings = (image_format, "seg.png", "edge.png")
            paths = [f"{sample.record.key}.{ending}" for ending in endings]
            images = {
                column: {"bytes": d, "path": path}
                for column, d, path in zip(IMAGE_COLUMNS, data, paths, strict=True)
            }
            rows.append({**images, **sample.record.to_json()})
            size += new
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))


# Names that Hugging Face's image folder reads from metadata.jsonl: the images of a line.
FILE_FIELDS = ("file_name", "label_file_name", "edge_file_name")


def _write_folder(
    store: Store, name: str, samples: Iterable[Encoded], image_format: ImageFormat
) -> tuple[int, str, str]:
    """Write loose files, then their list; size of all, sha256 and md5 of the list of their sums."""
    split = name.rpartition("-")[0]
    lines: list[dict[str, Any]] = []
    sums: list[tuple[int, str]] = []

    def files() -> Iterator[tuple[str, bytes]]:
        for sample in samples:
            names = sample_files(split, sample.record.key, image_format)
            for path, data in zip(names, (sample.image, sample.label, sample.edge), strict=True):
                sums.append((len(data), f"{hashlib.sha256(data).hexdigest()}  {path}\n"))
                yield path, data
            lines.append({**dict(zip(FILE_FIELDS, names, strict=True)), **sample.record.to_json()})

    store.write_many(files())
    listing = "".join(json.dumps(line) + "\n" for line in lines).encode()
    store.write(listing_name(name), listing)
    own = len(listing), f"{hashlib.sha256(listing).hexdigest()}  {listing_name(name)}\n"
    return _sums_of([own, *sums])


def _sums_of(files: Iterable[tuple[int, str]]) -> tuple[int, str, str]:
    """Size, sha256 and md5 of several files, from their sizes and the lines of their sums."""
    files = [*files]
    listed = "".join(line for _, line in files).encode()
    md5 = hashlib.md5(listed, usedforsecurity=False)
    return sum(size for size, _ in files), hashlib.sha256(listed).hexdigest(), md5.hexdigest()


# Checks


class ListedSample(NamedTuple):
    """A sample of the folder format."""

    key: str
    files: tuple[str, str, str]  # image, label and edge map
    image_format: str
    record: dict[str, Any]


def listed_sample(line: bytes, split: str, place: str) -> ListedSample:
    """A sample of the folder format, from the line that lists it.

    The names of its files are made of its key; what the line says of them must be the same.

    Args:
        line: of the list.
        split: of the shard.
        place: of the list, for the message.

    Raises:
        UserError: it is damaged, or names other files.
    """
    remedy = "make the data set again"
    value = parse_json(line, place, "a list of samples", remedy)
    try:
        return _listed(value, split)
    except ValueError as error:
        raise UserError(f"{place}: a damaged list: {error}; {remedy}") from None


def _listed(value: Any, split: str) -> ListedSample:  # noqa: ANN401
    if not isinstance(value, dict):
        raise ValueError("a line that is no record")  # noqa: TRY004  a fault of the file
    image_format = str(value.get("file_name")).rpartition(".")[2]
    files = sample_files(split, str(value.get("key")), image_format)
    if files != tuple(value.get(field) for field in FILE_FIELDS):
        raise ValueError(f"the sample of {files[0]} has files of other names")
    record = {name: own for name, own in value.items() if name not in FILE_FIELDS}
    return ListedSample(value["key"], files, image_format, record)


def files_of(store: Store, name: str) -> list[str]:
    """The files of a shard, below the root; those of the folder format from its list.

    Raises:
        FileNotFoundError: the list is not there.
        UserError: it is damaged, or names files that are no samples of the shard's split.
    """
    parts = shard_parts(name)
    if parts.data_format != "folder":
        return [name]
    listing = listing_name(name)
    names = [listing]
    for line in store.read(listing).splitlines():
        names += listed_sample(line, parts.split, f"{store}/{listing}").files
    return names


def measured_size(store: Store, name: str) -> int | None:
    """Bytes of a shard's files; None where one of them is missing."""
    try:
        sizes = [store.size(path) for path in files_of(store, name)]
    except (OSError, UserError):
        return None
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def is_intact(store: Store, shard: ShardEntry) -> bool:
    """Whether the shard is there with the bytes that were written."""
    lines: list[tuple[int, str]] = []
    try:
        for name in files_of(store, shard.name):
            with store.open(name) as file:
                sha256 = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
            lines.append((0, f"{sha256}  {name}\n"))
    except (OSError, UserError):  # unreadable, or a damaged list of a folder's files
        return False
    if shard_parts(shard.name).data_format != "folder":
        return lines[0][1].startswith(shard.sha256)
    return _sums_of(lines)[1] == shard.sha256
