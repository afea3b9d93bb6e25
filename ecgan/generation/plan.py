"""The plan of a data set: which samples there are, in which shards, made together with which.

It is fixed before the first sample is made. A **row** is a layout, or a varied form of it, with a
range of its styles; samples are ordered by row, then style, and cut into shards of equal length. A
data set that was extended has several **stages**, each with rows and shards of its own, so that the
shards of earlier ones stay as they are.

Memory grows with the layouts, not with the samples: a shard's job is made when it is asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ecgan.data.datasets import Item
from ecgan.errors import UserError
from ecgan.seeds import variant_seed
from ecgan.shards.manifest import StageRecord

Counts = npt.NDArray[np.int64]
SPLIT = "train"  # what the samples are for
NUM_DONORS = 8  # layouts that objects for one varied layout may come from


@dataclass(frozen=True)
class Group:
    """Styles of one row that lie in one shard."""

    item: Item  # the layout's files
    variant: int  # N for the N-th varied form of the layout; 0 for the layout as it is
    first: int  # number of the first style
    count: int  # how many styles
    fold: int = 0  # which of the filter's segmenters may judge it
    donors: tuple[Item, ...] = ()  # layouts whose objects may be pasted into it

    @property
    def source(self) -> str:
        """Key of the layout itself."""
        return self.item.key

    @property
    def key(self) -> str:
        """Key of the row."""
        return row_key(self.item.key, self.variant)


@dataclass(frozen=True)
class Job:
    """A shard to make; all that a worker needs beside what is the same for all shards."""

    number: int  # of the shard in the data set
    groups: tuple[Group, ...]  # in order
    plan: str  # id of the stage that it belongs to

    @property
    def samples(self) -> int:
        return sum(group.count for group in self.groups)

    def __str__(self) -> str:
        return f"shard {self.number}"


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a stage, as columns: R rows."""

    layouts: Counts  # number of each row's layout among the items, (R,)
    variants: Counts  # 0 for the layout itself, N for its N-th varied form, (R,)
    firsts: Counts  # number of the first style, (R,); above 0 where earlier stages have the others
    counts: Counts  # number of styles, at least 1, (R,)

    def __len__(self) -> int:
        return len(self.counts)

    def with_counts(self, firsts: Counts, counts: Counts) -> "Rows":
        """Rows with other styles, (R,) each; those without a style are left out."""
        some = counts > 0
        return Rows(self.layouts[some], self.variants[some], firsts[some], counts[some])


