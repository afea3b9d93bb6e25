"""Class lists and label spaces: the meaning of the numbers in a label map. No torch here.

Two spaces (docs/paper.md, "Label spaces"): **input ids** 0..N-1, which the generator is conditioned
on and which the data set that we write carries, and **evaluation ids**, which segmenters are scored
in (Cityscapes: 35 raw ids in, 19 train ids scored). For most data sets both are the same.

In memory and in every file that we write, an unlabelled pixel is ``ignore_index``: 255, or 65535
with more than 255 classes. The value of unlabelled pixels in the user's files is ``ignore``.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ecgan.errors import UserError

Labels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

SPLIT_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def clean_key(name: str) -> str:
    """Key of a sample from its relative path without ending: letters, digits, ``_`` and ``-``."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", re.sub(r"[/\\]+", "-", name)) or "_"


def spellings(name: str) -> list[str]:
    """Normalised spellings of a class name: the whole and its parts between commas or slashes."""
    words = [name, *re.split(r"[,;/]", name)]
    normalised = (re.sub(r"[^a-z0-9]+", " ", word.lower()).strip() for word in words)
    return [word for word in dict.fromkeys(normalised) if word]


@dataclass(frozen=True)
class LabelClass:
    """One semantic class: its id in label maps, its name, its colour in colour masks (RGB)."""

    id: int
    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a data set, ids 0..N-1 without gaps.

    Attributes:
        classes: classes in order of their ids.
        ignore: value that marks unlabelled pixels in the user's label files; None where every
            pixel has a class (then the condition has no channel for unlabelled pixels).
        evaluation: evaluation id of each class, ``ignore_index`` for classes that are not
            scored; None where evaluation uses the input ids.
        evaluation_names: names of the evaluation ids; empty where ``evaluation`` is None.
    """

    classes: tuple[LabelClass, ...]
    ignore: int | None = 255
    evaluation: tuple[int, ...] | None = None
    evaluation_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """N."""
        return len(self.classes)

    @property
    def ignore_index(self) -> int:
        """Value of unlabelled pixels in memory and in files that we write."""
        return _ignore_index(self.num_classes)

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """Type of label maps in memory and in files that we write."""
        return np.uint8 if self.num_classes <= 255 else np.uint16

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @cached_property
    def palette(self) -> npt.NDArray[np.uint8]:
        """Colours, (ignore_index + 1, 3); black for unlabelled pixels and unused ids."""
        palette = np.zeros((self.ignore_index + 1, 3), np.uint8)
        for c in self.classes:
            palette[c.id] = c.color
        return palette

    @cached_property
    def evaluation_palette(self) -> npt.NDArray[np.uint8]:
        """Palette of evaluation ids; of several classes with one id, the first one's colour."""
        if self.evaluation is None:
            return self.palette
        palette = np.zeros_like(self.palette)
        for c in reversed(self.classes):
            if self.evaluation[c.id] != self.ignore_index:
                palette[self.evaluation[c.id]] = c.color
        return palette

    def num_conditions(self, *, boundary: bool) -> int:
        """Channels of S: the classes, one for unlabelled pixels if there are any, the boundary."""
        return self.num_classes + (self.ignore is not None) + boundary

    @property
    def num_evaluation_classes(self) -> int:
        return len(self.evaluation_names) if self.evaluation is not None else self.num_classes

    @property
    def names_for_evaluation(self) -> tuple[str, ...]:
        return self.evaluation_names if self.evaluation is not None else self.names

    def to_evaluation(self, labels: Labels) -> Labels:
        """Map input ids to evaluation ids; same shape and dtype. Unlabelled pixels stay so."""
        if self.evaluation is None:
            return labels
        table = np.full(self.ignore_index + 1, self.ignore_index, labels.dtype)
        table[: self.num_classes] = self.evaluation
        return cast(Labels, table[labels])

    def to_json(self) -> dict[str, Any]:
        """Content of ``classes.json``, with the evaluation ids if there are any."""
        value: dict[str, Any] = {
            "classes": [{"id": c.id, "name": c.name, "color": list(c.color)} for c in self.classes],
            "ignore": self.ignore,
        }
        if self.evaluation is not None:
            value["evaluation"] = list(self.evaluation)
            value["evaluation_names"] = list(self.evaluation_names)
        return value


def _ignore_index(num_classes: int) -> int:
    return 255 if num_classes <= 255 else 65535


