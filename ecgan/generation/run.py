"""Make a data set of samples: plan, shards, manifest. Stands behind ``sample`` and ``augment``.

    layouts --checked--> plan --> [shards that are not committed] --workers--> shards, records
                                  [all committed] --> card, preview, manifest

A shard is the unit of work and of resumption: a worker writes it whole and commits it, and calling
the same command again makes what is not committed. The finished data set is the same to the byte,
whatever happened on the way and wherever the shards were made.
"""

import errno
import json
import os
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import numpy as np

from ecgan.errors import UserError
from ecgan.generation import balance, planner
from ecgan.generation.plan import SPLIT, Job, Plan, Stage
from ecgan.generation.planner import DatasetPlan
from ecgan.generation.request import Request, told_place
from ecgan.generation.state import FAILURES, LOG, Committed, DatasetState
from ecgan.generation.worker import MadeShard, ShardWorker
from ecgan.reading.places import Address
from ecgan.recipe import generator_hash
from ecgan.runtime.executor import run_jobs
from ecgan.runtime.jobs import Done, Failed, StopRun
from ecgan.runtime.storage import Store, open_store
from ecgan.runtime.timing import STAGES, Progress, StageSeconds, counted, say, table
from ecgan.shards.finalize import finish
from ecgan.shards.manifest import (
    MANIFEST,
    BoundarySource,
    CheckpointRecord,
    EdgeSource,
    FilterSummary,
    LabelGeneratorRecord,
    Manifest,
    Provenance,
    StyleSource,
    photo_digest,
)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BYTES_PER_PIXEL = {"jpg": 0.5, "png": 1.9, "webp": 0.35}  # of images; seen on street scenes
_MAP_BYTES_PER_PIXEL = 0.4  # label and edge map together


@dataclass(frozen=True)
class Outcome:
    """What a call has done."""

    out: str  # the data set
    num_samples: int  # in it now
    made: int  # samples made by this call
    seconds: float  # that they took
    bytes: int  # of all shards
    made_bytes: int = 0  # of the shards made by this call
    failed: tuple[str, ...] = ()  # a sentence for each shard that could not be made
    spent: StageSeconds = field(default_factory=StageSeconds)  # where the time went
    filtered: str = ""  # what the label filter did, in words; empty without one


def describe(request: Request) -> str:
    """Samples, classes and bytes that :func:`run` would make; writes and trains nothing."""
    state = DatasetState(open_store(request.out))
    state.check_place()
    prepared = planner.plan(request)
    plan = Plan((prepared.wanted.stage,))
    asked = request.output
    if not asked.overwrite:
        plan, _ = state.resolve(prepared.wanted, extend=asked.extend, unknown=prepared.unknown)
    height, width = prepared.size
    stage = prepared.wanted.stage
    size = plan.num_samples * _estimated_bytes(prepared)
    lines = [
        f"{counted(plan.num_samples, 'sample')} of {height} x {width} ({_layouts(stage)}) in "
        f"{counted(plan.num_shards, 'shard')} ({asked.data_format}), about {size / 1e6:.1f} MB, in "
        f"{request.out}"
    ]
    if "balance" in prepared.unknown:
        lines.append(
            "--balance hardness: class shares and styles of each layout are not known before the "
            "filter is trained; those of an even spread are shown"
        )
    lines.append(f"  {'class':<20} {'evenly':>8} {'planned':>8}   share of the labelled pixels")
    before, after = prepared.shares
    lines += [
        f"  {name:<20} {a:8.2%} {b:8.2%}"
        for name, a, b in zip(prepared.space.names, before, after, strict=True)
        if a or b
    ]
    if missed := _missed_targets(prepared):
        lines.append(missed)
    return "\n".join(lines)


def _banner(prepared: DatasetPlan, plan: Plan, committed: Committed) -> str:
    """What is going to be made, where and with what, in a few lines."""
    output, workers, (height, width) = prepared.settings.output, prepared.workers, prepared.size
    there = f", {committed.samples:,} of them there already" if committed.samples else ""
    lines = [
        f"generating {counted(plan.num_samples, 'sample')} into {prepared.request.out}{there}",
        f"  {_layouts(prepared.wanted.stage)}; {height} x {width} pixels; {output.data_format} of "
        f"{output.image_format}; {workers.device}, {counted(workers.count, 'worker')}",
    ]
    if missed := _missed_targets(prepared):
        lines.append(f"  {missed}")
    return "\n".join(lines)


