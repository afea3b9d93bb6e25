"""A user's folder of photos and label maps, in any of the usual layouts.

What a file is, and of which split, is said by the names of its folders, in any case and order:
``images/train``, ``train/masks``, ``JPEGImages`` and ``SegmentationClass`` with ``ImageSets``.
Where no folder says, label maps are told by a common suffix of their names.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ecgan.data.files import lists, names, pairing
from ecgan.data.files.names import (
    ANNOTATION_SUFFIXES,
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    LOSSY_SUFFIXES,
    NOUNS,
    OTHER_SUFFIXES,
    FoundFile,
    Kind,
    Place,
)
from ecgan.data.files.pairing import FoundFiles, Renaming, count
from ecgan.labels import clean_key

SPLITS = ("train", "val", "test")
_HINT = (
    "expected photos and label maps in folders such as images/ and labels/, with train/, val/ and "
    "test/ above or below, or name them: data.images, data.labels, data.label_suffix"
)
# Where several folders hold label maps, these are the classes by convention
_FIRST = ("segmentationclass", "segmentationclasspng", "segmentationclassraw")


@dataclass(frozen=True)
class Options:
    """A user's own word on where things are.

    Attributes:
        images: folder of photos, below root or absolute.
        labels: folder of label maps.
        label_suffix: end of the names of label maps beyond those of photos.
    """

    images: str | None = None
    labels: str | None = None
    label_suffix: str | None = None


class _Entry(NamedTuple):
    file: FoundFile
    place: Place
    split: str | None
    name: str  # real name, without split and kind


@dataclass
class Layout:
    """Files of a data set by kind and split; nothing of their content is known.

    Attributes:
        root: folder of the data set.
        entries: files of each kind.
        faults: what forbids the use of the whole.
        notes: what was decided by convention.
        splits: splits that label maps are divided into.
        undivided_fault: what forbids to take all files as one; empty where nothing does.
        suffix: the user's own suffix of label maps.
        noted_suffixes: suffixes that tell label maps in folders of both, as the notes say.
    """

    root: Path
    entries: dict[Kind, list[_Entry]] = field(default_factory=dict[Kind, list[_Entry]])
    lossy: list[Path] = field(default_factory=list[Path])
    faults: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    splits: list[str] = field(default_factory=list[str])
    undivided_fault: str = ""
    suffix: str | None = None
    noted_suffixes: set[str] = field(default_factory=set[str])

    def has_split(self, split: str) -> bool:
        """Whether label maps of a split are there."""
        return any(_is_of(entry, split) for entry in self.entries.get("label", ()))

    def select(self, split: str | None, kinds: Sequence[Kind]) -> FoundFiles:
        """Files of a split, paired; of all where split is None.

        Args:
            split: train, val, test or the name of another folder.
            kinds: files that every item must have, ``label`` among them.
        """
        faults = [*self.faults, *([self.undivided_fault] if split is None else [])]
        faults = [fault for fault in faults if fault]
        if self.faults:  # what follows from them is no news
            return FoundFiles({kind: {} for kind in kinds}, self.faults, self.notes)
        chosen: dict[Kind, list[_Entry]] = {
            kind: [e for e in self.entries.get(kind, ()) if split is None or _is_of(e, split)]
            for kind in kinds
        }
        if split not in {None, *SPLITS}:
            chosen = {kind: [_below(e) for e in found] for kind, found in chosen.items()}
        is_broken = bool(faults)
        for kind, found in chosen.items():
            if not found and not is_broken:
                faults.append(self._missing(kind, split))
        files, notes = self._pair(chosen, faults)
        if all(files.values()):
            faults += pairing.pairing_faults(files, self.root)
        return FoundFiles(files, pairing.capped(faults), notes)

    def _pair(
        self, chosen: Mapping[Kind, Sequence[_Entry]], faults: list[str]
    ) -> tuple[dict[Kind, dict[str, Path]], list[str]]:
        files: dict[Kind, dict[str, Path]] = {}
        labels, images = chosen["label"], chosen.get("image", ())
        renaming = pairing.find_renaming(
            [e.name for e in labels], [e.name for e in images], self.suffix
        )
        for kind, found in chosen.items():
            rename = renaming.image if kind == "image" else renaming.label
            if kind not in {"image", "label"}:
                rename = self._renaming_of(found, labels, renaming)
            named = [(entry.name, entry.file.path) for entry in found]
            files[kind] = pairing.by_key(named, rename, clean_key, faults)
        if found := chosen["label"]:
            if not files["label"]:
                faults.append(
                    f"none of {count(len(found), 'label map')} ends in {self.suffix!r} (first: "
                    f"{pairing.relative(found[0].file.path, self.root)}); set data.label_suffix"
                )
            if "image" in chosen:
                self._note_lossy(files, faults)
        is_known = not renaming.note or renaming.suffix in self.noted_suffixes
        return files, [*self.notes, *([] if is_known else [renaming.note])]

    def _renaming_of(self, found: Sequence[_Entry], labels: Sequence[_Entry], renaming: Renaming):  # noqa: ANN202
        """Renaming of instance and edge maps: as labels, or by a suffix of their own."""
        targets = {n for e in labels if (n := renaming.label(e.name)) is not None}
        own = pairing.find_renaming([e.name for e in found], targets)
        return own.label

    def _note_lossy(self, files: dict[Kind, dict[str, Path]], faults: list[str]) -> None:
        """Lossy pictures in place of label maps are a fault, beside them they are for people."""
        if not self.lossy:
            return
        if not files["label"].keys() >= files["image"].keys():
            faults.append(pairing.lossy_fault(self.lossy, self.root))
        else:
            note = f"{count(len(self.lossy), 'JPEG file')} beside the label maps: not read."
            self.notes += [note] if note not in self.notes else []

    def _missing(self, kind: Kind, split: str | None) -> str:
        where = f" of split {split}" if split else ""
        if kind == "label" and self.lossy:
            return pairing.lossy_fault(self.lossy, self.root)
        there = [f"{p.name}/" for p in pairing.subfolders(self.root)]
        found = f"there are only {', '.join(there[:8])}" if there else "there are no folders"
        splits = f", with splits {', '.join(self.splits)}" if self.splits and split else ""
        # A file or two beside the folders are class lists and notes
        of_kind = OTHER_SUFFIXES if kind == "label" else OTHER_SUFFIXES - ANNOTATION_SUFFIXES
        other = Counter(f.suffix for f in names.files_below(self.root) if f.suffix in of_kind)
        beside = {path.suffix.lower() for path in self.root.iterdir()}
        other = [
            (suffix, number)
            for suffix, number in other.most_common(3)
            if number > 2 or suffix not in beside or suffix in names.PACKED_SUFFIXES
        ]
        hints = [f"; files *{suffix} are {names.remedy(suffix, kind)}" for suffix, _ in other]
        return f"no {NOUNS[kind]}s{where}: {_HINT}; {found}{splits}{''.join(dict.fromkeys(hints))}"


def names_and_paths(entries: Iterable[_Entry]) -> list[tuple[str, Path]]:
    """Names of files, with their splits, and their paths."""
    return [("/".join(filter(None, (e.split, e.name))), e.file.path) for e in entries]


def read_layout(root: Path, options: Options | None = None) -> Layout:
    """Files of a data set's folder.

    Raises:
        UserError: ``root``, or a folder that the options name, is not a folder.
    """
    options = options or Options()
    pairing.check_root(root)
    layout = Layout(root)
    layout.suffix = options.label_suffix
    placed = _placed(root, options)
    pictures = [(f, p) for f, p in placed if f.suffix in IMAGE_SUFFIXES | LABEL_SUFFIXES]
    if options == Options() and (listed := lists.read_pairs([f for f, _ in placed], root)):
        _take_listed(layout, listed, len(pictures))
        return layout
    left_out = sorted({names.left_out(f.folders) for f, p in pictures if p.is_left_out})
    if left_out:
        layout.notes.append(f"Pictures for people are not read: {', '.join(left_out)}/.")
    pictures = [(f, p) for f, p in pictures if not p.is_left_out]
    by_kind = _by_kind(layout, pictures)
    for kind, found in by_kind.items():
        allowed = LABEL_SUFFIXES if kind in {"label", "instances"} else IMAGE_SUFFIXES
        kept = [pair for pair in found if pair[0].suffix in allowed]
        layout.entries[kind] = [
            _Entry(file, place, place.split, names.real_name(place.rest, file.stem))
            for file, place in kept
        ]
        if kind == "label":
            layout.lossy = [f.path for f, _ in found if f.suffix in LOSSY_SUFFIXES]
    maps = [entry.file for entry in layout.entries.get("label", ())] or [f for f, _ in placed]
    layout.faults += filter(None, [pairing.brush_fault([f.path for f in maps], root)])
    _join_undivided(layout)
    named = lists.read([f for f, _ in placed if f.suffix == ".txt"])
    if named and not any(e.split for e in layout.entries.get("label", ())):
        _divide_by_lists(layout, named)
    found_splits = {e.split for e in layout.entries.get("label", ())}
    layout.splits = [split for split in SPLITS if split in found_splits]
    _note_what_is_beside(layout)
    _look_for_other_splits(layout)
    return layout


def _take_listed(layout: Layout, listed: lists.Listed, num_pictures: int) -> None:
    """Take pairs of photos and maps that files of the data set list, under the photos' names."""
    layout.faults += listed.faults
    layout.notes.append(f"Photos and label maps are paired as {listed.source} says.")
    for photo, maps in listed.pairs:
        place = names.place_of(photo.folders)
        name = names.real_name(place.rest, photo.stem)
        for kind, file in [("image", photo), *maps.items()]:
            own = replace(place, kind=kind)
            layout.entries.setdefault(kind, []).append(_Entry(file, own, place.split, name))
    left = num_pictures - len({e.file.path for found in layout.entries.values() for e in found})
    if left > 0:
        layout.notes.append(f"{count(left, 'picture')} that it does not list: not read.")
    splits = {entry.split for entry in layout.entries.get("label", ())}
    layout.splits = [split for split in SPLITS if split in splits]
    _look_for_other_splits(layout)


