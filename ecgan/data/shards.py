"""The data sets that we write and read: WebDataset tars, Parquet files, a folder of images.

One **sample** is an image, its label map, its edge map and a :class:`Record`. A **shard** is the
unit that is written whole or not at all. The same samples give the same bytes. README, "The data
set", is the contract with other programs' readers; where a line here looks odd, a reader is why.
"""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ecgan.data import datasets
from ecgan.errors import UserError
from ecgan.labels import Labels

Format = Literal["webdataset", "parquet", "folder"]
ImageFormat = Literal["jpg", "png", "webp"]
Pixels = npt.NDArray[np.uint8]

HIDDEN = ".ecgan"  # readers skip hidden folders; ours holds what is not part of the data
SCHEMA = 1

# A row is read with its whole row group: small ones serve random access, and readers of more than
# 2 GB in one struct column fail.
_ROW_GROUP_ROWS = 100
_ROW_GROUP_BYTES = 64 << 20
_KEY = re.compile(r"[A-Za-z0-9_-]+")
_MAX_KEY = 80  # a name in a USTAR archive has at most 100 characters


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
        kept_fraction: pixels that the label filter kept.
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

    def to_json(self) -> dict[str, Any]:
        return {name: _plain(getattr(self, name)) for name in _RECORD_ORDER}


_RECORD_ORDER = (
    *("key", "source", "style", "seed", "width", "height", "consistency", "kept_fraction"),
    "class_pixels",
)
assert set(_RECORD_ORDER) == {f.name for f in fields(Record)}


class Encoded(NamedTuple):
    """A sample in the bytes of its files."""

    record: Record
    image: bytes
    label: bytes  # PNG
    edge: bytes  # PNG


class ShardSample(NamedTuple):
    """A sample read back."""

    key: str
    source: str
    style: int
    image: Pixels  # (H, W, 3)
    label: Labels  # (H, W)
    edge: Pixels | None  # (H, W); None in a plain folder


@dataclass(frozen=True)
class Shard:
    """What was written: enough to check it and to list it.

    Attributes:
        name: path below the data set's root; of the folder format, the number's name alone.
        bytes: of all its files.
        sha256: of the file; of the folder format, of the list of its files' sums.
        class_pixels: pixels of each class.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    md5: str
    class_pixels: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {k: _plain(v) for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Shard":
        return cls(**{**value, "class_pixels": tuple(value["class_pixels"])})


# Keys and codecs


def sample_key(source: str, style: int) -> str:
    """Key of a sample; injective for sources of at most 80 characters, hashed beyond."""
    assert _KEY.fullmatch(source), f"not a key: {source!r}"
    suffix = f"-s{style:03d}"
    if len(source) + len(suffix) > _MAX_KEY:
        digest = hashlib.sha256(source.encode()).hexdigest()[:12]
        source = f"{source[: _MAX_KEY - len(suffix) - 13]}-{digest}"
    return source + suffix


def encode_image(image: Pixels, image_format: ImageFormat, quality: int) -> bytes:
    """Encode an RGB image, (H, W, 3). JPEG keeps its colours at full resolution (4:4:4)."""
    buffer = io.BytesIO()
    match image_format:
        case "jpg":
            Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
        case "png":
            Image.fromarray(image).save(buffer, "PNG")
        case "webp":
            Image.fromarray(image).save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def encode_map(values: Labels) -> bytes:
    """Encode a label or edge map, (H, W), as PNG: mode L, or 16 bits (I;16) for uint16.

    Never a palette: webdataset and OpenCV would decode its colours.
    """
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def count_classes(label: Labels, num_classes: int) -> tuple[int, ...]:
    """Pixels of each class, ``num_classes`` numbers; unlabelled pixels are left out."""
    return tuple(np.bincount(label.ravel(), minlength=num_classes)[:num_classes].tolist())


# Files


@contextmanager
def whole_file(path: Path, temporary: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is complete and on the disk.

    Args:
        path: its name.
        temporary: folder on the same file system for the file while it grows.
    """
    temporary.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary / f"{path.name}.{uuid.uuid4().hex}"
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes | str, temporary: Path) -> None:
    """Write a file, whole or not at all."""
    with whole_file(path, temporary) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    root: Path,
    name: str,
    samples: Iterable[Encoded],
    *,
    data_format: Format,
    image_format: ImageFormat,
    num_classes: int,
) -> Shard:
    """Write a shard, whole or not at all, and say what it holds.

    Args:
        root: folder of the data set.
        name: of :func:`shard_name`.
        samples: in order; made while the shard is written.
        data_format: of the data set.
        image_format: of the images' bytes, for their file names.
        num_classes: length of ``class_pixels``.
    """
    totals = np.zeros(num_classes, np.int64)
    count = 0

    def counted() -> Iterator[Encoded]:
        nonlocal count
        for sample in samples:
            assert _KEY.fullmatch(sample.record.key), f"not a key: {sample.record.key!r}"
            totals[:] += sample.record.class_pixels
            count += 1
            yield sample

    if data_format == "folder":
        _write_folder(root, name, counted(), image_format)
    else:
        write = _write_tar if data_format == "webdataset" else _write_parquet
        with whole_file(root / name, root / HIDDEN / "tmp") as file:
            write(file, counted(), image_format, num_classes)
    size, sha256, md5 = _measure(root, name)
    return Shard(name, count, size, sha256, md5, tuple(totals.tolist()))


