"""Label maps with a class list of their own, read into the generator's ids by names of classes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ecgan.class_files import list_of_copy, list_of_labels, read_class_list
from ecgan.data.checks import LabelCheck
from ecgan.data.files.pairing import capped, count
from ecgan.errors import UserError
from ecgan.labels import LabelClass, LabelSpace
from ecgan.recipe import Recipe

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


def stretched(check: LabelCheck, size: tuple[int, int]) -> str:
    """Sentence about label maps that change their aspect ratio by more than a tenth; else empty.

    Args:
        check: check of the label maps, which has read their sizes.
        size: height and width of the generator's samples.
    """
    wanted = size[1] / size[0]
    others: list[str] = []
    for item, content in zip(check.items, check.contents, strict=True):
        height, width = content.histogram.size
        if not 1 / _STRETCH <= width / height / wanted <= _STRETCH:
            others.append(f"{item.label}, {width} x {height}")
    if not others:
        return ""
    return (
        f"{count(len(others), 'label map')} of {len(check.items)} stretched to the generator's "
        f"{size[1]} x {size[0]} pixels (first: {others[0]}); cut them to this ratio beforehand if "
        "they were not so in training"
    )


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
