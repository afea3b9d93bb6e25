"""Documents of a data set: ``manifest.json``, the fingerprint in it, and records of shards.

Every document is a pydantic model; what an earlier version wrote is translated when it is read.
``Manifest.model_json_schema()`` is the JSON schema.

A layout is named by the first 64 bits of its files' SHA-256: 16 hexadecimal digits for the label
map, and 16 more for an instance map beside it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ecgan import labels
from ecgan.errors import UserError
from ecgan.labels import LabelSpace
from ecgan.reading.documents import checked, parse_json
from ecgan.reading.numbers import Seed
from ecgan.runtime.storage import HIDDEN, Store, open_store
from ecgan.shards.files.names import Format, ImageFormat, Key, ShardName, Split, shard_parts

MANIFEST = "manifest.json"
SCHEMA = 3  # of manifest.json; 1 and 2 are read too

_DIGITS = 16  # of each file's SHA-256 in a layout's digest


Count = Annotated[int, Field(ge=0, le=1 << 53)]  # also of the pixels of a whole data set
Text = Annotated[str, Field(max_length=2000)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Document(BaseModel):
    """Base of all documents: values do not change, and unknown keys are passed over."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, allow_inf_nan=False)


def layout_digest(label: str, instances: str | None = None) -> str:
    """Digest of a layout's files, from their SHA-256 in hexadecimal."""
    return label[:_DIGITS] + ("" if instances is None else instances[:_DIGITS])


def photo_digest(sha256: str) -> str:
    """Digest of a photo, from its SHA-256 in hexadecimal."""
    return sha256[:_DIGITS]


def label_digest(layout: str) -> str:
    """Part of a layout's digest that its label map decides."""
    return layout[:_DIGITS]


def layouts_digest(layouts: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of a command's layouts: of their keys and digests, in order of the keys."""
    lines = (f"{key} {digest}" for key, digest in sorted(layouts))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class StageRecord(Document):
    """Rows of one call's samples, ``.ecgan/stages/NNN.json``: columns of equal length."""

    first_shard: Count
    samples_per_shard: Annotated[Count, Field(ge=1)]
    plan: Text  # hash of everything that decides its samples' bytes
    keys: list[Key]  # of its layouts, (layouts,)
    digests: list[Annotated[str, Field(pattern="^([0-9a-f]{16}){1,2}$")]]  # of their files
    # Segmenters that judge the layouts, (layouts,); None without a label filter
    folds: list[Annotated[int, Field(ge=0, le=127)]] | None
    layouts: list[Count]  # number of each row's layout, (rows,)
    variants: list[Count]  # 0 for the layout itself, N for its N-th variant, (rows,)
    firsts: list[Count]  # number of the first style, (rows,)
    counts: list[Annotated[Count, Field(ge=1, le=1 << 40)]]  # number of styles, (rows,)

    @model_validator(mode="after")
    def _fits(self) -> "StageRecord":
        columns = (self.layouts, self.variants, self.firsts, self.counts)
        if len({*map(len, columns)}) > 1 or not self.counts:
            raise ValueError("layouts, variants, firsts and counts: not of one length above 0")
        if len(self.digests) != len(self.keys) or len(self.folds or self.keys) != len(self.keys):
            raise ValueError("digests and folds: not one for each of the keys")
        if max(self.layouts) >= len(self.keys) or len({*self.keys}) < len(self.keys):
            raise ValueError("layouts: more than there are different keys")
        return self


def stage_names(store: Store) -> list[str]:
    """Files of a data set's stages, in order."""
    folder = f"{HIDDEN}/stages"
    return [f"{folder}/{n}" for n in sorted(store.sizes(folder)) if n.endswith(".json")]


# Shards


class FilterTotals(Document):
    """Sums over a shard of what the label filter did."""

    consistency: float = 0.0  # of the samples' scores
    kept: float = 0.0  # of the samples' kept fractions
    inconsistent: Count = 0  # samples that were kept although too little of them was
    dropped: Count = 0  # samples left out
    retried: Count = 0  # samples made again from another seed, each attempt counted

    def __add__(self, other: "FilterTotals") -> "FilterTotals":
        return FilterTotals(**{name: value + getattr(other, name) for name, value in self})


class ShardEntry(Document):
    """Entry of a shard in a manifest: enough to check the shard."""

    name: ShardName  # path below the data set's root; of the folder format, a name alone
    samples: Count
    bytes: Count  # of all its files
    sha256: Sha256  # of the file; of the folder format, of the list of its files' hashes
    md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]  # likewise; wids asks for it


