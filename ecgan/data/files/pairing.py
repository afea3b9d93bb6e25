"""Files of one name put together, and what is wrong with those that have no partner."""

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ecgan.data.files.images import Readable
from ecgan.data.files.names import LOSSY_SUFFIXES, NOUNS, Kind
from ecgan.errors import UserError

MAX_FAULTS = 20
_SEPARATORS = "_-. "
# Of several label files of one photo, the first that is there; the others are for people or tools
_PREFERRED = ("labelids", "labeltrainids", "label", "mask", "seg", "gt", "")
_NOT_LABELS = ("color", "colour", "instance", "vis", "overlay", "panoptic", "preview", "polygon")


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
    """

    label: Callable[[str], str | None]
    image: Callable[[str], str | None]
    note: str = ""


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
    """Files by key; two of one key are a fault."""
    keyed: dict[str, Path] = {}
    for name, path in named:
        renamed = rename(name)
        if renamed is None:
            continue
        key = clean(renamed)
        if key in keyed:
            if (path.suffix.lower() in LOSSY_SUFFIXES) != (
                keyed[key].suffix.lower() in LOSSY_SUFFIXES
            ) and path.parent == keyed[key].parent:
                faults.append(
                    f"{keyed[key]} and {path} have one name; if one is the label map of the other, "
                    "put photos and label maps into two folders, images/ and labels/"
                )
            else:
                faults.append(f"{keyed[key]} and {path} share the key {key!r}; rename one of them")
        keyed.setdefault(key, path)
    return keyed


def pairing_faults(files: Mapping[Kind, Mapping[str, Path]], root: Path) -> list[str]:
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


def count(number: int, noun: str) -> str:
    """Number with its noun: 1 file, 2 files."""
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


def capped(faults: Sequence[str]) -> list[str]:
    """First ``MAX_FAULTS`` faults and the number of further ones."""
    if len(faults) <= MAX_FAULTS:
        return list(faults)
    return [*faults[:MAX_FAULTS], f"and {len(faults) - MAX_FAULTS} more"]


def _unpaired_fault(kind: Kind, missing: Kind, paths: Sequence[Path], root: Path) -> str:
    return (
        f"{count(len(paths), NOUNS[kind])} {'has' if len(paths) == 1 else 'have'} no "
        f"{NOUNS[missing]} of the same name (first: {relative(paths[0], root)}); add what is "
        "missing, or remove them"
    )


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
    if not suffixes:
        return None
    most = suffixes.most_common(1)[0][1]
    full = [
        suffix
        for suffix, number in suffixes.items()
        if number >= 0.9 * most and not any(word in suffix.lower() for word in _NOT_LABELS)
    ]
    if not full:
        return None

    def rank(suffix: str) -> int:
        plain = suffix.lower().replace("_", "").replace("-", "")
        return next(i for i, word in enumerate(_PREFERRED) if word in plain)

    chosen = min(full, key=lambda suffix: (rank(suffix), suffix))
    others = sorted({*suffixes} - {chosen})
    note = f"Label maps end in {chosen}"
    if others:
        note += f"; files that end in {', '.join(others[:4])} are not read"
    return Renaming(lambda name: _without(name, chosen), _same, f"{note}.")


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
