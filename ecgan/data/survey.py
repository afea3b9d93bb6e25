"""Survey of a folder of photos and label maps.

Nothing is refused here: the faults that a training refuses are part of the report.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import numpy.typing as npt

from ecgan import labels
from ecgan.class_files import find_class_list, read_class_list
from ecgan.data import checks, datasets
from ecgan.data.checks import Found
from ecgan.data.datasets import DataFolder, Item
from ecgan.data.decode import BY_COLOR, Encoding, color_text
from ecgan.data.files import images, label_maps
from ecgan.data.files.encoding import Value, Values
from ecgan.data.files.label_maps import Form
from ecgan.data.files.layout import Options
from ecgan.data.files.names import Kind
from ecgan.data.files.pairing import capped, count
from ecgan.data.files.photo_sets import Reading
from ecgan.data.proposals import proposal_notes, propose_classes
from ecgan.errors import UserError
from ecgan.labels import LabelSpace

_TEXT_LINES = 200
_LOOKED_AT = 20  # turned photos
_TEXT_UNKNOWN = 8  # values without a meaning
_UNKNOWN = "not in the class list"


@dataclass(frozen=True)
class SplitReport:
    """Files of one split."""

    name: str | None  # None where labels are not divided
    num_pairs: int
    num_photos: int
    num_labels: int
    faults: Sequence[str]


class ClassReport(NamedTuple):
    """Pixels of a class, of unlabelled pixels, or of a value that has no meaning."""

    value: str
    name: str
    pixels: int
    files: int


@dataclass
class DatasetSurvey:
    """Files, sizes and label values of a data set.

    Attributes:
        folder: the data set's folder.
        splits: files of each split.
        space: the class list that comes with the data; None where there is none, or a faulty one.
        has_instances: whether every label map has an instance map.
        has_edges: whether every label map has an edge map.
        faults: what a training would refuse, but for those of splits.
        notes: how the files are read, and what looks odd about them.
        list_fault: what is wrong with the class list, in whose place none is proposed then.
        values: values of the label maps.
        reading: how the files are read.
        num_read: pairs whose files were opened.
        photo_sizes: (height, width) -> photos.
        photo_modes: Pillow's mode -> photos.
        label_modes: Pillow's mode -> label maps.
    """

    folder: DataFolder
    splits: Sequence[SplitReport]
    space: LabelSpace | None
    has_instances: bool
    has_edges: bool
    faults: list[str]
    notes: list[str]
    values: Values
    reading: Reading = field(default_factory=Reading)
    list_fault: str = ""
    num_read: int = 0
    photo_sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    photo_modes: Counter[str] = field(default_factory=Counter)
    label_modes: Counter[str] = field(default_factory=Counter)

    @property
    def root(self) -> Path:
        return self.folder.root

    @property
    def dataset(self) -> str:
        return self.folder.dataset

    @property
    def num_pairs(self) -> int:
        return sum(split.num_pairs for split in self.splits)

    @property
    def common_size(self) -> tuple[int, int] | None:
        """Height and width that most photos have."""
        return max(self.photo_sizes, key=lambda s: self.photo_sizes[s], default=None)

    @property
    def all_faults(self) -> list[str]:
        """Every fault that a training would refuse, those of splits first."""
        own = [
            f"{split.name}: {fault}" if split.name else fault
            for split in self.splits
            for fault in split.faults
        ]
        return [*own, *([self.list_fault] if self.list_fault else []), *self.faults]

    @property
    def classes(self) -> list[ClassReport]:
        """Classes in the order of the list, then unlabelled pixels, then values of no meaning."""
        space, encoding = self.values.space, self.reading.encoding
        found: dict[int | Value, ClassReport] = {}
        if space is not None and encoding is not None:
            found = {i: ClassReport(str(i), name, 0, 0) for i, name in enumerate(space.names)}
        unknown: list[ClassReport] = []
        for value, tally in self.values.tallies.items():
            label = None
            if space is not None and encoding is not None:
                label = self.values.meaning(value, encoding)
            shown = color_text(value.color) if encoding in BY_COLOR else str(value)
            if label is None:
                unknown.append(ClassReport(shown, "", tally.pixels, tally.files))
                continue
            assert space is not None
            name = "unlabelled" if label == space.ignore_index else space.names[label]
            old = found.get(label, ClassReport("", name, 0, 0))
            spelled = f"{old.value}, {shown}" if old.pixels else shown
            files = max(old.files, tally.files)
            found[label] = ClassReport(spelled, name, old.pixels + tally.pixels, files)
        if self.values.transparent:
            found[-1] = ClassReport("transparent", "unlabelled", self.values.transparent, 0)
        if space is not None:
            unknown = [one._replace(name=_UNKNOWN) for one in unknown]
        return [*found.values(), *sorted(unknown, key=lambda one: -one.pixels)]

    def to_json(self) -> dict[str, Any]:
        """Survey as plain values."""
        whole = max(1, self.values.total)
        return {
            "root": str(self.root),
            "dataset": self.dataset,
            "splits": [
                {
                    "name": split.name,
                    "pairs": split.num_pairs,
                    "photos": split.num_photos,
                    "label_maps": split.num_labels,
                    "faults": split.faults,
                }
                for split in self.splits
            ],
            "read": self.num_read,
            "photo_sizes": [
                {"height": height, "width": width, "photos": count}
                for (height, width), count in self.photo_sizes.most_common()
            ],
            "photo_modes": dict(self.photo_modes.most_common()),
            "label_modes": dict(self.label_modes.most_common()),
            "label_encoding": self.reading.encoding,
            "orientation": self.reading.orientation,
            "photo_levels": self.reading.levels,
            "values": [
                {"value": c.value, "name": c.name, "share": c.pixels / whole, "files": c.files}
                for c in self.classes
            ],
            "instances": self.has_instances,
            "edges": self.has_edges,
            "classes": None if self.space is None else self.space.to_json(),
            "notes": self.notes,
            "faults": self.all_faults,
        }

    def to_text(self) -> str:
        """Survey as text for people; faults are the last of it."""
        lines = [f"{self.root}: structure {self.dataset}, {count(self.num_pairs, 'pair')}", ""]
        lines += [
            f"  {split.name or 'not divided':<12}{split.num_pairs:>7} "
            f"{'pair ' if split.num_pairs == 1 else 'pairs'}  "
            f"({count(split.num_photos, 'photo')}, {count(split.num_labels, 'label map')})"
            for split in self.splits
        ]
        extras = [("instance maps", self.has_instances), ("edge maps", self.has_edges)]
        lines += [f"  with {name}" for name, there in extras if there]
        if self.num_read < self.num_pairs:
            lines += ["", f"From {count(self.num_read, 'pair')}, spread evenly:"]
        sizes = [f"{w} x {h} ({n})" for (h, w), n in self.photo_sizes.most_common()]
        sizes[5:] = [f"and {count(len(sizes) - 5, 'other size')}"] * (len(sizes) > 5)
        shown = ", ".join(sizes) or "none could be read"
        lines += ["", f"Photos      {shown}", f"            {_modes(self.photo_modes)}"]
        lines += [f"Label maps  {_modes(self.label_modes)}", f"            {self._kind()}", ""]
        whole, found = max(1, self.values.total), self.classes
        known = sum(one.name != _UNKNOWN for one in found)
        found = [*found[:known], *found[known : known + _TEXT_UNKNOWN]]
        for one in found[:_TEXT_LINES]:
            files = f"in {one.files:>5} file{'s' * (one.files != 1)}" if one.files else ""
            share = 100 * one.pixels / whole
            lines.append(f"  {one.value:<16}{share:>6.2f} %  {files}  {one.name}".rstrip())
        if (more := len(self.classes) - len(found[:_TEXT_LINES])) > 0:
            lines.append(f"  and {more} more")
        if self.notes:
            lines += ["", "Notes:", *[f"  {note}" for note in self.notes]]
        return "\n".join(lines) + "\n"

    def faults_text(self) -> str:
        """Faults as text for people; empty without one."""
        if not self.all_faults:
            return ""
        lines = [f"  {fault}" for fault in capped(self.all_faults)]
        return "\n".join(["Faults to fix before training:", *lines]) + "\n"

    def _kind(self) -> str:
        if not self.label_modes:
            return "none could be read"
        encoding = self.reading.encoding
        if encoding is None:
            return "not yet read: the class list " + (
                "has a fault" if self.list_fault else "is missing"
            )
        text = _KINDS[encoding]
        if Form.PALETTE in self.values.forms:
            way = "indices" if encoding == Encoding.INDEX else "colours"
            text += f" (palette images, read by their {way})"
        return f"{text}: data.label_encoding {encoding.value}"


_KINDS: Mapping[Encoding, str] = {
    Encoding.INDEX: "class ids",
    Encoding.COLOR: "colours of the class list",
    Encoding.GRAY: "class ids as greys",
    Encoding.NEAREST: "nearest colours of the class list",
}


def survey_dataset(
    root: Path,
    *,
    dataset: str | None = None,
    options: Options | None = None,
    reading: Reading | None = None,
    num_files: int = 0,
    workers: int = 4,
    progress: bool = False,
) -> DatasetSurvey:
    """Survey of a data set.

    Args:
        root: folder of the data set.
        dataset: directory structure; default: the one that its folders look like.
        options: where its files are, if the user says so.
        reading: how they are read, if the user says so.
        num_files: pairs whose files are opened, spread evenly over the keys; 0: all.
        workers: threads.
        progress: show a bar.

    Raises:
        UserError: no such folder.
    """
    datasets.check_root(root)
    folder = DataFolder(
        dataset or datasets.recognise(root), root, options or Options(), reading or Reading()
    )
    names = folder.splits() or [None]
    splits: list[SplitReport] = []
    pairs: list[Item] = []
    notes: list[str] = []
    for name in names:
        found = folder.find(name, ["label", "image"])
        photos, maps = found.files["image"], found.files["label"]
        own = [
            Item(key, maps[key], photos[key], reading=folder.reading)
            for key in sorted(photos.keys() & maps.keys())
        ]
        splits.append(SplitReport(name, len(own), len(photos), len(maps), found.faults))
        pairs += own
        notes += [note for note in found.notes if note not in notes]
    space, list_fault = _class_list(folder, notes)
    has_instances, has_edges = (
        all(_has_all(folder, name, kind) for name in names) for kind in ("instances", "edge")
    )
    step = max(1, -(-len(pairs) // num_files)) if num_files else 1
    read = pairs[::step]
    contents = checks.read_contents(read, workers=workers, progress=progress)
    values = checks.tally(read, contents, space, folder.dataset)
    survey = DatasetSurvey(
        folder,
        splits,
        space,
        has_instances,
        has_edges,
        [],
        notes,
        values,
        folder.reading,
        list_fault,
    )
    for content, _ in contents:
        survey.num_read += 1
        if content is None:
            continue
        survey.label_modes[content.histogram.mode] += 1
        if content.photo is not None:
            survey.photo_modes[content.photo.mode] += 1
            survey.photo_sizes[content.photo.upright] += 1
    _judge(survey, read, contents)
    _compare_sides(survey, read, contents)
    return survey


def _has_all(folder: DataFolder, split: str | None, kind: Kind) -> bool:
    found = folder.find(split, ["label", kind])
    return bool(found.files[kind]) and not found.faults


def _judge(survey: DatasetSurvey, items: Sequence[Item], contents: Sequence[Found]) -> None:
    """Add what a training would say of the files' content."""
    if survey.space is None and not survey.list_fault:
        survey.values.space = propose_classes(survey.values)
        survey.notes += proposal_notes(survey.values)
    verdict = checks.judge(items, contents, survey.values)
    survey.reading = verdict.reading
    survey.faults += verdict.faults
    survey.notes += verdict.notes
    if verdict.reading.orientation == "apply" and not verdict.faults:
        note = _orientation_note(items, contents)
        survey.notes += [note] if note else []
    if survey.space is not None and not survey.faults:
        check = checks.count_classes(items, contents, survey.space, survey.dataset, verdict)
        survey.notes += check.class_notes() if survey.dataset == "folder" else []


