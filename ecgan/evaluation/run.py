"""Samples and reference -> numbers -> ``report.json`` and ``report.html``.

    sets, photos --> parts --cluster--> what was found in each --> numbers, with their protocol

Every number stands beside what the same measurement gives for the real photos: the judge's score on
the reference's split (on the photos of the very layouts, where the samples are of that split), and
the distance between the reference's own train photos and that split. The reference is resized as in
training, to the size of the samples, and the protocol says so.

Fidelity is measured on samples of layouts that the generator did not train on. What samples are
worth (:mod:`ecgan.evaluation.downstream.run`) is measured with samples of those that it did.
"""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

import ecgan
from ecgan.data import checks, datasets
from ecgan.data.label_cache import LabelCache
from ecgan.data.loader import TripleDataset
from ecgan.errors import UsageError, UserError
from ecgan.evaluation import figures
from ecgan.evaluation import judge as judges
from ecgan.evaluation.downstream import leakage
from ecgan.evaluation.downstream import run as downstream
from ecgan.evaluation.feature_networks import feature_networks, read_npz, write_npz
from ecgan.evaluation.judge import Judge
from ecgan.evaluation.measure import (
    Chunk,
    MeasureConfig,
    Measurements,
    MeasureWorker,
    read_measurements,
)
from ecgan.evaluation.report import page
from ecgan.evaluation.sources import Photos, Samples, Source
from ecgan.labels import LabelSpace
from ecgan.metrics import distribution, statistics
from ecgan.metrics.segmentation import Agreement, PerImageConfusion, agreement, edge_scores
from ecgan.recipe import Recipe, label_space, parse_recipe
from ecgan.runtime import storage
from ecgan.runtime.device import choose_device
from ecgan.runtime.executor import run_jobs
from ecgan.runtime.files import sha256, writing
from ecgan.runtime.jobs import Done, Workers, resolve_workers
from ecgan.shards import dataset as sample_sets
from ecgan.shards.manifest import Manifest, read_manifest

_FLOOR_IMAGES = 2048  # train photos, at least, behind the real photos' own distance
_REFERENCE, _TRAIN = "reference:photos", "reference:train photos"  # no folder has such a name


