"""Pairing of photos, label maps, instance and edge maps; splits and directory structures.

Four structures: Cityscapes, ADE20K, COCO-Stuff as their authors publish them, and a plain folder::

    images/[SPLIT/]…    labels/[SPLIT/]…    (instances/…, edges/…)    classes.json

Files are paired by key, never by order. The key is the path below those folders without its ending,
cleaned to letters, digits, ``_`` and ``-`` (Cityscapes: the file name without ``_leftImg8bit``).
"""

import difflib
import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ecgan.data import decode
from ecgan.errors import UserError
from ecgan.labels import SPLIT_FOLDERS, Labels, LabelSpace, clean_key

Kind = Literal["image", "label", "instances", "edge"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
LABEL_SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff"})  # without loss
MAX_FAULTS = 20

_NOUNS: Mapping[Kind, str] = {
    "image": "photo",
    "label": "label map",
    "instances": "instance map",
    "edge": "edge map",
}


@dataclass(frozen=True, slots=True)
class Item:
    """Files of one sample."""

    key: str
    label: Path
    image: Path | None = None
    instances: Path | None = None
    edge: Path | None = None


@dataclass(frozen=True)
class FoundFiles:
    """Files of a split by key, and the faults met while they were paired."""

    files: Mapping[Kind, Mapping[str, Path]]
    faults: Sequence[str]


def splits(dataset: str, root: Path) -> list[str]:
    """Existing splits: some of train, val, test; none where labels are not divided."""
    return [name for name in SPLIT_FOLDERS if _has_split(dataset, root, name)]


def index(
    dataset: str,
    root: Path,
    split: str | None,
    *,
    instances: bool = False,
    edges_folder: bool = False,
    need_images: bool = True,
) -> list[Item]:
    """Items of a split, sorted by key; of everything below ``root`` where split is None.

    Args:
        dataset: folder, cityscapes, ade20k or coco_stuff.
        root: folder of the data set.
        split: train, val, test, or another folder's name.
        instances: every item must have an instance map.
        edges_folder: every item must have an edge map.
        need_images: every item must have a photo.

    Raises:
        UserError: missing or empty folders, files without their partner, keys that collide; all of
            them at once.
    """
    needed: dict[Kind, bool] = {
        "label": True,
        "image": need_images,
        "instances": instances,
        "edge": edges_folder,
    }
    kinds: list[Kind] = [kind for kind, is_needed in needed.items() if is_needed]
    found = find_files(dataset, root, split, kinds)
    if found.faults:
        where = f"data.dataset {dataset}" + (f", split {split}" if split else "")
        raise UserError(f"{root} ({where})", found.faults)
    files = found.files
    return [
        Item(key, label, **{kind: files[kind][key] for kind in kinds if kind != "label"})
        for key, label in sorted(files["label"].items())
    ]


def items_for(  # noqa: PLR0913  where the items are, and which files each must have
    dataset: str,
    root: Path,
    split: str,
    *,
    train_split: str = "train",
    fraction: float = 1.0,
    instances: bool = False,
    edges_folder: bool = False,
    need_images: bool = True,
) -> list[Item]:
    """Items to train, validate or sample on.

    Where there is no split val, it is a tenth of the training split (of everything, where labels
    are not divided at all), held out by a hash of the key, so that it stays the same when files
    are added; the training split is the rest.

    Args:
        dataset: folder, cityscapes, ade20k or coco_stuff.
        root: folder of the data set.
        split: requested split.
        train_split: split that a tenth is held out from.
        fraction: share of ``train_split`` to use; see :func:`take_fraction`.
        instances: every item must have an instance map.
        edges_folder: every item must have an edge map.
        need_images: every item must have a photo.

    Raises:
        UserError: no such split; and as :func:`index`.
    """
    read = partial(
        index,
        dataset,
        root,
        instances=instances,
        edges_folder=edges_folder,
        need_images=need_images,
    )
    check_root(root)
    divided = bool(splits(dataset, root)) or _has_split(dataset, root, train_split)
    if _has_split(dataset, root, "val") or (split not in {"val", train_split}):
        items = read(split)
    else:
        whole = read(train_split if divided else None)
        held_out = _held_out([item.key for item in whole])
        items = [item for item in whole if (item.key in held_out) == (split == "val")] or whole
    return take_fraction(items, fraction) if split == train_split else items


def take_fraction(items: Sequence[Item], fraction: float) -> list[Item]:
    """Subset of the items, at least one, chosen by a hash of the key, in the order they came.

    The subset of a smaller fraction lies within that of a larger one.
    """
    num = max(1, round(fraction * len(items)))
    ordered = sorted(
        range(len(items)),
        key=lambda i: hashlib.sha256(f"fraction {items[i].key}".encode()).digest(),
    )
    return [items[i] for i in sorted(ordered[:num])]


def index_labels(
    dataset: str, folder: Path, kind: Literal["label", "instances"] = "label"
) -> list[Item]:
    """Label maps alone, at any depth below a folder, sorted by key; or instance maps alone.

    Below a whole data set (with photos beside the labels), only its label maps are taken. Instance
    maps stand in ``Item.label`` too, under the keys of their label maps.

    Raises:
        UserError: no such folder, no label map in it, keys that collide.
    """
    check_root(folder)
    names = ("labels", "masks") if kind == "label" else ("instances",)
    labels_below = [folder / name for name in names if (folder / name).is_dir()]
    if labels_below and (folder / "images").is_dir():
        folder = labels_below[0]
    files, lossy = _files_below(folder, LABEL_SUFFIXES)
    ending = _CITYSCAPES_ENDINGS[kind] if dataset == "cityscapes" else ""
    if not any(path.stem.endswith(ending) for path in files):
        ending = ""  # maps under names of the user's own
    if not files:
        expected = ", ".join(f"*{suffix}" for suffix in sorted(LABEL_SUFFIXES))
        raise UserError(
            f"{folder}: {_lossy_fault(lossy, folder)}"
            if lossy
            else f"{folder}: no {_NOUNS[kind]}s below it; expected files {expected}"
        )
    faults: list[str] = []
    keyed = _by_key(files, _SourceFolder(folder, ending, flat=bool(ending)), faults)
    if faults:
        raise UserError(str(folder), capped(faults))
    if not keyed:
        raise UserError(
            f"{folder}: no {_NOUNS[kind]}s below it; its {count(len(files), 'file')} *TrainIds "
            "are maps of evaluation ids, which are left out; rename them if they are what you mean"
        )
    return [Item(key, path) for key, path in sorted(keyed.items())]


def read_label(item: Item, space: LabelSpace, dataset: str) -> Labels:
    """Label map of an item in input ids, (H, W).

    Raises:
        UserError: the file is damaged, or holds numbers or colours that the class list lacks.
    """
    decoded = decode.decode(decode.read_raw(item.label), space, dataset)
    if decoded.unknown:
        raise UserError(
            str(item.label),
            capped(
                [
                    decode.unknown_fault(value, space, dataset, colors=decoded.colors)
                    for value in decoded.unknown
                ]
            ),
        )
    return decoded.label


def read_image(item: Item) -> npt.NDArray[np.uint8]:
    """Photo of an item, RGB, (H, W, 3)."""
    assert item.image is not None
    return decode.read_photo(item.image)


def read_instances(item: Item) -> npt.NDArray[np.int32]:
    """Instance ids of an item, (H, W): the raw value of each pixel."""
    assert item.instances is not None
    return decode.read_raw(item.instances).values.astype(np.int32)


def read_edge(item: Item) -> npt.NDArray[np.uint8]:
    """Edge map of an item, (H, W), 0 to 255."""
    assert item.edge is not None
    return decode.read_grey(item.edge)


def find_files(dataset: str, root: Path, split: str | None, kinds: Sequence[Kind]) -> FoundFiles:
    """Find and pair the files of a split; faults are collected, not raised.

    Args:
        dataset: folder, cityscapes, ade20k or coco_stuff.
        root: folder of the data set.
        split: train, val, test or another folder's name; None: all of them.
        kinds: files that every item must have, ``label`` among them.

    Raises:
        UserError: ``root`` is not a folder.
    """
    check_root(root)
    faults: list[str] = []
    files: dict[Kind, dict[str, Path]] = {kind: {} for kind in kinds}
    for kind in kinds:
        candidates = _source_folders(dataset, root, split)[kind]
        source = next((c for c in candidates if c.folder.is_dir()), None)
        if source is None:
            faults.append(_missing_folder(kind, candidates, dataset, root))
            continue
        suffixes = IMAGE_SUFFIXES if kind in {"image", "edge"} else LABEL_SUFFIXES
        there, lossy = _files_below(source.folder, suffixes)
        below = [*filter(source.holds, there)]
        if lossy:
            faults.append(_lossy_fault(lossy, root))
        elif not below:
            faults.append(
                f"{_relative(source.folder, root)}: no {_NOUNS[kind]}s below it; expected files "
                f"*{source.ending}{{{','.join(sorted(suffixes))}}}"
            )
        files[kind] = _by_key(below, source, faults)
    if all(files.values()):
        faults += _pairing_faults(files, root)
    return FoundFiles(files, capped(faults))


def recognise(root: Path) -> str | None:
    """Directory structure of a folder; None where it is none of the four."""

    def any_folder(*names: str) -> bool:
        return any((root / name).is_dir() for name in names)

    if any_folder("leftImg8bit", "gtFine"):
        return "cityscapes"
    if any_folder("ADEChallengeData2016", "annotations/training", "annotations/validation"):
        return "ade20k"
    if any_folder("stuffthingmaps", "annotations/train2017", "annotations/val2017", "train_label"):
        return "coco_stuff"
    return "folder" if any_folder("labels", "masks") else None


@dataclass(frozen=True)
class _SourceFolder:
    """A folder that holds files of one kind; their stems end in ``ending``."""

    folder: Path
    ending: str = ""
    flat: bool = False  # file names are unique: folders are not part of the key

    def holds(self, path: Path) -> bool:
        # mmsegmentation writes its own variants beside the maps.
        return path.stem.endswith(self.ending) and not path.stem.endswith("TrainIds")

    def key(self, path: Path) -> str:
        name = path.name if self.flat else path.relative_to(self.folder).as_posix()
        return clean_key(name.removesuffix(path.suffix).removesuffix(self.ending))


# Folders of each kind of file, the usual one first; {below} is the split's folder
_STRUCTURES: Mapping[str, Mapping[Kind, Sequence[str]]] = {
    "cityscapes": {
        "image": ("leftImg8bit/{below}",),
        "label": ("gtFine/{below}",),
        "instances": ("gtFine/{below}",),
        "edge": ("edges/{below}",),
    },
    "ade20k": {
        "image": ("images/{below}",),
        "label": ("annotations/{below}",),
        "instances": ("annotations_instance/{below}",),
        "edge": ("edges/{below}",),
    },
    "coco_stuff": {
        "image": ("images/{below}", "{below}", "{split}_img"),
        "label": ("stuffthingmaps/{below}", "annotations/{below}", "{split}_label"),
        "instances": ("inst/{below}", "{split}_inst"),
        "edge": ("edges/{below}",),
    },
    "folder": {
        "image": ("images/{below}",),
        "label": ("labels/{below}", "masks/{below}"),
        "instances": ("instances/{below}",),
        "edge": ("edges/{below}",),
    },
}
_CITYSCAPES_ENDINGS: Mapping[Kind, str] = {
    "image": "_leftImg8bit",
    "label": "_gtFine_labelIds",
    "instances": "_gtFine_instanceIds",
    "edge": "",
}


def _source_folders(
    dataset: str, root: Path, split: str | None
) -> Mapping[Kind, Sequence[_SourceFolder]]:
    """Folders that may hold files of each kind, the usual one first."""
    inner = root / "ADEChallengeData2016"
    base = inner if dataset == "ade20k" and inner.is_dir() else root
    flat = dataset == "cityscapes"
    return {
        kind: [
            _SourceFolder(
                base / pattern.format(below=below, split=split),
                _CITYSCAPES_ENDINGS[kind] if flat else "",
                flat,
            )
            for pattern in patterns
            if split is not None or pattern.endswith("/{below}")
            for below in _split_folders(dataset, split)
        ]
        for kind, patterns in _STRUCTURES[dataset].items()
    }


def _split_folders(dataset: str, split: str | None) -> Sequence[str]:
    """Names that the folder of a split may have."""
    if split is None:
        return ("",)
    if dataset == "folder":
        return SPLIT_FOLDERS.get(split, (split,))
    if dataset == "coco_stuff" and split in SPLIT_FOLDERS:
        return (f"{split}2017",)
    if dataset == "ade20k":
        return ({"train": "training", "val": "validation"}.get(split, split),)
    return (split,)


def _has_split(dataset: str, root: Path, split: str) -> bool:
    return any(source.folder.is_dir() for source in _source_folders(dataset, root, split)["label"])


def _held_out(keys: Sequence[str]) -> set[str]:
    """A tenth of the keys, at least one, chosen by their hash."""
    numbers = {key: int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) for key in keys}
    chosen = {key for key, number in numbers.items() if number % 10 == 0}
    return chosen or {min(keys, key=numbers.__getitem__)}


