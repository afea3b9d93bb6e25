"""Class lists and label spaces: the meaning of the numbers in a label map. No torch here.

Two spaces (docs/paper.md, "Label spaces"): **input ids** 0..N-1, which the generator is conditioned
on and which the data set that we write carries, and **evaluation ids**, which segmenters are scored
in (Cityscapes: 35 raw ids in, 19 train ids scored). For most data sets both are the same.

In memory and in every label map that we write, an unlabelled pixel is ``ignore_index``: 255, or
65535 with more than 255 classes. The value of unlabelled pixels in the user's files is ``ignore``,
and ``file_ids`` gives their numbers where these are not the input ids.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ecgan.errors import UserError, shown
from ecgan.reading.documents import read_json

Labels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


MAX_CLASSES = 65535  # as many as 16 bits tell apart from unlabelled pixels
_REMEDY = "write the class list there, or set data.classes in the recipe"
MAX_BYTES = 8 << 20  # of a class list; as many classes take 7 MB

SPLIT_FOLDERS: Mapping[str, tuple[str, ...]] = {  # in lower case, without separators
    "train": ("train", "training", "trn", "trainset", "trainingset"),
    "val": ("val", "valid", "validation", "dev", "valset", "validationset", "devset"),
    "test": ("test", "testing", "tst", "testset", "testingset"),
}


def clean_key(name: str) -> str:
    """Key of a sample from its relative path without ending: letters, digits, ``_`` and ``-``.

    Names in other scripts, which would lose their letters, get a hash of the whole name.
    """
    name = unicodedata.normalize("NFC", name)
    key = re.sub(r"[^A-Za-z0-9_-]", "_", re.sub(r"[/\\]+", "-", name)) or "_"
    if name.isascii():
        return key
    return f"{key}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def spellings(name: str) -> list[str]:
    """Normalised spellings of a class name: the whole and its parts between commas or slashes."""
    words = [name, *re.split(r"[,;/]", name)]
    normalised = (re.sub(r"[^a-z0-9]+", " ", word.lower()).strip() for word in words)
    return [word for word in dict.fromkeys(normalised) if word]


@dataclass(frozen=True)
class LabelClass:
    """One semantic class: its id in label maps, its name, its colour in colour masks (RGB).

    ``has_color`` is False where the user's list gives no colour and the default one stands in,
    which no colour mask can mean. It decides no equality: lists of earlier versions lack it.
    """

    id: int
    name: str
    color: tuple[int, int, int]
    has_color: bool = field(default=True, compare=False)


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
        file_ids: number in the user's label files and the class that it means, in ascending order;
            ``ignore_index`` for a further number of unlabelled pixels. Several numbers may mean one
            class. None where the numbers are the ids.
    """

    classes: tuple[LabelClass, ...]
    ignore: int | None = 255
    evaluation: tuple[int, ...] | None = None
    evaluation_names: tuple[str, ...] = ()
    file_ids: tuple[tuple[int, int], ...] | None = None

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
    def colors_given(self) -> tuple[bool, ...]:
        """Whether the user's list gives each class's colour; see :class:`LabelClass`."""
        return tuple(c.has_color for c in self.classes)

    @property
    def ignored(self) -> tuple[int, ...]:
        """Numbers of unlabelled pixels in the user's label files."""
        further = [n for n, label in self.file_ids or () if label == self.ignore_index]
        return (*([] if self.ignore is None else [self.ignore]), *further)

    def written(self) -> "LabelSpace":
        """The same classes as label maps that we write have them: in ids, and ``ignore_index``."""
        ignore = None if self.ignore is None else self.ignore_index
        return replace(self, ignore=ignore, file_ids=None)

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
        """Content of ``classes.json``; evaluation ids and numbers of files if there are any."""
        value = self.identity()
        for c, entry in zip(self.classes, value["classes"], strict=True):
            if not c.has_color:
                entry["has_color"] = False
        return value

    def identity(self) -> dict[str, Any]:
        """:meth:`to_json` with what decides equality alone, as hashes and comparisons need it."""
        value: dict[str, Any] = {
            "classes": [{"id": c.id, "name": c.name, "color": list(c.color)} for c in self.classes],
            "ignore": self.ignore,
        }
        if self.evaluation is not None:
            value["evaluation"] = list(self.evaluation)
            value["evaluation_names"] = list(self.evaluation_names)
        if self.file_ids is not None:
            value["file_ids"] = {str(number): label for number, label in self.file_ids}
        return value

    def entries(self) -> list[dict[str, Any]]:
        """Classes as a user lists them: numbers of the files, and the colours that were given."""
        numbers: dict[int, list[int]] = {c.id: [] for c in self.classes}
        for number, label in self.file_ids or [(c.id, c.id) for c in self.classes]:
            numbers.setdefault(label, []).append(number)
        found: list[dict[str, Any]] = []
        for c in self.classes:
            own = numbers[c.id]
            key: dict[str, Any] = {"id": own[0]} if len(own) == 1 else {"ids": own}
            color = {"color": list(c.color)} if c.has_color else {}
            found.append({**key, "name": c.name, **color})
        return found


