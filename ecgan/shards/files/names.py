"""Names in a data set: of samples, splits, shards and files.

What a file of a data set says is never taken as a path. It is checked against the one form in which
we write such a name, and paths are made of parts that were checked. The form is what readers of
other programs take for one key and one ending.
"""

import hashlib
import re
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field

from ecgan.runtime.storage import HIDDEN

Format = Literal["webdataset", "parquet", "folder"]
ImageFormat = Literal["jpg", "png", "webp"]
IMAGE_FORMATS: tuple[ImageFormat, ...] = ("jpg", "png", "webp")

_WORD = "[A-Za-z0-9_-]+"
_SHARD = re.compile(rf"(?:data/)?({_WORD})-([0-9]{{5,12}})(\.tar|\.parquet|)")
_BY_ENDING: dict[str, Format] = {".tar": "webdataset", ".parquet": "parquet", "": "folder"}
_COMMIT = re.compile(r"([0-9]{6,12})\.json")
_MAX_KEY = 80  # a name in a USTAR archive has at most 100 characters
MAX_SHARDS = 1_000_000  # of a data set: their names have six digits


# Keys and splits


def is_key(text: object) -> bool:
    """Whether readers take it for one key: a dot, for example, would merge samples."""
    return isinstance(text, str) and re.fullmatch(_WORD, text) is not None


def _checked_key(text: str) -> str:
    if not is_key(text):
        raise ValueError(f"expected letters, digits, _ and -, got {text[:40]!r}")
    return text


Key = Annotated[str, Field(max_length=4000), AfterValidator(_checked_key)]  # of a layout
SampleKey = Annotated[str, Field(max_length=200), AfterValidator(_checked_key)]
Split = Annotated[str, Field(max_length=60), AfterValidator(_checked_key)]


def sample_key(source: str, style: int) -> str:
    """Key of a sample; injective for sources of at most 80 characters, hashed beyond."""
    _checked_key(source)
    suffix = f"-s{style:03d}"
    if len(source) + len(suffix) > _MAX_KEY:
        digest = hashlib.sha256(source.encode()).hexdigest()[:12]
        source = f"{source[: _MAX_KEY - len(suffix) - 13]}-{digest}"
    return source + suffix


# Shards


class ShardParts(NamedTuple):
    """What the name of a shard says."""

    data_format: Format
    split: str
    number: int


def shard_name(data_format: Format, split: str, number: int) -> str:
    """Name of a shard. It does not hold the number of shards: a data set may grow."""
    match data_format:
        case "webdataset":
            return f"data/{split}-{number:06d}.tar"
        case "parquet":
            return f"data/{split}-{number:05d}.parquet"
        case "folder":
            return f"{split}-{number:06d}"


def shard_parts(name: str) -> ShardParts:
    """What the name of a shard says.

    Raises:
        ValueError: it is not of the form of :func:`shard_name`.
    """
    found = _SHARD.fullmatch(name)
    if found is not None:
        parts = ShardParts(_BY_ENDING[found[3]], found[1], int(found[2]))
        if shard_name(*parts) == name:
            return parts
    raise ValueError(f"expected a shard's name such as data/train-000000.tar, got {name[:60]!r}")


def _checked_shard(name: str) -> str:
    shard_parts(name)
    return name


ShardName = Annotated[str, Field(max_length=200), AfterValidator(_checked_shard)]


# Files of the folder format, and our own


def listing_name(name: str) -> str:
    """The file that lists the samples of a shard of the folder format."""
    return f"{HIDDEN}/records/{name}.jsonl"


def sample_files(split: str, key: str, image_format: str) -> tuple[str, str, str]:
    """Image, label and edge map of a sample of the folder format.

    Raises:
        ValueError: a part has another form than such names have.
    """
    _checked_key(split)
    _checked_key(key)
    if image_format not in IMAGE_FORMATS:
        raise ValueError(f"expected {', '.join(IMAGE_FORMATS)}, got {image_format[:20]!r}")
    return (
        f"images/{split}/{key}.{image_format}",
        f"masks/{split}/{key}.png",
        f"edges/{split}/{key}.png",
    )


def commit_name(number: int) -> str:
    """The file whose presence commits a shard."""
    return f"{HIDDEN}/shards/{number:06d}.json"


def committed_number(name: str) -> int | None:
    """Number of the shard that a file of ``.ecgan/shards`` commits; None for other files."""
    found = _COMMIT.fullmatch(name)
    number = None if found is None else int(found[1])
    return number if number is not None and commit_name(number).endswith(f"/{name}") else None
