"""Measurements of images, chunk by chunk: a judge's predictions, features, edges, styles.

Measurements of a chunk are kept in a file named by a hash of everything that decides them: the
bytes of the images, the networks, the judge, the size. So a second call (another report, further
samples, the same reference) measures only what is new, an interrupted one resumes, and chunks of
several workers add up to what one would have measured.

Shape legend:
    n  images      E  evaluation classes      d  features of an image      B  images in a batch
    H, W  height and width      g  groups, several styles of a layout each      C  channels
"""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ecgan.data.loader import to_images
from ecgan.data.transforms import canny_edges
from ecgan.errors import UserError
from ecgan.evaluation.feature_networks import (
    StageFeatures,
    Vgg16HedFeatures,
    feature_networks,
)
from ecgan.evaluation.sources import Photos, Scene, Source
from ecgan.labels import LabelSpace
from ecgan.metrics.distribution import pairwise_distances
from ecgan.metrics.segmentation import PER_IMAGE, EdgeCounts, PerImageConfusion, edge_agreement
from ecgan.metrics.styles import class_means, class_sums, scatter
from ecgan.metrics.texture import top_octave_share
from ecgan.runtime.device import setup_worker
from ecgan.runtime.files import write_whole
from ecgan.segmentation.loading import load_segmenter
from ecgan.segmentation.segmenter import Segmenter

_VERSION = 4  # of the files, and of the measurements in them
_BATCH = 16  # images in one pass
CHUNK = 128  # images of a job

Features = dict[str, npt.NDArray[np.float32]]
ByMap = dict[str, npt.NDArray[np.float64]]  # of colours and, where VGG16 is measured, of its map
COLOUR, DEEP = "colour", "deep"


@dataclass(frozen=True)
class Chunk:
    """A job: images ``start`` to ``stop`` of a source."""

    source: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.source}, images {self.start} to {self.stop - 1}"


@dataclass(frozen=True)
class MeasureConfig:
    """Configuration of the workers, small enough to be sent to another machine.

    Attributes:
        sources: sources of images, by name.
        judged: names of the sources that the judge predicts.
        described: names of the sources whose features all networks measure; the photos of the
            others only tell how their classes vary.
        compared: names of the sources whose images are compared with each other.
        space: the recipe's classes.
        judge: folder or hub name of the judge.
        judge_hash: hash of its weights.
        networks: names of the feature networks.
        inception_weights: path of Inception's weights.
        dinov2: folder of a DINOv2.
        hed_weights: path of HED's weights.
        device: device of each worker.
        cache: folder of measurements.
        threads: threads of each worker; None: as torch has them.
    """

    sources: Mapping[str, Source]
    judged: frozenset[str]
    described: frozenset[str]
    compared: frozenset[str]
    space: LabelSpace
    judge: str
    judge_hash: str
    networks: tuple[str, ...]
    inception_weights: str | None
    dinov2: str | None
    hed_weights: str | None
    device: str
    cache: Path
    threads: int | None = None

    def chunks(self) -> list[Chunk]:
        """All jobs, in order."""
        return [
            Chunk(name, start, min(start + CHUNK, len(source)))
            for name, source in self.sources.items()
            for start in range(0, len(source), CHUNK)
        ]


@dataclass
class Measurements:
    """Measurements of a chunk, or of several together.

    Attributes:
        confusion: the judge's predictions; empty where there is no judge.
        features: features of each network, (n, d).
        edges: edge counts of each image with an edge map.
        edge_layouts: layouts of these images.
        distances: perceptual distances of pairs of images.
        pair_layouts: layout of each pair; of photos, that of the first.
        octaves: share of each image's variance in the top octave.
        styles: of each group, how its class means scatter, (g, 2, E).
        style_layouts: layouts of the groups.
        photo_sums: sums of the photos' class means, (E, 2 + C).
    """

    confusion: PerImageConfusion
    features: Features = field(default_factory=Features)
    edges: list[EdgeCounts] = field(default_factory=list)
    edge_layouts: list[str] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    pair_layouts: list[str] = field(default_factory=list)
    octaves: list[float] = field(default_factory=list)
    styles: ByMap = field(default_factory=dict)
    style_layouts: list[str] = field(default_factory=list)
    photo_sums: ByMap = field(default_factory=dict)

    def extend(self, other: "Measurements") -> None:
        """Add another chunk."""
        self.confusion.extend(other.confusion)
        _append(self.features, other.features)
        _append(self.styles, other.styles)
        for name, sums in other.photo_sums.items():
            self.photo_sums[name] = self.photo_sums.get(name, 0) + sums
        for name in _LISTS:
            getattr(self, name).extend(getattr(other, name))


_Rows = TypeVar("_Rows", bound=npt.NDArray[Any])


def _append(own: dict[str, _Rows], others: Mapping[str, _Rows]) -> None:
    """Add rows to the arrays of these names."""
    for name, rows in others.items():
        own[name] = cast(_Rows, np.concatenate([own[name], rows])) if name in own else rows


