"""Make a data set of samples: plan, shards, manifest. Stands behind ``sample`` and ``augment``.

    layouts --checked--> plan --> [shards that are not committed] --> manifest, card, preview

The plan fixes everything before the first sample is made: the layouts in order of their keys, how
many styles each has, which sample lies in which shard and which samples go through the network
together. A shard is written whole, then committed by a record; calling the same command again makes
what is not committed, and the finished data set is the same to the byte.
"""

import errno
import hashlib
import json
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

import ecgan
from ecgan import card, distributed, lock
from ecgan.data import datasets, shards
from ecgan.data.datasets import Item
from ecgan.data.shards import Encoded, Format, ImageFormat, Record, Shard
from ecgan.errors import UserError
from ecgan.labels import Labels
from ecgan.sampling import Layout, Made, Sampler, Styles

SPLIT = "train"  # what the samples are for
LabelSpaceName = Literal["input", "evaluation"]

# What we write in a data set beside .ecgan: all that --overwrite removes.
_OURS = (
    *("README.md", "id2label.json", "manifest.json", "index.json", "preview.png", "metadata.jsonl"),
    *("dataset.yaml", "mmseg_dataset.py", "dataset_meta.json"),
    *(f"data/{SPLIT}-[0-9]*.{suffix}" for suffix in ("tar", "parquet")),
    *(f"{folder}/{SPLIT}/*-s[0-9][0-9][0-9]*.*" for folder in ("images", "masks", "edges")),
)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BYTES_PER_PIXEL = {"jpg": 0.5, "png": 1.9, "webp": 0.35}  # of images; seen on street scenes
_MAP_BYTES_PER_PIXEL = 0.4  # label and edge map together


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        generator: path of a ``generator.safetensors``.
        out: folder of the data set.
        labels: folder of label maps; None takes the layouts of the recipe's own data.
        split: of the recipe's data, where ``labels`` is None; None: the one of training.
        root: replaces the recipe's data.root, where ``labels`` is None.
        instances: folder of instance maps beside ``labels``.
        n_styles: styles of each layout; None: 1, or one for each style photo.
        num: number of samples, spread over the layouts; replaces ``n_styles``.
        seed: of the styles, each sample its own; None: 0.
        style_images: folder of photos to take styles from.
        style_seed: the same styles for all layouts, drawn from this seed.
        data_format: of the data set.
        image_format: of images; None: the recipe's sampling.image_format.
        samples_per_shard: None: the recipe's.
        batch: samples of one pass; None: the recipe's sampling.batch.
        label_space: ids of the labels that are written.
        overwrite: remove a data set of ours that is there.
        device: auto, cpu, cuda or cuda:N.
        quiet: no progress bar.
    """

    generator: Path
    out: Path
    labels: Path | None = None
    split: str | None = None
    root: Path | None = None
    instances: Path | None = None
    n_styles: int | None = None
    num: int | None = None
    seed: int | None = None
    style_images: Path | None = None
    style_seed: int | None = None
    data_format: Format = "webdataset"
    image_format: ImageFormat | None = None
    samples_per_shard: int | None = None
    batch: int | None = None
    label_space: LabelSpaceName = "input"
    overwrite: bool = False
    device: str = "auto"
    quiet: bool = False


@dataclass(frozen=True)
class Output:
    """How samples are written: the request's options, the recipe's where there are none."""

    data_format: Format
    image_format: ImageFormat
    quality: int
    samples_per_shard: int
    batch: int
    evaluation: bool  # which ids labels have
    names: tuple[str, ...]  # of those ids
    palette: npt.NDArray[np.uint8]


class Task(NamedTuple):
    """A sample of the plan: number of its layout, number of its style."""

    layout: int
    style: int


@dataclass(frozen=True)
class Plan:
    """Which samples there are, in which shards.

    Samples are ordered by layout, then style: the styles of a layout are made together.

    Attributes:
        items: layouts, sorted by key.
        counts: number of styles of each layout, (layouts,).
        styles: where they come from.
        output: how samples are written.
        fingerprint: everything that decides the bytes, by name.
    """

    items: Sequence[Item]
    counts: npt.NDArray[np.int64]
    styles: Styles
    output: Output
    fingerprint: dict[str, Any]

    @property
    def num_samples(self) -> int:
        return int(self._starts[-1])

    @property
    def num_shards(self) -> int:
        return -(-self.num_samples // self.output.samples_per_shard)

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """Number of the first sample of each layout, and of all samples."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def samples_in(self, shard: int) -> int:
        first = shard * self.output.samples_per_shard
        return min(self.output.samples_per_shard, self.num_samples - first)

    def tasks(self, shard: int) -> list[Task]:
        """The samples of a shard, in order."""
        first = shard * self.output.samples_per_shard
        numbers = np.arange(first, first + self.samples_in(shard))
        layouts = np.searchsorted(self._starts, numbers, side="right") - 1
        styles = numbers - self._starts[layouts]
        return [Task(int(a), int(k)) for a, k in zip(layouts, styles, strict=True)]


