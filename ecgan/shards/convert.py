"""A data set of ours in another format: the same samples, byte for byte, in other shards."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from ecgan.errors import UsageError, UserError
from ecgan.runtime.storage import HIDDEN, Store, open_store
from ecgan.runtime.timing import Progress
from ecgan.shards.finalize import finish
from ecgan.shards.formats import shard_name, write_shard
from ecgan.shards.manifest import CommitRecord, Format, read_manifest
from ecgan.shards.readers import read_raw
from ecgan.shards.records import Encoded, Raw, Record

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
        UserError: ``source`` is not a finished data set of ours, a shard of it is damaged, or
            ``out`` holds something else.
    """
    read, write = open_store(source), open_store(out)
    about = read_manifest(read)
    if about is None or not about.is_complete or about.image_format is None:
        raise UserError(
            f"{read}: not a finished data set of this version of ecgan (manifest.json); only those "
            "can be converted"
        )
    if samples_per_shard is not None and samples_per_shard < 1:
        raise UsageError(f"--samples-per-shard {samples_per_shard}: must be at least 1")
    _take(write)
    split, names = about.split, [shard.name for shard in about.shards]
    written: list[CommitRecord] = []
    with Progress(about.samples, f"converting to {write}", "sample", show=not quiet) as bar:
        for number, samples in enumerate(_parts(read, names, samples_per_shard)):
            shard = write_shard(
                write,
                shard_name(data_format, split, number),
                (_encoded(raw, read) for raw in samples),
                data_format=data_format,
                image_format=about.image_format,
                num_classes=len(about.names),
            )
            written.append(shard)
            bar.update(shard.samples)
    expected, found = (sum(s.samples for s in listed) for listed in (about.shards, written))
    if expected != found:
        raise UserError(
            f"{read}: the manifest tells of {expected} samples, its shards hold {found}; check it "
            f"with `ecgan data verify {read}`"
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


def _take(store: Store) -> None:
    """Make a place ours: an empty one, or one where a conversion was interrupted."""
    begun = store.size(_MARK) is not None
    if store.holds_anything() and not begun:
        raise UsageError(f"--out {store}: not empty; give another folder (nothing was touched)")
    if begun:
        store.remove_folder("data")
        store.remove_folder(f"{HIDDEN}/records")
        for folder in ("images", "masks", "edges"):
            store.remove_folder(folder)
    store.write(_MARK, "{}\n")


def _parts(
    store: Store, names: Sequence[str], samples_per_shard: int | None
) -> Iterator[Iterator[Raw]]:
    """Samples of each new shard."""
    if samples_per_shard is None:
        for name in names:
            yield read_raw(store, name)
        return
    samples = itertools.chain.from_iterable(read_raw(store, name) for name in names)
    for first in samples:
        yield itertools.chain([first], itertools.islice(samples, samples_per_shard - 1))


def _encoded(raw: Raw, store: Store) -> Encoded:
    if raw.edge is None:
        raise UserError(f"{store}: sample {raw.key} has no edge map")
    try:
        record = Record.from_json(raw.record)
    except KeyError as error:
        raise UserError(f"{store}: the record of sample {raw.key} has no field {error}") from error
    return Encoded(record, raw.image, raw.label, raw.edge)
