"""Names that become part of a path: of runs, and of files inside a data set. No path is a name."""

from collections.abc import Collection
from typing import Annotated

from pydantic import AfterValidator

from ecgan.errors import is_odd

MAX_BYTES = 200  # a file system's 255, less what names of temporary files add


def odd_characters(text: str, allowed: Collection[str] = ()) -> str:
    """Odd characters of a text, as of :func:`ecgan.errors.is_odd`, escaped; empty without any."""
    found = {character for character in text if character not in allowed and is_odd(character)}
    return ", ".join(sorted(ascii(character)[1:-1] for character in found)[:5])


def checked_name(name: str) -> str:
    """The name, if it can be that of one file or folder and of nothing else.

    Raises:
        ValueError: it is empty, too long, hidden, ``.`` or ``..``, or has a separator or characters
            that cannot be shown.
    """
    if not name.strip():
        raise ValueError("expected a name, got an empty one")
    odd = odd_characters(name)
    if odd:
        raise ValueError(f"a name must not have the characters {odd}")
    if "/" in name or "\\" in name:
        raise ValueError("a name, not a path: it must not have / or \\")
    if name.startswith("."):
        raise ValueError("a name must not begin with a dot")
    if len(name.encode()) > MAX_BYTES:
        raise ValueError(f"a name of more than {MAX_BYTES} bytes; give a shorter one")
    return name


Name = Annotated[str, AfterValidator(checked_name)]
"""A name of one file or folder; see :func:`checked_name`."""
