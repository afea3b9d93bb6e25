"""A downstream experiment: what was asked for, checked, and what decides the result of each run.

Leaks are refused here (:mod:`ecgan.evaluation.downstream.leakage`), before anything is trained; all
faults at once.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from ecgan.data import checks, datasets
from ecgan.data.datasets import Item
from ecgan.data.loader import TripleDataset
from ecgan.errors import UsageError, UserError
from ecgan.evaluation.downstream import leakage as leaks
from ecgan.evaluation.downstream.leakage import Doubt, Findings, Generators, Part
from ecgan.evaluation.downstream.student import Run, StudentConfig
from ecgan.evaluation.sources import Samples
from ecgan.labels import Labels, LabelSpace
from ecgan.recipe_schema import DownstreamTraining
from ecgan.runtime.jobs import Workers
from ecgan.segmentation import loading
from ecgan.segmentation.segmenter import Sources
from ecgan.segmentation.training import file_stamps
from ecgan.shards import dataset as sample_sets
from ecgan.shards.manifest import read_manifest

_VERSION = 1  # of how a student is trained and tested
_TRAINING = DownstreamTraining()

Mix = float | Literal["synthetic"]


_HERE = Workers()


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        root: of the real data set.
        dataset: its layout.
        train_split: its split to learn from.
        test_split: its split to be tested on.
        space: its classes.
        size: height and width of the samples; real pairs are resized to it.
        samples: sets of samples; each is for the fraction that its generator was trained on, unless
            they are given by fraction.
        fractions: of the real pairs, in (0, 1].
        mixes: samples drawn for each real pair; ``synthetic`` is no real pair at all.
        seeds: number of seeds: 0, 1, ...
        training: architecture and length of training; run k has the seed ``training.seed + k``.
        segmenter: to fine-tune in place of a SegFormer from scratch, by path or name.
        flip: mirror half of what students see.
        generators: files of generators; those in ``runs/`` are found.
        unknown_generator: take samples whose generator's training is not known.
        cache: folder of results.
        workers: that train.
        quiet: no progress bar.
    """

    root: Path
    dataset: str
    train_split: str
    test_split: str
    space: LabelSpace
    size: tuple[int, int]
    samples: Sequence[str | Path] | Mapping[float, Sequence[str | Path]]
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
        """All of them, condition by condition, each once."""
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
        """Whether any condition has them."""
        return any(mix != 0 for mix in self.mixes)


@dataclass
class Experiment:
    """What was checked.

    Attributes:
        request: what was asked for.
        config: configuration of all students.
        places: of the sets that are used, as the user named them.
        notes: what a reader of the results should know.
        doubts: sources of the samples that may have been a held-out pair.
    """

    request: Request
    config: StudentConfig
    places: tuple[str, ...]
    notes: list[str]
    doubts: frozenset[Doubt]

    def path(self, run: Run) -> Path:
        """Where a run's result is kept, by everything that decides it."""
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
        """What decides the results of all runs."""
        config, named = self.config, self.config.segmenter
        return {
            "version": _VERSION,
            "test": file_stamps(config.test.items),
            "space": config.space.to_json(),
            "dataset": config.real.dataset,
            "size": config.real.size,
            "flip": config.flip,
            "steps": config.steps,
            "batch": config.training.batch,
            "student": _untrained_name(config.training)
            if named is None
            else loading.weights_hash(named),
            "device": torch.device(config.device).type,
        }

    @cached_property
    def _stamps(self) -> list[tuple[str | int, ...]]:
        """Of the real pairs."""
        return file_stamps(self.config.real.items)

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        """Of the sets of samples, by place."""
        sets = [one for those in self.config.samples.values() for one in those]
        return {one.place: _fingerprint(one) for one in sets}


