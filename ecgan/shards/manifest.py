"""Documents of a data set: ``manifest.json``, the fingerprint in it, and records of shards.

Every document is a pydantic model; what an earlier version wrote is translated when it is read.
``Manifest.model_json_schema()`` is the JSON schema.

A layout is named by the first 64 bits of its files' SHA-256: 16 hexadecimal digits for the label
map, and 16 more for an instance map beside it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ecgan import labels
from ecgan.errors import UserError
from ecgan.labels import LabelSpace
from ecgan.runtime.storage import HIDDEN, Store, open_store
from ecgan.shards.codecs import ImageFormat

MANIFEST = "manifest.json"
SCHEMA = 3  # of manifest.json; 1 and 2 are read too

Format = Literal["webdataset", "parquet", "folder"]
_DIGITS = 16  # of each file's SHA-256 in a layout's digest


class Document(BaseModel):
    """Base of all documents: values do not change, and unknown keys are passed over."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)


def layout_digest(label: str, instances: str | None = None) -> str:
    """Digest of a layout's files, from their SHA-256 in hexadecimal."""
    return label[:_DIGITS] + ("" if instances is None else instances[:_DIGITS])


def label_digest(layout: str) -> str:
    """Part of a layout's digest that its label map decides."""
    return layout[:_DIGITS]


