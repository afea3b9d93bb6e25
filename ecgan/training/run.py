"""Training of ECGAN: ``run`` checks, builds and resumes; ``fit`` is the loop.

    check --> build_networks --> build_objective --> resume --> fit:
        [batch --> step --> average --> log, preview, score, checkpoint] ... --> generator file

Progress is counted in images, and draws are keyed by an image's position in the training, so the
same command again resumes at the newest checkpoint and ends with the same bits as a run that was
never interrupted (on CPU).
"""

import json
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from ecgan import checkpoint, labels
from ecgan.data import checks, datasets
from ecgan.data.label_cache import LabelCache
from ecgan.data.loader import Batch, TripleDataset, batches
from ecgan.data.transforms import Edges
from ecgan.errors import UsageError, UserError
from ecgan.labels import LabelSpace
from ecgan.models.pretrained.hed import Hed
from ecgan.recipe import Recipe, class_list_file, label_space
from ecgan.runtime import distributed
from ecgan.runtime.device import choose_device
from ecgan.runtime.distributed import DeferredSignals
from ecgan.runtime.files import held_lock, write_whole, writing
from ecgan.runtime.storage import Folder
from ecgan.runtime.timing import span
from ecgan.training import step
from ecgan.training.ema import AveragedGenerator
from ecgan.training.log import Progress, RunLogger
from ecgan.training.networks import Networks, build_networks, label_generator
from ecgan.training.objective import Objective, build_bank
from ecgan.training.validation import Validation

Outcome = Literal["done", "interrupted"]

_LOCK, _CLASSES = ".lock", "classes.json"
NUM_PHOTOS = 64  # that give a discriminator on frozen features its statistics


@dataclass(frozen=True)
class Job:
    """A training that passed its checks.

    Attributes:
        recipe: the resolved recipe.
        space: the class list.
        train_set: pairs to train on.
        validation_set: pairs for previews and scores.
        out: run folder.
        device: device of this process.
        init: generator to start from, if any.
        quiet: no progress bar.
        label_cache: results of the label checks, to be kept in the run folder.
    """

    recipe: Recipe
    space: LabelSpace
    train_set: TripleDataset
    validation_set: TripleDataset
    out: Path
    device: torch.device
    init: Path | None
    quiet: bool
    label_cache: LabelCache | None

    @property
    def segmenters(self) -> Path:
        """Cache of the segmenters that are trained for this run."""
        return self.out / "segmenters"


@dataclass
class TrainingState:
    """Everything that a training changes.

    Attributes:
        job: what is trained.
        trained: G and D with their optimisers.
        objective: loss terms, with the memory bank.
        averaged: moving average of G.
        validation: previews and scores of the average.
        hed: HED, if real edges come from it.
        progress: images seen, means of the log and best score.
        notes: messages for the start of the log.
        unread: images seen before the last step, and that step's values, until they are read.
    """

    job: Job
    trained: step.TrainedNetworks
    objective: Objective
    averaged: AveragedGenerator
    validation: Validation
    hed: Hed | None
    progress: Progress
    notes: list[str] = field(default_factory=list[str])
    unread: tuple[int, step.StepValues] | None = None

    @property
    def saved(self) -> dict[str, torch.nn.Module]:
        """Networks that a checkpoint holds, by name."""
        found = {name: one.network for name, one in self.trained.by_name.items()}
        found |= {"averaged": self.averaged.networks}
        return found if self.objective.bank is None else {**found, "bank": self.objective.bank}


def run(
    recipe: Recipe,
    out: Path,
    *,
    device: str = "auto",
    init: Path | None = None,
    quiet: bool = False,
) -> Outcome:
    """Train, or resume the training in ``out``.

    Args:
        recipe: the recipe.
        out: run folder; created if necessary.
        device: auto, cpu, cuda or cuda:N.
        init: a generator to start from.
        quiet: no progress bar.

    Returns:
        ``interrupted`` after Ctrl-C or SIGTERM, once a checkpoint is written.

    Raises:
        UserError: a fault that the user can mend, found before any computation where possible.
    """
    own_device = choose_device(device, current=True)
    with distributed.process_group(own_device), DeferredSignals() as signals:
        try:
            job = check(recipe, out, device=own_device, init=init, quiet=quiet)
            with _only_writer(job):
                networks = build_networks(job.recipe, job.space, job.device, job.init)
                objective = build_objective(job, networks)
                state = resume(job, networks, objective)
                return fit(state, signals)
        except KeyboardInterrupt:  # before the first step, or a second one after that
            return "interrupted"


