"""Reading of recipes: a packaged name or a YAML file, with overrides; all faults at once."""

import copy
import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ecgan import class_files, labels
from ecgan.data.datasets import DataFolder, Subset
from ecgan.data.decode import Encoding
from ecgan.data.files.layout import Options
from ecgan.data.files.photo_sets import Reading
from ecgan.errors import UsageError, UserError, shown
from ecgan.labels import LabelSpace
from ecgan.reading.documents import read_bytes
from ecgan.reading.names import odd_characters
from ecgan.reading.plain_yaml import parse_yaml
from ecgan.recipe.schema import (
    Data,
    Recipe,
    SegmenterTraining,
)

_MAX_BYTES = 1 << 20  # of a recipe
_MAX_FAULTS = 20  # that one message lists
_MAX_TEXT = 4096  # of a value, which may be a path

_RENAMED = {  # key of version 0.1 -> key of this one
    "model.label_generator_images": "model.label_generator_training.images",
    "model.label_generator_width": "model.label_generator_training.channels",
    "evaluate.judge_network": "evaluate.judge_training.architecture",
    "evaluate.judge_images": "evaluate.judge_training.images",
    "evaluate.judge_width": "evaluate.judge_training.channels",
    "evaluate.seed": "evaluate.judge_training.seed",
    "evaluate.student_images": "evaluate.downstream_training.images",
    "evaluate.student_width": "evaluate.downstream_training.channels",
    "evaluate.student_batch": "evaluate.downstream_training.batch",
    "sampling.filter_images": "sampling.filter_training.images",
    "sampling.filter_width": "sampling.filter_training.channels",
}

_ADDED = (  # keys that version 0.2 does not have
    "model.style_encoder",
    "model.style_injection",
    "model.segmentation_discriminator",
    "losses.segmentation_adversarial",
    "losses.label_mix",
    "losses.edge_slope",
    "data.images",
    "data.labels",
    "data.label_suffix",
    "data.label_encoding",
    "data.orientation",
    "data.photo_levels",
    "data.val_by",
    "data.pairs",
    "data.draw",
    "data.draw_by",
    "data.unlabelled",
)


def recipe_keys() -> dict[str, FieldInfo]:
    """Every key of a recipe that has a value, such as ``train.batch``, with its description."""
    return dict(_keys_of(Recipe, ""))


def _keys_of(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _keys_of(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in _recipe_folder().glob("*.yaml"))


def recipe_text(name: str) -> str:
    """The YAML of a recipe that comes with the package, comments included.

    Raises:
        UserError: no such recipe.
    """
    path = _recipe_folder() / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(
            f"no recipe {name!r}{_suggestion(name, recipe_names())}; there are "
            f"{', '.join(recipe_names())}, or give the path of a .yaml file"
        )
    return path.read_text(encoding="utf-8")


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check it.

    Args:
        name_or_path: a name of :func:`recipe_names`, or a YAML file.
        overrides: ``section.key=value``, the value in YAML; later ones win.

    Raises:
        UserError: no such file, not YAML, or faults in it; all of them at once, with suggestions.
    """
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        try:
            text, source = read_bytes(path, _MAX_BYTES).decode("utf-8-sig"), str(path)
        except UserError as error:
            raise UsageError(str(error)) from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: not text in UTF-8 (byte {error.start})") from error
    else:
        text, source = recipe_text(name_or_path), f"recipe {name_or_path}"
    try:
        document = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{source}: not YAML: {error}") from error
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise UserError(f"{source}: expected sections data, model, losses, train, ...")
    fields = cast("dict[str, Any]", document)
    fields.setdefault("name", path.stem)
    return parse_recipe(fields, source, overrides)


def parse_recipe(document: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Check a recipe given as nested dicts; ``overrides`` as for :func:`load_recipe`.

    Raises:
        UserError: unknown keys, wrong types or values; all of them at once.
    """
    document = _with_new_keys(document, source)
    for override in overrides:
        _apply_override(document, override)
    document = _with_new_keys(document, "--set")
    faults = [*_odd_texts(document)]
    if faults:
        raise UserError(source, faults[:_MAX_FAULTS])
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        found = [dict(e) for e in error.errors()]
        keys = [override.partition("=")[0] for override in overrides]
        keys = [_RENAMED.get(key, key) for key in keys]
        from_options = any(
            _place(e).startswith(key) or key.startswith(_place(e)) for e in found for key in keys
        )
        kind = UsageError if from_options else UserError
        raise kind(source, [_fault(e) for e in found]) from None


def generator_hash(recipe: Recipe) -> str:
    """SHA-256 of all settings that decide the generator: not of evaluation and sampling."""
    document = recipe.model_dump(mode="json", exclude={"evaluate", "sampling"})
    # As version 0.1 wrote it, so that its data sets can be resumed
    training: dict[str, Any] = document["model"].pop("label_generator_training")
    for key in _ADDED:  # later, and at their defaults without effect
        section, _, name = key.partition(".")
        if document[section][name] == getattr(getattr(Recipe(), section), name):
            del document[section][name]
    document["model"]["label_generator_images"] = training.pop("images")
    document["model"]["label_generator_width"] = training.pop("channels")
    defaults = SegmenterTraining().model_dump()
    changed = {key: value for key, value in training.items() if value != defaults[key]}
    if changed:
        document["model"]["label_generator_training"] = changed
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def data_folder(data: Data, root: Path | None = None) -> DataFolder:
    """The data set's folder that a recipe means, and how its files are read.

    Args:
        data: section data.
        root: another folder in place of the recipe's.

    Raises:
        UsageError: neither names a folder.
    """
    if root is None and data.root is None:
        raise UsageError("data.root is not set: give the folder of the data set with --data DIR")
    place = root if root is not None else Path(str(data.root))
    levels = None if data.photo_levels is None else (data.photo_levels[0], data.photo_levels[1])
    encoding = None if data.label_encoding == "auto" else Encoding(data.label_encoding)
    return DataFolder(
        data.dataset,
        place,
        Options(data.images, data.labels, data.label_suffix),
        Reading(encoding, data.orientation, levels),
        data.val_by if isinstance(data.val_by, str) else tuple(data.val_by),
    )


def subset(data: Data) -> Subset:
    """Which pairs of the training split a recipe uses."""
    return Subset(data.fraction, data.pairs, data.draw, data.draw_by)


def label_space(data: Data) -> LabelSpace:
    """The class list that a recipe means: its own, the data set's, or the one beside the data.

    Raises:
        UserError: there is none, or it has faults.
    """
    path = class_list_file(data)
    if path is not None:
        return class_files.read_class_list(path, ignore=data.ignore)
    if isinstance(data.classes, list):
        return labels.from_json(
            {"classes": data.classes, "ignore": data.ignore}, "data.classes of the recipe"
        )
    return labels.builtin(data.dataset)


def class_list_file(data: Data) -> Path | None:
    """File of :func:`label_space`; None where the recipe or the package has the list itself.

    A resized copy always has its own, since its label maps hold ids, whatever the original's hold.

    Raises:
        UserError: two lists beside the data differ, or one has faults; data.root is not set.
    """
    if data.dataset == "folder" and data.root is not None:
        copied = class_files.list_of_copy(Path(data.root))
        if copied is not None:
            return copied
    if data.classes is not None:
        return Path(data.classes).expanduser() if isinstance(data.classes, str) else None
    if data.dataset != "folder":
        return None
    if data.root is None:
        raise UsageError("data.root is not set: give the folder with --data DIR")
    root = Path(data.root)
    return class_files.find_class_list(root) or root / class_files.NAMES[0]


def _recipe_folder() -> Path:
    package = Path(__file__).parent.parent
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = _RENAMED.get(key, key).split(".")
    if not equals or not all(parts):
        raise UsageError(f"--set {override}: expected SECTION.KEY=VALUE, e.g. train.batch=8")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"--set {override}: the value is not YAML: {error}") from error
    section = document
    for part in parts[:-1]:
        inner = section.setdefault(part, {})
        if inner is None:
            inner = section[part] = {}
        if not isinstance(inner, dict):
            raise UsageError(f"--set {override}: {part} is a value, not a section")
        section = cast("dict[str, Any]", inner)
    section[parts[-1]] = value


