"""Convolutions of label maps, once for each distinct neighbourhood.

A stack of two 3x3 convolutions sees 5 x 5 labels, and a label map has few such squares that differ:
most of its area is the inside of one class. Squares are numbered here, exactly, and the
convolutions then run over the distinct ones: the first is a sum of 9 rows of a table, the second
one matrix product and a sum of 9 rows of the result.

Shape legend:
    L  label maps      h, w  height and width      V  codes that a pixel can have
    T  distinct 3 x 3 squares      U  distinct 5 x 5 squares
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TAPS = 9  # of a 3 x 3 kernel
PRODUCTS = 2**22  # numbers that are held at once, few enough for a CPU's last cache


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """The squares of L label maps.

    Attributes:
        codes: values in each 3 x 3 square, row by row; V outside the picture, (T, 9).
        numbers: number of the 3 x 3 square around each pixel, (L, h, w).
        squares: the 3 x 3 squares around the 9 pixels of each 5 x 5 square; T where the pixel is
            outside the picture, (U, 9).
        index: number of the 5 x 5 square around each pixel, (L, h, w).
    """

    codes: Tensor
    numbers: Tensor
    squares: Tensor
    index: Tensor


def neighbourhoods(codes: Tensor, num_codes: int) -> Neighbourhoods:
    """The distinct squares of label maps.

    Args:
        codes: code of each pixel, int64, 0..V-1, (L, h, w).
        num_codes: V.
    """
    numbers, members = distinct_windows(codes, num_codes)
    index, squares = distinct_windows(numbers, len(members))
    return Neighbourhoods(members, numbers, squares, index)


def distinct_windows(values: Tensor, outside: int) -> tuple[Tensor, Tensor]:
    """Number the 3 x 3 windows of maps by what is in them.

    Args:
        values: int64, 0..outside-1, (L, h, w).
        outside: value around the maps.

    Returns:
        The number of the window around each pixel, (L, h, w), and the values in each distinct
        window, row by row, (windows, 9).
    """
    _, h, w = values.shape
    padded = F.pad(values, (1, 1, 1, 1), value=outside)
    rows, num_rows = numbered([padded[:, :, x : x + w] for x in range(3)], outside + 1)
    numbers, num_windows = numbered([rows[:, y : y + h] for y in range(3)], num_rows)
    places = torch.arange(values.numel(), device=values.device)
    # Which of the pixels with one number is taken makes no difference: their windows are the same
    example = places.new_empty(num_windows).scatter_(0, numbers.flatten(), places)
    corner = example + example // w * 2 + example // (h * w) * (2 * (w + 2))
    steps = torch.arange(3, device=values.device)
    offsets = (steps[:, None] * (w + 2) + steps).flatten()
    return numbers, padded.flatten()[corner[:, None] + offsets]


def sum_over_codes(squares: Neighbourhoods, table: Tensor) -> Tensor:
    """A 3x3 convolution of one-hot codes, without bias: (T, out).

    Args:
        squares: neighbourhoods to sum over.
        table: the kernel's row for each tap and code, the last one for outside, (9, V + 1, out).
    """
    steps = torch.arange(TAPS, device=table.device) * table.shape[1]
    return F.embedding_bag(squares.codes + steps, table.flatten(0, 1), mode="sum")


def sum_over_windows(squares: Neighbourhoods, x: Tensor, kernel: Tensor) -> Tensor:
    """A 3x3 convolution, zero-padded and without bias, of a map that T squares decide: (U, out).

    Multiplied first, gathered second: there are fewer squares of 3 x 3 than of 5 x 5.

    Args:
        squares: neighbourhoods to sum over.
        x: value of the map for each 3 x 3 square, (T, in).
        kernel: (in, 9, out).
    """
    T, out = len(x), kernel.shape[2]
    entries = squares.squares * TAPS + torch.arange(TAPS, device=x.device)
    columns = max(16, PRODUCTS // (TAPS * (T + 1)) // 16 * 16)
    parts: list[Tensor] = []
    for part in kernel.split(columns, dim=2):
        products = x.new_zeros((T + 1) * TAPS, part.shape[2])  # the last 9 are of no square
        torch.mm(x, part.flatten(1), out=products[:-TAPS].view(T, -1))
        parts.append(F.embedding_bag(entries, products, mode="sum"))
    return parts[0] if columns >= out else torch.cat(parts, dim=1)


def numbered(parts: Sequence[Tensor], count: int) -> tuple[Tensor, int]:
    """Number what several maps of integers below ``count`` say together; and how many there are."""
    key, bound = parts[0], count
    for part in parts[1:]:
        if bound * count >= 2**63:
            key, bound = ranked(key, bound)
        key, bound = key * count + part, bound * count
    return ranked(key, bound)


def ranked(key: Tensor, bound: int) -> tuple[Tensor, int]:
    """Ranks of integers below ``bound`` among the distinct ones, and how many there are."""
    if bound <= 4 * key.numel():  # a table of all of them is faster than sorting
        there = torch.zeros(bound, dtype=torch.bool, device=key.device)
        there[key] = True
        ranks = there.cumsum(0) - 1
        return ranks[key], int(ranks[-1]) + 1
    distinct, ranks = key.unique(return_inverse=True)
    return ranks, len(distinct)
