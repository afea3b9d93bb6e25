"""Where the files of a data set lie: which photo, label map, instance and edge map belong together.

Four layouts: Cityscapes, ADE20K, COCO-Stuff as their authors publish them, and a plain folder::

    images/[SPLIT/]…    labels/[SPLIT/]…    (instances/…, edges/…)    classes.json

Files are paired by key, never by order. The key is the path below those folders without its ending,
cleaned to letters, digits, ``_`` and ``-`` (Cityscapes: the file name without ``_leftImg8bit``).
"""

import difflib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt
import PIL
from tqdm import tqdm

from ecgan import __version__
from ecgan.data import decode, label_cache
from ecgan.errors import UserError
from ecgan.labels import SPLIT_FOLDERS, Labels, LabelSpace, clean_key

Kind = Literal["image", "label", "instances", "edge"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
LABEL_SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff"})  # without loss
LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg", ".webp"})
MAX_FAULTS = 20

_BLOCK = 1024  # items that are looked up, and kept, at once
_TASK = 16  # items that a thread takes: of small files, each costs less than handing it over

_NOUNS: Mapping[Kind, tuple[str, str]] = {
    "image": ("photo", "photos"),
    "label": ("label map", "label maps"),
    "instances": ("instance map", "instance maps"),
    "edge": ("edge map", "edge maps"),
}


@dataclass(frozen=True, slots=True)
class Item:
    """The files of one sample."""

    key: str
    label: Path
    image: Path | None = None
    instances: Path | None = None
    edge: Path | None = None


@dataclass(frozen=True)
class Survey:
    """All files of a split by key, and what is wrong with them."""

    files: Mapping[Kind, Mapping[str, Path]]
    faults: Sequence[str]


class LabelCounts(NamedTuple):
    """Pixels of each class over a data set."""

    pixels: npt.NDArray[np.int64]  # (N,)
    unlabelled: int
    num_items: int


@dataclass(frozen=True, eq=False)
class LabelCheck:
    """What the label maps of L items hold, row by row in the order of the items.

    Attributes:
        counts: pixels of each of the N classes, (L, N).
        unlabelled: pixels without a class, (L,).
        digests: SHA-256 of each label file, (L, 32).
        instance_digests: SHA-256 of each instance map's file, (L, 32), zeros where an item has
            none; None where no item has one.
    """

    counts: npt.NDArray[np.int32]  # Pillow refuses images of 2^28 pixels and more
    unlabelled: npt.NDArray[np.int32]
    digests: npt.NDArray[np.uint8]
    instance_digests: npt.NDArray[np.uint8] | None

    @property
    def totals(self) -> LabelCounts:
        """Sums over the items."""
        return LabelCounts(
            self.counts.sum(axis=0, dtype=np.int64),
            int(self.unlabelled.sum(dtype=np.int64)),
            len(self.counts),
        )


def splits(dataset: str, root: Path) -> list[str]:
    """Splits that are there: some of train, val, test; none where labels are not divided."""
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
    """The items of a split, sorted by key; of everything below ``root`` where split is None.

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
    found = survey(dataset, root, split, kinds)
    if found.faults:
        place = f"data.dataset {dataset}" + (f", split {split}" if split else "")
        raise UserError(f"{root} ({place})", found.faults)
    files = found.files
    return [
        Item(key, label, **{kind: files[kind][key] for kind in kinds if kind != "label"})
        for key, label in sorted(files["label"].items())
    ]


def items_for(  # noqa: PLR0913  where the items lie, and what each shall have
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
    """The items to train, validate or sample on.

    Where there is no split val, it is a tenth of the training split (of everything, where labels
    are not divided at all), held out by a hash of the key, so that it stays the same when files
    are added; the training split is the rest.

    Args:
        dataset: folder, cityscapes, ade20k or coco_stuff.
        root: folder of the data set.
        split: the split that is asked for.
        train_split: the split that a tenth is held out from.
        fraction: how much of ``train_split`` there is; see :func:`take_fraction`.
        instances: as for :func:`index`.
        edges_folder: as for :func:`index`.
        need_images: as for :func:`index`.

    Raises:
        UserError: no such split; and as :func:`index`.
    """

    def read(name: str | None) -> list[Item]:
        return index(
            dataset,
            root,
            name,
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
    """A part of the items, at least one, chosen by a hash of the key, in the order they came.

    A smaller fraction is a part of a larger one.
    """
    count = max(1, round(fraction * len(items)))
    ordered = sorted(
        range(len(items)),
        key=lambda i: hashlib.sha256(f"fraction {items[i].key}".encode()).digest(),
    )
    return [items[i] for i in sorted(ordered[:count])]


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
    files = _files_below(folder, LABEL_SUFFIXES)
    endings = {"label": "_gtFine_labelIds", "instances": "_gtFine_instanceIds"}
    ending = endings[kind] if dataset == "cityscapes" else ""
    if not any(path.stem.endswith(ending) for path in files):
        ending = ""  # maps under names of the user's own
    if not files:
        lossy = _files_below(folder, LOSSY_SUFFIXES)
        raise UserError(
            f"{folder}: {_lossy_fault(lossy, folder)}"
            if lossy
            else f"{folder}: no {_NOUNS[kind][1]} below it; expected files {_list_suffixes()}"
        )
    faults: list[str] = []
    keyed = _by_key(files, _Tree(folder, ending, flat=bool(ending)), faults)
    if faults:
        raise UserError(str(folder), _capped(faults))
    if not keyed:
        raise UserError(
            f"{folder}: no {_NOUNS[kind][1]} below it; its {_count(len(files), 'file')} *TrainIds "
            "are maps of evaluation ids, which are left out; rename them if they are what you mean"
        )
    return [Item(key, path) for key, path in sorted(keyed.items())]


def read_label(item: Item, space: LabelSpace, dataset: str) -> Labels:
    """The label map of an item in input ids, (H, W).

    Raises:
        UserError: the file is damaged, or holds numbers or colours that the class list lacks.
    """
    decoded = decode.decode(decode.read_raw(item.label), space, dataset)
    if decoded.unknown:
        raise UserError(
            str(item.label),
            _capped(
                [
                    _unknown_fault(value, space, dataset, colors=decoded.colors)
                    for value in decoded.unknown
                ]
            ),
        )
    return decoded.label


def read_image(item: Item) -> npt.NDArray[np.uint8]:
    """The photo of an item, RGB, (H, W, 3)."""
    assert item.image is not None
    return decode.read_photo(item.image)


def read_instances(item: Item) -> npt.NDArray[np.int32]:
    """The instance ids of an item, (H, W): what one pixel holds, whatever it is made of."""
    assert item.instances is not None
    return decode.read_raw(item.instances).values.astype(np.int32)


def read_edge(item: Item) -> npt.NDArray[np.uint8]:
    """The edge map of an item, (H, W), 0 to 255."""
    assert item.edge is not None
    return decode.read_grey(item.edge)


def survey(dataset: str, root: Path, split: str | None, kinds: Sequence[Kind]) -> Survey:
    """Find and pair the files of a split, noting every fault.

    Args:
        dataset: folder, cityscapes, ade20k or coco_stuff.
        root: folder of the data set.
        split: train, val, test or another folder's name; None: all of them.
        kinds: which files every item must have, ``label`` among them.

    Raises:
        UserError: ``root`` is not a folder.
    """
    check_root(root)
    faults: list[str] = []
    files: dict[Kind, dict[str, Path]] = {kind: {} for kind in kinds}
    for kind in kinds:
        trees = _trees(dataset, root, split)[kind]
        tree = next((tree for tree in trees if tree.folder.is_dir()), None)
        if tree is None:
            faults.append(_missing_folder(kind, trees, dataset, root))
            continue
        suffixes = IMAGE_SUFFIXES if kind in {"image", "edge"} else LABEL_SUFFIXES
        below = [p for p in _files_below(tree.folder, suffixes) if tree.holds(p)]
        lossy = [] if kind in {"image", "edge"} else _files_below(tree.folder, LOSSY_SUFFIXES)
        if lossy:
            faults.append(_lossy_fault(lossy, root))
        elif not below:
            faults.append(
                f"{_relative(tree.folder, root)}: no {_NOUNS[kind][1]} below it; expected files "
                f"*{tree.ending}{{{','.join(sorted(suffixes))}}}"
            )
        files[kind] = _by_key(below, tree, faults)
    if all(files.values()):
        faults += _pairing_faults(files, root)
    return Survey(files, _capped(faults))


def recognise(root: Path) -> str | None:
    """Which layout a folder has, or None."""

    def any_folder(*names: str) -> bool:
        return any((root / name).is_dir() for name in names)

    if any_folder("leftImg8bit", "gtFine"):
        return "cityscapes"
    if any_folder("ADEChallengeData2016", "annotations/training", "annotations/validation"):
        return "ade20k"
    if any_folder("stuffthingmaps", "annotations/train2017", "annotations/val2017", "train_label"):
        return "coco_stuff"
    return "folder" if any_folder("labels", "masks") else None


def check_labels(
    items: Sequence[Item],
    space: LabelSpace,
    dataset: str,
    *,
    check_images: bool = True,
    workers: int | None = None,
    progress: bool = False,
) -> LabelCheck:
    """Read every file once and report all faults together, before anything is computed.

    Files that an earlier check found without fault, and that have the same size and time of change
    as then, are not read again (:mod:`ecgan.data.label_cache`).

    Args:
        items: what a run is about to use.
        space: the class list of the run.
        dataset: name of the layout.
        check_images: photos too: whole files, of the size of their label map.
        workers: threads; default: one for each CPU, at most eight.
        progress: show a bar.

    Returns:
        Pixels of each class and a digest, for each item.

    Raises:
        UserError: ids or colours that the class list lacks, files that cannot be read, maps of
            another size than their photo.
    """
    tally = _Tally(items, space)
    faults = _Faults(space, dataset)
    context = _context(space, dataset)

    def inspect(some: Sequence[Item]) -> list["_Finding"]:
        return [_inspect(item, space, dataset, check_images=check_images) for item in some]

    def findings(pool: ThreadPoolExecutor, store: label_cache.Store) -> Iterator["_Finding"]:
        for block in _parts(items, _BLOCK):
            now = time.time_ns()
            files = (_files(item, check_images=check_images) for item in block)
            keys = [label_cache.key(those, context, now) for those in files]
            yield from _known_or_read(
                block,
                keys,
                store,
                lambda unread: chain.from_iterable(pool.map(inspect, _parts(unread, _TASK))),
            )

    with (
        ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool,
        label_cache.open_store() as store,
        tqdm(
            findings(pool, store),
            "Checking labels",
            len(items),
            unit="file",
            disable=not progress or None,
        ) as bar,
    ):
        for row, finding in enumerate(bar):
            tally.add(row, finding)
            faults.add(items[row], finding)
    lines = faults.lines()
    if lines:
        raise UserError(f"{len(items)} label maps were checked; not usable as they are", lines)
    return tally.check


@dataclass(frozen=True)
class _Tree:
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


def _trees(dataset: str, root: Path, split: str | None) -> Mapping[Kind, Sequence[_Tree]]:
    """Folders where files of each kind may lie, the usual one first."""
    match dataset:
        case "cityscapes":
            return _cityscapes_trees(root, split)
        case "ade20k":
            return _ade20k_trees(root, split)
        case "coco_stuff":
            return _coco_stuff_trees(root, split)
        case "folder":
            return _folder_trees(root, split)
        case _:
            raise ValueError(f"no layout {dataset!r}")


def _cityscapes_trees(root: Path, split: str | None) -> Mapping[Kind, Sequence[_Tree]]:
    below = split or ""
    fine = root / "gtFine" / below
    return {
        "image": [_Tree(root / "leftImg8bit" / below, "_leftImg8bit", flat=True)],
        "label": [_Tree(fine, "_gtFine_labelIds", flat=True)],
        "instances": [_Tree(fine, "_gtFine_instanceIds", flat=True)],
        "edge": [_Tree(root / "edges" / below, flat=True)],
    }


def _ade20k_trees(root: Path, split: str | None) -> Mapping[Kind, Sequence[_Tree]]:
    inner = root / "ADEChallengeData2016"
    base = inner if inner.is_dir() else root
    below = {"train": "training", "val": "validation", None: ""}.get(split, split)
    assert below is not None
    return {
        "image": [_Tree(base / "images" / below)],
        "label": [_Tree(base / "annotations" / below)],
        "instances": [_Tree(base / "annotations_instance" / below)],
        "edge": [_Tree(base / "edges" / below)],
    }


def _coco_stuff_trees(root: Path, split: str | None) -> Mapping[Kind, Sequence[_Tree]]:
    if split is None:
        return {
            "image": [_Tree(root / "images")],
            "label": [_Tree(root / "stuffthingmaps"), _Tree(root / "annotations")],
            "instances": [_Tree(root / "inst")],
            "edge": [_Tree(root / "edges")],
        }
    below = f"{split}2017" if split in SPLIT_FOLDERS else split
    return {
        "image": [
            _Tree(root / "images" / below),
            _Tree(root / below),
            _Tree(root / f"{split}_img"),
        ],
        "label": [
            _Tree(root / "stuffthingmaps" / below),
            _Tree(root / "annotations" / below),
            _Tree(root / f"{split}_label"),
        ],
        "instances": [_Tree(root / "inst" / below), _Tree(root / f"{split}_inst")],
        "edge": [_Tree(root / "edges" / below)],
    }


def _folder_trees(root: Path, split: str | None) -> Mapping[Kind, Sequence[_Tree]]:
    names = ("",) if split is None else SPLIT_FOLDERS.get(split, (split,))

    def trees(*folders: str) -> list[_Tree]:
        return [_Tree(root / folder / name) for folder in folders for name in names]

    return {
        "image": trees("images"),
        "label": trees("labels", "masks"),
        "instances": trees("instances"),
        "edge": trees("edges"),
    }


def _has_split(dataset: str, root: Path, split: str) -> bool:
    return any(tree.folder.is_dir() for tree in _trees(dataset, root, split)["label"])


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


def _missing_folder(kind: Kind, trees: Sequence[_Tree], dataset: str, root: Path) -> str:
    expected = list(dict.fromkeys(f"{_relative(tree.folder, root)}/" for tree in trees))
    there = next(p for p in trees[0].folder.parents if p.is_dir())  # root, at the latest
    names = [f"{p.name}/" for p in _subfolders(there)]
    place = "there" if there == root else f"below {_relative(there, root)}/"
    found = f"{place} are only {', '.join(names[:8])}" if names else f"{place} are no folders"
    other = recognise(root)
    hint = f"; this looks like data.dataset: {other}" if other not in {dataset, None} else ""
    return (
        f"no folder of {_NOUNS[kind][1]}: expected {' or '.join(expected)} below the data set's "
        f"folder; {found}{hint}"
    )


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files_below(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Files at any depth, sorted; links are followed, hidden files are not seen."""
    wanted = tuple(suffixes)
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in names
            if name.lower().endswith(wanted) and not name.startswith(".")
        ]
    return sorted(found)