def _ignore_index(num_classes: int) -> int:
    return 255 if num_classes <= 255 else 65535


def from_json(value: object, source: str, places: Sequence[str] = ()) -> LabelSpace:
    """Label space from the parsed content of ``classes.json``.

    Accepts the object that :meth:`LabelSpace.to_json` gives, or a bare list of classes; a class is
    an object with ``name`` and, optionally, ``id`` (or ``ids``, where several numbers mean it) and
    ``color``, or just its name. Ids other than 0..N-1 are numbers of the label files alone: sorted
    by them, the classes get the ids 0..N-1, and the numbers become ``file_ids``. ``ignore`` is a
    number, several, or null.

    Args:
        value: parsed JSON.
        source: name of the file in error messages.
        places: names of the entries in error messages, such as lines; default: classes[0], ...

    Raises:
        UserError: duplicate ids or names, wrong types; all of them at once.
    """
    document: dict[str, Any] = {"classes": value} if isinstance(value, list) else cast(Any, value)
    if not isinstance(document, dict) or not isinstance(document.get("classes"), list):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UserError(
            f'{source}: expected {{"classes": [{{"id": 0, "name": "road", "color": [128, 64, 128]}}'
            ', ...], "ignore": 255}'
        )
    faults: list[str] = []
    entries = cast(Sequence[object], document["classes"])
    if len(entries) > MAX_CLASSES:
        raise UserError(f"{source}: {len(entries):,} classes; there can be {MAX_CLASSES:,}")
    places = places or [f"classes[{index}]" for index in range(len(entries))]
    listed = sorted(
        (
            _listed_class(entry, index, place, faults)
            for index, (entry, place) in enumerate(zip(entries, places, strict=True))
        ),
        key=lambda one: one.numbers[0],
    )
    classes = tuple(replace(one.shown, id=index) for index, one in enumerate(listed))
    numbers = {number: label for label, one in enumerate(listed) for number in one.numbers}
    faults += _class_list_faults(listed)
    if "file_ids" in document:
        numbers = _file_ids(document["file_ids"], numbers, faults)
    ignore = _ignored(document, numbers, faults)
    evaluation = document.get("evaluation")
    if evaluation is not None:
        names = document.get("evaluation_names", [])
        faults += _evaluation_faults(evaluation, names, len(classes))
    if faults:
        raise UserError(source, faults)
    return LabelSpace(
        classes,
        ignore[0] if ignore else None,
        tuple(evaluation) if evaluation is not None else None,
        tuple(document.get("evaluation_names", ())) if evaluation is not None else (),
        _as_file_ids(numbers, ignore, len(classes)),
    )


def load_label_space(path: Path) -> LabelSpace:
    """Read a ``classes.json``.

    Raises:
        UserError: no such file, not JSON, or faults in the list.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; {_REMEDY}")
    value = read_json(path, "a class list", _REMEDY, MAX_BYTES)
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


@dataclass(frozen=True)
class _Listed:
    """A class as the user's list gives it, and the numbers of the label files that mean it."""

    shown: LabelClass
    numbers: tuple[int, ...]
    place: str


