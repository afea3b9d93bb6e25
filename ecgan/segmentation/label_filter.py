"""The label filter: where a sample does not show its layout, its label is silent.

FreeMask's rule (NeurIPS 2023, Sec. 3): a segmenter of real photos reads the sample, and a pixel
whose cross entropy against the layout exceeds 1.25 times the mean that its class has on real pairs
becomes unlabelled. So each class is measured by how hard it is on photos, not by one threshold.

A segmenter that learnt from a sample's source photo would vouch for whatever the generator knows by
heart. So there are two, each trained on one half of the real pairs: it is calibrated on the other
half, and judges what was made from there (cross-fitting).

Shape legend:
    B  images      N  classes of the recipe (input ids)      H, W  height and width
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from ecgan.data import datasets, loader
from ecgan.data.datasets import Item
from ecgan.data.loader import TripleDataset
from ecgan.errors import UsageError, UserError
from ecgan.labels import Labels, LabelSpace
from ecgan.recipe import Recipe
from ecgan.runtime.device import one_thread
from ecgan.runtime.files import write_whole
from ecgan.segmentation.segmenter import (
    Segmenter,
    Sources,
    load_segmenter,
    stamps,
    train_segmenter,
    trained_folder,
)

Counts = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
Maps = npt.NDArray[np.floating[Any]]
Pixels = npt.NDArray[np.uint8]
Independence = Literal["yes", "no", "unknown"]

_VERSION = 1  # of what calibrate measures
_SEED = 2  # of the segmenters; not the default of Gl (0) or of evaluate's judge (1)
_SMALLEST = 1e-6
_BATCH = 8  # images in one pass on CUDA


@dataclass(frozen=True, eq=False)
class ClassLosses:
    """How hard each class is for a segmenter on real pairs.

    Attributes:
        mean: mean cross entropy of its pixels, (N,); NaN where the class does not occur in the
            pairs, or the segmenter does not know it.
        pixels: of each class in the pairs, (N,).
        num_images: pairs.
    """

    mean: Numbers
    pixels: Counts
    num_images: int

    def to_json(self) -> dict[str, Any]:
        """JSON has no NaN: unknown means are null."""
        return {
            "mean": [None if np.isnan(value) else value for value in self.mean.tolist()],
            "pixels": self.pixels.tolist(),
            "num_images": self.num_images,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ClassLosses":
        mean = [np.nan if one is None else one for one in value["mean"]]
        return cls(
            np.array(mean, np.float64), np.array(value["pixels"], np.int64), value["num_images"]
        )


@dataclass(frozen=True)
class Thresholds:
    """What counts as consistent.

    Attributes:
        tolerance: pixels whose loss is above this many times their class's mean are ignored.
        min_kept: image level: a sample of which a smaller share of the labelled pixels is kept is
            inconsistent.
        min_class_kept: class level: a class of which a smaller share is kept is ignored altogether
            in that sample.
    """

    tolerance: float = 1.25
    min_kept: float = 0.5
    min_class_kept: float = 0.0


class Judgement(NamedTuple):
    """What the filter says of one sample.

    Attributes:
        label: the layout, unlabelled where the sample does not show it, (H, W).
        consistency: mean probability, in [0, 1], that the segmenter gives to the layout's class,
            over the labelled pixels that can be judged; 1 where there are none, since nothing
            speaks against the layout then.
        kept_fraction: share of the layout's labelled pixels that ``label`` keeps; 1 where there are
            none.
        is_consistent: it keeps enough of them.
        kept_pixels: labelled pixels of ``label``.
        labelled_pixels: of the layout.
    """

    label: Labels
    consistency: float
    kept_fraction: float
    is_consistent: bool
    kept_pixels: int
    labelled_pixels: int


# The rule


def class_probabilities(probabilities: Tensor, labels: Tensor, ignore: int) -> Tensor:
    """The probability of each pixel's class, (B, H, W); 1 at unlabelled pixels.

    Args:
        probabilities: of the classes, (B, N, H, W).
        labels: int64, (B, H, W).
        ignore: the value of unlabelled pixels.
    """
    labelled = labels != ignore
    classes = labels.where(labelled, labels.new_zeros(()))
    own = probabilities.gather(1, classes[:, None])[:, 0]
    return own.where(labelled, own.new_ones(()))


def pixel_losses(probabilities: Tensor, labels: Tensor, ignore: int) -> Tensor:
    """Cross entropy of each pixel: -log of its class's probability, (B, H, W); 0 if unlabelled.

    Probabilities are bounded from below by 1e-6. A softmax in float32 ends at an exact zero, whose
    infinite loss would make the class's mean infinite and so let everything pass; with the bound,
    no pixel weighs more than 14, about five times a guess among 19 classes.

    Args:
        probabilities: of the classes, (B, N, H, W).
        labels: int64, (B, H, W).
        ignore: the value of unlabelled pixels.
    """
    return -class_probabilities(probabilities, labels, ignore).clamp(min=_SMALLEST).log()


def class_loss_sums(losses: Maps, labels: Labels, num_classes: int) -> tuple[Numbers, Counts]:
    """Sum of the losses and number of the pixels of each class, (N,) each, in float64.

    Args:
        losses: of pixels, of any shape.
        labels: of the same shape; what is not below ``num_classes`` is left out.
        num_classes: N.
    """
    labelled = labels < num_classes
    classes = labels[labelled]
    sums = np.bincount(classes, losses[labelled].astype(np.float64), num_classes)
    return sums.astype(np.float64), np.bincount(classes, minlength=num_classes).astype(np.int64)


def mean_class_losses(
    sums: Numbers, pixels: Counts, known: npt.NDArray[np.bool_], num_images: int
) -> ClassLosses:
    """Means over a data set.

    Args:
        sums: of the losses of each class, (N,).
        pixels: of each class, (N,).
        known: classes that the segmenter can tell, (N,).
        num_images: in the data set.
    """
    mean = np.full(len(sums), np.nan)
    np.divide(sums, pixels, out=mean, where=known & (pixels > 0))
    return ClassLosses(mean, pixels, num_images)


def judge(
    losses: Maps,
    probabilities: Maps,
    label: Labels,
    class_losses: ClassLosses,
    thresholds: Thresholds,
    ignore_index: int,
) -> Judgement:
    """Judge one sample: pixels first, then classes, then the image.

    Pixels of classes without a mean cannot be judged: they are kept, and say nothing of the
    sample's consistency.

    Args:
        losses: of its pixels, from :func:`pixel_losses`, (H, W).
        probabilities: of the layout's classes, from :func:`class_probabilities`, (H, W).
        label: the layout, (H, W).
        class_losses: of the same segmenter.
        thresholds: what counts as consistent.
        ignore_index: the value of unlabelled pixels.
    """
    N = len(class_losses.mean)
    limits = np.full(ignore_index + 1, np.nan)  # of each value of a label map
    limits[:N] = thresholds.tolerance * class_losses.mean
    limit = limits[label]
    labelled = label != ignore_index
    kept = labelled & ~(losses > limit)  # nothing is above NaN

    num_labelled = np.bincount(label[labelled], minlength=N)
    num_kept = np.bincount(label[kept], minlength=N)
    is_lost = np.zeros(ignore_index + 1, np.bool_)
    is_lost[:N] = num_kept / np.maximum(num_labelled, 1) < thresholds.min_class_kept
    kept &= ~is_lost[label]

    kept_pixels, labelled_pixels = int(kept.sum()), int(labelled.sum())
    kept_fraction = kept_pixels / labelled_pixels if labelled_pixels else 1.0
    judged = probabilities[~np.isnan(limit)]
    consistency = min(1.0, float(judged.mean(dtype=np.float64))) if judged.size else 1.0
    return Judgement(
        cast(Labels, np.where(kept, label, label.dtype.type(ignore_index))),
        consistency,
        kept_fraction,
        kept_fraction >= thresholds.min_kept,
        kept_pixels,
        labelled_pixels,
    )


# Calibration


def calibrate(
    segmenter: Segmenter,
    dataset: TripleDataset,
    *,
    device: torch.device,
    cache: Path,
    progress: bool = True,
) -> ClassLosses:
    """Measure a segmenter on real pairs, or read what was measured of the same pairs.

    Args:
        segmenter: of the recipe's input ids, on ``device``.
        dataset: real pairs; each is looked at whole and once.
        device: where the segmenter is.
        cache: folder for the numbers, in files named by a hash of the segmenter and the data.
        progress: show a progress bar.

    Raises:
        UserError: a photo or label map cannot be read, or the numbers cannot be written.
    """
    assert not segmenter.evaluation, "labels are in input ids"
    path = cache / f"losses-{_calibration_hash(segmenter, dataset, device)[:16]}.json"
    if not path.is_file():
        measured = _measure(segmenter, dataset, device, progress=progress)
        write_whole(path, (json.dumps(measured.to_json()) + "\n").encode())
    return ClassLosses.from_json(json.loads(path.read_text(encoding="utf-8")))


def _measure(
    segmenter: Segmenter, dataset: TripleDataset, device: torch.device, *, progress: bool
) -> ClassLosses:
    N, ignore = segmenter.num_classes, dataset.space.ignore_index
    sums, pixels = np.zeros(N), np.zeros(N, np.int64)
    bar = tqdm(
        total=len(dataset),
        unit="image",
        desc="calibrating the filter",
        disable=not progress or None,
    )
    with bar, torch.inference_mode(), _same_sums(device):
        for batch in loader.ordered_batches(dataset, _pass_size(device)):
            moved = loader.to_device(batch, device)
            assert moved.images is not None
            probabilities = segmenter.probabilities(loader.to_images(moved.images))
            losses = pixel_losses(probabilities, moved.labels.long(), ignore)
            found = class_loss_sums(losses.cpu().numpy(), batch.labels.numpy(), N)
            sums += found[0]
            pixels += found[1]
            bar.update(len(batch.keys))
    return mean_class_losses(sums, pixels, segmenter.known.cpu().numpy(), len(dataset))


def _calibration_hash(segmenter: Segmenter, dataset: TripleDataset, device: torch.device) -> str:
    """Of everything that decides the means."""
    document = {
        "version": _VERSION,
        "segmenter": _describe(segmenter),
        "files": stamps(dataset.items),
        "space": dataset.space.to_json(),
        "dataset": dataset.dataset,
        "sizes": [dataset.size, dataset.resize_to],
        "device": device.type,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _describe(segmenter: Segmenter) -> dict[str, Any]:
    """What decides a segmenter's readings."""
    return {"hash": segmenter.hash, "normalisation": asdict(segmenter.normalisation)}


