"""The encoder E of ECGAN (Sec. 3.1): the trunk of GauGAN, up to the raw output of its last block.

    S resized to the start --> conv --+
                                      +--> 7 SPADE residual blocks, x2 between them --> F
    z --> linear (with a style) ------+       ^ each is modulated by S at its own size,
                                                and its output, if wanted, by z

    or z in the outputs alone, or as 64 more channels of S

Shape legend:
    B  images in the batch      H, W  height and width
    w  width of the network, 64 in the paper; F has w channels
    S  condition, (B, channels of S, H, W): one-hot label, unlabelled pixels, instance boundaries
    z  style, (B, style_dim)

Written from the papers' text (SPADE, arXiv:1903.07291, App. A; ECGAN, arXiv:2003.13898v2).
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ecgan.models.layers import SpectralNorm, convolution, initialised, leaky
from ecgan.runtime.torch_private import AnyBatchNorm, TorchSpectralNorm

Modulation = tuple[Tensor, Tensor]
"""gamma and beta of one normalisation, each (B, C, h, w)."""

StyleInjection = Literal["start", "blocks", "modulation", "map"]
STYLE_CHANNELS = 64  # of a style that is a map; OASIS, arXiv:2012.04781

BLOCK_WIDTHS = ((16, 16), (16, 16), (16, 16), (16, 8), (8, 4), (4, 2), (2, 1))
"""Channels in and out of each block, in units of the width w."""


class Spade(nn.Module):
    """Spatially adaptive normalisation: batch norm, then a scale and a shift for every pixel."""

    def __init__(self, channels: int, num_conditions: int, hidden: int, *, spectral: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.hidden = convolution(num_conditions, hidden, spectral=spectral)
        self.to_modulation = convolution(hidden, 2 * channels, spectral=spectral)

    def modulation(self, S: Tensor) -> Modulation:
        """Condition S at the size of the layer, (B, channels of S, h, w) -> gamma, beta."""
        gamma, beta = self.to_modulation(F.relu(self.hidden(S))).chunk(2, dim=1)
        return gamma, beta

    def forward(self, x: Tensor, modulation: Modulation) -> Tensor:
        """Normalise and modulate x, (B, C, h, w)."""
        gamma, beta = modulation
        return self.norm(x) * (1 + gamma) + beta


class SpadeResidualBlock(nn.Module):
    """Two convolutions, each after a SPADE, and a shortcut with its own where channels change.

    The convolutions have no bias: whatever follows starts with a batch norm, which takes it out.
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_conditions: int, hidden: int, *,
        spectral_norm: SpectralNorm,
    ) -> None:  # fmt: skip
        super().__init__()
        middle = min(in_channels, out_channels)
        spectral = spectral_norm != "none"

        def spade(channels: int) -> Spade:
            return Spade(channels, num_conditions, hidden, spectral=spectral_norm == "all")

        self.spade_1 = spade(in_channels)
        self.conv_1 = convolution(in_channels, middle, bias=False, spectral=spectral)
        self.spade_2 = spade(middle)
        self.conv_2 = convolution(middle, out_channels, bias=False, spectral=spectral)
        self.learned_shortcut = in_channels != out_channels
        if self.learned_shortcut:
            self.spade_3 = spade(in_channels)
            self.conv_3 = convolution(in_channels, out_channels, 1, bias=False, spectral=spectral)

    def modulations(self, S: Tensor) -> list[Modulation]:
        """S at the size of the block -> gamma and beta of its two or three SPADE layers."""
        layers = [self.spade_1, self.spade_2]
        if self.learned_shortcut:
            layers.append(self.spade_3)
        return [layer.modulation(S) for layer in layers]

    def forward(self, x: Tensor, modulations: list[Modulation]) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h, w)."""
        y = self.conv_1(leaky(self.spade_1(x, modulations[0])))
        y = self.conv_2(leaky(self.spade_2(y, modulations[1])))
        shortcut = self.conv_3(self.spade_3(x, modulations[2])) if self.learned_shortcut else x
        return shortcut + y


class StyleModulation(nn.Module):
    """A scale and a shift of each channel of a block's output, made of the style z.

    It changes nothing at the start of a training: its weights begin at 0.
    """

    def __init__(self, style_dim: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(style_dim, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Modulate x, (B, C, h, w), by styles z, (B, style_dim)."""
        scale, shift = self.linear(z).to(x.dtype)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, x, 1 + scale)


