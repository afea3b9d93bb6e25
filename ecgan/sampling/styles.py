"""Styles z of samples: drawn from seeds, or encoded from photos.

A style is a vector of 256 numbers (App. C), drawn from N(0, 1) or from the prior of the run's
photos. What a sample's style is depends on the run's seed, the
layout's key and the number of the style alone: never on its batch, shard, worker or device.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ecgan.models.generator import STYLE_DIM
from ecgan.models.style import StylePrior
from ecgan.seeds import sample_seed

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Styles:
    """Source of styles: a seed, a seed shared by all layouts, or the vectors of photos.

    Attributes:
        seed: seed of styles that are drawn for each sample by its layout and its number.
        shared_seed: seed of styles that are drawn by their number alone, the same for all layouts.
        vectors: styles of photos, (n, 256); style number k is the k-th, modulo n.
        prior: distribution of drawn styles; None: N(0, 1).
        temperature: of the prior.
    """

    seed: int = 0
    shared_seed: int | None = None
    vectors: Vectors | None = None
    prior: StylePrior | None = None
    temperature: float = 1.0

    def seed_of(self, source: str, style: int, attempt: int = 0) -> int:
        """The seed that a record names.

        Args:
            source: key of the layout.
            style: number of the style.
            attempt: 0, or which retry of the label filter this is; it adds to the seed.
        """
        if self.shared_seed is not None:
            return sample_seed(self.shared_seed, "", style)
        return sample_seed(self.seed, source, style) + attempt

    def draw(self, source: str, style: int, attempt: int = 0) -> Tensor:
        """z, (256,)."""
        if self.vectors is not None:
            return torch.from_numpy(self.vectors[style % len(self.vectors)].copy())
        generator = torch.Generator().manual_seed(self.seed_of(source, style, attempt))
        noise = torch.randn(STYLE_DIM, generator=generator)
        if self.prior is None:
            return noise
        # In float64 and rounded, so that the order of sums does not show
        return self.prior.double()(noise.double(), self.temperature).float()


def photo_digest(names: Sequence[str], vectors: Vectors) -> str:
    """SHA-256 of the styles of photos: their names, made unique, and their numbers."""
    seen: dict[str, int] = {}
    unique: list[str] = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return hashlib.sha256(json.dumps(unique).encode() + vectors.astype("<f4").tobytes()).hexdigest()
