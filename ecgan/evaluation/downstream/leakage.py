"""Data leakage: samples that teach what segmenters are tested on, or more than a real part.

A layout is known by its label map's digest where the data set kept it (``.ecgan/stages``), else by
its key. A generator is known by the file that the manifest names by its hash, and is asked which
layouts its training saw.
"""

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from ecgan.checkpoint import GeneratorMetadata, read_metadata
from ecgan.data.datasets import Subset
from ecgan.data.packed.sample_sets import SampleDataset
from ecgan.runtime.files import sha256
from ecgan.runtime.storage import HIDDEN, open_store
from ecgan.runtime.timing import counted
from ecgan.segmentation.segmenter import Sources
from ecgan.shards.manifest import (
    Manifest,
    StageRecord,
    label_digest,
    layouts_digest,
    photo_digest,
    read_manifest,
    stage_names,
)


class Membership(StrEnum):
    """Set of real pairs that a layout belongs to."""

    PART = "part"  # the real part that samples are added to
    TRAIN = "train"  # the rest of the training split
    HELD = "held"  # a split that must not be learnt from
    UNCLEAR = "unclear"  # its key is of TRAIN and of HELD, and its label map is not known
    OTHER = "other"


class Doubt(StrEnum):
    """Source of samples that may have been a held-out pair, as the report's protocol says it."""

    GENERATOR = "what some of them were trained on is not known; taken on request (see the notes)"
    STYLES = "none saw a held-out pair in its training; its styles may (see the notes)"


@dataclass(frozen=True)
class Part:
    """Real pairs that samples are added to, and those that must not be learnt from.

    Attributes:
        subset: which pairs of the training split.
        own: these pairs.
        train: pairs of the whole training split.
        held: pairs of all splits that must not be learnt from.
        held_splits: names of these splits.
        split: name of the training split.
        held_photos: gives the digests of the photos of these splits, which are read for it.
    """

    subset: Subset
    own: Sources
    train: Sources
    held: Sources
    held_splits: frozenset[str]
    split: str
    held_photos: Callable[[], AbstractSet[str]] = frozenset

    def membership(self, key: str, digest: str | None) -> Membership:
        """Set of pairs that a layout belongs to.

        Args:
            key: key of the layout.
            digest: digest of its label map; None where it is not known.
        """
        if digest is not None and digest in self._by_digest:
            return self._by_digest[digest]
        in_train = key in self.train.keys
        if key in self.held.keys:
            return Membership.UNCLEAR if in_train else Membership.HELD
        if key in self.own.keys:
            return Membership.PART
        return Membership.TRAIN if in_train else Membership.OTHER

    @cached_property
    def _by_digest(self) -> dict[str, Membership]:
        """The last one counts: a label map that two splits have in common is no secret."""
        parts = {
            Membership.HELD: self.held,
            Membership.TRAIN: self.train,
            Membership.PART: self.own,
        }
        return {label_digest(d): name for name, pairs in parts.items() for d in pairs.labels}

    def forbidden(self, keys: AbstractSet[str], *, same_split: bool = True) -> AbstractSet[str]:
        """Keys of layouts that a generator must not have seen.

        Args:
            keys: keys of the layouts that its training saw.
            same_split: they are keys of the training split, so that a key of that split means its
                pair also where another split shares it.
        """
        held = self.held.keys - self.train.keys if same_split else self.held.keys
        return keys & held | (set[str]() if self.subset.is_whole else keys - self.own.keys)

    @property
    def held_names(self) -> str:
        """Names of the held-out splits, in words."""
        return " and ".join(sorted(self.held_splits))

    @property
    def command(self) -> str:
        """Commands that make samples for this part."""
        share, run, part = "", "runs/NAME", self.subset
        if not part.is_whole:
            share, run = f" --set data.fraction={part.fraction:g}", "runs/NAME-part"
            if part.pairs is not None:
                share = f" --set data.pairs={part.pairs}"
            share += f" --set data.draw={part.draw}" if part.draw else ""
            share += f" --set data.draw_by={part.draw_by}" if part.draw_by != "hash" else ""
        return (
            f"ecgan train --recipe NAME{share} --out {run}, then ecgan sample --run {run} --num N "
            "--out DIR"
        )


@dataclass
class Findings:
    """Results of checks for leaks.

    Attributes:
        faults: reasons to refuse the samples.
        notes: remarks for the reader of the results.
        doubts: sources that may have been a held-out pair; each has a note.
    """

    faults: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    doubts: set[Doubt] = field(default_factory=set[Doubt])


