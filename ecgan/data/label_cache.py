"""Cache of label checks: a resumed run does not decode files again that have not changed.

One file in the folder of the run or data set that the check belongs to, never beside the label
maps, which may be on a read-only disk. An entry is found by the content of the label map, which is
read anyway, and by path, size and modification time of the larger files beside it. A damaged or
foreign cache file counts as empty; runs that write it at the same time cost at most another
reading.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from ecgan.data.files.images import Depth, PhotoFile, Readable
from ecgan.data.files.label_maps import Form, Histogram
from ecgan.errors import UserError, shown
from ecgan.reading.documents import parse_json
from ecgan.runtime.storage import HIDDEN, Store

NAME = f"{HIDDEN}/label-check.json"
SETTLED_NS = 2_000_000_000  # a file's time may be as coarse as 2 s (FAT)
MAX_VALUES = 1000  # of a label map; those with more are read again

_MOST = 1 << 53  # of a number of an entry
# Of files that cannot be read, are no JSON, or hold other values
_DAMAGE = (UserError, OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


class FileContent(NamedTuple):
    """Content of one item's files."""

    digest: bytes  # SHA-256 of the label file
    histogram: Histogram
    photo: PhotoFile | None = None
    instance_digest: bytes = b""  # SHA-256 of the instance map's file, if there is one
    instance_size: tuple[int, int] | None = None
    edge_size: tuple[int, int] | None = None


def key(
    label: bytes, files: Iterable[tuple[str, Readable]], context: bytes, now: int
) -> str | None:
    """Key of an item's files as they are; to be taken before they are read.

    Args:
        label: SHA-256 of the label file.
        files: role and place of each other file.
        context: all else that a result depends on.
        now: nanoseconds since 1970, not later than this call.

    Returns:
        None where a file cannot be seen, or was written so shortly before ``now`` that a further
        change might leave it the same time (Git calls such files racily clean).
    """
    total = hashlib.blake2b(context + b"\0" + label, digest_size=16)
    for role, path in files:
        try:
            stat = path.stat()
        except OSError:
            return None  # whoever reads it says why
        if stat.st_mtime_ns > now - SETTLED_NS:
            return None
        total.update(f"{role} {stat.st_size} {stat.st_mtime_ns} ".encode())
        total.update(os.fsencode(os.path.abspath(str(path))) + b"\0")  # noqa: PTH100
    return total.hexdigest()


class LabelCache:
    """Results of earlier label checks by key; nothing is written before :meth:`save`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._saved = _read(store)
        self._used: dict[str, FileContent] = {}

    def find(self, key: str | None) -> FileContent | None:
        """Result of an earlier check; None where there is none."""
        found = self._saved.get(key or "")
        if key and found:
            self._used[key] = found
        return found

    def add(self, key: str, content: FileContent) -> None:
        """Keep a result, unless it is too large."""
        if len(content.histogram.values) <= MAX_VALUES:
            self._used[key] = content

    def save(self) -> None:
        """Write the entries found or added since the start, if any of them is new."""
        if self._used.keys() <= self._saved.keys():
            return
        rows = {key: _to_json(content) for key, content in self._used.items()}
        with suppress(OSError, UserError):  # the cache is a help, not a need
            self._store.write(NAME, json.dumps({"version": 2, "entries": rows}).encode())


def _read(store: Store) -> dict[str, FileContent]:
    try:
        document = parse_json(store.read(NAME), NAME, "a cache", "")
        if document["version"] != 2:  # 1: sides of turned TIFFs were swapped
            return {}
        return {key: _from_json(row) for key, row in document["entries"].items()}
    except _DAMAGE:
        return {}


def _to_json(content: FileContent) -> list[Any]:
    photo = content.photo
    return [
        content.digest.hex(),
        content.instance_digest.hex(),
        list(content.histogram),
        None
        if photo is None
        else [
            *(photo.mode, photo.stored, photo.orientation, photo.depth, photo.low, photo.high),
            *(photo.digest.hex(), photo.look.hex()),
        ],
        content.instance_size,
        content.edge_size,
    ]


def _from_json(row: list[Any]) -> FileContent:
    digest, instance_digest, histogram, photo, instances, edge = row
    form, size, mode, values, pixels, colors, transparent, borders, between = histogram
    numbers, counts, rgb = (tuple(map(_whole, column)) for column in (values, pixels, colors))
    if not len(numbers) == len(counts) == len(rgb):
        raise ValueError("columns of different lengths")
    return FileContent(
        bytes.fromhex(digest),
        Histogram(
            Form(form),
            _size(size),
            str(mode),
            numbers,
            counts,
            rgb,
            _whole(transparent),
            _whole(borders),
            _whole(between),
        ),
        None if photo is None else _photo(photo),
        bytes.fromhex(instance_digest),
        None if instances is None else _size(instances),
        None if edge is None else _size(edge),
    )


def _size(value: Any) -> tuple[int, int]:  # noqa: ANN401
    height, width = map(_whole, value)
    return height, width


def _whole(value: Any) -> int:  # noqa: ANN401
    if type(value) is not int or not -1 <= value < _MOST:
        raise ValueError(f"{shown(value)}: expected a whole number")
    return value


def _photo(row: list[Any]) -> PhotoFile:
    mode, stored, orientation, depth, low, high, digest, look = row
    return PhotoFile(
        str(mode),
        _size(stored),
        _whole(orientation),
        Depth(depth),
        float(low),
        float(high),
        bytes.fromhex(digest),
        bytes.fromhex(look),
    )
