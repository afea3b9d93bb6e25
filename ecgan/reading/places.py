"""Places that somebody else names: files below a folder, and addresses that hold passwords."""

import re
from pathlib import Path

from ecgan.errors import UserError
from ecgan.reading.names import odd_characters

_MAX_NAME = 1000  # characters


def refuse_whole_disk(folder: Path) -> Path:
    """A folder that is to be searched, with its links followed.

    Raises:
        UserError: it is the root of a file system.
    """
    real = folder.resolve()
    if real == Path(real.anchor):
        raise UserError(
            f"{folder}: {'' if folder == real else f'leads to {real}, and '}holds the whole disk; "
            "give the folder of the photos and label maps"
        )
    return real


def relative_name(name: str) -> str:
    """A name below the root of a store, as it is.

    Raises:
        ValueError: it is absolute, has a part such as ``..`` or none, a backslash or an odd
            character, or is too long.
    """
    parts = name.split("/")
    if (
        any(part in {"", ".", ".."} for part in parts)
        or "\\" in name
        or odd_characters(name)
        or len(name) > _MAX_NAME
    ):
        raise ValueError(f"{name[:100]!r} is no name of a file below a folder")
    return name


def without_password(text: str) -> str:
    """Addresses in a text without what may be a secret: user, password and query."""
    text = re.sub(r"(?<=://)[^/\s]*@", "***@", text)
    return re.sub(r"(://[^\s?]*)\?\S*", r"\1?***", text)


class Address(str):
    """A place as it may be shown and stored, which opens the whole address.

    As a text it has no password. Whoever takes an address of the user makes one, so that no other
    code sees what is secret.
    """

    whole: str

    def __new__(cls, place: "str | Path") -> "Address":
        """Address of a folder or of an object store."""
        made = super().__new__(cls, without_password(str(place)))
        made.whole = place.whole if isinstance(place, Address) else str(place)
        return made