def _with_new_keys(document: dict[str, Any], source: str) -> dict[str, Any]:
    """Copy of a recipe's document with the keys of version 0.1 renamed."""
    document = copy.deepcopy(document)
    for old, new in _RENAMED.items():
        section_name, old_key = old.split(".")
        _, training, key = new.split(".")
        section = document.get(section_name)
        if not isinstance(section, dict) or old_key not in section:
            continue
        fields = cast("dict[str, Any]", section)
        value, inner = fields.pop(old_key), fields.setdefault(training, {})
        if not isinstance(inner, dict) or key in inner:
            raise UserError(f"{source}: {old} is the former name of {new}; give one of them")
        inner[key] = value
    return document


def _odd_texts(value: object, place: str = "") -> Iterator[str]:
    """Texts anywhere in a document that no path, terminal or card should get."""
    if isinstance(value, dict):
        for key, inner in cast("dict[object, object]", value).items():
            if isinstance(key, str):
                yield from _odd_texts(key, f"{place or 'the recipe'}: a key")
            yield from _odd_texts(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(cast("list[object]", value)):
            yield from _odd_texts(inner, f"{place}.{index}")
    elif isinstance(value, str):
        yield from _odd_text(value, place[:60])


def _odd_text(text: str, place: str) -> Iterator[str]:
    odd = odd_characters(text, allowed="\n\t")
    if odd:
        yield f"{place}: must not have the characters {odd}"
    if len(text) > _MAX_TEXT:
        yield f"{place}: a text of {len(text):,} characters; at most {_MAX_TEXT:,}"


def _place(error: dict[str, Any]) -> str:
    """The key that is at fault, as the user writes it."""
    # A union names its failed branch in the location; the user's key is what comes before.
    return ".".join(
        str(part)
        for part in error["loc"]
        if not str(part).startswith(("literal[", "constrained", "function-", "list["))
    )


def _fault(error: dict[str, Any]) -> str:
    location = [str(part) for part in error["loc"]]
    place = _place(error)
    if error["type"] == "extra_forbidden":
        return f"{place}: no such key{_suggestion(location[-1], _keys(location[:-1]))}"
    if error["type"] == "value_error":
        return f"{place}: {error['ctx']['error']}" if place else str(error["ctx"]["error"])
    return f"{place}: {error['msg']}, got {shown(error['input'])}"


def _keys(location: Sequence[str]) -> list[str]:
    fields = Recipe.model_fields
    for part in location:
        annotation = fields[part].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        fields = annotation.model_fields
    return list(fields)


def _suggestion(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