class Generators:
    """Generator files by their hash.

    Args:
        given: files that are looked at first.
        runs: folder of runs, whose generators are looked at too.
    """

    def __init__(self, given: Sequence[Path], runs: Path = Path("runs")) -> None:
        self._given, self._runs = given, runs

    @cached_property
    def _files(self) -> dict[str, Path]:
        found = [*self._given, *sorted(self._runs.glob("*/generator*.safetensors"))]
        return {sha256(path): path for path in reversed(found)}

    def metadata(self, digest: str) -> GeneratorMetadata | None:
        """Metadata of the file with a SHA-256; None where there is no such file."""
        path = self._files.get(digest)
        return None if path is None else read_metadata(path)


def check(
    place: str, part: Part, generators: Generators, take_unknown: bool, found: Findings
) -> None:
    """Look for leaks in the layouts, the generator and other networks of a set of samples.

    Args:
        place: folder or address of the set.
        part: real pairs that the set is added to.
        generators: generator files.
        take_unknown: accept a generator whose training data is not known, with a doubt.
        found: gets faults, notes and doubts.

    Raises:
        UserError: the set cannot be read.
    """
    about, checked = read_manifest(place), _Check(place, part, take_unknown, found)
    checked.check_layouts()
    checked.check_generator(about, generators)
    if about is not None:
        checked.check_unlabelled(about, generators)
        checked.note_paste(about)
        checked.note_segmenters(about)


