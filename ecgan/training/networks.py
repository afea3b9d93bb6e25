"""Networks of a training: G and D, frozen networks, and the warm start from another generator."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ecgan.checkpoint import GeneratorFile, build_generator, load_generator
from ecgan.checkpoint.tensors import shapes_alone
from ecgan.data.loader import TripleDataset, ordered_batches, to_images
from ecgan.errors import UserError
from ecgan.labels import LabelClass, LabelSpace
from ecgan.models.pretrained import perceptual_features
from ecgan.models.pretrained.efficientnet_lite import EfficientNetLite0
from ecgan.models.pretrained.frozen import PerceptualFeatures
from ecgan.models.pretrained.hed import Hed
from ecgan.models.pretrained.weights import find_hed_weights, find_vgg19_weights
from ecgan.recipe import Recipe, num_upsamplings
from ecgan.runtime import distributed
from ecgan.runtime.device import refuse_beyond_memory
from ecgan.runtime.timing import counted
from ecgan.segmentation.loading import check_place, load_segmenter
from ecgan.segmentation.segmenter import Normalisation, Provenance, Segmenter
from ecgan.segmentation.training import new_network, train_segmenter
from ecgan.training import step
from ecgan.training.objective import GeneratorSide, build_discriminator
from ecgan.training.step import TrainedNetworks

_COPIES = 5  # of each weight: its gradient, Adam's two moments, the average


@dataclass(frozen=True)
class Networks:
    """Networks of a training, before it starts.

    Attributes:
        trained: G and D.
        perceptual_network: frozen network of the perceptual term, if any.
        feature_network: frozen network below the segmentation discriminator, if any.
        hed: HED, if real edges come from it.
        warm_start: weights that came from ``--init``, if any.
        init_sha256: SHA-256 of that file; empty without.
    """

    trained: TrainedNetworks
    perceptual_network: PerceptualFeatures | None
    feature_network: EfficientNetLite0 | None
    hed: Hed | None
    warm_start: "WarmStart | None" = None
    init_sha256: str = ""


class Frozen(NamedTuple):
    """Networks that a training does not train; None where it has none."""

    perceptual: PerceptualFeatures | None = None
    features: EfficientNetLite0 | None = None  # below the segmentation discriminator
    segmenter: Segmenter | None = None  # label generator
    hed: Hed | None = None


def check_weights(recipe: Recipe) -> None:
    """Look for the files of weights that a training reads, before anything is computed.

    Files are not opened, and a segmenter's name that the Hugging Face hub may know is left to it.

    Raises:
        UserError: files are missing; all of them, each with what does without.
    """
    parts, losses, data, model = recipe.parts(), recipe.losses, recipe.data, recipe.model
    perceptual = losses.perceptual_network if parts.perceptual_network else "none"
    judged = recipe.train.evaluate_every > 0 and recipe.evaluate.judge != "train"
    needed: dict[Callable[[], object], bool] = {
        partial(find_vgg19_weights, losses.vgg19_weights): perceptual == "vgg19",
        partial(find_hed_weights, data.hed_weights, "vgg16_hed"): perceptual == "vgg16_hed",
        partial(find_hed_weights, data.hed_weights, "hed"): (
            data.edges == "hed" and model.edge_generator
        ),
        partial(check_place, model.label_generator, "model.label_generator"): (
            parts.label_generator and model.label_generator != "train"
        ),
        partial(check_place, recipe.evaluate.judge, "evaluate.judge"): judged,
    }
    faults: list[str] = []
    for find in (find for find, is_needed in needed.items() if is_needed):
        try:
            find()
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("weights that the recipe needs are missing", faults)


def refuse_too_large(
    recipe: Recipe, space: LabelSpace, images: int, world: int, device: torch.device
) -> None:
    """Refuse sizes that no machine, or not this one, can train, before anything is allocated.

    Args:
        recipe: what would be trained.
        space: its class list.
        images: number of images at a time on a rank.
        world: number of ranks.
        device: device of a rank.

    Raises:
        UserError: weights or pictures do not fit; or each channel would be normalised over one
            number.
    """
    data, model, train = recipe.data, recipe.model, recipe.train
    start = 2 ** num_upsamplings(data.height, data.width, model.upsamplings)
    if data.height == data.width == start and images * world == 1:
        raise UserError(
            f"train.batch ({train.batch}): batch normalisation needs two numbers of each channel, "
            f"and at {data.height} x {data.width} the first layers have one of each image; take "
            "two images at a time, or a larger size"
        )
    with shapes_alone("the recipe"):
        side, discriminator = GeneratorSide(recipe, space), build_discriminator(recipe, space)
    networks = [side] if discriminator is None else [side, discriminator]
    weights = sum(p.numel() for network in networks for p in network.parameters())
    pixels = images * data.height * data.width
    refuse_beyond_memory(
        4 * (_COPIES * weights + (model.width + 3) * pixels),
        device,
        f"a training of {weights / 1e6:,.0f} M weights on {images:,} images of {data.height} x "
        f"{data.width} at once",
        "lower model.width, data.height, data.width or train.batch",
    )


def build_networks(
    recipe: Recipe, space: LabelSpace, device: torch.device, init: Path | None = None
) -> Networks:
    """Build G and D and read the frozen networks; nothing is trained or written.

    Args:
        recipe: the recipe.
        space: the class list.
        device: device of the networks.
        init: a generator to start from.

    Raises:
        UserError: a file is missing or damaged.
    """
    perceptual, edges = perceptual_network(recipe, device), hed(recipe, device)
    features = feature_network(recipe, perceptual, device)
    source = load_generator(init) if init is not None else None
    trained = step.build(recipe, space, device)
    if source is None:
        return Networks(trained, perceptual, features, edges)
    side = trained.side
    taken = warm_start(side.generator, side.style_encoder, recipe, space, source)
    return Networks(trained, perceptual, features, edges, taken, source.sha256)


def label_generator(
    recipe: Recipe,
    space: LabelSpace,
    train_set: TripleDataset,
    *,
    cache: Path,
    device: torch.device,
    quiet: bool,
) -> Segmenter | None:
    """Label generator Gl: loaded, or trained on the real pairs and kept in ``cache``.

    Rank 0 trains it, the other ranks read it from the cache.

    Raises:
        UserError: as of :func:`named_label_generator`, or its training diverged.
    """
    if not _trains_label_generator(recipe):
        return named_label_generator(recipe, space, train_set, device)
    role = None if quiet else "label generator"
    return _first_rank_first(
        lambda: segmenter_of_pairs(recipe, space, train_set, cache, device, role)
    )


def _trains_label_generator(recipe: Recipe) -> bool:
    """Whether a label generator is trained on the pairs; else it is named, or there is none."""
    return recipe.parts().label_generator and recipe.model.label_generator == "train"


def segmenter_of_pairs(
    recipe: Recipe,
    space: LabelSpace,
    train_set: TripleDataset,
    cache: Path,
    device: torch.device,
    role: str | None,
) -> Segmenter:
    """A segmenter trained as ``model.label_generator_training`` says, or the one in ``cache``."""
    return train_segmenter(
        train_set,
        space,
        recipe.model.label_generator_training,
        cache,
        device,
        role=role,
        workers=recipe.data.workers,
    )


def named_label_generator(
    recipe: Recipe, space: LabelSpace, pairs: TripleDataset, device: torch.device
) -> Segmenter | None:
    """Label generator that the recipe names; None where it names none.

    Raises:
        UserError: not found, damaged, of other classes, or what it reads in a photo is not finite.
    """
    if not recipe.parts().label_generator or _trains_label_generator(recipe):
        return None
    model = recipe.model
    segmenter = load_segmenter(
        model.label_generator, space, model.label_generator_map, device, role="label generator"
    )
    return _tried(segmenter, pairs)


def named_judge(
    recipe: Recipe, space: LabelSpace, pairs: TripleDataset, device: torch.device
) -> Segmenter | None:
    """Judge of the scores during training that the recipe names; None where it names none.

    Raises:
        UserError: as of :func:`named_label_generator`.
    """
    place = recipe.evaluate.judge
    if recipe.train.evaluate_every <= 0 or place == "train":
        return None
    judge = load_segmenter(place, space, device=device, evaluation=True, role="judge")
    return _tried(judge, pairs)


def _tried(segmenter: Segmenter, pairs: TripleDataset) -> Segmenter:
    """Refuse one that overflows before hours of work: it reads the first photo."""
    first = replace(pairs, items=pairs.items[:1], train=False, edges="none", boundary=False)
    for batch in ordered_batches(first, 1):
        assert batch.images is not None
        segmenter.predict(to_images(batch.images.to(segmenter.known.device)))
    return segmenter


def read_named(
    recipe: Recipe, space: LabelSpace, pairs: TripleDataset, device: torch.device
) -> Frozen:
    """Read every frozen network of a training once, for a dry run.

    A label generator that would be trained first has random weights.

    Raises:
        UserError: a file is missing or damaged.
    """
    perceptual = perceptual_network(recipe, device)
    features, edges = feature_network(recipe, perceptual, device), hed(recipe, device)
    segmenter = named_label_generator(recipe, space, pairs, device)
    named_judge(recipe, space, pairs, device)
    segmenter = segmenter or untrained_label_generator(recipe, space, torch.device("cpu"))
    return Frozen(perceptual, features, segmenter, edges)


def untrained_label_generator(
    recipe: Recipe, space: LabelSpace, device: torch.device
) -> Segmenter | None:
    """For a profile: random weights where a label generator would be trained, else None."""
    if not _trains_label_generator(recipe):
        return None
    model = recipe.model
    network, _ = new_network(model.label_generator_training, space.names, recipe.train.seed)
    segmenter = Segmenter(
        network,
        range(space.num_classes),
        space.names,
        normalisation=Normalisation(),
        provenance=Provenance("trained", "random weights"),
    )
    return segmenter.to(device)


def perceptual_network(recipe: Recipe, device: torch.device) -> PerceptualFeatures | None:
    """Frozen network of the perceptual term, if the recipe has that term."""
    name = recipe.losses.perceptual_network
    if name == "none" or not recipe.parts().perceptual_network:
        return None
    return perceptual_features(
        name,
        vgg19_weights=recipe.losses.vgg19_weights,
        hed_weights=recipe.data.hed_weights,
    ).to(device)


def feature_network(
    recipe: Recipe, perceptual: PerceptualFeatures | None, device: torch.device
) -> EfficientNetLite0 | None:
    """Frozen network below the segmentation discriminator; the perceptual term's if that is it."""
    parts, kind = recipe.parts(), recipe.model.segmentation_discriminator
    if not parts.segmentation_discriminator or kind != "features":
        return None
    if isinstance(perceptual, EfficientNetLite0):
        return perceptual
    return EfficientNetLite0().folded().to(device)


