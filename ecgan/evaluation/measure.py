"""Measurements of images, chunk by chunk: a judge's predictions, features, edges, diversity.

Measurements of a chunk are kept in a file named by a hash of everything that decides them: the
bytes of the images, the networks, the judge, the size. So a second call (another report, further
samples, the same reference) measures only what is new, an interrupted one resumes, and chunks of
several workers add up to what one would have measured.

Shape legend:
    n  images      E  evaluation classes      d  features of an image      B  images in a batch
    H, W  height and width
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ecgan.data.loader import to_images
from ecgan.data.transforms import canny_edges
from ecgan.errors import UserError
from ecgan.evaluation.feature_networks import StageFeatures, feature_networks
from ecgan.evaluation.sources import Photos, Scene, Source
from ecgan.labels import LabelSpace
from ecgan.metrics.distribution import pairwise_distances
from ecgan.metrics.segmentation import PER_IMAGE, EdgeCounts, PerImageConfusion, edge_agreement
from ecgan.runtime.device import setup_worker
from ecgan.runtime.files import write_whole
from ecgan.segmentation.loading import load_segmenter
from ecgan.segmentation.segmenter import Segmenter

_VERSION = 3  # of the files, and of the measurements in them
_BATCH = 16  # images in one pass
CHUNK = 128  # images of a job

Features = dict[str, npt.NDArray[np.float32]]


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
        compared: names of the sources whose images are compared with each other.
        space: the recipe's classes.
        judge: folder or hub name of the judge.
        judge_hash: hash of its weights.
        networks: names of the feature networks.
        inception_weights: path of Inception's weights.
        dinov2: folder of a DINOv2.
        device: device of each worker.
        cache: folder of measurements.
        threads: threads of each worker; None: as torch has them.
    """

    sources: Mapping[str, Source]
    judged: frozenset[str]
    compared: frozenset[str]
    space: LabelSpace
    judge: str
    judge_hash: str
    networks: tuple[str, ...]
    inception_weights: str | None
    dinov2: str | None
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
    """

    confusion: PerImageConfusion
    features: Features = field(default_factory=Features)
    edges: list[EdgeCounts] = field(default_factory=list)
    edge_layouts: list[str] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    pair_layouts: list[str] = field(default_factory=list)

    def extend(self, other: "Measurements") -> None:
        """Add another chunk."""
        self.confusion.extend(other.confusion)
        for name, features in other.features.items():
            before = self.features.get(name)
            self.features[name] = features if before is None else np.concatenate([before, features])
        self.edges += other.edges
        self.edge_layouts += other.edge_layouts
        self.distances += other.distances
        self.pair_layouts += other.pair_layouts


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
        if not path.is_file():
            write_measurements(path, self.measure(chunk, source))
        return path

    def measure(self, chunk: Chunk, source: Source) -> Measurements:
        """Measure a chunk."""
        config = self.config
        scenes = [*source.scenes(chunk.start, chunk.stop)]
        judge = self._judge if chunk.source in config.judged else None
        found = measured(
            scenes, judge, self._networks, config.space.num_evaluation_classes, self.device
        )
        if chunk.source in config.compared:
            self._add_pairs(found, scenes, of_photos=isinstance(source, Photos))
            for scene in scenes:
                if scene.edge is not None:
                    found.edges.append(edge_agreement(scene.edge, canny_edges(scene.image)))
                    found.edge_layouts.append(scene.source)
        return found

    def _add_pairs(self, found: Measurements, scenes: Sequence[Scene], *, of_photos: bool) -> None:
        """Add distances between styles of a layout; of photos, between those half a chunk apart.

        An augmented layout is another one: its mirror image is no style of it.
        """
        groups: dict[tuple[str, str], list[Scene]] = {}
        for number, scene in enumerate(scenes):
            half = max(1, len(scenes) // 2)
            name = scenes[number % half].source if of_photos else scene.source
            groups.setdefault((name, scene.variant), []).append(scene)
        for (layout, _), group in groups.items():
            if len(group) < 2:
                continue
            stages = [self._stages(images_of(batch, self.device)) for batch in _batches(group)]
            values = pairwise_distances([torch.cat(maps) for maps in zip(*stages, strict=True)])
            found.distances += values.tolist()
            found.pair_layouts += [layout] * len(values)

    def _key(self, chunk: Chunk, source: Source) -> str:
        config = self.config
        about = {
            "version": _VERSION,
            "judge": config.judge_hash if chunk.source in config.judged else "",
            "pairs": chunk.source in config.compared,
            "networks": self._hashes,
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
            device=self.device,
        )[0]

    @cached_property
    def _judge(self) -> Segmenter:
        config = self.config
        return load_segmenter(config.judge, config.space, device=self.device, evaluation=True)

    @cached_property
    def _stages(self) -> StageFeatures:
        return StageFeatures().to(self.device)


def measured(
    scenes: Sequence[Scene],
    judge: Segmenter | None,
    networks: Mapping[str, nn.Module],
    num_classes: int,
    device: torch.device,
) -> Measurements:
    """A judge's predictions and the features of images.

    Args:
        scenes: images of one size.
        judge: segmenter of evaluation ids; None: no predictions.
        networks: feature networks by name: images in [-1, 1], (B, 3, H, W), to (B, d).
        num_classes: E.
        device: where judge and networks are.
    """
    confusion = PerImageConfusion(num_classes)
    features: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in networks}
    for group in _batches(scenes):
        images = images_of(group, device)
        if judge is not None:
            found, sums = predictions(judge, images, group)
            for scene, prediction, own in zip(group, found, sums, strict=True):
                confusion.add(scene.key, scene.source, scene.label, prediction, own)
        with torch.inference_mode():
            for name, network in networks.items():
                features[name].append(network(images).float().cpu().numpy())
    return Measurements(
        confusion, {name: np.concatenate(parts) for name, parts in features.items() if parts}
    )


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
        **{f"features_{name}": values for name, values in found.features.items()},
    }
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **{n: np.asarray(values) for n, values in arrays.items()})
    write_whole(path, stream.getvalue())


_LISTS = ("edges", "edge_layouts", "distances", "pair_layouts")


def read_measurements(path: Path) -> Measurements:
    """Read a file that :func:`write_measurements` wrote.

    Raises:
        UserError: the file is damaged, or not there where this process looks.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, npt.NDArray[Any]] = dict(file)
    except FileNotFoundError:
        raise UserError(
            f"{path}: written by a worker on another machine and not visible here; set ECGAN_CACHE "
            "to a folder that all machines share"
        ) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}); remove it and run again") from None
    confusion = PerImageConfusion(len(arrays["matrix"]))
    confusion.matrix = arrays["matrix"]
    for name in PER_IMAGE:
        values = arrays[name]
        getattr(confusion, name).extend(values if values.ndim > 1 else values.tolist())
    features = {
        n.removeprefix("features_"): v for n, v in arrays.items() if n.startswith("features_")
    }
    edges, *lists = (arrays[name].tolist() for name in _LISTS)
    return Measurements(confusion, features, [EdgeCounts(*row) for row in edges], *lists)
