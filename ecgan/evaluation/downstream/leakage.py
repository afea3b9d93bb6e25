"""Data leakage: samples that teach what segmenters are tested on, or more than a real part.

A layout is known by its label map's digest where the data set kept it (``.ecgan/stages``), else by
its key. A generator is known by the file that the manifest names by its hash, and is asked which
layouts its training saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from ecgan.checkpoint import GeneratorMetadata, InheritedTraining, read_metadata
from ecgan.runtime.files import sha256
from ecgan.runtime.storage import HIDDEN, open_store
from ecgan.segmentation.segmenter import Sources
from ecgan.shards.dataset import SampleDataset
from ecgan.shards.manifest import (
    Manifest,
    StageRecord,
    label_digest,
    layouts_digest,
    read_manifest,
    stage_names,
)


class Membership(StrEnum):
    """Pairs that a layout is one of."""

    PART = "part"  # the real part that samples are added to
    TRAIN = "train"  # the rest of the training split
    HELD = "held"  # a split that must not be learnt from
    UNCLEAR = "unclear"  # its key is of TRAIN and of HELD, and its label map is not known
    OTHER = "other"


class Doubt(StrEnum):
    """Source of samples that may have been a held-out pair, and is not known."""

    GENERATOR = "generator"
    STYLES = "styles"


@dataclass(frozen=True)
class Part:
    """The real pairs of an experiment, and those that there are of them.

    Attributes:
        fraction: of the training split.
        own: the pairs of that fraction.
        train: the whole training split.
        held: the splits that must not be learnt from, together.
        held_splits: their names.
        split: name of the training split.
    """

    fraction: float
    own: Sources
    train: Sources
    held: Sources
    held_splits: frozenset[str]
    split: str

    def membership(self, key: str, digest: str | None) -> Membership:
        """Which pairs a layout is one of.

        Args:
            key: of the layout.
            digest: digest of its label map, where it is known.
        """
        for name, labels in self._digests.items():
            if digest is not None and digest in labels:
                return name
        in_train, in_held = key in self.train.keys, key in self.held.keys
        if in_held:
            return Membership.UNCLEAR if in_train else Membership.HELD
        if key in self.own.keys:
            return Membership.PART
        return Membership.TRAIN if in_train else Membership.OTHER

    @cached_property
    def _digests(self) -> dict[Membership, frozenset[str]]:
        """In this order: a label map that two splits have in common is no secret."""
        parts = {
            Membership.PART: self.own,
            Membership.TRAIN: self.train,
            Membership.HELD: self.held,
        }
        return {
            name: frozenset(label_digest(digest) for digest in pairs.labels)
            for name, pairs in parts.items()
        }


@dataclass
class Findings:
    """What speaks against sets of samples.

    Attributes:
        faults: why they are refused.
        notes: what a reader of the result should know.
        doubts: sources that may have been a held-out pair, each with a note.
    """

    faults: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    doubts: set[Doubt] = field(default_factory=set[Doubt])

    def doubt(self, source: Doubt, note: str) -> None:
        """Note a source that is not known."""
        self.doubts.add(source)
        self.notes.append(note)


class Generators:
    """Generator files by their hash.

    Args:
        given: looked at first.
        runs: folder of runs, whose generators are looked at too.
    """

    def __init__(self, given: Sequence[Path], runs: Path = Path("runs")) -> None:
        self._given, self._runs = given, runs

    @cached_property
    def _files(self) -> dict[str, Path]:
        found = [*self._given, *sorted(self._runs.glob("*/generator*.safetensors"))]
        return {sha256(path): path for path in reversed(found)}

    def seen(self, digest: str) -> frozenset[str]:
        """Keys of the layouts that a generator's training saw; empty where they are not known."""
        metadata = self._metadata(digest)
        return frozenset() if metadata is None else frozenset(metadata.seen_keys)

    def inherited(self, digest: str) -> list[InheritedTraining]:
        """What the trainings saw that a generator's training started from (``--init``)."""
        metadata = self._metadata(digest)
        return [] if metadata is None else metadata.inherited

    def _metadata(self, digest: str) -> GeneratorMetadata | None:
        path = self._files.get(digest)
        return None if path is None else read_metadata(path)