def _orientation_note(items: Sequence[Item], contents: Sequence[Found]) -> str | None:
    """How well borders of labels lie on edges of turned and of stored photos; None if none is."""
    found: list[tuple[float, float]] = []
    for item, (content, _) in zip(items, contents, strict=True):
        if content is None or content.photo is None or content.photo.orientation == 1:
            continue
        if item.image is None or content.photo.stored != content.photo.upright:
            continue  # sizes tell
        raw = label_maps.read_raw(item.label).values.astype(np.float32)
        ways = (images.read_photo(item.image, upright=upright) for upright in (True, False))
        found.append(cast("tuple[float, float]", tuple(_agreement(p, raw) for p in ways)))
        if len(found) == _LOOKED_AT:
            break
    if not found:
        return None
    turned, stored = np.mean(found, axis=0)
    remedy = "; labels were drawn on the stored pixels: set data.orientation: stored"
    return (
        f"Photos' edges are {turned:.1f} times as strong along the borders of label maps as "
        f"elsewhere when photos are turned, {stored:.1f} times as stored (of "
        f"{count(len(found), 'photo')} whose size does not tell)"
        f"{remedy if stored > 1.5 * turned else ''}."
    )


def _agreement(photo: npt.NDArray[np.uint8], label: npt.NDArray[np.float32]) -> float:
    """Strength of a photo's edges along borders of a label map by that elsewhere."""
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY).astype(np.float32)
    strength = cv2.magnitude(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    kernel = np.ones((3, 3), np.uint8)
    border = cv2.dilate(label, kernel) != cv2.erode(label, kernel)
    if border.all() or not border.any():
        return 1.0
    return float(strength[border].mean() / max(1e-6, strength[~border].mean()))


def _compare_sides(survey: DatasetSurvey, items: Sequence[Item], contents: Sequence[Found]) -> None:
    """Add a note on held-out photos that are among those to train on too."""
    folder = survey.folder
    if survey.all_faults or not items or (folder.splits() and not folder.has_split("train")):
        return
    held_out = {item.label for item in folder.items_for("val")}
    both = held_out.union(item.label for item in folder.items_for("train"))
    own = [
        (content.photo, item.label in held_out)
        for item, (content, _) in zip(items, contents, strict=True)
        if content is not None and item.label in both
    ]
    note = checks.near_equal_note([photo for photo, _ in own], [held for _, held in own])
    survey.notes += [note] if note else []


def _class_list(folder: DataFolder, notes: list[str]) -> tuple[LabelSpace | None, str]:
    """Class list that comes with the data, and what is wrong with it."""
    if folder.dataset != "folder":
        return labels.builtin(folder.dataset), ""
    try:
        path = find_class_list(folder.root)
        if path is not None and path.parent != folder.root:
            notes.append(f"The class list is {path.relative_to(folder.root).as_posix()}.")
        return None if path is None else read_class_list(path), ""
    except UserError as error:
        return None, ": ".join(filter(None, [error.title, "; ".join(error.faults)]))


def _modes(modes: Counter[str]) -> str:
    return ", ".join(f"mode {mode} ({number})" for mode, number in modes.most_common()) or "-"