@dataclass(frozen=True, eq=False)
class Stage:
    """Samples that were planned together."""

    items: Sequence[Item]  # layouts, sorted by key
    rows: Rows  # which of them, how often
    first_shard: int  # number of its first shard in the data set
    samples_per_shard: int  # all shards but the last have so many
    folds: npt.NDArray[np.int8] | None = None  # segmenter of each layout, (layouts,), if any
    paste: bool = False  # whether varied layouts may get objects of others
    plan: str = ""  # hash of everything that decides its samples' bytes

    @cached_property
    def _starts(self) -> Counts:
        """Number of the first sample of each row, and of all samples."""
        return np.concatenate([[0], np.cumsum(self.rows.counts)])

    @property
    def num_samples(self) -> int:
        return int(self._starts[-1])

    @property
    def num_shards(self) -> int:
        return -(-self.num_samples // self.samples_per_shard)

    @property
    def numbers(self) -> range:
        """Of its shards."""
        return range(self.first_shard, self.first_shard + self.num_shards)

    def samples_in(self, number: int) -> int:
        """Samples of a shard, before a filter drops any."""
        first = (number - self.first_shard) * self.samples_per_shard
        return min(self.samples_per_shard, self.num_samples - first)

    def key(self, row: int) -> str:
        """Key of a row."""
        return row_key(self.items[int(self.rows.layouts[row])].key, int(self.rows.variants[row]))

    def job(self, number: int) -> Job:
        """What a worker has to make for a shard."""
        first = (number - self.first_shard) * self.samples_per_shard
        last = first + self.samples_in(number)
        row = int(np.searchsorted(self._starts, first, side="right")) - 1
        groups: list[Group] = []
        while first < last:
            stop = min(last, int(self._starts[row + 1]))
            skipped = first - int(self._starts[row])
            groups.append(self._group(row, skipped, stop - first))
            first, row = stop, row + 1
        return Job(number, tuple(groups), self.plan)

    def first(self, num_samples: int) -> "Stage":
        """Its first samples, in one shard."""
        counts = np.clip(num_samples - self._starts[:-1], 0, self.rows.counts)
        rows = self.rows.with_counts(self.rows.firsts, counts)
        return replace(self, rows=rows, first_shard=0, samples_per_shard=num_samples)

    def _group(self, row: int, skipped: int, count: int) -> Group:
        layout, variant = int(self.rows.layouts[row]), int(self.rows.variants[row])
        return Group(
            self.items[layout],
            variant,
            int(self.rows.firsts[row]) + skipped,
            count,
            0 if self.folds is None else int(self.folds[layout]),
            self._donors(layout, variant) if self.paste and variant else (),
        )

    def _donors(self, layout: int, variant: int) -> tuple[Item, ...]:
        """Other layouts, drawn by the names of layout and variant alone.

        With a filter, of the same fold: what is pasted must not come from a pair that the layout's
        judge learnt from.
        """
        rng = np.random.default_rng(variant_seed(0, self.items[layout].key, variant))
        drawn = rng.integers(len(self.items), size=4 * NUM_DONORS)
        others = dict.fromkeys(
            int(i)
            for i in drawn
            if i != layout and (self.folds is None or self.folds[i] == self.folds[layout])
        )
        return tuple(self.items[i] for i in list(others)[:NUM_DONORS])


@dataclass(frozen=True, eq=False)
class Plan:
    """All stages of a data set; the last is the one that the user asked for now."""

    stages: tuple[Stage, ...]

    @property
    def num_shards(self) -> int:
        return sum(stage.num_shards for stage in self.stages)

    @property
    def num_samples(self) -> int:
        """Before a filter drops any."""
        return sum(stage.num_samples for stage in self.stages)

    def stage_of(self, number: int) -> Stage:
        return next(stage for stage in self.stages if number in stage.numbers)

    def samples_in(self, number: int) -> int:
        return self.stage_of(number).samples_in(number)

    def job(self, number: int) -> Job:
        return self.stage_of(number).job(number)


def row_key(source: str, variant: int) -> str:
    """Key of a layout, or of its varied form."""
    return f"{source}-v{variant}" if variant else source


def whole_rows(counts: Counts) -> Rows:
    """Rows of a first stage: every layout, then its varied forms.

    Args:
        counts: styles of each layout and of each of its varied forms, (layouts, 1 + variants);
            where there are none, there is no row.
    """
    layouts, variants = np.nonzero(counts)
    return Rows(layouts, variants, np.zeros(len(layouts), np.int64), counts[layouts, variants])


def spread(total: int, num_rows: int) -> Counts:
    """Samples of each of so many rows: evenly, the first rows take the rest."""
    each, rest = divmod(total, num_rows)
    counts = np.full(num_rows, each, np.int64)
    counts[:rest] += 1
    return counts


def extension(wanted: Stage, earlier: Sequence[Stage]) -> Rows:
    """Rows that a data set lacks: further styles of old rows, and new rows.

    Args:
        wanted: the whole of what is asked for.
        earlier: stages that are there; rows that they have beyond that stay.
    """
    there: dict[str, int] = {}
    for stage in earlier:
        for row in range(len(stage.rows)):
            key = stage.key(row)
            last = int(stage.rows.firsts[row] + stage.rows.counts[row])
            there[key] = max(there.get(key, 0), last)
    firsts = np.array([there.get(wanted.key(row), 0) for row in range(len(wanted.rows))], np.int64)
    return wanted.rows.with_counts(firsts, wanted.rows.counts - firsts)


def stage_record(stage: Stage, digests: Sequence[str]) -> StageRecord:
    """Document of a stage; ``digests`` are those of all layouts' files, (layouts,)."""
    used = np.unique(stage.rows.layouts)
    places = np.full(len(stage.items), -1, np.int64)
    places[used] = np.arange(len(used))
    return StageRecord(
        first_shard=stage.first_shard,
        samples_per_shard=stage.samples_per_shard,
        plan=stage.plan,
        keys=[stage.items[int(i)].key for i in used],
        digests=[digests[int(i)] for i in used],
        folds=None if stage.folds is None else stage.folds[used].tolist(),
        layouts=places[stage.rows.layouts].tolist(),
        variants=stage.rows.variants.tolist(),
        firsts=stage.rows.firsts.tolist(),
        counts=stage.rows.counts.tolist(),
    )


def stage_of(
    record: StageRecord, items: Sequence[Item], numbers: Mapping[str, int], *, paste: bool
) -> Stage:
    """Stage of an earlier call, with the layouts that are there now.

    Args:
        record: document of the stage.
        items: layouts that are there now, sorted by key.
        numbers: key of each -> its number.
        paste: whether variants may get objects of other layouts.

    Raises:
        KeyError: a layout is gone.
    """
    own = np.array([numbers[key] for key in record.keys], np.int64)
    folds = None
    if record.folds is not None:
        folds = np.zeros(len(items), np.int8)
        folds[own] = record.folds
    columns = (
        np.array(column, np.int64) for column in (record.variants, record.firsts, record.counts)
    )
    rows = Rows(own[np.array(record.layouts, np.int64)], *columns)
    shards = record.first_shard, record.samples_per_shard
    return Stage(items, rows, *shards, folds, paste, record.plan)


def passes(groups: Sequence[Group], batch: int) -> Iterator[list[Group]]:
    """Groups that go through the network together: equally many styles of each, as one block.

    Args:
        groups: of one shard, in order.
        batch: samples of a pass; the styles of one row stay together even if they are more.
    """
    block: list[Group] = []
    for group in groups:
        if block and (group.count != block[0].count or (len(block) + 1) * group.count > batch):
            yield block
            block = []
        block.append(group)
    if block:
        yield block


def refuse_colliding_keys(stage: Stage) -> None:
    """Check that varied forms do not take the names of other layouts.

    Raises:
        UserError: one does.
    """
    if not stage.rows.variants.any():
        return
    keys = {item.key for item in stage.items}
    for row in np.flatnonzero(stage.rows.variants):
        if (key := stage.key(int(row))) in keys:
            raise UserError(
                f"--vary: {key} would be the name of a varied form of another layout; rename the "
                "label map"
            )