def _same_sums(device: torch.device) -> AbstractContextManager[object]:
    return one_thread() if device.type == "cpu" else nullcontext()


def _pass_size(device: torch.device) -> int:
    """On a CPU one image: its reading does not depend on others. Half as fast again in pairs."""
    return _BATCH if device.type == "cuda" else 1


# The filter: in the driver


@dataclass(frozen=True)
class FilterSpec:
    """What a worker needs to build the filter; small, so that it can travel.

    Attributes:
        segmenters: folders or names; one, or two that are cross-fitted.
        losses: of each of them.
        thresholds: what counts as consistent.
        hash: of the segmenters' weights and of their losses.
        independent: whether no segmenter judges what was made from a pair that it learnt from.
        weights: hash of each segmenter's weights, so that none of them is taken for a judge.
    """

    segmenters: tuple[str, ...]
    losses: tuple[ClassLosses, ...]
    thresholds: Thresholds
    hash: str
    independent: Independence
    weights: tuple[str, ...] = ()

    def pooled_losses(self) -> Numbers:
        """Mean loss of each class over the pairs of all segmenters, (N,); NaN where not known."""
        means = np.stack([one.mean for one in self.losses])
        pixels = np.stack([one.pixels for one in self.losses]) * np.isfinite(means)
        total = pixels.sum(axis=0)
        sums = (np.nan_to_num(means) * pixels).sum(axis=0)
        return np.divide(sums, total, out=np.full(len(total), np.nan), where=total > 0)


