"""Layers of all networks: convolutions with initial weights and spectral norm; the condition S.

Glorot's initialisation with gain 1 for every convolution. (The family's 0.02 is for weights that a
normalisation follows; Ge, Gi and Gs are chains of four plain convolutions, whose outputs and
gradients would start at 0.02^4, below Adam's epsilon. With 1, tanh starts in its linear part.)
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ecgan.labels import LabelSpace
from ecgan.ops.onehot_conv import one_hot
from ecgan.runtime.torch_private import TorchSpectralNorm

SpectralNorm = Literal["default", "all", "none"]
"""Layers with spectral norm: the trunk's blocks and D's inner layers, all, none."""


def convolution(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    padding: int | None = None,
    bias: bool = True,
    spectral: bool,
) -> nn.Module:
    """A convolution, spectrally normalised if ``spectral``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: side of the kernel.
        stride: stride of the kernel.
        padding: zeros around the input; None is half the kernel, which keeps the size.
        bias: False before a normalisation that would take the bias out again.
        spectral: divide the weight by its largest singular value.
    """
    padding = kernel // 2 if padding is None else padding
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=bias)
    return initialised(layer, spectral=spectral)


def initialised(layer: nn.Conv2d | nn.Linear, *, spectral: bool) -> nn.Module:
    """The layer with its first weights, spectrally normalised if ``spectral``."""
    nn.init.xavier_normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    if spectral:
        parametrize.register_parametrization(layer, "weight", ExactSpectralNorm(layer.weight))
    return layer


class ExactSpectralNorm(TorchSpectralNorm):
    """torch's, in the weight's own precision.

    Autocast would run the power iteration in bfloat16, but the generator that is saved divides by
    the exact singular value.
    """

    @torch.no_grad()
    def _power_method(self, weight_mat: Tensor, n_power_iterations: int) -> None:
        """As torch does, to the bit, with half the calls: most time in small layers is theirs."""
        for _ in range(n_power_iterations if not weight_mat.is_meta else 0):  # meta has no values
            _normalise(torch.mv(weight_mat, self._v), self.eps, out=self._u)
            _normalise(torch.mv(weight_mat.T, self._u), self.eps, out=self._v)

    def forward(self, weight: Tensor) -> Tensor:
        """A weight -> the same with largest singular value 1."""
        if weight.is_meta:  # which autocast does not know
            return super().forward(weight) if torch.is_grad_enabled() else weight
        with torch.autocast(weight.device.type, enabled=False):
            return super().forward(weight)


def _normalise(x: Tensor, eps: float, *, out: Tensor) -> None:
    norm = torch.linalg.vector_norm(x, dim=0, keepdim=True)
    torch.div(x, norm.clamp_min_(eps), out=out)


def channels_last(network: nn.Module) -> None:
    """Lay out convolutions by pixels, in place: a third faster on CPU, what tensor cores want."""
    for parameter in network.parameters():
        if parameter.dim() == 4:  # not the stacks of class-specific heads
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def leaky(x: Tensor) -> Tensor:
    """LeakyReLU with the slope that every network here uses, 0.2."""
    return F.leaky_relu(x, 0.2)


def condition(labels: Tensor, boundary: Tensor | None, space: LabelSpace) -> Tensor:
    """Condition S of labels, (B, H, W), and instance boundaries, (B, 1, H, W); channels last."""
    S = one_hot(
        labels,
        space.num_classes,
        space.ignore_index,
        unknown=space.ignore is not None,
        boundary=boundary,
    )
    return S.contiguous(memory_format=torch.channels_last)
