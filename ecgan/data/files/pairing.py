"""Files of one name put together, and what is wrong with those that have no partner."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ecgan.data.files.images import Readable
from ecgan.data.files.names import LOSSY_SUFFIXES, NOUNS, Kind
from ecgan.errors import UserError

MAX_FAULTS = 20
_ALONE = " (photos without label maps teach too, from a folder of their own: data.unlabelled)"
_SEPARATORS = "_-. "
_BRUSH = re.compile(r"task-[0-9]+-annotation-[0-9]+-by-.*-tag-.*")
# Of several label files of one photo, the first that is there; the others are for people or tools
_PREFERRED = ("labelids", "labeltrainids", "label", "mask", "seg", "gt", "")
_NOT_LABELS = (
    "color",
    "colour",
    "instance",
    "vis",
    "overlay",
    "panoptic",
    "preview",
    "polygon",
    "viz",
)


@dataclass(frozen=True)
class FoundFiles:
    """Files of a split by key, and the faults met while they were paired.

    Attributes:
        files: by kind, then by key.
        faults: what forbids the use of the split.
        notes: what was decided by convention.
    """

    files: Mapping[Kind, Mapping[str, Readable]]
    faults: Sequence[str]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Renaming:
    """How the names of labels and photos become equal.

    Attributes:
        label: name of a label map to the common one; None: it is no label map.
        image: the same for photos.
        note: what was found; empty where names are equal as they are.
        suffix: that label maps have beyond the names of photos, where that is what was found.
    """

    label: Callable[[str], str | None]
    image: Callable[[str], str | None]
    note: str = ""
    suffix: str = ""


def find_renaming(
    labels: Collection[str], images: Collection[str], suffix: str | None = None
) -> Renaming:
    """The common suffix, prefix or case under which label maps have the names of photos.

    Args:
        labels: names of the label maps, with their folders.
        images: names of the photos.
        suffix: the user's own suffix of label maps.
    """
    if suffix is not None:
        return Renaming(lambda name: _without(name, suffix), _same)
    known = {*images}
    exact = sum(label in known for label in labels)
    if exact == len(labels) or not images:
        return Renaming(_same, _same)
    found = [
        renaming
        for renaming in (
            _by_label_suffix(labels, known),
            _by_both("suffix", labels, images),
            _by_both("prefix", labels, images),
            Renaming(str.casefold, str.casefold, "Names are paired whatever their case."),
            _by_file_names(labels, images),
            _by_numbers(labels, images),
        )
        if renaming is not None
    ]
    best = max(found, key=lambda r: _num_pairs(r, labels, images), default=None)
    if best is None or _num_pairs(best, labels, images) <= exact:
        if exact:  # variants beside the maps themselves are no label maps
            return Renaming(lambda name: _own_or_unpaired(name, known), _same)
        return Renaming(_same, _same)
    return best


def label_word(names: Collection[str]) -> str | None:
    """The end that label maps have where photos have another: 1_mask beside 1_sat; None if none."""
    ends: dict[str, set[str]] = {}
    for name in names:
        at = max(name.rfind(separator) for separator in _SEPARATORS)
        if at > 0:
            ends.setdefault(name[at:], set()).add(name[:at])
    words = [end for end in ends if any(word in end.lower() for word in _PREFERRED[:-1])]
    if len(ends) != 2 or len(words) != 1 or len({*map(frozenset, ends.values())}) != 1:
        return None
    return words[0]


def by_key(
    named: Sequence[tuple[str, Path]],
    rename: Callable[[str], str | None],
    clean: Callable[[str], str],
    faults: list[str],
) -> dict[str, Path]:
    """Files by key; two of one key are a fault, and all such pairs one line."""
    keyed: dict[str, Path] = {}
    collisions: list[tuple[Path, Path, str]] = []
    for name, path in named:
        renamed = rename(name)
        if renamed is None:
            continue
        key = clean(renamed)
        first = keyed.setdefault(key, path)
        if first is not path:
            collisions.append((first, path, key))
    if collisions:
        faults.append(_collision_fault(collisions))
    return keyed


def _collision_fault(collisions: Sequence[tuple[Path, Path, str]]) -> str:
    one, other, key = collisions[0]
    lossy = [path.suffix.lower() in LOSSY_SUFFIXES for path in (one, other)]
    is_pair = one.parent == other.parent and lossy[0] != lossy[1]
    what, alone, remedy = "key", f"share the key {key!r}", "rename one of them"
    if is_pair:
        what, alone = "name", "have one name"
        remedy = (
            "remove one, or, if it is the label map of the other, put photos and label maps into "
            "two folders, images/ and labels/"
        )
    both = f"{one} and {other}"
    if len(collisions) == 1:
        return f"{both} {alone}; {remedy}"
    return f"{len(collisions)} files have the {what} of another (first: {both}); {remedy}"


def pairing_faults(files: Mapping[Kind, Mapping[str, Path]], root: Path) -> list[str]:
    """Faults of files without their partner; superfluous instance and edge maps do no harm."""
    labels = files["label"]
    if several := _several_fault(labels, files.get("image", {}), root):
        return [several]
    faults: list[str] = []
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


def brush_fault(files: Sequence[Path], root: Path) -> str:
    """Sentence about Label Studio's brush export; empty without its files.

    They hold the number of a task and a class, and nothing that names the photo.
    """
    own = [path for path in files if _BRUSH.fullmatch(path.stem)]
    if not own:
        return ""
    return (
        f"{count(len(own), 'file')} of Label Studio's brush export (first: "
        f"{relative(own[0], root)}): one for each class of a task, and none names its photo; "
        "export the project as JSON and convert that with `ecgan data import`"
    )


def lossy_fault(files: Sequence[Path], root: Path) -> str:
    """Sentence about label maps of a format that changes ids."""
    return (
        f"{count(len(files), 'label map')} in a format that changes ids (first: "
        f"{relative(files[0], root)}); save label maps as PNG"
    )


def check_root(root: Path) -> None:
    """Raise UserError where ``root`` is not a folder, with the nearest name that is."""
    if root.is_dir():
        return
    if root.exists():
        raise UserError(f"{root}: not a folder; give the data set's folder")
    siblings = [p.name for p in subfolders(root.parent)]
    close = difflib.get_close_matches(root.name, siblings, n=1)
    hint = f" (did you mean {root.parent / close[0]}?)" if close else ""
    raise UserError(f"{root}: no such folder{hint}; give the data set's folder")


def subfolders(folder: Path) -> list[Path]:
    """Folders below a folder, without hidden ones, sorted."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def relative(path: Path, root: Path) -> str:
    """Path below the data set's folder."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def count(number: int, noun: str, nouns: str = "") -> str:
    """Number with its noun: 1 file, 2 files; ``nouns`` where the plural takes more than an s."""
    return f"1 {noun}" if number == 1 else f"{number} {nouns or f'{noun}s'}"


def capped(faults: Sequence[str]) -> list[str]:
    """First ``MAX_FAULTS`` faults and the number of further ones."""
    if len(faults) <= MAX_FAULTS:
        return list(faults)
    return [*faults[:MAX_FAULTS], f"and {len(faults) - MAX_FAULTS} more"]


def _unpaired_fault(kind: Kind, missing: Kind, paths: Sequence[Path], root: Path) -> str:
    return (
        f"{count(len(paths), NOUNS[kind])} {'has' if len(paths) == 1 else 'have'} no "
        f"{NOUNS[missing]} of the same name (first: {relative(paths[0], root)}); add what is "
        f"missing, or remove them{_ALONE if kind == 'image' else ''}"
    )


def _several_fault(labels: Mapping[str, Path], photos: Mapping[str, Path], root: Path) -> str:
    """Sentence about several label maps with the file name of one photo; empty without them."""
    alone = {key: path for key, path in labels.items() if key not in photos}
    maps: dict[str, list[Path]] = {}
    for path in alone.values():
        maps.setdefault(path.stem, []).append(path)
    stems = Counter(path.stem for path in photos.values())
    for photo in (path for key, path in photos.items() if key not in labels):
        if stems[photo.stem] == 1 and len(own := maps.get(photo.stem, [])) > 1:
            listed = " and ".join(relative(path, root) for path in own[:2])
            return (
                f"{count(len(alone), 'label map')} for {count(len(photos), 'photo')} (first: "
                f"{listed} for {relative(photo, root)}); name the folder that is meant with "
                "data.labels, or join maps of one class each into one label map for a photo"
            )
    return ""


def _same(name: str) -> str:
    return name


def _without(name: str, suffix: str) -> str | None:
    return name.removesuffix(suffix) if name.endswith(suffix) and name != suffix else None


def _own_or_unpaired(name: str, known: Collection[str]) -> str | None:
    """The name, unless it is a variant of a map that is there: a_color beside a."""
    return None if name not in known and base_name(name, known) is not None else name


def _num_pairs(renaming: Renaming, labels: Collection[str], images: Collection[str]) -> int:
    """Pairs after a renaming; none where two files would get one name."""
    own = [new for label in labels if (new := renaming.label(label)) is not None]
    others = [new for image in images if (new := renaming.image(image)) is not None]
    if len({*own}) < len(own) or len({*others}) < len(others):
        return 0
    return len({*own} & {*others})


def base_name(label: str, images: Collection[str]) -> str | None:
    """Longest photo name that a label's begins with; what follows does not begin with a digit."""
    folder_end = label.rfind("/") + 1
    for end in range(len(label) - 1, folder_end, -1):
        if label[:end] in images and not (label[end].isdigit() and label[end - 1].isdigit()):
            return label[:end]
    return None


