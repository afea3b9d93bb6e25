"""Samples and reference -> numbers -> ``report.json`` and ``report.html``.

Every number stands beside what the same measurement gives for the real photos: the judge's score on
the reference's split (on the photos of the very layouts, where the samples are of that split), and
the distance between the reference's own train photos and that split. The reference is resized as in
training, to the size of the samples, and the protocol says so.
"""

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from tqdm import tqdm

import ecgan
from ecgan import checkpoint, distributed, labels, metrics, report, scoring
from ecgan.data import datasets, shards
from ecgan.data import sets as sample_sets
from ecgan.data.loader import TripleDataset
from ecgan.errors import UserError
from ecgan.labels import LabelSpace
from ecgan.models.pretrained import efficientnet_lite0
from ecgan.preview import colorize
from ecgan.recipe import Recipe, label_space, parse_recipe
from ecgan.scoring import Scene, Tally
from ecgan.segmentation import Segmenter, load_segmenter, train_segmenter

_GALLERY_ROWS, _EXTREMES = 6, 4
_FLOOR_IMAGES = 2048  # train photos, at least, behind the real photos' own distance
_COLUMNS = ("layout", "edge", "image", "real photo", "judge's reading")
_CURVES = ("discriminator", "adversarial", "similarity", "contrastive", "perceptual", "miou")
Features = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        samples: data sets of samples; empty takes the newest below ``datasets/``.
        out: folder of the report; None: ``reports/`` and the name of the first data set.
        reference: the real data set; None: the data.root of the samples' recipe.
        recipe: wins over the one that the samples carry.
        overrides: ``section.key=value``, over the samples' recipe; used only without ``recipe``.
        split: of the reference; None: test, or val where there is no test.
        judge: replaces evaluate.judge.
        device: auto, cpu, cuda or cuda:N.
        quiet: no progress bars.
    """

    samples: tuple[Path, ...] = ()
    out: Path | None = None
    reference: Path | None = None
    recipe: Recipe | None = None
    overrides: tuple[str, ...] = ()
    split: str | None = None
    judge: str | None = None
    device: str = "auto"
    quiet: bool = False


@dataclass
class _Set:
    """One data set of samples and what was found in it."""

    path: Path
    manifest: dict[str, Any] | None
    tally: Tally = field(default_factory=lambda: Tally(0))
    features: Features = field(default_factory=Features)

    @property
    def is_evaluation(self) -> bool:
        """Whether its labels are evaluation ids already."""
        return self.manifest is not None and self.manifest["label_space"] == "evaluation"


def run(request: Request) -> tuple[dict[str, Any], Path]:
    """Evaluate, and write the report.

    Returns:
        The report (its schema is that of :mod:`ecgan.report`), and the folder it is in.

    Raises:
        UserError: samples, reference or judge are not there or do not fit each other.
    """
    device = distributed.choose_device(request.device)
    paths = request.samples or (newest_samples(Path("datasets")),)
    sets = [_Set(path, _manifest(path)) for path in paths]
    recipe = _recipe(request, sets)
    out = request.out or Path("reports") / paths[0].resolve().name
    _check_out(out)
    evaluation = _Evaluation(request, recipe, sets, out, device)
    return evaluation.run(), out


def _check_out(out: Path) -> None:
    """Refuse a folder that cannot take the report, before a judge is trained for it."""
    with checkpoint.writing(out):
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {out}: a file; give a folder")
        names = {path.name for path in out.iterdir()} if out.is_dir() else set[str]()
        above = next(path for path in (out, *out.absolute().parents) if path.exists())
    if names and not names & {"report.json", "segmenters"}:
        raise UserError(f"--out {out}: not empty, and not a report of ecgan; give another folder")
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--out {out}: cannot write to {above}; give another folder")


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


def _manifest(path: Path) -> dict[str, Any] | None:
    if not path.is_dir():
        raise UserError(f"--samples {path}: no such folder")
    return sample_sets.manifest(path)


def _recipe(request: Request, sets: Sequence[_Set]) -> Recipe:
    """The recipe given, or that of the first samples that carry one."""
    recipe = request.recipe
    if recipe is None:
        carried = next((s for s in sets if s.manifest is not None), None)
        if carried is None or carried.manifest is None:
            raise UserError(
                f"--samples {sets[0].path}: has no manifest.json of ecgan, so its classes are not "
                "known; give --recipe NAME|FILE"
            )
        recipe = parse_recipe(
            carried.manifest["recipe"], f"{carried.path}/manifest.json: recipe", request.overrides
        )
    if request.reference is not None:
        data = recipe.data.model_copy(update={"root": str(request.reference)})
        recipe = recipe.model_copy(update={"data": data})
    if recipe.data.root is None:
        raise UserError("the recipe has no data.root: give the real data set with --reference DIR")
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
        self.request, self.recipe, self.sets, self.device = request, recipe, sets, device
        self.out = out
        self.space = self._space()
        self.size = self._common_size()
        self.skipped: dict[str, str] = {}
        self.split = request.split or self._default_split()
        self.networks = self._networks()
        self.reference = self._data(self.split, train=False)
        self.train = self._data(recipe.data.split, train=True)
        self.judge = self._find_judge()

    def run(self) -> dict[str, Any]:
        """Numbers of every set, and the report."""
        E = self.space.num_evaluation_classes

        def look(scenes: Iterator[Scene], total: int | None, what: str) -> tuple[Tally, Features]:
            bar = tqdm(scenes, what, total, unit="image", disable=self.request.quiet or None)
            return scoring.read_scenes(bar, self.judge, self.networks, E, device=self.device)

        real, real_features = look(
            self._real(self.reference, self._indices(self.reference)),
            len(self._indices(self.reference)),
            "reference",
        )
        train_features: Features = {}
        if self.networks:
            # Without the judge: it was trained on them.
            bar = tqdm(
                self._real(self.train, self._floor()),
                "train photos",
                len(self._floor()),
                unit="image",
                disable=self.request.quiet or None,
            )
            train_features = scoring.read_scenes(bar, None, self.networks, E, device=self.device)[1]
        for one in self.sets:
            one.tally, one.features = look(self._samples(one), self._count(one), one.path.name)
            if not np.any(one.tally.labelled):
                raise UserError(f"{one.path}: no pixel of its labels has a class that is scored")
        parts = [self._report(one, real, real_features, train_features) for one in self.sets]
        document = {"schema": report.SCHEMA, **parts[0], "compared": parts[1:]}
        pictures = [self._illustrations(one) for one in self.sets]
        report.write(document, self.out, pictures)
        return document

    # What there is

    def _space(self) -> LabelSpace:
        found: LabelSpace | None = None
        for one in self.sets:
            if one.manifest is None:
                continue
            space = labels.from_json(one.manifest["classes"], f"{one.path}/manifest.json: classes")
            if found is not None and space.names != found.names:
                raise UserError(
                    f"{one.path}: other classes than {self.sets[0].path}; evaluate them apart"
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
        sizes: dict[tuple[int, int], Path] = {}
        for one in self.sets:
            first = next(sample_sets.read(one.path), None)
            if first is None:
                raise UserError(f"--samples {one.path}: holds no samples")
            sizes.setdefault((first.image.shape[0], first.image.shape[1]), one.path)
        if len(sizes) > 1:
            listed = ", ".join(f"{path} {h} x {w}" for (h, w), path in sizes.items())
            raise UserError(f"sets of different size ({listed}); evaluate them apart")
        return next(iter(sizes))

    def _default_split(self) -> str:
        there = datasets.splits(self.recipe.data.dataset, Path(str(self.recipe.data.root)))
        return "test" if "test" in there else "val"

    def _networks(self) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module] = {}
        wanted, weights = self.recipe.evaluate.features, self.recipe.evaluate.inception_weights
        if "efficientnet_lite0" in wanted:
            networks["efficientnet_lite0"] = efficientnet_lite0().to(self.device)
        reason = (
            "evaluate.features does not name inception"
            if "inception" not in wanted
            else "evaluate.inception_weights is not set: give pt_inception-2015-12-05 (.pth)"
        )
        if "inception" in wanted and weights is not None:
            networks["inception"] = metrics.InceptionFeatures(weights).to(self.device)
        else:
            self.skipped |= dict.fromkeys(("fid", "kid"), reason)
        return networks

    def _data(self, split: str, *, train: bool) -> TripleDataset:
        data = self.recipe.data
        items = datasets.items_for(
            data.dataset, Path(str(data.root)), split, train_split=data.split
        )
        datasets.check_labels(items, self.space, data.dataset)
        return TripleDataset(
            items,
            self.space,
            data.dataset,
            height=self.size[0],
            width=self.size[1],
            flip=data.flip,
            train=train,
            seed=self.recipe.evaluate.seed,
            edges="none",
        )

    def _find_judge(self) -> Segmenter:
        evaluate = self.recipe.evaluate
        judge = self.request.judge or evaluate.judge
        if judge != "train":
            return load_segmenter(judge, self.space, device=self.device, evaluation=True)
        return train_segmenter(
            self.train,
            self.space,
            height=self.size[0],
            width_px=self.size[1],
            width=evaluate.judge_width,
            images=evaluate.judge_images,
            seed=evaluate.seed,
            cache=self.out / "segmenters",
            device=self.device,
            evaluation=True,
            progress=not self.request.quiet,
            workers=self.recipe.data.workers,
        )

    # What is looked at

    def _indices(self, data: TripleDataset) -> range:
        limit = self.recipe.evaluate.num_images
        return range(len(data) if limit == 0 else min(limit, len(data)))

    def _floor(self) -> Sequence[int]:
        """Train photos for the real photos' own distance: all, or enough, evenly spread."""
        most = min(len(self.train), max(_FLOOR_IMAGES, len(self._indices(self.reference))))
        return np.linspace(0, len(self.train) - 1, most).round().astype(int).tolist()

    def _count(self, one: _Set) -> int | None:
        counts = [self._limit(), None if one.manifest is None else int(one.manifest["samples"])]
        return min((count for count in counts if count is not None), default=None)

    def _real(self, data: TripleDataset, indices: Sequence[int]) -> Iterator[Scene]:
        for index in indices:
            sample = data.load_plain(index)
            assert sample.image is not None
            label = self.space.to_evaluation(sample.label)
            yield Scene(sample.key, sample.key, sample.image, label)

    def _raw(self, one: _Set) -> Iterator[shards.ShardSample]:
        """Samples of a set, the first by order if the recipe limits them; all of one size."""
        for sample in itertools.islice(sample_sets.read(one.path), self._limit()):
            if sample.image.shape[:2] != self.size or sample.label.shape != self.size:
                raise UserError(
                    f"{one.path}: {sample.key} is {sample.image.shape[0]} x "
                    f"{sample.image.shape[1]} with a label of {sample.label.shape[0]} x "
                    f"{sample.label.shape[1]}, the samples before are {self.size[0]} x "
                    f"{self.size[1]}; all must be of one size"
                )
            yield sample

    def _limit(self) -> int | None:
        return self.recipe.evaluate.num_images or None

    def _samples(self, one: _Set) -> Iterator[Scene]:
        for sample in self._raw(one):
            yield Scene(sample.key, sample.source, sample.image, self._label(one, sample))

    def _label(self, one: _Set, sample: shards.ShardSample) -> labels.Labels:
        """Evaluation ids."""
        space = self.space
        count = space.num_evaluation_classes if one.is_evaluation else space.num_classes
        known = (sample.label < count) | (sample.label == space.ignore_index)
        if not known.all():
            raise UserError(
                f"{one.path}: {sample.key} has the label {int(sample.label[~known][0])}, the class "
                f"list has 0-{count - 1} and {space.ignore_index}"
            )
        return sample.label if one.is_evaluation else space.to_evaluation(sample.label)

    # What is written

    def _report(
        self, one: _Set, real: Tally, real_features: Features, train_features: Features
    ) -> dict[str, Any]:
        photos = self._photos_of(one, real)
        of_samples, of_real = scoring.agreement(one.tally), scoring.agreement(photos)
        numbers: dict[str, dict[str, Any]] = {
            name: {
                "value": _finite(estimate.value),
                "real": _finite(of_real.overall[name].value),
                "low": _finite(estimate.low),
                "high": _finite(estimate.high),
                "n": len(one.tally),
            }
            for name, estimate in of_samples.overall.items()
        }
        notes = self._notes(one)
        if numbers["miou"]["value"] and numbers["miou"]["value"] > (numbers["miou"]["real"] or 0):
            notes.append(
                "the judge reads the samples better than real photos: they are easier to read, "
                "which does not make them more like photos"
            )
        skipped = dict(self.skipped)
        for name, features in one.features.items():
            pair = features, real_features[name], train_features[name]
            for metric, measure in _DISTANCES[name].items():
                try:
                    value, floor = measure(pair[0], pair[1]), measure(pair[2], pair[1])
                except ValueError as error:
                    skipped[metric] = str(error)
                    continue
                numbers[metric] = {
                    "value": _finite(value),
                    "real": _finite(floor),
                    "low": None,
                    "high": None,
                    "n": len(features),
                }
            least = min(len(part) for part in pair)
            if least <= features.shape[1]:
                notes.append(
                    f"{least} images against {features.shape[1]} features of {name}: the distance "
                    "is biased upwards; compare it at this n only"
                )
        order = np.argsort(one.tally.accuracies(), kind="stable")
        return {
            "samples": str(one.path),
            "protocol": self._protocol(one),
            "metrics": numbers,
            "per_class": self._per_class(one, photos, of_samples, of_real),
            "skipped": skipped,
            "notes": notes,
            "best": [one.tally.keys[i] for i in _extremes(one.tally, order[::-1])],
            "worst": [one.tally.keys[i] for i in _extremes(one.tally, order)],
        }

    def _photos_of(self, one: _Set, real: Tally) -> Tally:
        """The photos of the samples' own layouts; all of the split if some have no photo there."""
        sources = frozenset(one.tally.layouts)
        return real.select(sources) if sources <= set(real.layouts) else real

    def _notes(self, one: _Set) -> list[str]:
        notes: list[str] = []
        sources = set(one.tally.layouts)
        # A key that both splits have is a layout of the split that is asked about.
        seen = sources & set(self.train.keys)
        if self.split != self.recipe.data.split:
            seen -= set(self.reference.keys)
        if seen and self.judge.provenance.kind == "trained":
            notes.append(
                f"{len(seen)} of {len(sources)} layouts of these samples are in the judge's own "
                "training: its agreement says less about them"
            )
        matched = sources & set(self.reference.keys)
        if not matched:
            notes.append(
                f"no layout of these samples is in the reference's split {self.split}: images and "
                "photos are compared as sets only, and over other layouts"
            )
        unknown = self.judge.describe()["unknown"]
        if unknown:
            notes.append(f"the judge does not know {', '.join(unknown)}: these score 0")
        return notes

    def _protocol(self, one: _Set) -> dict[str, Any]:
        judge = self.judge.describe()
        size = f"{self.size[0]} x {self.size[1]} (height x width)"
        about = one.manifest or {}
        given = self.request.judge or self.recipe.evaluate.judge
        if given == "train":
            about_judge = (
                f"{judge['source']}, trained here, {judge['images']} images seen, on the "
                f"reference's split {self.recipe.data.split}; width {judge['width']}, seed "
                f"{self.recipe.evaluate.seed}"
            )
        elif judge["kind"] == "trained":
            about_judge = (
                f"{given}: made by ecgan, {judge['images']} images seen, of data and settings with "
                f"the hash {judge['data'][:16]}"
            )
        else:
            about_judge = given
        return {
            "reference": str(self.recipe.data.root),
            "split": self.split,
            "reference_images": len(self._indices(self.reference)),
            "layouts": len(set(one.tally.layouts)),
            "real": "the judge's score on the photos of the samples' own layouts"
            if set(one.tally.layouts) <= set(self.reference.keys)
            else f"the judge's score on all photos of split {self.split}",
            "real_of_distances": f"{len(self._floor())} photos of split {self.recipe.data.split} "
            f"against those of split {self.split}",
            "size": size,
            "resizing": "reference as in training: photos bicubic with antialias, labels nearest",
            "judge": about_judge,
            "judge_hash": judge["hash"],
            "classes": f"{self.space.num_evaluation_classes} evaluation ids",
            "void": "unlabelled pixels and ids without an evaluation class are not scored, but in "
            "accuracy_with_void",
            "averaging": "over classes that occur; sums over the whole set",
            "interval": f"95 %, percentile bootstrap over layouts, {scoring.RESAMPLES} resamples",
            "codec": f"{about.get('image_format', 'as found')}, quality {about.get('quality', '?')}"
            if about
            else "as found",
            "checkpoint": about.get("fingerprint", {}).get("checkpoint", "not known"),
            "distances": "Frechet distances over all images; KID is the mean over "
            f"{metrics.KID_SUBSETS} subsets of at most {metrics.KID_SUBSET_SIZE} images",
            "ecgan": ecgan.__version__,
            "torch": torch.__version__,
        }

    def _per_class(
        self,
        one: _Set,
        real: Tally,
        of_samples: scoring.Agreement,
        of_real: scoring.Agreement,
    ) -> dict[str, dict[str, Any]]:
        def shares(tally: Tally) -> npt.NDArray[np.float64]:
            pixels = np.sum(tally.labelled, axis=0, dtype=np.float64)
            return np.asarray(pixels / max(1.0, pixels.sum()))

        own, reference = shares(one.tally), shares(real)
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

    def _illustrations(self, one: _Set) -> report.Illustrations:
        accuracies = one.tally.accuracies()
        order = np.argsort(accuracies, kind="stable")
        spread = np.linspace(0, len(order) - 1, min(_GALLERY_ROWS, len(order))).round().astype(int)
        picked = {
            "Samples": ([*spread], "Evenly spread over the set, in its order."),
            "Best": (
                _extremes(one.tally, order[::-1]),
                "Where the judge agrees most with the layout.",
            ),
            "Worst": (_extremes(one.tally, order), "Where the judge agrees least with the layout."),
        }
        wanted = {one.tally.keys[i] for indices, _ in picked.values() for i in indices}
        found = {s.key: s for s in self._raw(one) if s.key in wanted}
        share = dict(zip(one.tally.keys, accuracies, strict=True))
        galleries = [
            report.Gallery(
                title,
                text,
                _COLUMNS,
                [self._row(one, found[one.tally.keys[i]], share) for i in indices],
            )
            for title, (indices, text) in picked.items()
        ]
        return report.Illustrations(galleries, _curves(one))

    def _row(self, one: _Set, sample: shards.ShardSample, share: dict[str, float]) -> report.Row:
        label = self._label(one, sample)
        scene = Scene(sample.key, sample.source, sample.image, label)
        reading = self.judge.predict(scoring.images_of([scene], self.device))[0].cpu().numpy()
        palette, key = self.space.evaluation_palette, sample.key
        real = None
        if sample.source in self.reference.keys:
            photo = self.reference.load_plain(self.reference.keys.index(sample.source)).image
            assert photo is not None
            real = report.Picture(photo, f"real photo of {sample.source}")
        cells = [
            report.Picture(colorize(label, palette), f"layout of {key}", exact=True),
            None if sample.edge is None else report.Picture(sample.edge, f"edges of {key}"),
            report.Picture(sample.image, f"image {key}"),
            real,
            report.Picture(colorize(reading, palette), f"judge's reading of {key}", exact=True),
        ]
        return report.Row(key, f"{share[key]:.1%} of the labelled pixels read as meant", cells)


