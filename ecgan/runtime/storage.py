"""Storage of a data set: a folder, or a prefix of an object store that fsspec knows.

Both keep one promise: a file appears under its name when it is complete, with all of its bytes. A
folder does it by a temporary name, fsync and a rename; an object store by one upload. Names are
relative, with ``/``, whatever the system.

And another: nothing outside is read, written or deleted, whatever a name or a link in the folder
says. A data set may come from anybody.
"""

import io
import os
import re
import shutil
import stat
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, cast

from ecgan.errors import UsageError, UserError, first_line
from ecgan.reading.documents import MOST_BYTES
from ecgan.reading.places import Address, relative_name, without_password
from ecgan.runtime import files

HIDDEN = ".ecgan"  # readers skip hidden folders; ours holds what is not part of the data
_PARTIAL = f"{HIDDEN}/tmp"  # noqa: S108  of the data set itself
_LOCK = f"{HIDDEN}/lock"
_AT_ONCE = 1000  # files of an object store that are asked for together
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


class Store(ABC):
    """Storage of a data set: files by relative names.

    Every method refuses a name that leads out of it with a UserError.
    """

    url: str  # for messages: as the user named it, without a password
    is_private = False  # whether other processes cannot see it

    def __str__(self) -> str:
        return self.url

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open a file to read; FileNotFoundError where there is none."""

    @abstractmethod
    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file that appears under its name when the block ends without an error."""

    @abstractmethod
    def write_many(self, contents: Iterable[tuple[str, bytes]]) -> None:
        """Write files, each whole or not at all; after an error in ``contents`` none is there."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""

    @abstractmethod
    def sizes(self, folder: str) -> dict[str, int]:
        """Files directly in a folder with their bytes; empty where there is no such folder."""

    @abstractmethod
    def names(self) -> list[str]:
        """Files and folders at the top, sorted."""

    @abstractmethod
    def remove(self, names: Iterable[str]) -> None:
        """Remove files, as far as they are there, and folders that are empty then."""

    @abstractmethod
    def remove_folder(self, folder: str) -> None:
        """Remove a folder with everything in it."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove unfinished files of writers that were killed."""

    @abstractmethod
    def held(self) -> AbstractContextManager[None]:
        """Lock against other writers; UserError where one is at work."""

    @abstractmethod
    def holds_anything(self) -> bool:
        """Whether there is any file or folder; UserError for a file, no rights, no such bucket."""

    def read(self, name: str) -> bytes:
        """Bytes of a file; FileNotFoundError where there is none.

        Raises:
            UserError: it has more than ``MOST_BYTES``.
        """
        with self.open(name) as file:
            found = file.read(MOST_BYTES + 1)
        if len(found) > MOST_BYTES:
            raise UserError(
                f"{self}/{name}: more than {MOST_BYTES >> 20} MB; no such file of a data set is so "
                "large, copy it again"
            )
        return found

    def read_many(self, names: Sequence[str]) -> Iterator[bytes | None]:
        """Bytes of files, in order; None where there is none."""
        for name in names:
            try:
                yield self.read(name)
            except FileNotFoundError:
                yield None

    def write(self, name: str, data: bytes | str) -> None:
        """Write a file, whole or not at all."""
        with self.writing(name) as file:
            file.write(data.encode() if isinstance(data, str) else data)


def open_store(where: "str | Path | Store") -> Store:
    """Storage at a path or an address such as ``s3://bucket/prefix``.

    Raises:
        UserError: fsspec does not know the protocol, or what it needs is not installed.
    """
    if isinstance(where, Store):
        return where
    text = where.whole if isinstance(where, Address) else str(where)
    protocol, separator, _ = text.partition("://")
    if "\0" in text:
        raise UsageError(f"{text!r}: no place has such a name")
    if not separator:
        return Folder(Path(text))
    if protocol == "file":
        return Folder(Path(text.removeprefix("file://")))
    return ObjectStore(text)


