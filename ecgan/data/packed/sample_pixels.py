"""Pixels of samples, of ours and of others: read as training reads photos and label maps.

Samples carry ids, so that a label map has one reading here: its numbers, or the indices of its
palette.
"""

import os
from dataclasses import dataclass

import numpy as np

from ecgan.data.files import images, label_maps
from ecgan.data.files.label_maps import Form
from ecgan.errors import UserError
from ecgan.labels import Labels
from ecgan.shards.codecs import Pixels
from ecgan.shards.records import Raw, ShardSample, edge_of


@dataclass(frozen=True)
class _Part:
    """A picture of a sample, which is read and named like a file."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name

    def read_bytes(self) -> bytes:
        return self.data

    def stat(self) -> os.stat_result:
        raise NotImplementedError(self.name)  # it is no file by itself


def decoded(raw: Raw, place: str) -> ShardSample:
    """The pixels of a sample.

    EXIF's orientation is applied to the image, unless only the stored pixels fit the label map.

    Args:
        raw: of any reader.
        place: of its shard, for the message.

    Raises:
        UserError: a part of it is damaged, or no map of class ids.
    """
    sample = f"{place}: sample {raw.key}: its"
    label = _label(_Part(f"{sample} label", raw.label))
    image = _image(_Part(f"{sample} image", raw.image), label.shape)
    return raw.with_pixels(image, label, edge_of(raw, place))


def _image(part: _Part, size: tuple[int, ...]) -> Pixels:
    image = images.read_photo(part)
    if image.shape[:2] == size or image.shape[1::-1] != size:
        return image
    stored = images.read_photo(part, upright=False)
    return stored if stored.shape[:2] == size else image


def _label(part: _Part) -> Labels:
    found = label_maps.read_raw(part)
    if found.form == Form.COLORS:
        raise UserError(
            f"{part} must be greyscale, this one has mode {found.mode}; convert it, pixel = class "
            "id (training reads masks of colours, samples carry ids)"
        )
    if found.transparent is not None:
        raise UserError(
            f"{part} has transparent pixels; save it without alpha, unlabelled pixels as 255"
        )
    values = found.values
    if values.dtype.itemsize == 1:
        return values.astype(np.uint8)
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise UserError(
            f"{part} holds numbers from {values.min()} to {values.max()}; class ids are those "
            "from 0 to 65535"
        )
    return values.astype(np.uint16)
