"""The loop: batch, step, average, and now and then a line, a preview, a score, a checkpoint.

A signal or a loader that fails ends it with a checkpoint of that moment: what waits (for a batch, a
preview, a score) is left at once, a step is brought to its end.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from typing import Literal

from ecgan import checkpoint
from ecgan.data.loader import Batch, Mixture, batches
from ecgan.errors import UserError
from ecgan.runtime import distributed
from ecgan.runtime.processes.signals import DeferredSignals
from ecgan.runtime.timing import counted, span
from ecgan.training import step
from ecgan.training.log import RunLogger
from ecgan.training.loop.banner import banner, time_left
from ecgan.training.loop.state import TrainingState

Outcome = Literal["done", "interrupted"]


def fit(state: TrainingState, signals: DeferredSignals) -> Outcome:
    """Train to the end, or until a signal comes; write checkpoints and the generator."""
    job, progress = state.job, state.progress
    length = job.recipe.train.images
    seen = progress.images_seen
    if seen >= length and checkpoint.is_written(job.out, seen, job.recipe):
        return "done"
    logger = RunLogger(job.out, progress.images_seen, length, quiet=job.quiet)
    with logger as log, closing(batches_of(state)) as found:
        log.message(banner(state))
        for note in state.notes:
            log.message(note)
        if distributed.world_size() > 1:  # one that left a step would leave the others in it
            signals.defer()
        if progress.owes_score:
            _score(state, log, signals)
        while progress.images_seen < length:
            batch = _next(state, found, signals)
            if batch is None:
                return "interrupted"
            before = progress.images_seen
            train_step(state, batch)
            signals.defer()  # until now there was nothing to lose, and a first step may be long
            log.advance(job.recipe.train.batch, progress.means)
            _tell_rate(state, log)
            _report(state, log, before, signals)
        _flush_metrics(state)
        if progress.means.count:
            _log_means(state, log)
        _save(state)
    signals.at_once(partial(_save_generator, state, checkpoint.GENERATOR))
    distributed.barrier()
    return "interrupted" if signals.came else "done"


def _next(state: TrainingState, found: Iterator[Batch], signals: DeferredSignals) -> Batch | None:
    """The next batch; where a signal came instead, None, once a checkpoint is written.

    Raises:
        UserError: there is no next batch; a checkpoint is written.
    """
    batch: Batch | None = None
    failure: UserError | None = None
    try:
        batch = signals.at_once(partial(next, found))
    except UserError as error:
        failure = error
    if not distributed.any_rank(signals.came or failure is not None):
        return batch
    _save(state)
    if failure is not None:
        raise failure
    return None


def _tell_rate(state: TrainingState, log: RunLogger) -> None:
    """Say once, after the first steps, how long the rest will take."""
    recipe, seen = state.job.recipe, state.progress.images_seen
    rate = log.first_rate()
    if rate is not None and seen < recipe.train.images:
        log.message(time_left(recipe, seen, rate))


def batches_of(state: TrainingState) -> Generator[Batch, None, None]:
    """Endless batches of this rank, from the state's position on."""
    job = state.job
    alone = job.photos_alone
    return batches(
        job.train_set if alone is None else Mixture(job.train_set, alone),
        state.progress.images_seen,
        job.recipe.train.batch,
        rank=distributed.rank(),
        world=distributed.world_size(),
        workers=job.recipe.data.workers,
        pin=job.device.type == "cuda",
    )


def train_step(state: TrainingState, batch: Batch) -> None:
    """Launch a step, then read the values of the step before: the GPU need not wait for the host.

    Raises:
        UserError: a value was not finite, the GPU is too small, or nothing can be compiled.
    """
    job, progress = state.job, state.progress
    train = job.recipe.train
    factor = step.rate_factor(job.recipe, progress.images_seen)
    with step.explained_failures(train, job.out):
        with span("copy"):
            parts = step.micro_batches(batch, train.accumulate, job.space, job.device, state.hed)
        values = step.step(state.trained, state.objective, parts, factor)
    _flush_metrics(state)
    state.unread = progress.images_seen, values
    progress.images_seen += train.batch
    with span("averaging"):
        state.averaged.update(state.trained.side, progress.images_seen)


