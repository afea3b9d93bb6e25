"""Layers of the generator's inference form, on label maps or on the neighbourhoods in them.

Shape legend:
    L  layouts              N  semantic classes        H, W  height and width
    T  distinct 3 x 3 neighbourhoods of the layouts    U     distinct 5 x 5 ones
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ecgan.ops.neighbourhoods import (
    Neighbourhoods,
    neighbourhoods,
    sum_over_codes,
    sum_over_windows,
)
from ecgan.ops.onehot_conv import one_hot, onehot_conv

FEW_CHANNELS = 64  # of S: so few are convolved as fast as nine rows of a table are summed


class Lookup(NamedTuple):
    """A map that the neighbourhood of each pixel decides."""

    rows: Tensor  # its distinct values, (T or U, c)
    numbers: Tensor  # which of them each pixel has, (L, h, w)


Map = Tensor | Lookup
"""(L, c, h, w)."""


class LabelGrid(NamedTuple):
    """Layouts at one size."""

    labels: Tensor  # N where unlabelled, (L, h, w)
    boundary: Tensor | None  # (L, 1, h, w)


Grid = LabelGrid | Neighbourhoods
"""Layouts at one size: themselves, or the neighbourhoods in them."""


class Conditions(NamedTuple):
    """Channels of S, and how it is convolved.

    With lookups, modulation maps are computed once for each neighbourhood. How many there are
    differs from layout to layout; without lookups all shapes are fixed, as a compiled network
    wants them.
    """

    num_classes: int  # N
    unlabelled: bool  # whether unlabelled pixels have a channel
    boundary: bool  # whether instance boundaries have one
    lookups: bool

    @property
    def num_codes(self) -> int:
        """Number of values of a pixel: a class or unlabelled, on a boundary or not."""
        return (self.num_classes + 1) * (2 if self.boundary else 1)

    def grid(self, labels: Tensor, boundary: Tensor | None) -> Grid:
        """Labels, (L, h, w), N where unlabelled, and boundaries, (L, 1, h, w), to convolve."""
        N = self.num_classes
        if not self.lookups:
            return LabelGrid(labels, boundary)
        codes = labels.long()
        if boundary is not None:
            codes = codes + (boundary[:, 0] != 0) * (N + 1)
        return neighbourhoods(codes, self.num_codes)


class Kernel(NamedTuple):
    """Weights of a convolution, in float64 until a layer keeps them."""

    weight: Tensor  # (out, in, 3, 3)
    bias: Tensor  # (out,)

    def before(self, matrix: Tensor) -> "Kernel":
        """This convolution and then a 1x1 one, (out', out), as one."""
        return Kernel(torch.einsum("po,oikl->pikl", matrix, self.weight), matrix @ self.bias)


class Conv(nn.Module):
    """A convolution that keeps the size."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        weight = weight.float().contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if bias is None else bias.float())

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h, w)."""
        kernel = self.weight.shape[-1]
        if kernel == 1:  # for which torch has nothing fast on one thread
            pixels = functional.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias)
            return pixels.permute(0, 3, 1, 2)
        return functional.conv2d(x, self.weight, self.bias, padding=kernel // 2)


class StyleStart(nn.Module):
    """The trunk's start from a style, made as it is laid out: channels last."""

    weight: Tensor
    bias: Tensor

    def __init__(self, start: nn.Linear, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        weight = weight_of(start).unflatten(0, (channels, -1)).transpose(0, 1).flatten(0, 1)
        bias = bias_of(start).unflatten(0, (channels, -1)).transpose(0, 1).flatten()
        self.register_buffer("weight", weight.float().contiguous())
        self.register_buffer("bias", bias.float())

    def forward(self, z: Tensor) -> Tensor:
        """(B, 256) -> (B, channels, h, w)."""
        x = functional.linear(z.to(self.weight.dtype), self.weight, self.bias)
        return x.unflatten(1, (*self.size, -1)).permute(0, 3, 1, 2)


class LabelConv(nn.Module):
    """A 3x3 convolution of S: (out, channels of S, 3, 3), and bias, (out,), if there is one."""

    table: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, conditions: Conditions) -> None:
        super().__init__()
        self.conditions = conditions
        self.conv = None if conditions.lookups else Conv(weight, bias)
        if not conditions.lookups:
            return
        kernels = weight[:, : conditions.num_classes + conditions.unlabelled]
        if not conditions.unlabelled:  # S is zero there
            kernels = functional.pad(kernels, (0, 0, 0, 0, 0, 1))
        if conditions.boundary:
            kernels = torch.cat([kernels, kernels + weight[:, -1:]], dim=1)
        kernels = functional.pad(kernels, (0, 0, 0, 0, 0, 1))  # outside of the picture
        self.register_buffer("table", kernels.flatten(2).permute(2, 1, 0).float().contiguous())
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        self.register_buffer("bias", bias.float())

    def forward(self, grid: Grid) -> Tensor:
        """Label maps -> (L, out, h, w); neighbourhoods -> (T, out)."""
        if isinstance(grid, Neighbourhoods):
            return sum_over_codes(grid, self.table).add_(self.bias)
        assert self.conv is not None
        weight, bias, N = self.conv.weight, self.conv.bias, self.conditions.num_classes
        conditions = {"unknown": self.conditions.unlabelled, "boundary": grid.boundary}
        if weight.shape[1] > FEW_CHANNELS:
            return onehot_conv(grid.labels, weight, bias, N, N, **conditions)
        return self.conv(one_hot(grid.labels, N, N, dtype=weight.dtype, **conditions))

    def map(self, grid: Grid) -> Map:
        """(L, out, h, w)."""
        made = self(grid)
        return Lookup(made, grid.numbers) if isinstance(grid, Neighbourhoods) else made


class WindowConv(nn.Module):
    """A 3x3 convolution of what a :class:`LabelConv` made."""

    matrix: Tensor
    bias: Tensor

    def __init__(self, kernel: Kernel, conditions: Conditions) -> None:
        super().__init__()
        self.conv = None if conditions.lookups else Conv(*kernel)
        if conditions.lookups:
            matrix = kernel.weight.flatten(2).permute(1, 2, 0)  # (in, 9, out)
            self.register_buffer("matrix", matrix.float().contiguous())
            self.register_buffer("bias", kernel.bias.float())

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Maps, (L, in, h, w) -> (L, out, h, w); rows, (T, in) -> (U, out)."""
        if isinstance(grid, Neighbourhoods):
            return sum_over_windows(grid, x, self.matrix).add_(self.bias)
        assert self.conv is not None
        return self.conv(x)


def weight_of(layer: nn.Module) -> Tensor:
    """Weight of a layer, spectrally normalised if it is, in float64."""
    return cast("Tensor", layer.weight).detach().double()


def bias_of(layer: nn.Module) -> Tensor:
    """Bias of a layer, in float64."""
    return cast("Tensor", layer.bias).detach().double()