def check_root(root: Path) -> None:
    """Raise UserError where ``root`` is not a folder, with the nearest name that is."""
    if root.is_dir():
        return
    if root.exists():
        raise UserError(f"{root}: not a folder; give the data set's folder")
    siblings = [p.name for p in _subfolders(root.parent)]
    close = difflib.get_close_matches(root.name, siblings, n=1)
    hint = f" (did you mean {root.parent / close[0]}?)" if close else ""
    raise UserError(f"{root}: no such folder{hint}; give the data set's folder")


def _missing_folder(
    kind: Kind, candidates: Sequence[_SourceFolder], dataset: str, root: Path
) -> str:
    expected = list(dict.fromkeys(f"{_relative(c.folder, root)}/" for c in candidates))
    there = next(p for p in candidates[0].folder.parents if p.is_dir())  # root, at the latest
    names = [f"{p.name}/" for p in _subfolders(there)]
    where = "there" if there == root else f"below {_relative(there, root)}/"
    found = f"{where} are only {', '.join(names[:8])}" if names else f"{where} are no folders"
    other = recognise(root)
    hint = f"; this looks like data.dataset: {other}" if other not in {dataset, None} else ""
    return (
        f"no folder of {_NOUNS[kind]}s: expected {' or '.join(expected)} below the data set's "
        f"folder; {found}{hint}"
    )


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files_below(folder: Path, suffixes: Collection[str]) -> tuple[list[Path], list[Path]]:
    """Files at any depth with one of the suffixes, and other images; sorted.

    Links are followed, hidden files are skipped.
    """
    found: tuple[list[Path], list[Path]] = [], []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122  half the time of a Path
            if suffix in IMAGE_SUFFIXES and not name.startswith("."):
                found[suffix not in suffixes].append(Path(parent, name))
    return sorted(found[0]), sorted(found[1])