@dataclass(frozen=True)
class _Check:
    """Checks of one set of samples; see :func:`check`."""

    place: str
    part: Part
    take_unknown: bool
    found: Findings

    def _fault(self, text: str) -> None:
        self.found.faults.append(f"{self.place}: {text}")

    def _note(self, text: str, doubt: Doubt | None = None) -> None:
        self.found.notes.append(f"{self.place}: {text}")
        self.found.doubts |= {doubt} if doubt else set[Doubt]()

    def check_layouts(self) -> None:
        """Refuse layouts that are not of the part."""
        part, known = self.part, layouts(self.place)
        grouped: dict[Membership, list[str]] = {}
        for key, digest in known.items():
            grouped.setdefault(part.membership(key, digest), []).append(key)
        outside = (
            f"are not of the part ({part.subset}) of the real pairs that they shall be added to; "
            f"sample with a generator of that part: {part.command}"
        )
        faults = {
            Membership.HELD: f"are of {part.held_names}, which nobody may learn from; sample "
            f"layouts of the split {part.split}: ecgan sample --split {part.split} --num N",
            Membership.UNCLEAR: f"have a key that the split {part.split} shares with "
            f"{part.held_names}, and the set does not say which label map it was made from; give "
            f"the set with its folder {HIDDEN}, or give files of different splits different names",
        }
        if not part.subset.is_whole:
            faults |= {Membership.TRAIN: outside, Membership.OTHER: outside}
        for membership, keys in grouped.items():
            some = f"{len(keys)} of {len(known)} layouts (first: {keys[0]})"
            if membership in faults:
                self._fault(f"{some} {faults[membership]}")
            elif membership is Membership.OTHER:
                self._note(f"{some} are of label maps that are not in the real data set")

    def check_generator(self, about: Manifest | None, generators: Generators) -> None:
        """Refuse a generator that saw more than the part, or is not known."""
        part, trained_on, digest = self.part, self.part.split, ""
        if about is not None:
            trained_on = about.of_recipe("data", "split", trained_on)
            digest = about.fingerprint.checkpoint or ""
        if trained_on in part.held_splits:
            self._fault(f"its generator was trained on the split {trained_on}")
            return
        told = None if about is None else about.provenance
        metadata = generators.metadata(digest)
        seen = set(told.seen if told else ()) or set(metadata.seen_keys if metadata else ())
        if not seen:
            named = f" (SHA-256 {digest[:12]}..., in no runs/*/)" if digest else ""
            self._unknown(f"what its generator{named} was trained on is not known")
            return
        if wrong := part.forbidden(seen, same_split=trained_on == part.split):
            what = (
                f"what may be learnt from: they are of {part.held_names}"
                if part.subset.is_whole
                else f"the part ({part.subset}) of the real pairs that it shall be added to"
            )
            self._fault(
                f"its generator saw {len(wrong)} of its {len(seen)} layouts (first: {min(wrong)}) "
                f"outside of {what}"
            )
        names = () if about is None else about.class_list(self.place).names
        if metadata is not None:
            self._check_inherited(metadata, names)

    def check_unlabelled(self, about: Manifest, generators: Generators) -> None:
        """Refuse a generator that learnt from tested photos without their label maps."""
        metadata = generators.metadata(about.fingerprint.checkpoint or "")
        saw = {*about.unlabelled}
        if metadata is not None:
            saw |= {photo_digest(one) for one in metadata.all_unlabelled}
        if not saw:
            return
        if shared := saw & self.part.held_photos():
            self._fault(
                f"its generator learnt from {counted(len(shared), 'photo')} of "
                f"{self.part.held_names} without their label maps (data.unlabelled), on which "
                "segmenters are tested; train it without these photos"
            )
        else:
            self._note(
                f"its generator also learnt from {counted(len(saw), 'photo')} without label maps "
                "(data.unlabelled)"
            )

    def _check_inherited(self, metadata: GeneratorMetadata, names: Sequence[str]) -> None:
        """Refuse a generator that started (``--init``) from one that saw what it should not have.

        What that one saw beside the part is noted: the comparison is not of equal labels.

        One of other classes is of another data set, whose keys mean nothing here.
        """
        for one in metadata.inherited:
            started = f"its generator started from another (SHA-256 {one.sha256[:12]}...)"
            ours = self.part.train.keys | self.part.held.keys
            wrong = self.part.forbidden(ours & set(one.keys))
            if not one.keys:
                self._unknown(f"{started}, and what that one was trained on is not known")
            elif wrong and one.classes == list(names):
                self._fault(
                    f"{started} that saw {len(wrong)} layouts (first: {min(wrong)}) which "
                    f"segmenters are tested on, or outside of the part ({self.part.subset}) of the "
                    "real pairs that the samples shall be added to; train it without --init"
                )
            elif outside := {*one.keys} - self.part.own.keys:
                self._note(
                    f"{started} that learnt from {counted(len(outside), 'other layout')}, which "
                    "segmenters of real pairs do not see"
                )

    def _unknown(self, what: str) -> None:
        """Refuse what is not known, or take it on request."""
        if self.take_unknown:
            self._note(
                f"{what} (taken on request): it may have seen the photos that segmenters are "
                "tested on",
                Doubt.GENERATOR,
            )
        else:
            self._fault(
                f"{what}: it may have seen the photos that segmenters are tested on. Run where its "
                "run folder is in runs/, or take the set all the same with --unknown-generator: "
                "the report says so then"
            )

    def note_paste(self, about: Manifest) -> None:
        """Note pasted objects, unless the command was given the part's layouts, one and all."""
        if "paste" not in about.vary:
            return
        given = dict(_layout_digests(self.place))
        is_part = all(
            self.part.membership(key, label_digest(digest)) is Membership.PART
            for key, digest in given.items()
        )
        if not is_part or layouts_digest(given.items()) != about.fingerprint.labels:
            self._note(
                "--vary paste took objects from all layouts that the command was given, and which "
                "these were is not known"
            )

    def note_segmenters(self, about: Manifest) -> None:
        """Note other networks that had a say in the samples, and may have learnt elsewhere."""
        taught = about.of_recipe("model", "label_generator", "off")
        named = about.filter.segmenter or "train"
        for what, name in (("generator's label generator", taught), ("label filter", named)):
            if name not in {"off", "train"}:
                self._note(
                    f"what its {what} ({name}) was trained on is not known; it may be more than "
                    f"the part ({self.part.subset}) of the real pairs"
                )
        if about.style_source.may_show_photos:
            self._note(
                f"its styles ({about.styles}) may be of photos that segmenters are tested on: "
                "which ones they are of is not known",
                Doubt.STYLES,
            )


def digests(place: str) -> dict[str, str]:
    """Digests of label maps by layout, of a set that kept them; else empty."""
    return {key: label_digest(digest) for key, digest in _layout_digests(place)}


def _layout_digests(place: str) -> Iterator[tuple[str, str]]:
    store = open_store(place)
    for name in stage_names(store):
        stage = StageRecord.model_validate_json(store.read(name))
        yield from zip(stage.keys, stage.digests, strict=True)


def layouts(place: str) -> dict[str, str | None]:
    """Layouts of a set by key, each with its label map's digest where that is known."""
    found: dict[str, str | None] = {**digests(place)}
    if found:
        return found
    dataset = SampleDataset(place)
    raws = (dataset.raw(index) for index in range(len(dataset)))
    return {str(raw.record.get("source", raw.key)): None for raw in raws}
