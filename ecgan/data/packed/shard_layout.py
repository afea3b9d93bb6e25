"""Pairs to train on that lie in shards: a folder of tars or Parquet files, in place of files.

Splits are told by folders or by the first word of a shard's name: ``val/0001.tar``,
``data/validation-00000-of-00001.parquet``. Shards are listed once; a picture is read when it is
asked for.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ecgan.data.files import names, pairing
from ecgan.data.files.images import Readable
from ecgan.data.files.layout import SPLITS
from ecgan.data.files.names import NOUNS, Kind
from ecgan.data.files.pairing import FoundFiles, count
from ecgan.errors import UserError
from ecgan.labels import clean_key
from ecgan.shards import pictures
from ecgan.shards.pictures import Listing

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_LARGE_GROUP = 256 << 20  # bytes that are read for each picture of a Parquet file


class _Shard(NamedTuple):
    path: Path
    split: str | None
    group: str  # first word of its folders or its name


class _Found:
    """Pictures of a split while its shards are listed."""

    def __init__(self, kinds: Sequence[Kind], faults: list[str], notes: list[str]) -> None:
        self.kinds, self.faults, self.notes = kinds, faults, notes
        self.files: dict[Kind, dict[str, Readable]] = {kind: {} for kind in kinds}
        self.missing: dict[Kind, list[str]] = {}
        self._samples: dict[str, str] = {}

    def add(self, path: Path, listing: Listing) -> None:
        """Take the samples of a shard."""
        lacking: list[Kind] = [kind for kind in self.kinds if not listing.has(kind)]
        self.faults += [f"{path}: {listing.expected(kind, NOUNS[kind])}" for kind in lacking]
        if lacking:
            return
        if listing.largest_group > _LARGE_GROUP:
            self.notes.append(
                f"{path}: {listing.largest_group >> 20} MB are read for each picture; write row "
                "groups of 100 rows."
            )
        for sample in listing.samples:
            key, where = clean_key(sample.key), f"{path}: {sample.key}"
            if (first := self._samples.setdefault(key, where)) is not where:
                self.faults.append(f"{first} and {where} share the key {key!r}; rename one of them")
                continue
            for kind in self.kinds:
                if kind in sample.files:
                    self.files[kind][key] = sample.files[kind]
                else:
                    self.missing.setdefault(kind, []).append(where)


@dataclass(frozen=True)
class ShardLayout:
    """Shards of a data set by split; the counterpart of :class:`ecgan.data.files.layout.Layout`.

    Attributes:
        root: folder of the data set.
        shards: those that are read.
        compressed: tars that cannot be read at random.
    """

    root: Path
    shards: Sequence[_Shard]
    compressed: Sequence[Path] = ()

    @property
    def splits(self) -> list[str]:
        """Splits that shards are divided into."""
        return [split for split in SPLITS if self.has_split(split)]

    def has_split(self, split: str) -> bool:
        """Whether shards of a split are there."""
        return any(_is_of(shard, split) for shard in self.shards)

    def select(self, split: str | None, kinds: Sequence[Kind]) -> FoundFiles:
        """Pictures of a split by kind and key; of all where split is None.

        Args:
            split: train, val, test or another first word of folders or shards.
            kinds: pictures that every sample must have, ``label`` among them.
        """
        chosen = [shard for shard in self.shards if split is None or _is_of(shard, split)]
        found = _Found(kinds, self._faults(split, chosen), self._notes())
        for shard in chosen:
            try:
                found.add(shard.path, _listed(shard.path))
            except UserError as error:
                found.faults.append(str(error))
        for kind, missing in found.missing.items():
            found.faults.append(
                f"{count(len(missing), 'sample')} without {NOUNS[kind]} (first: {missing[0]}); "
                f"expected {pictures.expected_fields(kind)}"
            )
        return FoundFiles(found.files, pairing.capped(found.faults), found.notes)

    def _faults(self, split: str | None, chosen: Sequence[_Shard]) -> list[str]:
        faults = [
            f"{path}: a compressed tar, which cannot be read at random; unpack it"
            for path in self.compressed
        ]
        if not chosen and not faults:
            there = f", with splits {', '.join(self.splits)}" if self.splits else ""
            faults.append(f"no shards of split {split}; there are {len(self.shards)}{there}")
        like = sorted({s.group for s in chosen if names.looks_like_split(s.group)})
        if split is None and like:
            faults.append(
                f"shards of {' and '.join(like[:6])} look like splits under names that are not "
                "known; rename to train, val and test, or set data.split to the one to train on"
            )
        return faults

    def _notes(self) -> list[str]:
        others = sum(shard.split is None for shard in self.shards) if self.splits else 0
        if not others:
            return []
        return [
            f"{count(others, 'shard')} of no split: not read; data.split names one to train on."
        ]


def read_shard_layout(root: Path) -> ShardLayout | None:
    """Shards below a folder, or None: tars or, where there are none, Parquet files.

    The Parquet files beside tars are tables about them, as img2dataset writes.
    """
    found: dict[str, list[Path]] = {".tar": [], ".parquet": [], "compressed": []}
    for parent, folders, files in os.walk(root, followlinks=True):
        folders[:] = [f for f in folders if not f.startswith((".", "__"))]
        for name in files:
            ending = Path(name).suffix.lower()
            ending = "compressed" if name.lower().endswith(_COMPRESSED) else ending
            if ending in found and not name.startswith("."):
                found[ending].append(Path(parent, name))
    paths = found[".tar"] or ([] if found["compressed"] else found[".parquet"])
    if not paths and not found["compressed"]:
        return None
    return ShardLayout(root, [_shard(p, root) for p in sorted(paths)], sorted(found["compressed"]))


def _shard(path: Path, root: Path) -> _Shard:
    folders = path.parent.relative_to(root).parts
    word = re.split(r"[-_.]", path.stem)[0]
    split = names.place_of(folders).split or names.split_of(word)
    group = next((folder for folder in folders if folder != "data"), word)
    return _Shard(path, split, "" if split else group)


def _is_of(shard: _Shard, split: str) -> bool:
    return shard.split == split if split in SPLITS else shard.group == split


def _listed(path: Path) -> Listing:
    """What a shard holds; read anew when the file has changed."""
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error
    return _listed_at(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _listed_at(path: Path, _size: int, _time: int) -> Listing:
    return pictures.list_shard(path)
