"""Request of ``sample`` and ``augment``: their options, and the faults of the options alone."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

from ecgan.errors import UsageError, shown
from ecgan.generation.layout_augmentation import Change
from ecgan.reading.places import without_password
from ecgan.runtime.jobs import Workers, resolve_workers
from ecgan.runtime.storage import open_store
from ecgan.shards.files.names import Format, ImageFormat

_MOST = 10**9  # samples, and what else is counted
_MOST_SEED = 2**63 - 1

OnInconsistent = Literal["ignore", "drop", "retry"]
LabelSpaceName = Literal["input", "evaluation"]
Balance = Literal["none", "hardness", "target"]


@dataclass(frozen=True)
class LayoutOptions:
    """Which layouts get samples, and how they are augmented before."""

    labels: Path | None = None  # folder of label maps; None: the layouts of the recipe's own data
    split: str | None = None  # of the recipe's data; None: the one of training
    root: Path | None = None  # replaces the recipe's data.root, for its layouts and the filter
    instances: Path | None = None  # folder of instance maps beside labels
    changes: tuple[Change, ...] = ()  # kinds of layout augmentation
    n_variants: int | None = None  # augmented forms of each layout beside itself; None: 1
    onto: Literal["photos"] | None = None  # what stays as it is, is the layout's own photo


@dataclass(frozen=True)
class StyleOptions:
    """How many styles a layout gets, and where they come from."""

    n_styles: int | None = None  # of each layout; None: 1, or one for each of style_images
    num: int | None = None  # number of samples, spread over the layouts; replaces n_styles
    seed: int | None = None  # of styles that each sample draws for itself; None: 0
    style_seed: int | None = None  # of styles that all layouts share
    style_images: Path | None = None  # folder of photos whose styles all layouts get


@dataclass(frozen=True)
class FilterOptions:
    """The label filter."""

    label_filter: str | None = None  # train, or a segmenter by path or name; None: no filter
    on_inconsistent: OnInconsistent = "ignore"  # what to do with samples that it rejects


@dataclass(frozen=True)
class BalanceOptions:
    """How samples are spread over the layouts."""

    spread: Balance = "none"
    targets: tuple[str, ...] = ()  # CLASS=SHARE of the labelled pixels, where spread is target


@dataclass(frozen=True)
class OutputOptions:
    """How samples are written, and what becomes of a data set that is there already."""

    data_format: Format = "webdataset"
    image_format: ImageFormat | None = None  # None: the recipe's, as the next
    samples_per_shard: int | None = None
    label_space: LabelSpaceName = "input"  # ids of the labels that are written
    provenance: bool = True  # mark images and records as synthetic, and name the generator
    overwrite: bool = False  # remove a data set of ours
    extend: bool = False  # add further styles and layouts to it
    verify: bool = False  # check the bytes of its shards, not their sizes alone


@dataclass(frozen=True)
class WorkerOptions:
    """How many workers make the samples, and where."""

    device: str = "auto"  # auto, cpu, cuda or cuda:N
    workers: int | None = None  # None: one for each GPU, or one
    gpus_per_worker: float | None = None  # a fraction shares a GPU; None: 1 on CUDA
    ray_address: str | None = None  # of a Ray cluster
    shard_timeout: float | None = None  # seconds for a shard, before its worker is replaced

    def resolve(self) -> Workers:
        """The workers; UsageError where this machine does not have them."""
        return resolve_workers(
            self.device, self.workers, self.gpus_per_worker, self.ray_address, self.shard_timeout
        )


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    generator: Path  # a generator.safetensors
    out: str | Path  # folder of the data set, or its address: s3://, gs://
    layouts: LayoutOptions = LayoutOptions()
    styles: StyleOptions = StyleOptions()
    filter: FilterOptions = FilterOptions()
    balance: BalanceOptions = BalanceOptions()
    output: OutputOptions = OutputOptions()
    workers: WorkerOptions = WorkerOptions()
    batch: int | None = None  # samples of one pass; None: the recipe's sampling.batch
    overrides: tuple[str, ...] = ()  # sampling.key=value of the recipe
    quiet: bool = False  # no progress bars

    @classmethod
    def of(cls, generator: Path, out: str | Path, **options: Any) -> "Request":  # noqa: ANN401
        """Request from options without parts, as the command line has them.

        Raises:
            TypeError: no part has an option of that name.
        """
        parts = {
            part: kind(**{f.name: options.pop(f.name) for f in fields(kind) if f.name in options})
            for part, kind in _PARTS.items()
        }
        return cls(generator, out, **parts, **options)

    def to_json(self) -> dict[str, Any]:
        """Options that decide the samples, without parts, for whoever gets the data set.

        Of places elsewhere on this machine the last name stays, and no password of an address.
        """
        flat: dict[str, Any] = {}
        for name, value in asdict(self).items():
            flat |= value if name in _PARTS else {name: value}
        return {n: _told(value) for n, value in flat.items() if n not in _NOT_RECORDED}


def told_place(place: str | Path) -> str:
    """A place as strangers may see it: relative, or the last name alone; without a password."""
    text = without_password(str(place))
    is_local = "://" not in text or text.startswith("file://")
    return Path(text).name if is_local and (Path(text).is_absolute() or "://" in text) else text


def _told(value: Any) -> Any:  # noqa: ANN401  of an option
    if isinstance(value, tuple):
        return tuple(map(_told, cast("tuple[Any, ...]", value)))
    return told_place(value) if isinstance(value, str | Path) else value


_PARTS: Mapping[str, type[Any]] = {
    "layouts": LayoutOptions,
    "styles": StyleOptions,
    "filter": FilterOptions,
    "balance": BalanceOptions,
    "output": OutputOptions,
    "workers": WorkerOptions,
}
# They say where and how the samples are made, and change nothing in them.
_NOT_RECORDED = {
    *("workers", "gpus_per_worker", "ray_address", "shard_timeout"),
    *("overwrite", "extend", "verify", "quiet"),
}


def check_options(request: Request) -> None:
    """Refuse options that are wrong by themselves or together, all faults at once."""
    faults = [
        *_number_faults(request),
        *_source_faults(request.layouts, request.styles, request.filter),
        *_style_faults(request.styles, request.filter),
        *_onto_faults(request),
        *_filter_faults(request.filter, request.balance),
    ]
    if bad := [text for text in request.overrides if not text.startswith("sampling.")]:
        faults.append(f"--set {bad[0]}: a trained generator's recipe is fixed but for sampling.*")
    if request.output.overwrite and request.output.extend:
        faults.append("--overwrite and --extend: give one of them")
    asked = request.workers
    on_ray = asked.ray_address is not None or asked.shard_timeout is not None
    if open_store(request.out).is_private and (on_ray or (asked.workers or 1) > 1):
        faults.append(f"--out {request.out}: other processes cannot see it; use one worker")
    if len(faults) == 1:
        raise UsageError(faults[0])
    if faults:
        raise UsageError(f"{len(faults)} faults in the options", faults)


def _number_faults(request: Request) -> list[str]:
    layouts, styles, workers = request.layouts, request.styles, request.workers
    ranges: dict[str, tuple[int | None, int, int]] = {
        "--n-styles": (styles.n_styles, 1, _MOST),
        "--num": (styles.num, 1, _MOST),
        "--samples-per-shard": (request.output.samples_per_shard, 1, _MOST),
        "--batch": (request.batch, 1, 10_000),
        "--workers": (workers.workers, 1, 10_000),
        "--n-variants": (layouts.n_variants, 1, 10_000),
        "--seed": (styles.seed, 0, _MOST_SEED),
        "--style-seed": (styles.style_seed, 0, _MOST_SEED),
    }
    faults = [
        f"{name} {shown(value)}: must be at {f'least {least}' if value < least else f'most {most}'}"
        for name, (value, least, most) in ranges.items()
        if value is not None and not least <= value <= most
    ]
    numbers = {
        "--gpus-per-worker": workers.gpus_per_worker,
        "--shard-timeout": workers.shard_timeout,
    }
    return faults + [
        f"{name} {value:g}: must be {'above 0' if value <= 0 else 'a number, at most 1e9'}"
        for name, value in numbers.items()
        if value is not None and not (math.isfinite(value) and 0 < value <= _MOST)
    ]


def _source_faults(
    layouts: LayoutOptions, styles: StyleOptions, label_filter: FilterOptions
) -> list[str]:
    faults: list[str] = []
    if styles.num is not None and styles.n_styles is not None:
        faults.append("--num and --n-styles: give one of them")
    if layouts.labels is not None:
        if layouts.split is not None:
            faults.append("--split names layouts of the recipe's data, --labels others")
        needs_pairs = label_filter.label_filter is not None or layouts.onto is not None
        if layouts.root is not None and not needs_pairs:
            faults.append("--data names layouts of the recipe's data, --labels others")
    elif layouts.instances is not None:
        faults.append("--instances belongs to --labels; the recipe's data has its own")
    if layouts.n_variants is not None and not layouts.changes:
        faults.append("--n-variants: says how many; say what with --vary flip,crop,paste")
    return faults


def _style_faults(styles: StyleOptions, label_filter: FilterOptions) -> list[str]:
    sources = {
        "--seed": styles.seed,
        "--style-seed": styles.style_seed,
        "--style-images": styles.style_images,
    }
    given = [name for name, value in sources.items() if value is not None]
    faults: list[str] = []
    if len(given) > 1:
        faults.append(f"{' and '.join(given)}: each says where styles come from; give one of them")
    shared = [name for name in given if name != "--seed"]
    if label_filter.on_inconsistent == "retry" and shared:
        faults.append(
            f"--on-inconsistent retry: draws another style, but {shared[0]} gives all layouts the "
            "same; use ignore or drop"
        )
    return faults


def _onto_faults(request: Request) -> list[str]:
    asked = request.styles
    if request.layouts.onto is None:
        return []
    faults: list[str] = []
    if request.layouts.changes != ("paste",):
        faults.append("--onto photos: puts what is pasted into photos; give --vary paste alone")
    given = {
        f"--n-styles {asked.n_styles}": asked.n_styles not in {None, 1},
        "--style-seed": asked.style_seed is not None,
        "--style-images": asked.style_images is not None,
        "--on-inconsistent retry": request.filter.on_inconsistent == "retry",
    }
    faults += [
        f"{name}: with --onto photos the style is the photo's own; more --n-variants give more"
        for name, is_given in given.items()
        if is_given
    ]
    if request.balance.spread != "none":
        faults.append("--onto photos: not with --balance, which spreads layouts as they are too")
    return faults


def _filter_faults(label_filter: FilterOptions, balance: BalanceOptions) -> list[str]:
    faults: list[str] = []
    if label_filter.on_inconsistent != "ignore" and label_filter.label_filter is None:
        faults.append(
            f"--on-inconsistent {label_filter.on_inconsistent}: says what the filter does; add "
            "--filter"
        )
    if balance.targets and balance.spread != "target":
        faults.append("--target: belongs to --balance target")
    if balance.spread == "target" and not balance.targets:
        faults.append(
            "--balance target: needs the shares that classes shall have, e.g. --target "
            "pedestrian=0.02 (may be repeated)"
        )
    return faults
