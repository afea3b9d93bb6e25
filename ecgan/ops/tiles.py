"""All pairs of M items in tiles, so that an M x M matrix is never stored.

Items are sorted by class, so that the pairs of one class are square blocks on the diagonal and a
tile holds pairs of one class or of different ones, never both: no masks. Both sums over pairs that
we need (Eqs. 3 and 5) have one number for (i, j) and (j, i), so half of the tiles suffice.

Shape legend:
    M  items      r, c  rows and columns of a tile
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """Pairs (row, column). Together with their mirror images, all tiles hold each pair once."""

    rows: slice
    columns: slice
    diagonal: bool  # rows and columns are the same items: the tile is its own mirror image


def tile_elements(device: torch.device) -> int:
    """Pairs in a tile: few enough for a CPU's cache, enough to fill a GPU."""
    return 2**25 if device.type == "cuda" else 2**18


def same_class_tiles(start: int, stop: int, elements: int) -> Iterator[Tile]:
    """Tiles of the pairs within one class, whose items are ``start`` to ``stop``."""
    blocks = _blocks(start, stop, math.isqrt(elements))
    for number, rows in enumerate(blocks):
        yield Tile(rows, rows, diagonal=True)
        for columns in blocks[number + 1 :]:
            yield Tile(rows, columns, diagonal=False)


def rectangle_tiles(rows: slice, columns: slice, elements: int) -> Iterator[Tile]:
    """Tiles of the pairs of two ranges that have no item in common."""
    if rows.start == rows.stop:
        return
    side = min(rows.stop - rows.start, math.isqrt(elements))
    for row_block in _blocks(rows.start, rows.stop, side):
        height = row_block.stop - row_block.start
        for column_block in _blocks(columns.start, columns.stop, elements // height):
            yield Tile(row_block, column_block, diagonal=False)


def class_bounds(counts: Sequence[int]) -> list[int]:
    """Start of each class among the sorted items, and the end of the last one."""
    bounds = [0]
    for count in counts:
        bounds.append(bounds[-1] + count)
    return bounds


def _blocks(start: int, stop: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, stop)) for i in range(start, stop, size)]
