"""Check of label maps, photos, instance and edge maps before a run; all faults at once.

It decides how the files of the data set are read, all in one way
(:mod:`ecgan.data.files.encoding`).
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
import PIL

from ecgan import __version__
from ecgan.data import datasets, label_cache
from ecgan.data.datasets import Item
from ecgan.data.decode import Encoding, nearest_classes
from ecgan.data.files import images, label_maps
from ecgan.data.files.encoding import Value, Values, values_of
from ecgan.data.files.images import Readable
from ecgan.data.files.pairing import capped, count
from ecgan.data.files.photo_sets import Photos, Reading
from ecgan.data.label_cache import FileContent, LabelCache
from ecgan.errors import UserError
from ecgan.labels import LabelSpace
from ecgan.runtime.timing import Progress

NEAR = 1.0  # mean difference of the thumbnails of near-equal photos, in steps of 256
NEAR_CELL = 2  # largest difference of a cell: a thing that moved is another photo
_TASK = 16  # items that a thread takes: of small files, each costs less than handing it over
_Read = TypeVar("_Read")


class LabelCounts(NamedTuple):
    """Pixels of each class over a data set."""

    pixels: npt.NDArray[np.int64]  # (N,)
    unlabelled: int
    num_items: int


@dataclass(frozen=True, eq=False)
class LabelCheck:
    """What the files of L items hold, row by row in the order of the items.

    Attributes:
        items: the items, to be read as was decided for all of them.
        space: class list.
        contents: content of each item's files.
        counts: pixels of each of the N classes, (L, N).
        unlabelled: pixels without a class, (L,).
        notes: how the files are read, and what looks odd about them; a sentence each.
    """

    items: Sequence[Item]
    space: LabelSpace
    contents: Sequence[FileContent]
    counts: npt.NDArray[np.int64]
    unlabelled: npt.NDArray[np.int64]
    notes: Sequence[str]

    @property
    def reading(self) -> Reading:
        """How the files are read."""
        return self.items[0].reading if self.items else Reading()

    @cached_property
    def digests(self) -> npt.NDArray[np.uint8]:
        """SHA-256 of each label file, (L, 32)."""
        return _rows(content.digest for content in self.contents)

    @cached_property
    def instance_digests(self) -> npt.NDArray[np.uint8] | None:
        """SHA-256 of each instance map's file, (L, 32), zeros without one; None where none has."""
        if not any(item.instances for item in self.items):
            return None
        return _rows(content.instance_digest.ljust(32, b"\0") for content in self.contents)

    @property
    def totals(self) -> LabelCounts:
        """Sums over the items."""
        return LabelCounts(
            self.counts.sum(axis=0, dtype=np.int64),
            int(self.unlabelled.sum(dtype=np.int64)),
            len(self.counts),
        )

    def class_notes(self) -> list[str]:
        """Sentences on classes that training would never see."""
        totals, space = self.totals, self.space
        notes: list[str] = []
        absent = [space.names[i] for i in np.flatnonzero(totals.pixels == 0)]
        if absent and len(self.items):
            listed = ", ".join(absent[:8]) + (f" and {len(absent) - 8} more" if absent[8:] else "")
            of = count(len(self.items), "label map")
            notes.append(
                f"{'No pixel' if len(absent) == 1 else 'Without a pixel'} in {of}: {listed}; take "
                f"{'it' if len(absent) == 1 else 'them'} out of the class list, or see whether its "
                "ids or colours are those of the files."
            )
        whole = totals.unlabelled + int(totals.pixels.sum())
        if whole and totals.unlabelled > 0.5 * whole:
            notes.append(
                f"{100 * totals.unlabelled / whole:.0f} % of all pixels are unlabelled; if they "
                "are a class, such as background, give it an id in the class list."
            )
        return notes


def check_labels(
    items: Sequence[Item],
    space: LabelSpace,
    dataset: str,
    *,
    cache: LabelCache | None = None,
    check_images: bool = True,
    workers: int | None = None,
    progress: bool = False,
) -> LabelCheck:
    """Read every file once, decide how they are read, and report all faults together.

    Args:
        items: samples that a run is about to use.
        space: class list of the run.
        dataset: directory structure: folder, cityscapes, ade20k or coco_stuff.
        cache: results of earlier checks; files that have not changed since are not decoded again.
            The caller saves it.
        check_images: photos too: whole files, of the size of their label map.
        workers: threads; default: one for each CPU, at most eight.
        progress: show a bar.

    Returns:
        The items with their reading, pixels of each class and a digest for each.

    Raises:
        UserError: ids or colours that the class list lacks, label maps that can be read in two
            ways, files that cannot be read, maps of another size than their photo.
    """
    found = read_contents(
        items, cache=cache, check_images=check_images, workers=workers, progress=progress
    )
    values = tally(items, found, space, dataset)
    verdict = judge(items, found, values, is_whole=check_images)
    if verdict.faults:
        raise UserError(
            f"label check of {count(len(items), 'item')} failed", capped(verdict.faults)
        )
    return count_classes(items, found, space, dataset, verdict)


