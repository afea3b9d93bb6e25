"""Class-specific generation (Sec. 3.3, Eqs. 6-7): one small head for each class makes its pixels.

Shape legend:
    B  images in the batch      N  semantic classes      C  channels of F      H, W  height, width
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from ecgan.ops.class_conv import class_specific_heads

HIDDEN = 16


class ClassSpecificGenerator(nn.Module):
    """Features F to the composite I_g: each pixel comes from the head of its own class.

    A head is conv 3x3 C -> 16, LeakyReLU, conv 3x3 16 -> 3, tanh; what it reads is masked to its
    class, so that no class learns from the pixels of another.
    """

    def __init__(self, channels: int, num_classes: int, *, spectral: bool) -> None:
        super().__init__()
        self.weight_1 = nn.Parameter(torch.empty(num_classes, HIDDEN, channels, 3, 3))
        self.bias_1 = nn.Parameter(torch.zeros(num_classes, HIDDEN))
        self.weight_2 = nn.Parameter(torch.empty(num_classes, 3, HIDDEN, 3, 3))
        self.bias_2 = nn.Parameter(torch.zeros(num_classes, 3))
        for weight in (self.weight_1, self.weight_2):
            for head in weight if not weight.is_meta else ():
                nn.init.xavier_normal_(head)
        if spectral:
            for name in ("weight_1", "weight_2"):
                parametrize.register_parametrization(
                    self, name, HeadwiseSpectralNorm(getattr(self, name))
                )

    def forward(self, features: Tensor, labels: Tensor, ignore: int) -> Tensor:
        """F, (B, C, H, W), and labels, (B, H, W) -> I_g, (B, 3, H, W); 0 where unlabelled."""
        return class_specific_heads(
            features, labels, ignore, self.weight_1, self.bias_1, self.weight_2, self.bias_2
        )


class HeadwiseSpectralNorm(nn.Module):
    """Divides each head's weight by its own largest singular value, by power iteration.

    torch's spectral norm takes a stack of heads for one matrix: a class with large weights would
    shrink those of all others.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrices = weight.detach().flatten(2)  # (N, out, in * 9)
        self.register_buffer("u", _unit(torch.randn_like(matrices[:, :, 0])))
        self.register_buffer("v", _unit(torch.randn_like(matrices[:, 0, :])))
        self._iterate(matrices, 15)

    @torch.no_grad()
    def _iterate(self, matrices: Tensor, num_iterations: int) -> None:
        for _ in range(num_iterations if not matrices.is_meta else 0):
            self.u = _unit(torch.einsum("noi,ni->no", matrices, self.v))
            self.v = _unit(torch.einsum("noi,no->ni", matrices, self.u))

    def forward(self, weight: Tensor) -> Tensor:
        """(N, out, in, 3, 3) -> the same, every head with largest singular value 1."""
        if weight.is_meta:  # which autocast does not know
            return weight
        matrices = weight.flatten(2)
        with torch.autocast(weight.device.type, enabled=False):  # the vectors stay float32
            if self.training:
                self._iterate(matrices.detach(), 1)
            sigma = torch.einsum("no,noi,ni->n", self.u, matrices, self.v)
        return weight / sigma[:, None, None, None, None]


def _unit(x: Tensor) -> Tensor:
    return functional.normalize(x, dim=1, eps=1e-12)