class MeasureWorker:
    """Worker that measures chunks, one after the other, on one device.

    Args:
        config: configuration of all workers.
    """

    def __init__(self, config: MeasureConfig) -> None:
        self.config = config
        self.device = setup_worker(config.device, config.threads)
        self._hashes = {name: network.hash for name, network in self._networks.items()}

    def __call__(self, chunk: Chunk) -> Path:
        """Measure a chunk, unless its measurements are kept.

        Returns:
            The file of measurements, for :func:`read_measurements`.

        Raises:
            UserError: a damaged or unfitting sample.
        """
        source = self.config.sources[chunk.source]
        path = self.config.cache / f"{self._key(chunk, source)}.npz"
        if not _is_whole(path):
            write_measurements(path, self.measure(chunk, source))
        return path

    def measure(self, chunk: Chunk, source: Source) -> Measurements:
        """Measure a chunk."""
        config = self.config
        scenes = [*source.scenes(chunk.start, chunk.stop)]
        judge = self._judge if chunk.source in config.judged else None
        networks = {name: self._networks[name] for name in self._needed(chunk.source)}
        found, means = measured(
            scenes, judge, networks, config.space.num_evaluation_classes, self.device
        )
        if isinstance(source, Photos):
            found.photo_sums = {name: class_sums(values) for name, values in means.items()}
        else:
            _add_styles(found, scenes, means)
        if chunk.source in config.compared:
            self._add_pairs(found, scenes, of_photos=isinstance(source, Photos))
            for scene in scenes:
                if scene.edge is not None:
                    found.edges.append(edge_agreement(scene.edge, canny_edges(scene.image)))
                    found.edge_layouts.append(scene.source)
        return found

    def _add_pairs(self, found: Measurements, scenes: Sequence[Scene], *, of_photos: bool) -> None:
        """Add distances between styles of a layout; of photos, between those half a chunk apart."""
        if of_photos:
            half = max(1, len(scenes) // 2)
            groups = [[*range(first, len(scenes), half)] for first in range(half)]
        else:
            groups = [*_styles_of(scenes).values()]
        for group in groups:
            if len(group) < 2:
                continue
            batches = _batches([scenes[number] for number in group])
            stages = [self._stages(images_of(batch, self.device)) for batch in batches]
            values = pairwise_distances([torch.cat(maps) for maps in zip(*stages, strict=True)])
            found.distances += values.tolist()
            found.pair_layouts += [scenes[group[0]].source] * len(values)

    def _needed(self, source: str) -> list[str]:
        """Names of the networks that measure a source."""
        described = source in self.config.described
        return [
            name
            for name, network in self._networks.items()
            if described or isinstance(network, Vgg16HedFeatures)
        ]

    def _key(self, chunk: Chunk, source: Source) -> str:
        config = self.config
        about = {
            "version": _VERSION,
            "judge": config.judge_hash if chunk.source in config.judged else "",
            "pairs": chunk.source in config.compared,
            "networks": {name: self._hashes[name] for name in self._needed(chunk.source)},
            "device": self.device.type,
            "content": source.fingerprint(chunk.start, chunk.stop).hex(),
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _networks(self) -> dict[str, nn.Module]:
        config = self.config
        return feature_networks(
            config.networks,
            inception_weights=config.inception_weights,
            dinov2=config.dinov2,
            hed_weights=config.hed_weights,
            device=self.device,
        )[0]

    @cached_property
    def _judge(self) -> Segmenter:
        config = self.config
        return load_segmenter(
            config.judge, config.space, device=self.device, evaluation=True, role="judge"
        )

    @cached_property
    def _stages(self) -> StageFeatures:
        return StageFeatures().to(self.device)


def measured(
    scenes: Sequence[Scene],
    judge: Segmenter | None,
    networks: Mapping[str, nn.Module],
    num_classes: int,
    device: torch.device,
) -> tuple[Measurements, ByMap]:
    """A judge's predictions, features of images, and their texture; and their class means.

    Args:
        scenes: images of one size.
        judge: segmenter of evaluation ids; None: no predictions.
        networks: feature networks by name: images in [-1, 1], (B, 3, H, W), to (B, d).
        num_classes: E.
        device: where judge and networks are.

    Returns:
        Measurements, and the mean of each class in each image, (n, E, C).
    """
    found = Measurements(PerImageConfusion(num_classes))
    features: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in networks}
    means: dict[str, list[npt.NDArray[np.float64]]] = {}
    for group in _batches(scenes):
        images = images_of(group, device)
        if judge is not None:
            classes, sums = predictions(judge, images, group)
            for scene, prediction, own in zip(group, classes, sums, strict=True):
                found.confusion.add(scene.key, scene.source, scene.label, prediction, own)
        maps = {COLOUR: images}
        with torch.inference_mode():
            for name, network in networks.items():
                if isinstance(network, Vgg16HedFeatures):
                    pooled, maps[DEEP] = network.with_map(images)
                else:
                    pooled = network(images)
                features[name].append(pooled.float().cpu().numpy())
            found.octaves += top_octave_share(images).tolist()
        labels = np.stack([scene.label for scene in group])
        for name, values in maps.items():
            means.setdefault(name, []).append(class_means(values, labels, num_classes))
    found.features = {name: np.concatenate(parts) for name, parts in features.items() if parts}
    return found, {name: np.concatenate(parts) for name, parts in means.items()}


def _add_styles(found: Measurements, scenes: Sequence[Scene], means: ByMap) -> None:
    """Add how the class means of each layout's styles scatter, where it has several."""
    groups = [group for group in _styles_of(scenes).values() if len(group) > 1]
    if groups:
        found.style_layouts = [scenes[group[0]].source for group in groups]
        found.styles = {
            name: np.stack([scatter(class_sums(values[group])) for group in groups])
            for name, values in means.items()
        }


def _styles_of(scenes: Sequence[Scene]) -> dict[tuple[str, str], list[int]]:
    """Numbers of the scenes that show one layout.

    An augmented layout is another one: its mirror image is no style of it.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for number, scene in enumerate(scenes):
        groups.setdefault((scene.source, scene.variant), []).append(number)
    return groups


@torch.no_grad()
def predictions(
    judge: Segmenter, images: Tensor, scenes: Sequence[Scene]
) -> tuple[npt.NDArray[np.int64], list[float]]:
    """Predicted classes, (B, H, W), and the label probability of each image.

    The latter is the sum over labelled pixels of the probability of the layout's class.
    """
    probabilities = judge.probabilities(images)
    labels = torch.from_numpy(np.stack([s.label.astype(np.int64) for s in scenes]))
    labels = labels.to(images.device)[:, None]  # (B, 1, H, W)
    labelled = labels < probabilities.shape[1]
    own = probabilities.gather(1, labels.clamp(max=probabilities.shape[1] - 1))
    sums = torch.where(labelled, own, 0).sum(dim=(1, 2, 3), dtype=torch.float64)
    return probabilities.argmax(dim=1).cpu().numpy(), sums.tolist()


def _batches(scenes: Sequence[Scene]) -> list[Sequence[Scene]]:
    return [scenes[first : first + _BATCH] for first in range(0, len(scenes), _BATCH)]


def images_of(scenes: Sequence[Scene], device: torch.device) -> Tensor:
    """Images in [-1, 1], (B, 3, H, W)."""
    stacked = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    return to_images(stacked.permute(0, 3, 1, 2).to(device))


def write_measurements(path: Path, found: Measurements) -> None:
    """Write measurements, whole or not at all."""
    arrays: dict[str, Any] = {
        "matrix": found.confusion.matrix,
        **{name: getattr(found.confusion, name) for name in PER_IMAGE},
        **{name: getattr(found, name) for name in _LISTS},
        **{
            f"{kind}_{name}": values
            for kind in _NAMED
            for name, values in getattr(found, kind).items()
        },
    }
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    write_whole(path, stream.getvalue())


def _is_whole(path: Path) -> bool:
    try:
        read_measurements(path)
    except UserError:
        return False
    return True


_LISTS = ("edges", "edge_layouts", "distances", "pair_layouts", "octaves", "style_layouts")
_NAMED = ("features", "styles", "photo_sums")  # arrays by the network or map


def read_measurements(path: Path) -> Measurements:
    """Read a file that :func:`write_measurements` wrote.

    Raises:
        UserError: the file is damaged, or not there where this process looks.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return _measurements(dict(file))
    except FileNotFoundError:
        raise UserError(
            f"{path}: written by a worker on another machine and not visible here; set ECGAN_CACHE "
            "to a folder that all machines share"
        ) from None
    except _DAMAGE as error:
        raise UserError(f"{path}: damaged ({error}); remove it and run again") from None


_DAMAGE = (
    *(OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error),
    *(LookupError, TypeError),  # arrays that are missing, or of other shapes
)


def _measurements(arrays: Mapping[str, npt.NDArray[Any]]) -> Measurements:
    confusion = PerImageConfusion(len(arrays["matrix"]))
    confusion.matrix = arrays["matrix"]
    for name in PER_IMAGE:
        values = arrays[name]
        getattr(confusion, name).extend(values if values.ndim > 1 else values.tolist())
    lists: dict[str, Any] = {name: arrays[name].tolist() for name in _LISTS}
    lists["edges"] = [EdgeCounts(*row) for row in lists["edges"]]
    named: dict[str, Any] = {
        kind: {n.removeprefix(f"{kind}_"): v for n, v in arrays.items() if n.startswith(f"{kind}_")}
        for kind in _NAMED
    }
    return Measurements(confusion, **lists, **named)
