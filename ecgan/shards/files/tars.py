"""Tars of anybody, read with bounds: what their headers say is checked before it is believed.

A tar is not compressed, so that it can be read at random and so that no small file becomes a large
one. Members are ordinary files; each lies within the file, and has at most ``MAX_MEMBER`` bytes.
"""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, cast

from ecgan.errors import UserError, first_line
from ecgan.reading.documents import MOST_BYTES

MAX_MEMBER = MOST_BYTES
_MAX_HEADER = 1 << 20  # bytes that tarfile may read at once: of names and other extended headers
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
REMEDY = "`ecgan data verify` lists all such shards; make the set again, or remove them"
# What tarfile makes of odd headers
_FAULTS = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError, LookupError)


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int
    size: int


class _Headers:
    """The file as :mod:`tarfile` sees it: in pieces of bounded size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.TarError(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int) -> int:
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()


def list_members(file: BinaryIO, place: str) -> Iterator[Member]:
    """Files of a tar that belong to samples, in order; folders and hidden files are passed over.

    Args:
        file: the tar, open; it may be read elsewhere between two members.
        place: of the tar, for messages.

    Raises:
        UserError: not a tar, damaged or compressed; a link, a sparse file, a device, a member that
            is too large or ends outside, or a name that leads out of the folder.
    """
    start = file.read(512)
    if start.startswith(_COMPRESSED):
        raise UserError(f"{place}: a compressed tar, which cannot be read at random; unpack it")
    end = file.seek(0, 2)
    file.seek(0)
    with (
        _explained(place, start),
        tarfile.open(fileobj=cast(Any, _Headers(file)), mode="r:") as tar,
    ):
        last = -1
        while (info := tar.next()) is not None:
            cast(Any, tar).members.clear()  # what was seen, which nobody asks for again
            if not last < info.offset <= info.offset_data <= info.offset_data + info.size <= end:
                raise tarfile.TarError("unexpected end of data")
            last = info.offset
            if info.isdir():
                continue
            _refuse_odd(info, place)
            if stem(info.name).rpartition("/")[2]:
                yield Member(info.name, info.offset_data, info.size)


@contextmanager
def _explained(place: str, start: bytes) -> Iterator[None]:
    try:
        yield
    except _FAULTS as error:
        is_tar = start[257:262] == b"ustar"
        fault = f"a damaged tar: {first_line(error)[:100]}" if is_tar else "not a tar file"
        raise UserError(f"{place}: {fault}; {REMEDY}") from error


def _refuse_odd(info: tarfile.TarInfo, place: str) -> None:
    name = info.name[:200]
    if info.issparse() or not info.isfile():
        kind = "a sparse file" if info.issparse() else "a link or device"
        raise UserError(f"{place}: {name} is {kind}; pack ordinary files only")
    if info.size > MAX_MEMBER:
        raise UserError(
            f"{place}: {name} has {info.size >> 20} MB, more than {MAX_MEMBER >> 20}; no picture "
            "of a sample is so large, pack it anew"
        )
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise UserError(f"{place}: {name} leads out of the folder; pack it anew")


def read_member(file: BinaryIO, member: Member, place: str) -> bytes:
    """Content of a member.

    Raises:
        UserError: the tar ends within it.
    """
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) < member.size:
        raise UserError(f"{place}: {member.name}: the tar ends within it; copy it again")
    return content


def stem(name: str) -> str:
    """Key of a tar's member as webdataset has it: up to the first dot of the name, with folders."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def field(name: str) -> str:
    """What a member is of its sample: its name after the first dot."""
    return name.rpartition("/")[2].partition(".")[2].lower()
