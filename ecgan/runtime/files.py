"""Files and folders written whole or not at all, their hashes, and locks.

What is written has a temporary name beside its place until it is complete, so that neither a full
disk nor a kill leaves half of it under its own name.
"""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

from filelock import FileLock, Timeout

from ecgan.errors import UsageError, UserError
from ecgan.runtime.processes.machine import remedy_of
from ecgan.runtime.processes.table import exists


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name, then rename it; a power loss leaves it whole, too.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    with writing(path):
        with whole_file(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
        sync_folder(path.parent)


@contextmanager
def whole_file(path: Path, partial: Path | None = None) -> Generator[BinaryIO, None, None]:
    """A file that appears under its name when the block ends without an error.

    Args:
        path: the file.
        partial: where it is written, on the same file system; None: beside it.
    """
    partial = partial or _partial(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Generator[Path, None, None]:
    """A folder that appears under its name, or in place of an empty one, when the block ends."""
    partial = _partial(path)
    try:
        partial.mkdir(parents=True)
        yield partial
        for inner in [*partial.rglob("*"), partial]:
            _sync(inner)
        partial.rename(path)
        for folder in (path.parent, path.parent.parent):  # the parent may be new
            sync_folder(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path) -> None:
    if path.is_dir():
        sync_folder(path)
    else:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk, where its file system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # not known to network file systems
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_out(out: Path, what: str, *own: str) -> None:
    """Refuse an output folder that is a file, or that holds files of somebody else.

    Args:
        out: output folder, which need not exist.
        what: what ecgan writes there, for the message.
        own: names, one of which is in every folder that ecgan wrote.

    Raises:
        UserError: the folder is refused, or cannot be read.
    """
    with writing(out):
        if out.exists() and not out.is_dir():
            raise UsageError(f"--out {out}: a file; give a folder")
        names = {path.name for path in out.iterdir()} if out.is_dir() else set[str]()
    if names and not names & {*own}:
        raise UsageError(f"--out {out}: not empty, and not {what} of ecgan; give another folder")


@contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Errors that keep a file or folder from being written, raised as a UserError."""
    try:
        yield
    except OSError as error:
        remedy = remedy_of(error)
        raise UserError(
            f"{path}: cannot write: {error.strerror or error}; what was there is untouched. "
            f"{remedy[0].upper()}{remedy[1:]}"
        ) from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


# Locks: one writer for a folder


_MOST_LOCK, _MOST_PID = 4096, 2**31 - 1  # bytes of a lock file; numbers that a system gives


class _Holder(NamedTuple):
    host: str
    pid: int
    since: str  # ISO 8601; empty in locks of earlier versions


@contextmanager
def held_lock(path: Path, what: str) -> Generator[None, None, None]:
    """Hold a lock that names who holds it, and since when; its files are gone afterwards.

    The kernel releases a lock when its holder dies, so one that can be taken is free, whatever the
    file says. Between machines that holds only where their file system shares locks, so a file that
    another machine left behind is not taken over.

    Args:
        path: lock file with the holder's name, in a folder that is there; the kernel's lock is on
            another file beside it, which filelock may empty.
        what: name of what is locked, for the message.

    Raises:
        UserError: somebody else holds it.
    """
    guard = path.with_name(f"{path.name}.guard")
    for own in (path, guard):
        _refuse_link(own)
    lock = FileLock(guard)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _taken(what, _holder_in(path), path if path.exists() else guard) from None
    try:
        holder = _holder_in(path)
        if holder is not None and holder.host != socket.gethostname():
            raise _taken(what, holder, path)
        _write_lock(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)  # before it is free: who waits for it sees that it is gone
        lock.release()


def lock_text() -> str:
    """Content of a lock file of this process."""
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since})


def refuse_living_lock(text: str, place: str, what: str) -> None:
    """Judge a lock where there is no kernel to ask: an object store.

    Args:
        text: content of the lock file; empty where there is none.
        place: address of the lock file, for the message.
        what: name of what is locked, for the message.

    Raises:
        UserError: its holder is alive, or on another machine.
    """
    holder = _holder(text)
    if holder is None or (holder.host == socket.gethostname() and not _is_alive(holder.pid)):
        return
    raise _taken(what, holder, place)


def _is_alive(pid: int) -> bool:
    return exists(pid) and pid != os.getpid()  # a lock of ours is left from an earlier call


def _taken(what: str, holder: _Holder | None, place: object) -> UserError:
    who = "another process"
    if holder is not None:
        since = f" since {holder.since}" if holder.since else ""
        who = f"process {holder.pid} on {holder.host}{since}"
    return UserError(
        f"{what} is being written by {who}; wait for it, or, if it is dead, delete {place}"
    )


def _refuse_link(path: Path) -> None:
    """Refuse a lock file that leads elsewhere: what is there would be emptied."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{path}: a link, or no file, and not a lock of ecgan; delete it")


def _write_lock(path: Path) -> None:
    # A link that came between does not lead out either
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags, 0o644), "w", encoding="utf-8") as file:
        file.write(lock_text())


def _holder_in(path: Path) -> _Holder | None:
    if not path.exists():
        return None
    with path.open("rb") as file:
        return _holder(file.read(_MOST_LOCK))


def _holder(text: str | bytes) -> _Holder | None:
    try:
        value = json.loads(text)
        holder = _Holder(str(value["host"]), int(value["pid"]), str(value.get("since", "")))
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return None  # new, or its holder died while it wrote its name
    return holder if 0 < holder.pid <= _MOST_PID else None