def _by_label_suffix(labels: Collection[str], images: set[str]) -> Renaming | None:
    """The suffix that label maps have beyond the names of photos."""
    suffixes = Counter(label[len(base) :] for label in labels if (base := base_name(label, images)))
    chosen = best_suffix(suffixes)
    if chosen is None:
        return None
    others = sorted({*suffixes} - {chosen})
    note = f"Label maps end in {chosen}"
    if others:
        note += f"; files that end in {', '.join(others[:4])} are not read"
    return Renaming(lambda name: _without(name, chosen), _same, f"{note}.", chosen)


def best_suffix(suffixes: Counter[str]) -> str | None:
    """Of the suffixes that most files have, the one of label maps; None where none may be."""
    most = max(suffixes.values(), default=0)
    full = [
        suffix
        for suffix, number in suffixes.items()
        if number >= 0.9 * most and not any(word in suffix.lower() for word in _NOT_LABELS)
    ]

    def rank(suffix: str) -> int:
        plain = suffix.lower().replace("_", "").replace("-", "")
        return next(i for i, word in enumerate(_PREFERRED) if word in plain)

    return min(full, key=lambda suffix: (rank(suffix), suffix), default=None)


def _by_numbers(labels: Collection[str], images: Collection[str]) -> Renaming | None:
    """Numbers with and without leading zeros, 007 and 7; label maps get the names of photos.

    Every label map must have its photo: others may be counted from another number.
    """
    plain = {_without_zeros(name): name for name in images}
    own = [_without_zeros(name) for name in labels]
    if len(plain) < len(images) or (own == [*labels] and [*plain] == [*images]):
        return None
    inner = find_renaming(own, plain)
    photos = {inner.image(short): name for short, name in plain.items()}

    def rename(name: str) -> str | None:
        short = inner.label(_without_zeros(name))
        return None if short is None else photos.get(short, name)

    if not {*map(rename, labels)} - {None} <= {*images}:
        return None
    note = "Names are paired whatever the zeros before their numbers, such as 007 and 7."
    return Renaming(rename, _same, f"{note} {inner.note}".strip())