def check(
    place: str, part: Part, generators: Generators, *, unknown_generator: bool = False
) -> Findings:
    """Look for what a set of samples would give away.

    Args:
        place: of the set.
        part: the real pairs that it shall be added to.
        generators: where generator files are.
        unknown_generator: take a set whose generator is not there to be asked.

    Raises:
        UserError: the set cannot be read.
    """
    found, about = Findings(), read_manifest(place)
    _check_layouts(place, part, about, found)
    _check_generator(place, part, about, generators, found, take_unknown=unknown_generator)
    _note_segmenters(place, part, about, found)
    return found


def digests(place: str) -> dict[str, str]:
    """Digests of label maps by layout, of a set that kept them."""
    return {key: label_digest(digest) for key, digest in _layout_digests(place).items()}


def _layout_digests(place: str) -> dict[str, str]:
    store = open_store(place)
    found: dict[str, str] = {}
    for name in stage_names(store):
        stage = StageRecord.model_validate_json(store.read(name))
        found |= zip(stage.keys, stage.digests, strict=True)
    return found


def layouts(place: str) -> dict[str, str | None]:
    """Layouts of a set by key, each with its label map's digest where that is known."""
    found: dict[str, str | None] = {**digests(place)}
    if found:
        return found
    dataset = SampleDataset(place)
    raws = (dataset.raw(index) for index in range(len(dataset)))
    return {str(raw.record.get("source", raw.key)): None for raw in raws}


def _check_layouts(place: str, part: Part, about: Manifest | None, found: Findings) -> None:
    known = layouts(place)
    grouped: dict[Membership, list[str]] = {}
    for key, digest in known.items():
        grouped.setdefault(part.membership(key, digest), []).append(key)

    def some(membership: Membership) -> str:
        keys = grouped[membership]
        return f"{place}: {len(keys)} of {len(known)} layouts (first: {keys[0]})"

    held = " and ".join(sorted(part.held_splits))
    if Membership.HELD in grouped:
        found.faults.append(
            f"{some(Membership.HELD)} are of {held}, which nobody may learn from; sample layouts "
            f"of the split {part.split}: ecgan sample --split {part.split} --num N"
        )
    if Membership.UNCLEAR in grouped:
        found.faults.append(
            f"{some(Membership.UNCLEAR)} have a key that the split {part.split} shares with "
            f"{held}, and the set does not say which label map it was made from; give the set with "
            f"its folder {HIDDEN}, or give files of different splits different names"
        )
    outside = [one for one in (Membership.TRAIN, Membership.OTHER) if one in grouped]
    if part.fraction < 1:
        found.faults += [
            f"{some(one)} are not of the {part.fraction:g} of the real pairs that they shall be "
            f"added to; sample with a generator of that part: {command(part.fraction)}"
            for one in outside
        ]
    elif Membership.OTHER in outside:
        found.notes.append(
            f"{some(Membership.OTHER)} are of label maps that are not in the real data set"
        )
    if about is not None and "paste" in about.vary and not _is_whole_part(place, part, about):
        found.notes.append(
            f"{place}: --vary paste took objects from all layouts that the command was given, and "
            "which these were is not known"
        )


def _is_whole_part(place: str, part: Part, about: Manifest) -> bool:
    """Whether the layouts that the command was given are those of the part, one and all."""
    given = _layout_digests(place)
    same = layouts_digest(given.items()) == about.fingerprint.labels
    return same and all(
        part.membership(key, label_digest(digest)) is Membership.PART
        for key, digest in given.items()
    )


