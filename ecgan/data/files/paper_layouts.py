"""The paper's data sets as their authors publish them: Cityscapes, ADE20K, COCO-Stuff."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ecgan.data.files import names, pairing
from ecgan.data.files.names import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    LOSSY_SUFFIXES,
    NOUNS,
    FoundFile,
    Kind,
)
from ecgan.data.files.pairing import FoundFiles, count, relative
from ecgan.labels import clean_key


def recognise(root: Path) -> str | None:
    """The paper's data set that a folder is, by what only it has; None for any other."""

    def has(*names: str) -> bool:
        return all((root / name).exists() for name in names)

    if _is_cityscapes(root):
        return "cityscapes"
    if has("ADEChallengeData2016") or has("objectInfo150.txt") or has("sceneCategories.txt"):
        return "ade20k"
    return "coco_stuff" if has("stuffthingmaps") else None


def _is_cityscapes(root: Path) -> bool:
    """Whether each of its folders that is there has a file of its name, or none at all."""
    marks = {"leftImg8bit": "_leftImg8bit.", "gtFine": "_gtFine_"}
    folders = {root / name: mark for name, mark in marks.items() if (root / name).is_dir()}
    for folder, mark in folders.items():
        paths = names.paths_below(folder)
        first = next(paths, None)
        if first is not None and not any(mark in path.name for path in (first, *paths)):
            return False
    return bool(folders)


def has_split(dataset: str, root: Path, split: str) -> bool:
    """Whether label maps of a split are there."""
    return any(source.folder.is_dir() for source in _source_folders(dataset, root, split)["label"])


def select(dataset: str, root: Path, split: str | None, kinds: Sequence[Kind]) -> FoundFiles:
    """Files of a split, paired; of all where split is None.

    Args:
        dataset: cityscapes, ade20k or coco_stuff.
        root: folder of the data set.
        split: train, val, test or another folder's name.
        kinds: files that every item must have, ``label`` among them.
    """
    faults: list[str] = []
    notes: list[str] = []
    files: dict[Kind, dict[str, Path]] = {kind: {} for kind in kinds}
    for kind in kinds:
        candidates = _source_folders(dataset, root, split)[kind]
        source = next((c for c in candidates if c.folder.is_dir()), None)
        if source is None:
            faults.append(_missing_folder(kind, candidates, dataset, root))
            continue
        suffixes = LABEL_SUFFIXES if kind in {"label", "instances"} else IMAGE_SUFFIXES
        there = [*names.files_below(source.folder)]
        lossy = [f.path for f in there if f.suffix in LOSSY_SUFFIXES - suffixes]
        below = [f.path for f in there if f.suffix in suffixes and source.holds(f.path)]
        if lossy:
            faults.append(pairing.lossy_fault(lossy, root))
        elif not below:
            others = [f.path for f in there if f.suffix in suffixes]
            faults.append(_no_files(kind, source, others, root))
        elif kind == "label":
            notes += _beside_note(source, there)
        named = [(source.name(path), path) for path in below]
        files[kind] = pairing.by_key(named, str, clean_key, faults)
    if all(files.values()):
        faults += pairing.pairing_faults(files, root)
    return FoundFiles(files, pairing.capped(faults), notes)


def ending(dataset: str, kind: Kind) -> str:
    """End of the names of a kind of file."""
    return _CITYSCAPES_ENDINGS[kind] if dataset == "cityscapes" else ""


@dataclass(frozen=True)
class _SourceFolder:
    """A folder that holds files of one kind; their stems end in ``ending``."""

    folder: Path
    ending: str = ""
    flat: bool = False  # file names are unique: folders are not part of the key

    def holds(self, path: Path) -> bool:
        # mmsegmentation writes its own variants beside the maps.
        return path.stem.endswith(self.ending) and not path.stem.endswith("TrainIds")

    def name(self, path: Path) -> str:
        name = path.name if self.flat else path.relative_to(self.folder).as_posix()
        return name.removesuffix(path.suffix).removesuffix(self.ending)


def _no_files(kind: Kind, source: _SourceFolder, others: Sequence[Path], root: Path) -> str:
    """Sentence about a folder without the files that belong there, and what is there instead."""
    suffixes = LABEL_SUFFIXES if kind in {"label", "instances"} else IMAGE_SUFFIXES
    instead = ""
    if others:
        instead = (
            f"; there {'is' if len(others) == 1 else 'are'} {count(len(others), 'other')} (first: "
            f"{relative(others[0], root)}); rename what is meant, or read it by the names of the "
            "folders: data.dataset: folder"
        )
    return (
        f"{relative(source.folder, root)}: no {NOUNS[kind]}s below it; expected files "
        f"*{source.ending}{{{','.join(sorted(suffixes))}}}{instead}"
    )


def _beside_note(source: _SourceFolder, there: Sequence[FoundFile]) -> list[str]:
    """What of the files beside Cityscapes' label maps is read by nobody."""
    start, _, _ = source.ending.rpartition("_")
    known = {source.ending, _CITYSCAPES_ENDINGS["instances"]}
    others = {
        start + file.stem.rpartition(start)[2]
        for file in there
        if start and start in file.stem and file.suffix in LABEL_SUFFIXES
    } - known
    if not others:
        return []
    listed = ", ".join(sorted(others)[:4])
    return [f"Label maps end in {source.ending}; files that end in {listed} are not read."]


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
    if dataset == "coco_stuff" and split in {"train", "val", "test"}:
        return (f"{split}2017",)
    if dataset == "ade20k":
        return ({"train": "training", "val": "validation"}.get(split, split),)
    return (split,)


def _missing_folder(
    kind: Kind, candidates: Sequence[_SourceFolder], dataset: str, root: Path
) -> str:
    expected = list(dict.fromkeys(f"{relative(c.folder, root)}/" for c in candidates))
    there = next(p for p in candidates[0].folder.parents if p.is_dir())  # root, at the latest
    names = [f"{p.name}/" for p in pairing.subfolders(there)]
    where = "there" if there == root else f"below {relative(there, root)}/"
    other = recognise(root)
    hint = f"; this looks like data.dataset: {other}" if other not in {dataset, None} else ""
    found = f"{where} are only {', '.join(names[:8])}" if names else f"{where} are no folders"
    return (
        f"no folder of {NOUNS[kind]}s: expected {' or '.join(expected)} below the data set's "
        f"folder; {found}{hint}"
    )