def hed(recipe: Recipe, device: torch.device) -> Hed | None:
    """Edge detector HED, if the recipe takes its real edges from it."""
    if recipe.data.edges != "hed" or not recipe.model.edge_generator:
        return None
    return Hed(recipe.data.hed_weights).to(device)


def _first_rank_first(make: Callable[[], Segmenter]) -> Segmenter:
    """Segmenter that rank 0 trains and keeps in a file, and the other ranks read."""
    made = make() if distributed.is_first() else None
    distributed.barrier()
    return made if made is not None else make()


@dataclass(frozen=True)
class Conditions:
    """Names of the channels of the condition S."""

    classes: tuple[str, ...]
    extra: tuple[str, ...]  # unlabelled pixels, instance boundaries

    @classmethod
    def of(cls, recipe: Recipe, space: LabelSpace) -> "Conditions":
        """Channels of a run's condition."""
        extra = [" unlabelled"] * (space.ignore is not None) + [" boundary"] * recipe.data.instances
        return cls(space.names, tuple(extra))

    def axis(self, size: int) -> list[str]:
        """Names along a weight's axis: all classes, or S after some other channels."""
        if size == len(self.classes):
            return list(self.classes)
        channels = [*self.classes, *self.extra]
        return [f" {i}" for i in range(size - len(channels))] + channels