def _check_generator(
    place: str,
    part: Part,
    about: Manifest | None,
    generators: Generators,
    found: Findings,
    *,
    take_unknown: bool,
) -> None:
    trained_on, share = part.split, 1.0
    if about is not None:
        trained_on = about.of_recipe("data", "split", trained_on)
        share = about.of_recipe("data", "fraction", share)
    if trained_on in part.held_splits:
        found.faults.append(f"{place}: its generator was trained on the split {trained_on}")
        return
    if about is not None and share > part.fraction:
        found.faults.append(
            f"{place}: its generator was trained on {share:g} of the real pairs, more than the "
            f"{part.fraction:g} that its samples shall be added to: {command(part.fraction)}"
        )
        return
    digest = "" if about is None else about.fingerprint.checkpoint or ""
    told = None if about is None else about.provenance
    seen = frozenset(told.seen if told else ()) or generators.seen(digest)
    if seen:
        _check_seen(place, part, seen, found, by_key=trained_on == part.split)
        names = () if about is None else about.class_list(place).names
        before = generators.inherited(digest)
        _check_inherited(place, part, before, names, found, take_unknown=take_unknown)
    elif take_unknown:
        found.doubt(
            Doubt.GENERATOR,
            f"{place}: what its generator was trained on is not known; it may have seen the photos "
            "that segmenters are tested on (taken on request)",
        )
    else:
        named = f" (SHA-256 {digest[:12]}..., in no runs/*/)" if digest else ""
        found.faults.append(
            f"{place}: what its generator{named} was trained on is not known: it may have seen "
            "what segmenters are tested on. Run where its run folder is in runs/, or take the set "
            "all the same with --unknown-generator: the report says so then"
        )


def _check_seen(
    place: str, part: Part, seen: frozenset[str], found: Findings, *, by_key: bool
) -> None:
    """Refuse a generator that saw what it should not have.

    Args:
        place: of the set.
        part: the real pairs.
        seen: keys of the layouts that training saw.
        found: gets the fault.
        by_key: the generator was trained on the same split, so a key of that split means its pair
            also where another split shares it.
    """
    held = part.held.keys - part.train.keys if by_key else part.held.keys
    wrong = seen & held if part.fraction == 1 else (seen & held) | (seen - part.own.keys)
    if wrong:
        what = (
            f"the {part.fraction:g} of the real pairs that its samples shall be added to"
            if part.fraction < 1
            else f"what may be learnt from: they are of {' and '.join(sorted(part.held_splits))}"
        )
        found.faults.append(
            f"{place}: its generator saw {len(wrong)} of its {len(seen)} layouts (first: "
            f"{min(wrong)}) outside of {what}"
        )


def _check_inherited(
    place: str,
    part: Part,
    inherited: Sequence[InheritedTraining],
    names: Sequence[str],
    found: Findings,
    *,
    take_unknown: bool,
) -> None:
    """Refuse a generator that started (``--init``) from one that saw what it should not have.

    One of other classes is of another data set, whose keys mean nothing here.
    """
    for one in inherited:
        started = f"its generator started from another (SHA-256 {one.sha256[:12]}...)"
        if not one.keys:
            what = f"{place}: {started}, and what that one was trained on is not known"
            if take_unknown:
                found.doubt(Doubt.GENERATOR, f"{what} (taken on request)")
            else:
                found.faults.append(f"{what}; take the set all the same with --unknown-generator")
            continue
        beyond = part.train.keys - part.own.keys if part.fraction < 1 else frozenset[str]()
        wrong = frozenset(one.keys) & ((part.held.keys - part.train.keys) | beyond)
        if wrong and one.classes == list(names):
            found.faults.append(
                f"{place}: {started} that saw {len(wrong)} layouts (first: {min(wrong)}) which "
                f"segmenters are tested on, or outside of the {part.fraction:g} of the real pairs "
                "that the samples shall be added to; train it without --init"
            )


def _note_segmenters(place: str, part: Part, about: Manifest | None, found: Findings) -> None:
    """Other networks that had a say in the samples, and may have learnt elsewhere."""
    if about is None:
        return
    taught = about.of_recipe("model", "label_generator", "off")
    named = about.filter.segmenter or "train"
    for what, name in (("generator's label generator", taught), ("label filter", named)):
        if name not in {"off", "train"}:
            found.notes.append(
                f"{place}: what its {what} ({name}) was trained on is not known; it may be more "
                f"than the {part.fraction:g} of the real pairs"
            )
    if about.style_source.may_show_photos:
        found.doubt(
            Doubt.STYLES,
            f"{place}: its styles ({about.styles}) may be of photos that segmenters are "
            "tested on: which ones they are of is not known",
        )


def command(fraction: float) -> str:
    """Commands that make a set of samples for a fraction of the real pairs."""
    share = "" if fraction == 1 else f" --set data.fraction={fraction:g}"
    return (
        f"ecgan train --recipe NAME{share} --out runs/NAME{'' if fraction == 1 else '-part'}, then "
        f"ecgan sample --run runs/NAME{'' if fraction == 1 else '-part'} --num N --out DIR"
    )