def _by_key(files: Iterable[Path], tree: _Tree, faults: list[str]) -> dict[str, Path]:
    keyed: dict[str, Path] = {}
    for path in files:
        if not tree.holds(path):
            continue
        key = tree.key(path)
        if key in keyed:
            faults.append(f"{keyed[key]} and {path} share the key {key!r}; rename one of them")
        keyed.setdefault(key, path)
    return keyed


def _pairing_faults(files: Mapping[Kind, Mapping[str, Path]], root: Path) -> list[str]:
    """Files without their partner. Instance and edge maps in excess do no harm."""
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
    count = (
        f"1 {_NOUNS[kind][0]} has" if len(paths) == 1 else f"{len(paths)} {_NOUNS[kind][1]} have"
    )
    return (
        f"{count} no {_NOUNS[missing][0]} of the same name (first: {_relative(paths[0], root)}); "
        "add what is missing, or remove them"
    )


def _lossy_fault(files: Sequence[Path], root: Path) -> str:
    return (
        f"{_count(len(files), 'label map')} in a format that changes ids (first: "
        f"{_relative(files[0], root)}); save label maps as PNG"
    )


def _list_suffixes() -> str:
    return ", ".join(f"*{suffix}" for suffix in sorted(LABEL_SUFFIXES))


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


