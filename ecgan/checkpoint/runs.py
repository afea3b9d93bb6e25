"""Run folders: which generator is meant, and whether a run may go on with a recipe."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ecgan.checkpoint.generators import GENERATOR, read_metadata
from ecgan.errors import UsageError, UserError
from ecgan.recipe import Recipe, load_recipe, parse_recipe

# What may change between a run and its continuation: length, cadences, places, what comes after.
_HARMLESS = {
    "name",
    "data.root",
    "data.hed_weights",
    "data.workers",
    "losses.vgg19_weights",
    "train.images",
    "train.compile",
    "train.checkpointing",
    "train.checkpoint_every",
    "train.preview_every",
    "train.evaluate_every",
    "train.log_every",
    "train.keep",
}
_HARMLESS_SECTIONS = ("evaluate", "sampling")


def is_written(run: Path, images_seen: int, recipe: Recipe) -> bool:
    """Whether a run's generator is that of this length of the training and of the recipe's styles.

    A run that ended under another prior of the styles writes its generator again.
    """
    path = run / GENERATOR
    if not path.is_file():
        return False
    try:
        metadata = read_metadata(path)
    except UserError:
        return False
    prior = parse_recipe(metadata.recipe, str(path)).sampling.style_prior
    return metadata.images_seen == images_seen and prior == recipe.sampling.style_prior


def newest_run(folder: Path) -> Path:
    """The finished run below ``folder`` whose generator was written last.

    Raises:
        UserError: there is none.
    """
    found = [path for path in folder.glob(f"*/{GENERATOR}") if path.is_file()]
    runs = sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)
    for path in runs:
        if _is_finished(path):
            return path.parent
    unfinished = ", ".join(str(path.parent) for path in runs)
    raise UserError(
        f"no finished run below {folder}/"
        + (f" (unfinished: {unfinished})" if unfinished else "")
        + "; give --run RUN or --checkpoint FILE, or train one first: ecgan train --recipe NAME"
    )


def resolve_generator(run: Path | None, checkpoint: Path | None) -> Path:
    """The file that ``--run`` or ``--checkpoint`` means; without either, the newest finished run's.

    Raises:
        UserError: both are given, or what is given is not there.
    """
    if run is not None and checkpoint is not None:
        raise UsageError(f"--run {run} and --checkpoint {checkpoint}: give one of them")
    if checkpoint is not None:
        if checkpoint.is_dir():
            raise UsageError(f"--checkpoint {checkpoint}: a folder; a run is given with --run")
        if not checkpoint.is_file():
            raise UsageError(f"--checkpoint {checkpoint}: no such file")
        return checkpoint
    folder = run if run is not None else newest_run(Path("runs"))
    if not folder.is_dir():
        raise UsageError(f"--run {folder}: no such folder")
    path = folder / GENERATOR
    if not path.is_file():
        raise UsageError(
            f"--run {folder}: no {GENERATOR} in it; the run has not come to its first checkpoint"
            if (folder / "recipe.yaml").is_file()
            else f"--run {folder}: not a run of ecgan train (no recipe.yaml, no {GENERATOR})"
        )
    return path


def refuse_another_recipe(run: Path, recipe: Recipe, free: Collection[str] = ()) -> None:
    """Check that a run that is there already can go on with this recipe.

    Args:
        run: its folder.
        recipe: the recipe to go on with.
        free: keys that may differ, beside those that do not decide the training.

    Raises:
        UserError: the recipes differ in a key that decides the training.
    """
    before = load_recipe(str(run / "recipe.yaml"))
    old, new = before.model_dump(mode="json"), recipe.model_dump(mode="json")
    differences = [
        (key, was, now)
        for key, was, now in _differences(old, new)
        if key not in _HARMLESS and key not in free and not key.startswith(_HARMLESS_SECTIONS)
    ]
    if not differences:
        return
    listed = ", ".join(f"{key} ({_shown(was)}, now {_shown(now)})" for key, was, now in differences)
    remedy = " ".join(f"--set {key}={_shown(was)}" for key, was, _ in differences)
    raise UserError(
        f"{run} was trained with another recipe; it differs in {listed}. "
        f"Use a new folder, or {remedy}"
    )


def _is_finished(path: Path) -> bool:
    try:
        metadata = read_metadata(path)
    except UserError:
        return False
    return metadata.images_seen >= parse_recipe(metadata.recipe, str(path)).train.images


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, object, object]]:
    for key in {**old, **new}:
        was, now = old.get(key), new.get(key)
        sections: Sequence[object] = (was, now)
        if key != "label_generator_map" and all(isinstance(s, dict) for s in sections):
            yield from _differences(old[key], new[key], f"{prefix}{key}.")
        elif was != now:
            yield f"{prefix}{key}", was, now


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def refuse_links(run: Path) -> None:
    """Refuse links where a training writes and deletes: they would lead it out of its folder.

    Raises:
        UserError: one is there, or something else than the file or folder that a training writes.
    """
    faults: list[str] = []
    for name, is_right in _WRITTEN.items():
        path = run / name
        if path.exists() and not path.is_symlink() and not is_right(path):
            faults.append(f"{name}: not what a training writes there; move it away")
    written = [run / name for name in _WRITTEN]
    inside = [path for folder in written if folder.is_dir() for path in folder.iterdir()]
    faults += [
        f"{path.relative_to(run)}: a link; put what it leads to in its place"
        for path in [*written, *inside]
        if path.is_symlink()
    ]
    if faults:
        raise UserError(f"{run}: not as a training leaves it", faults[:5])


_WRITTEN = {
    "checkpoints": Path.is_dir,
    "tensorboard": Path.is_dir,
    "segmenters": Path.is_dir,
    "unlabelled": Path.is_dir,
    "metrics.jsonl": Path.is_file,
}
