"""Shards: WebDataset tars, Parquet files, or the files of a folder; written whole, read back.

One **sample** is an image, its label map, its edge map and a :class:`Record`. A **shard** is the
unit that is written whole or not at all. The same samples give the same bytes. README, "The data
set", is the contract with other programs' readers; where a line here looks odd, a reader is why.
"""

import hashlib
import io
import itertools
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from ecgan.errors import UserError
from ecgan.labels import Labels
from ecgan.runtime.storage import HIDDEN, Store
from ecgan.shards.codecs import DIGITAL_SOURCE_TYPE, ImageFormat, Pixels

Format = Literal["webdataset", "parquet", "folder"]

# A row is read with its whole row group: small ones serve random access, and readers of more than
# 2 GB in one struct column fail.
_ROW_GROUP_ROWS = 100
_ROW_GROUP_BYTES = 64 << 20
_REMEDY = "`ecgan data verify` lists all such shards; make the set again, or remove them"
_KEY = re.compile(r"[A-Za-z0-9_-]+")
_MAP_MODES = ("L", "P", "I;16", "I")
_MAX_KEY = 80  # a name in a USTAR archive has at most 100 characters
DIGITAL_SOURCE = DIGITAL_SOURCE_TYPE.rpartition("/")[2]  # IPTC's word for what a network made


@dataclass(frozen=True)
class Record:
    """What is known of a sample beside its pixels.

    Every value always there and of one type: readers infer a schema from the first samples.

    Attributes:
        key: of the sample, unique in the data set.
        source: key of the layout.
        style: number of the style, from 0.
        seed: that the style was drawn from.
        consistency: score of the label filter; -1 without one.
        kept_fraction: share of the labelled pixels that the label filter kept.
        variation: what was done to the layout before synthesis; empty for the layout itself.
        digital_source_type: IPTC's word for synthetic media; empty without provenance.
        class_pixels: pixels of each class in the label, in order of the ids.
    """

    key: str
    source: str
    style: int
    seed: int
    width: int
    height: int
    class_pixels: tuple[int, ...]
    consistency: float = -1.0
    kept_fraction: float = 1.0
    variation: str = ""
    digital_source_type: str = ""

    def to_json(self) -> dict[str, Any]:
        return {name: _plain(getattr(self, name)) for name in RECORD_FIELDS}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Record":
        """Read one back; KeyError where a field is missing, others are passed over."""
        known = {name: value[name] for name in RECORD_FIELDS}
        return cls(**{**known, "class_pixels": tuple(value["class_pixels"])})


RECORD_FIELDS = (
    *("key", "source", "style", "seed", "width", "height", "consistency", "kept_fraction"),
    *("variation", "digital_source_type", "class_pixels"),
)
assert set(RECORD_FIELDS) == {f.name for f in fields(Record)}


class Encoded(NamedTuple):
    """A sample in the bytes of its files."""

    record: Record
    image: bytes
    label: bytes  # PNG
    edge: bytes  # PNG


class Raw(NamedTuple):
    """A sample as it lies in a shard, of ours or of another program."""

    key: str
    record: dict[str, Any]
    image: bytes
    label: bytes
    edge: bytes | None
    image_format: str  # ending of the image's name


class ShardSample(NamedTuple):
    """A sample read back."""

    key: str
    source: str
    style: int
    image: Pixels  # (H, W, 3)
    label: Labels  # (H, W)
    edge: Pixels | None  # (H, W); None in a plain folder


@dataclass(frozen=True)
class FilterTotals:
    """What the label filter did in a shard.

    Attributes:
        consistency: sum of the samples' scores.
        kept: sum of the samples' kept fractions.
        inconsistent: samples that were kept although too little of them was.
        dropped: samples left out.
        retried: samples made again from another seed, each attempt counted.
    """

    consistency: float = 0.0
    kept: float = 0.0
    inconsistent: int = 0
    dropped: int = 0
    retried: int = 0

    def __add__(self, other: "FilterTotals") -> "FilterTotals":
        return FilterTotals(**{k: v + getattr(other, k) for k, v in asdict(self).items()})


