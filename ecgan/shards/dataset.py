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

from ecgan.errors import UserError
from ecgan.labels import SPLIT_FOLDERS, clean_key
from ecgan.runtime.storage import Folder, Store, open_store
from ecgan.shards import readers
from ecgan.shards.manifest import read_manifest
from ecgan.shards.records import Raw, ShardSample, decoded

Place = str | Path | Store


def read(place: Place) -> Iterator[ShardSample]:
    """Samples of a data set in their order, decoded; see :func:`read_raw`."""
    store = open_store(place)
    for raw in read_raw(store):
        yield decoded(raw, str(store))


def read_raw(place: Place) -> Iterator[Raw]:
    """Samples of a data set in their order, still encoded.

    Reads what ``ecgan sample`` and ``ecgan augment`` write; a folder of tars or of Parquet files
    with the same fields; or a plain folder, ``images/`` beside ``labels/`` or ``masks/``, paired by
    stem (the key and source is the stem, the style 0).

    Raises:
        UserError: no such folder, nothing that we read in it, or a damaged file.
    """
    store = open_store(place)
    names = shard_names(store)
    for name in names:
        yield from readers.read_raw(store, name)
    if not names:
        for source in _plain_files(store):
            yield source.load()


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


class _PlainFile(NamedTuple):
    """A pair in a plain folder."""

    key: str
    image: Path
    label: Path

    def load(self) -> Raw:
        try:
            image, label = self.image.read_bytes(), self.label.read_bytes()
        except OSError as error:
            raise UserError(f"{self.image}, {self.label}: cannot read: {error.strerror}") from error
        return Raw(self.key, {}, image, label, None, self.image.suffix.lstrip(".").lower())


def _plain_files(store: Store) -> list[_PlainFile]:
    expected = (
        f"{store}: no samples here; expected data/*.tar, data/*.parquet, or images/ beside "
        "labels/ or masks/"
    )
    if not isinstance(store, Folder):
        raise UserError(expected)
    root = store.path
    folder = next((root / n for n in ("labels", "masks") if (root / n).is_dir()), None)
    if folder is None or not (root / "images").is_dir():
        raise UserError(expected)
    photos, maps = _by_key(root / "images"), _by_key(folder)
    if unpaired := sorted(photos.keys() ^ maps.keys()):
        raise UserError(
            f"{root}: {len(unpaired)} files have no partner in images/ or {folder.name}/, "
            f"first: {unpaired[0]}"
        )
    if not photos:
        raise UserError(f"{root}: images/ holds no image")
    return [_PlainFile(key, photos[key], maps[key]) for key in sorted(photos)]


def _by_key(folder: Path) -> dict[str, Path]:
    """Image files by the key that a data set's reader gives them: below the split's folder."""
    splits = {name for names in SPLIT_FOLDERS.values() for name in names}
    found: dict[str, Path] = {}
    suffixes = {".jpg", ".jpeg", ".png", ".webp"}
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes):
        relative = path.relative_to(folder).with_suffix("")
        inside = relative.parts[1:] if relative.parts[0] in splits else relative.parts
        key = clean_key("/".join(inside or relative.parts))
        if key in found:
            raise UserError(f"{found[key]} and {path} have the same key {key}; rename one of them")
        found[key] = path
    return found


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
        place: folder or address of the data set: ours, tars or Parquet files of others, or
            ``images/`` beside ``labels/`` or ``masks/``.

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
            return self._plain[index].load()
        number, row = self._find(index)
        return self._shards[number].raw(row)

    def _find(self, index: int) -> tuple[int, int]:
        """Number of the shard, and of the sample in it."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, index - int(self._starts[number])
