"""Samples and their records: what a shard holds of each, and its pixels read back.

One **sample** is an image, its label map, its edge map and a :class:`Record`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import Field, TypeAdapter, ValidationError

from ecgan.errors import UserError, first_line
from ecgan.labels import Labels
from ecgan.reading.documents import schema_error
from ecgan.reading.pictures import PICTURE_ERRORS, open_image
from ecgan.shards.codecs import Pixels
from ecgan.shards.files.names import SampleKey
from ecgan.shards.manifest import Count, Text

_MAP_MODES = ("L", "P", "I;16", "I")
_Share = Annotated[float, Field(ge=-1, le=1)]


@dataclass(frozen=True)
class Record:
    """What is known of a sample beside its pixels.

    Every value is always there and of one type: readers infer a schema from the first samples.
    """

    key: SampleKey  # of the sample, unique in the data set
    source: Text  # key of the layout
    style: Count  # number of the style, from 0
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]  # that the style was drawn from
    width: Count
    height: Count
    class_pixels: tuple[Count, ...]  # of each class in the label, in order of the ids
    consistency: _Share = -1.0  # score of the label filter; -1 without one
    kept_fraction: _Share = 1.0  # share of the labelled pixels that the label filter kept
    variation: Text = ""  # what was done to the layout before synthesis; empty for the layout
    digital_source_type: Text = ""  # IPTC's word for synthetic media; empty without provenance

    def to_json(self) -> dict[str, Any]:
        value = {name: getattr(self, name) for name in RECORD_FIELDS}
        return {**value, "class_pixels": list(self.class_pixels)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Record":
        """Read one back; other fields are passed over.

        Raises:
            UserError: fields are missing, or of other values; "its record" stands for the place.
        """
        known = {name: value[name] for name in RECORD_FIELDS if value.get(name) is not None}
        if missing := [name for name in RECORD_FIELDS if name not in known]:
            raise UserError(f"its record lacks {', '.join(missing)}; make the data set again")
        try:
            return _ADAPTER.validate_python(known)
        except ValidationError as error:
            raise schema_error(error, "its record", "make the data set again") from None


RECORD_FIELDS = (
    *("key", "source", "style", "seed", "width", "height", "consistency", "kept_fraction"),
    *("variation", "digital_source_type", "class_pixels"),
)
assert set(RECORD_FIELDS) == {f.name for f in fields(Record)}
_ADAPTER = TypeAdapter(Record)


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

    def with_pixels(self, image: Pixels, label: Labels, edge: Pixels | None) -> "ShardSample":
        """The sample with its files decoded; shapes as of :class:`ShardSample`."""
        source, style = self.record.get("source"), self.record.get("style")  # or columns of others
        return ShardSample(
            key=self.key,
            source=source if isinstance(source, str) else self.key,
            style=style if isinstance(style, int) else 0,
            image=image,
            label=label,
            edge=edge,
        )


class ShardSample(NamedTuple):
    """A sample read back."""

    key: str
    source: str
    style: int
    image: Pixels  # (H, W, 3)
    label: Labels  # (H, W)
    edge: Pixels | None  # (H, W); None in a plain folder


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
    image = _part(raw, place, "image", raw.image, is_map=False).convert("RGB")
    label = np.asarray(_part(raw, place, "label", raw.label))
    return raw.with_pixels(
        np.asarray(image),
        label if label.dtype.itemsize == 1 else label.astype(np.uint16),
        edge_of(raw, place),
    )


def edge_of(raw: Raw, place: str) -> Pixels | None:
    """The edge map of a sample, (H, W), None where it has none; arguments and errors as above."""
    if raw.edge is None:
        return None
    return np.asarray(_part(raw, place, "edge", raw.edge)).astype(np.uint8)


def _part(raw: Raw, place: str, member: str, data: bytes, *, is_map: bool = True) -> Image.Image:
    try:
        return opened(data, is_map=is_map)
    except ValueError as error:
        where = f"{place}: sample {raw.key}: its {member}"
        raise UserError(f"{where} {error}; replace it, or remove the sample") from error


def opened(
    data: bytes, *, size: tuple[int, int] | None = None, is_map: bool = False
) -> Image.Image:
    """A picture, decoded.

    Args:
        data: content of its file.
        size: width and height that it must have, before it is decoded; None: any.
        is_map: whether it must be one of numbers, without colours.

    Raises:
        ValueError: words that continue "its image": of another format, damaged or too large.
    """
    try:
        image = open_image(data)
        misfit = _misfit(image, size, is_map=is_map)
        if not misfit:
            image.load()
    except UnidentifiedImageError:
        found = f"({len(data)} bytes) is no picture" if data else "is empty"
        raise ValueError(found) from None
    except PICTURE_ERRORS as error:
        raise ValueError(f"cannot be read: {first_line(error)}") from error
    if misfit:
        raise ValueError(misfit)
    return image


def _misfit(image: Image.Image, size: tuple[int, int] | None, *, is_map: bool) -> str:
    if size is not None and image.size != size:
        width, height = image.size
        return f"is of {width} x {height}, expected {size[0]} x {size[1]}"
    if is_map and image.mode not in _MAP_MODES:
        return (
            f"must be greyscale, this one has mode {image.mode}; convert it, pixel = class id "
            "(training reads masks of colours, samples carry ids)"
        )
    return ""
