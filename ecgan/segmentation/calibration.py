"""Calibration of the label filter: segmenters of real pairs, and their losses on others.

Shape legend:
    N  classes of the recipe (input ids)
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, Field

from ecgan.data import checks, loader
from ecgan.data.datasets import Item
from ecgan.data.label_cache import LabelCache
from ecgan.data.loader import TripleDataset
from ecgan.errors import UsageError
from ecgan.labels import LabelSpace
from ecgan.reading.documents import read_cached
from ecgan.reading.numbers import Count, Weight
from ecgan.recipe import Recipe, data_folder, subset
from ecgan.runtime.files import write_whole
from ecgan.runtime.storage import Folder
from ecgan.runtime.timing import Progress, counted
from ecgan.segmentation.label_filter import (
    ClassLosses,
    FilterSpec,
    Folds,
    Independence,
    Thresholds,
    batch_size,
    class_loss_sums,
    deterministic,
    filter_hash,
    key_number,
    mean_class_losses,
    pixel_losses,
    prediction_key,
)
from ecgan.segmentation.loading import load_segmenter
from ecgan.segmentation.segmenter import Segmenter, Sources
from ecgan.segmentation.training import file_stamps, train_segmenter

_VERSION = 1  # of the measurement


class _Kept(BaseModel):
    """Measurement in a file, as of :meth:`ClassLosses.to_json`."""

    mean: list[Weight | None]
    pixels: list[Annotated[int, Field(ge=0, lt=1 << 63)]]
    num_images: Count


def calibrate(
    segmenter: Segmenter,
    dataset: TripleDataset,
    *,
    device: torch.device,
    cache: Path,
    progress: bool = True,
) -> ClassLosses:
    """Measure a segmenter's losses on real pairs, or read them from the cache.

    Args:
        segmenter: segmenter of the recipe's input ids, on ``device``.
        dataset: real pairs; each is used whole and once.
        device: device of the segmenter.
        cache: folder of measurements, in files named by a hash of the segmenter and the data.
        progress: show a progress bar.

    Raises:
        UserError: a photo or label map cannot be read, or the numbers cannot be written.
    """
    assert not segmenter.evaluation, "labels are in input ids"
    path = cache / f"losses-{_calibration_hash(segmenter, dataset, device)[:16]}.json"
    kept = read_cached(path, _Kept)
    if kept is None or not len(kept.mean) == len(kept.pixels) == segmenter.num_classes:
        measured = _measure(segmenter, dataset, device, progress=progress)
        write_whole(path, (json.dumps(measured.to_json()) + "\n").encode())
        return measured
    return ClassLosses.from_json(kept.model_dump())


def _measure(
    segmenter: Segmenter, dataset: TripleDataset, device: torch.device, *, progress: bool
) -> ClassLosses:
    N, ignore = segmenter.num_classes, dataset.space.ignore_index
    sums, pixels = np.zeros(N), np.zeros(N, np.int64)
    bar = Progress(len(dataset), "calibrating the filter", "image", show=progress)
    with bar, torch.inference_mode(), deterministic(device):
        for batch in loader.ordered_batches(dataset, batch_size(device)):
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
    """SHA-256 of everything that decides the means."""
    document = {
        "version": _VERSION,
        "segmenter": prediction_key(segmenter),
        "files": file_stamps(dataset.items),
        "space": dataset.space.identity(),
        "dataset": dataset.dataset,
        "sizes": [dataset.size, dataset.size_before_crop],
        "device": device.type,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def halves(pairs: Mapping[str, str]) -> dict[str, int]:
    """Half of each pair, 0 or 1, by the hash of its key.

    Pairs with the same label map stay together: a layout that is recognised by its content must
    belong to one half.

    Args:
        pairs: key -> SHA-256 of the label file.

    Raises:
        UserError: fewer than two different label maps.
    """
    together: dict[str, list[str]] = {}
    for key in sorted(pairs):
        together.setdefault(pairs[key], []).append(key)
    groups = sorted(together.values(), key=lambda keys: (key_number(keys[0]), keys[0]))
    if len(groups) < 2:
        raise UsageError(
            "--filter train: needs pairs with different label maps, to train on one half and judge "
            f"the other, but of {counted(len(pairs), 'pair')} there is only {len(groups)}; give a "
            "segmenter by path or name"
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
        recipe: its pairs, and in ``sampling`` the segmenters' training.
        space: the recipe's classes.
        layouts: layouts to be judged: key -> SHA-256 of the label file.
        root: folder of the recipe's data.
        cache: folder of trained segmenters and their losses.
        device: device of the segmenters.
        thresholds: thresholds of the label filter.
        progress: show progress bars.

    Returns:
        Configuration of the workers' filter, and the segmenter of each layout.

    Raises:
        UserError: the pairs are not there or have faults; no such segmenter, or its classes do not
            fit.
    """
    data = recipe.data
    items = data_folder(data, root).items_for(
        data.split, train_split=data.split, subset=subset(data)
    )
    known = LabelCache(Folder(cache))
    check = checks.check_labels(items, space, data.dataset, cache=known, progress=progress)
    known.save()
    items = list(check.items)
    pairs = _Pairs(recipe, space, items, cache, device, progress)
    if name == "train":
        keyed = {i.key: bytes(d).hex() for i, d in zip(items, check.digests, strict=True)}
        half_of = halves(keyed)
        folds = Folds(2, {keyed[key]: half for key, half in half_of.items()}, half_of)
        found = [pairs.trained(half_of, half) for half in (0, 1)]
        segmenters, losses = zip(*found, strict=True)
        names = tuple(str(Path(one.loaded_from).absolute()) for one in segmenters)
        losses = _known_to_both(losses)
        independent: Independence = "yes"
    else:
        segmenter = load_segmenter(name, space, device=device, role="filter")
        names = (str(Path(name).absolute()) if Path(name).is_dir() else name,)
        segmenters, losses = (segmenter,), (pairs.losses(segmenter, items),)
        folds, independent = Folds(), _independence(segmenter.sources, layouts)
    digest = filter_hash(segmenters, losses)
    weights = tuple(segmenter.weights_hash for segmenter in segmenters)
    return FilterSpec(names, losses, thresholds, digest, independent, weights), folds


@dataclass(frozen=True)
class _Pairs:
    """The real pairs of a recipe, to train and measure segmenters on."""

    recipe: Recipe
    space: LabelSpace
    items: Sequence[Item]
    cache: Path
    device: torch.device
    progress: bool

    def trained(self, half_of: Mapping[str, int], half: int) -> tuple[Segmenter, ClassLosses]:
        """A segmenter of one half, and its losses on the other."""
        own, others = (
            [item for item in self.items if (half_of[item.key] == half) == belongs]
            for belongs in (True, False)
        )
        data, sampling = self.recipe.data, self.recipe.sampling
        segmenter = train_segmenter(
            self._dataset(own, train=True),
            self.space,
            sampling.filter_training,
            self.cache,
            self.device,
            role=f"label filter's segmenter {half + 1} of 2" if self.progress else None,
            workers=data.workers,
        )
        return segmenter, self.losses(segmenter, others)

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
    """Remove the means of classes that one half lacks: its segmenter has never seen them."""
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