def layouts_digest(layouts: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of a command's layouts: of their keys and digests, in order of the keys."""
    lines = (f"{key} {digest}" for key, digest in sorted(layouts))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class StageRecord(Document):
    """Rows of one call's samples, ``.ecgan/stages/NNN.json``: columns of equal length."""

    first_shard: int
    samples_per_shard: int
    plan: str  # hash of everything that decides its samples' bytes
    keys: list[str]  # of its layouts, (layouts,)
    digests: list[str]  # of their files, (layouts,)
    folds: list[int] | None  # segmenters that judge them, (layouts,); None without a label filter
    layouts: list[int]  # number of each row's layout, (rows,)
    variants: list[int]  # 0 for the layout itself, N for its N-th variant, (rows,)
    firsts: list[int]  # number of the first style, (rows,)
    counts: list[int]  # number of styles, (rows,)


def stage_names(store: Store) -> list[str]:
    """Files of a data set's stages, in order."""
    folder = f"{HIDDEN}/stages"
    return [f"{folder}/{n}" for n in sorted(store.sizes(folder)) if n.endswith(".json")]


# Shards


class FilterTotals(Document):
    """Sums over a shard of what the label filter did."""

    consistency: float = 0.0  # of the samples' scores
    kept: float = 0.0  # of the samples' kept fractions
    inconsistent: int = 0  # samples that were kept although too little of them was
    dropped: int = 0  # samples left out
    retried: int = 0  # samples made again from another seed, each attempt counted

    def __add__(self, other: "FilterTotals") -> "FilterTotals":
        return FilterTotals(**{name: value + getattr(other, name) for name, value in self})


class ShardEntry(Document):
    """Entry of a shard in a manifest: enough to check the shard."""

    name: str  # path below the data set's root; of the folder format, the number's name alone
    samples: int
    bytes: int  # of all its files
    sha256: str  # of the file; of the folder format, of the list of its files' hashes
    md5: str  # likewise; wids asks for it


class CommitRecord(ShardEntry):
    """Record that commits a shard, ``.ecgan/shards/NNNNNN.json``."""

    class_pixels: tuple[int, ...]
    filter: FilterTotals = FilterTotals()
    plan: str = ""  # hash of the stage that it belongs to

    def entry(self) -> ShardEntry:
        return ShardEntry(**{name: getattr(self, name) for name in ShardEntry.model_fields})


class Fingerprint(Document):
    """Everything that decides the bytes of a data set's samples.

    None: the setting has no part in them, or an earlier version did not know it. Beside the type
    stands the name by which a refusal calls the field, where it is not the field's own.
    """

    checkpoint: str | None = None
    seed: Annotated[int | None, "--seed"] = None
    style_seed: Annotated[int | None, "--style-seed"] = None
    interpolate: Annotated[str | None, "--interpolate"] = None  # of earlier versions
    format: Annotated[str | None, "--format"] = None
    image_format: Annotated[str | None, "--image-format"] = None
    quality: Annotated[int | None, "sampling.quality"] = None
    samples_per_shard: Annotated[int | None, "--samples-per-shard"] = None
    batch: Annotated[int | None, "--batch"] = None
    label_space: Annotated[str | None, "--label-space"] = None
    provenance: Annotated[bool | None, "--provenance"] = None
    license: Annotated[str | None, "sampling.license"] = None
    on_inconsistent: Annotated[str | None, "--on-inconsistent"] = None
    targets: Annotated[tuple[str, ...] | None, "--target"] = None
    vary: Annotated[str | None, "--vary"] = None
    n_variants: Annotated[int | None, "--n-variants"] = None
    device: str | None = None
    arithmetic: Annotated[int | None, "order of sums"] = None
    versions: dict[str, str] = {}
    filter_tolerance: Annotated[float | None, "sampling.filter_tolerance"] = None
    filter_min_kept: Annotated[float | None, "sampling.filter_min_kept"] = None
    filter_min_class_kept: Annotated[float | None, "sampling.filter_min_class_kept"] = None
    filter_retries: Annotated[int | None, "sampling.filter_retries"] = None
    balance_max_styles: Annotated[int | None, "sampling.balance_max_styles"] = None
    things: Annotated[tuple[str, ...] | None, "sampling.things"] = None
    style_images: Annotated[str | None, "--style-images"] = None
    style_prior: Annotated[str | None, "sampling.style_prior"] = None
    style_temperature: Annotated[float | None, "sampling.style_temperature"] = None
    filter: Annotated[str | None, "--filter"] = None
    balance: Annotated[str | None, "--balance"] = None
    labels: str | None = None
    label_classes: Annotated[str | None, "class list of --labels"] = None  # where it is another
    num_layouts: Annotated[int | None, "layouts"] = None
    styles_per_layout: Annotated[str | None, "styles of a layout"] = None
    num_samples: Annotated[int | None, "samples"] = None
    compile: Annotated[bool | None, "sampling.compile"] = None

    def differences(self, now: "Fingerprint") -> "list[Difference]":
        """Settings of another call that are not those of this one, but ecgan's own version.

        A change of ecgan that changes bytes raises ``arithmetic``.
        """
        found = [
            Difference(key, WORDING[key], value, getattr(now, key))
            for key, value in self
            if key != "versions" and value != getattr(now, key)
        ]
        programs = [name for name in {**self.versions, **now.versions} if name != "ecgan"]
        return found + [
            Difference("versions", f"version of {name}", *values)
            for name in programs
            if (values := (self.versions.get(name), now.versions.get(name)))[0] != values[1]
        ]


class Difference(NamedTuple):
    """Setting in which two fingerprints differ."""

    key: str
    wording: str
    before: object
    now: object


WORDING = {key: (*field.metadata, key)[0] for key, field in Fingerprint.model_fields.items()}
"""Field of a fingerprint -> the name by which refusals call it."""
_KEYS_2 = {wording: key for key, wording in WORDING.items()} | {
    "--style-images or --styles": "style_images"
}


def fingerprint_of_2(value: Mapping[str, Any]) -> dict[str, Any]:
    """Fingerprint of schema 2, whose keys were the words of refusals, with today's keys."""
    translated: dict[str, Any] = {"versions": {}}
    for name, own in value.items():
        if name.startswith("version of "):
            translated["versions"][name.removeprefix("version of ")] = own
        else:
            translated[_KEYS_2.get(name, name)] = own
    return translated


# The manifest


class StyleSource(StrEnum):
    """Origin of a data set's styles; the seeds are in fields of their own."""

    NONE = "none"
    SEED = "seed"
    STYLE_SEED = "style seed"
    PHOTOS = "photos"
    BANK = "a style bank"  # of earlier versions, as the next
    INTERPOLATION = "between styles"

    @property
    def may_show_photos(self) -> bool:
        """Whether styles may be those of photos, which a test may be about."""
        return self in {self.PHOTOS, self.BANK, self.INTERPOLATION}

    @classmethod
    def of_2(cls, text: str) -> "StyleSource":
        """Source that a sentence of schema 2 names."""
        if text.startswith("between"):
            return cls.INTERPOLATION
        return next((source for source in reversed(cls) if text.startswith(source)), cls.NONE)


class EdgeSource(StrEnum):
    """Origin of edge maps."""

    GENERATOR = "generator"
    CANNY = "canny of the image"


class BoundarySource(StrEnum):
    """Origin of the instance boundaries that the generator was given."""

    NONE = "none"
    INSTANCES = "instance ids"
    CLASSES = "boundaries between classes"


class FilterSummary(Document):
    """Label filter of a data set, and what it did."""

    kind: str = "none"
    segmenter: str | None = None  # train, or the segmenter by path or name
    weights: tuple[str, ...] = ()  # hashes of the segmenters' weights
    # Whether no segmenter judged what was made from a pair that it learnt from
    independent: Literal["yes", "no", "unknown"] = "unknown"
    on_inconsistent: str = "ignore"
    thresholds: dict[str, float] = {}
    consistency: float | None = None  # mean score of the samples
    kept_fraction: float | None = None  # mean share of the labelled pixels that was kept
    inconsistent: int = 0
    dropped: int = 0
    retried: int = 0


class CheckpointRecord(Document):
    """Generator that made the samples."""

    sha256: str = ""
    images_seen: int | None = None


class Provenance(Document):
    """Marks of synthetic media, and the generator that made them."""

    digital_source_type: str = ""
    checkpoint: CheckpointRecord = CheckpointRecord()
    recipe_hash: str = ""
    seen: tuple[str, ...] = ()  # layouts that the generator's training saw, where that is recorded


class LabelGeneratorRecord(Document):
    """Segmenter that trained the generator; other keys stay as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    hash: str = ""
    data: str = ""
    weights: str = ""


class Manifest(Document):
    """Description of a finished data set, ``manifest.json``.

    No time is in it, so that the same data set has the same bytes. Fields with a default may be
    missing in data sets of earlier versions.
    """

    schema_version: int = Field(default=SCHEMA, alias="schema")
    versions: dict[str, str] = {}
    format: Format = "webdataset"
    split: str = "train"
    samples: int = 0
    layouts: int | None = None
    seen_layouts: int | None = None  # that training saw, by key
    varied_layouts: int = 0  # variants of layouts
    size: tuple[int, int] = (0, 0)  # height and width
    image_format: ImageFormat | None = None
    quality: int | None = None
    jpeg_subsampling: str = "4:4:4"
    label_space: Literal["input", "evaluation"]  # ids of the labels that are written
    ignore_index: int = 255
    edge_source: EdgeSource = EdgeSource.GENERATOR
    boundary_source: BoundarySource = BoundarySource.NONE
    style_source: StyleSource = StyleSource.NONE
    seed: int = 0
    style_seed: int | None = None
    balance: str = "none"
    vary: tuple[str, ...] = ()
    license: str = ""
    filter: FilterSummary = FilterSummary()
    label_generator: LabelGeneratorRecord | None = None
    recipe: dict[str, Any]  # of the generator, with the call's overrides
    fingerprint: Fingerprint = Fingerprint()
    classes: Any  # class list, as ecgan.labels.from_json() reads it
    names: tuple[str, ...] = ()  # of the ids that are written
    class_pixels: tuple[int, ...] = ()  # of each of them
    shards: list[ShardEntry]  # in order
    converted_from: Format | None = None  # that the samples were made in
    provenance: Provenance | None = None

    @field_validator("schema_version")
    @classmethod
    def _known(cls, value: int) -> int:
        if not 1 <= value <= SCHEMA:
            raise ValueError(f"schema {value}, expected 1 to {SCHEMA}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _of_earlier(cls, value: Any) -> Any:  # noqa: ANN401
        """Translate schema 1 and 2: words of refusals as keys, sentences as values."""
        if not isinstance(value, dict) or value.get("schema") not in (1, 2):
            return value
        changed: dict[str, Any] = {"fingerprint": fingerprint_of_2(value.get("fingerprint", {}))}
        if "style_source" in value:
            changed["style_source"] = StyleSource.of_2(value["style_source"])
        changed["style_seed"] = changed["fingerprint"].get("style_seed")
        return value | changed

    @property
    def is_complete(self) -> bool:
        """Whether it has what checking and converting need: sets of schema 1 do not."""
        return self.schema_version > 1

    def class_list(self, place: str | Path | Store) -> LabelSpace:
        """Classes of the labels; ``place`` is for messages."""
        return labels.from_json(self.classes, f"{place}/{MANIFEST}: classes")

    @property
    def styles(self) -> str:
        """Origin of the styles, in words."""
        if self.style_source is StyleSource.SEED:
            return f"seed {self.seed}"
        if self.style_source is StyleSource.STYLE_SEED:
            return f"style seed {self.style_seed}, the same for all layouts"
        return self.style_source

    def of_recipe(self, section: str, key: str, default: Any = None) -> Any:  # noqa: ANN401
        """Value of a key of the recipe, which may be of an earlier version."""
        return self.recipe.get(section, {}).get(key, default)

    def text(self) -> str:
        """JSON text of the file, always of today's schema."""
        value = self.model_dump(mode="json", by_alias=True) | {"schema": SCHEMA}
        if self.filter.kind == "none":
            value["filter"] = {"kind": "none"}
        for name in ("converted_from", "provenance"):
            if value[name] is None:
                del value[name]
        return json.dumps(value, indent=2) + "\n"


def read_manifest(place: str | Path | Store) -> Manifest | None:
    """Manifest of a data set that we wrote; None where there is none.

    Raises:
        UserError: the data set is not complete, or the file is not ours.
    """
    store = open_store(place)
    try:
        text = store.read(MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        if HIDDEN in store.names():
            raise UserError(
                f"{store} is not complete: it has no {MANIFEST}. Run the command that makes it "
                "again; it continues"
            ) from None
        return None
    try:
        return Manifest.model_validate(json.loads(text))
    except ValidationError as error:
        raise UserError(
            f"{store}/{MANIFEST}: not a manifest that this version of ecgan reads: "
            f"{', '.join(_faults(error))}; make the data set again"
        ) from None
    except ValueError as error:
        raise UserError(f"{store}/{MANIFEST}: not a JSON file: {error}") from error


def _faults(error: ValidationError) -> Iterator[str]:
    """Faults of a document by their place in it, as ``shards.0.bytes``."""
    missing: list[str] = []
    for fault in error.errors():
        place = ".".join(map(str, fault["loc"]))
        if fault["type"] == "missing":
            missing.append(place)
        elif fault["type"] == "value_error":
            yield fault["msg"].removeprefix("Value error, ")
        else:
            yield f"{place or 'it'}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"
    if missing:
        yield f"it lacks {', '.join(missing)}"