@dataclass(frozen=True)
class Worth:
    """What ``--downstream`` asks.

    Attributes:
        mixes: synthetic draws for each real one; ``synthetic`` is no real image at all.
        fractions: parts of the real training pairs.
        seeds: number of seeds.
        segmenter: to fine-tune, by path or name; None: SegFormer from scratch.
        unknown_generator: take samples whose generator's training is not known.
    """

    mixes: tuple[float | Literal["synthetic"], ...] = (0.0, 1.0)
    fractions: tuple[float, ...] = (1.0,)
    seeds: int = 3
    segmenter: str | None = None
    unknown_generator: bool = False


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        samples: data sets of samples, folders or addresses; empty takes the newest below
            ``datasets/``.
        out: folder of the report; None: ``reports/`` and the name of the first data set.
        reference: the real data set; None: the data.root of the samples' recipe.
        recipe: wins over the one that the samples carry.
        overrides: ``section.key=value``, over the samples' recipe; used only without ``recipe``.
        split: of the reference; None: test, or val where there is no test.
        judge: replaces evaluate.judge.
        force_judge: judge even with the generator's own label generator, and mark it.
        reference_statistics: an npz of pytorch-fid, in place of the reference's own for ``fid``.
        save_statistics: folder for npz files of all sets and of the reference.
        worth: train segmenters with the samples, too.
        device: auto, cpu, cuda or cuda:N.
        workers: default: one for each GPU, or one.
        gpus_per_worker: a fraction shares a GPU.
        ray_address: of a Ray cluster.
        quiet: no progress bars.
    """

    samples: tuple[str | Path, ...] = ()
    out: Path | None = None
    reference: Path | None = None
    recipe: Recipe | None = None
    overrides: tuple[str, ...] = ()
    split: str | None = None
    judge: str | None = None
    force_judge: bool = False
    reference_statistics: Path | None = None
    save_statistics: Path | None = None
    worth: Worth | None = None
    device: str = "auto"
    workers: int | None = None
    gpus_per_worker: float | None = None
    ray_address: str | None = None
    quiet: bool = False


@dataclass
class _Set:
    """One data set of samples and what was found in it."""

    place: str
    manifest: Manifest | None
    marks: list[str] = field(default_factory=list)

    @property
    def is_evaluation(self) -> bool:
        """Whether its labels are evaluation ids already."""
        return self.manifest is not None and self.manifest.label_space == "evaluation"

    @property
    def name(self) -> str:
        """Last part of its place."""
        last = self.place.rstrip("/").rpartition("/")[2]
        return last if last not in {"", ".", ".."} else Path(self.place).resolve().name


def run(request: Request) -> tuple[dict[str, Any], Path]:
    """Evaluate, and write the report.

    Returns:
        The report (schema: :mod:`ecgan.evaluation.report.page`), and the folder it is in.

    Raises:
        UserError: samples, reference or judge are not there or do not fit each other.
    """
    device = choose_device(request.device)
    workers = resolve_workers(
        request.device, request.workers, request.gpus_per_worker, request.ray_address
    )
    places = [str(place) for place in request.samples or (newest_samples(Path("datasets")),)]
    sets = [_Set(place, _manifest(place)) for place in places]
    recipe = _recipe(request, sets)
    out = request.out or Path("reports") / Path(sets[0].name).name
    _check_out(out)
    if request.save_statistics is not None:
        _require_writable("--save-npz", request.save_statistics)
    evaluation = _Evaluation(request, recipe, sets, out, device)
    document, pictures = evaluation.run(workers)
    page.write(document, out, pictures)
    return document, out


def _check_out(out: Path) -> None:
    """Refuse a folder that cannot take the report, before a judge is trained for it."""
    with writing(out):
        names = {path.name for path in out.iterdir()} if out.is_dir() else set[str]()
    if names and not names & {"report.json", "segmenters", "downstream"}:
        raise UsageError(f"--out {out}: not empty, and not a report of ecgan; give another folder")
    _require_writable("--out", out)


def _require_writable(option: str, folder: Path) -> None:
    """Refuse a folder that cannot be written to, before hours of work for it."""
    with writing(folder):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{option} {folder}: a file; give a folder")
        above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{option} {folder}: cannot write to {above}; give another folder")


def newest_samples(folder: Path) -> Path:
    """The complete data set below a folder that was written last.

    Raises:
        UserError: there is none.
    """
    found = sorted(folder.glob("*/manifest.json"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise UserError(
            f"no data set of samples below {folder}/; give --samples DIR, or make one: "
            "ecgan augment --labels DIR"
        )
    return found[-1].parent


def _manifest(place: str) -> Manifest | None:
    if "://" not in place and Path(place).is_file():
        raise UsageError(f"--samples {place}: is a file; give the folder that holds it")
    if "://" not in place and not Path(place).is_dir():
        raise UsageError(f"--samples {place}: no such folder")
    return read_manifest(place)


def _recipe(request: Request, sets: Sequence[_Set]) -> Recipe:
    """The recipe given, or that of the first samples that carry one."""
    recipe = request.recipe
    if recipe is None:
        carried = next((s for s in sets if s.manifest is not None), None)
        if carried is None or carried.manifest is None:
            raise UsageError(
                f"--samples {sets[0].place}: has no manifest.json of ecgan, so its classes are not "
                "known; give --recipe NAME|FILE"
            )
        recipe = parse_recipe(
            carried.manifest.recipe, f"{carried.place}/manifest.json: recipe", request.overrides
        )
    if request.reference is not None:
        data = recipe.data.model_copy(update={"root": str(request.reference)})
        recipe = recipe.model_copy(update={"data": data})
    if recipe.data.root is None:
        raise UsageError("the recipe has no data.root: give the real data set with --reference DIR")
    if not Path(recipe.data.root).is_dir():
        raise UserError(
            f"{recipe.data.root}: no such folder; give the real data set with --reference DIR"
        )
    return recipe


class _Evaluation:
    """One call: a reference, a judge, and sets of samples."""

    def __init__(
        self,
        request: Request,
        recipe: Recipe,
        sets: Sequence[_Set],
        out: Path,
        device: torch.device,
    ) -> None:
        self.request, self.recipe, self.device, self.out = request, recipe, device, out
        self.sets = list(sets)
        self.space = self._space()
        self.size = self._common_size()
        self.split = request.split or self._default_split()
        self.samples = {one.place: self._samples(one) for one in self.sets}
        self.label_cache = LabelCache(storage.Folder(storage.cache_folder()))
        self.reference = self._data(self.split, train=False)
        self.train = self._data(recipe.data.split, train=True)
        self.label_cache.save()
        self.worthy = self._for_training()

    def run(self, workers: Workers) -> tuple[dict[str, Any], list[page.Illustrations]]:
        """Numbers of every set, and pictures of each."""
        faithful = [one for one in self.sets if one.place not in self.worthy]
        worth = self._check_worth(workers)
        parts: list[dict[str, Any]] = []
        pictures: list[page.Illustrations] = []
        if faithful:
            fidelity = _Fidelity(self, faithful)
            looks = fidelity.look(workers)
            parts = [fidelity.describe(one, looks) for one in faithful]
            pictures = [fidelity.illustrate(one, looks[one.place]) for one in faithful]
        else:
            parts = [_nothing(self.sets[0].place)]
            pictures = [page.Illustrations()]
        document = {"schema": page.SCHEMA, **parts[0], "compared": parts[1:]}
        if worth is not None:
            document["downstream"] = downstream.run(worth)
        return document, pictures

    # What there is

    def _space(self) -> LabelSpace:
        found: LabelSpace | None = None
        for one in self.sets:
            if one.manifest is None:
                continue
            space = one.manifest.class_list(one.place)
            if found is not None and space.names != found.names:
                raise UserError(
                    f"{one.place}: other classes than {self.sets[0].place}; evaluate them apart"
                )
            found = space
        own = label_space(self.recipe.data)
        if found is not None and own.names != found.names:
            raise UserError(
                f"{self.recipe.data.root}: its classes ({', '.join(own.names[:4])}, ...) are not "
                f"those of the samples ({', '.join(found.names[:4])}, ...)"
            )
        return own

    def _common_size(self) -> tuple[int, int]:
        """Height and width of all samples, from the first of each set."""
        sizes: dict[tuple[int, int], str] = {}
        for one in self.sets:
            first = next(sample_sets.read(one.place), None)
            if first is None:
                raise UserError(f"--samples {one.place}: holds no samples")
            sizes.setdefault((first.image.shape[0], first.image.shape[1]), one.place)
        if len(sizes) > 1:
            listed = ", ".join(f"{place} {h} x {w}" for (h, w), place in sizes.items())
            raise UserError(f"sets of different size ({listed}); evaluate them apart")
        return next(iter(sizes))

    def _default_split(self) -> str:
        there = datasets.splits(self.recipe.data.dataset, Path(str(self.recipe.data.root)))
        return "test" if "test" in there else "val"

    def _samples(self, one: _Set) -> Samples:
        limit = self.recipe.evaluate.num_images or None
        return Samples(one.place, self.space, self.size, one.is_evaluation, limit)

    def _data(self, split: str, *, train: bool) -> TripleDataset:
        data = self.recipe.data
        items = datasets.items_for(
            data.dataset, Path(str(data.root)), split, train_split=data.split
        )
        checks.check_labels(items, self.space, data.dataset, cache=self.label_cache)
        return TripleDataset(
            items,
            self.space,
            data.dataset,
            height=self.size[0],
            width=self.size[1],
            flip=data.flip,
            train=train,
            seed=self.recipe.evaluate.judge_training.seed,
            edges="none",
        )

    # What the samples are worth

    def _for_training(self) -> frozenset[str]:
        """With ``--downstream``, the sets whose layouts are not the split's: trained with."""
        if self.request.worth is None:
            return frozenset()
        layouts = {one.place: leakage.layouts(one.place) for one in self.sets}
        return frozenset(p for p, known in layouts.items() if not _shared(known, self.reference))

    def _check_worth(self, workers: Workers) -> downstream.Request | None:
        """The downstream experiment, checked before the judge is trained."""
        worth, evaluate = self.request.worth, self.recipe.evaluate
        if worth is None:
            return None
        if not self.worthy and any(mix != 0 for mix in worth.mixes):
            raise UsageError(
                f"--downstream: all samples are of layouts of the split {self.split}, which is "
                "what segmenters are tested on; give samples of train layouts: ecgan sample "
                f"--split {self.recipe.data.split} --num N"
            )
        wanted = downstream.Request(
            root=Path(str(self.recipe.data.root)),
            dataset=self.recipe.data.dataset,
            train_split=self.recipe.data.split,
            test_split=self.split,
            space=self.space,
            size=self.size,
            samples=tuple(one.place for one in self.sets if one.place in self.worthy),
            fractions=worth.fractions,
            mixes=worth.mixes,
            seeds=worth.seeds,
            training=evaluate.downstream_training,
            segmenter=worth.segmenter,
            flip=self.recipe.data.flip,
            unknown_generator=worth.unknown_generator,
            cache=self.out / "downstream",
            workers=workers,
            quiet=self.request.quiet,
        )
        downstream.check(wanted)
        return wanted