@dataclass(frozen=True)
class Folds:
    """Which segmenter judges a layout: of two, the one that did not learn from its source.

    Attributes:
        num_segmenters: 1 or 2.
        by_label: SHA-256 of the label file of each pair -> the segmenter that learnt from it.
        by_key: key of each pair -> the segmenter that learnt from it.
    """

    num_segmenters: int = 1
    by_label: Mapping[str, int] = field(default_factory=dict[str, int])
    by_key: Mapping[str, int] = field(default_factory=dict[str, int])

    def fold(self, key: str, label_sha256: str) -> int:
        """Number of the segmenter that judges a layout.

        A pair is known by the content of its label file, whatever its key; by its key where the
        content is not known, as that of a map that was edited. For a layout of neither half, the
        hash of its key decides.
        """
        if self.num_segmenters == 1:
            return 0
        learnt = self.by_label.get(label_sha256, self.by_key.get(key))
        return _number(key) % 2 if learnt is None else 1 - learnt


def halves(pairs: Mapping[str, str]) -> dict[str, int]:
    """Which half each pair belongs to, 0 or 1: by the hash of its key, half of them each.

    Pairs with the same label map stay together: a layout that is known by its content alone must
    belong to one half.

    Args:
        pairs: key -> SHA-256 of the label file.

    Raises:
        UserError: there is nothing to divide.
    """
    together: dict[str, list[str]] = {}
    for key in sorted(pairs):
        together.setdefault(pairs[key], []).append(key)
    groups = sorted(together.values(), key=lambda keys: (_number(keys[0]), keys[0]))
    if len(groups) < 2:
        raise UsageError(
            "--filter train: needs pairs with different label maps, to train on one half and judge "
            f"the other, but the {len(pairs)} pairs have only {len(groups)}; give a segmenter by "
            "path or name"
        )
    middle = (len(groups) + 1) // 2
    return {key: int(place >= middle) for place, keys in enumerate(groups) for key in keys}


