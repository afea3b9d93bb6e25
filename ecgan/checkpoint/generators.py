"""The generator of a run in one file, ``generator.safetensors``, which is all that sampling needs.

It holds the averaged generator, the style encoder and the prior of styles under the prefixes
``style_encoder.`` and ``style_prior.``, and, in its metadata, the resolved recipe, the class list
and what training saw: the keys of layouts, and digests of photos without label maps.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from pydantic import BaseModel
from torch import nn

import ecgan
from ecgan import labels
from ecgan.checkpoint import tensors as files
from ecgan.checkpoint.tensors import TensorFile, kinds_of
from ecgan.errors import UserError
from ecgan.labels import LabelSpace
from ecgan.models.generator import STYLE_DIM, Generator
from ecgan.models.style import StatisticsEncoder, StyleEncoder, StylePrior
from ecgan.reading.documents import checked, parse_json
from ecgan.reading.numbers import Count
from ecgan.recipe import Recipe, num_upsamplings, parse_recipe
from ecgan.runtime.files import sha256, write_whole

GENERATOR = "generator.safetensors"
BEST = "generator-best.safetensors"

_METADATA = "ecgan"  # the one entry of generator.safetensors' metadata
_STYLE_PREFIX, _PRIOR_PREFIX = "style_encoder.", "style_prior."
_REMEDY = f"give a {GENERATOR} of a run"
_NO_GENERATOR = "a safetensors file, but not a generator of this version of ecgan"


class InheritedTraining(BaseModel, frozen=True):
    """Layouts that an earlier training saw, whose generator a later one started from (``--init``).

    Attributes:
        sha256: SHA-256 of the earlier generator's file.
        classes: names of its classes; empty if not known.
        keys: keys of the layouts; empty if not known.
        unlabelled: SHA-256 of the photos without label maps that it saw.
    """

    sha256: str
    classes: list[str]
    keys: list[str]
    unlabelled: list[str] = []


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
        unlabelled: SHA-256 of the photos without label maps that training saw.
    """

    format: Literal["ecgan-generator-1"] = "ecgan-generator-1"
    version: str
    recipe: dict[str, Any]
    classes: dict[str, Any]
    images_seen: Count
    seen_keys: list[str] = []
    inherited: list[InheritedTraining] = []  # both not in files of earlier versions
    label_generator: dict[str, Any] = {}
    unlabelled: list[str] = []

    @property
    def all_unlabelled(self) -> set[str]:
        """Photos without label maps of this training and of those that it started from."""
        return {*self.unlabelled}.union(*(one.unlabelled for one in self.inherited))

    @property
    def class_names(self) -> list[str]:
        """Names of the classes."""
        return [*labels.from_json(self.classes, "classes").names]


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
    unlabelled: Iterable[str] = (),
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
        unlabelled: SHA-256 of the photos without label maps that training saw.
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
        unlabelled=sorted(unlabelled),
    )
    # One entry: safetensors writes several in an order that changes from run to run
    written = {_METADATA: json.dumps(metadata.model_dump())}
    write_whole(path, safetensors.torch.save(files.plain(tensors), written))


def read_metadata(path: Path) -> GeneratorMetadata:
    """Metadata of ``generator.safetensors``, without its weights.

    Raises:
        UserError: no such file, or not a generator of ours.
    """
    with files.opened(path) as file:
        return _about(file)[0]


def inheritance(path: Path) -> list[InheritedTraining]:
    """What a generator's training and those before it saw, for one that starts from it."""
    metadata = read_metadata(path)
    own = InheritedTraining(
        sha256=sha256(path),
        classes=metadata.class_names,
        keys=metadata.seen_keys,
        unlabelled=metadata.unlabelled,
    )
    return [own, *metadata.inherited]


def load_generator(path: Path) -> GeneratorFile:
    """Read ``generator.safetensors``.

    Raises:
        UserError: no such file, a truncated one, a pickle, or not a generator of ours; or its
            weights are not those of its recipe, or not finite. No network is built before that.
    """
    with files.opened(path) as file:
        metadata, recipe, space = _about(file)
        generator, style_encoder, style_prior = _shapes(file, recipe, space)
        tensors = file.read()
    for prefix, network in ((_STYLE_PREFIX, style_encoder), (_PRIOR_PREFIX, style_prior)):
        if network is not None:
            names = files.with_prefix(tensors, prefix)
            files.fill(network, {name.removeprefix(prefix): tensors.pop(name) for name in names})
    files.fill(generator, tensors)
    return GeneratorFile(
        recipe=recipe,
        space=space,
        generator=generator.eval(),
        style_encoder=style_encoder.eval() if style_encoder is not None else None,
        style_prior=style_prior,
        metadata=metadata,
        sha256=sha256(path),
    )


def _about(file: TensorFile) -> tuple[GeneratorMetadata, Recipe, LabelSpace]:
    """What the metadata of a file says, checked."""
    path = file.path
    if _METADATA not in file.metadata:
        raise UserError(f"{path}: {_NO_GENERATOR}; {_REMEDY}")
    value = parse_json(file.metadata[_METADATA], f"{path}: its metadata", "JSON", _REMEDY)
    metadata = checked(GeneratorMetadata, value, f"{path}: {_NO_GENERATOR}", _REMEDY)
    recipe = parse_recipe(metadata.recipe, f"{path}: its recipe")
    return metadata, recipe, labels.from_json(metadata.classes, f"{path}: its classes")


def _shapes(
    file: TensorFile, recipe: Recipe, space: LabelSpace
) -> tuple[Generator, StyleEncoder | StatisticsEncoder | None, StylePrior | None]:
    """The networks of a recipe, without values; weights that are not theirs are refused.

    The header alone is looked at.
    """
    with files.shapes_alone(f"{file.path}: its recipe"):
        generator, style_encoder = build_generator(recipe, space), build_style_encoder(recipe)
        style_prior = None
        if files.with_prefix(file.kinds, _PRIOR_PREFIX):
            axes = file.kinds.get(f"{_PRIOR_PREFIX}axes")
            num_axes = axes.shape[0] if axes is not None and axes.shape else 0
            style_prior = StylePrior(min(num_axes, STYLE_DIM))
    expected = kinds_of(generator.state_dict())
    for prefix, network in ((_STYLE_PREFIX, style_encoder), (_PRIOR_PREFIX, style_prior)):
        named = {} if network is None else kinds_of(network.state_dict())
        expected |= {prefix + name: kind for name, kind in named.items()}
    files.refuse_misfits(file.kinds, expected, f"{file.path}: its weights do not fit its recipe")
    return generator, style_encoder, style_prior
