"""Augmentation of all that D sees, for small data sets (DiffAugment, arXiv:2006.10738).

Colour, translation and cutout, differentiable, so that G learns through them. Everything of one
position, real or generated, image, edge or condition, is moved and cut by the same draw: pairs stay
aligned, and what D can tell apart is never the augmentation. Only images change colour.

Shape legend:
    B  positions in the batch      H, W  height and width
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ecgan.runtime.device import uploaded
from ecgan.seeds import NumpyStream, numpy_generator

MAX_SHIFT = 1 / 8  # of height and of width
CUTOUT = 1 / 2  # side of the hole, of height and of width


class Draws(NamedTuple):
    """What chance decides, uniform in [0, 1): each (B,), on the CPU."""

    brightness: Tensor
    saturation: Tensor
    contrast: Tensor
    shift_y: Tensor
    shift_x: Tensor
    cut_y: Tensor
    cut_x: Tensor


def draw(seed: int, positions: Sequence[int]) -> Draws:
    """One draw for each position, the same on any rank and in a batch of any size."""
    values = [
        numpy_generator(seed, NumpyStream.DIFFAUGMENT, position).random(len(Draws._fields))
        for position in positions
    ]
    table = torch.from_numpy(np.stack(values, axis=1)).float()
    return Draws(*table)


def diffaugment(pictures: Tensor, draws: Draws, *, colour: bool, hole: bool = True) -> Tensor:
    """Augment pictures in [-1, 1], or a condition, (B, channels, H, W), by one draw for each.

    Args:
        pictures: what D would see.
        draws: of the same B.
        colour: True for images; False for edges and conditions.
        hole: False leaves cutout out.

    Returns:
        Same shape; zeros where nothing was moved to, and in the hole.
    """
    assert len(pictures) == len(draws.brightness)
    if colour:
        pictures = _recoloured(pictures, draws)
    moved = _moved(pictures, draws)
    return _cut(moved, draws) if hole else moved


def moved_labels(labels: Tensor, draws: Draws, outside: int, *, hole: bool = True) -> Tensor:
    """Labels, int64 (B, H, W), moved and cut as pictures are; ``outside`` where nothing is left."""
    moved = _moved(labels[:, None], draws, fill=outside)
    if hole:
        moved = moved.masked_fill(_cut(torch.ones_like(moved), draws) == 0, outside)
    return moved[:, 0]


def _recoloured(images: Tensor, draws: Draws) -> Tensor:
    """Brightness by +-0.5, saturation by 0 to 2, contrast by 0.5 to 1.5."""

    def per_image(values: Tensor) -> Tensor:
        return uploaded(values, images.device).to(images.dtype)[:, None, None, None]

    images = images + (per_image(draws.brightness) - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * (2 * per_image(draws.saturation))
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (per_image(draws.contrast) + 0.5)


def _moved(pictures: Tensor, draws: Draws, fill: float = 0) -> Tensor:
    """Whole pixels down and right by up to an eighth either way."""
    dy = _offsets(draws.shift_y, pictures.shape[2])
    dx = _offsets(draws.shift_x, pictures.shape[3])
    moved = [
        F.pad(picture, (x, -x, y, -y), value=fill)  # negative padding crops
        for picture, y, x in zip(pictures, dy, dx, strict=True)
    ]
    return torch.stack(moved).contiguous(memory_format=torch.channels_last)


def _offsets(values: Tensor, length: int) -> list[int]:
    """Uniform over -n .. n, n being an eighth of the length."""
    largest = int(length * MAX_SHIFT + 0.5)
    return ((values * (2 * largest + 1)).floor().int() - largest).tolist()


def _cut(pictures: Tensor, draws: Draws) -> Tensor:
    """A hole of half the height and width around a uniform pixel, less what is outside."""
    height, width = pictures.shape[2:]
    in_rows = uploaded(_hole(draws.cut_y, height), pictures.device)[:, None, :, None]
    in_columns = uploaded(_hole(draws.cut_x, width), pictures.device)[:, None, None, :]
    return pictures * (~(in_rows & in_columns)).to(pictures.dtype)


def _hole(values: Tensor, length: int) -> Tensor:
    """Which of ``length`` pixels are in the hole, bool (B, length)."""
    side = int(length * CUTOUT + 0.5)
    first = (values * length).floor() - side // 2
    pixels = torch.arange(length)
    return (pixels >= first[:, None]) & (pixels < first[:, None] + side)