def _untrained_name(training: DownstreamTraining) -> int | str:
    """Channels of a SegFormer, as version 0.1 wrote it, or the name of another architecture."""
    return training.channels if training.architecture == "segformer" else training.architecture


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
    """Refuse what cannot be trained, or would tell what students are tested on.

    Raises:
        UserError: all faults at once.
    """
    faults = _option_faults(request)
    if faults:
        raise UsageError("--downstream", faults)
    by_fraction, notes = _samples_of(request)
    train, test, parts = _real(request)
    if request.needs_samples:
        faults += [
            f"--real-fraction {fraction:g}: no samples for it; make them: {leaks.command(fraction)}"
            for fraction, places in by_fraction.items()
            if not places
        ]
    findings = Findings(notes=notes)
    used = by_fraction if request.needs_samples else {}
    samples = {
        fraction: tuple(_opened(place, request, faults) for place in places)
        for fraction, places in used.items()
    }
    _look_for_leaks(request, used, parts, findings)
    _check_segmenter(request, parts, findings)
    if faults := [*dict.fromkeys(faults + findings.faults)]:
        raise UsageError("--downstream", faults)
    cores = os.cpu_count() or 1
    workers = request.workers
    share = max(1, cores // workers.count)
    config = StudentConfig(
        real=train,
        parts={f: _numbers(train.items, part.own.keys) for f, part in parts.items()},
        samples={fraction: samples.get(fraction, ()) for fraction in request.fractions},
        test=test,
        space=request.space,
        training=request.training,
        segmenter=None if request.segmenter is None else _absolute(request.segmenter),
        flip=request.flip,
        device=workers.device,
        threads=None if workers.in_process else min(torch.get_num_threads(), share),
        loaders=min(8, share if workers.address is None else cores),
    )
    places = tuple(dict.fromkeys(place for those in used.values() for place in those))
    notes = [*dict.fromkeys(findings.notes)]
    return Experiment(request, config, places, notes, frozenset(findings.doubts))


# Checks


def _option_faults(request: Request) -> list[str]:
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
    return faults


def _samples_of(request: Request) -> tuple[dict[float, tuple[str, ...]], list[str]]:
    """Sets of each fraction, and notes."""
    given = request.samples
    if not isinstance(given, Mapping):
        return match_samples(given, request.fractions)
    unasked = [fraction for fraction in given if fraction not in request.fractions]
    notes = [f"samples for the fraction {fraction:g} are not used" for fraction in unasked]
    return {f: tuple(map(str, given.get(f, ()))) for f in request.fractions}, notes


def _real(request: Request) -> tuple[TripleDataset, TripleDataset, dict[float, Part]]:
    """Pairs to learn from and to be tested on; and the parts of the former."""
    train, test = (_items(request, split) for split in (request.train_split, request.test_split))
    digests = _digests(request, train)
    _digests(request, test, must_be_scored=True)
    there = datasets.splits(request.dataset, request.root)
    held_splits = {"val", request.test_split, *({"test"} & set(there))} - {request.train_split}
    # The labels of a test split may be nothing but placeholders, and its photos elsewhere.
    held = [_items(request, split, need_images=False) for split in sorted(held_splits)]
    sources = Sources.of([item for items in held for item in items])
    parts = {
        fraction: Part(
            fraction,
            _part(digests, datasets.take_fraction(train, fraction)),
            _part(digests, train),
            sources,
            frozenset(held_splits),
            request.train_split,
        )
        for fraction in request.fractions
    }
    return _data(request, train), _data(request, test), parts


def _items(request: Request, split: str, *, need_images: bool = True) -> list[Item]:
    return datasets.items_for(
        request.dataset,
        request.root.absolute(),
        split,
        train_split=request.train_split,
        need_images=need_images,
    )


def _digests(
    request: Request, items: Sequence[Item], *, must_be_scored: bool = False
) -> dict[str, str]:
    """SHA-256 of each label file, by key; all files are checked.

    Raises:
        UserError: faults in the files, or, where they must be scored, no pixel of a scored class.
    """
    space = request.space
    found = checks.check_labels(items, space, request.dataset)
    ids = cast(Labels, np.arange(space.num_classes, dtype=space.dtype))
    scored = space.to_evaluation(ids) != space.ignore_index
    if must_be_scored and not found.totals.pixels[scored].any():
        raise UserError(
            f"{request.root}: no pixel of split {request.test_split} has a class that is scored; "
            "test on another with --split"
        )
    return {item.key: bytes(d).hex() for item, d in zip(items, found.digests, strict=True)}


def _part(digests: Mapping[str, str], items: Sequence[Item]) -> Sources:
    keys = frozenset(item.key for item in items)
    return Sources(keys, frozenset(digests[key] for key in keys))


def _data(request: Request, items: Sequence[Item]) -> TripleDataset:
    return TripleDataset(
        items,
        request.space,
        request.dataset,
        height=request.size[0],
        width=request.size[1],
        train=False,
        edges="none",
    )


def _numbers(items: Sequence[Item], keys: frozenset[str]) -> tuple[int, ...]:
    return tuple(number for number, item in enumerate(items) if item.key in keys)


def _opened(place: str, request: Request, faults: list[str]) -> Samples:
    """A set, if it fits; else what does not."""
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


def _look_for_leaks(
    request: Request,
    by_fraction: Mapping[float, Sequence[str]],
    parts: Mapping[float, Part],
    findings: Findings,
) -> None:
    generators = Generators(request.generators)
    for fraction, places in by_fraction.items():
        for place in places:
            found = leaks.check(
                place, parts[fraction], generators, unknown_generator=request.unknown_generator
            )
            findings.faults += found.faults
            findings.notes += found.notes
            findings.doubts |= found.doubts


def _check_segmenter(request: Request, parts: Mapping[float, Part], findings: Findings) -> None:
    """Refuse to fine-tune what has learnt the tested pairs, or more than the smallest part."""
    name = request.segmenter
    if name is None:
        return
    loading.load_for_finetuning(name, request.space.names_for_evaluation, 0)
    learnt = loading.sources_of(name)
    if learnt is None or not learnt.labels:
        findings.notes.append(f"what the segmenter {name} learnt from before is not known")
        return
    smallest = parts[min(parts)]
    if seen := learnt.labels & smallest.held.labels - smallest.train.labels:
        findings.faults.append(
            f"--segmenter {name}: it learnt from {len(seen)} pairs that nobody may learn from; "
            "give another"
        )
    if more := learnt.labels & smallest.train.labels - smallest.own.labels:
        findings.faults.append(
            f"--segmenter {name}: it learnt from {len(more)} real pairs outside of the fraction "
            f"{smallest.fraction:g}; give another"
        )


def _absolute(name: str) -> str:
    """A folder as other processes find it too; addresses and names of the hub as they are."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def _fingerprint(samples: Samples) -> str:
    """Of the bytes of a set: by its manifest, where there is one."""
    about = read_manifest(samples.place)
    if about is None:
        return samples.fingerprint(0, len(samples)).hex()
    shards = [[shard.name, shard.sha256] for shard in about.shards]
    text = json.dumps([shards, samples.is_evaluation])
    return hashlib.sha256(text.encode()).hexdigest()
