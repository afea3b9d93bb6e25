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
import os
import platform
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

import ecgan
from ecgan import distributed
from ecgan.data import datasets, shards
from ecgan.data.datasets import Item
from ecgan.data.shards import Encoded, Format, ImageFormat, Record, Shard
from ecgan.errors import UserError
from ecgan.labels import Labels
from ecgan.preview import colorize, grid
from ecgan.sampling import Layout, Sampler, Styles

SPLIT = "train"  # what the samples are for
FILE_LIMIT = 20  # faults of one kind that are worth a line each
LabelSpaceName = Literal["input", "evaluation"]

_PREVIEW_ROWS, _PREVIEW_STYLES = 6, 5
# What we write at the root of a data set: all that --overwrite removes.
_OURS = (
    *("README.md", "id2label.json", "manifest.json", "index.json", "preview.png", "metadata.jsonl"),
    *("dataset.yaml", "mmseg_dataset.py", "dataset_meta.json", "data", "images", "masks", "edges"),
    shards.HIDDEN,
)
_BYTES_PER_PIXEL = {"jpg": 0.5, "png": 1.9, "webp": 0.35}  # of images; seen on street scenes
_MAP_BYTES_PER_PIXEL = 0.4  # label and edge map together


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        generator: path of a ``generator.safetensors``.
        out: folder of the data set.
        labels: folder of label maps; None takes the layouts of the recipe's own data.
        split: of the recipe's data, where ``labels`` is None.
        root: replaces the recipe's data.root.
        instances: folder of instance maps beside ``labels``.
        n_styles: styles of each layout; None: 1, or one for each style photo.
        num: number of samples, spread over the layouts; replaces ``n_styles``.
        seed: of the styles.
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
    split: str = "train"
    root: Path | None = None
    instances: Path | None = None
    n_styles: int | None = None
    num: int | None = None
    seed: int = 0
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
        styles: number of styles of each layout, (layouts,).
        samples_per_shard: of all shards but the last.
        fingerprint: everything that decides the bytes, by name.
    """

    items: Sequence[Item]
    styles: npt.NDArray[np.int64]
    samples_per_shard: int
    fingerprint: dict[str, Any]

    @property
    def num_samples(self) -> int:
        return int(self.styles.sum())

    @property
    def num_shards(self) -> int:
        return -(-self.num_samples // self.samples_per_shard)

    def tasks(self, shard: int) -> list[Task]:
        """The samples of a shard, in order."""
        first = shard * self.samples_per_shard
        stop = min(first + self.samples_per_shard, self.num_samples)
        starts = np.concatenate([[0], np.cumsum(self.styles)])
        numbers = np.arange(first, stop)
        layouts = np.searchsorted(starts, numbers, side="right") - 1
        return [Task(int(a), int(n - starts[a])) for n, a in zip(numbers, layouts, strict=True)]


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


def prepare(request: Request) -> tuple[Sampler, Plan, Styles]:
    """Check everything that can be refused, and plan.

    Raises:
        UserError: the options contradict each other or the generator; the labels have faults.
    """
    _check_numbers(request)
    sampler = Sampler(request.generator, distributed.choose_device(request.device))
    photos = _style_photos(request)
    n_styles = request.n_styles
    if n_styles is None and request.num is None:
        n_styles = max(1, len(photos))
    items = _items(request, sampler)
    counts = _style_counts(len(items), n_styles, request.num)
    if not sampler.has_style and counts.max() > 1:
        asked = f"--num {request.num}" if request.num is not None else f"--n-styles {n_styles}"
        raise UserError(
            f"{asked}: this run has no style encoder, so one layout has one image "
            f"({len(items)} here); train with model.style=true, or ask for one style"
        )
    if not sampler.has_style and (photos or request.style_seed is not None):
        raise UserError(
            "--style-images and --style-seed: this run has no style encoder; train one with "
            "model.style=true"
        )
    encoded = sampler.encode_styles(photos) if photos else None
    styles = Styles(request.seed, request.style_seed, encoded)
    recipe = sampler.recipe.sampling
    fingerprint = _fingerprint(request, sampler, items, photos) | {
        "layouts x styles": f"{len(items)} x {counts.min()}..{counts.max()}, {counts.sum()} samples"
    }
    per_shard = request.samples_per_shard or recipe.samples_per_shard
    return sampler, Plan(items, counts, per_shard, fingerprint), styles


def describe(request: Request) -> str:
    """What ``run`` would make, and how large it would be."""
    sampler, plan, _ = prepare(request)
    height, width = sampler.size
    image_format = request.image_format or sampler.recipe.sampling.image_format
    each = height * width * (_BYTES_PER_PIXEL[image_format] + _MAP_BYTES_PER_PIXEL)
    return (
        f"{plan.num_samples} samples of {height} x {width} ({len(plan.items)} layouts, "
        f"{plan.styles.min()} to {plan.styles.max()} styles each) in {plan.num_shards} shards "
        f"({request.data_format}), about {plan.num_samples * each / 1e6:.1f} MB, in {request.out}"
    )


def run(request: Request) -> Outcome:
    """Make the data set, or what is missing of it.

    Returns:
        What was done; ``failed`` names shards that could not be made, the others are kept.

    Raises:
        UserError: whatever the user can mend; what is committed stays.
    """
    _check_folder(request)
    sampler, plan, styles = prepare(request)
    out = request.out
    if request.overwrite:
        _remove(out)
    with _lock(out):
        _refuse_another_plan(out, plan)
        shutil.rmtree(out / shards.HIDDEN / "tmp", ignore_errors=True)  # of dead writers
        with _full_disk(out, plan):
            text = json.dumps({"fingerprint": plan.fingerprint}, indent=2)
            shards.write_whole(out / shards.HIDDEN / "plan.json", text, _tmp(out))
            start = time.monotonic()
            made, failed = _make_shards(request, sampler, plan, styles)
            seconds = time.monotonic() - start
            committed = _committed(out, plan)
            if not failed:
                _finish(request, sampler, plan, committed)
        shutil.rmtree(_tmp(out), ignore_errors=True)
    total = sum(shard.bytes for shard in committed.values())
    return Outcome(out, plan.num_samples, made, seconds, total, tuple(failed))


# Planning


def _check_numbers(request: Request) -> None:
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
    if request.style_images is not None and request.style_seed is not None:
        faults.append("--style-images and --style-seed: give one of them")
    if request.num is not None and request.n_styles is not None:
        faults.append("--num and --n-styles: give one of them")
    if faults:
        raise UserError(faults[0] if len(faults) == 1 else "options", faults[1:] and faults)


def _style_counts(num_layouts: int, n_styles: int | None, num: int | None) -> npt.NDArray[np.int64]:
    """Styles of each layout; ``num`` samples are spread evenly, the first layouts take the rest."""
    if num is None:
        assert n_styles is not None
        return np.full(num_layouts, n_styles, np.int64)
    each, rest = divmod(num, num_layouts)
    return np.array([each + (i < rest) for i in range(num_layouts)], np.int64)


def _style_photos(request: Request) -> list[Path]:
    folder = request.style_images
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
        if data.instances and request.instances is not None:
            items = _with_instances(items, request.instances)
    else:
        root = request.root or (None if data.root is None else Path(data.root))
        if root is None:
            raise UserError("the recipe has no data.root: give the data set with --data DIR")
        items = datasets.items_for(
            data.dataset,
            root,
            request.split,
            train_split=data.split,
            instances=data.instances,
            need_images=False,
        )
    if request.instances is not None and not data.instances:
        raise UserError(
            "--instances: this run takes no instance boundaries (data.instances is false)"
        )
    _check_keys(items)
    datasets.check_labels(
        items, sampler.space, data.dataset, check_images=False, progress=not request.quiet
    )
    return items


def _check_keys(items: Sequence[Item]) -> None:
    """Keys are cleaned and unique; the longest ones are cut when samples are named."""
    assert len({item.key for item in items}) == len(items)


def _with_instances(items: Sequence[Item], folder: Path) -> list[Item]:
    maps = {item.key: item.label for item in datasets.index_labels("folder", folder)}

    def stem(key: str) -> str:
        return key.replace("labelIds", "instanceIds")

    found = {item.key: maps.get(item.key) or maps.get(stem(item.key)) for item in items}
    missing = [key for key, path in found.items() if path is None]
    if missing:
        raise UserError(
            f"--instances {folder}: {len(missing)} label maps have no instance map of the same "
            f"name (first: {missing[0]}); leave the option out to take boundaries between classes"
        )
    return [Item(item.key, item.label, instances=found[item.key]) for item in items]


def _fingerprint(
    request: Request, sampler: Sampler, items: Sequence[Item], photos: Sequence[Path]
) -> dict[str, Any]:
    """Everything that decides the bytes; names are what a refusal says."""
    recipe = sampler.recipe
    on_cpu = sampler.device.type == "cpu"
    return {
        "checkpoint": sampler.file.sha256,
        "recipe": recipe.hash(),
        "labels": _hash_files([(i.key, i.label) for i in items]),
        "--instances": _hash_files([(i.key, i.instances) for i in items if i.instances]),
        "--seed": request.seed,
        "--style-images": _hash_files([(p.name, p) for p in photos]),
        "--style-seed": -1 if request.style_seed is None else request.style_seed,
        "--format": request.data_format,
        "--image-format": request.image_format or recipe.sampling.image_format,
        "quality": recipe.sampling.quality,
        "--samples-per-shard": request.samples_per_shard or recipe.sampling.samples_per_shard,
        "--batch": request.batch or recipe.sampling.batch,
        "--label-space": request.label_space,
        "device": platform.machine() if on_cpu else torch.cuda.get_device_name(sampler.device),
        "threads (OMP_NUM_THREADS)": torch.get_num_threads() if on_cpu else 1,
        "torch": torch.__version__,
    }


def _hash_files(named: Sequence[tuple[str, Path]]) -> str:
    total = hashlib.sha256()
    for name, path in named:
        with path.open("rb") as file:
            total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


# The folder


def _check_folder(request: Request) -> None:
    out = request.out
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
    for name in _OURS:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _refuse_another_plan(out: Path, plan: Plan) -> None:
    path = out / shards.HIDDEN / "plan.json"
    if not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
    differing = [name for name in plan.fingerprint if before.get(name) != plan.fingerprint[name]]
    if not differing:
        return

    def shown(value: object) -> str:
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
def _lock(out: Path) -> Iterator[None]:
    """Keep two drivers apart; the lock of a dead one is taken over."""
    path = out / shards.HIDDEN / "lock"
    own = {"host": socket.gethostname(), "pid": os.getpid()}
    with _writable(out):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("x", encoding="utf-8")
        except FileExistsError:
            _refuse_living(path, own["host"], out)
            file = path.open("w", encoding="utf-8")
        with file:
            json.dump(own, file)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _refuse_living(path: Path, host: str, out: Path) -> None:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        there, pid = str(holder["host"]), int(holder["pid"])
    except (ValueError, KeyError, OSError):
        return  # died while it wrote its name
    if there == host and not _is_alive(pid):
        return
    raise UserError(
        f"{out} is being written by process {pid} on {there}; wait for it, or, if it is dead, "
        f"delete {path}"
    )


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UserError(f"--out {out}: cannot write: {error.strerror}") from error


@contextmanager
def _full_disk(out: Path, plan: Plan) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise
        committed = _committed(out, plan)
        kept = sum(shard.samples for shard in committed.values())
        size = sum(shard.bytes for shard in committed.values())
        rest = f"about {size / kept * (plan.num_samples - kept) / 1e6:.0f} MB" if kept else "room"
        raise UserError(
            f"{out}: the disk is full ({error.strerror}). {len(committed)} of {plan.num_shards} "
            f"shards are kept; {rest} more is needed. Make room, then run the same command again"
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


def _make_shards(
    request: Request, sampler: Sampler, plan: Plan, styles: Styles
) -> tuple[int, list[str]]:
    """Make what is not committed; samples made, and a sentence for each shard that failed."""
    out = request.out
    intact = {n for n, shard in _committed(out, plan).items() if shards.is_intact(out, shard)}
    missing = [number for number in range(plan.num_shards) if number not in intact]
    failures, made = out / shards.HIDDEN / "failures.jsonl", 0
    failures.unlink(missing_ok=True)
    failed: list[str] = []
    total = sum(len(plan.tasks(number)) for number in missing)
    with tqdm(total=total, unit="sample", disable=request.quiet or None, desc=str(out)) as bar:
        for number in missing:
            _record_path(out, number).unlink(missing_ok=True)
            try:
                shard = _make_shard(request, sampler, plan, styles, number, bar)
            except (UserError, RuntimeError, ValueError) as error:
                failed.append(f"shard {number}: {error}")
                with failures.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"shard": number, "reason": str(error)}) + "\n")
                continue
            made += shard.samples
            shards.write_whole(_record_path(out, number), json.dumps(shard.to_json()), _tmp(out))
    return made, failed


def _make_shard(
    request: Request, sampler: Sampler, plan: Plan, styles: Styles, number: int, bar: "tqdm[Any]"
) -> Shard:
    image_format = request.image_format or sampler.recipe.sampling.image_format

    def samples() -> Iterator[Encoded]:
        batch = request.batch or sampler.recipe.sampling.batch
        for part in passes(plan.tasks(number), batch):
            for sample in _make_pass(request, sampler, plan, styles, part, batch):
                yield sample
                bar.update()

    space = sampler.space
    num_classes = (
        space.num_classes if request.label_space == "input" else space.num_evaluation_classes
    )
    return shards.write_shard(
        request.out,
        shards.shard_name(request.data_format, SPLIT, number),
        samples(),
        data_format=request.data_format,
        image_format=image_format,
        num_classes=num_classes,
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


def _make_pass(
    request: Request,
    sampler: Sampler,
    plan: Plan,
    styles: Styles,
    part: Sequence[Sequence[Task]],
    batch: int,
) -> Iterator[Encoded]:
    layouts = [sampler.read_layout(plan.items[own[0].layout]) for own in part]
    z = None
    if sampler.has_style:
        z = torch.stack(
            [
                torch.stack([styles.draw(layout.key, task.style) for task in own])
                for layout, own in zip(layouts, part, strict=True)
            ]
        )
    made = sampler.make(layouts, z, batch)
    sampling = sampler.recipe.sampling
    image_format = request.image_format or sampling.image_format
    for layout, own, pairs in zip(layouts, part, made, strict=True):
        label = _written_label(request, sampler, layout)
        encoded_label = shards.encode_map(label)  # once for all styles
        num_classes = (
            sampler.space.num_classes
            if request.label_space == "input"
            else sampler.space.num_evaluation_classes
        )
        counts = shards.count_classes(label, num_classes)
        for task, pair in zip(own, pairs, strict=True):
            record = Record(
                key=shards.sample_key(layout.key, task.style),
                source=layout.key,
                style=task.style,
                seed=styles.seed_of(layout.key, task.style),
                width=label.shape[1],
                height=label.shape[0],
                class_pixels=counts,
            )
            yield Encoded(
                record,
                shards.encode_image(pair.image, image_format, sampling.quality),
                encoded_label,
                shards.encode_map(pair.edge),
            )


def _written_label(request: Request, sampler: Sampler, layout: Layout) -> Labels:
    if request.label_space == "input":
        return layout.label
    return sampler.space.to_evaluation(layout.label)


# What stands beside the shards


def _finish(request: Request, sampler: Sampler, plan: Plan, committed: dict[int, Shard]) -> None:
    """Manifest last: with it the data set is complete."""
    out, tmp = request.out, _tmp(request.out)
    listed = [committed[number] for number in range(plan.num_shards)]
    space = sampler.space
    evaluation = request.label_space == "evaluation"
    names = space.names_for_evaluation if evaluation else space.names
    image_format = request.image_format or sampler.recipe.sampling.image_format
    shards.write_whole(out / "id2label.json", shards.id2label(names), tmp)
    if request.data_format == "webdataset":
        shards.write_whole(out / "index.json", shards.wids_index(out.name, listed), tmp)
    if request.data_format == "folder":
        palette = space.evaluation_palette if evaluation else space.palette
        sidecars = shards.folder_sidecars(
            out,
            listed,
            names,
            palette,
            split=SPLIT,
            image_format=image_format,
            ignore_index=space.ignore_index,
        )
        for name, text in sidecars.items():
            shards.write_whole(out / name, text, tmp)
    about = _manifest(request, sampler, plan, listed, names)
    shards.write_whole(out / "README.md", _card(about, sampler, request), tmp)
    shards.write_whole(out / "manifest.json", json.dumps(about, indent=2) + "\n", tmp)
    with shards.whole_file(out / "preview.png", tmp) as file:
        _preview(out, sampler, evaluation=evaluation).save(file, "PNG")


def _manifest(
    request: Request,
    sampler: Sampler,
    plan: Plan,
    listed: Sequence[Shard],
    names: Sequence[str],
) -> dict[str, Any]:
    """All there is to know of the data set; no time, so that the same set has the same bytes."""
    pixels = np.sum([shard.class_pixels for shard in listed], axis=0)
    recipe = sampler.recipe
    return {
        "schema": shards.SCHEMA,
        "ecgan": ecgan.__version__,
        "torch": torch.__version__,
        "format": request.data_format,
        "split": SPLIT,
        "samples": plan.num_samples,
        "layouts": len(plan.items),
        "size": list(sampler.size),
        "image_format": plan.fingerprint["--image-format"],
        "quality": recipe.sampling.quality,
        "jpeg_subsampling": "4:4:4",
        "label_space": request.label_space,
        "edge_source": sampler.edge_source,
        "boundary_source": _boundary_source(request, sampler),
        "style_source": _style_source(request, sampler),
        "seed": request.seed,
        "checkpoint": {
            "sha256": sampler.file.sha256,
            "images_seen": sampler.file.images_seen,
        },
        "recipe_hash": recipe.hash(),
        "recipe": recipe.model_dump(mode="json"),
        "fingerprint": plan.fingerprint,
        "classes": sampler.space.to_json(),
        "names": list(names),
        "class_pixels": {n: int(c) for n, c in zip(names, pixels, strict=True)},
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
    return "seed" if request.style_seed is None else f"style seed {request.style_seed}"


def _card(about: dict[str, Any], sampler: Sampler, request: Request) -> str:
    count = about["samples"]
    sizes = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M")]
    category = next((name for limit, name in sizes if count < limit), "1M<n<10M")
    patterns = shards.card_data_files(request.data_format, SPLIT)
    listed = "".join(f"      - {json.dumps(p)}\n" for p in patterns)
    total = max(1, sum(about["class_pixels"].values()))
    rows = "".join(
        f"| {i} | {name} | {pixels / total:.2%} |\n"
        for i, (name, pixels) in enumerate(about["class_pixels"].items())
    )
    fields = (
        "`image`, `label`, `edge`"
        if request.data_format == "parquet"
        else (f"`{about['image_format']}`, `seg.png`, `edge.png`, `json`")
    )
    return f"""---