def is_intact(root: Path, shard: Shard) -> bool:
    """Whether the shard is there with the bytes that were written."""
    try:
        return _measure(root, shard.name)[1] == shard.sha256
    except (OSError, ValueError, KeyError):  # unreadable, or a damaged list of a folder's files
        return False


def files_of(root: Path, name: str) -> list[Path]:
    """The files of a shard, below ``root``; those of the folder format from its list."""
    if name.startswith("data/"):
        return [root / name]
    listing = _listing(root, name)
    paths = [listing]
    for line in listing.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        paths += [root / entry[field] for field in _FILE_FIELDS]
    return paths


def _write_tar(
    file: BinaryIO, samples: Iterable[Encoded], image_format: ImageFormat, _num_classes: int
) -> None:
    """All fields of a sample next to each other, no time, owner or mode that could vary."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            record = json.dumps(sample.record.to_json()).encode()
            for field, data in (
                ("edge.png", sample.edge),
                (image_format, sample.image),
                ("json", record),
                ("seg.png", sample.label),
            ):
                info = tarfile.TarInfo(f"{sample.record.key}.{field}")
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
        "class_pixels": pa.list_(pa.int64()),
    }
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


def _listing(root: Path, name: str) -> Path:
    return root / HIDDEN / "records" / f"{name}.jsonl"


def _write_folder(
    root: Path, name: str, samples: Iterable[Encoded], image_format: ImageFormat
) -> None:
    """Loose files: complete in a temporary folder first, then renamed one by one."""
    split = name.rpartition("-")[0]
    temporary = root / HIDDEN / "tmp" / f"{name}.{uuid.uuid4().hex}"
    temporary.mkdir(parents=True)
    try:
        lines: list[dict[str, Any]] = []
        for sample in samples:
            key = sample.record.key
            names = (
                f"images/{split}/{key}.{image_format}",
                f"masks/{split}/{key}.png",
                f"edges/{split}/{key}.png",
            )
            for path, data in zip(names, (sample.image, sample.label, sample.edge), strict=True):
                target = temporary / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            files = dict(zip(_FILE_FIELDS, names, strict=True))
            lines.append({**files, **sample.record.to_json()})
        os.sync()  # once for all files of the shard
        for line in lines:
            for field in _FILE_FIELDS:
                (root / line[field]).parent.mkdir(parents=True, exist_ok=True)
                (temporary / line[field]).replace(root / line[field])
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_whole(_listing(root, name), text, root / HIDDEN / "tmp")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _measure(root: Path, name: str) -> tuple[int, str, str]:
    """Size, sha256 and md5 of a shard; md5 is what wids asks for."""
    paths = files_of(root, name)
    sums = [_measure_file(path) for path in paths]
    if len(sums) == 1:
        return sums[0]
    lines = [
        f"{sha}  {p.relative_to(root).as_posix()}\n"
        for (_, sha, _), p in zip(sums, paths, strict=True)
    ]
    listed = "".join(lines).encode()
    md5 = hashlib.md5(listed, usedforsecurity=False)
    return sum(size for size, _, _ in sums), hashlib.sha256(listed).hexdigest(), md5.hexdigest()


def _measure_file(path: Path) -> tuple[int, str, str]:
    size, sha256, md5 = 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            size += len(chunk)
            sha256.update(chunk)
            md5.update(chunk)
    return size, sha256.hexdigest(), md5.hexdigest()


# What stands beside the shards


def wids_index(name: str, shards: Sequence[Shard]) -> str:
    """``index.json`` for random access by wids; addresses are relative to it."""
    listed = [
        {"url": s.name, "nsamples": s.samples, "filesize": s.bytes, "md5sum": s.md5} for s in shards
    ]
    value = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name}
    return json.dumps({**value, "shardlist": listed}, indent=2) + "\n"


def card_data_files(data_format: Format, split: str) -> list[str]:
    """Patterns for ``configs:`` of the data set card: with them no reader guesses."""
    match data_format:
        case "webdataset":
            return [f"data/{split}-*.tar"]
        case "parquet":
            return [f"data/{split}-*.parquet"]
        case "folder":
            return ["metadata.jsonl", *(f"{n}/{split}/*" for n in ("images", "masks", "edges"))]


def id2label(names: Sequence[str]) -> str:
    """``id2label.json``, which transformers' scripts ask for by that name."""
    return json.dumps(dict(enumerate(names)), indent=2, ensure_ascii=False) + "\n"