@dataclass(frozen=True)
class Listed:
    """A shard as a manifest lists it: enough to check it.

    Attributes:
        name: path below the data set's root; of the folder format, the number's name alone.
        bytes: of all its files.
        sha256: of the file; of the folder format, of the list of its files' sums.
        md5: likewise; what wids asks for.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    md5: str

    def to_json(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(Listed)}


@dataclass(frozen=True)
class Shard(Listed):
    """What was written; with the number of the plan, this is what commits it.

    Attributes:
        class_pixels: pixels of each class.
        filter: what the label filter did.
        plan: the plan that it belongs to.
    """

    class_pixels: tuple[int, ...]
    filter: FilterTotals = field(default_factory=FilterTotals)
    plan: str = ""

    def commit_text(self) -> str:
        """The text of its commit record."""
        return json.dumps({k: _plain(v) for k, v in asdict(self).items()})

    @classmethod
    def from_commit(cls, text: bytes | str) -> "Shard":
        """Read a commit record back; ValueError, KeyError or TypeError where it is none."""
        value = json.loads(text)
        return cls(
            **{
                **value,
                "class_pixels": tuple(value["class_pixels"]),
                "filter": FilterTotals(**value["filter"]),
            }
        )

    def listed(self) -> Listed:
        return Listed(self.name, self.samples, self.bytes, self.sha256, self.md5)


# Keys


def is_key(text: str) -> bool:
    """Whether readers take it for one key: a dot, for example, would merge samples."""
    return _KEY.fullmatch(text) is not None


def sample_key(source: str, style: int) -> str:
    """Key of a sample; injective for sources of at most 80 characters, hashed beyond."""
    assert is_key(source), f"not a key: {source!r}"
    suffix = f"-s{style:03d}"
    if len(source) + len(suffix) > _MAX_KEY:
        digest = hashlib.sha256(source.encode()).hexdigest()[:12]
        source = f"{source[: _MAX_KEY - len(suffix) - 13]}-{digest}"
    return source + suffix


def count_classes(label: Labels, num_classes: int) -> tuple[int, ...]:
    """Pixels of each class, ``num_classes`` numbers; unlabelled pixels are left out."""
    return tuple(np.bincount(label.ravel(), minlength=num_classes)[:num_classes].tolist())


# Writers


def shard_name(data_format: Format, split: str, number: int) -> str:
    """Name of a shard. It does not hold the number of shards: a data set may grow."""
    match data_format:
        case "webdataset":
            return f"data/{split}-{number:06d}.tar"
        case "parquet":
            return f"data/{split}-{number:05d}.parquet"
        case "folder":
            return f"{split}-{number:06d}"


def write_shard(
    store: Store,
    name: str,
    samples: Iterable[Encoded],
    *,
    data_format: Format,
    image_format: ImageFormat,
    num_classes: int,
) -> Shard:
    """Write a shard, whole or not at all, and say what it holds.

    Args:
        store: of the data set.
        name: of :func:`shard_name`.
        samples: in order; made while the shard is written.
        data_format: of the data set.
        image_format: of the images' bytes, for their file names.
        num_classes: length of ``class_pixels``.
    """
    totals = np.zeros(num_classes, np.int64)
    consistency, kept, count = 0.0, 0.0, 0

    def counted() -> Iterator[Encoded]:
        nonlocal consistency, kept, count
        for sample in samples:
            record = sample.record
            assert is_key(record.key), f"not a key: {record.key!r}"
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
    own = FilterTotals(consistency, kept)
    return Shard(name, count, *sums, class_pixels=tuple(totals.tolist()), filter=own)


class _Hashed:
    """A file that is written from its start to its end, and its sums."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = 0
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self.closed = False

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self._sha256.update(data)
        self._md5.update(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Nothing: who has opened the file closes it."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

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
_IMAGE_COLUMNS = ("image", "label", "edge")


def parquet_schema(num_classes: int) -> pa.Schema:
    """Columns, with the metadata by which ``datasets`` shows image columns as images."""
    assert num_classes > 0
    types = {
        **dict.fromkeys(_IMAGE_COLUMNS, _IMAGE),
        **dict.fromkeys(("key", "source"), pa.string()),
        **dict.fromkeys(("style", "seed", "width", "height"), pa.int64()),
        **dict.fromkeys(("consistency", "kept_fraction"), pa.float64()),
        **dict.fromkeys(("variation", "digital_source_type"), pa.string()),
        "class_pixels": pa.list_(pa.int64()),
    }
    assert tuple(types) == _IMAGE_COLUMNS + RECORD_FIELDS
    features: dict[str, Any] = {
        name: {"dtype": "float64" if kind == pa.float64() else str(kind), "_type": "Value"}
        for name, kind in types.items()
    }
    for name in _IMAGE_COLUMNS:
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
            paths = _member_names(sample.record.key, image_format)
            images = {
                column: {"bytes": d, "path": path}
                for column, d, path in zip(_IMAGE_COLUMNS, data, paths, strict=True)
            }
            rows.append({**images, **sample.record.to_json()})
            size += new
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _member_names(key: str, image_format: ImageFormat) -> tuple[str, str, str]:
    return f"{key}.{image_format}", f"{key}.seg.png", f"{key}.edge.png"


# Names that Hugging Face's image folder reads from metadata.jsonl: the images of a line.
_FILE_FIELDS = ("file_name", "label_file_name", "edge_file_name")


def listing_name(name: str) -> str:
    """The file that lists the samples of a shard of the folder format."""
    return f"{HIDDEN}/records/{name}.jsonl"


def _write_folder(
    store: Store, name: str, samples: Iterable[Encoded], image_format: ImageFormat
) -> tuple[int, str, str]:
    """Loose files, then the list of them; size, and sums over the sums of all files."""
    split = name.rpartition("-")[0]
    lines: list[dict[str, Any]] = []
    sums: list[tuple[int, str]] = []

    def files() -> Iterator[tuple[str, bytes]]:
        for sample in samples:
            key = sample.record.key
            names = (
                f"images/{split}/{key}.{image_format}",
                f"masks/{split}/{key}.png",
                f"edges/{split}/{key}.png",
            )
            for path, data in zip(names, (sample.image, sample.label, sample.edge), strict=True):
                sums.append((len(data), f"{hashlib.sha256(data).hexdigest()}  {path}\n"))
                yield path, data
            lines.append({**dict(zip(_FILE_FIELDS, names, strict=True)), **sample.record.to_json()})

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


def files_of(store: Store, name: str) -> list[str]:
    """The files of a shard, below the root; those of the folder format from its list.

    Raises:
        FileNotFoundError: the list is not there.
        ValueError: it is damaged.
    """
    if name.startswith("data/"):
        return [name]
    listing = listing_name(name)
    names = [listing]
    for line in store.read(listing).decode().splitlines():
        entry = json.loads(line)
        names += [entry[name] for name in _FILE_FIELDS]
    return names


def measured_size(store: Store, name: str) -> int | None:
    """Bytes of a shard's files; None where one of them is missing."""
    try:
        sizes = [store.size(path) for path in files_of(store, name)]
    except (OSError, ValueError, KeyError):
        return None
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def is_intact(store: Store, shard: Listed) -> bool:
    """Whether the shard is there with the bytes that were written."""
    try:
        names = files_of(store, shard.name)
        sums = [_measure(store, name) for name in names]
    except (OSError, ValueError, KeyError):  # unreadable, or a damaged list of a folder's files
        return False
    if len(sums) == 1 and shard.name.startswith("data/"):
        return sums[0][1] == shard.sha256
    lines = [(size, f"{sha}  {n}\n") for (size, sha), n in zip(sums, names, strict=True)]
    return _sums_of(lines)[1] == shard.sha256


def _measure(store: Store, name: str) -> tuple[int, str]:
    """Size and sha256 of a file."""
    size, sha256 = 0, hashlib.sha256()
    with store.open(name) as file:
        while chunk := file.read(1 << 20):
            size += len(chunk)
            sha256.update(chunk)
    return size, sha256.hexdigest()


# Readers


def read_raw(store: Store, name: str) -> Iterator[Raw]:
    """Samples of one shard, in order, as they lie there.

    Args:
        store: of the data set.
        name: of a tar or Parquet file, or of a shard of the folder format.

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
            yield from _read_listing(store, store.read(listing_name(name)), place)
    except FileNotFoundError:
        raise UserError(_missing(place)) from None


class OpenShard:
    """A shard for random access: what it holds is looked up once.

    Args:
        store: of the data set.
        name: as for :func:`read_raw`.

    Raises:
        UserError: it is missing or damaged.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.place = f"{store}/{name}"
        self._store, self._name = store, name
        self._members: list[list[tuple[str, int, int]]] = []  # of a tar: name, offset, size
        self._lines: list[bytes] = []  # of the folder format
        self._starts = np.zeros(1, np.int64)  # of a Parquet file's row groups
        self._parquet: pq.ParquetFile | None = None
        try:
            if name.endswith(".tar"):
                self._members = _tar_members(store, name, self.place)
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
            found: dict[str, bytes] = {}
            with self._store.open(self._name) as file:
                for member, offset, size in self._members[place]:
                    file.seek(offset)
                    found[member] = file.read(size)
            key = next(iter(found)).partition(".")[0]
            fields = {member.partition(".")[2].lower(): data for member, data in found.items()}
            return raw_from_fields(self.place, key, fields)
        group = int(np.searchsorted(self._starts, place, side="right")) - 1
        with _reading_parquet(self.place):
            if self._parquet is None:
                self._parquet = pq.ParquetFile(self._store.open(self._name))
            rows = self._parquet.read_row_group(group).slice(place - int(self._starts[group]), 1)
            (row,) = rows.to_pylist()
        return raw_from_row(row, f"{_stem(self._name)}-{place}")


def _missing(place: str) -> str:
    return f"{place}: the manifest lists this shard, but it is not there; make the set again"


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]