def _capped(faults: Sequence[str]) -> list[str]:
    """The first faults, and how many more there are."""
    if len(faults) <= MAX_FAULTS:
        return list(faults)
    return [*faults[:MAX_FAULTS], f"and {len(faults) - MAX_FAULTS} more"]


def _unknown_fault(value: int, space: LabelSpace, dataset: str, *, colors: bool) -> str:
    if not colors:
        return f"label {value}: the recipe has {decode.accepted_ids(space, dataset)}"
    names = [
        c.name for c in space.classes if c.color == (value >> 16, value >> 8 & 255, value & 255)
    ]
    if names:
        return (
            f"colour {decode.color_text(value)} stands for {' and '.join(names)} in the class list"
        )
    return f"colour {decode.color_text(value)} is not in the class list"


_Read = TypeVar("_Read")


class _Finding(NamedTuple):
    """What was found in the files of one item."""

    digest: bytes = b""
    instance_digest: bytes = b""
    labels: Sequence[int] = ()  # those that occur, ignore_index for unlabelled pixels
    pixels: Sequence[int] = ()  # of each of them
    palette: Mapping[int, int] = {}  # number -> colour, where both have a meaning
    unknown: Sequence[int] = ()
    colors: bool = False
    other_size: str = ""
    unreadable: Sequence[str] = ()

    @property
    def is_clean(self) -> bool:
        return not (self.unknown or self.other_size or self.unreadable)

    def to_json(self) -> list[Any]:
        """Of a clean finding."""
        digests = [self.digest.hex(), self.instance_digest.hex()]
        return [*digests, self.labels, self.pixels, list(self.palette.items())]

    @classmethod
    def from_json(cls, value: list[Any]) -> Self:
        digest, instance_digest, labels, pixels, palette = value
        return cls(
            bytes.fromhex(digest), bytes.fromhex(instance_digest), labels, pixels, dict(palette)
        )


