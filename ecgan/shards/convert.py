"""A data set of ours in another format: the same samples, byte for byte, in other shards."""

import itertools
import re
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from ecgan.errors import UsageError, UserError
from ecgan.runtime.processes.machine import remedy_of
from ecgan.runtime.storage import HIDDEN, Folder, Store, open_store
from ecgan.runtime.timing import Progress, counted
from ecgan.shards.files.names import IMAGE_FORMATS, Format, shard_name, shard_parts
from ecgan.shards.finalize import SIDECARS, finish
from ecgan.shards.formats import write_shard
from ecgan.shards.manifest import CommitRecord, Manifest, ShardEntry, read_manifest
from ecgan.shards.readers import read_raw
from ecgan.shards.records import Encoded, Raw, Record

_MAX_PER_SHARD = 10**9
_MARK = f"{HIDDEN}/convert.json"  # a conversion has begun here


def convert(
    source: str | Path,
    out: str | Path,
    data_format: Format,
    *,
    samples_per_shard: int | None = None,
    quiet: bool = False,
) -> int:
    """Write a finished data set of ours anew; nothing is decoded or encoded.

    A conversion that was interrupted starts over when it is called again.

    Args:
        source: folder or address of the data set.
        out: folder or address of the new one; must be empty.
        data_format: format of the new data set.
        samples_per_shard: samples in each new shard; None: as many as in the old ones.
        quiet: whether no progress bar is shown.

    Returns:
        Number of samples.

    Raises:
        UserError: ``source`` is not a finished data set of ours, a shard of it is damaged, ``out``
            holds something else or cannot be written, or the disk has no room.
    """
    read, write = open_store(source), open_store(out)
    about = read_manifest(read)
    if about is None or not about.is_complete or about.image_format is None or not about.shards:
        raise UserError(
            f"{read}: not a finished data set of this version of ecgan (manifest.json); only those "
            "can be converted"
        )
    if samples_per_shard is not None and not 1 <= samples_per_shard <= _MAX_PER_SHARD:
        raise UsageError(f"--samples-per-shard {samples_per_shard}: must be 1 to {_MAX_PER_SHARD}")
    about.class_list(read)
    with (
        _writable(write),
        Progress(about.samples, f"converting to {write}", "sample", show=not quiet) as bar,
    ):
        _take(write, about.split)
        _refuse_small_disk(write, about)
        written: list[CommitRecord] = []
        for number, samples in enumerate(_parts(read, about.shards, samples_per_shard)):
            shard = write_shard(
                write,
                shard_name(data_format, about.split, number),
                samples,
                data_format=data_format,
                image_format=about.image_format,
                num_classes=len(about.names),
            )
            written.append(shard)
            bar.update(shard.samples)
        expected, found = (sum(s.samples for s in listed) for listed in (about.shards, written))
        if expected != found:
            raise UserError(
                f"{read}: the manifest tells of {counted(expected, 'sample')}, its shards hold "
                f"{found}; check it with `ecgan data verify {read}`"
            )
        changes = {
            "format": data_format,
            "converted_from": about.converted_from or about.format,
            "shards": [shard.entry() for shard in written],
        }
        finish(write, about.model_copy(update=changes))
        write.remove([_MARK])
        write.sweep()
    return found


@contextmanager
def _writable(store: Store) -> Generator[None, None, None]:
    """Turn what keeps us from writing into a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"OUT {store}: cannot write: {error.strerror or error}; nothing else was touched; "
            f"{remedy_of(error)}"
        ) from error


def _refuse_small_disk(store: Store, about: Manifest) -> None:
    """Refuse a disk that has less room than the samples need, before the work."""
    if not isinstance(store, Folder):
        return
    free, needed = shutil.disk_usage(store.path).free, sum(shard.bytes for shard in about.shards)
    if free < needed:
        raise UserError(
            f"OUT {store}: about {needed / 1e6:.1f} MB are needed, the disk has "
            f"{free / 1e6:.1f} MB left; make room, or give another folder"
        )


def _take(store: Store, split: str) -> None:
    """Make a place ours: an empty one, or one where a conversion was interrupted."""
    begun = store.size(_MARK) is not None
    if begun:
        store.remove(_left_behind(store, split))
        store.sweep()
    others = [name for name in store.names() if name != HIDDEN] if begun else []
    if others or (not begun and store.holds_anything()):
        raise UsageError(
            f"OUT {store}: not empty; give another folder (no file of others was touched)"
        )
    store.write(_MARK, "{}\n")


def _left_behind(store: Store, split: str) -> list[str]:
    """Files that an interrupted conversion may have written, by the form of their names.

    Each folder has one at least, so that a folder goes which a conversion made and left empty.
    """
    names = [*SIDECARS, shard_name("parquet", split, 0)]
    for name in store.sizes("data"):
        try:
            if shard_parts(f"data/{name}").split == split:
                names.append(f"data/{name}")
        except ValueError:
            continue
    endings = "|".join(IMAGE_FORMATS)
    for folder in ("images", "masks", "edges"):
        own = f"{folder}/{split}"
        form = re.compile(rf"[A-Za-z0-9_-]+\.({endings})")
        names.append(f"{own}/0.{IMAGE_FORMATS[0]}")
        names += [f"{own}/{name}" for name in store.sizes(own) if form.fullmatch(name)]
    own = f"{HIDDEN}/records"
    form = re.compile(rf"{split}-[0-9]+\.jsonl")
    return names + [f"{own}/{name}" for name in store.sizes(own) if form.fullmatch(name)]


def _parts(
    store: Store, shards: list[ShardEntry], samples_per_shard: int | None
) -> Iterator[Iterator[Encoded]]:
    """Samples of each new shard; UserError where a key comes twice."""
    known: set[str] = set()

    def of(shard: ShardEntry) -> Iterator[Encoded]:
        for raw in read_raw(store, shard.name):
            encoded = _encoded(raw, store)
            if encoded.record.key in known:
                raise UserError(f"{store}: the key {encoded.record.key} occurs twice")
            known.add(encoded.record.key)
            yield encoded

    if samples_per_shard is None:
        for shard in shards:
            yield of(shard)
        return
    samples = itertools.chain.from_iterable(map(of, shards))
    for first in samples:
        yield itertools.chain([first], itertools.islice(samples, samples_per_shard - 1))


def _encoded(raw: Raw, store: Store) -> Encoded:
    if raw.edge is None:
        raise UserError(f"{store}: sample {raw.key} has no edge map; make the data set again")
    try:
        record = Record.from_json(raw.record)
    except UserError as error:
        raise UserError(f"{store}: sample {raw.key}: {error}") from None
    return Encoded(record, raw.image, raw.label, raw.edge)
