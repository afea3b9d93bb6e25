"""A training step gives the device its work and never waits for it.

A tensor on the meta device has no values: whatever would copy one to the host, or needs one for a
shape, raises there. So a step that runs on it waits for no GPU either. Kernels are not launched:
what surrounds them is what is tested. ``pytest -m gpu`` has the same with CUDA's own alarm.
"""

import math
from contextlib import nullcontext

import pytest
import torch

from ecgan.models.layers import condition
from ecgan.models.pretrained import perceptual_features
from ecgan.recipe import label_space, load_recipe
from ecgan.segmentation import segmenter
from ecgan.training import step as steps
from ecgan.training.objective import Inputs, Objective, build_bank

META = torch.device("meta")
TINY = (
    "data.classes=[road, sky, car, tree]", "data.height=32", "data.width=64", "model.width=4",
    "model.label_generator=train",
    "model.label_generator_training.channels=8", "losses.contrastive_bank=2",
    "losses.similarity_stride=2",
    "losses.contrastive_taps=[0,1]", "train.batch=4", "train.accumulate=2",
    "train.augment=diffaugment", "train.precision=float32",
)  # fmt: skip


def setting(device, *overrides):
    """Players, objective with every term, and a batch in two parts, on a device."""
    recipe = load_recipe("demo", (*TINY, *overrides))
    space = label_space(recipe.data)
    label_generator = segmenter.Segmenter(
        segmenter.segformer(8, space.names, 0),
        range(space.num_classes),
        space.names,
        normalisation=segmenter.Normalisation(),
        provenance=segmenter.Provenance("trained", "random weights"),
    )
    frozen = perceptual_features("efficientnet_lite0").to(device)
    objective = Objective(
        recipe, space, device, label_generator.to(device), frozen,
        build_bank(recipe, space, device), frozen,
    )  # fmt: skip
    parts = []
    for first in (0, 2):
        labels = torch.randint(0, space.num_classes + 1, (2, 32, 64))
        labels[labels == space.num_classes] = space.ignore_index
        labels = labels.to(device)
        picture = torch.rand(2, 3, 32, 64).to(device)
        S = condition(labels, None, space)
        positions = torch.tensor([first, first + 1])  # stays on the host
        keys = tuple(f"scene-{position}" for position in positions.tolist())
        parts.append(Inputs(keys, positions, labels, S, picture, picture))
    return steps.build(recipe, space, device), objective, parts


class OnTheWay:
    """In place of a download, which nobody has to wait for."""

    def __init__(self, x):
        assert x.device == META
        self.shape = x.shape


@pytest.mark.slow
def test_a_step_never_waits_for_the_device(monkeypatch):
    triton = pytest.importorskip("triton")
    launched = []
    monkeypatch.setenv("ECGAN_KERNELS", "triton")
    monkeypatch.setattr(steps, "Download", OnTheWay)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # has no meta
    kernel = triton.runtime.jit.KernelInterface
    monkeypatch.setattr(
        kernel, "__getitem__", lambda own, _: lambda *_, **__: launched.append(own.__name__)
    )
    both, objective, parts = setting(META)
    values = steps.step(both, objective, parts, 1.0)
    watched = {"segmentation_discriminator", "segmentation_accuracy", "called_made"}
    assert set(values.means) == {"discriminator", *watched, *objective.weights}
    assert {"similarity", "contrastive", "class_l1", "perceptual", "kl"} <= set(values.means)
    assert {"_rows", "_log_negatives", "_convolve", "_kernel_gradients"} <= set(launched)


@pytest.mark.slow
def test_the_setting_is_one_that_can_be_trained():
    """Meta tensors have no values that could be wrong; a GPU has."""
    values = steps.step(*setting(torch.device("cpu")), 1.0).read()
    assert all(math.isfinite(value) for value in values.values())


@pytest.mark.gpu
def test_a_step_never_waits_for_the_gpu():
    both, objective, parts = setting(torch.device("cuda"), "train.precision=bfloat16")
    steps.step(both, objective, parts, 1.0).read()  # kernels are built, and compared once
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = steps.step(both, objective, parts, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert set(values.read()) == {"discriminator", *objective.weights}