@dataclass(frozen=True)
class Outcome:
    """What a call has done.

    Attributes:
        out: the data set.
        num_samples: in it, when it is complete.
        made: samples made by this call.
        seconds: that they took.
        bytes: of all shards.
        failed: what could not be made, one sentence for each shard; empty when all is there.
    """

    out: Path
    num_samples: int
    made: int
    seconds: float
    bytes: int
    failed: tuple[str, ...] = ()


def prepare(request: Request) -> tuple[Sampler, Plan]:
    """Check everything that can be refused, and plan.

    Raises:
        UserError: the options contradict each other or the generator; the labels have faults.
    """
    _check_options(request)
    photos = _style_photos(request.style_images)
    sampler = Sampler(request.generator, distributed.choose_device(request.device))
    _check_against_generator(request, sampler)
    items = _items(request, sampler)
    counts = _style_counts(request, len(items), max(1, len(photos)))
    items = items[: len(counts)]
    if not sampler.has_style and counts.max() > 1:
        asked = f"--num {request.num}" if request.num is not None else f"--n-styles {counts.max()}"
        raise UserError(
            f"{asked}: this run has no style encoder, so one layout has one image "
            f"({len(items)} here); train with model.style=true, or ask for one style"
        )
    datasets.check_labels(
        items,
        sampler.space,
        sampler.recipe.data.dataset,
        check_images=False,
        progress=not request.quiet,
    )
    encoded = sampler.encode_styles(photos) if photos else None
    styles = Styles(request.seed or 0, request.style_seed, encoded)
    output = _output(request, sampler)
    fingerprint = _fingerprint(request, sampler, output) | {
        "labels": _hash_files([(i.key, i.label) for i in items]),
        "--instances": _hash_files([(i.key, i.instances) for i in items if i.instances]),
        "--style-images": _hash_files([(p.name, p) for p in photos]),
        "layouts": len(items),
        "styles of a layout": f"{counts.min()} to {counts.max()}",
        "samples": int(counts.sum()),
    }
    return sampler, Plan(items, counts, styles, output, fingerprint)


def describe(request: Request) -> str:
    """What ``run`` would make, and how large it would be."""
    sampler, plan = prepare(request)
    height, width = sampler.size
    size = plan.num_samples * _estimated_bytes(sampler, plan.output)
    return (
        f"{plan.num_samples} samples of {height} x {width} ({len(plan.items)} layouts, "
        f"{plan.counts.min()} to {plan.counts.max()} styles each) in {plan.num_shards} shards "
        f"({request.data_format}), about {size / 1e6:.1f} MB, in {request.out}"
    )


def run(request: Request) -> Outcome:
    """Make the data set, or what is missing of it; nothing where it is complete.

    Returns:
        What was done; ``failed`` names shards that could not be made, the others are kept.

    Raises:
        UserError: whatever the user can mend; what is committed stays.
    """
    _check_folder(request.out)
    sampler, plan = prepare(request)
    out, start = request.out, time.monotonic()
    estimate = _estimated_bytes(sampler, plan.output)
    with ExitStack() as stack:
        with _full_disk(out, plan, estimate), _writable(out):
            (out / shards.HIDDEN).mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock.held(out / shards.HIDDEN / "lock", str(out)))
        if request.overwrite:
            _remove(out)
        _refuse_another_plan(out, plan)
        shutil.rmtree(_tmp(out), ignore_errors=True)  # of dead writers
        with _full_disk(out, plan, estimate), _writable(out):
            text = json.dumps({"fingerprint": plan.fingerprint}, indent=2) + "\n"
            if not (out / shards.HIDDEN / "plan.json").is_file():
                shards.write_whole(out / shards.HIDDEN / "plan.json", text, _tmp(out))
            made, failed = _make_shards(out, sampler, plan, quiet=request.quiet)
            if not failed and not (out / "manifest.json").is_file():
                _finish(request, sampler, plan)
        shutil.rmtree(_tmp(out), ignore_errors=True)
    size = sum(shard.bytes for shard in _committed(out, plan).values())
    seconds = time.monotonic() - start
    return Outcome(out, plan.num_samples, made, seconds, size, tuple(failed))


