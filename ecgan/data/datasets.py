"""Items of a data set: photos with their label, instance and edge maps, by split.

Four structures: Cityscapes, ADE20K, COCO-Stuff as their authors publish them, and a folder in any
of the usual layouts (:mod:`ecgan.data.files.layout`), such as::

    images/[SPLIT/]…    labels/[SPLIT/]…    (instances/…, edges/…)    classes.json

Files are paired by their real names, never by order. The key of an item is that name cleaned to
letters, digits, ``_`` and ``-``, with a hash where cleaning loses letters.
"""

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from ecgan.data import decode
from ecgan.data.files import images, label_maps, layout, names, pairing, paper_layouts
from ecgan.data.files.encoding import Values
from ecgan.data.files.images import Readable
from ecgan.data.files.layout import Layout, Options
from ecgan.data.files.names import Kind
from ecgan.data.files.pairing import FoundFiles, capped, check_root
from ecgan.data.files.photo_sets import Reading
from ecgan.errors import UserError
from ecgan.labels import Labels, LabelSpace, clean_key
from ecgan.runtime.timing import counted
from ecgan.shards.manifest import label_digest

if TYPE_CHECKING:
    from ecgan.data.packed.shard_layout import ShardLayout

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class Item:
    """Files of one sample, or pictures in a shard, and how they are read.

    Where ``digest`` is there, whoever reads label and instance map gets what was checked, or a
    UserError: it is the beginnings of the SHA-256 of both, as ``layout_digest`` joins them.
    """

    key: str
    label: Readable
    image: Readable | None = None
    instances: Readable | None = None
    edge: Readable | None = None
    reading: Reading = field(default_factory=Reading)
    digest: str = ""


@dataclass(frozen=True)
class DataFolder:
    """A data set's folder.

    Attributes:
        dataset: directory structure: folder, cityscapes, ade20k or coco_stuff.
        root: folder of the data set.
        options: where its files are, if the user says so.
        reading: how its files are read.
        val_by: how a tenth is held out where there is no split val: by a hash of the key, by
            sequence, or the beginnings of the held-out keys.
    """

    dataset: str
    root: Path
    options: Options = field(default_factory=Options)
    reading: Reading = field(default_factory=Reading)
    val_by: Literal["hash", "sequence"] | tuple[str, ...] = "hash"

    @cached_property
    def layout(self) -> "Layout | ShardLayout":
        """Its files or, where none of them is a label map, its shards."""
        files = layout.read_layout(self.root, self.options)
        if files.entries.get("label") or self.options != Options():
            return files
        return _shards(self.root) or files

    def splits(self) -> list[str]:
        """Existing splits: some of train, val, test; none where labels are not divided."""
        return [name for name in layout.SPLITS if self.has_split(name)]

    def has_split(self, split: str) -> bool:
        """Whether label maps of a split are there."""
        if self.dataset == "folder":
            return self.layout.has_split(split)
        return paper_layouts.has_split(self.dataset, self.root, split)

    def find(self, split: str | None, kinds: Sequence[Kind]) -> FoundFiles:
        """Find and pair the files of a split; faults are collected, not raised.

        Args:
            split: train, val, test or another folder's name; None: all of them.
            kinds: files that every item must have, ``label`` among them.

        Raises:
            UserError: ``root`` is not a folder.
        """
        check_root(self.root)
        if self.dataset == "folder":
            return self.layout.select(split, kinds)
        return paper_layouts.select(self.dataset, self.root, split, kinds)

    def photos(self, split: str, train_split: str = "train") -> list[Readable]:
        """Photos of a split that is there, also without label maps; or of the held-out tenth.

        Raises:
            UserError: as :meth:`items_for`, where the split is not there.
        """
        if self.has_split(split):
            return [*self.find(split, ["label", "image"]).files["image"].values()]
        items = self.items_for(split, train_split=train_split)
        return [item.image for item in items if item.image is not None]

    def index(
        self,
        split: str | None,
        *,
        instances: bool = False,
        edges_folder: bool = False,
        need_images: bool = True,
    ) -> list[Item]:
        """Items of a split, sorted by key; of everything below ``root`` where split is None.

        Args:
            split: train, val, test, or another folder's name.
            instances: every item must have an instance map.
            edges_folder: every item must have an edge map.
            need_images: every item must have a photo.

        Raises:
            UserError: missing or empty folders, files without their partner, keys that collide; all
                of them at once.
        """
        needed: dict[Kind, bool] = {
            "label": True,
            "image": need_images,
            "instances": instances,
            "edge": edges_folder,
        }
        kinds: list[Kind] = [kind for kind, is_needed in needed.items() if is_needed]
        found = self.find(split, kinds)
        if found.faults:
            where = f"data.dataset {self.dataset}" + (f", split {split}" if split else "")
            raise UserError(f"{self.root} ({where})", found.faults)
        files = found.files

        def other(kind: Kind, key: str) -> Readable | None:
            return files[kind][key] if kind in kinds else None

        return [
            Item(
                key,
                label,
                other("image", key),
                other("instances", key),
                other("edge", key),
                self.reading,
            )
            for key, label in sorted(files["label"].items())
        ]

    def items_for(
        self,
        split: str,
        *,
        train_split: str = "train",
        subset: "Subset | None" = None,
        instances: bool = False,
        edges_folder: bool = False,
        need_images: bool = True,
    ) -> list[Item]:
        """Items to train, validate or sample on.

        Where there is no split val, it is a tenth of the training split (of everything, where
        labels are not divided at all), held out as ``val_by`` says; the training split is the rest.

        Args:
            split: requested split.
            train_split: split that a tenth is held out from.
            subset: which pairs of ``train_split`` to use; None: all.
            instances: every item must have an instance map.
            edges_folder: every item must have an edge map.
            need_images: every item must have a photo.

        Raises:
            UserError: no such split; and as :meth:`index`.
        """
        check_root(self.root)

        def read(split: str | None) -> list[Item]:
            return self.index(
                split, instances=instances, edges_folder=edges_folder, need_images=need_images
            )

        divided = bool(self.splits()) or self.has_split(train_split)
        if self.has_split("val") or (split not in {"val", train_split}):
            items = read(split)
        else:
            whole = read(train_split if divided else None)
            held_out = held_out_keys([item.key for item in whole], self.val_by)
            items = [item for item in whole if (item.key in held_out) == (split == "val")] or whole
        return items if subset is None or split != train_split else subset.of(items)


