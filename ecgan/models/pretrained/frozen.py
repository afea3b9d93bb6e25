"""Frozen networks: in evaluation mode for good, no parameter takes a gradient."""

from typing import Self

from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYER_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
"""Weights of relu1_1 .. relu5_1 of VGG in the perceptual loss: the deeper, the more."""


class Frozen(nn.Module):
    """A network in evaluation mode for good, whose parameters never train."""

    def freeze(self) -> Self:
        self.requires_grad_(False)
        return self.train(False)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Evaluation mode, also when a parent module is set to training."""
        return super().train(False)


class PerceptualFeatures(Frozen):
    """A network that maps images to a list of feature maps.

    Attributes:
        weights: weight of each map in the perceptual loss.
    """

    weights: tuple[float, ...] = LAYER_WEIGHTS

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images in [-1, 1], (B, 3, H, W) -> maps, each (B, C, h, w)."""
        raise NotImplementedError
