"""Survey of a folder of photos and label maps; proposals of a class list and a recipe for it.

Nothing is refused here: faults are part of the report.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from ecgan import labels
from ecgan.class_files import find_class_list, read_class_list
from ecgan.data import datasets, decode
from ecgan.data.datasets import Item
from ecgan.errors import UserError
from ecgan.labels import LabelClass, LabelSpace

MAX_CLASSES = 1024  # more numbers or colours than this are no class list
_MAX_PIXELS = 256 * 512  # of a proposed size: the paper's Cityscapes
_SMALL: dict[str, dict[str, Any]] = {  # settings for fewer than 2,000 photos
    "model": {
        "style_encoder": "statistics",
        "style_injection": "blocks",
        "segmentation_discriminator": "features",
    },
    "losses": {"kl": 0.005},
    "train": {"augment": "diffaugment"},
    "sampling": {"style_prior": "photos"},
}
_TEXT_LINES = 40


@dataclass(frozen=True)
class SplitReport:
    """Files of one split."""

    name: str | None  # None where labels are not divided
    num_pairs: int
    num_photos: int
    num_labels: int
    faults: Sequence[str]


@dataclass
class DatasetSurvey:
    """Files, sizes and label values of a data set.

    Attributes:
        root: folder of the data set.
        dataset: directory structure: folder, cityscapes, ade20k or coco_stuff.
        splits: files of each split.
        space: the class list that comes with the data; None where there is none.
        has_instances: whether every label map has an instance map.
        has_edges: whether every label map has an edge map.
        unreadable: files that could not be read, and other faults of their content.
        num_read: pairs whose files were opened.
        photo_sizes: (height, width) -> photos.
        photo_modes: Pillow's mode -> photos.
        label_modes: Pillow's mode -> label maps.
        palette: number -> colour; None where label maps carry different palettes.
        pixels: value in label maps -> pixels; a value is a number, or a palette index, or a colour.
        files: value in label maps -> files that have it.
    """

    root: Path
    dataset: str
    splits: Sequence[SplitReport]
    space: LabelSpace | None
    has_instances: bool
    has_edges: bool
    unreadable: list[str]
    num_read: int = 0
    photo_sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    photo_modes: Counter[str] = field(default_factory=Counter)
    label_modes: Counter[str] = field(default_factory=Counter)
    palette: dict[int, int] | None = field(default_factory=dict[int, int])
    pixels: Counter["Value"] = field(default_factory=Counter)
    files: Counter["Value"] = field(default_factory=Counter)

    @property
    def num_pairs(self) -> int:
        return sum(split.num_pairs for split in self.splits)

    @property
    def common_size(self) -> tuple[int, int] | None:
        """Height and width that most photos have."""
        return max(self.photo_sizes, key=lambda s: self.photo_sizes[s], default=None)

    @property
    def numbers(self) -> list["Value"]:
        """Numbers in label maps, ascending; palette indices where there is a palette."""
        return sorted(value for value in self.pixels if not value.is_color)

    @property
    def colors(self) -> list["Value"]:
        """Colours in label maps, the most frequent first."""
        return [value for value, _ in self.pixels.most_common() if value.is_color]

    def add(self, pair: "_PairContent") -> None:
        """Count the files of a pair."""
        self.num_read += 1
        if pair.photo is not None:
            self.photo_modes[pair.photo[0]] += 1
            self.photo_sizes[pair.photo[1]] += 1
        if pair.label_mode is not None:
            self.label_modes[pair.label_mode] += 1
        self.pixels.update(pair.pixels)
        self.files.update(pair.pixels.keys())
        for number, color in pair.palette.items():
            if self.palette is not None and self.palette.setdefault(number, color) != color:
                self.palette = None
        if len(self.unreadable) < datasets.MAX_FAULTS:
            self.unreadable += pair.faults

    def name_of(self, value: "Value") -> str:
        """The class that a value stands for; empty without a class list."""
        if self.space is None:
            return ""
        one = np.array([[value.code]], np.int32)
        raw = decode.RawLabel(one, colors=value.is_color, palette=None, mode="")
        decoded = decode.decode(raw, self.space, self.dataset)
        if decoded.unknown:
            return "not in the class list"
        label = int(decoded.label[0, 0])
        return "unlabelled" if label == self.space.ignore_index else self.space.names[label]

    def to_json(self) -> dict[str, Any]:
        """Survey as plain values."""
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
            "ids": [{"value": v.code, **self._counts(v)} for v in self.numbers],
            "colors": [{"value": _rgb(v.code), **self._counts(v)} for v in self.colors],
            "instances": self.has_instances,
            "edges": self.has_edges,
            "classes": None if self.space is None else self.space.to_json(),
            "faults": self.unreadable,
        }

    def _counts(self, value: "Value") -> dict[str, Any]:
        share = self.pixels[value] / max(1, self.pixels.total())
        return {"name": self.name_of(value), "share": share, "files": self.files[value]}

    def to_text(self) -> str:
        """Survey as text for people."""
        lines = [f"{self.root}: structure {self.dataset}, {self.num_pairs} pairs", ""]
        lines += [
            f"  {split.name or 'not divided':<12}{split.num_pairs:>7} pairs  "
            f"({split.num_photos} photos, {split.num_labels} label maps)"
            for split in self.splits
        ]
        extras = [("instance maps", self.has_instances), ("edge maps", self.has_edges)]
        lines += [f"  with {name}" for name, there in extras if there]
        if self.num_read < self.num_pairs:
            lines += ["", f"From {self.num_read} pairs, spread evenly:"]
        sizes = [f"{w} x {h} ({n})" for (h, w), n in self.photo_sizes.most_common()]
        sizes[5:] = [f"and {len(sizes) - 5} other sizes"] * (len(sizes) > 5)
        shown = ", ".join(sizes) or "none could be read"
        lines += ["", f"Photos      {shown}", f"            {_modes(self.photo_modes)}"]
        lines += [f"Label maps  {_modes(self.label_modes)}", f"            {self._kind()}", ""]
        for values in (self.numbers, self.colors):
            for value in values[:_TEXT_LINES]:
                found = self._counts(value)
                lines.append(
                    f"  {value!s:<16}{100 * found['share']:>6.2f} %  in {found['files']:>5} files  "
                    f"{found['name']}".rstrip()
                )
            if len(values) > _TEXT_LINES:
                lines.append(f"  and {len(values) - _TEXT_LINES} more")
        faults = [
            f"{split.name}: {fault}" if split.name else fault
            for split in self.splits
            for fault in split.faults
        ]
        if faults + self.unreadable:
            found = [f"  {fault}" for fault in faults + self.unreadable]
            lines += ["", "Faults to fix before training:", *found]
        return "\n".join(lines) + "\n"

    def _kind(self) -> str:
        kinds = ["class ids"] if self.numbers else []
        kinds += ["colours"] if self.colors else []
        way = "indices" if self.numbers else "colours"
        palette = f" (palette images, read by their {way})" if "P" in self.label_modes else ""
        return " and ".join(kinds) + palette if kinds else "none could be read"


class Value(NamedTuple):
    """A number or a colour in label maps."""

    is_color: bool
    code: int  # the number, or the colour as 0xRRGGBB

    def __str__(self) -> str:
        return decode.color_text(self.code) if self.is_color else str(self.code)


def survey_dataset(
    root: Path, *, dataset: str | None = None, num_files: int = 500, workers: int = 4
) -> DatasetSurvey:
    """Survey of a data set.

    Args:
        root: folder of the data set.
        dataset: directory structure; default: the one that its folders look like.
        num_files: pairs whose files are opened, spread evenly over the keys; 0: all.
        workers: threads.

    Raises:
        UserError: no such folder, or an unknown directory structure.
    """
    datasets.check_root(root)
    dataset = dataset or datasets.recognise(root)
    if dataset is None:
        raise UserError(
            f"{root}: unknown directory structure; expected images/ and labels/ (or masks/), or "
            "the folders of Cityscapes (leftImg8bit/, gtFine/), ADE20K (images/, annotations/) or "
            "COCO-Stuff (images/, stuffthingmaps/)"
        )
    names = datasets.splits(dataset, root) or [None]
    splits: list[SplitReport] = []
    pairs: list[Item] = []
    for name in names:
        found = datasets.find_files(dataset, root, name, ["label", "image"])
        photos, maps = found.files["image"], found.files["label"]
        own = [Item(key, maps[key], photos[key]) for key in sorted(photos.keys() & maps.keys())]
        splits.append(SplitReport(name, len(own), len(photos), len(maps), found.faults))
        pairs += own
    space, faults = _class_list(dataset, root)
    has_instances, has_edges = (
        not any(datasets.find_files(dataset, root, n, ["label", kind]).faults for n in names)
        for kind in ("instances", "edge")
    )
    survey = DatasetSurvey(root, dataset, splits, space, has_instances, has_edges, faults)
    step = max(1, -(-len(pairs) // num_files)) if num_files else 1
    with ThreadPoolExecutor(workers) as pool:
        for pair in pool.map(lambda item: _read_pair(item, space, dataset), pairs[::step]):
            survey.add(pair)
    return survey


def propose_classes(survey: DatasetSurvey) -> LabelSpace | None:
    """Class list for label maps that come without one; its names are to be filled in.

    None where the maps hold both numbers and colours, nothing, or more values than classes can be.
    """
    numbers, colors = ([v.code for v in values] for values in (survey.numbers, survey.colors))
    if bool(numbers) == bool(colors):
        return None
    if colors:
        # Black means unlabelled unless a class claims it.
        colors = [code for code in colors if code != 0]
        if not 0 < len(colors) <= MAX_CLASSES:
            return None
        classes = [LabelClass(i, f"class {i}", _rgb(code)) for i, code in enumerate(colors)]
        return LabelSpace(tuple(classes))
    # 255 is a class where there are ids above it.
    ignore = 255 if max(numbers) == 255 else None
    ids = [number for number in numbers if number != ignore]
    if not ids or not 0 <= max(ids) < MAX_CLASSES or min(ids) < 0:
        return None
    palette = survey.palette or {}
    classes = [
        LabelClass(
            i,
            f"class {i}",
            _rgb(palette[i]) if palette.get(i, -1) >= 0 else labels.default_color(i),
            has_color=palette.get(i, -1) >= 0,
        )
        for i in range(max(ids) + 1)
    ]
    return LabelSpace(tuple(classes), ignore)


def propose_recipe(
    survey: DatasetSurvey,
    nearest_size: Callable[[int, int], tuple[int, int]],
    *,
    classes: LabelSpace | Path | None = None,
) -> str:
    """Recipe that fits the size and number of the photos, as YAML with comments.

    Args:
        survey: survey of the data set.
        nearest_size: height and width that a network can have, near to those of the photos.
        classes: class list, or its file, where the data set has none.
    """
    height, width = survey.common_size or (256, 512)
    scale = min(1, math.sqrt(_MAX_PIXELS / (height * width)))
    fitting = nearest_size(round(height * scale), round(width * scale))
    num_train = next((s.num_pairs for s in survey.splits if s.name == "train"), survey.num_pairs)
    small = num_train < 2000
    images = min(600_000, max(20_000, 250 * num_train)) // 1000 * 1000
    sections: dict[str, dict[str, Any]] = {
        "data": {
            "dataset": survey.dataset,
            "root": str(survey.root),
            "height": fitting[0],
            "width": fitting[1],
            **_class_keys(classes),
            **({"instances": True} if survey.has_instances else {}),
        },
        "model": {
            "style": True,
            **(_SMALL["model"] if small else {}),
            "label_generator": "train",
            "label_generator_training": {"images": min(20_000, max(4_000, 20 * num_train))},
        },
        "losses": {
            "perceptual_network": "efficientnet_lite0",
            "perceptual": 5,
            **(_SMALL["losses"] if small else {}),
        },
        "train": {
            "images": images,
            "batch": 16,
            "ema_images": 5_000 if small else 10_000,
            **(_SMALL["train"] if small else {}),
            "checkpoint_every": images // 10,
            "preview_every": images // 20,
        },
        **({"sampling": _SMALL["sampling"]} if small else {}),
    }
    name = labels.clean_key(survey.root.resolve().name)
    text = yaml.safe_dump({"name": name, **sections}, sort_keys=False, allow_unicode=True)
    common = f", most of them {width} x {height}" if survey.common_size else ""
    head = [f"# {name}: {num_train} pairs to train on{common}."]
    if small:
        head.append(
            "# Below 2,000 photos: augmented inputs, a second discriminator, the photos' styles."
        )
    if survey.space is None:
        head.append("# The names of the classes are yours to fill in.")
    if survey.has_edges:
        head.append("# edges/ has a map for each photo: data.edges: folder uses them.")
    return "\n".join(head) + "\n" + text


def _class_keys(classes: LabelSpace | Path | None) -> dict[str, Any]:
    """Keys of section data that give the numbers in label maps their meaning."""
    if classes is None:
        return {}
    if isinstance(classes, Path):
        return {"classes": str(classes)}
    return {"classes": classes.entries(), "ignore": classes.ignore}


class _PairContent(NamedTuple):
    """Content of the files of one pair."""

    photo: tuple[str, tuple[int, int]] | None  # mode, height and width
    label_mode: str | None
    pixels: Mapping[Value, int]
    palette: Mapping[int, int]  # number -> colour
    faults: Sequence[str]


def _read_pair(item: Item, space: LabelSpace | None, dataset: str) -> _PairContent:
    assert item.image is not None
    faults: list[str] = []
    photo = raw = None
    try:
        photo = decode.photo_header(item.image)
    except UserError as error:
        faults.append(str(error))
    try:
        raw = decode.read_raw(item.label)
    except UserError as error:
        faults.append(str(error))
    if raw is None:
        return _PairContent(photo, None, {}, {}, faults)
    if photo is not None and photo[1] != raw.size:
        height, width = photo[1]
        faults.append(
            f"{item.label}: label {raw.size[1]} x {raw.size[0]}, photo {width} x {height}"
        )
    palette: dict[int, int] = {}
    if raw.palette is not None:
        palette = {n: int(c) for n, c in enumerate(raw.palette)}
        if space is not None and decode.decode(raw, space, dataset).colors:
            raw = raw.painted()
    values, counts = np.unique(raw.values, return_counts=True)
    pixels = zip((Value(raw.colors, v) for v in values.tolist()), counts.tolist(), strict=True)
    return _PairContent(photo, raw.mode, dict(pixels), palette, faults)


def _class_list(dataset: str, root: Path) -> tuple[LabelSpace | None, list[str]]:
    if dataset != "folder":
        return labels.builtin(dataset), []
    try:
        path = find_class_list(root)
        return (None if path is None else read_class_list(path)), []
    except UserError as error:
        return None, [str(error)]


def _modes(modes: Counter[str]) -> str:
    return ", ".join(f"mode {mode} ({count})" for mode, count in modes.most_common()) or "-"


def _rgb(code: int) -> tuple[int, int, int]:
    return code >> 16, code >> 8 & 255, code & 255
