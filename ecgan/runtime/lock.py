"""One writer for a folder: a lock file that names who holds it, and since when.

filelock asks the kernel, which releases a lock when its holder dies, so one that can be taken is
free, whatever the file says. Between machines that holds only where their file system shares
locks, so a file that another machine left behind is not taken over.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from ecgan.errors import UserError


class _Holder(NamedTuple):
    host: str
    pid: int
    since: str  # ISO 8601; empty in locks of earlier versions


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold a lock; its files are gone afterwards.

    Args:
        path: lock file with the holder's name, in a folder that is there; the kernel's lock is on
            another file beside it, which filelock may empty.
        what: name of what is locked, for the message.

    Raises:
        UserError: somebody else holds it.
    """
    guard = path.with_name(f"{path.name}.guard")
    lock = FileLock(guard)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _taken(what, _holder_in(path), path if path.exists() else guard) from None
    try:
        holder = _holder_in(path)
        if holder is not None and holder.host != socket.gethostname():
            raise _taken(what, holder, path)
        path.write_text(own_text(), encoding="utf-8")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)  # before it is free: who waits for it sees that it is gone
        lock.release()


def own_text() -> str:
    """Content of a lock file of this process."""
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since})


def refuse_living(text: str, place: str, what: str) -> None:
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
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return pid != os.getpid()  # a lock of ours is left from an earlier call


def _taken(what: str, holder: _Holder | None, place: object) -> UserError:
    who = "another process"
    if holder is not None:
        since = f" since {holder.since}" if holder.since else ""
        who = f"process {holder.pid} on {holder.host}{since}"
    return UserError(
        f"{what} is being written by {who}; wait for it, or, if it is dead, delete {place}"
    )


def _holder_in(path: Path) -> _Holder | None:
    return _holder(path.read_text(encoding="utf-8")) if path.exists() else None


def _holder(text: str) -> _Holder | None:
    try:
        value = json.loads(text)
        return _Holder(str(value["host"]), int(value["pid"]), str(value.get("since", "")))
    except (ValueError, KeyError, TypeError):
        return None  # new, or its holder died while it wrote its name
