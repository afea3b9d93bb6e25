"""What a run leaves on disk: the generator for sampling, and checkpoints to go on from.

``generator.safetensors`` alone is all that sampling needs: the averaged generator, the style
encoder and the prior of styles under the prefixes ``style_encoder.`` and ``style_prior.``, and, in
its metadata, the resolved recipe, the class
list and the keys of the layouts that training saw. ``checkpoints/<images seen>/`` holds what
training needs to go on: networks as safetensors, optimiser states read with ``weights_only``, and
``state.json``. Nothing here is ever read in a way that could run code, and every file or folder
appears under its name when it is whole.
"""

import json
import re
import shutil
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

import ecgan
from ecgan import labels
from ecgan.errors import UsageError, UserError
from ecgan.labels import LabelSpace
from ecgan.models.generator import Generator
from ecgan.models.style import StatisticsEncoder, StyleEncoder, StylePrior
from ecgan.recipe import Recipe, load_recipe, num_upsamplings, parse_recipe
from ecgan.runtime.files import read_safetensors, sha256, whole_folder, write_whole, writing

GENERATOR = "generator.safetensors"
BEST = "generator-best.safetensors"
FORMAT = 1  # of generator.safetensors and of checkpoints

_METADATA = "ecgan"  # the one entry of generator.safetensors' metadata
_STYLE_PREFIX, _PRIOR_PREFIX = "style_encoder.", "style_prior."
_CHECKPOINT_NAME = re.compile(r"\d{9,}")

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


class InheritedTraining(BaseModel, frozen=True):
    """Layouts that an earlier training saw, whose generator a later one started from (``--init``).

    Attributes:
        sha256: SHA-256 of the earlier generator's file.
        classes: names of its classes; empty if not known.
        keys: keys of the layouts; empty if not known.
    """

    sha256: str
    classes: list[str]
    keys: list[str]


class GeneratorMetadata(BaseModel, frozen=True):
    """Metadata of ``generator.safetensors``.

    Attributes:
        format: name and version of the file format.
        version: version of ecgan that wrote the file.
        recipe: the resolved recipe.
        classes: the class list.
        images_seen: length of the training so far.
        seen_keys: keys of the layouts that training saw.
        inherited: what earlier trainings saw, the latest first.
        label_generator: description of the label generator; empty if there was none.
    """

    format: Literal["ecgan-generator-1"] = "ecgan-generator-1"
    version: str
    recipe: dict[str, Any]
    classes: dict[str, Any]
    images_seen: int
    seen_keys: list[str] = []
    inherited: list[InheritedTraining] = []  # both not in files of earlier versions
    label_generator: dict[str, Any] = {}

    @property
    def class_names(self) -> list[str]:
        """Names of the classes."""
        return [one["name"] for one in self.classes["classes"]]


@dataclass(frozen=True)
class GeneratorFile:
    """Contents of ``generator.safetensors``, the networks in evaluation mode on the CPU."""

    recipe: Recipe
    space: LabelSpace
    generator: Generator
    style_encoder: StyleEncoder | StatisticsEncoder | None
    style_prior: StylePrior | None  # not in files of version 0.2 and before
    metadata: GeneratorMetadata
    sha256: str  # of the file


@dataclass(frozen=True)
class Training:
    """A training checkpoint: named tensors of each network, optimiser states, the rest as JSON."""

    networks: dict[str, dict[str, Tensor]]
    optimizers: dict[str, dict[str, Any]]
    state: dict[str, Any]


def build_generator(recipe: Recipe, space: LabelSpace) -> Generator:
    """G with freshly initialised weights. Heads that nothing would train are left out."""
    data, model = recipe.data, recipe.model
    return Generator(
        num_classes=space.num_classes,
        num_conditions=space.num_conditions(boundary=data.instances),
        height=data.height,
        width_px=data.width,
        channels=model.width,
        upsamplings=num_upsamplings(data.height, data.width, model.upsamplings),
        style=model.style,
        style_injection=model.style_injection,
        output=model.output,
        spectral_norm=model.spectral_norm,
        edge_generator=model.edge_generator,
        edge_transfer=model.edge_transfer,
        semantic_preserving=model.semantic_preserving,
        class_specific=recipe.parts().class_specific,
    )


