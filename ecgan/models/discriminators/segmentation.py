"""Discriminators that segment, with one class more for what is generated.

A photo's pixels shall get their classes, a generated picture's the class N, "made" (OASIS,
arXiv:2012.04781). There are two:

* one on features of a frozen ImageNet network, which stands beside the paper's discriminator:

      picture --> EfficientNet-Lite0, frozen --> maps at strides 4, 8, 16, 32
              --> normalised, squashed --> [decoder, x2 upsampling and skips] --> N + 1 logits

  Features that know photos from the start make it a good critic after hundreds of images, where a
  network from scratch takes tens of thousands (Projected GAN, arXiv:2111.01007; with classes:
  DP-SIMS, arXiv:2312.13314). It is blind to what ImageNet features are blind to, such as texture.
* OASIS's U-Net from scratch, in place of the paper's, for the recipe of that name.

Shape legend:
    R  pictures in a pass       N  classes       H, W  height and width of a picture
"""

import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ecgan.models.layers import convolution, leaky
from ecgan.models.pretrained.efficientnet_lite import LITE0_STAGES, LITE0_TAPS, EfficientNetLite0

STAGES = (1, 2, 4, 6)  # of EfficientNet-Lite0, whose last maps are at strides 4, 8, 16, 32
SMALL_SIDE = 160  # pixels; pictures of less are shown at twice the size
UNET_WIDTHS = (2, 2, 4, 4, 8, 8)  # channels of the U-Net's halvings, in units of the width
GUARD, GUARD_HALF_LIFE = 0.95, 2_000  # share of made pixels; images


def magnified(pictures: Tensor) -> Tensor:
    """Pictures as a frozen ImageNet network sees them: small ones at twice the size, bilinear.

    Its first convolution has a stride, and its deepest maps one of 32: at their own size, small
    pictures leave it a few pixels, and a gradient that depends on a pixel's place modulo 4.
    """
    if min(pictures.shape[2:]) >= SMALL_SIDE:
        return pictures
    return F.interpolate(pictures, scale_factor=2, mode="bilinear", align_corners=False)


def frozen_maps(network: EfficientNetLite0, pictures: Tensor) -> list[Tensor]:
    """Maps of the frozen network that :class:`FeatureDiscriminator` sees of pictures."""
    maps = dict(zip(LITE0_TAPS, network(magnified(pictures)), strict=True))
    return [maps[stage] for stage in STAGES]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which has its own where channels change."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_1 = convolution(in_channels, out_channels, spectral=True)
        self.conv_2 = convolution(out_channels, out_channels, spectral=True)
        self.shortcut = (
            convolution(in_channels, out_channels, 1, bias=False, spectral=True)
            if in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(R, in_channels, h, w) -> (R, out_channels, h, w)."""
        y = self.conv_2(leaky(self.conv_1(leaky(x))))
        return (self.shortcut(x) + y) * 0.5**0.5


def _enlarged(x: Tensor, size: torch.Size) -> Tensor:
    """Bilinear: steps of a coarse map would give G a gradient in squares."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class FeatureDiscriminator(nn.Module):
    """Maps of the frozen network to logits of the N classes and of "made".

    Args:
        num_classes: N.
        channels: width of the decoder.

    Attributes:
        called_made: running share of generated pixels that it calls made.
    """

    called_made: Tensor

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        widths = [LITE0_STAGES[stage][1] for stage in STAGES]
        for index, width in enumerate(widths):
            self.register_buffer(f"mean_{index}", torch.zeros(width))
            self.register_buffer(f"deviation_{index}", torch.ones(width))
        self.register_buffer("called_made", torch.zeros(()))
        self.laterals = nn.ModuleList(
            convolution(width, channels, 1, spectral=True) for width in widths
        )
        self.blocks = nn.ModuleList(ResidualBlock(channels, channels) for _ in widths)
        self.to_logits = convolution(channels, num_classes + 1, 1, spectral=False)

    @torch.no_grad()
    def measure(self, batches: Iterable[Sequence[Tensor]]) -> None:
        """Set the statistics that normalise the maps to those of photos.

        Fixed statistics keep generated pictures from moving them.

        Args:
            batches: maps of batches of photos, each (R, channels, h, w).
        """
        collected = [torch.cat(parts) for parts in zip(*batches, strict=True)]
        for index, maps in enumerate(collected):
            deviation, mean = torch.std_mean(maps.double(), dim=(0, 2, 3))
            getattr(self, f"mean_{index}").copy_(mean)
            getattr(self, f"deviation_{index}").copy_(deviation)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps at strides 4 to 32, (R, channels, h, w) -> logits at stride 2, (R, N + 1, h, w)."""
        x = None
        for index in reversed(range(len(maps))):
            mean, deviation = getattr(self, f"mean_{index}"), getattr(self, f"deviation_{index}")
            squashed = torch.tanh(
                (maps[index] - mean[:, None, None]) / (2 * deviation[:, None, None] + 2e-3)
            )
            lateral = self.laterals[index](squashed)
            if x is not None:
                lateral = lateral + _enlarged(x, lateral.shape[2:])
            x = self.blocks[index](lateral)
        assert x is not None
        x = _enlarged(x, torch.Size([2 * side for side in x.shape[2:]]))
        return self.to_logits(leaky(x))

    @torch.no_grad()
    def watch(self, share: Tensor, batch: int) -> Tensor:
        """Follow the share of generated pixels that it calls made, and whether it may learn.

        A critic that always wins gives no gradient worth having; above a share of 0.95 it waits.

        Args:
            share: of this step, ().
            batch: images of the step, over all ranks.

        Returns:
            1 if it may learn from this step, else 0; ().
        """
        share = share.to(self.called_made.dtype)
        self.called_made.lerp_(share, 1 - 0.5 ** (batch / GUARD_HALF_LIFE))
        return (self.called_made < GUARD).to(share.dtype)


class UNetDiscriminator(nn.Module):
    """OASIS's discriminator: a U-Net of six halvings from pictures to N + 1 logits a pixel.

    Args:
        num_classes: N.
        width: 64 in the paper.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        widths = [3, *(factor * width for factor in UNET_WIDTHS)]
        self.down = nn.ModuleList(
            ResidualBlock(c_in, c_out) for c_in, c_out in itertools.pairwise(widths)
        )
        up = [*widths[:0:-1], width]  # the deepest first
        self.up = nn.ModuleList(
            ResidualBlock(c_in + (c_in if index else 0), c_out)
            for index, (c_in, c_out) in enumerate(itertools.pairwise(up))
        )
        self.to_logits = convolution(width, num_classes + 1, 1, spectral=False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One map, the pictures, (R, 3, H, W) -> logits, (R, N + 1, H, W)."""
        (x,) = maps
        sizes, skips = [], []
        for block in self.down:
            sizes.append(x.shape[2:])
            x = F.avg_pool2d(block(x), 2, ceil_mode=True)
            skips.append(x)
        for index, block in enumerate(self.up):
            beside = skips[-1 - index]
            x = block(x if index == 0 else torch.cat([x, beside], dim=1))
            x = F.interpolate(x, size=sizes[-1 - index], mode="nearest")
        return self.to_logits(leaky(x))
