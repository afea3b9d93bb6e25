"""Files and folders written whole or not at all, their hashes, and safetensors files.

What is written has a temporary name beside its place until it is complete, so that neither a full
disk nor a kill leaves half of it under its own name.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import safetensors

from ecgan.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_PICKLES = {b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"}  # first bytes


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name, then rename it.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    with writing(path), whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when the block ends without an error."""
    partial = _partial(path)
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
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name, or in place of an empty one, when the block ends."""
    partial = _partial(path)
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors that keep a file or folder from being written, raised as a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot write: {error.strerror or error}; what was there is untouched. "
            "Make room, then run the same command again"
        ) from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_safetensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        UserError: no such file, a truncated one, or a pickle.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error
    if start in _PICKLES:
        raise UserError(
            f"{path}: a pickle (.pth, .pt), which can run code when it is read; "
            "ecgan reads safetensors only, as generator.safetensors of a run"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({error}); it may be truncated: copy it again"
        ) from error


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")