def prepare_filter(  # noqa: PLR0913  what the recipe does not say
    name: str,
    recipe: Recipe,
    space: LabelSpace,
    *,
    layouts: Mapping[str, str],
    root: Path,
    cache: Path,
    device: torch.device,
    thresholds: Thresholds,
    progress: bool = True,
) -> tuple[FilterSpec, Folds]:
    """Train or load the filter's segmenters, and calibrate them on the recipe's training pairs.

    Args:
        name: train, or a segmenter by path or name.
        recipe: says which pairs there are, and in ``sampling`` how long segmenters are trained.
        space: the recipe's classes.
        layouts: that the filter will judge: key -> SHA-256 of the label file.
        root: folder of the recipe's data.
        cache: folder of trained segmenters and their losses.
        device: where it all runs.
        thresholds: what counts as consistent.
        progress: show progress bars.

    Returns:
        What workers need, and which segmenter judges which layout.

    Raises:
        UserError: the pairs are not there or have faults; no such segmenter, or its classes do not
            fit.
    """
    data = recipe.data
    items = datasets.items_for(
        data.dataset, root, data.split, train_split=data.split, fraction=data.fraction
    )
    check = datasets.check_labels(items, space, data.dataset, progress=progress)
    pairs = _Pairs(recipe, space, items, cache, device, progress)
    if name == "train":
        keyed = {i.key: bytes(d).hex() for i, d in zip(items, check.digests, strict=True)}
        half_of = halves(keyed)
        folds = Folds(2, {keyed[key]: half for key, half in half_of.items()}, half_of)
        found = [pairs.trained(half_of, half) for half in (0, 1)]
        sources, segmenters, losses = zip(*found, strict=True)
        losses = _known_to_both(losses)
        independent: Independence = "yes"
    else:
        segmenter = load_segmenter(name, space, device=device)
        sources = (str(Path(name).absolute()) if Path(name).is_dir() else name,)
        segmenters, losses = (segmenter,), (pairs.losses(segmenter, items),)
        folds, independent = Folds(), _independence(segmenter.sources, layouts)
    digest = _filter_hash(segmenters, losses)
    weights = tuple(segmenter.weights_hash for segmenter in segmenters)
    return FilterSpec(sources, losses, thresholds, digest, independent, weights), folds