def _layouts(stage: Stage) -> str:
    """``5 layouts and 10 varied forms, 2 to 3 styles each``."""
    layouts, counts = len(np.unique(stage.rows.layouts)), stage.rows.counts
    varied = int((stage.rows.variants > 0).sum())
    forms = counted(layouts, "layout") + (f" and {counted(varied, 'varied form')}" * bool(varied))
    least, most = int(counts.min()), int(counts.max())
    styles = counted(most, "style") if least == most else f"{least:,} to {counted(most, 'style')}"
    return f"{forms}, {styles} each"


def _missed_targets(prepared: DatasetPlan) -> str:
    """What --balance target cannot reach, in words; empty where it does, and without it."""
    asked = prepared.request.balance
    if asked.spread != "target":
        return ""
    names = prepared.space.names
    return balance.missed(balance.parse_targets(asked.targets, names), prepared.shares[1], names)


def run(request: Request) -> Outcome:
    """Make the data set, or what is missing of it; nothing where it is complete.

    Returns:
        What was done; ``failed`` names shards that could not be made, the others are kept.

    Raises:
        UserError: whatever the user can mend; what is committed stays.
    """
    store = open_store(request.out)
    state = DatasetState(store)
    state.check_place()
    prepared = planner.plan(request)
    if (version := state.begun_with()) is not None and not request.output.overwrite:
        prepared = replace(prepared, begun_with=version)
    prepared = planner.train_filter(planner.encode_styles(prepared))
    start = time.monotonic()
    with _writable(store, prepared, state), store.held():
        if request.output.overwrite and state.is_ours():
            state.remove()
        plan, is_new = state.resolve(prepared.wanted, extend=request.output.extend)
        store.sweep()  # what dead writers left
        prepared.label_cache.save()
        if is_new:
            state.record_stage(plan, prepared.wanted)
        making = _Generation(prepared, state, plan)
        if not request.quiet and making.missing:
            say(_banner(prepared, plan, making.committed))
        making.run()
        if not making.failed and store.size(MANIFEST) is None:
            finish(store, _manifest(prepared, plan, making.committed))
        store.sweep()
    done = making.committed
    return Outcome(
        out=Address(request.out),
        num_samples=done.samples,
        made=making.spent.samples,
        seconds=time.monotonic() - start,
        bytes=done.bytes,
        made_bytes=making.made_bytes,
        failed=tuple(f"{one.job}: {one.reason}" for one in making.failed),
        spent=making.spent,
        filtered=_filtered(prepared, done),
    )


def profile(request: Request, num_samples: int) -> str:
    """Table of where the time of making samples goes, and the bottleneck.

    One worker in this process makes the first samples of the plan, after a pass that warms up.
    They are written to a temporary folder and thrown away.

    Raises:
        UserError: what :func:`run` would refuse.
    """
    prepared = planner.train_filter(planner.encode_styles(planner.plan(request)))
    output, encoders = prepared.settings.output, prepared.settings.encoders
    stage = prepared.wanted.stage
    spent = StageSeconds(encoders)
    with tempfile.TemporaryDirectory(prefix="ecgan-") as folder:
        maker = ShardWorker(replace(prepared.settings, out=folder))
        maker(stage.first(output.batch).job(0))
        made = maker(stage.first(min(num_samples, stage.num_samples)).job(0))
    spent.add(made.seconds, made.elapsed, made.shard.samples)
    title = (
        f"{counted(spent.samples, 'sample')} on {maker.sampler.device}, one worker with "
        f"{counted(encoders, 'encoding thread')}, {spent.samples / spent.elapsed:.2f} samples/s"
    )
    return (
        f"{table(title, 'sample', spent.samples, spent.busy(), spent.elapsed)}\n"
        f"bottleneck: {spent.bottleneck()}"
    )


