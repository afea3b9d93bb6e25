"""A downstream experiment: its options, their checks, and what decides the result of each run.

Leaks are refused here (:mod:`ecgan.evaluation.downstream.leakage`), before anything is trained; all
faults at once.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ecgan.data import checks
from ecgan.data.datasets import DataFolder, Item, Subset
from ecgan.data.files.images import digests_of, probe_photos, sha256
from ecgan.data.files.names import photos_below
from ecgan.data.loader import TripleDataset, ordered_batches
from ecgan.data.packed import sample_sets
from ecgan.errors import UsageError, UserError
from ecgan.evaluation.downstream import leakage
from ecgan.evaluation.downstream.arms import Arm, Run, Source
from ecgan.evaluation.downstream.leakage import Doubt, Findings, Generators, Part
from ecgan.evaluation.downstream.student import StudentConfig, normalised
from ecgan.evaluation.sources import Samples
from ecgan.generation.layout_augmentation import thing_classes
from ecgan.labels import Labels, LabelSpace
from ecgan.reading.places import Address
from ecgan.recipe.segmenters import DownstreamTraining
from ecgan.runtime.jobs import Workers
from ecgan.runtime.timing import counted
from ecgan.segmentation import loading
from ecgan.segmentation.segmenter import OVERFLOW, Sources, require_finite_scores
from ecgan.segmentation.training import file_stamps
from ecgan.shards.manifest import Manifest, photo_digest, read_manifest

_VERSION = 2  # of how a student is trained and tested
_TRAINING = DownstreamTraining()
_HERE = Workers()


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
        parts: parts of the real pairs.
        arms: what students learn from, beside a part or in its place.
        curve: further parts, which only students of real pairs are trained with: what more labelled
            photos are worth.
        things: names of the classes that copy-paste moves; empty: by their names.
        unlabelled: folder of photos without labels, for the arms that need them.
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
    parts: tuple[Subset, ...] = (Subset(),)
    arms: tuple[Arm, ...] = (Arm.of(0), Arm.of("copy-paste"), Arm.of(1), Arm.of("synthetic"))
    curve: tuple[Subset, ...] = ()
    things: tuple[str, ...] = ()
    unlabelled: Path | None = None
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
        conditions = [(part, arm) for part in self.parts for arm in self.arms]
        conditions += [(part, Arm.of(0)) for part in self.curve]
        wanted = (
            Run(part, arm, seed)
            for part, arm in conditions
            for seed in range(self.training.seed, self.training.seed + self.seeds)
        )
        return [*dict.fromkeys(wanted)]

    @property
    def needs_samples(self) -> bool:
        """Whether any condition has samples."""
        return any(arm.needs_samples for arm in self.arms)


@dataclass
class Experiment:
    """A checked experiment.

    Attributes:
        asked: options as they were given.
        request: those that can be had.
        config: configuration of all students.
        places: sets of samples that are used, as the user named them.
        notes: remarks for the reader of the results.
        doubts: sources of the samples that may have been a held-out pair.
    """

    asked: Request
    request: Request
    config: StudentConfig
    places: tuple[str, ...]
    notes: list[str]
    doubts: frozenset[Doubt]

    def path(self, run: Run) -> Path:
        """File of a run's result, named by a hash of everything that decides it."""
        arm, config, training = run.arm, self.config, self.config.training
        own = config.parts[run.part] if arm.has_real else ()
        sets = config.samples[run.part] if arm.needs_samples else ()
        about = self._common | {
            "source": arm.source,
            "mix": arm.mix,
            "seed": run.seed,
            "real": [self._stamps[index] for index in own],
            "samples": [self._fingerprints[one.place] for one in sets],
        }
        if arm.source is not Source.NOTHING:
            about["until"] = training.mix_until
        if arm.needs_samples:
            about |= {"weight": training.sample_weight, "border": training.border}
        if arm.needs_unlabelled:
            about["unlabelled"] = self._unlabelled
        if arm.source is Source.COPY_PASTE:
            about["things"] = sorted(config.things)
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        return self.request.cache / f"run-{digest[:24]}.json"

    @cached_property
    def _common(self) -> dict[str, Any]:
        """Everything that decides the results of all runs alike."""
        config, training = self.config, self.config.training
        student = [training.architecture]
        student += [training.channels] if training.architecture == "segformer" else []
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
    def _unlabelled(self) -> list[str]:
        return [sha256(path) for path in self.config.unlabelled]

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        """Hash of each set of samples, by place."""
        sets = [one for those in self.config.samples.values() for one in those]
        return {one.place: _fingerprint(one) for one in sets}


