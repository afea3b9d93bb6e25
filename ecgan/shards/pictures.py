"""Single pictures in shards on disk, listed once and read at random, as if they were files."""

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ecgan.shards import readers
from ecgan.shards.files.tars import Member, read_member
from ecgan.shards.readers import TAR_FIELDS, column_of

Kind = Literal["image", "label", "instances", "edge"]
_KINDS: tuple[Kind, ...] = ("image", "label", "instances", "edge")
_KEPT_BYTES = 64 << 20  # of a row group: so much is kept of each column by each thread


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A picture in a shard; it is read and named like a path.

    Attributes:
        shard: tar or Parquet file.
        name: name of the tar's member, or the Parquet file's column.
        start: offset in the tar, or the row.
        size: bytes; -1 in a Parquet file.
    """

    shard: Path
    name: str
    start: int
    size: int = -1

    def __str__(self) -> str:
        if self.size < 0:
            return f"{self.shard}: row {self.start}, column {self.name}"
        return f"{self.shard}: {self.name}"

    def read_bytes(self) -> bytes:
        """Content of the picture's file.

        Raises:
            OSError: the shard cannot be read.
            UserError: a row has no picture in this column, or the shard is damaged.
        """
        if self.size < 0:
            return readers.picture(_columns_of(self.shard).value(self.start, self.name), str(self))
        with self.shard.open("rb") as file:
            return read_member(file, Member(self.name, self.start, self.size), str(self.shard))

    def stat(self) -> os.stat_result:
        """State of the shard, which changes whenever the picture does."""
        return self.shard.stat()


class ListedSample(NamedTuple):
    """Pictures of a sample."""

    key: str
    files: Mapping[Kind, ShardFile]


@dataclass(frozen=True)
class Listing:
    """What a shard holds.

    Attributes:
        samples: in their order.
        columns: of a Parquet file.
        largest_group: bytes of a Parquet file's largest row group.
    """

    samples: Sequence[ListedSample]
    columns: Sequence[str] | None = None
    largest_group: int = 0

    def has(self, kind: Kind) -> bool:
        """Whether samples can have such a picture at all."""
        return self.columns is None or column_of(kind, self.columns) is not None

    def expected(self, kind: Kind, noun: str) -> str:
        """Sentence about a Parquet file without such a column."""
        there = ", ".join(self.columns or ())
        return f"no column {kind} for the {noun}s; its columns are {there}; rename one"


def expected_fields(kind: Kind) -> str:
    """Fields of tars that may hold such a picture."""
    return " or ".join(TAR_FIELDS[kind])


def list_shard(path: Path) -> Listing:
    """Keys and pictures of a tar or Parquet file; no picture is read.

    Raises:
        UserError: it is missing or damaged, a tar is compressed or holds links.
    """
    if path.suffix.lower() == ".tar":
        return Listing([_of_members(path, *sample) for sample in readers.list_tar(path)])
    table = readers.Columns(path)
    columns: dict[Kind, str] = {
        kind: name for kind in _KINDS if (name := column_of(kind, table.names)) is not None
    }
    samples: list[ListedSample] = []
    for row, key in enumerate(table.keys()):
        files: dict[Kind, ShardFile] = {
            kind: ShardFile(path, name, row) for kind, name in columns.items()
        }
        samples.append(ListedSample(key, files))
    return Listing(samples, table.names, table.largest_group)


def _of_members(path: Path, key: str, members: Mapping[str, Member]) -> ListedSample:
    files: dict[Kind, ShardFile] = {}
    for kind in _KINDS:
        field = next((field for field in TAR_FIELDS[kind] if field in members), None)
        if field is not None:
            member = members[field]
            files[kind] = ShardFile(path, member.name, member.offset, member.size)
    return ListedSample(key, files)


_opened = threading.local()


def _columns_of(path: Path) -> readers.Columns:
    """An open Parquet file of this thread; readers of one file are not for two threads."""
    known: dict[object, readers.Columns] = _opened.__dict__.setdefault("files", {})
    stat = path.stat()
    state = path, stat.st_mtime_ns, stat.st_size, os.getpid()
    if state not in known:
        if len(known) >= 8:
            known.pop(next(iter(known)))
        known[state] = readers.Columns(path, _KEPT_BYTES)
    return known[state]
