"""The book that a data set keeps in ``.ecgan``: what was planned, what is committed, what failed.

    request.json        the options of the last call that added a stage
    plan.json           the fingerprint of each stage: everything that decides its bytes
    stages/000.json     the rows of a stage: layouts, styles
    shards/000000.json  commits a shard: sums and counts of what lies under its name
    failures.jsonl      shards that failed for good, with the reason
    log.jsonl           seconds of each shard that the last call made, by stage

Readers and later calls trust committed shards only.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, cast

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from ecgan.data.datasets import Item
from ecgan.errors import UsageError, UserError
from ecgan.generation.plan import SPLIT, Plan, Stage, extension, stage_of, stage_record
from ecgan.reading.documents import checked, parse_json
from ecgan.runtime.storage import HIDDEN, Store
from ecgan.runtime.timing import counted
from ecgan.shards.files.names import (
    MAX_SHARDS,
    Format,
    commit_name,
    committed_number,
    shard_name,
    shard_parts,
)
from ecgan.shards.finalize import SIDECARS
from ecgan.shards.formats import files_of, is_intact, measured_size
from ecgan.shards.manifest import (
    CommitRecord,
    Count,
    Difference,
    Document,
    FilterTotals,
    Fingerprint,
    ShardEntry,
    StageRecord,
    Text,
    fingerprint_of_2,
)

SCHEMA = 3  # of plan.json; 2 is read too
PLAN = f"{HIDDEN}/plan.json"
REQUEST = f"{HIDDEN}/request.json"
FAILURES = f"{HIDDEN}/failures.jsonl"
LOG = f"{HIDDEN}/log.jsonl"

# Fields of the fingerprint that --extend may change: further layouts and styles.
_EXTENDABLE = frozenset({"labels", "num_layouts", "styles_per_layout", "num_samples", "n_variants"})


@dataclass(frozen=True)
class PlanRequest:
    """What a call asks for."""

    stage: Stage  # the whole of it, as if nothing were there
    digests: Sequence[str]  # of each layout's files, (layouts,)
    fingerprint: Fingerprint  # everything that decides the bytes
    request: Mapping[str, Any]  # options of the command, for the record


class _StageEntry(Document):
    """Stage of a data set, as plan.json lists it."""

    fingerprint: Fingerprint
    plan: Text
    first_shard: Annotated[Count, Field(le=MAX_SHARDS)]
    num_shards: Annotated[Count, Field(ge=1, le=MAX_SHARDS)]
    num_samples: Annotated[Count, Field(ge=1)]


class _PlanDocument(Document):
    """Document ``plan.json``."""

    schema_version: Literal[2, 3] = Field(default=SCHEMA, alias="schema")
    stages: Annotated[tuple[_StageEntry, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _of_2(cls, value: Any) -> Any:  # noqa: ANN401
        """Translate schema 2, whose fingerprints had the words of refusals as keys."""
        if not isinstance(value, dict) or cast(Any, value).get("schema") != 2:
            return cast(Any, value)
        document = cast("dict[str, Any]", value)
        stages = document.get("stages")
        if not isinstance(stages, list):
            return document
        return document | {"stages": [*map(_entry_of_2, cast("list[object]", stages))]}

    @model_validator(mode="after")
    def _follow(self) -> "_PlanDocument":
        first = 0
        for stage in self.stages:
            if stage.first_shard != first:
                raise ValueError("stages: the shards of one do not follow those of another")
            first += stage.num_shards
        return self


def _entry_of_2(value: object) -> object:
    """Entry of a stage of schema 2 as today's."""
    if not isinstance(value, dict):
        return value
    entry = cast("dict[str, object]", value)
    return entry | {"fingerprint": fingerprint_of_2(entry.get("fingerprint"))}


@dataclass
class Committed:
    """Shards that are whole, and sums over them."""

    shards: dict[int, ShardEntry] = field(default_factory=dict[int, ShardEntry])  # by number
    class_pixels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((), np.int64))
    filter: FilterTotals = field(default_factory=FilterTotals)  # what the label filter did

    def add(self, number: int, shard: CommitRecord) -> None:
        self.shards[number] = shard.entry()
        self.class_pixels = self.class_pixels + np.array(shard.class_pixels, np.int64)
        self.filter += shard.filter

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards.values())

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards.values())

    def in_order(self) -> list[ShardEntry]:
        return [shard for _, shard in sorted(self.shards.items())]


