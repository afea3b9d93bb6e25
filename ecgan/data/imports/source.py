"""What the readers of annotations share: regions and photos, damaged files, names and folders.

A reader collects faults, so that all are told at once, and counts whatever it leaves out: nothing
of a source vanishes without a word.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from ecgan.errors import UserError, shown
from ecgan.labels import SPLIT_FOLDERS
from ecgan.reading.documents import check_file
from ecgan.reading.places import relative_name

Points = npt.NDArray[np.float64]  # (points, 2): x, y in pixels, 0 at the photo's left and top edge
Mask = npt.NDArray[np.bool_]  # (height, width)
Color = tuple[int, int, int]

MAX_BYTES = 2 << 30  # of one annotation file, which is held in memory


@dataclass(frozen=True)
class Region:
    """One object or area of a photo; later regions of a photo lie above earlier ones.

    Attributes:
        label: name of its class; None makes the pixels unlabelled.
        polygons: outlines; the region is all that lies in any of them.
        mask: its pixels, decoded when they are painted; instead of polygons.
        shares: whether the polygons are in shares of the photo's size, not in pixels.
    """

    label: str | None
    polygons: tuple[Points, ...] = ()
    mask: Callable[[], Mask] | None = None
    shares: bool = False


@dataclass
class Photo:
    """One photo with its regions.

    Attributes:
        name: path below ``images/``, from :func:`safe_name`.
        source: where the annotations name it, for messages.
        path: file; None where there is none.
        content: bytes of the file where the annotations hold them themselves.
        size: height and width that the annotations say; None where they do not.
        split: folder of its split; empty where the source has no splits.
        regions: in the order in which they are painted.
    """

    name: str
    source: str
    path: Path | None = None
    content: bytes | None = None
    size: tuple[int, int] | None = None
    split: str = ""
    regions: list[Region] = field(default_factory=list)


@dataclass
class Annotations:
    """What a reader found.

    Attributes:
        rule: which region lies above which, in words.
        classes: names in order of their ids, with their colours where the source has some.
        photos: in the order of the source.
        notes: what was left out or changed, and how often.
        faults: what keeps the source from being imported.
    """

    rule: str
    classes: dict[str, Color | None] = field(default_factory=dict)
    photos: list[Photo] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Content of a JSON file.

    Raises:
        UserError: unreadable, too large, nested too deeply, not JSON.
    """
    try:
        check_file(path)
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{path}: {size >> 20} MiB; split it: up to {MAX_BYTES >> 20} are read")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error
    except RecursionError:
        raise UserError(f"{path}: nested too deeply to be annotations; export it again") from None
    except ValueError as error:
        raise UserError(f"{path}: not whole JSON ({error}); export or copy it again") from None


def safe_name(value: object, where: str, faults: list[str]) -> str | None:
    """Relative path of a photo as annotations name it; None, and a fault, where it is none.

    Backslashes of Windows become slashes. Absolute paths and ``..`` would lead out of the folder
    that is written.
    """
    if not isinstance(value, str) or not value.strip():
        faults.append(f"{where}: expected the name of a photo, got {shown(value)}")
        return None
    path = PurePosixPath(value.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", value) or not path.name:
        faults.append(f"{where}: {shown(value)} leads out of the folder; make it a relative path")
        return None
    try:
        relative_name(path.as_posix())
    except ValueError:
        odd = f"{where}: {shown(value)} has characters that are not seen, or too many; rename it"
        faults.append(odd)
        return None
    return path.as_posix()


def find_photo(name: str, roots: Sequence[Path]) -> Path | None:
    """First file of this relative path below one of the folders."""
    return next((root / name for root in roots if is_file(root / name)), None)


def is_file(path: Path) -> bool:
    """Whether there is such a file; there is none of a name that the system does not take."""
    try:
        return path.is_file()
    except OSError:
        return False


def split_of(name: str | None) -> str:
    """Folder of a split: train, val, test for their usual spellings, else the name, cleaned."""
    plain = re.sub(r"[^a-z0-9_-]+", "_", (name or "").lower()).strip("_")
    bare = plain.rstrip("0123456789").rstrip("_-")
    for split, spellings in SPLIT_FOLDERS.items():
        if bare in spellings:
            return split
    return "" if plain == "default" else plain


def points_of(values: object, where: str, faults: list[str]) -> Points | None:
    """Points of x, y, x, y, ... or of pairs; None, and a fault, where they are damaged."""
    try:
        flat = np.asarray(values, np.float64).ravel()
    except (TypeError, ValueError, OverflowError):
        flat = np.full(1, np.nan)
    if len(flat) % 2 or not np.isfinite(flat).all():
        faults.append(f"{where}: expected pairs of numbers x, y; correct or remove the polygon")
        return None
    return flat.reshape(-1, 2)


def size_of(height: object, width: object) -> tuple[int, int] | None:
    """Height and width; None where either is missing or no size."""
    try:
        size = int(height), int(width)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def objects_of(
    value: object, where: str, faults: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a JSON list, each with its place; what is none becomes a fault."""
    if not isinstance(value, list):
        faults.append(f"{where}: expected a list, got {type(value).__name__}; export it again")
        return
    for index, entry in enumerate(value):
        place = f"{where}[{index}]"
        if isinstance(entry, dict):
            yield place, entry
        else:
            faults.append(f"{place}: expected an object, got {shown(entry)}; export it again")