def _is_of(entry: _Entry, split: str) -> bool:
    if split in SPLITS:
        return entry.split == split
    return entry.split is None and entry.place.rest[:1] == (split,)


def _below(entry: _Entry) -> _Entry:
    """An entry of a folder that the user names as split, which is then no part of the name."""
    return entry._replace(name=entry.name.partition("/")[2])


def _placed(root: Path, options: Options) -> list[tuple[FoundFile, Place]]:
    if options.images is None and options.labels is None:
        return [(file, names.place_of(file.folders)) for file in names.files_below(root)]
    placed: list[tuple[FoundFile, Place]] = []
    taken: set[Path] = set()
    own: list[tuple[Kind, str | None]] = [("label", options.labels), ("image", options.images)]
    for kind, given in own:
        if given is None:
            continue
        folder = root / Path(given).expanduser()
        pairing.check_root(folder)
        for file in names.files_below(folder):
            place = names.place_of(file.folders)
            placed.append((file, Place(kind, given, place.split, _rest(file, place))))
            taken.add(file.path)
    missing = {kind for kind, given in own if given is None} | {"instances", "edge"}
    for file in names.files_below(root):
        place = names.place_of(file.folders)
        is_text = file.suffix in OTHER_SUFFIXES
        if file.path not in taken and (place.kind in missing or is_text):
            placed.append((file, place))
    return placed


