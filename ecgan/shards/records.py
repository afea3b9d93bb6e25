"""Samples and their records: what a shard holds of each, and its pixels read back.

One **sample** is an image, its label map, its edge map and a :class:`Record`.
"""

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ecgan.errors import UserError
from ecgan.labels import Labels
from ecgan.shards.codecs import DIGITAL_SOURCE_TYPE, Pixels

_KEY = re.compile(r"[A-Za-z0-9_-]+")
_MAP_MODES = ("L", "P", "I;16", "I")
_MAX_KEY = 80  # a name in a USTAR archive has at most 100 characters
DIGITAL_SOURCE = DIGITAL_SOURCE_TYPE.rpartition("/")[2]  # IPTC's word for what a network made


@dataclass(frozen=True)
class Record:
    """What is known of a sample beside its pixels.

    Every value is always there and of one type: readers infer a schema from the first samples.
    """

    key: str  # of the sample, unique in the data set
    source: str  # key of the layout
    style: int  # number of the style, from 0
    seed: int  # that the style was drawn from
    width: int
    height: int
    class_pixels: tuple[int, ...]  # of each class in the label, in order of the ids
    consistency: float = -1.0  # score of the label filter; -1 without one
    kept_fraction: float = 1.0  # share of the labelled pixels that the label filter kept
    variation: str = ""  # what was done to the layout before synthesis; empty for the layout itself
    digital_source_type: str = ""  # IPTC's word for synthetic media; empty without provenance

    def to_json(self) -> dict[str, Any]:
        value = {name: getattr(self, name) for name in RECORD_FIELDS}
        return {**value, "class_pixels": list(self.class_pixels)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Record":
        """Read one back; KeyError where a field is missing, others are passed over."""
        known = {name: value[name] for name in RECORD_FIELDS}
        return cls(**{**known, "class_pixels": tuple(value["class_pixels"])})


RECORD_FIELDS = (
    *("key", "source", "style", "seed", "width", "height", "consistency", "kept_fraction"),
    *("variation", "digital_source_type", "class_pixels"),
)
assert set(RECORD_FIELDS) == {f.name for f in fields(Record)}


class Encoded(NamedTuple):
    """A sample in the bytes of its files."""

    record: Record
    image: bytes
    label: bytes  # PNG
    edge: bytes  # PNG


class Raw(NamedTuple):
    """A sample as it lies in a shard, of ours or of another program."""

    key: str
    record: dict[str, Any]
    image: bytes
    label: bytes
    edge: bytes | None
    image_format: str  # ending of the image's name


class ShardSample(NamedTuple):
    """A sample read back."""

    key: str
    source: str
    style: int
    image: Pixels  # (H, W, 3)
    label: Labels  # (H, W)
    edge: Pixels | None  # (H, W); None in a plain folder


# Keys


def is_key(text: str) -> bool:
    """Whether readers take it for one key: a dot, for example, would merge samples."""
    return _KEY.fullmatch(text) is not None


def sample_key(source: str, style: int) -> str:
    """Key of a sample; injective for sources of at most 80 characters, hashed beyond."""
    assert is_key(source), f"not a key: {source!r}"
    suffix = f"-s{style:03d}"
    if len(source) + len(suffix) > _MAX_KEY:
        digest = hashlib.sha256(source.encode()).hexdigest()[:12]
        source = f"{source[: _MAX_KEY - len(suffix) - 13]}-{digest}"
    return source + suffix


def count_classes(label: Labels, num_classes: int) -> tuple[int, ...]:
    """Pixels of each class, ``num_classes`` numbers; unlabelled pixels are left out."""
    return tuple(np.bincount(label.ravel(), minlength=num_classes)[:num_classes].tolist())


# Pixels


def decoded(raw: Raw, place: str) -> ShardSample:
    """The pixels of a sample.

    Args:
        raw: of any reader.
        place: of its shard, for the message.

    Raises:
        UserError: a part of it is damaged, or no map of class ids.
    """

    def decode(
        member: str, data: bytes, read: Callable[[Image.Image], npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        where = f"{place}: sample {raw.key}: its {member}"
        try:
            with Image.open(io.BytesIO(data)) as opened:
                return read(opened)
        except UnidentifiedImageError as error:
            found = "is empty" if not data else f"({len(data)} bytes) is no picture"
            raise UserError(f"{where} {found}; replace it, or remove the sample") from error
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise UserError(f"{where}: {error}") from error

    source, style = raw.record.get("source"), raw.record.get("style")  # or columns of others
    return ShardSample(
        key=raw.key,
        source=source if isinstance(source, str) else raw.key,
        style=style if isinstance(style, int) else 0,
        image=decode("image", raw.image, _as_image),
        label=decode("label", raw.label, _as_map),
        edge=None if raw.edge is None else decode("edge", raw.edge, _as_edge),
    )


def _as_image(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"))


def _as_edge(image: Image.Image) -> Pixels:
    if image.mode not in _MAP_MODES:
        raise ValueError(f"an edge map must be greyscale, this one has mode {image.mode}")
    return np.asarray(image).astype(np.uint8)


def _as_map(image: Image.Image) -> Labels:
    if image.mode not in _MAP_MODES:
        raise ValueError(
            f"a map of class ids must be greyscale, this one has mode {image.mode}; convert it, "
            "pixel = class id (training reads masks of colours, samples carry ids)"
        )
    values = np.asarray(image)
    return values.astype(np.uint16) if image.mode.startswith("I") else values