class _Tally:
    """Collects findings in rows."""

    def __init__(self, items: Sequence[Item], space: LabelSpace) -> None:
        num, has_instances = len(items), any(item.instances is not None for item in items)
        self.check = LabelCheck(
            np.zeros((num, space.num_classes), np.int32),
            np.zeros(num, np.int32),
            np.zeros((num, 32), np.uint8),
            np.zeros((num, 32), np.uint8) if has_instances else None,
        )

    def add(self, row: int, finding: _Finding) -> None:
        check = self.check
        for label, pixels in zip(finding.labels, finding.pixels, strict=True):
            if label < check.counts.shape[1]:
                check.counts[row, label] = pixels
            else:
                check.unlabelled[row] = pixels
        if finding.digest:
            check.digests[row] = np.frombuffer(finding.digest, np.uint8)
        if finding.instance_digest and check.instance_digests is not None:
            check.instance_digests[row] = np.frombuffer(finding.instance_digest, np.uint8)


def _parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _context(space: LabelSpace, dataset: str) -> bytes:
    """What a finding depends on besides the files."""
    meaning = [c.color for c in space.classes], space.ignore, dataset
    return repr((__version__, PIL.__version__, *meaning)).encode()


def _files(item: Item, *, check_images: bool) -> list[tuple[str, Path]]:
    """Those that a check reads."""
    image = item.image if check_images else None
    files = {"label": item.label, "image": image, "instances": item.instances, "edge": item.edge}
    return [(kind, path) for kind, path in files.items() if path is not None]