def _rest(file: FoundFile, place: Place) -> tuple[str, ...]:
    """Folders below one that the user named: all but the split's."""
    if place.split is None:
        return file.folders
    at = next(i for i, folder in enumerate(file.folders) if names.split_of(folder) == place.split)
    return (*file.folders[:at], *file.folders[at + 1 :])


def _by_kind(
    layout: Layout, pictures: Sequence[tuple[FoundFile, Place]]
) -> dict[Kind, list[tuple[FoundFile, Place]]]:
    by_kind: dict[Kind | None, list[tuple[FoundFile, Place]]] = {}
    for file, place in pictures:
        by_kind.setdefault(place.kind, []).append((file, place))
    unplaced = by_kind.pop(None, [])
    found: dict[Kind, list[tuple[FoundFile, Place]]] = {
        kind: entries for kind, entries in by_kind.items() if kind is not None
    }
    if "label" not in found:
        photos, labels = _divide_flat([*found.get("image", []), *unplaced], layout)
        return {**found, "image": photos, "label": labels}
    if "image" not in found:
        found["image"] = unplaced  # train/ beside train_masks/
    for kind in ("label", "image"):
        found[kind] = _one_folder(layout, kind, found)
    return found


def _one_folder(
    layout: Layout, kind: Kind, found: Mapping[Kind, list[tuple[FoundFile, Place]]]
) -> list[tuple[FoundFile, Place]]:
    """Files of one of several folders of a kind: the one that has partners, or a fault."""
    words: dict[str, list[tuple[FoundFile, Place]]] = {}
    for file, place in found[kind]:
        words.setdefault(place.word, []).append((file, place))
    if len(words) < 2:
        return found[kind]
    partners = {
        names.real_name(place.rest, file.stem)
        for file, place in found["image" if kind == "label" else "label"]
    }
    paired = {}
    for word, files in words.items():
        own = [names.real_name(place.rest, file.stem) for file, place in files]
        renaming = (
            pairing.find_renaming(own, partners)
            if kind == "label"
            else pairing.find_renaming(partners, own)
        )
        one, other = (own, partners) if kind == "label" else (partners, own)
        if {renaming.label(n) for n in one} & {renaming.image(n) for n in other}:
            paired[word] = files
    classes = [word for word in _FIRST if word in paired] if kind == "label" else []
    chosen = classes[:1] or list(paired)
    if not chosen:
        return found[kind]
    shown = {word: f"{_folder_of(files[0])}/" for word, files in words.items()}
    if len(chosen) > 1:
        option = "data.labels" if kind == "label" else "data.images"
        listed = " and ".join(
            f"{shown[word]} ({count(len(paired[word]), 'file')})" for word in chosen
        )
        layout.faults.append(f"{NOUNS[kind]}s may be those of {listed}; say which with {option}")
        return found[kind]
    others = ", ".join(text for word, text in shown.items() if word != chosen[0])
    layout.notes.append(
        f"{NOUNS[kind].capitalize()}s are read from {shown[chosen[0]]}, not from {others}."
    )
    return paired[chosen[0]]


