"""What the machine refuses, in a sentence: full or read-only disks, memory, lost streams."""

import errno
import io
import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from ecgan.errors import UserError, first_line

_log = logging.getLogger(__name__)
_AGAIN = "then run the same command again"
_ROOM = f"make room, {_AGAIN}"
_PLACE = (
    "name a place that can be written (--out; ECGAN_CACHE for the cache, TMPDIR for temporary "
    f"files), {_AGAIN}"
)
_MEMORY = (
    "too little memory or address space: lower the batch, the workers or the sizes, raise "
    f"`ulimit -v` or the container's limit, {_AGAIN}"
)
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _ROOM),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _PLACE),
    **dict.fromkeys((errno.ENOMEM, errno.EAGAIN), _MEMORY),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), f"raise `ulimit -n`, {_AGAIN}"),
}
# What libraries say in exceptions of their own, in lower case
_SIGNS = (
    ("no space left", _ROOM),
    ("os error 28", _ROOM),
    ("failed writing file", _ROOM),  # torch.save
    ("file write failed", _ROOM),
    ("unexpected pos", _ROOM),
    ("read-only file system", _PLACE),
    ("permission denied", _PLACE),
    ("os error 30", _PLACE),
    ("home directory", f"set HOME or ECGAN_CACHE to a folder, {_AGAIN}"),
    ("getpwuid", f"set HOME, USER and ECGAN_CACHE, {_AGAIN}"),
    ("can't allocate memory", _MEMORY),
    ("cannot allocate memory", _MEMORY),
    ("not enough memory", _MEMORY),
    ("bad_alloc", _MEMORY),
    ("failed to map segment", _MEMORY),
    ("can't start new thread", _MEMORY),
    ("resource temporarily unavailable", _MEMORY),
)


@contextmanager
def explained(*told: type[Exception]) -> Generator[None, None, None]:
    """What the machine refuses in the block is raised as a UserError; all else as it is.

    Args:
        told: exceptions that have their sentence already.

    Raises:
        UserError: names the file, what the system said, and a remedy.
    """
    try:
        yield
    except (UserError, BrokenPipeError, *told):
        raise
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        _log.info("what the machine refused:", exc_info=error)
        raise UserError(sentence) from error


def remedy_of(error: OSError) -> str:
    """What to do about an error of the system."""
    return _REMEDIES.get(error.errno or 0, f"mend that, {_AGAIN}")


def _sentence(error: Exception) -> str | None:
    if isinstance(error, OSError) and error.errno is not None:
        place = f"{_text(error.filename)}: " if error.filename is not None else ""
        return f"{place}{error.strerror or os.strerror(error.errno)}; {remedy_of(error)}"
    text = first_line(error)
    remedy = next((remedy for sign, remedy in _SIGNS if sign in str(error).lower()), None)
    if isinstance(error, MemoryError):
        return f"out of memory ({text}); {_MEMORY}"
    if remedy is None and isinstance(error, OSError):
        remedy = f"mend that, {_AGAIN}"
    return None if remedy is None else f"{text}; {remedy}"


def _text(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, bytes | str) else str(name)


# Standard streams


class OutputError(UserError):
    """Standard output cannot be written; what the command made is kept."""


def mend_streams() -> None:
    """Standard streams that can be closed, full or gone without harm.

    A closed one is opened on the null device, so that no file of ours gets its number. A message
    that nobody can read is dropped; output that cannot be written raises :class:`OutputError`,
    once. What names contain and the encoding lacks is escaped. Streams that are not those of the
    process, as in a test, stay.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, mode), number)  # 1: a write fails, as it should
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False, encoding="utf-8")  # noqa: SIM115
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(1, sys.stdout, drops=False)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(2, sys.stderr, drops=True)


def _stream(number: int, before: Any, *, drops: bool) -> io.TextIOWrapper:  # noqa: ANN401
    return io.TextIOWrapper(
        io.BufferedWriter(_Raw(number, drops=drops)),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=drops or os.isatty(number),
        write_through=getattr(before, "write_through", False),
    )


class _Raw(io.FileIO):
    """A standard stream without its buffer."""

    def __init__(self, number: int, *, drops: bool) -> None:
        super().__init__(number, "wb", closefd=False)
        self._drops = drops
        self._is_lost = False

    def write(self, data: Any, /) -> int:  # noqa: ANN401
        try:
            return super().write(data)
        except BrokenPipeError:
            if self._drops or self._is_lost:
                return len(data)
            self._is_lost = True
            raise
        except OSError as error:
            if self._drops or self._is_lost:
                return len(data)
            self._is_lost = True  # Python writes the rest at its end
            raise OutputError(
                f"standard output: cannot write: {error.strerror}; what the command made is kept"
            ) from error
