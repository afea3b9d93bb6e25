"""Training of ECGAN: ``run`` checks, builds and resumes; ``fit`` is the loop.

    check --> build_networks --> build_objective --> label photos --> resume --> fit:
        [batch --> step --> average --> log, preview, score, checkpoint] ... --> generator file

Progress is counted in images, and draws are keyed by an image's position in the training, so the
same command again resumes at the newest checkpoint and ends with the same bits as a run that was
never interrupted (on CPU).
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from ecgan import checkpoint, labels
from ecgan.data import checks, datasets
from ecgan.data.label_cache import LabelCache
from ecgan.data.loader import TripleDataset
from ecgan.data.transforms import Edges
from ecgan.errors import UsageError, UserError
from ecgan.labels import LabelSpace
from ecgan.recipe import Recipe, class_list_file, data_folder, label_space, subset
from ecgan.runtime import distributed
from ecgan.runtime.device import choose_device
from ecgan.runtime.files import held_lock, write_whole, writing
from ecgan.runtime.processes.signals import DeferredSignals
from ecgan.runtime.storage import Folder
from ecgan.runtime.timing import say
from ecgan.training.ema import AveragedGenerator
from ecgan.training.log import Progress
from ecgan.training.loop import data_files, unlabelled
from ecgan.training.loop.data_files import DataFiles
from ecgan.training.loop.fit import Outcome, fit
from ecgan.training.loop.state import Job, TrainingState
from ecgan.training.networks import (
    Networks,
    build_networks,
    check_weights,
    label_generator,
    named_judge,
    refuse_too_large,
)
from ecgan.training.objective import Objective, build_bank
from ecgan.training.validation import Validation

_LOCK, _CLASSES = ".lock", "classes.json"
NUM_PHOTOS = 64  # that give a discriminator on frozen features its statistics


def run(
    recipe: Recipe,
    out: Path,
    *,
    device: str = "auto",
    init: Path | None = None,
    accept_changed_data: bool = False,
    quiet: bool = False,
) -> Outcome:
    """Train, or resume the training in ``out``.

    Args:
        recipe: the recipe.
        out: run folder; created if necessary.
        device: auto, cpu, cuda or cuda:N.
        init: a generator to start from.
        accept_changed_data: go on where files are not those that the run learnt from.
        quiet: no progress bar.

    Returns:
        ``interrupted`` after Ctrl-C or SIGTERM, once a checkpoint is written.

    Raises:
        UserError: a fault that the user can mend, found before any computation where possible.
    """
    own_device = choose_device(device, current=True)
    with distributed.process_group(own_device), DeferredSignals() as signals:
        try:
            job = check(
                recipe,
                out,
                device=own_device,
                init=init,
                accept_changed_data=accept_changed_data,
                quiet=quiet,
            )
            with _only_writer(job):
                networks = build_networks(job.recipe, job.space, job.device, job.init)
                objective = build_objective(job, networks)
                job = replace(job, photos_alone=unlabelled.labelled(job))
                state = resume(job, networks, objective)
                return fit(state, signals)
        except KeyboardInterrupt:  # before the first step, or a second one after that
            return "interrupted"


def check(  # noqa: PLR0913  each may be refused
    recipe: Recipe,
    out: Path,
    *,
    device: torch.device,
    init: Path | None = None,
    accept_changed_data: bool = False,
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
        accept_changed_data: go on where files are not those that the run learnt from.
        quiet: no progress bar.
        num_processes: number of ranks; default: those that run.
        read_files: read every label map and photo once.

    Raises:
        UserError: a fault of the recipe, the folders or the data.
    """
    recipe = recipe.resolved(device.type)
    check_weights(recipe)
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
    unlabelled.check_recipe(recipe.data, space)
    at_once = recipe.train.batch // (world * recipe.train.accumulate)
    refuse_too_large(recipe, space, at_once, world, device)
    train_set, validation_set = build_sets(recipe, space)
    cache = LabelCache(Folder(out)) if read_files else None
    files: DataFiles | None = None
    alone: dict[str, Path] = {}
    if read_files and distributed.is_first():
        files = _check_files(recipe, space, (train_set, validation_set), cache, quiet=quiet)
        alone = unlabelled.find(recipe.data, files, out, quiet=quiet)
        files = replace(files, unlabelled=unlabelled.names(recipe.data, alone))
        length = recipe.train.images
        files = data_files.accepted(
            out, files, images=length, accept=accept_changed_data, quiet=quiet
        )
    for part in (train_set, validation_set):
        reading = distributed.from_first(part.items[0].reading)
        part.items = datasets.with_reading(part.items, reading)
    alone = distributed.from_first(alone)
    return Job(
        recipe, space, train_set, validation_set, out, device, init, quiet, cache, files, alone
    )


