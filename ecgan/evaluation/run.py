"""Evaluation of data sets of samples: ``report.json`` and ``report.html``.

Fidelity (:mod:`ecgan.evaluation.fidelity`) is measured on samples of layouts that the generator did
not train on. Segmenters are trained (:mod:`ecgan.evaluation.downstream.run`) with samples of those
that it did.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ecgan.checkpoint import GENERATOR, load_generator, resolve_generator
from ecgan.data import checks
from ecgan.data.files.images import digests_of
from ecgan.data.label_cache import LabelCache
from ecgan.data.loader import TripleDataset
from ecgan.data.packed import sample_sets
from ecgan.errors import UsageError, UserError, shown
from ecgan.evaluation import fidelity
from ecgan.evaluation import judge as judges
from ecgan.evaluation.downstream import leakage
from ecgan.evaluation.downstream import run as downstream
from ecgan.evaluation.downstream.experiment import Experiment
from ecgan.evaluation.fidelity import Setup
from ecgan.evaluation.report import page
from ecgan.evaluation.report.document import Report
from ecgan.evaluation.request import DownstreamOptions, Request
from ecgan.evaluation.sources import SampleSet
from ecgan.generation import run as generation
from ecgan.generation.request import Request as GenerationRequest
from ecgan.labels import LabelSpace
from ecgan.reading.places import Address
from ecgan.recipe import Recipe, class_list_file, data_folder, label_space, parse_recipe
from ecgan.runtime import storage
from ecgan.runtime.device import choose_device
from ecgan.runtime.files import check_out, writing
from ecgan.runtime.jobs import Workers, resolve_workers
from ecgan.runtime.timing import counted, say
from ecgan.shards.manifest import photo_digest

__all__ = ["DownstreamOptions", "Request", "newest_samples", "run"]


def run(request: Request) -> tuple[Report, Path]:
    """Evaluate, and write the report.

    Returns:
        The report, and the folder it is in.

    Raises:
        UserError: samples, reference or judge are not there or do not fit each other.
    """
    with judges.usable_cache():
        return _run(request)


def _run(request: Request) -> tuple[Report, Path]:
    workers = resolve_workers(
        request.device, request.workers, request.gpus_per_worker, request.ray_address
    )
    places = [_generated(Address(place), request) for place in request.samples]
    sets = [SampleSet.at(p) for p in places or [str(newest_samples(Path("datasets")))]]
    recipe = _recipe(request, sets)
    out = request.out or Path("reports") / Path(sets[0].name).name
    _check_out(out)
    if request.save_statistics is not None:
        _require_writable("--save-npz", request.save_statistics)
    setup = _setup(request, recipe, sets)
    _refuse_seen_photos(setup, sets)
    trained_with = _sets_to_train_with(setup, sets)
    experiment = _experiment(setup, trained_with, out / "downstream", workers)
    copies: list[page.Gallery] = []
    report, pictures = _measured(setup, sets, trained_with, workers)
    if experiment is not None:
        section, copies = downstream.run(experiment)
        report = report.model_copy(update={"downstream": section})
    page.write(report, out, pictures, copies)
    return report, out


def _measured(
    setup: Setup, sets: Sequence[SampleSet], trained_with: Sequence[SampleSet], workers: Workers
) -> tuple[Report, list[page.Illustrations]]:
    """Report on the fidelity of the sets that no segmenter is trained with; pictures of each."""
    judged = [one for one in sets if one not in trained_with]
    if not judged:
        reason = "the samples are of train layouts, with which segmenters were trained"
        return Report(samples=sets[0].place, skipped={"miou": reason}), [page.Illustrations()]
    prepared = fidelity.prepare(setup, judged)
    found = prepared.measure(workers)
    first, *others = [prepared.describe(one, found) for one in judged]
    pictures = [prepared.illustrate(one, found[one.place]) for one in judged]
    return Report.of_sets(first, others), pictures


def _generated(place: str, request: Request) -> str:
    """A data set as it is; of a run, samples of the layouts of the split, generated here."""
    path = Path(place)
    if "://" in place or (path.suffix != ".safetensors" and not path.is_dir()):
        return place  # refused where it is opened
    if path.is_dir() and not (path / GENERATOR).is_file():
        if (path / "recipe.yaml").is_file() and (path / "classes.json").is_file():
            raise UsageError(
                f"--samples {place}: a run without {GENERATOR}: its training is not finished; the "
                "same ecgan train again resumes it"
            )
        return place
    run, file = (path, None) if path.is_dir() else (None, path)
    source = resolve_generator(run, file)
    data = load_generator(source).recipe.data
    root = request.reference or data.root
    if root is None:
        raise UsageError(f"--samples {place}: its recipe has no data.root; give --reference DIR")
    has_test = data_folder(data, Path(root)).has_split("test")
    split = request.split or ("test" if has_test else "val")
    styles = "" if request.n_styles == 1 else f"-{request.n_styles}-styles"
    out = Path("datasets") / f"{source.parent.name or source.stem}-{split}{styles}"
    generation.run(
        GenerationRequest.of(
            generator=source,
            out=out,
            root=Path(root),
            split=split,
            n_styles=request.n_styles,
            overrides=tuple(text for text in request.overrides if text.startswith("sampling.")),
            device=request.device,
            workers=request.workers,
            gpus_per_worker=request.gpus_per_worker,
            ray_address=request.ray_address,
            quiet=request.quiet,
        )
    )
    return str(out)


def _check_out(out: Path) -> None:
    """Refuse a folder that cannot take the report, before a judge is trained for it."""
    check_out(out, "a report", "report.json", "segmenters", "downstream")
    _require_writable("--out", out)


def _require_writable(option: str, folder: Path) -> None:
    """Refuse a folder that cannot be written to, before hours of work for it."""
    with writing(folder):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{option} {folder}: a file; give a folder")
        above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{option} {folder}: cannot write to {above}; give another folder")


def newest_samples(folder: Path) -> Path:
    """The complete data set below a folder that was written last.

    Raises:
        UserError: there is none.
    """
    found = sorted(folder.glob("*/manifest.json"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise UserError(
            f"no data set of samples below {folder}/; give --samples DIR, or make one: "
            "ecgan augment --labels DIR"
        )
    return found[-1].parent


def _recipe(request: Request, sets: Sequence[SampleSet]) -> Recipe:
    """The recipe given, or that of the first samples that carry one."""
    recipe = request.recipe
    if recipe is None:
        carried = next((s for s in sets if s.manifest is not None), None)
        if carried is None or carried.manifest is None:
            raise UsageError(
                f"--samples {sets[0].place}: has no manifest.json of ecgan, so its classes are not "
                "known; give --recipe NAME|FILE"
            )
        recipe = parse_recipe(
            carried.manifest.recipe, f"{carried.place}/manifest.json: recipe", request.overrides
        )
        recipe = _without_names(recipe, request, carried.place)
    if request.reference is not None:
        data = recipe.data.model_copy(update={"root": str(request.reference)})
        recipe = recipe.model_copy(update={"data": data})
    if recipe.data.root is None:
        raise UsageError("the recipe has no data.root: give the real data set with --reference DIR")
    if not Path(recipe.data.root).is_dir():
        raise UserError(
            f"{recipe.data.root}: no such folder; give the real data set with --reference DIR"
        )
    return recipe


def _without_names(recipe: Recipe, request: Request, place: str) -> Recipe:
    """The recipe of a set, without the networks that it names: only the user may name any.

    Raises:
        UsageError: it names a judge, and the user none.
    """
    given = {text.partition("=")[0] for text in request.overrides}
    evaluate, data = recipe.evaluate, recipe.data
    if evaluate.judge != "train" and request.judge is None and "evaluate.judge" not in given:
        raise UsageError(
            f"--samples {place}: its recipe names the judge {shown(evaluate.judge)}, which no data "
            f"set may choose: give --judge {evaluate.judge} if you trust it, or --judge train"
        )
    strange = {"evaluate.inception_weights", "evaluate.dinov2", "data.hed_weights"} - given
    for key in sorted(strange):
        section, _, name = key.partition(".")
        if getattr(getattr(recipe, section), name) is not None:
            say(f"note: {key} of the samples' own recipe is not followed; give --set {key}=PATH")
    kept = {name: None for name in ("inception_weights", "dinov2") if f"evaluate.{name}" in strange}
    unseen = {"hed_weights": None} if "data.hed_weights" in strange else {}
    return recipe.model_copy(
        update={
            "evaluate": evaluate.model_copy(update=kept),
            "data": data.model_copy(update=unseen),
        }
    )


# Common to all sets


def _setup(request: Request, recipe: Recipe, sets: Sequence[SampleSet]) -> Setup:
    space, size = _space(recipe, sets), _common_size(sets)
    folder, cache = data_folder(recipe.data), LabelCache(storage.Folder(storage.cache_folder()))
    split = request.split or ("test" if folder.has_split("test") else "val")

    def data(split: str, *, train: bool) -> TripleDataset:
        items = folder.items_for(split, train_split=recipe.data.split)
        items = list(checks.check_labels(items, space, recipe.data.dataset, cache=cache).items)
        return TripleDataset(
            items,
            space,
            recipe.data.dataset,
            height=size[0],
            width=size[1],
            flip=recipe.data.flip,
            train=train,
            seed=recipe.evaluate.judge_training.seed,
            edges="none",
        )

    reference, train = data(split, train=False), data(recipe.data.split, train=True)
    others: dict[str, TripleDataset] = {}
    if any(one.may_have_styles for one in sets):
        for name in folder.splits():
            if name not in {split, recipe.data.split}:
                with suppress(UserError):  # such as photos without labels, as a test split may be
                    others[name] = data(name, train=False)
    cache.save()
    device = choose_device(request.device)
    return Setup(request, recipe, space, size, split, reference, train, others, device)


def _refuse_seen_photos(setup: Setup, sets: Sequence[SampleSet]) -> None:
    """Refuse sets whose generator learnt from photos of the reference without their label maps."""
    faults: list[str] = []
    tested: set[str] = set()
    for one in sets:
        saw = set[str]() if one.manifest is None else {*one.manifest.unlabelled}
        if saw and not tested:
            photos = (item.image for item in setup.reference.items)
            tested = {photo_digest(digest) for digest in digests_of(photos)}
        if shared := saw & tested:
            faults.append(
                f"{one.place}: its generator learnt from {counted(len(shared), 'photo')} of the "
                f"split {setup.split} without their label maps (data.unlabelled), so every number "
                "would flatter it; train it without these photos, or measure on another --split"
            )
    if faults:
        raise UserError("ecgan evaluate", faults)


def _space(recipe: Recipe, sets: Sequence[SampleSet]) -> LabelSpace:
    """Class list of the recipe, which must be that of all sets."""
    found: LabelSpace | None = None
    for one in sets:
        if one.manifest is None:
            continue
        space = one.manifest.class_list(one.place)
        if found is not None and space.names != found.names:
            raise UserError(f"{one.place}: other classes than {sets[0].place}; evaluate them apart")
        found = space
    own = label_space(recipe.data)
    if found is not None and own.names != found.names:
        place = class_list_file(recipe.data) or recipe.data.root
        raise UserError(
            f"{place}: its classes ({', '.join(own.names[:4])}, ...) are not those of "
            f"the samples ({', '.join(found.names[:4])}, ...)"
        )
    return own


def _common_size(sets: Sequence[SampleSet]) -> tuple[int, int]:
    """Height and width of all samples, from the first of each set."""
    sizes: dict[tuple[int, int], str] = {}
    for one in sets:
        first = next(sample_sets.read(one.place), None)
        if first is None:
            raise UserError(f"--samples {one.place}: holds no samples")
        sizes.setdefault((first.image.shape[0], first.image.shape[1]), one.place)
    if len(sizes) > 1:
        listed = ", ".join(f"{place} {h} x {w}" for (h, w), place in sizes.items())
        raise UserError(f"sets of different size ({listed}); evaluate them apart")
    return next(iter(sizes))


# The downstream experiment


def _sets_to_train_with(setup: Setup, sets: Sequence[SampleSet]) -> list[SampleSet]:
    """Sets whose layouts are not of the tested split, if segmenters shall be trained."""
    if setup.request.downstream is None:
        return []
    return [
        one
        for one in sets
        if not fidelity.shared_layouts(leakage.layouts(one.place), setup.reference)
    ]


def _experiment(
    setup: Setup, sets: Sequence[SampleSet], cache: Path, workers: Workers
) -> Experiment | None:
    """The downstream experiment, checked before the judge is trained."""
    options, recipe = setup.request.downstream, setup.recipe
    if options is None:
        return None
    if not sets and any(arm.needs_samples for arm in options.arms):
        raise UsageError(
            f"--samples: all layouts are of the split {setup.split}, on which segmenters are "
            "tested; give samples of training layouts: ecgan sample --split "
            f"{recipe.data.split} --num N"
        )
    wanted = downstream.Request(
        folder=data_folder(recipe.data),
        train_split=recipe.data.split,
        test_split=setup.split,
        space=setup.space,
        size=setup.size,
        samples=tuple(one.place for one in sets),
        parts=options.parts,
        arms=options.arms,
        curve=options.curve,
        unlabelled=options.unlabelled,
        things=tuple(recipe.sampling.things),
        seeds=options.seeds,
        training=recipe.evaluate.downstream_training,
        segmenter=options.segmenter,
        flip=recipe.data.flip,
        unknown_generator=options.unknown_generator,
        cache=cache,
        workers=workers,
        quiet=setup.request.quiet,
    )
    return downstream.check(wanted)
