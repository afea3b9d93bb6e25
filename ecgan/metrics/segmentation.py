"""Samples, reference and judge -> numbers. Used by validation during training and by ``evaluate``.

Two questions. *Does the image show its layout?* A judge, a segmenter, reads the image, and its
reading is compared with the layout, in evaluation ids. *Do the images look like the photos?* The
distance between the distributions of their features.

Every number is meant to stand beside what the same measurement gives for real photos.

Shape legend:
    n  images      E  evaluation classes      B  images in a batch      H, W  height and width
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ecgan.data.loader import TripleDataset, ordered_batches, to_device, to_images
from ecgan.labels import Labels
from ecgan.metrics import distribution
from ecgan.metrics.statistics import Estimate, resampled, with_percentiles
from ecgan.models.generator import Generator
from ecgan.models.pretrained.efficientnet_lite import EfficientNetLite0
from ecgan.sampling import sampler
from ecgan.seeds import sample_seed
from ecgan.segmentation.segmenter import Segmenter

Counts = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

AGREEMENTS = ("miou", "frequency_weighted_iou", "accuracy", "accuracy_with_void", "consistency")


class Scene(NamedTuple):
    """An image and its label map, generated or real."""

    key: str
    source: str  # key of the layout
    image: npt.NDArray[np.uint8]  # (H, W, 3)
    label: Labels  # (H, W), evaluation ids
    edge: npt.NDArray[np.uint8] | None = None  # (H, W), the generator's
    variant: str = ""  # what was done to the layout before


class Agreement(NamedTuple):
    """How far readings agree with layouts."""

    overall: dict[str, Estimate]  # by the names in AGREEMENTS
    iou: list[Estimate]  # (E,)


@dataclass
class Tally:
    """What a judge read in each image, counted against its layout.

    Attributes:
        num_classes: E.
        keys: of the images, in the order they came.
        layouts: the layout each image was made from; images of one layout are not independent.
        hits: pixels of each class that were read as such, each (E,).
        labelled: pixels of each class in the layout.
        read: labelled pixels that were read as each class.
        pixels: all pixels of each image, unlabelled ones too.
        trusted: sum over an image's labelled pixels of the probability that the judge gives to the
            layout's class; NaN where it was not asked.
        confusion: true class x class read, summed over the images, (E, E + 1); the last column is
            no class.
    """

    num_classes: int
    keys: list[str] = field(default_factory=list[str])
    layouts: list[str] = field(default_factory=list[str])
    hits: list[Counts] = field(default_factory=list[Counts])
    labelled: list[Counts] = field(default_factory=list[Counts])
    read: list[Counts] = field(default_factory=list[Counts])
    pixels: list[int] = field(default_factory=list[int])
    trusted: list[float] = field(default_factory=list[float])
    confusion: Counts = field(init=False)

    def __post_init__(self) -> None:
        self.confusion = np.zeros((self.num_classes, self.num_classes + 1), np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def add(
        self,
        key: str,
        layout: str,
        label: Labels,
        reading: npt.NDArray[np.integer],
        trusted: float = np.nan,
    ) -> None:
        """Count one image.

        Args:
            key: of the image.
            layout: key of its layout.
            label: evaluation ids, (H, W); what is not below E is not scored.
            reading: evaluation ids as the judge sees them, (H, W); E and above are wrong always.
            trusted: see the class.
        """
        E = self.num_classes
        scored = label < E
        pairs = label[scored].astype(np.int64) * (E + 1) + np.minimum(reading[scored], E)
        confusion = np.bincount(pairs, minlength=E * (E + 1)).reshape(E, E + 1)
        self.keys.append(key)
        self.layouts.append(layout)
        self.hits.append(confusion.diagonal().copy())
        self.labelled.append(confusion.sum(axis=1))
        self.read.append(confusion.sum(axis=0)[:E])
        self.pixels.append(label.size)
        self.trusted.append(trusted)
        self.confusion += confusion

    def extend(self, other: "Tally") -> None:
        """Add the images of another part of the set."""
        for name in ("keys", "layouts", "hits", "labelled", "read", "pixels", "trusted"):
            getattr(self, name).extend(getattr(other, name))
        self.confusion += other.confusion

    def select(self, layouts: frozenset[str]) -> "Tally":
        """The images of these layouts; without their confusion, which is kept of all together."""
        part = Tally(self.num_classes)
        chosen = [i for i, layout in enumerate(self.layouts) if layout in layouts]
        for name in ("keys", "layouts", "hits", "labelled", "read", "pixels", "trusted"):
            getattr(part, name).extend(getattr(self, name)[i] for i in chosen)
        return part

    def accuracies(self) -> Numbers:
        """Pixel accuracy of each image, (n,); NaN where nothing is labelled."""
        hits, labelled = np.stack(self.hits).sum(axis=1), np.stack(self.labelled).sum(axis=1)
        return _ratio(hits.astype(float), labelled.astype(float))

    def consistencies(self) -> Numbers:
        """Mean probability of the layout's class in each image, (n,); NaN where that is unknown."""
        labelled = np.stack(self.labelled).sum(axis=1).astype(float)
        return _ratio(np.asarray(self.trusted, float), labelled)


