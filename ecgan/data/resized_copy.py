"""Lossless copy of a data set, resized once, so that training only reads.

Photos of 2048 x 1024 take longer to decode and to resize than a small network takes to learn from
them. The copy is a data set in folder form, of PNG files. The split that is trained on has the size
before the crop, the others that of the crop, and training and validation get the very tensors that
the original gives. (Only label maps of the training split that are seen without a crop, for the
average's batch norms, are resized twice where there is a crop.)
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import RootModel

from ecgan.class_files import RESIZED_COPY
from ecgan.data import checks, datasets, transforms
from ecgan.data.datasets import DataFolder, Item
from ecgan.data.files.photo_sets import Reading
from ecgan.data.label_cache import FileContent, LabelCache
from ecgan.errors import UsageError, UserError, shown
from ecgan.labels import LabelSpace
from ecgan.reading.documents import read_cached, read_json
from ecgan.runtime.files import writing
from ecgan.runtime.storage import HIDDEN, Folder

_ABOUT = RESIZED_COPY  # of what, and how
_CONTENTS = "contents.json"  # fingerprint of the sources of each item
_VERSION = 1


@dataclass(frozen=True)
class Source:
    """Data set to copy, and the sizes of its copy.

    Attributes:
        folder: the data set's folder.
        space: class list.
        split: split to train on.
        size: height and width of ``split``: before the crop.
        cropped: height and width of the other splits: those of the crop.
        instances: copy instance maps too.
    """

    folder: DataFolder
    space: LabelSpace
    split: str
    size: tuple[int, int]
    cropped: tuple[int, int]
    instances: bool

    def items(self) -> dict[str, list[Item]]:
        """Items of each split: the one to train on, val, and what else is there."""
        others = {*self.folder.splits()} - {self.split}
        return {
            split: self.folder.items_for(split, train_split=self.split, instances=self.instances)
            for split in dict.fromkeys((self.split, "val", *sorted(others)))
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "dataset": self.folder.dataset,
            "root": str(self.folder.root.resolve()),
            "split": self.split,
            "size": list(self.size),
            "cropped": list(self.cropped),
            "instances": self.instances,
            "classes": self.space.identity(),
        }


class _Contents(RootModel[dict[str, str]]):
    """What a copy was made of: item -> :func:`_fingerprint`."""


class Copied(NamedTuple):
    """Result of a copy."""

    counts: dict[str, int]  # items of each split
    num_written: int  # items written by this call


def write_resized_copy(source: Source, out: Path, *, threads: int = 1) -> Copied:
    """Check the source, then write the items that are missing or older than their source.

    Args:
        source: data set to copy.
        out: folder of the copy; the same call again resumes.
        threads: number of threads.

    Raises:
        UserError: the source has faults, the folder holds something else, or a file cannot be
            read or written.
    """
    _check_folder(source, out)
    store = Folder(out)
    cache, splits = LabelCache(store), source.items()
    whole = [item for items in splits.values() for item in items]
    check = checks.check_labels(whole, source.space, source.folder.dataset, cache=cache)
    cache.save()
    classes = source.space.written().to_json()
    _put(store, "classes.json", json.dumps(classes, indent=1) + "\n")
    _put(store, _ABOUT, json.dumps(source.to_json(), indent=1) + "\n")
    of_split = [split for split, items in splits.items() for _ in items]
    before = _contents_before(store)
    now = {
        f"{split}/{item.key}": _fingerprint(content, check.reading)
        for split, item, content in zip(of_split, check.items, check.contents, strict=True)
    }
    fresh = {name for name, digest in now.items() if before.get(name) == digest}
    _put(store, _CONTENTS, json.dumps({name: now[name] for name in fresh}))
    jobs = [*zip(of_split, check.items, strict=True)]
    with ThreadPoolExecutor(threads) as pool:
        written = sum(
            pool.map(
                lambda job: _write(source, store, *job, fresh=f"{job[0]}/{job[1].key}" in fresh),
                jobs,
            )
        )
    _remove_lost(store, {*now})
    _put(store, _CONTENTS, json.dumps(now))
    store.remove_folder(HIDDEN)
    return Copied({split: len(items) for split, items in splits.items()}, written)


def _check_folder(source: Source, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: a file; give a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    foreign = UsageError(f"--out {out}: not empty, and not a copy of ecgan data cache")
    try:
        before = read_json(out / _ABOUT, "a copy of ecgan data cache", "")
    except UserError:
        raise foreign from None
    if not isinstance(before, dict):
        raise foreign
    now = json.loads(json.dumps(source.to_json()))
    differing = [name for name in now if before.get(name) != now[name]]
    if differing:
        name = differing[0]
        raise UsageError(
            f"--out {out}: a copy with another {name} ({shown(before.get(name))}, now "
            f"{shown(now[name])}); give another folder"
        )


def _contents_before(store: Folder) -> dict[str, str]:
    """Fingerprint of the sources of each item that the copy holds."""
    found = read_cached(store.path / _CONTENTS, _Contents)
    return {} if found is None else found.root


def _fingerprint(content: FileContent, reading: Reading) -> str:
    """SHA-256 of an item's files and of how they are read."""
    digest = hashlib.sha256(repr(reading).encode())
    digest.update(content.digest + content.instance_digest)
    digest.update(b"" if content.photo is None else content.photo.digest)
    return digest.hexdigest()


def _remove_lost(store: Folder, names: set[str]) -> None:
    """Remove copies of items that the source does not have any more."""
    for kind in ("images", "labels", "instances"):
        folder = store.path / kind
        for path in folder.glob("*/*.png"):
            if path.relative_to(folder).with_suffix("").as_posix() not in names:
                path.unlink()


def _put(store: Folder, name: str, content: bytes | str) -> None:
    with writing(store.path / name):
        store.write(name, content)


def _write(source: Source, store: Folder, split: str, item: Item, *, fresh: bool) -> bool:
    """Write the files of an item, unless they are there, of sources of this very content."""
    origins = {"labels": item.label, "images": item.image}
    if source.instances:
        origins["instances"] = item.instances
    files = {kind: path for kind, path in origins.items() if path is not None}
    names = {kind: f"{kind}/{split}/{item.key}.png" for kind in files}
    if fresh and all((store.path / name).is_file() for name in names.values()):
        return False
    size = source.size if split == source.split else source.cropped
    label = datasets.read_label(item, source.space, source.folder.dataset)
    maps: dict[str, npt.NDArray[Any]] = {"labels": transforms.resize_nearest(label, size)}
    if "images" in files:
        image = transforms.resize_image(datasets.read_image(item), size)
        maps["images"] = image[:, :, ::-1]  # OpenCV's order
    if "instances" in files:
        instances = transforms.resize_nearest(datasets.read_instances(item), size)
        maps["instances"] = _numbered(instances, item.key)
    # The label last: where it is, the others are
    for kind in sorted(names, key=lambda kind: kind == "labels"):
        done, png = cv2.imencode(".png", np.ascontiguousarray(maps[kind]))
        assert done
        _put(store, names[kind], png.tobytes())
    return True


def _numbered(instances: npt.NDArray[np.integer[Any]], key: str) -> npt.NDArray[np.uint16]:
    """Instance ids as small numbers: only the borders of instances matter."""
    known, numbers = np.unique(instances, return_inverse=True)
    if len(known) > 65536:
        raise UserError(f"{key}: {len(known)} instances, more than 65536")
    return numbers.reshape(instances.shape).astype(np.uint16)