def _tar_members(store: Store, name: str, place: str) -> list[list[tuple[str, int, int]]]:
    try:
        with store.open(name) as file, tarfile.open(fileobj=file) as tar:
            infos = [
                (info.name.rpartition("/")[2], info.offset_data, info.size)
                for info in tar
                if info.isfile()
            ]
    except (tarfile.TarError, EOFError) as error:
        raise UserError(_tar_fault(place, error)) from error
    grouped = itertools.groupby(infos, key=lambda info: info[0].partition(".")[0])
    return [list(group) for _, group in grouped]


def _group_starts(store: Store, name: str, place: str) -> npt.NDArray[np.int64]:
    with _reading_parquet(place), store.open(name) as file:
        metadata = pq.read_metadata(file)
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    return np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])


def decoded(raw: Raw, place: str) -> ShardSample:
    """The pixels of a sample.

    Args:
        raw: of any reader.
        place: of its shard, for the message.

    Raises:
        UserError: a part of it is damaged, or no map of class ids.
    """

    def decode(
        member: str, data: bytes, read: Callable[[Image.Image], npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        where = f"{place}: sample {raw.key}: its {member}"
        try:
            with Image.open(io.BytesIO(data)) as opened:
                return read(opened)
        except UnidentifiedImageError as error:
            found = "is empty" if not data else f"({len(data)} bytes) is no picture"
            raise UserError(f"{where} {found}; replace it, or remove the sample") from error
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise UserError(f"{where}: {error}") from error

    return ShardSample(
        key=raw.key,
        source=raw.record.get("source", raw.key),
        style=raw.record.get("style", 0),
        image=decode("image", raw.image, _as_image),
        label=decode("label", raw.label, _as_map),
        edge=None if raw.edge is None else decode("edge", raw.edge, _as_edge),
    )


def _read_tar(store: Store, name: str, place: str) -> Iterator[Raw]:
    try:
        with store.open(name) as file, tarfile.open(fileobj=file) as tar:
            key, members = "", dict[str, bytes]()
            for info in tar:
                member = tar.extractfile(info)
                if member is None:
                    continue
                own, _, field_name = info.name.rpartition("/")[2].partition(".")
                if own != key and members:
                    yield raw_from_fields(place, key, members)
                    members = {}
                key, members[field_name.lower()] = own, member.read()
            if members:
                yield raw_from_fields(place, key, members)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(_tar_fault(place, error)) from error


def _tar_fault(place: str, error: Exception) -> str:
    """What is wrong with a tar; of what is none, tarfile says a line for each compression."""
    text = str(error)
    fault = "not a tar file" if "\n" in text else f"a damaged tar: {text}"
    return f"{place}: {fault}; {_REMEDY}"


def raw_from_fields(place: str, key: str, members: dict[str, bytes]) -> Raw:
    """A sample from the fields of a tar's members.

    Raises:
        UserError: fields are missing.
    """
    image_format = next((f for f in ("jpg", "png", "webp", "jpeg") if f in members), None)
    if image_format is None or "seg.png" not in members:
        raise UserError(
            f"{place}: sample {key} has the fields {', '.join(sorted(members))}; "
            "expected jpg (or png, webp) and seg.png"
        )
    record = _parsed(place, members.get("json", b"{}"))
    edge = members.get("edge.png")
    return Raw(key, record, members[image_format], members["seg.png"], edge, image_format)


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
                yield raw_from_row(row, f"{_stem(name)}-{number}")
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


def raw_from_row(row: dict[str, Any], name: str) -> Raw:
    """A sample from a row of a Parquet file; ``name`` is its key where it has none."""
    edge = row["edge"]["bytes"] if row.get("edge") else None
    record = {k: v for k, v in row.items() if k not in _IMAGE_COLUMNS}
    image_format = (row["image"].get("path") or "image.jpg").rpartition(".")[2]
    images = row["image"]["bytes"], row["label"]["bytes"]
    return Raw(row.get("key", name), record, *images, edge, image_format)


def _read_listing(store: Store, text: bytes, place: str) -> Iterator[Raw]:
    for line in text.splitlines():
        yield raw_from_line(store, line, place)


def raw_from_line(store: Store, line: bytes, place: str) -> Raw:
    """A sample of the folder format from the line that lists it.

    Raises:
        UserError: the line is damaged, or a file that it names is not there.
    """
    entry = _parsed(place, line)
    image, label, edge = (_file_bytes(store, entry[f]) for f in _FILE_FIELDS)
    record = {k: v for k, v in entry.items() if k not in _FILE_FIELDS}
    image_format = entry["file_name"].rpartition(".")[2]
    return Raw(entry["key"], record, image, label, edge, image_format)


def _file_bytes(store: Store, name: str) -> bytes:
    try:
        return store.read(name)
    except FileNotFoundError:
        raise UserError(
            f"{store}/{name}: the data set lists this file, but it is not there"
        ) from None


def _as_image(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"))


def _as_edge(image: Image.Image) -> Pixels:
    if image.mode not in _MAP_MODES:
        raise ValueError(f"an edge map must be greyscale, this one has mode {image.mode}")
    return np.asarray(image).astype(np.uint8)


def _as_map(image: Image.Image) -> Labels:
    if image.mode not in _MAP_MODES:
        raise ValueError(
            f"a map of class ids must be greyscale, this one has mode {image.mode}; convert it, "
            "pixel = class id (training reads masks of colours, samples carry ids)"
        )
    values = np.asarray(image)
    return values.astype(np.uint16) if image.mode.startswith("I") else values


def _parsed(place: str, text: bytes | str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{place}: a damaged record: {error}") from error


def _plain(value: Any) -> Any:  # noqa: ANN401
    return list(value) if isinstance(value, tuple) else value