class _Generation:
    """Makes the shards that are missing, and keeps count."""

    def __init__(self, prepared: DatasetPlan, state: DatasetState, plan: Plan) -> None:
        self.prepared, self.state, self.plan = prepared, state, plan
        self.committed = _committed(prepared, state, plan)
        self.missing = [n for n in range(plan.num_shards) if n not in self.committed.shards]
        self.failed: list[Failed[Job]] = []
        self.made_bytes = 0
        self.spent = StageSeconds(prepared.settings.encoders, prepared.workers.count)

    def run(self) -> None:
        """Make them; a failure is written down, and the others are made."""
        store, plan, workers = self.state.store, self.plan, self.prepared.workers
        missing = self.missing
        store.remove([FAILURES])
        if not missing:
            return
        # From here on the data set is not complete, whatever happens
        store.remove([MANIFEST, LOG])
        self.state.uncommit(missing)
        jobs = (plan.job(number) for number in missing)
        make_worker = partial(make_shards, self.prepared.settings)
        with (
            Progress(
                sum(map(plan.samples_in, missing)),
                f"generating {store}",
                "sample",
                show=not self.prepared.request.quiet,
            ) as bar,
            closing(run_jobs(make_worker, jobs, workers)) as outcomes,
        ):
            for outcome in outcomes:
                bar.update(outcome.job.samples)
                self._note(outcome)
        spent = self.spent
        line = {
            "made": spent.samples,
            "bytes": self.made_bytes,
            "workers": spent.workers,
            "encoders": spent.encoders,
            "elapsed": round(spent.elapsed, 3),
            "seconds": {name: round(spent.seconds[name], 3) for name in STAGES},
        }
        store.write(LOG, json.dumps(line) + "\n")

    def _note(self, outcome: Done[Job, MadeShard] | Failed[Job]) -> None:
        if isinstance(outcome, Done):
            shard, seconds, elapsed = outcome.result
            self.committed.add(outcome.job.number, shard)
            self.made_bytes += shard.bytes
            self.spent.add(seconds, elapsed, shard.samples)
            return
        self.failed.append(outcome)
        lines = (
            {"shard": one.job.number, "attempts": one.attempts, "reason": one.reason}
            for one in self.failed
        )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        self.state.store.write(FAILURES, text)


def _committed(prepared: DatasetPlan, state: DatasetState, plan: Plan) -> Committed:
    """Shards that are there, as :class:`DatasetState` knows them."""
    output, verify = prepared.settings.output, prepared.request.output.verify
    return state.committed(plan, output.data_format, output.num_classes, verify=verify)


def make_shards(settings: planner.GenerationConfig, _: int) -> Callable[[Job], MadeShard]:
    """Build a worker, whose full disk stops the whole run."""
    maker = ShardWorker(settings)

    def make(job: Job) -> MadeShard:
        try:
            return maker(job)
        except OSError as error:
            if error.errno in _FULL:
                raise StopRun(f"the disk is full: {error.strerror}", error.errno) from error
            raise

    return make


@contextmanager
def _writable(
    store: Store, prepared: DatasetPlan, state: DatasetState
) -> Generator[None, None, None]:
    """Turn what keeps us from writing into a sentence.

    A full disk says what was kept and how much room is needed.
    """
    try:
        yield
    except (OSError, StopRun) as error:
        number = error.errno or 0
        if number not in _FULL:
            if isinstance(error, StopRun):
                raise
            raise UserError(
                f"--out {store}: cannot write: {error.strerror or error}; give another folder, or "
                "make it writable and run the same command again"
            ) from error
        plan = Plan((prepared.wanted.stage,))
        if state.is_ours():
            plan, _ = state.resolve(prepared.wanted, extend=False)
        committed = _committed(prepared, state, plan)
        kept, count = committed.samples, len(committed.shards)
        each = committed.bytes / kept if kept else _estimated_bytes(prepared)
        needed = (plan.num_samples - kept) * each / 1e6
        store.sweep()
        raise UserError(
            f"{store}: the disk is full ({os.strerror(number)}). {count} of {plan.num_shards} "
            f"shards are kept; about {needed:.1f} MB more are needed. Make room, then run the same "
            "command again"
        ) from error


def _estimated_bytes(prepared: DatasetPlan) -> float:
    """Of a sample."""
    height, width = prepared.size
    per_pixel = _BYTES_PER_PIXEL[prepared.settings.output.image_format] + _MAP_BYTES_PER_PIXEL
    return height * width * per_pixel + len(prepared.settings.output.mark)


