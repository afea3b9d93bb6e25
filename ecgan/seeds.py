"""Seeds of all random draws, and the numbers of their streams.

A draw is keyed by what it is for, never by a rank, batch, shard or device, so it comes out the same
whatever runs it. The streams stand side by side here, because a collision is visible only so.
"""

import hashlib
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


class NumpyStream(IntEnum):
    """Streams of :func:`numpy_generator`; they do not meet those of :func:`torch_generator`."""

    ORDER = 0  # of an epoch's training pairs; by epoch
    CROP = 1  # crop and mirroring of a training pair; by position
    DIFFAUGMENT = 1  # by position; CROP's number by mistake, kept so that a training can resume
    STUDENT_ORDER = 2  # pairs and samples of a downstream segmenter; by kind and epoch
    STUDENT_CROP = 3  # zoom, crop and mirroring of one of those; by position
    STUDENT_PAIR = 4  # what a control draws for one of its pairs; by position
    STUDENT_COLOUR = 5  # colours of one of those; by position


class TorchStream(IntEnum):
    """Streams of :func:`torch_generator`."""

    STYLE = 0  # noise of a training image's style; by position
    LABEL_MIX = 1  # classes that LabelMix takes from the photo; by position
    MEMORY_BANK = 2  # pixels that the memory bank keeps; by position
    STATISTICS = 10  # styles for estimating batch norm's statistics; by layout
    PREVIEW = 11  # styles of the preview; by row


def numpy_generator(seed: int, stream: NumpyStream, *position: int) -> np.random.Generator:
    """NumPy generator of one draw, such as a training image's."""
    return np.random.default_rng((seed, stream, *position))


def torch_generator(seed: int, stream: TorchStream, position: int) -> "torch.Generator":
    """Torch generator, on the CPU, of one draw, such as a training image's."""
    import torch

    state = np.random.SeedSequence((seed, stream, position)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def sample_seed(run_seed: int, source: str, style: int) -> int:
    """Seed of a sample's style, below 2^53 (JSON's safe integers).

    Args:
        run_seed: seed of the data set.
        source: key of the layout; empty for a style that all layouts share.
        style: number of the style.
    """
    return _hashed(f"{run_seed}\n{source}\n{style}")


def variant_seed(run_seed: int, source: str, variant: int) -> int:
    """Seed of the changes that make the N-th variant of a layout, below 2^53."""
    return _hashed(f"variation\n{run_seed}\n{source}\n{variant}")


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11