def recognise(root: Path) -> str:
    """Directory structure of a folder: one of the paper's, or ``folder``."""
    return paper_layouts.recognise(root) or "folder"


@dataclass(frozen=True)
class Subset:
    """Which pairs of the training split are used: a fraction or a number of them, drawn anew.

    Attributes:
        fraction: share of the pairs, at least one.
        pairs: number of pairs, in place of a share.
        draw: number of the draw, from 0.
        draw_by: hash: by a hash of the key, over all of the split; the draw of fewer pairs lies
            within that of more. block: neighbours in the order of their keys, as frames of one
            drive are.
    """

    fraction: float = 1.0
    pairs: int | None = None
    draw: int = 0
    draw_by: Literal["hash", "block"] = "hash"

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole split."""
        return self.pairs is None and self.fraction == 1

    def __str__(self) -> str:
        what = f"{self.fraction * 100:g} %" if self.pairs is None else counted(self.pairs, "pair")
        kind = "" if self.draw_by == "hash" else " in one block"
        return f"{what}{kind}" + (f", draw {self.draw}" if self.draw else "")

    def of(self, items: Sequence[Item]) -> list[Item]:
        """The items of this subset, in the order they came.

        Raises:
            UserError: there are fewer than the number of pairs.
        """
        if self.is_whole:
            return list(items)
        if self.pairs is not None and self.pairs > len(items):
            raise UserError(
                f"data.pairs: {self.pairs}: the training split has {counted(len(items), 'pair')}"
            )
        count = self.pairs or max(1, round(self.fraction * len(items)))
        pick = self._block if self.draw_by == "block" else self._spread
        return [items[i] for i in sorted(pick([item.key for item in items], count))]

    def _spread(self, keys: Sequence[str], count: int) -> list[int]:
        salt = f"fraction {self.draw} " if self.draw else "fraction "
        order = sorted(
            range(len(keys)), key=lambda i: hashlib.sha256(f"{salt}{keys[i]}".encode()).digest()
        )
        return order[:count]

    def _block(self, keys: Sequence[str], count: int) -> list[int]:
        """Starts of further draws lie as far from earlier ones as the golden ratio puts them."""
        order = sorted(range(len(keys)), key=keys.__getitem__)
        start = int((0.5 + self.draw * _GOLDEN) % 1 * (len(keys) - count + 1))
        return order[start : start + count]


def held_out_keys(
    keys: Sequence[str], val_by: Literal["hash", "sequence"] | Collection[str] = "hash"
) -> set[str]:
    """A tenth of the keys, at least one.

    Args:
        keys: all keys.
        val_by: hash: those whose hash is divisible by ten, which stay the same when files are
            added. sequence: whole sequences (keys that differ in their last number only), the last
            by name; of a single sequence its last tenth, so that neighbouring frames are on one
            side. Else the beginnings of the held-out keys.

    Raises:
        UserError: no key begins so, or all do.
    """
    if val_by == "sequence":
        return _last_sequences(keys)
    if val_by != "hash":
        chosen = {key for key in keys if key.startswith(tuple(val_by))}
        if not chosen or len(chosen) == len(keys):
            found = "no key begins" if not chosen else "all keys begin"
            raise UserError(f"data.val_by: {found} with {', '.join(val_by)} (first: {keys[0]})")
        return chosen
    numbers = {key: int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) for key in keys}
    chosen = {key for key, number in numbers.items() if number % 10 == 0}
    return chosen or {min(keys, key=numbers.__getitem__)}


def sequences(keys: Sequence[str]) -> dict[str, list[str]]:
    """Keys that differ in their last number only, by what they have in common, in their order."""
    found: dict[str, list[str]] = {}
    for key in sorted(keys, key=_by_number):
        found.setdefault(re.sub(r"\d+[^\d]*$", "", key), []).append(key)
    return found


def _last_sequences(keys: Sequence[str]) -> set[str]:
    wanted = max(1, round(len(keys) / 10))
    chosen: list[str] = []
    for sequence in reversed(sequences(keys).values()):
        if len(chosen) + len(sequence) > 2 * wanted:
            chosen += sequence[len(sequence) - (wanted - len(chosen)) :] if not chosen else []
        else:
            chosen += sequence
        if len(chosen) >= wanted:
            break
    return {*chosen}


def _by_number(key: str) -> list[tuple[int, str]]:
    """Order of keys in which 2 comes before 10."""
    return [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.split(r"(\d+)", key)
        if part
    ]


def index_labels(
    dataset: str, folder: Path, kind: Literal["label", "instances"] = "label"
) -> list[Item]:
    """Label maps alone, at any depth below a folder, sorted by key; or instance maps alone.

    Of a folder of shards, those of all shards.

    Below a whole data set (with photos beside the labels), only its label maps are taken. Instance
    maps stand in ``Item.label`` too, under the keys of their label maps.

    Raises:
        UserError: no such folder, no label map in it, keys that collide.
    """
    check_root(folder)
    there = [*names.files_below(folder)]
    is_ours = (folder / "manifest.json").is_file()  # its previews are no label maps
    has_maps = any(file.suffix in names.LABEL_SUFFIXES for file in there)
    if kind == "label" and (is_ours or not has_maps) and (items := _labels_in_shards(folder)):
        return items
    named = _own_maps(folder, kind) if dataset == "folder" else []
    if not named:
        own = [f for f in there if f.suffix in names.LABEL_SUFFIXES]
        named = [(names.real_name(f.folders, f.stem), f.path) for f in own]
    noun = names.NOUNS[kind]
    if not named:
        lossy = [f.path for f in there if f.suffix in names.LOSSY_SUFFIXES]
        expected = ", ".join(f"*{suffix}" for suffix in sorted(names.LABEL_SUFFIXES))
        raise UserError(
            f"{folder}: {pairing.lossy_fault(lossy, folder)}"
            if lossy
            else f"{folder}: no {noun}s below it; expected files {expected}"
        )
    ending = paper_layouts.ending(dataset, kind)
    if ending and any(path.stem.endswith(ending) for _, path in named):
        named = [
            (path.stem.removesuffix(ending), path)
            for _, path in named
            if path.stem.endswith(ending)
        ]
    elif dataset != "folder":
        kept = [(name, path) for name, path in named if not path.stem.endswith("TrainIds")]
        if not kept:
            raise UserError(
                f"{folder}: no {noun}s below it; its {pairing.count(len(named), 'file')} "
                "*TrainIds are maps of evaluation ids, which are left out; rename them if they are "
                "what you mean"
            )
        named = kept
    faults = [*filter(None, [pairing.brush_fault([path for _, path in named], folder)])]
    keyed = pairing.by_key(named, str, clean_key, faults)
    if faults:
        raise UserError(str(folder), capped(faults))
    return [Item(key, path) for key, path in sorted(keyed.items())]


def _shards(folder: Path) -> "ShardLayout | None":
    from ecgan.data.packed import shard_layout  # pyarrow: loaded where it is needed

    return shard_layout.read_shard_layout(folder)


def _labels_in_shards(folder: Path) -> list[Item]:
    shards = _shards(folder)
    if shards is None:
        return []
    found = shards.select(None, ["label"])
    if found.faults:
        raise UserError(str(folder), found.faults)
    return [Item(key, label) for key, label in sorted(found.files["label"].items())]


def _own_maps(folder: Path, kind: Kind) -> list[tuple[str, Path]]:
    """Maps of a whole data set, by the names of its folders; none where no folder says."""
    found = layout.read_layout(folder)
    entries = found.entries.get(kind, [])
    has_photos = any(e.place.kind == "image" for e in found.entries.get("image", []))
    if not any(e.place.kind == kind for e in entries) and not (has_photos or found.lossy):
        return []
    return layout.names_and_paths(entries)


def read_label(item: Item, space: LabelSpace, dataset: str) -> Labels:
    """Label map of an item in input ids, (H, W).

    Where nothing has decided yet how the data set's label maps are read, this one's own values do.

    Raises:
        UserError: the file is damaged, has changed since it was checked, holds numbers or colours
            that the class list lacks, or can be read in two ways.
    """
    raw = _read_checked(item.label, label_digest(item.digest))
    encoding = item.reading.encoding
    if encoding is None:
        values = Values(space, dataset)
        values.add(item.label, label_maps.histogram(raw))
        decision = values.decide(None, is_whole=False)
        encoding = decision.encoding
        if decision.faults and not values.unknown(encoding):
            raise UserError(str(item.label), capped(decision.faults))
    decoded = decode.decode(raw, space, dataset, encoding)
    if decoded.unknown:
        faults = [
            decode.unknown_fault(value, space, dataset, colors=decoded.colors)
            for value in decoded.unknown
        ]
        raise UserError(str(item.label), capped(faults))
    return decoded.label


def read_image(item: Item) -> npt.NDArray[np.uint8]:
    """Photo of an item, RGB, (H, W, 3), turned upright unless its label map is not."""
    assert item.image is not None
    way, levels = item.reading.orientation, item.reading.levels
    return images.read_photo(item.image, upright=way != "stored", levels=levels)


def read_instances(item: Item) -> npt.NDArray[np.int32]:
    """Instance ids of an item, (H, W): the raw value of each pixel."""
    assert item.instances is not None
    digest = item.digest.removeprefix(label_digest(item.digest))
    return _read_checked(item.instances, digest).values.astype(np.int32)


def _read_checked(file: Readable, digest: str) -> label_maps.RawLabel:
    """A map, if its SHA-256 begins with a digest."""
    found = label_maps.read_hashed(file)
    if not found.digest.hex().startswith(digest):
        raise UserError(
            f"{file}: it has changed since it was checked; put the file back, or make the data set "
            "anew with --overwrite"
        )
    return found.raw


def read_edge(item: Item) -> npt.NDArray[np.uint8]:
    """Edge map of an item, (H, W), 0 to 255."""
    assert item.edge is not None
    return images.read_grey(item.edge)


def with_reading(items: Sequence[Item], reading: Reading) -> list[Item]:
    """The items, to be read as was decided for all of them."""
    return [replace(item, reading=reading) for item in items]