def _listed_class(entry: object, index: int, place: str, faults: list[str]) -> _Listed:
    fields: dict[str, Any] = {"name": entry} if isinstance(entry, str) else cast(Any, entry)
    if not isinstance(fields, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
        faults.append(f"{place}: expected a name or an object, got {shown(entry)}")
        fields = {"name": f"class {index}"}
    name = fields.get("name")
    if not isinstance(name, str) or not name:
        faults.append(f"{place}.name: expected a name, got {shown(name)}")
        name = f"class {index}"
    elif any(0xD800 <= ord(character) < 0xE000 for character in name):
        # No file of a training could be written, or read back
        faults.append(f"{place}.name: {shown(name)} has half a character; write the name anew")
    has_color = fields.get("has_color", "color" in fields)
    if not isinstance(has_color, bool):
        faults.append(f"{place}.has_color: expected true or false, got {shown(has_color)}")
    color = fields.get("color", default_color(index))
    if not _is_color(color):
        faults.append(f"{place}.color: expected three numbers from 0 to 255, got {shown(color)}")
        color = default_color(index)
    own = LabelClass(index, name, (color[0], color[1], color[2]), bool(has_color))
    return _Listed(own, _numbers(fields, index, place, faults), place)


def _numbers(
    fields: Mapping[str, Any], index: int, place: str, faults: list[str]
) -> tuple[int, ...]:
    """Numbers of the label files that mean a class, in ascending order."""
    if "ids" not in fields:
        number = fields.get("id", index)
        if _is_number(number):
            return (number,)
        faults.append(f"{place}.id: expected a number from 0 to 65535, got {shown(number)}")
        return (index,)
    several = fields["ids"]
    if "id" in fields:
        faults.append(f"{place}: has id and ids; give one of them")
    elif isinstance(several, list) and several and all(map(_is_number, cast("list[Any]", several))):
        return tuple(sorted(cast("list[int]", several)))
    else:
        faults.append(f"{place}.ids: expected numbers from 0 to 65535, got {shown(several)}")
    return (index,)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535


def _file_ids(value: object, numbers: Mapping[int, int], faults: list[str]) -> dict[int, int]:
    """Class of each number of the label files, from the key ``file_ids``."""
    count = len(set(numbers.values()))
    allowed = {*range(count), _ignore_index(count)}
    if sorted(numbers) != [*range(count)]:
        faults.append("file_ids: needs classes with the ids 0 to N-1; leave it out, or those ids")
    pairs = cast("dict[object, object]", value).items() if isinstance(value, dict) else ()
    found = {
        int(str(number)): label
        for number, label in pairs
        if re.fullmatch("[0-9]{1,5}", str(number)) and isinstance(label, int) and label in allowed
    }
    if not found or len(found) != len(pairs) or max(found) > 65535:
        faults.append(
            f'file_ids: expected {{"7": 0, ...}}, numbers of the label files and ids from 0 to '
            f"{count - 1}, got {shown(value)}"
        )
    return found


def _ignored(
    document: Mapping[str, Any], numbers: Mapping[int, int], faults: list[str]
) -> list[int]:
    """Numbers of unlabelled pixels in the label files, the first one being ``ignore``."""
    count = len(document["classes"])
    default = _ignore_index(count)
    value = document.get("ignore", None if default in numbers else default)
    several = cast("list[Any]", value if isinstance(value, list) else [value])
    if value is None:
        return []
    if not several or not all(map(_is_number, several)):
        faults.append(f"ignore: expected a number from 0 to 65535 or null, got {shown(value)}")
        return []
    faults += [
        f"ignore: {number} is also the id of a class; use another value, or null"
        for number in several
        if numbers.get(number, default) != default
    ]
    return [*dict.fromkeys(several)]


def _as_file_ids(
    numbers: Mapping[int, int], ignore: Sequence[int], num_classes: int
) -> tuple[tuple[int, int], ...] | None:
    """Pairs of number and class, or None where each number is its class's id."""
    pairs = {**numbers, **dict.fromkeys(ignore[1:], _ignore_index(num_classes))}
    pairs = {number: label for number, label in pairs.items() if [number] != [*ignore[:1]]}
    if pairs == {number: number for number in range(num_classes)}:
        return None
    return tuple(sorted(pairs.items()))


def _is_color(value: Any) -> bool:  # noqa: ANN401
    return (
        isinstance(value, (list, tuple))
        and len(cast("list[object]", value)) == 3
        and all(isinstance(v, int) and 0 <= v <= 255 for v in cast("list[object]", value))
    )


def _evaluation_faults(evaluation: Any, names: Any, num_classes: int) -> list[str]:  # noqa: ANN401
    if not (isinstance(evaluation, list) and all(map(_is_number, cast("list[Any]", evaluation)))):
        return [f"evaluation: expected an id for each class, got {shown(evaluation)}"]
    if not (isinstance(names, list) and all(isinstance(n, str) for n in cast("list[Any]", names))):
        return [f"evaluation_names: expected names, got {shown(names)}"]
    evaluation, names = cast("list[int]", evaluation), cast("list[str]", names)
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


def _class_list_faults(listed: Sequence[_Listed]) -> list[str]:
    if not listed:
        return ["classes: the list is empty; name at least one class"]
    at: dict[str, list[str]] = {}
    for one in listed:
        at.setdefault(f"name {one.shown.name!r}", []).append(one.place)
        for number in one.numbers:
            at.setdefault(f"id {number}", []).append(one.place)
    remedies = {
        "name": 'name each class differently, or give one class several numbers with "ids"',
        "id": "give each class numbers of its own",
    }
    return [
        f"classes: {what} occurs {len(places)} times ({', '.join(places)}); "
        f"{remedies[what.partition(' ')[0]]}"
        for what, places in at.items()
        if len(places) > 1
    ]
