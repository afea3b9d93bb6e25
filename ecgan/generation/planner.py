"""From the options of ``sample`` and ``augment`` to a plan.

Everything that can be refused is refused here, before a network is built or a file is written.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

import ecgan
from ecgan import checkpoint
from ecgan.checkpoint import GeneratorFile
from ecgan.data import checks, datasets
from ecgan.data.datasets import Item
from ecgan.data.files.names import photos_below
from ecgan.data.label_cache import LabelCache
from ecgan.errors import UsageError, UserError
from ecgan.generation import balance, layout_augmentation
from ecgan.generation.plan import Counts, Stage, refuse_colliding_keys, spread, whole_rows
from ecgan.generation.request import LayoutOptions, Request, StyleOptions, check_options
from ecgan.generation.state import PlanRequest, plan_id
from ecgan.generation.worker import GenerationConfig, Output, VariantOptions
from ecgan.labels import LabelSpace
from ecgan.reading.places import Address
from ecgan.recipe import Recipe, data_folder, parse_recipe, subset
from ecgan.runtime.device import choose_device, processor_name
from ecgan.runtime.jobs import Workers
from ecgan.runtime.storage import open_store
from ecgan.runtime.timing import say
from ecgan.sampling import styles
from ecgan.sampling.layouts import (
    fitted_counts,
    layout_digests,
    own_classes,
    photos_digest,
    refitted,
    space_hash,
    with_instances,
    with_photos,
)
from ecgan.sampling.sampler import ARITHMETIC, Sampler, compiles
from ecgan.sampling.styles import Styles, Vectors
from ecgan.segmentation import calibration
from ecgan.segmentation import label_filter as consistency
from ecgan.shards import codecs
from ecgan.shards.files.names import MAX_SHARDS
from ecgan.shards.manifest import Fingerprint, layouts_digest

_MAX_ROWS = 100_000_000  # layouts with their variants


class TrainedFilter(NamedTuple):
    """Segmenters of the label filter, as the plan needs them."""

    spec: consistency.FilterSpec
    folds: npt.NDArray[np.int8]  # number of the segmenter that judges each layout, (L,)
    losses: npt.NDArray[np.float64]  # mean of each class on real pairs, (N,)


@dataclass(frozen=True, eq=False)
class DatasetPlan:
    """Samples that a data set will have, and everything that decides their bytes."""

    request: Request
    file: GeneratorFile
    recipe: Recipe  # the generator's, with the request's overrides
    workers: Workers
    items: Sequence[Item]  # label maps, sorted by key
    check: checks.LabelCheck  # class counts and digests of the label maps
    label_cache: LabelCache  # earlier label checks; saved once the data set's folder is there
    reading: LabelSpace | None = None  # class list of the label maps; None: the generator's
    photos: tuple[Path, ...] = ()  # of --style-images
    styles: Vectors | None = None  # of the photos, (photos, 256); None before encode_styles()
    filter: TrainedFilter | None = None  # None before train_filter(), and where nothing needs one
    begun_with: str = ecgan.__version__  # that began the data set, and is named in its images

    @property
    def space(self) -> LabelSpace:
        return self.file.space

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of samples."""
        return self.recipe.data.height, self.recipe.data.width

    @property
    def by_hardness(self) -> bool:
        """Whether hard layouts get more samples; the filter's segmenters say how hard they are."""
        return self.request.balance.spread == "hardness"

    @property
    def needs_filter(self) -> bool:
        """Whether segmenters judge samples or layouts."""
        return self.request.filter.label_filter is not None or self.by_hardness

    @property
    def judge(self) -> TrainedFilter | None:
        """Filter that judges samples; None where it only tells how hard layouts are."""
        return None if self.request.filter.label_filter is None else self.filter

    @property
    def unknown(self) -> frozenset[str]:
        """Fields of the fingerprint that :func:`encode_styles` and :func:`train_filter` decide."""
        names: set[str] = set()
        if self.photos and self.styles is None:
            names.add("style_images")
        if self.needs_filter and self.filter is None:
            names.add("filter")
            if self.by_hardness:
                names |= {"balance", "num_layouts", "styles_per_layout"}
        return frozenset(names)

    @cached_property
    def even_counts(self) -> Counts:
        """Styles of each layout and of each of its varied forms without --balance, (L, forms)."""
        asked, num_layouts, forms = self.request.styles, len(self.items), 1 + self._n_variants
        first = int(self.request.layouts.onto is not None)  # as they are, they would be photos
        counts = np.zeros((num_layouts, forms), np.int64)
        counts[:, first:] = asked.n_styles or len(self.photos) or 1
        if asked.num is not None:
            spread_out = spread(asked.num, num_layouts * (forms - first))
            counts[:, first:] = spread_out.reshape(num_layouts, forms - first)
        return counts

    @property
    def _n_variants(self) -> int:
        layouts = self.request.layouts
        return (layouts.n_variants or 1) if layouts.changes else 0

    @cached_property
    def counts(self) -> Counts:
        """Counts of the same sum as --balance spreads them; even ones where it is not known how."""
        asked, even = self.request.balance, self.even_counts
        total, most = int(even.sum()), self.recipe.sampling.balance_max_styles
        if asked.spread == "none":
            return even
        pixels = np.repeat(self._pixels, even.shape[1], axis=0)
        if self.by_hardness and self.filter is not None:
            hardness = balance.hardness(pixels, self.filter.losses)
            return balance.hardness_counts(hardness, total, most).reshape(even.shape)
        if asked.spread == "target":
            targets = balance.parse_targets(asked.targets, self.space.names)
            return balance.target_counts(pixels, targets, total, most).reshape(even.shape)
        return even

    @cached_property
    def _pixels(self) -> npt.NDArray[np.int64]:
        """Pixels of each class in a sample of each layout, (L, N): of what is used of it."""
        reading = self.reading or self.space
        return fitted_counts(self.check, self.items, reading, self.recipe)

    @property
    def shares(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Shares of the classes of the labelled pixels, without and with balance, (N,) each."""
        even, planned = (
            balance.shares(self._pixels, counts.sum(axis=1))
            for counts in (self.even_counts, self.counts)
        )
        return even, planned

    @cached_property
    def settings(self) -> GenerationConfig:
        """What all workers need."""
        request, sampling = self.request, self.recipe.sampling
        changes, seed = request.layouts.changes, request.styles.seed or 0
        things: frozenset[int] = frozenset()
        if "paste" in changes:
            things = layout_augmentation.thing_classes(self.space, sampling.things)
        return GenerationConfig(
            generator=request.generator.absolute(),
            device=self.workers.device,
            out=_absolute(request.out),
            output=self._output,
            styles=Styles(
                seed,
                request.styles.style_seed,
                self.styles,
                self.file.style_prior if sampling.style_prior == "photos" else None,
                sampling.style_temperature,
            ),
            variation=VariantOptions(changes, things, seed, request.layouts.onto is not None),
            filter=None if self.judge is None else self.judge.spec,
            on_inconsistent=request.filter.on_inconsistent,
            retries=sampling.filter_retries,
            encoders=_encoders(self.workers),
            compiled=compiles(
                self.recipe, int(self.counts.sum()), on_cuda=self.workers.device.startswith("cuda")
            ),
            reading=self.reading,
            layout_fit=sampling.layout_fit,
        )

    @property
    def _output(self) -> Output:
        asked, sampling, space = self.request.output, self.recipe.sampling, self.space
        evaluation = asked.label_space == "evaluation"
        mark = b""
        if asked.provenance:
            mark = codecs.synthetic_mark(
                tool=f"ecgan {self.begun_with}",
                license=sampling.license,
                checkpoint=self.file.sha256,
                source=self.digital_source,
            )
        return Output(
            data_format=asked.data_format,
            image_format=asked.image_format or sampling.image_format,
            quality=sampling.quality,
            batch=self.request.batch or sampling.batch,
            evaluation=evaluation,
            num_classes=space.num_evaluation_classes if evaluation else space.num_classes,
            mark=mark,
            digital_source_type=self.digital_source if asked.provenance else "",
        )

    @property
    def digital_source(self) -> str:
        """IPTC's word for where the images are from."""
        return codecs.COMPOSITE_SOURCE if self.request.layouts.onto else codecs.DIGITAL_SOURCE

    @cached_property
    def wanted(self) -> PlanRequest:
        """Rows and fingerprint, as the data set's state keeps them."""
        asked = self.request.output.samples_per_shard
        stage = Stage(
            self.items,
            whole_rows(self.counts),
            0,
            asked or self.recipe.sampling.samples_per_shard,
            None if self.judge is None else self.judge.folds,
            "paste" in self.request.layouts.changes,
        )
        digests = layout_digests(self.check)
        fingerprint = self._fingerprint(stage, digests)
        stage = replace(stage, plan=plan_id(fingerprint))
        return PlanRequest(stage, digests, fingerprint, self.request.to_json())

    def _fingerprint(self, stage: Stage, digests: Sequence[str]) -> Fingerprint:
        """Everything that decides the bytes of the samples."""
        request, sampling, output = self.request, self.recipe.sampling, self.settings.output
        asked, changes, hardest = request.output, request.layouts.changes, ""
        if self.by_hardness and self.filter is not None:
            hardest = f" {self.filter.spec.hash[:12]}"
        keys: list[str] = []
        if request.filter.label_filter is not None:
            keys += ["filter_tolerance", "filter_min_kept", "filter_min_class_kept"]
            keys += ["filter_retries"]
        if request.balance.spread != "none":
            keys.append("balance_max_styles")
        if "paste" in changes:
            keys.append("things")
        if self.recipe.model.style and not self.photos and sampling.style_prior == "photos":
            keys += ["style_prior", "style_temperature"]
        if sampling.layout_fit != "stretch":
            keys.append("layout_fit")
        photos = [path.stem for path in self.photos]
        return Fingerprint(
            checkpoint=self.file.sha256,
            seed=request.styles.seed or 0,
            style_seed=request.styles.style_seed,
            format=output.data_format,
            image_format=output.image_format,
            quality=output.quality,
            samples_per_shard=stage.samples_per_shard,
            batch=output.batch,
            label_space=asked.label_space,
            provenance=asked.provenance,
            license=sampling.license if asked.provenance else None,
            on_inconsistent=request.filter.on_inconsistent,
            targets=tuple(sorted(request.balance.targets)) or None,
            vary=",".join(changes) or None,
            n_variants=self._n_variants,
            onto=None if request.layouts.onto is None else photos_digest(self.check),
            device=processor_name(torch.device(self.workers.device)),
            arithmetic=ARITHMETIC,
            versions=self.versions,
            style_images=None if self.styles is None else styles.photo_digest(photos, self.styles),
            filter=None if self.judge is None else self.judge.spec.hash,
            balance=request.balance.spread + hardest,
            label_classes=None if self.reading is None else space_hash(self.reading),
            labels=layouts_digest(zip((i.key for i in self.items), digests, strict=True)),
            num_layouts=len(np.unique(stage.rows.layouts)),
            styles_per_layout=f"{stage.rows.counts.min()} to {stage.rows.counts.max()}",
            num_samples=stage.num_samples,
            compile=self.settings.compiled,
            **{key: getattr(sampling, key) for key in keys},
        )

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the programs that decide the bytes."""
        others = {name: metadata.version(name) for name in ("torch", "numpy", "pyarrow")}
        return {"ecgan": self.begun_with, **others, **codecs.versions()}


def plan(request: Request) -> DatasetPlan:
    """Check everything that can be refused, and plan; nothing is written, trained or generated.

    Raises:
        UserError: the options contradict each other or the generator; the labels have faults.
    """
    check_options(request)
    workers = request.workers.resolve()
    file = checkpoint.load_generator(request.generator)
    recipe = file.recipe
    if request.overrides:
        document = recipe.model_dump(mode="json")
        recipe = parse_recipe(document, f"recipe of {request.generator}", request.overrides)
    _check_against_generator(request, recipe, file)
    items = _items(request.layouts, recipe)
    if request.layouts.onto is not None:
        items = with_photos(items, _pairs(request.layouts, recipe))
    folder = request.styles.style_images
    photos = () if folder is None else photos_below(folder, "--style-images")
    label_cache = LabelCache(open_store(request.out))
    listed = own_classes(request.layouts.labels, recipe, file.space)
    check = checks.check_labels(
        items,
        file.space if listed is None else listed.wide,
        recipe.data.dataset,
        cache=label_cache,
        check_images=request.layouts.onto is not None,
        progress=not request.quiet,
    )
    reading, notes = None, list(check.notes)
    if listed is not None:
        check, reading = listed.in_ids_of(file.space, check), listed.reading
        if reading is not None:
            notes.append(f"Reading the label maps with {listed.path}, by the names of its classes")
    if request.layouts.labels is not None:
        notes.append(refitted(check, recipe))
    for note in filter(None, [] if request.quiet else notes):
        say(note)
    items = [replace(i, digest=d) for i, d in zip(check.items, layout_digests(check), strict=True)]
    _check_number(request, recipe, len(items), len(photos))
    made = DatasetPlan(request, file, recipe, workers, items, check, label_cache, reading, photos)
    _check_style_count(request.styles, recipe, int(made.even_counts.max()), len(items))
    refuse_colliding_keys(made.wanted.stage)
    return made


def encode_styles(plan: DatasetPlan) -> DatasetPlan:
    """Encode the photos of --style-images.

    Raises:
        UserError: a photo cannot be read.
    """
    if not plan.photos:
        return plan
    sampler = Sampler(plan.request.generator, torch.device("cpu"))
    return replace(plan, styles=sampler.encode_styles(plan.photos).numpy())


def train_filter(plan: DatasetPlan) -> DatasetPlan:
    """Train the segmenters of the label filter, or load them, and balance by their losses.

    Raises:
        UserError: the real pairs are not there, or the segmenter does not fit.
    """
    if not plan.needs_filter:
        return plan
    request, sampling = plan.request, plan.recipe.sampling
    thresholds = consistency.Thresholds(
        sampling.filter_tolerance, sampling.filter_min_kept, sampling.filter_min_class_kept
    )
    digests = {i.key: bytes(d).hex() for i, d in zip(plan.items, plan.check.digests, strict=True)}
    spec, folds = calibration.prepare_filter(
        request.filter.label_filter or "train",
        plan.recipe,
        plan.space,
        layouts=digests,
        root=_root(request.layouts.root, plan.recipe),
        cache=request.generator.absolute().parent / "segmenters",
        device=choose_device(request.workers.device),
        thresholds=thresholds,
        progress=not request.quiet,
    )
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # the workers need it: segmenters were trained in this process
    numbers = np.array([folds.fold(key, digest) for key, digest in digests.items()], np.int8)
    return replace(plan, filter=TrainedFilter(spec, numbers, spec.pooled_losses()))


# Checks


def _check_against_generator(request: Request, recipe: Recipe, file: GeneratorFile) -> None:
    if request.layouts.instances is not None and not recipe.data.instances:
        raise UsageError(
            "--instances: this run takes no instance boundaries (data.instances is false)"
        )
    if request.layouts.onto is not None and recipe.sampling.layout_fit != "stretch":
        raise UsageError(
            "--onto photos: photos are resized as in training; give --set "
            "sampling.layout_fit=stretch"
        )
    if recipe.sampling.layout_fit == "letterbox" and file.space.ignore is None:
        raise UserError(
            "sampling.layout_fit=letterbox: its borders are unlabelled, and the generator's class "
            "list has no value of unlabelled pixels (ignore: null); use crop or stretch"
        )
    if recipe.model.style:
        if recipe.sampling.style_prior == "photos" and file.style_prior is None:
            raise UserError(
                f"{request.generator}: sampling.style_prior=photos, but the file holds no prior of "
                "the photos' styles: it was written by an earlier version of ecgan. Repeat the "
                "ecgan train of its run, which adds it, or give --set sampling.style_prior=normal"
            )
        return
    for name, given in (
        ("--style-images", request.styles.style_images is not None),
        ("--style-seed", request.styles.style_seed is not None),
        ("--on-inconsistent retry", request.filter.on_inconsistent == "retry"),
    ):
        if given:
            raise UsageError(
                f"{name}: this run has no style encoder; train one with model.style=true"
            )


def _check_style_count(asked: StyleOptions, recipe: Recipe, most: int, num_layouts: int) -> None:
    if recipe.model.style or most <= 1:
        return
    option = f"--num {asked.num}" if asked.num is not None else f"--n-styles {most}"
    raise UsageError(
        f"{option}: this run has no style encoder, so one layout has one image "
        f"({num_layouts} here); train with model.style=true, or ask for one style"
    )


def _check_number(request: Request, recipe: Recipe, num_layouts: int, num_photos: int) -> None:
    """Refuse more shards than their names can count, before a plan of them is made."""
    layouts, styles = request.layouts, request.styles
    rows = num_layouts * (1 + ((layouts.n_variants or 1) if layouts.changes else 0))
    samples = styles.num or rows * (styles.n_styles or num_photos or 1)
    each = request.output.samples_per_shard or recipe.sampling.samples_per_shard
    if rows > _MAX_ROWS or samples > MAX_SHARDS * each:
        raise UsageError(
            f"{samples:,} samples of {rows:,} layouts and variants: more than {MAX_SHARDS:,} "
            f"shards of {each}, or than {_MAX_ROWS:,} layouts; ask for fewer samples or variants, "
            "or raise --samples-per-shard"
        )


# Workers


def _encoders(workers: Workers) -> int:
    """Threads that encode, of each worker."""
    cores = os.cpu_count() or 1
    return max(1, min(8, cores // (workers.count if workers.address is None else 1)))


# Layouts and photos


def _items(asked: LayoutOptions, recipe: Recipe) -> list[Item]:
    data = recipe.data
    if asked.labels is not None:
        items = datasets.index_labels(data.dataset, asked.labels.absolute())
        items = datasets.with_reading(items, data_folder(data, asked.labels).reading)
        if asked.instances is None:
            return items
        return with_instances(items, data.dataset, asked.instances.absolute())
    return data_folder(data, _root(asked.root, recipe)).items_for(
        asked.split or data.split,
        train_split=data.split,
        subset=subset(data),
        instances=data.instances,
        need_images=False,
    )


def _pairs(asked: LayoutOptions, recipe: Recipe) -> list[Item]:
    """Pairs that the generator learnt from."""
    data = recipe.data
    folder = data_folder(data, _root(asked.root, recipe))
    return folder.items_for(data.split, train_split=data.split, subset=subset(data))


def _root(asked: Path | None, recipe: Recipe) -> Path:
    root = asked or (None if recipe.data.root is None else Path(recipe.data.root))
    if root is None:
        raise UsageError("the recipe has no data.root: give the data set with --data DIR")
    return root.absolute()


def _absolute(out: str | Path) -> str:
    """The place as other processes find it too."""
    text = Address(out)
    return text if "://" in text else str(Path(text).absolute())