class CommitRecord(ShardEntry):
    """Record that commits a shard, ``.ecgan/shards/NNNNNN.json``."""

    class_pixels: tuple[Count, ...]
    filter: FilterTotals = FilterTotals()
    plan: Text = ""  # hash of the stage that it belongs to

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
    onto: Annotated[str | None, "--onto"] = None  # digest of the photos
    device: str | None = None
    arithmetic: Annotated[int | None, "order of sums"] = None
    versions: dict[str, str] = Field(default={})
    filter_tolerance: Annotated[float | None, "sampling.filter_tolerance"] = None
    filter_min_kept: Annotated[float | None, "sampling.filter_min_kept"] = None
    filter_min_class_kept: Annotated[float | None, "sampling.filter_min_class_kept"] = None
    filter_retries: Annotated[int | None, "sampling.filter_retries"] = None
    balance_max_styles: Annotated[int | None, "sampling.balance_max_styles"] = None
    things: Annotated[tuple[str, ...] | None, "sampling.things"] = None
    layout_fit: Annotated[str | None, "sampling.layout_fit"] = None  # where it is not stretch
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


def fingerprint_of_2(value: object) -> object:
    """Fingerprint of schema 2, whose keys were the words of refusals, with today's keys."""
    if not isinstance(value, Mapping):
        return value
    translated: dict[str, Any] = {"versions": {}}
    for name, own in cast("Mapping[str, Any]", value).items():
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
    OWN_PHOTOS = "those of the layouts' own photos"

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
    segmenter: Text | None = None  # train, or the segmenter by path or name
    weights: tuple[Text, ...] = ()  # hashes of the segmenters' weights
    # Whether no segmenter judged what was made from a pair that it learnt from
    independent: Literal["yes", "no", "unknown"] = "unknown"
    on_inconsistent: str = "ignore"
    thresholds: dict[str, float] = Field(default={})
    consistency: float | None = None  # mean score of the samples
    kept_fraction: float | None = None  # mean share of the labelled pixels that was kept
    inconsistent: Count = 0
    dropped: Count = 0
    retried: Count = 0

    @model_validator(mode="after")
    def _has_thresholds(self) -> "FilterSummary":
        if self.kept_fraction is not None and not {"tolerance", "min_kept"} <= {*self.thresholds}:
            raise ValueError("thresholds: expected tolerance and min_kept")
        return self


class CheckpointRecord(Document):
    """Generator that made the samples."""

    sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    images_seen: Count | None = None


class Provenance(Document):
    """Marks of synthetic media, and the generator that made them."""

    digital_source_type: Text = ""
    checkpoint: CheckpointRecord = CheckpointRecord()
    recipe_hash: Text = ""
    seen: tuple[Text, ...] = ()  # layouts that the generator's training saw, where that is recorded


