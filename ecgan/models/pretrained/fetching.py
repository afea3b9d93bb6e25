"""Downloads of known weights: the one place of ecgan that opens a connection by itself.

torch's own downloader does it, with its progress bar, its hash check and its temporary file beside
the target. Here are the bounds that it lacks: how long a server may be silent, how slow it may be
and how much it may send.
"""

import errno
import http.client
import io
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ecgan.errors import UserError, first_line
from ecgan.models.pretrained.weights import KnownFile
from ecgan.reading.documents import check_file
from ecgan.runtime.files import sha256

SILENCE = 30.0  # seconds that a server may send nothing
SPAN = 60.0  # seconds of waiting, after each of which
LEAST = 10_000  # bytes a second must have come in it: 550 MB take at most 16 hours
_AGAIN = "nothing is kept of it; run the same command again"
_NO_NETWORK = {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}


def is_right(known: KnownFile, path: Path) -> bool:
    """Whether the file at ``path`` is the known one, by its size and its SHA-256.

    Raises:
        UserError: it is not there, is no file, or cannot be read.
    """
    check_file(path)
    try:
        return path.stat().st_size == known.size and sha256(path) == known.sha256
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error


def fetch(known: KnownFile, *, quiet: bool = False) -> Path:
    """Download a file into torch's cache, whole or not at all; one of another content is replaced.

    Args:
        known: the file.
        quiet: without a progress bar on standard error.

    Returns:
        Where it is.

    Raises:
        UserError: no network or no answer, another size or SHA-256 than is known, too little room,
            or a place that cannot be written.
    """
    target = known.place
    _prepare(known, target)
    answer = _Answer(known)
    try:
        with _writing(target), _network(known), answer.checked():
            torch.hub.download_url_to_file(
                known.address, str(target), hash_prefix=known.sha256, progress=not quiet
            )
    except RuntimeError as error:  # torch's, for the hash
        raise UserError(f"{known.address}: {answer.fault(error)}; {_AGAIN}") from None
    return target


def _prepare(known: KnownFile, target: Path) -> None:
    """Make the folder, and refuse before the download what would fail at its end."""
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
    if target.exists():
        check_file(target)  # a folder would take the file up
    if free < known.size:
        raise UserError(
            f"{target}: needs {known.size:,} bytes, and {free:,} are free; make room, or set "
            "TORCH_HOME to a folder on another disk"
        )


class _Answer(urllib.request.BaseHandler):
    """Refuses an answer of another size before it is read, and knows how much of it came.

    http.client reads no more than the size that a server states, so none can fill a disk.
    """

    def __init__(self, known: KnownFile) -> None:
        self._known = known
        self._response: http.client.HTTPResponse | None = None

    def http_response(
        self,
        request: urllib.request.Request,  # noqa: ARG002
        response: http.client.HTTPResponse,
    ) -> http.client.HTTPResponse:
        """Judge a response; called by urllib, also for those that lead elsewhere."""
        if response.status == http.client.OK:
            if response.length != self._known.size:
                sent = "no size" if response.length is None else f"{response.length:,} bytes"
                raise UserError(
                    f"{self._known.address}: the server sends {sent}, expected "
                    f"{self._known.size:,} bytes; nothing was written. Try it on another network, "
                    f"or get the file in another way and name it with {self._known.key}"
                )
            self._response = response
        return response

    https_response = http_response

    @contextmanager
    def checked(self) -> Generator[None, None, None]:
        """All requests of urllib in the block are judged, and time out."""
        opener = getattr(urllib.request, "_opener", None)
        timeout = socket.getdefaulttimeout()
        urllib.request.install_opener(urllib.request.build_opener(self, _Http, _Https))
        socket.setdefaulttimeout(SILENCE)
        try:
            yield
        finally:
            socket.setdefaulttimeout(timeout)
            urllib.request.install_opener(opener)

    def fault(self, error: Exception) -> str:
        """What was wrong with what came."""
        missing = 0 if self._response is None else self._response.length or 0
        if missing:
            return (
                f"the connection ended after {self._known.size - missing:,} of "
                f"{self._known.size:,} bytes"
            )
        return f"another file than the known one, {first_line(error)}"


class _SlowError(TimeoutError):
    """A server that sends something, and would for ever."""


class _Paced(io.RawIOBase):
    """What a server sends, headers too, with a least rate.

    A timeout of the socket starts anew with every byte. Only time that is spent waiting counts: a
    slow disk is no slow server.

    Args:
        source: of the socket.
    """

    def __init__(self, source: io.RawIOBase) -> None:
        super().__init__()
        self._source = source
        self._waited, self._received = 0.0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:  # noqa: ANN401  a view of bytes
        start = time.monotonic()
        count = self._source.readinto(buffer)
        self._waited += time.monotonic() - start
        self._received += count or 0
        if self._waited > SPAN:
            if self._received < LEAST * self._waited:
                raise _SlowError(
                    f"the server sent less than {LEAST / 1000:g} kB a second for {SPAN:g} s"
                )
            self._waited, self._received = 0.0, 0
        return count

    def close(self) -> None:
        self._source.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Paced(self.fp.detach()))


def _paced(connect: Callable[..., http.client.HTTPConnection]) -> Callable[..., Any]:
    """Connections of a kind, whose responses have a least rate."""

    def make(*args: Any, **options: Any) -> http.client.HTTPConnection:  # noqa: ANN401
        connection = connect(*args, **options)
        connection.response_class = _Response
        return connection

    return make


class _Http(urllib.request.HTTPHandler):
    def do_open(self, http_class: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        return super().do_open(_paced(http_class), *args, **options)


class _Https(urllib.request.HTTPSHandler):
    def do_open(self, http_class: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        return super().do_open(_paced(http_class), *args, **options)


@contextmanager
def _writing(target: Path) -> Generator[None, None, None]:
    """Errors of the disk, raised as a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{target}: cannot write: {error.strerror or error}; {_AGAIN}, with room there, or "
            "with TORCH_HOME set to a folder that can be written"
        ) from error


@contextmanager
def _network(known: KnownFile) -> Generator[None, None, None]:
    """Errors of the network, raised as a UserError; those of the disk as they are."""
    try:
        yield
    except urllib.error.HTTPError as error:
        reason = f"the server answers {error.code} {error.reason}"
    except TimeoutError as error:
        is_slow = isinstance(error, _SlowError)
        reason = str(error) if is_slow else f"the server sent nothing for {SILENCE:g} s"
    except urllib.error.URLError as error:
        reason = f"no connection ({error.reason})"
    except (http.client.HTTPException, ConnectionError, ssl.SSLError) as error:
        reason = f"the connection broke ({first_line(error)})"
    except OSError as error:
        if error.errno not in _NO_NETWORK:
            raise
        reason = f"no connection ({error.strerror})"
    else:
        return
    raise UserError(
        f"{known.address}: {reason}; {_AGAIN}, or get the file in another way and name it with "
        f"--set {known.key}=FILE"
    )