class Trunk(nn.Module):
    """E: condition S, and a style z if ``style_dim`` is given, to features F.

    Args:
        num_conditions: channels of S.
        width: w, channels of F.
        size: height and width of S and F, pixels; multiples of 2 to the power of ``upsamplings``.
        upsamplings: x2 steps, 5 or 6. With 5, there is none between the second and third block.
        style_dim: length of z; None for no style.
        style_injection: "start": z takes the place of S at the start; "blocks": it scales and
            shifts the output of every block too; "modulation": it does so, and the start is made
            of S; "map": its first 64 numbers are channels of S.
        spectral_norm: "default": convolutions of the residual blocks; "all": those of SPADE too.
    """

    def __init__(
        self,
        num_conditions: int,
        width: int,
        size: tuple[int, int],
        *,
        upsamplings: int,
        style_dim: int | None,
        style_injection: StyleInjection = "start",
        spectral_norm: SpectralNorm,
    ) -> None:
        super().__init__()
        assert upsamplings in {5, 6}
        step = 2**upsamplings
        assert size[0] % step == 0, f"height {size[0]} is not a multiple of {step}"
        assert size[1] % step == 0, f"width {size[1]} is not a multiple of {step}"
        self.start_size = (size[0] // step, size[1] // step)
        self.upsamples_after = [True, upsamplings == 6, True, True, True, True, False]
        self.start_channels = BLOCK_WIDTHS[0][0] * width
        self.has_style = style_dim is not None
        self.style_map = style_dim is not None and style_injection == "map"
        num_conditions += STYLE_CHANNELS if self.style_map else 0
        spectral = spectral_norm == "all"
        if style_dim is not None and style_injection in {"start", "blocks"}:
            start_features = self.start_channels * math.prod(self.start_size)
            linear = nn.Linear(style_dim, start_features)
            self.start: nn.Module = initialised(linear, spectral=spectral)
        else:
            self.start = convolution(
                num_conditions, self.start_channels, bias=False, spectral=spectral
            )
        self.blocks = nn.ModuleList(
            SpadeResidualBlock(
                c_in * width, c_out * width, num_conditions, 2 * width, spectral_norm=spectral_norm
            )
            for c_in, c_out in BLOCK_WIDTHS
        )
        self.style_modulations = nn.ModuleList(
            StyleModulation(style_dim, c_out * width)
            for _, c_out in BLOCK_WIDTHS
            if style_dim is not None and style_injection in {"blocks", "modulation"}
        )
        self.tap_channels = self._tap_channels(width, upsamplings)
        self.checkpointed = 0
        """Last blocks whose activations are computed again for their gradients, not kept."""

    def _tap_channels(self, width: int, upsamplings: int) -> list[tuple[int, int]]:
        downscale, taps = 2**upsamplings, []
        for (_, c_out), upsamples in zip(BLOCK_WIDTHS, self.upsamples_after, strict=True):
            taps.append((c_out * width, downscale))
            downscale //= 2 if upsamples else 1
        return taps[::-1]

    def block_sizes(self) -> list[tuple[int, int]]:
        """Height and width of what goes through each block."""
        height, width = self.start_size
        sizes = []
        for upsamples in self.upsamples_after:
            sizes.append((height, width))
            if upsamples:
                height, width = 2 * height, 2 * width
        return sizes

    def forward(self, S: Tensor, z: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Condition S, (B, channels of S, H, W), and style z, (B, style_dim), to features.

        Returns:
            F, (B, w, H, W), and the taps: F, then the output of every earlier block, last first.
        """
        assert (z is not None) == self.has_style, "a trunk with a style, and no other, needs z"
        if z is not None and self.style_map:
            noise = z[:, :STYLE_CHANNELS, None, None].to(S.dtype)
            S = torch.cat([S, noise.expand(-1, -1, *S.shape[2:])], dim=1)
        if isinstance(self.start, nn.Linear):
            x = self.start(z).unflatten(1, (self.start_channels, *self.start_size))
            if S.is_contiguous(memory_format=torch.channels_last):
                # laid out as S is: every block follows its input
                x = x.contiguous(memory_format=torch.channels_last)
        else:
            x = self.start(_resized(S, self.start_size))
        outputs = []
        first = len(self.blocks) - self.checkpointed if torch.is_grad_enabled() else math.inf
        for index, block in enumerate(self.blocks):
            if index >= first:
                again = partial(_passes, block)
                x = checkpoint(_modulated, block, x, S, use_reentrant=False, context_fn=again)
                assert isinstance(x, Tensor)
            else:
                x = _modulated(block, x, S)
            if z is not None and self.style_modulations:
                x = self.style_modulations[index](x, z)
            outputs.append(x)
            if self.upsamples_after[index]:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
        return x, outputs[::-1]


def _modulated(block: nn.Module, x: Tensor, S: Tensor) -> Tensor:
    """A block with its own modulation maps, made of S."""
    at_size = _resized(S, (x.shape[2], x.shape[3]))
    return block(x, block.modulations(at_size))  # pyright: ignore[reportCallIssue]


def _passes(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a checkpointed block's first pass and of its recomputation."""
    return nullcontext(), second_pass(block)


@contextmanager
def second_pass(block: nn.Module) -> Iterator[None]:
    """Recomputation of a checkpointed block with the numbers of its first pass.

    Batch norms count a batch once, and spectral norms stay with the vectors of the first pass, one
    power iteration further: those that the first pass divided by.
    """
    norms = [m for m in block.modules() if isinstance(m, AnyBatchNorm)]
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    spectral = [m for m in block.modules() if isinstance(m, TorchSpectralNorm) and m.training]
    for norm in spectral:
        norm.train(False)
    try:
        yield
    finally:
        for norm in spectral:
            norm.train(True)
        for buffer, before in kept:
            buffer.copy_(before)


def _resized(S: Tensor, size: tuple[int, int]) -> Tensor:
    return S if S.shape[2:] == size else F.interpolate(S, size=size, mode="nearest")