license: {sampler.recipe.sampling.license}
task_categories: [image-segmentation]
task_ids: [semantic-segmentation]
annotations_creators: [machine-generated]
size_categories: [{category}]
tags: [synthetic, ecgan]
configs:
- config_name: default
  data_files:
  - split: {SPLIT}
    path:
{listed}---

# {count} synthetic samples from {about["layouts"]} layouts

Images and edges made by ECGAN (ecgan {about["ecgan"]}, recipe {sampler.recipe.name}, checkpoint
`{about["checkpoint"]["sha256"][:16]}` after {about["checkpoint"]["images_seen"]} images) from label
maps; the labels are the maps themselves. All images are synthetic.

- Fields: {fields}.
- Labels are class ids ({about["label_space"]} space), {sampler.space.ignore_index} = unlabelled.
- Edges: {about["edge_source"]}.
- Size {about["size"][0]} x {about["size"][1]} (height x width), {about["image_format"]}, quality
  {about["quality"]}.
- `manifest.json` has the recipe, hashes and counts.

| id | class | share of labelled pixels |
|---|---|---|
{rows}"""


def _preview(out: Path, sampler: Sampler, *, evaluation: bool) -> Any:  # noqa: ANN401 - a PIL image
    """Rows of layouts: label, edge of the first style, images of the first styles."""
    rows: dict[str, list[npt.NDArray[np.uint8]]] = {}
    palette = sampler.space.evaluation_palette if evaluation else sampler.space.palette
    for sample in _preview_samples(out):
        assert sample.edge is not None
        row = rows.setdefault(sample.source, [colorize(sample.label, palette), sample.edge])
        if len(row) < 2 + _PREVIEW_STYLES:
            row.append(sample.image)
    columns = max(len(row) for row in rows.values())
    blank = np.full((*sampler.size, 3), 255, np.uint8)
    titles = ["label", "edge", *(f"style {k}" for k in range(columns - 2))]
    return grid([row + [blank] * (columns - len(row)) for row in rows.values()], titles)


def _preview_samples(out: Path) -> Iterator[shards.ShardSample]:
    sources: set[str] = set()
    for sample in shards.read(out):
        sources.add(sample.source)
        if len(sources) > _PREVIEW_ROWS:
            return
        yield sample
