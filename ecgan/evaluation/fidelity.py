"""Fidelity of samples: agreement of a judge with their layouts, distances to real photos.

    sets, photos --> chunks --workers--> measurements of each --> numbers, with their protocol

Every number stands beside that of real photos: the judge's score on the reference's split (on the
photos of the very layouts, where the samples are of that split), and the distance between the
reference's own train photos and that split.
"""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import ecgan
from ecgan.data.files.images import sha256
from ecgan.data.loader import TripleDataset
from ecgan.errors import UsageError, UserError
from ecgan.evaluation import figures, image_metrics
from ecgan.evaluation import judge as judges
from ecgan.evaluation.downstream import leakage
from ecgan.evaluation.feature_networks import (
    feature_networks,
    find_inception,
    read_npz,
    write_npz,
)
from ecgan.evaluation.judge import Judge
from ecgan.evaluation.measure import (
    Chunk,
    MeasureConfig,
    Measurements,
    MeasureWorker,
    read_measurements,
)
from ecgan.evaluation.report import page
from ecgan.evaluation.report.document import ClassScore, Confusion, Metric, SetReport, finite
from ecgan.evaluation.request import Request
from ecgan.evaluation.sources import Photos, Samples, SampleSet, Source
from ecgan.labels import LabelSpace
from ecgan.metrics import distribution, statistics
from ecgan.metrics.segmentation import Agreement, PerImageConfusion, agreement
from ecgan.models.pretrained.weights import INCEPTION
from ecgan.recipe import Recipe
from ecgan.runtime import storage
from ecgan.runtime.executor import run_jobs
from ecgan.runtime.jobs import Done, Workers
from ecgan.runtime.timing import Progress
from ecgan.segmentation.unet import UNet

_FLOOR_IMAGES = 2048  # train photos, at least, behind the real photos' own distance
_REFERENCE, _TRAIN = "reference:photos", "reference:train photos"  # no folder has such a name
_OTHERS = "reference:photos of {}"


@dataclass(frozen=True)
class Setup:
    """Everything that the sets of an evaluation have in common.

    Attributes:
        request: options of the evaluation.
        recipe: recipe, with its data.root.
        space: class list.
        size: height and width of all samples.
        split: split of the reference.
        reference: photos of that split.
        train: train photos.
        others: photos of the other splits, with which styles are compared too.
        device: device of this process.
    """

    request: Request
    recipe: Recipe
    space: LabelSpace
    size: tuple[int, int]
    split: str
    reference: TripleDataset
    train: TripleDataset
    others: Mapping[str, TripleDataset]
    device: torch.device

    def samples(self, one: SampleSet) -> Samples:
        """Samples of a set, by number."""
        limit = self.recipe.evaluate.num_images or None
        return Samples(one.place, self.space, self.size, one.is_evaluation, limit)


def prepare(setup: Setup, sets: Sequence[SampleSet]) -> "Fidelity":
    """Find the feature networks and the judge, which is trained if it was not before.

    Raises:
        UserError: missing files; no such judge, or one that was not independent of the samples.
    """
    evaluate, request = setup.recipe.evaluate, setup.request
    # Files that are missing are refused before a judge is trained
    networks, skipped = feature_networks(
        evaluate.features,
        inception_weights=evaluate.inception_weights,
        dinov2=evaluate.dinov2,
        hed_weights=setup.recipe.data.hed_weights,
        device=torch.device("cpu"),
    )
    given = None
    if request.reference_statistics is not None:
        if "inception" not in networks:
            raise UsageError(
                f"--reference-npz {request.reference_statistics}: statistics of Inception, which "
                "is not measured: set evaluate.features to [inception], and where its weights are "
                f"missing: {INCEPTION.command}"
            )
        given = read_npz(request.reference_statistics, 2048)
    judge = judges.find_judge(
        request.judge or evaluate.judge,
        setup.recipe,
        setup.space,
        setup.train,
        cache=storage.cache_folder() / "segmenters",
        device=setup.device,
        progress=not request.quiet,
    )
    manifests = {s.place: s.manifest for s in sets if s.manifest is not None}
    warnings = judges.own_label_generators(judge, manifests, force=request.force_judge)
    for one in sets:
        one.warnings += warnings.get(one.place, [])
    return Fidelity(setup, sets, judge, tuple(networks), skipped, given)


