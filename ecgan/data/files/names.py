"""Names of folders and files: which kind of map, which split, which key."""

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from ecgan.errors import UsageError, UserError
from ecgan.labels import SPLIT_FOLDERS
from ecgan.reading.places import refuse_whole_disk

Kind = Literal["image", "label", "instances", "edge"]

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # of photos
IMAGE_SUFFIXES = frozenset(IMAGE_ENDINGS)
LABEL_SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"})  # may be lossless
LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg"})
PACKED_SUFFIXES = frozenset({".zip", ".7z", ".rar"})
_ARRAY_SUFFIXES = frozenset({".npy", ".npz", ".mat", ".nii", ".gz", ".dcm"})
_PHOTO_SUFFIXES = frozenset({".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".nef", ".pdf"})
ANNOTATION_SUFFIXES = frozenset({".json", ".jsonl", ".xml", ".txt", ".csv", ".svg"})
# Files of other tools that a user may take for photos or label maps
OTHER_SUFFIXES = PACKED_SUFFIXES | _ARRAY_SUFFIXES | _PHOTO_SUFFIXES | ANNOTATION_SUFFIXES
NOUNS: Mapping[Kind, str] = {
    "image": "photo",
    "label": "label map",
    "instances": "instance map",
    "edge": "edge map",
}
_PAIR = {"image": 1, "label": 1}
MOST_ENTRIES = 5_000_000  # files and folders below one that is read; a walk of a minute or two
_SYSTEM_FOLDERS = {"__macosx", "@eadir", "$recycle.bin", "lost+found", "__pycache__"}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Lower case, without separators
_WORDS: Mapping[Kind, frozenset[str]] = {
    "image": _words(
        "images image imgs img jpegimages pngimages photos photo pictures picture pics pic rgb "
        "imgdir imagedir imagesdir leftimg8bit inputs input frames originals original orig"
    ),
    "label": _words(
        "labels label lbls lbl masks mask msks msk annotations annotation annots annot anns ann "
        "anndir annotationsdir labeldir labelsdir maskdir masksdir gt gts gtdir groundtruth "
        "groundtruths segmentationclass segmentationclasspng segmentationclassraw segmentation "
        "segmentations segs seg semantic semantics semanticmasks segmasks segmentationmasks "
        "classmasks masksmachine targets target labelmaps labelmap labelids gtfine "
        "semanticsegmentation semseg"
    ),
    "instances": _words(
        "instances instance insts inst segmentationobject segmentationobjectpng "
        "annotationsinstance instancemasks"
    ),
    "edge": _words("edges edge edgemaps"),
}
_LEFT_OUT = _words(
    "segmentationclassvisualization segmentationobjectvisualization visualization "
    "visualizations vis viz overlays overlay previews preview maskshuman colormaps colormap "
    "labelviz labelvis"
)
_ROLES: Mapping[str, Kind] = {word: kind for kind, words in _WORDS.items() for word in words}
_SPLITS: Mapping[str, str] = {
    word: split for split, words in SPLIT_FOLDERS.items() for word in words
}
_SPLIT_LIKE = re.compile(
    r"train|valid|(?:^|[^a-z])(?:val|dev|eval|tst)(?:[^a-z]|$)|test|fold|hold.?out"
)


class FoundFile(NamedTuple):
    """A file with the parts of its path below the data set's folder."""

    folders: tuple[str, ...]
    stem: str  # without endings
    path: Path

    @property
    def suffix(self) -> str:
        """Ending in lower case."""
        return self.path.suffix.lower()


@dataclass(frozen=True)
class Place:
    """What the folders of a file say about it.

    Attributes:
        kind: kind of file; None where no folder says.
        word: the folder's name that says so, in lower case and without separators.
        split: train, val or test; None where no folder says.
        rest: the other folders.
        is_left_out: it lies in a folder of pictures for people, not of maps.
    """

    kind: Kind | None
    word: str
    split: str | None
    rest: tuple[str, ...]
    is_left_out: bool = False


def remedy(suffix: str, kind: Kind) -> str:
    """What to do with files of another tool, where photos or label maps are missing."""
    if suffix in PACKED_SUFFIXES:
        return "not read: unpack them"
    if kind == "image":
        return "not read: save photos as JPEG or PNG"
    if suffix in ANNOTATION_SUFFIXES:
        return "no label maps: `ecgan data import` converts polygons and other annotations"
    return "no label maps: save class ids as PNG of 8 or 16 bits"


def place_of(folders: tuple[str, ...]) -> Place:
    """Kind and split that the names of folders say; the deepest word wins, the first split."""
    kind: Kind | None = None
    word, split, rest, left_out = "", None, [], False
    for folder in folders:
        own_kind, own_split, own_word = _parse(folder)
        left_out |= _plain(folder) in _LEFT_OUT
        if own_kind is None and (own_split is None or split is not None):
            rest.append(folder)
        if own_kind is not None:
            kind, word = own_kind, own_word
        if own_split is not None and split is None:
            split = own_split
    return Place(kind, word, split, tuple(rest), left_out)


def left_out(folders: tuple[str, ...]) -> str:
    """The folder of pictures for people among a file's folders."""
    return next(folder for folder in folders if _plain(folder) in _LEFT_OUT)


def split_of(name: str) -> str | None:
    """Split that a folder's or a list's name stands for: train, val, test or None."""
    return _SPLITS.get(re.sub(r"20\d\d$", "", _plain(name)))


def looks_like_split(name: str) -> bool:
    """Whether a folder's name looks like that of a split, though of none that is known."""
    return bool(_SPLIT_LIKE.search(name.lower()))


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk, links followed; in no circle, to no folder above this one, not into /proc, /sys.

    What leads there is a mistake or an attack: it would be the whole disk, or without end.

    Raises:
        UserError: it is the root of a file system, or holds more than :data:`MOST_ENTRIES`.
    """
    real, entries = refuse_whole_disk(folder), 0
    above = {_identity(parent) for parent in real.parents}
    kernels = {os.stat(place).st_dev for place in ("/proc", "/sys") if os.path.ismount(place)}  # noqa: PTH116
    seen: set[tuple[int, int]] = set()
    pending = [str(folder)]
    while pending:
        parent = pending.pop()
        folders: list[str] = []
        names: list[str] = []
        try:
            place = _identity(Path(parent))
            is_link = Path(parent).is_symlink() and parent != str(folder)
            if place[0] in kernels or (is_link and place in seen | above):
                continue
            seen.add(place)
            with os.scandir(parent) as found:
                for entries, entry in enumerate(found, entries + 1):  # noqa: B020  one count of all
                    if entries > MOST_ENTRIES:
                        raise UserError(
                            f"{folder}: more than {MOST_ENTRIES:,} files and folders below it (at "
                            f"{parent}); give the folder of the photos and label maps"
                        )
                    (folders if _is_folder(entry) else names).append(entry.name)
        except OSError:  # gone, or not ours to read
            continue
        yield parent, folders, names
        pending += [os.path.join(parent, name) for name in reversed(folders)]  # noqa: PTH118


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(folder: Path) -> tuple[int, int]:
    about = folder.stat()
    return about.st_dev, about.st_ino


def paths_below(folder: Path) -> Iterator[Path]:
    """Every file at any depth, in no order; links are followed as of :func:`walk`."""
    for parent, _, names in walk(folder):
        yield from (Path(parent, name) for name in names)


def files_below(folder: Path) -> Iterator[FoundFile]:
    """Image files and those of other tools at any depth, sorted.

    Links are followed as of :func:`walk`; hidden and system files are skipped.
    """
    found: list[FoundFile] = []
    for parent, folders, names in walk(folder):
        folders[:] = sorted(f for f in folders if not _is_hidden(f))
        below = tuple(Path(parent).relative_to(folder).parts)
        for name in names:
            stem, suffix = os.path.splitext(name)  # noqa: PTH122  half the time of a Path
            suffix = suffix.lower()
            if _is_hidden(name) or suffix not in IMAGE_SUFFIXES | LABEL_SUFFIXES | OTHER_SUFFIXES:
                continue
            found.append(FoundFile(below, stem, Path(parent, name)))
    return iter(sorted(found, key=lambda file: str(file.path)))


def photos_below(folder: Path, option: str) -> tuple[Path, ...]:
    """Photos at any depth below a folder that an option names, sorted.

    Raises:
        UsageError: no such folder, or no photos below it.
    """
    if not folder.is_dir():
        raise UsageError(f"{option} {folder}: no such folder")
    photos = tuple(file.path for file in files_below(folder) if file.suffix in IMAGE_SUFFIXES)
    if not photos:
        raise UsageError(f"{option} {folder}: no photos below it")
    return photos


def real_name(folders: tuple[str, ...], stem: str) -> str:
    """Name that files are paired by: the path in NFC, so that equal looks are equal names."""
    return unicodedata.normalize("NFC", "/".join((*folders, stem)))


def divide_by_names(
    pool: Sequence[tuple[FoundFile, Place]],
) -> tuple[list[tuple[FoundFile, Place]], list[tuple[FoundFile, Place]]] | None:
    """Photos and label maps of folders of one pair each: 01/img.png and 01/label.png."""
    found: dict[tuple[str, ...], dict[str | None, list[tuple[FoundFile, Place]]]] = {}
    for file, place in pool:
        own = place_of((file.stem,))
        if not file.folders or not (own.kind in {"image", "label"} or own.is_left_out):
            return None
        named = file._replace(folders=file.folders[:-1], stem=file.folders[-1])
        if not own.is_left_out:
            folder = found.setdefault(file.folders, {})
            folder.setdefault(own.kind, []).append((named, replace(place, rest=place.rest[:-1])))
    if not found or any({k: len(v) for k, v in f.items()} != _PAIR for f in found.values()):
        return None
    return [f["image"][0] for f in found.values()], [f["label"][0] for f in found.values()]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def _plain(name: str) -> str:
    return re.sub(r"[\s_.-]+", "", name.lower())


def _parse(folder: str) -> tuple[Kind | None, str | None, str]:
    """Kind, split and word of one folder's name: also of train_images, image_2 and trainannot."""
    plain = _plain(folder)
    if plain in _LEFT_OUT:
        return None, None, ""
    words = [plain, plain.rstrip("0123456789")]
    if (word := _first_role(words)) or (split := split_of(folder)) is None:
        return (_ROLES[word], None, word) if word else _parse_parts(folder)
    return None, split, ""


def _parse_parts(folder: str) -> tuple[Kind | None, str | None, str]:
    """The same of a name of several words."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", folder)
    tokens = [token for token in re.split(r"[\s_.-]+", spaced.lower()) if token]
    if not tokens:  # nothing but separators
        return None, None, ""
    if len(tokens) == 1:  # trainannot
        for start, meant in _SPLITS.items():
            rest = tokens[0].removeprefix(start)
            if rest != tokens[0] and rest in _ROLES:
                return _ROLES[rest], meant, rest
        return None, None, ""
    splits = [found for token in tokens if (found := split_of(token))]
    split = splits[0] if len(splits) == 1 else None
    word = _first_role(["".join(token for token in tokens if not split_of(token))])
    ends = [tokens[-1], "".join(tokens[-2:]), tokens[0], "".join(tokens[:2])]
    if not word and len({_ROLES[end] for end in ends if end in _ROLES}) == 1:
        word = _first_role(ends)  # Task1_Training_GroundTruth, but not semantic_rgb
    return (_ROLES[word], split, word) if word else (None, None, "")


def _first_role(words: list[str]) -> str:
    return next((word for word in words if word in _ROLES), "")
