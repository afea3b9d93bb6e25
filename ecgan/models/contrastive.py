"""The contrastive head Gc of ECGAN (Sec. 3.3): features to the pixel embeddings of Eq. 5."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ecgan.models.layers import convolution, leaky

EMBEDDING_DIM = 64


class ContrastiveHead(nn.Module):
    """Gc: 1x1 convolution, LeakyReLU, 1x1 convolution, L2 norm. In training only."""

    def __init__(self, channels: int, dim: int = EMBEDDING_DIM) -> None:
        super().__init__()
        self.first = convolution(channels, channels, 1, spectral=False)
        self.second = convolution(channels, dim, 1, spectral=False)

    def forward(self, features: Tensor, stride: int = 1) -> Tensor:
        """Features, (B, C, h, w) -> unit embeddings, (B, dim, h / stride, w / stride), float32.

        Args:
            features: F or another tap.
            stride: side of the squares that features are averaged over, in pixels of ``features``
                (not of the image, where a tap is smaller than that).
        """
        if stride > 1:
            features = functional.avg_pool2d(features, stride)
        embeddings = self.second(leaky(self.first(features)))
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        return functional.normalize(embeddings, dim=1)