@dataclass(frozen=True)
class _Pairs:
    """The real pairs of a recipe, to train and measure segmenters on."""

    recipe: Recipe
    space: LabelSpace
    items: Sequence[Item]
    cache: Path
    device: torch.device
    progress: bool

    def trained(self, half_of: Mapping[str, int], half: int) -> tuple[str, Segmenter, ClassLosses]:
        """A segmenter of one half, its folder, and its losses on the other."""
        own, others = (
            [item for item in self.items if (half_of[item.key] == half) == belongs]
            for belongs in (True, False)
        )
        data, sampling = self.recipe.data, self.recipe.sampling
        segmenter = train_segmenter(
            self._dataset(own, train=True),
            self.space,
            height=data.height,
            width_px=data.width,
            width=sampling.filter_width,
            images=sampling.filter_images,
            seed=_SEED,
            cache=self.cache,
            device=self.device,
            progress=self.progress,
            workers=data.workers,
        )
        folder = trained_folder(self.cache, segmenter.provenance.data).absolute()
        return str(folder), segmenter, self.losses(segmenter, others)

    def losses(self, segmenter: Segmenter, items: Sequence[Item]) -> ClassLosses:
        return calibrate(
            segmenter,
            self._dataset(items, train=False),
            device=self.device,
            cache=self.cache,
            progress=self.progress,
        )

    def _dataset(self, items: Sequence[Item], *, train: bool) -> TripleDataset:
        """Cropped as in the training of the generator, or whole at the size of its samples."""
        data = self.recipe.data
        return TripleDataset(
            items,
            self.space,
            data.dataset,
            height=data.height,
            width=data.width,
            resize_to=data.resize_to if train else None,
            flip=data.flip,
            train=train,
            edges="none",
        )


def _known_to_both(losses: Sequence[ClassLosses]) -> tuple[ClassLosses, ...]:
    """Without the means of classes that one half lacks: its segmenter has never seen them."""
    occurs = np.all([one.pixels > 0 for one in losses], axis=0)
    return tuple(
        ClassLosses(np.where(occurs, one.mean, np.nan), one.pixels, one.num_images)
        for one in losses
    )


def _independence(sources: Sources, layouts: Mapping[str, str]) -> Independence:
    if not sources.keys:
        return "unknown"
    seen = sources.keys & layouts.keys() or sources.labels & set(layouts.values())
    return "no" if seen else "yes"


def _filter_hash(segmenters: Sequence[Segmenter], losses: Sequence[ClassLosses]) -> str:
    document = [*map(_describe, segmenters), *(one.to_json() for one in losses)]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _number(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


# The filter: in a worker


class Filter:
    """Judges samples, with the segmenters of a spec.

    Args:
        spec: from :func:`prepare_filter`.
        space: the recipe's classes.
        device: where the segmenters run.

    Raises:
        UserError: a segmenter is not there, or not the one that the spec was made with.
    """

    def __init__(self, spec: FilterSpec, space: LabelSpace, device: torch.device) -> None:
        self.spec = spec
        self.ignore_index = space.ignore_index
        self.device = device
        self.segmenters = [load_segmenter(name, space, device=device) for name in spec.segmenters]
        if _filter_hash(self.segmenters, spec.losses) != spec.hash:
            raise UserError(
                f"--filter: {' or '.join(spec.segmenters)} holds other weights than when the run "
                "was planned; run the same command again"
            )

    @torch.inference_mode()
    def judge_batch(self, images: Pixels, labels: Labels, fold: int) -> list[Judgement]:
        """Judge samples of layouts of one fold.

        Args:
            images: (B, H, W, 3).
            labels: their layouts, input ids, (B, H, W).
            fold: number of the segmenter, from :meth:`Folds.fold`.
        """
        segmenter, losses = self.segmenters[fold], self.spec.losses[fold]
        judgements: list[Judgement] = []
        with _same_sums(self.device):
            step = _pass_size(self.device)
            for first in range(0, len(images), step):
                some = labels[first : first + step]
                maps = self._maps(segmenter, images[first : first + step], some)
                judgements += [
                    judge(loss, own, label, losses, self.spec.thresholds, self.ignore_index)
                    for loss, own, label in zip(*maps, some, strict=True)
                ]
        return judgements

    def _maps(
        self, segmenter: Segmenter, images: Pixels, labels: Labels
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Losses and probabilities of the layouts' classes, (B, H, W) each."""
        pixels = torch.tensor(images).permute(0, 3, 1, 2).to(self.device)
        classes = torch.from_numpy(labels.astype(np.int64)).to(self.device)
        found = segmenter.probabilities(loader.to_images(pixels))
        losses = pixel_losses(found, classes, self.ignore_index)
        own = class_probabilities(found, classes, self.ignore_index)
        return losses.cpu().numpy(), own.cpu().numpy()