# Planning


def _check_options(request: Request) -> None:
    faults = [
        f"{name} {value}: must be at least 1"
        for name, value in (
            ("--n-styles", request.n_styles),
            ("--num", request.num),
            ("--samples-per-shard", request.samples_per_shard),
            ("--batch", request.batch),
        )
        if value is not None and value < 1
    ]
    styles = {
        "--seed": request.seed,
        "--style-seed": request.style_seed,
        "--style-images": request.style_images,
    }
    given = [name for name, value in styles.items() if value is not None]
    if len(given) > 1:
        faults.append(f"{' and '.join(given)}: each says where styles come from; give one of them")
    if request.num is not None and request.n_styles is not None:
        faults.append("--num and --n-styles: give one of them")
    if request.labels is not None and (request.split is not None or request.root is not None):
        faults.append("--split and --data name layouts of the recipe's data, --labels others")
    if request.labels is None and request.instances is not None:
        faults.append("--instances belongs to --labels; the recipe's data has its own")
    if len(faults) == 1:
        raise UserError(faults[0])
    if faults:
        raise UserError("options", faults)


def _check_against_generator(request: Request, sampler: Sampler) -> None:
    if request.instances is not None and not sampler.recipe.data.instances:
        raise UserError(
            "--instances: this run takes no instance boundaries (data.instances is false)"
        )
    if sampler.has_style:
        return
    for name, value in (
        ("--style-images", request.style_images),
        ("--style-seed", request.style_seed),
    ):
        if value is not None:
            raise UserError(
                f"{name}: this run has no style encoder; train one with model.style=true"
            )


def _style_counts(request: Request, num_layouts: int, default: int) -> npt.NDArray[np.int64]:
    """Styles of each layout; ``num`` samples are spread evenly, the first layouts take the rest."""
    if request.num is None:
        return np.full(num_layouts, request.n_styles or default, np.int64)
    each, rest = divmod(request.num, num_layouts)
    counts = np.full(num_layouts, each, np.int64)
    counts[:rest] += 1
    return counts[counts > 0]


def _style_photos(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    if not folder.is_dir():
        raise UserError(f"--style-images {folder}: no such folder")
    photos = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in datasets.IMAGE_SUFFIXES and p.is_file()
    )
    if not photos:
        raise UserError(f"--style-images {folder}: no photos below it")
    return photos


def _items(request: Request, sampler: Sampler) -> list[Item]:
    data = sampler.recipe.data
    if request.labels is not None:
        items = datasets.index_labels(data.dataset, request.labels)
        if request.instances is None:
            return items
        return _with_instances(items, data.dataset, request.instances)
    root = request.root or (None if data.root is None else Path(data.root))
    if root is None:
        raise UserError("the recipe has no data.root: give the data set with --data DIR")
    return datasets.items_for(
        data.dataset,
        root,
        request.split or data.split,
        train_split=data.split,
        instances=data.instances,
        need_images=False,
    )


def _with_instances(items: Sequence[Item], dataset: str, folder: Path) -> list[Item]:
    found = datasets.index_labels(dataset, folder, "instances")
    maps = {item.key: item.label for item in found}
    missing = [item.key for item in items if item.key not in maps]
    if missing:
        raise UserError(
            f"--instances {folder}: {len(missing)} label maps have no instance map of the same "
            f"name (first: {missing[0]}); leave the option out to take boundaries between classes"
        )
    return [Item(item.key, item.label, instances=maps[item.key]) for item in items]


