"""Sources of measured images: real photos, and data sets of samples.

Shape legend:
    H, W  height and width
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ecgan.data.files.images import bytes_of
from ecgan.data.loader import TripleDataset
from ecgan.data.packed.sample_sets import SampleDataset
from ecgan.errors import UsageError, UserError
from ecgan.labels import Labels, LabelSpace
from ecgan.reading.places import Address
from ecgan.shards.manifest import Manifest, read_manifest


class Scene(NamedTuple):
    """Image and label map, generated or real."""

    key: str
    source: str  # key of the layout
    image: npt.NDArray[np.uint8]  # (H, W, 3)
    label: Labels  # (H, W), evaluation ids
    edge: npt.NDArray[np.uint8] | None = None  # (H, W), the generator's
    variant: str = ""  # augmentation of the layout


@dataclass
class Photos:
    """Real photos, resized as in training to the size of the samples.

    Attributes:
        dataset: photos with their labels.
        indices: positions of those that are measured.
    """

    dataset: TripleDataset
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def fingerprint(self, start: int, stop: int) -> bytes:
        """SHA-256 of the files of a chunk."""
        data = self.dataset
        about = [data.space.identity(), data.dataset, data.size]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for index in self.indices[start:stop]:
            item = self.dataset.items[index]
            digest.update(item.key.encode())
            for path in (item.image, item.label):
                assert path is not None
                digest.update(hashlib.sha256(bytes_of(path)).digest())
        return digest.digest()

    def scenes(self, start: int, stop: int) -> Iterator[Scene]:
        """Photos of a chunk."""
        return map(self.scene, range(start, min(stop, len(self))))

    def scene(self, index: int) -> Scene:
        """Photo by its number among those that are measured."""
        sample = self.dataset.load_plain(self.indices[index])
        assert sample.image is not None
        label = self.dataset.space.to_evaluation(sample.label)
        return Scene(sample.key, sample.key, sample.image, label)


@dataclass
class Samples:
    """A data set of samples, ours or of others.

    Attributes:
        place: folder or address.
        space: classes of its labels.
        size: height and width that all of its samples must have.
        is_evaluation: its labels are evaluation ids.
        limit: number of samples, the first in its order; None: all.
    """

    place: str
    space: LabelSpace
    size: tuple[int, int]
    is_evaluation: bool
    limit: int | None = None

    @cached_property
    def dataset(self) -> SampleDataset:
        """Its samples, by number."""
        return SampleDataset(self.place)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "dataset"}  # opened where it is read

    def __len__(self) -> int:
        whole = len(self.dataset)
        return whole if self.limit is None else min(self.limit, whole)

    def fingerprint(self, start: int, stop: int) -> bytes:
        """SHA-256 of the bytes of a chunk, and of the meaning of their labels."""
        about = [self.space.identity(), self.is_evaluation]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for index in range(start, stop):
            raw = self.dataset.raw(index)
            about = [raw.key, raw.record.get("source"), raw.record.get("variation")]
            digest.update(json.dumps(about, default=str).encode())
            for data in (raw.image, raw.label, raw.edge or b""):
                digest.update(hashlib.sha256(data).digest())
        return digest.digest()

    def scenes(self, start: int, stop: int) -> Iterator[Scene]:
        """Samples of a chunk; errors as of :meth:`scene`."""
        return map(self.scene, range(start, stop))

    def scene(self, index: int, lock: AbstractContextManager[Any] | None = None) -> Scene:
        """Sample by its number.

        Args:
            index: number of the sample.
            lock: held while the shard is read, where several threads do so.

        Raises:
            UserError: a damaged sample, another size, or a label that is no class.
        """
        with lock or nullcontext():
            raw = self.dataset.raw(index)
        sample, space = self.dataset.decoded(index, raw), self.space
        if sample.image.shape[:2] != self.size or sample.label.shape != self.size:
            raise UserError(
                f"{self.place}: {sample.key} is {sample.image.shape[0]} x "
                f"{sample.image.shape[1]} with a label of {sample.label.shape[0]} x "
                f"{sample.label.shape[1]}, the first sample is {self.size[0]} x {self.size[1]}; "
                "all must be of one size"
            )
        count = space.num_evaluation_classes if self.is_evaluation else space.num_classes
        known = (sample.label < count) | (sample.label == space.ignore_index)
        if not known.all():
            raise UserError(
                f"{self.place}: {sample.key} has the label {int(sample.label[~known][0])}, the "
                f"class list has 0-{count - 1} and {space.ignore_index}"
            )
        label = sample.label if self.is_evaluation else space.to_evaluation(sample.label)
        variant = str(raw.record.get("variation", ""))
        return Scene(sample.key, sample.source, sample.image, label, sample.edge, variant)


Source = Photos | Samples


@dataclass
class SampleSet:
    """A data set of samples to evaluate.

    Attributes:
        place: folder or address.
        manifest: its manifest; None for a set of others.
        warnings: reasons not to quote its numbers.
    """

    place: str
    manifest: Manifest | None
    warnings: list[str] = field(default_factory=list[str])

    @classmethod
    def at(cls, place: str) -> "SampleSet":
        """Open a data set.

        Raises:
            UsageError: no such folder.
        """
        if "://" not in place and Path(place).is_file():
            raise UsageError(f"--samples {place}: is a file; give the folder that holds it")
        if "://" not in place and not Path(place).is_dir():
            raise UsageError(f"--samples {place}: no such folder")
        return cls(Address(place), read_manifest(place))

    @property
    def is_evaluation(self) -> bool:
        """Whether its labels are evaluation ids already."""
        return self.manifest is not None and self.manifest.label_space == "evaluation"

    @property
    def may_have_styles(self) -> bool:
        """Whether a layout may have several images; of a set of others it is not known."""
        about = self.manifest
        return about is None or about.samples > (about.layouts or 0) + about.varied_layouts

    @property
    def checkpoint(self) -> str | None:
        """SHA-256 of the generator file; None where it is not known."""
        return None if self.manifest is None else self.manifest.fingerprint.checkpoint

    @property
    def name(self) -> str:
        """Last part of its place."""
        last = self.place.rstrip("/").rpartition("/")[2]
        return last if last not in {"", ".", ".."} else Path(self.place).resolve().name