def _folder_of(found: tuple[FoundFile, Place]) -> str:
    file, place = found
    return next(
        (f for f in reversed(file.folders) if names.place_of((f,)).word == place.word), place.word
    )


def _divide_flat(
    pool: list[tuple[FoundFile, Place]], layout: Layout
) -> tuple[list[tuple[FoundFile, Place]], list[tuple[FoundFile, Place]]]:
    """Photos and label maps of one folder: told by a suffix, or by the format."""
    if (told := names.divide_by_names(pool)) is not None:
        layout.notes.append("Files of each folder are told by their names, such as img and label.")
        return told
    own = [names.real_name(file.folders, file.stem) for file, _ in pool]
    if layout.suffix is not None:
        is_label = [name.endswith(layout.suffix) for name in own]
    else:
        stems = Counter(own)
        if pool and all(number == 2 for number in stems.values()):
            is_label = [file.suffix not in LOSSY_SUFFIXES for file, _ in pool]
            if 2 * sum(is_label) == len(pool):
                layout.notes.append("Of two files of one name, the lossless one is the label map.")
                return _halves(pool, is_label)
        known = {*own}
        bases = [pairing.base_name(name, known - {name}) for name in own]
        ends = Counter(
            name[len(base) :] for name, base in zip(own, bases, strict=True) if base is not None
        )
        suffix = pairing.best_suffix(ends)
        if suffix is None or 4 * ends[suffix] < len(pool):
            suffix, ends = pairing.label_word(own), Counter[str]()
        if suffix is None:
            return pool, []
        is_label = [name.endswith(suffix) for name in own]
        layout.notes.append(f"Label maps end in {suffix}.")
        layout.noted_suffixes.add(suffix)
        variants = {*ends} - {suffix}
        keep = [
            not any(name.endswith(v) for v in variants) or base is None
            for name, base in zip(own, bases, strict=True)
        ]
        keep = [k or label for k, label in zip(keep, is_label, strict=True)]
        pool = [pair for pair, k in zip(pool, keep, strict=True) if k]
        is_label = [label for label, k in zip(is_label, keep, strict=True) if k]
    return _halves(pool, is_label)


def _halves(
    pool: Sequence[tuple[FoundFile, Place]], is_label: Sequence[bool]
) -> tuple[list[tuple[FoundFile, Place]], list[tuple[FoundFile, Place]]]:
    photos = [pair for pair, label in zip(pool, is_label, strict=True) if not label]
    return photos, [pair for pair, label in zip(pool, is_label, strict=True) if label]