def folder_sidecars(
    root: Path,
    shards: Sequence[Shard],
    names: Sequence[str],
    palette: npt.NDArray[np.uint8],
    *,
    split: str,
    image_format: ImageFormat,
    ignore_index: int,
) -> dict[str, str]:
    """Files by which mmsegmentation, Ultralytics and others open the folder format.

    Returns:
        Name -> text: dataset.yaml (Ultralytics), mmseg_dataset.py, dataset_meta.json (Datumaro),
        metadata.jsonl (Hugging Face's image folder, and :func:`read`).
    """
    colors = [palette[i].tolist() for i in range(len(names))]
    classes = "".join(f"  {i}: {json.dumps(n, ensure_ascii=False)}\n" for i, n in enumerate(names))
    images, masks = f"images/{split}", f"masks/{split}"
    mmseg = f'''"""The data set for mmsegmentation: name this file in _base_, or copy the dict."""

from pathlib import Path

dataset = dict(
    type="BaseSegDataset",
    data_root=str(Path(__file__).parent),
    data_prefix=dict(img_path={images!r}, seg_map_path={masks!r}),
    img_suffix={"." + image_format!r},
    seg_map_suffix=".png",
    ignore_index={ignore_index},
    reduce_zero_label=False,
    metainfo=dict(
        classes={tuple(names)!r},
        palette={colors!r},
    ),
)
'''
    meta = {
        "label_map": {str(i): n for i, n in enumerate(names)},
        "segmentation_colors": colors,
    }
    return {
        "dataset.yaml": (
            "# Ultralytics, semantic segmentation. There is one split: validate on real images.\n"
            f"path: .\ntrain: {images}\nval: {images}\nmasks_dir: masks\nnames:\n{classes}"
        ),
        "mmseg_dataset.py": mmseg,
        "dataset_meta.json": json.dumps(meta, indent=2, ensure_ascii=False) + "\n",
        "metadata.jsonl": "".join(_listing(root, s.name).read_text("utf-8") for s in shards),
    }


# Readers


def manifest(path: Path) -> dict[str, Any] | None:
    """``manifest.json`` of a data set that we wrote; None where there is none.

    Raises:
        UserError: the data set is not complete, or the file is not ours.
    """
    file = path / "manifest.json"
    if not file.is_file():
        if (path / HIDDEN).is_dir():
            raise UserError(
                f"{path} is not complete: it has no manifest.json. Run the command that makes it "
                "again; it continues"
            )
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not a JSON file: {error}") from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise UserError(f"{file}: not a manifest that this version of ecgan reads")
    return value