class _Fidelity:
    """Do the samples show their layouts, and do they look like the photos?"""

    def __init__(self, evaluation: _Evaluation, sets: Sequence[_Set]) -> None:
        self.request, self.recipe = evaluation.request, evaluation.recipe
        self.space, self.size, self.split = evaluation.space, evaluation.size, evaluation.split
        self.reference, self.train = evaluation.reference, evaluation.train
        self.samples, self.device, self.sets = evaluation.samples, evaluation.device, sets
        self.layouts: dict[str, frozenset[str]] = {}  # of each set, those that have a photo
        evaluate = self.recipe.evaluate
        # Files that are missing are refused before a judge is trained
        networks, self.skipped = feature_networks(
            evaluate.features,
            inception_weights=evaluate.inception_weights,
            dinov2=evaluate.dinov2,
            device=torch.device("cpu"),
        )
        self.networks = tuple(networks)
        self.given = self._given_statistics()
        self.judge = self._find_judge()

    def _given_statistics(self) -> distribution.Gaussian | None:
        path = self.request.reference_statistics
        if path is None:
            return None
        if "inception" not in self.networks:
            raise UsageError(
                f"--reference-npz {path}: statistics of Inception, which is not measured: set "
                "evaluate.features to [inception] and evaluate.inception_weights"
            )
        return read_npz(path, 2048)

    def _find_judge(self) -> Judge:
        judge = judges.find_judge(
            self.request.judge or self.recipe.evaluate.judge,
            self.recipe,
            self.space,
            self.train,
            cache=storage.cache_folder() / "segmenters",
            device=self.device,
            progress=not self.request.quiet,
        )
        manifests = {s.place: s.manifest for s in self.sets if s.manifest is not None}
        marks = judges.own_label_generators(judge, manifests, force=self.request.force_judge)
        for one in self.sets:
            one.marks += marks.get(one.place, [])
        return judge

    # Measuring

    def look(self, workers: Workers) -> dict[str, Measurements]:
        """What there is to see in every set and in the photos."""
        names = {one.place for one in self.sets}
        sources: dict[str, Source] = {
            _REFERENCE: Photos(self.reference, self._indices(self.reference)),
            **{one.place: self.samples[one.place] for one in self.sets},
        }
        if self.networks:  # the judge was trained on them, and is not asked
            sources[_TRAIN] = Photos(self.train, self._floor())
        config = MeasureConfig(
            sources=sources,
            judged=frozenset({_REFERENCE, *names}),
            compared=frozenset({_REFERENCE, *names}),
            space=self.space,
            judge=self.judge.path,
            judge_hash=self.judge.segmenter.hash,
            networks=self.networks,
            inception_weights=self.recipe.evaluate.inception_weights,
            dinov2=self.recipe.evaluate.dinov2,
            device=workers.device,
            cache=storage.cache_folder() / "looks",
            threads=max(1, (os.cpu_count() or 1) // workers.count)
            if not workers.in_process
            else None,
        )
        found = self._found(config, workers)
        looks = {
            name: Measurements(PerImageConfusion(self.space.num_evaluation_classes))
            for name in sources
        }
        for part in config.chunks():  # in order, whoever was first
            looks[part.source].extend(read_measurements(found[part]))
        for one in self.sets:
            known = leakage.digests(one.place)
            layouts = {key: known.get(key) for key in looks[one.place].confusion.layouts}
            self.layouts[one.place] = _shared(layouts, self.reference)
            if not np.any(looks[one.place].confusion.labelled):
                raise UserError(f"{one.place}: no pixel of its labels has a class that is scored")
        return looks

    def _found(self, config: MeasureConfig, workers: Workers) -> dict[Chunk, Path]:
        """Files of all parts."""
        parts = config.chunks()
        bar = tqdm(
            total=sum(part.stop - part.start for part in parts),
            unit="image",
            disable=self.request.quiet or None,
        )
        found: dict[Chunk, Path] = {}
        failed: list[str] = []
        with bar, closing(run_jobs(lambda _: MeasureWorker(config), parts, workers)) as outcomes:
            for outcome in outcomes:
                bar.update(outcome.job.stop - outcome.job.start)
                if isinstance(outcome, Done):
                    found[outcome.job] = outcome.result
                else:
                    failed.append(outcome.reason)
        if failed:
            reasons = [*dict.fromkeys(failed)]
            if len(reasons) == 1:
                raise UserError(reasons[0])
            raise UserError("samples or photos that cannot be evaluated", reasons)
        return found

    def _indices(self, data: TripleDataset) -> range:
        limit = self.recipe.evaluate.num_images
        return range(len(data) if limit == 0 else min(limit, len(data)))

    def _floor(self) -> Sequence[int]:
        """Train photos for the real photos' own distance: all, or enough, evenly spread."""
        most = min(len(self.train), max(_FLOOR_IMAGES, len(self._indices(self.reference))))
        return np.linspace(0, len(self.train) - 1, most).round().astype(int).tolist()

    # What is written

    def describe(self, one: _Set, looks: Mapping[str, Measurements]) -> dict[str, Any]:
        """The part of the report that is about one set."""
        look, real = looks[one.place], looks[_REFERENCE]
        photos = self._photos_of(one, look.confusion, real.confusion)
        of_samples, of_real = agreement(look.confusion), agreement(photos)
        numbers = {
            name: _entry(estimate, of_real.overall[name].value, len(look.confusion))
            for name, estimate in of_samples.overall.items()
            if math.isfinite(estimate.value)
        }
        numbers |= self._pair_numbers(look, real)
        skipped, notes = self._add_distances(numbers, look, real, looks.get(_TRAIN))
        self._keep_statistics(one, look, real)
        best, worst = figures.extremes(look.confusion)
        keys = look.confusion.keys
        return {
            "samples": one.place,
            "protocol": self._protocol(one, look),
            "metrics": numbers,
            "per_class": self._per_class(look.confusion, photos, of_samples, of_real),
            "confusion": {
                "classes": list(self.space.names_for_evaluation),
                "counts": look.confusion.matrix.tolist(),
            },
            "skipped": self.skipped | skipped,
            "marks": one.marks
            + judges.seen_mark(self.judge, look.confusion.layouts, self.reference)
            + self._generator_marks(one),
            "notes": self._notes(one, numbers) + notes,
            "best": [keys[i] for i in best],
            "worst": [keys[i] for i in worst],
        }

    def _add_distances(
        self,
        numbers: dict[str, dict[str, Any]],
        look: Measurements,
        real: Measurements,
        train: Measurements | None,
    ) -> tuple[dict[str, str], list[str]]:
        """Add distances of features; reasons for those that are skipped, and notes."""
        skipped: dict[str, str] = {}
        notes: list[str] = []
        for network, features in look.features.items():
            found, without, remarks = distribution.FeatureSets(
                network,
                features,
                look.confusion.layouts,
                real.features[network],
                None if train is None else train.features[network],
                self.given if network == "inception" else None,
            ).distances()
            for name, one in found.items():
                numbers[name] = _entry(
                    statistics.Estimate(one.value, one.low, one.high), one.real, one.n
                )
                if one.std is not None:
                    numbers[name] |= {"std": one.std, "protocol": one.protocol}
            skipped |= without
            notes += remarks
        return skipped, notes

    def _pair_numbers(self, look: Measurements, real: Measurements) -> dict[str, dict[str, Any]]:
        """Diversity of the styles of a layout, and how far edges are those of the image."""
        numbers: dict[str, dict[str, Any]] = {}
        if look.distances:
            value = statistics.bootstrapped_mean(look.distances, look.pair_layouts)
            between = float(np.mean(real.distances)) if real.distances else math.nan
            numbers["diversity_efficientnet_lite0"] = _entry(value, between, len(look.distances))
        if look.edges:
            for name, value in edge_scores(look.edges, look.edge_layouts).items():
                if math.isfinite(value.value):
                    numbers[name] = _entry(value, math.nan, len(look.edges))
        return numbers

    def _photos_of(
        self, one: _Set, samples: PerImageConfusion, real: PerImageConfusion
    ) -> PerImageConfusion:
        """The photos of the samples' own layouts; all of the split if some have no photo there."""
        sources = frozenset(samples.layouts)
        shown = self.layouts[one.place] & set(real.layouts)
        return real.select(sources) if sources <= shown else real

    def _generator_marks(self, one: _Set) -> list[str]:
        about = one.manifest
        if about is None or not about.seen_layouts or self.split == self.recipe.data.split:
            return []
        return [
            f"the generator trained on {about.seen_layouts} of these {about.layouts} layouts (by "
            "key): it may have memorised them"
        ]

    def _notes(self, one: _Set, numbers: Mapping[str, Mapping[str, Any]]) -> list[str]:
        notes: list[str] = []
        kept = None if one.manifest is None else one.manifest.filter.kept_fraction
        if kept is not None:
            notes.append(
                f"a label filter left out {1 - kept:.1%} of the labelled pixels, which a segmenter "
                "disagreed with: mIoU, accuracy and consistency are over the rest; compare "
                "accuracy_with_void"
            )
        miou = numbers["miou"]
        if miou["value"] and miou["value"] > (miou["real"] or 0):
            notes.append(
                "the judge reads the samples better than real photos: they are easier to read, "
                "which does not make them more like photos"
            )
        if not self.layouts[one.place]:
            notes.append(
                f"no layout of these samples is in the reference's split {self.split}: images and "
                "photos are compared as sets only, and over other layouts"
            )
        unknown = self.judge.segmenter.describe()["unknown"]
        if unknown:
            notes.append(f"the judge does not know {', '.join(unknown)}: these score 0")
        return notes

    def _protocol(self, one: _Set, look: Measurements) -> dict[str, Any]:
        about, recipe = one.manifest, self.recipe
        given = self.request.judge or recipe.evaluate.judge
        layouts = set(look.confusion.layouts)
        codec, filtered, made_by = "as found", "not known", None
        if about is not None:
            codec = f"{about.image_format or 'as found'}, quality {about.quality or '?'}"
            filtered, made_by = about.filter.kind, about.fingerprint.checkpoint
        return {
            "reference": str(recipe.data.root),
            "split": self.split,
            "reference_images": len(self._indices(self.reference)),
            "layouts": len(layouts),
            "real": "the judge's score on the photos of the samples' own layouts"
            if layouts <= self.layouts[one.place]
            else f"the judge's score on all photos of split {self.split}",
            "real_of_distances": f"{len(self._floor())} photos of split {recipe.data.split} "
            f"against those of split {self.split}",
            "size": f"{self.size[0]} x {self.size[1]} (height x width)",
            "resizing": "reference as in training: photos bicubic with antialias, labels nearest",
            "judge": self.judge.about(recipe, recipe.data.split if given == "train" else ""),
            "judge_hash": self.judge.segmenter.hash,
            "judge_input": "the samples' size, photos resized to it",
            "classes": f"{self.space.num_evaluation_classes} evaluation ids",
            "void": "unlabelled pixels and ids without an evaluation class are not scored, but in "
            "accuracy_with_void",
            "averaging": "over classes that occur; sums over the whole set",
            "interval": "95 %, percentile bootstrap over layouts, "
            f"{statistics.RESAMPLES} resamples; of distances {distribution.INTERVAL}",
            "label_filter": filtered,
            "codec": codec,
            "checkpoint": made_by or "not known",
            "distances": distribution.PROTOCOL
            + ("; fid against given statistics" if self.given is not None else ""),
            "ecgan": ecgan.__version__,
            "torch": torch.__version__,
        }

    def _per_class(
        self,
        samples: PerImageConfusion,
        real: PerImageConfusion,
        of_samples: Agreement,
        of_real: Agreement,
    ) -> dict[str, dict[str, Any]]:
        def shares(tally: PerImageConfusion) -> npt.NDArray[np.float64]:
            pixels = np.sum(tally.labelled, axis=0, dtype=np.float64)
            return np.asarray(pixels / max(1.0, pixels.sum()))

        own, reference = shares(samples), shares(real)
        palette = self.space.evaluation_palette
        return {
            name: {
                "iou": _finite(of_samples.iou[c].value),
                "real": _finite(of_real.iou[c].value),
                "low": _finite(of_samples.iou[c].low),
                "high": _finite(of_samples.iou[c].high),
                "share": float(own[c]),
                "real_share": float(reference[c]),
                "color": palette[c].tolist(),
            }
            for c, name in enumerate(self.space.names_for_evaluation)
        }

    def _keep_statistics(self, one: _Set, look: Measurements, real: Measurements) -> None:
        """Mean and covariance of all features, as pytorch-fid reads them."""
        folder = self.request.save_statistics
        if folder is None:
            return
        names = [other.name for other in self.sets]
        name = one.name if names.count(one.name) == 1 else f"{self.sets.index(one)}-{one.name}"
        for what, found in ((name, look), (f"reference-{self.split}", real)):
            for name, features in found.features.items():
                if len(features) > 1:
                    gaussian = distribution.gaussian(features)
                    write_npz(folder / f"{what}-{name}.npz", gaussian)

    def illustrate(self, one: _Set, look: Measurements) -> page.Illustrations:
        """Pictures of a set."""
        place = one.place
        rows = figures.galleries(
            figures.Rows(
                self.samples[place],
                look.confusion,
                self.judge,
                self.reference,
                self.layouts[place],
                self.device,
            )
        )
        return page.Illustrations(
            rows,
            figures.curves(one.manifest, Path(place).resolve().parent),
        )


def _shared(layouts: Mapping[str, str | None], reference: TripleDataset) -> frozenset[str]:
    """Layouts that are the reference's own: by their label maps where these are known.

    Data sets whose splits share names have other scenes under the same key.

    Args:
        layouts: first digits of the SHA-256 of each label map, by key; None where not known.
        reference: of photos with label maps.
    """
    files = {item.key: item.label for item in reference.items}
    return frozenset(
        key
        for key, digest in layouts.items()
        if key in files and (digest is None or sha256(files[key]).startswith(digest))
    )


def _nothing(place: str) -> dict[str, Any]:
    """A report without fidelity: samples of train layouts only."""
    reason = "the samples are of train layouts, with which segmenters were trained"
    return {
        "samples": place,
        "protocol": {},
        "metrics": {},
        "per_class": {},
        "skipped": {"miou": reason},
        "marks": [],
        "notes": [],
        "best": [],
        "worst": [],
    }


def _entry(estimate: statistics.Estimate, real: float, n: int) -> dict[str, Any]:
    return {
        "value": _finite(estimate.value),
        "real": _finite(real),
        "low": _finite(estimate.low),
        "high": _finite(estimate.high),
        "n": n,
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