class Folder(Store):
    """A folder of the file system."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = str(path)

    def open(self, name: str) -> BinaryIO:
        path = self._inside(name)
        try:
            # Opening a pipe would wait for whoever writes into it
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            raise UserError(f"{path}: cannot read: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UserError(f"{path}: not a file; copy the data set again")
        return os.fdopen(descriptor, "rb")

    @contextmanager
    def writing(self, name: str) -> Generator[BinaryIO, None, None]:
        target = self._inside(name)
        with files.whole_file(target, self._temporary(target.name)) as file:
            yield file
        files.sync_folder(target.parent)

    def write_many(self, contents: Iterable[tuple[str, bytes]]) -> None:
        partial = self._temporary("files")
        partial.mkdir()
        try:
            names: list[str] = []
            for name, data in contents:
                self._inside(name)
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).write_bytes(data)
                names.append(name)
            os.sync()  # once for all of them
            for name in names:
                target = self._inside(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                (partial / name).replace(target)
            for folder in sorted({(self.path / name).parent for name in names}):
                files.sync_folder(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def size(self, name: str) -> int | None:
        try:
            return self._inside(name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{self.path / name}: cannot read: {error.strerror}") from error

    def sizes(self, folder: str) -> dict[str, int]:
        try:
            with os.scandir(self._inside(folder) if folder else self.path) as entries:
                return {e.name: e.stat().st_size for e in entries if e.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise UserError(f"{self.path / folder}: cannot read: {error.strerror}") from error

    def names(self) -> list[str]:
        try:
            return sorted(p.name for p in self.path.iterdir()) if self.path.is_dir() else []
        except OSError as error:
            raise UserError(f"{self.path}: cannot read: {error.strerror}") from error

    def remove(self, names: Iterable[str]) -> None:
        folders: set[Path] = set()
        for name in names:
            path = self._inside(name, follow=False)
            with suppress(NotADirectoryError):
                path.unlink(missing_ok=True)
            folders |= {p for p in path.parents if p != self.path and self.path in p.parents}
        for folder in sorted(folders, key=lambda p: len(p.parts), reverse=True):
            with suppress(OSError):  # not empty, or never there
                folder.rmdir()

    def remove_folder(self, folder: str) -> None:
        path = self._inside(folder, follow=False)
        if path.is_symlink():
            path.unlink()  # rmtree would open what it names, to see that it is none
        else:
            shutil.rmtree(path, ignore_errors=True)

    def sweep(self) -> None:
        self.remove_folder(_PARTIAL)

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        lock = self._inside(_LOCK)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with files.held_lock(lock, self.url):
            yield

    def holds_anything(self) -> bool:
        try:
            if self.path.exists() and not self.path.is_dir():
                raise UsageError(f"--out {self.url}: a file; give a folder")
            return bool(self.names())
        except OSError as error:
            raise UserError(f"--out {self.url}: cannot write: {error.strerror}") from error

    def _temporary(self, name: str) -> Path:
        """A name that nobody else takes, on the same file system."""
        folder = self._inside(_PARTIAL)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.{uuid.uuid4().hex}"

    def _inside(self, name: str, *, follow: bool = True) -> Path:
        """Path of a name.

        Args:
            name: of a file or folder, which need not exist.
            follow: whether the file itself will be followed where it is a link.

        Raises:
            UserError: the name, or a link on its way, leads out of the folder.
        """
        parts = _parts(self.url, name)
        for depth in range(1, len(parts) + follow):
            path = os.path.join(self.path, *parts[:depth])  # noqa: PTH118  once for every file read
            if os.path.islink(path) and not self._holds(path):  # noqa: PTH114
                raise UserError(
                    f"{path}: a link that leads out of the data set, which is not followed; copy "
                    "the data set with what its links name (cp -rL)"
                )
        return self.path.joinpath(*parts)

    def _holds(self, path: str) -> bool:
        """Whether what a link names lies in the folder; so do links in circles."""
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.path))


class ObjectStore(Store):
    """Objects below a prefix: ``s3://``, ``gs://``, ``memory://`` and what else fsspec knows.

    An upload is atomic in such stores, so there is nothing to rename and nothing left by the dead
    but invisible parts of multipart uploads (which a bucket's lifecycle rule removes).
    """

    def __init__(self, url: str) -> None:
        core: Any = import_module("fsspec.core")  # it takes a while, and has no types
        self.url = without_password(url.rstrip("/"))
        found = re.findall(r"(?<=://)[^/\s]*(?=@)|(?<=\?)\S+", url)
        self._secrets = [*found, *filter(None, (text.rpartition(":")[2] for text in found))]
        protocol = url.partition("://")[0]
        self.is_private = protocol == "memory"
        try:
            self._fs, prefix = core.url_to_fs(url.rstrip("/"))
        except ImportError as error:
            extra = _EXTRAS.get(protocol)
            remedy = f"pip install 'ecgan[{extra}]'" if extra else self._told(error)
            raise UserError(f"{self.url}: this protocol is not installed: {remedy}") from error
        except Exception as error:  # each protocol has its own
            raise UsageError(
                f"{self.url}: no such place ({self._told(error)}); give a folder, "
                "s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
            ) from error
        self._prefix = str(prefix).rstrip("/")

    def _told(self, error: Exception) -> str:
        """What an error says, in a line and without the address's secrets."""
        text = without_password(first_line(error))
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:200]

    def open(self, name: str) -> BinaryIO:
        # No cache of listings: another process may have written the file a moment ago
        with self._reading():
            self._fs.invalidate_cache()
            return cast(BinaryIO, _ObjectFile(self._fs.open(self._path(name), "rb"), self._reading))

    def read(self, name: str) -> bytes:
        with self._reading():
            return super().read(name)

    @contextmanager
    def writing(self, name: str) -> Generator[BinaryIO, None, None]:
        with tempfile.NamedTemporaryFile(prefix="ecgan-") as file:
            yield cast(BinaryIO, file)
            file.flush()
            with self._translated():
                self._fs.put_file(file.name, self._path(name))

    def write_many(self, contents: Iterable[tuple[str, bytes]]) -> None:
        whole = [*contents]  # an error while they are made leaves nothing behind
        with self._translated():
            self._fs.pipe({self._path(name): data for name, data in whole})

    def size(self, name: str) -> int | None:
        try:
            with self._reading():
                self._fs.invalidate_cache()
                size = self._fs.info(self._path(name))["size"]
                return None if size is None else int(size)
        except FileNotFoundError:
            return None

    def sizes(self, folder: str) -> dict[str, int]:
        found = self._list(self._path(folder) if folder else self._prefix)
        # A web server does not say how large the files of a folder are
        return {n: int(entry["size"] or 0) for n, entry in found if entry["type"] == "file"}

    def read_many(self, names: Sequence[str]) -> Iterator[bytes | None]:
        """Bytes of files, in order, by many requests at a time: one takes as long as a hundred."""
        for first in range(0, len(names), _AT_ONCE):
            paths = [self._path(name) for name in names[first : first + _AT_ONCE]]
            with self._reading():
                found = self._fs.cat(paths, on_error="return")
            for path in paths:
                data = found.get(path)
                if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                    with self._reading():
                        raise data
                yield data if isinstance(data, bytes) else None

    def names(self) -> list[str]:
        return sorted(name for name, _ in self._list(self._prefix))

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError), self._reading():
                self._fs.rm_file(self._path(name))

    def remove_folder(self, folder: str) -> None:
        with suppress(FileNotFoundError), self._reading():
            self._fs.rm(self._path(folder), recursive=True)

    def sweep(self) -> None:
        """Nothing: an upload that was not finished shows nowhere."""

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        """Best effort: object stores have no lock; two drivers would write the same bytes."""
        try:
            text = self.read(_LOCK)
        except FileNotFoundError:
            text = b""
        files.refuse_living_lock(text.decode(errors="replace"), f"{self.url}/{_LOCK}", self.url)
        self.write(_LOCK, files.lock_text())
        try:
            yield
        finally:
            self.remove([_LOCK])

    def holds_anything(self) -> bool:
        with self._translated():
            return bool(self.names())

    def _path(self, name: str) -> str:
        return "/".join([self._prefix, *_parts(self.url, name)])

    def _list(self, path: str) -> list[tuple[str, dict[str, Any]]]:
        """Last part of the name and details of each entry."""
        try:
            with self._reading():
                self._fs.invalidate_cache()
                found: list[dict[str, Any]] = self._fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        return [(str(entry["name"]).rstrip("/").rpartition("/")[2], entry) for entry in found]

    def _reading(self) -> AbstractContextManager[None]:
        """:meth:`_translated` of all but files that are not there."""
        return self._translated(FileNotFoundError, NotADirectoryError)

    @contextmanager
    def _translated(self, *passed: type[Exception]) -> Generator[None, None, None]:
        """Errors of the store, raised as a UserError; those of ``passed`` stay as they are."""
        try:
            yield
        except (UserError, AssertionError, MemoryError, *passed):
            raise
        except Exception as error:  # botocore, aiohttp, requests, zipfile: no base in common
            raise UserError(
                f"{self.url}: {self._told(error)}; check the bucket, the prefix, your rights and "
                "your credentials"
            ) from error


class _ObjectFile(io.RawIOBase):
    """An object that is read; errors of its store come under way, too, and get their sentence."""

    def __init__(self, file: Any, reading: Callable[[], AbstractContextManager[None]]) -> None:  # noqa: ANN401
        self._file, self._reading = file, reading

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        with self._reading():
            return self._file.read(size)

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  a view of bytes
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        with self._reading():
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


def cache_folder() -> Path:
    """The user's cache: ``$ECGAN_CACHE``, ``$XDG_CACHE_HOME/ecgan`` or ``~/.cache/ecgan``.

    Raises:
        RuntimeError: the user has no home folder.
    """
    if own := os.environ.get("ECGAN_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The standard of that variable has relative paths ignored.
    return (Path(shared) if Path(shared).is_absolute() else Path.home() / ".cache") / "ecgan"


def _parts(place: str, name: str) -> list[str]:
    """Parts of a name below a store's root; UserError where it leads out of it."""
    try:
        return relative_name(name).split("/")
    except ValueError as error:
        raise UserError(f"{place}: {error}; get the data set anew") from None