@dataclass(frozen=True)
class WarmStart:
    """Weights copied from another generator (``--init``), of the same or of another class list.

    Attributes:
        taken: names of our weights that got values.
        left: names of our weights that did not, with the reason.
        classes: names of our classes that were matched.
        new_classes: names of our classes that the other generator does not have.
    """

    taken: tuple[str, ...]
    left: tuple[str, ...]
    classes: tuple[str, ...]
    new_classes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Summary for the user."""
        lines = [
            f"{len(self.taken)} of {len(self.taken) + len(self.left)} weights taken, "
            f"{counted(len(self.classes), 'class', 'classes')} matched by name"
        ]
        if self.new_classes:
            lines.append(f"classes that start anew: {', '.join(self.new_classes)}")
        shown = self.left[:8]
        lines += [f"not taken: {reason}" for reason in shown]
        if len(self.left) > len(shown):
            lines.append(f"not taken: {len(self.left) - len(shown)} more, listed in init.txt")
        return lines

    def listing(self) -> str:
        """List of all weights, for a file in the run folder."""
        lines = [
            *(f"taken: {name}" for name in self.taken),
            *(f"not taken: {r}" for r in self.left),
        ]
        return "\n".join(lines) + "\n"


def warm_start(
    generator: nn.Module,
    style_encoder: nn.Module | None,
    recipe: Recipe,
    space: LabelSpace,
    source: GeneratorFile,
) -> WarmStart:
    """Copy what fits from another generator.

    Channels that stand for classes are matched by the classes' names, so a generator of 35 classes
    can start one of 11. Which axes of which weights are such channels is not written down anywhere:
    it shows when the same generator is built with one class more.

    Args:
        generator: generator to change in place.
        style_encoder: style encoder to change in place, if any.
        recipe: recipe of the generator.
        space: class list of the generator.
        source: the other generator.
    """
    ours, theirs = Conditions.of(recipe, space), Conditions.of(source.recipe, source.space)
    axes = _class_axes(recipe, space)
    taken: list[str] = []
    left: list[str] = []
    named = [
        ("", generator, source.generator),
        ("style_encoder.", style_encoder, source.style_encoder),
    ]
    for prefix, own, other in named:
        if own is None:
            continue
        state = dict(own.state_dict())
        available = {} if other is None else other.state_dict()
        for name, value in state.items():
            if name not in available:
                left.append(f"{prefix}{name}: not in the file")
                continue
            merged = _merge(
                value, available[name].to(value.device), axes.get(name, ()) if not prefix else (),
                ours, theirs,
            )  # fmt: skip
            if merged is None:
                shapes = f"{tuple(available[name].shape)} in the file, {tuple(value.shape)} here"
                left.append(f"{prefix}{name}: {shapes}")
                continue
            state[name] = merged
            taken.append(prefix + name)
        own.load_state_dict(state)
    common = set(theirs.classes)
    return WarmStart(
        tuple(taken),
        tuple(left),
        tuple(name for name in ours.classes if name in common),
        tuple(name for name in ours.classes if name not in common),
    )


def _class_axes(recipe: Recipe, space: LabelSpace) -> Mapping[str, Sequence[int]]:
    """Axes of each weight of G that are longer with one class more."""
    extra = LabelClass(space.num_classes, " one more", (0, 0, 0))
    larger = replace(space, classes=(*space.classes, extra), evaluation=None, evaluation_names=())
    with torch.device("meta"):
        before = build_generator(recipe, space).state_dict()
        after = build_generator(recipe, larger).state_dict()
    return {
        name: [
            axis
            for axis, (size, size_after) in enumerate(
                zip(value.shape, after[name].shape, strict=True)
            )
            if size != size_after
        ]
        for name, value in before.items()
    }


def _merge(
    own: Tensor, other: Tensor, axes: Sequence[int], ours: Conditions, theirs: Conditions
) -> Tensor | None:
    """``own`` with the other's values where both have a channel of that name; None if none fits."""
    if own.ndim != other.ndim:
        return None
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    for axis, (size, size_there) in enumerate(zip(own.shape, other.shape, strict=True)):
        if axis not in axes:
            if size != size_there:
                return None
            continue
        there = {name: index for index, name in enumerate(theirs.axis(size_there))}
        matched = [(i, there[name]) for i, name in enumerate(ours.axis(size)) if name in there]
        if not matched:
            return None
        here, where = torch.tensor(matched, device=own.device).T
        pairs[axis] = here, where
        other = other.index_select(axis, where)
    return _put(own, other.to(own.dtype), [(axis, here) for axis, (here, _) in pairs.items()])


def _put(own: Tensor, values: Tensor, places: Sequence[tuple[int, Tensor]]) -> Tensor:
    """A copy of ``own`` with values at these places along several axes."""
    if not places:
        return values.clone()
    (axis, here), *rest = places
    inner = _put(own.index_select(axis, here), values, rest) if rest else values
    return own.index_copy(axis, here, inner)