@dataclass
class Fidelity:
    """Fidelity of sets of samples.

    Attributes:
        setup: everything that they have in common.
        sets: the sets.
        judge: the judge.
        networks: names of the feature networks.
        skipped: reasons why metrics cannot be computed.
        given: statistics in place of the reference's own.
        layouts: layouts of each set that have a photo in the reference.
    """

    setup: Setup
    sets: Sequence[SampleSet]
    judge: Judge
    networks: tuple[str, ...]
    skipped: dict[str, str]
    given: distribution.Gaussian | None = None
    layouts: dict[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])

    def measure(self, workers: Workers) -> dict[str, Measurements]:
        """Measure every set and the photos."""
        setup, names = self.setup, frozenset(one.place for one in self.sets)
        sources: dict[str, Source] = {
            _REFERENCE: Photos(setup.reference, self._indices(setup.reference)),
            **{one.place: setup.samples(one) for one in self.sets},
        }
        # The judge was trained on train photos, and does not predict them
        if self.networks or any(one.may_have_styles for one in self.sets):
            sources[_TRAIN] = Photos(setup.train, self._floor(setup.train))
        for split, data in setup.others.items():
            sources[_OTHERS.format(split)] = Photos(data, self._floor(data))
        share = max(1, (os.cpu_count() or 1) // workers.count)
        config = MeasureConfig(
            sources=sources,
            judged=names | {_REFERENCE},
            described=names | {_REFERENCE, _TRAIN},
            compared=names | {_REFERENCE},
            space=setup.space,
            judge=self.judge.path,
            judge_hash=self.judge.segmenter.hash,
            networks=self.networks,
            # Found here: workers on other machines have caches of their own
            inception_weights=find_inception(setup.recipe.evaluate.inception_weights),
            dinov2=setup.recipe.evaluate.dinov2,
            hed_weights=setup.recipe.data.hed_weights,
            device=workers.device,
            cache=storage.cache_folder() / "looks",
            threads=None if workers.in_process else share,
        )
        files = self._measured(config, workers)
        E = setup.space.num_evaluation_classes
        found = {name: Measurements(PerImageConfusion(E)) for name in sources}
        for chunk in config.chunks():  # in order, whichever was first
            found[chunk.source].extend(read_measurements(files[chunk]))
        for one in self.sets:
            confusion, known = found[one.place].confusion, leakage.digests(one.place)
            layouts = {key: known.get(key) for key in confusion.layouts}
            self.layouts[one.place] = shared_layouts(layouts, setup.reference)
            if not np.any(confusion.labelled):
                raise UserError(f"{one.place}: no pixel of its labels has a class that is scored")
        return found

    def _measured(self, config: MeasureConfig, workers: Workers) -> dict[Chunk, Path]:
        """Files with the measurements of all chunks."""
        chunks = config.chunks()
        total = sum(chunk.stop - chunk.start for chunk in chunks)
        bar = Progress(total, "measuring", "image", show=not self.setup.request.quiet)
        files: dict[Chunk, Path] = {}
        failed: list[str] = []
        with bar, closing(run_jobs(lambda _: MeasureWorker(config), chunks, workers)) as outcomes:
            for outcome in outcomes:
                bar.update(outcome.job.stop - outcome.job.start)
                if isinstance(outcome, Done):
                    files[outcome.job] = outcome.result
                else:
                    failed.append(outcome.reason)
        if failed:
            reasons = [*dict.fromkeys(failed)]
            if len(reasons) == 1:
                raise UserError(reasons[0])
            raise UserError("samples or photos that cannot be evaluated", reasons)
        return files

    def _indices(self, data: TripleDataset) -> range:
        limit = self.setup.recipe.evaluate.num_images
        return range(len(data) if limit == 0 else min(limit, len(data)))

    def _floor(self, data: TripleDataset) -> Sequence[int]:
        """Photos of another split than the tested one: all, or enough, evenly spread."""
        most = min(len(data), max(_FLOOR_IMAGES, len(self._indices(self.setup.reference))))
        return np.linspace(0, len(data) - 1, most).round().astype(int).tolist()

    def _photos(self, found: Mapping[str, Measurements]) -> dict[str, Measurements]:
        """Photos by their split, each of them once."""
        names = {self.setup.recipe.data.split: _TRAIN, self.setup.split: _REFERENCE}
        names |= {split: _OTHERS.format(split) for split in self.setup.others}
        return {split: found[name] for split, name in names.items() if name in found}

    def describe(self, one: SampleSet, found: Mapping[str, Measurements]) -> SetReport:
        """Report of one set."""
        own, real = found[one.place], found[_REFERENCE]
        confusion = own.confusion
        photos = self._photos_of(one, confusion, real.confusion)
        classes = confusion.labelled_classes() & photos.labelled_classes()
        of_samples, of_real = (agreement(c, classes=classes) for c in (confusion, photos))
        metrics = {
            name: Metric.of(value, of_real.overall[name].value, len(confusion), low, high)
            for name, (value, low, high) in of_samples.overall.items()
            if math.isfinite(value)
        }
        if "miou" in metrics:
            mean_over = (
                f"mean over {classes.sum()} of {len(classes)} classes, those labelled in both the "
                "samples and the photos"
            )
            metrics["miou"] = metrics["miou"].model_copy(update={"protocol": mean_over})
        styles = image_metrics.style_metrics(own, real, self._photos(found))
        shown = np.isin(real.confusion.layouts, photos.layouts)
        metrics |= styles.metrics
        metrics |= image_metrics.texture_metric(
            own, np.array(real.octaves)[shown], found.get(_TRAIN)
        )
        metrics |= image_metrics.pair_metrics(own, real)
        skipped, notes = self._add_distances(metrics, own, real, found.get(_TRAIN))
        metrics, remarks = image_metrics.marked(
            metrics,
            [] if one.manifest is None else image_metrics.trained_against(one.manifest.recipe),
            "efficientnet_lite1" if isinstance(self.judge.segmenter.network, UNet) else None,
        )
        self._save_statistics(one, own, real)
        names = self.setup.space.names_for_evaluation
        best, worst = figures.extremes(confusion)
        warnings = judges.seen_layouts_warning(self.judge, confusion.layouts, self.setup.reference)
        warnings += image_metrics.edge_warnings(own)
        return SetReport(
            samples=one.place,
            protocol=self._protocol(one, confusion) | styles.protocol,
            metrics=metrics,
            per_class=self._per_class(confusion, photos, of_samples, of_real, styles.per_class),
            confusion=Confusion(classes=list(names), counts=confusion.matrix.tolist()),
            skipped=self.skipped | skipped | styles.skipped,
            warnings=one.warnings + warnings + self._generator_warnings(one),
            notes=self._notes(one, metrics.get("miou")) + remarks + notes,
            best=[confusion.keys[i] for i in best],
            worst=[confusion.keys[i] for i in worst],
        )

    def _add_distances(
        self,
        metrics: dict[str, Metric],
        own: Measurements,
        real: Measurements,
        train: Measurements | None,
    ) -> tuple[dict[str, str], list[str]]:
        """Add distances of features; reasons for those that are skipped, and notes."""
        skipped: dict[str, str] = {}
        notes: list[str] = []
        for network, features in own.features.items():
            distances, without, remarks = distribution.FeatureSets(
                network,
                features,
                own.confusion.layouts,
                real.features[network],
                None if train is None else train.features[network],
                self.given if network == "inception" else None,
            ).distances()
            metrics |= {name: Metric.of(*one) for name, one in distances.items()}
            skipped |= without
            notes += remarks
        return skipped, notes

    def _photos_of(
        self, one: SampleSet, samples: PerImageConfusion, real: PerImageConfusion
    ) -> PerImageConfusion:
        """The photos of the samples' own layouts; all of the split if some have no photo there."""
        sources = frozenset(samples.layouts)
        shown = self.layouts[one.place] & set(real.layouts)
        return real.select(sources) if sources <= shown else real

    def _generator_warnings(self, one: SampleSet) -> list[str]:
        about, setup = one.manifest, self.setup
        if about is not None and about.onto:
            return [
                "its images hold pixels of the photos that the generator was trained on (--onto "
                "photos): every number flatters them; what they are worth, ecgan downstream says"
            ]
        if about is None or not about.seen_layouts:
            return []
        if setup.split == setup.recipe.data.split:
            return [
                f"the photos of split {setup.split} are those that the generator was trained on: "
                "every number flatters it; measure on a split that it has not seen (--split)"
            ]
        return [
            f"the generator trained on {about.seen_layouts} of these {about.layouts} layouts (by "
            "key): it may have memorised them"
        ]

    def _notes(self, one: SampleSet, miou: Metric | None) -> list[str]:
        notes: list[str] = []
        kept = None if one.manifest is None else one.manifest.filter.kept_fraction
        if kept is not None:
            notes.append(
                f"a label filter left out {1 - kept:.1%} of the labelled pixels, which a segmenter "
                "disagreed with: mIoU, accuracy and consistency are over the rest; compare "
                "accuracy_with_void"
            )
        if miou is None:
            notes.append(
                "no class is labelled both in the samples and in the photos: there is no mIoU of "
                "the same classes"
            )
        elif miou.value and miou.value > (miou.real or 0):
            notes.append(
                "the judge scores higher on the samples than on real photos: they are easier to "
                "segment, which does not make them more like photos"
            )
        if not self.layouts[one.place]:
            notes.append(
                f"no layout of these samples is in the reference's split {self.setup.split}: "
                "images and photos are compared as sets only, and over other layouts"
            )
        if unknown := self.judge.segmenter.unknown_names:
            notes.append(f"the judge does not know {', '.join(unknown)}: these score 0")
        return notes

    def _protocol(self, one: SampleSet, confusion: PerImageConfusion) -> dict[str, Any]:
        about, recipe = one.manifest, self.setup.recipe
        given = self.setup.request.judge or recipe.evaluate.judge
        layouts = set(confusion.layouts)
        codec = "as found"
        if about is not None:
            codec = f"{about.image_format or 'as found'}, quality {about.quality or '?'}"
        return {
            "reference": str(recipe.data.root),
            "split": self.setup.split,
            "reference_images": len(self._indices(self.setup.reference)),
            "layouts": len(layouts),
            "real": "the judge's score on the photos of the samples' own layouts"
            if layouts <= self.layouts[one.place]
            else f"the judge's score on all photos of split {self.setup.split}",
            "real_of_distances": f"{len(self._floor(self.setup.train))} photos of split "
            f"{recipe.data.split} against those of split {self.setup.split}",
            "size": f"{self.setup.size[0]} x {self.setup.size[1]} (height x width)",
            "resizing": "reference as in training: photos bicubic with antialias, labels nearest",
            "judge": self.judge.about(recipe, recipe.data.split if given == "train" else ""),
            "judge_hash": self.judge.segmenter.hash,
            "judge_input": "the samples' size, photos resized to it",
            "classes": f"{self.setup.space.num_evaluation_classes} evaluation ids",
            "void": "unlabelled pixels and ids without an evaluation class are not scored, but in "
            "accuracy_with_void",
            "averaging": "over classes that occur; sums over the whole set",
            "interval": "95 %, percentile bootstrap over layouts, "
            f"{statistics.RESAMPLES} resamples; of distances {distribution.INTERVAL}",
            "label_filter": "not known" if about is None else about.filter.kind,
            "codec": codec,
            "checkpoint": one.checkpoint or "not known",
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
        styles: npt.NDArray[np.float64] | None,
    ) -> dict[str, ClassScore]:
        def shares(confusion: PerImageConfusion) -> npt.NDArray[np.float64]:
            pixels = np.sum(confusion.labelled, axis=0, dtype=np.float64)
            return np.asarray(pixels / max(1.0, pixels.sum()))

        own, reference = shares(samples), shares(real)
        palette = self.setup.space.evaluation_palette
        return {
            name: ClassScore(
                iou=finite(of_samples.iou[c].value),
                real=finite(of_real.iou[c].value),
                low=finite(of_samples.iou[c].low),
                high=finite(of_samples.iou[c].high),
                share=float(own[c]),
                real_share=float(reference[c]),
                color=tuple(palette[c].tolist()),
                style_spread=None if styles is None else finite(styles[c]),
            )
            for c, name in enumerate(self.setup.space.names_for_evaluation)
        }

    def _save_statistics(self, one: SampleSet, own: Measurements, real: Measurements) -> None:
        """Mean and covariance of all features, as pytorch-fid reads them."""
        folder = self.setup.request.save_statistics
        if folder is None:
            return
        names = [other.name for other in self.sets]
        name = one.name if names.count(one.name) == 1 else f"{self.sets.index(one)}-{one.name}"
        for what, found in ((name, own), (f"reference-{self.setup.split}", real)):
            for network, features in found.features.items():
                if len(features) > 1:
                    write_npz(folder / f"{what}-{network}.npz", distribution.gaussian(features))

    def illustrate(self, one: SampleSet, own: Measurements) -> page.Illustrations:
        """Pictures of a set."""
        rows = figures.Rows(
            self.setup.samples(one),
            own.confusion,
            self.judge,
            self.setup.reference,
            self.layouts[one.place],
            self.setup.device,
        )
        curves = figures.curves(one.manifest, Path(one.place).resolve().parent)
        return page.Illustrations(figures.galleries(rows), curves)


def shared_layouts(layouts: Mapping[str, str | None], reference: TripleDataset) -> frozenset[str]:
    """Layouts of the reference among those of a set, by their label maps where these are known.

    Data sets whose splits share names have other scenes under the same key.

    Args:
        layouts: first digits of the SHA-256 of each label map, by key; None where not known.
        reference: photos with label maps.
    """
    files = {item.key: item.label for item in reference.items}
    return frozenset(
        key
        for key, digest in layouts.items()
        if key in files and (digest is None or sha256(files[key]).startswith(digest))
    )
