"""Contrastive head Gc (Sec. 3.3), features to the embeddings of Eq. 5, and their memory bank."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ecgan.models.layers import convolution, leaky
from ecgan.runtime.device import uploaded
from ecgan.seeds import TorchStream, torch_generator

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


class MemoryBank(nn.Module):
    """Memory bank of Eq. 5: a ring buffer of detached embeddings for each tap and class.

    Each image adds one embedding per class, of a pixel drawn by the image's position. Every rank
    holds the same bank.

    Args:
        num_taps: number of taps of Eq. 5.
        num_classes: N.
        size: embeddings per class.
        dim: length of an embedding.
        seed: seed of the draws.
    """

    embeddings: Tensor  # (taps, N, size, dim)
    count: Tensor  # embeddings that came so far, (taps, N)

    def __init__(self, num_taps: int, num_classes: int, size: int, dim: int, seed: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(num_taps, num_classes, size, dim))
        self.register_buffer("count", torch.zeros(num_taps, num_classes, dtype=torch.int64))
        self.seed = seed

    def read(self, tap: int, empty: int) -> tuple[Tensor, Tensor]:
        """Embeddings, (M, dim), and their classes, (M,), which are ``empty`` in unused slots."""
        _, num_classes, size, _ = self.embeddings.shape
        filled = torch.arange(size, device=self.count.device) < self.count[tap, :, None]
        classes = torch.arange(num_classes, device=self.count.device)[:, None]
        return self.embeddings[tap].flatten(0, 1), classes.where(filled, empty).flatten()

    @torch.no_grad()
    def add(self, tap: int, embeddings: Tensor, labels: Tensor, positions: Tensor) -> None:
        """Add embeddings, (B, dim, h, w), with labels, (B, h, w), and CPU positions, (B,)."""
        _, num_classes, size, _ = self.embeddings.shape
        classes = torch.arange(num_classes, device=self.count.device)
        for embedding, label, position in zip(embeddings, labels, positions.tolist(), strict=True):
            flat = label.flatten()
            rng = torch_generator(self.seed, TorchStream.MEMORY_BANK, position)
            order = torch.randperm(len(flat), generator=rng)
            order = uploaded(order, flat.device)
            last = torch.full((num_classes + 1,), -1, device=flat.device)
            ids = torch.where(flat < num_classes, flat, num_classes)[order]
            last.scatter_reduce_(0, ids, torch.arange(len(flat), device=flat.device), "amax")
            last = last[:num_classes]
            present, slots = last >= 0, self.count[tap] % size
            pixels = order[last.clamp(min=0)]
            new = embedding.flatten(1).T[pixels].to(self.embeddings.dtype)
            old = self.embeddings[tap, classes, slots]
            self.embeddings[tap, classes, slots] = new.where(present[:, None], old)
            self.count[tap] += present
