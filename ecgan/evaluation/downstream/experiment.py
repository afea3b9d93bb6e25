"""A downstream experiment: its options, their checks, and what decides the result of each run.

Leaks are refused here (:mod:`ecgan.evaluation.downstream.leakage`), before anything is trained; all
faults at once.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from ecgan.data import checks, datasets
from ecgan.data.datasets import DataFolder, Item
from ecgan.data.loader import TripleDataset
from ecgan.data.packed import sample_sets
from ecgan.errors import UsageError, UserError
from ecgan.evaluation.downstream import leakage
from ecgan.evaluation.downstream.leakage import Doubt, Findings, Generators, Part
from ecgan.evaluation.downstream.student import Run, StudentConfig
from ecgan.evaluation.sources import Samples
from ecgan.labels import Labels, LabelSpace
from ecgan.recipe_schema import DownstreamTraining
from ecgan.runtime.jobs import Workers
from ecgan.segmentation import loading
from ecgan.segmentation.segmenter import Sources
from ecgan.segmentation.training import file_stamps
from ecgan.shards.manifest import read_manifest

_VERSION = 1  # of how a student is trained and tested
_TRAINING = DownstreamTraining()
_HERE = Workers()

Mix = float | Literal["synthetic"]


@dataclass(frozen=True)
class Request:
    """Options of a downstream experiment.

    Attributes:
        folder: folder of the real data set.
        train_split: split that segmenters learn from.
        test_split: split that they are tested on.
        space: class list.
        size: height and width of the samples; real pairs are resized to it.
        samples: sets of samples; each is for the fraction that its generator was trained on.
        fractions: fractions of the real pairs, in (0, 1].
        mixes: samples drawn for each real pair; ``synthetic``: samples only.
        seeds: number of seeds; run k has the seed ``training.seed + k``.
        training: architecture and length of training.
        segmenter: segmenter to fine-tune, by path or name; None: one from scratch.
        flip: mirror half of what the segmenters see.
        generators: generator files, beside those in ``runs/``.
        unknown_generator: accept samples whose generator's training data is not known.
        cache: folder of results.
        workers: workers that train.
        quiet: no progress bar.
    """

    folder: DataFolder
    train_split: str
    test_split: str
    space: LabelSpace
    size: tuple[int, int]
    samples: Sequence[str | Path]
    cache: Path
    fractions: tuple[float, ...] = (1.0,)
    mixes: tuple[Mix, ...] = (0.0, 1.0)
    seeds: int = 3
    training: DownstreamTraining = _TRAINING
    segmenter: str | None = None
    flip: bool = True
    generators: tuple[Path, ...] = ()
    unknown_generator: bool = False
    workers: Workers = _HERE
    quiet: bool = False

    @property
    def runs(self) -> list[Run]:
        """All runs, condition by condition, each once."""
        mixes = [None if mix == "synthetic" else float(mix) for mix in self.mixes]
        wanted = (
            Run(fraction, mix, seed)
            for fraction in self.fractions
            for mix in mixes
            for seed in range(self.training.seed, self.training.seed + self.seeds)
        )
        return [*dict.fromkeys(wanted)]

    @property
    def needs_samples(self) -> bool:
        """Whether any condition has samples."""
        return any(mix != 0 for mix in self.mixes)


@dataclass
class Experiment:
    """A checked experiment.

    Attributes:
        request: options of the experiment.
        config: configuration of all students.
        places: sets of samples that are used, as the user named them.
        notes: remarks for the reader of the results.
        doubts: sources of the samples that may have been a held-out pair.
    """

    request: Request
    config: StudentConfig
    places: tuple[str, ...]
    notes: list[str]
    doubts: frozenset[Doubt]

    def path(self, run: Run) -> Path:
        """File of a run's result, named by a hash of everything that decides it."""
        own = self.config.parts[run.fraction] if run.mix is not None else ()
        sets = self.config.samples[run.fraction] if run.mix != 0 else ()
        about = self._common | {
            "mix": run.mix,
            "seed": run.seed,
            "real": [self._stamps[index] for index in own],
            "samples": [self._fingerprints[one.place] for one in sets],
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        return self.request.cache / f"run-{digest[:24]}.json"

    @cached_property
    def _common(self) -> dict[str, Any]:
        """Everything that decides the results of all runs alike."""
        config, training = self.config, self.config.training
        # Channels of a SegFormer, as version 0.1 wrote it, or the name of another architecture
        student = training.channels if training.architecture == "segformer" else "unet"
        return {
            "version": _VERSION,
            "test": file_stamps(config.test.items),
            "space": config.space.identity(),
            "dataset": config.real.dataset,
            "size": config.real.size,
            "flip": config.flip,
            "steps": config.steps,
            "batch": training.batch,
            "student": loading.weights_hash(config.segmenter) if config.segmenter else student,
            "device": torch.device(config.device).type,
        }

    @cached_property
    def _stamps(self) -> list[tuple[str | int, ...]]:
        return file_stamps(self.config.real.items)

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        """Hash of each set of samples, by place."""
        sets = [one for those in self.config.samples.values() for one in those]
        return {one.place: _fingerprint(one) for one in sets}


def match_samples(
    places: Sequence[str | Path], fractions: Sequence[float]
) -> tuple[dict[float, tuple[str, ...]], list[str]]:
    """Give each set to the fraction of the real pairs that its generator was trained on.

    Returns:
        Sets of each fraction, and a note for each set that no fraction asked for. A set without a
        manifest of ours counts as made from all pairs.
    """
    found: dict[float, tuple[str, ...]] = dict.fromkeys(fractions, ())
    notes: list[str] = []
    for place in map(str, places):
        about = read_manifest(place)
        own = 1.0 if about is None else about.of_recipe("data", "fraction", 1.0)
        fraction = next((f for f in fractions if math.isclose(f, own)), None)
        if fraction is None:
            notes.append(
                f"{place}: made by a generator of {own:g} of the real pairs, which is none of the "
                "fractions asked for; not used"
            )
        else:
            found[fraction] += (place,)
    return found, notes


def check(request: Request) -> Experiment:
    """Check an experiment before anything is trained.

    Raises:
        UserError: it cannot be trained, or would show what segmenters are tested on; all faults at
            once.
    """
    _check_options(request)
    by_fraction, notes = match_samples(request.samples, request.fractions)
    by_fraction = by_fraction if request.needs_samples else dict.fromkeys(by_fraction, ())
    train, test, parts = _real(request)
    found, generators = Findings(notes=notes), Generators(request.generators)
    samples: dict[float, tuple[Samples, ...]] = {}
    for fraction, places in by_fraction.items():
        part = parts[fraction]
        if request.needs_samples and not places:
            found.faults.append(
                f"--real-fraction {fraction:g}: no samples for it; make them: {part.command}"
            )
        samples[fraction] = tuple(_opened(place, request, found.faults) for place in places)
        for place in places:
            leakage.check(place, part, generators, request.unknown_generator, found)
    _check_segmenter(request, parts[min(parts)], found)
    if found.faults:
        raise UsageError("ecgan downstream", [*dict.fromkeys(found.faults)])
    workers, cores = request.workers, os.cpu_count() or 1
    share = max(1, cores // workers.count)
    config = StudentConfig(
        real=train,
        parts={
            fraction: tuple(n for n, key in enumerate(train.keys) if key in part.own.keys)
            for fraction, part in parts.items()
        },
        samples=samples,
        test=test,
        space=request.space,
        training=request.training,
        segmenter=None if request.segmenter is None else _absolute(request.segmenter),
        flip=request.flip,
        device=workers.device,
        threads=None if workers.in_process else min(torch.get_num_threads(), share),
        loaders=min(8, share if workers.address is None else cores),
    )
    used = tuple(dict.fromkeys(place for those in by_fraction.values() for place in those))
    return Experiment(request, config, used, [*dict.fromkeys(found.notes)], frozenset(found.doubts))


# Checks


def _check_options(request: Request) -> None:
    faults = [f"--seeds {request.seeds}: must be at least 1"] * (request.seeds < 1)
    faults += [
        f"--real-fraction {fraction:g}: must be above 0 and at most 1"
        for fraction in request.fractions
        if not 0 < fraction <= 1
    ]
    faults += [
        f"--mix {mix}: must be 0 or more, or synthetic"
        for mix in request.mixes
        if mix != "synthetic" and not 0 <= mix < math.inf
    ]
    for name, values in (("--real-fraction", request.fractions), ("--mix", request.mixes)):
        if not values:
            faults.append(f"{name}: give at least one")
    images, batch = request.training.images, request.training.batch
    if images < batch:
        faults.append(f"evaluate.downstream_training.images {images}: less than a batch ({batch})")
    if request.test_split == request.train_split:
        faults.append(
            f"--split {request.test_split}: segmenters are trained on it; test on another"
        )
    if faults:
        raise UsageError("ecgan downstream", faults)


def _real(request: Request) -> tuple[TripleDataset, TripleDataset, dict[float, Part]]:
    """Pairs to learn from, pairs to be tested on, and the parts of the former."""
    space, dataset = request.space, request.folder.dataset

    def items_of(split: str, *, need_images: bool = True) -> list[Item]:
        return request.folder.items_for(
            split, train_split=request.train_split, need_images=need_images
        )

    train, test = items_of(request.train_split), items_of(request.test_split)
    found = checks.check_labels(train, space, dataset)
    train = list(found.items)
    digests = {item.key: bytes(d).hex() for item, d in zip(train, found.digests, strict=True)}
    ids = cast(Labels, np.arange(space.num_classes, dtype=space.dtype))
    is_scored = space.to_evaluation(ids) != space.ignore_index
    checked = checks.check_labels(test, space, dataset)
    test = list(checked.items)
    if not checked.totals.pixels[is_scored].any():
        raise UserError(
            f"{request.folder.root}: no pixel of split {request.test_split} has a class that is "
            "scored; test on another with --split"
        )
    there = request.folder.splits()
    held_splits = {"val", request.test_split, *({"test"} & set(there))} - {request.train_split}
    # The labels of a test split may be nothing but placeholders, and its photos elsewhere.
    held = [item for split in sorted(held_splits) for item in items_of(split, need_images=False)]

    def sources(items: Sequence[Item]) -> Sources:
        keys = frozenset(item.key for item in items)
        return Sources(keys, frozenset(digests[key] for key in keys))

    whole = Part(
        1, sources(train), sources(train), Sources.of(held), frozenset(held_splits),
        request.train_split,
    )  # fmt: skip
    parts = {
        fraction: replace(
            whole, fraction=fraction, own=sources(datasets.take_fraction(train, fraction))
        )
        for fraction in request.fractions
    }
    height, width = request.size
    learnt, tested = (
        TripleDataset(items, space, dataset, height=height, width=width, train=False, edges="none")
        for items in (train, test)
    )
    return learnt, tested, parts


def _opened(place: str, request: Request, faults: list[str]) -> Samples:
    """Open a set, and add to the faults what does not fit."""
    about, space = read_manifest(place), request.space
    if about is not None:
        own = about.class_list(place)
        if own.names != space.names or own.evaluation != space.evaluation:
            faults.append(
                f"{place}: its classes ({', '.join(own.names[:4])}, ...) are not those of the real "
                f"data set ({', '.join(space.names[:4])}, ...)"
            )
    first = next(sample_sets.read(place), None)
    if first is None:
        faults.append(f"{place}: holds no samples")
    elif first.image.shape[:2] != request.size:
        faults.append(
            f"{place}: its samples are {first.image.shape[0]} x {first.image.shape[1]}, expected "
            f"{request.size[0]} x {request.size[1]}"
        )
    is_evaluation = about is not None and about.label_space == "evaluation"
    return Samples(_absolute(place), space, request.size, is_evaluation)


def _check_segmenter(request: Request, smallest: Part, found: Findings) -> None:
    """Refuse to fine-tune what has learnt the tested pairs, or more than the smallest part."""
    name = request.segmenter
    if name is None:
        return
    loading.load_for_finetuning(name, request.space.names_for_evaluation, 0)
    learnt = loading.sources_of(name)
    if learnt is None or not learnt.labels:
        found.notes.append(f"what the segmenter {name} learnt from before is not known")
        return
    if seen := learnt.labels & smallest.held.labels - smallest.train.labels:
        found.faults.append(
            f"--segmenter {name}: it learnt from {len(seen)} pairs that nobody may learn from; "
            "give another"
        )
    if more := learnt.labels & smallest.train.labels - smallest.own.labels:
        found.faults.append(
            f"--segmenter {name}: it learnt from {len(more)} real pairs outside of the fraction "
            f"{smallest.fraction:g}; give another"
        )


def _absolute(name: str) -> str:
    """Folder by its absolute path; an address or a name on the hub as it is."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def _fingerprint(samples: Samples) -> str:
    """Hash of the bytes of a set: by its manifest, where there is one."""
    about = read_manifest(samples.place)
    if about is None:
        return samples.fingerprint(0, len(samples)).hex()
    shards = [[shard.name, shard.sha256] for shard in about.shards]
    text = json.dumps([shards, samples.is_evaluation])
    return hashlib.sha256(text.encode()).hexdigest()