def _output(request: Request, sampler: Sampler) -> Output:
    sampling, space = sampler.recipe.sampling, sampler.space
    evaluation = request.label_space == "evaluation"
    return Output(
        data_format=request.data_format,
        image_format=request.image_format or sampling.image_format,
        quality=sampling.quality,
        samples_per_shard=request.samples_per_shard or sampling.samples_per_shard,
        batch=request.batch or sampling.batch,
        evaluation=evaluation,
        names=space.names_for_evaluation if evaluation else space.names,
        palette=space.evaluation_palette if evaluation else space.palette,
    )


def _fingerprint(request: Request, sampler: Sampler, output: Output) -> dict[str, Any]:
    """Everything that decides the bytes; names are what a refusal says."""
    on_cpu = sampler.device.type == "cpu"
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "checkpoint": sampler.file.sha256,
        "recipe": sampler.recipe.hash(),
        "--seed": request.seed or 0,
        "--style-seed": request.style_seed,
        "--format": output.data_format,
        "--image-format": output.image_format,
        "quality": output.quality,
        "--samples-per-shard": output.samples_per_shard,
        "--batch": output.batch,
        "--label-space": request.label_space,
        "device": cpu if on_cpu else torch.cuda.get_device_name(sampler.device),
        "threads": 1,
        **{f"version of {name}": version for name, version in _versions().items()},
    }


def _versions() -> dict[str, str]:
    """Of the programs that decide the bytes."""
    names = ("torch", "numpy", "pillow", "pyarrow")
    return {"ecgan": ecgan.__version__, **{name: metadata.version(name) for name in names}}


def _hash_files(named: Sequence[tuple[str, Path]]) -> str | None:
    if not named:
        return None
    total = hashlib.sha256()
    for name, path in named:
        with path.open("rb") as file:
            total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _estimated_bytes(sampler: Sampler, output: Output) -> float:
    """Of a sample."""
    height, width = sampler.size
    return height * width * (_BYTES_PER_PIXEL[output.image_format] + _MAP_BYTES_PER_PIXEL)


# The folder


def _check_folder(out: Path) -> None:
    with _writable(out):
        if not out.exists():
            return
    if not out.is_dir():
        raise UserError(f"--out {out}: a file; give a folder")
    ours = (out / shards.HIDDEN / "plan.json").is_file()
    if not ours and any(p.name != shards.HIDDEN for p in out.iterdir()):
        raise UserError(
            f"--out {out}: not empty, and not a data set of ecgan; give another folder "
            "(nothing in it was touched)"
        )


def _remove(out: Path) -> None:
    """Remove what we wrote; by plan.json, which goes last, the folder is known to be ours."""
    for pattern in _OURS:
        for path in out.glob(pattern):
            path.unlink()
    for folder in ("data", *(f"{n}/{SPLIT}" for n in ("images", "masks", "edges"))):
        for empty in (out / folder, (out / folder).parent):
            if empty != out and empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()
    hidden = out / shards.HIDDEN
    for name in ("tmp", "shards", "records"):
        shutil.rmtree(hidden / name, ignore_errors=True)
    for name in ("failures.jsonl", "plan.json"):
        (hidden / name).unlink(missing_ok=True)


def _refuse_another_plan(out: Path, plan: Plan) -> None:
    path = out / shards.HIDDEN / "plan.json"
    if not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
    differing = [name for name in plan.fingerprint if before.get(name) != plan.fingerprint[name]]
    if not differing:
        return

    def shown(value: object) -> str:
        if value is None:
            return "none"
        return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)

    changes = ", ".join(
        f"{name} ({shown(before.get(name))}, now {shown(plan.fingerprint[name])})"
        for name in differing
    )
    raise UserError(
        f"{out} was made with other settings; they differ in {changes}. Use another --out, or "
        "--overwrite to make it anew"
    )


def _tmp(out: Path) -> Path:
    return out / shards.HIDDEN / "tmp"


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL or isinstance(error, FileNotFoundError):
            raise
        raise UserError(f"--out {out}: cannot write: {error.strerror}") from error