def _known_or_read(
    items: Sequence[Item],
    keys: Sequence[bytes | None],
    store: label_cache.Store,
    read: Callable[[Sequence[Item]], Iterator[_Finding]],
) -> Iterator[_Finding]:
    """The finding of each item in turn; what is read and found clean is kept."""
    known = store.find(keys)
    found = read([item for item, value in zip(items, known, strict=True) if value is None])
    clean: dict[bytes, Any] = {}
    for key, value in zip(keys, known, strict=True):
        if value is not None:
            yield _Finding.from_json(value)
            continue
        finding = next(found)
        if key is not None and finding.is_clean:
            clean[key] = finding.to_json()
        yield finding
    store.add(clean)


def _inspect(item: Item, space: LabelSpace, dataset: str, *, check_images: bool) -> _Finding:
    unreadable: list[str] = []

    def attempt(read: Callable[[Path], _Read], path: Path | None) -> _Read | None:
        try:
            return None if path is None else read(path)
        except UserError as error:
            unreadable.append(str(error))
            return None

    photo = attempt(decode.probe_photo, item.image if check_images else None)
    instances = attempt(decode.read_hashed, item.instances)
    edge = attempt(decode.probe_photo, item.edge)
    try:
        raw, digest = decode.read_hashed(item.label)
    except UserError as error:
        return _Finding(unreadable=[str(error), *unreadable])
    sizes = {"photo": photo, "instance map": instances and instances.raw.size, "edge map": edge}
    other = [
        f"{name} {size[1]} x {size[0]}"
        for name, size in sizes.items()
        if size is not None and size != raw.size
    ]
    decoded = decode.decode(raw, space, dataset)
    pixels = np.bincount(decoded.label.ravel())
    labels = np.flatnonzero(pixels)
    return _Finding(
        digest,
        instances.digest if instances else b"",
        labels.tolist(),
        pixels[labels].tolist(),
        _meaningful_palette(raw, space) if not decoded.colors else {},
        decoded.unknown,
        decoded.colors,
        f"label {raw.size[1]} x {raw.size[0]}, {', '.join(other)}" if other else "",
        unreadable,
    )


