"""Label maps with a class list of their own, read into the generator's ids by names of classes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ecgan.class_files import list_of_copy, list_of_labels, read_class_list
from ecgan.data import datasets
from ecgan.data.checks import LabelCheck
from ecgan.data.datasets import Item
from ecgan.data.files.images import sha256
from ecgan.data.files.pairing import capped, count
from ecgan.data.transforms import fit_nearest, middle_part
from ecgan.errors import UsageError, UserError
from ecgan.labels import LabelClass, LabelSpace
from ecgan.recipe import Recipe
from ecgan.runtime.timing import counted
from ecgan.shards.manifest import layout_digest
from ecgan.shards.records import count_classes

_READERS = 4  # threads
_STRETCH = 1.1  # change of an aspect ratio that is worth a word


@dataclass(frozen=True)
class OwnClasses:
    """Class list beside label maps, matched with the generator's.

    Attributes:
        path: its file.
        reading: gives the maps' values their meaning in the generator's ids; None where the
            generator's own list does.
        wide: the same with further ids for classes that the generator lacks.
        missing: names of those classes.
    """

    path: Path
    reading: LabelSpace | None
    wide: LabelSpace
    missing: tuple[str, ...]

    def in_ids_of(self, space: LabelSpace, check: LabelCheck) -> LabelCheck:
        """A check by :attr:`wide` in the generator's classes.

        Raises:
            UserError: the maps hold classes that the generator lacks.
        """
        maps = (check.counts[:, space.num_classes :] > 0).sum(axis=0).tolist()
        found = [
            f"{name} is in {count(number, 'label map')}"
            for name, number in zip(self.missing, maps, strict=True)
            if number
        ]
        if found:
            raise UserError(
                f"{self.path}: the generator does not have these classes, only "
                f"{', '.join(space.names)}; leave those label maps out, or write a classes.json "
                "beside them that gives their numbers to its classes or to ignore",
                capped(found),
            )
        return replace(check, counts=check.counts[:, : space.num_classes])


def refitted(check: LabelCheck, recipe: Recipe) -> str:
    """Sentence about label maps whose aspect ratio differs by more than a tenth; else empty.

    Args:
        check: check of the label maps, which has read their sizes.
        recipe: of the generator.
    """
    size, fit = (recipe.data.height, recipe.data.width), recipe.sampling.layout_fit
    wanted = size[1] / size[0]
    others: list[str] = []
    for item, content in zip(check.items, check.contents, strict=True):
        height, width = content.histogram.size
        if not 1 / _STRETCH <= width / height / wanted <= _STRETCH:
            others.append(f"{item.label}, {width} x {height}")
    if not others:
        return ""
    found = f"{count(len(others), 'label map')} of {len(check.items)}"
    done = f"the generator's {size[1]} x {size[0]} pixels (first: {others[0]})"
    if fit == "crop":
        return f"{found} cut to the middle part of the aspect ratio of {done}"
    if fit == "letterbox":
        return f"{found} set between unlabelled borders in {done}"
    return (
        f"{found} stretched to {done}; if they were not so in training, give "
        "--set sampling.layout_fit=crop, or letterbox for unlabelled borders"
    )


def fitted_counts(
    check: LabelCheck, items: Sequence[Item], reading: LabelSpace, recipe: Recipe
) -> npt.NDArray[np.int64]:
    """Pixels of each class in each layout at the generator's size, (L, N).

    Label maps that are cut or set between borders are read once more and counted as they are used;
    of the others it is their counts, scaled.

    Args:
        check: check of the label maps.
        items: the same maps, with their digests.
        reading: class list that they are read with, into the generator's ids.
        recipe: of the generator.

    Raises:
        UserError: a file has changed since the check.
    """
    size, fit = (recipe.data.height, recipe.data.width), recipe.sampling.layout_fit
    whole = check.counts.sum(axis=1, dtype=np.int64) + check.unlabelled
    counts = check.counts.astype(np.int64) * (size[0] * size[1]) // whole[:, None]
    sizes = [content.histogram.size for content in check.contents]
    others = [
        i for i, own in enumerate(sizes) if fit != "stretch" and own != middle_part(own, size)
    ]

    def count_used(index: int) -> tuple[int, ...]:
        label = datasets.read_label(items[index], reading, recipe.data.dataset)
        used = fit_nearest(label, size, fit, check.space.ignore_index)
        return count_classes(used, check.counts.shape[1])

    with ThreadPoolExecutor(_READERS) as readers:
        for index, used in zip(others, readers.map(count_used, others), strict=True):
            counts[index] = used
    return counts


def own_classes(folder: Path | None, recipe: Recipe, space: LabelSpace) -> OwnClasses | None:
    """Class list of a folder of label maps; None where they have none but the generator's.

    Args:
        folder: label maps; None: those of the recipe's data.
        recipe: of the generator.
        space: the generator's list.

    Raises:
        UserError: the list has faults, or two lists beside the label maps differ.
    """
    data = recipe.data
    if folder is None:
        return None
    folder = folder.absolute()
    if data.classes is not None and data.root is not None:
        root = Path(data.root).absolute()
        if folder.is_relative_to(root) and list_of_copy(root) is None:
            return None  # the recipe overrules what lies beside its own data
    path = list_of_labels(folder)
    if path is None:
        return None
    from_one = data.dataset == "ade20k" and space.file_ids is None
    return match_names(path, space, read_class_list(path), from_one=from_one)


def match_names(path: Path, space: LabelSpace, own: LabelSpace, *, from_one: bool) -> OwnClasses:
    """How label maps with a list of their own are read into another list's ids, by class names.

    Args:
        path: file of the list.
        space: list of the ids.
        own: list of the label maps.
        from_one: whether maps of ``space`` hold its ids plus one and 0 for unlabelled pixels.
    """
    ids = {name: index for index, name in enumerate(space.names)}
    missing = [name for name in own.names if name not in ids]
    wider = ids | {name: len(ids) + index for index, name in enumerate(missing)}
    given = {c.name: c.color for c in own.classes if c.has_color}
    extra = [LabelClass(wider[name], name, (0, 0, 0), has_color=False) for name in missing]
    classes = [
        replace(c, color=given.get(c.name, c.color), has_color=c.name in given) if given else c
        for c in (*space.classes, *extra)
    ]
    numbers = {
        number: wider[own.names[label]]
        for number, label in own.file_ids or [(c.id, c.id) for c in own.classes]
        if label < own.num_classes
    }
    ignored = [] if space.ignore is None else [*dict.fromkeys((*own.ignored, *space.ignored))]
    ignored = [number for number in ignored if number not in numbers]
    known = {number: label for number, label in numbers.items() if label < len(ids)}
    as_is = (
        known == _numbers_of(space, from_one=from_one)
        and ({*own.ignored} <= {*space.ignored, *([0] if from_one else [])} or not ignored)
        and all(c.has_color and given[c.name] == c.color for c in space.classes if c.name in given)
    )
    narrow = replace(space, classes=tuple(classes[: len(ids)]))
    wide = LabelSpace(tuple(classes))
    return OwnClasses(
        path,
        None if as_is else _reading(narrow, known, ignored),
        _reading(wide, numbers, ignored),
        tuple(missing),
    )


def _numbers_of(space: LabelSpace, *, from_one: bool) -> dict[int, int]:
    """Class of each number in label maps of a list."""
    pairs = space.file_ids or [(c.id + from_one, c.id) for c in space.classes]
    return {number: label for number, label in pairs if label < space.num_classes}


def _reading(space: LabelSpace, numbers: Mapping[int, int], ignored: Sequence[int]) -> LabelSpace:
    pairs = {**numbers, **dict.fromkeys(ignored[1:], space.ignore_index)}
    return replace(
        space, ignore=ignored[0] if ignored else None, file_ids=tuple(sorted(pairs.items()))
    )


def space_hash(space: LabelSpace) -> str:
    """SHA-256 of all that a list says, colours that nobody gave among it."""
    return hashlib.sha256(json.dumps(space.to_json(), sort_keys=True).encode()).hexdigest()


def with_photos(items: Sequence[Item], pairs: Sequence[Item]) -> list[Item]:
    """Layouts with their photos: those of pairs with equal label maps, by content.

    Args:
        items: label maps.
        pairs: pairs that the generator learnt from.

    Raises:
        UserError: label maps without such a pair.
    """
    photos = {sha256(pair.label): pair.image for pair in pairs}
    found = [replace(item, image=photos.get(sha256(item.label))) for item in items]
    alone = [item for item in found if item.image is None]
    if alone:
        raise UserError(
            f"--onto photos: {count(len(alone), 'label map')} of {len(items)} (first: "
            f"{alone[0].label}) {'is' if len(alone) == 1 else 'are'} not of the pairs that the "
            "generator learnt from, so that there is no photo to put anything into; give the label "
            "maps of those alone"
        )
    return found


def photos_digest(check: LabelCheck) -> str:
    """SHA-256 of the photos of layouts, in their order."""
    photos = (content.photo.digest for content in check.contents if content.photo is not None)
    return hashlib.sha256(b"".join(photos)).hexdigest()


def with_instances(items: Sequence[Item], dataset: str, folder: Path) -> list[Item]:
    """Layouts with the instance maps of a folder.

    Raises:
        UsageError: there is none of the same name.
    """
    found = datasets.index_labels(dataset, folder, "instances")
    maps = {item.key: item.label for item in found}
    missing = [item.key for item in items if item.key not in maps]
    if missing:
        raise UsageError(
            f"--instances {folder}: {counted(len(missing), 'label map')} without an instance map "
            f"of the same name (first: {missing[0]}); leave the option out to take boundaries "
            "between classes"
        )
    return [replace(item, instances=maps[item.key]) for item in items]


def layout_digests(check: LabelCheck) -> list[str]:
    """Digests of the layouts' files."""
    own = [bytes(row).hex() for row in check.digests]
    if check.instance_digests is None:
        return [layout_digest(label) for label in own]
    others = (bytes(row).hex() for row in check.instance_digests)
    return [layout_digest(*files) for files in zip(own, others, strict=True)]