def _flush_metrics(state: TrainingState) -> None:
    """Read the values of the last step, before anything is shown, scored or written.

    Raises:
        UserError: a value is not finite; the networks were good until the step before.
    """
    if state.unread is None:
        return
    (images, values), state.unread = state.unread, None
    try:
        state.progress.means.add(values.read())
    except step.NonFiniteError as error:
        frozen = state.objective.label_generator
        teacher = ""
        if error.term == "similarity" and frozen is not None:
            teacher = f", give another label generator than {frozen.loaded_from}"
        raise UserError(
            f"{state.job.out}: the term {error.term} is {error.value} at step "
            f"{images // state.job.recipe.train.batch} (after {counted(images, 'image')}), on "
            f"{', '.join(error.keys)}. The checkpoint before is untouched. Look at these samples, "
            f"lower train.lr_generator and train.lr_discriminator{teacher}, or set "
            "train.precision=float32"
        ) from error


def _report(state: TrainingState, log: RunLogger, before: int, signals: DeferredSignals) -> None:
    """Log, preview, score and save, each at the first step at or past its interval.

    A signal cuts previews and scores short; a score that is owed is made when the run goes on.
    """
    recipe, now = state.job.recipe.train, state.progress.images_seen
    intervals = {
        "log": recipe.log_every,
        "preview": recipe.preview_every,
        "evaluate": recipe.evaluate_every,
        "checkpoint": recipe.checkpoint_every,
    }
    due = {name for name, n in intervals.items() if n > 0 and now // n > before // n}
    if due:
        _flush_metrics(state)
    if "log" in due:
        _log_means(state, log)
    if "preview" in due and distributed.is_first():
        signals.at_once(lambda: log.preview(now, state.validation.preview(state.hed)))
    better = "evaluate" in due and _score(state, log, signals)
    if ("checkpoint" in due or better) and now < recipe.images:
        _save(state)
        signals.at_once(partial(_save_generator, state, checkpoint.GENERATOR))


def _score(state: TrainingState, log: RunLogger, signals: DeferredSignals) -> bool:
    """Score on rank 0; every rank learns whether it was the best so far."""
    scores = signals.at_once(state.validation.score) if distributed.is_first() else None
    better = scores is not None and _is_best(state, log, scores)
    state.progress.owes_score = distributed.any_rank(distributed.is_first() and scores is None)
    return distributed.any_rank(better)


def _log_means(state: TrainingState, log: RunLogger) -> None:
    """Log the means since the last line, with the learning rates of the last step."""
    recipe, now = state.job.recipe, state.progress.images_seen
    factor = step.rate_factor(recipe, now - recipe.train.batch)
    rates = {
        "lr_generator": recipe.train.lr_generator * factor,
        "lr_discriminator": recipe.train.lr_discriminator * factor,
        "images_per_second": log.images_per_second(now),
    }
    log.log(now, state.progress.means.take() | rates)


def _is_best(state: TrainingState, log: RunLogger, scores: dict[str, float]) -> bool:
    """Log scores of the validation split; save the generator if it is the best so far."""
    now = state.progress.images_seen
    log.log(now, scores)
    # the higher the better: mIoU, or the negative distance where there is no judge
    value = scores.get("miou", -scores.get("fd_efficientnet_lite0", float("inf")))
    best = state.progress.best
    if best is not None and not value > best["value"]:  # NaN is no better
        return False
    state.progress.best = {"images": now, "value": value}
    _save_generator(state, checkpoint.BEST)
    return True


def _save_generator(state: TrainingState, name: str) -> None:
    if distributed.is_first():
        progress = state.progress
        state.averaged.save(state.job.out / name, progress.images_seen, progress.inherited)


def _save(state: TrainingState) -> None:
    """Write a training checkpoint, once at a position."""
    _flush_metrics(state)
    out, progress = state.job.out, state.progress
    if state.saved_at == progress.images_seen:
        return
    if distributed.is_first() and progress.images_seen > 0:
        training = checkpoint.Training(
            {name: network.state_dict() for name, network in state.saved.items()},
            {f"{n}_optimizer": x.optimizer.state_dict() for n, x in state.trained.by_name.items()},
            progress.to_json(),
        )
        checkpoint.save_training(out, progress.images_seen, training)
        kept = None if progress.best is None else int(progress.best["images"])
        checkpoint.prune(out, state.job.recipe.train.keep, kept, progress.images_seen)
    state.saved_at = progress.images_seen
    distributed.barrier()