def build_style_encoder(recipe: Recipe) -> StyleEncoder | StatisticsEncoder | None:
    """The style encoder, if the recipe has one."""
    if not recipe.parts().style_encoder:
        return None
    kinds = {"gaugan": StyleEncoder, "statistics": StatisticsEncoder}
    return kinds[recipe.model.style_encoder](recipe.model.width)


def save_generator(  # noqa: PLR0913  what the file holds
    path: Path,
    generator: nn.Module,
    recipe: Recipe,
    space: LabelSpace,
    *,
    style_encoder: nn.Module | None = None,
    style_prior: StylePrior | None = None,
    seen_keys: Iterable[str] = (),
    inherited: Sequence[InheritedTraining] = (),
    label_generator: Mapping[str, Any] | None = None,
    images_seen: int = 0,
) -> None:
    """Write a generator that :func:`load_generator` reads; whole or not at all.

    Args:
        path: the file.
        generator: as :func:`build_generator` made it, with the weights to keep.
        recipe: the run's.
        space: its class list.
        style_encoder: as :func:`build_style_encoder` made it.
        style_prior: prior of the styles, fitted to photos of the training.
        seen_keys: keys of the layouts that training saw.
        inherited: what the generators saw that it started from (``--init``); :func:`inheritance`.
        label_generator: what the segmenter was that trained it, with its hash.
        images_seen: length of the training so far.
    """
    tensors = dict(generator.state_dict())
    if style_encoder is not None:
        tensors |= {_STYLE_PREFIX + k: v for k, v in style_encoder.state_dict().items()}
    if style_prior is not None:
        tensors |= {_PRIOR_PREFIX + k: v for k, v in style_prior.state_dict().items()}
    metadata = GeneratorMetadata(
        version=ecgan.__version__,
        recipe=recipe.model_dump(mode="json"),
        classes=space.to_json(),
        images_seen=images_seen,
        seen_keys=sorted(seen_keys),
        inherited=list(inherited),
        label_generator=dict(label_generator or {}),
    )
    # One entry: safetensors writes several in an order that changes from run to run
    written = {_METADATA: json.dumps(metadata.model_dump())}
    write_whole(path, safetensors.torch.save(_plain(tensors), written))


def read_metadata(path: Path) -> GeneratorMetadata:
    """Metadata of ``generator.safetensors``, without its weights.

    Raises:
        UserError: no such file, or not a generator of ours.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return _metadata(path, file.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as a generator: {error}") from error


def inheritance(path: Path) -> list[InheritedTraining]:
    """What a generator's training and those before it saw, for one that starts from it."""
    metadata = read_metadata(path)
    own = InheritedTraining(
        sha256=sha256(path), classes=metadata.class_names, keys=metadata.seen_keys
    )
    return [own, *metadata.inherited]


def load_generator(path: Path) -> GeneratorFile:
    """Read ``generator.safetensors``.

    Raises:
        UserError: no such file, a truncated one, a pickle, or not a generator of ours.
    """
    tensors, written = read_safetensors(path)
    metadata = _metadata(path, written)
    recipe = parse_recipe(metadata.recipe, f"{path}: its recipe")
    space = labels.from_json(metadata.classes, f"{path}: its classes")
    generator, style_encoder = build_generator(recipe, space), build_style_encoder(recipe)
    style, prior = _with_prefix(tensors, _STYLE_PREFIX), _with_prefix(tensors, _PRIOR_PREFIX)
    prefixes = (_STYLE_PREFIX, _PRIOR_PREFIX)
    _load_state(generator, {k: v for k, v in tensors.items() if not k.startswith(prefixes)}, path)
    if style_encoder is not None:
        _load_state(style_encoder, style, path)
    return GeneratorFile(
        recipe=recipe,
        space=space,
        generator=generator.eval(),
        style_encoder=style_encoder.eval() if style_encoder is not None else None,
        style_prior=_style_prior(prior, path) if prior else None,
        metadata=metadata,
        sha256=sha256(path),
    )


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _style_prior(tensors: Mapping[str, Tensor], path: Path) -> StylePrior:
    axes = tensors.get("axes")
    prior = StylePrior(0 if axes is None else len(axes))
    _load_state(prior, tensors, path)
    return prior