def read(path: Path) -> Iterator[ShardSample]:
    """Samples of a data set, in order.

    Reads what ``ecgan sample`` and ``ecgan augment`` write; a folder of tars or of Parquet files
    with the same fields; or a plain folder, ``images/`` beside ``labels/`` or ``masks/``, paired by
    stem (the key and source is the stem, the style 0).

    Raises:
        UserError: no such folder, nothing that we read in it, or a damaged file.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    about = manifest(path)
    if about is not None and about["format"] == "folder":
        yield from _read_listed(path, path / "metadata.jsonl")
        return
    if about is not None:
        for shard in about["shards"]:
            yield from read_shard(path, shard["name"])
        return
    for file in (found := _find_shards(path)):
        yield from _read_file(file)
    if not found:
        yield from _read_plain_folder(path)


def read_shard(root: Path, name: str) -> Iterator[ShardSample]:
    """Samples of one shard of a data set that we wrote, in order.

    Raises:
        UserError: it is missing or damaged.
    """
    path = root / name if name.startswith("data/") else _listing(root, name)
    if not path.is_file():
        raise UserError(f"{path}: the manifest lists this shard, but it is not there")
    yield from _read_listed(root, path) if path.suffix == ".jsonl" else _read_file(path)


def _read_file(path: Path) -> Iterator[ShardSample]:
    return _read_parquet(path) if path.suffix == ".parquet" else _read_tar(path)


def _find_shards(path: Path) -> list[Path]:
    for folder in (path / "data", path):
        for suffix in ("tar", "parquet"):
            if files := sorted(folder.glob(f"*.{suffix}")):
                return files
    return []


def _read_tar(path: Path) -> Iterator[ShardSample]:
    try:
        with tarfile.open(path) as tar:
            key, members = "", dict[str, bytes]()
            for info in tar:
                file = tar.extractfile(info)
                if file is None:
                    continue
                own, _, field = info.name.rpartition("/")[2].partition(".")
                if own != key and members:
                    yield _sample_from_tar(path, key, members)
                    members = {}
                key, members[field.lower()] = own, file.read()
            if members:
                yield _sample_from_tar(path, key, members)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{path}: a damaged tar: {error}") from error


def _sample_from_tar(path: Path, key: str, members: dict[str, bytes]) -> ShardSample:
    image = next((members[f] for f in ("jpg", "png", "webp", "jpeg") if f in members), None)
    if image is None or "seg.png" not in members:
        raise UserError(
            f"{path}: sample {key} has the fields {', '.join(sorted(members))}; "
            "expected jpg (or png, webp) and seg.png"
        )
    record = _parsed(path, members.get("json", b"{}"))
    return _decoded(path, key, record, image, members["seg.png"], members.get("edge.png"))


def _read_parquet(path: Path) -> Iterator[ShardSample]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := sorted({"image", "label"} - set(names)):
                raise UserError(f"{path}: no column {' and '.join(missing)}")
            for batch in file.iter_batches(batch_size=16):
                for number, row in enumerate(cast("list[dict[str, Any]]", batch.to_pylist())):
                    key = row.get("key", f"{path.stem}-{number}")
                    edge = row["edge"]["bytes"] if row.get("edge") else None
                    yield _decoded(
                        path, key, row, row["image"]["bytes"], row["label"]["bytes"], edge
                    )
    except pa.ArrowException as error:
        raise UserError(f"{path}: a damaged Parquet file: {error}") from error


def _decoded(
    path: Path, key: str, record: dict[str, Any], image: bytes, label: bytes, edge: bytes | None
) -> ShardSample:
    def decode(data: bytes, read: Callable[[Image.Image], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        try:
            with Image.open(io.BytesIO(data)) as opened:
                return read(opened)
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: sample {key}: {error}") from error

    return ShardSample(
        key=key,
        source=record.get("source", key),
        style=record.get("style", 0),
        image=decode(image, _as_image),
        label=decode(label, _as_map),
        edge=None if edge is None else decode(edge, _as_map).astype(np.uint8),
    )


def _as_image(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"))


def _as_map(image: Image.Image) -> Labels:
    if image.mode not in ("L", "P", "I;16", "I"):
        raise ValueError(f"a map of class ids must be greyscale, this one has mode {image.mode}")
    values = np.asarray(image)
    return values.astype(np.uint16) if image.mode.startswith("I") else values


def _read_listed(root: Path, listing: Path) -> Iterator[ShardSample]:
    with listing.open(encoding="utf-8") as lines:
        for line in lines:
            entry = _parsed(listing, line)
            image, label, edge = (_file_bytes(root / entry[f]) for f in _FILE_FIELDS)
            yield _decoded(listing, entry["key"], entry, image, label, edge)


def _read_plain_folder(root: Path) -> Iterator[ShardSample]:
    folder = next((root / n for n in ("labels", "masks") if (root / n).is_dir()), None)
    if folder is None or not (root / "images").is_dir():
        raise UserError(
            f"{root}: no samples here; expected data/*.tar, data/*.parquet, or images/ beside "
            "labels/ or masks/"
        )
    photos, maps = _by_key(root / "images"), _by_key(folder)
    if unpaired := sorted(photos.keys() ^ maps.keys()):
        raise UserError(
            f"{root}: {len(unpaired)} files have no partner in images/ or {folder.name}/, "
            f"first: {unpaired[0]}"
        )
    if not photos:
        raise UserError(f"{root}: images/ holds no image")
    for key in sorted(photos):
        data = _file_bytes(photos[key]), _file_bytes(maps[key])
        yield _decoded(photos[key], key, {}, *data, None)


def _image_files(folder: Path) -> list[Path]:
    suffixes = {".jpg", ".jpeg", ".png", ".webp"}
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes)


def _by_key(folder: Path) -> dict[str, Path]:
    """Image files by the key that a data set's reader gives them: below the split's folder."""
    splits = {name for names in datasets.SPLIT_FOLDERS.values() for name in names}
    found: dict[str, Path] = {}
    for path in _image_files(folder):
        relative = path.relative_to(folder).with_suffix("")
        inside = relative.parts[1:] if relative.parts[0] in splits else relative.parts
        key = datasets.clean_key("/".join(inside or relative.parts))
        if key in found:
            raise UserError(f"{found[key]} and {path} have the same key {key}; rename one of them")
        found[key] = path
    return found


def _parsed(path: Path, text: bytes | str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: a damaged record: {error}") from error


def _file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: the data set lists this file, but it is not there") from None


def _plain(value: Any) -> Any:  # noqa: ANN401
    return list(value) if isinstance(value, tuple) else value