def agreement(tally: Tally, *, seed: int = 0) -> Agreement:
    """Sums over all images, as mIoU is defined, with intervals.

    The interval is a percentile bootstrap over layouts: images of one layout are drawn together,
    since another style of the same layout is no independent image.
    """
    assert len(tally), "nothing was counted"
    counted = (tally.hits, tally.labelled, tally.read, tally.pixels, tally.trusted)
    widths = np.cumsum([np.size(rows[0]) for rows in counted])[:-1]
    rows = np.concatenate([np.reshape(part, (len(tally), -1)) for part in counted], axis=1)
    whole, drawn = resampled(rows.astype(np.float64), tally.layouts, seed=seed)

    def numbers(sums: Numbers) -> dict[str, Numbers]:
        hits, labelled, read, pixels, trusted = np.split(sums, widths, axis=1)
        return _numbers(hits, labelled, read, pixels[:, 0], trusted[:, 0])

    value, samples = numbers(whole), numbers(drawn)
    overall = {name: with_percentiles(value[name][0], samples[name]) for name in AGREEMENTS}
    iou = [
        with_percentiles(value["iou"][0, c], samples["iou"][:, c]) for c in range(tally.num_classes)
    ]
    return Agreement(overall, iou)


def edge_scores(counts: Sequence[Sequence[int]], layouts: Sequence[str]) -> dict[str, Estimate]:
    """Precision, recall and F1 of edge maps, from sums of :class:`metrics.EdgeCounts`."""

    def scores(sums: Numbers) -> dict[str, Numbers]:
        matched_edge, num_edge, matched_canny, num_canny = sums.T
        precision, recall = _ratio(matched_edge, num_edge), _ratio(matched_canny, num_canny)
        f1 = _ratio(2 * precision * recall, precision + recall)
        return {"edge_precision": precision, "edge_recall": recall, "edge_f1": f1}

    whole, drawn = (scores(s) for s in resampled(np.asarray(counts, float), layouts))
    return {name: with_percentiles(float(whole[name][0]), drawn[name]) for name in whole}


def _numbers(
    hits: Numbers, labelled: Numbers, read: Numbers, pixels: Numbers, trusted: Numbers
) -> dict[str, Numbers]:
    """The definitions, on rows of counts (R, E), (R, E), (R, E), (R,) and (R,)."""
    iou = _ratio(hits, labelled + read - hits)  # (R, E)
    occurs = np.isfinite(iou)
    total = labelled.sum(axis=1)
    return {
        "iou": iou,
        "miou": _ratio(np.where(occurs, iou, 0).sum(axis=1), occurs.sum(axis=1)),
        "frequency_weighted_iou": _ratio((labelled * np.where(occurs, iou, 0)).sum(axis=1), total),
        "accuracy": _ratio(hits.sum(axis=1), total),
        "accuracy_with_void": _ratio(hits.sum(axis=1), pixels),
        "consistency": _ratio(trusted, total),
    }


def _ratio(part: Numbers, whole: npt.NDArray[np.number[Any]]) -> Numbers:
    whole = np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def read_scenes(
    scenes: Iterable[Scene],
    judge: Segmenter | None,
    networks: Mapping[str, nn.Module],
    num_classes: int,
    *,
    device: torch.device,
    batch: int = 16,
) -> tuple[Tally, dict[str, npt.NDArray[np.float32]]]:
    """Look at every image once: with the judge, and with each network of features.

    Args:
        scenes: all of one size.
        judge: reads evaluation ids; None counts nothing.
        networks: images in [-1, 1], (B, 3, H, W), to features, (B, d), by name.
        num_classes: E.
        device: where the networks are.
        batch: images looked at together.

    Returns:
        What the judge read, and the features of each network, (n, d).
    """
    tally = Tally(num_classes)
    features: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in networks}
    for group in _grouped(scenes, batch):
        images = images_of(group, device)
        if judge is not None:
            read = readings(judge, images, group)
            for scene, reading, trusted in zip(group, *read, strict=True):
                tally.add(scene.key, scene.source, scene.label, reading, trusted)
        with torch.inference_mode():
            for name, network in networks.items():
                features[name].append(network.embed(images).float().cpu().numpy())
    return tally, {name: np.concatenate(parts) for name, parts in features.items() if parts}


