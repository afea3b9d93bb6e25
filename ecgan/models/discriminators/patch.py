"""The multi-modality discriminator D of ECGAN (App. A): one network for images and for edges.

Two PatchGANs, the second on inputs of half the size. Each sees the condition and what is to be
judged, and gives a map of scores.

Shape legend:
    B  positions in the batch       R  pictures of each: real, coarse, refined, edges, ...
    H, W  height and width          S  condition, (B, channels of S, H, W)
"""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from ecgan.models.layers import SpectralNorm, convolution, leaky

NUM_SCALES = 2


class PatchDiscriminator(nn.Module):
    """D at one scale: five 4x4 convolutions, the inner three with instance norm.

    The bias of the inner three is left out: instance norm would take it out again.
    """

    def __init__(self, num_conditions: int, width: int, spectral_norm: SpectralNorm) -> None:
        super().__init__()
        inner = spectral_norm != "none"
        outer = spectral_norm == "all"
        self.num_conditions = num_conditions
        self.first = convolution(num_conditions + 3, width, 4, stride=2, padding=2, spectral=outer)
        self.inner = nn.ModuleList(
            convolution(
                factor * width, 2 * factor * width, 4,
                stride=stride, padding=2, bias=False, spectral=inner,
            )
            for factor, stride in ((1, 2), (2, 2), (4, 1))
        )  # fmt: skip
        self.score = convolution(8 * width, 1, 4, padding=2, spectral=outer)

    def forward(self, S: Tensor, pictures: Tensor) -> list[Tensor]:
        """S, (B, channels of S, H, W), pictures, (R * B, 3, H, W) -> four maps and the scores."""
        x = leaky(self._first(S, pictures))
        maps = [x]
        for layer in self.inner:
            x = leaky(F.instance_norm(layer(x)))
            maps.append(x)
        return [*maps, self.score(x)]

    def _first(self, S: Tensor, pictures: Tensor) -> Tensor:
        """The first convolution of cat(S, picture), as a sum: S's part is the same R times."""
        weight = cast("Tensor", self.first.weight)
        weight_S, weight_picture = weight.split((self.num_conditions, 3), dim=1)
        bias = cast("Tensor", self.first.bias)
        from_S = F.conv2d(S, weight_S, bias, stride=2, padding=2)
        from_picture = F.conv2d(pictures, weight_picture, stride=2, padding=2)
        if len(S) == len(pictures):
            return from_S + from_picture
        return (from_picture.unflatten(0, (-1, len(S))) + from_S).flatten(0, 1)


class Discriminator(nn.Module):
    """D: condition and pictures to feature maps and scores, at two scales.

    Args:
        num_conditions: channels of S.
        width: channels of the first layer, 64 in the paper.
        spectral_norm: "default": the inner three layers; "all": every layer.
    """

    def __init__(
        self, num_conditions: int, width: int = 64, spectral_norm: SpectralNorm = "default"
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            PatchDiscriminator(num_conditions, width, spectral_norm) for _ in range(NUM_SCALES)
        )

    def forward(self, S: Tensor, pictures: Tensor) -> list[list[Tensor]]:
        """Judge R pictures for each condition.

        Args:
            S: (B, channels of S, H, W).
            pictures: images or three-channel edges, (R * B, 3, H, W); the first B belong to S in
                its order, then the next B, and so on.

        Returns:
            For each scale the maps of the four inner layers (which feature matching compares),
            then the scores, (R * B, 1, h, w).
        """
        assert len(pictures) % len(S) == 0, f"{len(pictures)} pictures for {len(S)} conditions"
        judged = []
        for index, scale in enumerate(self.scales):
            if index:
                S, pictures = _halved(S), _halved(pictures)
            judged.append(scale(S, pictures))
        return judged


def _halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
