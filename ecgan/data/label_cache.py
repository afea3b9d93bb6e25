"""Cache of label checks: a resumed run does not read files again that have not changed.

One file in the folder of the run or data set that the check belongs to, never beside the label
maps, which may be on a read-only disk. An entry's key covers the path, size and modification time
of an item's files and all else that the result depends on. A damaged or foreign cache file counts
as empty; runs that write it at the same time cost at most another reading.
"""

import hashlib
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from ecgan.runtime.storage import HIDDEN, Store

NAME = f"{HIDDEN}/label-check.npz"
SETTLED_NS = 2_000_000_000  # a file's time may be as coarse as 2 s (FAT)

# Of files that cannot be read, are no zip files, or hold other arrays
_DAMAGE = (OSError, ValueError, TypeError, LookupError, EOFError, BadZipFile, zlib.error)


class LabelContent(NamedTuple):
    """Content of one item's files; empty where the label file cannot be read."""

    digest: bytes = b""  # SHA-256 of the label file
    instance_digest: bytes = b""  # SHA-256 of the instance map's file, if there is one
    labels: Sequence[int] = ()  # those that occur, ignore_index for unlabelled pixels
    pixels: Sequence[int] = ()  # number of pixels of each of them
    palette: Mapping[int, int] = {}  # number -> colour, where both have a meaning


def key(files: Iterable[tuple[str, Path]], context: bytes, now: int) -> bytes | None:
    """Key of an item's files as they are, (16,) bytes; to be taken before they are read.

    Args:
        files: role and path of each file.
        context: all else that a result depends on.
        now: nanoseconds since 1970, not later than this call.

    Returns:
        None where a file cannot be seen, or was written so shortly before ``now`` that a further
        change might leave it the same time (Git calls such files racily clean).
    """
    total = hashlib.blake2b(context, digest_size=16)
    for role, path in files:
        try:
            stat = path.stat()
        except OSError:
            return None  # whoever reads it says why
        if stat.st_mtime_ns > now - SETTLED_NS:
            return None
        total.update(f"{role} {stat.st_size} {stat.st_mtime_ns} ".encode())
        total.update(os.fsencode(os.path.abspath(path)) + b"\0")  # noqa: PTH100
    return total.digest()


class LabelCache:
    """Results of earlier label checks by key; nothing is written before :meth:`save`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._saved = _read(store)
        self._used: dict[bytes, LabelContent] = {}

    def find(self, key: bytes | None) -> LabelContent | None:
        """Result of an earlier check; None where there is none."""
        found = self._saved.get(key or b"")
        if key and found:
            self._used[key] = found
        return found

    def add(self, key: bytes, content: LabelContent) -> None:
        self._used[key] = content

    def save(self) -> None:
        """Write the entries found or added since the start, if any of them is new."""
        if self._used.keys() <= self._saved.keys():
            return
        rows = self._used.values()
        stream = BytesIO()
        np.savez(
            stream,
            keys=_bytes(self._used, 16),
            digests=_bytes((row.digest for row in rows), 32),
            instance_digests=_bytes((row.instance_digest.ljust(32, b"\0") for row in rows), 32),
            num_labels=np.array([len(row.labels) for row in rows]),
            labels=_pairs(zip(row.labels, row.pixels, strict=True) for row in rows),
            num_colors=np.array([len(row.palette) for row in rows]),
            colors=_pairs(row.palette.items() for row in rows),
        )
        with suppress(OSError):  # the cache is a help, not a need
            self._store.write(NAME, stream.getvalue())


def _read(store: Store) -> dict[bytes, LabelContent]:
    try:
        with np.load(BytesIO(store.read(NAME))) as file:
            rows = zip(
                (bytes(key) for key in file["keys"]),
                (bytes(digest) for digest in file["digests"]),
                (bytes(digest) if digest.any() else b"" for digest in file["instance_digests"]),
                _split(file["labels"], file["num_labels"]),
                _split(file["colors"], file["num_colors"]),
                strict=True,
            )
            return {
                key: LabelContent(
                    digest,
                    instances,
                    labels[:, 0].tolist(),
                    labels[:, 1].tolist(),
                    dict(colors.tolist()),
                )
                for key, digest, instances, labels, colors in rows
            }
    except _DAMAGE:
        return {}


def _bytes(values: Iterable[bytes], size: int) -> np.ndarray:
    return np.frombuffer(b"".join(values), np.uint8).reshape(-1, size)


def _pairs(rows: Iterable[Iterable[tuple[int, int]]]) -> np.ndarray:
    return np.array([pair for row in rows for pair in row], np.int64).reshape(-1, 2)


def _split(pairs: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """The (n, 2) pairs of each row."""
    ends = np.cumsum([0, *counts])
    if ends[-1] != len(pairs):
        raise ValueError("another number of pairs")
    return [pairs[start:end] for start, end in pairwise(ends)]