def _without_zeros(name: str) -> str:
    return re.sub(r"(?<![0-9])(?<![0-9]\.)0+(?=[0-9])", "", name)


def _by_file_names(labels: Collection[str], images: Collection[str]) -> Renaming | None:
    """Names without folders, where photos and label maps lie in folders of other names."""
    if not any("/" in name for name in (*labels, *images)):
        return None
    inner = find_renaming([_file_name(n) for n in labels], [_file_name(n) for n in images])

    def own(name: str) -> str | None:
        return inner.label(_file_name(name))

    def other(name: str) -> str | None:
        return inner.image(_file_name(name))

    note = "Photos and label maps are paired by their file names alone, whatever their folders."
    return Renaming(own, other, f"{note} {inner.note}".strip())


def _file_name(name: str) -> str:
    return name.rpartition("/")[2]


def _by_both(where: str, labels: Collection[str], images: Collection[str]) -> Renaming | None:
    """A word that all label maps, and another that all photos begin or end with."""
    own, other = (_common_word(where, names) for names in (labels, images))
    if not own and not other:
        return None
    verb = "end in" if where == "suffix" else "begin with"
    return Renaming(
        lambda name: _cut(where, name, own),
        lambda name: _cut(where, name, other),
        f"Label maps {verb} {own or 'nothing more'}, photos {verb} {other or 'nothing more'}.",
    )


def _common_word(where: str, names: Collection[str]) -> str:
    """Longest common beginning or end of all file names that is a word: letters, a separator."""
    stems = [name.rpartition("/")[2] for name in names]
    if len(stems) < 2:
        return ""
    shortest, longest = min(stems), max(stems)
    if where == "suffix":
        shortest, longest = min(s[::-1] for s in stems)[::-1], max(s[::-1] for s in stems)[::-1]
        size = next(
            (
                i
                for i, (a, b) in enumerate(zip(shortest[::-1], longest[::-1], strict=False))
                if a != b
            ),
            min(len(shortest), len(longest)),
        )
        common = shortest[len(shortest) - size :]
        start = min((i for sep in _SEPARATORS if (i := common.find(sep)) >= 0), default=None)
        word = "" if start is None else common[start:]
    else:
        size = next(
            (i for i, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b),
            min(len(shortest), len(longest)),
        )
        common = shortest[:size]
        end = max(common.rfind(sep) for sep in _SEPARATORS)
        word = common[: end + 1]
    return word if any(c.isalpha() for c in word) else ""


def _cut(where: str, name: str, word: str) -> str:
    folder, slash, stem = name.rpartition("/")
    cut = stem.removesuffix(word) if where == "suffix" else stem.removeprefix(word)
    return f"{folder}{slash}{cut}"