def from_json(value: object, source: str) -> LabelSpace:
    """Label space from the parsed content of ``classes.json``.

    Accepts the object that :meth:`LabelSpace.to_json` gives, or a bare list of classes; a class is
    an object with ``name`` and, optionally, ``id`` and ``color``, or just its name.

    Args:
        value: parsed JSON.
        source: name of the file in error messages.

    Raises:
        UserError: gaps, duplicate ids or names, wrong types; all of them at once.
    """
    document: dict[str, Any] = {"classes": value} if isinstance(value, list) else cast(Any, value)
    if not isinstance(document, dict) or not isinstance(document.get("classes"), list):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UserError(
            f'{source}: expected {{"classes": [{{"id": 0, "name": "road", "color": [128, 64, 128]}}'
            ', ...], "ignore": 255}'
        )
    faults: list[str] = []
    entries = cast(Sequence[object], document["classes"])
    classes = [_label_class(entry, index, faults) for index, entry in enumerate(entries)]
    ignore = document.get("ignore", _ignore_index(len(entries)))
    if not (ignore is None or (isinstance(ignore, int) and 0 <= ignore <= 65535)):
        faults.append(f"ignore: expected a number from 0 to 65535 or null, got {ignore!r}")
    faults += _class_list_faults(classes)
    if ignore is not None and any(c.id == ignore for c in classes):
        faults.append(f"ignore: {ignore} is also the id of a class; use another value, or null")
    evaluation = cast("list[int] | None", document.get("evaluation"))
    if evaluation is not None:
        names = cast("list[str]", document.get("evaluation_names", []))
        faults += _evaluation_faults(evaluation, names, len(classes))
    if faults:
        raise UserError(source, faults)
    return LabelSpace(
        tuple(sorted(classes, key=lambda c: c.id)),
        ignore,
        tuple(evaluation) if evaluation is not None else None,
        tuple(document.get("evaluation_names", ())),
    )


def load_label_space(path: Path) -> LabelSpace:
    """Read a ``classes.json``.

    Raises:
        UserError: no such file, not JSON, or faults in the list.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; write the class list there, or set data.classes in the recipe"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a JSON file: {error}") from error
    return from_json(value, str(path))


@cache
def builtin(dataset: str) -> LabelSpace:
    """Class list of a data set of the paper: ``cityscapes``, ``ade20k`` or ``coco_stuff``.

    Ids are those of the generator. Cityscapes: raw ids, of which 19 are scored; its authors call
    license plate -1 and never draw it. ADE20K (SceneParse150): label files hold the ids plus one,
    with 0 for unlabelled pixels; ``ecgan.data.datasets`` subtracts it when it reads them.
    COCO-Stuff: eleven ids never occur.
    """
    file = resources.files("ecgan").joinpath("class_lists", f"{dataset}.json")
    if not file.is_file():
        raise ValueError(f"no class list for {dataset!r}")
    return from_json(json.loads(file.read_text(encoding="utf-8")), dataset)


def default_color(index: int) -> tuple[int, int, int]:
    """PASCAL VOC colour of class ``index``: bits of the index spread over the channels."""
    color = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            color[channel] |= ((index + 1) >> (3 * bit + channel) & 1) << (7 - bit)
    return color[0], color[1], color[2]


def _label_class(entry: object, index: int, faults: list[str]) -> LabelClass:
    fields: dict[str, Any] = {"name": entry} if isinstance(entry, str) else cast(Any, entry)
    path = f"classes[{index}]"
    if not isinstance(fields, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
        faults.append(f"{path}: expected a name or an object, got {entry!r}")
        return LabelClass(index, f"class {index}", default_color(index))
    number, name = fields.get("id", index), fields.get("name")
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        faults.append(f"{path}.id: expected a number from 0, got {number!r}")
        number = index
    if not isinstance(name, str) or not name:
        faults.append(f"{path}.name: expected a name, got {name!r}")
        name = f"class {index}"
    color = fields.get("color", default_color(index))
    if not _is_color(color):
        faults.append(f"{path}.color: expected three numbers from 0 to 255, got {color!r}")
        color = default_color(index)
    return LabelClass(number, name, (color[0], color[1], color[2]))


def _is_color(value: Any) -> bool:  # noqa: ANN401
    return (
        isinstance(value, (list, tuple))
        and len(cast("list[object]", value)) == 3
        and all(isinstance(v, int) and 0 <= v <= 255 for v in cast("list[object]", value))
    )


def _evaluation_faults(evaluation: list[int], names: list[str], num_classes: int) -> list[str]:
    faults: list[str] = []
    if len(evaluation) != num_classes:
        faults.append(f"evaluation: has {len(evaluation)} ids for {num_classes} classes")
    allowed = {*range(len(names)), _ignore_index(num_classes)}
    outside = sorted(set(evaluation) - allowed)
    if outside:
        faults.append(
            f"evaluation: {', '.join(map(str, outside))} without a name in evaluation_names "
            f"({len(names)} names); classes that are not scored have {max(allowed)}"
        )
    return faults


def _class_list_faults(classes: Sequence[LabelClass]) -> list[str]:
    if not classes:
        return ["classes: the list is empty"]
    faults: list[str] = []
    ids, names = Counter(c.id for c in classes), Counter(c.name for c in classes)
    faults += [f"classes: id {i} occurs {count} times" for i, count in ids.items() if count > 1]
    faults += [
        f"classes: name {n!r} occurs {count} times" for n, count in names.items() if count > 1
    ]
    missing = sorted(set(range(len(classes))) - set(ids))
    if missing and not any(count > 1 for count in ids.values()):
        faults.append(
            f"classes: ids must run from 0 to {len(classes) - 1} without gaps; "
            f"{', '.join(map(str, missing))} missing"
        )
    return faults
