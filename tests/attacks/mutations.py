"""What a stranger puts where a value was expected: one list for every file of ours."""

import copy
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATHS = (
    "../../../victim/victim.txt",
    "../victim/victim.txt",
    "..",
    ".",
    "/etc/passwd",
    "a/b",
    "a\\..\\b",
    "nul\x00.tar",
    "~/x",
    "file:///etc/passwd",
    "",
)
TEXTS = (
    "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "two\nlines\rover",
    "\u202egnp.exe",
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "\ud800",
    "x" * 100_000,
    "{0.__class__}",
    "%s%n",
)
NUMBERS = (-1, 0, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), -0.0, 0.5)
TYPES = (None, True, [], {}, [[]], "text", 7, [None], {"a": None})


def nested(depth: int, kind: type = list) -> str:
    """JSON text of lists or objects, one in the other."""
    return "[" * depth + "]" * depth if kind is list else '{"a":' * depth + "1" + "}" * depth


def places(document: Any, path: tuple = ()) -> Iterator[tuple]:
    """Path of every value in a JSON document: keys and indices, the first three of a list."""
    yield path
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*path, key))
    elif isinstance(document, list):
        for index, value in enumerate(document[:3]):
            yield from places(value, (*path, index))


def replaced(document: Any, path: tuple, value: Any) -> Any:
    """A copy of a JSON document with another value at a path."""
    if not path:
        return value
    changed = copy.deepcopy(document)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return changed


def removed(document: Any, path: tuple) -> Any:
    """A copy of a JSON document without what was at a path."""
    changed = copy.deepcopy(document)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    return changed


def mutated(document: Any, rng: random.Random) -> tuple[str, Any]:
    """One value of a JSON document missing or of another kind, and what was done."""
    path = rng.choice([place for place in places(document) if place])
    where = ".".join(map(str, path))
    pool = rng.choice((PATHS, TEXTS, NUMBERS, TYPES, ("gone",)))
    value = rng.choice(pool)
    if value == "gone":
        return f"{where} is missing", removed(document, path)
    return f"{where} = {value!r}"[:120], replaced(document, path, value)


def as_pipe(path: Path) -> None:
    """A pipe in the place of a file."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def as_folder(path: Path) -> None:
    """A folder in the place of a file."""
    path.unlink(missing_ok=True)
    path.mkdir()


def as_link(path: Path, target: str | Path) -> None:
    """A link in the place of a file."""
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def damaged(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Bytes cut, emptied, flipped or with rubbish, and what was done."""
    at = rng.randrange(max(len(data), 1))
    return rng.choice(
        (
            (f"cut at {at}", data[:at]),
            ("empty", b""),
            (
                f"bit flipped at {at}",
                data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :] if data else b"",
            ),
            (f"zeros from {at}", data[:at] + bytes(len(data) - at)),
            ("not UTF-8", b"\xff\xfe" + data),
            ("nested", nested(100_000).encode()),
        )
    )