def check(
    recipe: Recipe,
    out: Path,
    *,
    device: torch.device,
    init: Path | None = None,
    quiet: bool = False,
    num_processes: int | None = None,
    read_files: bool = True,
) -> Job:
    """Check everything that can be refused before networks are built.

    Args:
        recipe: the recipe.
        out: run folder.
        device: device of this process.
        init: a generator to start from.
        quiet: no progress bar.
        num_processes: number of ranks; default: those that run.
        read_files: read every label map and photo once.

    Raises:
        UserError: a fault of the recipe, the folders or the data.
    """
    recipe = recipe.resolved(device.type)
    _check_folder(out, recipe)
    world = num_processes or distributed.world_size()
    if recipe.train.batch % (world * recipe.train.accumulate):
        raise UserError(
            f"train.batch ({recipe.train.batch}) must divide by ranks x accumulate "
            f"({world} x {recipe.train.accumulate})"
        )
    if not recipe.parts().terms:
        raise UserError(
            "the recipe sums no term of Eq. 10: give one of losses.adversarial, "
            "losses.feature_matching, losses.perceptual, ... a weight above 0"
        )
    space = label_space(recipe.data)
    _refuse_other_classes(out, space, recipe)
    train_set, validation_set = build_sets(recipe, space)
    cache = LabelCache(Folder(out)) if read_files else None
    if read_files and distributed.is_first():
        items = {item.label: item for item in (*train_set.items, *validation_set.items)}
        checks.check_labels(
            list(items.values()), space, recipe.data.dataset, cache=cache, progress=not quiet
        )
    distributed.barrier()
    return Job(recipe, space, train_set, validation_set, out, device, init, quiet, cache)


def build_sets(recipe: Recipe, space: LabelSpace) -> tuple[TripleDataset, TripleDataset]:
    """Training and validation set of a recipe."""
    data = recipe.data
    if data.root is None:
        raise UsageError("data.root is not set: give the folder of the data set with --data DIR")
    # HED runs on the crop, on the device; without Ge edges are not needed
    edges: Edges = "none" if data.edges == "hed" or not recipe.model.edge_generator else data.edges
    parts: list[TripleDataset] = []
    for split in (data.split, "val"):
        items = datasets.items_for(
            data.dataset,
            Path(data.root),
            split,
            train_split=data.split,
            fraction=data.fraction,
            instances=data.instances,
            edges_folder=edges == "folder",
        )
        part = TripleDataset(
            items,
            space,
            data.dataset,
            height=data.height,
            width=data.width,
            resize_to=data.resize_to,
            flip=data.flip,
            train=split == data.split,
            seed=recipe.train.seed,
            edges=edges,
            boundary=data.instances,
        )
        parts.append(part)
    return parts[0], parts[1]


