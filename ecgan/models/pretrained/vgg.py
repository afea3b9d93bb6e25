"""VGG19 (Simonyan and Zisserman, 2014) of torchvision, for the perceptual loss."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ecgan.errors import UserError
from ecgan.models.pretrained.frozen import IMAGENET_MEAN, IMAGENET_STD, PerceptualFeatures
from ecgan.models.pretrained.weights import find_vgg19_weights, load_state

RELU_1 = {"vgg16": (1, 6, 11, 18, 25), "vgg19": (1, 6, 11, 20, 29)}
"""Numbers of relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1 among torchvision's layers."""


class Vgg19(PerceptualFeatures):
    """torchvision's VGG19, ImageNet: relu1_1, relu2_1, relu3_1, relu4_1, relu5_1.

    Args:
        weights: torchvision's ``vgg19-dcbb9e9d.pth``; None: the one in torch's cache.

    Raises:
        UserError: the weights are not there or do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | Path | None) -> None:
        super().__init__()
        path = find_vgg19_weights(weights)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        layers = vgg_layers("vgg19")
        state = load_state(path, "losses.vgg19_weights")
        load_convolutions(
            layers,
            {name.removeprefix("features."): value for name, value in state.items()},
            f"{path}: not torchvision's vgg19",
        )
        self.layers = extract(layers, RELU_1["vgg19"])
        self.freeze()

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.layers(((images + 1) / 2 - self.mean) / self.std).values())


def vgg_layers(name: Literal["vgg16", "vgg19"]) -> nn.Sequential:
    """Convolutions, ReLUs and poolings of a VGG, without weights: on the meta device."""
    from torchvision import models  # takes a second, and few runs need it

    with torch.device("meta"):
        return getattr(models, name)().features


def extract(layers: nn.Sequential, numbers: Sequence[int]) -> nn.Module:
    """Network of an image to a dictionary of the outputs of some layers, up to the last of them."""
    from torchvision.models.feature_extraction import create_feature_extractor

    return create_feature_extractor(layers, [str(number) for number in numbers])


def load_convolutions(layers: nn.Module, weights: Mapping[str, Tensor], complaint: str) -> None:
    """Set all parameters of a network of convolutions.

    Raises:
        UserError: some are missing, or have another shape.
    """
    own = layers.state_dict()
    kernels = [name for name in own if name.endswith("weight")]
    found = sum(name in weights for name in kernels)
    if not own.keys() <= weights.keys():
        raise UserError(f"{complaint}: {found} of {len(kernels)} convolutions found")
    for name, value in own.items():
        if weights[name].shape != value.shape:
            raise UserError(
                f"{complaint}: {name} is {tuple(weights[name].shape)}, "
                f"expected {tuple(value.shape)}"
            )
        if not weights[name].isfinite().all():
            raise UserError(f"{complaint}: {name} has NaN or infinity; get the file again")
    values = {name: weights[name].float().contiguous() for name in own}
    layers.load_state_dict(values, assign=True)