def count_classes(
    items: Sequence[Item],
    found: Sequence["Found"],
    space: LabelSpace,
    dataset: str,
    verdict: "Verdict",
) -> LabelCheck:
    """Pixels of each class, in the reading that was decided; without the items of unread files."""
    read = [(item, content) for item, (content, _) in zip(items, found, strict=True) if content]
    contents = [content for _, content in read]
    counts, unlabelled = _count_classes(contents, space, dataset, verdict.reading)
    own = datasets.with_reading([item for item, _ in read], verdict.reading)
    return LabelCheck(own, space, contents, counts, unlabelled, verdict.notes)


class Verdict(NamedTuple):
    """How the files of a data set are read, and what is wrong with them."""

    reading: Reading
    faults: list[str]
    notes: list[str]


def tally(
    items: Sequence[Item], found: Sequence["Found"], space: LabelSpace | None, dataset: str
) -> Values:
    """Values of the label maps that could be read.

    Args:
        items: samples of the data set.
        found: content and faults of the files of each.
        space: class list; None where there is none.
        dataset: directory structure.
    """
    values = Values(space, dataset)
    for item, (content, _) in zip(items, found, strict=True):
        if content is not None:
            values.add(item.label, content.histogram)
    return values


def judge(
    items: Sequence[Item], found: Sequence["Found"], values: Values, *, is_whole: bool = True
) -> Verdict:
    """Decide how the files of a data set are read.

    Args:
        items: samples of the data set.
        found: content and faults of the files of each.
        values: values of their label maps; without a class list these are only looked at.
        is_whole: the items are a whole data set, of which the values of label maps say more.
    """
    asked = items[0].reading if items else Reading()
    photos = Photos(asked)
    for item, (content, _) in zip(items, found, strict=True):
        if content is not None and content.photo is not None and item.image is not None:
            photos.add(item.image, content.photo, content.histogram.size)
    orientation, turned_faults, turned_notes = photos.orientation()
    levels, level_faults, level_notes = photos.levels()
    faults, notes, encoding = [], [], asked.encoding
    if values.space is not None and values.forms:
        encoding, faults, notes = values.decide(asked.encoding, is_whole=is_whole)
    reading = Reading(encoding, orientation, levels)
    sizes = _size_faults(items, found, reading)
    faults = [*faults, *turned_faults, *level_faults, *sizes, *_unreadable_faults(found)]
    return Verdict(reading, faults, [*notes, *turned_notes, *level_notes])


class Found(NamedTuple):
    """Content of one item's files, None where its label map cannot be read, and the faults."""

    content: FileContent | None
    faults: Sequence[tuple[Readable, str]]


def read_contents(
    items: Sequence[Item],
    *,
    cache: LabelCache | None = None,
    check_images: bool = True,
    workers: int | None = None,
    progress: bool = False,
) -> list[Found]:
    """Content of every item's files, in their order; arguments as of :func:`check_labels`."""
    context = repr((__version__, PIL.__version__)).encode()
    now = time.time_ns()

    def read(task: Sequence[Item]) -> list[tuple[str | None, Found]]:
        return [_read(item, cache, context, now, check_images=check_images) for item in task]

    tasks = [items[start : start + _TASK] for start in range(0, len(items), _TASK)]
    results: list[Found] = []
    with (
        ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool,
        closing(cast("Generator[list[tuple[str | None, Found]]]", pool.map(read, tasks))) as parts,
        Progress(len(items), "Checking labels", "file", show=progress) as bar,
    ):
        for part in parts:
            for key, found in part:
                results.append(found)
                if cache is not None and key is not None and found.content and not found.faults:
                    cache.add(key, found.content)
                bar.update()
    return results


def near_equal_note(
    photos: Sequence[images.PhotoFile | None], held_out: Sequence[bool]
) -> str | None:
    """Sentence on held-out photos that are on the other side too; None where there is none.

    Args:
        photos: photos of the items.
        held_out: whether each item is held out.
    """
    sides: tuple[list[images.PhotoFile], list[images.PhotoFile]] = [], []
    for photo, held in zip(photos, held_out, strict=True):
        if photo is not None:
            sides[held].append(photo)
    known = {photo.digest for photo in sides[0]}
    looks = _looks(sides[0])
    equal = near = 0
    for photo in sides[1]:
        if photo.digest in known:
            equal += 1
        elif len(looks):
            differences = np.abs(looks - _looks([photo]))
            is_near = (differences.mean(1) <= NEAR) & (differences.max(1) <= NEAR_CELL)
            near += bool(is_near.any())
    if not equal and not near:
        return None
    return (
        f"Of {count(sum(held_out), 'held-out photo')}, {equal} {'is' if equal == 1 else 'are'} "
        f"byte-equal and {near} near-equal to photos on the other side, as frames of a film are, "
        "so that scores flatter; divide by sequence: data.val_by: sequence, or folders train/ and "
        "val/."
    )