def _join_undivided(layout: Layout) -> None:
    """Give photos or labels that are not divided the split of their partner."""
    pairs: list[tuple[Kind, Kind]] = [("label", "image"), ("image", "label")]
    for kind, other in pairs:
        own, others = layout.entries.get(kind, []), layout.entries.get(other, [])
        if not own or any(e.split for e in own) or not any(e.split for e in others):
            continue
        splits: dict[str, set[str | None]] = {}
        for entry in others:
            splits.setdefault(entry.name, set()).add(entry.split)
        names_of = (e.name for e in (own if kind == "label" else others))
        renaming = pairing.find_renaming(
            [*names_of], [e.name for e in (others if kind == "label" else own)]
        )
        mine = renaming.label if kind == "label" else renaming.image
        theirs = renaming.image if kind == "label" else renaming.label
        by_name = {theirs(name): found for name, found in splits.items()}
        layout.entries[kind] = [
            entry._replace(split=next(iter(found)))
            if len(found := by_name.get(mine(entry.name), set[str | None]())) == 1
            else entry
            for entry in own
        ]


def _divide_by_lists(layout: Layout, named: Mapping[str, Sequence[str]]) -> None:
    """Give files the split that lists name them in, and leave out those of no list."""
    chosen = lists.by_split(named)
    labels = layout.entries.get("label", [])
    renaming = pairing.find_renaming(
        [e.name for e in labels], [e.name for e in layout.entries.get("image", [])], layout.suffix
    )

    def name_of(entry: _Entry, kind: Kind) -> str:
        rename = renaming.image if kind == "image" else renaming.label
        return rename(entry.name) or entry.name

    divided = lists.divide(chosen, {name_of(entry, "label") for entry in labels})
    if not divided.split_of:  # lists of something else
        if None not in chosen:
            layout.notes.append(
                f"The lists of splits ({', '.join(map(str, chosen))}) have no name of a label map "
                f"(first: {divided.missing[0]}): not read."
            )
        return
    for kind, found in layout.entries.items():
        listed = [e for e in found if name_of(e, kind) in divided.split_of]
        layout.entries[kind] = [
            e._replace(split=divided.split_of[name_of(e, kind)]) for e in listed
        ]
        if kind in {"label", "image"} and len(listed) < len(found):
            layout.notes.append(
                f"{count(len(found) - len(listed), NOUNS[kind])} in no list of a split: not read."
            )
    if None not in chosen:
        layout.notes.append(f"Splits are those of the lists: {', '.join(map(str, chosen))}.")
    layout.faults += divided.faults


def _note_what_is_beside(layout: Layout) -> None:
    """Name photos of splits without label maps, and maps that are not of classes."""
    photos = Counter(e.split for e in layout.entries.get("image", ()))
    for split in SPLITS:
        if layout.splits and photos[split] and split not in layout.splits:
            layout.notes.append(
                f"{count(photos[split], 'photo')} of split {split} without a label map: not read."
            )
    objects = [e for e in layout.entries.get("instances", ()) if "object" in e.place.word]
    if objects and layout.entries.get("label"):
        folder = _folder_of((objects[0].file, objects[0].place))
        layout.notes.append(f"{folder}/ holds instance maps, no classes.")


def _look_for_other_splits(layout: Layout) -> None:
    """Folders beside those of splits, or that look like splits, are never used in silence."""
    firsts = Counter(
        e.place.rest[0] for e in layout.entries.get("label", ()) if e.split is None and e.place.rest
    )
    undivided = sum(e.split is None for e in layout.entries.get("label", ()))
    if layout.splits and undivided:
        listed = ", ".join(f"{name}/" for name in sorted(firsts)[:6]) or "the folder itself"
        layout.notes.append(
            f"{count(undivided, 'label map')} in {listed} are of no split, and not read; "
            "data.split names a folder to train on."
        )
    elif like := sorted(name for name in firsts if names.looks_like_split(name)):
        is_one = len(like) == 1
        layout.undivided_fault = (
            f"{' and '.join(f'{name}/' for name in like[:6])} look{'s' * is_one} like "
            f"{'a split under a name' if is_one else 'splits under names'} that "
            f"{'is' if is_one else 'are'} not known; rename to train, val and test, or set "
            "data.split to the one to train on"
        )
