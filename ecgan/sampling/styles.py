"""Styles z of samples: drawn from seeds, taken from photos or from a bank, mixed from two.

A style is a vector of 256 numbers (App. C). What a sample's style is depends on the run's seed, the
layout's key and the number of the style alone: never on its batch, shard, worker or device.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from ecgan.checkpoint import read_safetensors, write_whole
from ecgan.errors import UserError
from ecgan.models.generator import STYLE_DIM

Vectors = npt.NDArray[np.float32]

_FORMAT = "ecgan-styles-1"


@dataclass(frozen=True, eq=False)
class Styles:
    """Where styles come from; exactly one of the three.

    Attributes:
        seed: every sample has a style of its own, drawn from this seed, its layout and its number.
        shared_seed: style number k is the same for all layouts, drawn from this seed.
        vectors: style number k is the k-th of these, modulo their number, (n, 256).
    """

    seed: int = 0
    shared_seed: int | None = None
    vectors: Vectors | None = None

    @property
    def is_shared(self) -> bool:
        """Whether style number k is the same for all layouts."""
        return self.shared_seed is not None or self.vectors is not None

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
        return torch.randn(STYLE_DIM, generator=generator)


def sample_seed(run_seed: int, source: str, style: int) -> int:
    """Seed of a sample, below 2^53 (JSON's safe integers); never of its batch, shard or device."""
    digest = hashlib.sha256(f"{run_seed}\n{source}\n{style}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11


@dataclass(frozen=True, eq=False)
class Bank:
    """Styles with names, for one generator.

    Attributes:
        names: of the styles; each once.
        vectors: (n, 256).
        checkpoint: sha256 of the generator that they were made for.
    """

    names: tuple[str, ...]
    vectors: Vectors
    checkpoint: str

    def hash(self) -> str:
        """SHA-256 of names and numbers."""
        named = json.dumps(self.names).encode()
        return hashlib.sha256(named + self.vectors.astype("<f4").tobytes()).hexdigest()

    def vector(self, name: str) -> Vectors:
        """A style by its name, (256,).

        Raises:
            UserError: there is none of that name.
        """
        if name not in self.names:
            some = ", ".join(self.names[:10]) + (", ..." if len(self.names) > 10 else "")
            raise UserError(f"no style {name!r}; there are {some}")
        return self.vectors[self.names.index(name)]

    def with_style(self, name: str, vector: Vectors) -> "Bank":
        """The bank with one style more, or with a new one of that name."""
        kept = [i for i, own in enumerate(self.names) if own != name]
        names = (*(self.names[i] for i in kept), name)
        return Bank(names, np.concatenate([self.vectors[kept], vector[None]]), self.checkpoint)

    def between(self, first: str, second: str, count: int) -> "Bank":
        """``count`` styles from one to another, both included; see :func:`interpolate`."""
        vectors = interpolate(self.vector(first), self.vector(second), count)
        names = tuple(f"{first}-{second}-{k}" for k in range(count))
        return Bank(names, vectors, self.checkpoint)


def interpolate(first: Vectors, second: Vectors, count: int) -> Vectors:
    """Styles on the way from one to another, (count, 256): directions on the arc, lengths linear.

    A straight line between two draws of a normal distribution passes closer to 0 than nearly all
    draws lie, and such styles look washed out; on the arc their length stays what it was.

    Args:
        first: (256,).
        second: (256,).
        count: at least 2: the ends are among them.
    """
    assert count >= 2
    a, b = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    t = np.linspace(0, 1, count)[:, None]
    cosine = float(np.clip(a @ b / max(lengths[0] * lengths[1], 1e-12), -1, 1))
    angle = np.arccos(cosine)
    if np.sin(angle) < 1e-6 or min(lengths) == 0:  # no arc, or not one only
        return ((1 - t) * a + t * b).astype(np.float32)
    ends = np.sin((1 - t) * angle) * a / lengths[0], np.sin(t * angle) * b / lengths[1]
    length = (1 - t) * lengths[0] + t * lengths[1]
    mixed = length * (ends[0] + ends[1]) / np.sin(angle)
    mixed[0], mixed[-1] = a, b
    return mixed.astype(np.float32)


def save_bank(path: Path, bank: Bank) -> None:
    """Write a bank that :func:`load_bank` reads; whole or not at all."""
    metadata = {
        "ecgan": json.dumps({"format": _FORMAT, "names": bank.names, "checkpoint": bank.checkpoint})
    }
    tensors = {"styles": torch.from_numpy(np.ascontiguousarray(bank.vectors, np.float32))}
    write_whole(path, safetensors.torch.save(tensors, metadata))


def load_bank(path: Path) -> Bank:
    """Read a style bank.

    Raises:
        UserError: no such file, or not a bank of ours.
    """
    tensors, metadata = read_safetensors(path)
    try:
        about = json.loads(metadata["ecgan"])
        names, checkpoint = tuple(about["names"]), str(about["checkpoint"])
        vectors = tensors["styles"].numpy()
        fits = about["format"] == _FORMAT and vectors.shape == (len(names), STYLE_DIM)
    except (KeyError, ValueError, TypeError):
        names, checkpoint, vectors, fits = (), "", np.zeros((0, STYLE_DIM)), False
    if not fits or not names:
        raise UserError(
            f"--styles {path}: a safetensors file, but not a style bank of ecgan; make one with "
            "--save-styles FILE"
        )
    return Bank(names, vectors.astype(np.float32), checkpoint)


def drawn_bank(styles: Styles, count: int, checkpoint: str) -> Bank:
    """The first styles of a shared source, by their numbers."""
    vectors = np.stack([styles.draw("", k).numpy() for k in range(count)])
    return Bank(tuple(str(k) for k in range(count)), vectors, checkpoint)


def named_bank(names: Sequence[str], vectors: Vectors, checkpoint: str) -> Bank:
    """A bank of styles whose names may not be unique: later ones of a name get a number."""
    seen: dict[str, int] = {}
    unique: list[str] = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return Bank(tuple(unique), vectors.astype(np.float32), checkpoint)
