"""Check of label maps, photos, instance and edge maps before a run; all faults at once."""

import os
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
import PIL
from tqdm import tqdm

from ecgan import __version__
from ecgan.data import datasets, decode, label_cache
from ecgan.data.datasets import Item
from ecgan.data.label_cache import LabelCache, LabelContent
from ecgan.errors import UserError
from ecgan.labels import LabelSpace

_TASK = 16  # items that a thread takes: of small files, each costs less than handing it over
_Read = TypeVar("_Read")


class LabelCounts(NamedTuple):
    """Pixels of each class over a data set."""

    pixels: npt.NDArray[np.int64]  # (N,)
    unlabelled: int
    num_items: int


@dataclass(frozen=True, eq=False)
class LabelCheck:
    """Class pixels and file digests of L items, row by row in the order of the items.

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
    """Read every file once and report all faults together, before anything is computed.

    Args:
        items: samples that a run is about to use.
        space: class list of the run.
        dataset: directory structure: folder, cityscapes, ade20k or coco_stuff.
        cache: results of earlier checks; files that have not changed since are not read again. The
            caller saves it.
        check_images: photos too: whole files, of the size of their label map.
        workers: threads; default: one for each CPU, at most eight.
        progress: show a bar.

    Returns:
        Pixels of each class and a digest, for each item.

    Raises:
        UserError: ids or colours that the class list lacks, files that cannot be read, maps of
            another size than their photo.
    """
    check, faults = _empty_check(items, space), _Faults(space, dataset)
    meaning = [(c.color, c.has_color) for c in space.classes], space.ignore, space.file_ids
    context = repr((__version__, PIL.__version__, meaning, dataset)).encode()
    now = time.time_ns()
    keys = [label_cache.key(_files(i, check_images=check_images), context, now) for i in items]
    known = [None if cache is None else cache.find(key) for key in keys]
    unread = [item for item, content in zip(items, known, strict=True) if content is None]
    tasks = [unread[start : start + _TASK] for start in range(0, len(unread), _TASK)]

    def read(task: Sequence[Item]) -> list["_Finding"]:
        return [_read(item, space, dataset, check_images=check_images) for item in task]

    with (
        ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool,
        closing(cast("Generator[list[_Finding]]", pool.map(read, tasks))) as found,
        tqdm(
            total=len(items), desc="Checking labels", unit="file", disable=not progress or None
        ) as bar,
    ):
        findings = chain.from_iterable(found)
        for row, (item, key, content) in enumerate(zip(items, keys, known, strict=True)):
            finding = next(findings) if content is None else _Finding(content)
            faults.add(item, finding)
            _fill_row(check, row, finding.content)
            if cache is not None and key is not None and finding.is_clean:
                cache.add(key, finding.content)
            bar.update()
    lines = faults.lines()
    if lines:
        raise UserError(f"label check of {len(items)} items failed", lines)
    return check


class _Finding(NamedTuple):
    """Content and faults of one item's files."""

    content: LabelContent = LabelContent()
    unknown: Sequence[int] = ()
    colors: bool = False
    other_size: str = ""
    unreadable: Sequence[str] = ()

    @property
    def is_clean(self) -> bool:
        return not (self.unknown or self.other_size or self.unreadable)


def _empty_check(items: Sequence[Item], space: LabelSpace) -> LabelCheck:
    num, has_instances = len(items), any(item.instances is not None for item in items)
    return LabelCheck(
        np.zeros((num, space.num_classes), np.int32),
        np.zeros(num, np.int32),
        np.zeros((num, 32), np.uint8),
        np.zeros((num, 32), np.uint8) if has_instances else None,
    )


def _fill_row(check: LabelCheck, row: int, content: LabelContent) -> None:
    for label, pixels in zip(content.labels, content.pixels, strict=True):
        if label < check.counts.shape[1]:
            check.counts[row, label] = pixels
        else:
            check.unlabelled[row] = pixels
    if content.digest:
        check.digests[row] = np.frombuffer(content.digest, np.uint8)
    if content.instance_digest and check.instance_digests is not None:
        check.instance_digests[row] = np.frombuffer(content.instance_digest, np.uint8)


def _files(item: Item, *, check_images: bool) -> list[tuple[str, Path]]:
    """Role and path of each file that a check reads."""
    image = item.image if check_images else None
    files = {"label": item.label, "image": image, "instances": item.instances, "edge": item.edge}
    return [(kind, path) for kind, path in files.items() if path is not None]


def _read(item: Item, space: LabelSpace, dataset: str, *, check_images: bool) -> _Finding:
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
    content = LabelContent(
        digest,
        instances.digest if instances else b"",
        labels.tolist(),
        pixels[labels].tolist(),
        _meaningful_palette(raw, space) if not decoded.colors else {},
    )
    return _Finding(
        content,
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
    """Faults of all files, one line for each kind of fault rather than for each file."""

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
        for number, color in finding.content.palette.items():
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
                f"{datasets.count(len(self.other_size), 'label map')} not of the size of the photo "
                f"or of other maps (first: {self.other_size[0]})"
            )
        return datasets.capped(lines + self.unreadable)

    def _unknown_line(self, colors: bool, value: int) -> str:
        files = self.unknown[colors, value]
        found = f"found in {datasets.count(len(files), 'file')} (first: {files[0]})"
        if not colors:
            line = f"label {value} {found}, the class list has "
            line += decode.accepted_ids(self.space, self.dataset)
            single = self.dataset == "folder" and sum(not key[0] for key in self.unknown) == 1
            hint = "; if it marks unlabelled pixels, set it as ignore of the class list"
            return line + hint if single else line
        return f"{decode.unknown_fault(value, self.space, self.dataset, colors=True)}; {found}"
