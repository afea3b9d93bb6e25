"""List of the files that a run learns from, by content, so that a later start sees what changed."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from ecgan import checkpoint
from ecgan.data.checks import LabelCheck
from ecgan.data.datasets import Item
from ecgan.data.decode import Encoding
from ecgan.data.files.images import Orientation
from ecgan.data.files.pairing import count
from ecgan.data.files.photo_sets import Reading
from ecgan.errors import UserError
from ecgan.reading.documents import checked, read_json
from ecgan.runtime.files import write_whole
from ecgan.runtime.timing import say

NAME = "data-files.json"
# Keys of a recipe that say where files are and how they are read: the list tells what comes of them
RECIPE_KEYS = frozenset(
    f"data.{key}"
    for key in (
        *("images", "labels", "label_suffix"),
        *("label_encoding", "orientation", "photo_levels"),
        "unlabelled",
    )
)
_NAMED = 5  # keys that a message names
_ROLES = {"label": "label map", "photo": "photo", "instances": "instance map"}

Digests = Mapping[str, str]  # SHA-256 of a pair's files by role: label, photo, instances


@dataclass(frozen=True)
class DataFiles:
    """Files of a run.

    Attributes:
        reading: how they are read.
        train: files of each pair to train on, by key.
        held_out: files of each pair for previews and scores, by key.
        earlier: keys of pairs that the run learnt from before they were taken out.
        unlabelled: photos without label maps to learn from too: SHA-256, and their names.
        earlier_unlabelled: SHA-256 of such photos before they were taken out.
    """

    reading: Reading
    train: Mapping[str, Digests]
    held_out: Mapping[str, Digests]
    earlier: frozenset[str] = field(default_factory=frozenset[str])
    unlabelled: Mapping[str, str] = field(default_factory=dict[str, str])
    earlier_unlabelled: frozenset[str] = field(default_factory=frozenset[str])

    @classmethod
    def of(cls, check: LabelCheck, train: Sequence[Item], held_out: Sequence[Item]) -> "DataFiles":
        """Files that were checked, by the items of both parts."""
        found: dict[Any, Digests] = {}
        for item, content in zip(check.items, check.contents, strict=True):
            digests = {"label": content.digest, "instances": content.instance_digest}
            if content.photo is not None:
                digests["photo"] = content.photo.digest
            found[item.label] = {role: d.hex() for role, d in sorted(digests.items()) if d}
        train_files, held_out_files = (
            {item.key: found[item.label] for item in part} for part in (train, held_out)
        )
        return cls(check.reading, train_files, held_out_files)

    def changes(self, now: "DataFiles") -> list[str]:
        """What differs in a later list, a phrase for each kind, with the first keys."""
        sides = [(self.train, now.train), (self.held_out, now.held_out)]  # may share keys
        changed = {
            role: {
                key
                for old, new in sides
                for key in old.keys() & new.keys()
                if old[key].get(role) != new[key].get(role)
            }
            for role in _ROLES
        }
        gone = [old.keys() - new.keys() for old, new in sides]
        come = [new.keys() - old.keys() for old, new in sides]
        moved = (gone[0] & come[1]) | (gone[1] & come[0])
        phrases = [_phrase(changed[role], name, "changed") for role, name in _ROLES.items()]
        phrases += [
            _phrase((come[0] | come[1]) - moved, "pair", "added"),
            _phrase((gone[0] | gone[1]) - moved, "pair", "removed"),
            _phrase(moved, "pair", "moved between the training and the held-out part"),
        ]
        old, new = self.unlabelled, now.unlabelled
        lost = {name for digest, name in old.items() if digest not in new}
        found = {name for digest, name in new.items() if digest not in old}
        unlabelled = "unlabelled photo"
        phrases += [
            _phrase(lost & found, unlabelled, "changed"),
            _phrase(found - lost, unlabelled, "added"),
            _phrase(lost - found, unlabelled, "removed"),
        ]
        if self.reading != now.reading:
            was, is_ = reading_text(self.reading), reading_text(now.reading)
            phrases.append(f"files were read as {was}, now as {is_}")
        return [phrase for phrase in phrases if phrase]

    def write(self, out: Path) -> None:
        """Write the list into a run folder; whole or not at all."""
        reading = self.reading
        document: dict[str, Any] = {
            "version": 1,
            "reading": {
                "label_encoding": reading.encoding,
                "orientation": reading.orientation,
                "photo_levels": reading.levels,
            },
            "train": self.train,
            "held_out": self.held_out,
            "earlier": sorted(self.earlier),
        }
        if self.unlabelled or self.earlier_unlabelled:
            document["unlabelled"] = self.unlabelled
            document["earlier_unlabelled"] = sorted(self.earlier_unlabelled)
        write_whole(out / NAME, json.dumps(document, indent=1) + "\n")


class _Reading(BaseModel):
    label_encoding: Encoding | None
    orientation: Orientation
    photo_levels: tuple[float, float] | None


class _Document(BaseModel):
    """The file in a run folder, as :meth:`DataFiles.write` writes it."""

    version: Literal[1]
    reading: _Reading
    train: dict[str, dict[str, str]]
    held_out: dict[str, dict[str, str]]
    earlier: frozenset[str]
    unlabelled: dict[str, str] = {}
    earlier_unlabelled: frozenset[str] = frozenset()


def read(out: Path) -> DataFiles | None:
    """List of a run folder; None where it has none.

    Raises:
        UserError: it is damaged.
    """
    path = out / NAME
    if not path.is_file():
        return None
    remedy = (
        "as it is, changed files would not be seen; --accept-changed-data writes it anew from the "
        "files as they are"
    )
    found = checked(_Document, read_json(path, "a list of files", remedy), str(path), remedy)
    asked = found.reading
    reading = Reading(asked.label_encoding, asked.orientation, asked.photo_levels)
    return DataFiles(
        reading,
        found.train,
        found.held_out,
        found.earlier,
        found.unlabelled,
        found.earlier_unlabelled,
    )


def accepted(out: Path, now: DataFiles, *, images: int, accept: bool, quiet: bool) -> DataFiles:
    """The list that a run goes on with.

    A run without a checkpoint has learnt nothing yet, and one of an earlier version has no list:
    they take the files as they are.

    Args:
        out: run folder.
        now: its files as they are.
        images: length of the training.
        accept: go on where they differ from those that the run learnt from.
        quiet: do not say so.

    Raises:
        UserError: they differ, and that is not accepted, or the run is at its end.
    """
    checkpoints = checkpoint.training_checkpoints(out)
    if not checkpoints:
        return now
    try:
        before = read(out)
    except UserError:
        if not accept:
            raise
        before = None
    if before is None:
        return now
    changes = before.changes(now)
    if changes and not accept:
        raise UserError(
            f"{out} was trained on other data: {'; '.join(changes)}. Give --accept-changed-data to "
            "go on with the data as it is, or another --out to train anew"
        )
    if changes and int(checkpoints[-1].name) >= images:
        raise UserError(
            f"{out} is at its end ({images:,} images) and would learn nothing from changed data "
            f"({'; '.join(changes)}): raise train.images, or train anew in another --out"
        )
    if changes and not quiet:
        say(f"going on with changed data: {'; '.join(changes)}")
    return replace(
        now,
        earlier=(before.earlier | before.train.keys()) - now.train.keys(),
        earlier_unlabelled=(before.earlier_unlabelled | before.unlabelled.keys())
        - now.unlabelled.keys(),
    )


def reading_text(reading: Reading) -> str:
    """How files are read, in words of the recipe's keys."""
    encoding = "each by its values" if reading.encoding is None else reading.encoding.value
    text = f"label_encoding {encoding}, orientation {reading.orientation}"
    if reading.levels is not None:
        text += f", photo_levels {reading.levels[0]:g} to {reading.levels[1]:g}"
    return text


def _phrase(keys: Collection[str], name: str, what: str) -> str:
    """Number of things and their first keys; empty without one."""
    if not keys:
        return ""
    listed = ", ".join(sorted(keys)[:_NAMED]) + ", ..." * (len(keys) > _NAMED)
    return f"{count(len(keys), name)} {what} ({listed})"
