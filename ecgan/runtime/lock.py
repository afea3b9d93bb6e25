"""One writer for a folder: a lock file that names who holds it.

The kernel releases the lock when its holder dies, so one that can be taken is free, whatever the
file says. Between machines that holds only where their file system shares locks, so a file that
another machine left behind is not taken over.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ecgan.errors import UserError


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold a lock; the file is gone afterwards.

    Args:
        path: of the lock file, in a folder that is there.
        what: is locked, for the message.

    Raises:
        UserError: somebody else holds it.
    """
    file = _take(path, what)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def own_text() -> str:
    """What a lock file of this process says."""
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid()})


def refuse_living(text: str, place: str, what: str) -> None:
    """Judge a lock where there is no kernel to ask: an object store.

    Args:
        text: of the lock file; empty where there is none.
        place: of the lock file, for the message.
        what: is locked, for the message.

    Raises:
        UserError: its holder is alive, or on another machine.
    """
    host, pid = _holder(text)
    if host is None or pid is None:
        return
    if host == socket.gethostname() and not _is_alive(pid):
        return
    raise _taken(what, host, pid, place)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return pid != os.getpid()  # a lock of ours is left from an earlier call


def _taken(what: str, host: str | None, pid: int | None, place: object) -> UserError:
    return UserError(
        f"{what} is being written by process {pid} on {host}; wait for it, or, if it is "
        f"dead, delete {place}"
    )


def _take(path: Path, what: str) -> IO[str]:
    while True:
        file = path.open("a+", encoding="utf-8")
        free = _try(file)
        file.seek(0)
        host, pid = _holder(file.read())
        if not free or host not in (socket.gethostname(), None):
            file.close()
            raise _taken(what, host, pid, path)
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its holder has just deleted it
    file.truncate(0)
    file.write(own_text())
    file.flush()
    return file


def _try(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: what the file says has to do
        pass
    return True


def _holder(text: str) -> tuple[str | None, int | None]:
    try:
        value = json.loads(text)
        return str(value["host"]), int(value["pid"])
    except (ValueError, KeyError, TypeError):
        return None, None  # new, or its holder died while it wrote its name
