"""Documents of a data set: how its layouts are named by their content.

A layout is known by the first 64 bits of its files' SHA-256, as 16 hexadecimal digits for the label
map and 16 more for an instance map beside it.
"""

import hashlib
from collections.abc import Iterable

_DIGITS = 16  # of each file's SHA-256


def layout_digest(label: str, instances: str | None = None) -> str:
    """Digest of a layout's files, from their SHA-256 in hexadecimal."""
    return label[:_DIGITS] + ("" if instances is None else instances[:_DIGITS])


def label_digest(layout: str) -> str:
    """Part of a layout's digest that its label map decides."""
    return layout[:_DIGITS]


def layouts_digest(layouts: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of a command's layouts: of their keys and digests, in order of the keys."""
    lines = (f"{key} {digest}" for key, digest in sorted(layouts))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