class DatasetState:
    """The book of one data set."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def is_ours(self) -> bool:
        """Whether there is a data set of ours, finished or not."""
        return self.store.size(PLAN) is not None

    def check_place(self) -> None:
        """Refuse a place that holds something else.

        Raises:
            UserError: it is a file, cannot be used, or is not empty and not ours.
        """
        if not self.store.holds_anything() or self.is_ours():
            return
        if any(name != HIDDEN for name in self.store.names()):
            raise UsageError(
                f"--out {self.store}: not empty, and not a data set of ecgan; give another folder "
                "(nothing in it was touched)"
            )

    def remove(self) -> None:
        """Remove what we wrote; by plan.json, which goes last, the place is known to be ours."""
        store = self.store
        names = [*SIDECARS, *(f"data/{name}" for name in store.sizes("data"))]
        names = [name for name in names if not name.startswith("data/") or _is_shard(name)]
        for listing in store.sizes(f"{HIDDEN}/records"):
            name = listing.removesuffix(".jsonl")
            if _is_shard(name):
                names += [file for file in files_of(store, name) if not file.startswith(HIDDEN)]
        store.remove(names)
        for folder in ("shards", "records", "stages"):
            store.remove_folder(f"{HIDDEN}/{folder}")
        store.sweep()
        store.remove([FAILURES, LOG, REQUEST])
        store.remove([PLAN])

    def resolve(
        self, wanted: PlanRequest, *, extend: bool, unknown: Collection[str] = ()
    ) -> tuple[Plan, bool]:
        """What is there and what is asked for, as one plan.

        Args:
            wanted: of this call.
            extend: add what is asked for beyond what is there.
            unknown: names in the fingerprint that are not known yet, and not compared.

        Returns:
            The plan, and whether its last stage is new.

        Raises:
            UserError: what is there was made with other settings; ``--extend`` has nothing to add.
        """
        if not self.is_ours():
            return Plan((wanted.stage,)), True
        book = self._book()
        before = book.stages[-1].fingerprint
        differing = [d for d in before.differences(wanted.fingerprint) if d.key not in unknown]
        if not extend or {difference.key for difference in differing} - _EXTENDABLE:
            _refuse(self.store, differing, extend=extend)
        kept, digests = self._kept_stages(book, wanted)
        if not differing:
            return Plan(kept), False
        self._check_extension(wanted, digests)
        rows = extension(wanted.stage, kept)
        if not len(rows):
            raise UserError(
                f"--extend: {self.store} has all of that already; ask for more styles or layouts"
            )
        added = replace(wanted.stage, rows=rows, first_shard=kept[-1].numbers.stop)
        return Plan((*kept, added)), True

    def record_stage(self, plan: Plan, wanted: PlanRequest) -> None:
        """Keep the last stage of a plan; plan.json is what makes it count."""
        store, number, stage = self.store, len(plan.stages) - 1, plan.stages[-1]
        store.write(
            _stage_name(number), stage_record(stage, wanted.digests).model_dump_json() + "\n"
        )
        stages = self._book().stages if number else ()
        own = _StageEntry(
            fingerprint=wanted.fingerprint,
            plan=stage.plan,
            first_shard=stage.first_shard,
            num_shards=stage.num_shards,
            num_samples=stage.num_samples,
        )
        store.write(REQUEST, json.dumps(wanted.request, indent=2) + "\n")
        book = _PlanDocument(stages=(*stages, own))
        store.remove(["manifest.json"])  # it tells of what was there before
        store.write(PLAN, book.model_dump_json(by_alias=True, indent=2) + "\n")

    def committed(
        self, plan: Plan, data_format: Format, num_classes: int, *, verify: bool = False
    ) -> Committed:
        """Shards with a record of this plan whose files have the recorded size.

        Args:
            plan: of the data set.
            data_format: of its shards.
            num_classes: number of class ids that their records count.
            verify: their bytes too.
        """
        store, found = self.store, Committed()
        listed = map(committed_number, store.sizes(f"{HIDDEN}/shards"))
        numbers = sorted(n for n in listed if n is not None and n < plan.num_shards)
        sizes = store.sizes("data") if numbers else {}
        texts = store.read_many([commit_name(number) for number in numbers])
        for number, text in zip(numbers, texts, strict=True):
            shard = None if text is None else _record(plan, number, text)
            if shard is None or shard.name != shard_name(data_format, SPLIT, number):
                continue
            if len(shard.class_pixels) != num_classes or _size(store, shard, sizes) != shard.bytes:
                continue
            if verify and not is_intact(store, shard):
                continue
            found.add(number, shard)
        return found

    def uncommit(self, numbers: Sequence[int]) -> None:
        """Forget records of shards that will be made again."""
        there = self.store.sizes(f"{HIDDEN}/shards")
        names = (commit_name(number) for number in numbers)
        self.store.remove([name for name in names if name.rpartition("/")[2] in there])

    def begun_with(self) -> str | None:
        """Version of ecgan that began the data set; None where there is none."""
        return self._book().stages[0].fingerprint.versions.get("ecgan") if self.is_ours() else None

    def _book(self) -> _PlanDocument:
        place, remedy = f"{self.store}/{PLAN}", "use another --out, or --overwrite to make it anew"
        value = parse_json(self.store.read(PLAN), place, "the plan of a data set", remedy)
        return checked(_PlanDocument, value, f"{place}: not a plan that ecgan goes on with", remedy)

    def _kept_stages(
        self, book: _PlanDocument, wanted: PlanRequest
    ) -> tuple[tuple[Stage, ...], dict[str, str]]:
        items = wanted.stage.items
        numbers = {item.key: number for number, item in enumerate(items)}
        stages: list[Stage] = []
        digests: dict[str, str] = {}
        for number, entry in enumerate(book.stages):
            record = self._stage_record(number, entry)
            if gone := [key for key in record.keys if key not in numbers]:
                raise UserError(
                    f"{counted(len(gone), 'layout')} of {self.store} missing (first: {gone[0]}); "
                    "restore what is missing, or choose another --out"
                )
            stages.append(stage_of(record, items, numbers, paste=wanted.stage.paste))
            digests |= zip(record.keys, record.digests, strict=True)
        return tuple(stages), digests

    def _stage_record(self, number: int, entry: _StageEntry) -> StageRecord:
        """Rows of a stage, which must be those that plan.json tells of."""
        name, remedy = _stage_name(number), "use another --out, or --overwrite to make it anew"
        place = f"{self.store}/{name}"
        try:
            text = self.store.read(name)
        except FileNotFoundError:
            raise UserError(f"{place}: not there, but plan.json tells of it; {remedy}") from None
        value = parse_json(text, place, "a stage of a data set", remedy)
        record = checked(StageRecord, value, place, remedy)
        num_samples = sum(record.counts)
        told = (entry.plan, entry.first_shard, entry.num_shards, entry.num_samples)
        num_shards = -(-num_samples // record.samples_per_shard)
        if told != (record.plan, record.first_shard, num_shards, num_samples):
            raise UserError(f"{place}: not the stage that plan.json tells of; {remedy}")
        return record

    def _check_extension(self, wanted: PlanRequest, digests: Mapping[str, str]) -> None:
        items: Sequence[Item] = wanted.stage.items
        now = {item.key: digest for item, digest in zip(items, wanted.digests, strict=True)}
        changed = [key for key, digest in digests.items() if now[key] != digest]
        if changed:
            raise UserError(
                f"--extend: {counted(len(changed), 'label map')} changed since {self.store} was "
                f"made (first: {changed[0]}); give changed maps another name, or use another --out"
            )
        if wanted.stage.paste and len(now) != len(digests):
            raise UsageError(
                "--extend: with --vary paste, objects come from all layouts, so further layouts "
                "would change what is there; make another data set of them, with another --out"
            )


def plan_id(fingerprint: Fingerprint) -> str:
    """Short hash of everything that decides a stage's bytes."""
    text = json.dumps(fingerprint.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stage_name(number: int) -> str:
    return f"{HIDDEN}/stages/{number:03d}.json"


def _record(plan: Plan, number: int, text: bytes) -> CommitRecord | None:
    """Record of a shard; None where it is torn, or not one of this plan."""
    try:
        shard = CommitRecord.model_validate_json(text)
    except ValueError:
        return None
    stage = plan.stage_of(number)
    is_own = shard.plan == stage.plan and shard.samples <= stage.samples_in(number)
    return shard if is_own else None


def _is_shard(name: str) -> bool:
    """Whether a name is that of a shard of ours."""
    try:
        return shard_parts(name).split == SPLIT
    except ValueError:
        return False


def _size(store: Store, shard: ShardEntry, sizes: Mapping[str, int]) -> int | None:
    if shard_parts(shard.name).data_format != "folder":
        return sizes.get(shard.name.removeprefix("data/"))
    return measured_size(store, shard.name)


def _refuse(store: Store, differing: Sequence[Difference], *, extend: bool) -> None:
    """Refuse a call whose settings are not those of the data set, and name them."""
    if not differing:
        return

    def shown(value: object) -> str:
        if value is None:
            return "none"
        return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)

    if extend:
        differing = [one for one in differing if one.key not in _EXTENDABLE]
    changes = ", ".join(
        f"{one.wording} ({shown(one.before)}, now {shown(one.now)})" for one in differing
    )
    remedy = "Use another --out, or --overwrite to make it anew"
    if not {one.key for one in differing} - _EXTENDABLE:
        remedy += ", or --extend to add to it"
    raise UserError(f"{store} was made with other settings; they differ in {changes}. {remedy}")