def _check_files(
    recipe: Recipe,
    space: LabelSpace,
    sets: tuple[TripleDataset, TripleDataset],
    cache: LabelCache | None,
    *,
    quiet: bool,
) -> DataFiles:
    """Read every file once; say how they are read, and what looks odd about them."""
    items = {item.label: item for part in sets for item in part.items}
    check = checks.check_labels(
        list(items.values()), space, recipe.data.dataset, cache=cache, progress=not quiet
    )
    notes = [*check.notes, *(check.class_notes() if recipe.data.dataset == "folder" else ())]
    held_out = {item.label for item in sets[1].items}
    sides = [item.label in held_out for item in check.items]
    if not all(sides):
        found = checks.near_equal_note([content.photo for content in check.contents], sides)
        notes += [found] if found else []
    if not quiet:
        for note in notes:
            say(note)
    for part in sets:
        part.items = datasets.with_reading(part.items, check.reading)
    return DataFiles.of(check, sets[0].items, sets[1].items)


def build_sets(recipe: Recipe, space: LabelSpace) -> tuple[TripleDataset, TripleDataset]:
    """Training and validation set of a recipe."""
    data = recipe.data
    folder = data_folder(data)
    # HED runs on the crop, on the device; without Ge edges are not needed
    edges: Edges = "none" if data.edges == "hed" or not recipe.model.edge_generator else data.edges
    parts: list[TripleDataset] = []
    for split in (data.split, "val"):
        items = folder.items_for(
            split,
            train_split=data.split,
            subset=subset(data),
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
    checkpoint.refuse_links(out)
    if (out / "recipe.yaml").is_file():
        listed = (out / data_files.NAME).is_file()
        checkpoint.refuse_another_recipe(out, recipe, data_files.RECIPE_KEYS if listed else ())
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

    The run folder gets its recipe, class list and list of files before that.
    """
    recipe, space, device = job.recipe, job.space, job.device
    if distributed.is_first():
        write_whole(job.out / _CLASSES, json.dumps(space.to_json(), indent=1))
        write_whole(job.out / "recipe.yaml", recipe.to_yaml())
        if job.files is not None:
            job.files.write(job.out)
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
    averaged.photos_alone = job.photos_alone
    if job.files is not None:
        averaged.earlier_keys = job.files.earlier
        averaged.unlabelled = job.files.earlier_unlabelled.union(job.files.unlabelled)
    averaged.start(networks.trained.side)
    critic = networks.trained.segmentation_discriminator
    if critic is not None and objective.segmentation is not None:
        objective.segmentation.measure(critic.network, averaged.photos(NUM_PHOTOS))
    judge = None
    if distributed.is_first():  # it scores alone
        judge = named_judge(job.recipe, job.space, job.validation_set, job.device)
    validation = Validation(
        averaged, job.validation_set, job.segmenters, judge=judge, quiet=job.quiet
    )
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
        UserError: all checkpoints are damaged, or the run did not start from ``--init``.
    """
    state = start(job, networks, objective)
    found = checkpoint.newest_training(job.out, state.refuse_other)
    if found is None:
        if networks.warm_start is not None and distributed.is_first():
            write_whole(job.out / "init.txt", networks.warm_start.listing())
        return state
    folder, saved, notes = found
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
    state.notes = [*notes, f"resuming from {folder}"]
    return state
