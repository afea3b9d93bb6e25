"""Batches for training; every random draw depends on the seed and the position alone.

A run trains on an endless row of positions 0, 1, 2, ...; position p shows item
``permutation(p // len)[p % len]``, cropped and mirrored as ``(seed, p)`` says. So the same images
come whatever the number of loader processes or ranks, and wherever the run was resumed.

Shape legend:
    B  images in the batch      H, W  height and width
"""

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, field
from fractions import Fraction
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ecgan.data import datasets, transforms
from ecgan.data.datasets import Item
from ecgan.data.transforms import Edges, Sample, Size
from ecgan.errors import UserError
from ecgan.labels import LabelSpace
from ecgan.runtime.processes.ordered import Packed, in_processes
from ecgan.seeds import NumpyStream, numpy_generator

CACHE_BYTES = 2**30  # resized samples kept in memory by a loader without processes


class Batch(NamedTuple):
    """Samples side by side, as bytes; floats are made on the device."""

    keys: tuple[str, ...]
    positions: Tensor  # (B,), int64
    labels: Tensor  # (B, H, W), uint8; int32 with more than 255 classes
    images: Tensor | None  # (B, 3, H, W), uint8; None where the items have no photos
    edges: Tensor | None  # (B, 1, H, W), uint8: 0 or 255, from a folder also between
    boundary: Tensor | None  # (B, 1, H, W), uint8: 0 or 1


@dataclass(eq=False)
class TripleDataset(Dataset[Sample]):
    """Items of a data set, read and prepared for training, by position.

    Attributes:
        items: items sorted by key.
        space: class list.
        dataset: directory structure, which decides what the numbers in label files mean.
        height: height of the prepared samples.
        width: width of the prepared samples.
        resize_to: size before the random crop; None: no crop.
        flip: mirror half of the training samples.
        train: shuffle, crop and mirror; else positions are items in the order of their keys.
        seed: seed of every draw.
        edges: source of edges; none: samples have no edges.
        boundary: read instance ids and mark their boundaries.
    """

    items: Sequence[Item]
    space: LabelSpace
    dataset: str
    _: KW_ONLY
    height: int
    width: int
    resize_to: Size | None = None
    flip: bool = False
    train: bool = True
    seed: int = 0
    edges: Edges = "canny"
    boundary: bool = False
    _order: tuple[int, np.ndarray] | None = field(default=None, init=False)  # epoch, permutation
    _cache: dict[int, Sample] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Raise UserError where there is no item."""
        if not self.items:
            raise UserError("the data set is empty: there is nothing to load")

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the items."""
        return tuple(item.key for item in self.items)

    @property
    def size(self) -> Size:
        """Height and width of the prepared samples."""
        return self.height, self.width

    @property
    def size_before_crop(self) -> Size:
        """Height and width that items are resized to."""
        return self.resize_to or self.size

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> Sample:
        return self.load(position)

    def load(self, position: int) -> Sample:
        """Training sample at a position of the endless row; the plain one if not ``train``."""
        if not self.train:
            return self.load_plain(position)
        index = self.index(position)
        rng = numpy_generator(self.seed, NumpyStream.CROP, position)
        return transforms.cut(
            self._resized(index), self.size, flip=self.flip, edges=self.edges, rng=rng
        )

    def load_plain(self, index: int) -> Sample:
        """Item ``index`` in key order: the whole picture at the training size, not mirrored."""
        sample = self._resized(index) if self.size_before_crop == self.size else self._read(index)
        return transforms.cut(sample, self.size, edges=self.edges)

    def index(self, position: int) -> int:
        """Index of the item at a position; every epoch has its own permutation."""
        epoch, offset = divmod(position, len(self))
        if self._order is None or self._order[0] != epoch:
            rng = numpy_generator(self.seed, NumpyStream.ORDER, epoch)
            self._order = epoch, rng.permutation(len(self))
        return int(self._order[1][offset])

    def keep_in_memory(self) -> None:
        """Keep resized samples from now on, if all of them fit into ``CACHE_BYTES``."""
        height, width = self.size_before_crop
        if self._cache is None and len(self) * height * width * 6 <= CACHE_BYTES:
            self._cache = {}

    def _resized(self, index: int) -> Sample:
        if self._cache is None:
            return self._read(index, self.size_before_crop)
        if index not in self._cache:
            self._cache[index] = self._read(index, self.size_before_crop)
        return self._cache[index]

    def _read(self, index: int, size: Size | None = None) -> Sample:
        item = self.items[index]
        sample = Sample(
            item.key,
            datasets.read_label(item, self.space, self.dataset),
            image=None if item.image is None else datasets.read_image(item),
            edge=datasets.read_edge(item) if self.edges == "folder" else None,
        )
        instances = datasets.read_instances(item) if self.boundary else None
        return transforms.resize(sample, size or self.size, instances)


@dataclass(eq=False)
class Mixture:
    """Pairs, and photos whose label maps a segmenter has read, in one endless row.

    Of L pairs and U such photos, U / (L + U) of the positions show a photo, evenly spread: each is
    seen as often as a pair. At most every other one does: where pairs are few, half of a batch
    still has label maps that are right, so that what the segmenter mistakes does not become what
    both networks learn of the classes.

    Attributes:
        pairs: pairs.
        photos: photos with the label maps that were read; of the same size, edges and boundary.
    """

    pairs: TripleDataset
    photos: TripleDataset

    @property
    def share(self) -> Fraction:
        """Share of the positions that show a photo."""
        return share_of_photos(len(self.pairs), len(self.photos))

    def load(self, position: int) -> Sample:
        """Training sample at a position of the row."""
        before, after = (int(self.share * end) for end in (position, position + 1))
        if after > before:
            return self.photos.load(before)
        return self.pairs.load(position - before)

    def keep_in_memory(self) -> None:
        """As of :meth:`TripleDataset.keep_in_memory`, of both."""
        self.pairs.keep_in_memory()
        self.photos.keep_in_memory()


