"""The worker of ``evaluate``: looks once at a part of a set, with the judge and the networks.

What it found goes into a file named by a hash of all that decides it: the bytes that were looked
at, the networks, the judge, the size. So a second call (another report, further samples, the same
reference) looks only at what is new, an interrupted one goes on, and parts that several workers
looked at add up to what one would have found.

Shape legend:
    n  images      E  evaluation classes      d  features of an image
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ecgan.data.loader import TripleDataset
from ecgan.data.transforms import canny_edges
from ecgan.errors import UserError
from ecgan.evaluation.feature_networks import StageFeatures, feature_networks
from ecgan.labels import Labels, LabelSpace
from ecgan.metrics import distribution
from ecgan.metrics import segmentation as scoring
from ecgan.metrics.segmentation import Scene, Tally
from ecgan.runtime.device import setup_worker
from ecgan.runtime.files import write_whole
from ecgan.segmentation.loading import load_segmenter
from ecgan.segmentation.segmenter import Segmenter
from ecgan.shards import formats
from ecgan.shards.dataset import SampleDataset

_VERSION = 2  # of what a file holds and how it was found
_BATCH = 16  # images in one pass
PART = 128  # images of a job

Features = dict[str, npt.NDArray[np.float32]]


@dataclass
class Photos:
    """Real photos, resized as in training, to the size of the samples.

    Attributes:
        dataset: they and their labels.
        indices: which of them.
    """

    dataset: TripleDataset
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def fingerprint(self, start: int, stop: int) -> bytes:
        """SHA-256 of the files of a part."""
        data = self.dataset
        about = [data.space.to_json(), data.dataset, data.size]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for index in self.indices[start:stop]:
            item = self.dataset.items[index]
            digest.update(item.key.encode())
            for path in (item.image, item.label):
                assert path is not None
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.digest()

    def scenes(self, start: int, stop: int) -> Iterator[Scene]:
        """A part of them."""
        for index in self.indices[start:stop]:
            sample = self.dataset.load_plain(index)
            assert sample.image is not None
            label = self.dataset.space.to_evaluation(sample.label)
            yield Scene(sample.key, sample.key, sample.image, label)


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
        """SHA-256 of the bytes of a part, and of what their labels mean."""
        about = [self.space.to_json(), self.is_evaluation]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for index in range(start, stop):
            raw = self.dataset.raw(index)
            about = [raw.key, raw.record.get("source"), raw.record.get("variation")]
            digest.update(json.dumps(about).encode())
            for data in (raw.image, raw.label, raw.edge or b""):
                digest.update(hashlib.sha256(data).digest())
        return digest.digest()

    def scenes(self, start: int, stop: int) -> Iterator[Scene]:
        """A part of them.

        Raises:
            UserError: a damaged sample, another size, or a label that is no class.
        """
        for index in range(start, stop):
            raw = self.dataset.raw(index)
            sample = self.dataset.decoded(index, raw)
            self._check(sample)
            label, variant = self.label_of(sample), str(raw.record.get("variation", ""))
            yield Scene(sample.key, sample.source, sample.image, label, sample.edge, variant)

    def label_of(self, sample: formats.ShardSample) -> Labels:
        """Its label in evaluation ids."""
        space = self.space
        count = space.num_evaluation_classes if self.is_evaluation else space.num_classes
        known = (sample.label < count) | (sample.label == space.ignore_index)
        if not known.all():
            raise UserError(
                f"{self.place}: {sample.key} has the label {int(sample.label[~known][0])}, the "
                f"class list has 0-{count - 1} and {space.ignore_index}"
            )
        return sample.label if self.is_evaluation else space.to_evaluation(sample.label)

    def _check(self, sample: formats.ShardSample) -> None:
        if sample.image.shape[:2] != self.size or sample.label.shape != self.size:
            raise UserError(
                f"{self.place}: {sample.key} is {sample.image.shape[0]} x "
                f"{sample.image.shape[1]} with a label of {sample.label.shape[0]} x "
                f"{sample.label.shape[1]}, the samples before are {self.size[0]} x "
                f"{self.size[1]}; all must be of one size"
            )


Source = Photos | Samples


@dataclass(frozen=True)
class Part:
    """A job: images ``start`` to ``stop`` of a source."""

    source: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.source}, images {self.start} to {self.stop - 1}"


@dataclass(frozen=True)
class Settings:
    """What is the same for all parts; small enough to be sent to another machine.

    Attributes:
        sources: what is looked at, by name.
        judged: names of those that the judge looks at.
        pairs: names of those whose images are compared with each other.
        space: the recipe's classes.
        judge: folder or hub name of the judge.
        judge_hash: of its weights.
        networks: names of the networks of features.
        inception_weights: path of Inception's.
        dinov2: folder of a DINOv2.
        device: device of each worker.
        cache: folder of what was found.
        threads: of each worker; None: as torch has them.
    """

    sources: Mapping[str, Source]
    judged: frozenset[str]
    pairs: frozenset[str]
    space: LabelSpace
    judge: str
    judge_hash: str
    networks: tuple[str, ...]
    inception_weights: str | None
    dinov2: str | None
    device: str
    cache: Path
    threads: int | None = None

    def parts(self) -> list[Part]:
        """All jobs, in order."""
        return [
            Part(name, start, min(start + PART, len(source)))
            for name, source in self.sources.items()
            for start in range(0, len(source), PART)
        ]


@dataclass
class Look:
    """What was found in a part, or in several together.

    Attributes:
        tally: what the judge read; empty where it was not asked.
        features: of each network, (n, d).
        edges: of each image with an edge map, :class:`metrics.EdgeCounts`, (n, 4).
        edge_layouts: the layouts of these.
        distances: perceptual distances of pairs of images.
        pair_layouts: the layout of each pair; of photos, that of the first.
    """

    tally: Tally
    features: Features = field(default_factory=Features)
    edges: list[tuple[int, int, int, int]] = field(default_factory=list)
    edge_layouts: list[str] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    pair_layouts: list[str] = field(default_factory=list)

    def extend(self, other: "Look") -> None:
        """Add another part."""
        self.tally.extend(other.tally)
        for name, features in other.features.items():
            before = self.features.get(name)
            self.features[name] = features if before is None else np.concatenate([before, features])
        self.edges += other.edges
        self.edge_layouts += other.edge_layouts
        self.distances += other.distances
        self.pair_layouts += other.pair_layouts


class Looker:
    """Looks at parts, one after the other, on one device.

    Args:
        settings: what is the same for all.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = setup_worker(settings.device, settings.threads)
        self._hashes = {name: network.hash for name, network in self._networks.items()}

    def __call__(self, part: Part) -> Path:
        """Look at a part, unless it was looked at before.

        Returns:
            The file with what was found; :func:`read_look` reads it.

        Raises:
            UserError: a damaged or unfitting sample.
        """
        settings, source = self.settings, self.settings.sources[part.source]
        path = settings.cache / f"{self._key(part, source)}.npz"
        if not path.is_file():
            write_look(path, self.look(part, source))
        return path

    def look(self, part: Part, source: Source) -> Look:
        """What there is to see in a part."""
        settings = self.settings
        E = settings.space.num_evaluation_classes
        scenes = [*source.scenes(part.start, part.stop)]
        judge = self._judge if part.source in settings.judged else None
        tally, features = scoring.read_scenes(
            scenes, judge, self._networks, E, device=self.device, batch=_BATCH
        )
        found = Look(tally, features)
        if part.source in settings.pairs:
            self._add_pairs(found, scenes, of_photos=isinstance(source, Photos))
            for scene in scenes:
                if scene.edge is not None:
                    counts = distribution.edge_agreement(scene.edge, canny_edges(scene.image))
                    found.edges.append(cast("tuple[int, int, int, int]", tuple(counts)))
                    found.edge_layouts.append(scene.source)
        return found

    def _add_pairs(self, found: Look, scenes: Sequence[Scene], *, of_photos: bool) -> None:
        """Distances between all styles of a layout; between photos half a part apart.

        A layout that was varied is another one: its mirror image is no style of it.
        """
        groups: dict[tuple[str, str], list[Scene]] = {}
        for number, scene in enumerate(scenes):
            half = max(1, len(scenes) // 2)
            name = scenes[number % half].source if of_photos else scene.source
            groups.setdefault((name, scene.variant), []).append(scene)
        for (layout, _), group in groups.items():
            if len(group) < 2:
                continue
            stages = [
                self._stages(scoring.images_of(group[first : first + _BATCH], self.device))
                for first in range(0, len(group), _BATCH)
            ]
            values = distribution.pairwise_distances(
                [torch.cat(maps) for maps in zip(*stages, strict=True)]
            )
            found.distances += values.tolist()
            found.pair_layouts += [layout] * len(values)

    def _key(self, part: Part, source: Source) -> str:
        settings = self.settings
        about = {
            "version": _VERSION,
            "judge": settings.judge_hash if part.source in settings.judged else "",
            "pairs": part.source in settings.pairs,
            "networks": self._hashes,
            "device": self.device.type,
            "content": source.fingerprint(part.start, part.stop).hex(),
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _networks(self) -> dict[str, nn.Module]:
        settings = self.settings
        return feature_networks(
            settings.networks,
            inception_weights=settings.inception_weights,
            dinov2=settings.dinov2,
            device=self.device,
        )[0]

    @cached_property
    def _judge(self) -> Segmenter:
        settings = self.settings
        return load_segmenter(settings.judge, settings.space, device=self.device, evaluation=True)

    @cached_property
    def _stages(self) -> StageFeatures:
        return StageFeatures().to(self.device)


def write_look(path: Path, look: Look) -> None:
    """Keep what was found; whole or not at all."""
    tally = look.tally
    arrays: dict[str, npt.NDArray[Any]] = {
        "confusion": tally.confusion,
        "edges": np.asarray(look.edges, np.int64).reshape(-1, 4),
        "edge_layouts": np.asarray(look.edge_layouts, np.str_),
        "distances": np.asarray(look.distances, np.float64),
        "pair_layouts": np.asarray(look.pair_layouts, np.str_),
        "keys": np.asarray(tally.keys, np.str_),
        "layouts": np.asarray(tally.layouts, np.str_),
        "hits": np.asarray(tally.hits, np.int64),
        "labelled": np.asarray(tally.labelled, np.int64),
        "read": np.asarray(tally.read, np.int64),
        "pixels": np.asarray(tally.pixels, np.int64),
        "trusted": np.asarray(tally.trusted, np.float64),
    }
    arrays |= {f"features_{name}": values for name, values in look.features.items()}
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, stream.getvalue())


def read_look(path: Path) -> Look:
    """Read what :func:`write_look` wrote.

    Raises:
        UserError: the file is damaged, or not there where this process looks.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except FileNotFoundError:
        raise UserError(
            f"{path}: a worker on another machine wrote it, and it is not to be seen here; set "
            "ECGAN_CACHE to a folder that all of them share"
        ) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}); remove it and run again") from None
    tally = Tally(len(arrays["confusion"]))
    tally.confusion = arrays["confusion"]
    for name in ("keys", "layouts", "pixels", "trusted"):
        getattr(tally, name).extend(arrays[name].tolist())
    for name in ("hits", "labelled", "read"):
        getattr(tally, name).extend(arrays[name])
    return Look(
        tally,
        {n.removeprefix("features_"): v for n, v in arrays.items() if n.startswith("features_")},
        [cast("tuple[int, int, int, int]", tuple(row)) for row in arrays["edges"].tolist()],
        arrays["edge_layouts"].tolist(),
        arrays["distances"].tolist(),
        arrays["pair_layouts"].tolist(),
    )