def is_written(run: Path, images_seen: int, recipe: Recipe) -> bool:
    """Whether a run's generator is that of this length of the training and of the recipe's styles.

    A run that ended under another prior of the styles writes its generator again.
    """
    path = run / GENERATOR
    if not path.is_file():
        return False
    metadata = read_metadata(path)
    prior = metadata.recipe.get("sampling", {}).get("style_prior", "normal")
    return metadata.images_seen == images_seen and prior == recipe.sampling.style_prior


def newest_run(folder: Path) -> Path:
    """The finished run below ``folder`` whose generator was written last.

    Raises:
        UserError: there is none.
    """
    runs = sorted(folder.glob(f"*/{GENERATOR}"), key=lambda p: p.stat().st_mtime, reverse=True)
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


def save_training(run: Path, images_seen: int, training: Training) -> Path:
    """Write ``checkpoints/<images seen>/``; whole or not at all."""
    folder = run / "checkpoints" / f"{images_seen:09d}"
    with writing(folder), whole_folder(folder) as partial:
        for name, tensors in training.networks.items():
            write_whole(partial / f"{name}.safetensors", safetensors.torch.save(_plain(tensors)))
        for name, state in training.optimizers.items():
            with (partial / f"{name}.pt").open("wb") as file:
                torch.save(state, file)
        text = json.dumps({"format": FORMAT, "images_seen": images_seen} | training.state)
        write_whole(partial / "state.json", text)
        if folder.exists():  # the same state again, after an interruption at this very step
            shutil.rmtree(folder)
    return folder


def load_training(folder: Path) -> Training:
    """Read a folder that :func:`save_training` wrote.

    Raises:
        UserError: a file is missing or damaged.
    """
    remedy = f"delete {folder} to go on from the checkpoint before it"
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise UserError(
                f"{folder}: written by another version of ecgan (format {state['format']}, "
                f"this one reads {FORMAT}); use a new run folder"
            )
        networks = {p.stem: read_safetensors(p)[0] for p in sorted(folder.glob("*.safetensors"))}
        optimizers = {p.stem: _load_optimizer(p) for p in sorted(folder.glob("*.pt"))}
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{folder}: damaged ({error}); {remedy}") from error
    return Training(networks, optimizers, state)


def training_checkpoints(run: Path) -> list[Path]:
    """Folders of training checkpoints, oldest first."""
    folders = (run / "checkpoints").glob("*")
    return sorted(
        (p for p in folders if p.is_dir() and _CHECKPOINT_NAME.fullmatch(p.name)),
        key=lambda p: int(p.name),
    )


def prune(run: Path, keep: int, best: int | None) -> None:
    """Delete all training checkpoints but the newest ``keep`` and the one at ``best`` images."""
    for folder in training_checkpoints(run)[:-keep]:
        if int(folder.name) != best:
            shutil.rmtree(folder)


def _is_finished(path: Path) -> bool:
    try:
        metadata = read_metadata(path)
    except UserError:
        return False
    return metadata.images_seen >= metadata.recipe["train"]["images"]


def _metadata(path: Path, entries: Mapping[str, str]) -> GeneratorMetadata:
    try:
        return GeneratorMetadata.model_validate_json(entries.get(_METADATA, "{}"))
    except ValidationError as error:
        raise UserError(
            f"{path}: a safetensors file, but not a generator of this version of ecgan; give a "
            f"{GENERATOR} of a run",
            [f"{fault['loc'][0]}: {fault['msg']}" for fault in error.errors()],
        ) from error


def _load_optimizer(path: Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(path):  # torch would try to read it as an old pickle
        raise ValueError(f"{path.name} is truncated or was not written by ecgan")
    return torch.load(path, map_location="cpu", weights_only=True)


def _load_state(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    own = network.state_dict()
    faults = [
        *(f"{name}: missing" for name in own if name not in tensors),
        *(f"{name}: not known" for name in tensors if name not in own),
        *(
            f"{name}: {tuple(tensors[name].shape)}, expected {tuple(value.shape)}"
            for name, value in own.items()
            if name in tensors and tensors[name].shape != value.shape
        ),
    ]
    if faults:
        shown = [*faults[:5], f"and {len(faults) - 5} more"] if len(faults) > 6 else faults
        raise UserError(f"{path}: its weights do not fit its recipe", shown)
    network.load_state_dict(tensors)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU, none sharing memory, as safetensors wants them."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}


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