class LabelGeneratorRecord(Document):
    """Segmenter that trained the generator; other keys stay as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    hash: Text = ""
    data: Text = ""
    weights: Text = ""


_Side = Annotated[int, Field(ge=0, le=65535)]


class Manifest(Document):
    """Description of a finished data set, ``manifest.json``.

    No time is in it, so that the same data set has the same bytes. Fields with a default may be
    missing in data sets of earlier versions.
    """

    schema_version: int = Field(default=SCHEMA, alias="schema")
    versions: dict[str, Text] = Field(default={})
    format: Format = "webdataset"
    split: Split = "train"
    samples: Count = 0
    layouts: Count | None = None
    seen_layouts: Count | None = None  # that training saw, by key
    varied_layouts: Count = 0  # variants of layouts
    size: tuple[_Side, _Side] = (0, 0)  # height and width
    image_format: ImageFormat | None = None
    quality: Annotated[int | None, Field(ge=1, le=100)] = None
    jpeg_subsampling: Text = "4:4:4"
    label_space: Literal["input", "evaluation"]  # ids of the labels that are written
    ignore_index: Annotated[int, Field(ge=255, le=65535)] = 255
    edge_source: EdgeSource = EdgeSource.GENERATOR
    boundary_source: BoundarySource = BoundarySource.NONE
    style_source: StyleSource = StyleSource.NONE
    seed: Seed = 0
    style_seed: Seed | None = None
    balance: Text = "none"
    vary: tuple[Text, ...] = ()
    onto: Literal["", "photos"] = ""  # what holds the pixels that were not generated
    license: Text = ""
    filter: FilterSummary = FilterSummary()
    label_generator: LabelGeneratorRecord | None = None
    # Photos without label maps that the generator's training saw
    unlabelled: tuple[Annotated[str, Field(pattern="^[0-9a-f]{16}$")], ...] = ()
    recipe: dict[str, Any]  # of the generator, with the call's overrides
    fingerprint: Fingerprint = Fingerprint()
    classes: Any  # class list, as ecgan.labels.from_json() reads it
    names: tuple[Text, ...] = ()  # of the ids that are written
    class_pixels: tuple[Count, ...] = ()  # of each of them
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
        if isinstance(value.get("style_source"), str):
            changed["style_source"] = StyleSource.of_2(value["style_source"])
        if isinstance(changed["fingerprint"], dict):
            changed["style_seed"] = changed["fingerprint"].get("style_seed")
        return value | changed

    @field_validator("recipe")
    @classmethod
    def _has_sections(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Check what is read of a recipe without its schema, which may be of an earlier version."""
        for name, section in value.items():
            if name != "name" and not isinstance(section, dict):
                raise ValueError(f"{name[:40]}: expected a section")
        texts = {"name": value.get("name", "")}
        for section, key in (("data", "dataset"), ("sampling", "license")):
            texts[f"{section}.{key}"] = value.get(section, {}).get(key, "")
        for key, text in texts.items():
            if not isinstance(text, str) or len(text) > 200:
                raise ValueError(f"{key}: expected a short text")
        return value

    @model_validator(mode="after")
    def _fits(self) -> "Manifest":
        for entry in self.shards:
            parts = shard_parts(entry.name)
            if (parts.data_format, parts.split) != (self.format, self.split):
                raise ValueError(
                    f"shards: {entry.name} is none of format {self.format}, split {self.split}"
                )
        if len({entry.name for entry in self.shards}) < len(self.shards):
            raise ValueError("shards: a name occurs twice")
        if self.is_complete and not len(self.names) == len(self.class_pixels) > 0:
            raise ValueError("class_pixels: not one number for each of the names")
        return self

    @property
    def is_complete(self) -> bool:
        """Whether it has what checking and converting need: sets of schema 1 do not."""
        return self.schema_version > 1

    def class_list(self, place: str | Path | Store) -> LabelSpace:
        """Classes of the labels; ``place`` is for messages.

        Raises:
            UserError: faults in the list, or other names than those of the ids that are written.
        """
        space = labels.from_json(self.classes, f"{place}/{MANIFEST}: classes")
        names = space.names_for_evaluation if self.label_space == "evaluation" else space.names
        if self.names and (names, space.ignore_index) != (self.names, self.ignore_index):
            raise UserError(
                f"{place}/{MANIFEST}: names and ignore_index are not those of its classes; make "
                "the data set again"
            )
        return space

    @property
    def name(self) -> str:
        """Name of the recipe."""
        return str(self.recipe.get("name", ""))

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
        for name in ("converted_from", "provenance", "unlabelled", "onto"):
            if not value[name]:
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
    place, remedy = f"{store}/{MANIFEST}", "make the data set again"
    value = parse_json(text, place, "a JSON file", remedy)
    return checked(Manifest, value, f"{place}: not a manifest that ecgan reads", remedy)