@torch.no_grad()
def readings(
    judge: Segmenter, images: Tensor, scenes: Sequence[Scene]
) -> tuple[npt.NDArray[np.int64], list[float]]:
    """What the judge reads in images, (B, H, W), and how far it trusts each one's layout.

    The second is the sum over labelled pixels of the probability of the layout's class.
    """
    probabilities = judge.probabilities(images)
    labels = torch.from_numpy(np.stack([s.label.astype(np.int64) for s in scenes]))
    labels = labels.to(images.device)[:, None]  # (B, 1, H, W)
    labelled = labels < probabilities.shape[1]
    own = probabilities.gather(1, labels.clamp(max=probabilities.shape[1] - 1))
    trusted = torch.where(labelled, own, 0).sum(dim=(1, 2, 3), dtype=torch.float64)
    return probabilities.argmax(dim=1).cpu().numpy(), trusted.tolist()


def images_of(scenes: Sequence[Scene], device: torch.device) -> Tensor:
    """Images in [-1, 1], (B, 3, H, W)."""
    stacked = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    return to_images(stacked.permute(0, 3, 1, 2).to(device))


@torch.no_grad()
def validate(
    generator: Generator,
    dataset: TripleDataset,
    judge: Segmenter | None,
    *,
    features: Sequence[str] = (),
    batch: int = 8,
    seed: int = 0,
) -> dict[str, float]:
    """Scores of a generator during training: one image of each layout of a data set.

    Args:
        generator: in evaluation mode or not; left as it was.
        dataset: layouts with their photos.
        judge: reads evaluation ids; None leaves its scores out.
        features: networks of features; only ``efficientnet_lite0`` is looked at here.
        batch: images made together.
        seed: of the styles.

    Returns:
        ``miou``, ``accuracy`` and ``fd_efficientnet_lite0``, those that there are.
    """
    device = next(generator.parameters()).device
    network = EfficientNetLite0().to(device) if "efficientnet_lite0" in features else None
    training = generator.training
    generator.eval()
    space = dataset.space
    tally = Tally(space.num_evaluation_classes)
    made: list[npt.NDArray[np.float32]] = []
    real: list[npt.NDArray[np.float32]] = []
    for found in ordered_batches(dataset, batch):
        moved = to_device(found, device)
        assert moved.images is not None
        z = None
        if generator.style:
            draws = [_noise(seed, n, generator.style_dim) for n in found.positions.tolist()]
            z = torch.stack(draws).to(device)
        S = sampler.condition(moved.labels, moved.boundary, space)
        generated = generator(S, moved.labels.long(), space.ignore_index, z)
        images = generated.image.float().clamp(-1, 1)
        if judge is not None:
            raw = cast("Labels", found.labels.numpy().astype(space.dtype))
            labels = space.to_evaluation(raw)
            readings = judge.predict(images).cpu().numpy()
            for key, label, reading in zip(found.keys, labels, readings, strict=True):
                tally.add(key, key, label, reading)
        if network is not None:
            made.append(network.embed(images).float().cpu().numpy())
            real.append(network.embed(to_images(moved.images)).float().cpu().numpy())
    generator.train(training)
    scores: dict[str, float] = {}
    if len(tally):
        overall = agreement(tally).overall
        scores = {name: overall[name].value for name in ("miou", "accuracy")}
    if sum(map(len, made)) > 1:
        value = distribution.frechet_distance_of(np.concatenate(made), np.concatenate(real))
        scores["fd_efficientnet_lite0"] = value
    return scores


def _noise(seed: int, number: int, dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(sample_seed(seed, "validation", number))
    return torch.randn(dim, generator=generator)


def _grouped(scenes: Iterable[Scene], batch: int) -> Iterable[list[Scene]]:
    group: list[Scene] = []
    for scene in scenes:
        group.append(scene)
        if len(group) == batch:
            yield group
            group = []
    if group:
        yield group
