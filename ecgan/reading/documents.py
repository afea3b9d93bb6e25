"""Documents that somebody else may have written: what is opened of them, and how much.

Regular files only, of a bounded size; JSON of bounded depth and without NaN, checked against a
schema.
"""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from pydantic import BaseModel, ValidationError

from ecgan.errors import UserError, shown

MOST_BYTES = 256 << 20  # of a document
_DEPTH = 100  # of a document's lists and objects
_FAULTS = 5  # of a document in one message
_Model = TypeVar("_Model", bound=BaseModel)


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Bytes of a regular file; a pipe, device or socket is never opened.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        UserError: no such file, no regular file, a larger one, or one that cannot be read.
    """
    check_file(path, most)
    try:
        # What is no longer what was checked must not block either
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error
    if len(content) > most:
        raise _too_large(path, most)
    return content


def check_file(path: Path, most: int | None = None) -> None:
    """Refuse what is no regular file, or a larger one than ``most`` bytes.

    Raises:
        UserError: it is refused, or not there.
    """
    try:
        about = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: NUL in its name
        raise UserError(f"{path}: cannot read: {getattr(error, 'strerror', error)}") from None
    if not stat.S_ISREG(about.st_mode):
        kind = "a folder" if stat.S_ISDIR(about.st_mode) else "a pipe, a device or a socket"
        raise UserError(f"{path}: {kind}, not a file; give a file")
    if most is not None and about.st_size > most:
        raise _too_large(path, most)


def read_json(path: Path, what: str, remedy: str, most: int = MOST_BYTES) -> Any:  # noqa: ANN401
    """Content of a JSON file.

    Args:
        path: the file.
        what: what it should be, for the message.
        remedy: what to do about another one, for the message.
        most: bytes that it may have.

    Raises:
        UserError: no such file, or as of :func:`parse_json`.
    """
    return parse_json(read_bytes(path, most), str(path), what, remedy)


def parse_json(content: str | bytes, place: str, what: str, remedy: str) -> Any:  # noqa: ANN401
    """Content of a JSON document.

    Raises:
        UserError: no JSON; or nested too deeply, numbers that are not finite, or half a character.
    """
    try:
        value = json.loads(content, parse_constant=_refuse_constant)
        _check_values(value)
    except RecursionError:
        raise UserError(f"{place}: not {what}: nested too deeply; {remedy}") from None
    except ValueError as error:  # also of bytes that are no text, and of numbers without end
        raise UserError(f"{place}: not {what}: {error}; {remedy}") from None
    return value


def read_cached(path: Path, model: type[_Model]) -> _Model | None:
    """An entry of a cache of ours; None where there is none or it is damaged: it is made anew."""
    try:
        return checked(model, read_json(path, "an entry of a cache", ""), str(path), "")
    except UserError:
        return None


def checked(model: type[_Model], value: object, place: str, remedy: str) -> _Model:
    """A document of this schema.

    Raises:
        UserError: fields that are missing or of another type, all of them at once.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise schema_error(error, place, remedy) from None


def schema_error(error: ValidationError, place: str, remedy: str) -> UserError:
    """What does not fit a schema, field by field."""
    found = error.errors(include_url=False, include_context=False)
    faults = [
        f"{'.'.join(map(str, one['loc'])) or 'the whole'}: {one['msg'][:1].lower()}{one['msg'][1:]}"
        + ("" if one["type"] == "missing" else f", got {shown(one['input'])}")
        for one in found[:_FAULTS]
    ]
    if len(found) > _FAULTS:
        faults.append(f"and {len(found) - _FAULTS} more")
    if len(faults) == 1:
        return UserError(f"{place}: {faults[0]}; {remedy}")
    return UserError(f"{place}: {len(found)} fields do not fit; {remedy}", faults)


def _too_large(path: Path, most: int) -> UserError:
    return UserError(f"{path}: larger than {most >> 20} MiB, which no such file of ecgan is")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}, which is none of JSON's")


def _check_values(value: object) -> None:
    """Refuse depth, infinity and half characters, which later steps could not write or show."""
    level: list[object] = [value]
    for _ in range(_DEPTH):
        below: list[object] = []
        for one in level:
            if isinstance(one, dict):
                pairs = cast("dict[str, object]", one)
                below += pairs.keys()
                below += pairs.values()
            elif isinstance(one, list):
                below += cast("list[object]", one)
            elif isinstance(one, float) and not math.isfinite(one):
                raise ValueError("a number that is not finite")
            elif isinstance(one, str) and not one.isascii():
                one.encode()  # UnicodeEncodeError is a ValueError
        if not below:
            return
        level = below
    raise RecursionError