def _check_folder(out: Path, recipe: Recipe) -> None:
    """Refuse a folder that is not a run, or a run of another recipe."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out}: a file; give a folder")
    if (out / "recipe.yaml").is_file():
        checkpoint.refuse_another_recipe(out, recipe)
    elif any(not path.name.startswith(".") for path in out.iterdir()):
        raise UsageError(
            f"--out {out}: not empty, and not a run of ecgan train (no recipe.yaml in it); "
            "give another folder"
        )


def _refuse_other_classes(out: Path, space: LabelSpace, recipe: Recipe) -> None:
    """A run resumes with its own class list, which the recipe alone may not name."""
    path = out / _CLASSES
    if not path.is_file():
        return
    before = labels.load_label_space(path)
    if before != space:
        path = class_list_file(recipe.data)
        raise UserError(
            f"{out} was trained on other classes ({_listed(before)}; now {_listed(space)}"
            f"{f', of {path}' if path else ''}); use a new --out, and --init to start from its "
            "generator"
        )


def _listed(space: LabelSpace) -> str:
    return f"{space.num_classes}: {', '.join(space.names[:5])}{', ...' * (space.num_classes > 5)}"


@contextmanager
def _only_writer(job: Job) -> Iterator[None]:
    """Lock the run folder against a second training; rank 0 holds the lock for all."""
    with ExitStack() as stack:
        if distributed.is_first():
            with writing(job.out):
                job.out.mkdir(parents=True, exist_ok=True)
                stack.enter_context(held_lock(job.out / _LOCK, str(job.out)))
            if job.label_cache is not None:
                job.label_cache.save()
        yield


def build_objective(job: Job, networks: Networks) -> Objective:
    """Build the loss terms; the label generator is trained first, if the recipe says so.

    The run folder gets its recipe and class list before that.
    """
    recipe, space, device = job.recipe, job.space, job.device
    if distributed.is_first():
        write_whole(job.out / _CLASSES, json.dumps(space.to_json(), indent=1))
        write_whole(job.out / "recipe.yaml", recipe.to_yaml())
    segmenter = label_generator(
        recipe, space, job.train_set, cache=job.segmenters, device=device, quiet=job.quiet
    )
    bank = build_bank(recipe, space, device)
    perceptual, features = networks.perceptual_network, networks.feature_network
    return Objective(recipe, space, device, segmenter, perceptual, bank, features)


def start(job: Job, networks: Networks, objective: Objective) -> TrainingState:
    """State of a training that has seen no image."""
    averaged = AveragedGenerator(
        job.recipe, job.space, job.train_set, job.device, objective.label_generator
    )
    averaged.start(networks.trained.side)
    critic = networks.trained.segmentation_discriminator
    if critic is not None and objective.segmentation is not None:
        objective.segmentation.measure(critic.network, averaged.photos(NUM_PHOTOS))
    validation = Validation(averaged, job.validation_set, job.segmenters, quiet=job.quiet)
    state = TrainingState(
        job, networks.trained, objective, averaged, validation, networks.hed, Progress()
    )
    if networks.warm_start is not None and job.init is not None:
        state.progress.init = networks.init_sha256
        state.progress.inherited = checkpoint.inheritance(job.init)
        state.notes = [f"--init {job.init}", *networks.warm_start.lines()]
    return state


def resume(job: Job, networks: Networks, objective: Objective) -> TrainingState:
    """State of the newest checkpoint in the run folder, or of a new training without one.

    Raises:
        UserError: the checkpoint is damaged, or did not start from ``--init``.
    """
    state = start(job, networks, objective)
    folders = checkpoint.training_checkpoints(job.out)
    if not folders:
        if networks.warm_start is not None and distributed.is_first():
            write_whole(job.out / "init.txt", networks.warm_start.listing())
        return state
    saved = checkpoint.load_training(folders[-1])
    init = saved.state["init"]
    if state.progress.init not in {"", init}:
        raise UserError(
            f"{job.out} did not start from --init {job.init}; leave the option out to resume, or "
            "use a new folder"
        )
    for name, network in state.saved.items():
        network.load_state_dict(saved.networks[name])
    for name, one in state.trained.by_name.items():
        one.load_optimizer(saved.optimizers[f"{name}_optimizer"])
    state.progress = Progress.from_json(saved.state)
    state.notes = [f"resuming from {folders[-1]}"]
    return state


def fit(state: TrainingState, signals: DeferredSignals) -> Outcome:
    """Train to the end, or until a signal comes; write checkpoints and the generator."""
    job, progress = state.job, state.progress
    length = job.recipe.train.images
    seen = progress.images_seen
    if seen >= length and checkpoint.is_written(job.out, seen, job.recipe):
        return "done"
    with RunLogger(job.out, progress.images_seen, length, quiet=job.quiet) as log:
        for note in state.notes:
            log.message(note)
        signals.defer()
        for batch in batches_of(state):
            if progress.images_seen >= length:
                break
            if distributed.any_rank(signals.came):
                _save(state)
                return "interrupted"
            before = progress.images_seen
            train_step(state, batch)
            log.advance(job.recipe.train.batch)
            _report(state, log, before)
        _flush_metrics(state)
        if progress.means.count:
            _log_means(state, log)
        _save(state)
    _save_generator(state, checkpoint.GENERATOR)
    distributed.barrier()
    return "done"


def batches_of(state: TrainingState) -> Generator[Batch, None, None]:
    """Endless batches of this rank, from the state's position on."""
    job = state.job
    return batches(
        job.train_set,
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
        raise UserError(
            f"{state.job.out}: the term {error.term} is {error.value} at step "
            f"{images // state.job.recipe.train.batch} (after {images} images), on "
            f"{', '.join(error.keys)}. The checkpoint before is untouched. Look at these samples, "
            "lower train.lr_generator and train.lr_discriminator, or set train.precision=float32"
        ) from error


def _report(state: TrainingState, log: RunLogger, before: int) -> None:
    """Log, preview, score and save, each at the first step at or past its interval."""
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
        log.preview(now, state.validation.preview(state.hed))
    better = "evaluate" in due and distributed.is_first() and _score(state, log)
    better = distributed.any_rank(better)
    if ("checkpoint" in due or better) and now < recipe.images:
        _save(state)
        _save_generator(state, checkpoint.GENERATOR)


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


def _score(state: TrainingState, log: RunLogger) -> bool:
    """Score on the validation split; save the generator if it is the best so far."""
    now = state.progress.images_seen
    scores = state.validation.score()
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
    """Write a training checkpoint."""
    _flush_metrics(state)
    out, progress = state.job.out, state.progress
    if distributed.is_first() and progress.images_seen > 0:
        training = checkpoint.Training(
            {name: network.state_dict() for name, network in state.saved.items()},
            {f"{n}_optimizer": x.optimizer.state_dict() for n, x in state.trained.by_name.items()},
            progress.to_json(),
        )
        checkpoint.save_training(out, progress.images_seen, training)
        kept = None if progress.best is None else int(progress.best["images"])
        checkpoint.prune(out, state.job.recipe.train.keep, kept)
    distributed.barrier()
