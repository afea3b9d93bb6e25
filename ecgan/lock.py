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


def _take(path: Path, what: str) -> IO[str]:
    own = {"host": socket.gethostname(), "pid": os.getpid()}
    while True:
        file = path.open("a+", encoding="utf-8")
        free = _try(file)
        file.seek(0)
        host, pid = _holder(file.read())
        if not free or host not in (own["host"], None):
            file.close()
            raise UserError(
                f"{what} is being written by process {pid} on {host}; wait for it, or, if it is "
                f"dead, delete {path}"
            )
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its holder has just deleted it
    file.truncate(0)
    json.dump(own, file)
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
