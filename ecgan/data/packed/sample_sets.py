"""Whole data sets read back: ours, WebDataset and Parquet of others, a plain folder of images.

:class:`SampleDataset` is the PyTorch ``Dataset`` over all of them, with random access.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ecgan.data.datasets import DataFolder, recognise
from ecgan.data.datasets import Item as Pair
from ecgan.data.files.images import bytes_of
from ecgan.data.packed.sample_pixels import decoded
from ecgan.errors import UserError
from ecgan.runtime.storage import Folder, Store, open_store
from ecgan.shards import readers
from ecgan.shards.manifest import read_manifest
from ecgan.shards.records import Raw, ShardSample

Place = str | Path | Store


def read(place: Place) -> Iterator[ShardSample]:
    """Samples of a data set in their order, decoded; see :func:`read_raw`."""
    store = open_store(place)
    for raw in read_raw(store):
        yield decoded(raw, str(store))


def read_raw(place: Place) -> Iterator[Raw]:
    """Samples of a data set in their order, still encoded.

    Reads what ``ecgan sample`` and ``ecgan augment`` write; a folder of tars or of Parquet files
    with the same fields; or a plain folder in any layout that training takes (the key and source is
    the name, the style 0).

    Raises:
        UserError: no such folder, nothing that we read in it, or a damaged file.
    """
    store = open_store(place)
    names = shard_names(store)
    for name in names:
        yield from readers.read_raw(store, name)
    if not names:
        for source in _plain_files(store):
            yield _load(source)


def shard_names(store: Store) -> list[str]:
    """Shards of a data set, by its manifest or, of others, by their endings; maybe none."""
    if isinstance(store, Folder) and not store.path.is_dir():
        raise UserError(f"{store}: no such folder")
    about = read_manifest(store)
    if about is not None:
        return [shard.name for shard in about.shards]
    for folder in ("data", ""):
        for suffix in (".tar", ".parquet"):
            found = sorted(name for name in store.sizes(folder) if name.endswith(suffix))
            if found:
                return [f"{folder}/{name}".lstrip("/") for name in found]
    return []


def _plain_files(store: Store) -> list[Pair]:
    """Pairs of a plain folder of any layout that ``train`` takes, of all its splits, by key."""
    expected = (
        f"{store}: no samples here; expected data/*.tar, data/*.parquet, or photos and label maps "
        "in folders such as images/ beside labels/"
    )
    if not isinstance(store, Folder) or recognise(store.path) != "folder":
        raise UserError(expected)
    folder = DataFolder("folder", store.path)
    splits = folder.splits() or [None]
    if splits == [None] and not folder.find(None, ["label"]).files["label"]:
        raise UserError(expected)
    pairs = [pair for split in splits for pair in folder.index(split)]
    known: dict[str, Pair] = {}
    for pair in pairs:
        if (first := known.setdefault(pair.key, pair)) is not pair:
            raise UserError(
                f"{first.label} and {pair.label} share the key {pair.key!r}; rename one of them"
            )
    return sorted(pairs, key=lambda pair: pair.key)


def _load(pair: Pair) -> Raw:
    assert pair.image is not None
    image, label = bytes_of(pair.image), bytes_of(pair.label)
    return Raw(pair.key, {}, image, label, None, _ending(image))


def _ending(content: bytes) -> str:
    """Ending of a picture's format, by its first bytes: columns have no names of files."""
    if content.startswith(b"\xff\xd8"):
        return "jpg"
    return "png" if content.startswith(b"\x89PNG") else "webp"


# PyTorch


class Item(NamedTuple):
    """A sample as :class:`SampleDataset` gives it; ``default_collate`` makes batches of it."""

    image: Tensor  # (3, H, W), float32 in [0, 1]
    label: Tensor  # (H, W), int64 class ids; 255 (65535 above 255 classes): unlabelled
    edge: Tensor  # (H, W), float32 in [0, 1]; zeros where the set has none
    key: str


class SampleDataset(Dataset[Item]):
    """A data set of samples for ``torch.utils.data.DataLoader``: any format, random access.

    The index is read once; a sample is read from its shard when it is asked for. Processes of a
    ``DataLoader`` each open the shards for themselves.

    Args:
        place: folder or address of the data set: ours, tars or Parquet files of others, or photos
            and label maps in any layout that training takes.

    Raises:
        UserError: as :func:`read_raw`.
    """

    def __init__(self, place: Place) -> None:
        self._store = open_store(place)
        self._shards = [readers.OpenShard(self._store, name) for name in shard_names(self._store)]
        self._plain = [] if self._shards else _plain_files(self._store)
        counts = [len(shard) for shard in self._shards] or [len(self._plain)]
        self._starts = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Item:
        sample = self.sample(index)
        edge = np.zeros(sample.label.shape, np.uint8) if sample.edge is None else sample.edge
        return Item(
            torch.from_numpy(sample.image.copy()).permute(2, 0, 1).float() / 255,
            torch.from_numpy(sample.label.astype(np.int64)),
            torch.from_numpy(edge.copy()).float() / 255,
            sample.key,
        )

    def sample(self, index: int) -> ShardSample:
        """A sample as arrays.

        Raises:
            IndexError: there is no such number.
            UserError: the sample is damaged.
        """
        return self.decoded(index, self.raw(index))

    def decoded(self, index: int, raw: Raw) -> ShardSample:
        """What :meth:`raw` gave, as arrays."""
        place = str(self._store)
        if self._shards:
            place = self._shards[self._find(index % len(self))[0]].place
        return decoded(raw, place)

    def raw(self, index: int) -> Raw:
        """A sample, still encoded; errors as of :meth:`sample`."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        if not self._shards:
            return _load(self._plain[index])
        number, row = self._find(index)
        return self._shards[number].raw(row)

    def _find(self, index: int) -> tuple[int, int]:
        """Number of the shard, and of the sample in it."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, index - int(self._starts[number])