def _extremes(tally: Tally, order: npt.NDArray[np.intp]) -> list[int]:
    """The first samples in this order, one of each layout."""
    first: dict[str, int] = {}
    for index in order.tolist():
        first.setdefault(tally.layouts[index], index)
    return list(first.values())[:_EXTREMES]


def _curves(one: _Set) -> list[report.Curve]:
    """Training curves of the run whose generator made the samples, where it is still at hand."""
    made_by = (one.manifest or {}).get("fingerprint", {}).get("checkpoint")
    folders = [*Path("runs").glob("*"), *one.path.resolve().parent.glob("*")]
    for log in (folder / "metrics.jsonl" for folder in folders):
        try:
            generators = sorted(log.parent.glob("generator*.safetensors")) if log.is_file() else []
            if made_by in {checkpoint.sha256(path) for path in generators}:
                text = log.read_text(encoding="utf-8")
                break
        except OSError:  # a neighbour that is not ours to read
            continue
    else:
        return []
    # A run that was killed may have left half a line.
    lines = [line for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
    records = [json.loads(line) for line in lines]
    curves: list[report.Curve] = []
    for name in _CURVES:
        points = [(float(r["images"]), float(r[name])) for r in records if name in r]
        if len(points) > 1:
            curves.append(report.Curve(name, points))
    return curves


def _kid(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    return metrics.kid(b, a).mean


def _fid(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    if min(len(a), len(b)) < 2:
        raise ValueError("a covariance needs at least 2 images")
    return metrics.fid(b, a)


Distance = Callable[[npt.NDArray[np.float32], npt.NDArray[np.float32]], float]
_DISTANCES: dict[str, dict[str, Distance]] = {
    "efficientnet_lite0": {"fd_efficientnet_lite0": metrics.frechet_distance_of},
    "inception": {"fid": _fid, "kid": _kid},
}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
