"""Request of ``sample`` and ``augment``: their options, and the faults of the options alone."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ecgan.errors import UsageError
from ecgan.generation.layout_augmentation import Change
from ecgan.runtime.storage import open_store
from ecgan.shards.codecs import ImageFormat
from ecgan.shards.manifest import Format

OnInconsistent = Literal["ignore", "drop", "retry"]
LabelSpaceName = Literal["input", "evaluation"]
Balance = Literal["none", "hardness", "target"]


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        generator: path of a ``generator.safetensors``.
        out: folder of the data set, or its address: ``s3://``, ``gs://``.
        labels: folder of label maps; None takes the layouts of the recipe's own data.
        split: of the recipe's data, where ``labels`` is None; None: the one of training.
        root: replaces the recipe's data.root: layouts where ``labels`` is None, and the real pairs
            of the label filter.
        instances: folder of instance maps beside ``labels``.
        n_styles: styles of each layout; None: 1, or one for each shared style.
        num: number of samples, spread over the layouts; replaces ``n_styles``.
        seed: of the styles, each sample its own; None: 0.
        style_images: folder of photos to take styles from.
        style_seed: the same styles for all layouts, drawn from this seed.
        label_filter: train, or a segmenter by path or name; None: no filter.
        on_inconsistent: what becomes of a sample of which the filter keeps too little.
        spread: how samples are spread over the layouts.
        targets: NAME=SHARE of the labelled pixels, for ``spread: target``.
        changes: kinds of variation of layouts.
        n_variants: varied forms of each layout, beside itself.
        data_format: of the data set.
        image_format: of images; None: the recipe's sampling.image_format.
        samples_per_shard: None: the recipe's.
        batch: samples of one pass; None: the recipe's sampling.batch.
        label_space: ids of the labels that are written.
        provenance: mark images and records as synthetic, and name the generator.
        overrides: ``sampling.key=value`` of the recipe.
        overwrite: remove a data set of ours that is there.
        extend: add further styles and layouts to the data set that is there.
        verify: check the bytes of committed shards, not their sizes alone.
        workers: how many; None: one for each GPU, or one.
        gpus_per_worker: share of a GPU; None: 1 on CUDA.
        ray_address: of a Ray cluster.
        shard_timeout: seconds after which the worker of a shard is taken for stalled.
        device: auto, cpu, cuda or cuda:N.
        quiet: no progress bar.
    """

    generator: Path
    out: str | Path
    labels: Path | None = None
    split: str | None = None
    root: Path | None = None
    instances: Path | None = None
    n_styles: int | None = None
    num: int | None = None
    seed: int | None = None
    style_images: Path | None = None
    style_seed: int | None = None
    label_filter: str | None = None
    on_inconsistent: OnInconsistent = "ignore"
    spread: Balance = "none"
    targets: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    n_variants: int | None = None
    data_format: Format = "webdataset"
    image_format: ImageFormat | None = None
    samples_per_shard: int | None = None
    batch: int | None = None
    label_space: LabelSpaceName = "input"
    provenance: bool = True
    overrides: tuple[str, ...] = ()
    overwrite: bool = False
    extend: bool = False
    verify: bool = False
    workers: int | None = None
    gpus_per_worker: float | None = None
    ray_address: str | None = None
    shard_timeout: float | None = None
    device: str = "auto"
    quiet: bool = False

    def to_json(self) -> dict[str, Any]:
        """Options that decide the samples; paths are absolute."""
        where = {"workers", "gpus_per_worker", "ray_address", "shard_timeout"}
        how = {"overwrite", "extend", "verify", "quiet"}
        value = {k: v for k, v in asdict(self).items() if k not in where | how}
        for name, one in value.items():
            if isinstance(one, Path):
                value[name] = str(one.absolute())
        value["out"] = str(self.out)
        return value


def check_options(request: Request) -> None:
    """Refuse options that are wrong by themselves or together, all faults at once."""
    faults = [
        f"{name} {value}: must be at least 1"
        for name, value in (
            ("--n-styles", request.n_styles),
            ("--num", request.num),
            ("--samples-per-shard", request.samples_per_shard),
            ("--batch", request.batch),
            ("--workers", request.workers),
            ("--n-variants", request.n_variants),
        )
        if value is not None and value < 1
    ]
    for name, value in (
        ("--gpus-per-worker", request.gpus_per_worker),
        ("--shard-timeout", request.shard_timeout),
    ):
        if value is not None and value <= 0:
            faults.append(f"{name} {value:g}: must be above 0")
    for check in (_source_faults, _style_faults, _filter_faults, _place_faults):
        faults += check(request)
    if len(faults) == 1:
        raise UsageError(faults[0])
    if faults:
        raise UsageError(f"{len(faults)} faults in the options", faults)


def _source_faults(request: Request) -> list[str]:
    faults: list[str] = []
    if request.num is not None and request.n_styles is not None:
        faults.append("--num and --n-styles: give one of them")
    if request.labels is not None and request.split is not None:
        faults.append("--split names layouts of the recipe's data, --labels others")
    if request.labels is not None and request.root is not None and request.label_filter is None:
        faults.append("--data names layouts of the recipe's data, --labels others")
    if request.labels is None and request.instances is not None:
        faults.append("--instances belongs to --labels; the recipe's data has its own")
    if request.n_variants is not None and not request.changes:
        faults.append("--n-variants: says how many; say what with --vary flip,crop,paste")
    return faults


def _style_faults(request: Request) -> list[str]:
    sources = {
        "--seed": request.seed,
        "--style-seed": request.style_seed,
        "--style-images": request.style_images,
    }
    given = [name for name, value in sources.items() if value is not None]
    faults: list[str] = []
    if len(given) > 1:
        faults.append(f"{' and '.join(given)}: each says where styles come from; give one of them")
    shared = [name for name in given if name != "--seed"]
    if request.on_inconsistent == "retry" and shared:
        faults.append(
            f"--on-inconsistent retry: draws another style, but {shared[0]} gives all layouts the "
            "same; use ignore or drop"
        )
    return faults


def _filter_faults(request: Request) -> list[str]:
    faults: list[str] = []
    if request.on_inconsistent != "ignore" and request.label_filter is None:
        faults.append(
            f"--on-inconsistent {request.on_inconsistent}: says what the filter does; add --filter"
        )
    if request.targets and request.spread != "target":
        faults.append("--target: belongs to --balance target")
    if request.spread == "target" and not request.targets:
        faults.append(
            "--balance target: needs the shares that classes shall have, e.g. --target "
            "pedestrian=0.02 (may be repeated)"
        )
    bad = [text for text in request.overrides if not text.startswith("sampling.")]
    if bad:
        faults.append(f"--set {bad[0]}: a trained generator's recipe is fixed but for sampling.*")
    return faults


def _place_faults(request: Request) -> list[str]:
    faults: list[str] = []
    if request.overwrite and request.extend:
        faults.append("--overwrite and --extend: give one of them")
    on_ray = request.ray_address is not None or request.shard_timeout is not None
    if open_store(request.out).is_private and (on_ray or (request.workers or 1) > 1):
        faults.append(f"--out {request.out}: other processes cannot see it; use one worker")
    return faults
