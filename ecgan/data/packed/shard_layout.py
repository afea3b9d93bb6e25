"""Pairs to train on that lie in shards: a folder of tars, Parquet or Arrow files.

Splits are told by folders or by the first word of a shard's name: ``val/0001.tar``,
``data/validation-00000-of-00001.parquet``. Shards are listed once; a picture is read when it is
asked for. Arrow files are those of a saved Hugging Face data set, whose ``state.json`` lists them.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, Field

from ecgan.data.files import names, pairing
from ecgan.data.files.images import Readable
from ecgan.data.files.layout import SPLITS
from ecgan.data.files.names import NOUNS, Kind
from ecgan.data.files.pairing import FoundFiles, count
from ecgan.errors import UserError
from ecgan.labels import clean_key
from ecgan.reading.documents import checked, read_json
from ecgan.reading.names import Name
from ecgan.shards import pictures
from ecgan.shards.pictures import Listing

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_STATE = "state.json"  # beside the Arrow files of a saved data set
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
        if not lacking and (fault := _folders_fault(path, listing)):
            self.faults.append(fault)
            return
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
            several = "a split under a name" if len(like) == 1 else "splits under names"
            faults.append(
                f"shards of {' and '.join(like[:6])} look like {several} not known; rename to "
                "train, val and test, or set data.split to the one to train on"
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
    """Shards below a folder, or None: tars, else Parquet, else Arrow files.

    The Parquet files beside tars are tables about them, as img2dataset writes.

    Raises:
        UserError: a saved data set lists files that are not there.
    """
    found: dict[str, list[Path]] = {".tar": [], ".parquet": [], ".arrow": [], "compressed": []}
    for parent, folders, files in names.walk(root):
        folders[:] = [f for f in folders if not f.startswith((".", "__"))]
        for name in files:
            ending = Path(name).suffix.lower()
            ending = "compressed" if name.lower().endswith(_COMPRESSED) else ending
            if ending in found and not name.startswith("."):
                found[ending].append(Path(parent, name))
    shards = [_shard(p, root) for p in sorted(found[".tar"])]
    if not shards and not found["compressed"]:
        shards = [_shard(p, root) for p in sorted(found[".parquet"])]
        shards = shards or _saved_shards(sorted(found[".arrow"]), root)
    if not shards and not found["compressed"]:
        return None
    return ShardLayout(root, shards, sorted(found["compressed"]))


def _saved_shards(paths: Sequence[Path], root: Path) -> list[_Shard]:
    """Arrow files of ``save_to_disk``; others beside them are caches, which hold other rows."""
    shards: list[_Shard] = []
    for folder, own in itertools.groupby(paths, lambda path: path.parent):
        state = folder / _STATE
        if not state.is_file():
            shards += [_shard(p, root) for p in own if not p.name.startswith("cache-")]
            continue
        remedy = "save the data set anew with Dataset.save_to_disk"
        saved = checked(
            _SavedState,
            read_json(state, "the state of a saved data set", remedy),
            str(state),
            remedy,
        )
        if saved.indices:
            raise UserError(f"{state}: rows are chosen by a file of indices; {remedy}")
        there = {*own}
        for one in saved.files:
            path = folder / one.filename
            if path not in there:
                raise UserError(f"{state}: it lists {one.filename}, which is not there; {remedy}")
            shard = _shard(path, root)
            split = shard.split or names.split_of(saved.split or "")
            shards.append(shard._replace(split=split, group="" if split else shard.group))
    return shards


class _SavedFile(BaseModel):
    filename: Name


class _SavedState(BaseModel):
    """What ``state.json`` of a saved Hugging Face data set says."""

    files: list[_SavedFile] = Field(alias="_data_files")
    split: str | None = Field(None, alias="_split")
    indices: list[Any] | None = Field(None, alias="_indices_data_files")


def _folders_fault(path: Path, listing: Listing) -> str:
    """Sentence about a tar of folders of photos or label maps; empty where it is none."""
    if listing.columns is not None or any(
        {"image", "label"} <= {*s.files} for s in listing.samples
    ):
        return ""
    folders = dict.fromkeys(sample.key.rpartition("/")[0] for sample in listing.samples)
    own = [f for f in folders if names.place_of(tuple(f.split("/"))).kind in {"image", "label"}]
    if not own:
        return ""
    listed = " and ".join(f"{folder.removeprefix('./')}/" for folder in own[:2])
    return (
        f"{path}: a tar of folders ({listed}), no WebDataset, in which KEY.jpg and KEY.seg.png of "
        "one folder follow each other; unpack it"
    )


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