def _looks(photos: Sequence[images.PhotoFile]) -> npt.NDArray[np.int16]:
    """Thumbnails of photos, (photos, 64)."""
    whole = b"".join(photo.look for photo in photos)
    return np.frombuffer(whole, np.uint8).reshape(-1, 64).astype(np.int16)


def _rows(digests: "Generator[bytes] | Sequence[bytes]") -> npt.NDArray[np.uint8]:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def _count_classes(
    contents: Sequence[FileContent], space: LabelSpace, dataset: str, reading: Reading
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    counts = np.zeros((len(contents), space.num_classes), np.int64)
    unlabelled = np.zeros(len(contents), np.int64)
    values, meaning = Values(space, dataset), dict[Value, int]()
    assert reading.encoding is not None or not contents
    for row, content in enumerate(contents):
        unlabelled[row] = content.histogram.transparent
        own = [*values_of(content.histogram)]
        if reading.encoding == Encoding.NEAREST:
            new = [value for value in own if value not in meaning]
            labels, _ = nearest_classes(np.array([v.color for v in new], np.int32), space)
            meaning |= dict(zip(new, labels.tolist(), strict=True))
        for value, pixels in zip(own, content.histogram.pixels, strict=True):
            if value not in meaning:
                known = values.meaning(value, cast(Encoding, reading.encoding))
                meaning[value] = space.ignore_index if known is None else known
            label = meaning[value]
            if label < space.num_classes:
                counts[row, label] += pixels
            else:
                unlabelled[row] += pixels
    return counts, unlabelled


def _unreadable_faults(found: Sequence["Found"]) -> list[str]:
    """Faults of files that cannot be read, one line for each kind: equal but for numbers."""
    kinds: dict[str, list[tuple[Readable, str]]] = {}
    for _, faults in found:
        for path, fault in faults:
            kinds.setdefault(re.sub(r"\d+", "", fault), []).append((path, fault))
    return [
        f"{paths[0][0]}: {paths[0][1]}"
        if len(paths) == 1
        else f"{count(len(paths), 'file')} (first: {paths[0][0]}): {paths[0][1]}"
        for paths in kinds.values()
    ]


def _size_faults(items: Sequence[Item], found: Sequence[Found], reading: Reading) -> list[str]:
    """One line on label maps of another size than their photo or other maps."""
    lines: list[str] = []
    for item, (content, _) in zip(items, found, strict=True):
        if content is None:
            continue
        own, photo = content.histogram.size, content.photo
        sizes = {"instance map": content.instance_size, "edge map": content.edge_size}
        if photo is not None:
            turned = reading.orientation != "stored"
            name = "photo"
            if photo.orientation != 1:
                way = "turned" if turned else "as stored"
                name = f"photo ({way}, EXIF orientation {photo.orientation})"
            sizes = {name: photo.upright if turned else photo.stored, **sizes}
        other = [
            f"{name} {size[1]} x {size[0]}"
            for name, size in sizes.items()
            if size is not None and size != own
        ]
        if other:
            lines.append(f"{item.label}: label {own[1]} x {own[0]}, {', '.join(other)}")
    if not lines:
        return []
    return [
        f"{count(len(lines), 'label map')} not of the size of the photo or of other maps (first: "
        f"{lines[0]}); export them at the size of the photos, or scale them with nearest neighbour"
    ]


def _read(
    item: Item, cache: LabelCache | None, context: bytes, now: int, *, check_images: bool
) -> tuple[str | None, Found]:
    """Key and content of an item's files."""
    image = item.image if check_images else None
    others = {"image": image, "instances": item.instances, "edge": item.edge}
    files = [(role, path) for role, path in others.items() if path is not None]
    key = None
    if cache is not None:
        try:
            digest = hashlib.sha256(images.bytes_of(item.label)).digest()
            key = label_cache.key(digest, files, context, now)
        except (OSError, UserError):
            pass  # reading it says why
        if (known := cache.find(key)) is not None:
            return key, Found(known, ())
    faults: list[tuple[Readable, str]] = []

    def attempt(read: Callable[[Readable], _Read], path: Readable | None) -> _Read | None:
        try:
            return None if path is None else read(path)
        except UserError as error:
            assert path is not None
            faults.append((path, str(error).removeprefix(f"{path}: ")))
            return None

    label = attempt(label_maps.read_hashed, item.label)
    photo = attempt(images.probe_photo, image)
    instances = attempt(label_maps.read_hashed, item.instances)
    edge = attempt(images.probe_photo, item.edge)
    if label is None:
        return key, Found(None, faults)
    content = FileContent(
        label.digest,
        label_maps.histogram(label.raw),
        photo,
        instances.digest if instances else b"",
        instances.raw.size if instances else None,
        edge.stored if edge else None,
    )
    return key, Found(content, faults)
