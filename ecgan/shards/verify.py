"""Check a finished data set: is every shard what was written, and every sample what it says?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json

from ecgan.errors import UserError
from ecgan.runtime.storage import Store, open_store
from ecgan.runtime.timing import Progress, counted
from ecgan.shards.files.names import is_key
from ecgan.shards.formats import is_intact, measured_size
from ecgan.shards.manifest import Manifest, ShardEntry, read_manifest
from ecgan.shards.readers import read_raw
from ecgan.shards.records import Raw, Record, opened

MAX_FAULTS = 20


@dataclass
class Findings:
    """What was found in a data set."""

    shards: int = 0  # that were read
    samples: int = 0  # that were read
    faults: list[str] = field(default_factory=list[str])  # a sentence each, the first twenty
    more: int = 0  # faults beyond these

    def add(self, fault: str) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(fault)
        else:
            self.more += 1


def verify(place: str | Path, *, quiet: bool = False) -> Findings:
    """Read every byte of a data set of ours.

    Shards: there, of the recorded size and sha256, none beside those of the manifest. Samples: as
    many as recorded, each with all fields, keys that readers accept, none twice. Images and maps:
    of the data set's size, whole, maps greyscale and no palette, ids of the class list. Records:
    every field, class pixels as the label has them. Sums: as in the manifest.

    Args:
        place: folder or address.
        quiet: no progress bar.

    Raises:
        UserError: not a finished data set of this version of ecgan.
    """
    store = open_store(place)
    about = read_manifest(store)
    if about is None or not about.is_complete:
        raise UserError(
            f"{store}: not a finished data set of this version of ecgan (no manifest.json of it)"
        )
    about.class_list(store)
    check = _Check(store, about)
    with Progress(len(about.shards), f"verifying {store}", "shard", show=not quiet) as bar:
        for shard in about.shards:
            check.shard(shard)
            bar.update()
    check.sums()
    return check.findings


class _Check:
    def __init__(self, store: Store, about: Manifest) -> None:
        self.store, self.about = store, about
        self.findings = Findings()
        self.num_classes = len(about.names)
        self.ignore = about.ignore_index
        self.mode = "L" if self.ignore == 255 else "I;16"
        self.size = (about.size[1], about.size[0])  # as Pillow has it
        self.keys: set[str] = set()
        self.class_pixels = np.zeros(self.num_classes, np.int64)

    def shard(self, shard: ShardEntry) -> None:
        """One shard, and every sample in it."""
        findings = self.findings
        findings.shards += 1
        size = measured_size(self.store, shard.name)
        if size is None:
            findings.add(f"{shard.name}: not there, or a file of it is not")
            return
        if size != shard.bytes:
            findings.add(f"{shard.name}: {size} bytes, the manifest says {shard.bytes}")
        elif not is_intact(self.store, shard):
            findings.add(f"{shard.name}: other bytes than were written (sha256 differs)")
        count = 0
        try:
            for raw in read_raw(self.store, shard.name):
                count += 1
                for fault in self._faults(raw):
                    findings.add(f"{shard.name}: sample {raw.key}: {fault}")
        except UserError as error:
            findings.add(str(error))
        findings.samples += count
        if count != shard.samples:
            findings.add(
                f"{shard.name}: {counted(count, 'sample')}, the manifest says {shard.samples}"
            )

    def sums(self) -> None:
        """What the manifest says of the whole."""
        about, findings = self.about, self.findings
        if findings.samples != about.samples:
            findings.add(
                f"{counted(findings.samples, 'sample')}, the manifest says {about.samples}"
            )
        if not findings.faults and tuple(self.class_pixels.tolist()) != about.class_pixels:
            findings.add("the labels' pixels of each class are not those of the manifest")
        if missing := [key for key in ("name", "data", "sampling") if key not in about.recipe]:
            findings.add(f"manifest.json: recipe: it lacks {', '.join(missing)}")
        listed = {shard.name for shard in about.shards}
        there = {f"data/{name}" for name in self.store.sizes("data")}
        for name in sorted(there - listed):
            findings.add(f"{name}: not in the manifest; readers of data/* would take it for data")
        try:
            names: object = from_json(self.store.read("id2label.json"))
        except (OSError, ValueError):
            names = None
        if names != {str(index): name for index, name in enumerate(about.names)}:
            findings.add("id2label.json: not there, or other names than the manifest's")

    def _faults(self, raw: Raw) -> Iterator[str]:
        if not is_key(raw.key):
            yield "its key has characters that readers take for something else"
        if raw.key in self.keys:
            yield "its key occurs twice"
        self.keys.add(raw.key)
        record = None
        try:
            record = Record.from_json(raw.record)
            if record.key != raw.key:
                yield f"its record is that of {record.key}"
        except UserError as error:
            yield str(error)
        if raw.image_format != self.about.image_format:
            yield f"its image is {raw.image_format}, the manifest says {self.about.image_format}"
        _, faults = self._opened("image", raw.image, "RGB")
        yield from faults
        if raw.edge is None:
            yield "no edge map"
        else:
            yield from self._opened("edge map", raw.edge, "L")[1]
        values, faults = self._opened("label", raw.label, self.mode)
        yield from faults
        if values is not None and record is not None:
            yield from self._label_faults(values.astype(np.int64), record.class_pixels)

    def _opened(
        self, what: str, data: bytes, mode: str
    ) -> tuple[npt.NDArray[np.integer] | None, list[str]]:
        """Pixels of a picture, and what is wrong with its file."""
        try:
            image = opened(data, size=self.size)
        except ValueError as error:
            return None, [f"{what} {error}"]
        if image.mode != mode:
            return None, [f"{what} of mode {image.mode}, expected {mode}"]
        return np.asarray(image), []

    def _label_faults(
        self, values: npt.NDArray[np.integer], recorded: Sequence[int]
    ) -> Iterator[str]:
        outside = np.unique(values[(values >= self.num_classes) & (values != self.ignore)])
        if len(outside):
            yield f"label ids {', '.join(map(str, outside[:5]))} are not in the class list"
            return
        counted = np.bincount(values.ravel(), minlength=self.num_classes)[: self.num_classes]
        self.class_pixels += counted
        if counted.tolist() != list(recorded):
            yield "its record's class_pixels are not those of its label"