def _filtered(prepared: DatasetPlan, done: Committed) -> str:
    """What was left out and what the label filter did, in words."""
    totals, count = done.filter, max(1, done.samples)
    if prepared.settings.filter is None:
        without = counted(totals.dropped, "varied form")
        return f"left out: {without} into which nothing could be pasted" if totals.dropped else ""
    return (
        f"filter: {totals.kept / count:.1%} of the labelled pixels kept, consistency "
        f"{totals.consistency / count:.3f}; {counted(totals.inconsistent, 'inconsistent sample')} "
        f"kept, "
        f"{totals.dropped} dropped, {totals.retried} made again"
    )


# The manifest


def _manifest(prepared: DatasetPlan, plan: Plan, done: Committed) -> Manifest:
    request, recipe, file = prepared.request, prepared.recipe, prepared.file
    output, space = prepared.settings.output, prepared.space
    keys = {stage.items[int(i)].key for stage in plan.stages for i in np.unique(stage.rows.layouts)}
    provenance = Provenance(
        digital_source_type=prepared.digital_source,
        checkpoint=CheckpointRecord(sha256=file.sha256, images_seen=file.metadata.images_seen),
        recipe_hash=generator_hash(recipe),
    )
    generator, onto = file.metadata.label_generator, request.layouts.onto
    own_edges = recipe.model.edge_generator and onto is None
    return Manifest(
        versions=prepared.versions,
        format=output.data_format,
        split=SPLIT,
        samples=done.samples,
        layouts=len(keys),
        seen_layouts=len(keys & set(file.metadata.seen_keys)),
        varied_layouts=sum(int((stage.rows.variants > 0).sum()) for stage in plan.stages),
        size=prepared.size,
        image_format=output.image_format,
        quality=output.quality,
        label_space=request.output.label_space,
        ignore_index=space.ignore_index,
        edge_source=EdgeSource.GENERATOR if own_edges else EdgeSource.CANNY,
        boundary_source=_boundary_source(prepared),
        style_source=_style_source(prepared),
        seed=request.styles.seed or 0,
        style_seed=request.styles.style_seed,
        balance=request.balance.spread,
        vary=request.layouts.changes,
        onto=onto or "",
        license=recipe.sampling.license,
        filter=_filter_summary(prepared, done),
        label_generator=LabelGeneratorRecord(**generator) if generator else None,
        unlabelled=tuple(sorted({photo_digest(one) for one in file.metadata.all_unlabelled})),
        recipe=recipe.model_dump(mode="json"),
        fingerprint=prepared.wanted.fingerprint,
        classes=space.written().to_json(),
        names=space.names_for_evaluation if output.evaluation else space.names,
        class_pixels=tuple(done.class_pixels.tolist()),
        shards=done.in_order(),
        provenance=provenance if request.output.provenance else None,
    )


def _filter_summary(prepared: DatasetPlan, done: Committed) -> FilterSummary:
    spec, asked = prepared.settings.filter, prepared.request.filter
    if spec is None:
        return FilterSummary()
    count, totals = max(1, done.samples), done.filter
    return FilterSummary(
        kind="consistency",
        segmenter=None if asked.label_filter is None else told_place(asked.label_filter),
        weights=spec.weights,
        independent=spec.independent,
        on_inconsistent=asked.on_inconsistent,
        thresholds=asdict(spec.thresholds),
        consistency=totals.consistency / count,
        kept_fraction=totals.kept / count,
        inconsistent=totals.inconsistent,
        dropped=totals.dropped,
        retried=totals.retried,
    )


def _boundary_source(prepared: DatasetPlan) -> BoundarySource:
    if not prepared.recipe.data.instances:
        return BoundarySource.NONE
    asked = prepared.request.layouts
    from_files = asked.labels is None or asked.instances is not None
    return BoundarySource.INSTANCES if from_files else BoundarySource.CLASSES


def _style_source(prepared: DatasetPlan) -> StyleSource:
    asked = prepared.request.styles
    if not prepared.recipe.model.style:
        return StyleSource.NONE
    if prepared.request.layouts.onto and prepared.file.style_encoder is not None:
        return StyleSource.OWN_PHOTOS
    if asked.style_images is not None:
        return StyleSource.PHOTOS
    return StyleSource.SEED if asked.style_seed is None else StyleSource.STYLE_SEED