def share_of_photos(pairs: int, photos: int) -> Fraction:
    """Share of photos without label maps in a training; see :class:`Mixture`."""
    return min(Fraction(1, 2), Fraction(photos, pairs + photos))


def batches(
    dataset: TripleDataset | Mixture,
    start: int,
    batch: int,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin: bool = False,
) -> Generator[Batch, None, None]:
    """Endless batches of one rank.

    Args:
        dataset: data set to load from, or two.
        start: images seen so far by all ranks: the first position.
        batch: images a step, over all ranks.
        rank: this rank; it gets the ``rank``-th share of every step's positions.
        world: number of ranks.
        workers: loader processes; 0 loads here, and keeps small data sets in memory.
        pin: page-locked memory, for copies to a GPU.
    """
    if batch % world:
        raise UserError(f"train.batch ({batch}) must divide by the number of ranks ({world})")
    share = batch // world
    steps = range(start + rank * share, sys.maxsize, batch)
    if workers == 0:
        dataset.keep_in_memory()
    return _load(_Loading(dataset.load, share), steps, workers=workers, pin=pin)


def ordered_batches(
    dataset: TripleDataset, batch: int, *, workers: int = 0, limit: int | None = None
) -> Iterator[Batch]:
    """Batches of all items once, by key, not augmented; the last may be smaller.

    Args:
        dataset: data set to load from; it may be one that is being trained on.
        batch: images in a batch.
        workers: loader processes.
        limit: number of items, the first by key; default: all.
    """
    stop = len(dataset) if limit is None else min(limit, len(dataset))
    return _load(_Loading(dataset.load_plain, batch, stop), range(0, stop, batch), workers=workers)


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Copy of a batch on another device; asynchronous from pinned memory."""
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in _tensors(batch)}
    return batch._replace(**moved)


def to_images(pixels: Tensor) -> Tensor:
    """Bytes -> float32 in [-1, 1], of any shape."""
    return pixels.float() / 127.5 - 1


@dataclass(frozen=True)
class _Loading:
    """First position -> batch, in a loader process or here."""

    load: Callable[[int], Sample]
    share: int
    stop: int = sys.maxsize

    def batch(self, first: int) -> Batch:
        positions = range(first, min(first + self.share, self.stop))
        try:
            return collate([self.load(position) for position in positions], positions)
        except MemoryError as error:
            raise UserError(
                f"no memory for a batch of {len(positions)} images; lower data.workers, "
                "train.batch or the size"
            ) from error

    def __call__(self, task: int) -> Packed:
        """Batch as a process sends it; a UserError is a value, or it would come as a traceback."""
        try:
            batch = self.batch(task)
        except UserError as error:
            return error, ()
        tensors = dict(_tensors(batch))
        return (batch.keys, tuple(tensors)), [tensor.numpy() for tensor in tensors.values()]


def _load(
    loading: _Loading, steps: range, *, workers: int, pin: bool = False
) -> Generator[Batch, None, None]:
    pin = pin and torch.cuda.is_available()
    if workers == 0:
        for first in steps:
            batch = loading.batch(first)
            yield (
                batch._replace(**{n: x.pin_memory() for n, x in _tensors(batch)}) if pin else batch
            )
        return
    found = in_processes(loading, steps, workers, pin=pin, start=_start_worker)
    with closing(found):
        for head, tensors in found:
            if isinstance(head, UserError):
                raise head
            keys, names = head
            absent = dict.fromkeys(Batch._fields)
            yield Batch(**{**absent, "keys": keys, **dict(zip(names, tensors, strict=True))})


def _tensors(batch: Batch) -> list[tuple[str, Tensor]]:
    return [(name, x) for name, x in batch._asdict().items() if isinstance(x, Tensor)]


def _start_worker() -> None:
    cv2.setNumThreads(0)  # OpenCV's threads do not survive a fork


def collate(samples: Sequence[Sample], positions: Sequence[int]) -> Batch:
    """Batch of samples of one size."""
    labels = np.stack([sample.label for sample in samples])
    if labels.dtype != np.uint8:  # torch knows few operations on uint16
        labels = labels.astype(np.int32)
    images = _stack([sample.image for sample in samples])
    return Batch(
        keys=tuple(sample.key for sample in samples),
        positions=torch.tensor(positions),
        labels=torch.from_numpy(labels),
        images=None if images is None else images.permute(0, 3, 1, 2).contiguous(),
        edges=_with_channel(_stack([sample.edge for sample in samples])),
        boundary=_with_channel(_stack([sample.boundary for sample in samples])),
    )


def _stack(arrays: Sequence["np.ndarray | None"]) -> Tensor | None:
    there = [array for array in arrays if array is not None]
    if not there:
        return None
    assert len(there) == len(arrays), "some items have photos, edges or instances, others not"
    return torch.from_numpy(np.stack(there))


def _with_channel(maps: Tensor | None) -> Tensor | None:
    return None if maps is None else maps[:, None]