@contextmanager
def _full_disk(out: Path, plan: Plan, estimate: float) -> Iterator[None]:
    """Turn a full disk into a sentence that says what was kept and how much room is needed."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        committed = _committed(out, plan).values()
        kept, size = sum(s.samples for s in committed), sum(s.bytes for s in committed)
        each = size / kept if kept else estimate
        needed = (plan.num_samples - kept) * each / 1e6
        raise UserError(
            f"{out}: the disk is full ({error.strerror}). {len(committed)} of {plan.num_shards} "
            f"shards are kept; about {needed:.1f} MB more are needed. Make room, then run the same "
            "command again"
        ) from error


# Shards


def _record_path(out: Path, number: int) -> Path:
    return out / shards.HIDDEN / "shards" / f"{number:06d}.json"


def _committed(out: Path, plan: Plan) -> dict[int, Shard]:
    """Shards with a record, by number; the record comes last, so they are whole."""
    found: dict[int, Shard] = {}
    for number in range(plan.num_shards):
        path = _record_path(out, number)
        if path.is_file():
            found[number] = Shard.from_json(json.loads(path.read_text(encoding="utf-8")))
    return found


def _make_shards(out: Path, sampler: Sampler, plan: Plan, *, quiet: bool) -> tuple[int, list[str]]:
    """Make what is not committed; samples made, and a sentence for each shard that failed."""
    intact = {n for n, shard in _committed(out, plan).items() if shards.is_intact(out, shard)}
    missing = [number for number in range(plan.num_shards) if number not in intact]
    failures, made = out / shards.HIDDEN / "failures.jsonl", 0
    failures.unlink(missing_ok=True)
    if missing:
        (out / "manifest.json").unlink(missing_ok=True)
    failed: list[str] = []
    total = sum(map(plan.samples_in, missing))
    with tqdm(total=total, unit="sample", disable=quiet or None, desc=str(out)) as bar:
        for number in missing:
            _record_path(out, number).unlink(missing_ok=True)
            try:
                shard = _make_shard(out, sampler, plan, number, bar)
            except (UserError, RuntimeError, ValueError, OSError) as error:
                if isinstance(error, OSError) and error.errno in _FULL:
                    raise
                failed.append(f"shard {number}: {error}")
                with failures.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"shard": number, "reason": str(error)}) + "\n")
                continue
            made += shard.samples
            shards.write_whole(_record_path(out, number), json.dumps(shard.to_json()), _tmp(out))
    return made, failed


def _make_shard(out: Path, sampler: Sampler, plan: Plan, number: int, bar: "tqdm[Any]") -> Shard:
    def samples() -> Iterator[Encoded]:
        for part in passes(plan.tasks(number), plan.output.batch):
            for sample in _make_pass(sampler, plan, part):
                yield sample
                bar.update()

    return shards.write_shard(
        out,
        shards.shard_name(plan.output.data_format, SPLIT, number),
        samples(),
        data_format=plan.output.data_format,
        image_format=plan.output.image_format,
        num_classes=len(plan.output.names),
    )


def passes(tasks: Sequence[Task], batch: int) -> list[list[list[Task]]]:
    """Samples that go through the network together: layouts with equally many styles, as one block.

    Args:
        tasks: of one shard, in order.
        batch: samples of a pass; the styles of one layout stay together even if they are more.

    Returns:
        For each pass its layouts, each with its tasks; in order, nothing left out.
    """
    runs = [list(group) for _, group in groupby(tasks, key=lambda task: task.layout)]
    found: list[list[list[Task]]] = []
    for own in runs:
        last = found[-1] if found else []
        if last and len(last[0]) == len(own) and (len(last) + 1) * len(own) <= batch:
            last.append(own)
        else:
            found.append([own])
    return found


def _make_pass(sampler: Sampler, plan: Plan, part: Sequence[Sequence[Task]]) -> Iterator[Encoded]:
    """Samples of the layouts of one pass, each with equally many styles."""
    layouts = [sampler.read_layout(plan.items[own[0].layout]) for own in part]
    z = None
    if sampler.has_style:
        drawn = [
            plan.styles.draw(layout.key, task.style)
            for layout, own in zip(layouts, part, strict=True)
            for task in own
        ]
        z = torch.stack(drawn).unflatten(0, (len(layouts), -1))  # (L, K, 256)
    made = sampler.make(layouts, z, plan.output.batch)
    for layout, own, pairs in zip(layouts, part, made, strict=True):
        yield from _encode(sampler, plan, layout, own, pairs)


def _encode(
    sampler: Sampler, plan: Plan, layout: Layout, own: Sequence[Task], pairs: Sequence[Made]
) -> Iterator[Encoded]:
    output = plan.output
    label: Labels = layout.label
    if output.evaluation:
        label = sampler.space.to_evaluation(label)
    encoded_label = shards.encode_map(label)  # once for all styles
    counts = shards.count_classes(label, len(output.names))
    for task, pair in zip(own, pairs, strict=True):
        record = Record(
            key=shards.sample_key(layout.key, task.style),
            source=layout.key,
            style=task.style,
            seed=plan.styles.seed_of(layout.key, task.style),
            width=label.shape[1],
            height=label.shape[0],
            class_pixels=counts,
        )
        image = shards.encode_image(pair.image, output.image_format, output.quality)
        yield Encoded(record, image, encoded_label, shards.encode_map(pair.edge))


# What stands beside the shards


def _finish(request: Request, sampler: Sampler, plan: Plan) -> None:
    """Manifest last: with it the data set is complete."""
    out, tmp, output = request.out, _tmp(request.out), plan.output
    listed = [shard for _, shard in sorted(_committed(out, plan).items())]
    about = _manifest(request, sampler, plan, listed)
    texts = {"id2label.json": shards.id2label(output.names), "README.md": card.card(about)}
    if output.data_format == "webdataset":
        texts["index.json"] = shards.wids_index(sampler.recipe.name, listed)
    if output.data_format == "folder":
        texts |= shards.folder_sidecars(
            out,
            listed,
            output.names,
            output.palette,
            split=SPLIT,
            image_format=output.image_format,
            ignore_index=sampler.space.ignore_index,
        )
    for name, text in texts.items():
        shards.write_whole(out / name, text, tmp)
    samples = (sample for shard in listed for sample in shards.read_shard(out, shard.name))
    with shards.whole_file(out / "preview.png", tmp) as file:
        card.preview(samples, output.palette, sampler.size).save(file, "PNG")
    shards.write_whole(out / "manifest.json", json.dumps(about, indent=2) + "\n", tmp)


def _manifest(
    request: Request, sampler: Sampler, plan: Plan, listed: Sequence[Shard]
) -> dict[str, Any]:
    """All there is to know of the data set; no time, so that the same set has the same bytes."""
    recipe, output = sampler.recipe, plan.output
    return {
        "schema": shards.SCHEMA,
        "versions": _versions(),
        "format": output.data_format,
        "split": SPLIT,
        "samples": plan.num_samples,
        "layouts": len(plan.items),
        "size": list(sampler.size),
        "image_format": output.image_format,
        "quality": output.quality,
        "jpeg_subsampling": "4:4:4",
        "label_space": request.label_space,
        "ignore_index": sampler.space.ignore_index,
        "edge_source": sampler.edge_source,
        "boundary_source": _boundary_source(request, sampler),
        "style_source": _style_source(request, sampler),
        "seed": request.seed or 0,
        "checkpoint": {
            "sha256": sampler.file.sha256,
            "images_seen": sampler.file.images_seen,
        },
        "recipe_hash": recipe.hash(),
        "recipe": recipe.model_dump(mode="json"),
        "fingerprint": plan.fingerprint,
        "classes": sampler.space.to_json(),
        "names": list(output.names),
        "class_pixels": np.sum([shard.class_pixels for shard in listed], axis=0).tolist(),
        "filter": {"kind": "none", "kept_fraction": 1.0},
        "shards": [shard.to_json() for shard in listed],
    }


def _boundary_source(request: Request, sampler: Sampler) -> str:
    if not sampler.recipe.data.instances:
        return "none"
    from_files = request.labels is None or request.instances is not None
    return "instance ids" if from_files else "boundaries between classes"


def _style_source(request: Request, sampler: Sampler) -> str:
    if not sampler.has_style:
        return "none"
    if request.style_images is not None:
        return "photos"
    if request.style_seed is not None:
        return f"style seed {request.style_seed}, the same for all layouts"
    return f"seed {request.seed or 0}"