def match_samples(
    places: Sequence[str | Path], parts: Sequence[Subset]
) -> tuple[dict[Subset, tuple[str, ...]], list[str]]:
    """Give each set to the part of the real pairs that its generator was trained on.

    Returns:
        Sets of each part, and a note for each set that no part asked for. A set without a manifest
        of ours counts as made from all pairs.
    """
    found: dict[Subset, tuple[str, ...]] = dict.fromkeys(parts, ())
    notes: list[str] = []
    for place in map(Address, places):
        about = read_manifest(place)
        own = Subset() if about is None else part_of(about)
        if own not in found:
            notes.append(
                f"{place}: made by a generator of {own} of the real pairs, which is none of the "
                "parts asked for; not used"
            )
        else:
            found[own] += (place,)
    return found, notes


def part_of(about: Manifest) -> Subset:
    """Part of the real pairs that a set's generator was trained on."""
    return Subset(
        about.of_recipe("data", "fraction", 1.0),
        about.of_recipe("data", "pairs", None),
        about.of_recipe("data", "draw", 0),
        about.of_recipe("data", "draw_by", "hash"),
    )


def check(request: Request) -> Experiment:
    """Check an experiment before anything is trained.

    Raises:
        UserError: it cannot be trained, or would show what segmenters are tested on; all faults at
            once.
    """
    _check_options(request)
    asked, (request, missing) = request, _possible(request)
    by_part, notes = match_samples(request.samples, request.parts)
    by_part = by_part if request.needs_samples else dict.fromkeys(by_part, ())
    train, test, parts = _real(request)
    found, generators = Findings(notes=notes + missing), Generators(request.generators)
    samples: dict[Subset, tuple[Samples, ...]] = {}
    for subset, places in by_part.items():
        part = parts[subset]
        if request.needs_samples and not places:
            found.faults.append(f"no samples for {subset} of the pairs; make them: {part.command}")
        samples[subset] = tuple(_opened(place, request, found.faults) for place in places)
        found.faults += _faults_of_photos(places, request.arms)
        for place in places:
            leakage.check(place, part, generators, request.unknown_generator, found)
    smallest = min(parts.values(), key=lambda part: len(part.own.keys))
    _check_segmenter(request, test, smallest, found)
    unlabelled = _unlabelled(request, test, found.faults)
    if found.faults:
        raise UsageError("ecgan downstream", [*dict.fromkeys(found.faults)])
    workers, cores = request.workers, os.cpu_count() or 1
    share = max(1, cores // workers.count)
    config = StudentConfig(
        real=train,
        parts={
            subset: tuple(n for n, key in enumerate(train.keys) if key in part.own.keys)
            for subset, part in parts.items()
        },
        samples=samples,
        test=test,
        unlabelled=unlabelled,
        things=_things(request),
        space=request.space,
        training=request.training,
        segmenter=None if request.segmenter is None else _absolute(request.segmenter),
        flip=request.flip,
        device=workers.device,
        threads=None if workers.in_process else min(torch.get_num_threads(), share),
        loaders=min(8, share if workers.address is None else cores),
    )
    used = tuple(dict.fromkeys(place for those in by_part.values() for place in those))
    return Experiment(
        asked, request, config, used, [*dict.fromkeys(found.notes)], frozenset(found.doubts)
    )


# Checks


def _check_options(request: Request) -> None:
    faults = [f"--seeds {request.seeds}: must be at least 1"] * (request.seeds < 1)
    faults += [
        f"--real-fraction {part.fraction:g}: must be above 0 and at most 1"
        for part in request.parts
        if not 0 < part.fraction <= 1
    ]
    for name, values in (("--real-fraction", request.parts), ("--mix", request.arms)):
        if not values:
            faults.append(f"{name}: give at least one")
    images, batch = request.training.length, request.training.batch
    if images < batch:
        faults.append(f"evaluate.downstream_training.images {images}: less than a batch ({batch})")
    if request.test_split == request.train_split:
        faults.append(
            f"--split {request.test_split}: segmenters are trained on it; test on another"
        )
    if request.unlabelled is None:
        faults += [
            f"--mix {arm.source}: needs photos without labels; give --unlabelled DIR"
            for arm in request.arms
            if arm.needs_unlabelled
        ]
    if faults:
        raise UsageError("ecgan downstream", faults)


def _possible(request: Request) -> tuple[Request, list[str]]:
    """The request without copy-paste where no class can be moved, and a note on that."""
    kept = tuple(arm for arm in request.arms if arm.source is not Source.COPY_PASTE)
    if kept == request.arms or _things(request):
        return request, []
    note = (
        "copy-paste is left out: no class of the list is known as a thing that can be moved; name "
        "some with sampling.things"
    )
    return replace(request, arms=kept), [note]


def _things(request: Request) -> frozenset[int]:
    """Classes that copy-paste moves; none where no name of the list is known as a thing's."""
    if not any(arm.source is Source.COPY_PASTE for arm in request.arms):
        return frozenset()
    if request.things:
        return thing_classes(request.space, request.things)
    try:
        return thing_classes(request.space)
    except UserError:
        return frozenset()


def _faults_of_photos(places: Sequence[str], arms: Sequence[Arm]) -> list[str]:
    """Refuse images that hold pixels of photos where samples shall do without any photo."""
    if all(arm.has_real for arm in arms):
        return []
    made = ((place, read_manifest(place)) for place in places)
    return [
        f"--mix synthetic: images of {place} hold pixels of photos (--onto photos), so they are no "
        "samples alone; leave it out of --mix"
        for place, about in made
        if about is not None and about.onto
    ]


def _unlabelled(request: Request, test: TripleDataset, faults: list[str]) -> tuple[Path, ...]:
    """Photos without labels; none of them may be tested on."""
    folder = request.unlabelled
    if folder is None or not any(arm.needs_unlabelled for arm in request.arms):
        return ()
    try:
        photos = photos_below(folder, "--unlabelled")
    except UsageError as error:
        faults.append(str(error))
        return ()
    digests, damaged = probe_photos(photos)
    faults += (f"--unlabelled {fault}" for fault in damaged)
    tested = digests_of((item.image for item in test.items), digests)
    if shared := [path for path, digest in digests.items() if digest in tested]:
        faults.append(
            f"--unlabelled {folder}: {counted(len(shared), 'photo')} (first: {shared[0].name}) of "
            f"the split {request.test_split}, on which segmenters are tested; give others"
        )
    return photos


def _real(request: Request) -> tuple[TripleDataset, TripleDataset, dict[Subset, Part]]:
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

    @cache
    def held_photos() -> frozenset[str]:
        folder = request.folder
        found = (folder.photos(split, request.train_split) for split in held_splits)
        return frozenset(map(photo_digest, digests_of(itertools.chain.from_iterable(found))))

    whole = Part(
        Subset(), sources(train), sources(train), Sources.of(held), frozenset(held_splits),
        request.train_split, held_photos,
    )  # fmt: skip
    parts = {
        subset: replace(whole, subset=subset, own=sources(subset.of(train)))
        for subset in dict.fromkeys((*request.parts, *request.curve))
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


def _check_segmenter(
    request: Request, test: TripleDataset, smallest: Part, found: Findings
) -> None:
    """Refuse to fine-tune what overflows, or has learnt tested pairs or more than a part."""
    name = request.segmenter
    if name is None:
        return
    network, normalisation = loading.load_for_finetuning(
        name, request.space.names_for_evaluation, 0
    )
    for batch in ordered_batches(replace(test, items=test.items[:1]), 1):
        assert batch.images is not None
        with torch.inference_mode():
            scores = network.eval()(pixel_values=normalised(batch.images, normalisation)).logits
        require_finite_scores(scores, f"--segmenter {name}", OVERFLOW)
    learnt = loading.sources_of(name)
    if learnt is None or not learnt.labels:
        found.notes.append(f"what the segmenter {name} learnt from before is not known")
        return
    if seen := learnt.labels & smallest.held.labels - smallest.train.labels:
        found.faults.append(
            f"--segmenter {name}: it learnt from {counted(len(seen), 'pair')} that nobody may "
            "learn from; give another"
        )
    if more := learnt.labels & smallest.train.labels - smallest.own.labels:
        found.faults.append(
            f"--segmenter {name}: it learnt from {len(more)} real pairs outside of "
            f"{smallest.subset} of them; give another"
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
