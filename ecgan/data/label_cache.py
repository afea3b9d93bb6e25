"""What earlier checks of label files found: unchanged files are not read again.

A small database in the user's cache folder: ``$ECGAN_CACHE``, else ``$XDG_CACHE_HOME/ecgan``, else
``~/.cache/ecgan``. It is a help, never a need: where it is locked, damaged, read-only or cannot be
made, the check reads the files and says so in one line.

The key of an entry covers all that a finding depends on, so that no entry ever changes: of a file
that changes, the key does.
"""

import hashlib
import json
import logging
import os
import sqlite3
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

MAX_ENTRIES = 1_000_000  # about 250 MB; the oldest make room
SETTLED_NS = 2_000_000_000  # a file's time may be as coarse as 2 s (FAT)
BUSY_SECONDS = 2.0  # how long another process' write is waited for

_SCHEMA = 1  # other columns or another form of their content: another file
_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where the database lies.

    Raises:
        RuntimeError: the user has no home folder.
    """
    if own := os.environ.get("ECGAN_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The standard of that variable has relative paths ignored.
    return (Path(shared) if Path(shared).is_absolute() else Path.home() / ".cache") / "ecgan"


def key(files: Iterable[tuple[str, Path]], context: bytes, now: int) -> bytes | None:
    """What stands for these files as they are, (16,) bytes; to be taken before they are read.

    Args:
        files: what each file is to the item, and its path.
        context: all else that a finding depends on.
        now: nanoseconds since 1970, not later than this call.

    Returns:
        None where a file cannot be seen, or was written so shortly before ``now`` that a further
        change might leave it the same time (Git calls such files racily clean).
    """
    total = hashlib.blake2b(context, digest_size=16)
    for kind, path in files:
        try:
            stat = path.stat()
        except OSError:
            return None  # whoever reads it says why
        if stat.st_mtime_ns > now - SETTLED_NS:
            return None
        total.update(f"{kind} {stat.st_size} {stat.st_mtime_ns} ".encode())
        total.update(os.fsencode(os.path.abspath(path)) + b"\0")  # noqa: PTH100
    return total.digest()


class Store:
    """Findings by key, for one process among several; without a database it is always empty.

    Args:
        path: the database; None: there is none.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._writes = True
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # No write-ahead log: it does not work in home folders that several hosts share.
            self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            # After a power failure the file may have to be deleted; waiting for the disk each time
            # would cost more.
            self._connection.execute("PRAGMA synchronous = OFF")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS found (item BLOB PRIMARY KEY, finding BLOB NOT NULL)"
            )
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def find(self, keys: Sequence[bytes | None]) -> list[Any]:
        """What was added under each key, as JSON has it; None where nothing was."""
        if self._connection is None:
            return [None] * len(keys)
        try:
            with self._connection as connection:
                connection.execute("BEGIN")  # one lock for all of them
                query = "SELECT finding FROM found WHERE item = ?"
                rows = [key and connection.execute(query, (key,)).fetchone() for key in keys]
        except sqlite3.Error as error:
            self._give_up(error)
            return [None] * len(keys)
        return [row and _unsealed(key, row[0]) for key, row in zip(keys, rows, strict=True)]

    def add(self, findings: Mapping[bytes, Any]) -> None:
        """Keep findings, which JSON can hold, under their keys."""
        if self._connection is None or not self._writes or not findings:
            return
        try:
            with self._connection as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(
                    "INSERT OR REPLACE INTO found VALUES (?, ?)",
                    [(key, _sealed(key, finding)) for key, finding in findings.items()],
                )
                connection.execute(
                    "DELETE FROM found WHERE rowid <= (SELECT max(rowid) FROM found) - ?",
                    (MAX_ENTRIES,),
                )
        except sqlite3.Error as error:
            self._writes = False  # what is there may still be read
            self._warn(error)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _give_up(self, error: Exception) -> None:
        self.close()
        self._warn(error)

    def _warn(self, error: Exception) -> None:
        is_damaged = type(error) is sqlite3.DatabaseError
        remedy = "delete this file" if is_damaged else "ECGAN_CACHE may name another folder"
        _warn_once(f"{self._path}: {error}; label files are read without it ({remedy})")


def open_store() -> Store:
    """The store of this user."""
    try:
        folder = cache_folder()
    except RuntimeError as error:
        _warn_once(f"{error}; label files are read each time (ECGAN_CACHE may name a folder)")
        return Store(None)
    return Store(folder / f"checked-{_SCHEMA}.sqlite")


def _sealed(key: bytes, finding: object) -> bytes:
    text = json.dumps(finding, separators=(",", ":")).encode()
    return _checksum(key, text) + text


def _unsealed(key: bytes | None, sealed: object) -> Any:  # noqa: ANN401  # what JSON has
    if key is None or not isinstance(sealed, bytes) or sealed[:4] != _checksum(key, sealed[4:]):
        return None
    return json.loads(sealed[4:])


def _checksum(key: bytes, text: bytes) -> bytes:
    """SQLite has none: a damaged database must not give wrong findings."""
    return zlib.crc32(key + text).to_bytes(4, "big")


@cache
def _warn_once(text: str) -> None:
    _log.warning("%s", text)