def _by_key(files: Iterable[Path], source: _SourceFolder, faults: list[str]) -> dict[str, Path]:
    keyed: dict[str, Path] = {}
    for path in filter(source.holds, files):
        key = source.key(path)
        if key in keyed:
            faults.append(f"{keyed[key]} and {path} share the key {key!r}; rename one of them")
        keyed.setdefault(key, path)
    return keyed


def _pairing_faults(files: Mapping[Kind, Mapping[str, Path]], root: Path) -> list[str]:
    """Faults of files without their partner; superfluous instance and edge maps do no harm."""
    faults: list[str] = []
    labels = files["label"]
    for kind, others in files.items():
        if kind == "label":
            continue
        alone = sorted(labels.keys() - others.keys())
        if alone:
            faults.append(_unpaired_fault("label", kind, [labels[key] for key in alone], root))
        alone = sorted(others.keys() - labels.keys())
        if alone and kind == "image":
            faults.append(_unpaired_fault(kind, "label", [others[key] for key in alone], root))
    return faults


def _unpaired_fault(kind: Kind, missing: Kind, paths: Sequence[Path], root: Path) -> str:
    return (
        f"{count(len(paths), _NOUNS[kind])} {'has' if len(paths) == 1 else 'have'} no "
        f"{_NOUNS[missing]} of the same name (first: {_relative(paths[0], root)}); add what is "
        "missing, or remove them"
    )


def _lossy_fault(files: Sequence[Path], root: Path) -> str:
    return (
        f"{count(len(files), 'label map')} in a format that changes ids (first: "
        f"{_relative(files[0], root)}); save label maps as PNG"
    )


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def count(number: int, noun: str) -> str:
    """Number with its noun: 1 file, 2 files."""
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


def capped(faults: Sequence[str]) -> list[str]:
    """First ``MAX_FAULTS`` faults and the number of further ones."""
    if len(faults) <= MAX_FAULTS:
        return list(faults)
    return [*faults[:MAX_FAULTS], f"and {len(faults) - MAX_FAULTS} more"]