def _meaningful_palette(raw: decode.RawLabel, space: LabelSpace) -> dict[int, int]:
    """Number -> colour, if every number in the file has a colour of the class list."""
    if raw.palette is None:
        return {}
    used = np.flatnonzero(np.bincount(raw.values.ravel(), minlength=256))
    colors = decode.class_colors(space)
    palette = {int(number): int(raw.palette[number]) for number in used}
    return palette if all(code in colors for code in palette.values()) else {}


@dataclass
class _Faults:
    """Collects findings, one line for each kind of fault rather than for each file."""

    space: LabelSpace
    dataset: str
    unknown: dict[tuple[bool, int], list[Path]] = field(default_factory=dict)
    palette: dict[int, tuple[int, Path]] = field(default_factory=dict)
    palette_faults: list[str] = field(default_factory=list)
    other_size: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def add(self, item: Item, finding: _Finding) -> None:
        for value in finding.unknown:
            self.unknown.setdefault((finding.colors, value), []).append(item.label)
        for number, color in finding.palette.items():
            first_color, first = self.palette.setdefault(number, (color, item.label))
            if color != first_color and not self.palette_faults:
                self.palette_faults.append(
                    f"{first} and {item.label} give the number {number} two colours of the class "
                    "list, so their numbers are no ids; save such masks as RGB"
                )
        if finding.other_size:
            self.other_size.append(f"{item.label}: {finding.other_size}")
        self.unreadable += finding.unreadable

    def lines(self) -> list[str]:
        lines = [self._unknown_line(*key) for key in sorted(self.unknown)]
        lines += self.palette_faults
        if self.other_size:
            lines.append(
                f"{_count(len(self.other_size), 'label map')} of another size than what belongs to "
                f"{'it' if len(self.other_size) == 1 else 'them'} (first: {self.other_size[0]})"
            )
        return _capped(lines + self.unreadable)

    def _unknown_line(self, colors: bool, value: int) -> str:
        files = self.unknown[colors, value]
        found = f"found in {_count(len(files), 'file')} (first: {files[0]})"
        if not colors:
            line = f"label {value} {found}, the recipe has "
            line += decode.accepted_ids(self.space, self.dataset)
            single = self.dataset == "folder" and sum(not key[0] for key in self.unknown) == 1
            hint = "; if it marks unlabelled pixels, it is the class list's ignore"
            return line + hint if single else line
        fault = _unknown_fault(value, self.space, self.dataset, colors=True)
        return f"{fault}; {found}"
